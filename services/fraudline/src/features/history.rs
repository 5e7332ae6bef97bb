//! The transactions of a log, as the scorer takes them, with all that is known beside them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use feature_store::{Backfill, FeatureSet};
use schemas::{EventTime, Id, Label, ProfileUpdate, Transaction, topics};
use scorer::ingest::{PartitionIngest, TimeRules};
use scorer::log::{Log, Record, TopicPartition};

const RECORDS: usize = 4096;

/// A transaction that the scorer scores, and where it stands.
#[derive(Debug)]
pub(crate) struct LoggedTransaction {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) transaction: Transaction,
}

/// All transactions of a log up to its present end, merged so that none comes more than the allowed lateness before one that was
/// given already: in any such order the views that others keep have the same values.
pub(crate) struct History<'a> {
    log: &'a dyn Log,
    partitions: Vec<Partition>,
    /// Records in the log, for a progress bar.
    records: u64,
    read: u64,
}

struct Partition {
    number: u32,
    ingest: PartitionIngest,
    next: u64,
    end: u64,
    /// The first offset that the log still has.
    first: u64,
    buffer: VecDeque<Record>,
    /// The next transaction, and the newest event time with it.
    head: Option<(EventTime, LoggedTransaction)>,
}

impl<'a> History<'a> {
    pub(crate) fn open(
        log: &'a dyn Log,
        features: &Arc<FeatureSet>,
        future_skew: Duration,
    ) -> anyhow::Result<History<'a>> {
        let rules = TimeRules { allowed_lateness: features.allowed_lateness(), future_skew };
        let kept = log.topic(topics::TRANSACTIONS)?.offsets;
        let partition = |(number, kept): (usize, std::ops::Range<u64>)| Partition {
            number: number as u32,
            ingest: PartitionIngest::new(rules, Arc::clone(features)),
            next: kept.start,
            end: kept.end,
            first: kept.start,
            buffer: VecDeque::new(),
            head: None,
        };
        let records = kept.iter().map(|kept| kept.end - kept.start).sum();
        let mut partitions: Vec<Partition> = kept.into_iter().enumerate().map(partition).collect();
        partitions.iter_mut().try_for_each(|partition| partition.advance(log))?;
        Ok(History { log, partitions, records, read: 0 })
    }

    /// Records of the log, and how many of them were read.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.records, self.read)
    }

    /// Whether the beginning of the log is no more.
    pub(crate) fn is_trimmed(&self) -> bool {
        self.partitions.iter().any(|partition| partition.first > 0)
    }

    pub(crate) fn next(&mut self) -> anyhow::Result<Option<LoggedTransaction>> {
        let heads = self.partitions.iter_mut().filter_map(|partition| {
            let newest = partition.head.as_ref().map(|(newest, _)| *newest)?;
            Some((newest, partition))
        });
        let Some((_, partition)) = heads.min_by_key(|(newest, partition)| (*newest, partition.number)) else {
            return Ok(None);
        };
        let taken = partition.head.take().map(|(_, transaction)| transaction);
        partition.advance(self.log)?;
        self.read = self.partitions.iter().map(|partition| partition.next.min(partition.end) - partition.first).sum();
        Ok(taken)
    }

    /// Takes all labels and profile updates of the log into `backfill`, those left out that the materializer takes for dead letters. They
    /// count from their own times on, so they may as well come first. `each_label` sees every label.
    pub(crate) fn side(
        log: &dyn Log,
        features: &FeatureSet,
        backfill: &mut Backfill<'_>,
        mut each_label: impl FnMut(Label),
    ) -> anyhow::Result<()> {
        read_all(log, topics::LABELS, |record| {
            if let Ok(label) = Label::from_json(&record.value) {
                backfill.label(&label);
                each_label(label);
            }
        })?;
        read_all(log, topics::PROFILES, |record| {
            if let Ok(update) = ProfileUpdate::from_json(&record.value)
                && features.accepts(&update).is_ok()
            {
                backfill.profile(&update);
            }
        })
    }
}

