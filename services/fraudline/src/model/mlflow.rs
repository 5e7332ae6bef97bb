//! Models of MLflow's registry, over its REST API.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use serde::Deserialize;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Folders below an artifact's root that are looked through for a model.
const DEPTH_MAX: usize = 4;
/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 4 << 30;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A model of MLflow's registry: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelUri {
    name: String,
    of: Of,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Of {
    Version(String),
    Alias(String),
}

pub(super) const SCHEME: &str = "models:/";

impl std::str::FromStr for ModelUri {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<ModelUri> {
        let rest = text.strip_prefix(SCHEME).unwrap_or_default();
        // An alias has no slash, a name may have an @.
        let (name, of) = match (rest.rsplit_once('/'), rest.rsplit_once('@')) {
            (Some((name, version)), _) if version.bytes().all(|byte| byte.is_ascii_digit()) && !version.is_empty() => {
                (name, Of::Version(version.to_owned()))
            }
            (None, Some((name, alias))) if !alias.is_empty() => (name, Of::Alias(alias.to_owned())),
            _ => bail!("`{text}` is no model of MLflow's registry; write models:/NAME/VERSION or models:/NAME@ALIAS"),
        };
        ensure!(!name.is_empty(), "`{text}` names no model");
        Ok(ModelUri { name: name.to_owned(), of })
    }
}

/// A model that was downloaded.
pub(super) struct Downloaded {
    pub(super) name: String,
    pub(super) version: String,
    /// Where its `config.json` is.
    pub(super) folder: PathBuf,
}

/// A tracking server.
pub(super) struct Mlflow {
    url: String,
    agent: ureq::Agent,
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct AliasAnswer {
    model_version: ModelVersion,
}

#[derive(Deserialize)]
struct ModelVersion {
    version: String,
}

#[derive(Deserialize)]
struct DownloadUri {
    artifact_uri: String,
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    #[serde(default)]
    is_dir: bool,
}

#[derive(Deserialize)]
struct RunAnswer {
    run: Run,
}

#[derive(Deserialize)]
struct Run {
    info: DownloadUri,
}

/// What a folder holds: names, and whether they are folders.
type Names = Vec<(String, bool)>;

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Mlflow {
    /// The server at `url`, with what MLflow's own clients take from the environment: `MLFLOW_TRACKING_TOKEN`, or
    /// `MLFLOW_TRACKING_USERNAME` and `_PASSWORD`, and `MLFLOW_TRACKING_SERVER_CERT_PATH`.
    pub(super) fn new(url: &str) -> anyhow::Result<Mlflow> {
        let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let authorization = match (of("MLFLOW_TRACKING_USERNAME"), of("MLFLOW_TRACKING_TOKEN")) {
            (Some(user), _) => {
                let password = of("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
                let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                Some(format!("Basic {encoded}"))
            }
            (None, Some(token)) => Some(format!("Bearer {token}")),
            (None, None) => None,
        };
        ensure!(
            url.starts_with("http://") || url.starts_with("https://"),
            "`{url}` is no MLflow server; write it as in http://mlflow:5000"
        );
        let mut config = ureq::Agent::config_builder().timeout_connect(Some(TIMEOUT)).http_status_as_error(false);
        if url.starts_with("https://") {
            config = config.tls_config(tls(of("MLFLOW_TRACKING_SERVER_CERT_PATH").as_deref().map(Path::new))?);
        }
        let url = url.trim_end_matches('/').to_owned();
        Ok(Mlflow { url, agent: config.build().new_agent(), authorization })
    }

    /// Downloads a model's files into `into`; one whose files are on this machine stays where it is.
    pub(super) fn download(&self, uri: &ModelUri, into: &Path) -> anyhow::Result<Downloaded> {
        let name = uri.name.clone();
        let version = match &uri.of {
            Of::Version(version) => version.clone(),
            Of::Alias(alias) => {
                let asked = [("name", name.as_str()), ("alias", alias.as_str())];
                self.json::<AliasAnswer>("/api/2.0/mlflow/registered-models/alias", &asked)?.model_version.version
            }
        };
        let asked = [("name", name.as_str()), ("version", version.as_str())];
        let DownloadUri { artifact_uri } = self.json("/api/2.0/mlflow/model-versions/get-download-uri", &asked)?;
        let folder = match Place::of(&self.of_run(artifact_uri)?)? {
            Place::Local(folder) => find(&folder, &mut |folder| local_names(folder))?,
            Place::Proxied(path) => {
                let root = find(Path::new(&path), &mut |folder| self.list(folder))?;
                self.fetch(&root, into)?;
                into.to_owned()
            }
        };
        Ok(Downloaded { name, version, folder })
    }

    /// A version that was registered as `runs:/RUN/PATH` has its files in PATH of that run's.
    fn of_run(&self, artifact_uri: String) -> anyhow::Result<String> {
        let Some(rest) = artifact_uri.strip_prefix("runs:/") else { return Ok(artifact_uri) };
        let (run, path) = rest.trim_start_matches('/').split_once('/').unwrap_or((rest, ""));
        let RunAnswer { run } = self.json("/api/2.0/mlflow/runs/get", &[("run_id", run)])?;
        Ok(format!("{}/{path}", run.info.artifact_uri.trim_end_matches('/')))
    }

    /// Downloads a folder with all that is in it.
    fn fetch(&self, from: &Path, into: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(into).with_context(|| format!("writing {}", into.display()))?;
        for (name, is_folder) in self.list(from)? {
            let (source, target) = (from.join(&name), into.join(&name));
            if is_folder {
                self.fetch(&source, &target)?;
                continue;
            }
            let path = format!("/api/2.0/mlflow-artifacts/artifacts/{}", escaped(&source));
            let mut response = self.get(&path, &[])?;
            let mut body = response.body_mut().with_config().limit(FILE_BYTES_MAX).reader();
            let mut file = File::create(&target).with_context(|| format!("writing {}", target.display()))?;
            std::io::copy(&mut body, &mut file).with_context(|| format!("downloading {}", source.display()))?;
        }
        Ok(())
    }

    fn list(&self, folder: &Path) -> anyhow::Result<Names> {
        let path = folder.to_string_lossy();
        let listing: Listing = self.json("/api/2.0/mlflow-artifacts/artifacts", &[("path", &path)])?;
        let names = listing.files.into_iter().map(|listed| {
            // Some versions give the name alone, others the path.
            let name = listed.path.rsplit('/').next().unwrap_or_default().to_owned();
            ensure!(!name.is_empty() && name != "..", "{} lists a file `{}`", self.url, listed.path);
            Ok((name, listed.is_dir))
        });
        names.collect()
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<T> {
        let text = self.get(path, query)?.body_mut().read_to_string()?;
        serde_json::from_str(&text).with_context(|| format!("{}{path} answered what MLflow doesn't: {text}", self.url))
    }

    fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        let url = format!("{}{path}", self.url);
        let mut request = self.agent.get(&url).query_pairs(query.iter().copied());
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().with_context(|| format!("asking {url}"))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let message = serde_json::from_str(&text).map_or(text, |Refusal { message }| message);
        bail!("{url}: {} {message}", response.status())
    }
}

/// Where a model's files are.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The server gives them out itself, under this path.
    Proxied(String),
    Local(PathBuf),
}

impl Place {
    fn of(artifact_uri: &str) -> anyhow::Result<Place> {
        if let Some(rest) = artifact_uri.strip_prefix("mlflow-artifacts:") {
            // A server of its own may be named; it is the one that is asked.
            let path = match rest.strip_prefix("//") {
                Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
                None => rest,
            };
            return Ok(Place::Proxied(path.trim_start_matches('/').to_owned()));
        }
        let local = artifact_uri.strip_prefix("file://").unwrap_or(artifact_uri);
        ensure!(
            local.starts_with('/'),
            "the model's files are in {artifact_uri}, which the server does not give out itself: start it with \
             --serve-artifacts, or download them (`mlflow artifacts download --artifact-uri {artifact_uri}`) and add that folder"
        );
        Ok(Place::Local(local.into()))
    }
}

/// The folder that holds a model, at `root` or below it.
fn find(root: &Path, list: &mut dyn FnMut(&Path) -> anyhow::Result<Names>) -> anyhow::Result<PathBuf> {
    let mut level = vec![root.to_owned()];
    for _ in 0..DEPTH_MAX {
        let mut below = Vec::new();
        for folder in level {
            let names = list(&folder)?;
            let has = |wanted: &str| names.iter().any(|(name, is_folder)| name == wanted && !is_folder);
            if has("config.json") && has("model.safetensors") {
                return Ok(folder);
            }
            below.extend(names.iter().filter(|(_, is_folder)| *is_folder).map(|(name, _)| folder.join(name)));
        }
        level = below;
    }
    bail!(
        "{} holds no config.json with a model.safetensors beside it: log the folder that `fraudline train` wrote, as with \
         mlflow.log_artifacts(DIR, \"model\")",
        root.display()
    )
}

fn local_names(folder: &Path) -> anyhow::Result<Names> {
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!("reading {}, where the server has the model's files; is it on this machine?", folder.display())
    })?;
    let names = entries.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.path().is_dir()))
    });
    names.collect()
}

