//! The embedded log, through its public interface alone.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod basics;
mod crash;
mod groups;
mod model;
mod retention;
mod speed;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use feature_store::{Checkpoint, PartitionCheckpoint, StateWrite, StoredState, Watermark};
use schemas::EventTime;
use scorer::log::{
    Commit, Committed, Consumer, EmbeddedLog, EmbeddedOptions, Log, Outbox, Polled, Record, TopicPartition, TopicSpec,
};

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(dir, EmbeddedOptions::default()).unwrap()
}

fn spec(name: &str, partitions: u32) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions, retention: None }
}

fn at(topic: &str, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic.to_owned(), partition }
}

/// Adds a record of `value` to the partition.
fn push(outbox: &mut Outbox, topic: &str, partition: u32, timestamp_us: i64, value: &str) {
    outbox.push_with(topic, Some(partition), b"key", timestamp_us, Vec::new(), |out| {
        out.extend_from_slice(value.as_bytes())
    });
}

fn append(log: &EmbeddedLog, topic: &str, partition: u32, timestamp_us: i64, values: &[&str]) {
    let mut outbox = Outbox::default();
    for value in values {
        push(&mut outbox, topic, partition, timestamp_us, value);
    }
    log.append(&outbox).unwrap();
}

fn values(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(&record.value).unwrap()).collect()
}

fn records(polled: Polled) -> Vec<Record> {
    match polled {
        Polled::Records(records) => records,
        Polled::Rebalanced { .. } | Polled::Revoking(_) => panic!("{polled:?}"),
    }
}

/// The next poll must be a rebalance: what it assigned and revoked.
fn rebalanced(consumer: &mut dyn Consumer, topic: &str) -> (Vec<TopicPartition>, Vec<TopicPartition>) {
    match consumer.poll(topic, 10, NOW).unwrap() {
        Polled::Rebalanced { assigned, revoked } => (assigned, revoked),
        polled => panic!("{polled:?}"),
    }
}

fn commit_offsets(consumer: &mut dyn Consumer, offsets: &[(TopicPartition, u64)]) -> scorer::log::Result<Committed> {
    consumer.commit(&Commit { outputs: &Outbox::default(), offsets, metadata: "", checkpoint: None })
}

/// A state of `view` and the watermark, both at `offset`.
fn checkpoint(view: &str, partition: u32, key: &str, offset: u64, bytes: &[u8]) -> Checkpoint {
    Checkpoint {
        partitions: vec![PartitionCheckpoint {
            view: view.into(),
            partition,
            follows: None,
            states: vec![StateWrite { key: key.into(), state: StoredState { stamp: offset, bytes: bytes.to_vec() } }],
            watermark: Watermark { offset, progress: b"p".to_vec(), event_time: EventTime::from_millis(offset as i64) },
        }],
    }
}

/// The embedded store never waits: its futures are ready at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("the embedded store waited"),
    }
}
