//! `fraudline train`: features by the scorer's own implementation, a network, an artifact.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use feature_store::FeatureSet;
use models::{Checkpoints, Device, NetworkConfig, Period, TrainOptions, TrainingData};
use schemas::EventTime;

use crate::dataset::{Vectors, days};
use crate::progress::Progress;
use crate::source::SourceArgs;

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Days to simulate, without --input
    #[arg(long, default_value_t = 120)]
    days: u32,
    /// Feature definitions [default: the Handbook's]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<PathBuf>,
    /// Folder to write the artifact to; must not exist
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// File that the state of the training is kept in after each epoch [default: the output's name with .checkpoint]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint of an interrupted training, if there is one; the artifact is the same as without the interruption
    #[arg(long)]
    resume: bool,
    #[arg(long, default_value = "fraud")]
    name: String,
    #[arg(long, default_value = "1")]
    model_version: String,
    /// Days at the start that only fill the windows
    #[arg(long, default_value_t = 37)]
    warm_up_days: u32,
    /// Days at the end that choose the epoch, the calibration and the threshold
    #[arg(long, default_value_t = 14)]
    validation_days: u32,
    /// Days between the two, in which the training days' labels would still be unknown
    #[arg(long, default_value_t = 7)]
    delay_days: u32,
    /// `tabular`, which is the more exact; `mlp`, which is the faster; or `history`, which reads a card's last transactions one by one, of
    /// features that tell of them (history.yaml)
    #[arg(long, default_value = "tabular")]
    network: Network,
    /// Widths of the hidden layers, of each member where there are several
    #[arg(long, value_delimiter = ',', default_values_t = [64, 32], value_name = "WIDTH,…")]
    hidden: Vec<usize>,
    /// Small networks whose mean a tabular or history network is
    #[arg(long, default_value_t = 4)]
    members: usize,
    /// Pieces of a tabular or history network's encoding, for each input at most
    #[arg(long, default_value_t = 16)]
    pieces: usize,
    /// Numbers that each member of a history network makes of an earlier transaction
    #[arg(long, default_value_t = 16)]
    width: usize,
    #[arg(long, default_value_t = 20)]
    epochs: usize,
    /// On the CPU, the same seed and input give the same artifact, bit for bit; CUDA may differ in the last bits from run to run
    #[arg(long, default_value = "cpu", value_name = "auto|cpu|cuda:N")]
    device: Device,
    /// Share of the transactions that may be alerted, by default; there are thresholds for 0.1 %, 0.2 %, 0.5 %, 1 % and 2 % in any case
    #[arg(long, default_value_t = 0.005)]
    alert_budget: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    Tabular,
    Mlp,
    History,
}

impl TrainArgs {
    fn network(&self) -> NetworkConfig {
        let (pieces, members, hidden) = (self.pieces, self.members, self.hidden.clone());
        match self.network {
            Network::Tabular => NetworkConfig::Tabular { pieces, members, hidden },
            Network::Mlp => NetworkConfig::Mlp { hidden },
            Network::History => NetworkConfig::History { pieces, members, hidden, width: self.width },
        }
    }
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    anyhow::ensure!(!args.output.exists(), "{} exists already; name a new folder", args.output.display());
    let checkpoint = args.checkpoint.clone().unwrap_or_else(|| {
        let mut name = args.output.clone().into_os_string();
        name.push(".checkpoint");
        PathBuf::from(name)
    });
    // Before the features are computed, which takes a while.
    anyhow::ensure!(
        args.resume || !checkpoint.exists(),
        "{} is of a training that was interrupted; go on from it with --resume, or remove the file",
        checkpoint.display()
    );
    let features = match &args.features {
        Some(path) => FeatureSet::load(path)?,
        None => FeatureSet::bundled(),
    };
    args.network().check_layout(features.layout())?;
    let all = Vectors::read(args.source.open(Some(args.days), None)?, &features, args.warm_up_days)?;
    let times = &all.times;
    let last = *times.last().context("no transaction is left after the warm-up; lower --warm-up-days")?;
    let validation_from = last - days(args.validation_days);
    let training_to = validation_from - days(args.delay_days);
    let trained = times.partition_point(|&time| time < training_to);
    let validated = times.partition_point(|&time| time < validation_from);
    let (training, validation) = (all.part(0..trained), all.part(validated..times.len()));
    println!(
        "training on {} transactions ({} frauds) before {training_to}, validating on {} ({} frauds) from {validation_from}",
        training.labels.len(),
        training.labels.iter().filter(|&&fraud| fraud).count(),
        validation.labels.len(),
        validation.labels.iter().filter(|&&fraud| fraud).count(),
    );
    let options = TrainOptions {
        name: args.name.clone(),
        version: args.model_version.clone(),
        network: args.network(),
        epochs: args.epochs,
        seed: args.source.seed,
        device: args.device,
        alert_budget: args.alert_budget,
        data: TrainingData {
            source: args.source.describe(args.days),
            training: period(&times[..trained]),
            validation: period(&times[validated..]),
        },
        checkpoints: Some(Checkpoints { file: checkpoint.clone(), resume: args.resume }),
        ..TrainOptions::default()
    };
    let progress = Progress::new(args.epochs as u64, "epochs");
    let artifact = models::train(features.layout(), &training, &validation, &options, &mut |epoch| {
        progress.set(epoch.epoch as u64);
        progress.say(&format!("loss {:.5}, validation AP {:.4}", epoch.train_loss, epoch.validation_ap));
        progress.line(&format!(
            "epoch {:>3}  loss {:.5}  validation loss {:.5}  AP {:.4}{}",
            epoch.epoch,
            epoch.train_loss,
            epoch.validation_loss,
            epoch.validation_ap,
            if epoch.best { "  *" } else { "" },
        ));
    })?;
    progress.finish();
    artifact.save(&args.output)?;
    std::fs::remove_file(&checkpoint).with_context(|| format!("removing {}", checkpoint.display()))?;
    let metrics = artifact.metrics();
    println!("{} in {}", artifact.label(), args.output.display());
    println!(
        "validation: AUC {:.4}, average precision {:.4}, {} calibration",
        metrics.validation.auc, metrics.validation.average_precision, metrics.calibration.method,
    );
    println!("alert budget  threshold  precision  recall");
    for threshold in artifact.thresholds() {
        println!(
            "{:>9} % {:>11.4}  {:>9.3}  {:>6.3}{}",
            percent(threshold.alert_budget),
            threshold.threshold,
            threshold.precision,
            threshold.recall,
            if threshold.alert_budget == artifact.alert_budget() { "  *" } else { "" },
        );
    }
    Ok(())
}

fn period(times: &[EventTime]) -> Option<Period> {
    Some(Period { from: *times.first()?, to: *times.last()? })
}

/// A share as a percentage, without the noise of binary fractions.
pub(crate) fn percent(share: f64) -> f64 {
    (share * 1e8).round() / 1e6
}
