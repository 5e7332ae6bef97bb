//! The wiring: one worker drives its partitions through the five hops.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use feature_store::{Checkpoint, Entity, FeatureSet, OnlineStore, StoreError, ViewReader};
use futures_executor::block_on;
use models::{Explain, ModelThread};
use parking_lot::Mutex;
use schemas::{Id, topics};

use crate::emit::{EmitOptions, Emitted, emit};
use crate::ingest::{DeadLetter, Ingested, PartitionIngest, TimeRules};
use crate::join::{Join, OwnedPartitions, join};
use crate::log::{Committed, Consumer, Log, LogError, Outbox, Polled, Record, TopicPartition};
use crate::metrics::{PartitionMetrics, WorkerMetrics, seconds};
use crate::promoted::Promoted;
use crate::score::{Scoring, submit};
use crate::states::{PartitionStates, Recovery};
use crate::{Clock, GROUP, Result, ScorerError, assemble};

/// Limits of a worker. Every one of them bounds memory or waiting.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Events taken through the hops at a time, at most. Nothing waits for a batch to fill.
    pub batch_events_max: usize,
    /// Batches between poll and commit at most: while the model scores one, the next is joined.
    /// When as many are under way, the worker polls no more, and the log keeps what comes.
    pub batches_in_flight_max: usize,
    /// How often changed states are written to the online store. What a crash costs is a re-read
    /// of this much of the log, into states alone.
    pub checkpoint_interval: Duration,
    /// Memory for card states. Beyond it those written and longest unused are dropped.
    pub state_bytes_max: usize,
    /// How long a join may wait for a view that lags. After it the view is taken as it is, and
    /// the event counted as a violation of I2.
    pub view_wait_max: Duration,
    /// How long the registry is waited for when a partition is assigned, which may have been scored by a model that this
    /// process has yet to hear of. After it, the model that serves goes on where it is not older than that one.
    pub registry_wait_max: Duration,
    /// How far ahead of its record an event may be.
    pub future_skew: Duration,
    /// Which share of the scores carries the vector they were made from, 0 to 1.
    pub log_features: f64,
    /// How many reasons an alert carries at most; 0: none, and nothing is computed for them.
    pub reasons: usize,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions {
            batch_events_max: 1024,
            batches_in_flight_max: 2,
            checkpoint_interval: Duration::from_secs(1),
            state_bytes_max: 256 << 20,
            view_wait_max: Duration::from_secs(60),
            registry_wait_max: Duration::from_secs(10),
            future_skew: Duration::from_secs(300),
            log_features: 0.0,
            reasons: 3,
        }
    }
}

/// What a worker runs on.
#[derive(Clone)]
pub struct Context {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn OnlineStore>,
    pub features: Arc<FeatureSet>,
    pub model: ModelThread,
    pub clock: Clock,
    pub stats: Arc<Stats>,
    /// Of the shared views, in their order; all workers of a process read through the same.
    pub views: Arc<[ViewReader]>,
}

/// Memory for the caches of the views that others keep, if nothing else is asked for.
pub const VIEW_CACHE_BYTES: u64 = 64 << 20;

/// Readers of the shared views, for the workers of a process.
pub fn views(
    log: &dyn Log,
    store: &Arc<dyn OnlineStore>,
    features: &FeatureSet,
    cache_bytes: u64,
) -> Result<Arc<[ViewReader]>> {
    let partitions = log.ends(topics::ENTITY_EVENTS)?.len() as u32;
    let readers = ViewReader::of_all(features, store, partitions, cache_bytes);
    Ok(readers.into_iter().map(ViewReader::refresh_ahead).collect())
}

/// What a model is asked for so that alerts have up to `most` reasons.
pub fn explain(features: &FeatureSet, most: usize) -> Option<Arc<Explain>> {
    let groups = features.reason_groups().iter().map(|group| group.columns.clone()).collect();
    (most > 0).then(|| Arc::new(Explain { groups, most }))
}

/// What the workers of a process have done so far.
#[derive(Debug)]
pub struct Stats {
    pub scores: AtomicU64,
    pub alerts: AtomicU64,
    pub dead_letters: AtomicU64,
    /// From the append of an event's record to the commit of its score, in microseconds.
    pub latency_us: Mutex<hdrhistogram::Histogram<u64>>,
    /// Set once a worker has its first partitions.
    pub assigned: AtomicBool,
}

