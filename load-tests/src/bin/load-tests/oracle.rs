//! What must have come of the input: once through the path in this process, without any fault, and
//! once without the path.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{anyhow, bail};
use feature_store::{Backfill, FeatureSet, OnlineStore};
use materializer::{Materializer, MaterializerOptions};
use models::{Artifact, Device, ModelThread, ServeOptions};
use schemas::{Label, Transaction, topics};
use scorer::log::{EmbeddedLog, EmbeddedOptions, Log, Outbox, Record, TopicSpec};
use scorer::worker::Stats;
use scorer::{Worker, WorkerOptions, system_clock};
use serde::Serialize;

use crate::check::{Input, Outcome, Outcomes, Scored};
use crate::environment::{Environment, lag};
use crate::progress::Progress;

const APPEND_MAX: usize = 1000;
const SAMPLES_MAX: usize = 10;

/// A step through the input in an order in which it may have come: labels that stood in the log when
/// a transaction was appended come before it.
pub enum Step<'a> {
    Label(&'a Record),
    Transaction(&'a Record, Option<Transaction>),
}

/// Merges the partitions by the times of their records, then of their events.
pub fn in_order<'a>(input: &'a Input, mut each: impl FnMut(Step<'a>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    type Head<'a> = (i64, i64, &'a Record, Option<Transaction>);
    let mut rests: Vec<std::slice::Iter<'a, Record>> =
        input.transactions.iter().map(|records| records.iter()).collect();
    fn head<'a>(record: Option<&'a Record>) -> Option<Head<'a>> {
        let record = record?;
        let transaction = Transaction::from_json(&record.value).ok();
        let event_ms = transaction.as_ref().map_or(i64::MIN, |transaction| transaction.event_time.as_millis());
        Some((record.timestamp_us, event_ms, record, transaction))
    }
    let mut heads: Vec<Option<Head<'a>>> = rests.iter_mut().map(|rest| head(rest.next())).collect();
    let mut labels = input.labels.iter().peekable();
    while let Some((_, next)) = heads
        .iter()
        .enumerate()
        .filter_map(|(partition, head)| head.as_ref().map(|(at, event, ..)| ((*at, *event), partition)))
        .min()
    {
        let Some((at_us, _, record, transaction)) = heads[next].take() else { break };
        while let Some(label) = labels.next_if(|label| label.timestamp_us <= at_us) {
            each(Step::Label(label))?;
        }
        each(Step::Transaction(record, transaction))?;
        heads[next] = head(rests[next].next());
    }
    labels.try_for_each(|label| each(Step::Label(label)))
}

/// Runs scorer and materializer over the input, in this process, on a log and a store of its own.
pub fn reference(environment: &Environment, features: &Arc<FeatureSet>, input: &Input) -> anyhow::Result<Outcomes> {
    let folder = environment.folder().join("reference");
    let log = EmbeddedLog::open(&folder, EmbeddedOptions::default())?;
    for name in topics::ALL {
        let partitions = input.transactions.len() as u32;
        log.create_topic(&TopicSpec { name: name.to_owned(), partitions, retention: None })?;
    }
    let mut progress = Progress::new("reference run", input.events());
    let store = log.store() as Arc<dyn OnlineStore>;
    let model =
        ModelThread::start(Artifact::bundled()?, &ServeOptions { device: Device::Cpu, ..ServeOptions::default() })?;
    let context = materializer::Context {
        log: Arc::clone(&log) as Arc<dyn Log>,
        store: Arc::clone(&store),
        features: Arc::clone(features),
        clock: system_clock(),
    };
    let materializer = Materializer::start(context, MaterializerOptions::default())?;
    let stats = Arc::new(Stats::default());
    let views = scorer::worker::views(&*log, &store, features, scorer::worker::VIEW_CACHE_BYTES)?;
    let context = scorer::worker::Context {
        log: Arc::clone(&log) as Arc<dyn Log>,
        store,
        features: Arc::clone(features),
        model,
        clock: system_clock(),
        stats: Arc::clone(&stats),
        views,
    };
    let options =
        WorkerOptions { log_features: 1.0, view_wait_max: Duration::from_secs(3600), ..WorkerOptions::default() };
    let worker = Worker::start(context, options, 0)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        // Whatever ends this, the threads are told.
        let _guard = StopOnDrop(&stop);
        let materializer = scope.spawn(|| materializer.run(&stop));
        let worker = scope.spawn(|| worker.run(&stop));
        let mut outbox = Outbox::default();
        in_order(input, |step| {
            let (topic, record) = match step {
                Step::Label(record) => (topics::LABELS, record),
                Step::Transaction(record, _) => (topics::TRANSACTIONS, record),
            };
            outbox.push_with(topic, Some(record.partition), &record.key, record.timestamp_us, Vec::new(), |out| {
                out.extend_from_slice(&record.value);
            });
            if outbox.len() >= APPEND_MAX {
                log.append(&outbox)?;
                outbox.clear();
            }
            Ok(())
        })?;
        log.append(&outbox)?;
        while lag(&*log)? > 0 {
            environment.go_on()?;
            if worker.is_finished() || materializer.is_finished() {
                bail!("the reference run ended early");
            }
            progress.at(stats.scores.load(Relaxed) + stats.dead_letters.load(Relaxed), "");
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Relaxed);
        worker.join().map_err(|_| anyhow!("the scorer of the reference run panicked"))??;
        materializer.join().map_err(|_| anyhow!("the materializer of the reference run panicked"))??;
        Ok(())
    })?;
    drop(progress);
    Outcomes::read(&*log, &input.ends(), true)
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A record that came to something else than it must.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub partition: u32,
    pub offset: u64,
    pub transaction_id: String,
    /// What it was compared with.
    pub with: &'static str,
    /// Names of the features that differ.
    pub features: Vec<String>,
    pub found: String,
    pub expected: String,
}

