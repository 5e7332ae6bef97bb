//! The configuration of the services: one YAML file, what it leaves out by default, and overrides
//! from the environment.

mod check;
mod load;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use std::collections::BTreeMap;

use anyhow::Context;
use feature_store::{CqlOptions, RedisOptions};
use models::{Artifact, Device, Follow, ModelThread, Registry, ServeOptions};
use scorer::WorkerOptions;
use scorer::log::kafka::{Sasl, Tls};
use scorer::log::{Delivery, KafkaOptions};
use serde::Deserialize;

pub(crate) use check::{CheckArgs, run as check};
pub(crate) use load::ConfigArgs;
use load::{address, share};
pub(crate) use load::{optional_span, span};

/// Everything that the services can be told. Fields are named as in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Tells this process apart from the others that share its work; the host's name if none.
    pub(crate) instance: Option<String>,
    pub(crate) kafka: KafkaConfig,
    pub(crate) topics: TopicsConfig,
    pub(crate) store: StoreConfig,
    pub(crate) features: FeaturesConfig,
    pub(crate) model: ModelConfig,
    pub(crate) scorer: ScorerConfig,
    pub(crate) materializer: MaterializerConfig,
    pub(crate) server: ServerConfig,
    /// How long a process that is told to end may take to finish what it has begun.
    #[serde(deserialize_with = "span")]
    pub(crate) drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            instance: None,
            kafka: KafkaConfig::default(),
            topics: TopicsConfig::default(),
            store: StoreConfig::default(),
            features: FeaturesConfig::default(),
            model: ModelConfig::default(),
            scorer: ScorerConfig::default(),
            materializer: MaterializerConfig::default(),
            server: ServerConfig::default(),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// The brokers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KafkaConfig {
    /// `host:port`, separated by commas.
    pub(crate) brokers: String,
    /// What the names of all topics and groups begin with, as in `staging.`.
    pub(crate) topic_prefix: String,
    pub(crate) tls: Option<Tls>,
    pub(crate) sasl: Option<Sasl>,
    /// Whether a process that ends gives its partitions to the others at once. Without it they wait for it until the session
    /// timeout: a restart under the same `instance` moves nothing.
    pub(crate) leave_on_stop: bool,
    #[serde(deserialize_with = "span")]
    pub(crate) session_timeout: Duration,
    #[serde(deserialize_with = "span")]
    pub(crate) transaction_timeout: Duration,
    #[serde(deserialize_with = "span")]
    pub(crate) request_timeout: Duration,
    /// librdkafka properties by name; they win.
    pub(crate) properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> KafkaConfig {
        let options = KafkaOptions::default();
        KafkaConfig {
            brokers: options.brokers,
            topic_prefix: options.topic_prefix,
            tls: None,
            sasl: None,
            leave_on_stop: options.leave_on_stop,
            session_timeout: options.session_timeout,
            transaction_timeout: options.transaction_timeout,
            request_timeout: options.request_timeout,
            properties: BTreeMap::new(),
        }
    }
}

/// What topics are created with where they are missing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TopicsConfig {
    /// Whether missing topics may be created at all.
    pub(crate) create: bool,
    pub(crate) partitions: u32,
    /// The brokers' default if none.
    pub(crate) replication_factor: Option<u16>,
    /// How long records are kept; must be longer than the longest window reaches.
    #[serde(deserialize_with = "optional_span")]
    pub(crate) retention: Option<Duration>,
}

impl Default for TopicsConfig {
    fn default() -> TopicsConfig {
        TopicsConfig { create: true, partitions: 8, replication_factor: None, retention: None }
    }
}

/// The online store: one of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoreConfig {
    Redis(RedisOptions),
    /// ScyllaDB or Cassandra.
    Cql(CqlOptions),
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig::Redis(RedisOptions::default())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FeaturesConfig {
    /// Definitions in YAML; the Handbook's if none.
    pub(crate) path: Option<PathBuf>,
}

