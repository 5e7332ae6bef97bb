//! Connections as the configuration has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use feature_store::{CqlStore, FeatureSet, OnlineStore, RedisStore, RemoteOptions, RemoteStore, Retry, StoreError};
use schemas::topics;
use scorer::log::{KafkaLog, KafkaOptions, Log, LogError, TopicSpec};
use scorer::worker::Backoff;
use tokio::runtime::Handle;

use crate::config::{Config, StoreConfig};

pub(crate) fn features(config: &Config) -> anyhow::Result<Arc<FeatureSet>> {
    Ok(Arc::new(match &config.features.path {
        Some(path) => FeatureSet::load(path)?,
        None => FeatureSet::bundled(),
    }))
}

/// The brokers, with all topics there; waits for brokers that are away. `None`: `stop` was set first.
pub(crate) fn kafka_waiting(
    config: &Config,
    options: &KafkaOptions,
    stop: &AtomicBool,
) -> anyhow::Result<Option<Arc<KafkaLog>>> {
    let mut backoff = Backoff::default();
    loop {
        match kafka(config, options.clone()) {
            Err(error) if matches!(error.downcast_ref(), Some(LogError::Unavailable(_))) => {
                if stop.load(Relaxed) {
                    return Ok(None);
                }
                tracing::warn!("{error:#}; trying again");
                backoff.wait(stop);
            }
            connected => return connected.map(Some),
        }
    }
}

/// The brokers, with all topics there.
pub(crate) fn kafka(config: &Config, options: KafkaOptions) -> anyhow::Result<Arc<KafkaLog>> {
    let log = KafkaLog::connect(options)?;
    for name in topics::ALL {
        match log.ends(name) {
            Err(LogError::UnknownTopic(_)) if config.topics.create => {
                let (partitions, retention) = (config.topics.partitions, config.topics.retention);
                match log.create_topic(&TopicSpec { name: name.to_owned(), partitions, retention }) {
                    // Another process was faster, with another number.
                    Err(LogError::PartitionsDiffer { .. }) => {}
                    created => created?,
                }
                tracing::info!(topic = name, partitions, "created");
            }
            Err(error @ LogError::UnknownTopic(_)) => {
                return Err(error).context("create the topic, or allow it with `topics.create: true`");
            }
            known => {
                known?;
            }
        }
    }
    Ok(Arc::new(log))
}

/// The online store, reached once: settings that can't work are refused at the start.
pub(crate) fn store(config: &Config, runtime: &Handle, retry: Retry) -> anyhow::Result<Arc<dyn OnlineStore>> {
    let (store, name, timeout): (Arc<dyn OnlineStore>, _, Duration) = match &config.store {
        StoreConfig::Redis(options) => (Arc::new(RedisStore::new(options.clone())?), "redis", options.timeout),
        StoreConfig::Cql(options) => (Arc::new(CqlStore::new(options.clone())?), "cql", options.timeout),
    };
    match runtime.block_on(store.watermark("fraudline", 0)) {
        // It is waited for.
        Err(StoreError::Unavailable(reason)) => tracing::warn!("the online store is away: {reason}"),
        reached => {
            reached?;
        }
    }
    let options = RemoteOptions { name, runtime: runtime.clone(), timeout: timeout * 4, retry };
    Ok(Arc::new(RemoteStore::new(store, options)))
}