#[derive(Debug, Default)]
pub struct Comparison {
    /// Vectors that differ from the reference run's or the offline driver's.
    pub features: u64,
    /// Scores whose bits differ from the reference run's.
    pub scores: u64,
    /// Scored here and dead there, or the other way round.
    pub outcomes: u64,
    pub samples: Vec<Difference>,
}

/// Compares what was found with the reference run and with the offline driver.
pub fn compare(
    features: &FeatureSet,
    input: &Input,
    found: &Outcomes,
    reference: &Outcomes,
) -> anyhow::Result<Comparison> {
    let names: Vec<&str> = features.layout().features().iter().map(|spec| spec.name.as_ref()).collect();
    let mut backfill = Backfill::new(features);
    let mut comparison = Comparison::default();
    let mut progress = Progress::new("comparing", input.events());
    let mut compared = 0;
    in_order(input, |step| {
        let (record, transaction) = match step {
            Step::Label(record) => {
                if let Ok(label) = Label::from_json(&record.value) {
                    backfill.label(&label);
                }
                return Ok(());
            }
            Step::Transaction(record, transaction) => (record, transaction),
        };
        compared += 1;
        progress.at(compared, "");
        let at = |outcomes: &Outcomes| outcomes.of[record.partition as usize][record.offset as usize].clone();
        let (found, reference) = (at(found), at(reference));
        let scored = |outcome: &Option<Outcome>| match outcome {
            Some(Outcome::Scored(scored)) => Some(scored.clone()),
            _ => None,
        };
        let (found_scored, reference_scored) = (scored(&found), scored(&reference));
        let mut differs = false;
        match (&found_scored, &reference_scored) {
            (Some(found), Some(reference)) => {
                if found.score.to_bits() != reference.score.to_bits() {
                    comparison.scores += 1;
                }
                let expected = reference.features.as_deref().unwrap_or_default();
                differs |= comparison.vector(&names, record, found, expected, "the reference run");
            }
            // It was lost, which is counted elsewhere.
            (None, _) if found.is_none() => {}
            _ if found != reference => {
                comparison.outcomes += 1;
                comparison.sample(Difference {
                    partition: record.partition,
                    offset: record.offset,
                    transaction_id: transaction
                        .as_ref()
                        .map(|known| known.transaction_id.to_string())
                        .unwrap_or_default(),
                    with: "the reference run",
                    features: Vec::new(),
                    found: format!("{found:?}"),
                    expected: format!("{reference:?}"),
                });
            }
            _ => {}
        }
        // What the path refused is no part of any window.
        if let (Some(transaction), Some(_)) = (&transaction, found_scored.as_ref().or(reference_scored.as_ref())) {
            let mut row = Vec::with_capacity(names.len());
            backfill.transaction(transaction, &mut row);
            if let Some(found) = &found_scored {
                let expected: Vec<u32> =
                    row.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect();
                differs |= comparison.vector(&names, record, found, &expected, "the offline driver");
            }
        }
        comparison.features += u64::from(differs);
        Ok(())
    })?;
    Ok(comparison)
}

impl Comparison {
    fn sample(&mut self, difference: Difference) {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(difference);
        }
    }

    fn vector(
        &mut self,
        names: &[&str],
        record: &Record,
        found: &Scored,
        expected: &[u32],
        with: &'static str,
    ) -> bool {
        let vector = found.features.as_deref().unwrap_or_default();
        if vector == expected {
            return false;
        }
        let by_name = |bits: &[u32]| {
            let values: HashMap<&str, f32> =
                names.iter().copied().zip(bits.iter().map(|&bits| f32::from_bits(bits))).collect();
            format!("{values:?}")
        };
        let differing = names.iter().enumerate().filter(|(index, _)| vector.get(*index) != expected.get(*index));
        self.sample(Difference {
            partition: record.partition,
            offset: record.offset,
            transaction_id: found.transaction_id.to_string(),
            with,
            features: differing.map(|(_, name)| (*name).to_owned()).collect(),
            found: by_name(vector),
            expected: by_name(expected),
        });
        true
    }
}
