//! The online store in a data directory, beside the embedded log or on its own.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};
use schemas::{CodecError, EventTime, Reader, write_signed, write_unsigned};

use super::{Checkpoint, OnlineStore, PartitionCheckpoint, Read, Result, StoreError, StoredState, Watermark};

const VERSION: u8 = 1;
/// The engine lets up to four memtables wait for their flush before it holds writers up.
const STATES_MEMTABLE_BYTES: u64 = 16 << 20;
const WATERMARKS_MEMTABLE_BYTES: u64 = 1 << 20;

/// An [`OnlineStore`] in two keyspaces of a fjall database.
///
/// A call reads and writes files, mostly cached ones, and does so on the caller's thread.
pub struct EmbeddedStore {
    database: Database,
    states: Keyspace,
    watermarks: Keyspace,
    /// Held from the comparison of a stamp to the write it decides on.
    writing: Mutex<()>,
}

/// Keeps other writes of states out until the batch that was staged is committed; drop it then.
#[derive(Debug)]
#[must_use = "the staged batch must be committed before this is dropped"]
pub struct Staged<'a> {
    _writing: MutexGuard<'a, ()>,
}

impl EmbeddedStore {
    /// The keyspaces that the store takes for itself.
    pub const KEYSPACES: [&str; 2] = ["states", "watermarks"];

    /// The store in `database`; keyspaces that it lacks are created.
    pub fn new(database: Database) -> Result<EmbeddedStore> {
        let states =
            database.keyspace("states", || KeyspaceCreateOptions::default().max_memtable_size(STATES_MEMTABLE_BYTES));
        let watermarks = database
            .keyspace("watermarks", || KeyspaceCreateOptions::default().max_memtable_size(WATERMARKS_MEMTABLE_BYTES));
        let (states, watermarks) = (states.map_err(storage)?, watermarks.map_err(storage)?);
        Ok(EmbeddedStore { database, states, watermarks, writing: Mutex::default() })
    }

    /// Adds the checkpoint's states and watermarks to `batch`, which the caller commits.
    /// Nothing is compared: the caller makes sure that it owns the partitions.
    pub fn stage(&self, batch: &mut OwnedWriteBatch, checkpoint: &Checkpoint) -> Staged<'_> {
        let staged = Staged { _writing: self.lock() };
        for PartitionCheckpoint { view, partition, states, watermark, .. } in &checkpoint.partitions {
            let mut keys = StateKey::new(view);
            for write in states {
                batch.insert(&self.states, keys.of(&write.key), encode_state(&write.state));
            }
            batch.insert(&self.watermarks, watermark_key(view, *partition), encode_watermark(watermark));
        }
        staged
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // It guards no value: there is nothing that a panicking thread could have left half done.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, view: &str, key: &str, stored_key: &[u8]) -> Result<Option<StoredState>> {
        let Some(value) = self.states.get(stored_key).map_err(storage)? else { return Ok(None) };
        decode_state(&value).map(Some).map_err(|error| damaged(view, key, error))
    }

    fn stored_watermark(&self, view: &str, partition: u32) -> Result<Option<Watermark>> {
        let value = self.watermarks.get(watermark_key(view, partition)).map_err(storage)?;
        let Some(value) = value else { return Ok(None) };
        decode_watermark(&value).map(Some).map_err(|error| damaged(view, &format!("watermark {partition}"), error))
    }
}

