//! The model card: what a person should know of an artifact, in Markdown with Hugging Face's front matter.

use std::fmt::Write;

use super::{Artifact, TrainingMetrics};
use crate::calibrate::Calibration;

/// The plot that the card shows.
pub(super) const CURVES: &str = "training.svg";

pub(super) fn write(artifact: &Artifact) -> String {
    [
        front_matter(artifact),
        purpose(artifact),
        data(artifact),
        figures(artifact),
        calibration(artifact),
        thresholds(artifact),
        features(artifact),
        limits(artifact),
    ]
    .concat()
}

/// As JSON values, which are YAML too.
fn front_matter(Artifact { name, metrics, .. }: &Artifact) -> String {
    let figure = |kind: &str, name: &str, value: f64| serde_json::json!({ "type": kind, "name": name, "value": value, "verified": false });
    let index = serde_json::json!([{
        "name": name,
        "results": [{
            "task": { "type": "tabular-classification", "name": "Card fraud detection" },
            "dataset": { "type": "transactions", "name": format!("validation part of {}", source(metrics)) },
            "metrics": [
                figure("roc_auc", "AUC", metrics.validation.auc),
                figure("average_precision", "Average precision", metrics.validation.average_precision),
                figure("precision", "Precision at the threshold", metrics.validation.precision),
                figure("recall", "Recall at the threshold", metrics.validation.recall),
            ],
        }],
    }]);
    format!(
        "---\nlibrary_name: fraudline\npipeline_tag: tabular-classification\ntags: [fraud-detection, tabular, safetensors]\n\
         metrics: [roc_auc, average_precision, precision, recall]\nmodel-index: {index}\n---\n\n"
    )
}

fn purpose(artifact: &Artifact) -> String {
    let weights = artifact.weights.parameters();
    format!(
        "# {}\n\nThe probability that a card transaction is fraud, from {} features of the transaction, its card's past and its \
         terminal's.\n\nThe network: {}, {weights} parameters. Trained and served by fraudline; the features \
         are computed by the same code in both.\n\n",
        artifact.label,
        artifact.layout.width(),
        artifact.network,
    )
}

fn source(metrics: &TrainingMetrics) -> &str {
    if metrics.data.source.is_empty() { "unnamed transactions" } else { &metrics.data.source }
}

fn data(Artifact { metrics, .. }: &Artifact) -> String {
    let period = |period: Option<super::Period>| {
        period.map_or("not recorded".into(), |period| format!("{} to {}", day(period.from), day(period.to)))
    };
    let line = |name: &str, when, rows: u64, frauds: u64| {
        let share = 100.0 * frauds as f64 / rows.max(1) as f64;
        format!("| {name} | {} | {rows} | {frauds} | {share:.3} % |\n", period(when))
    };
    let validation = &metrics.validation;
    format!(
        "## Data\n\n{}.\n\n| | first to last day | transactions | frauds | share |\n|---|---|---|---|---|\n{}{}\n",
        capitalized(source(metrics)),
        line("training", metrics.data.training, metrics.training_rows, metrics.training_positives),
        line("validation", metrics.data.validation, validation.count, validation.positives),
    )
}

fn figures(Artifact { metrics, .. }: &Artifact) -> String {
    let validation = &metrics.validation;
    let mut text = format!(
        "## Figures\n\nOn the validation rows. These also chose the epoch, the calibration and the thresholds, so expect a little less \
         elsewhere.\n\n| figure | value |\n|---|---|\n| AUC | {:.4} |\n| average precision | {:.4} |\n\
         | log loss (nats per row) | {:.6} |\n| log loss before calibration | {:.6} |\n\nEpoch {} of {}, seed {}.",
        validation.auc,
        validation.average_precision,
        metrics.log_loss,
        metrics.log_loss_uncalibrated,
        metrics.best_epoch,
        metrics.epochs,
        metrics.seed,
    );
    text += &format!(" Each epoch is in `metrics.json`.\n\n![Loss and average precision by epoch]({CURVES})\n\n");
    text
}

fn calibration(Artifact { metrics, calibration, .. }: &Artifact) -> String {
    let method = match calibration {
        Calibration::Platt(_) => "Platt scaling",
        Calibration::Isotonic(_) => "Isotonic regression with straight lines between its blocks, so that order is kept",
    };
    let isotonic = metrics.calibration.log_loss_isotonic;
    format!(
        "## Calibration\n\n{method}. Chosen by the log loss on fifths of the validation rows, each under a curve fitted to the other four: \
         Platt {:.6}, isotonic {}.\n\n",
        metrics.calibration.log_loss_platt,
        isotonic.map_or("not possible".into(), |loss| format!("{loss:.6}")),
    )
}

fn thresholds(artifact: &Artifact) -> String {
    let mut text = "## Thresholds\n\nAn alert is a score of the threshold or more. On the validation rows:\n\n\
                    | alert budget | threshold | alerted | precision | recall |\n|---|---|---|---|---|\n"
        .to_string();
    for threshold in &artifact.thresholds {
        let own = if threshold.alert_budget == artifact.alert_budget { " (default)" } else { "" };
        let _ = writeln!(
            text,
            "| {} %{own} | {:.4} | {:.3} % | {:.3} | {:.3} |",
            percent(threshold.alert_budget),
            threshold.threshold,
            100.0 * threshold.alert_share,
            threshold.precision,
            threshold.recall,
        );
    }
    text + "\n"
}

fn features(artifact: &Artifact) -> String {
    let mut text = format!(
        "## Features\n\nLayout `{}`. Usual is the median of the legitimate training rows; the distributions are in \
         `reference.json`.\n\n| feature | definition | missing | usual |\n|---|---|---|---|\n",
        artifact.layout.hash()
    );
    for (feature, column) in artifact.layout.features().iter().zip(&artifact.reference.columns) {
        let usual = column.usual.map_or("missing".into(), |usual| usual.to_string());
        let missing = 100.0 * column.histogram.missing_share();
        let definition = feature.definition.replace('|', "\\|");
        let _ = writeln!(text, "| {} | `{definition}` | {missing:.2} % | {usual} |", feature.name);
    }
    text + "\n"
}

fn limits(Artifact { metrics, .. }: &Artifact) -> String {
    let base = 100.0 * metrics.validation.positives as f64 / metrics.validation.count.max(1) as f64;
    format!(
        "## Intended use\n\nRanking the payments of the kind it was trained on for review by people, within an alert budget. Not for decisions \
         about a person without review, nor for payments of another kind, currency or period without evaluating it there first \
         (`fraudline evaluate`).\n\n## Limits\n\n- Probabilities hold where frauds are as frequent as in validation ({base:.3} %), and \
         wear off as the distributions drift: compare with `reference.json` (population stability index; 0.1 is a shift, 0.25 another \
         distribution).\n- Features need their history: in the first days of a new card, or of a new deployment, scores are less certain.\n\
         - It knows frauds like those in its training rows. A new scheme shows in neither scores nor figures until it is labelled and \
         trained on.\n- Serving refuses other features than those above, and files that don't match `SHA256SUMS`.\n"
    )
}

/// The date of a time.
fn day(time: schemas::EventTime) -> String {
    time.to_string().chars().take(10).collect()
}

/// A share as a percentage, without the noise of binary fractions.
fn percent(share: f64) -> String {
    ((share * 1e8).round() / 1e6).to_string()
}

fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or(String::new(), |first| first.to_uppercase().chain(rest).collect())
}
