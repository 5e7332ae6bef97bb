//! Where the events of a run come from: a simulator of card payments, files in the Handbook's
//! layout, and the feed that turns either into transactions and the chargebacks that follow them.
//!
//! Nothing here reads the clock: the same options give the same events, always.

mod feed;
mod parquet;
mod simulator;
mod terminals;

pub use feed::{ChargebackDelay, Feed, FeedChunk};
pub use parquet::{ParquetSource, Partial, read_labels, write_parquet};
pub use simulator::{Simulator, SimulatorOptions};

/// A transaction with what is known of it in hindsight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    pub transaction: schemas::Transaction,
    pub fraud: bool,
    /// The simulator's fraud scenario, 1 to 3; 0 where there is none or it is not known. For
    /// analysis only, never a feature.
    pub scenario: u8,
}
