//! The scorer's metrics: all names in one place, handles bound once.

use std::time::Duration;

use feature_store::{FeatureSet, View, ViewReader};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use models::Answer;
use schemas::{Amount, DeadLetterReason};

use crate::log::{Log, LogError, TopicPartition};

pub const EVENTS: &str = "fraudline_events_total";
pub const SCORES: &str = "fraudline_scores_total";
pub const ALERTS: &str = "fraudline_alerts_total";
/// Scores by the model that made them; label `model`: `name@version`.
pub const MODEL_SCORES: &str = "fraudline_model_scores_total";
/// The scores, as probabilities.
pub const SCORE: &str = "fraudline_score";
/// What payments are about; label `alert`: whether they were flagged.
pub const AMOUNT: &str = "fraudline_amount";
pub const DEAD_LETTERS: &str = "fraudline_dead_letters_total";
pub const STAGE_SECONDS: &str = "fraudline_stage_duration_seconds";
pub const LATENCY_SECONDS: &str = "fraudline_event_to_commit_seconds";
pub const BATCH_EVENTS: &str = "fraudline_batch_events";
pub const CHECKPOINTED_STATES: &str = "fraudline_checkpointed_states_total";
pub const STATE_BYTES: &str = "fraudline_state_bytes";
pub const STATES: &str = "fraudline_states";
pub const VIEW_LOOKUPS: &str = "fraudline_view_lookups_total";
pub const VIEW_HITS: &str = "fraudline_view_cache_hits_total";
pub const VIEW_REFRESHED: &str = "fraudline_view_refreshed_total";
/// How far the oldest state used since the last checkpoint was behind its event, and how far it may be; label `view`.
pub const VIEW_STALENESS: &str = "fraudline_view_staleness_seconds";
pub const VIEW_STALENESS_LIMIT: &str = "fraudline_view_staleness_limit_seconds";
pub const VIEW_CACHE_BYTES: &str = "fraudline_view_cache_bytes";
pub const VIEW_WAIT_SECONDS: &str = "fraudline_view_wait_seconds_total";
pub const STALE_JOINS: &str = "fraudline_stale_joins_total";
pub const COMMITTED_OFFSET: &str = "fraudline_committed_offset";
pub const STORED_OFFSET: &str = "fraudline_stored_offset";
pub const LAG: &str = "fraudline_lag_records";
pub const LAST_COMMIT: &str = "fraudline_last_commit_timestamp_seconds";
pub const STORE_LOSSES: &str = "fraudline_store_losses_total";
pub const REBALANCES: &str = "fraudline_rebalances_total";
pub const INVARIANT_VIOLATIONS: &str = "fraudline_invariant_violations_total";

/// Handles of one worker.
#[derive(Clone)]
pub(crate) struct WorkerMetrics {
    pub(crate) events: Counter,
    pub(crate) scores: Counter,
    pub(crate) alerts: Counter,
    dead_letters: [Counter; DeadLetterReason::ALL.len()],
    score_values: Histogram,
    /// Of payments that are no alert, and of those that are.
    amounts: [Histogram; 2],
    /// Of the model that scored last, by its label.
    model_scores: Option<(String, Counter)>,
    pub(crate) ingest: Histogram,
    pub(crate) join: Histogram,
    pub(crate) assemble: Histogram,
    pub(crate) score: Histogram,
    pub(crate) emit: Histogram,
    pub(crate) latency: Histogram,
    pub(crate) batch: Histogram,
    pub(crate) checkpointed: Counter,
    pub(crate) state_bytes: Gauge,
    pub(crate) states: Gauge,
    /// Of the shared views, in their order.
    pub(crate) views: Vec<ViewMetrics>,
    pub(crate) view_wait: Gauge,
    pub(crate) stale_joins: Counter,
    pub(crate) rebalances: Counter,
    pub(crate) last_commit: Gauge,
    pub(crate) store_losses: Counter,
    pub(crate) violations: [Counter; 2],
}

