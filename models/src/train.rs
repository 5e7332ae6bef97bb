//! Training: from rows and labels to an artifact.

use burn::{
    backend::{Autodiff, Flex},
    module::AutodiffModule,
    optim::{AdamWConfig, GradientsParams, Optimizer},
    tensor::{
        Tensor, TensorData,
        activation::log_sigmoid,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use schemas::FeatureLayout;

use crate::{
    Artifact, ModelError, TrainingMetrics,
    artifact::{Parts, check_name},
    calibrate::{Calibration, log_loss},
    evaluate,
    network::{Dense, Network, host, layer_shapes},
    normalize::{Normalization, check_rows},
};

/// Legitimate rows drawn per fraud, anew for each epoch.
const LEGITIMATE_PER_FRAUD: usize = 20;
/// Rows of one forward pass over the validation rows.
const VALIDATION_ROWS: usize = 4096;

/// Rows with their labels.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// Row-major, n × width; NaN where a value is missing.
    pub rows: Vec<f32>,
    pub width: usize,
    /// Whether each row was a fraud.
    pub labels: Vec<bool>,
}

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    pub name: String,
    pub version: String,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Passes over the training rows at most.
    pub epochs: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    /// Epochs without a better average precision after which training ends, if it is the best one that is kept.
    pub patience: usize,
    /// Which epoch's weights are kept.
    pub kept: KeptEpoch,
    /// Same data, same options, same seed, same kind of processor: the same artifact.
    pub seed: u64,
    /// Share of the transactions that may be alerted; sets the threshold, as that quantile of the
    /// validation rows' scores.
    pub alert_budget: f64,
}

/// Which epoch's weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptEpoch {
    /// The one with the best average precision on the validation rows.
    Best,
    /// The last, whatever the validation rows say.
    Last,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            name: "fraudline".into(),
            version: "1".into(),
            hidden: vec![64, 32],
            epochs: 40,
            batch_size: 512,
            learning_rate: 2e-3,
            patience: 8,
            kept: KeptEpoch::Best,
            seed: 0,
            alert_budget: 0.005,
        }
    }
}

/// How training stands after an epoch. Losses are mean negative log likelihoods (nats per row).
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: usize,
    /// On the rows that this epoch drew.
    pub train_loss: f64,
    pub validation_loss: f64,
    /// Average precision on the validation rows.
    pub validation_ap: f64,
    /// Whether this is the best epoch so far.
    pub best: bool,
}

impl Dataset {
    fn check(&self, what: &str, layout: &FeatureLayout) -> Result<(), ModelError> {
        let refuse = |problem: String| Err(ModelError::Training(format!("the {what} rows {problem}")));
        if self.width != layout.width() {
            return refuse(format!("have {} columns, and the layout {}", self.width, layout.width()));
        }
        if let Err(error) = check_rows(layout, &self.rows) {
            return refuse(format!("can't be used: {error}"));
        }
        let (rows, labels) = (self.rows.len() / self.width, self.labels.len());
        if rows != labels {
            return refuse(format!("are {rows}, and their labels {labels}"));
        }
        match (self.positives(), labels) {
            (0, _) => refuse("hold no fraud: take a longer period".into()),
            (positives, count) if positives == count => refuse("hold nothing but frauds".into()),
            _ => Ok(()),
        }
    }

    fn positives(&self) -> usize {
        self.labels.iter().filter(|label| **label).count()
    }
}

impl TrainOptions {
    fn check(&self) -> Result<(), ModelError> {
        let positive = |what: &str, holds: bool| match holds {
            true => Ok(()),
            false => Err(format!("`{what}` must be above 0")),
        };
        let budget = match self.alert_budget > 0.0 && self.alert_budget < 1.0 {
            true => Ok(()),
            false => Err("`alert_budget` is a share of all transactions: above 0 and below 1".to_string()),
        };
        check_name("name", &self.name)
            .and(check_name("version", &self.version))
            .and(positive("hidden", self.hidden.iter().all(|width| *width > 0)))
            .and(positive("epochs", self.epochs > 0))
            .and(positive("batch_size", self.batch_size > 0))
            .and(positive("learning_rate", self.learning_rate > 0.0 && self.learning_rate.is_finite()))
            .and(positive("patience", self.patience > 0))
            .and(budget)
            .map_err(ModelError::Training)
    }
}

