//! The context of a group's member: what the group decides, kept until the member takes note of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::TopicPartitionList;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::util::Timeout;

use super::KafkaOptions;
use super::client::Context;
use crate::log::TopicPartition;

/// What the group decided.
#[derive(Debug)]
pub(super) enum Decision {
    Assign(Vec<TopicPartition>),
    /// To be given up, once what is under way on them is committed.
    Revoke(Vec<TopicPartition>),
    /// Others may own them already.
    Lose(Vec<TopicPartition>),
}

#[derive(Debug, Default)]
pub(super) struct GroupContext {
    pub(super) client: Context,
    topic_prefix: String,
    decisions: Mutex<VecDeque<Decision>>,
    /// Set once the member goes: what is revoked then is given up at once.
    leaving: AtomicBool,
    /// Another has joined under this member's name.
    fenced: AtomicBool,
    arrivals: Mutex<u64>,
    arrived: Condvar,
}

impl GroupContext {
    pub(super) fn new(options: &KafkaOptions) -> GroupContext {
        let (client, topic_prefix) = (Context::new(options), options.topic_prefix.clone());
        GroupContext { client, topic_prefix, ..GroupContext::default() }
    }

    /// Takes note of an error that a poll gave.
    pub(super) fn note(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::FencedInstanceId) {
            self.fenced.store(true, SeqCst);
        }
        self.client.note(error);
    }

    pub(super) fn next_decision(&self) -> Option<Decision> {
        self.decisions.lock().pop_front()
    }

    /// The first of these partitions that a decision not yet taken note of takes away for good.
    pub(super) fn takes_away(&self, offsets: &[(TopicPartition, u64)]) -> Option<TopicPartition> {
        let decisions = self.decisions.lock();
        let lost = decisions.iter().filter_map(|decision| match decision {
            Decision::Lose(partitions) => Some(partitions),
            Decision::Assign(_) | Decision::Revoke(_) => None,
        });
        let lost: Vec<&TopicPartition> = lost.flatten().collect();
        offsets.iter().map(|(partition, _)| partition).find(|partition| lost.contains(partition)).cloned()
    }

    pub(super) fn leave(&self) {
        self.leaving.store(true, SeqCst);
    }

    pub(super) fn fenced(&self) -> bool {
        self.fenced.load(SeqCst)
    }

    /// Grows with everything that arrives for this member.
    pub(super) fn arrivals(&self) -> u64 {
        *self.arrivals.lock()
    }

    /// Something arrived: a record, or a decision.
    pub(super) fn announce(&self) {
        *self.arrivals.lock() += 1;
        self.arrived.notify_all();
    }

    /// Waits until more than `seen` has arrived, or the deadline.
    pub(super) fn wait(&self, seen: u64, deadline: Instant) {
        let mut arrivals = self.arrivals.lock();
        while *arrivals == seen {
            if self.arrived.wait_until(&mut arrivals, deadline).timed_out() {
                return;
            }
        }
    }
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.client.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.note(&error);
        self.client.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.client.generate_oauth_token(config)
    }
}

impl ConsumerContext for GroupContext {
    /// Takes note; the member assigns and unassigns when it comes to it. librdkafka waits for that.
    fn rebalance(&self, consumer: &BaseConsumer<GroupContext>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.leaving.load(SeqCst) {
            // Nobody is left to answer such a call once the consumer is closed.
            if consumer.closed() {
                return;
            }
            let done = if assigned { consumer.incremental_assign(list) } else { consumer.incremental_unassign(list) };
            if let Err(error) = done {
                tracing::debug!(%error, "leaving the group");
            }
            return;
        }
        let elements = list.elements();
        let partitions = elements
            .iter()
            .map(|element| TopicPartition {
                topic: element.topic().strip_prefix(&self.topic_prefix).unwrap_or(element.topic()).to_owned(),
                partition: u32::try_from(element.partition()).unwrap_or_default(),
            })
            .collect();
        let decision = match assigned {
            true => Decision::Assign(partitions),
            false if consumer.assignment_lost() => Decision::Lose(partitions),
            false => Decision::Revoke(partitions),
        };
        self.decisions.lock().push_back(decision);
        self.announce();
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(100))
    }
}
