//! Simulated payments, into the brokers on a schedule.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use load_tests::{ChargebackDelay, Feed, SimulatorOptions};
use schemas::topics;
use scorer::log::{KafkaLog, KafkaOptions, Log, LogError, Outbox};
use scorer::system_clock;

use crate::environment::Environment;

/// Days that a run's payments span, so that all windows fill, also those that end a week ago.
const DAYS: u64 = 60;
/// As the simulator has it.
const TRANSACTIONS_PER_CUSTOMER_DAY: u64 = 2;
/// Transactions appended at a time, at most.
const CHUNK_MAX: u64 = 1000;

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Feeds this many at least; the sizes of the simulation follow from it.
    pub events: u64,
    /// Events per second; as fast as it goes if none.
    pub rate: Option<f64>,
    /// Whether to go on after that many, until told to stop.
    pub endless: bool,
    /// One in so many records is no transaction.
    pub spoiled_one_in: Option<u64>,
}

impl Plan {
    pub fn simulator(&self) -> SimulatorOptions {
        let customers = (self.events / DAYS / TRANSACTIONS_PER_CUSTOMER_DAY).clamp(50, 5000) as u32;
        SimulatorOptions {
            customers,
            terminals: customers * 2,
            seed: self.seed,
            // Small populations need wider reach, or most customers find no terminal.
            radius: if customers < 1000 { 20.0 } else { 5.0 },
            ..SimulatorOptions::default()
        }
    }

    /// A quarter of a day at most: what is appended again after a failure is not too late.
    fn chunk_max(&self) -> u64 {
        (u64::from(self.simulator().customers) / 2).clamp(20, CHUNK_MAX)
    }
}

/// A feed that runs.
pub struct Feeding {
    fed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    retries: Arc<AtomicU64>,
    /// When the first event was due.
    pub started_us: i64,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Feeding {
    pub fn start(environment: &Environment, plan: Plan) -> anyhow::Result<Feeding> {
        let mut appender = Appender::new(environment.kafka("load-tests-feeder"))?;
        let (fed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let retries = Arc::clone(&appender.retries);
        let started_us = system_clock()();
        let (counted, stopping) = (Arc::clone(&fed), Arc::clone(&stop));
        let run = move || feed(&mut appender, &plan, started_us, &counted, &stopping);
        let thread = Some(std::thread::Builder::new().name("feeder".to_owned()).spawn(run)?);
        Ok(Feeding { fed, stop, retries, started_us, thread })
    }

    pub fn fed(&self) -> u64 {
        self.fed.load(Relaxed)
    }

    /// Appends that had to be tried again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    /// Whether all is fed; its error if it failed.
    pub fn is_done(&mut self) -> anyhow::Result<bool> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(false),
            _ => self.finish().map(|()| true),
        }
    }

    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|_| bail!("the feeder panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn feed(
    appender: &mut Appender,
    plan: &Plan,
    started_us: i64,
    counted: &AtomicU64,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut source =
        Feed::simulated(plan.simulator(), ChargebackDelay { seed: plan.seed, ..ChargebackDelay::default() });
    let clock = system_clock();
    let mut fed = 0u64;
    let (mut labels, mut transactions) = (Outbox::default(), Outbox::default());
    while !stop.load(Relaxed) && (plan.endless || fed < plan.events) {
        let elapsed = (clock() - started_us).max(0) as f64 / 1e6;
        let due = plan.rate.map_or(u64::MAX, |rate| (elapsed * rate) as u64).saturating_sub(fed);
        let left = if plan.endless { u64::MAX } else { plan.events - fed };
        let next = due.min(left).min(plan.chunk_max());
        if next == 0 {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        let Some(chunk) = source.next_chunk(next as usize)? else { break };
        // An event is as old as it is late on the schedule.
        let at_us = |index: u64| plan.rate.map_or_else(&*clock, |rate| started_us + (index as f64 / rate * 1e6) as i64);
        // Labels first, and for sure: one that was known when a transaction took place stands before it.
        for label in &chunk.labels {
            labels.push(topics::LABELS, label.card_id.as_bytes(), at_us(fed), |out| label.write_json(out));
        }
        for (index, labelled) in (fed..).zip(&chunk.transactions) {
            let transaction = &labelled.transaction;
            let spoiled = plan.spoiled_one_in.is_some_and(|one_in| index % one_in == one_in - 1);
            transactions.push(
                topics::TRANSACTIONS,
                transaction.card_id.as_bytes(),
                at_us(index),
                |out| match spoiled {
                    true => out.extend_from_slice(b"{\"no\": \"transaction\"}"),
                    false => transaction.write_json(out),
                },
            );
        }
        appender.append(&labels)?;
        appender.append(&transactions)?;
        labels.clear();
        transactions.clear();
        fed += chunk.transactions.len() as u64;
        counted.store(fed, Relaxed);
    }
    Ok(())
}

/// Appends until it succeeds. What fails half-way is appended again, so records may stand twice.
struct Appender {
    options: KafkaOptions,
    log: KafkaLog,
    retries: Arc<AtomicU64>,
}

impl Appender {
    fn new(options: KafkaOptions) -> anyhow::Result<Appender> {
        Ok(Appender { log: KafkaLog::connect(options.clone())?, options, retries: Arc::new(AtomicU64::new(0)) })
    }

    fn append(&mut self, records: &Outbox) -> anyhow::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(600);
        loop {
            match self.log.append(records) {
                Err(LogError::Unavailable(_)) if Instant::now() < deadline => {
                    self.retries.fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_millis(200));
                    // A client may stay without brokers although they are back: with another one, then.
                    if let Ok(log) = KafkaLog::connect(self.options.clone()) {
                        self.log = log;
                    }
                }
                appended => return Ok(appended?),
            }
        }
    }
}
