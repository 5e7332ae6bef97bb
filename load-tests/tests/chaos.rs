//! Short runs of the load tests' binary on the real services. `infra/local/services start all` starts
//! what they need; without it they are skipped, by name, and with `FRAUDLINE_SERVICES=required` they
//! fail. Brokers and stores stay up: other tests use them at the same time.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const KAFKA: (&str, &str) = ("FRAUDLINE_TEST_KAFKA", "127.0.0.1:19092");
const REDIS: (&str, &str) = ("FRAUDLINE_TEST_REDIS", "redis://127.0.0.1:16379");
const CASSANDRA: (&str, &str) = ("FRAUDLINE_TEST_CASSANDRA", "127.0.0.1:19042");

/// As the workspace's build left it.
fn fraudline() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_load-tests")).with_file_name("fraudline")
}

fn have(services: &[(&str, &str)]) -> bool {
    let binary = fraudline();
    let missing = services.iter().find_map(|(variable, default)| {
        let address = std::env::var(variable).unwrap_or((*default).to_owned());
        let host = address.split("://").last().unwrap().split(',').next().unwrap().to_owned();
        let away = TcpStream::connect(host).is_err();
        away.then(|| format!("{variable} at {address}; `infra/local/services start all` starts it"))
    });
    let missing = missing
        .or_else(|| (!binary.is_file()).then(|| format!("{}; `cargo build --workspace` makes it", binary.display())));
    let Some(missing) = missing else { return true };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var("FRAUDLINE_SERVICES").as_deref() != Ok("required"), "{test}: no {missing}");
    eprintln!("skipped: {test}: no {missing}");
    false
}

/// Runs the binary to success, and returns its report.
fn run(args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_load-tests"));
    let output = command.args(args).arg("--fraudline").arg(fraudline()).arg("--report").arg(&report).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = std::fs::read_to_string(&report).unwrap_or_default();
    assert!(output.status.success(), "{args:?}: {}\n{said}\n{report}", output.status);
    serde_json::from_str(&report).unwrap()
}

fn chaos(store: &str) {
    let report = run(&[
        "chaos",
        "--seed",
        "7",
        "--kills",
        "4",
        "--events",
        "12000",
        "--rate",
        "500",
        "--partitions",
        "4",
        "--store",
        store,
        "--no-outages",
    ]);
    assert!(report["kills"].as_u64() >= Some(4), "{report}");
    assert!(report["events"].as_u64() >= Some(12_000), "{report}");
    let (scores, dead_letters) = (report["scores"].as_u64().unwrap(), report["dead_letters"].as_u64().unwrap());
    assert_eq!(Some(scores + dead_letters), report["events"].as_u64());
    for name in ["lost", "repeated", "differing_features", "stamps_ahead", "lag"] {
        assert_eq!(report[name], 0, "{name}: {report}");
    }
}

#[test]
fn kills_lose_nothing_on_redis() {
    if have(&[KAFKA, REDIS]) {
        chaos("redis");
    }
}

#[test]
fn kills_lose_nothing_on_cassandra() {
    if have(&[KAFKA, CASSANDRA]) {
        chaos("cassandra");
    }
}

#[test]
fn promotions_lose_nothing_and_no_partition_goes_back() {
    if !have(&[KAFKA, REDIS]) {
        return;
    }
    let settings = ["--promotions", "5", "--interval", "3s", "--rate", "300", "--partitions", "4"];
    let report = run(&[&["swap", "--warm-up-seconds", "5", "--before-seconds", "3"], &settings[..]].concat());
    assert_eq!(report["promotions"], 5);
    assert_eq!(report["scores"], report["events"]);
    for name in ["lost", "repeated", "switches_back"] {
        assert_eq!(report[name], 0, "{name}: {report}");
    }
    // Each of four partitions changes over to each of five models at one offset; where all stands still for long, one model
    // may be passed over.
    assert!((8..=20).contains(&report["switches"].as_u64().unwrap()), "{report}");
}

#[test]
fn bad_input_ends_as_dead_letters() {
    if !have(&[KAFKA, REDIS]) {
        return;
    }
    let report = run(&["bad-input", "--seed", "7", "--records", "20000"]);
    assert_eq!(report["records"], 20_000);
    assert!(report["scores"].as_u64() > Some(8000), "{report}");
    assert!(report["dead_letters"].as_u64() > Some(4000), "{report}");
    assert_eq!(report["exits"], Value::Array(Vec::new()));
}
