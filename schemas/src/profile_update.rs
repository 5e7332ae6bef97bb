use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::transaction::{check_id, check_time, from_json};
use crate::{DecodeError, EventTime, Id};

/// What became known of an entity: values of its profile in one feature view.
///
/// On the wire a JSON object; unknown fields are ignored:
/// `{"view":"card_profile","entity_id":"596","event_time":1522540831000,"values":{"credit_limit":5000.0,"premium":true}}`
///
/// Values that are not named stay as they were; `null` takes one away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProfileUpdate {
    /// The view of the definitions that the values belong to.
    pub view: Id,
    /// The entity that the view is keyed by, as in `card_id`; also the key of the record, so that updates of an entity
    /// stay in order.
    pub entity_id: Id,
    /// Since when the values hold, in milliseconds since the Unix epoch, UTC.
    pub event_time: EventTime,
    pub values: BTreeMap<Id, ProfileValue>,
}

/// A value of a profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProfileValue {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
}

impl ProfileUpdate {
    /// Decodes and validates the value of a record.
    pub fn from_json(value: &[u8]) -> Result<ProfileUpdate, DecodeError> {
        let update: ProfileUpdate = from_json(value)?;
        check_id("view", &update.view)?;
        check_id("entity_id", &update.entity_id)?;
        check_time("event_time", update.event_time)?;
        Ok(update)
    }

    /// Appends the record value to `out`.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("an update holds nothing that JSON can't");
    }
}

impl ProfileValue {
    /// As a feature: `NaN` is a missing value, and a text is none.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            ProfileValue::Null => Some(f64::NAN),
            ProfileValue::Bool(value) => Some(f64::from(u8::from(*value))),
            ProfileValue::Number(value) => Some(*value),
            ProfileValue::Text(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_refuses_what_is_no_update() {
        let json = r#"{"view":"card_profile","entity_id":"596","event_time":1522540831000,"values":{"a":5000.5,"b":true,"c":null,"d":"NL"}}"#;
        let update = ProfileUpdate::from_json(json.as_bytes()).expect("it is well formed");
        let numbers: Vec<Option<f64>> = update.values.values().map(ProfileValue::as_number).collect();
        assert_eq!((numbers[0], numbers[1], numbers[3]), (Some(5000.5), Some(1.0), None));
        assert!(numbers[2].is_some_and(f64::is_nan));
        let mut again = Vec::new();
        update.write_json(&mut again);
        assert_eq!(String::from_utf8(again).expect("JSON is UTF-8"), json);

        let of = |from: &str, to: &str| ProfileUpdate::from_json(json.replace(from, to).as_bytes()).expect_err(to);
        assert!(matches!(of("\"596\"", "\"\""), DecodeError::EmptyId { field: "entity_id" }));
        assert!(matches!(of("1522540831000", "1522540831000000"), DecodeError::ImpossibleTime { .. }));
        assert!(matches!(of("5000.5", "[1]"), DecodeError::WrongShape(_)));
        assert!(matches!(of("}}", "}"), DecodeError::NotJson(_)));
    }
}
