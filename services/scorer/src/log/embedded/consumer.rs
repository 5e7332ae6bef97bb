//! A member of a consumer group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use super::batch::BatchReader;
use super::group::{Group, Owned};
use super::storage::damaged;
use super::topic::TopicState;
use crate::log::{Commit, Committed, Consumer, LogError, Polled, Record, Result, TopicPartition};

/// How far a partition's records may run ahead of another's within a topic, by the time they
/// were appended. Some slack keeps a partition's records together in what a poll returns.
pub(super) const SLACK_US: i64 = 10_000;

pub(super) struct EmbeddedConsumer {
    log: Arc<Inner>,
    group: Arc<Group>,
    member: u64,
    /// The last generation that the caller was told of.
    generation: u64,
    assigned: Vec<Assigned>,
    /// Grows with every run of records taken, to serve the partitions in turn.
    turn: u64,
}

/// A partition as its owner reads it.
struct Assigned {
    topic: Arc<TopicState>,
    partition: TopicPartition,
    /// The generation in which it was assigned.
    since: u64,
    /// Offset of the next record to be delivered.
    position: u64,
    /// The batch that holds it, once read.
    batch: Option<BatchReader>,
    /// When it was last read from.
    turn: u64,
}

impl Assigned {
    /// Reads the batch at the position if need be; the timestamp of the next record, none at
    /// the end of the partition.
    fn head_us(&mut self, log: &Inner) -> Result<Option<i64>> {
        if let Some(head_us) = self.batch.as_ref().and_then(BatchReader::head_us) {
            // Retention may have passed it; what is read no longer is part of the log.
            let start = self.topic.bounds(self.partition.partition)?.start;
            if self.position >= start {
                return Ok(Some(head_us));
            }
        }
        self.batch = log.storage.read(&self.topic, self.partition.partition, self.position)?;
        Ok(self.batch.as_ref().and_then(BatchReader::head_us))
    }

    /// Takes records up to the end of the batch, up to `until_us`, and until `records` holds
    /// `max_records`; at least one.
    fn take(&mut self, until_us: i64, max_records: usize, records: &mut Vec<Record>) -> Result<()> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        loop {
            match batch.take(self.partition.partition) {
                Ok(taken) => records.extend(taken),
                Err(error) => {
                    // Read anew, it fails at the same record again: none is passed over.
                    self.batch = None;
                    return Err(damaged(&self.topic.spec.name, self.partition.partition, self.position, error));
                }
            }
            self.position = batch.next_offset();
            match batch.head_us() {
                Some(head_us) if head_us <= until_us && records.len() < max_records => {}
                _ => return Ok(()),
            }
        }
    }
}

impl EmbeddedConsumer {
    pub(super) fn new(log: Arc<Inner>, group: Arc<Group>, topics: Vec<Arc<TopicState>>) -> EmbeddedConsumer {
        let member = group.join(topics);
        EmbeddedConsumer { log, group, member, generation: 0, assigned: Vec::new(), turn: 0 }
    }

    /// Takes note of a new generation, if there is one.
    fn rebalance(&mut self) -> Result<Option<Polled>> {
        if self.group.generation() == self.generation {
            return Ok(None);
        }
        let (generation, owned) = self.group.owned(self.member);
        let kept = |old: &Assigned| owned.iter().any(|new| new.partition == old.partition && new.since == old.since);
        let revoked = self.assigned.iter().filter(|old| !kept(old)).map(|old| old.partition.clone()).collect();
        let mut assigned = Vec::new();
        let mut added = Vec::new();
        for Owned { topic, partition, since } in owned {
            if self.assigned.iter().any(|old| old.partition == partition && old.since == since) {
                continue;
            }
            let committed = self.log.storage.offset(&self.group.name, topic.id, partition.partition)?;
            let start = topic.bounds(partition.partition)?.start;
            assigned.push(partition.clone());
            added.push(Assigned {
                topic,
                partition,
                since,
                position: committed.map_or(start, |(offset, _)| offset),
                batch: None,
                turn: 0,
            });
        }
        // Nothing fails from here on: after an error the next poll finds the change again.
        let gone: &Vec<TopicPartition> = &revoked;
        self.assigned.retain(|old| !gone.contains(&old.partition));
        self.assigned.extend(added);
        self.generation = generation;
        Ok(Some(Polled::Rebalanced { assigned, revoked }))
    }

