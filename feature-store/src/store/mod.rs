//! The online store: the checkpoint of entity state, read by its owner after a restart and by
//! everybody else through a cache.

pub mod embedded;

use std::fmt;

use async_trait::async_trait;
use schemas::{EventTime, Id};

pub use embedded::EmbeddedStore;

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
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// Where entity states are kept across restarts.
#[async_trait]
pub trait OnlineStore: Send + Sync + fmt::Debug {
    /// The states of `keys` in `view`, in their order, in one round trip; `None` where there is none.
    async fn read(&self, view: &str, keys: &[&str]) -> Result<Vec<Option<StoredState>>>;

    /// Writes the states, then the watermarks. A state whose stamp is below the stored one is
    /// not written, nor is a watermark that would go back: it comes from a former owner.
    async fn write(&self, checkpoint: &Checkpoint) -> Result<()>;

    /// The watermark of a partition of a view; `None` if nothing was ever written for it.
    async fn watermark(&self, view: &str, partition: u32) -> Result<Option<Watermark>>;
}
