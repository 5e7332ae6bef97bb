//! The online store in Redis: a single server, a master behind Sentinels, or a Cluster.
//!
//! A state is a string `PREFIX:{VIEW-BUCKET}:ID`: its stamp, then its bytes. `{VIEW-BUCKET}` is the
//! hash tag by which a Cluster places keys; with 128 buckets to a view one command covers
//! many keys, and the buckets spread over the nodes. A watermark is a string
//! `PREFIX:{VIEW-wPARTITION}:watermark`.
//!
//! Replication is asynchronous: a failover may lose writes that were acknowledged, and the
//! watermarks tell.

mod connection;
mod failure;
mod options;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use redis::{Cmd, Script, Value};
use schemas::partition_for_key;

use super::codec::{decode_state, decode_watermark, encode_state, encode_watermark};
use super::{Checkpoint, OnlineStore, PartitionCheckpoint, Read, Result, StoreError};
use crate::metrics::RoundTrips;
use connection::{Call, Connector};
pub use options::{RedisMode, RedisOptions};

/// Part of the layout of the keys: with another number the states are not found again.
const BUCKETS: u32 = 128;
/// Keys in one MGET.
const READ_KEYS: usize = 1000;
/// Keys in one call of a script: nothing else is served while it runs.
const WRITE_KEYS: usize = 250;

/// KEYS: states. ARGV: milliseconds to live or nothing; the values. Returns 0, or which of the
/// keys holds something that is no state.
const SET_STATES: &str = r"
local ttl = ARGV[1]
for i = 1, #KEYS do
  local new = ARGV[i + 1]
  local old = redis.call('GETRANGE', KEYS[i], 0, 7)
  local write = #old == 0
  if #old == 8 then
    -- Two halves: a number of Lua's holds 53 bits, and its strings are compared by locale.
    local old_high, old_low = struct.unpack('>I4I4', old)
    local new_high, new_low = struct.unpack('>I4I4', new)
    write = old_high < new_high or (old_high == new_high and old_low <= new_low)
  elseif #old > 0 then
    return i
  end
  if write and ttl == '' then
    redis.call('SET', KEYS[i], new)
  elseif write then
    redis.call('SET', KEYS[i], new, 'PX', ttl)
  end
end
return 0";

/// `PartitionCheckpoint::goes_on_from`, and the write it decides on. KEYS: the watermark. ARGV: the
/// offset it has to have reached, or nothing; the new value. Returns 1 if it had not, else 0; and the
/// offset found.
const SET_WATERMARK: &str = r"
local function below(a, b)
  local a_high, a_low = struct.unpack('>I4I4', a)
  local b_high, b_low = struct.unpack('>I4I4', b)
  return a_high < b_high or (a_high == b_high and a_low < b_low)
end
local follows, new = ARGV[1], ARGV[2]
local old = redis.call('GETRANGE', KEYS[1], 0, 7)
if #old > 0 and #old < 8 then
  return {2, old}
end
if follows ~= '' and (old == '' or below(old, follows)) then
  return {1, old}
end
if old == '' or not below(new, old) then
  redis.call('SET', KEYS[1], new)
end
return {0, old}";

/// An [`OnlineStore`] in Redis. Its operations need a tokio runtime.
pub struct RedisStore {
    connector: Connector,
    key_prefix: String,
    /// As the script takes it.
    ttl: Vec<u8>,
    set_states: Script,
    set_watermark: Script,
    round_trips: RoundTrips,
}

impl RedisStore {
    /// A store that connects when it is first used, so that it can be made while Redis is away.
    pub fn new(options: RedisOptions) -> Result<RedisStore> {
        let key_prefix = options.key_prefix.clone();
        if key_prefix.contains(['{', '}']) {
            return Err(StoreError::Refused("key_prefix must not contain braces: they choose a key's slot".to_owned()));
        }
        if options.ttl.is_some_and(|ttl| ttl.as_millis() == 0) {
            return Err(StoreError::Refused("a ttl of the online store must be at least 1 ms".to_owned()));
        }
        Ok(RedisStore {
            ttl: options.ttl.map(|ttl| ttl.as_millis().to_string().into_bytes()).unwrap_or_default(),
            connector: Connector::new(options)?,
            key_prefix,
            set_states: Script::new(SET_STATES),
            set_watermark: Script::new(SET_WATERMARK),
            round_trips: RoundTrips::of("redis"),
        })
    }

