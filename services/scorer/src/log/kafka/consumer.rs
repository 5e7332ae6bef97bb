//! A member of a Kafka consumer group, and the producers that its commits go through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::group::{Decision, GroupContext};
use super::producer::{Failed, Producer, Transactions};
use super::{Delivery, Inner};
use crate::log::{Commit, Committed, Consumer, LogError, Polled, Record, Result, TopicPartition};

/// How far a partition's records may run ahead of another's within a topic, by their timestamps.
const SLACK_US: i64 = 10_000;
/// How long after it joined anew a member may be fenced by what is left of its predecessor.
const SELF_FENCED: Duration = Duration::from_secs(60);
/// How long a member waits for the one before it under its name to be closed.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How long a member that goes waits to be rid of its partitions.
const LEAVE_WAIT: Duration = Duration::from_secs(3);
/// How often offsets are committed where they don't go with the outputs: what a crash repeats, at most.
const OFFSETS_INTERVAL: Duration = Duration::from_millis(100);
/// How long a commit is tried again while the group rebalances.
const REBALANCE_WAIT: Duration = Duration::from_secs(10);

pub(super) struct KafkaConsumer {
    log: Arc<Inner>,
    group: String,
    /// Group and member, as the members that are being closed are known by.
    name: String,
    /// When it joined, if this process had a member of this name before.
    joined: Option<Instant>,
    /// In the order in which they are to be dropped: the queues hold on to the consumer.
    assigned: Vec<Assigned>,
    consumer: Arc<BaseConsumer<GroupContext>>,
    outputs: Outputs,
    turn: u64,
}

/// Closes a member's consumer, on a thread of its own: librdkafka takes its time, and has been seen
/// not to come back from it. The partitions are given up before.
fn close(log: &Arc<Inner>, name: String, consumer: Arc<BaseConsumer<GroupContext>>) {
    log.former.lock().insert(name.clone(), false);
    let last = {
        let log = Arc::clone(log);
        move || {
            while Arc::strong_count(&consumer) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(consumer);
            log.former.lock().insert(name, true);
        }
    };
    let closing = std::thread::Builder::new().name("close consumer".to_owned()).spawn(last);
    if let Err(error) = closing {
        tracing::warn!(%error, "a consumer is closed on its worker's thread");
    }
}

enum Outputs {
    Transactional(Transactions),
    Idempotent { producer: Producer, consumed: Consumed },
}

/// Offsets whose outputs are delivered, and that are yet to be committed.
#[derive(Default)]
struct Consumed {
    offsets: BTreeMap<TopicPartition, u64>,
    metadata: String,
    committed: Option<Instant>,
}

/// A partition as its owner reads it.
struct Assigned {
    partition: TopicPartition,
    queue: PartitionQueue<GroupContext>,
    /// Offset of the next record to be delivered, or a lower one.
    position: u64,
    /// The next record, once it has come.
    head: Option<Record>,
    /// Everything up to the end that the broker knew of last was delivered.
    at_end: bool,
    /// An end that was reached although the position lies below: what is between are the
    /// markers of transactions.
    end_reached: u64,
    /// It is to be given up: no more of it is delivered.
    releasing: bool,
    /// Why no more of it can be read.
    failed: Option<LogError>,
    turn: u64,
}

impl Assigned {
    /// Fetches the next record if it has come.
    fn fill(&mut self) {
        while self.head.is_none() && self.failed.is_none() {
            match self.queue.poll(Duration::ZERO) {
                None => return,
                Some(Ok(message)) => match record(&message) {
                    Ok(record) => (self.head, self.at_end) = (Some(record), false),
                    Err(error) => self.failed = Some(error),
                },
                Some(Err(KafkaError::PartitionEOF(_))) => self.at_end = true,
                Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    let (partition, offset) = (self.partition.clone(), self.position);
                    self.failed = Some(LogError::OutOfRange { partition, offset });
                }
                Some(Err(error)) => tracing::debug!(partition = %self.partition, %error, "fetching"),
            }
        }
    }

    fn take(&mut self) -> Option<Record> {
        let record = self.head.take()?;
        self.position = record.offset + 1;
        Some(record)
    }
}

