use serde::{Deserialize, Serialize};

use crate::{Amount, EventTime, Id};

/// A card transaction, as it comes in.
///
/// On the wire a JSON object; unknown fields are ignored:
/// `{"transaction_id":"7","event_time":1522540831000,"card_id":"596","terminal_id":"3156","amount":57.16}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub transaction_id: Id,
    /// Milliseconds since the Unix epoch, UTC.
    pub event_time: EventTime,
    /// The card that pays; also the key of the record, so that one partition sees all of a card.
    pub card_id: Id,
    /// The terminal that is paid at.
    pub terminal_id: Id,
    /// In the currency unit; at most four decimals.
    pub amount: Amount,
}

/// Why the value of a record is not the event it should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the value is no JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("{0}")]
    WrongShape(serde_json::Error),
    #[error("`{field}` is empty")]
    EmptyId { field: &'static str },
    #[error("`{field}` has {length} bytes, at most {max} are taken")]
    LongId { field: &'static str, length: usize, max: usize },
    #[error("`amount` is negative: {0}")]
    NegativeAmount(Amount),
    #[error("`{field}` {millis} is not between the years 1900 and 2200; it counts milliseconds since 1970")]
    ImpossibleTime { field: &'static str, millis: i64 },
}

impl Transaction {
    /// Decodes and validates the value of a record.
    pub fn from_json(value: &[u8]) -> Result<Transaction, DecodeError> {
        let transaction: Transaction = from_json(value)?;
        check_id("transaction_id", &transaction.transaction_id)?;
        check_id("card_id", &transaction.card_id)?;
        check_id("terminal_id", &transaction.terminal_id)?;
        check_time("event_time", transaction.event_time)?;
        if transaction.amount.is_negative() {
            return Err(DecodeError::NegativeAmount(transaction.amount));
        }
        Ok(transaction)
    }

    /// Appends the record value to `out`.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("a transaction holds nothing that JSON can't");
    }
}

/// Longest id taken, in bytes. Ids become keys of the online store.
const ID_BYTES_MAX: usize = 256;

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(value).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => DecodeError::WrongShape(error),
        _ => DecodeError::NotJson(error),
    })
}

pub(crate) fn check_id(field: &'static str, id: &Id) -> Result<(), DecodeError> {
    match id.len() {
        0 => Err(DecodeError::EmptyId { field }),
        length if length > ID_BYTES_MAX => Err(DecodeError::LongId { field, length, max: ID_BYTES_MAX }),
        _ => Ok(()),
    }
}

pub(crate) fn check_time(field: &'static str, time: EventTime) -> Result<(), DecodeError> {
    if (EventTime::EARLIEST..EventTime::LATEST).contains(&time) {
        return Ok(());
    }
    Err(DecodeError::ImpossibleTime { field, millis: time.as_millis() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"transaction_id":"7","event_time":1522540831000,"card_id":"596","terminal_id":"3156","amount":57.16}"#;

    #[test]
    fn json_round_trips() {
        let transaction = Transaction::from_json(GOOD.as_bytes()).expect("the documented example decodes");
        let mut json = Vec::new();
        transaction.write_json(&mut json);
        assert_eq!(String::from_utf8(json).expect("JSON is UTF-8"), GOOD);
        let extended = GOOD.replace("{\"tr", "{\"channel\":{\"kind\":[1,null]},\"tr");
        assert_eq!(Transaction::from_json(extended.as_bytes()).expect("unknown fields are ignored"), transaction);
    }

    #[test]
    fn every_refusal_has_its_reason() {
        let of = |from: &str, to: &str| {
            let changed = GOOD.replace(from, to);
            assert_ne!(changed, GOOD, "{from} is not in the example");
            Transaction::from_json(changed.as_bytes()).expect_err(to)
        };
        assert!(matches!(of("{", ""), DecodeError::WrongShape(_) | DecodeError::NotJson(_)));
        assert!(matches!(of("}", ""), DecodeError::NotJson(_)));
        assert!(matches!(of("57.16", "NaN"), DecodeError::NotJson(_)));
        assert!(matches!(of("57.16", "1e999"), DecodeError::WrongShape(_)));
        assert!(matches!(of("57.16", "\"57.16\""), DecodeError::WrongShape(_)));
        assert!(matches!(of("57.16", "0.00001"), DecodeError::WrongShape(_)));
        assert!(matches!(of("57.16", "-57.16"), DecodeError::NegativeAmount(_)));
        assert!(matches!(of("\"596\"", "596"), DecodeError::WrongShape(_)));
        assert!(matches!(of("\"card_id\":\"596\",", ""), DecodeError::WrongShape(_)));
        assert!(matches!(of("\"3156\"", "\"\""), DecodeError::EmptyId { field: "terminal_id" }));
        assert!(matches!(of("3156", &"3".repeat(300)), DecodeError::LongId { length: 300, .. }));
        assert!(matches!(of("1522540831000", "1522540831000000"), DecodeError::ImpossibleTime { .. }));
        assert!(matches!(of("1522540831000", "1522540831000.5"), DecodeError::WrongShape(_)));
        assert!(matches!(Transaction::from_json(b"[]"), Err(DecodeError::WrongShape(_))));
        assert!(matches!(Transaction::from_json(b""), Err(DecodeError::NotJson(_))));
        assert!(matches!(Transaction::from_json(b"\xff\xfe"), Err(DecodeError::NotJson(_))));
        assert!(matches!(
            Transaction::from_json(&[b'['; 100_000]),
            Err(DecodeError::WrongShape(_) | DecodeError::NotJson(_))
        ));
    }
}