    /// Merges the topic's partitions by the time of their next records.
    fn take(&mut self, topic: &str, max_records: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while records.len() < max_records {
            match self.take_run(topic, max_records, &mut records) {
                Ok(true) => {}
                Ok(false) => break,
                // What was taken is delivered; the next poll fails in its place.
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Takes records of the partition whose turn it is; false if there are none.
    fn take_run(&mut self, topic: &str, max_records: usize, records: &mut Vec<Record>) -> Result<bool> {
        let mut heads: Vec<(i64, &mut Assigned)> = Vec::with_capacity(self.assigned.len());
        for assigned in self.assigned.iter_mut().filter(|assigned| assigned.partition.topic == topic) {
            if let Some(head_us) = assigned.head_us(&self.log)? {
                heads.push((head_us, assigned));
            }
        }
        let Some(first_us) = heads.iter().map(|(head_us, _)| *head_us).min() else { return Ok(false) };
        // Of those that are next within the slack the one that waits longest.
        let near_us = first_us.saturating_add(SLACK_US);
        let near = heads.iter().enumerate().filter(|(_, (head_us, _))| *head_us <= near_us);
        let Some((chosen, _)) = near.min_by_key(|(_, (_, assigned))| assigned.turn) else { return Ok(false) };
        let (_, assigned) = heads.swap_remove(chosen);
        let until_us = heads.iter().map(|(head_us, _)| head_us.saturating_add(SLACK_US)).min().unwrap_or(i64::MAX);
        self.turn += 1;
        assigned.turn = self.turn;
        assigned.take(until_us, max_records, records)?;
        Ok(true)
    }

    fn owned(&mut self, partition: &TopicPartition) -> Result<&mut Assigned> {
        let assigned = self.assigned.iter_mut().find(|assigned| assigned.partition == *partition);
        assigned.ok_or_else(|| LogError::Fenced(partition.clone()))
    }
}

impl Consumer for EmbeddedConsumer {
    fn poll(&mut self, topic: &str, max_records: usize, timeout: Duration) -> Result<Polled> {
        let state = self.log.topic_state(topic)?;
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = state.arrivals();
            if let Some(rebalanced) = self.rebalance()? {
                return Ok(rebalanced);
            }
            let records = self.take(topic, max_records)?;
            if !records.is_empty() || max_records == 0 || !state.wait(seen, deadline) {
                return Ok(Polled::Records(records));
            }
        }
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<Committed> {
        let outputs = self.log.encode(commit.outputs)?;
        let mut claims = Vec::with_capacity(commit.offsets.len());
        for (partition, offset) in commit.offsets {
            let assigned = self.owned(partition)?;
            claims.push((assigned.topic.id, assigned.since, partition, *offset));
        }
        let owners =
            self.group.fence(self.member, claims.iter().map(|(_, since, partition, _)| (*partition, *since)))?;
        let checkpoint = commit.checkpoint.filter(|_| self.log.options.atomic_checkpoints);
        self.log.write(outputs, |batch| {
            for (topic, _, partition, offset) in &claims {
                let committed = (*offset, commit.metadata);
                self.log.storage.put_offset(batch, &self.group.name, *topic, partition.partition, committed);
            }
            checkpoint.map(|checkpoint| self.log.store.stage(batch, checkpoint))
        })?;
        drop(owners);
        // Who commits beyond its position goes on from there: the way past trimmed records.
        for (partition, offset) in commit.offsets {
            let assigned = self.owned(partition)?;
            if assigned.position < *offset {
                assigned.position = *offset;
                assigned.batch = None;
            }
        }
        let left = commit.checkpoint.is_some() && checkpoint.is_none();
        Ok(if left { Committed::WithoutCheckpoint } else { Committed::WithCheckpoint })
    }

    fn reached(&mut self, topic: &str, ends: &[u64]) -> Result<Vec<(u32, bool)>> {
        let of_topic = self.assigned.iter().filter(|assigned| assigned.partition.topic == topic);
        let reached = |assigned: &Assigned| {
            let partition = assigned.partition.partition;
            (partition, ends.get(partition as usize).is_none_or(|&end| assigned.position >= end))
        };
        Ok(of_topic.map(reached).collect())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.group.leave(self.member);
    }
}
