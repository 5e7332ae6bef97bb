//! The whole path on the real services: three stores, two delivery modes, and processes as a
//! person runs them. `infra/local/services start all` starts what they need; without it they
//! are skipped, by name, and with `FRAUDLINE_SERVICES=required` they fail.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod admin;
mod path;
mod processes;
mod rolling;

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use feature_store::{
    Backfill, CqlOptions, CqlReplication, CqlStore, FeatureSet, OnlineStore, RedisOptions, RedisStore,
};
use load_tests::{ChargebackDelay, Feed, SimulatorOptions};
use schemas::{ProfileUpdate, ProfileValue, Score, Transaction, topics};
use scorer::log::{KafkaOptions, Log, Outbox, TopicPartition, TopicSpec};
use scorer::system_clock;

pub const PARTITIONS: u32 = 4;

/// What a test needs, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Kafka,
    SecureKafka,
    Redis,
    SecureRedis,
    Cassandra,
}

impl Service {
    pub fn address(self) -> String {
        let (variable, default) = match self {
            Service::Kafka => ("FRAUDLINE_TEST_KAFKA", "127.0.0.1:19092"),
            Service::SecureKafka => ("FRAUDLINE_TEST_KAFKA_SECURE", "127.0.0.1:19093"),
            Service::Redis => ("FRAUDLINE_TEST_REDIS", "redis://127.0.0.1:16379"),
            Service::SecureRedis => ("FRAUDLINE_TEST_REDIS_SECURE", "rediss://127.0.0.1:16380"),
            Service::Cassandra => ("FRAUDLINE_TEST_CASSANDRA", "127.0.0.1:19042"),
        };
        variable_or(variable, default)
    }
}

pub fn variable_or(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or(default.to_owned())
}

/// Held by the test that runs: a few clients at a time are enough for one small broker.
static TURN: Mutex<()> = Mutex::new(());

/// The test's turn, if all of them are there; if not, says which test is skipped for it.
pub fn have(services: &[Service]) -> Option<MutexGuard<'static, ()>> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let there = services.iter().all(|service| {
        let address = service.address();
        let host = address.split("://").last().unwrap();
        let there = TcpStream::connect(host).is_ok();
        let what = format!("{service:?} at {address}; `infra/local/services start all` starts it");
        there || missing(&what)
    });
    there.then_some(turn)
}

/// The file that a variable names.
pub fn file(variable: &str) -> Option<String> {
    let path = std::env::var(variable).ok();
    if path.is_none() {
        missing(&format!("{variable}; `infra/local/services env` prints it"));
    }
    path
}

fn missing(what: &str) -> bool {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var("FRAUDLINE_SERVICES").as_deref() != Ok("required"), "{test}: no {what}");
    eprintln!("skipped: {test}: no {what}");
    false
}

/// What the names of one test's topics, groups and keys begin with.
pub fn prefix() -> String {
    let random = tempfile::Builder::new().rand_bytes(8).prefix("t").tempdir().unwrap();
    format!("{}.", random.path().file_name().unwrap().to_str().unwrap().to_lowercase())
}

pub fn kafka(prefix: &str) -> KafkaOptions {
    KafkaOptions {
        brokers: Service::Kafka.address(),
        topic_prefix: prefix.to_owned(),
        session_timeout: Duration::from_secs(10),
        ..KafkaOptions::default()
    }
}

pub fn redis_options(prefix: &str) -> RedisOptions {
    RedisOptions { urls: vec![Service::Redis.address()], key_prefix: prefix.to_owned(), ..RedisOptions::default() }
}

pub fn redis(prefix: &str) -> Arc<dyn OnlineStore> {
    Arc::new(RedisStore::new(redis_options(prefix)).unwrap())
}

pub fn cql_options(prefix: &str) -> CqlOptions {
    CqlOptions {
        hosts: vec![Service::Cassandra.address()],
        username: Some(variable_or("FRAUDLINE_TEST_CASSANDRA_USER", "cassandra")),
        password: Some(variable_or("FRAUDLINE_TEST_CASSANDRA_PASSWORD", "cassandra")),
        keyspace: keyspace(prefix),
        timeout: Duration::from_secs(10),
        ..CqlOptions::default()
    }
}

pub fn keyspace(prefix: &str) -> String {
    prefix.trim_end_matches('.').to_owned()
}

pub fn cql(prefix: &str, runtime: &tokio::runtime::Runtime) -> Arc<dyn OnlineStore> {
    let replication = CqlReplication::Simple { factor: 1 };
    runtime.block_on(CqlStore::migrate(cql_options(prefix), replication)).unwrap();
    Arc::new(CqlStore::new(cql_options(prefix)).unwrap())
}

pub fn create_topics(log: &dyn Log) {
    for name in topics::ALL {
        log.create_topic(&TopicSpec { name: name.to_owned(), partitions: PARTITIONS, retention: None }).unwrap();
    }
}

