//! What a lookup asks for.

use std::collections::BTreeMap;
use std::fmt;

use feature_store::View;
use schemars::JsonSchema;
use schemas::{EventTime, Id};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::LookupError;

/// The body of a lookup. What it has besides is passed over, as Feast does.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct LookupRequest {
    /// `view:feature`.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// The name of such a list, from the definitions; `features` is not looked at then.
    #[serde(default)]
    pub(crate) feature_service: Option<String>,
    /// For each entity key, as in `card_id`, one id a row, in the order of the request.
    #[serde(deserialize_with = "in_order")]
    #[schemars(with = "BTreeMap<String, Vec<Value>>")]
    pub(crate) entities: Vec<(String, Vec<Value>)>,
    /// Whether features are named `view__feature` in the answer.
    #[serde(default)]
    pub(crate) full_feature_names: bool,
    /// RFC 3339: the event time that values are wanted as of.
    #[serde(default, deserialize_with = "time")]
    #[schemars(with = "Option<String>")]
    pub(crate) at: Option<EventTime>,
}

impl LookupRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<LookupRequest, LookupError> {
        serde_json::from_slice(body).map_err(|error| LookupError::invalid(&error))
    }
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EventTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// The entries of an object in their order.
fn in_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Vec<Value>)>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(String, Vec<Value>)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of entity keys, each with a list of ids")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(Entries)
}

/// The ids that a view is looked up by. Whole numbers are taken as their text.
pub(crate) fn ids_of(request: &LookupRequest, view: &View) -> Result<Vec<Id>, LookupError> {
    let key = view.entity().to_string();
    let Some((_, ids)) = request.entities.iter().find(|(known, _)| *known == key) else {
        return Err(LookupError::refused(format!(
            "Missing join key values for keys: ['{key}']; view `{}` is looked up by it",
            view.name()
        )));
    };
    let id = |id: &Value| match id {
        Value::String(text) => Ok(Id::from(text.as_str())),
        Value::Number(number) if !number.is_f64() => Ok(Id::from(number.to_string())),
        other => Err(LookupError::refused(format!("`{other}` is no id of {key}; ids are texts or whole numbers"))),
    };
    ids.iter().map(id).collect()
}
