//! Where a command's transactions come from: a recorded file, or the simulator.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use load_tests::{ChargebackDelay, Feed, SimulatorOptions};
use serde::{Deserialize, Serialize};

#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Stream this Parquet file (the columns of the Fraud Detection Handbook) instead of the simulator
    #[arg(long, value_name = "FILE.parquet")]
    pub(crate) input: Option<PathBuf>,
    /// Simulated customers
    #[arg(long, default_value_t = 5000, conflicts_with = "input")]
    pub(crate) customers: u32,
    /// Simulated terminals
    #[arg(long, default_value_t = 10_000, conflicts_with = "input")]
    pub(crate) terminals: u32,
    /// Seed of the simulator and of the chargebacks' delays
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// What a data directory was fed with: another source can't go on where this one stopped.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceIdentity {
    input: Option<String>,
    rows: Option<u64>,
    customers: u32,
    terminals: u32,
    seed: u64,
}

impl SourceArgs {
    /// Opens the source; `days` bounds the simulator. Frauds become known `delay` later, or after one to four days.
    pub(crate) fn open(&self, days: Option<u32>, delay: Option<Duration>) -> anyhow::Result<Feed> {
        let ChargebackDelay { min, max, .. } = ChargebackDelay::default();
        let delay = ChargebackDelay { seed: self.seed, min: delay.unwrap_or(min), max: delay.unwrap_or(max) };
        match &self.input {
            Some(path) => Feed::parquet(path, delay),
            None => Ok(Feed::simulated(self.simulator(days), delay)),
        }
    }

    pub(crate) fn simulator(&self, days: Option<u32>) -> SimulatorOptions {
        SimulatorOptions {
            customers: self.customers,
            terminals: self.terminals,
            days,
            seed: self.seed,
            ..SimulatorOptions::default()
        }
    }

    /// What the transactions are, in words.
    pub(crate) fn describe(&self, days: u32) -> String {
        match &self.input {
            Some(path) => format!("transactions of {}", path.file_name().unwrap_or(path.as_os_str()).display()),
            None => format!(
                "simulated transactions: {} customers, {} terminals, {days} days, seed {}",
                self.customers, self.terminals, self.seed
            ),
        }
    }

    fn identity(&self, feed: &Feed) -> anyhow::Result<SourceIdentity> {
        let input = self.input.as_deref().map(|path| {
            let path = std::fs::canonicalize(path).with_context(|| format!("opening {}", path.display()))?;
            anyhow::Ok(path.display().to_string())
        });
        Ok(SourceIdentity {
            input: input.transpose()?,
            rows: feed.len(),
            customers: self.customers,
            terminals: self.terminals,
            seed: self.seed,
        })
    }

    /// Refuses a data directory that was fed from another source; notes this one in a new one.
    pub(crate) fn claim(&self, feed: &Feed, data_dir: &Path) -> anyhow::Result<()> {
        let path = data_dir.join("source.json");
        let identity = self.identity(feed)?;
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let known: SourceIdentity =
                serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
            anyhow::ensure!(
                known == identity,
                "{} was fed from another source ({}); use another --data-dir, or the same source and seed",
                data_dir.display(),
                serde_json::to_string(&known)?,
            );
            return Ok(());
        }
        // Renamed into place, so that a crash leaves no half of it.
        let partial = path.with_extension("json.partial");
        std::fs::write(&partial, serde_json::to_string_pretty(&identity)?)
            .and_then(|()| std::fs::rename(&partial, &path))
            .with_context(|| format!("writing {}", path.display()))
    }
}
