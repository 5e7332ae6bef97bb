//! The log on Kafka, against a real broker: `infra/local/services start kafka`, or another one that
//! `FRAUDLINE_TEST_KAFKA` names. Without it these tests are skipped, and say so; with
//! `FRAUDLINE_SERVICES=required` they fail.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod basics;
mod groups;
mod security;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use scorer::log::{Commit, Committed, Consumer, Delivery, KafkaLog, KafkaOptions, Log, Outbox, Polled, Record};
use scorer::log::{TopicPartition, TopicSpec};

/// The address of a service for tests; `None`, and a line that says so, where it is not there.
fn service(name: &str, variable: &str, default: &str) -> Option<String> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let address = std::env::var(variable).unwrap_or(default.to_owned());
    if TcpStream::connect(address.split(',').next().unwrap()).is_ok() {
        return Some(address);
    }
    let missing = format!("{test}: no {name} at {address}; `infra/local/services start kafka` starts one");
    assert!(std::env::var("FRAUDLINE_SERVICES").as_deref() != Ok("required"), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// Options for the test broker, with names that no other test has.
fn options(delivery: Delivery) -> Option<KafkaOptions> {
    let brokers = service("Kafka", "FRAUDLINE_TEST_KAFKA", "127.0.0.1:19092")?;
    Some(KafkaOptions {
        brokers,
        delivery,
        instance: unique("instance"),
        session_timeout: Duration::from_secs(6),
        transaction_timeout: Duration::from_secs(4),
        ..KafkaOptions::default()
    })
}

/// A name that nothing else has.
fn unique(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let random = tempfile::Builder::new().rand_bytes(6).prefix("").tempdir().unwrap();
    format!("{what}-{}-{}", now.as_millis(), random.path().file_name().unwrap().display())
}

fn topic(log: &KafkaLog, what: &str, partitions: u32) -> String {
    let name = unique(what);
    log.create_topic(&TopicSpec { name: name.clone(), partitions, retention: None }).unwrap();
    name
}

fn at(topic: &str, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic.to_owned(), partition }
}

/// `count` records a partition, with their number as value, timestamps rising.
fn fill(log: &dyn Log, topic: &str, partitions: u32, numbers: std::ops::Range<u64>) {
    let mut outbox = Outbox::default();
    for number in numbers {
        for partition in 0..partitions {
            let write = |out: &mut Vec<u8>| out.extend_from_slice(number.to_string().as_bytes());
            outbox.push_with(topic, Some(partition), b"key", 1_000_000 * (number as i64 + 1), Vec::new(), write);
        }
    }
    log.append(&outbox).unwrap();
}

fn number(record: &Record) -> u64 {
    std::str::from_utf8(&record.value).unwrap().parse().unwrap()
}

/// Writes a batch's numbers to `out`, and commits.
fn commit(consumer: &mut dyn Consumer, from: &str, out: &str, records: &[Record]) -> scorer::log::Result<Committed> {
    let mut outbox = Outbox::default();
    let mut offsets: Vec<(TopicPartition, u64)> = Vec::new();
    for record in records {
        outbox.push_with(out, Some(record.partition), b"", record.timestamp_us, Vec::new(), |value| {
            value.extend_from_slice(&record.value);
        });
        offsets.retain(|(partition, _)| partition.partition != record.partition);
        offsets.push((at(from, record.partition), record.offset + 1));
    }
    consumer.commit(&Commit { outputs: &outbox, offsets: &offsets, metadata: "", checkpoint: None })
}

/// Polls until records come; takes what the group decides as a worker would.
fn records(consumer: &mut dyn Consumer, topic: &str, max: usize) -> Vec<Record> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        match consumer.poll(topic, max, Duration::from_millis(100)).unwrap() {
            Polled::Records(records) if records.is_empty() => {}
            Polled::Records(records) => return records,
            Polled::Rebalanced { .. } => {}
            Polled::Revoking(partitions) => consumer.release(&partitions).unwrap(),
        }
    }
    panic!("no records came");
}

/// All of a partition that a `read_committed` reader sees.
fn all(log: &dyn Log, topic: &str, partition: u32) -> Vec<u64> {
    log.read(&at(topic, partition), 0, usize::MAX).unwrap().iter().map(number).collect()
}
