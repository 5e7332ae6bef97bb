//! What a run came to.

use std::time::Duration;

use models::{Evaluation, ModelThread};
use schemas::{headers, topics};
use scorer::log::{Log, TopicPartition};
use scorer::worker::Stats;
use serde::Serialize;

use super::watch::Watch;

/// The figures of a run. Counts are of the whole data directory, over all starts; rates and
/// latencies are of this start.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) events_in: u64,
    pub(super) scores: u64,
    pub(super) alerts: u64,
    /// Transactions that became dead letters.
    pub(super) dead_letters: u64,
    /// Labels that became dead letters.
    pub(super) label_dead_letters: u64,
    /// Transactions that stood in the log when this start began.
    pub(super) resumed_at: u64,
    pub(super) seconds: f64,
    pub(super) events_per_second: f64,
    /// From the append of an event to the commit of its score.
    pub(super) latency_ms: Latency,
    /// Against what is fraud, whether its chargeback has come or not.
    pub(super) quality: Option<Evaluation>,
    /// Of the model that served first; `quality` is at this one.
    pub(super) threshold: f32,
    /// The one that served last.
    pub(super) model: String,
    pub(super) device: String,
    pub(super) feature_layout: String,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
}

impl Latency {
    pub(super) fn of(stats: &Stats) -> Latency {
        let latency_us = stats.latency_us.lock();
        let at = |quantile: f64| latency_us.value_at_quantile(quantile) as f64 / 1000.0;
        Latency { p50: at(0.5), p99: at(0.99), p99_9: at(0.999) }
    }
}

impl Report {
    pub(super) fn new(
        log: &dyn Log,
        stats: &Stats,
        watch: &Watch,
        model: &ModelThread,
        elapsed: Duration,
        resumed_at: u64,
    ) -> anyhow::Result<Report> {
        let written =
            |topic: &str| -> anyhow::Result<u64> { Ok(log.topic(topic)?.offsets.iter().map(|kept| kept.end).sum()) };
        let label_dead_letters = dead_labels(log)?;
        let scored = stats.scores.load(std::sync::atomic::Ordering::Relaxed)
            + stats.dead_letters.load(std::sync::atomic::Ordering::Relaxed);
        Ok(Report {
            events_in: written(topics::TRANSACTIONS)?,
            scores: written(topics::SCORES)?,
            alerts: written(topics::ALERTS)?,
            dead_letters: written(topics::DEAD_LETTERS)? - label_dead_letters,
            label_dead_letters,
            resumed_at,
            seconds: elapsed.as_secs_f64(),
            events_per_second: scored as f64 / elapsed.as_secs_f64().max(1e-9),
            latency_ms: Latency::of(stats),
            quality: watch.quality(),
            threshold: watch.threshold(),
            model: model.model().label.clone(),
            device: model.device().to_owned(),
            feature_layout: model.layout().hash().to_owned(),
        })
    }

    pub(super) fn print(&self) {
        println!("events in          {:>12}", self.events_in);
        println!("scores             {:>12}", self.scores);
        println!("alerts             {:>12}", self.alerts);
        println!("dead letters       {:>12}", self.dead_letters);
        println!("events/s           {:>12.0}   over {:.1} s", self.events_per_second, self.seconds);
        let Latency { p50, p99, p99_9 } = self.latency_ms;
        println!("event to score     {p50:>9.1} ms   p99 {p99:.1} ms   p99.9 {p99_9:.1} ms");
        match &self.quality {
            Some(quality) => println!(
                "quality            AUC {:.4}   average precision {:.4}   at {:.4}: precision {:.3}, recall {:.3}   ({} frauds)",
                quality.auc,
                quality.average_precision,
                self.threshold,
                quality.precision,
                quality.recall,
                quality.positives,
            ),
            None => println!("quality            unknown: there were no frauds, or nothing else"),
        }
        println!("model              {} on {}", self.model, self.device);
    }
}

/// Dead letters that were labels, by the header that names their topic.
fn dead_labels(log: &dyn Log) -> anyhow::Result<u64> {
    let mut labels = 0;
    for (partition, kept) in log.topic(topics::DEAD_LETTERS)?.offsets.into_iter().enumerate() {
        let partition = TopicPartition { topic: topics::DEAD_LETTERS.to_owned(), partition: partition as u32 };
        let mut next = kept.start;
        while next < kept.end {
            let records = log.read(&partition, next, 4096)?;
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            let of_labels = records.iter().filter(|record| {
                record.headers.iter().any(|(name, value)| name == headers::TOPIC && value == topics::LABELS)
            });
            labels += of_labels.count() as u64;
        }
    }
    Ok(labels)
}
