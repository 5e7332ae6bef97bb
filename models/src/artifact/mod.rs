//! A trained model as a folder in the Hugging Face layout, with all that serving needs.

mod card;
mod config;
mod folder;
mod weights;

use std::path::Path;

use schemas::{EventTime, FeatureLayout};
use serde::{Deserialize, Serialize};

pub use self::config::NetworkConfig;
pub(crate) use self::config::check_name;
use crate::{
    AlertThreshold, CalibrationChoice, Epoch, Evaluation, ModelError, Reference, calibrate::Calibration,
    network::Weights, normalize::Normalization,
};

/// What an artifact was trained on, and how good it was on the validation rows: `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingMetrics {
    pub data: TrainingData,
    pub training_rows: u64,
    pub training_positives: u64,
    /// Passes over the training rows, and the one whose weights were kept (counted from 1).
    pub epochs: usize,
    pub best_epoch: usize,
    pub seed: u64,
    /// On the validation rows, at the threshold. These rows also chose the epoch, the calibration and the
    /// threshold, so expect a little less elsewhere.
    pub validation: Evaluation,
    pub calibration: CalibrationChoice,
    /// Mean negative log likelihood of the validation labels (nats per row), before and after calibration.
    pub log_loss_uncalibrated: f64,
    pub log_loss: f64,
    /// Every epoch, in order.
    pub curve: Vec<Epoch>,
}

/// Where the rows came from, for people to read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingData {
    /// What the rows are of, in words.
    pub source: String,
    /// Event times of the first and the last row.
    pub training: Option<Period>,
    pub validation: Option<Period>,
}

/// From the first event to the last. In RFC 3339 in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(String, String)", try_from = "(String, String)")]
pub struct Period {
    pub from: EventTime,
    pub to: EventTime,
}

impl From<Period> for (String, String) {
    fn from(period: Period) -> (String, String) {
        (period.from.to_string(), period.to.to_string())
    }
}

impl TryFrom<(String, String)> for Period {
    type Error = String;

    fn try_from((from, to): (String, String)) -> Result<Period, String> {
        Ok(Period { from: from.parse()?, to: to.parse()? })
    }
}

/// A trained model: network, feature layout, normalization, calibration, thresholds, training metrics, reference distributions.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    name: String,
    version: String,
    /// `name@version`.
    label: String,
    layout: FeatureLayout,
    network: NetworkConfig,
    normalization: Normalization,
    weights: Weights,
    calibration: Calibration,
    thresholds: Vec<AlertThreshold>,
    alert_budget: f64,
    threshold: f32,
    metrics: TrainingMetrics,
    reference: Reference,
}

/// What training yields, or a folder holds, to be made an artifact.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) layout: FeatureLayout,
    pub(crate) network: NetworkConfig,
    pub(crate) normalization: Normalization,
    pub(crate) weights: Weights,
    pub(crate) calibration: Calibration,
    /// By rising budget.
    pub(crate) thresholds: Vec<AlertThreshold>,
    /// One of the thresholds': the one that alerts go by.
    pub(crate) alert_budget: f64,
    pub(crate) metrics: TrainingMetrics,
    pub(crate) reference: Reference,
}

impl Artifact {
    /// The files that loading reads. A folder holds `README.md` and `training.svg` besides, for people.
    pub const FILES: [&'static str; 5] = folder::FILES;

    /// The model that is compiled into the program.
    pub fn bundled() -> Result<Artifact, ModelError> {
        folder::decode(
            Path::new("(bundled model)"),
            &folder::Contents {
                config: include_bytes!("../../artifacts/default/config.json"),
                weights: include_bytes!("../../artifacts/default/model.safetensors"),
                metrics: include_bytes!("../../artifacts/default/metrics.json"),
                reference: include_bytes!("../../artifacts/default/reference.json"),
                sums: include_bytes!("../../artifacts/default/SHA256SUMS"),
            },
        )
    }

    /// Reads an artifact from its folder.
    ///
    /// Refuses a folder that lacks a file, was changed after it was written, or has another format
    /// than this program's; the error names the file, what is wrong with it, and what to do.
    pub fn load(dir: &Path) -> Result<Artifact, ModelError> {
        folder::load(dir)
    }

    /// Writes the artifact to a new folder: all of it or nothing (it is written beside it, then renamed).
    ///
    /// Refuses to overwrite a folder that exists.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        folder::save(self, dir)
    }

    /// The columns that rows must have; serve only features whose layout it accepts.
    pub fn layout(&self) -> &FeatureLayout {
        &self.layout
    }

    /// An alert is a score of this or more.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// For several alert budgets, by rising budget.
    pub fn thresholds(&self) -> &[AlertThreshold] {
        &self.thresholds
    }

    /// The share of the transactions that its threshold was set to alert.
    pub fn alert_budget(&self) -> f64 {
        self.alert_budget
    }