impl Partition {
    /// Finds the next transaction that is none of the dead letters.
    fn advance(&mut self, log: &dyn Log) -> anyhow::Result<()> {
        loop {
            if self.buffer.is_empty() && self.next < self.end {
                let of = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: self.number };
                self.buffer = log.read(&of, self.next, RECORDS)?.into();
                // Offsets may have gaps, up to the very end.
                self.next = self.buffer.front().map_or(self.end, |record| record.offset);
            }
            let Some(record) = self.buffer.pop_front() else { return Ok(()) };
            self.next = record.offset + 1;
            if record.offset >= self.end {
                self.buffer.clear();
                return Ok(());
            }
            if let Ok(transaction) = self.ingest.check(&record) {
                let head = LoggedTransaction { partition: self.number, offset: record.offset, transaction };
                self.head = Some((self.ingest.newest(), head));
                return Ok(());
            }
        }
    }
}

/// Every record of a topic up to its present end, partition by partition.
pub(crate) fn read_all(log: &dyn Log, topic: &str, mut each: impl FnMut(&Record)) -> anyhow::Result<()> {
    for partition in 0..log.ends(topic)?.len() as u32 {
        let of = TopicPartition { topic: topic.to_owned(), partition };
        read_partition(log, &of, |record| {
            each(record);
            Ok(())
        })?;
    }
    Ok(())
}

/// Every record of a partition up to its present end.
pub(crate) fn read_partition(
    log: &dyn Log,
    of: &TopicPartition,
    mut each: impl FnMut(&Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let kept = log.topic(&of.topic)?.offsets[of.partition as usize].clone();
    let mut next = kept.start;
    while next < kept.end {
        let records = log.read(of, next, RECORDS)?;
        let Some(last) = records.last() else { break };
        next = last.offset + 1;
        records.iter().filter(|record| record.offset < kept.end).try_for_each(&mut each)?;
    }
    Ok(())
}

/// Vectors that scores carry, by where their transactions stand.
pub(crate) struct LoggedVectors<'a> {
    log: &'a dyn Log,
    /// For each partition of the scores, the next offset and the end.
    partitions: Vec<(u64, u64)>,
    /// For each partition of the transactions, the offset behind the last that a score was read of.
    scored: Vec<u64>,
    vectors: std::collections::HashMap<(u32, u64), LoggedVector>,
}

/// A vector as a score carries it.
pub(crate) struct LoggedVector {
    pub(crate) transaction_id: Id,
    pub(crate) values: Vec<Option<f32>>,
}

impl<'a> LoggedVectors<'a> {
    pub(crate) fn open(log: &'a dyn Log) -> anyhow::Result<LoggedVectors<'a>> {
        let kept = log.topic(topics::SCORES)?.offsets;
        let scored = vec![0; log.ends(topics::TRANSACTIONS)?.len()];
        let partitions = kept.into_iter().map(|kept| (kept.start, kept.end)).collect();
        Ok(LoggedVectors { log, partitions, scored, vectors: std::collections::HashMap::new() })
    }

    /// The vector that the score of this transaction carries; `None` if there is no such score, or it carries none.
    pub(crate) fn take(&mut self, partition: u32, offset: u64) -> anyhow::Result<Option<LoggedVector>> {
        while self.scored.get(partition as usize).is_some_and(|&scored| scored <= offset) && self.read()? {}
        Ok(self.vectors.remove(&(partition, offset)))
    }

    /// Reads on in every partition; tells whether there was anything.
    fn read(&mut self) -> anyhow::Result<bool> {
        let mut any = false;
        for (number, (next, end)) in self.partitions.iter_mut().enumerate().filter(|(_, (next, end))| next < end) {
            let of = TopicPartition { topic: topics::SCORES.to_owned(), partition: number as u32 };
            let records = self.log.read(&of, *next, RECORDS)?;
            *next = records.last().map_or(*end, |record| record.offset + 1);
            any = true;
            for record in &records {
                let score: schemas::Score = serde_json::from_slice(&record.value)
                    .map_err(|error| anyhow::anyhow!("{of}, offset {}, is no score: {error}", record.offset))?;
                let source = (score.source.partition, score.source.offset);
                if let Some(scored) = self.scored.get_mut(source.0 as usize) {
                    *scored = (*scored).max(source.1 + 1);
                }
                if let Some(values) = score.features {
                    self.vectors.insert(source, LoggedVector { transaction_id: score.transaction_id, values });
                }
            }
        }
        Ok(any)
    }
}
