//! `fraudline evaluate` as a person meets it.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod command;

use std::path::Path;

use command::{fraudline, simulate};
use serde_json::Value;

/// The exit status, what it says on either stream, and the report.
fn evaluate(input: &Path, more: &[&str]) -> (Option<i32>, String, Option<Value>) {
    let report = input.with_extension("json");
    let _ = std::fs::remove_file(&report);
    let mut command = fraudline();
    command.args(["evaluate", "--device", "cpu", "--input"]).arg(input).args(more).arg("--report").arg(&report);
    let output = command.env_remove("RUST_BACKTRACE").output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).join("\n");
    (output.status.code(), text, std::fs::read(report).ok().map(|json| serde_json::from_slice(&json).unwrap()))
}

#[test]
fn the_bundled_model_is_evaluated_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    let rows = simulate(&input, 500, 60);
    let (code, text, report) = evaluate(&input, &["--warm-up-days", "30", "--cards", "10"]);
    let report = report.unwrap_or_else(|| panic!("{code:?}: {text}"));
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("no {name}: {report}"));
    assert!((0.4..0.6).contains(&(number("count") / rows as f64)), "half of the days only fill the windows: {report}");
    assert!(number("positives") > 50.0 && number("auc") > 0.75, "{report}");
    let (precision, share) = (number("average_precision"), number("positives") / number("count"));
    assert!(precision > 5.0 * share, "far better than chance: {report}");
    assert!(number("alert_share") > 0.0 && number("alert_share") < 0.1, "{report}");
    assert!(number("calibration_error") < share / 2.0, "{report}");
    assert_eq!(report["card_precision"]["cards"], 10);
    assert!(report["card_precision"]["precision"].as_f64().unwrap() > 0.1, "{report}");
    for line in ["AUC ", "average precision ", "card precision@10 ", "calibration error "] {
        assert!(text.contains(line), "no {line}in {text}");
    }

    // Every budget's threshold, the widest alerting most.
    let thresholds = report["thresholds"].as_array().unwrap();
    let shares: Vec<f64> = thresholds.iter().map(|at| at["alert_share"].as_f64().unwrap()).collect();
    assert!(shares.len() >= 5 && shares.is_sorted() && shares[4] > 0.005, "{report}");
    assert!(thresholds.iter().any(|at| at["threshold"] == report["threshold"] && at["recall"] == report["recall"]));

    // The simulator's kinds of fraud: all frauds are of one, and what a card or an amount tells comes before the delayed labels of a terminal.
    let scenarios = report["scenarios"].as_array().unwrap();
    let of = |scenario: usize, figure: &str| scenarios[scenario - 1][figure].as_f64().unwrap();
    assert_eq!(scenarios.iter().map(|of| of["scenario"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3], "{report}");
    assert_eq!((1..=3).map(|scenario| of(scenario, "frauds")).sum::<f64>(), number("positives"));
    let found: f64 = (1..=3).map(|scenario| of(scenario, "frauds") * of(scenario, "recall")).sum();
    assert!((found / number("positives") - number("recall")).abs() < 1e-9, "{report}");
    assert!(of(1, "recall") > of(2, "recall") && of(3, "recall") > of(2, "recall"), "{report}");
    assert!(text.contains("2 compromised terminal"), "{text}");

    // The same kind of payments as in training, but fewer terminals to choose from.
    let features = report["drift"]["features"].as_array().unwrap();
    let psi: Vec<f64> = features.iter().map(|drift| drift["psi"].as_f64().unwrap()).collect();
    assert!(psi.is_sorted_by(|a, b| a >= b), "{report}");
    let of = |name: &str| features.iter().find(|drift| drift["name"] == name).unwrap()["psi"].as_f64().unwrap();
    assert!(of("TX_AMOUNT") < 0.1 && of("TX_DURING_NIGHT") < 0.1, "{report}");
    assert!(report["drift"]["score"]["psi"].as_f64().unwrap() < 1.0, "{report}");
    assert!(text.contains("drift (population stability index): score "), "{text}");

    // What becomes known later helps less.
    let late = evaluate(&input, &["--warm-up-days", "30", "--label-delay", "50d"]).2.unwrap();
    assert!(late["average_precision"].as_f64().unwrap() < precision, "{late}");
}

