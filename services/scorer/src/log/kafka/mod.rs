//! The log on Kafka: any number of processes, each event still scored exactly once.
//!
//! A worker is a member of a consumer group under a name that stays (static membership), assigned
//! cooperatively, and reads each of its partitions from a queue of its own. A commit is one Kafka
//! transaction of outputs and offsets, sent with the group's metadata, so that the broker refuses
//! whoever no longer belongs to the group's generation.
//!
//! A partition goes through these states: *assigned*, by the group; *recovering*, while its states
//! are read back and brought up to the committed offset; *consuming*; *draining*, once the group
//! wants it back and what is under way on it is committed and checkpointed
//! ([`Polled::Revoking`](super::Polled::Revoking), [`Consumer::release`]); *revoked*.

mod client;
mod consumer;
mod group;
mod options;
mod producer;
mod reader;
mod settings;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

pub use options::{Delivery, KafkaOptions, Mechanism, Sasl, Tls};
pub use settings::TopicSettings;

use super::{Consumer, Log, LogError, Outbox, Record, Result, Topic, TopicPartition, TopicSpec};
use client::Context;
use consumer::KafkaConsumer;
use producer::Producer;
use reader::Readers;

/// Between attempts of a request.
const RETRY: Duration = Duration::from_millis(100);

/// How many events librdkafka may have for us when a call failed.
const EVENTS_MAX: usize = 100;

/// A [`Log`] on Kafka.
pub struct KafkaLog {
    inner: Arc<Inner>,
}

struct Inner {
    options: KafkaOptions,
    /// For metadata and offsets.
    client: Mutex<Arc<BaseConsumer<Context>>>,
    /// When the clients were last made.
    renewed: Mutex<Instant>,
    readers: Readers,
    /// For the committed offsets of groups, by group.
    groups: Mutex<HashMap<String, Arc<BaseConsumer<Context>>>>,
    /// Members of this process that went, by group and name, and whether they are closed. A
    /// successor under the same name waits: a request of theirs that is under way would take its place.
    former: Mutex<HashMap<String, bool>>,
    /// For what is appended outside of a commit; made when it is first needed.
    appender: Mutex<Option<Producer>>,
}

impl KafkaLog {
    /// Connects, and fails if no broker answers.
    pub fn connect(options: KafkaOptions) -> Result<KafkaLog> {
        let client = Mutex::new(Arc::new(Inner::make_client(&options)?));
        let renewed = Mutex::new(Instant::now());
        let (readers, groups, former, appender) = Default::default();
        let inner = Inner { options, client, renewed, readers, groups, former, appender };
        inner.metadata(None)?;
        Ok(KafkaLog { inner: Arc::new(inner) })
    }

    /// Number of brokers that are up, and the name of the cluster's first.
    pub fn brokers(&self) -> Result<Vec<String>> {
        let metadata = self.inner.metadata(None)?;
        Ok(metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect())
    }
}

impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLog").field("brokers", &self.inner.options.brokers).finish_non_exhaustive()
    }
}

impl Inner {
    fn make_client(options: &KafkaOptions) -> Result<BaseConsumer<Context>> {
        BaseConsumer::from_config_and_context(&options.reader(None), Context::new(options))
            .map_err(|error| LogError::Refused(format!("the Kafka client's configuration: {error}")))
    }

    fn client(&self) -> Arc<BaseConsumer<Context>> {
        Arc::clone(&self.client.lock())
    }

    /// What a failed call comes to, once librdkafka has told what it knows.
    fn explain(&self, doing: &str, error: &KafkaError) -> LogError {
        let client = self.client();
        // A poll that served a log line gives nothing, as one does that found nothing.
        for _ in 0..EVENTS_MAX {
            if let Some(Err(error)) = client.poll(Duration::ZERO) {
                client.context().note(&error);
            }
        }
        let explained = client.context().explain(&format!("Kafka at {}: {doing}", self.options.brokers), error);
        if matches!(explained, LogError::Unavailable(_)) {
            self.renew();
        }
        explained
    }

    /// Makes the clients anew, at most once in a while: one that was told of no brokers at all, as
    /// happens while they start, has been seen to find none ever after
    /// (confluentinc/librdkafka#5301).
    fn renew(&self) {
        let mut renewed = self.renewed.lock();
        if renewed.elapsed() < self.options.request_timeout {
            return;
        }
        if let Ok(client) = Self::make_client(&self.options) {
            *self.client.lock() = Arc::new(client);
            self.readers.clear();
            self.groups.lock().clear();
            *renewed = Instant::now();
        }
    }

    fn metadata(&self, topic: Option<&str>) -> Result<rdkafka::metadata::Metadata> {
        self.client()
            .fetch_metadata(topic, self.options.request_timeout)
            .map_err(|error| self.explain("asking for metadata", &error))
    }

