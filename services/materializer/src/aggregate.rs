//! Aggregate: the views that cut across partitions, from the re-keyed stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use feature_store::{Carry, Checkpoint, Entity, FeatureSet, Scratch, StoreError, View, WindowState};
use metrics::{Counter, Gauge, counter, gauge};
use schemas::{CodecError, EntityEvent, EventTime, Id, Reader, topics, write_signed, write_unsigned};
use scorer::log::{Commit, Committed, Consumer, LogError, Polled, Record, TopicPartition};
use scorer::states::{PartitionStates, Recovery, Stream};
use scorer::{Result, ScorerError};

use crate::metrics::{VIEW_EVENT_TIME, VIEW_STATE_BYTES, VIEW_STATES_WRITTEN};
use crate::{Context, MaterializerOptions};

/// The consumer group of this stage.
pub const GROUP: &str = "materializer-aggregate";

/// The second stage.
pub struct Aggregator {
    context: Context,
    options: MaterializerOptions,
    /// `None` until the group is joined (anew).
    consumer: Option<Box<dyn Consumer>>,
    /// Event time after which the view is written, however little real time has passed: half the
    /// least staleness, so that whoever waits for the view finds it written once it is aggregated.
    stride: Duration,
    /// For each partition, the states of each shared view, in their order.
    partitions: BTreeMap<u32, Vec<PartitionStates<EntityStream>>>,
    /// Event time that the store's copy of the views is complete to.
    published: EventTime,
    checkpointed_us: i64,
    outbox: scorer::log::Outbox,
    /// Of each shared view, in their order.
    metrics: Vec<ViewMetrics>,
}

struct ViewMetrics {
    states_written: Counter,
    state_bytes: Gauge,
    event_time: Gauge,
}

impl ViewMetrics {
    fn bind(view: &View) -> ViewMetrics {
        let name = view.name().to_string();
        ViewMetrics {
            states_written: counter!(VIEW_STATES_WRITTEN, "view" => name.clone()),
            state_bytes: gauge!(VIEW_STATE_BYTES, "view" => name.clone()),
            event_time: gauge!(VIEW_EVENT_TIME, "view" => name),
        }
    }
}

impl Aggregator {
    pub fn start(context: Context, options: MaterializerOptions) -> Result<Aggregator> {
        let stalest = context.features.shared_views().map(|(_, view)| view.staleness()).min();
        Ok(Aggregator {
            consumer: None,
            metrics: context.features.shared_views().map(|(_, view)| ViewMetrics::bind(view)).collect(),
            options: options.for_stage(&context.features),
            context,
            stride: stalest.unwrap_or_default() / 2,
            partitions: BTreeMap::new(),
            published: EventTime::MIN,
            checkpointed_us: 0,
            outbox: scorer::log::Outbox::default(),
        })
    }

