//! Topics from their administrator's side: how they are set up, and how that is changed.

use std::collections::BTreeMap;

use futures_executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    TopicResult,
};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaResult;

use super::client::Context;
use super::{KafkaLog, LogError, Result};

/// How a topic is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    pub partitions: u32,
    pub replication_factor: u16,
    /// As Kafka names them, `retention.ms`. Of a topic that is there: all of them, the brokers' defaults too.
    pub config: BTreeMap<String, String>,
}

impl KafkaLog {
    /// How the topic is set up; `None` if there is none.
    pub fn settings(&self, topic: &str) -> Result<Option<TopicSettings>> {
        let name = self.inner.options.prefixed(topic);
        let partitions = match self.inner.partitions(topic) {
            Err(LogError::UnknownTopic(_)) => return Ok(None),
            partitions => partitions?,
        };
        let metadata = self.inner.metadata(Some(&name))?;
        let found = metadata.topics().iter().find(|known| known.name() == name);
        // The least replicated one counts.
        let replicas =
            found.into_iter().flat_map(|topic| topic.partitions()).map(|partition| partition.replicas().len());
        let replication_factor = replicas.min().unwrap_or(0) as u16;
        let config = self.entries(topic)?.into_iter().map(|(name, value, _)| (name, value)).collect();
        Ok(Some(TopicSettings { partitions, replication_factor, config }))
    }

    pub fn create(&self, topic: &str, settings: &TopicSettings) -> Result<()> {
        let name = self.inner.options.prefixed(topic);
        let replication = TopicReplication::Fixed(i32::from(settings.replication_factor));
        let mut new = NewTopic::new(&name, settings.partitions as i32, replication);
        for (name, value) in &settings.config {
            new = new.set(name, value);
        }
        let doing = format!("creating topic `{topic}`");
        self.only(&doing, block_on(self.admin()?.create_topics([&new], &self.patience())))
    }

    /// Adds partitions, up to that many.
    pub fn add_partitions(&self, topic: &str, partitions: u32) -> Result<()> {
        let name = self.inner.options.prefixed(topic);
        let new = NewPartitions::new(&name, partitions as usize);
        let doing = format!("adding partitions to topic `{topic}`");
        self.only(&doing, block_on(self.admin()?.create_partitions([&new], &self.patience())))
    }

    /// Sets these, and leaves the topic's other settings as they are.
    pub fn configure(&self, topic: &str, config: &BTreeMap<String, String>) -> Result<()> {
        let name = self.inner.options.prefixed(topic);
        let entries = self.entries(topic)?;
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(&name));
        // The request takes the place of all that was set before.
        for (name, value, _) in entries.iter().filter(|(_, _, is_own)| *is_own) {
            altered = altered.set(name, value);
        }
        for (name, value) in config {
            altered = altered.set(name, value);
        }
        let doing = format!("configuring topic `{topic}`");
        let results = block_on(self.admin()?.alter_configs([&altered], &self.patience()))
            .map_err(|error| self.inner.explain(&doing, &error))?;
        let failed = results.into_iter().find_map(std::result::Result::err);
        failed.map_or(Ok(()), |(_, code)| Err(LogError::Refused(format!("{doing}: {code}"))))
    }

    /// Name and value of each setting, and whether it was set for this topic.
    fn entries(&self, topic: &str) -> Result<Vec<(String, String, bool)>> {
        let (name, doing) = (self.inner.options.prefixed(topic), format!("asking for the settings of topic `{topic}`"));
        let described = block_on(self.admin()?.describe_configs([&ResourceSpecifier::Topic(&name)], &self.patience()))
            .map_err(|error| self.inner.explain(&doing, &error))?;
        let mut entries = Vec::new();
        for resource in described {
            let resource = resource.map_err(|code| LogError::Refused(format!("{doing}: {code}")))?;
            for entry in resource.entries {
                let is_own = entry.source == ConfigSource::DynamicTopic;
                entries.extend(entry.value.map(|value| (entry.name, value, is_own)));
            }
        }
        Ok(entries)
    }

    fn admin(&self) -> Result<AdminClient<Context>> {
        let options = &self.inner.options;
        AdminClient::from_config_and_context(&options.reader(None), Context::new(options))
            .map_err(|error| LogError::Refused(format!("making an admin client: {error}")))
    }

    fn patience(&self) -> AdminOptions {
        AdminOptions::new().operation_timeout(Some(self.inner.options.request_timeout))
    }

    /// The result for the one topic that was asked about.
    fn only(&self, doing: &str, results: KafkaResult<Vec<TopicResult>>) -> Result<()> {
        let results = results.map_err(|error| self.inner.explain(doing, &error))?;
        let failed = results.into_iter().find_map(std::result::Result::err);
        failed.map_or(Ok(()), |(_, code)| Err(LogError::Refused(format!("{doing}: {code}"))))
    }
}