impl Default for Stats {
    fn default() -> Stats {
        // One microsecond to an hour, three digits.
        let latency_us = hdrhistogram::Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are valid");
        Stats {
            scores: AtomicU64::new(0),
            alerts: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            latency_us: Mutex::new(latency_us),
            assigned: AtomicBool::new(false),
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Progressed,
    /// There was nothing to do.
    Idle,
    /// A view has yet to catch up with the next batch.
    WaitingForView,
}

/// Owns partitions of the transactions, and takes their records from poll to commit.
pub struct Worker {
    context: Context,
    options: WorkerOptions,
    emit_options: EmitOptions,
    /// The reasons that alerts are given.
    explain: Option<Arc<Explain>>,
    /// The name of this worker in the group.
    member: String,
    /// `None` until the group is joined (anew).
    consumer: Option<Box<dyn Consumer>>,
    partitions: OwnedPartitions,
    partition_metrics: BTreeMap<u32, PartitionMetrics>,
    /// A batch whose view lags, and since when (in microseconds of the clock).
    waiting: Option<(Ingested, i64)>,
    in_flight: VecDeque<Scoring>,
    outbox: Outbox,
    promoted: Promoted,
    checkpointed_us: i64,
    metrics: WorkerMetrics,
}

impl Worker {
    /// A worker that joins the group with its first step; `index` tells the workers of a process apart.
    /// Refuses a model that was trained on another layout than the definitions give (I4).
    pub fn start(context: Context, options: WorkerOptions, index: usize) -> Result<Worker> {
        context.model.layout().accept(context.features.layout())?;
        let emit_options = EmitOptions { features: Arc::clone(&context.features), log_features: options.log_features };
        let explain = explain(&context.features, options.reasons);
        let checkpointed_us = (context.clock)();
        let metrics = WorkerMetrics::bind(index, &context.features);
        Ok(Worker {
            member: index.to_string(),
            consumer: None,
            context,
            options,
            emit_options,
            explain,
            partitions: BTreeMap::new(),
            partition_metrics: BTreeMap::new(),
            waiting: None,
            in_flight: VecDeque::new(),
            outbox: Outbox::default(),
            promoted: Promoted::default(),
            checkpointed_us,
            metrics,
        })
    }

    /// Steps until `stop` is set, then drains: what was polled is committed and the states are
    /// checkpointed. While the brokers or the registry are away it tries again.
    pub fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let mut backoff = Backoff::default();
        while !stop.load(Relaxed) {
            match self.step(Duration::from_millis(20)) {
                Ok(Step::WaitingForView) => std::thread::sleep(Duration::from_micros(200)),
                Ok(_) => backoff.reset(),
                Err(error @ (ScorerError::Log(LogError::Unavailable(_)) | ScorerError::ModelBehind { .. })) => {
                    tracing::warn!(member = self.member, "{error}; trying again");
                    backoff.wait(stop);
                }
                Err(error) => return Err(error),
            }
        }
        match self.drain() {
            // What was not committed is scored by whoever has the partitions next.
            Err(
                ScorerError::Log(LogError::Unavailable(reason)) | ScorerError::Store(StoreError::Unavailable(reason)),
            ) => {
                tracing::warn!(member = self.member, "stopped without a last checkpoint: {reason}");
                Ok(())
            }
            drained => drained,
        }
    }

    /// One step, never longer than `timeout` without something to do: the next batch on its way to
    /// the model, or, where no more may be under way, all of them to their commit.
    ///
    /// poll → ingest → join → assemble → submit …… score → emit
    ///
    /// After an error that passes by itself the worker begins anew with its next step, from what is
    /// committed.
    pub fn step(&mut self, timeout: Duration) -> Result<Step> {
        match self.try_step(timeout) {
            Err(ScorerError::Store(error @ StoreError::WentBack { .. })) => {
                tracing::error!("{error}; rebuilding from the log");
                self.metrics.store_losses.increment(1);
                self.begin_anew();
                Ok(Step::Progressed)
            }
            Err(error) => {
                self.begin_anew();
                Err(error)
            }
            step => step,
        }
    }

    fn try_step(&mut self, timeout: Duration) -> Result<Step> {
        if self.consumer.is_none() {
            self.consumer = Some(self.context.log.join(GROUP, &self.member, &[topics::TRANSACTIONS])?);
        }
        // A checkpoint holds the states as of a commit, so the hops are emptied first. A batch that
        // waits for its view has been ingested, so it goes through before.
        let due = self.elapsed_since(self.checkpointed_us) >= self.options.checkpoint_interval
            && self.waiting.is_none()
            && self.is_ahead_of_store();
        if self.in_flight.len() < self.options.batches_in_flight_max && !due {
            let timeout = if self.in_flight.is_empty() { timeout } else { Duration::ZERO };
            let (batch, since_us) = match self.waiting.take() {
                Some(waiting) => waiting,
                None => (self.poll(timeout)?, (self.context.clock)()),
            };
            if !batch.next.is_empty() {
                let step = self.advance(batch, since_us)?;
                if step == Step::Progressed || self.in_flight.is_empty() {
                    return Ok(step);
                }
            }
        }
        match self.in_flight.is_empty() {
            false => self.finish(due)?,
            true if due => self.checkpoint()?,
            true => return Ok(Step::Idle),
        }
        Ok(Step::Progressed)
    }

    /// Commits what is under way and checkpoints the states.
    pub fn drain(&mut self) -> Result<()> {
        self.finish(false)?;
        let was_waiting = self.waiting.take().is_some();
        if self.is_ahead_of_store() && !was_waiting { self.checkpoint() } else { Ok(()) }
    }

    fn elapsed_since(&self, since_us: i64) -> Duration {
        Duration::from_micros(u64::try_from((self.context.clock)() - since_us).unwrap_or(0))
    }

    fn is_ahead_of_store(&self) -> bool {
        self.partitions.values().any(PartitionStates::is_ahead_of_store)
    }

    fn poll(&mut self, timeout: Duration) -> Result<Ingested> {
        let Some(consumer) = &mut self.consumer else { return Ok(Ingested::default()) };
        match consumer.poll(topics::TRANSACTIONS, self.options.batch_events_max, timeout)? {
            Polled::Records(records) => return Ok(self.ingest(records)),
            Polled::Rebalanced { assigned, revoked } => self.rebalance(assigned, &revoked)?,
            Polled::Revoking(partitions) => self.hand_over(&partitions)?,
        }
        Ok(Ingested::default())
    }

    fn ingest(&mut self, records: Vec<Record>) -> Ingested {
        let started = Instant::now();
        let mut batch = Ingested::default();
        batch.events.reserve(records.len());
        for record in records {
            batch.advance(&record);
            let states = self.partitions.get_mut(&record.partition).expect("records come from assigned partitions");
            match states.stream.check(&record) {
                Ok(transaction) => batch.events.push(crate::ingest::Event {
                    transaction,
                    partition: record.partition,
                    offset: record.offset,
                    timestamp_us: record.timestamp_us,
                }),
                Err(rejection) => batch.dead_letters.push(DeadLetter { record, rejection }),
            }
        }
        if !batch.next.is_empty() {
            self.metrics.ingest.record(seconds(started.elapsed()));
        }
        batch
    }

    /// join → assemble → submit
    fn advance(&mut self, batch: Ingested, since_us: i64) -> Result<Step> {
        let started = Instant::now();
        let waited = self.elapsed_since(since_us);
        let force = waited > self.options.view_wait_max;
        let events = batch.events.len() as u64;
        for states in self.partitions.values_mut() {
            let share = self.options.state_bytes_max / self.partition_metrics.len().max(1);
            states.table.begin_batch(share);
        }
        let features = &self.context.features;
        let joined = join(features, &*self.context.store, &mut self.partitions, &self.context.views, batch, force)?;
        let joined = match joined {
            Join::Done(joined) => joined,
            Join::ViewBehind { batch, .. } => {
                self.waiting = Some((batch, since_us));
                return Ok(Step::WaitingForView);
            }
            Join::Overtaken { partition, stamp } => {
                self.overtaken(partition, stamp)?;
                return Ok(Step::Progressed);
            }
        };
        if force {
            tracing::warn!(waited_s = waited.as_secs(), "a view lags; events are scored with what it has");
            self.metrics.stale_joins.increment(events);
            self.metrics.violations[0].increment(events);
        }
        self.metrics.view_wait.increment(seconds(waited));
        self.metrics.join.record(seconds(started.elapsed()));

        let started = Instant::now();
        let assembled = assemble::assemble(&self.context.features, joined);
        self.metrics.assemble.record(seconds(started.elapsed()));

        self.in_flight.push_back(submit(&self.context.model, self.explain.as_ref(), assembled)?);
        Ok(Step::Progressed)
    }

    /// score → emit, all that is under way in one commit: what a commit costs hardly grows with
    /// what is in it, and a batch that waits for the commit of another waits twice.
    fn finish(&mut self, checkpoint_due: bool) -> Result<()> {
        let Some(scoring) = self.in_flight.pop_front() else { return Ok(()) };
        let started = Instant::now();
        let mut scored = scoring.wait()?;
        for scoring in self.in_flight.drain(..) {
            scored.append(scoring.wait()?);
        }
        self.metrics.score.record(seconds(started.elapsed()));

        let started = Instant::now();
        let due = checkpoint_due && self.waiting.is_none();
        let checkpoint = due.then(|| self.take_checkpoint());
        let now_us = (self.context.clock)();
        self.promoted.note(&scored.answers);
        let metadata = self.promoted.metadata();
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let checkpointed = checkpoint.as_ref();
        let emitted =
            emit(&self.emit_options, &mut **consumer, &mut self.outbox, scored, &metadata, checkpointed, now_us);
        let emitted = match emitted {
            Err(ScorerError::Log(LogError::Fenced(partition))) => {
                self.fenced(&partition);
                return Ok(());
            }
            emitted => emitted?,
        };
        self.metrics.last_commit.set((self.context.clock)() as f64 / 1e6);
        if let Some(checkpoint) = checkpoint {
            self.store(&checkpoint, emitted.committed)?;
        }
        self.metrics.emit.record(seconds(started.elapsed()));
        self.account(&emitted);
        Ok(())
    }

    /// A commit of nothing but the states, and of their offsets once more: so it is fenced, should
    /// one of the partitions be another's by now.
    fn checkpoint(&mut self) -> Result<()> {
        let checkpoint = self.take_checkpoint();
        let offsets = checkpointed_offsets(&checkpoint);
        let metadata = self.promoted.metadata();
        let commit = crate::log::Commit {
            outputs: &self.outbox,
            offsets: &offsets,
            metadata: &metadata,
            checkpoint: Some(&checkpoint),
        };
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        match consumer.commit(&commit) {
            Err(LogError::Fenced(partition)) => {
                self.fenced(&partition);
                Ok(())
            }
            committed => self.store(&checkpoint, committed?),
        }
    }

    /// The states that changed since the last checkpoint, as of the last batch joined; that one
    /// is about to be committed, and no other is under way.
    fn take_checkpoint(&mut self) -> Checkpoint {
        let features = Arc::clone(&self.context.features);
        let view = features.view_of(Entity::CardId);
        let partitions = self.partitions.values_mut().filter(|states| states.is_ahead_of_store());
        let evict = |state: &mut feature_store::WindowState| {
            if let Some(view) = view {
                view.evict_unneeded(state);
            }
        };
        Checkpoint { partitions: partitions.map(|states| states.checkpoint(evict)).collect() }
    }

    fn store(&mut self, checkpoint: &Checkpoint, committed: Committed) -> Result<()> {
        if committed == Committed::WithoutCheckpoint {
            block_on(self.context.store.write(checkpoint))?;
        }
        for written in &checkpoint.partitions {
            self.metrics.checkpointed.increment(written.states.len() as u64);
            if let Some(states) = self.partitions.get_mut(&written.partition) {
                states.written(written);
            }
        }
        self.checkpointed_us = (self.context.clock)();
        self.observe();
        Ok(())
    }

    /// Gauges that change slowly: once a checkpoint.
    fn observe(&mut self) {
        let (mut bytes, mut count) = (0, 0);
        for (partition, states) in &self.partitions {
            bytes += states.table.bytes();
            count += states.table.len();
            let metrics = &self.partition_metrics[partition];
            metrics.stored.set(states.stored() as f64);
            metrics.committed.set(states.next() as f64);
        }
        self.metrics.state_bytes.set(bytes as f64);
        self.metrics.states.set(count as f64);
        for (reader, metrics) in self.context.views.iter().zip(&self.metrics.views) {
            metrics.observe(reader);
        }
    }

    fn account(&mut self, emitted: &Emitted) {
        let now_us = (self.context.clock)();
        let stats = &self.context.stats;
        stats.scores.fetch_add(emitted.scores, Relaxed);
        stats.alerts.fetch_add(emitted.alerts, Relaxed);
        stats.dead_letters.fetch_add(emitted.dead_letters.len() as u64, Relaxed);
        let mut latency_us = stats.latency_us.lock();
        for appended_us in &emitted.appended_us {
            latency_us.saturating_record(u64::try_from(now_us - appended_us).unwrap_or(0).max(1));
        }
        drop(latency_us);
        if let Some(&oldest) = emitted.appended_us.first() {
            self.metrics.latency.record((now_us - oldest).max(0) as f64 / 1e6);
        }
        for dead_letter in &emitted.dead_letters {
            self.metrics.dead_letter(dead_letter.rejection.reason);
        }
        self.metrics.events.increment(emitted.scores + emitted.dead_letters.len() as u64);
        self.metrics.batch.record(emitted.scores as f64);
        self.metrics.scores.increment(emitted.scores);
        self.metrics.alerts.increment(emitted.alerts);
        self.metrics.decided(&emitted.answers, &emitted.amounts);
    }

    /// A stored state is ahead of this worker. That is another owner's work, unless it was never
    /// committed.
    fn overtaken(&mut self, partition: u32, stamp: u64) -> Result<()> {
        let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition };
        let committed = self.context.log.committed(GROUP, &partition)?.unwrap_or(0);
        if committed < stamp {
            self.metrics.violations[1].increment(1);
            let view = self.card_view().to_string();
            return Err(ScorerError::StoreAhead { view, partition, stored: stamp, committed });
        }
        self.fenced(&partition);
        Ok(())
    }

