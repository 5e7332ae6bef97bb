//! How well a model scores recorded transactions, by threshold and by kind of fraud, and how far these are from what it was trained on.

use std::collections::BTreeSet;

use anyhow::Context;
use models::{
    AlertThreshold, Artifact, Drift, Evaluation, PSI_OTHER, PSI_SHIFTED, ScoredCard, Scorer, calibration_error,
    card_precision,
};
use schemas::FeatureLayout;
use serde::Serialize;

use super::DAY_MS;
use crate::dataset::Vectors;
use crate::progress::Progress;
use crate::train::percent;

/// Rows scored between two looks at the progress.
const SCORED_AT_ONCE: usize = 65_536;
/// Bins of the calibration error: of equally many rows each.
pub(super) const CALIBRATION_BINS: usize = 20;
/// Features named at most as drifted, in the table.
const DRIFTED_MAX: usize = 10;

const NOTHING: &str = "transactions of both kinds are needed behind the warm-up, frauds and others; lower --warm-up-days, or take a longer input";

/// The figures, named as in [`Evaluation`].
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    device: String,
    feature_layout: String,
    pub(super) threshold: f32,
    #[serde(flatten)]
    pub(super) evaluation: Evaluation,
    /// Share of the transactions at or above the threshold.
    alert_share: f64,
    card_precision: CardPrecision,
    calibration_error: f64,
    /// What the threshold of each of the model's alert budgets gives here.
    thresholds: Vec<AlertThreshold>,
    /// By kind of fraud, where the input tells it.
    pub(super) scenarios: Vec<ScenarioFigures>,
    drift: DriftReport,
}

/// Of the cards with the highest scores of a day, how many were defrauded that day.
#[derive(Debug, Serialize)]
struct CardPrecision {
    cards: u32,
    precision: f64,
}

/// Of one TX_FRAUD_SCENARIO.
#[derive(Debug, Serialize)]
pub(super) struct ScenarioFigures {
    pub(super) scenario: u8,
    pub(super) name: &'static str,
    frauds: u64,
    /// Share of these frauds that are at or above the threshold.
    pub(super) recall: f64,
    /// Over these frauds and all legitimate transactions.
    average_precision: f64,
}

/// Population stability indices against the artifact's reference.
#[derive(Debug, Serialize)]
struct DriftReport {
    score: Drift,
    /// Largest first.
    features: Vec<Drift>,
}

/// The input, and what the model says of it: what figures and plots are made of.
pub(super) struct Scored {
    pub(super) vectors: Vectors,
    pub(super) scores: Vec<f32>,
    device: String,
}

impl Scored {
    /// Scores the vectors.
    pub(super) fn new(vectors: Vectors, scorer: &mut Scorer) -> anyhow::Result<Scored> {
        let mut scores = Vec::with_capacity(vectors.dataset.labels.len());
        let progress = Progress::new(vectors.dataset.labels.len() as u64, "scores");
        for rows in vectors.dataset.rows.chunks(SCORED_AT_ONCE * vectors.dataset.width) {
            scorer.score(rows, &mut scores)?;
            progress.set(scores.len() as u64);
        }
        progress.finish();
        Ok(Scored { vectors, scores, device: scorer.device().to_owned() })
    }

    pub(super) fn labels(&self) -> &[bool] {
        &self.vectors.dataset.labels
    }

    pub(super) fn report(&self, artifact: &Artifact, layout: &FeatureLayout, cards: u32) -> anyhow::Result<Report> {
        let (scores, labels, threshold) = (&self.scores, self.labels(), artifact.threshold());
        let by_card: Vec<ScoredCard> = (0..labels.len())
            .map(|row| ScoredCard {
                day: self.vectors.times[row].as_millis().div_euclid(DAY_MS),
                card: self.vectors.cards[row],
                score: scores[row],
                fraud: labels[row],
            })
            .collect();
        let (mut features, score) = artifact.reference().drift(layout, &self.vectors.dataset.rows, scores)?;
        features.sort_by(|a, b| b.psi.total_cmp(&a.psi));
        Ok(Report {
            model: artifact.label().to_owned(),
            device: self.device.clone(),
            feature_layout: layout.hash().to_owned(),
            threshold,
            evaluation: models::evaluate(scores, labels, threshold).context(NOTHING)?,
            alert_share: alert_share(scores, threshold),
            card_precision: CardPrecision {
                cards,
                precision: card_precision(&by_card, cards as usize).context(NOTHING)?,
            },
            calibration_error: calibration_error(scores, labels, CALIBRATION_BINS).context(NOTHING)?,
            thresholds: self.at_thresholds(artifact)?,
            scenarios: self.by_scenario(threshold)?,
            drift: DriftReport { score, features },
        })
    }

