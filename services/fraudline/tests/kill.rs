//! The central claim: killed at any moment, and started again, a run ends with the scores of a run
//! that nothing happened to, bit for bit.
#![allow(clippy::unwrap_used)]

mod command;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use command::{Up, simulate, tail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

#[test]
fn killed_at_random_moments_a_run_ends_with_the_same_scores() {
    let seed =
        std::env::var("FRAUDLINE_SEED").map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("run it again: FRAUDLINE_SEED={seed} cargo test --workspace --test kill");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    let transactions = simulate(&input, 1500, 40);

    let undisturbed = folder.path().join("undisturbed");
    let report = up(&input, &undisturbed).finish();
    assert_eq!(report["events_in"], transactions);
    assert_eq!(report["scores"], transactions);
    assert_eq!(report["dead_letters"], 0);
    let seconds = report["seconds"].as_f64().unwrap();

    let killed = folder.path().join("killed");
    let mut kills = 0;
    let report = loop {
        let run = up(&input, &killed);
        // At first while it starts, then anywhere in what is left of the run.
        let patience = if kills < 2 { 0.3 } else { 0.2 + seconds / 3.0 };
        let moment = Duration::from_secs_f64(rng.random_range(0.0..patience));
        if kills == 10 || !run.kill_after(moment) {
            break up(&input, &killed).finish();
        }
        kills += 1;
    };
    println!("{kills} kills over {transactions} transactions");
    assert!(kills >= 4, "only {kills} kills struck before the end");
    assert_eq!(report["events_in"], transactions);
    assert_eq!(report["scores"], transactions);
    assert_eq!(report["dead_letters"], 0);
    for topic in ["scores", "alerts"] {
        let (expected, found) = (by_transaction(&undisturbed, topic), by_transaction(&killed, topic));
        assert_eq!(found.len(), expected.len(), "{topic}");
        for (id, value) in &expected {
            assert_eq!(found.get(id), Some(value), "{topic}: transaction {id}");
        }
    }
}

#[test]
fn two_scorers_give_the_scores_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    let transactions = simulate(&input, 500, 40);
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    up(&input, &one).finish();
    let mut both = Up::new(&two);
    both.args(["--log-features", "--workers", "2", "--input"]).arg(&input);
    let report = both.start().finish();
    assert_eq!(report["scores"], transactions);
    assert_eq!(by_transaction(&one, "scores"), by_transaction(&two, "scores"));
}

fn up(input: &Path, data_dir: &Path) -> command::Running {
    let mut up = Up::new(data_dir);
    up.args(["--log-features", "--input"]).arg(input);
    up.start()
}

/// The values of a topic by their transaction, each of which stands there once.
fn by_transaction(data_dir: &Path, topic: &str) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    for line in tail(data_dir, topic) {
        let id = line["value"]["transaction_id"].as_str().unwrap().to_owned();
        let repeated = values.insert(id, line["value"].clone());
        assert!(repeated.is_none(), "twice in {topic}: {repeated:?}");
    }
    values
}
