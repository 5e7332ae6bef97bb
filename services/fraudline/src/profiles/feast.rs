//! Feature views that Feast materialized into Redis: its layout of keys and values, read as profile updates.
//!
//! A key is the entity key in its serialization 3 and the project's name; behind it is a hash, whose fields are the murmur3 of
//! `view:feature`, and `_ts:view`. Values are Feast's protobuf `feast.types.Value`.

use std::collections::VecDeque;

use anyhow::{Context, bail};
use prost::Message;
use redis::Connection;
use schemas::{EventTime, Id, ProfileUpdate, ProfileValue};

use super::read::Columns;

/// Keys that one step of the scan looks at.
const SCAN_COUNT: usize = 1000;
/// Feast's `ValueType`s of ids.
const STRING: u32 = 2;
const INT32: u32 = 3;
const INT64: u32 = 4;

/// Feast's `feast.types.Value`, of which these can be profile values.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(oneof = "Kind", tags = "2, 3, 4, 5, 6, 7, 8")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(string, tag = "2")]
    Text(String),
    #[prost(int32, tag = "3")]
    Int32(i32),
    #[prost(int64, tag = "4")]
    Int64(i64),
    #[prost(double, tag = "5")]
    Double(f64),
    #[prost(float, tag = "6")]
    Float(f32),
    #[prost(bool, tag = "7")]
    Bool(bool),
    /// Seconds.
    #[prost(int64, tag = "8")]
    UnixTimestamp(i64),
}

/// `google.protobuf.Timestamp`
#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Where a view of Feast's is.
pub(super) struct FeastView<'a> {
    pub(super) redis: &'a str,
    pub(super) project: &'a str,
    pub(super) view: &'a str,
}

/// The profiles of a Feast view as updates of `view`.
pub(super) struct FeastRows {
    connection: Connection,
    project: String,
    view: Id,
    columns: Columns,
    /// The hash's fields: of the time, then of each column.
    fields: Vec<Vec<u8>>,
    cursor: u64,
    through: bool,
    found: VecDeque<ProfileUpdate>,
}

impl FeastRows {
    pub(super) fn open(feast: &FeastView<'_>, view: &str, columns: &Columns) -> anyhow::Result<FeastRows> {
        let connect = || redis::Client::open(feast.redis)?.get_connection();
        let connection = connect().context("connecting to Feast's Redis; name it as in redis://HOST:PORT/0")?;
        let mut fields = vec![format!("_ts:{}", feast.view).into_bytes()];
        for column in &columns.fields {
            fields.push(field_of(feast.view, column)?);
        }
        Ok(FeastRows {
            connection,
            project: feast.project.to_owned(),
            view: view.into(),
            columns: columns.clone(),
            fields,
            cursor: 0,
            through: false,
            found: VecDeque::new(),
        })
    }

