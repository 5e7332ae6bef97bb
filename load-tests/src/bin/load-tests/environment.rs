//! Where a run takes place: brokers, a store, names of its own, and a folder.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use feature_store::{CqlOptions, CqlStore, OnlineStore, RedisOptions, RedisStore};
use schemas::topics;
use scorer::log::{Delivery, KafkaLog, KafkaOptions, Log, LogError, TopicPartition, TopicSpec};
use serde::Serialize;
use tempfile::TempDir;
use tokio::runtime::Runtime;

#[derive(Clone, Debug, Args)]
pub struct EnvironmentArgs {
    /// host:port, separated by commas
    #[arg(long, env = "FRAUDLINE_TEST_KAFKA", default_value = "127.0.0.1:19092")]
    kafka: String,
    #[arg(long, env = "FRAUDLINE_TEST_REDIS", default_value = "redis://127.0.0.1:16379")]
    redis: String,
    #[arg(long, env = "FRAUDLINE_TEST_CASSANDRA", default_value = "127.0.0.1:19042")]
    cassandra: String,
    #[arg(long, env = "FRAUDLINE_TEST_CASSANDRA_USER", default_value = "cassandra")]
    cassandra_user: String,
    #[arg(long, env = "FRAUDLINE_TEST_CASSANDRA_PASSWORD", default_value = "cassandra", hide_env_values = true)]
    cassandra_password: String,
    /// The binary under test [default: the one beside this one]
    #[arg(long, value_name = "PATH")]
    fraudline: Option<PathBuf>,
    /// What stops and starts brokers and stores [default: infra/local/services of the source tree]
    #[arg(long, value_name = "PATH")]
    services_script: Option<PathBuf>,
    /// Keep topics, states and the folder with the processes' logs
    #[arg(long)]
    keep: bool,
}

/// What runs that measure have in common.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[arg(long, value_enum, default_value_t = Store::Redis)]
    pub store: Store,
    #[arg(long, default_value_t = 8)]
    pub partitions: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    Redis,
    Cassandra,
}

