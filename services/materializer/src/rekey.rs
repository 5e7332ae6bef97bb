//! Re-key: transactions, labels and profile updates, by entity, with word of how far they go.
//!
//! Where windows of other entities depend on a card's, this stage keeps those, too, and lets every event bring along their
//! values ([`feature_store::Carry`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use feature_store::{Carry, Checkpoint, FeatureSet, Scratch, StoreError, WindowState};
use metrics::{Counter, counter};
use schemas::{
    Carried, CodecError, DeadLetterReason, EntityEvent, EventTime, Id, Label, ProfileUpdate, Transaction, topics,
};
use scorer::emit::write_dead_letter;
use scorer::ingest::{DeadLetter, PartitionIngest, Rejection, TimeRules};
use scorer::log::{Commit, Committed, Consumer, LogError, Outbox, Polled, Record, TopicPartition};
use scorer::states::{PartitionStates, Recovery, Stream};
use scorer::{Result, ScorerError};

use crate::metrics::{REKEYED, SIDE_DEAD_LETTERS};
use crate::{Context, MaterializerOptions};

/// The consumer group of this stage.
pub const GROUP: &str = "materializer-rekey";

/// Under which the stage's own progress stands in the store, and its states of cards.
pub fn view(features: &FeatureSet) -> Id {
    features.carry().map_or(Id::const_new("rekey"), |carry| carry.view().key().clone())
}

/// How long labels and profile updates are waited for before it is asked again whether all have come.
const SIDE_WAIT_MAX: Duration = Duration::from_millis(50);

/// The first stage.
pub struct Rekeyer {
    context: Context,
    options: MaterializerOptions,
    /// `None` until the group is joined (anew).
    consumer: Option<Box<dyn Consumer>>,
    partitions: BTreeMap<u32, PartitionStates<RekeyStream>>,
    checkpointed_us: i64,
    entity_partitions: u32,
    /// A partition whose events are this much older than the newest is asked whether it is at its
    /// end: a part of what the view's readers can bear.
    progress_lag: Duration,
    outbox: Outbox,
    offsets: BTreeMap<TopicPartition, u64>,
    announced: Vec<(u32, EventTime)>,
    /// Whether the last step took as much as it may.
    behind: bool,
    rekeyed: Counter,
    rejected: Counter,
}

impl Rekeyer {
    pub fn start(context: Context, options: MaterializerOptions) -> Result<Rekeyer> {
        let staleness = context.features.shared_views().map(|(_, view)| view.staleness()).min();
        Ok(Rekeyer {
            consumer: None,
            progress_lag: staleness.unwrap_or_default() / 4,
            entity_partitions: context.log.ends(topics::ENTITY_EVENTS)?.len() as u32,
            options: options.for_stage(&context.features),
            context,
            checkpointed_us: 0,
            partitions: BTreeMap::new(),
            outbox: Outbox::default(),
            offsets: BTreeMap::new(),
            announced: Vec::new(),
            behind: false,
            rekeyed: counter!(REKEYED),
            rejected: counter!(SIDE_DEAD_LETTERS),
        })
    }

    /// Whether more is likely to stand in the log already.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Takes the next transactions and, before they are re-keyed, all labels and profile updates that stand in the log by then.
    /// One that was known when a transaction was written stands in the log before it, so once
    /// all are through, the stream is complete up to the transaction's time.
    pub fn step(&mut self, timeout: Duration) -> Result<bool> {
        match self.try_step(timeout) {
            Err(ScorerError::Store(error @ StoreError::WentBack { .. })) => {
                tracing::error!("{error}; rebuilding from the log");
                counter!(scorer::metrics::STORE_LOSSES).increment(1);
                self.begin_anew();
                Ok(true)
            }
            Err(error) => {
                self.begin_anew();
                Err(error)
            }
            worked => worked,
        }
    }

