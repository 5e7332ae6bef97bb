//! `fraudline features`: what a definition file says and may say, and what its features come to over recorded transactions.

mod backfill;
pub(crate) mod history;
mod table;
mod verify;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use feature_store::{DefinitionError, FeatureSet};
use scorer::log::{Delivery, EmbeddedLog, EmbeddedOptions, KafkaLog, Log};

use crate::config::{Config, ConfigArgs};
use crate::service::connect;

#[derive(Debug, Subcommand)]
pub(crate) enum FeaturesCommand {
    /// Say what is wrong with a definition file, where, and what would be right
    Check(FileArgs),
    /// Print the vector, the views, their memory, and what a scoring reads
    Show(FileArgs),
    /// Print the JSON Schema of definition files, for editors
    Schema,
    /// Print the reference page of definition files, in Markdown
    Reference,
    /// Compute the vectors of recorded transactions, point in time, as the scorer gives them
    Backfill(backfill::BackfillArgs),
    /// Compute the vectors that scores carry again from the log, and compare
    Verify(verify::VerifyArgs),
}

/// Where a log is.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The data directory of `fraudline up`, not running; without it Kafka, as the configuration has it
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// A log, the definitions that are used with it, and how far ahead of its record an event may be.
pub(crate) struct OpenLog {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) features: Arc<FeatureSet>,
    pub(crate) future_skew: Duration,
}

impl LogArgs {
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        self.config.load()
    }

    pub(crate) fn open(&self, definitions: Option<&Path>) -> anyhow::Result<OpenLog> {
        let config = self.config.load()?;
        let features = match definitions {
            Some(path) => Arc::new(FeatureSet::load(path)?),
            None => connect::features(&config)?,
        };
        let log: Arc<dyn Log> = match &self.data_dir {
            Some(dir) => {
                anyhow::ensure!(dir.is_dir(), "there is no data directory {}", dir.display());
                EmbeddedLog::open(dir, EmbeddedOptions::default())?
            }
            None => Arc::new(KafkaLog::connect(config.kafka(config.instance(), Delivery::AtLeastOnce))?),
        };
        Ok(OpenLog { log, features, future_skew: config.scorer.future_skew })
    }
}

#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// Feature definitions [default: the Handbook's]
    #[arg(value_name = "FILE.yaml")]
    file: Option<PathBuf>,
}

pub(crate) fn run(command: &FeaturesCommand) -> anyhow::Result<()> {
    match command {
        FeaturesCommand::Check(FileArgs { file }) => {
            let features = load(file.as_deref())?;
            let views = features.views().iter().map(|view| format!(", view {} by {}", view.name(), view.entity()));
            let views: String = views.collect();
            println!("ok: {} features{views}, layout {}", features.width(), features.layout().hash());
        }
        FeaturesCommand::Show(FileArgs { file }) => print!("{}", load(file.as_deref())?.describe()),
        FeaturesCommand::Schema => print!("{}", feature_store::schema()),
        FeaturesCommand::Reference => print!("{}", feature_store::reference()),
        FeaturesCommand::Backfill(args) => backfill::run(args)?,
        FeaturesCommand::Verify(args) => verify::run(args)?,
    }
    Ok(())
}

/// As many as asked for, or as there are cores.
pub(crate) fn threads(asked: Option<NonZero<usize>>) -> NonZero<usize> {
    asked.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZero::<usize>::MIN)
}

fn load(file: Option<&Path>) -> Result<FeatureSet, DefinitionError> {
    file.map_or_else(|| Ok(FeatureSet::bundled()), FeatureSet::load)
}