    /// The same model with the threshold of another one of its alert budgets.
    ///
    /// Fails, naming those there are, where it has none for this one.
    pub fn with_alert_budget(mut self, alert_budget: f64) -> Result<Artifact, ModelError> {
        let known = self.thresholds.iter().find(|threshold| threshold.alert_budget == alert_budget);
        let Some(AlertThreshold { threshold, .. }) = known else {
            let known = self.thresholds.iter().map(|threshold| threshold.alert_budget.to_string());
            return Err(ModelError::AlertBudget {
                model: self.label,
                alert_budget,
                known: known.collect::<Vec<_>>().join(", "),
            });
        };
        (self.threshold, self.alert_budget) = (*threshold, alert_budget);
        Ok(self)
    }

    /// `name@version`.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn name_and_version(&self) -> (String, String) {
        (self.name.clone(), self.version.clone())
    }

    /// The same model under another name and version, both of them plain.
    pub(crate) fn named(self, name: &str, version: &str) -> Artifact {
        Artifact { name: name.into(), version: version.into(), label: format!("{name}@{version}"), ..self }
    }

    pub fn metrics(&self) -> &TrainingMetrics {
        &self.metrics
    }

    /// A row that is usual in everything, by the training rows; `NaN` where a column is usually missing.
    pub fn usual(&self) -> Vec<f32> {
        self.reference.columns.iter().map(|column| column.usual.unwrap_or(f32::NAN)).collect()
    }

    /// What columns and score looked like in training.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// One of the parts' thresholds must be of their alert budget: [`crate::threshold::check`].
    pub(crate) fn new(parts: Parts) -> Artifact {
        let label = format!("{}@{}", parts.name, parts.version);
        let chosen = parts.thresholds.iter().find(|threshold| threshold.alert_budget == parts.alert_budget);
        let threshold = chosen.map_or(1.0, |chosen| chosen.threshold);
        let Parts { name, version, layout, network, normalization, weights, .. } = parts;
        let Parts { calibration, thresholds, alert_budget, metrics, reference, .. } = parts;
        Artifact {
            name,
            version,
            label,
            layout,
            network,
            normalization,
            weights,
            calibration,
            thresholds,
            alert_budget,
            threshold,
            metrics,
            reference,
        }
    }

    pub(crate) fn normalization(&self) -> &Normalization {
        &self.normalization
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn calibration(&self) -> &Calibration {
        &self.calibration
    }
}

#[cfg(test)]
impl Artifact {
    /// A network of random weights over `width` columns, every second of them nullable.
    pub(crate) fn random(width: usize, hidden: &[usize], seed: u64) -> Artifact {
        use crate::{
            Dataset,
            network::{Dense, layer_shapes},
        };
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(seed);
        let features = (0..width).map(|column| schemas::FeatureSpec {
            name: format!("column_{column}"),
            definition: format!("random {column}"),
            nullable: column % 2 == 1,
            place: None,
        });
        let layout = FeatureLayout::new(features.collect());
        let mean = (0..width).map(|_| random.random_range(-1.0..1.0)).collect();
        let scale = (0..width).map(|_| random.random_range(0.2..2.0)).collect();
        let normalization = Normalization::new(&layout, mean, scale).unwrap();
        let mut layers = Vec::new();
        for shape in layer_shapes(normalization.inputs(), hidden) {
            let mut layer = Dense::random(shape, &mut random);
            layer.bias.iter_mut().for_each(|bias| *bias = random.random_range(0.0..0.5));
            layers.push(layer);
        }
        let (logits, labels) = ([-1.0, 0.5, -0.2, 1.0], [false, true, false, true]);
        let (calibration, choice) = Calibration::choose(&logits, &labels);
        let scores = logits.map(|logit| calibration.probability(logit));
        let thresholds = crate::threshold::thresholds(&scores, &labels, 0.5);
        let rows = (0..4 * width).map(|_| random.random_range(-1.0..1.0)).collect();
        let rows = Dataset { rows, width, labels: labels.to_vec() };
        Artifact::new(Parts {
            name: "random".into(),
            version: seed.to_string(),
            network: NetworkConfig::Mlp { hidden: hidden.to_vec() },
            normalization,
            weights: Weights::Mlp(layers),
            reference: Reference::of(&layout, &rows, &scores),
            metrics: TrainingMetrics {
                data: TrainingData::default(),
                training_rows: 4,
                training_positives: 2,
                epochs: 0,
                best_epoch: 0,
                seed,
                validation: crate::evaluate(&scores, &labels, 0.5).unwrap(),
                calibration: choice,
                log_loss_uncalibrated: 0.7,
                log_loss: 0.7,
                curve: Vec::new(),
            },
            layout,
            calibration,
            thresholds,
            alert_budget: 0.5,
        })
    }
}
