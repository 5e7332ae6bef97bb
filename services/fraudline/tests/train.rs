//! `fraudline train` as a person meets it.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod command;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use command::{fraudline, simulate};
use serde_json::Value;

fn train(input: &Path, output: &Path) -> Command {
    let mut command = fraudline();
    command.args(["train", "--warm-up-days", "20", "--epochs", "10", "--alert-budget", "0.003", "--input"]).arg(input);
    command.arg("--output").arg(output).env_remove("RUST_BACKTRACE");
    command
}

/// The exit status, and what it says on either stream.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).join("\n");
    (output.status.code(), text)
}

#[test]
fn killed_it_goes_on_to_the_same_folder() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    simulate(&input, 300, 70);
    let whole = folder.path().join("whole");
    let (code, text) = run(&mut train(&input, &whole));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("alert budget") && text.contains("0.3 %"), "{text}");
    let metrics: Value = serde_json::from_slice(&std::fs::read(whole.join("metrics.json")).unwrap()).unwrap();
    assert_eq!(metrics["data"]["source"], "transactions of input.parquet");
    assert_eq!(metrics["data"]["training"][0].as_str().unwrap().get(..10), Some("2018-04-21"));
    let curve = metrics["curve"].as_array().unwrap();
    assert!(curve.len() >= 3 && curve.iter().filter(|epoch| epoch["best"] == true).count() >= 1, "{metrics}");

    let halved = folder.path().join("halved");
    let checkpoint = folder.path().join("halved.checkpoint");
    let mut killed = train(&input, &halved).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    let second = lines.map(|line| line.unwrap()).find(|line| line.starts_with("epoch   2 "));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(second.is_some() && !halved.exists() && checkpoint.exists());

    let (code, text) = run(&mut train(&input, &halved));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("halved.checkpoint is of a training that was interrupted; go on from it with --resume"));
    let (code, text) = run(train(&input, &halved).arg("--resume").args(["--seed", "5"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is of a training with other transactions, features or options"), "{text}");

    let (code, text) = run(train(&input, &halved).arg("--resume"));
    assert_eq!(code, Some(0), "{text}");
    assert!(!checkpoint.exists(), "the training is done");
    let files = |dir: &Path| {
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let (whole, halved) = (files(&whole), files(&halved));
    assert_eq!(whole.len(), 7);
    for (expected, found) in whole.iter().zip(&halved) {
        assert!(expected == found, "{} differs", expected.0);
    }
}

#[test]
fn a_history_network_needs_a_sequence_and_reads_the_one_of_history_yaml() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    simulate(&input, 200, 60);
    let output = folder.path().join("history");
    let mut command = train(&input, &output);
    let command = command.args(["--network", "history", "--hidden", "16,8", "--members", "2"]);
    let (code, text) = run(command);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the features have no sequence of them: declare `previous`"), "{text}");

    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../feature-store/definitions/history.yaml");
    let (code, text) = run(command.arg("--features").arg(&definitions));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("epoch   2 ") && text.contains("alert budget"), "{text}");
    let config: Value = serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["network"]["type"], "history");

    let mut evaluate = fraudline();
    evaluate.args(["evaluate", "--device", "cpu", "--model"]).arg(&output).arg("--input").arg(&input);
    let (code, text) = run(evaluate.arg("--features").arg(&definitions));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("fraud@1 on cpu"), "{text}");
}
