//! The events that fraudline reads and writes, their wire formats, and the types they share.
//!
//! Everything here is plain data: no I/O, no clock, no async. A type that crosses a topic or a
//! process boundary is declared in this crate and nowhere else.

mod amount;
mod dead_letter;
mod entity_event;
mod label;
mod layout;
mod partition;
mod profile_update;
mod score;
mod time;
mod transaction;
mod varint;

pub use amount::{Amount, AmountError};
pub use dead_letter::{DeadLetterReason, SourcePosition, headers};
pub use entity_event::{Carried, EntityEvent};
pub use label::Label;
pub use layout::{FeatureLayout, FeatureSpec, LayoutMismatch, Sequence, SequencePlace};
pub use partition::partition_for_key;
pub use profile_update::{ProfileUpdate, ProfileValue};
pub use score::{Alert, Reason, Score};
pub use time::EventTime;
pub use transaction::{DecodeError, Transaction};
pub use varint::{CodecError, Reader, write_bytes, write_float, write_signed, write_unsigned};

/// An identifier of an entity or an event. Up to 24 bytes are held inline, so the ids of a
/// record are decoded without an allocation.
pub type Id = compact_str::CompactString;

/// Names of the topics of one deployment, as fraudline creates them by default.
pub mod topics {
    pub const TRANSACTIONS: &str = "transactions";
    pub const LABELS: &str = "labels";
    pub const SCORES: &str = "scores";
    /// What the challenger says of the transactions: scores that decide nothing.
    pub const CHALLENGER_SCORES: &str = "challenger-scores";
    pub const ALERTS: &str = "alerts";
    pub const DEAD_LETTERS: &str = "dead-letters";
    /// What became known of cards and terminals, by entity.
    pub const PROFILES: &str = "profiles";
    /// Transactions, labels and profile updates re-keyed by the entity they are about: written and read by the
    /// materializer.
    pub const ENTITY_EVENTS: &str = "entity-events";

    /// All of them: what a log must have before anything starts.
    pub const ALL: [&str; 8] =
        [TRANSACTIONS, LABELS, PROFILES, SCORES, CHALLENGER_SCORES, ALERTS, DEAD_LETTERS, ENTITY_EVENTS];
}
