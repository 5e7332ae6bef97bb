//! The online store: the checkpoint of entity state, read by its owner after a restart and by
//! everybody else through a cache.

mod codec;
pub mod cql;
pub mod embedded;
pub mod redis;
pub mod remote;
mod tls;

use std::fmt;

use async_trait::async_trait;
use schemas::{EventTime, Id};

pub use cql::{CqlConsistency, CqlOptions, CqlReplication, CqlStore, Migration};
pub use embedded::EmbeddedStore;
pub use redis::{RedisMode, RedisOptions, RedisStore};
pub use remote::{RemoteOptions, RemoteStore, Retry};

/// An entity's state as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// The state includes all events of its partition below this offset.
    pub stamp: u64,
    pub bytes: Vec<u8>,
}

/// A state to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    pub key: Id,
    pub state: StoredState,
}

/// How far the stored states of a partition have come: every event below `offset` is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    pub offset: u64,
    /// What the owner goes on from besides the states (event-time progress), as it encodes it.
    pub progress: Vec<u8>,
    /// Event time up to which the partition's view is complete.
    pub event_time: EventTime,
}

/// States of one view and partition, and the watermark that holds once they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionCheckpoint {
    pub view: Id,
    pub partition: u32,
    /// Offset of the watermark that this one follows; `None` if the owner found none.
    pub follows: Option<u64>,
    pub states: Vec<StateWrite>,
    pub watermark: Watermark,
}

/// What is written to the store after a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub partitions: Vec<PartitionCheckpoint>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the online store's storage failed: {0}")]
    Storage(String),
    #[error("a value of the online store under {view}/{key} is damaged: {reason}")]
    Damaged { view: String, key: String, reason: String },
    /// It passes by itself: a connection that failed, a timeout, a failover.
    #[error("the online store can't be reached: {0}")]
    Unavailable(String),
    /// It doesn't pass by itself: a wrong password, an untrusted certificate, a missing table.
    #[error("the online store refuses: {0}")]
    Refused(String),
    /// Writes that the store had acknowledged are gone: it was flushed, restored, or failed over to
    /// a replica that lacked them. Nothing may be built on its states.
    #[error(
        "the online store lost writes of {view}, partition {partition}: its watermark was at {expected}, now it is \
         {}", .found.map_or("gone".to_owned(), |found| format!("at {found}"))
    )]
    WentBack { view: String, partition: u32, expected: u64, found: Option<u64> },
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// What a read gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// In the order of the keys; `None` where there is none.
    pub states: Vec<Option<StoredState>>,
    /// In the order of the partitions, as they stood when the states were read, or later: a
    /// reader that knows of a higher one has met a store that lost writes.
    pub watermarks: Vec<Option<Watermark>>,
}

/// Where entity states are kept across restarts.
#[async_trait]
pub trait OnlineStore: Send + Sync + fmt::Debug {
    /// The states of `keys` in `view`, and the watermarks of `partitions`, in one round trip where
    /// the store can.
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> Result<Read>;

    /// Writes the states, then the watermarks. A state whose stamp is below the stored one is
    /// not written, nor is a watermark that would go back: it comes from a former owner. A stored
    /// watermark below the one that a checkpoint follows is [`StoreError::WentBack`], and no
    /// watermark of that partition is written; of the states some may be.
    async fn write(&self, checkpoint: &Checkpoint) -> Result<()>;

    /// The watermark of a partition of a view; `None` if nothing was ever written for it.
    async fn watermark(&self, view: &str, partition: u32) -> Result<Option<Watermark>> {
        Ok(self.read(view, &[], &[partition]).await?.watermarks.pop().flatten())
    }
}

impl PartitionCheckpoint {
    /// Whether the stored watermark allows this checkpoint's to be written: `Ok(false)` if it
    /// would go back.
    pub fn goes_on_from(&self, stored: Option<u64>) -> Result<bool> {
        match self.follows {
            Some(expected) if stored.is_none_or(|stored| stored < expected) => Err(StoreError::WentBack {
                view: self.view.to_string(),
                partition: self.partition,
                expected,
                found: stored,
            }),
            _ => Ok(stored.is_none_or(|stored| stored <= self.watermark.offset)),
        }
    }
}
