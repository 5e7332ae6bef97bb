//! A model of MLflow's registry, from a server that answers by MLflow's REST shapes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{BUNDLED, done, refused};

/// `fraud` with version 7, which `champion` stands at; its files lie below `root`.
struct Server {
    url: String,
}

impl Server {
    fn start(root: PathBuf, artifact_uri: &str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let artifact_uri = artifact_uri.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &root, &artifact_uri);
            }
        });
        Server { url }
    }
}

fn answer(mut stream: TcpStream, root: &Path, artifact_uri: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let of = |name: &str| {
        let values = query.split('&').filter_map(|pair| pair.split_once('='));
        values
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.replace("%2F", "/").replace("%20", " ").replace('+', " "))
            .next()
            .unwrap_or_default()
    };
    // "token" is what the tests name.
    let (status, body) = if !headers.iter().any(|header| header == "authorization: bearer token") {
        (401, b"not allowed".to_vec())
    } else {
        let missing = || {
            let refusal =
                json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered model alias not found." });
            (404, refusal.to_string().into_bytes())
        };
        let found = |value: Value| (200, value.to_string().into_bytes());
        match path {
            "/api/2.0/mlflow/registered-models/alias"
                if (of("name"), of("alias")) == ("fraud".into(), "champion".into()) =>
            {
                found(
                    json!({ "model_version": { "name": "fraud", "version": "7", "status": "READY", "source": artifact_uri } }),
                )
            }
            "/api/2.0/mlflow/model-versions/get-download-uri"
                if (of("name"), of("version")) == ("fraud".into(), "7".into()) =>
            {
                found(json!({ "artifact_uri": artifact_uri }))
            }
            "/api/2.0/mlflow/runs/get" if of("run_id") == "a1" => found(
                json!({ "run": { "info": { "run_id": "a1", "artifact_uri": "mlflow-artifacts:/1/run a/artifacts" } } }),
            ),
            "/api/2.0/mlflow-artifacts/artifacts" => {
                let entries = std::fs::read_dir(root.join(of("path"))).unwrap().map(|entry| {
                    let entry = entry.unwrap();
                    json!({ "path": entry.file_name().to_str().unwrap(), "is_dir": entry.path().is_dir(), "file_size": 1 })
                });
                found(json!({ "files": entries.collect::<Vec<_>>() }))
            }
            _ => match path.strip_prefix("/api/2.0/mlflow-artifacts/artifacts/") {
                Some(file) => (200, std::fs::read(root.join(file.replace("%20", " "))).unwrap()),
                None => missing(),
            },
        }
    };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    // A client that has gone does without its answer.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[test]
fn models_are_imported_from_mlflow() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    std::fs::create_dir(&root).unwrap();
    let model = folder.path().join("1").join("run a").join("artifacts").join("model");
    std::fs::create_dir_all(model.join("plots")).unwrap();
    std::fs::write(model.join("MLmodel"), "flavors: {}").unwrap();
    let inner = model.join("fraudline");
    std::fs::create_dir(&inner).unwrap();
    for file in models::Artifact::FILES {
        std::fs::copy(Path::new(BUNDLED).join(file), inner.join(file)).unwrap();
    }
    let server = Server::start(folder.path().to_owned(), "mlflow-artifacts:/1/run a/artifacts/model");
    let import = |uri: &str, more: &[&str], succeeds: bool| {
        let args = [&["model", "import", uri, "--mlflow", server.url.as_str()], more].concat();
        if succeeds { done(&root, &args) } else { refused(&root, &args) }
    };
    assert!(import("models:/fraud@champion", &[], true).contains("added fraud@7"));
    assert!(import("models:/fraud/7", &["--as", "mine@1", "--alias", "champion"], true).contains("added mine@1"));
    assert!(root.join("fraud").join("7").join("model.safetensors").is_file());
    let text = import("models:/fraud@challenger", &[], false);
    assert!(text.contains("404") && text.contains("Registered model alias not found."), "{text}");
    assert!(import("models:/fraud/8", &[], false).contains("404"), "an unknown version");
    assert!(import("models:/fraud", &[], false).contains("write models:/NAME/VERSION"));

    // Where the server doesn't give the files out itself, they may lie on this machine.
    let local = Server::start(folder.path().to_owned(), &format!("file://{}", model.display()));
    let args = ["model", "import", "models:/fraud/7", "--as", "local@1", "--mlflow", &local.url];
    assert!(done(&root, &args).contains("added local@1"));
    let of_run = Server::start(folder.path().to_owned(), "runs:/a1/model");
    let args = ["model", "import", "models:/fraud/7", "--as", "run@1", "--mlflow", &of_run.url];
    assert!(done(&root, &args).contains("added run@1"));
    let bucket = Server::start(folder.path().to_owned(), "s3://bucket/model");
    let args = ["model", "import", "models:/fraud/7", "--as", "local@2", "--mlflow", &bucket.url];
    assert!(refused(&root, &args).contains("s3://bucket/model, which the server does not give out itself"));
}