    fn try_step(&mut self, timeout: Duration) -> Result<bool> {
        let max = self.options.batch_records_max;
        // What a rebalance brings is to be read without delay.
        self.behind = true;
        let Some(transactions) = self.poll(topics::TRANSACTIONS, max, timeout, false)? else { return Ok(true) };
        self.behind = transactions.len() >= max;
        let mut worked = !transactions.is_empty();
        for topic in [topics::LABELS, topics::PROFILES] {
            match self.drain(topic, max, !transactions.is_empty())? {
                Some(any) => worked |= any,
                None => return Ok(true),
            }
        }
        self.rekey(&transactions)?;
        worked |= self.announce()?;
        if worked || self.is_checkpoint_due() {
            self.commit()?;
        }
        Ok(worked)
    }

    /// Re-keys what stands in a side topic by now, and tells whether there was anything; `None` where the step begins anew. `held`:
    /// the step holds transactions.
    fn drain(&mut self, topic: &'static str, max: usize, held: bool) -> Result<Option<bool>> {
        // Those that follow are of a later step: in a steady stream there is no end to them.
        let ends = self.context.log.ends(topic)?;
        let mut any = false;
        let mut wait = Duration::ZERO;
        loop {
            let Some(records) = self.poll(topic, max, wait, held)? else { return Ok(None) };
            if records.is_empty() {
                let Some(consumer) = &mut self.consumer else { return Ok(None) };
                if consumer.reached(topic, &ends)?.into_iter().all(|(_, reached)| reached) {
                    return Ok(Some(any));
                }
                // They stand in the log, and are on their way here.
                wait = (wait * 2).clamp(Duration::from_millis(2), SIDE_WAIT_MAX);
                continue;
            }
            any = true;
            for record in records {
                self.side_record(topic, record);
            }
            if self.outbox.len() >= max && !self.commit()? {
                return Ok(None);
            }
        }
    }

