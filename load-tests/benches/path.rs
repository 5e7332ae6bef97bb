//! What an event costs: the full path on the embedded log, and the hops alone without a log.
//!
//! Pin it to one core for figures per core (`taskset -c 0 cargo bench --workspace --bench path`).
//! Feeder, materializer and scorer take turns on one thread, so what is measured is the work of
//! all of them; only the model has its own thread, on the same core. Prints the median of five
//! rounds and their spread.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use feature_store::{Entity, FeatureSet, OnlineStore};
use load_tests::{ChargebackDelay, Feed, SimulatorOptions};
use materializer::{Materializer, MaterializerOptions};
use models::{Artifact, Device, ModelThread, ServeOptions};
use schemas::topics;
use scorer::ingest::{Event, Ingested, PartitionIngest, TimeRules};
use scorer::join::{Join, OwnedPartitions, join};
use scorer::log::{EmbeddedLog, EmbeddedOptions, Log, Outbox, Record, TopicPartition, TopicSpec};
use scorer::states::{PartitionStates, Recovery};
use scorer::worker::{Context, Stats};
use scorer::{GROUP, Worker, WorkerOptions, assemble, emit, score, system_clock};

const EVENTS: u64 = 300_000;
const PARTITIONS: u32 = 4;
const BATCH: usize = 1024;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` runs benches too, to see that they work; it has no use for the figures.
    let quick = std::env::args().any(|arg| arg == "--test") || !std::env::args().any(|arg| arg == "--bench");
    let (events, rounds) = if quick { (20_000, 1) } else { (EVENTS, ROUNDS) };
    let features = Arc::new(FeatureSet::bundled());
    let options = ServeOptions { device: Device::Cpu, ..ServeOptions::default() };
    let model = ModelThread::start(Artifact::bundled()?, &options)?;
    let mut full = Vec::new();
    let mut hops: Vec<Vec<f64>> = vec![Vec::new(); HOPS.len()];
    for _ in 0..rounds {
        let directory = tempfile::tempdir()?;
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default())?;
        full.push(full_path(&log, &features, &model, events)?);
        for (hop, cost) in hops.iter_mut().zip(hops_alone(&log, &features, &model)?) {
            hop.push(cost);
        }
    }
    println!("{events} simulated transactions, {rounds} rounds, ns per event: median (lowest to highest)");
    report("full path: feeder, log, materializer, scorer", full);
    let without_log: Vec<f64> = (0..rounds).map(|round| hops.iter().map(|hop| hop[round]).sum()).collect();
    report("hops without the log", without_log);
    for (name, costs) in HOPS.iter().zip(hops) {
        report(&format!("  {name}"), costs);
    }
    Ok(())
}

const HOPS: [&str; 5] = ["ingest", "join", "assemble", "score", "encode scores and alerts"];

fn report(name: &str, mut ns: Vec<f64>) {
    ns.sort_by(f64::total_cmp);
    let median = ns[ns.len() / 2];
    let (low, high) = (ns[0], ns[ns.len() - 1]);
    println!("{name:<46} {median:>8.0} ({low:.0} to {high:.0})   {:>9.0} events/s", 1e9 / median);
}

/// Everything that `fraudline up` does with an event, but for the HTTP server and the live view.
fn full_path(
    log: &Arc<EmbeddedLog>,
    features: &Arc<FeatureSet>,
    model: &ModelThread,
    events: u64,
) -> anyhow::Result<f64> {
    for topic in topics::ALL {
        log.create_topic(&TopicSpec { name: topic.to_owned(), partitions: PARTITIONS, retention: None })?;
    }
    let store = log.store() as Arc<dyn OnlineStore>;

    let context = materializer::Context {
        log: Arc::clone(log) as Arc<dyn Log>,
        store: Arc::clone(&store),
        features: Arc::clone(features),
        clock: system_clock(),
    };
    let mut materializer = Materializer::start(context, MaterializerOptions::default())?;
    let stats = Arc::new(Stats::default());
    let views = scorer::worker::views(&**log, &store, features, scorer::worker::VIEW_CACHE_BYTES)?;
    let context = Context {
        log: Arc::clone(log) as Arc<dyn Log>,
        store,
        features: Arc::clone(features),
        model: model.clone(),
        clock: system_clock(),
        stats: Arc::clone(&stats),
        views,
    };
    let mut worker = Worker::start(context, WorkerOptions::default(), 0)?;
    let mut feed = Feed::simulated(SimulatorOptions::default(), ChargebackDelay::default());
    let clock = system_clock();
    let started = Instant::now();
    let mut outbox = Outbox::default();
    let mut fed = 0;
    while stats.scores.load(std::sync::atomic::Ordering::Relaxed) < events {
        if fed < events
            && let Some(chunk) = feed.next_chunk(BATCH.min((events - fed) as usize))?
        {
            let now_us = clock();
            for label in &chunk.labels {
                outbox.push(topics::LABELS, label.card_id.as_bytes(), now_us, |out| label.write_json(out));
            }
            for labelled in &chunk.transactions {
                let transaction = &labelled.transaction;
                let key = transaction.card_id.as_bytes();
                outbox.push(topics::TRANSACTIONS, key, now_us, |out| transaction.write_json(out));
            }
            log.append(&outbox)?;
            outbox.clear();
            fed += chunk.transactions.len() as u64;
        }
        materializer.step(Duration::ZERO)?;
        worker.step(Duration::ZERO)?;
    }
    worker.drain()?;
    let elapsed = started.elapsed();
    // What is left of the view is written outside of the measurement: the hops below read it.
    materializer.run(&AtomicBool::new(true))?;
    Ok(elapsed.as_nanos() as f64 / events as f64)
}

/// The five hops over records in memory, timed apart: no poll, no commit, no checkpoint.
fn hops_alone(
    log: &Arc<EmbeddedLog>,
    features: &Arc<FeatureSet>,
    model: &ModelThread,
) -> anyhow::Result<[f64; HOPS.len()]> {
    let empty = tempfile::tempdir()?;
    let empty = EmbeddedLog::open(empty.path(), EmbeddedOptions::default())?;
    empty.create_topic(&TopicSpec { name: topics::TRANSACTIONS.into(), partitions: PARTITIONS, retention: None })?;
    let own = empty.store();
    let rules = TimeRules { allowed_lateness: features.allowed_lateness(), future_skew: Duration::from_secs(300) };
    let mut partitions = OwnedPartitions::new();
    let mut records: Vec<Record> = Vec::new();
    for partition in 0..PARTITIONS {
        let of = TopicPartition { topic: topics::TRANSACTIONS.into(), partition };
        let view = features.view_of(Entity::CardId).expect("the bundled definitions have one").key().clone();
        let ingest = PartitionIngest::new(rules, Arc::clone(features));
        let from = Recovery { log: &*empty, store: &*own, group: GROUP, view: &view, state_bytes_max: usize::MAX };
        let states = PartitionStates::recover(&from, of.clone(), ingest, &mut || Ok(()))?;
        partitions.insert(partition, states);
        let mut next = 0;
        loop {
            let read = log.read(&of, next, 100_000)?;
            let Some(last) = read.last() else { break };
            next = last.offset + 1;
            records.extend(read);
        }
    }
    records.sort_by_key(|record| (record.timestamp_us, record.partition, record.offset));
    let store = log.store() as Arc<dyn OnlineStore>;
    let views = scorer::worker::views(&**log, &store, features, scorer::worker::VIEW_CACHE_BYTES)?;
    let options = emit::EmitOptions { features: Arc::clone(features), log_features: 0.0 };
    let explain = scorer::worker::explain(features, WorkerOptions::default().reasons);
    let mut outbox = Outbox::default();
    let mut spent = [Duration::ZERO; HOPS.len()];
    for batch in records.chunks(BATCH) {
        let mut timed = Laps(Instant::now(), &mut spent);
        let mut ingested = Ingested::default();
        for record in batch {
            let states = partitions.get_mut(&record.partition).expect("all partitions are owned");
            let checked = states.stream.check(record);
            let transaction = checked.map_err(|rejection| anyhow::anyhow!(rejection.message))?;
            let Record { partition, offset, timestamp_us, .. } = *record;
            ingested.events.push(Event { transaction, partition, offset, timestamp_us });
        }
        timed.lap(0);
        let Join::Done(joined) = join(features, &*own, &mut partitions, &views, ingested, true)? else {
            anyhow::bail!("a forced join is done");
        };
        timed.lap(1);
        let assembled = assemble::assemble(features, joined);
        timed.lap(2);
        let scored = score::submit(model, explain.as_ref(), assembled)?.wait()?;
        timed.lap(3);
        emit::write(&options, &mut outbox, &scored, 0);
        timed.lap(4);
        outbox.clear();
    }
    Ok(spent.map(|spent| spent.as_nanos() as f64 / records.len() as f64))
}

/// The time since the last lap goes to a hop.
struct Laps<'a>(Instant, &'a mut [Duration; HOPS.len()]);

impl Laps<'_> {
    fn lap(&mut self, hop: usize) {
        let now = Instant::now();
        self.1[hop] += now - self.0;
        self.0 = now;
    }
}