#[async_trait]
impl OnlineStore for EmbeddedStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> Result<Read> {
        let mut stored_keys = StateKey::new(view);
        let states = keys.iter().map(|key| self.state(view, key, stored_keys.of(key)));
        let states = states.collect::<Result<_>>()?;
        let watermarks = partitions.iter().map(|&partition| self.stored_watermark(view, partition));
        Ok(Read { states, watermarks: watermarks.collect::<Result<_>>()? })
    }

    /// All of the checkpoint, or nothing of it. Not synced to disk: what a power failure takes
    /// is read from the log again.
    async fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        let _writing = self.lock();
        let mut batch = self.database.batch();
        for written in &checkpoint.partitions {
            let PartitionCheckpoint { view, partition, states, watermark, .. } = written;
            let mut keys = StateKey::new(view);
            for write in states {
                let stored_key = keys.of(&write.key);
                let stored = self.states.get(stored_key).map_err(storage)?;
                let stored = stored.map(|value| decode_stamp(&mut Reader::new(&value))).transpose();
                if stored.map_err(|error| damaged(view, &write.key, error))? <= Some(write.state.stamp) {
                    batch.insert(&self.states, stored_key, encode_state(&write.state));
                }
            }
            let stored = self.stored_watermark(view, *partition)?;
            if written.goes_on_from(stored.map(|stored| stored.offset))? {
                batch.insert(&self.watermarks, watermark_key(view, *partition), encode_watermark(watermark));
            }
        }
        batch.commit().map_err(storage)
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}

fn storage(error: fjall::Error) -> StoreError {
    StoreError::Storage(error.to_string())
}

fn damaged(view: &str, key: &str, reason: CodecError) -> StoreError {
    StoreError::Damaged { view: view.to_owned(), key: key.to_owned(), reason: reason.to_string() }
}

/// Keys of a view's states: length of the view's name, its name, the entity's id. The length keeps
/// views apart whose names begin alike.
struct StateKey {
    bytes: Vec<u8>,
    view_length: usize,
}

impl StateKey {
    fn new(view: &str) -> StateKey {
        let bytes = view_prefix(view);
        StateKey { view_length: bytes.len(), bytes }
    }

    fn of(&mut self, key: &str) -> &[u8] {
        self.bytes.truncate(self.view_length);
        self.bytes.extend_from_slice(key.as_bytes());
        &self.bytes
    }
}

fn view_prefix(view: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(view.len() + 32);
    write_unsigned(&mut out, view.len() as u64);
    out.extend_from_slice(view.as_bytes());
    out
}

fn watermark_key(view: &str, partition: u32) -> Vec<u8> {
    let mut key = view_prefix(view);
    key.extend_from_slice(&partition.to_be_bytes());
    key
}

/// Version, stamp, and the state's own bytes.
fn encode_state(state: &StoredState) -> Vec<u8> {
    let mut out = Vec::with_capacity(11 + state.bytes.len());
    out.push(VERSION);
    write_unsigned(&mut out, state.stamp);
    out.extend_from_slice(&state.bytes);
    out
}

fn decode_state(value: &[u8]) -> std::result::Result<StoredState, CodecError> {
    let mut reader = Reader::new(value);
    let stamp = decode_stamp(&mut reader)?;
    let bytes = reader.bytes(reader.remaining())?.to_vec();
    Ok(StoredState { stamp, bytes })
}

fn decode_stamp(reader: &mut Reader<'_>) -> std::result::Result<u64, CodecError> {
    check_version(reader)?;
    reader.unsigned()
}

/// Version, offset, event time in milliseconds, and the owner's own progress.
fn encode_watermark(watermark: &Watermark) -> Vec<u8> {
    let mut out = Vec::with_capacity(21 + watermark.progress.len());
    out.push(VERSION);
    write_unsigned(&mut out, watermark.offset);
    write_signed(&mut out, watermark.event_time.as_millis());
    out.extend_from_slice(&watermark.progress);
    out
}

fn decode_watermark(value: &[u8]) -> std::result::Result<Watermark, CodecError> {
    let mut reader = Reader::new(value);
    check_version(&mut reader)?;
    let offset = reader.unsigned()?;
    let event_time = EventTime::from_millis(reader.signed()?);
    let progress = reader.bytes(reader.remaining())?.to_vec();
    Ok(Watermark { offset, progress, event_time })
}

fn check_version(reader: &mut Reader<'_>) -> std::result::Result<(), CodecError> {
    match reader.byte()? {
        VERSION => Ok(()),
        found => Err(CodecError::UnknownVersion { found, known: VERSION }),
    }
}