    /// A store whose servers answer and let it in.
    pub async fn connect(options: RedisOptions) -> Result<RedisStore> {
        let store = RedisStore::new(options)?;
        store.read("", &[], &[0]).await?;
        Ok(store)
    }

    /// The values under `keys`, in their order; in a Cluster, one command for each hash tag.
    async fn values(&self, keys: Vec<(Tag<'_>, String)>) -> Result<Vec<Option<Vec<u8>>>> {
        let mut values = Vec::new();
        values.resize_with(keys.len(), || None);
        let groups = self.groups(keys.iter().map(|(tag, _)| *tag), READ_KEYS);
        let command = |group: &Vec<usize>| {
            let mut command = Cmd::new();
            command.arg("MGET");
            group.iter().for_each(|&index| _ = command.arg(&keys[index].1));
            command
        };
        self.round_trips.read.increment(1);
        let answers = self.connector.ask(groups.iter().map(command).collect()).await?;
        for (group, answer) in groups.iter().zip(answers) {
            let Value::Array(found) = answer else { return Err(unexpected("MGET")) };
            for (&index, value) in group.iter().zip(found) {
                values[index] = match value {
                    Value::BulkString(bytes) => Some(bytes),
                    Value::Nil => None,
                    _ => return Err(unexpected("MGET")),
                };
            }
        }
        Ok(values)
    }

    /// Indexes of keys that one command may name.
    fn groups<'a>(&self, tags: impl Iterator<Item = Tag<'a>>, size_max: usize) -> Vec<Vec<usize>> {
        let mut by_tag: BTreeMap<Option<Tag<'a>>, Vec<usize>> = BTreeMap::new();
        for (index, tag) in tags.enumerate() {
            by_tag.entry(self.connector.is_cluster().then_some(tag)).or_default().push(index);
        }
        by_tag
            .into_values()
            .flat_map(|group| group.chunks(size_max).map(<[usize]>::to_vec).collect::<Vec<_>>())
            .collect()
    }

    async fn write_states(&self, checkpoint: &Checkpoint) -> Result<()> {
        let partitions = checkpoint.partitions.iter();
        let writes: Vec<_> =
            partitions.flat_map(|written| written.states.iter().map(|write| (written.view.as_str(), write))).collect();
        if writes.is_empty() {
            return Ok(());
        }
        let groups = self.groups(writes.iter().map(|(view, write)| Tag::of_state(view, &write.key)), WRITE_KEYS);
        let call = |group: &Vec<usize>| {
            let writes = || group.iter().map(|&index| writes[index]);
            let keys = writes().map(|(view, write)| self.state_key(view, &write.key)).collect();
            let values = writes().map(|(_, write)| encode_state(&write.state));
            Call { keys, arguments: [self.ttl.clone()].into_iter().chain(values).collect() }
        };
        let calls: Vec<Call> = groups.iter().map(call).collect();
        self.round_trips.write.increment(1);
        let answers = self.connector.call(&self.set_states, SET_STATES, &calls).await?;
        for (group, answer) in groups.iter().zip(answers) {
            match answer {
                Value::Int(0) => {}
                Value::Int(position) => {
                    let index = usize::try_from(position - 1).ok().and_then(|position| group.get(position));
                    let (view, write) = writes[*index.ok_or_else(|| unexpected("a script"))?];
                    return Err(damaged(view, &write.key));
                }
                _ => return Err(unexpected("a script")),
            }
        }
        Ok(())
    }