    /// Takes the next records of the re-keyed stream, and writes the view where it is due.
    pub fn step(&mut self) -> Result<bool> {
        match self.try_step() {
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

    /// What changed since the last commit may belong to another now, or is built on what is no more:
    /// the next step joins the group anew and goes on from what is committed.
    fn begin_anew(&mut self) {
        self.partitions.clear();
        self.consumer = None;
    }

    fn try_step(&mut self) -> Result<bool> {
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            consumer => consumer.insert(self.context.log.join(GROUP, "0", &[topics::ENTITY_EVENTS])?),
        };
        let polled = consumer.poll(topics::ENTITY_EVENTS, self.options.batch_records_max, Duration::ZERO)?;
        let records = match polled {
            Polled::Records(records) => records,
            Polled::Rebalanced { assigned, revoked } => {
                self.rebalance(assigned, &revoked)?;
                return Ok(true);
            }
            Polled::Revoking(partitions) => {
                self.checkpoint()?;
                self.partitions.retain(|&number, _| !partitions.iter().any(|revoked| revoked.partition == number));
                self.consumer.as_mut().map_or(Ok(()), |consumer| consumer.release(&partitions))?;
                return Ok(true);
            }
        };
        self.apply(&records)?;
        let ahead = self.complete_to() >= self.published.saturating_add(self.stride);
        let since_us = (self.context.clock)() - self.checkpointed_us;
        let waited = Duration::from_micros(u64::try_from(since_us).unwrap_or(0));
        let due = ahead || waited >= self.options.checkpoint_interval;
        if due && self.is_ahead_of_store() {
            self.checkpoint()?;
        } else if waited >= self.options.checkpoint_interval {
            self.partitions.values().flatten().try_for_each(|states| states.verify(&*self.context.store))?;
            self.checkpointed_us = (self.context.clock)();
        }
        Ok(!records.is_empty())
    }

    fn is_ahead_of_store(&self) -> bool {
        self.partitions.values().flatten().any(PartitionStates::is_ahead_of_store)
    }

    fn apply(&mut self, records: &[Record]) -> Result<()> {
        let mut batches: BTreeMap<u32, Vec<&Record>> = BTreeMap::new();
        for record in records {
            batches.entry(record.partition).or_default().push(record);
        }
        let tables = self.partitions.len() * self.metrics.len();
        let share = self.options.state_bytes_max / tables.max(1);
        for (partition, batch) in batches {
            let views = self.partitions.get_mut(&partition).expect("records come from assigned partitions");
            for states in views {
                let mut events = Vec::with_capacity(batch.len());
                for record in &batch {
                    states.advance(record.offset + 1);
                    if let Some(event) = states.stream.read(record) {
                        events.push((record.offset, event));
                    }
                }
                states.stream.verify(partition)?;
                states.table.begin_batch(share);
                states.load(&*self.context.store, events.iter().map(|(_, event)| EntityStream::key(event)))?;
                for (offset, event) in &events {
                    states.table.update(EntityStream::key(event), *offset, |state| states.stream.apply(event, state));
                }
            }
        }
        Ok(())
    }

    fn complete_to(&self) -> EventTime {
        let all = self.partitions.values().flatten();
        all.map(|states| states.stream.complete_to()).min().unwrap_or(EventTime::MIN)
    }

    /// Commits the offsets consumed, together with the states they led to.
    pub fn checkpoint(&mut self) -> Result<()> {
        let needed_from = self.needed_from()?;
        let mut offsets = Vec::new();
        let mut checkpoint = Checkpoint::default();
        for (&partition, views) in &mut self.partitions {
            for states in views.iter_mut().filter(|states| states.is_ahead_of_store()) {
                let offset = (TopicPartition { topic: topics::ENTITY_EVENTS.to_owned(), partition }, states.next());
                if offsets.last() != Some(&offset) {
                    offsets.push(offset);
                }
                let features = Arc::clone(&states.stream.features);
                let view = &features.views()[states.stream.view];
                let through = needed_from.saturating_sub(view.keep());
                checkpoint.partitions.push(states.checkpoint(|state| view.evict(state, through)));
            }
        }
        let commit = Commit { outputs: &self.outbox, offsets: &offsets, metadata: "", checkpoint: Some(&checkpoint) };
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let committed = match consumer.commit(&commit) {
            Err(LogError::Fenced(_)) => {
                self.begin_anew();
                return Ok(());
            }
            committed => committed?,
        };
        if committed == Committed::WithoutCheckpoint {
            futures_executor::block_on(self.context.store.write(&checkpoint)).map_err(ScorerError::from)?;
        }
        for (view, metrics) in self.metrics.iter().enumerate() {
            let mut bytes = 0;
            for states in self.partitions.values_mut().filter_map(|views| views.get_mut(view)) {
                if let Some(written) = checkpoint.partitions.iter().find(|written| states.is_of(written)) {
                    metrics.states_written.increment(written.states.len() as u64);
                    states.written(written);
                }
                bytes += states.table.bytes();
            }
            metrics.state_bytes.set(bytes as f64);
        }
        self.published = self.complete_to();
        self.checkpointed_us = (self.context.clock)();
        if self.published > EventTime::MIN {
            let seconds = self.published.as_millis() as f64 / 1000.0;
            self.metrics.iter().for_each(|metrics| metrics.event_time.set(seconds));
        }
        Ok(())
    }

    /// The oldest event time that a scorer may yet join at: where the slowest partition of the
    /// transactions stands, or this view itself where all of them are scored to their end.
    fn needed_from(&self) -> Result<EventTime> {
        let mut from = self.complete_to();
        let Some(cards) = self.context.features.view_of(Entity::CardId) else { return Ok(from) };
        for (number, end) in self.context.log.ends(topics::TRANSACTIONS)?.into_iter().enumerate() {
            let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: number as u32 };
            if self.context.log.committed(scorer::GROUP, &partition)?.unwrap_or(0) >= end {
                continue;
            }
            let watermark = futures_executor::block_on(self.context.store.watermark(cards.key(), partition.partition))?;
            from = from.min(watermark.map_or(EventTime::MIN, |watermark| watermark.event_time));
        }
        Ok(from)
    }

