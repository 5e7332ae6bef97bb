//! The whole path, simulated with crashes at every step.
//!
//! One seed decides everything: the events (bad, late and out of order ones among them), the order
//! in which the feeder, the scorers and the materializer take their steps, where the process dies,
//! when scorers join and leave, when models are promoted and who hears of it when, and when the store is lost. In the
//! end, every record must have come to exactly one score or dead letter, every score must hold the vector that the offline
//! driver computes for the same log, bit for bit, and be the score of it by the model that it names; and no partition may
//! have gone back to an older model.
//!
//! A failing seed says how it is run again. `FRAUDLINE_SEEDS=5000` runs more of them.
#![allow(clippy::unwrap_used)]

mod events;
mod faults;
mod oracle;
mod versions;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use versions::Models;
use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn every_event_is_scored_exactly_once_with_the_features_of_its_log() {
    let seeds = match number("FRAUDLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FRAUDLINE_SEEDS").unwrap_or(150),
    };
    let models = Models::train();
    let (mut crashes, mut events, mut models_seen) = (0, 0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, &models).run()));
        match outcome {
            Ok(done) => {
                crashes += done.crashes;
                events += done.events;
                models_seen += done.models_seen;
            }
            Err(panic) => {
                eprintln!("run it again: FRAUDLINE_SEED={seed} cargo test --workspace --test simulation");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{count} seeds: {events} events, {models_seen} models in turn, through {crashes} crashes");
    assert!(crashes > count, "the faults must strike: {crashes} crashes in {count} seeds");
    assert!(models_seen > 2 * count, "models must change: {models_seen} in {count} seeds");
}
