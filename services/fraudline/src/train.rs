//! `fraudline train`: features by the scorer's own implementation, a network, an artifact.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use feature_store::FeatureSet;
use models::TrainOptions;

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
    #[arg(long, default_value = "handbook-mlp")]
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
    #[arg(long, default_value_t = 40)]
    epochs: usize,
    /// Share of the transactions that may be alerted
    #[arg(long, default_value_t = 0.005)]
    alert_budget: f64,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    anyhow::ensure!(!args.output.exists(), "{} exists already; name a new folder", args.output.display());
    let features = match &args.features {
        Some(path) => FeatureSet::load(path)?,
        None => FeatureSet::bundled(),
    };
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
        epochs: args.epochs,
        seed: args.source.seed,
        alert_budget: args.alert_budget,
        ..TrainOptions::default()
    };
    let progress = Progress::new(args.epochs as u64, "epochs");
    let artifact = models::train(features.layout(), &training, &validation, &options, &mut |epoch| {
        progress.set(epoch.epoch as u64);
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
    let metrics = artifact.metrics();
    println!("{} in {}", artifact.label(), args.output.display());
    println!(
        "validation: AUC {:.4}, average precision {:.4}; at the threshold {:.4}: precision {:.3}, recall {:.3}",
        metrics.validation.auc,
        metrics.validation.average_precision,
        artifact.threshold(),
        metrics.validation.precision,
        metrics.validation.recall,
    );
    Ok(())
}
