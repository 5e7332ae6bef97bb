//! `fraudline features` as a person meets it.
#![allow(clippy::unwrap_used)]

mod command;

use std::process::Output;

use command::fraudline;

fn features(args: &[&str]) -> Output {
    fraudline().arg("features").args(args).env_remove("RUST_BACKTRACE").output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = features(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn check_names_the_place_of_an_error_and_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("features.yaml");
    let file = file.to_str().unwrap();
    let good = "version: 1\nallowed_lateness: 1d\nviews:\n  - name: card\n    entity: card_id\n    windows:\n      - \
                { name: MEAN_7D, aggregate: mean, over: [7d] }\nderived:\n  - { name: RATIO, value: amount / MEAN_7D }\n";
    for (from, to, place, says) in [
        ("version: 1", "version: 2", "1:10", "reads definitions of `version: 1`"),
        (
            "allowed_lateness",
            "alowed_lateness",
            "2:1",
            "no key `alowed_lateness` here; did you mean `allowed_lateness`?",
        ),
        ("lateness: 1d", "lateness: 1 day", "2:19", "write it as in 30s, 15m, 12h or 7d"),
        ("entity: card_id", "entity: card", "5:13", "no `card`; there are card_id, terminal_id"),
        ("aggregate: mean", "aggregate: median", "7:37", "no `median`; did you mean `mean`?"),
        ("over: [7d]", "over: 7d", "7:49", "as in `[1d, 7d]`"),
        (", over: [7d]", "", "7:26", "the key `over` is missing"),
        ("/ MEAN_7D", "/ MEAN_7", "9:27", "no feature or field `MEAN_7`; did you mean `MEAN_7D`?"),
        ("/ MEAN_7D", "/ RATIO", "9:13", "RATIO <- RATIO; take one of these out"),
        ("/ MEAN_7D", "/", "9:27", "expected a feature, a field, a number or a bracket, found the end"),
        ("mean, over", "fraud_rate, over", "7:17", "declare this under the view of terminal_id"),
        ("entity: card_id", "entity: terminal_id", "4:11", "as in `staleness: 3d`"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(file, good.replace(from, to)).unwrap();
        let output = features(&["check", file]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{to}: {error}");
        assert!(error.starts_with(&format!("Error: {file}:{place}: ")), "{to}: {error}");
        assert!(error.contains(says) && output.stdout.is_empty(), "{to}: {error}");
    }
    std::fs::write(file, good).unwrap();
    assert!(printed(&["check", file]).starts_with("ok: 2 features, view card by card_id, layout "));
    let output = features(&["check", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("Error: nowhere.yaml: it can't be read: "));
}

#[test]
fn show_prints_the_vector_the_memory_and_the_reads() {
    let text = printed(&["show"]);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mean = "6  CUSTOMER_ID_AVG_AMOUNT_1DAY_WINDOW          may be missing  mean(amount) by card_id, 1d, offset 0d";
    for line in [
        mean,
        "0  TX_AMOUNT                                   always there    amount",
        "16 bytes of memory for each of them; `exact: 0` keeps tiles instead",
        "terminal: one state by terminal_id, from the cache or the online store",
        "card: one state by card_id, from memory, or the online store if it was dropped",
        "TX_DURING_NIGHT                             paid {value?at night|by day}",
    ] {
        assert!(lines.contains(&line), "no `{line}` in\n{text}");
    }
    let check = printed(&["check"]);
    let hash = check.trim_end().rsplit(' ').next().unwrap();
    assert_eq!(lines[0], format!("23 features, f32, layout {hash}"));
    let place = |name: &str| lines.iter().position(|line| line.contains(name)).unwrap();
    assert!(place("TX_AMOUNT") < place("TERMINAL_ID_RISK_30DAY_WINDOW"));
    assert_eq!(place("AMOUNT_TO_AVG_BEFORE_30DAY") - place("TX_AMOUNT"), 22, "one line a column");

    // What a file comes to, not the bundled definitions.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("features.yaml");
    std::fs::write(&file, "version: 1\nallowed_lateness: 1d\nrequest:\n  - { name: LOG, value: log1p(amount) }\n")
        .unwrap();
    let text = printed(&["show", file.to_str().unwrap()]);
    assert!(text.starts_with("1 features, f32, layout ") && text.contains("\na scoring reads\n  nothing\n"), "{text}");
    assert!(text.ends_with("one of each group\n  LOG\n    LOG  LOG is {value}, usually {reference}\n"), "{text}");
}

#[test]
fn schema_and_reference_are_those_beside_the_definitions() {
    assert!(printed(&["schema"]) == include_str!("../../../feature-store/definitions/features.schema.json"));
    assert!(printed(&["reference"]) == include_str!("../../../feature-store/definitions/REFERENCE.md"));
}