    async fn write_watermarks(&self, checkpoint: &Checkpoint) -> Result<()> {
        let call = |written: &PartitionCheckpoint| Call {
            keys: vec![self.watermark_key(&written.view, written.partition)],
            arguments: vec![
                written.follows.map(|offset| offset.to_be_bytes().to_vec()).unwrap_or_default(),
                encode_watermark(&written.watermark),
            ],
        };
        let calls: Vec<Call> = checkpoint.partitions.iter().map(call).collect();
        self.round_trips.write.increment(1);
        let answers = self.connector.call(&self.set_watermark, SET_WATERMARK, &calls).await?;
        for (written, answer) in checkpoint.partitions.iter().zip(answers) {
            let Value::Array(answer) = answer else { return Err(unexpected("a script")) };
            let [Value::Int(outcome), Value::BulkString(found)] = &answer[..] else {
                return Err(unexpected("a script"));
            };
            if *outcome == 2 {
                return Err(damaged(&written.view, &format!("watermark {}", written.partition)));
            }
            // The script decided; this makes the error of it.
            let found = found.first_chunk().map(|offset| u64::from_be_bytes(*offset));
            written.goes_on_from(found)?;
        }
        Ok(())
    }

    fn state_key(&self, view: &str, id: &str) -> String {
        format!("{}:{{{}-{}}}:{id}", self.key_prefix, Escaped(view), bucket(id))
    }

    fn watermark_key(&self, view: &str, partition: u32) -> String {
        format!("{}:{{{}-w{partition}}}:watermark", self.key_prefix, Escaped(view))
    }
}

#[async_trait]
impl OnlineStore for RedisStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> Result<Read> {
        if keys.is_empty() && partitions.is_empty() {
            return Ok(Read::default());
        }
        let mut wanted: Vec<_> = keys.iter().map(|id| (Tag::of_state(view, id), self.state_key(view, id))).collect();
        let watermarks =
            partitions.iter().map(|&partition| (Tag(view, partition), self.watermark_key(view, partition)));
        let watermarks: Vec<_> = watermarks.collect();
        let (states, watermarks) = if self.connector.is_cluster() {
            // Nodes answer independently: a watermark read with the states might be the older.
            let states = if wanted.is_empty() { Vec::new() } else { self.values(wanted).await? };
            (states, if watermarks.is_empty() { Vec::new() } else { self.values(watermarks).await? })
        } else {
            // One server does the commands in their order.
            wanted.extend(watermarks);
            let mut states = self.values(wanted).await?;
            let watermarks = states.split_off(keys.len());
            (states, watermarks)
        };
        let state = |(value, id): (Option<Vec<u8>>, &&str)| {
            value.map(|value| decode_state(value).ok_or_else(|| damaged(view, id))).transpose()
        };
        let watermark = |(value, partition): (Option<Vec<u8>>, &u32)| {
            let damaged = || damaged(view, &format!("watermark {partition}"));
            value.map(|value| decode_watermark(&value).ok_or_else(damaged)).transpose()
        };
        Ok(Read {
            states: states.into_iter().zip(keys).map(state).collect::<Result<_>>()?,
            watermarks: watermarks.into_iter().zip(partitions).map(watermark).collect::<Result<_>>()?,
        })
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        if checkpoint.partitions.is_empty() {
            return Ok(());
        }
        self.write_states(checkpoint).await?;
        // Every state is acknowledged.
        self.write_watermarks(checkpoint).await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("key_prefix", &self.key_prefix).finish_non_exhaustive()
    }
}

/// What a Cluster places a key by: the view, and the bucket or partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tag<'a>(&'a str, u32);

impl<'a> Tag<'a> {
    fn of_state(view: &'a str, id: &str) -> Tag<'a> {
        Tag(view, bucket(id))
    }
}

fn bucket(id: &str) -> u32 {
    partition_for_key(id.as_bytes(), BUCKETS)
}

/// A view's name with nothing in it that ends a hash tag.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['{', '}', '%']) {
            match part.strip_suffix(['{', '}', '%']) {
                Some(plain) => write!(f, "{plain}%{:02X}", part.as_bytes()[part.len() - 1])?,
                None => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

fn damaged(view: &str, key: &str) -> StoreError {
    let reason = "it is shorter than what it has to begin with".to_owned();
    StoreError::Damaged { view: view.to_owned(), key: key.to_owned(), reason }
}

fn unexpected(of: &str) -> StoreError {
    StoreError::Refused(format!("Redis answered {of} with something else than asked for; is it Redis?"))
}
