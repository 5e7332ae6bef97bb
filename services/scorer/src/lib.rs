//! The scorer: `ingest → join → assemble → score → emit`.
//!
//! One module a hop, one type a hop, and [`worker`] wires them up. A batch goes through as
//! [`Ingested`](ingest::Ingested), [`Joined`](join::Joined), [`Assembled`](assemble::Assembled),
//! [`Scored`](score::Scored), [`Emitted`](emit::Emitted).

pub mod assemble;
pub mod emit;
pub mod ingest;
pub mod join;
pub mod log;
pub mod metrics;
mod promoted;
pub mod score;
pub mod states;
pub mod worker;

use feature_store::StoreError;
use models::ModelError;

pub use worker::{Step, Worker, WorkerOptions};

/// The consumer group of the scorers.
pub const GROUP: &str = "scorer";

/// Wall-clock time in microseconds since the Unix epoch. Passed in, so that a simulation has its own.
pub type Clock = std::sync::Arc<dyn Fn() -> i64 + Send + Sync>;

/// The machine's clock.
pub fn system_clock() -> Clock {
    std::sync::Arc::new(|| {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since_epoch.map_or(0, |elapsed| elapsed.as_micros() as i64)
    })
}

/// Why a worker stopped.
#[derive(Debug, thiserror::Error)]
pub enum ScorerError {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Layout(#[from] schemas::LayoutMismatch),
    /// Invariant I3 does not hold: nothing may be built on this store.
    #[error(
        "I3: the stored states of {view}, {partition}, include events below offset {stored}, but only those below \
         {committed} were committed. The store belongs to another log; start with an empty one"
    )]
    StoreAhead { view: String, partition: log::TopicPartition, stored: u64, committed: u64 },
    /// It passes by itself, once the registry tells this process of the promotion that another one has followed.
    #[error(
        "{partition} was scored by the model of {committed} already, and this process has that of {served}: its scores would go \
         back to an older model. {reason}"
    )]
    ModelBehind {
        partition: log::TopicPartition,
        committed: models::Promotion,
        served: models::Promotion,
        reason: String,
    },
    /// The re-keyed stream was written by other definitions.
    #[error(
        "{partition}, offset {offset}: the event lacks what the definitions now have it bring along from the windows of its card, as it \
         was re-keyed by others. Stop the materializers, delete the topic {topic} and the consumer groups {groups}, and start again: the \
         stream is written anew from the transactions kept",
        topic = schemas::topics::ENTITY_EVENTS
    )]
    OtherCarried { partition: log::TopicPartition, offset: u64, groups: String },
    /// Records that the stored states lack are gone.
    #[error(
        "{partition}: the stored states of {view} end at offset {stored}, and retention has removed what follows up to \
         {first}. Keep the log longer, or start with an empty store"
    )]
    LogTrimmed { view: String, partition: log::TopicPartition, stored: u64, first: u64 },
}

pub type Result<T> = std::result::Result<T, ScorerError>;