    fn at_thresholds(&self, artifact: &Artifact) -> anyhow::Result<Vec<AlertThreshold>> {
        let at = |&AlertThreshold { alert_budget, threshold, .. }: &AlertThreshold| {
            let figures = models::evaluate(&self.scores, self.labels(), threshold).context(NOTHING)?;
            Ok(AlertThreshold {
                alert_budget,
                threshold,
                alert_share: alert_share(&self.scores, threshold),
                precision: figures.precision,
                recall: figures.recall,
            })
        };
        artifact.thresholds().iter().map(at).collect()
    }

    /// Frauds of scenario 0 are of none that is named: listed where others are.
    fn by_scenario(&self, threshold: f32) -> anyhow::Result<Vec<ScenarioFigures>> {
        let (labels, scenarios) = (self.labels(), &self.vectors.scenarios);
        let kinds: BTreeSet<u8> =
            scenarios.iter().zip(labels).filter(|(_, fraud)| **fraud).map(|(scenario, _)| *scenario).collect();
        if kinds.iter().all(|&scenario| scenario == 0) {
            return Ok(Vec::new());
        }
        let figures = |scenario: u8| {
            let rows = || (0..labels.len()).filter(|&row| !labels[row] || scenarios[row] == scenario);
            let scores: Vec<f32> = rows().map(|row| self.scores[row]).collect();
            let labels: Vec<bool> = rows().map(|row| labels[row]).collect();
            let figures = models::evaluate(&scores, &labels, threshold).context(NOTHING)?;
            Ok(ScenarioFigures {
                scenario,
                name: name_of(scenario),
                frauds: figures.positives,
                recall: figures.recall,
                average_precision: figures.average_precision,
            })
        };
        kinds.into_iter().map(figures).collect()
    }
}

fn alert_share(scores: &[f32], threshold: f32) -> f64 {
    scores.iter().filter(|&&score| score >= threshold).count() as f64 / scores.len() as f64
}

/// What the Handbook's scenarios are.
fn name_of(scenario: u8) -> &'static str {
    match scenario {
        1 => "large amount",
        2 => "compromised terminal",
        3 => "compromised card",
        _ => "other",
    }
}

impl Report {
    pub(super) fn print(&self) {
        let Evaluation { auc, average_precision, count, positives, .. } = &self.evaluation;
        println!("{} on {}, {count} transactions, {positives} frauds", self.model, self.device);
        println!("AUC                  {auc:.4}");
        println!("average precision    {average_precision:.4}");
        let label = format!("card precision@{}", self.card_precision.cards);
        println!("{label:<20} {:.4}", self.card_precision.precision);
        println!("calibration error    {:.6}", self.calibration_error);

        println!("\nalert budget  threshold   alerted  precision  recall");
        for at in &self.thresholds {
            println!(
                "{:>10} %  {:>9.4}  {:>6.3} %  {:>9.3}  {:>6.3}{}",
                percent(at.alert_budget),
                at.threshold,
                100.0 * at.alert_share,
                at.precision,
                at.recall,
                if at.threshold == self.threshold { "  *" } else { "" },
            );
        }
        if !self.scenarios.is_empty() {
            println!("\nscenario                  frauds  recall  average precision");
            for ScenarioFigures { scenario, name, frauds, recall, average_precision } in &self.scenarios {
                println!("{scenario} {name:<22} {frauds:>7}  {recall:>6.3}  {average_precision:>17.4}");
            }
        }
        self.drift.print();
    }
}

impl DriftReport {
    fn print(&self) {
        let drifted: Vec<&Drift> = self.features.iter().filter(|drift| drift.psi >= PSI_SHIFTED).collect();
        println!(
            "\ndrift (population stability index): score {:.3}; {} of {} features at {PSI_SHIFTED} or more",
            self.score.psi,
            drifted.len(),
            self.features.len()
        );
        for Drift { name, psi, missing_reference, missing } in drifted.iter().take(DRIFTED_MAX) {
            let what = if *psi >= PSI_OTHER { "another distribution" } else { "shifted" };
            let missing = match missing_reference.max(*missing) > 0.0 {
                true => format!("; missing {:.1} %, in training {:.1} %", 100.0 * missing, 100.0 * missing_reference),
                false => String::new(),
            };
            println!("  {name:<44} {psi:>6.3}  {what}{missing}");
        }
    }
}
