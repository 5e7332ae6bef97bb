//! Reads of a partition outside of any group: recovery, people, tools.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::KafkaOptions;
use super::client::Context;
use super::consumer::record;
use crate::log::{LogError, Record, Result, TopicPartition};

/// Readers kept for the next call: one for each partition that is read at the same time. A reader that begins elsewhere waits for its
/// first fetch, which costs more than the records of a call.
const READERS_MAX: usize = 32;

/// Hands out readers. One that stands where a call goes on is used again: its next records have
/// come meanwhile.
#[derive(Default)]
pub(super) struct Readers {
    idle: Mutex<Vec<Reader>>,
}

struct Reader {
    consumer: BaseConsumer<Context>,
    partition: TopicPartition,
    position: u64,
}

impl Readers {
    /// Up to `max_records` from `from` on, fewer only at the end of the partition.
    pub(super) fn read(
        &self,
        options: &KafkaOptions,
        partition: &TopicPartition,
        from: u64,
        max_records: usize,
    ) -> Result<Vec<Record>> {
        let mut reader = self.take(options, partition, from)?;
        let records = reader.read(options, max_records)?;
        let mut idle = self.idle.lock();
        if idle.len() < READERS_MAX {
            idle.push(reader);
        }
        Ok(records)
    }

    /// Forgets those that are kept.
    pub(super) fn clear(&self) {
        self.idle.lock().clear();
    }

    fn take(&self, options: &KafkaOptions, partition: &TopicPartition, from: u64) -> Result<Reader> {
        let mut reader = {
            let mut idle = self.idle.lock();
            if let Some(at) = idle.iter().position(|known| known.partition == *partition && known.position == from) {
                return Ok(idle.swap_remove(at));
            }
            idle.pop()
        };
        if reader.is_none() {
            // librdkafka asks for a group's name, also of a consumer that joins none.
            let config = options.reader(Some("fraudline-reader"));
            let consumer = BaseConsumer::from_config_and_context(&config, Context::new(options))
                .map_err(|error| LogError::Refused(format!("making a consumer: {error}")))?;
            reader = Some(Reader { consumer, partition: partition.clone(), position: from });
        }
        let Some(mut reader) = reader else { return Err(LogError::UnknownTopic(partition.topic.clone())) };
        let topic = options.prefixed(&partition.topic);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, partition.partition as i32, Offset::Offset(from as i64))
            .and_then(|()| reader.consumer.assign(&list))
            .map_err(|error| reader.explain(&error))?;
        (reader.partition, reader.position) = (partition.clone(), from);
        Ok(reader)
    }
}

impl Reader {
    fn explain(&self, error: &KafkaError) -> LogError {
        self.consumer.context().explain(&format!("reading {}", self.partition), error)
    }

    fn read(&mut self, options: &KafkaOptions, max_records: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut deadline = Instant::now() + options.request_timeout;
        while records.len() < max_records {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    // What an earlier assignment fetched may still come.
                    if message.partition() != self.partition.partition as i32 {
                        continue;
                    }
                    let record = record(&message)?;
                    if record.offset < self.position {
                        continue;
                    }
                    self.position = record.offset + 1;
                    records.push(record);
                    deadline = Instant::now() + options.request_timeout;
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == self.partition.partition as i32 => {
                    // It is told once: who reads on from here is assigned anew.
                    self.position = u64::MAX;
                    break;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(rdkafka::error::RDKafkaErrorCode::AutoOffsetReset) => {
                        let (partition, offset) = (self.partition.clone(), self.position);
                        return Err(LogError::OutOfRange { partition, offset });
                    }
                    _ => self.consumer.context().note(&error),
                },
                None => {}
            }
            if let Some(reason) = self.consumer.context().refused() {
                return Err(LogError::Refused(reason));
            }
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!("reading {}: no answer from the brokers", self.partition)));
            }
        }
        Ok(records)
    }
}
