//! Producers: transactional ones that take turns, or one that is idempotent.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::util::Timeout;

use super::KafkaOptions;
use super::client::Context;
use crate::log::{LogError, OutRecord, Outbox, Result};

/// Transactions of one member go through these in turn. While the broker still writes the markers of
/// one, the next begins under another id; under the same id it would be told to come back later.
const TURNS: usize = 3;

/// How often the queue of delivery reports is looked at while records are under way: at first, and
/// once they take longer than [`PROMPT`].
const DRAIN: Duration = Duration::from_micros(200);
const DRAIN_SLOW: Duration = Duration::from_millis(2);
/// How often a producer is told to send on: one that has just learnt that the coordinator registered
/// its partitions waits for that. Each time wakes all its threads.
const NUDGE: Duration = Duration::from_millis(1);
const PROMPT: Duration = Duration::from_millis(50);

pub(super) struct Producer {
    producer: BaseProducer<Context>,
    timeout: Duration,
}

/// Why a transaction did not commit.
#[derive(Debug)]
pub(super) enum Failed {
    /// It was given up, and nothing of it is seen; the same may be tried again.
    Aborted(KafkaError),
    /// The producer is of no use any more.
    Lost(LogError),
}

impl Producer {
    pub(super) fn new(options: &KafkaOptions, transactional_id: Option<&str>) -> Result<Producer> {
        let config = options.producer(transactional_id);
        let producer = BaseProducer::from_config_and_context(&config, Context::new(options));
        let producer = producer.map_err(|error| LogError::Refused(format!("making a producer: {error}")))?;
        Ok(Producer { producer, timeout: options.request_timeout })
    }

    fn explain(&self, doing: &str, error: &KafkaError) -> LogError {
        self.producer.poll(Duration::ZERO);
        self.producer.context().explain(doing, error)
    }

    /// Registers the transactional id: transactions that a former process left open under it are
    /// given up, and it can begin no more.
    fn init(&self) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.producer.init_transactions(Duration::from_secs(1)) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.producer.poll(Duration::ZERO);
                    if self.producer.context().refused().is_some() || Instant::now() >= deadline {
                        return Err(self.explain("registering a transactional producer", &error));
                    }
                }
            }
        }
    }

    /// Hands all records to librdkafka; waits where its queue is full.
    pub(super) fn send(&self, records: &Outbox, name: &dyn Fn(&str) -> String) -> std::result::Result<(), KafkaError> {
        let mut topics: Vec<(String, String)> = Vec::new();
        for record in records.iter() {
            let index = match topics.iter().position(|(known, _)| known == record.topic) {
                Some(index) => index,
                None => {
                    topics.push((record.topic.to_owned(), name(record.topic)));
                    topics.len() - 1
                }
            };
            self.send_one(&topics[index].1, &record)?;
        }
        Ok(())
    }

    fn send_one(&self, topic: &str, record: &OutRecord<'_>) -> std::result::Result<(), KafkaError> {
        let mut out: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).key(record.key).payload(record.value).timestamp(record.timestamp_us / 1000);
        if let Some(partition) = record.partition {
            out = out.partition(partition as i32);
        }
        if !record.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (key, value) in record.headers {
                headers = headers.insert(Header { key, value: Some(&value[..]) });
            }
            out = out.headers(headers);
        }
        loop {
            match self.producer.send(out) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    out = back;
                    self.producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Waits until every record is delivered, or the first one can't be.
    pub(super) fn drain(&self) -> std::result::Result<(), KafkaError> {
        // `poll` and `flush` of more than nothing return after all of it, and spend the last
        // millisecond without waiting: a core that a broker nearby has better use for.
        let started = Instant::now();
        let mut nudged = started;
        loop {
            self.producer.poll(Duration::ZERO);
            if self.producer.in_flight_count() == 0 {
                break;
            }
            if nudged.elapsed() >= NUDGE {
                let _ = self.producer.flush(Duration::ZERO);
                nudged = Instant::now();
            }
            std::thread::sleep(if started.elapsed() < PROMPT { DRAIN } else { DRAIN_SLOW });
        }
        match self.producer.context().take_undelivered() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Sends and waits; for the idempotent producer.
    pub(super) fn deliver(&self, records: &Outbox, name: &dyn Fn(&str) -> String) -> Result<()> {
        self.send(records, name).and_then(|()| self.drain()).map_err(|error| self.explain("producing", &error))
    }

    /// One transaction of outputs and offsets.
    fn transact(
        &self,
        records: &Outbox,
        name: &dyn Fn(&str) -> String,
        offsets: &TopicPartitionList,
        metadata: &ConsumerGroupMetadata,
    ) -> std::result::Result<(), Failed> {
        let run = || {
            self.producer.begin_transaction()?;
            self.send(records, name)?;
            self.drain()?;
            let timeout = Timeout::After(self.timeout);
            if offsets.count() > 0 {
                self.producer.send_offsets_to_transaction(offsets, metadata, timeout)?;
            }
            loop {
                match self.producer.commit_transaction(timeout) {
                    // Whether it was committed is not known yet: only asking again tells.
                    Err(KafkaError::Transaction(error)) if error.is_retriable() => {}
                    Err(KafkaError::Flush(_)) => {}
                    done => return done,
                }
            }
        };
        run().map_err(|error| self.abort(error))
    }

    fn abort(&self, error: KafkaError) -> Failed {
        let fatal = match &error {
            KafkaError::Transaction(error) => error.is_fatal() || !error.txn_requires_abort(),
            _ => false,
        };
        if fatal || self.producer.context().refused().is_some() {
            return Failed::Lost(self.explain("committing a transaction", &error));
        }
        match self.producer.abort_transaction(Timeout::After(self.timeout)) {
            Ok(()) => {
                self.producer.poll(Duration::ZERO);
                self.producer.context().take_undelivered();
                Failed::Aborted(error)
            }
            Err(aborting) => Failed::Lost(self.explain(&format!("giving up a transaction ({error})"), &aborting)),
        }
    }
}

/// The transactional producers of one member of a group.
pub(super) struct Transactions {
    producers: Vec<Producer>,
    turn: usize,
}

impl Transactions {
    /// `member` is unique in its group for as long as it lives, and stays the same from one start
    /// to the next: so its successor ends what it left open.
    pub(super) fn new(options: &KafkaOptions, group: &str, member: &str) -> Result<Transactions> {
        let make = |turn| Producer::new(options, Some(&format!("fraudline.{group}.{member}.{turn}")));
        let producers = (0..TURNS).map(make).collect::<Result<Vec<_>>>()?;
        producers.iter().try_for_each(Producer::init)?;
        Ok(Transactions { producers, turn: 0 })
    }

    pub(super) fn transact(
        &mut self,
        records: &Outbox,
        name: &dyn Fn(&str) -> String,
        offsets: &TopicPartitionList,
        metadata: &ConsumerGroupMetadata,
    ) -> std::result::Result<(), Failed> {
        let turn = self.turn;
        self.turn = (turn + 1) % self.producers.len();
        self.producers[turn].transact(records, name, offsets, metadata)
    }
}