/// The machine's certificates, or those of a file.
fn tls(file: Option<&Path>) -> anyhow::Result<TlsConfig> {
    let certificates: Vec<Certificate<'static>> = match file {
        Some(file) => {
            let pem = std::fs::read(file).with_context(|| format!("reading the certificates {}", file.display()))?;
            let items = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            items.collect()
        }
        None => {
            let found = rustls_native_certs::load_native_certs().certs;
            found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
        }
    };
    ensure!(
        !certificates.is_empty(),
        "there are no certificates to check the server's with; name some in SSL_CERT_FILE"
    );
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build())
}

/// A path as it stands in a URL.
fn escaped(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_as_mlflow_writes_them() {
        let uri = |name: &str, of: Of| ModelUri { name: name.into(), of };
        for (text, expected) in [
            ("models:/fraud/7", uri("fraud", Of::Version("7".into()))),
            ("models:/fraud@champion", uri("fraud", Of::Alias("champion".into()))),
        ] {
            assert_eq!(text.parse::<ModelUri>().unwrap(), expected);
        }
        for text in ["models:/fraud", "models:/fraud/", "models:/fraud/Production", "models:/@a", "models:/", "fraud/7"]
        {
            assert!(text.parse::<ModelUri>().is_err(), "{text}");
        }
        for (text, expected) in [
            ("mlflow-artifacts:/1/a/artifacts/model", Place::Proxied("1/a/artifacts/model".into())),
            ("mlflow-artifacts://host:5000/1/a", Place::Proxied("1/a".into())),
            ("file:///srv/model", Place::Local("/srv/model".into())),
            ("/srv/model", Place::Local("/srv/model".into())),
        ] {
            assert_eq!(Place::of(text).unwrap(), expected);
        }
        let error = Place::of("s3://bucket/model").unwrap_err().to_string();
        assert!(error.contains("in s3://bucket/model, which the server does not give out"), "{error}");
        assert_eq!(escaped(Path::new("1/a b/ü.json")), "1/a%20b/%C3%BC.json");
    }
}