    /// The next records of a topic; `None` where the group was rebalanced, and the step begins anew.
    /// `held`: the step holds records that it has yet to commit.
    fn poll(&mut self, topic: &str, max: usize, timeout: Duration, held: bool) -> Result<Option<Vec<Record>>> {
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            consumer => {
                let topics = [topics::TRANSACTIONS, topics::LABELS, topics::PROFILES];
                consumer.insert(self.context.log.join(GROUP, "0", &topics)?)
            }
        };
        let held = held || !self.offsets.is_empty();
        match consumer.poll(topic, max, timeout)? {
            Polled::Records(records) => return Ok(Some(records)),
            // What was polled in this step isn't committed: begin anew from what is.
            Polled::Rebalanced { .. } | Polled::Revoking(_) if held => self.begin_anew(),
            Polled::Rebalanced { assigned, revoked } => self.rebalance(assigned, &revoked)?,
            Polled::Revoking(partitions) => {
                self.rebalance(Vec::new(), &partitions)?;
                self.consumer.as_mut().map_or(Ok(()), |consumer| consumer.release(&partitions))?;
            }
        }
        Ok(None)
    }

    fn rekey(&mut self, records: &[Record]) -> Result<()> {
        let mut valid: Vec<(&Record, Transaction)> = Vec::with_capacity(records.len());
        for record in records {
            let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: record.partition };
            self.offsets.insert(partition, record.offset + 1);
            let states = self.partitions.get_mut(&record.partition).expect("records come from assigned partitions");
            states.advance(record.offset + 1);
            // What is no transaction becomes a dead letter in the scorer, which draws the same line.
            if let Ok(transaction) = states.stream.ingest.check(record) {
                valid.push((record, transaction));
            }
        }
        let features = Arc::clone(&self.context.features);
        let carry = features.carry();
        if carry.is_some() {
            self.load_cards(&valid)?;
        }
        for (record, transaction) in valid {
            let carried = carry.map(|carry| self.carried(carry, record, &transaction)).transpose()?;
            let terminal = transaction.terminal_id.clone();
            self.write(&terminal, record.timestamp_us, &EntityEvent::Transaction { transaction, carried });
        }
        Ok(())
    }

    fn load_cards(&mut self, events: &[(&Record, Transaction)]) -> Result<()> {
        let share = self.options.state_bytes_max / self.partitions.len().max(1);
        for (&number, states) in &mut self.partitions {
            let of_partition = events.iter().filter(|(record, _)| record.partition == number);
            states.table.begin_batch(share);
            states.load(&*self.context.store, of_partition.map(|(_, transaction)| &transaction.card_id))?;
        }
        Ok(())
    }

    /// Brings a transaction into the state of its card, and gives what it brings along.
    fn carried(&mut self, carry: &Carry, record: &Record, transaction: &Transaction) -> Result<Carried> {
        let states = self.partitions.get_mut(&record.partition).expect("it was just read from");
        let PartitionStates { table, stream, .. } = states;
        let values = table.update(&transaction.card_id, record.offset, |state| {
            carry.values(transaction, state, &mut stream.scratch).collect()
        });
        let values = values.ok_or_else(|| states.store_ahead(record.offset))?;
        Ok(Carried { meaning: carry.meaning(), values })
    }

    /// A label or a profile update.
    fn side_record(&mut self, topic: &'static str, record: Record) {
        let partition = TopicPartition { topic: topic.to_owned(), partition: record.partition };
        self.offsets.insert(partition, record.offset + 1);
        let event = match topic {
            topics::LABELS => Label::from_json(&record.value)
                .map(|label| (label.terminal_id.clone(), EntityEvent::of_label(label)))
                .map_err(|error| Rejection { reason: DeadLetterReason::from(&error), message: error.to_string() }),
            _ => self.profile(&record).map(|update| (update.entity_id.clone(), EntityEvent::of_profile(update))),
        };
        match event {
            Ok((entity, event)) => self.write(&entity, record.timestamp_us, &event),
            Err(rejection) => {
                let dead_letter = DeadLetter { record, rejection };
                write_dead_letter(&mut self.outbox, topic, &dead_letter, "materializer", "ingest");
                self.rejected.increment(1);
            }
        }
    }

    /// A profile update that a view of the definitions can take in.
    fn profile(&self, record: &Record) -> std::result::Result<ProfileUpdate, Rejection> {
        let update = ProfileUpdate::from_json(&record.value)
            .map_err(|error| Rejection { reason: DeadLetterReason::from(&error), message: error.to_string() })?;
        match self.context.features.accepts(&update) {
            Ok(()) => Ok(update),
            Err(message) => Err(Rejection { reason: DeadLetterReason::WrongShape, message }),
        }
    }

    fn write(&mut self, key: &Id, timestamp_us: i64, event: &EntityEvent) {
        self.outbox.push(topics::ENTITY_EVENTS, key.as_bytes(), timestamp_us, |out| event.encode(out));
    }

    /// Writes to every partition of the stream how far it is complete, where that has changed.
    fn announce(&mut self) -> Result<bool> {
        let newest =
            self.partitions.values().map(|states| states.stream.ingest.newest()).max().unwrap_or(EventTime::MIN);
        // A partition read to its end holds nobody up. Only where one lags is it worth asking.
        let lags = self.partitions.values().any(|states| states.stream.ingest.newest() + self.progress_lag < newest);
        let at_end = match &mut self.consumer {
            Some(consumer) if lags => {
                consumer.reached(topics::TRANSACTIONS, &self.context.log.ends(topics::TRANSACTIONS)?)?
            }
            _ => Vec::new(),
        };
        let sources: Vec<(u32, EventTime)> = self
            .partitions
            .iter()
            .map(|(&partition, states)| {
                let at_end = at_end.contains(&(partition, true));
                (partition, if at_end { newest } else { states.stream.ingest.newest() })
            })
            .collect();
        if sources == self.announced || newest == EventTime::MIN {
            return Ok(false);
        }
        let now_us = (self.context.clock)();
        let progress = EntityEvent::Progress { sources: sources.clone() };
        for partition in 0..self.entity_partitions {
            self.outbox.push_with(topics::ENTITY_EVENTS, Some(partition), &[], now_us, Vec::new(), |out| {
                progress.encode(out);
            });
        }
        self.announced = sources;
        Ok(true)
    }

    /// Whether the states are to be written. Without states of cards there is nothing to save up: the progress is a few bytes.
    fn is_checkpoint_due(&self) -> bool {
        if !self.partitions.values().any(PartitionStates::is_ahead_of_store) {
            return false;
        }
        let waited = (self.context.clock)() - self.checkpointed_us;
        let bytes: usize = self.partitions.values().map(|states| states.table.bytes()).sum();
        Duration::from_micros(u64::try_from(waited).unwrap_or(0)) >= self.options.checkpoint_interval
            || bytes > self.options.state_bytes_max
            || self.context.features.carry().is_none()
    }

    fn take_checkpoint(&mut self) -> Checkpoint {
        let view = self.context.features.carry().map(Carry::view);
        let evict = |state: &mut WindowState| {
            if let Some(view) = view {
                view.evict_unneeded(state);
            }
        };
        let partitions = self.partitions.values_mut().filter(|states| states.is_ahead_of_store());
        Checkpoint { partitions: partitions.map(|states| states.checkpoint(evict)).collect() }
    }

    /// One commit of what was re-keyed, the offsets it came from, and the states that go with them where that is due.
    /// `false`: the group was joined anew.
    fn commit(&mut self) -> Result<bool> {
        let checkpoint = self.is_checkpoint_due().then(|| self.take_checkpoint());
        let mut offsets = std::mem::take(&mut self.offsets);
        // A checkpoint's states stand at what is committed, be it by an earlier commit.
        for written in checkpoint.iter().flat_map(|checkpoint| &checkpoint.partitions) {
            let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: written.partition };
            offsets.insert(partition, written.watermark.offset);
        }
        let offsets: Vec<(TopicPartition, u64)> = offsets.into_iter().collect();
        let commit = Commit { outputs: &self.outbox, offsets: &offsets, metadata: "", checkpoint: checkpoint.as_ref() };
        let Some(consumer) = &mut self.consumer else { return Ok(false) };
        let committed = match consumer.commit(&commit) {
            Err(LogError::Fenced(_)) => {
                self.begin_anew();
                return Ok(false);
            }
            committed => committed?,
        };
        if let Some(checkpoint) = checkpoint {
            if committed == Committed::WithoutCheckpoint {
                futures_executor::block_on(self.context.store.write(&checkpoint)).map_err(ScorerError::from)?;
            }
            for written in &checkpoint.partitions {
                if let Some(states) = self.partitions.get_mut(&written.partition) {
                    states.written(written);
                }
            }
            self.checkpointed_us = (self.context.clock)();
        }
        self.rekeyed.increment(self.outbox.len() as u64);
        self.outbox.clear();
        Ok(true)
    }

    /// The next step joins the group anew and goes on from what is committed.
    fn begin_anew(&mut self) {
        self.outbox.clear();
        self.offsets.clear();
        self.partitions.clear();
        self.announced.clear();
        self.consumer = None;
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
            let features = Arc::clone(&self.context.features);
            let ingest = PartitionIngest::new(rules, Arc::clone(&features));
            let stream = RekeyStream { ingest, features, scratch: Scratch::default() };
            let from = Recovery {
                log: &*self.context.log,
                store: &*self.context.store,
                group: GROUP,
                view: &view(&self.context.features),
                state_bytes_max: self.options.state_bytes_max,
            };
            let consumer = &mut self.consumer;
            let mut alive = || consumer.as_mut().map_or(Ok(()), |consumer| consumer.keep_alive());
            let states = PartitionStates::recover(&from, partition, stream, &mut alive)?;
            self.partitions.insert(number, states);
        }
        self.announced.clear();
        Ok(())
    }
}

/// Ingest of a partition as the scorer has it, with states of its cards only where events bring something along.
struct RekeyStream {
    ingest: PartitionIngest,
    features: Arc<FeatureSet>,
    scratch: Scratch,
}

impl Stream for RekeyStream {
    type Event = Transaction;

    fn read(&mut self, record: &Record) -> Option<Transaction> {
        let transaction = self.ingest.read(record);
        transaction.filter(|_| self.features.carry().is_some())
    }

    fn key(event: &Transaction) -> &Id {
        &event.card_id
    }

    fn apply(&mut self, event: &Transaction, state: &mut WindowState) {
        if let Some(carry) = self.features.carry() {
            carry.view().apply(event, state, &mut self.scratch);
        }
    }

    fn complete_to(&self) -> EventTime {
        self.ingest.complete_to()
    }

    fn save(&self, out: &mut Vec<u8>) {
        self.ingest.save(out);
    }

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), CodecError> {
        self.ingest.restore(bytes)
    }
}