impl WorkerMetrics {
    /// `worker` tells the workers of a process apart.
    pub(crate) fn bind(worker: usize, features: &FeatureSet) -> WorkerMetrics {
        let worker = worker.to_string();
        let stage = |name: &'static str| histogram!(STAGE_SECONDS, "stage" => name);
        WorkerMetrics {
            events: counter!(EVENTS),
            scores: counter!(SCORES),
            alerts: counter!(ALERTS),
            dead_letters: DeadLetterReason::ALL.map(|reason| counter!(DEAD_LETTERS, "reason" => reason.as_str())),
            score_values: histogram!(SCORE),
            amounts: ["false", "true"].map(|alert| histogram!(AMOUNT, "alert" => alert)),
            model_scores: None,
            ingest: stage("ingest"),
            join: stage("join"),
            assemble: stage("assemble"),
            score: stage("score"),
            emit: stage("emit"),
            latency: histogram!(LATENCY_SECONDS),
            batch: histogram!(BATCH_EVENTS),
            checkpointed: counter!(CHECKPOINTED_STATES),
            state_bytes: gauge!(STATE_BYTES, "worker" => worker.clone()),
            states: gauge!(STATES, "worker" => worker.clone()),
            views: features.shared_views().map(|(_, view)| ViewMetrics::bind(view)).collect(),
            view_wait: gauge!(VIEW_WAIT_SECONDS, "worker" => worker.clone()),
            stale_joins: counter!(STALE_JOINS),
            rebalances: counter!(REBALANCES),
            last_commit: gauge!(LAST_COMMIT, "worker" => worker),
            store_losses: counter!(STORE_LOSSES),
            violations: ["I2", "I3"].map(|name| counter!(INVARIANT_VIOLATIONS, "invariant" => name)),
        }
    }

    /// Takes note of what the models said of payments of these amounts.
    pub(crate) fn decided(&mut self, answers: &[Answer], amounts: &[Amount]) {
        let mut amounts = amounts.iter();
        for answer in answers {
            let model = &answer.model;
            let known = self.model_scores.take().filter(|(label, _)| *label == model.label);
            let (_, scored) = self.model_scores.insert(
                known.unwrap_or_else(|| (model.label.clone(), counter!(MODEL_SCORES, "model" => model.label.clone()))),
            );
            scored.increment(answer.scores.len() as u64);
            for (&score, amount) in answer.scores.iter().zip(&mut amounts) {
                self.score_values.record(f64::from(score));
                self.amounts[usize::from(score >= model.threshold)].record(amount.as_f64());
            }
        }
    }

    pub(crate) fn dead_letter(&self, reason: DeadLetterReason) {
        if let Some(index) = DeadLetterReason::ALL.iter().position(|known| *known == reason) {
            self.dead_letters[index].increment(1);
        }
    }
}

/// Handles of one view that others keep.
#[derive(Clone)]
pub(crate) struct ViewMetrics {
    lookups: Counter,
    hits: Counter,
    refreshed: Counter,
    cache_bytes: Gauge,
    staleness: Gauge,
}

impl ViewMetrics {
    fn bind(view: &View) -> ViewMetrics {
        let name = view.name().to_string();
        gauge!(VIEW_STALENESS_LIMIT, "view" => name.clone()).set(seconds(view.staleness()));
        ViewMetrics {
            lookups: counter!(VIEW_LOOKUPS, "view" => name.clone()),
            hits: counter!(VIEW_HITS, "view" => name.clone()),
            refreshed: counter!(VIEW_REFRESHED, "view" => name.clone()),
            cache_bytes: gauge!(VIEW_CACHE_BYTES, "view" => name.clone()),
            staleness: gauge!(VIEW_STALENESS, "view" => name),
        }
    }

    /// Tells what was asked of `reader` since the last time.
    pub(crate) fn observe(&self, reader: &ViewReader) {
        let counts = reader.take_counts();
        if counts.lookups > 0 {
            self.lookups.increment(counts.lookups);
            self.hits.increment(counts.hits);
            self.staleness.set(seconds(counts.staleness));
        }
        self.refreshed.increment(counts.refreshed);
        self.cache_bytes.set(reader.cache_bytes() as f64);
    }
}

/// Handles of one partition of a consumer group.
#[derive(Clone)]
pub(crate) struct PartitionMetrics {
    pub(crate) committed: Gauge,
    pub(crate) stored: Gauge,
}

impl PartitionMetrics {
    pub(crate) fn bind(group: &str, partition: u32) -> PartitionMetrics {
        let handle =
            |name: &'static str| gauge!(name, "group" => group.to_owned(), "partition" => partition.to_string());
        PartitionMetrics { committed: handle(COMMITTED_OFFSET), stored: handle(STORED_OFFSET) }
    }
}

/// Sets the lag of a group in each partition of a topic, and returns their sum: what an alert
/// watches, so it does not depend on the workers that may be stuck.
pub fn observe_lag(log: &dyn Log, group: &str, topic: &str) -> Result<u64, LogError> {
    let mut sum = 0;
    for (number, kept) in log.topic(topic)?.offsets.into_iter().enumerate() {
        let partition = TopicPartition { topic: topic.to_owned(), partition: number as u32 };
        let lag = kept.end.saturating_sub(log.committed(group, &partition)?.unwrap_or(kept.start));
        let labels = [("group", group.to_owned()), ("topic", topic.to_owned()), ("partition", number.to_string())];
        gauge!(LAG, &labels).set(lag as f64);
        sum += lag;
    }
    Ok(sum)
}

/// Seconds, as Prometheus has them.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