    /// Another worker owns one of the partitions now.
    fn fenced(&mut self, partition: &TopicPartition) {
        tracing::info!(%partition, "fenced; joining the group anew");
        self.begin_anew();
    }

    /// What is in memory may be ahead of what was committed, or built on what is no more: all of it
    /// goes, and the worker joins the group as a new member.
    fn begin_anew(&mut self) {
        self.in_flight.clear();
        self.waiting = None;
        self.partitions.clear();
        self.partition_metrics.clear();
        self.outbox.clear();
        self.promoted = Promoted::default();
        self.consumer = None;
    }

    /// Under which the card windows and their watermarks stand in the store.
    fn card_view(&self) -> Id {
        self.context.features.view_of(Entity::CardId).map_or(Id::const_new("card"), |view| view.key().clone())
    }

    fn rebalance(&mut self, assigned: Vec<TopicPartition>, revoked: &[TopicPartition]) -> Result<()> {
        self.metrics.rebalances.increment(1);
        // What is under way on a partition that was revoked is another's to score, even if the
        // partition was given back at once: the poll that said so has renewed the ownership, and
        // the commit would not be fenced.
        let taken = |partition: &&TopicPartition| self.in_flight.iter().any(|batch| batch.holds(partition.partition));
        if let Some(partition) = revoked.iter().find(taken) {
            self.fenced(partition);
            return Ok(());
        }
        self.forget(revoked);
        let Context { log, model, .. } = &self.context;
        self.promoted.catch_up(&**log, model, &assigned, self.options.registry_wait_max)?;
        let rules = TimeRules {
            allowed_lateness: self.context.features.allowed_lateness(),
            future_skew: self.options.future_skew,
        };
        let view = self.card_view();
        for partition in assigned {
            let number = partition.partition;
            let from = Recovery {
                log: &*self.context.log,
                store: &*self.context.store,
                group: GROUP,
                view: &view,
                state_bytes_max: self.options.state_bytes_max,
            };
            let consumer = &mut self.consumer;
            let mut alive = || consumer.as_mut().map_or(Ok(()), |consumer| consumer.keep_alive());
            let ingest = PartitionIngest::new(rules, Arc::clone(&self.context.features));
            let states = PartitionStates::recover(&from, partition, ingest, &mut alive).inspect_err(|error| {
                if matches!(error, ScorerError::StoreAhead { .. }) {
                    self.metrics.violations[1].increment(1);
                }
            })?;
            self.partitions.insert(number, states);
            self.partition_metrics.insert(number, PartitionMetrics::bind(GROUP, number));
        }
        self.context.stats.assigned.store(true, Relaxed);
        Ok(())
    }

