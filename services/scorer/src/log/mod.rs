//! The log: durable, partitioned topics that are consumed in groups.
//!
//! The path is written against [`Log`] and [`Consumer`] alone. [`embedded`] implements them in a
//! data directory, for one process; Kafka does for many.

pub mod embedded;
pub mod kafka;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use feature_store::Checkpoint;
use schemas::{Id, SourcePosition};

pub use embedded::{Durability, EmbeddedLog, EmbeddedOptions};
pub use kafka::{Delivery, KafkaLog, KafkaOptions};

/// Name and value of a record header.
pub type Header = (String, Bytes);

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: u32,
    pub offset: u64,
    /// When the record was appended, in microseconds since the Unix epoch. Part of the log: a
    /// replay reads the same value.
    pub timestamp_us: i64,
    pub key: Bytes,
    pub value: Bytes,
    pub headers: Vec<Header>,
}

impl Record {
    pub fn position(&self, topic: &str) -> SourcePosition {
        SourcePosition { topic: Id::from(topic), partition: self.partition, offset: self.offset }
    }
}

/// Records to be written, to any topics, in one buffer: a batch costs one allocation, not one for
/// each record.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    topics: Vec<String>,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    topic: usize,
    partition: Option<u32>,
    timestamp_us: i64,
    key: Range<usize>,
    value: Range<usize>,
    headers: Vec<Header>,
}

/// A record in an [`Outbox`].
#[derive(Clone, Copy, Debug)]
pub struct OutRecord<'a> {
    pub topic: &'a str,
    /// `None`: by the key's hash, as Kafka's Java client does it ([`schemas::partition_for_key`]).
    pub partition: Option<u32>,
    pub timestamp_us: i64,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub headers: &'a [Header],
}

impl Outbox {
    /// Adds a record whose value `write` appends to the buffer it is given.
    pub fn push(&mut self, topic: &str, key: &[u8], timestamp_us: i64, write: impl FnOnce(&mut Vec<u8>)) {
        self.push_with(topic, None, key, timestamp_us, Vec::new(), write);
    }

    /// Adds a record with headers, to a given partition if there is one.
    pub fn push_with(
        &mut self,
        topic: &str,
        partition: Option<u32>,
        key: &[u8],
        timestamp_us: i64,
        headers: Vec<Header>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let topic = match self.topics.iter().position(|known| known == topic) {
            Some(index) => index,
            None => {
                self.topics.push(topic.to_owned());
                self.topics.len() - 1
            }
        };
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let key = start..self.bytes.len();
        write(&mut self.bytes);
        let value = key.end..self.bytes.len();
        self.entries.push(Entry { topic, partition, timestamp_us, key, value, headers });
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = OutRecord<'_>> {
        self.entries.iter().map(|entry| OutRecord {
            topic: &self.topics[entry.topic],
            partition: entry.partition,
            timestamp_us: entry.timestamp_us,
            key: &self.bytes[entry.key.clone()],
            value: &self.bytes[entry.value.clone()],
            headers: &entry.headers,
        })
    }
}

/// What a topic is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: u32,
    /// Records older than this may be trimmed; `None` keeps them all.
    pub retention: Option<Duration>,
}

/// A topic as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub spec: TopicSpec,
    /// For each partition the offsets that can be read: the first one kept, up to the next one to
    /// be written.
    pub offsets: Vec<Range<u64>>,
}

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// What a consumer's poll gave.
#[derive(Debug)]
pub enum Polled {
    /// Records of the topic in offset order per partition; none if nothing came before the timeout.
    Records(Vec<Record>),
    /// The group was rebalanced; nothing is delivered until the change was taken note of. State
    /// of `revoked` partitions is to be dropped, that of `assigned` ones recovered. The next poll
    /// goes on from the committed offsets.
    Rebalanced { assigned: Vec<TopicPartition>, revoked: Vec<TopicPartition> },
    /// The group wants these partitions back. What is under way on them may still be committed;
    /// they are given up with [`Consumer::release`], and the group waits for it.
    Revoking(Vec<TopicPartition>),
}

/// What one step of a consumer leaves behind, all of it or nothing.
#[derive(Debug)]
pub struct Commit<'a> {
    pub outputs: &'a Outbox,
    /// For each consumed partition the offset of the next record to be read.
    pub offsets: &'a [(TopicPartition, u64)],
    /// What stands beside each of these offsets, for whoever has the partition next: [`Log::committed_metadata`].
    pub metadata: &'a str,
    /// States to be written along, where the log and the online store can do so atomically.
    pub checkpoint: Option<&'a Checkpoint>,
}