/// What is served: an artifact, or what an alias of a registry stands at.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelConfig {
    /// Folder of the artifact; without it and without a registry, the model in the binary.
    pub(crate) path: Option<PathBuf>,
    /// Folder of the registry. Moves of the aliases are followed without a pause.
    pub(crate) registry: Option<PathBuf>,
    /// Of the model in the registry.
    pub(crate) name: Option<String>,
    pub(crate) alias: String,
    /// Alias of a model that scores beside it, into a topic of its own.
    pub(crate) challenger: Option<String>,
    /// How often the registry is looked at.
    #[serde(deserialize_with = "span")]
    pub(crate) poll_interval: Duration,
    /// Alert at the threshold of this one of the model's alert budgets, as in 0.01; its own default if none. A model of a registry
    /// goes by its own.
    pub(crate) alert_budget: Option<f64>,
    /// `auto`, `cpu` or `cuda:N`.
    pub(crate) device: String,
    /// A CUDA device that takes longer than this for a batch is lost.
    #[serde(deserialize_with = "span")]
    pub(crate) stuck_after: Duration,
    /// What scores in the place of a device that is lost; without it the service ends.
    pub(crate) fallback: Option<Fallback>,
}

/// What takes the place of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fallback {
    Cpu,
}

impl Default for ModelConfig {
    fn default() -> ModelConfig {
        ModelConfig {
            path: None,
            registry: None,
            name: None,
            alias: models::CHAMPION.to_owned(),
            challenger: None,
            poll_interval: Duration::from_secs(1),
            alert_budget: None,
            device: "auto".to_owned(),
            stuck_after: ServeOptions::default().stuck_after,
            fallback: None,
        }
    }
}

impl ModelConfig {
    /// The model, loaded and warm.
    pub(crate) fn serve(&self) -> anyhow::Result<ModelThread> {
        let device: Device = self.device.parse().context("model.device in the configuration")?;
        let (stuck_after, fallback_to_cpu) = (self.stuck_after, self.fallback == Some(Fallback::Cpu));
        let options = ServeOptions { device, stuck_after, fallback_to_cpu, ..ServeOptions::default() };
        let artifact = match (&self.path, &self.registry) {
            (Some(_), Some(_)) => anyhow::bail!("the model has a `path` and a `registry`: leave one of them out"),
            (None, Some(_)) if self.alert_budget.is_some() => {
                anyhow::bail!(
                    "the model has a `registry` and an `alert_budget`: versions of a registry go by their own"
                )
            }
            (None, Some(registry)) => {
                let name =
                    self.name.clone().context("the model has a `registry` and no `name`: say which of its models")?;
                let follow = Follow {
                    registry: Registry::open(registry)?,
                    name,
                    alias: self.alias.clone(),
                    challenger: self.challenger.clone(),
                    poll_interval: self.poll_interval,
                };
                return Ok(ModelThread::follow(follow, &options)?);
            }
            (_, None) if self.name.is_some() || self.challenger.is_some() => {
                anyhow::bail!("the model has a `name` or a `challenger` and no `registry`: say where it is")
            }
            (Some(path), None) => Artifact::load(path)?,
            (None, None) => Artifact::bundled()?,
        };
        let artifact = match self.alert_budget {
            Some(alert_budget) => artifact.with_alert_budget(alert_budget)?,
            None => artifact,
        };
        Ok(ModelThread::start(artifact, &options)?)
    }
}

/// `fraudline score`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ScorerConfig {
    /// Where health, readiness and metrics are served.
    #[serde(deserialize_with = "address")]
    pub(crate) http: SocketAddr,
    pub(crate) delivery: Delivery,
    /// Threads, each a member of the group with partitions of its own.
    pub(crate) workers: u16,
    pub(crate) batch_events_max: usize,
    pub(crate) batches_in_flight_max: usize,
    #[serde(deserialize_with = "span")]
    pub(crate) checkpoint_interval: Duration,
    /// Memory for card states, all workers together.
    pub(crate) state_bytes_max: usize,
    /// Memory for the caches of the views that others keep, all workers together.
    pub(crate) view_cache_bytes: u64,
    #[serde(deserialize_with = "span")]
    pub(crate) view_wait_max: Duration,
    /// How long the registry is waited for when partitions are assigned.
    #[serde(deserialize_with = "span")]
    pub(crate) registry_wait_max: Duration,
    #[serde(deserialize_with = "span")]
    pub(crate) future_skew: Duration,
    /// Which share of the scores carries the vector they were made from: 0.01, or 1 for all.
    #[serde(deserialize_with = "share")]
    pub(crate) log_features: f64,
    /// How many reasons an alert carries at most; 0 for none.
    pub(crate) reasons: usize,
}

