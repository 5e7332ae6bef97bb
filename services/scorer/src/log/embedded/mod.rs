//! The log in a data directory, for one process: nothing to install, and one atomic write for
//! outputs, offsets and states.
//!
//! The records that a write brings to one partition are stored together as one value
//! ([`batch`]). Reading a partition front to back is then one lookup for each batch, and a record is a
//! slice of it.

mod batch;
mod consumer;
mod directory;
mod group;
mod storage;
mod topic;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use feature_store::EmbeddedStore;
use fjall::{OwnedWriteBatch, PersistMode};
use hashbrown::HashMap;
use schemas::partition_for_key;

use self::batch::{BatchWriter, size_bound};
use self::consumer::EmbeddedConsumer;
use self::directory::DataDirectory;
use self::group::Group;
use self::storage::{Storage, damaged, micros, storage};
use self::topic::{Bounds, TopicState, lock};
use super::{Consumer, Log, LogError, Outbox, Record, Result, Topic, TopicPartition, TopicSpec};

/// Records beyond this size begin a new batch, so that no reader holds on to more than this
/// for a record.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however sudden (`kill -9`); not that of the machine.
    #[default]
    Process,
    /// A power failure too: every commit waits for `fdatasync`.
    Power,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedOptions {
    pub durability: Durability,
    /// Size of the cache for blocks read from disk, of records and states together.
    pub cache_bytes: u64,
    /// Whether a commit takes its checkpoint along. Without, log and store are apart as Kafka
    /// and Redis are; for simulations of that.
    pub atomic_checkpoints: bool,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions { durability: Durability::default(), cache_bytes: 32 << 20, atomic_checkpoints: true }
    }
}

/// A [`Log`] in a data directory, which also holds the online store.
pub struct EmbeddedLog {
    inner: Arc<Inner>,
}

/// What the log and its consumers share. Locks are taken in the order in which they stand
/// here, after that of a group.
struct Inner {
    options: EmbeddedOptions,
    /// Held while records are written or topics created: offsets are given out under it.
    writing: Mutex<()>,
    trimming: Mutex<()>,
    topics: RwLock<BTreeMap<String, Arc<TopicState>>>,
    groups: Mutex<HashMap<String, Arc<Group>>>,
    store: Arc<EmbeddedStore>,
    storage: Storage,
    /// The last one to go: its lock is what keeps others off the files.
    directory: DataDirectory,
}

impl EmbeddedLog {
    /// Opens the data directory, or creates it. One that is in use, damaged, not fraudline's, or of a newer
    /// format is refused.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Arc<EmbeddedLog>> {
        let mut directory = DataDirectory::open(dir)?;
        let path = directory.path().display().to_string();
        let unusable = |reason: String| LogError::DataDirectory { path: path.clone(), reason };
        let opened = storage::open(&directory.database(), options.cache_bytes);
        let database = opened.map_err(|error| match error {
            fjall::Error::Locked => LogError::InUse(path.clone()),
            error => unusable(error.to_string()),
        })?;
        // The engine takes a keyspace whose files were damaged in some ways for one never finished.
        for keyspace in storage::KEYSPACES.iter().chain(&EmbeddedStore::KEYSPACES) {
            if !directory.is_new() && !database.keyspace_exists(keyspace) {
                return Err(unusable(format!("the files of its keyspace `{keyspace}` are gone or damaged")));
            }
        }
        let store = EmbeddedStore::new(database.clone()).map_err(|error| unusable(error.to_string()))?;
        let storage = Storage::new(database, options.durability).map_err(|error| unusable(error.to_string()))?;
        let topics = storage.topics().map_err(|error| unusable(error.to_string()))?;
        directory.finish().map_err(|error| unusable(error.to_string()))?;
        let topics = topics.into_iter().map(|topic| (topic.spec.name.clone(), Arc::new(topic))).collect();
        let inner = Inner {
            options,
            writing: Mutex::default(),
            trimming: Mutex::default(),
            topics: RwLock::new(topics),
            groups: Mutex::default(),
            store: Arc::new(store),
            storage,
            directory,
        };
        Ok(Arc::new(EmbeddedLog { inner: Arc::new(inner) }))
    }

    /// The online store in the same directory.
    pub fn store(&self) -> Arc<EmbeddedStore> {
        self.inner.store.clone()
    }

    /// Deletes, from the front of each partition, the batches whose records are all older than
    /// the topic's retention at `now_us`. The last batch of a partition always stays: it keeps
    /// the partition's end.
    pub fn trim(&self, now_us: i64) -> Result<()> {
        let _trimming = lock(&self.inner.trimming);
        for topic in self.inner.all_topics() {
            let Some(retention) = topic.spec.retention else { continue };
            let cutoff_us = now_us.saturating_sub(i64::try_from(micros(retention)).unwrap_or(i64::MAX));
            for partition in 0..topic.spec.partitions {
                let Bounds { start, end, .. } = *topic.bounds(partition)?;
                let mut keep_from = self.inner.first_batch_reaching(&topic, partition, cutoff_us)?;
                if keep_from == end && end > start {
                    let last = self.inner.storage.read(&topic, partition, end - 1)?;
                    keep_from = last.map_or(start, |last| last.base());
                }
                if keep_from > start {
                    // Readers are told first, so none of them finds a hole.
                    topic.bounds(partition)?.start = keep_from;
                    self.inner.storage.delete_records(topic.id, partition, start, keep_from)?;
                }
            }
        }
        Ok(())
    }

    /// Makes all that was written so far survive a power failure.
    pub fn persist(&self) -> Result<()> {
        self.inner.storage.database.persist(PersistMode::SyncAll).map_err(storage)
    }

    /// What the data directory takes on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.inner.directory.bytes_on_disk()
    }
}