/// Trains a multilayer perceptron on the CPU, calibrates it, and sets its threshold.
///
/// `validation` should be of a later period than `training`: it chooses the epoch whose weights are
/// kept (the best average precision, unless the options keep the last), the calibration and the threshold. `progress` is told of each epoch.
pub fn train(
    layout: &FeatureLayout,
    training: &Dataset,
    validation: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn FnMut(&Epoch),
) -> Result<Artifact, ModelError> {
    options.check()?;
    training.check("training", layout)?;
    validation.check("validation", layout)?;

    let normalization = Normalization::fit(layout, training);
    let mut fit = Fit::<Autodiff<Flex>> {
        normalization: &normalization,
        training,
        validation,
        options,
        device: Default::default(),
        random: StdRng::seed_from_u64(options.seed),
    };
    let Fitted { layers, logits, epochs, best_epoch } = fit.run(progress)?;

    let calibration = Calibration::fit(&logits, &validation.labels);
    let scores: Vec<f32> = logits.iter().map(|logit| calibration.probability(*logit)).collect();
    let threshold = threshold(&scores, options.alert_budget);
    let alerts = scores.iter().filter(|score| **score >= threshold).count();
    let Some(evaluation) = evaluate(&scores, &validation.labels, threshold) else {
        return Err(ModelError::Training("the scores are not numbers: lower the learning rate".into()));
    };
    Ok(Artifact::new(Parts {
        name: options.name.clone(),
        version: options.version.clone(),
        layout: layout.clone(),
        hidden: options.hidden.clone(),
        layers,
        calibration,
        threshold,
        metrics: TrainingMetrics {
            training_rows: training.labels.len() as u64,
            training_positives: training.positives() as u64,
            epochs,
            best_epoch,
            seed: options.seed,
            validation: evaluation,
            log_loss_uncalibrated: log_loss(Calibration::IDENTITY, &logits, &validation.labels),
            log_loss: log_loss(calibration, &logits, &validation.labels),
            alert_share: alerts as f64 / scores.len() as f64,
        },
        normalization,
    }))
}

/// The lowest threshold that at most `budget` of these scores reach (at least one of them may, unless
/// more than that tie at the top).
fn threshold(scores: &[f32], budget: f64) -> f32 {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let allowed = ((budget * sorted.len() as f64) as usize).max(1);
    match (sorted.get(allowed - 1), sorted.get(allowed)) {
        (Some(last), Some(next)) if last > next => *last,
        // A tie across the border: none of it is alerted.
        (Some(_), Some(next)) => {
            sorted[..allowed].iter().rev().copied().find(|score| score > next).unwrap_or(next.next_up().min(1.0))
        }
        _ => sorted.last().copied().unwrap_or(1.0),
    }
}

/// One training run, on backend `B`.
struct Fit<'a, B: AutodiffBackend> {
    normalization: &'a Normalization,
    training: &'a Dataset,
    validation: &'a Dataset,
    options: &'a TrainOptions,
    device: B::Device,
    random: StdRng,
}

struct Fitted {
    layers: Vec<Dense>,
    /// Of the validation rows.
    logits: Vec<f32>,
    epochs: usize,
    best_epoch: usize,
}

