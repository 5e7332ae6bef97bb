//! What the log keeps in the database: batches of records, topics, and committed offsets.

use std::path::Path;

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{CompressionPolicy, FilterPolicy};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch, PersistMode,
};
use schemas::{CodecError, Reader, write_unsigned};
use std::sync::Arc;
use std::time::Duration;

use super::Durability;
use super::batch::BatchReader;
use super::topic::{Bounds, TopicState};
use crate::log::{LogError, Result, TopicSpec};

/// Sizes of the memtables. The engine lets up to four wait for their flush before it holds
/// writers up, so the worst case in memory is five times as much.
const RECORDS_MEMTABLE_BYTES: u64 = 24 << 20;
const META_MEMTABLE_BYTES: u64 = 2 << 20;
/// Journals on disk beyond which keyspaces are flushed only to be able to drop the oldest one.
const JOURNAL_BYTES: u64 = 128 << 20;

/// Of record batches, and of topics and committed offsets.
pub(super) const KEYSPACES: [&str; 2] = ["records", "log"];

const TOPIC: u8 = b't';
const OFFSET: u8 = b'o';

#[derive(Clone)]
pub(super) struct Storage {
    pub(super) database: Database,
    records: Keyspace,
    meta: Keyspace,
    durability: Durability,
}

/// Opens the database, or creates it, without its keyspaces.
pub(super) fn open(path: &Path, cache_bytes: u64) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(cache_bytes)
        .max_journaling_size(JOURNAL_BYTES)
        // The journal lives for minutes, and compressing it would be the writers' work.
        .journal_compression(CompressionType::None)
        // With several, the engine's first worker spins while another one compacts.
        .worker_threads(1)
        .open()
}

impl Storage {
    /// The log's part of the database; what it lacks is created.
    pub(super) fn new(database: Database, durability: Durability) -> fjall::Result<Storage> {
        let [records, meta] = KEYSPACES;
        // Batches are written to a value file at the flush and stay there; what is compacted is only
        // the index of them, which is small, so it may be often. A value file goes once retention
        // has taken all of it, and is rewritten without the trimmed ones once they are half of it.
        let records = database.keyspace(records, || {
            let values = KvSeparationOptions::default().compression(CompressionType::Lz4);
            KeyspaceCreateOptions::default()
                .max_memtable_size(RECORDS_MEMTABLE_BYTES)
                .with_kv_separation(Some(values.staleness_threshold(0.5).age_cutoff(1.0)))
                .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(2)))
                .expect_point_read_hits(true)
        })?;
        let meta = database.keyspace(meta, || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(META_MEMTABLE_BYTES)
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(META_MEMTABLE_BYTES)))
                .data_block_compression_policy(CompressionPolicy::disabled())
                .filter_policy(FilterPolicy::disabled())
        })?;
        Ok(Storage { database, records, meta, durability })
    }

    /// A batch of changes that are written together or not at all.
    pub(super) fn batch(&self) -> OwnedWriteBatch {
        let mode = match self.durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Power => PersistMode::SyncData,
        };
        self.database.batch().durability(Some(mode))
    }

    pub(super) fn put_records(
        &self,
        batch: &mut OwnedWriteBatch,
        topic: u32,
        partition: u32,
        base: u64,
        records: Bytes,
    ) {
        batch.insert(&self.records, record_key(topic, partition, base), records);
    }

    pub(super) fn put_topic(&self, batch: &mut OwnedWriteBatch, topic: &TopicState) {
        batch.insert(&self.meta, topic_key(&topic.spec.name), encode_topic(topic.id, &topic.spec));
    }

    pub(super) fn put_offset(
        &self,
        batch: &mut OwnedWriteBatch,
        group: &str,
        topic: u32,
        partition: u32,
        (offset, metadata): (u64, &str),
    ) {
        let value = [&offset.to_be_bytes()[..], metadata.as_bytes()].concat();
        batch.insert(&self.meta, offset_key(group, topic, partition), value);
    }

    /// A committed offset, and the metadata behind it.
    pub(super) fn offset(&self, group: &str, topic: u32, partition: u32) -> Result<Option<(u64, String)>> {
        let Some(value) = self.meta.get(offset_key(group, topic, partition)).map_err(storage)? else { return Ok(None) };
        let decoded = value.split_first_chunk().and_then(|(offset, metadata)| {
            let metadata = std::str::from_utf8(metadata).ok()?;
            Some((u64::from_be_bytes(*offset), metadata.to_owned()))
        });
        decoded.map(Some).ok_or_else(|| LogError::Storage("a committed offset is damaged".to_owned()))
    }

    /// All topics that were ever created, with what their partitions hold.
    pub(super) fn topics(&self) -> Result<Vec<TopicState>> {
        let mut topics = Vec::new();
        for guard in self.meta.prefix([TOPIC]) {
            let (key, value) = guard.into_inner().map_err(storage)?;
            let damaged = |reason: &str| LogError::Storage(format!("the entry of a topic is damaged: {reason}"));
            let name = std::str::from_utf8(&key[1..]).map_err(|error| damaged(&error.to_string()))?;
            let (id, spec) = decode_topic(name, &value).map_err(|error| damaged(&error.to_string()))?;
            let bounds =
                (0..spec.partitions).map(|partition| self.bounds(name, id, partition)).collect::<Result<Vec<_>>>()?;
            topics.push(TopicState::new(id, spec, bounds.into_iter()));
        }
        Ok(topics)
    }

    fn bounds(&self, topic: &str, id: u32, partition: u32) -> Result<Bounds> {
        let mut all = self.records.range(record_key(id, partition, 0)..=record_key(id, partition, u64::MAX));
        let Some(first) = all.next() else { return Ok(Bounds::EMPTY) };
        let start = base_offset(&first.key().map_err(storage)?)?;
        let last = self.last_batch(topic, id, partition, start, u64::MAX)?;
        let last = last.ok_or_else(|| damaged(topic, partition, start, "it is gone"))?;
        Ok(Bounds { start, end: last.end(), latest_us: last.latest_us() })
    }

    /// The batch that holds the record at `offset`, positioned there.
    pub(super) fn read(&self, topic: &TopicState, partition: u32, offset: u64) -> Result<Option<BatchReader>> {
        let bounds = *topic.bounds(partition)?;
        let trimmed = |first| Err(LogError::Trimmed { partition: topic.partition(partition), offset, first });
        if offset < bounds.start {
            return trimmed(bounds.start);
        }
        if offset >= bounds.end {
            return Ok(None);
        }
        let name = &topic.spec.name;
        // Who reads on is at the first record of a batch, and knows its key.
        let next = self.records.get(record_key(topic.id, partition, offset)).map_err(storage)?;
        let found = match next {
            Some(bytes) => Some(open_batch(name, partition, offset, bytes.into())?),
            None => self.last_batch(name, topic.id, partition, bounds.start, offset)?,
        };
        match found {
            Some(mut batch) if batch.end() > offset => {
                batch.skip_to(offset).map_err(|error| damaged(name, partition, offset, error))?;
                Ok(Some(batch))
            }
            _ => {
                let start = topic.bounds(partition)?.start;
                if offset < start { trimmed(start) } else { Err(damaged(name, partition, offset, "it is gone")) }
            }
        }
    }

    /// The last batch that begins at `from` to `to`.
    fn last_batch(&self, topic: &str, id: u32, partition: u32, from: u64, to: u64) -> Result<Option<BatchReader>> {
        let mut range = self.records.range(record_key(id, partition, from)..=record_key(id, partition, to));
        let Some(last) = range.next_back() else { return Ok(None) };
        let (key, bytes) = last.into_inner().map_err(storage)?;
        open_batch(topic, partition, base_offset(&key)?, bytes.into()).map(Some)
    }

    /// Deletes the batches that begin at `from` up to, not at, `to`; the oldest first, so that
    /// those left are always the newest ones.
    pub(super) fn delete_records(&self, topic: u32, partition: u32, from: u64, to: u64) -> Result<()> {
        const KEYS_IN_A_BATCH: usize = 4096;
        let mut range = self.records.range(record_key(topic, partition, from)..record_key(topic, partition, to));
        loop {
            let mut batch = self.batch();
            for guard in range.by_ref().take(KEYS_IN_A_BATCH) {
                batch.remove(&self.records, guard.key().map_err(storage)?);
            }
            if batch.is_empty() {
                return Ok(());
            }
            batch.commit().map_err(storage)?;
        }
    }
}