impl fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedLog").field("directory", &self.inner.directory).finish_non_exhaustive()
    }
}

/// Records of one write to one partition.
struct Encoded {
    topic: Arc<TopicState>,
    partition: u32,
    batch: BatchWriter,
}

impl Inner {
    fn topic_state(&self, name: &str) -> Result<Arc<TopicState>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(name).cloned().ok_or_else(|| LogError::UnknownTopic(name.to_owned()))
    }

    fn all_topics(&self) -> Vec<Arc<TopicState>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Sorts the records into batches, in their order within each partition. No lock is held: this
    /// is most of the work of a write.
    fn encode(&self, records: &Outbox) -> Result<Vec<Encoded>> {
        /// A topic, and for each of its partitions the batch that is being filled.
        struct Target<'a> {
            name: &'a str,
            topic: Arc<TopicState>,
            open: Vec<Option<usize>>,
        }
        /// A batch before it has a buffer: its size comes first, the buffer then never grows.
        struct Planned {
            target: usize,
            partition: u32,
            bytes: usize,
        }
        let mut targets: Vec<Target<'_>> = Vec::new();
        let mut planned: Vec<Planned> = Vec::new();
        let mut placed = Vec::with_capacity(records.len());
        for record in records.iter() {
            let target = match targets.iter().position(|target| target.name == record.topic) {
                Some(target) => target,
                None => {
                    let topic = self.topic_state(record.topic)?;
                    let open = vec![None; topic.spec.partitions as usize];
                    targets.push(Target { name: record.topic, topic, open });
                    targets.len() - 1
                }
            };
            let Target { topic, open, .. } = &mut targets[target];
            let partition = record.partition.unwrap_or_else(|| partition_for_key(record.key, topic.spec.partitions));
            let Some(open) = open.get_mut(partition as usize) else {
                return Err(LogError::UnknownTopic(topic.partition(partition).to_string()));
            };
            let bytes = size_bound(&record);
            let index = match *open {
                Some(index) if planned[index].bytes + bytes <= BATCH_BYTES_MAX => index,
                _ => {
                    planned.push(Planned { target, partition, bytes: 0 });
                    *open.insert(planned.len() - 1)
                }
            };
            planned[index].bytes += bytes;
            placed.push(index);
        }
        let batches = planned.into_iter().map(|Planned { target, partition, bytes }| Encoded {
            topic: targets[target].topic.clone(),
            partition,
            batch: BatchWriter::new(bytes),
        });
        let mut batches: Vec<Encoded> = batches.collect();
        for (record, index) in records.iter().zip(placed) {
            batches[index].batch.push(&record);
        }
        // Batches of one partition stay in their order.
        batches.sort_by_key(|encoded| (encoded.topic.id, encoded.partition));
        Ok(batches)
    }

    /// Writes the records, and what `stage` adds, all or nothing, and then lets the readers see
    /// them. What `stage` returns is held until all is written.
    fn write<G>(&self, records: Vec<Encoded>, stage: impl FnOnce(&mut OwnedWriteBatch) -> G) -> Result<()> {
        let _writing = lock(&self.writing);
        let mut batch = self.storage.batch();
        let mut written: Vec<(Arc<TopicState>, u32, Bounds)> = Vec::with_capacity(records.len());
        for Encoded { topic, partition, batch: records } in records {
            let mut bounds = match written.last() {
                Some((last, last_partition, bounds)) if last.id == topic.id && *last_partition == partition => *bounds,
                _ => *topic.bounds(partition)?,
            };
            let (base, count) = (bounds.end, records.count());
            let (bytes, latest_us) = records.finish(bounds.latest_us);
            self.storage.put_records(&mut batch, topic.id, partition, base, bytes);
            bounds.end += count;
            bounds.latest_us = latest_us;
            written.push((topic, partition, bounds));
        }
        let held = stage(&mut batch);
        batch.commit().map_err(storage)?;
        drop(held);
        for (topic, partition, Bounds { end, latest_us, .. }) in &written {
            let mut bounds = topic.bounds(*partition)?;
            bounds.end = *end;
            bounds.latest_us = *latest_us;
        }
        written.dedup_by_key(|(topic, ..)| topic.id);
        for (topic, ..) in &written {
            topic.announce();
        }
        Ok(())
    }

    /// Where the first batch begins with which the partition's timestamps reach `timestamp_us`;
    /// the partition's end if they don't.
    fn first_batch_reaching(&self, topic: &TopicState, partition: u32, timestamp_us: i64) -> Result<u64> {
        let Bounds { start: mut low, end: mut high, latest_us } = *topic.bounds(partition)?;
        if latest_us < timestamp_us {
            return Ok(high);
        }
        // All batches before `low` lie below, the one at `high` doesn't; both begin a batch.
        while low < high {
            match self.storage.read(topic, partition, low + (high - low) / 2)? {
                Some(batch) if batch.latest_us() < timestamp_us => low = batch.end(),
                Some(batch) => high = batch.base(),
                None => return Ok(high),
            }
        }
        Ok(high)
    }

    fn offset_at(&self, topic: &TopicState, partition: u32, timestamp_us: i64) -> Result<u64> {
        let mut offset = self.first_batch_reaching(topic, partition, timestamp_us)?;
        // The record that made the timestamps reach it may have been trimmed: then it is a later one.
        while let Some(mut batch) = self.storage.read(topic, partition, offset)? {
            while let Some(head_us) = batch.head_us() {
                offset = batch.next_offset();
                if head_us >= timestamp_us {
                    return Ok(offset);
                }
                let damage = |error| damaged(&topic.spec.name, partition, offset, error);
                batch.skip_to(offset + 1).map_err(damage)?;
            }
            offset = batch.end();
        }
        Ok(offset)
    }
}

