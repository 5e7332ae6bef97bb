//! Ingest: records to valid transactions, or dead letters.
//!
//! What is valid depends on the log alone (the record, its timestamp, and the records before it in
//! its partition), so a replay draws the same line.

use std::sync::Arc;
use std::time::Duration;

use schemas::{CodecError, DeadLetterReason, EventTime, Id, Reader, Transaction, write_signed};

use crate::log::Record;
use crate::states::Stream;
use feature_store::{Entity, FeatureSet, Scratch, WindowState};

/// What an event's time is held against.
#[derive(Clone, Copy, Debug)]
pub struct TimeRules {
    /// How far behind the newest event of its partition an event may be.
    pub allowed_lateness: Duration,
    /// How far ahead of its record's timestamp an event may be.
    pub future_skew: Duration,
}

/// A valid transaction and its place in the log.
#[derive(Clone, Debug)]
pub struct Event {
    pub transaction: Transaction,
    pub partition: u32,
    pub offset: u64,
    /// When its record was appended, in microseconds since the Unix epoch.
    pub timestamp_us: i64,
}

/// A record that can't be processed, with the reason.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub record: Record,
    pub rejection: Rejection,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: DeadLetterReason,
    /// For a person: what is wrong with this record.
    pub message: String,
}

/// A batch after ingest: every record is an event or a dead letter.
#[derive(Debug, Default)]
pub struct Ingested {
    pub events: Vec<Event>,
    pub dead_letters: Vec<DeadLetter>,
    /// For each partition in the batch the offset behind its last record.
    pub next: Vec<(u32, u64)>,
}

impl Ingested {
    /// Notes that `record` was taken in.
    pub(crate) fn advance(&mut self, record: &Record) {
        match self.next.iter_mut().find(|(partition, _)| *partition == record.partition) {
            Some((_, next)) => *next = record.offset + 1,
            None => self.next.push((record.partition, record.offset + 1)),
        }
    }
}

/// Ingest of one partition of transactions.
#[derive(Debug)]
pub struct PartitionIngest {
    rules: TimeRules,
    newest: EventTime,
    features: Arc<FeatureSet>,
    scratch: Scratch,
}

impl PartitionIngest {
    pub fn new(rules: TimeRules, features: Arc<FeatureSet>) -> PartitionIngest {
        PartitionIngest { rules, newest: EventTime::MIN, features, scratch: Scratch::default() }
    }

    /// The newest event time seen in the partition.
    pub fn newest(&self) -> EventTime {
        self.newest
    }

    /// Decodes and validates the next record of the partition.
    #[inline]
    pub fn check(&mut self, record: &Record) -> std::result::Result<Transaction, Rejection> {
        let transaction = Transaction::from_json(&record.value)
            .map_err(|error| Rejection { reason: DeadLetterReason::from(&error), message: error.to_string() })?;
        if record.key != transaction.card_id.as_bytes() {
            let key = String::from_utf8_lossy(&record.key[..record.key.len().min(100)]).into_owned();
            let message = format!(
                "the record's key is `{key}`, its card_id `{}`: events of a card must stand in one partition",
                transaction.card_id
            );
            return Err(Rejection { reason: DeadLetterReason::KeyMismatch, message });
        }
        let time = transaction.event_time;
        let appended = EventTime::from_millis(record.timestamp_us / 1000);
        if time > appended + self.rules.future_skew {
            let message = format!("the event at {time} lies ahead of its record, appended at {appended}");
            return Err(Rejection { reason: DeadLetterReason::InFuture, message });
        }
        if time < self.newest - self.rules.allowed_lateness {
            let message =
                format!("the event at {time} is later than allowed: the newest of its partition is at {}", self.newest);
            return Err(Rejection { reason: DeadLetterReason::TooLate, message });
        }
        self.newest = self.newest.max(time);
        Ok(transaction)
    }
}

/// The card windows of the scorer, as the transactions change them.
impl Stream for PartitionIngest {
    type Event = Transaction;

    fn read(&mut self, record: &Record) -> Option<Transaction> {
        self.check(record).ok()
    }

    fn key(event: &Transaction) -> &Id {
        &event.card_id
    }

    fn apply(&mut self, event: &Transaction, state: &mut WindowState) {
        if let Some(view) = self.features.view_of(Entity::CardId) {
            view.apply(event, state, &mut self.scratch);
        }
    }

    fn complete_to(&self) -> EventTime {
        self.newest
    }

    fn save(&self, out: &mut Vec<u8>) {
        write_signed(out, self.newest.as_millis());
    }

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), CodecError> {
        let mut reader = Reader::new(bytes);
        self.newest = EventTime::from_millis(reader.signed()?);
        reader.finish()
    }
}
