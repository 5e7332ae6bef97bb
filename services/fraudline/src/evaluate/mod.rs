//! `fraudline evaluate`: how well a model scores recorded transactions whose frauds are known.

mod protocol;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use feature_store::FeatureSet;
use models::{Artifact, Device, Evaluation, ScoredCard, Scorer, calibration_error, card_precision};
use serde::Serialize;

use self::protocol::{Protocol, TrainDays};
use crate::dataset::{Vectors, days};
use crate::progress::Progress;
use crate::source::SourceArgs;

/// Rows scored between two looks at the progress.
const SCORED_AT_ONCE: usize = 65_536;
/// Bins of the calibration error: of equally many rows each.
const CALIBRATION_BINS: usize = 20;
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
    /// With --protocol: epochs at most
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..))]
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

/// The figures, named as in [`Evaluation`].
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    feature_layout: String,
    threshold: f32,
    #[serde(flatten)]
    evaluation: Evaluation,
    /// Share of the transactions at or above the threshold.
    alert_share: f64,
    card_precision: CardPrecision,
    calibration_error: f64,
}

/// Of the cards with the highest scores of a day, how many were defrauded that day.
#[derive(Debug, Serialize)]
struct CardPrecision {
    cards: u32,
    precision: f64,
}

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
            write(&report, args.report.as_deref())
        }
        None => {
            let report = of_model(args, &features)?;
            report.print();
            write(&report, args.report.as_deref())
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

fn write(report: &impl Serialize, path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let json = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))
}

fn of_model(args: &EvaluateArgs, features: &FeatureSet) -> anyhow::Result<Report> {
    let artifact = match &args.model {
        Some(dir) => Artifact::load(dir)?,
        None => Artifact::bundled()?,
    };
    artifact.layout().accept(features.layout())?;
    let mut scorer = Scorer::open(&artifact, args.device)?;
    let feed = args.source.open(Some(args.days), args.label_delay)?;
    let vectors = Vectors::read(feed, features, args.warm_up_days)?;
    let labels = &vectors.dataset.labels;

    let mut scores = Vec::with_capacity(labels.len());
    let progress = Progress::new(labels.len() as u64, "scores");
    for rows in vectors.dataset.rows.chunks(SCORED_AT_ONCE * vectors.dataset.width) {
        scorer.score(rows, &mut scores)?;
        progress.set(scores.len() as u64);
    }
    progress.finish();

    let cards: Vec<ScoredCard> = (0..labels.len())
        .map(|row| ScoredCard {
            day: vectors.times[row].as_millis().div_euclid(DAY_MS),
            card: vectors.cards[row],
            score: scores[row],
            fraud: labels[row],
        })
        .collect();
    let nothing = "transactions of both kinds are needed behind the warm-up, frauds and others; lower --warm-up-days, or take a longer input";
    let threshold = artifact.threshold();
    Ok(Report {
        model: artifact.label().to_owned(),
        device: scorer.device().to_owned(),
        feature_layout: features.layout().hash().to_owned(),
        threshold,
        evaluation: models::evaluate(&scores, labels, threshold).context(nothing)?,
        alert_share: scores.iter().filter(|&&score| score >= threshold).count() as f64 / scores.len() as f64,
        card_precision: CardPrecision {
            cards: args.cards,
            precision: card_precision(&cards, args.cards as usize).context(nothing)?,
        },
        calibration_error: calibration_error(&scores, labels, CALIBRATION_BINS).context(nothing)?,
    })
}

impl Report {
    fn print(&self) {
        let Evaluation { auc, average_precision, precision, recall, count, positives } = &self.evaluation;
        println!("{} on {}, {count} transactions, {positives} frauds", self.model, self.device);
        println!("AUC                  {auc:.4}");
        println!("average precision    {average_precision:.4}");
        let label = format!("card precision@{}", self.card_precision.cards);
        println!("{label:<20} {:.4}", self.card_precision.precision);
        println!("calibration error    {:.6}", self.calibration_error);
        println!(
            "at {:.4}: precision {precision:.3}, recall {recall:.3}, {:.3} % of the transactions are alerted",
            self.threshold,
            100.0 * self.alert_share
        );
    }
}
