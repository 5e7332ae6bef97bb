//! A consumer like any other: reads scores and alerts, and holds the scores against what is fraud.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use models::{Evaluation, StreamingEvaluation};
use schemas::{Alert, topics};
use scorer::log::{Log, Record, TopicPartition};
use serde::Deserialize;

use crate::feeder::Frauds;

/// Records read of a partition at a time.
const READ_RECORDS: usize = 8192;
/// Alerts kept to be shown.
const ALERTS_SHOWN: usize = 8;

pub(super) struct Watch {
    log: Arc<dyn Log>,
    frauds: Frauds,
    scores: Vec<u64>,
    alerts: Vec<u64>,
    evaluation: StreamingEvaluation,
    threshold: f32,
    recent_alerts: VecDeque<Alert>,
}

/// What of a score is held against the truth.
#[derive(Deserialize)]
struct ScoreLine<'a> {
    #[serde(borrow)]
    transaction_id: Cow<'a, str>,
    score: f32,
}

impl Watch {
    pub(super) fn new(log: Arc<dyn Log>, frauds: Frauds, threshold: f32) -> Watch {
        Watch {
            log,
            frauds,
            scores: Vec::new(),
            alerts: Vec::new(),
            evaluation: StreamingEvaluation::new(threshold),
            threshold,
            recent_alerts: VecDeque::new(),
        }
    }

    /// Reads what has come; returns how many records.
    pub(super) fn step(&mut self) -> anyhow::Result<usize> {
        let mut read = 0;
        let frauds = Arc::clone(&self.frauds);
        let evaluation = &mut self.evaluation;
        read += each_new(&*self.log, topics::SCORES, &mut self.scores, |records| {
            let frauds = frauds.lock();
            for record in records {
                let line: ScoreLine<'_> = serde_json::from_slice(&record.value)?;
                evaluation.push(line.score, frauds.contains(line.transaction_id.as_ref()));
            }
            Ok(())
        })?;
        let recent = &mut self.recent_alerts;
        read += each_new(&*self.log, topics::ALERTS, &mut self.alerts, |records| {
            for record in &records[records.len().saturating_sub(ALERTS_SHOWN)..] {
                recent.push_back(serde_json::from_slice(&record.value)?);
            }
            recent.drain(..recent.len().saturating_sub(ALERTS_SHOWN));
            Ok(())
        })?;
        Ok(read)
    }

    /// The quality so far; `None` until there are scores of frauds and of legitimate payments.
    pub(super) fn quality(&self) -> Option<Evaluation> {
        self.evaluation.figures()
    }

    /// At which the quality's precision and recall are.
    pub(super) fn threshold(&self) -> f32 {
        self.threshold
    }

    /// The newest alerts, oldest first.
    pub(super) fn recent_alerts(&self) -> impl Iterator<Item = &Alert> {
        self.recent_alerts.iter()
    }
}

/// Hands over the records of a topic behind `next`, which begins at the first one kept.
fn each_new(
    log: &dyn Log,
    topic: &str,
    next: &mut Vec<u64>,
    mut each: impl FnMut(&[Record]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let offsets = log.topic(topic)?.offsets;
    next.resize(offsets.len(), 0);
    let mut read = 0;
    for (partition, (next, kept)) in next.iter_mut().zip(offsets).enumerate() {
        *next = (*next).max(kept.start);
        let partition = TopicPartition { topic: topic.to_owned(), partition: partition as u32 };
        while *next < kept.end {
            let records = log.read(&partition, *next, READ_RECORDS)?;
            let Some(last) = records.last() else { break };
            *next = last.offset + 1;
            each(&records)?;
            read += records.len();
        }
    }
    Ok(read)
}
