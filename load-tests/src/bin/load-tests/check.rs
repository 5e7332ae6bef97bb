//! What came of each record of the transactions, as a `read_committed` consumer sees it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use schemas::{Alert, Id, Score, SourcePosition, headers, topics};
use scorer::log::{Log, Record, TopicPartition};
use serde::Deserialize;

use crate::progress::Progress;

const READ_MAX: usize = 5000;

/// Calls `each` for every record of a topic; returns how many that were.
pub fn for_each(log: &dyn Log, topic: &str, mut each: impl FnMut(Record) -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let offsets = log.topic(topic)?.offsets;
    let total = offsets.iter().map(|kept| kept.end - kept.start).sum();
    let mut progress = Progress::new(&format!("reading {topic}"), total);
    let mut read = 0;
    for (partition, kept) in offsets.into_iter().enumerate() {
        let partition = TopicPartition { topic: topic.to_owned(), partition: partition as u32 };
        let mut next = kept.start;
        while next < kept.end {
            let records = log.read(&partition, next, READ_MAX)?;
            read += records.len() as u64;
            progress.at(read, "");
            // Behind the last one the markers of transactions may stand.
            next = match records.last() {
                Some(last) if records.len() == READ_MAX => last.offset + 1,
                _ => kept.end,
            };
            records.into_iter().try_for_each(&mut each)?;
        }
    }
    Ok(read)
}

/// A score, as far as it is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub transaction_id: Id,
    pub score: f32,
    pub alert: bool,
    /// Bits of the vector, NaN where a value is missing.
    pub features: Option<Box<[u32]>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Scored(Scored),
    Dead(String),
}

/// Counts of what came of the records, and by source position what it was.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// By partition, then offset.
    pub of: Vec<Vec<Option<Outcome>>>,
    pub scores: u64,
    pub dead_letters: u64,
    pub by_reason: BTreeMap<String, u64>,
    pub alerts: u64,
    /// Records that came to nothing.
    pub lost: u64,
    /// Outcomes beyond the first, alerts included.
    pub repeated: u64,
    /// Outcomes of records that are not there.
    pub foreign: u64,
    /// Scores without the alert they call for, and alerts without their score.
    pub wrong_alerts: u64,
    pub samples: Vec<String>,
}

impl Outcomes {
    /// Reads scores, dead letters and alerts. `ends`: where the transactions end, by partition.
    /// `keep`: whether outcomes are kept for comparison, or only counted.
    pub fn read(log: &dyn Log, ends: &[u64], keep: bool) -> anyhow::Result<Outcomes> {
        let mut outcomes = Outcomes::default();
        let mut seen: Vec<Vec<u8>> = ends.iter().map(|&end| vec![0; end as usize]).collect();
        if keep {
            outcomes.of = ends.iter().map(|&end| vec![None; end as usize]).collect();
        }
        outcomes.scores = for_each(log, topics::SCORES, |record| {
            if !keep {
                let source = parse::<SourceOnly>(&record)?.source;
                outcomes.count(&mut seen, &source);
                return Ok(());
            }
            let score: Score = parse(&record)?;
            if outcomes.count(&mut seen, &score.source) {
                let bits = |value: &Option<f32>| value.unwrap_or(f32::NAN).to_bits();
                outcomes.of[score.source.partition as usize][score.source.offset as usize] =
                    Some(Outcome::Scored(Scored {
                        transaction_id: score.transaction_id,
                        score: score.score,
                        alert: score.alert,
                        features: score.features.map(|features| features.iter().map(bits).collect()),
                    }));
            }
            Ok(())
        })?;
        outcomes.dead_letters = for_each(log, topics::DEAD_LETTERS, |record| {
            if header(&record, headers::TOPIC)? != topics::TRANSACTIONS {
                return Ok(());
            }
            let source = SourcePosition {
                topic: topics::TRANSACTIONS.into(),
                partition: header(&record, headers::PARTITION)?.parse()?,
                offset: header(&record, headers::OFFSET)?.parse()?,
            };
            let reason = header(&record, headers::EXCEPTION_CLASS_NAME)?.to_owned();
            *outcomes.by_reason.entry(reason.clone()).or_default() += 1;
            if outcomes.count(&mut seen, &source) && keep {
                outcomes.of[source.partition as usize][source.offset as usize] = Some(Outcome::Dead(reason));
            }
            Ok(())
        })?;
        outcomes.lost = seen.iter().flatten().filter(|&&count| count == 0).count() as u64;
        for (partition, seen) in seen.iter().enumerate() {
            if let Some(offset) = seen.iter().position(|&count| count == 0) {
                outcomes.samples.push(format!("the first lost of partition {partition} is at offset {offset}"));
            }
        }
        if keep {
            outcomes.read_alerts(log, ends)?;
        }
        Ok(outcomes)
    }