    fn rebalance(&mut self, assigned: Vec<TopicPartition>, revoked: &[TopicPartition]) -> Result<()> {
        if !revoked.is_empty() && self.is_ahead_of_store() {
            self.begin_anew();
            return Ok(());
        }
        for partition in revoked {
            self.partitions.remove(&partition.partition);
        }
        let sources = self.context.log.ends(topics::TRANSACTIONS)?.len();
        let shared: Vec<usize> = self.context.features.shared_views().map(|(index, _)| index).collect();
        for partition in assigned {
            let number = partition.partition;
            let mut views = Vec::with_capacity(shared.len());
            for &view in &shared {
                let features = Arc::clone(&self.context.features);
                let from = Recovery {
                    log: &*self.context.log,
                    store: &*self.context.store,
                    group: GROUP,
                    view: self.context.features.views()[view].key(),
                    state_bytes_max: self.options.state_bytes_max,
                };
                let stream = EntityStream {
                    view,
                    sources: vec![EventTime::MIN; sources],
                    features,
                    scratch: Scratch::default(),
                    foreign: None,
                };
                let consumer = &mut self.consumer;
                let mut alive = || consumer.as_mut().map_or(Ok(()), |consumer| consumer.keep_alive());
                let states = PartitionStates::recover(&from, partition.clone(), stream, &mut alive)?;
                states.stream.verify(number)?;
                views.push(states);
            }
            self.partitions.insert(number, views);
        }
        Ok(())
    }
}

/// A partition of the re-keyed stream, as it changes the states of one view.
struct EntityStream {
    /// Its place in [`FeatureSet::views`].
    view: usize,
    /// For each partition of the transactions, the event time that it is re-keyed up to.
    sources: Vec<EventTime>,
    features: Arc<FeatureSet>,
    scratch: Scratch,
    /// The first event that doesn't bring along what the definitions ask for.
    foreign: Option<u64>,
}

impl EntityStream {
    fn view(&self) -> &View {
        &self.features.views()[self.view]
    }

    /// Nothing may be built on a stream that was re-keyed by other definitions.
    fn verify(&self, partition: u32) -> Result<()> {
        let Some(offset) = self.foreign else { return Ok(()) };
        let partition = TopicPartition { topic: topics::ENTITY_EVENTS.to_owned(), partition };
        Err(ScorerError::OtherCarried { partition, offset, groups: format!("{} and {GROUP}", crate::rekey::GROUP) })
    }
}

impl Stream for EntityStream {
    type Event = EntityEvent;

    fn read(&mut self, record: &Record) -> Option<EntityEvent> {
        match EntityEvent::decode(&record.value) {
            Ok(EntityEvent::Progress { sources }) => {
                for (partition, time) in sources {
                    if let Some(reached) = self.sources.get_mut(partition as usize) {
                        *reached = (*reached).max(time);
                    }
                }
                None
            }
            Ok(event @ EntityEvent::Profile { .. }) => {
                let of_view = matches!(&event, EntityEvent::Profile { view, .. } if view == self.view().name());
                (of_view && self.view().is_profile()).then_some(event)
            }
            Ok(event) => {
                if let EntityEvent::Transaction { carried, .. } = &event {
                    let meaning = carried.as_ref().map(|carried| carried.meaning);
                    let wanted = self.features.carry().map(Carry::meaning);
                    if wanted.is_some() && meaning != wanted {
                        self.foreign.get_or_insert(record.offset);
                    }
                }
                (!self.view().is_profile()).then_some(event)
            }
            Err(error) => {
                // Only the first stage writes this stream.
                tracing::error!(partition = record.partition, offset = record.offset, %error, "a record of entity-events is skipped");
                None
            }
        }
    }

    fn key(event: &EntityEvent) -> &Id {
        const NONE: &Id = &Id::const_new("");
        match event {
            EntityEvent::Transaction { transaction, .. } => &transaction.terminal_id,
            EntityEvent::Label { entity, .. } | EntityEvent::Profile { entity, .. } => entity,
            EntityEvent::Progress { .. } => NONE,
        }
    }

    fn apply(&mut self, event: &EntityEvent, state: &mut WindowState) {
        let view = &self.features.views()[self.view];
        match event {
            EntityEvent::Transaction { transaction, carried } => {
                let carried = carried.as_ref().map_or(&[][..], |carried| &carried.values);
                view.apply_carrying(transaction, carried, state, &mut self.scratch);
            }
            EntityEvent::Label { transaction_id, transaction_time, label_time, fraud, .. } => {
                state.insert_label(transaction_id, *transaction_time, *label_time, *fraud);
            }
            EntityEvent::Profile { event_time, values, .. } => {
                view.apply_profile(*event_time, values.iter().map(|(field, value)| (field, *value)), state);
            }
            EntityEvent::Progress { .. } => {}
        }
    }

    fn complete_to(&self) -> EventTime {
        self.sources.iter().copied().min().unwrap_or(EventTime::MIN)
    }

    fn save(&self, out: &mut Vec<u8>) {
        write_unsigned(out, self.sources.len() as u64);
        for time in &self.sources {
            write_signed(out, time.as_millis());
        }
    }

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), CodecError> {
        let mut reader = Reader::new(bytes);
        if reader.count(1)? != self.sources.len() {
            return Err(CodecError::Invalid("the number of source partitions"));
        }
        for time in &mut self.sources {
            *time = EventTime::from_millis(reader.signed()?);
        }
        reader.finish()
    }
}
