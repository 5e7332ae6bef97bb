//! Re-key: transactions and labels, by terminal, with word of how far they go.

use std::collections::BTreeMap;
use std::time::Duration;

use feature_store::{Checkpoint, WindowState};
use metrics::{Counter, counter};
use schemas::{CodecError, DeadLetterReason, EntityEvent, EventTime, Id, Label, topics};
use scorer::emit::write_dead_letter;
use scorer::ingest::{DeadLetter, PartitionIngest, Rejection, TimeRules};
use scorer::log::{Commit, Committed, Consumer, LogError, Outbox, Polled, Record, TopicPartition};
use scorer::states::{PartitionStates, Stream};
use scorer::{Result, ScorerError};

use crate::metrics::{LABEL_DEAD_LETTERS, REKEYED};
use crate::{Context, MaterializerOptions};

/// The consumer group of this stage.
pub const GROUP: &str = "materializer-rekey";

/// Under which the stage's own progress stands in the store.
const VIEW: Id = Id::const_new("rekey");

/// The first stage.
pub struct Rekeyer {
    context: Context,
    options: MaterializerOptions,
    consumer: Box<dyn Consumer>,
    partitions: BTreeMap<u32, PartitionStates<RekeyProgress>>,
    entity_partitions: u32,
    outbox: Outbox,
    offsets: BTreeMap<TopicPartition, u64>,
    announced: Vec<(u32, EventTime)>,
    rekeyed: Counter,
    rejected: Counter,
}

impl Rekeyer {
    pub fn start(context: Context, options: MaterializerOptions) -> Result<Rekeyer> {
        Ok(Rekeyer {
            consumer: join(&context)?,
            entity_partitions: context.log.topic(topics::TERMINAL_EVENTS)?.spec.partitions,
            context,
            options,
            partitions: BTreeMap::new(),
            outbox: Outbox::default(),
            offsets: BTreeMap::new(),
            announced: Vec::new(),
            rekeyed: counter!(REKEYED),
            rejected: counter!(LABEL_DEAD_LETTERS),
        })
    }

    /// Takes the next transactions and, after them, all labels that stand in the log by then. A
    /// label that was known when a transaction was written stands in the log before it, so once
    /// both are through, the stream is complete up to the transaction's time.
    pub fn step(&mut self, timeout: Duration) -> Result<bool> {
        let max = self.options.batch_records_max;
        let Some(transactions) = self.poll(topics::TRANSACTIONS, max, timeout, false)? else { return Ok(true) };
        let mut labelled = false;
        loop {
            let held = !transactions.is_empty();
            let Some(labels) = self.poll(topics::LABELS, max, Duration::ZERO, held)? else { return Ok(true) };
            if labels.is_empty() {
                break;
            }
            labelled = true;
            for label in labels {
                self.label(label);
            }
            if self.outbox.len() >= max && !self.commit()? {
                return Ok(true);
            }
        }
        for record in &transactions {
            self.transaction(record);
        }
        let announced = self.announce()?;
        let worked = labelled || announced || !transactions.is_empty();
        if worked {
            self.commit()?;
        }
        Ok(worked)
    }

    /// The next records of a topic; `None` where the group was rebalanced, and the step begins anew.
    /// `held`: the step holds records that it has yet to commit.
    fn poll(&mut self, topic: &str, max: usize, timeout: Duration, held: bool) -> Result<Option<Vec<Record>>> {
        match self.consumer.poll(topic, max, timeout)? {
            Polled::Records(records) => Ok(Some(records)),
            Polled::Rebalanced { assigned, revoked } => {
                if held || !self.offsets.is_empty() {
                    // What was polled in this step isn't committed: begin anew from what is.
                    self.rejoin()?;
                } else {
                    self.rebalance(assigned, &revoked)?;
                }
                Ok(None)
            }
        }
    }