impl<B: AutodiffBackend> Fit<'_, B> {
    fn run(&mut self, progress: &mut dyn FnMut(&Epoch)) -> Result<Fitted, ModelError> {
        let shapes = layer_shapes(self.normalization.inputs(), &self.options.hidden);
        let layers: Vec<Dense> = shapes.into_iter().map(|shape| Dense::random(shape, &mut self.random)).collect();
        let mut network = Network::<B>::new(&layers, &self.device);
        let mut optimizer = AdamWConfig::new().init::<B, Network<B>>();

        let of_label = |wanted: bool| {
            let rows = self.training.labels.iter().enumerate();
            rows.filter(move |(_, label)| **label == wanted).map(|(row, _)| row).collect::<Vec<usize>>()
        };
        let (frauds, mut legitimate) = (of_label(true), of_label(false));
        // Frauds are few: each epoch takes all of them, and a new draw of the rest. The drawn rows' odds of
        // fraud are 1/share too high, which is taken off the logits while training (King and Zeng, "Logistic
        // regression in rare events data", 2001), so that the network itself learns the true odds.
        let wanted = (frauds.len() * LEGITIMATE_PER_FRAUD).max(16 * self.options.batch_size);
        let drawn = wanted.min(legitimate.len());
        let offset = (drawn as f64 / legitimate.len() as f64).ln() as f32;

        let mut best: Option<(f64, Fitted)> = None;
        for epoch in 1..=self.options.epochs {
            let (draw, _) = legitimate.partial_shuffle(&mut self.random, drawn);
            let mut rows: Vec<usize> = frauds.iter().chain(draw.iter()).copied().collect();
            rows.shuffle(&mut self.random);
            let mut loss_sum = 0.0;
            for batch in rows.chunks(self.options.batch_size) {
                let (inputs, labels) = self.batch(batch);
                let loss = cross_entropy(network.forward(inputs) - offset, labels);
                let gradients = GradientsParams::from_grads(loss.backward(), &network);
                loss_sum += f64::from(host(loss)[0]) * batch.len() as f64;
                network = optimizer.step(self.options.learning_rate, network, gradients);
            }

            let logits = self.validation_logits(&network.valid());
            let Some(evaluation) = evaluate(&logits, &self.validation.labels, 0.0) else {
                return Err(ModelError::Training(format!(
                    "epoch {epoch} gave scores that are not numbers: lower the learning rate"
                )));
            };
            let validation_ap = evaluation.average_precision;
            let is_best = best.as_ref().is_none_or(|(ap, _)| validation_ap > *ap);
            progress(&Epoch {
                epoch,
                train_loss: loss_sum / rows.len() as f64,
                validation_loss: log_loss(Calibration::IDENTITY, &logits, &self.validation.labels),
                validation_ap,
                best: is_best,
            });
            match &mut best {
                Some((_, fitted)) if !is_best && self.options.kept == KeptEpoch::Best => {
                    fitted.epochs = epoch;
                    if epoch - fitted.best_epoch >= self.options.patience {
                        break;
                    }
                }
                _ => {
                    let layers = network.valid().weights();
                    best = Some((validation_ap, Fitted { layers, logits, epochs: epoch, best_epoch: epoch }));
                }
            }
        }
        let (_, fitted) = best.ok_or_else(|| ModelError::Training("no epoch was run".into()))?;
        Ok(fitted)
    }

    /// The inputs (rows × inputs) and labels (rows) of these training rows.
    fn batch(&self, rows: &[usize]) -> (Tensor<B, 2>, Tensor<B, 1>) {
        let width = self.training.width;
        let mut inputs = Vec::with_capacity(rows.len() * self.normalization.inputs());
        for row in rows {
            self.normalization.encode(&self.training.rows[row * width..(row + 1) * width], &mut inputs);
        }
        let labels: Vec<f32> = rows.iter().map(|row| f32::from(u8::from(self.training.labels[*row]))).collect();
        let inputs = TensorData::new(inputs, [rows.len(), self.normalization.inputs()]);
        let labels = TensorData::new(labels, [rows.len()]);
        (Tensor::from_data(inputs, &self.device), Tensor::from_data(labels, &self.device))
    }

    fn validation_logits(&self, network: &Network<B::InnerBackend>) -> Vec<f32> {
        let mut logits = Vec::with_capacity(self.validation.labels.len());
        for rows in self.validation.rows.chunks(VALIDATION_ROWS * self.validation.width) {
            let mut inputs = Vec::new();
            self.normalization.encode(rows, &mut inputs);
            let shape = [rows.len() / self.validation.width, self.normalization.inputs()];
            let inputs = Tensor::from_data(TensorData::new(inputs, shape), &self.device);
            logits.extend(host(network.forward(inputs)));
        }
        logits
    }
}

/// Mean cross entropy of logits z: `(1 − y) z − ln σ(z)`, without overflow.
fn cross_entropy<B: Backend>(logits: Tensor<B, 1>, labels: Tensor<B, 1>) -> Tensor<B, 1> {
    ((-labels + 1.0) * logits.clone() - log_sigmoid(logits)).mean()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_keeps_the_budget() {
        let scores: Vec<f32> = (0..1000).map(|x| x as f32 / 1000.0).collect();
        assert_eq!(threshold(&scores, 0.005), 0.995);
        assert_eq!(threshold(&scores, 0.0001), 0.999);
        // Ties across the border are left out, up to the next score above them.
        assert_eq!(threshold(&[0.1, 0.5, 0.5, 0.5, 0.9], 0.4), 0.9);
        assert_eq!(threshold(&[0.5; 10], 0.3), 0.5f32.next_up());
        assert_eq!(threshold(&[0.2, 0.1], 0.999), 0.2);
    }

    #[test]
    fn the_loss_is_stable_and_right() {
        let device = Default::default();
        let tensor = |values: [f32; 4]| Tensor::<Flex, 1>::from_data(values, &device);
        let loss = host(cross_entropy(tensor([0.0, 200.0, -200.0, 1.0]), tensor([1.0, 1.0, 0.0, 0.0])))[0];
        let expected = (2f64.ln() + (1.0 + 1f64.exp()).ln()) / 4.0;
        assert!((f64::from(loss) - expected).abs() < 1e-6, "{loss} {expected}");
    }
}