impl Store {
    /// As `infra/local/services` calls it.
    pub fn service(self) -> &'static str {
        match self {
            Store::Redis => "redis",
            Store::Cassandra => "cassandra",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum DeliveryArg {
    ExactlyOnce,
    AtLeastOnce,
}

/// What a run's services are configured with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub store: Store,
    pub partitions: u32,
    pub delivery: DeliveryArg,
    pub log_features: bool,
    /// Whether scorers follow the champion of [`MODEL`] in a registry of the run's own, instead of the model in the binary.
    pub registry: bool,
}

/// The model in a run's registry.
pub const MODEL: &str = "fraud";

/// Topics, states and a folder of one run; gone when dropped.
pub struct Environment {
    args: EnvironmentArgs,
    pub settings: Settings,
    pub prefix: String,
    pub fraudline: PathBuf,
    pub runtime: Runtime,
    /// Set by Ctrl-C or SIGTERM.
    interrupted: Arc<AtomicBool>,
    folder: Option<TempDir>,
    config: PathBuf,
}

impl Environment {
    /// Connects, creates the topics and, where it needs one, the store's schema.
    pub fn new(args: &EnvironmentArgs, settings: Settings) -> anyhow::Result<Environment> {
        let fraudline = fraudline(args)?;
        let folder = tempfile::Builder::new().prefix("fraudline-load-").tempdir().context("making a folder")?;
        let prefix = format!("lt{}.", random_part(folder.path()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        watch_signals(&runtime, &interrupted);
        let config = folder.path().join("fraudline.yaml");
        let environment = Environment {
            args: args.clone(),
            settings,
            prefix,
            fraudline,
            runtime,
            interrupted,
            folder: Some(folder),
            config,
        };
        std::fs::write(&environment.config, environment.yaml()).context("writing the configuration")?;
        let log = environment.log("load-tests")?;
        for name in topics::ALL {
            let partitions = settings.partitions;
            log.create_topic(&TopicSpec { name: name.to_owned(), partitions, retention: None })?;
        }
        if settings.store == Store::Cassandra {
            let migrated = Command::new(&environment.fraudline)
                .args(["store", "migrate", "--replication", "1", "--config"])
                .arg(&environment.config)
                .output()
                .context("running fraudline store migrate")?;
            ensure!(
                migrated.status.success(),
                "fraudline store migrate: {}",
                String::from_utf8_lossy(&migrated.stderr)
            );
        }
        Ok(environment)
    }

    fn yaml(&self) -> String {
        let Settings { partitions, delivery, log_features, registry, .. } = self.settings;
        let delivery = match delivery {
            DeliveryArg::ExactlyOnce => "exactly_once",
            DeliveryArg::AtLeastOnce => "at_least_once",
        };
        let mut text = format!(
            "kafka:\n  brokers: \"{}\"\n  topic_prefix: \"{}\"\n  session_timeout: 6s\n  transaction_timeout: 5s\n\
             topics:\n  create: false\n  partitions: {partitions}\nmodel:\n  device: cpu\n\
             scorer:\n  delivery: {delivery}\n  log_features: {}\n  view_wait_max: 1h\nstore:\n",
            self.args.kafka,
            self.prefix,
            u8::from(log_features),
        );
        if registry {
            let followed = format!("  registry: {:?}\n  name: {MODEL}\n  poll_interval: 200ms\n", self.registry());
            text = text.replacen("model:\n", &format!("model:\n{followed}"), 1);
        }
        let store = match self.settings.store {
            Store::Redis => {
                let RedisOptions { urls, key_prefix, .. } = self.redis();
                writeln!(text, "  redis:\n    urls: {urls:?}\n    key_prefix: \"{key_prefix}\"")
            }
            Store::Cassandra => {
                let CqlOptions { hosts, keyspace, .. } = self.cassandra();
                let (user, password) = (&self.args.cassandra_user, &self.args.cassandra_password);
                writeln!(
                    text,
                    "  cql:\n    hosts: {hosts:?}\n    keyspace: {keyspace}\n    username: {user:?}\n    password: {password:?}"
                )
            }
        };
        store.expect("writing to a string");
        text
    }

    fn redis(&self) -> RedisOptions {
        let urls = vec![self.args.redis.clone()];
        RedisOptions { urls, key_prefix: self.prefix.trim_end_matches('.').to_owned(), ..RedisOptions::default() }
    }

    fn cassandra(&self) -> CqlOptions {
        CqlOptions {
            hosts: self.args.cassandra.split(',').map(str::to_owned).collect(),
            username: Some(self.args.cassandra_user.clone()),
            password: Some(self.args.cassandra_password.clone()),
            keyspace: self.prefix.trim_end_matches('.').to_owned(),
            timeout: Duration::from_secs(10),
            ..CqlOptions::default()
        }
    }

    /// A client of this process's own.
    pub fn log(&self, instance: &str) -> anyhow::Result<KafkaLog> {
        Ok(KafkaLog::connect(self.kafka(instance))?)
    }

    pub fn kafka(&self, instance: &str) -> KafkaOptions {
        KafkaOptions {
            brokers: self.args.kafka.clone(),
            topic_prefix: self.prefix.clone(),
            delivery: Delivery::AtLeastOnce,
            instance: instance.to_owned(),
            ..KafkaOptions::default()
        }
    }

    /// The store that the services use; for calls within `runtime`.
    pub fn store(&self) -> anyhow::Result<Arc<dyn OnlineStore>> {
        let _within = self.runtime.enter();
        Ok(match self.settings.store {
            Store::Redis => Arc::new(RedisStore::new(self.redis())?),
            Store::Cassandra => Arc::new(CqlStore::new(self.cassandra())?),
        })
    }

    pub fn brokers(&self) -> &str {
        &self.args.kafka
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    /// For the logs of processes.
    pub fn folder(&self) -> &Path {
        self.config.parent().unwrap_or(Path::new("."))
    }

    /// Where the registry of a run is, if it has one.
    pub fn registry(&self) -> PathBuf {
        self.folder().join("registry")
    }

    pub fn services_script(&self) -> PathBuf {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/local/services");
        self.args.services_script.clone().unwrap_or_else(default)
    }

    /// Fails once a signal asks this process to end.
    pub fn go_on(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Leaves the folder with the logs of the processes, and tells where it is.
    pub fn keep_folder(&mut self) -> PathBuf {
        match self.folder.take() {
            Some(folder) => folder.keep(),
            None => self.folder().to_owned(),
        }
    }

    fn delete_topics(&self) -> anyhow::Result<()> {
        let config: rdkafka::ClientConfig = [("bootstrap.servers", self.args.kafka.as_str())]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let admin: rdkafka::admin::AdminClient<_> = config.create()?;
        let names = topics::ALL.map(|name| format!("{}{name}", self.prefix));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let options = rdkafka::admin::AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
        futures_executor::block_on(admin.delete_topics(&names, &options))?;
        Ok(())
    }

    fn delete_keys(&self) -> anyhow::Result<()> {
        let client = redis::Client::open(self.args.redis.as_str())?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
        let pattern = format!("{}*", self.prefix.trim_end_matches('.'));
        let mut cursor = 0u64;
        loop {
            let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(1000)
                .query(&mut connection)?;
            if !keys.is_empty() {
                redis::cmd("UNLINK").arg(keys).exec(&mut connection)?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if self.args.keep {
            let folder = self.keep_folder();
            eprintln!("kept: topics and states {}*, logs {}", self.prefix, folder.display());
            return;
        }
        let keys = match self.settings.store {
            Store::Redis => self.delete_keys(),
            Store::Cassandra => Ok(()),
        };
        for cleaned in [self.delete_topics(), keys] {
            if let Err(error) = cleaned {
                eprintln!("cleaning up {}*: {error:#}", self.prefix);
            }
        }
    }
}

/// The random part of a temporary folder's name, as topics and keyspaces may have it.
fn random_part(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}{}", name.rsplit('-').next().unwrap_or_default(), since_epoch.subsec_micros())
}

/// The binary under test. Under `cargo run` it is built first: cargo has built only this one.
fn fraudline(args: &EnvironmentArgs) -> anyhow::Result<PathBuf> {
    let path = match &args.fraudline {
        Some(path) => path.clone(),
        None => {
            let beside = std::env::current_exe().context("finding this executable")?.with_file_name("fraudline");
            if let Some(cargo) = std::env::var_os("CARGO") {
                let profile = match beside.parent().and_then(Path::file_name).and_then(OsStr::to_str) {
                    None | Some("debug") => "dev",
                    Some(profile) => profile,
                };
                let build = ["build", "--workspace", "--bin", "fraudline", "--profile", profile];
                let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
                let built = Command::new(cargo).args(build).arg("--manifest-path").arg(manifest).status();
                ensure!(built.context("running cargo")?.success(), "cargo could not build fraudline");
            }
            beside
        }
    };
    ensure!(
        path.is_file(),
        "there is no {}: build it with `cargo build --release --workspace`, or name another with --fraudline",
        path.display()
    );
    Ok(path)
}

fn watch_signals(runtime: &Runtime, interrupted: &Arc<AtomicBool>) {
    let interrupted = Arc::clone(interrupted);
    runtime.spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            eprintln!("ending; what was started is stopped first");
            interrupted.store(true, Relaxed);
        }
    });
}

/// Transactions that the scorers have yet to commit.
pub fn lag(log: &dyn Log) -> Result<u64, LogError> {
    let mut lag = 0;
    for (partition, end) in log.ends(topics::TRANSACTIONS)?.into_iter().enumerate() {
        let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition: partition as u32 };
        lag += end.saturating_sub(log.committed(scorer::GROUP, &partition)?.unwrap_or(0));
    }
    Ok(lag)
}

/// Writes a report, and prints it where no file is named.
pub fn write_report(report: &impl Serialize, path: Option<&Path>) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    match path {
        Some(path) => std::fs::write(path, text).with_context(|| format!("writing {}", path.display())),
        None => {
            println!("{text}");
            Ok(())
        }
    }
}
