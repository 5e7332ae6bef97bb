//! What must have come of a log, computed without the path.

use std::collections::{BTreeMap, HashMap};

use feature_store::{Backfill, FeatureSet};
use models::Contribution;
use schemas::{Alert, DeadLetterReason, Id, Reason, Score, SourcePosition, headers, partition_for_key, topics};
use scorer::WorkerOptions;
use scorer::log::{Log, Record, TopicPartition};

use crate::events::{Chunk, Fate};
use crate::versions::{Models, version_of};

/// Checks I1, I2 and I5 over everything that was fed, and that models took turns in their order; returns how many records
/// that were, and how many models scored them, counted for each partition.
pub fn check(log: &dyn Log, features: &FeatureSet, models: &Models, fed: &[Chunk], partitions: u32) -> (u64, u64) {
    let mut scores = scores_by_source(log, topics::SCORES);
    let mut shadows = scores_by_source(log, topics::CHALLENGER_SCORES);
    let models_seen = check_order(&scores);
    let mut dead_letters: HashMap<SourcePosition, Record> = HashMap::new();
    for record in read_all(log, topics::DEAD_LETTERS) {
        let source = SourcePosition {
            topic: Id::from(header(&record, headers::TOPIC)),
            partition: header(&record, headers::PARTITION).parse().unwrap(),
            offset: header(&record, headers::OFFSET).parse().unwrap(),
        };
        let repeated = dead_letters.insert(source, record);
        assert!(repeated.is_none(), "I1: a dead letter twice: {repeated:?}");
    }
    let mut alerts: HashMap<SourcePosition, Alert> = HashMap::new();
    for record in read_all(log, topics::ALERTS) {
        let alert: Alert = serde_json::from_slice(&record.value).unwrap();
        let score = &scores[&alert.source];
        assert!(score.alert && score.score == alert.score, "an alert without its score: {alert:?}");
        let repeated = alerts.insert(alert.source.clone(), alert);
        assert!(repeated.is_none(), "I1: an alert twice: {repeated:?}");
    }
    assert_eq!(alerts.len(), scores.values().filter(|score| score.alert).count(), "every alert once");

    let mut backfill = Backfill::new(features);
    let mut next = vec![0u64; partitions as usize];
    // Rows by the model that scored them, and what it said.
    let mut said: BTreeMap<Id, (Vec<f32>, Vec<Score>)> = BTreeMap::new();
    let mut records = 0;
    for chunk in fed {
        chunk.labels.iter().for_each(|label| backfill.label(label));
        chunk.updates.iter().for_each(|update| backfill.profile(update));
        for input in &chunk.inputs {
            records += 1;
            let partition = partition_for_key(&input.key, partitions);
            let offset = &mut next[partition as usize];
            let source = SourcePosition { topic: topics::TRANSACTIONS.into(), partition, offset: *offset };
            *offset += 1;
            match &input.fate {
                Fate::Dead(reason) => check_dead_letter(dead_letters.remove(&source), &input.value, *reason, &source),
                Fate::Scored(transaction) => {
                    let score = scores.remove(&source).unwrap_or_else(|| panic!("I1: {source:?} was not scored"));
                    assert_eq!(score.transaction_id, transaction.transaction_id);
                    let mut row = Vec::new();
                    backfill.transaction(transaction, &mut row);
                    check_row(features, &score, &row);
                    for score in [Some(score), shadows.remove(&source)].into_iter().flatten() {
                        let (rows, scores) = said.entry(score.model.clone()).or_default();
                        rows.extend(&row);
                        scores.push(score);
                    }
                }
            }
        }
    }
    assert!(scores.is_empty(), "I1: scores of no record: {scores:?}");
    assert!(dead_letters.is_empty(), "I1: dead letters of no record: {dead_letters:?}");
    assert!(shadows.is_empty(), "the challenger scored what the champion did not: {shadows:?}");
    let explain = scorer::worker::explain(features, WorkerOptions::default().reasons).expect("alerts have reasons");
    for (model, (rows, scores)) in said {
        let again = models.answer(&model, rows, &explain);
        let mut reasons = again.reasons.iter();
        for (score, again) in scores.iter().zip(again.scores) {
            assert_eq!(score.score.to_bits(), again.to_bits(), "the same vector scores the same: {score:?}");
            if score.alert {
                let reasons = reasons.next().expect("one list for each that is an alert");
                // What the challenger says makes no alert.
                if let Some(alert) = alerts.get(&score.source).filter(|alert| alert.model == score.model) {
                    check_reasons(features, alert, reasons);
                }
            }
        }
    }
    (records, models_seen)
}