    /// Commits what is under way and writes the states, so that the next owner finds all of it.
    fn hand_over(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.metrics.rebalances.increment(1);
        self.finish(false)?;
        if self.is_ahead_of_store() {
            self.checkpoint()?;
        }
        self.forget(partitions);
        // Fenced meanwhile, there is nothing to give up.
        self.consumer.as_mut().map_or(Ok(()), |consumer| consumer.release(partitions))?;
        Ok(())
    }

    fn forget(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.partitions.remove(&partition.partition);
            self.partition_metrics.remove(&partition.partition);
        }
    }
}

/// Waits between attempts, longer each time.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Waits 100 ms, then twice as long each time up to 5 s; no longer once `stop` is set.
    pub fn wait(&mut self, stop: &AtomicBool) {
        let wait = Duration::from_millis(100 << self.attempts.min(6)).min(Duration::from_secs(5));
        self.attempts += 1;
        let until = Instant::now() + wait;
        while Instant::now() < until && !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// The offsets that a checkpoint's states stand at, which are committed with it.
pub(crate) fn checkpointed_offsets(checkpoint: &Checkpoint) -> Vec<(TopicPartition, u64)> {
    let of = |written: &feature_store::PartitionCheckpoint| {
        let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: written.partition };
        (partition, written.watermark.offset)
    };
    checkpoint.partitions.iter().map(of).collect()
}
