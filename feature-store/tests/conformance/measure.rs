//! What a batch costs. Run by hand, on a quiet machine:
//! `cargo test --release -p feature-store --test conformance measure -- --ignored --nocapture --test-threads 1`

use std::time::{Duration, Instant};

use feature_store::Checkpoint;
use scylla::client::session_builder::SessionBuilder;

use crate::suite::{Subject, checkpoint, state, unique};
use crate::{services, subjects};

const KEYS: usize = 1000;
const ROUNDS: u64 = 20;

async fn median(mut once: impl AsyncFnMut(u64)) -> Duration {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let began = Instant::now();
        once(round).await;
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

fn batch(view: &str, ids: &[String], round: u64) -> Checkpoint {
    let states: Vec<_> = ids.iter().map(|id| (id.as_str(), state(round, [7; 300]))).collect();
    checkpoint(view, 0, &states, round + 1)
}

async fn batches(name: &str, subject: Option<Box<dyn Subject>>) {
    let Some(subject) = subject else { return };
    let (store, view) = (subject.store(), unique("measure"));
    let ids: Vec<String> = (0..KEYS).map(|number| format!("{number:016}")).collect();
    let write = median(async |round| store.write(&batch(&view, &ids, round)).await.unwrap()).await;
    let asked: Vec<&str> = ids.iter().map(String::as_str).collect();
    let read = median(async |_| _ = store.read(&view, &asked, &[0]).await.unwrap()).await;
    let one = median(async |_| _ = store.read(&view, &asked[..1], &[0]).await.unwrap()).await;
    eprintln!("{name}: {KEYS} states of 300 bytes: write {write:?}, read {read:?}; one state: read {one:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn batches_of_states() {
    batches("embedded", subjects::embedded("measure").await).await;
    batches("redis", subjects::redis_single("measure").await).await;
    batches("redis, TLS", subjects::redis_secure("measure").await).await;
    batches("redis cluster", subjects::redis_cluster("measure").await).await;
    batches("cassandra", subjects::cql("measure").await).await;
    batches("cassandra, TLS", subjects::cql_secure("measure").await).await;
}

/// The other way to read many rows: one request to one coordinator, which is not token-aware.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn cassandra_by_in() {
    let (Some(options), Some(subject)) = (services::cassandra("measure"), subjects::cql("measure").await) else {
        return;
    };
    let view = unique("measure");
    let ids: Vec<String> = (0..KEYS).map(|number| format!("{number:016}")).collect();
    subject.store().write(&batch(&view, &ids, 1)).await.unwrap();
    let (username, password) = (options.username.unwrap(), options.password.unwrap());
    let session = SessionBuilder::new().known_nodes(options.hosts).user(username, password).build().await.unwrap();
    let statement = "SELECT id, stamp, state FROM fraudline_test.states WHERE entity_view = ? AND id IN ?";
    let statement = session.prepare(statement).await.unwrap();
    for chunk in [50, 100, 1000] {
        let read = median(async |_| {
            let chunks = ids.chunks(chunk).map(|ids| session.execute_unpaged(&statement, (&view, ids)));
            for answer in futures_util::future::join_all(chunks).await {
                assert!(answer.unwrap().into_rows_result().unwrap().rows_num() > 0);
            }
        })
        .await;
        eprintln!("cassandra, IN by {chunk}: read {read:?}");
    }
}