    fn read_alerts(&mut self, log: &dyn Log, ends: &[u64]) -> anyhow::Result<()> {
        let mut alerted: Vec<Vec<bool>> = ends.iter().map(|&end| vec![false; end as usize]).collect();
        self.alerts = for_each(log, topics::ALERTS, |record| {
            let alert: Alert = parse(&record)?;
            let (partition, offset) = (alert.source.partition as usize, alert.source.offset as usize);
            match self.of.get(partition).and_then(|of| of.get(offset)) {
                Some(Some(Outcome::Scored(scored))) if scored.alert && scored.score == alert.score => {
                    if std::mem::replace(&mut alerted[partition][offset], true) {
                        self.repeated += 1;
                        self.samples.push(format!("alerted twice: {:?}", alert.source));
                    }
                }
                _ => self.wrong_alerts += 1,
            }
            Ok(())
        })?;
        for (of, alerted) in self.of.iter().zip(&alerted) {
            let wanted = |outcome: &Option<Outcome>| matches!(outcome, Some(Outcome::Scored(scored)) if scored.alert);
            self.wrong_alerts +=
                of.iter().zip(alerted).filter(|(outcome, alerted)| wanted(outcome) && !**alerted).count() as u64;
        }
        Ok(())
    }

    /// Whether it is the first outcome of a record that is there.
    fn count(&mut self, seen: &mut [Vec<u8>], source: &SourcePosition) -> bool {
        let count = seen.get_mut(source.partition as usize).and_then(|seen| seen.get_mut(source.offset as usize));
        let Some(count) = count.filter(|_| source.topic == topics::TRANSACTIONS) else {
            self.foreign += 1;
            return false;
        };
        *count = count.saturating_add(1);
        if *count > 1 {
            self.repeated += 1;
            if self.samples.len() < 20 {
                self.samples.push(format!("twice: {source:?}"));
            }
        }
        *count == 1
    }
}

#[derive(Deserialize)]
struct SourceOnly {
    source: SourcePosition,
}

fn parse<'a, T: Deserialize<'a>>(record: &'a Record) -> anyhow::Result<T> {
    serde_json::from_slice(&record.value).with_context(|| format!("reading {:?}", record.value))
}

fn header<'a>(record: &'a Record, name: &str) -> anyhow::Result<&'a str> {
    let found = record.headers.iter().find(|(known, _)| known == name);
    let (_, value) = found.with_context(|| format!("a dead letter without the header {name}"))?;
    Ok(std::str::from_utf8(value)?)
}

/// The transactions and the labels, as they stand in the log.
pub struct Input {
    /// By partition, in offset order.
    pub transactions: Vec<Vec<Record>>,
    pub labels: Vec<Record>,
}

impl Input {
    pub fn read(log: &dyn Log) -> anyhow::Result<Input> {
        let mut transactions: Vec<Vec<Record>> = log.ends(topics::TRANSACTIONS)?.iter().map(|_| Vec::new()).collect();
        for_each(log, topics::TRANSACTIONS, |record| {
            let of_partition = &mut transactions[record.partition as usize];
            ensure!(record.offset == of_partition.len() as u64, "{topic} has a hole", topic = topics::TRANSACTIONS);
            of_partition.push(record);
            Ok(())
        })?;
        let mut labels = Vec::new();
        for_each(log, topics::LABELS, |record| {
            labels.push(record);
            Ok(())
        })?;
        labels.sort_by_key(|record| record.timestamp_us);
        Ok(Input { transactions, labels })
    }

    pub fn ends(&self) -> Vec<u64> {
        self.transactions.iter().map(|records| records.len() as u64).collect()
    }

    pub fn events(&self) -> u64 {
        self.ends().iter().sum()
    }
}