/// The vectors of what was fed, by transaction, as the offline driver gives them.
pub type Expected = HashMap<String, Vec<f32>>;

/// Feeds simulated payments, and one record that is none.
pub fn feed(log: &dyn Log, features: &FeatureSet, events: usize) -> Expected {
    feed_while(log, features, |fed| 500.min(events - fed))
}

/// As `feed`, and `next` says of how many that were fed how many follow at once; 0 ends it.
pub fn feed_while(log: &dyn Log, features: &FeatureSet, next: impl Fn(usize) -> usize) -> Expected {
    let simulator =
        SimulatorOptions { customers: 200, terminals: 300, days: None, seed: 5, ..SimulatorOptions::default() };
    let mut feed = Feed::simulated(simulator, ChargebackDelay::default());
    let mut backfill = Backfill::new(features);
    let mut expected = Expected::new();
    let now = system_clock();
    loop {
        let size = next(expected.len());
        if size == 0 {
            break;
        }
        let chunk = feed.next_chunk(size).unwrap().unwrap();
        let mut outbox = Outbox::default();
        for label in &chunk.labels {
            backfill.label(label);
            outbox.push(topics::LABELS, label.card_id.as_bytes(), now(), |out| label.write_json(out));
        }
        if features.profile_view("card_profile").is_some() {
            for (number, labelled) in chunk.transactions.iter().enumerate().step_by(7) {
                let update = news_of(&labelled.transaction, number);
                backfill.profile(&update);
                outbox.push(topics::PROFILES, update.entity_id.as_bytes(), now(), |out| update.write_json(out));
            }
        }
        for labelled in &chunk.transactions {
            let transaction = &labelled.transaction;
            let mut row = Vec::new();
            backfill.transaction(transaction, &mut row);
            expected.insert(transaction.transaction_id.to_string(), row);
            outbox.push(topics::TRANSACTIONS, transaction.card_id.as_bytes(), now(), |out| transaction.write_json(out));
        }
        log.append(&outbox).unwrap();
    }
    let mut outbox = Outbox::default();
    outbox.push(topics::TRANSACTIONS, b"nobody", now(), |out| out.extend_from_slice(b"{\"no\": \"transaction\"}"));
    log.append(&outbox).unwrap();
    expected
}

/// What becomes known of a card with its payment.
fn news_of(transaction: &Transaction, number: usize) -> ProfileUpdate {
    let limit = match number % 5 {
        0 => ProfileValue::Null,
        of => ProfileValue::Number(1000.0 * of as f64 + transaction.amount.as_f64()),
    };
    let values = [("credit_limit", limit), ("premium", ProfileValue::Bool(number.is_multiple_of(2)))];
    ProfileUpdate {
        view: "card_profile".into(),
        entity_id: transaction.card_id.clone(),
        event_time: transaction.event_time,
        values: values.into_iter().map(|(field, value)| (field.into(), value)).collect(),
    }
}

/// Waits until all that was fed is scored.
pub fn wait_for_scores(log: &dyn Log, mut check: impl FnMut()) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let partitions = |ends: Vec<u64>| ends.into_iter().enumerate();
    loop {
        check();
        let behind = partitions(log.ends(topics::TRANSACTIONS).unwrap()).any(|(partition, end)| {
            let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: partition as u32 };
            log.committed(scorer::GROUP, &partition).unwrap().unwrap_or(0) < end
        });
        if !behind {
            return;
        }
        assert!(Instant::now() < deadline, "not everything was scored in time");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Every transaction has one score with the expected vector, bit for bit, and what is none one dead letter.
pub fn check(log: &dyn Log, mut expected: Expected) {
    for record in all(log, topics::SCORES) {
        let score: Score = serde_json::from_slice(&record.value).unwrap();
        let row = expected.remove(score.transaction_id.as_str());
        let row = row.unwrap_or_else(|| panic!("scored twice, or never fed: {score:?}"));
        let found: Vec<Option<u32>> = score.features.unwrap().iter().map(|value| value.map(f32::to_bits)).collect();
        let row: Vec<Option<u32>> = row.iter().map(|value| (!value.is_nan()).then_some(value.to_bits())).collect();
        assert_eq!(found, row, "the vector of {}", score.transaction_id);
    }
    assert_eq!(expected.len(), 0, "some were not scored: {:?}", expected.keys().take(5).collect::<Vec<_>>());
    let dead_letters = all(log, topics::DEAD_LETTERS);
    assert_eq!(dead_letters.len(), 1);
    assert_eq!(&dead_letters[0].key[..], b"nobody");
}

pub fn all(log: &dyn Log, topic: &str) -> Vec<scorer::log::Record> {
    let partitions = 0..log.ends(topic).unwrap().len() as u32;
    let of = |partition| log.read(&TopicPartition { topic: topic.to_owned(), partition }, 0, usize::MAX).unwrap();
    partitions.flat_map(of).collect()
}