pub(super) fn storage(error: fjall::Error) -> LogError {
    LogError::Storage(error.to_string())
}

pub(super) fn damaged(topic: &str, partition: u32, offset: u64, reason: impl std::fmt::Display) -> LogError {
    LogError::Storage(format!("the batch of {topic}-{partition} at offset {offset} is damaged: {reason}"))
}

fn open_batch(topic: &str, partition: u32, base: u64, bytes: Bytes) -> Result<BatchReader> {
    BatchReader::new(bytes, base).map_err(|error| damaged(topic, partition, base, error))
}

fn record_key(topic: u32, partition: u32, base: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&topic.to_be_bytes());
    key[4..8].copy_from_slice(&partition.to_be_bytes());
    key[8..].copy_from_slice(&base.to_be_bytes());
    key
}

fn base_offset(key: &[u8]) -> Result<u64> {
    let base = key.get(8..).and_then(|base| base.try_into().ok());
    base.map(u64::from_be_bytes).ok_or_else(|| LogError::Storage("a key of a batch is damaged".to_owned()))
}

fn topic_key(name: &str) -> Vec<u8> {
    [&[TOPIC], name.as_bytes()].concat()
}

fn offset_key(group: &str, topic: u32, partition: u32) -> Vec<u8> {
    [&[OFFSET], &topic.to_be_bytes()[..], &partition.to_be_bytes()[..], group.as_bytes()].concat()
}

/// Id, partitions, and the retention in microseconds plus one, 0 where there is none.
fn encode_topic(id: u32, spec: &TopicSpec) -> Vec<u8> {
    let retention = spec.retention.map_or(0, |retention| micros(retention).saturating_add(1));
    let mut out = Vec::new();
    for value in [u64::from(id), u64::from(spec.partitions), retention] {
        write_unsigned(&mut out, value);
    }
    out
}

fn decode_topic(name: &str, value: &[u8]) -> std::result::Result<(u32, TopicSpec), CodecError> {
    let mut reader = Reader::new(value);
    let mut small = || u32::try_from(reader.unsigned()?).map_err(|_| CodecError::Invalid("a number beyond 32 bits"));
    let (id, partitions) = (small()?, small()?);
    let retention = reader.unsigned()?.checked_sub(1).map(Duration::from_micros);
    reader.finish()?;
    Ok((id, TopicSpec { name: name.to_owned(), partitions, retention }))
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