    fn partitions(&self, topic: &str) -> Result<u32> {
        let name = self.options.prefixed(topic);
        let metadata = self.metadata(Some(&name))?;
        let found = metadata.topics().iter().find(|known| known.name() == name);
        match found {
            Some(found) if found.error().is_none() && !found.partitions().is_empty() => {
                Ok(found.partitions().len() as u32)
            }
            Some(found)
                if found.error().is_some_and(|error| {
                    RDKafkaErrorCode::from(error) == RDKafkaErrorCode::TopicAuthorizationFailed
                }) =>
            {
                Err(LogError::Refused(format!("topic `{topic}`: this user may not read it")))
            }
            _ => Err(LogError::UnknownTopic(topic.to_owned())),
        }
    }

    /// The partitions as Kafka has them, each with an offset.
    fn list<'a>(
        &self,
        partitions: impl IntoIterator<Item = (&'a TopicPartition, Offset)>,
    ) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in partitions {
            list.add_partition_offset(&self.options.prefixed(&partition.topic), partition.partition as i32, offset)
                .map_err(|error| LogError::Storage(format!("{partition}, {offset:?}: {error}")))?;
        }
        Ok(list)
    }

    /// The partitions as Kafka has them, each with the offset of its next record, and all with the metadata.
    fn positions<'a>(
        &self,
        offsets: impl IntoIterator<Item = (&'a TopicPartition, &'a u64)>,
        metadata: &str,
    ) -> Result<TopicPartitionList> {
        let list =
            self.list(offsets.into_iter().map(|(partition, &offset)| (partition, Offset::Offset(offset as i64))))?;
        if !metadata.is_empty() {
            list.elements().iter_mut().for_each(|element| element.set_metadata(metadata));
        }
        Ok(list)
    }

    /// The offset of each element in the order of `partitions`.
    fn in_order(&self, partitions: &[TopicPartition], list: &TopicPartitionList) -> Vec<Offset> {
        let of = |partition: &TopicPartition| {
            list.find_partition(&self.options.prefixed(&partition.topic), partition.partition as i32)
        };
        partitions.iter().map(|partition| of(partition).map_or(Offset::Invalid, |element| element.offset())).collect()
    }

    /// The offset of each partition at `at`: `Beginning`, `End` (behind the last record that
    /// `read_committed` may see), or a time in milliseconds. One request for all of a broker's.
    fn offsets(&self, partitions: &[TopicPartition], at: Offset) -> Result<Vec<u64>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.options.request_timeout;
        let list = loop {
            let asked = self.list(partitions.iter().map(|partition| (partition, at)))?;
            let client = self.client();
            match client.offsets_for_times(asked, self.options.request_timeout) {
                Ok(list) => break list,
                // A leader that was just chosen is not known everywhere at once.
                Err(error) if Instant::now() < deadline && client.context().refused().is_none() => {
                    tracing::debug!(%error, "asking for offsets");
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err(self.explain("asking for offsets", &error)),
            }
        };
        let number = |(partition, offset): (&TopicPartition, Offset)| match offset {
            Offset::Offset(offset) => Ok(offset as u64),
            // No record is as late as the time asked for.
            Offset::End if at != Offset::End => Ok(self.offsets(std::slice::from_ref(partition), Offset::End)?[0]),
            _ => Err(LogError::Unavailable(format!("{partition}: the brokers gave no offset"))),
        };
        partitions.iter().zip(self.in_order(partitions, &list)).map(number).collect()
    }

    fn group(&self, group: &str) -> Result<Arc<BaseConsumer<Context>>> {
        let mut groups = self.groups.lock();
        if let Some(known) = groups.get(group) {
            return Ok(Arc::clone(known));
        }
        let config = self.options.reader(Some(group));
        let consumer = BaseConsumer::from_config_and_context(&config, Context::new(&self.options))
            .map_err(|error| LogError::Refused(format!("making a consumer: {error}")))?;
        Ok(Arc::clone(groups.entry(group.to_owned()).or_insert(Arc::new(consumer))))
    }

    /// The committed offsets of a group, each with its metadata. Waits for transactions that a former owner left open.
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<(u64, String)>>> {
        let consumer = self.group(group)?;
        let timeout = self.options.request_timeout + self.options.transaction_timeout;
        let deadline = Instant::now() + timeout;
        let list = loop {
            let asked = self.list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
            match consumer.committed_offsets(asked, timeout) {
                Ok(list) => break list,
                // A coordinator that moves is not known everywhere at once.
                Err(error) if Instant::now() < deadline && consumer.context().refused().is_none() => {
                    tracing::debug!(group, %error, "asking for committed offsets");
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err(self.explain(&format!("asking for the offsets of group {group}"), &error)),
            }
        };
        let committed = |partition: &TopicPartition| {
            let found = list.find_partition(&self.options.prefixed(&partition.topic), partition.partition as i32)?;
            match found.offset() {
                Offset::Offset(offset) => Some((u64::try_from(offset).ok()?, found.metadata().to_owned())),
                _ => None,
            }
        };
        Ok(partitions.iter().map(committed).collect())
    }

    fn read(&self, partition: &TopicPartition, from: u64, max_records: usize) -> Result<Vec<Record>> {
        self.readers.read(&self.options, partition, from, max_records)
    }
}

