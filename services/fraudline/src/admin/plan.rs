//! What is to be done to a topic, and what must not.

use std::collections::BTreeMap;

use schemas::topics;
use scorer::log::kafka::TopicSettings;

/// Topics whose records are found by their key's partition: states belong to partitions.
const KEYED: [&str; 4] = [topics::TRANSACTIONS, topics::LABELS, topics::PROFILES, topics::ENTITY_EVENTS];

/// A topic as it is to be and as it is.
pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) wanted: TopicSettings,
    pub(super) current: Option<TopicSettings>,
    /// Nothing was ever written to it.
    pub(super) is_empty: bool,
}

/// What the one who applies it has agreed to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowed {
    pub(super) shorter_retention: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create(String),
    Change { config: BTreeMap<String, String>, partitions: Option<u32>, what: String },
    Keep,
    Refuse(String),
}

impl Step {
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Step::Create(_) => "create",
            Step::Change { .. } => "change",
            Step::Keep => "keep",
            Step::Refuse(_) => "REFUSED",
        }
    }

    pub(super) fn details(&self) -> String {
        match self {
            Step::Create(what) | Step::Change { what, .. } | Step::Refuse(what) => format!(": {what}"),
            Step::Keep => String::new(),
        }
    }
}

pub(super) fn step(topic: &Topic, allowed: &Allowed) -> Step {
    let wanted = &topic.wanted;
    let Some(current) = &topic.current else {
        let config: Vec<String> = wanted.config.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let (partitions, replicas) = (wanted.partitions, wanted.replication_factor);
        return Step::Create(format!("{partitions} partitions, {replicas} replicas, {}", config.join(", ")));
    };
    if let Some(reason) = refusal(topic, current, allowed) {
        return Step::Refuse(reason);
    }
    let mut what = Vec::new();
    let mut config = BTreeMap::new();
    for (name, value) in &wanted.config {
        let now = current.config.get(name).map_or("-", String::as_str);
        if now != value {
            what.push(format!("{name} {now} -> {value}"));
            config.insert(name.clone(), value.clone());
        }
    }
    let partitions = (wanted.partitions > current.partitions).then_some(wanted.partitions);
    if let Some(partitions) = partitions {
        what.push(format!("partitions {} -> {partitions}", current.partitions));
    }
    if what.is_empty() { Step::Keep } else { Step::Change { config, partitions, what: what.join(", ") } }
}

/// Why it can't be made so.
fn refusal(topic: &Topic, current: &TopicSettings, allowed: &Allowed) -> Option<String> {
    let wanted = &topic.wanted;
    let (now, then) = (current.partitions, wanted.partitions);
    if then < now {
        return Some(format!("{now} partitions, {then} are asked for: the records of the others would be lost"));
    }
    if then > now && KEYED.contains(&topic.name) && !topic.is_empty {
        return Some(format!(
            "{now} partitions, {then} are asked for: keys would go to other partitions than their past, and windows begin anew. \
             Make a topic with another prefix, and copy the records"
        ));
    }
    let (now, then) = (current.replication_factor, wanted.replication_factor);
    if then < now {
        return Some(format!("{now} replicas, {then} are asked for: fewer copies lose records when brokers do"));
    }
    if then > now {
        return Some(format!(
            "{now} replicas, {then} are asked for: move them with Kafka's kafka-reassign-partitions first"
        ));
    }
    let setting = |settings: &TopicSettings, name: &str| settings.config.get(name).cloned().unwrap_or_default();
    let (now, then) = (setting(current, "cleanup.policy"), setting(wanted, "cleanup.policy"));
    if then == "compact" && now != then && !topic.is_empty {
        return Some(
            "compaction is asked for, of a topic that has records: all but the newest of each key would be lost"
                .to_owned(),
        );
    }
    let retention = |settings| setting(settings, "retention.ms").parse().unwrap_or(-1_i64);
    // -1 is for ever.
    let reach = |ms: i64| if ms < 0 { i64::MAX } else { ms };
    let (now, then) = (retention(current), retention(wanted));
    if reach(then) < reach(now) && !topic.is_empty && !allowed.shorter_retention {
        return Some(format!(
            "retention.ms {now}, {then} is asked for: older records would be deleted; --shorten-retention if that is meant"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(partitions: u32, replication_factor: u16, retention_ms: i64, cleanup: &str) -> TopicSettings {
        let config = [
            ("cleanup.policy", cleanup.to_owned()),
            ("min.insync.replicas", "2".to_owned()),
            ("retention.ms", retention_ms.to_string()),
        ];
        let config = config.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        TopicSettings { partitions, replication_factor, config }
    }

    fn of(name: &'static str, wanted: TopicSettings, is_empty: bool) -> Step {
        step(&Topic { name, wanted, current: Some(settings(8, 3, 1000, "delete")), is_empty }, &Allowed::default())
    }

    fn is_refused(step: &Step, told: &str) -> bool {
        matches!(step, Step::Refuse(reason) if reason.contains(told))
    }

    #[test]
    fn what_loses_data_is_refused() {
        assert!(is_refused(&of("scores", settings(4, 3, 1000, "delete"), true), "8 partitions, 4"));
        assert!(is_refused(&of("transactions", settings(16, 3, 1000, "delete"), false), "begin anew"));
        assert!(is_refused(&of("scores", settings(8, 2, 1000, "delete"), true), "fewer copies"));
        assert!(is_refused(&of("scores", settings(8, 5, 1000, "delete"), true), "kafka-reassign-partitions"));
        assert!(is_refused(&of("profiles", settings(8, 3, 1000, "compact"), false), "newest of each key"));
        assert!(is_refused(&of("scores", settings(8, 3, 999, "delete"), false), "--shorten-retention"));
    }

    #[test]
    fn the_rest_is_done() {
        assert_eq!(of("scores", settings(8, 3, 1000, "delete"), false), Step::Keep);
        let Step::Change { config, partitions, what } = of("scores", settings(16, 3, -1, "delete"), false) else {
            panic!("more partitions of an output, kept for ever, are a change");
        };
        assert_eq!((config["retention.ms"].as_str(), config.len(), partitions), ("-1", 1, Some(16)));
        assert_eq!(what, "retention.ms 1000 -> -1, partitions 8 -> 16");
        assert!(matches!(of("transactions", settings(16, 3, 1000, "delete"), true), Step::Change { .. }));
        let none = Topic { name: "scores", wanted: settings(8, 3, 1000, "delete"), current: None, is_empty: true };
        assert!(matches!(step(&none, &Allowed::default()), Step::Create(_)));
        let shorter = Topic {
            wanted: settings(8, 3, 1, "delete"),
            current: Some(settings(8, 3, 1000, "delete")),
            is_empty: false,
            ..none
        };
        assert!(matches!(step(&shorter, &Allowed { shorter_retention: true }), Step::Change { .. }));
    }
}