/// Copies a message out of librdkafka's buffers: key and value in one allocation.
pub(super) fn record(message: &BorrowedMessage<'_>) -> Result<Record> {
    let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
    let mut bytes = Vec::with_capacity(key.len() + value.len());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    let mut value = Bytes::from(bytes);
    let key = value.split_to(key.len());
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let header = |header: rdkafka::message::Header<'_, &[u8]>| {
            (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
        };
        headers.iter().map(header).collect()
    });
    let number = |what: i64| u64::try_from(what).map_err(|_| LogError::Storage(format!("a record at offset {what}")));
    Ok(Record {
        partition: number(message.partition().into())? as u32,
        offset: number(message.offset())?,
        timestamp_us: message.timestamp().to_millis().unwrap_or_default().saturating_mul(1000),
        key,
        value,
        headers,
    })
}

impl KafkaConsumer {
    /// Joins the group. What a former process left open under this name is settled first, so that the
    /// committed offsets that are read later are final.
    pub(super) fn join(log: Arc<Inner>, group: &str, member: &str, topics: &[&str]) -> Result<KafkaConsumer> {
        let options = &log.options;
        let member = format!("{}.{member}", options.instance);
        let group_id = options.prefixed(group);
        let name = format!("{group_id}/{member}");
        let deadline = Instant::now() + CLOSE_WAIT;
        while log.former.lock().get(&name) == Some(&false) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let outputs = match options.delivery {
            Delivery::ExactlyOnce => Outputs::Transactional(Transactions::new(options, &group_id, &member)?),
            Delivery::AtLeastOnce => {
                Outputs::Idempotent { producer: Producer::new(options, None)?, consumed: Consumed::default() }
            }
        };
        let succeeds = log.former.lock().contains_key(&name);
        let context = GroupContext::new(options);
        let consumer = BaseConsumer::from_config_and_context(&options.consumer(group, &member), context)
            .map_err(|error| LogError::Refused(format!("making a consumer: {error}")))?;
        let consumer = Arc::new(consumer);
        let topics: Vec<String> = topics.iter().map(|topic| options.prefixed(topic)).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| consumer.context().client.explain("subscribing", &error))?;
        let joined = succeeds.then(Instant::now);
        Ok(KafkaConsumer {
            log,
            group: group.to_owned(),
            name,
            joined,
            assigned: Vec::new(),
            consumer,
            outputs,
            turn: 0,
        })
    }

    /// Lets librdkafka tell what the group decided; fails if the group or the brokers turn this
    /// member away.
    fn serve(&self) -> Result<()> {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            match event {
                Ok(message) => {
                    // Every partition has a queue of its own before it is assigned.
                    let (topic, partition) = (message.topic(), message.partition());
                    return Err(LogError::Storage(format!("{topic}-{partition}: a record came outside of its queue")));
                }
                Err(error) => {
                    self.consumer.context().note(&error);
                    if let KafkaError::MessageConsumptionFatal(code) = error {
                        self.check()?;
                        return Err(LogError::Unavailable(format!("group {}: {code}", self.group)));
                    }
                }
            }
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        let context = self.consumer.context();
        if context.fenced() && self.joined.is_some_and(|joined| joined.elapsed() < SELF_FENCED) {
            // Most likely by itself: a request of the former member reached a slow broker late.
            return Err(LogError::Unavailable(format!("group {}: another member took this one's name", self.group)));
        }
        if context.fenced() {
            return Err(LogError::Replaced { group: self.group.clone(), instance: self.log.options.instance.clone() });
        }
        context.client.refused().map_or(Ok(()), |reason| Err(LogError::Refused(reason)))
    }

    fn list<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Result<TopicPartitionList> {
        self.log.list(partitions.into_iter().map(|partition| (partition, Offset::Invalid)))
    }

    fn explain(&self, doing: &str, error: &KafkaError) -> LogError {
        self.consumer.context().client.explain(&format!("group {}: {doing}", self.group), error)
    }

    /// Takes note of a decision of the group, if there is one.
    fn decided(&mut self) -> Result<Option<Polled>> {
        let Some(decision) = self.consumer.context().next_decision() else { return Ok(None) };
        Ok(Some(match decision {
            Decision::Assign(assigned) => {
                self.assign(&assigned)?;
                Polled::Rebalanced { assigned, revoked: Vec::new() }
            }
            Decision::Lose(revoked) => {
                self.unassign(&revoked)?;
                Polled::Rebalanced { assigned: Vec::new(), revoked }
            }
            Decision::Revoke(partitions) => {
                for assigned in self.assigned.iter_mut().filter(|known| partitions.contains(&known.partition)) {
                    assigned.releasing = true;
                }
                Polled::Revoking(partitions)
            }
        }))
    }

    fn assign(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut positions = Vec::with_capacity(partitions.len());
        let committed = self.log.committed(&self.group, partitions)?;
        for (partition, committed) in partitions.iter().zip(committed) {
            let position = match committed {
                Some((committed, _)) => committed,
                None => self.log.offsets(std::slice::from_ref(partition), Offset::Beginning)?[0],
            };
            positions.push((partition, Offset::Offset(position as i64)));
            // Before the partition is assigned: else its first records come by the common queue.
            let topic = self.log.options.prefixed(&partition.topic);
            let queue = self.consumer.split_partition_queue(&topic, partition.partition as i32);
            let mut queue = queue.ok_or_else(|| LogError::UnknownTopic(partition.topic.clone()))?;
            let context = Arc::clone(self.consumer.context());
            queue.set_nonempty_callback(move || context.announce());
            self.assigned.retain(|known| known.partition != *partition);
            self.assigned.push(Assigned {
                partition: partition.clone(),
                queue,
                position,
                head: None,
                at_end: false,
                end_reached: 0,
                releasing: false,
                failed: None,
                turn: 0,
            });
        }
        let list = self.log.list(positions)?;
        self.consumer.incremental_assign(&list).map_err(|error| self.explain("assigning", &error))
    }

    fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let list = self.list(partitions)?;
        if let Outputs::Idempotent { consumed, .. } = &mut self.outputs {
            consumed.offsets.retain(|known, _| !partitions.contains(known));
        }
        let done = self.consumer.incremental_unassign(&list);
        self.assigned.retain(|known| !partitions.contains(&known.partition));
        done.map_err(|error| self.explain("giving up partitions", &error))
    }

    /// Merges the topic's partitions by the timestamps of the records that have come.
    fn take(&mut self, topic: &str, max_records: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while records.len() < max_records {
            let mut heads: Vec<(i64, &mut Assigned)> = Vec::with_capacity(self.assigned.len());
            for assigned in &mut self.assigned {
                if assigned.partition.topic == topic && !assigned.releasing {
                    assigned.fill();
                    match assigned.failed.take() {
                        // What was taken is delivered; the next poll fails in its place.
                        failed @ Some(_) if !records.is_empty() => {
                            assigned.failed = failed;
                            return Ok(records);
                        }
                        Some(failed) => return Err(failed),
                        None => {}
                    }
                    if let Some(head) = &assigned.head {
                        heads.push((head.timestamp_us, assigned));
                    }
                }
            }
            let Some(first_us) = heads.iter().map(|(head_us, _)| *head_us).min() else { break };
            // Of those that are next within the slack the one that waits longest.
            let near = heads.iter().enumerate().filter(|(_, (head_us, _))| *head_us <= first_us + SLACK_US);
            let Some((chosen, _)) = near.min_by_key(|(_, (_, assigned))| assigned.turn) else { break };
            let (_, assigned) = heads.swap_remove(chosen);
            let until_us = heads.iter().map(|(head_us, _)| *head_us).min().map_or(i64::MAX, |next| next + SLACK_US);
            self.turn += 1;
            assigned.turn = self.turn;
            while let Some(taken) = assigned.take() {
                records.push(taken);
                assigned.fill();
                let next_us = assigned.head.as_ref().map(|head| head.timestamp_us);
                if records.len() >= max_records || next_us.is_none_or(|next_us| next_us > until_us) {
                    break;
                }
            }
        }
        Ok(records)
    }

    /// Refuses a commit of a partition that is not this member's.
    fn owned(&self, offsets: &[(TopicPartition, u64)]) -> Result<()> {
        for (partition, _) in offsets {
            if !self.assigned.iter().any(|assigned| assigned.partition == *partition) {
                return Err(LogError::Fenced(partition.clone()));
            }
        }
        Ok(())
    }

    /// Commits in one transaction. While the group rebalances a commit may be refused although the
    /// partitions stay here: it is tried again, until it is known who has them.
    fn transact(&mut self, commit: &Commit<'_>) -> Result<()> {
        let offsets = self
            .log
            .positions(commit.offsets.iter().map(|(partition, offset)| (partition, offset)), commit.metadata)?;
        let deadline = Instant::now() + REBALANCE_WAIT;
        loop {
            let metadata = self.consumer.group_metadata().ok_or_else(|| {
                LogError::Unavailable(format!("group {}: the group has no metadata of this member", self.group))
            })?;
            let Outputs::Transactional(transactions) = &mut self.outputs else { return Ok(()) };
            let log = &self.log;
            let failed = match transactions.transact(
                commit.outputs,
                &|topic| log.options.prefixed(topic),
                &offsets,
                &metadata,
            ) {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            match failed {
                Failed::Lost(error) => {
                    // A successor under the same name fences the producers first, then this member.
                    let known_by = Instant::now() + self.log.options.heartbeat() + Duration::from_millis(500);
                    while Instant::now() < known_by && !self.consumer.context().fenced() {
                        self.serve()?;
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    return Err(error);
                }
                Failed::Aborted(error) => {
                    tracing::debug!(group = self.group, %error, "a transaction was given up");
                    self.serve()?;
                    // Decisions stay where they are, for the next poll; but what they take away is
                    // not committed any more.
                    if let Some(partition) = self.consumer.context().takes_away(commit.offsets) {
                        return Err(LogError::Fenced(partition));
                    }
                    if Instant::now() >= deadline {
                        return Err(self.explain("committing", &error));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// Outputs are visible when this returns; the offsets are committed in the background, unless
    /// states follow that may not be ahead of them (I3).
    fn deliver(&mut self, commit: &Commit<'_>) -> Result<()> {
        let Outputs::Idempotent { producer, consumed } = &mut self.outputs else { return Ok(()) };
        producer.deliver(commit.outputs, &|topic| self.log.options.prefixed(topic))?;
        consumed.offsets.extend(commit.offsets.iter().cloned());
        commit.metadata.clone_into(&mut consumed.metadata);
        if commit.checkpoint.is_none() {
            return self.commit_consumed();
        }
        let offsets = std::mem::take(&mut consumed.offsets);
        let list = self.log.positions(&offsets, commit.metadata)?;
        let deadline = Instant::now() + REBALANCE_WAIT;
        while let Err(error) = self.consumer.commit(&list, CommitMode::Sync) {
            self.serve()?;
            if let Some(partition) = self.consumer.context().takes_away(commit.offsets) {
                return Err(LogError::Fenced(partition));
            }
            if Instant::now() >= deadline {
                return Err(self.explain("committing", &error));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Commits, in the background, the offsets of outputs that are delivered, where it is time to.
    fn commit_consumed(&mut self) -> Result<()> {
        let Outputs::Idempotent { consumed, .. } = &mut self.outputs else { return Ok(()) };
        let recent = consumed.committed.is_some_and(|at| at.elapsed() < OFFSETS_INTERVAL);
        if consumed.offsets.is_empty() || recent {
            return Ok(());
        }
        let list = self.log.positions(&consumed.offsets, &consumed.metadata)?;
        match self.consumer.commit(&list, CommitMode::Async) {
            Ok(()) => consumed.offsets.clear(),
            // The next time, then: nothing depends on them.
            Err(error) => tracing::debug!(group = self.group, %error, "committing offsets"),
        }
        consumed.committed = Some(Instant::now());
        Ok(())
    }
}

impl Consumer for KafkaConsumer {
    fn poll(&mut self, topic: &str, max_records: usize, timeout: Duration) -> Result<Polled> {
        let deadline = Instant::now() + timeout;
        loop {
            let seen = self.consumer.context().arrivals();
            self.serve()?;
            self.commit_consumed()?;
            if let Some(polled) = self.decided()? {
                return Ok(polled);
            }
            let records = self.take(topic, max_records)?;
            if !records.is_empty() || max_records == 0 {
                return Ok(Polled::Records(records));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Polled::Records(records));
            }
            // Decisions are noticed by polling alone.
            self.consumer.context().wait(seen, deadline.min(now + Duration::from_millis(20)));
        }
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<Committed> {
        self.owned(commit.offsets)?;
        match self.outputs {
            Outputs::Transactional(_) => self.transact(commit)?,
            Outputs::Idempotent { .. } => self.deliver(commit)?,
        }
        Ok(if commit.checkpoint.is_some() { Committed::WithoutCheckpoint } else { Committed::WithCheckpoint })
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.unassign(partitions)
    }

    fn reached(&mut self, topic: &str, ends: &[u64]) -> Result<Vec<(u32, bool)>> {
        let mut reached = Vec::with_capacity(self.assigned.len());
        for assigned in self.assigned.iter_mut().filter(|assigned| assigned.partition.topic == topic) {
            let partition = assigned.partition.partition;
            let end = ends.get(partition as usize).copied().unwrap_or(0);
            assigned.fill();
            let next = assigned.head.as_ref().map_or(assigned.position, |head| head.offset);
            let mut at_end = next.max(assigned.end_reached) >= end;
            if !at_end && assigned.head.is_none() && assigned.at_end {
                // Only the markers of transactions may stand between.
                let between = self.log.read(&assigned.partition, assigned.position, 1)?;
                if between.is_empty() {
                    assigned.end_reached = end;
                    at_end = true;
                }
            }
            reached.push((partition, at_end));
        }
        Ok(reached)
    }

    fn keep_alive(&mut self) -> Result<()> {
        self.serve()
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        if let Outputs::Idempotent { consumed, .. } = &mut self.outputs {
            consumed.committed = None;
        }
        if let Err(error) = self.commit_consumed() {
            tracing::debug!(%error, "committing the last offsets");
        }
        self.consumer.context().leave();
        // A decision that was never taken note of would be waited for.
        while let Some(decision) = self.consumer.context().next_decision() {
            let (Decision::Assign(partitions) | Decision::Revoke(partitions) | Decision::Lose(partitions)) = &decision;
            let Ok(list) = self.list(partitions) else { continue };
            let done = match decision {
                Decision::Assign(_) => self.consumer.incremental_assign(&list),
                Decision::Revoke(_) | Decision::Lose(_) => self.consumer.incremental_unassign(&list),
            };
            if let Err(error) = done {
                tracing::debug!(%error, "leaving the group");
            }
        }
        let releasing: Vec<&TopicPartition> =
            self.assigned.iter().filter(|assigned| assigned.releasing).map(|assigned| &assigned.partition).collect();
        if !releasing.is_empty() {
            let _ = self.list(releasing).map(|list| self.consumer.incremental_unassign(&list));
        }
        // Partitions are given up before librdkafka closes the consumer: while it closes, a call to
        // give them up may never return.
        if self.log.options.leave_on_stop {
            self.consumer.unsubscribe();
        } else {
            // Unlike this, to unsubscribe tells the group, even of a member that is to come back. What is left has been taken
            // out above where it was being released.
            let held = self.assigned.iter().filter(|assigned| !assigned.releasing).map(|assigned| &assigned.partition);
            let given_up = self.list(held).map(|list| self.consumer.incremental_unassign(&list));
            if let Ok(Err(error)) = given_up {
                tracing::debug!(%error, "giving partitions up");
            }
        }
        let deadline = Instant::now() + LEAVE_WAIT;
        while self.consumer.assignment().is_ok_and(|list| list.count() > 0) && Instant::now() < deadline {
            let _ = self.consumer.poll(Duration::from_millis(5));
        }
        self.assigned.clear();
        close(&self.log, self.name.clone(), Arc::clone(&self.consumer));
    }
}