impl Log for EmbeddedLog {
    fn create_topic(&self, spec: &TopicSpec) -> Result<()> {
        if spec.partitions == 0 {
            return Err(LogError::NoPartitions(spec.name.clone()));
        }
        let _writing = lock(&self.inner.writing);
        let topics = self.inner.all_topics();
        if let Some(topic) = topics.iter().find(|topic| topic.spec.name == spec.name) {
            let (topic, existing, asked) = (spec.name.clone(), topic.spec.partitions, spec.partitions);
            return if existing == asked { Ok(()) } else { Err(LogError::PartitionsDiffer { topic, existing, asked }) };
        }
        let id = topics.iter().map(|topic| topic.id + 1).max().unwrap_or(0);
        let topic = TopicState::new(id, spec.clone(), (0..spec.partitions).map(|_| Bounds::EMPTY));
        let mut batch = self.inner.storage.batch();
        self.inner.storage.put_topic(&mut batch, &topic);
        batch.commit().map_err(storage)?;
        let mut topics = self.inner.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.insert(spec.name.clone(), Arc::new(topic));
        Ok(())
    }

    fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.inner.all_topics().iter().map(|topic| topic.snapshot()).collect())
    }

    fn topic(&self, name: &str) -> Result<Topic> {
        Ok(self.inner.topic_state(name)?.snapshot())
    }

    fn read(&self, partition: &TopicPartition, from: u64, max_records: usize) -> Result<Vec<Record>> {
        let topic = self.inner.topic_state(&partition.topic)?;
        let mut records = Vec::new();
        let mut offset = from;
        while records.len() < max_records {
            let batch = match self.inner.storage.read(&topic, partition.partition, offset) {
                // Retention overtook the reader: what it has is whole, the next read will tell.
                Err(LogError::Trimmed { .. }) if !records.is_empty() => break,
                batch => batch?,
            };
            let Some(mut batch) = batch else { break };
            while records.len() < max_records {
                let damage = |error| damaged(&topic.spec.name, partition.partition, offset, error);
                let Some(record) = batch.take(partition.partition).map_err(damage)? else { break };
                records.push(record);
            }
            offset = batch.next_offset();
        }
        Ok(records)
    }

    fn offset_at(&self, partition: &TopicPartition, timestamp_us: i64) -> Result<u64> {
        let topic = self.inner.topic_state(&partition.topic)?;
        loop {
            match self.inner.offset_at(&topic, partition.partition, timestamp_us) {
                // Retention took records during the search: it begins again with what is left.
                Err(LogError::Trimmed { .. }) => {}
                offset => return offset,
            }
        }
    }

    fn append(&self, records: &Outbox) -> Result<()> {
        let encoded = self.inner.encode(records)?;
        self.inner.write(encoded, |_| ())
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<u64>> {
        let topic = self.inner.topic_state(&partition.topic)?;
        Ok(self.inner.storage.offset(group, topic.id, partition.partition)?.map(|(offset, _)| offset))
    }

    fn committed_metadata(&self, group: &str, partition: &TopicPartition) -> Result<String> {
        let topic = self.inner.topic_state(&partition.topic)?;
        let committed = self.inner.storage.offset(group, topic.id, partition.partition)?;
        Ok(committed.map(|(_, metadata)| metadata).unwrap_or_default())
    }

    fn join(&self, group: &str, _member: &str, topics: &[&str]) -> Result<Box<dyn Consumer>> {
        let mut topics = topics.to_vec();
        topics.sort_unstable();
        topics.dedup();
        let topics = topics.into_iter().map(|topic| self.inner.topic_state(topic)).collect::<Result<Vec<_>>>()?;
        let group = lock(&self.inner.groups).entry_ref(group).or_insert_with(|| Arc::new(Group::new(group))).clone();
        Ok(Box::new(EmbeddedConsumer::new(self.inner.clone(), group, topics)))
    }
}
