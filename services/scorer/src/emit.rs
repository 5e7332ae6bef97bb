//! Emit: scores, alerts and dead letters, with the consumed offsets, in one commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use feature_store::{Checkpoint, FeatureSet};
use models::{Answer, Contribution};
use schemas::{Alert, Amount, Id, Reason, Score, SourcePosition, Transaction, headers, topics};

use crate::Result;
use crate::ingest::{DeadLetter, Event};
use crate::log::{Commit, Committed, Consumer, Header, Outbox, TopicPartition};
use crate::score::Scored;
use crate::worker::checkpointed_offsets;

/// What scores are written with, whichever model they are of.
#[derive(Clone, Debug)]
pub struct EmitOptions {
    pub features: Arc<FeatureSet>,
    /// Which share of the scores carries the vector they were made from, 0 to 1: chosen by a hash of the transaction's id, so
    /// the same after a replay.
    pub log_features: f64,
}

/// A batch after its commit.
#[derive(Debug)]
pub struct Emitted {
    pub scores: u64,
    pub alerts: u64,
    pub answers: Vec<Answer>,
    /// Of each event, in the order of the answers' scores.
    pub amounts: Vec<Amount>,
    pub dead_letters: Vec<DeadLetter>,
    /// When the record of each event was appended, in microseconds since the Unix epoch.
    pub appended_us: Vec<i64>,
    pub next: Vec<(u32, u64)>,
    pub committed: Committed,
}

/// Writes a batch's scores, alerts and dead letters to `outbox`; returns how many alerts.
pub fn write(options: &EmitOptions, outbox: &mut Outbox, batch: &Scored, now_us: i64) -> u64 {
    let mut alerts = 0;
    let mut rows = batch.rows.chunks_exact(options.features.width().max(1));
    let mut events = batch.events.iter();
    for answer in &batch.answers {
        let model = Verdict { label: Id::from(answer.model.label.as_str()), threshold: answer.model.threshold };
        let mut reasons = answer.reasons.iter();
        for (&score, event) in answer.scores.iter().zip(&mut events) {
            let row = rows.next().unwrap_or_default();
            let mut score = model.score(&event.transaction, (event.partition, event.offset), score);
            if score.alert {
                alerts += 1;
                let reasons = reasons.next().map_or(&[][..], Vec::as_slice);
                write_alert(options, outbox, event, &score, model.threshold, (row, reasons), now_us);
            }
            score.features = is_logged(options.log_features, &event.transaction.transaction_id)
                .then(|| row.iter().map(|&value| present(value)).collect());
            write_score(outbox, topics::SCORES, &score, now_us);
        }
    }
    write_challenger(outbox, batch, now_us);
    for dead_letter in &batch.dead_letters {
        write_dead_letter(outbox, topics::TRANSACTIONS, dead_letter, "scorer", "ingest");
    }
    alerts
}

/// Writes a batch's outputs and commits it, with `metadata` beside the offsets. `outbox` is an empty buffer, and is again
/// afterwards.
pub fn emit(
    options: &EmitOptions,
    consumer: &mut dyn Consumer,
    outbox: &mut Outbox,
    batch: Scored,
    metadata: &str,
    checkpoint: Option<&Checkpoint>,
    now_us: i64,
) -> Result<Emitted> {
    let alerts = write(options, outbox, &batch, now_us);
    // A checkpoint may hold partitions that are not in this batch; it is fenced by all of them.
    let mut offsets = checkpoint.map(checkpointed_offsets).unwrap_or_default();
    for &(partition, next) in &batch.next {
        if !offsets.iter().any(|(known, _)| known.partition == partition) {
            offsets.push((TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition }, next));
        }
    }
    let committed = consumer.commit(&Commit { outputs: outbox, offsets: &offsets, metadata, checkpoint });
    outbox.clear();
    Ok(Emitted {
        scores: batch.events.len() as u64,
        alerts,
        amounts: batch.events.iter().map(|event| event.transaction.amount).collect(),
        answers: batch.answers,
        dead_letters: batch.dead_letters,
        appended_us: batch.events.iter().map(|event| event.timestamp_us).collect(),
        next: batch.next,
        committed: committed?,
    })
}

/// The model that decides, or that would have.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// `name@version`.
    pub label: Id,
    /// An alert is a score of this or more.
    pub threshold: f32,
}

impl Verdict {
    /// The score of a transaction that stands there in its topic, without its vector.
    pub fn score(&self, transaction: &Transaction, (partition, offset): (u32, u64), score: f32) -> Score {
        Score {
            transaction_id: transaction.transaction_id.clone(),
            card_id: transaction.card_id.clone(),
            event_time: transaction.event_time,
            score,
            alert: score >= self.threshold,
            model: self.label.clone(),
            source: SourcePosition { topic: Id::const_new(topics::TRANSACTIONS), partition, offset },
            features: None,
        }
    }
}

