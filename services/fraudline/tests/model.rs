//! `fraudline model` and `fraudline replay`, and what `up` makes of a promotion while it runs.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod command;
mod mlflow;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use command::{Up, fraudline, simulate, tail};
use serde_json::Value;

/// The model in the binary, as a folder.
const BUNDLED: &str = "../../models/artifacts/default";

/// Runs a command of the registry; its exit status and what it says.
fn run(registry: &Path, args: &[&str]) -> (bool, String) {
    let mut command = fraudline();
    command
        .args(args)
        .env("FRAUDLINE_REGISTRY", registry)
        .env("RUST_BACKTRACE", "0")
        .env("MLFLOW_TRACKING_TOKEN", "token");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

fn done(registry: &Path, args: &[&str]) -> String {
    let (succeeded, text) = run(registry, args);
    assert!(succeeded, "{args:?}: {text}");
    text
}

fn refused(registry: &Path, args: &[&str]) -> String {
    let (succeeded, text) = run(registry, args);
    assert!(!succeeded, "{args:?}: {text}");
    text
}

/// A registry with `fraud@1` to `fraud@{versions}`; the first one is the champion.
fn registry(root: &Path, versions: u32) {
    std::fs::create_dir(root).unwrap();
    for version in 1..=versions {
        done(root, &["model", "add", BUNDLED, "--as", &format!("fraud@{version}")]);
    }
    done(root, &["model", "promote", "fraud@1"]);
}

#[test]
fn versions_are_added_shown_promoted_and_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    registry(&root, 2);
    assert_eq!(done(&root, &["model", "add", BUNDLED]).trim(), "added handbook-mlp@1");
    let text = done(&root, &["model", "promote", "fraud@2", "--alias", "challenger"]);
    assert!(text.starts_with("fraud: challenger promoted, none -> 2 (generation "), "{text}");
    let text = done(&root, &["model", "promote", "fraud@challenger"]);
    assert!(text.starts_with("fraud: champion promoted, 1 -> 2 (generation "), "{text}");
    let listed = done(&root, &["model", "list", "--json"]);
    let lines: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<(&str, Vec<&str>)> = lines
        .iter()
        .map(|line| {
            let aliases = line["aliases"].as_array().unwrap().iter().map(|alias| alias.as_str().unwrap());
            (line["model"].as_str().unwrap(), aliases.collect())
        })
        .collect();
    assert_eq!(found, [("fraud@1", vec![]), ("fraud@2", vec!["challenger", "champion"]), ("handbook-mlp@1", vec![])]);
    let text = done(&root, &["model", "rollback", "fraud"]);
    assert!(text.starts_with("fraud: champion rolled back, 2 -> 1 (generation "), "{text}");
    let text = done(&root, &["model", "retire", "fraud", "--alias", "challenger"]);
    assert!(text.starts_with("fraud: challenger taken away, 2 -> none"), "{text}");
    let text = done(&root, &["model", "show", "fraud"]);
    for says in ["fraud@1 in ", "aliases      champion\n", "champion rolled back, 2 -> 1", "validation   AUC 0."] {
        assert!(text.contains(says), "no {says:?} in {text}");
    }
    let shown: Value = serde_json::from_str(&done(&root, &["model", "show", "fraud@2", "--json"])).unwrap();
    assert_eq!(shown["history"].as_array().unwrap().len(), 5, "{shown}");

    for (args, says) in [
        (&["model", "rollback", "fraud"][..], "knows nothing that `champion` stood at before; promote a version"),
        (&["model", "promote", "fraud@7"], "has no `fraud@7`; `fraud` has the versions 1, 2"),
        (&["model", "add", BUNDLED], "already exists; versions are never overwritten"),
        (&["model", "add", BUNDLED, "--as", "fraud"], "`fraud` is no name and version; write it as in fraud@3"),
        (
            &["model", "promote", "fraud@2", "--features", "../../feature-store/definitions/three_views.yaml"],
            "can't take over",
        ),
        (&["up", "--registry", root.to_str().unwrap()], "--model-name"),
        (&["up", "--registry", root.to_str().unwrap(), "--model-name", "cards"], "has no alias `champion` of `cards`"),
    ] {
        let text = refused(&root, args);
        assert!(text.contains(says), "{args:?}: {text}");
    }
    let nowhere = refused(&folder.path().join("nowhere"), &["model", "list"]);
    assert!(nowhere.contains("name the folder of the registry, or create it"), "{nowhere}");
}

/// Scores by source position.
fn by_source(records: &[Value]) -> BTreeMap<(u64, u64), Value> {
    let scores = records.iter().map(|record| record["value"].clone());
    let keyed = scores.map(|score| {
        let of = |name: &str| score["source"][name].as_u64().unwrap();
        ((of("partition"), of("offset")), score)
    });
    keyed.collect()
}

