//! The process under test and all it depends on, stepped by a seeded scheduler.

use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use feature_store::{FeatureSet, OnlineStore, ViewReader};
use materializer::{Materializer, MaterializerOptions};
use models::{CHAMPION, LayoutCheck, ModelThread, Registry};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::{EventTime, topics};
use scorer::log::{EmbeddedLog, EmbeddedOptions, Log, Outbox, TopicSpec};
use scorer::worker::{Context, Stats};
use scorer::{ScorerError, Worker, WorkerOptions};

use crate::events::{self, Chunk};
use crate::faults::{ApartStore, Faults, FaultyLog, FaultyStore};
use crate::oracle;
use crate::versions::{CHALLENGER, Models, NAME, VERSIONS, follow};

pub static FEATURES: LazyLock<Arc<FeatureSet>> = LazyLock::new(|| {
    Arc::new(
        FeatureSet::parse(include_str!("features.yaml"), "features.yaml").unwrap_or_else(|error| panic!("{error}")),
    )
});

/// Records are appended on and after this day, which lies behind all event times.
const START_US: i64 = 1_600_000_000_000_000;

/// Processes that scorers run in, each of which hears of a promotion by itself.
const PROCESSES: usize = 2;

pub struct World<'a> {
    models: &'a Models,
    registry: Registry,
    /// The last version that became the champion.
    promoted: usize,
    /// Of each process that scorers run in.
    followed: [Option<ModelThread>; PROCESSES],
    /// Where the registry is while it is away.
    away: std::path::PathBuf,
    rng: ChaCha8Rng,
    chunks: std::vec::IntoIter<Chunk>,
    fed: Vec<Chunk>,
    faults: Arc<Faults>,
    now_us: Arc<AtomicI64>,
    directory: tempfile::TempDir,
    options: EmbeddedOptions,
    log: Arc<EmbeddedLog>,
    /// Where log and store are apart.
    apart: Option<Arc<ApartStore>>,
    worker_options: WorkerOptions,
    view_cache_bytes: u64,
    process: Process,
    crashes: u64,
}

/// What dies in a crash.
#[derive(Default)]
struct Process {
    workers: Vec<Worker>,
    views: Option<Arc<[ViewReader]>>,
    materializer: Option<Materializer>,
}

pub struct Done {
    pub crashes: u64,
    pub events: u64,
    /// Models that scored something, partition by partition.
    pub models_seen: u64,
}

