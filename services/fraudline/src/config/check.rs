//! `fraudline config check`: every connection tried, and what is wrong with it.

use std::time::Instant;

use clap::Args;
use feature_store::Retry;
use schemas::topics;
use scorer::log::{Delivery, KafkaLog, Log, LogError};

use super::{Config, ConfigArgs, StoreConfig};
use crate::service::{connect, runtime};

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// What is right or wrong, a line each.
struct Findings {
    failed: usize,
}

impl Findings {
    fn note(&mut self, what: &str, found: anyhow::Result<String>) {
        match found {
            Ok(found) => println!("ok      {what}: {found}"),
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {what}: {error:#}");
            }
        }
    }
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let runtime = runtime()?;
    let mut findings = Findings { failed: 0 };
    findings.note("instance", Ok(config.instance()));
    findings.note("kafka", kafka(&config));
    findings.note("store", store(&config, &runtime));
    findings.note("features and model", model(&config));
    anyhow::ensure!(findings.failed == 0, "{} of 4 checks failed", findings.failed);
    Ok(())
}

fn kafka(config: &Config) -> anyhow::Result<String> {
    let started = Instant::now();
    let log = KafkaLog::connect(config.kafka(config.instance(), Delivery::AtLeastOnce))?;
    let mut found = vec![format!("{} broker(s) at {}", log.brokers()?.len(), log.brokers()?.join(", "))];
    let (mut known, mut missing) = (Vec::new(), Vec::new());
    for name in topics::ALL {
        match log.ends(name) {
            Ok(ends) => known.push(format!("{name} ({})", ends.len())),
            Err(LogError::UnknownTopic(_)) => missing.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    if !known.is_empty() {
        found.push(format!("topics (partitions): {}", known.join(", ")));
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        anyhow::ensure!(
            config.topics.create,
            "the topics {missing} are missing: create them, or allow it with `topics.create: true`"
        );
        found.push(format!("to be created with {} partitions: {missing}", config.topics.partitions));
    }
    found.push(format!("{} ms", started.elapsed().as_millis()));
    Ok(found.join("; "))
}

fn store(config: &Config, runtime: &tokio::runtime::Runtime) -> anyhow::Result<String> {
    let started = Instant::now();
    let store = connect::store(config, runtime.handle(), Retry::Bounded { attempts: 1 })?;
    runtime.block_on(store.read("fraudline", &["config-check"], &[0]))?;
    let what = match &config.store {
        StoreConfig::Redis(options) => format!("{options:?}"),
        StoreConfig::Cql(options) => format!("{options:?}"),
    };
    Ok(format!("{what}; {} ms", started.elapsed().as_millis()))
}

fn model(config: &Config) -> anyhow::Result<String> {
    let features = connect::features(config)?;
    let model = config.model.serve()?;
    model.layout().accept(features.layout())?;
    let (width, hash) = (features.layout().width(), features.layout().hash());
    Ok(format!("{} on {}, {width} features, layout {hash}", model.model().label, model.device()))
}
