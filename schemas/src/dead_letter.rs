use serde::{Deserialize, Serialize};

use crate::{DecodeError, Id};

/// Where a record stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourcePosition {
    pub topic: Id,
    pub partition: u32,
    pub offset: u64,
}

/// Why a record could not be processed: the label of a metric and the class in a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadLetterReason {
    NotJson,
    WrongShape,
    InvalidId,
    InvalidAmount,
    ImpossibleTime,
    KeyMismatch,
    TooLate,
    InFuture,
}

impl DeadLetterReason {
    pub const ALL: [DeadLetterReason; 8] = [
        DeadLetterReason::NotJson,
        DeadLetterReason::WrongShape,
        DeadLetterReason::InvalidId,
        DeadLetterReason::InvalidAmount,
        DeadLetterReason::ImpossibleTime,
        DeadLetterReason::KeyMismatch,
        DeadLetterReason::TooLate,
        DeadLetterReason::InFuture,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            DeadLetterReason::NotJson => "not_json",
            DeadLetterReason::WrongShape => "wrong_shape",
            DeadLetterReason::InvalidId => "invalid_id",
            DeadLetterReason::InvalidAmount => "invalid_amount",
            DeadLetterReason::ImpossibleTime => "impossible_time",
            DeadLetterReason::KeyMismatch => "key_mismatch",
            DeadLetterReason::TooLate => "too_late",
            DeadLetterReason::InFuture => "in_future",
        }
    }
}

impl From<&DecodeError> for DeadLetterReason {
    fn from(error: &DecodeError) -> DeadLetterReason {
        match error {
            DecodeError::NotJson(_) => DeadLetterReason::NotJson,
            DecodeError::WrongShape(_) => DeadLetterReason::WrongShape,
            DecodeError::EmptyId { .. } | DecodeError::LongId { .. } => DeadLetterReason::InvalidId,
            DecodeError::NegativeAmount(_) => DeadLetterReason::InvalidAmount,
            DecodeError::ImpossibleTime { .. } => DeadLetterReason::ImpossibleTime,
        }
    }
}

/// Header names of a dead letter, as Kafka Connect writes them
/// (`org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter`).
pub mod headers {
    pub const TOPIC: &str = "__connect.errors.topic";
    pub const PARTITION: &str = "__connect.errors.partition";
    pub const OFFSET: &str = "__connect.errors.offset";
    pub const CONNECTOR_NAME: &str = "__connect.errors.connector.name";
    pub const TASK_ID: &str = "__connect.errors.task.id";
    pub const STAGE: &str = "__connect.errors.stage";
    pub const CLASS_NAME: &str = "__connect.errors.class.name";
    pub const EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
    pub const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
    pub const EXCEPTION_STACKTRACE: &str = "__connect.errors.exception.stacktrace";
}