fn scores_by_source(log: &dyn Log, topic: &str) -> HashMap<SourcePosition, Score> {
    let mut scores: HashMap<SourcePosition, Score> = HashMap::new();
    for record in read_all(log, topic) {
        let score: Score = serde_json::from_slice(&record.value).unwrap();
        let repeated = scores.insert(score.source.clone(), score);
        assert!(repeated.is_none(), "I1: scored twice in {topic}: {repeated:?}");
    }
    scores
}

/// No partition goes back to an older model. Returns how many each had, all together.
fn check_order(scores: &HashMap<SourcePosition, Score>) -> u64 {
    let mut in_order: Vec<&Score> = scores.values().collect();
    in_order.sort_by_key(|score| (score.source.partition, score.source.offset));
    let of_partitions = in_order.chunk_by(|a, b| a.source.partition == b.source.partition);
    let models = of_partitions.map(|scores| {
        for pair in scores.windows(2) {
            let [before, after] = [version_of(&pair[0].model), version_of(&pair[1].model)];
            assert!(before <= after, "back from version {before} to {after} at {:?}", pair[1].source);
        }
        scores.chunk_by(|a, b| a.model == b.model).count() as u64
    });
    models.sum()
}

fn check_row(features: &FeatureSet, score: &Score, row: &[f32]) {
    let logged = score.features.as_ref().expect("vectors are logged here");
    assert_eq!(logged.len(), row.len());
    for ((logged, expected), spec) in logged.iter().zip(row).zip(features.layout().features()) {
        let equal = match logged {
            Some(value) => value.to_bits() == expected.to_bits(),
            None => expected.is_nan(),
        };
        assert!(equal, "I2, I5: {} of {:?} is {logged:?}, offline {expected}", spec.name, score.source);
    }
}

fn check_reasons(features: &FeatureSet, alert: &Alert, again: &[Contribution]) {
    let of = |reason: &Reason| (reason.group.clone(), reason.feature.clone(), reason.contribution.to_bits());
    let found: Vec<_> = alert.reasons.iter().map(of).collect();
    let of = |again: &Contribution| {
        let (group, feature) = (&features.reason_groups()[again.group].name, &features.names()[again.column]);
        (group.clone(), feature.clone(), again.contribution.to_bits())
    };
    assert_eq!(found, again.iter().map(of).collect::<Vec<_>>(), "the same vector has the same reasons: {alert:?}");
}

fn check_dead_letter(found: Option<Record>, value: &[u8], reason: DeadLetterReason, source: &SourcePosition) {
    let record = found.unwrap_or_else(|| panic!("I1: {source:?} must be a dead letter for {}", reason.as_str()));
    assert_eq!(record.value, value, "a dead letter has the value it came with");
    assert_eq!(header(&record, headers::EXCEPTION_CLASS_NAME), reason.as_str(), "{source:?}");
}

fn header<'a>(record: &'a Record, name: &str) -> &'a str {
    let found = record.headers.iter().find(|(known, _)| known == name);
    std::str::from_utf8(&found.unwrap_or_else(|| panic!("no header {name}")).1).unwrap()
}

fn read_all(log: &dyn Log, topic: &str) -> Vec<Record> {
    let mut all = Vec::new();
    for (partition, kept) in log.topic(topic).unwrap().offsets.into_iter().enumerate() {
        let partition = TopicPartition { topic: topic.to_owned(), partition: partition as u32 };
        let mut next = kept.start;
        while next < kept.end {
            let records = log.read(&partition, next, 1000).unwrap();
            next = records.last().expect("records up to the end").offset + 1;
            all.extend(records);
        }
    }
    all
}