fn all(topic: &str, partitions: u32) -> Vec<TopicPartition> {
    (0..partitions).map(|partition| TopicPartition { topic: topic.to_owned(), partition }).collect()
}

impl Log for KafkaLog {
    fn create_topic(&self, spec: &TopicSpec) -> Result<()> {
        match self.inner.partitions(&spec.name) {
            Ok(existing) if existing == spec.partitions => return Ok(()),
            Ok(existing) => {
                let (topic, asked) = (spec.name.clone(), spec.partitions);
                return Err(LogError::PartitionsDiffer { topic, existing, asked });
            }
            Err(LogError::UnknownTopic(_)) => {}
            Err(error) => return Err(error),
        }
        let context = Context::new(&self.inner.options);
        let admin = AdminClient::from_config_and_context(&self.inner.options.reader(None), context)
            .map_err(|error| LogError::Refused(format!("making an admin client: {error}")))?;
        let replication = self.inner.options.replication_factor.map_or(-1, i32::from);
        let name = self.inner.options.prefixed(&spec.name);
        let mut topic = NewTopic::new(&name, spec.partitions as i32, TopicReplication::Fixed(replication));
        let retention = spec.retention.map_or("-1".to_owned(), |retention| retention.as_millis().to_string());
        topic = topic.set("retention.ms", &retention);
        let options = AdminOptions::new().operation_timeout(Some(self.inner.options.request_timeout));
        let created = block_on(admin.create_topics([&topic], &options))
            .map_err(|error| self.inner.explain(&format!("creating topic `{}`", spec.name), &error))?;
        for result in created {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(LogError::Refused(format!("creating topic `{name}`: {code}"))),
            }
        }
        // The other brokers hear of it a little later.
        for _ in 0..100 {
            match self.inner.partitions(&spec.name) {
                Err(LogError::UnknownTopic(_)) => std::thread::sleep(Duration::from_millis(50)),
                known => return known.map(|_| ()),
            }
        }
        Err(LogError::UnknownTopic(spec.name.clone()))
    }

    fn topics(&self) -> Result<Vec<Topic>> {
        let metadata = self.inner.metadata(None)?;
        let prefix = self.inner.options.topic_prefix.as_str();
        let names = metadata.topics().iter().filter_map(|topic| topic.name().strip_prefix(prefix));
        let mut names: Vec<&str> = names.filter(|name| !name.starts_with("__")).collect();
        names.sort_unstable();
        names.into_iter().map(|name| self.topic(name)).collect()
    }

    /// Retention is the brokers' affair: it is `None` here.
    fn topic(&self, name: &str) -> Result<Topic> {
        let partitions = self.inner.partitions(name)?;
        let of_all = all(name, partitions);
        let starts = self.inner.offsets(&of_all, Offset::Beginning)?;
        let ends = self.inner.offsets(&of_all, Offset::End)?;
        let offsets: Vec<Range<u64>> = starts.into_iter().zip(ends).map(|(start, end)| start..end).collect();
        Ok(Topic { spec: TopicSpec { name: name.to_owned(), partitions, retention: None }, offsets })
    }

    fn ends(&self, topic: &str) -> Result<Vec<u64>> {
        let partitions = self.inner.partitions(topic)?;
        self.inner.offsets(&all(topic, partitions), Offset::End)
    }

    fn read(&self, partition: &TopicPartition, from: u64, max_records: usize) -> Result<Vec<Record>> {
        self.inner.read(partition, from, max_records)
    }

    fn offset_at(&self, partition: &TopicPartition, timestamp_us: i64) -> Result<u64> {
        let millis = Offset::Offset(timestamp_us.div_euclid(1000).max(0));
        Ok(self.inner.offsets(std::slice::from_ref(partition), millis)?[0])
    }

    /// Each of the records at least once and in their order, also where sending is retried; but
    /// some of them may stand in the log when it fails.
    fn append(&self, records: &Outbox) -> Result<()> {
        let mut appender = self.inner.appender.lock();
        if appender.is_none() {
            *appender = Some(Producer::new(&self.inner.options, None)?);
        }
        let Some(producer) = &*appender else { return Ok(()) };
        let delivered = producer.deliver(records, &|topic| self.inner.options.prefixed(topic));
        if delivered.is_err() {
            *appender = None;
        }
        delivered
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<u64>> {
        let committed = self.inner.committed(group, std::slice::from_ref(partition))?.pop().flatten();
        Ok(committed.map(|(offset, _)| offset))
    }

    fn committed_metadata(&self, group: &str, partition: &TopicPartition) -> Result<String> {
        let committed = self.inner.committed(group, std::slice::from_ref(partition))?.pop().flatten();
        Ok(committed.map(|(_, metadata)| metadata).unwrap_or_default())
    }

    fn join(&self, group: &str, member: &str, topics: &[&str]) -> Result<Box<dyn Consumer>> {
        Ok(Box::new(KafkaConsumer::join(Arc::clone(&self.inner), group, member, topics)?))
    }
}
