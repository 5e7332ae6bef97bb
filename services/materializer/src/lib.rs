//! The materializer: profiles, and windows of entities that cut across partitions, kept for everybody to read.
//!
//! Two stages, each exactly once. [`rekey`] reads transactions, labels and profile updates and writes them again,
//! keyed by the entity they are about; [`aggregate`] owns partitions of that stream, keeps the views of their
//! entities with the scorer's own state machinery, and checkpoints them into the online store.

pub mod aggregate;
pub mod metrics;
pub mod rekey;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use feature_store::{FeatureSet, OnlineStore, StoreError};
use scorer::log::{Log, LogError};
use scorer::worker::Backoff;
use scorer::{Clock, Result, ScorerError};

pub use aggregate::Aggregator;
pub use rekey::Rekeyer;

/// What the materializer runs on.
#[derive(Clone)]
pub struct Context {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn OnlineStore>,
    pub features: Arc<FeatureSet>,
    pub clock: Clock,
}

/// Limits of the materializer.
#[derive(Clone, Debug)]
pub struct MaterializerOptions {
    /// Records taken at a time, at most, by either stage.
    pub batch_records_max: usize,
    /// Memory for the states of all views, those of cards included that events bring something along from.
    pub state_bytes_max: usize,
    /// How long changed states wait at most until they are written. They wait less where event
    /// time runs fast, so that the view stays well within its staleness.
    pub checkpoint_interval: Duration,
    /// How long what comes is gathered until it is re-keyed in one commit. A backlog does not wait;
    /// nor should this be long beside the staleness of the views.
    pub commit_interval: Duration,
    /// As the scorer has it: both must draw the same line between events and dead letters.
    pub future_skew: Duration,
}

impl Default for MaterializerOptions {
    fn default() -> MaterializerOptions {
        MaterializerOptions {
            batch_records_max: 2048,
            state_bytes_max: 256 << 20,
            checkpoint_interval: Duration::from_secs(1),
            commit_interval: Duration::from_millis(50),
            future_skew: Duration::from_secs(300),
        }
    }
}

impl MaterializerOptions {
    /// Limits of one stage of the two.
    fn for_stage(self, features: &FeatureSet) -> MaterializerOptions {
        let stages_with_states = if features.carry().is_some() { 2 } else { 1 };
        MaterializerOptions { state_bytes_max: self.state_bytes_max / stages_with_states, ..self }
    }
}

/// Both stages on one thread.
pub struct Materializer {
    rekeyer: Rekeyer,
    aggregator: Aggregator,
    commit_interval: Duration,
}

impl Materializer {
    /// Both stages; each joins its group with its first step.
    pub fn start(context: Context, options: MaterializerOptions) -> Result<Materializer> {
        Ok(Materializer {
            rekeyer: Rekeyer::start(context.clone(), options.clone())?,
            aggregator: Aggregator::start(context, options.clone())?,
            commit_interval: options.commit_interval,
        })
    }

    /// One step of each stage; tells whether there was anything to do.
    pub fn step(&mut self, timeout: Duration) -> Result<bool> {
        let rekeyed = self.rekeyer.step(timeout)?;
        let aggregated = self.aggregator.step()?;
        Ok(rekeyed || aggregated)
    }

    /// Steps until `stop` is set, then writes what has changed. While the brokers are away it tries
    /// again.
    pub fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let mut backoff = Backoff::default();
        while !stop.load(Relaxed) {
            let started = Instant::now();
            match self.step(Duration::from_millis(5)) {
                Ok(_) => {
                    backoff.reset();
                    if !self.rekeyer.is_behind() {
                        std::thread::sleep(self.commit_interval.saturating_sub(started.elapsed()));
                    }
                }
                Err(ScorerError::Log(LogError::Unavailable(reason))) => {
                    tracing::warn!("{reason}; trying again");
                    backoff.wait(stop);
                }
                Err(error) => return Err(error),
            }
        }
        match self.aggregator.checkpoint() {
            // What was not written is aggregated again by the next start.
            Err(
                ScorerError::Log(LogError::Unavailable(reason)) | ScorerError::Store(StoreError::Unavailable(reason)),
            ) => {
                tracing::warn!("stopped without a last checkpoint: {reason}");
                Ok(())
            }
            written => written,
        }
    }
}