#[test]
fn figures_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    simulate(&input, 300, 50);
    let plots = folder.path().join("plots");
    let more = ["--warm-up-days", "30", "--alert-budget", "0.01", "--plots", plots.to_str().unwrap()];
    let (code, text, report) = evaluate(&input, &more);
    let report = report.unwrap_or_else(|| panic!("{code:?}: {text}"));
    let own = report["thresholds"].as_array().unwrap().iter().find(|at| at["alert_budget"] == 0.01).unwrap();
    assert_eq!(own["threshold"], report["threshold"]);
    let threshold = format!("at the threshold {:.4}", report["threshold"].as_f64().unwrap());
    for (name, says) in [
        ("precision_recall.svg", threshold.as_str()),
        ("roc.svg", "share of the frauds found"),
        ("calibration.svg", "20 bins of equally many transactions"),
        ("scores.svg", "legitimate"),
        ("scenarios.svg", "3 compromised card"),
    ] {
        let drawn = std::fs::read_to_string(plots.join(name)).unwrap();
        assert!(drawn.starts_with("<svg") && drawn.contains(says), "{name} lacks {says}: {drawn}");
    }
}

#[test]
fn what_cannot_be_evaluated_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    simulate(&input, 50, 5);
    for (more, says) in [
        (&["--warm-up-days", "4000"][..], "lower --warm-up-days, or take a longer input"),
        (&["--features", "../../feature-store/definitions/fraud.yaml"], "feature"),
        (&["--model", "nowhere"], "nowhere"),
        (&["--alert-budget", "0.3"], "has no threshold for an alert budget of 0.3; it has some for 0.001, 0.002"),
    ] {
        let (code, text, report) = evaluate(&input, more);
        assert_eq!((code, report), (Some(1), None), "{text}");
        assert!(text.contains(says), "{more:?}: {text}");
    }
}

#[test]
fn the_handbooks_protocol_trains_and_tests_by_the_week() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    simulate(&input, 400, 160);
    let protocol = ["--protocol", "handbook", "--epochs", "2", "--seeds", "1"];
    let (code, text, report) = evaluate(&input, &protocol);
    let report = report.unwrap_or_else(|| panic!("{code:?}: {text}"));
    let folds = report["folds"].as_array().unwrap();
    let starts: Vec<&str> = folds.iter().map(|fold| fold["training"].as_str().unwrap()).collect();
    assert_eq!(starts, ["2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"]);
    for figure in ["auc", "average_precision", "card_precision_100"] {
        let of_folds: f64 = folds.iter().map(|fold| fold[figure].as_f64().unwrap()).sum();
        let mean = report["mean"][figure].as_f64().unwrap();
        assert!((mean - of_folds / 4.0).abs() < 1e-12 && mean > 0.0, "{figure}: {report}");
    }
    assert_eq!((&report["epochs"], &report["seeds"]), (&2.into(), &1.into()));
    let best = |candidate: &serde_json::Value| candidate["mean"]["average_precision"].as_f64().unwrap();
    let candidates = report["candidates"].as_array().unwrap();
    let chosen = candidates.iter().reduce(|a, b| if best(b) > best(a) { b } else { a }).unwrap();
    assert!(candidates.len() > 1 && chosen["dropout"] == report["chosen"]["dropout"], "{report}");
    assert!(text.contains("2018-08-15") && text.contains("average precision"), "{text}");

    // No label counts before its delay: with another one the figures are others.
    let late = evaluate(&input, &[&protocol[..], &["--label-delay", "20d"]].concat()).2.unwrap();
    assert!(
        late["mean"]["average_precision"].as_f64() < report["mean"]["average_precision"].as_f64(),
        "{late} {report}"
    );
    let all = evaluate(&input, &[&protocol[..], &["--train-days", "all"]].concat()).2.unwrap();
    assert_eq!(all["folds"][0]["test_transactions"], folds[0]["test_transactions"]);
    assert!(all["folds"][0]["training_transactions"].as_u64() > folds[0]["training_transactions"].as_u64());

    let short = folder.path().join("short.parquet");
    simulate(&short, 50, 60);
    let (code, text, _) = evaluate(&short, &protocol);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no transactions in the weeks of the fold that begins on 2018-07-11"), "{text}");
}