    fn transaction(&mut self, record: &Record) {
        let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: record.partition };
        self.offsets.insert(partition, record.offset + 1);
        let states = self.partitions.get_mut(&record.partition).expect("records come from assigned partitions");
        states.advance(record.offset + 1);
        // What is no transaction becomes a dead letter in the scorer, which draws the same line.
        let Ok(transaction) = states.stream.0.check(record) else { return };
        let event = EntityEvent::of_transaction(&transaction);
        self.write(&transaction.terminal_id, record.timestamp_us, &event);
    }

    fn label(&mut self, record: Record) {
        let partition = TopicPartition { topic: topics::LABELS.to_owned(), partition: record.partition };
        self.offsets.insert(partition, record.offset + 1);
        match Label::from_json(&record.value) {
            Ok(label) => {
                let terminal = label.terminal_id.clone();
                self.write(&terminal, record.timestamp_us, &EntityEvent::of_label(label));
            }
            Err(error) => {
                let reason = DeadLetterReason::from(&error);
                let dead_letter = DeadLetter { record, rejection: Rejection { reason, message: error.to_string() } };
                write_dead_letter(&mut self.outbox, topics::LABELS, &dead_letter, "materializer", "ingest");
                self.rejected.increment(1);
            }
        }
    }

    fn write(&mut self, key: &Id, timestamp_us: i64, event: &EntityEvent) {
        self.outbox.push(topics::TERMINAL_EVENTS, key.as_bytes(), timestamp_us, |out| event.encode(out));
    }

    /// Writes to every partition of the stream how far it is complete, where that has changed.
    fn announce(&mut self) -> Result<bool> {
        let topic = self.context.log.topic(topics::TRANSACTIONS)?;
        let newest = self.partitions.values().map(|states| states.stream.0.newest()).max().unwrap_or(EventTime::MIN);
        let sources: Vec<(u32, EventTime)> = self
            .partitions
            .iter()
            .map(|(&partition, states)| {
                // A partition read to its end holds nobody up.
                let at_end = states.next() >= topic.offsets[partition as usize].end;
                (partition, if at_end { newest } else { states.stream.0.newest() })
            })
            .collect();
        if sources == self.announced || newest == EventTime::MIN {
            return Ok(false);
        }
        let now_us = (self.context.clock)();
        let progress = EntityEvent::Progress { sources: sources.clone() };
        for partition in 0..self.entity_partitions {
            self.outbox.push_with(topics::TERMINAL_EVENTS, Some(partition), &[], now_us, Vec::new(), |out| {
                progress.encode(out);
            });
        }
        self.announced = sources;
        Ok(true)
    }

    /// One commit of what was re-keyed, the offsets it came from, and the progress that goes with
    /// it. `false`: the group was joined anew.
    fn commit(&mut self) -> Result<bool> {
        let partitions = self.partitions.values_mut().filter(|states| states.is_ahead_of_store());
        let checkpoint =
            Checkpoint { partitions: partitions.map(|states| states.checkpoint(|_| EventTime::MIN)).collect() };
        let offsets: Vec<(TopicPartition, u64)> = std::mem::take(&mut self.offsets).into_iter().collect();
        let commit = Commit { outputs: &self.outbox, offsets: &offsets, checkpoint: Some(&checkpoint) };
        let committed = match self.consumer.commit(&commit) {
            Err(LogError::Fenced(_)) => {
                self.rejoin()?;
                return Ok(false);
            }
            committed => committed?,
        };
        if committed == Committed::WithoutCheckpoint {
            futures_executor::block_on(self.context.store.write(&checkpoint)).map_err(ScorerError::from)?;
        }
        for written in &checkpoint.partitions {
            if let Some(states) = self.partitions.get_mut(&written.partition) {
                states.written(written);
            }
        }
        self.rekeyed.increment(self.outbox.len() as u64);
        self.outbox.clear();
        Ok(true)
    }

    fn rejoin(&mut self) -> Result<()> {
        self.outbox.clear();
        self.offsets.clear();
        self.partitions.clear();
        self.announced.clear();
        self.consumer = join(&self.context)?;
        Ok(())
    }

    fn rebalance(&mut self, assigned: Vec<TopicPartition>, revoked: &[TopicPartition]) -> Result<()> {
        let transactions = |partition: &&TopicPartition| partition.topic == topics::TRANSACTIONS;
        for partition in revoked.iter().filter(transactions) {
            self.partitions.remove(&partition.partition);
        }
        let rules = TimeRules {
            allowed_lateness: self.context.features.allowed_lateness(),
            future_skew: self.options.future_skew,
        };
        for partition in assigned.into_iter().filter(|partition| transactions(&partition)) {
            let number = partition.partition;
            let stream = RekeyProgress(PartitionIngest::new(rules));
            let (log, store) = (&*self.context.log, &*self.context.store);
            let states = PartitionStates::recover(log, store, GROUP, &VIEW, partition, stream, usize::MAX)?;
            self.partitions.insert(number, states);
        }
        self.announced.clear();
        Ok(())
    }
}

fn join(context: &Context) -> Result<Box<dyn Consumer>> {
    Ok(context.log.join(GROUP, &[topics::TRANSACTIONS, topics::LABELS])?)
}

/// Ingest of a partition as the scorer has it, but without states: only the event time that
/// lateness is held against.
struct RekeyProgress(PartitionIngest);

impl Stream for RekeyProgress {
    type Event = Id;

    fn read(&mut self, record: &Record) -> Option<Id> {
        self.0.read(record);
        None
    }

    fn key(event: &Id) -> &Id {
        event
    }

    fn apply(_event: &Id, _state: &mut WindowState) {}

    fn complete_to(&self) -> EventTime {
        self.0.complete_to()
    }

    fn save(&self, out: &mut Vec<u8>) {
        self.0.save(out);
    }

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), CodecError> {
        self.0.restore(bytes)
    }
}