    /// One step of the scan. A key may come twice, as Redis has it: the update is the same then.
    fn scan(&mut self) -> anyhow::Result<()> {
        let mut pattern = b"*".to_vec();
        pattern.extend_from_slice(self.project.as_bytes());
        let (cursor, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(self.cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(SCAN_COUNT)
            .query(&mut self.connection)?;
        (self.cursor, self.through) = (cursor, cursor == 0);
        let id = |key: &Vec<u8>| entity_id(key, self.project.as_bytes(), &self.columns.entity);
        let ours: Vec<(Id, &Vec<u8>)> = keys.iter().filter_map(|key| Some((id(key)?, key))).collect();
        if ours.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for (_, key) in &ours {
            pipeline.cmd("HMGET").arg(*key).arg(&self.fields);
        }
        let hashes: Vec<Vec<Option<Vec<u8>>>> = pipeline.query(&mut self.connection)?;
        for ((entity_id, _), hash) in ours.into_iter().zip(hashes) {
            let update = self.update(&entity_id, &hash);
            self.found.extend(update.with_context(|| format!("Feast's values of `{entity_id}`"))?);
        }
        Ok(())
    }

    /// `None`: the view has nothing of the entity.
    fn update(&self, entity_id: &Id, hash: &[Option<Vec<u8>>]) -> anyhow::Result<Option<ProfileUpdate>> {
        let Some((Some(time), values)) = hash.split_first() else { return Ok(None) };
        let time = Timestamp::decode(time.as_slice()).context("its time is damaged")?;
        let event_time = EventTime::from_millis(time.seconds * 1000 + i64::from(time.nanos / 1_000_000));
        let mut update = ProfileUpdate {
            view: self.view.clone(),
            entity_id: entity_id.clone(),
            event_time,
            values: std::collections::BTreeMap::new(),
        };
        for (field, value) in self.columns.fields.iter().zip(values) {
            let Some(value) = value else { bail!("the view has no feature `{field}`") };
            let value = Value::decode(value.as_slice()).with_context(|| format!("`{field}` is damaged"))?;
            let number = |number: f64| match number.is_nan() {
                true => ProfileValue::Null,
                false => ProfileValue::Number(number),
            };
            let value = match value.kind {
                None => ProfileValue::Null,
                Some(Kind::Text(text)) => ProfileValue::Text(text),
                Some(Kind::Int32(value)) => number(value.into()),
                Some(Kind::Int64(value) | Kind::UnixTimestamp(value)) => number(value as f64),
                Some(Kind::Double(value)) => number(value),
                Some(Kind::Float(value)) => number(value.into()),
                Some(Kind::Bool(value)) => ProfileValue::Bool(value),
            };
            update.values.insert(field.as_str().into(), value);
        }
        Ok(Some(update))
    }
}

impl Iterator for FeastRows {
    type Item = anyhow::Result<ProfileUpdate>;

    fn next(&mut self) -> Option<anyhow::Result<ProfileUpdate>> {
        while self.found.is_empty() && !self.through {
            if let Err(error) = self.scan() {
                self.through = true;
                return Some(Err(error));
            }
        }
        self.found.pop_front().map(Ok)
    }
}

/// The hash's field of a feature: murmur3 (32 bits, seed 0) of `view:feature`, little endian.
fn field_of(view: &str, feature: &str) -> anyhow::Result<Vec<u8>> {
    let name = format!("{view}:{feature}");
    Ok(murmur3::murmur3_32(&mut name.as_bytes(), 0)?.to_le_bytes().to_vec())
}

/// The id in a key of the project, if it is of this one entity.
fn entity_id(key: &[u8], project: &[u8], entity: &str) -> Option<Id> {
    let mut rest = key.strip_suffix(project)?;
    let number = |rest: &mut &[u8]| {
        let (number, behind) = rest.split_first_chunk::<4>()?;
        *rest = behind;
        Some(u32::from_le_bytes(*number))
    };
    let count = number(&mut rest)?;
    let (name_type, length) = (number(&mut rest)?, number(&mut rest)? as usize);
    let (name, mut rest) = rest.split_at_checked(length)?;
    if (count, name_type, name) != (1, STRING, entity.as_bytes()) {
        return None;
    }
    let (value_type, length) = (number(&mut rest)?, number(&mut rest)? as usize);
    let id = match value_type {
        _ if rest.len() != length => return None,
        STRING => std::str::from_utf8(rest).ok()?.into(),
        INT32 => i32::from_le_bytes(rest.try_into().ok()?).to_string().into(),
        INT64 => i64::from_le_bytes(rest.try_into().ok()?).to_string().into(),
        _ => return None,
    };
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by Feast 0.67 for project `fraud`, `card_id` "1" and 1.
    #[test]
    fn keys_are_those_of_feast() {
        let text = b"\x01\0\0\0\x02\0\0\0\x07\0\0\0card_id\x02\0\0\0\x01\0\0\x001fraud";
        assert_eq!(entity_id(text, b"fraud", "card_id").as_deref(), Some("1"));
        let number = b"\x01\0\0\0\x02\0\0\0\x07\0\0\0card_id\x04\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0fraud";
        assert_eq!(entity_id(number, b"fraud", "card_id").as_deref(), Some("1"));
        for (project, entity) in [("other", "card_id"), ("fraud", "terminal_id")] {
            assert_eq!(entity_id(text, project.as_bytes(), entity), None);
        }
        for length in 0..text.len() {
            let damaged = [&text[..length], b"fraud"].concat();
            assert!(length == text.len() - 5 || entity_id(&damaged, b"fraud", "card_id").is_none(), "{length}");
        }
    }
}