impl Default for ScorerConfig {
    fn default() -> ScorerConfig {
        let options = WorkerOptions::default();
        ScorerConfig {
            http: ([127, 0, 0, 1], 6567).into(),
            delivery: Delivery::default(),
            workers: 1,
            batch_events_max: options.batch_events_max,
            batches_in_flight_max: options.batches_in_flight_max,
            checkpoint_interval: options.checkpoint_interval,
            state_bytes_max: options.state_bytes_max,
            view_cache_bytes: scorer::worker::VIEW_CACHE_BYTES,
            view_wait_max: options.view_wait_max,
            registry_wait_max: options.registry_wait_max,
            future_skew: options.future_skew,
            log_features: options.log_features,
            reasons: options.reasons,
        }
    }
}

/// `fraudline materialize`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MaterializerConfig {
    #[serde(deserialize_with = "address")]
    pub(crate) http: SocketAddr,
    pub(crate) batch_records_max: usize,
    pub(crate) state_bytes_max: usize,
    #[serde(deserialize_with = "span")]
    pub(crate) checkpoint_interval: Duration,
    #[serde(deserialize_with = "span")]
    pub(crate) commit_interval: Duration,
}

impl Default for MaterializerConfig {
    fn default() -> MaterializerConfig {
        let options = materializer::MaterializerOptions::default();
        MaterializerConfig {
            http: ([127, 0, 0, 1], 6568).into(),
            batch_records_max: options.batch_records_max,
            state_bytes_max: options.state_bytes_max,
            checkpoint_interval: options.checkpoint_interval,
            commit_interval: options.commit_interval,
        }
    }
}

/// `fraudline serve`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    #[serde(deserialize_with = "address")]
    pub(crate) http: SocketAddr,
    /// Attempts of a lookup while the store is away.
    pub(crate) store_attempts: u32,
    /// Memory for states that were read already, of each view.
    pub(crate) cache_bytes: u64,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig { http: ([127, 0, 0, 1], 6566).into(), store_attempts: 3, cache_bytes: 128 << 20 }
    }
}

impl Config {
    /// The name of this process in its groups.
    pub(crate) fn instance(&self) -> String {
        if let Some(instance) = &self.instance {
            return instance.clone();
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if name.trim().is_empty() { "fraudline".to_owned() } else { name.trim().to_owned() }
    }

    pub(crate) fn kafka(&self, instance: String, delivery: Delivery) -> KafkaOptions {
        KafkaOptions {
            brokers: self.kafka.brokers.clone(),
            topic_prefix: self.kafka.topic_prefix.clone(),
            tls: self.kafka.tls.clone(),
            sasl: self.kafka.sasl.clone(),
            delivery,
            instance,
            leave_on_stop: self.kafka.leave_on_stop,
            session_timeout: self.kafka.session_timeout,
            transaction_timeout: self.kafka.transaction_timeout,
            request_timeout: self.kafka.request_timeout,
            replication_factor: self.topics.replication_factor,
            gather: None,
            properties: self.kafka.properties.clone(),
        }
    }

    pub(crate) fn worker(&self) -> WorkerOptions {
        let scorer = &self.scorer;
        let workers = usize::from(scorer.workers.max(1));
        WorkerOptions {
            batch_events_max: scorer.batch_events_max,
            batches_in_flight_max: scorer.batches_in_flight_max,
            checkpoint_interval: scorer.checkpoint_interval,
            state_bytes_max: scorer.state_bytes_max / workers,
            view_wait_max: scorer.view_wait_max,
            registry_wait_max: scorer.registry_wait_max,
            future_skew: scorer.future_skew,
            log_features: scorer.log_features,
            reasons: scorer.reasons,
        }
    }
}