#[test]
fn promotions_swap_a_running_scorer_and_history_is_scored_again() {
    const VERSIONS: u32 = 5;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    registry(&root, VERSIONS);
    done(&root, &["model", "promote", "fraud@2", "--alias", "challenger"]);
    let input = folder.path().join("input.parquet");
    let events = simulate(&input, 300, 40);
    let data = folder.path().join("data");
    let mut up = Up::new(&data);
    up.args(["--input", input.to_str().unwrap(), "--rate", &(events / 8).to_string(), "--workers", "2"]);
    up.args(["--registry", root.to_str().unwrap(), "--model-name", "fraud", "--challenger", "challenger"]);
    up.args(["--poll-interval", "50ms"]);
    let mut up = up.start();
    up.url();
    for version in 2..=VERSIONS {
        std::thread::sleep(Duration::from_millis(1200));
        done(&root, &["model", "promote", &format!("fraud@{version}")]);
    }
    let report = up.finish();
    assert_eq!((report["scores"].as_u64(), report["model"].as_str()), (Some(events), Some("fraud@5")), "{report}");

    let scores = by_source(&tail(&data, "scores"));
    assert_eq!(scores.len() as u64, events);
    let model = |score: &Value| score["model"].as_str().unwrap().to_owned();
    let seen: BTreeSet<String> = scores.values().map(model).collect();
    assert_eq!(seen.len() as u32, VERSIONS, "every promotion was followed: {seen:?}");
    let in_order: Vec<(u64, String)> =
        scores.iter().map(|((partition, _), score)| (*partition, model(score))).collect();
    assert!(in_order.is_sorted(), "no partition goes back to an older model");
    let shadows = by_source(&tail(&data, "challenger-scores"));
    assert_eq!(shadows.len(), scores.len());
    assert!(shadows.values().all(|shadow| shadow["model"] == "fraud@2" && shadow["features"].is_null()));

    // All versions are of the same weights, so they must agree in every bit.
    let compared = folder.path().join("compared.json");
    let data_dir = data.to_str().unwrap();
    let compare = |more: &[&str]| -> Value {
        let report = compared.to_str().unwrap();
        done(&root, &[&["model", "compare", "--data-dir", data_dir, "--report", report], more].concat());
        serde_json::from_slice(&std::fs::read(&compared).unwrap()).unwrap()
    };
    let of_challenger = compare(&[]);
    let comparisons = of_challenger["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len() as u32, VERSIONS, "{of_challenger}");
    let transactions: u64 = comparisons.iter().map(|compared| compared["transactions"].as_u64().unwrap()).sum();
    assert_eq!((transactions, of_challenger["unmatched"].as_u64()), (events, Some(0)));
    for compared in comparisons {
        assert_eq!(
            (&compared["agreement"], &compared["score_shift"]),
            (&Value::from(1.0), &Value::from(0.0)),
            "{compared}"
        );
        assert!(compared["rank_correlation"].as_f64().unwrap() > 0.999_999, "{compared}");
    }

    // What is replayed has the bits of what was scored, and is of the time that was asked for.
    let replay = ["replay", "--from", "2018-04-15T00:00:00Z", "--model", "fraud@3", "--data-dir", data_dir];
    let text = done(&root, &[&replay[..], &["--to", "again", "--device", "cpu"]].concat());
    assert!(text.contains("transactions scored by fraud@3 into `again`"), "{text}");
    let again = by_source(&tail(&data, "again"));
    let since = scores.values().filter(|score| score["event_time"].as_i64().unwrap() >= 1_523_750_400_000).count();
    assert!(again.len() == since && since > 1000, "{} of {since}", again.len());
    for (source, score) in &again {
        assert_eq!((&score["score"], &score["alert"]), (&scores[source]["score"], &scores[source]["alert"]), "{score}");
        assert_eq!(score["model"], "fraud@3");
    }
    let of_replay = compare(&["--challenger", "again", "--from", "2018-04-20T00:00:00Z"]);
    assert_eq!(of_replay["comparisons"][0]["agreement"], 1.0, "{of_replay}");
    assert!(of_replay["comparisons"][0]["labelled"]["frauds"].as_u64() > Some(0), "{of_replay}");
    for (to, says) in
        [("again", "holds"), ("scores", "`scores` is a topic that services read or write; name a new one")]
    {
        let text = refused(&root, &[&replay[..], &["--to", to]].concat());
        assert!(text.contains(says), "{text}");
    }
    let text = refused(&root, &["replay", "--from", "soon", "--model", "fraud@3", "--to", "x", "--data-dir", data_dir]);
    assert!(text.contains("`soon` is no time"), "{text}");
    // The state of the live path is as it was: nothing is left to be scored.
    assert_eq!(by_source(&tail(&data, "scores")).len() as u64, events);
}