/// Writes a score to `topic`, keyed by its card.
pub fn write_score(outbox: &mut Outbox, topic: &str, score: &Score, now_us: i64) {
    outbox.push(topic, score.card_id.as_bytes(), now_us, |out| {
        serde_json::to_writer(out, score).expect("a score holds nothing that JSON can't");
    });
}

/// Writes what the challenger says, of those events that it was asked about.
fn write_challenger(outbox: &mut Outbox, batch: &Scored, now_us: i64) {
    let mut begin = 0;
    for answer in &batch.answers {
        let events = &batch.events[begin..begin + answer.scores.len()];
        begin += answer.scores.len();
        let Some(challenger) = &answer.challenger else { continue };
        let model = Verdict { label: Id::from(challenger.model.label.as_str()), threshold: challenger.model.threshold };
        for (event, &score) in events.iter().zip(&challenger.scores) {
            let score = model.score(&event.transaction, (event.partition, event.offset), score);
            write_score(outbox, topics::CHALLENGER_SCORES, &score, now_us);
        }
    }
}

fn is_logged(share: f64, transaction_id: &Id) -> bool {
    share > 0.0 && twox_hash::XxHash3_64::oneshot(transaction_id.as_bytes()) as f64 <= share * u64::MAX as f64
}

/// A value as JSON has it: missing is `null`.
fn present(value: f32) -> Option<f32> {
    (!value.is_nan()).then_some(value)
}

fn write_alert(
    options: &EmitOptions,
    outbox: &mut Outbox,
    event: &Event,
    score: &Score,
    threshold: f32,
    (row, reasons): (&[f32], &[Contribution]),
    now_us: i64,
) {
    let names = options.features.layout().features().iter().map(|feature| feature.name.clone());
    let features: BTreeMap<String, Option<f32>> = names.zip(row.iter().map(|&value| present(value))).collect();
    let transaction = &event.transaction;
    let alert = Alert {
        transaction_id: transaction.transaction_id.clone(),
        card_id: transaction.card_id.clone(),
        terminal_id: transaction.terminal_id.clone(),
        event_time: transaction.event_time,
        amount: transaction.amount,
        score: score.score,
        threshold,
        model: score.model.clone(),
        source: score.source.clone(),
        reasons: reasons.iter().map(|contribution| reason(&options.features, row, contribution)).collect(),
        features,
    };
    outbox.push(topics::ALERTS, transaction.card_id.as_bytes(), now_us, |out| {
        serde_json::to_writer(out, &alert).expect("an alert holds nothing that JSON can't");
    });
}

fn reason(features: &FeatureSet, row: &[f32], contribution: &Contribution) -> Reason {
    let &Contribution { group, column, reference, contribution } = contribution;
    let value = row[column];
    Reason {
        group: features.reason_groups()[group].name.clone(),
        feature: features.names()[column].clone(),
        value: present(value),
        reference: present(reference),
        contribution,
        text: features.reason(column, value, reference),
    }
}

/// Writes a record that `service` could not process to the dead letters: its key, value, headers
/// and timestamp as they were, and Kafka Connect's headers, which say where it stood and why. A
/// header already there is not overwritten.
pub fn write_dead_letter(outbox: &mut Outbox, topic: &str, dead_letter: &DeadLetter, service: &str, stage: &str) {
    let DeadLetter { record, rejection } = dead_letter;
    let mut all: Vec<Header> = record.headers.clone();
    for (name, value) in [
        (headers::TOPIC, topic.to_owned()),
        (headers::PARTITION, record.partition.to_string()),
        (headers::OFFSET, record.offset.to_string()),
        (headers::CONNECTOR_NAME, service.to_owned()),
        (headers::TASK_ID, record.partition.to_string()),
        (headers::STAGE, stage.to_owned()),
        (headers::CLASS_NAME, format!("fraudline.{service}")),
        (headers::EXCEPTION_CLASS_NAME, rejection.reason.as_str().to_owned()),
        (headers::EXCEPTION_MESSAGE, rejection.message.clone()),
    ] {
        if !all.iter().any(|(known, _)| known == name) {
            all.push((name.to_owned(), Bytes::from(value)));
        }
    }
    outbox.push_with(topics::DEAD_LETTERS, None, &record.key, record.timestamp_us, all, |out| {
        out.extend_from_slice(&record.value);
    });
}
