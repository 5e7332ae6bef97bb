//! The file: what topics and store are to be.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use feature_store::CqlReplication;
use schemas::topics;
use scorer::log::kafka::TopicSettings;
use serde::Deserialize;

use crate::config::{optional_span, span};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// What holds for every topic that does not say otherwise.
    defaults: Defaults,
    #[serde(default)]
    topics: BTreeMap<String, Differences>,
    #[serde(default)]
    store: Store,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    partitions: u32,
    replication_factor: u16,
    min_insync_replicas: u16,
    #[serde(deserialize_with = "span")]
    retention: Duration,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Differences {
    partitions: Option<u32>,
    replication_factor: Option<u16>,
    min_insync_replicas: Option<u16>,
    #[serde(deserialize_with = "optional_span")]
    retention: Option<Duration>,
    cleanup: Cleanup,
}

/// What becomes of old records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cleanup {
    #[default]
    Delete,
    /// The newest of each key is kept for ever.
    Compact,
}

/// Of ScyllaDB or Cassandra.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Store {
    /// Copies of each row: a number, or one for each datacenter as in dc1=3,dc2=3.
    replication: String,
}

impl Default for Store {
    fn default() -> Store {
        Store { replication: "3".to_owned() }
    }
}

impl Wanted {
    pub(super) fn load(path: &Path) -> anyhow::Result<Wanted> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
        Wanted::parse(&path.display().to_string(), &text)
    }

    pub(super) fn parse(path: &str, text: &str) -> anyhow::Result<Wanted> {
        let wanted: Wanted = serde_saphyr::from_str(text).map_err(|error: serde_saphyr::Error| {
            let place = error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
            anyhow!("{path}{place}: {}", error.without_snippet())
        })?;
        for (name, topic) in &wanted.topics {
            let known = topics::ALL.join(", ");
            ensure!(topics::ALL.contains(&name.as_str()), "{path}: there is no topic `{name}`; topics: {known}");
            // Payments, labels and scores share their keys with each other, and each of them counts.
            ensure!(
                topic.cleanup == Cleanup::Delete || name == topics::PROFILES,
                "{path}: topic {name}: compaction would keep one record of each key; only `profiles` may be compacted, where \
                 no replay goes back behind the newest of each"
            );
        }
        for name in topics::ALL {
            let TopicSettings { partitions, replication_factor, config } = wanted.topic(name);
            ensure!(partitions > 0, "{path}: topic {name} needs a partition at least");
            let in_sync: u16 = config["min.insync.replicas"].parse()?;
            ensure!(
                in_sync >= 1 && (in_sync < replication_factor || replication_factor == 1),
                "{path}: topic {name}: min_insync_replicas is {in_sync} of {replication_factor} replicas; it must be 1 at least, and \
                 below them, or nothing can be written while one broker is away"
            );
        }
        wanted.store_replication()?;
        Ok(wanted)
    }

    /// What the topic is to be.
    pub(super) fn topic(&self, name: &str) -> TopicSettings {
        let (defaults, own) = (&self.defaults, self.topics.get(name).cloned().unwrap_or_default());
        let retention = own.retention.unwrap_or(defaults.retention);
        let cleanup = match own.cleanup {
            Cleanup::Delete => "delete",
            Cleanup::Compact => "compact",
        };
        let config = [
            ("cleanup.policy", cleanup.to_owned()),
            ("min.insync.replicas", own.min_insync_replicas.unwrap_or(defaults.min_insync_replicas).to_string()),
            ("retention.ms", retention.as_millis().to_string()),
        ];
        TopicSettings {
            partitions: own.partitions.unwrap_or(defaults.partitions),
            replication_factor: own.replication_factor.unwrap_or(defaults.replication_factor),
            config: config.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    pub(super) fn store_replication(&self) -> anyhow::Result<CqlReplication> {
        crate::store::replication(&self.store.replication).map_err(|problem| anyhow!(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: &str =
        "defaults: {partitions: 8, replication_factor: 3, min_insync_replicas: 2, retention: 45days}\n";

    fn refusal(more: &str) -> String {
        Wanted::parse("topics.yaml", &format!("{DEFAULTS}{more}")).unwrap_err().to_string()
    }

    #[test]
    fn a_topic_differs_where_it_says_so() {
        let wanted = Wanted::parse(
            "topics.yaml",
            &format!("{DEFAULTS}topics: {{scores: {{retention: 90days}}, profiles: {{cleanup: compact}}}}\n"),
        )
        .unwrap();
        assert_eq!(wanted.topic("scores").config["retention.ms"], (90 * 86_400_000_u64).to_string());
        assert_eq!(wanted.topic("alerts").config["retention.ms"], (45 * 86_400_000_u64).to_string());
        assert_eq!(wanted.topic("profiles").config["cleanup.policy"], "compact");
        assert_eq!((wanted.topic("scores").partitions, wanted.topic("scores").replication_factor), (8, 3));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        assert!(refusal("topics: {payments: {partitions: 3}}\n").contains("there is no topic `payments`"));
        assert!(refusal("topics: {transactions: {cleanup: compact}}\n").contains("one record of each key"));
        assert!(refusal("topics: {scores: {min_insync_replicas: 3}}\n").contains("min_insync_replicas is 3 of 3"));
        assert!(refusal("topics: {scores: {partitions: 0}}\n").contains("needs a partition"));
        assert!(refusal("topics:\n  scores: {retention: soon}\n").contains("topics.yaml:3:"));
        assert!(refusal("store: {replication: many}\n").contains("`many` is no replication"));
    }
}
