//! Reading the file, and the overrides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Config;

/// What an override's variable begins with; two underscores separate the levels:
/// `FRAUDLINE__KAFKA__SASL__PASSWORD`.
const PREFIX: &str = "FRAUDLINE__";

#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration; everything has a default. `FRAUDLINE__KAFKA__BROKERS` in the
    /// environment overrides `kafka.brokers`, and so on
    #[arg(long, value_name = "FILE.yaml", env = "FRAUDLINE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

impl ConfigArgs {
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        let text = match &self.config {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("the configuration {} can't be read", path.display()))?,
            None => String::new(),
        };
        parse(self.config.as_deref().unwrap_or(Path::new("(defaults)")), &text, std::env::vars())
    }
}

/// The configuration in `text`, and on top of it what the variables say.
fn parse(path: &Path, text: &str, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<Config> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    // As it stands first: its errors have a place.
    let wrong = |error: serde_saphyr::Error| {
        let place = error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
        anyhow!("{}{place}: {}", path.display(), error.without_snippet())
    };
    let _: Config = serde_saphyr::from_str(text).map_err(wrong)?;
    let mut merged: Value = serde_saphyr::from_str(text).map_err(wrong)?;
    let mut overrides: Vec<(String, String)> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    overrides.sort_unstable();
    for (name, value) in &overrides {
        let value: Value = serde_saphyr::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
        set(&mut merged, name, value)?;
        // One after the other, so that the wrong one is named.
        let config: Result<Config, _> = serde_json::from_value(merged.clone());
        if let Err(error) = config
            && !error.to_string().starts_with("missing field")
        {
            return Err(anyhow!("the environment variable {name}: {error}"));
        }
    }
    serde_json::from_value(merged).with_context(|| {
        let names: Vec<&str> = overrides.iter().map(|(name, _)| name.as_str()).collect();
        format!("{} with {}", path.display(), names.join(", "))
    })
}

fn set(merged: &mut Value, name: &str, value: Value) -> anyhow::Result<()> {
    let mut at = merged;
    for key in name[PREFIX.len()..].split("__") {
        // librdkafka's properties are written as they are in librdkafka.
        let key = key.to_lowercase();
        if at.is_null() {
            *at = Value::Object(serde_json::Map::new());
        }
        let object = at.as_object_mut().ok_or_else(|| anyhow!("the environment variable {name} names no setting"))?;
        at = object.entry(key).or_insert(Value::Null);
    }
    *at = value;
    Ok(())
}

/// A duration as people write it: `500ms`, `15s`, `7days`.
pub(crate) fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("`{text}` is no duration, as in 500ms, 15s or 7days: {error}"))
    })
}

pub(crate) fn optional_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    struct Span(#[serde(deserialize_with = "span")] Duration);
    Ok(Option::<Span>::deserialize(deserializer)?.map(|span| span.0))
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is no address, as in 0.0.0.0:6566")))
}

pub(super) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let share = f64::deserialize(deserializer)?;
    let valid = (0.0..=1.0).contains(&share).then_some(share);
    valid.ok_or_else(|| serde::de::Error::custom(format!("{share} is no share; write a number from 0 to 1")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use scorer::log::Delivery;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        parse(Path::new("fraudline.yaml"), text, variables).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn everything_has_a_default() {
        let config = load("", &[]).unwrap();
        assert_eq!(config.kafka.brokers, "localhost:9092");
        assert_eq!(config.kafka.session_timeout, Duration::from_secs(120));
        assert_eq!(config.scorer.delivery, Delivery::ExactlyOnce);
    }

    #[test]
    fn a_key_that_is_not_known_is_refused_with_its_place() {
        let error = load("kafka:\n  brokers: a:1\n  broker: b:1\n", &[]).unwrap_err();
        assert!(error.contains("fraudline.yaml:3:"), "{error}");
        assert!(error.contains("broker"), "{error}");
        let error = load("scorer:\n  checkpoint_interval: soon\n", &[]).unwrap_err();
        assert!(error.contains("fraudline.yaml:2:") && error.contains("`soon` is no duration"), "{error}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let text =
            "kafka:\n  brokers: a:1\n  sasl: {mechanism: PLAIN, username: u}\nstore:\n  cql: {hosts: [\"h:1\"]}\n";
        let variables = [
            ("FRAUDLINE__KAFKA__SASL__PASSWORD", "secret"),
            ("FRAUDLINE__SCORER__WORKERS", "3"),
            ("FRAUDLINE__SCORER__DELIVERY", "at_least_once"),
            ("FRAUDLINE_LOG", "debug"),
        ];
        let config = load(text, &variables).unwrap();
        assert_eq!((config.kafka.brokers.as_str(), config.scorer.workers), ("a:1", 3));
        assert_eq!(config.kafka.sasl.as_ref().map(|sasl| sasl.password.as_str()), Some("secret"));
        assert_eq!(config.scorer.delivery, Delivery::AtLeastOnce);
        assert!(matches!(&config.store, StoreConfig::Cql(options) if options.hosts == ["h:1"]));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn an_override_that_is_wrong_is_named() {
        let error = load("", &[("FRAUDLINE__KAFKA__BROKER", "a:1")]).unwrap_err();
        assert!(error.contains("FRAUDLINE__KAFKA__BROKER") && error.contains("unknown field"), "{error}");
        let error = load("", &[("FRAUDLINE__SCORER__WORKERS", "many")]).unwrap_err();
        assert!(error.contains("FRAUDLINE__SCORER__WORKERS"), "{error}");
    }
}
