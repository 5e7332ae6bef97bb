//! `fraudline evaluate`: how well a model scores recorded transactions whose frauds are known.

mod model;
mod plots;
mod protocol;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use feature_store::FeatureSet;
use models::{Artifact, Device, Scorer};

use self::model::{Report, Scored};
use self::protocol::{Protocol, TrainDays};
use crate::dataset::{Vectors, days};
use crate::report;
use crate::source::SourceArgs;

const DAY_MS: i64 = 86_400_000;

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// Model artifact [default: the one in the binary]
    #[arg(long, value_name = "DIR", conflicts_with = "protocol")]
    model: Option<PathBuf>,
    /// Train and evaluate by a published protocol instead of evaluating a model: `handbook` takes the Handbook's transactions, four
    /// test folds of a week each, and chooses on four folds before them
    #[arg(long, requires = "input")]
    protocol: Option<ProtocolName>,
    /// With --protocol: days of training, or `all` before the delay
    #[arg(long, default_value = "7", value_name = "DAYS|all")]
    train_days: TrainDays,
    /// With --protocol: trainings of each fold, whose figures are averaged
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// With --protocol: epochs of each training
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    epochs: u16,
    /// Feature definitions [default: the Handbook's; with --protocol those of fraud.yaml]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    /// Days to simulate, without --input
    #[arg(long, default_value_t = 120, conflicts_with = "input")]
    days: u32,
    /// Days at the start that only fill the windows
    #[arg(long, default_value_t = 37)]
    warm_up_days: u32,
    /// How long after a fraud it becomes known, as in 7d [default: one to four days; with --protocol 7d]
    #[arg(long, value_parser = humantime::parse_duration)]
    label_delay: Option<Duration>,
    /// Cards looked into each day, for the card precision
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    cards: u32,
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
    device: Device,
    /// Take the threshold of this one of the model's alert budgets, as in 0.01 [default: the model's own]
    #[arg(long, value_name = "SHARE", conflicts_with = "protocol")]
    alert_budget: Option<f64>,
    /// Draw the figures into this folder: precision and recall, ROC, calibration, scores, recall by scenario
    #[arg(long, value_name = "DIR", conflicts_with = "protocol")]
    plots: Option<PathBuf>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolName {
    Handbook,
}

/// What the protocol is run with, unless others are named.
const PROTOCOL_FEATURES: &str = include_str!("../../../../feature-store/definitions/fraud.yaml");

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let features = match &args.features {
        Some(path) => FeatureSet::load(path)?,
        None if args.protocol.is_some() => FeatureSet::parse(PROTOCOL_FEATURES, "fraud.yaml")?,
        None => FeatureSet::bundled(),
    };
    match args.protocol {
        Some(ProtocolName::Handbook) => {
            let report = by_protocol(args, &features)?;
            report.print();
            report::write(&report, args.report.as_deref())
        }
        None => {
            let report = of_model(args, &features)?;
            report.print();
            report::write(&report, args.report.as_deref())
        }
    }
}

fn by_protocol(args: &EvaluateArgs, features: &FeatureSet) -> anyhow::Result<protocol::Report> {
    let feed = args.source.open(None, Some(args.label_delay.unwrap_or(days(7))))?;
    let vectors = Vectors::read(feed, features, args.warm_up_days)?;
    let protocol = Protocol {
        train_days: args.train_days,
        seeds: args.seeds,
        epochs: usize::from(args.epochs),
        device: args.device,
    };
    protocol::run(&protocol, features.layout(), &vectors)
}

fn of_model(args: &EvaluateArgs, features: &FeatureSet) -> anyhow::Result<Report> {
    let mut artifact = match &args.model {
        Some(dir) => Artifact::load(dir)?,
        None => Artifact::bundled()?,
    };
    if let Some(alert_budget) = args.alert_budget {
        artifact = artifact.with_alert_budget(alert_budget)?;
    }
    artifact.layout().accept(features.layout())?;
    let mut scorer = Scorer::open(&artifact, args.device)?;
    let feed = args.source.open(Some(args.days), args.label_delay)?;
    let scored = Scored::new(Vectors::read(feed, features, args.warm_up_days)?, &mut scorer)?;
    let report = scored.report(&artifact, features.layout(), args.cards)?;
    if let Some(dir) = &args.plots {
        plots::write(dir, &scored, &report)?;
    }
    Ok(report)
}
