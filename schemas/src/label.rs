use serde::{Deserialize, Serialize};

use crate::transaction::{check_id, check_time, from_json};
use crate::{DecodeError, EventTime, Id};

/// What became known of a transaction after the fact: a chargeback, or its reversal.
///
/// Names the terminal and the time of the transaction it speaks of, as the chargeback process
/// knows them, so that a rate per terminal needs no second look at the transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub transaction_id: Id,
    pub card_id: Id,
    pub terminal_id: Id,
    /// When the transaction took place.
    pub transaction_time: EventTime,
    /// When the label became known; never before the transaction.
    pub label_time: EventTime,
    pub fraud: bool,
}

impl Label {
    /// Decodes and validates the value of a record.
    pub fn from_json(value: &[u8]) -> Result<Label, DecodeError> {
        let label: Label = from_json(value)?;
        check_id("transaction_id", &label.transaction_id)?;
        check_id("card_id", &label.card_id)?;
        check_id("terminal_id", &label.terminal_id)?;
        check_time("transaction_time", label.transaction_time)?;
        check_time("label_time", label.label_time)?;
        Ok(label)
    }

    /// Appends the record value to `out`.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("a label holds nothing that JSON can't");
    }
}
