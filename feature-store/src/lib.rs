//! Feature definitions, windows and the state they are computed from, and the online stores.

pub mod store;

pub use store::{Checkpoint, EmbeddedStore, OnlineStore, PartitionCheckpoint, StateWrite, StoreError, StoredState, Watermark};
