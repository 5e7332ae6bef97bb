//! Feature definitions, windows and the state they are computed from, and the online stores.

mod aggregate;
mod backfill;
mod carry;
mod compile;
mod definitions;
mod describe;
mod entities;
mod expression;
mod features;
pub mod metrics;
mod reason;
mod reference;
pub mod store;
mod view;
mod view_reader;
mod window;

pub use backfill::{Backfill, Rows};
pub use carry::Carry;
pub use definitions::Entity;
pub use entities::EntityTable;
pub use features::{DefinitionError, FeatureSet, UnknownFeature, ViewFeature};
pub use reason::ReasonGroup;
pub use reference::{reference, schema};
pub use store::{
    Checkpoint, CqlConsistency, CqlOptions, CqlReplication, CqlStore, EmbeddedStore, Migration, OnlineStore,
    PartitionCheckpoint, Read, RedisMode, RedisOptions, RedisStore, RemoteOptions, RemoteStore, Retry, StateWrite,
    StoreError, StoredState, Watermark,
};
pub use view::{Scratch, Status, View};
pub use view_reader::{ViewCounts, ViewRead, ViewReader, ViewState, Wanted};
pub use window::WindowState;