/// Whether a commit took its checkpoint along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    WithCheckpoint,
    /// There was a checkpoint, and it is the caller's to write to the online store, now.
    WithoutCheckpoint,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("there is no topic `{0}`")]
    UnknownTopic(String),
    #[error("topic `{0}` needs at least one partition")]
    NoPartitions(String),
    #[error("topic `{topic}` has {existing} partitions, {asked} are asked for; the partitions of a topic can't change")]
    PartitionsDiffer { topic: String, existing: u32, asked: u32 },
    #[error("{partition}: offset {offset} was trimmed by retention, the first one kept is {first}")]
    Trimmed { partition: TopicPartition, offset: u64, first: u64 },
    /// The consumer no longer owns what it wants to commit; its work is another's now.
    #[error("{0} belongs to another consumer of the group now")]
    Fenced(TopicPartition),
    #[error("the data directory {0} is in use by another process")]
    InUse(String),
    #[error("the data directory {path} can't be used: {reason}")]
    DataDirectory { path: String, reason: String },
    #[error(
        "{partition}: the broker has no record at offset {offset} (any more): retention removed it, or the topic was \
             made anew. Set the group's offsets to where it is to go on, or give the consumer a new group"
    )]
    OutOfRange { partition: TopicPartition, offset: u64 },
    #[error("the log's storage failed: {0}")]
    Storage(String),
    /// It passes by itself: brokers that are away, a coordinator that moves.
    #[error("the brokers can't be reached, or don't answer: {0}")]
    Unavailable(String),
    /// It doesn't pass by itself: a wrong password, an untrusted certificate, a missing right.
    #[error("the brokers refuse: {0}")]
    Refused(String),
    #[error(
        "group {group}: another process has joined as instance `{instance}` and took this one's place. \
         Give each process a name of its own (`instance` in the configuration)"
    )]
    Replaced { group: String, instance: String },
}

pub type Result<T> = std::result::Result<T, LogError>;

/// Durable, partitioned topics.
pub trait Log: Send + Sync + fmt::Debug {
    /// Creates the topic; one that exists with as many partitions is left as it is.
    fn create_topic(&self, spec: &TopicSpec) -> Result<()>;

    /// All topics, by name.
    fn topics(&self) -> Result<Vec<Topic>>;

    /// One topic as it stands.
    fn topic(&self, name: &str) -> Result<Topic>;

    /// For each partition of a topic the next offset to be written.
    fn ends(&self, topic: &str) -> Result<Vec<u64>> {
        Ok(self.topic(topic)?.offsets.into_iter().map(|kept| kept.end).collect())
    }

    /// Up to `max_records` records from `from` on; fewer, or none, at the end of the partition.
    fn read(&self, partition: &TopicPartition, from: u64, max_records: usize) -> Result<Vec<Record>>;

    /// The first offset whose record was appended at `timestamp_us` or later; the end if none was.
    fn offset_at(&self, partition: &TopicPartition, timestamp_us: i64) -> Result<u64>;

    /// Appends the records; the embedded log all of them or none.
    fn append(&self, records: &Outbox) -> Result<()>;

    /// The offset that the group goes on from in the partition.
    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<u64>>;

    /// What was committed beside that offset; empty if nothing was.
    fn committed_metadata(&self, group: &str, partition: &TopicPartition) -> Result<String>;

    /// Joins the group as `member`, a name that no other member of this process has; the consumer
    /// leaves the group when dropped. Its partitions come with its first polls.
    fn join(&self, group: &str, member: &str, topics: &[&str]) -> Result<Box<dyn Consumer>>;
}

/// A member of a consumer group.
pub trait Consumer: Send {
    /// The next records of `topic` in the partitions assigned, waiting up to `timeout` for the
    /// first. A partition without a committed offset begins at its first record.
    fn poll(&mut self, topic: &str, max_records: usize, timeout: Duration) -> Result<Polled>;

    /// One atomic step: outputs, consumed offsets and, where possible, states.
    fn commit(&mut self, commit: &Commit<'_>) -> Result<Committed>;

    /// Gives up partitions that the group wanted back ([`Polled::Revoking`]).
    fn release(&mut self, _partitions: &[TopicPartition]) -> Result<()> {
        Ok(())
    }

    /// For each partition of `topic` that is assigned here, whether all its records before
    /// `ends[partition]` were delivered; such ends are what [`Log::ends`] gave.
    fn reached(&mut self, topic: &str, ends: &[u64]) -> Result<Vec<(u32, bool)>>;

    /// Shows the group that this member is alive, where no poll is due for long.
    fn keep_alive(&mut self) -> Result<()> {
        Ok(())
    }
}
