//! How the brokers are reached, and what is asked of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Deserialize;

/// Whether a transaction binds outputs and offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Outputs and consumed offsets in one Kafka transaction: a `read_committed` consumer sees the
    /// output of each record exactly once.
    #[default]
    ExactlyOnce,
    /// Outputs are visible at once. A crash repeats those whose offsets were not committed yet; each
    /// names the topic, partition and offset that it came from.
    AtLeastOnce,
}

/// What the log asks of Kafka.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// What the names of all topics, groups and transactional ids begin with, as in `staging.`.
    pub topic_prefix: String,
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
    pub delivery: Delivery,
    /// Tells this process apart from the others of its groups. Who starts again under the same name
    /// within the session timeout gets its partitions back without a rebalance; who starts
    /// while another runs under that name takes its place.
    pub instance: String,
    /// Whether a member that ends leaves its groups: others have its partitions at once, and it gets some back when it starts
    /// again, by a rebalance each. Without it they wait for it until the session timeout, and it goes on with them.
    pub leave_on_stop: bool,
    /// How long a member may be silent before its partitions are given to others.
    pub session_timeout: Duration,
    /// After this long the broker gives up a transaction that hangs.
    pub transaction_timeout: Duration,
    /// How long a call waits for the brokers before it fails as unavailable.
    pub request_timeout: Duration,
    /// How long the brokers may gather records before they answer a member's fetch: fewer, larger
    /// answers, for who is in no hurry. `None`: they answer as soon as there is one.
    pub gather: Option<Duration>,
    /// Replicas of topics that are created; `None` leaves it to the broker.
    pub replication_factor: Option<u16>,
    /// librdkafka properties, for every client; they win over all of the above.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaOptions {
    fn default() -> KafkaOptions {
        KafkaOptions {
            brokers: "localhost:9092".to_owned(),
            topic_prefix: String::new(),
            tls: None,
            sasl: None,
            delivery: Delivery::default(),
            instance: "fraudline".to_owned(),
            leave_on_stop: true,
            session_timeout: Duration::from_secs(120),
            transaction_timeout: Duration::from_secs(15),
            request_timeout: Duration::from_secs(10),
            gather: None,
            replication_factor: None,
            properties: BTreeMap::new(),
        }
    }
}

/// Encryption, and who is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file of the authorities that the brokers' certificates are checked against; the
    /// system's if none.
    pub ca_certificate: Option<PathBuf>,
    /// PEM files of this client's certificate and its key, where the brokers ask for one.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// How this client proves who it is.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    pub mechanism: Mechanism,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
    /// For OAUTHBEARER: a file with the token (a JWT), read anew whenever the last one runs out.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Sasl");
        shown.field("mechanism", &self.mechanism).field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    fn as_str(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// How long a fetch waits at the broker for the first record.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// Gathered records of more than this are not waited with.
const GATHER_BYTES: &str = "262144";

fn millis(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}

impl KafkaOptions {
    /// How often a member shows that it is alive.
    pub(super) fn heartbeat(&self) -> Duration {
        (self.session_timeout / 4).min(Duration::from_secs(3))
    }

    /// The name of a topic or a group as Kafka has it.
    pub(super) fn prefixed(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }

    /// What every client has.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Warning);
        config.set("bootstrap.servers", &self.brokers).set("client.id", format!("fraudline-{}", self.instance));
        // A broker that comes back is found within this long, not within librdkafka's 10 s.
        config.set("reconnect.backoff.max.ms", "1000");
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            for (name, file) in [
                ("ssl.ca.location", &tls.ca_certificate),
                ("ssl.certificate.location", &tls.certificate),
                ("ssl.key.location", &tls.key),
            ] {
                if let Some(file) = file {
                    config.set(name, file.display().to_string());
                }
            }
        }
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanism", sasl.mechanism.as_str());
            if sasl.mechanism != Mechanism::OauthBearer {
                config.set("sasl.username", &sasl.username).set("sasl.password", &sasl.password);
            }
        }
        config
    }

    fn finish(&self, mut config: ClientConfig) -> ClientConfig {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    /// For metadata, offsets and topics; for reading outside of a group if `group` is none.
    pub(super) fn reader(&self, group: Option<&str>) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("queued.min.messages", "20000")
            .set("queued.max.messages.kbytes", "16384");
        if let Some(group) = group {
            config.set("group.id", self.prefixed(group));
        }
        self.finish(config)
    }

    /// For a member of a group.
    pub(super) fn consumer(&self, group: &str, member: &str) -> ClientConfig {
        let mut config = self.reader(Some(group));
        config
            .set("group.instance.id", member)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", millis(self.session_timeout))
            .set("heartbeat.interval.ms", millis(self.heartbeat()))
            // A member that waits for its store, or rebuilds its states, is not to lose its partitions.
            .set("max.poll.interval.ms", millis(self.session_timeout.max(Duration::from_secs(900))))
            // What is fetched ahead is all that a slow worker holds (I6): the rest stays in the log.
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "8192")
            .set("fetch.wait.max.ms", millis(self.gather.unwrap_or(FETCH_WAIT)));
        if self.gather.is_some() {
            config.set("fetch.min.bytes", GATHER_BYTES);
        }
        self.finish(config)
    }

    /// For outputs; transactional with an id.
    pub(super) fn producer(&self, transactional_id: Option<&str>) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "0")
            // More than one batch of a worker; beyond it, sending waits.
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "131072");
        match transactional_id {
            Some(id) => config
                .set("transactional.id", id)
                .set("transaction.timeout.ms", millis(self.transaction_timeout))
                .set("message.timeout.ms", millis(self.transaction_timeout)),
            None => config.set("message.timeout.ms", millis(self.transaction_timeout)),
        };
        self.finish(config)
    }
}