impl World<'_> {
    pub fn new(seed: u64, models: &Models) -> World<'_> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let partitions = rng.random_range(1..5);
        let chunks = events::chunks(&mut rng, partitions, EventTime::from_millis(START_US / 1000));
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions { atomic_checkpoints: rng.random_ratio(1, 2), ..EmbeddedOptions::default() };
        let log = EmbeddedLog::open(directory.path(), options.clone()).unwrap();
        for topic in topics::ALL {
            log.create_topic(&TopicSpec { name: topic.to_owned(), partitions, retention: None }).unwrap();
        }
        let faults = Arc::new(Faults::default());
        faults.arm(-1);
        let apart = (!options.atomic_checkpoints).then(|| Arc::new(ApartStore::new(Arc::clone(&faults))));
        let worker_options = WorkerOptions {
            batch_events_max: rng.random_range(1..40),
            batches_in_flight_max: rng.random_range(1..4),
            checkpoint_interval: Duration::from_millis(rng.random_range(0..30)),
            state_bytes_max: if rng.random_ratio(1, 2) { 2000 } else { usize::MAX },
            view_wait_max: Duration::from_secs(1_000_000),
            log_features: 1.0,
            ..WorkerOptions::default()
        };
        let view_cache_bytes = if rng.random_ratio(1, 2) { 0 } else { 1 << 20 };
        World {
            models,
            registry: models.registry(&directory.path().join("registry")),
            promoted: 1,
            followed: Default::default(),
            away: directory.path().join("away"),
            rng,
            chunks: chunks.into_iter(),
            fed: Vec::new(),
            faults,
            now_us: Arc::new(AtomicI64::new(START_US)),
            directory,
            options,
            log,
            apart,
            worker_options,
            view_cache_bytes,
            process: Process::default(),
            crashes: 0,
        }
    }

    /// Runs to the end, through crashes, and checks what came of it.
    pub fn run(mut self) -> Done {
        let crashes_wanted = self.rng.random_range(0..30);
        self.arm();
        while self.chunks.len() > 0 || self.lag() > 0 {
            self.now_us.fetch_add(self.rng.random_range(1..5000), SeqCst);
            if self.crashes >= crashes_wanted {
                self.faults.arm(-1);
            }
            match self.step() {
                Ok(()) => {}
                // Passes once the registry is back.
                Err(ScorerError::ModelBehind { .. }) if self.away.exists() => {}
                Err(error) if self.faults.crashed() => {
                    assert!(error.to_string().contains("crash"), "after a crash nothing else fails: {error}");
                    self.crash();
                }
                Err(error) => panic!("{error}"),
            }
        }
        self.faults.arm(-1);
        for worker in &mut self.process.workers {
            worker.drain().unwrap();
        }
        self.check_stamps();
        let partitions = self.log.topic(topics::TRANSACTIONS).unwrap().spec.partitions;
        let (events, models_seen) = oracle::check(&*self.log, &FEATURES, self.models, &self.fed, partitions);
        Done { crashes: self.crashes, events, models_seen }
    }

    fn step(&mut self) -> Result<(), ScorerError> {
        match self.rng.random_range(0..100) {
            0..20 => self.feed(),
            20..60 if self.process.workers.is_empty() => self.start_worker()?,
            20..60 => {
                let index = self.rng.random_range(0..self.process.workers.len());
                self.process.workers[index].step(Duration::ZERO)?;
            }
            // The store is flushed under those who use it.
            99 if self.rng.random_ratio(1, 30) => {
                if let Some(apart) = &self.apart {
                    apart.flush();
                }
            }
            94..99 => self.change_models(),
            // A scorer joins the group, or leaves it without a word.
            60..62 if self.process.workers.len() < 3 => self.start_worker()?,
            62..64 if self.process.workers.len() > 1 => {
                let index = self.rng.random_range(0..self.process.workers.len());
                drop(self.process.workers.swap_remove(index));
            }
            _ => {
                if self.process.materializer.is_none() {
                    let context = materializer::Context {
                        log: self.faulty_log(),
                        store: self.store(),
                        features: Arc::clone(&FEATURES),
                        clock: self.clock(),
                    };
                    let options = MaterializerOptions {
                        batch_records_max: self.rng.random_range(1..60),
                        checkpoint_interval: Duration::from_millis(self.rng.random_range(0..30)),
                        state_bytes_max: self.worker_options.state_bytes_max,
                        ..MaterializerOptions::default()
                    };
                    self.process.materializer = Some(Materializer::start(context, options)?);
                }
                let materializer = self.process.materializer.as_mut().unwrap();
                materializer.step(Duration::ZERO)?;
            }
        }
        Ok(())
    }

    fn feed(&mut self) {
        let Some(chunk) = self.chunks.next() else { return };
        let now_us = self.now_us.load(SeqCst);
        let mut outbox = Outbox::default();
        for label in &chunk.labels {
            outbox.push(topics::LABELS, label.card_id.as_bytes(), now_us, |out| label.write_json(out));
        }
        for update in &chunk.updates {
            outbox.push(topics::PROFILES, update.entity_id.as_bytes(), now_us, |out| update.write_json(out));
        }
        for input in &chunk.inputs {
            outbox.push(topics::TRANSACTIONS, &input.key, now_us, |out| out.extend_from_slice(&input.value));
        }
        self.log.append(&outbox).unwrap();
        self.fed.push(chunk);
    }

    fn start_worker(&mut self) -> Result<(), ScorerError> {
        let views = match &self.process.views {
            Some(views) => Arc::clone(views),
            None => {
                let partitions = self.log.ends(topics::ENTITY_EVENTS)?.len() as u32;
                // Without refreshing ahead: a thread of its own would not be replayed by the seed.
                ViewReader::of_all(&FEATURES, &self.store(), partitions, self.view_cache_bytes).into()
            }
        };
        self.process.views = Some(Arc::clone(&views));
        let process = self.rng.random_range(0..PROCESSES);
        if self.followed[process].is_none() {
            self.return_registry();
        }
        let model = self.followed[process].get_or_insert_with(|| follow(&self.registry)).clone();
        let context = Context {
            log: self.faulty_log(),
            store: self.store(),
            features: Arc::clone(&FEATURES),
            model,
            clock: self.clock(),
            stats: Arc::new(Stats::default()),
            views,
        };
        self.process.workers.push(Worker::start(context, self.worker_options.clone(), 0)?);
        Ok(())
    }

    /// A promotion, which the processes hear of later, or one that hears of it now; a challenger; a registry that goes away.
    fn change_models(&mut self) {
        if self.rng.random_ratio(1, 4) && !self.away.exists() {
            std::fs::rename(self.registry.root(), &self.away).unwrap();
            return;
        }
        self.return_registry();
        let now = EventTime::from_millis(self.now_us.load(SeqCst) / 1000);
        match self.rng.random_range(0..8) {
            0..4 if self.promoted < VERSIONS => {
                self.promoted += 1;
                let version = self.promoted.to_string();
                self.registry.promote(NAME, &version, CHAMPION, LayoutCheck::None, now).unwrap();
            }
            4 => {
                let version = self.rng.random_range(1..=VERSIONS).to_string();
                self.registry.promote(NAME, &version, CHALLENGER, LayoutCheck::None, now).unwrap();
            }
            5 => drop(self.registry.remove_alias(NAME, CHALLENGER, now)),
            _ => {
                let process = self.rng.random_range(0..PROCESSES);
                if let Some(followed) = &self.followed[process] {
                    followed.refresh(Duration::from_secs(60)).unwrap();
                }
            }
        }
    }

    fn return_registry(&self) {
        if self.away.exists() {
            std::fs::rename(&self.away, self.registry.root()).unwrap();
        }
    }

    /// The process dies where it stands. At times the log is opened anew, or the store is lost.
    fn crash(&mut self) {
        self.crashes += 1;
        self.faults.arm(-1);
        self.process = Process::default();
        self.check_stamps();
        // The other one may live on, with what it has heard.
        if self.rng.random_ratio(1, 5) {
            let process = self.rng.random_range(0..PROCESSES);
            self.followed[process] = None;
        }
        if let Some(apart) = &self.apart
            && self.rng.random_ratio(1, 10)
        {
            apart.flush();
        }
        if self.rng.random_ratio(1, 20) {
            // Closed before it is opened: the directory has one user at a time.
            let elsewhere = tempfile::tempdir().unwrap();
            self.log = EmbeddedLog::open(elsewhere.path(), self.options.clone()).unwrap();
            self.log = EmbeddedLog::open(self.directory.path(), self.options.clone()).unwrap();
        }
        self.arm();
    }

    fn arm(&mut self) {
        // Often early: recovery must survive crashes too.
        let limit = if self.rng.random_ratio(1, 3) { 20 } else { 400 };
        self.faults.arm(self.rng.random_range(0..limit));
    }

    /// I3: no stored state or watermark is ahead of the committed offset of its partition.
    fn check_stamps(&self) {
        let partitions = self.log.topic(topics::TRANSACTIONS).unwrap().spec.partitions;
        let views = FEATURES.views().iter().map(|view| match view.is_owned() {
            true => (view.key().as_str(), topics::TRANSACTIONS, scorer::GROUP),
            false => (view.key().as_str(), topics::ENTITY_EVENTS, materializer::aggregate::GROUP),
        });
        let rekey = materializer::rekey::view(&FEATURES);
        for (view, topic, group) in views.chain([(rekey.as_str(), topics::TRANSACTIONS, materializer::rekey::GROUP)]) {
            let committed: Vec<u64> = (0..partitions)
                .map(|partition| {
                    let partition = scorer::log::TopicPartition { topic: topic.to_owned(), partition };
                    self.log.committed(group, &partition).unwrap().unwrap_or(0)
                })
                .collect();
            let store = self.store();
            for (partition, committed) in committed.iter().enumerate() {
                let read = futures_executor::block_on(store.watermark(view, partition as u32)).unwrap();
                let stored = read.map_or(0, |watermark| watermark.offset);
                assert!(stored <= *committed, "I3: the watermark of {view}-{partition} is {stored}, C {committed}");
            }
            if let Some(apart) = &self.apart {
                for (key, stamp) in apart.stamps(view) {
                    let partition = schemas::partition_for_key(key.as_bytes(), partitions) as usize;
                    assert!(stamp <= committed[partition], "I3: the stamp of {view}/{key} is {stamp}, C {committed:?}");
                }
            }
        }
    }

    fn lag(&self) -> u64 {
        let kept = self.log.topic(topics::TRANSACTIONS).unwrap().offsets;
        let of = |(partition, kept): (usize, std::ops::Range<u64>)| {
            let partition =
                scorer::log::TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: partition as u32 };
            kept.end - self.log.committed(scorer::GROUP, &partition).unwrap().unwrap_or(0)
        };
        kept.into_iter().enumerate().map(of).sum()
    }

    fn faulty_log(&self) -> Arc<dyn Log> {
        Arc::new(FaultyLog { log: Arc::clone(&self.log) as Arc<dyn Log>, faults: Arc::clone(&self.faults) })
    }

    fn store(&self) -> Arc<dyn OnlineStore> {
        match &self.apart {
            Some(apart) => Arc::clone(apart) as Arc<dyn OnlineStore>,
            None => Arc::new(FaultyStore { store: self.log.store(), faults: Arc::clone(&self.faults) }),
        }
    }

    fn clock(&self) -> scorer::Clock {
        let now_us = Arc::clone(&self.now_us);
        Arc::new(move || now_us.load(SeqCst))
    }
}
