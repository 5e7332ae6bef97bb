//! Training: from rows and labels to an artifact.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::{Autodiff, Cuda, Flex, cuda::CudaDevice},
    module::{AutodiffModule, Module},
    optim::{AdamWConfig, GradientsParams, Optimizer},
    record::{FullPrecisionSettings, NamedMpkBytesRecorder, Record, Recorder},
    tensor::{
        Tensor, TensorData,
        activation::log_sigmoid,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::{
    RngExt, SeedableRng,
    rngs::StdRng,
    seq::{SliceRandom, index},
};
use schemas::FeatureLayout;
use serde::{Deserialize, Serialize};

use crate::{
    Artifact, Device, ModelError, Reference, TrainingData, TrainingMetrics,
    artifact::{NetworkConfig, Parts, check_name},
    calibrate::{Calibration, log_loss},
    checkpoint::{Checkpoints, Keeper, State},
    encode::Encoding,
    error::panic_message,
    evaluate,
    network::{Dense, History, Network, Places, Shape, Tabular, Weights, host, layer_shapes},
    normalize::{Normalization, check_rows},
    score::cuda_driver_is_loaded,
    threshold::thresholds,
};

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
    pub network: NetworkConfig,
    /// Passes over the training rows at most.
    pub epochs: usize,
    pub batch_size: usize,
    /// Of the first step. It falls to 0 by the last of the epochs, along half a cosine.
    pub learning_rate: f64,
    /// By how much of the learning rate each step shrinks the weights (AdamW).
    pub weight_decay: f64,
    /// Share of the first hidden layer's outputs that are 0 in a step, others for each row. Of tabular networks.
    pub dropout: f64,
    /// Legitimate rows drawn per fraud, anew for each epoch.
    pub legitimate_per_fraud: usize,
    /// Epochs without a better average precision after which training ends, if it is the best one that is kept.
    pub patience: usize,
    /// Which epoch's weights are kept.
    pub kept: KeptEpoch,
    /// On the CPU, same data, same options, same seed, same kind of processor: the same artifact. CUDA's kernels add up in an order
    /// that may differ from run to run.
    pub seed: u64,
    pub device: Device,
    /// Share of the transactions that may be alerted; sets the threshold, as that quantile of the
    /// validation rows' scores. There are thresholds for [`crate::ALERT_BUDGETS`] besides, to choose from when serving.
    pub alert_budget: f64,
    /// What the model card says of the rows.
    pub data: TrainingData,
    /// Keep the state of the training after each epoch, to go on from after an interruption: the artifact is then the same, bit for
    /// bit, as without one. The file stays when training has ended.
    pub checkpoints: Option<Checkpoints>,
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
            network: NetworkConfig::Mlp { hidden: vec![64, 32] },
            epochs: 40,
            batch_size: 512,
            learning_rate: 2e-3,
            weight_decay: 1e-2,
            dropout: 0.2,
            legitimate_per_fraud: 20,
            patience: 8,
            kept: KeptEpoch::Best,
            seed: 0,
            device: Device::Cpu,
            alert_budget: 0.005,
            data: TrainingData::default(),
            checkpoints: None,
        }
    }
}

/// How training stands after an epoch. Losses are mean negative log likelihoods (nats per row).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        let share = |what: &str, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("`{what}` must be 0 or more and below 1")),
        };
        let budget = match self.alert_budget > 0.0 && self.alert_budget < 1.0 {
            true => Ok(()),
            false => Err("`alert_budget` is a share of all transactions: above 0 and below 1".to_string()),
        };
        check_name("name", &self.name)
            .and(check_name("version", &self.version))
            .and(self.network.check())
            .and(positive("legitimate_per_fraud", self.legitimate_per_fraud > 0))
            .and(share("dropout", self.dropout))
            .and(share("weight_decay", self.weight_decay))
            .and(positive("epochs", self.epochs > 0))
            .and(positive("batch_size", self.batch_size > 0))
            .and(positive("learning_rate", self.learning_rate > 0.0 && self.learning_rate.is_finite()))
            .and(positive("patience", self.patience > 0))
            .and(budget)
            .map_err(ModelError::Training)
    }
}

/// Trains a network, calibrates it, and sets its thresholds.
///
/// `validation` should be of a later period than `training`, and in order of time: it chooses the epoch whose weights are
/// kept (the best average precision, unless the options keep the last), the calibration and the thresholds. `progress` is told of each
/// epoch, also of those that a checkpoint already had.
pub fn train(
    layout: &FeatureLayout,
    training: &Dataset,
    validation: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn FnMut(&Epoch),
) -> Result<Artifact, ModelError> {
    options.check()?;
    options.network.check_layout(layout)?;
    training.check("training", layout)?;
    validation.check("validation", layout)?;

    let normalization = Normalization::fit(layout, training);
    let fit = Fit {
        layout,
        normalization: &normalization,
        training,
        validation,
        options,
        keeper: Keeper::of(options, training, validation),
    };
    let Fitted { weights, logits, best_epoch, curve } = fit.on_device(progress)?;
    let epochs = curve.len();

    let (calibration, choice) = Calibration::choose(&logits, &validation.labels);
    let scores: Vec<f32> = logits.iter().map(|logit| calibration.probability(*logit)).collect();
    let thresholds = thresholds(&scores, &validation.labels, options.alert_budget);
    let chosen = thresholds.iter().find(|threshold| threshold.alert_budget == options.alert_budget);
    let evaluation = chosen.and_then(|chosen| evaluate(&scores, &validation.labels, chosen.threshold));
    let Some(evaluation) = evaluation else {
        return Err(ModelError::Training("the scores are not numbers: lower the learning rate".into()));
    };
    Ok(Artifact::new(Parts {
        name: options.name.clone(),
        version: options.version.clone(),
        layout: layout.clone(),
        network: options.network.clone(),
        weights,
        thresholds,
        alert_budget: options.alert_budget,
        metrics: TrainingMetrics {
            data: options.data.clone(),
            training_rows: training.labels.len() as u64,
            training_positives: training.positives() as u64,
            epochs,
            best_epoch,
            seed: options.seed,
            validation: evaluation,
            calibration: choice,
            log_loss_uncalibrated: log_loss(&Calibration::IDENTITY, &logits, &validation.labels),
            log_loss: log_loss(&calibration, &logits, &validation.labels),
            curve,
        },
        calibration,
        reference: Reference::of(layout, training, &scores),
        normalization,
    }))
}

/// One training run: on what, and how.
struct Fit<'a> {
    layout: &'a FeatureLayout,
    normalization: &'a Normalization,
    training: &'a Dataset,
    validation: &'a Dataset,
    options: &'a TrainOptions,
    keeper: Option<Keeper<'a>>,
}

/// What comes of it.
struct Fitted {
    weights: Weights,
    /// Of the validation rows.
    logits: Vec<f32>,
    best_epoch: usize,
    curve: Vec<Epoch>,
}

/// The epoch that is kept so far.
struct Kept<B: AutodiffBackend> {
    epoch: usize,
    network: Network<B>,
    logits: Vec<f32>,
}

impl Fit<'_> {
    /// Trains on the options' device.
    fn on_device(&self, progress: &mut dyn FnMut(&Epoch)) -> Result<Fitted, ModelError> {
        let index = match self.options.device {
            Device::Cpu => None,
            Device::Cuda(index) => Some(index),
            Device::Auto if cuda_driver_is_loaded() => Some(0),
            Device::Auto => None,
        };
        let Some(index) = index else {
            return self.run::<Autodiff<Flex>>(&Default::default(), progress);
        };
        // burn panics where a device can't be opened, or is lost.
        let trained = catch_unwind(AssertUnwindSafe(|| self.run::<Autodiff<Cuda>>(&CudaDevice::new(index), progress)));
        trained.unwrap_or_else(|panic| {
            let problem = format!("{}; train on the CPU", panic_message(&*panic));
            Err(ModelError::Device { device: Device::Cuda(index).to_string(), problem })
        })
    }

    fn run<B: AutodiffBackend>(
        &self,
        device: &B::Device,
        progress: &mut dyn FnMut(&Epoch),
    ) -> Result<Fitted, ModelError> {
        let first = self.first_weights()?;
        let mut network = Network::<B>::new(&first, device);
        let decay = self.options.weight_decay as f32;
        let mut optimizer = AdamWConfig::new().with_weight_decay(decay).init::<B, Network<B>>();
        let (mut kept, mut curve): (Option<Kept<B>>, Vec<Epoch>) = (None, Vec::new());
        if let Some(keeper) = &self.keeper
            && let Some(state) = keeper.state()?
        {
            let best = match self.options.kept {
                KeptEpoch::Best => state.curve.iter().rev().find(|epoch| epoch.best),
                KeptEpoch::Last => state.curve.last(),
            };
            if let Some(best) = best {
                let saved = network.clone().load_record(read(keeper, state.kept, device)?);
                kept = Some(Kept { epoch: best.epoch, network: saved, logits: state.kept_logits });
            }
            network = network.load_record(read(keeper, state.network, device)?);
            optimizer = optimizer.load_record(read(keeper, state.optimizer, device)?);
            curve = state.curve;
            curve.iter().for_each(&mut *progress);
        }

        let of_label = |wanted: bool| {
            let rows = self.training.labels.iter().enumerate();
            rows.filter(move |(_, label)| **label == wanted).map(|(row, _)| row).collect::<Vec<usize>>()
        };
        let (frauds, legitimate) = (of_label(true), of_label(false));
        // Frauds are few: each epoch takes all of them, and a new draw of the rest. The drawn rows' odds of
        // fraud are 1/share too high, which is taken off the logits while training (King and Zeng, "Logistic
        // regression in rare events data", 2001), so that the network itself learns the true odds.
        let wanted = (frauds.len() * self.options.legitimate_per_fraud).max(16 * self.options.batch_size);
        let drawn = wanted.min(legitimate.len());
        let offset = (drawn as f64 / legitimate.len() as f64).ln() as f32;

        for epoch in curve.len() + 1..=self.options.epochs {
            let impatient =
                |kept: &Kept<B>| self.options.kept == KeptEpoch::Best && epoch > kept.epoch + self.options.patience;
            if kept.as_ref().is_some_and(impatient) {
                break;
            }
            let mut random = self.random(epoch);
            let draw = index::sample(&mut random, legitimate.len(), drawn);
            let mut rows: Vec<usize> = frauds.iter().copied().chain(draw.iter().map(|row| legitimate[row])).collect();
            rows.shuffle(&mut random);
            let mut loss_sum = 0.0;
            let steps = rows.len().div_ceil(self.options.batch_size);
            for (step, batch) in rows.chunks(self.options.batch_size).enumerate() {
                let (inputs, labels) = self.batch::<B>(batch, device);
                let dropout = self.dropout::<B>(batch.len(), network.dropped(), &mut random, device);
                let logits = network.members(inputs, dropout);
                let members = logits.dims()[1];
                let loss = cross_entropy(logits - offset, labels.reshape([batch.len(), 1]).repeat_dim(1, members));
                let gradients = GradientsParams::from_grads(loss.backward(), &network);
                loss_sum += f64::from(host(loss)[0]) * batch.len() as f64;
                let done = ((epoch - 1) as f64 + step as f64 / steps as f64) / self.options.epochs as f64;
                let rate = self.options.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                network = optimizer.step(rate, network, gradients);
            }

            let logits = self.validation_logits(&network.valid(), device);
            let Some(evaluation) = evaluate(&logits, &self.validation.labels, 0.0) else {
                return Err(ModelError::Training(format!(
                    "epoch {epoch} gave scores that are not numbers: lower the learning rate"
                )));
            };
            let average_precision = evaluation.average_precision;
            let best = curve.iter().all(|before: &Epoch| average_precision > before.validation_ap);
            curve.push(Epoch {
                epoch,
                train_loss: loss_sum / rows.len() as f64,
                validation_loss: log_loss(&Calibration::IDENTITY, &logits, &self.validation.labels),
                validation_ap: average_precision,
                best,
            });
            if best || self.options.kept == KeptEpoch::Last {
                kept = Some(Kept { epoch, network: network.clone(), logits });
            }
            if let (Some(keeper), Some(kept)) = (&self.keeper, &kept) {
                keeper.keep(&State {
                    curve: curve.clone(),
                    network: written(keeper, network.clone().into_record())?,
                    optimizer: written(keeper, optimizer.to_record())?,
                    kept: written(keeper, kept.network.clone().into_record())?,
                    kept_logits: kept.logits.clone(),
                })?;
            }
            curve.last().into_iter().for_each(&mut *progress);
        }
        let kept = kept.ok_or_else(|| ModelError::Training("no epoch was run".into()))?;
        Ok(Fitted { weights: kept.network.valid().weights(&first), logits: kept.logits, best_epoch: kept.epoch, curve })
    }

    /// Random numbers of an epoch, or, for 0, of the first weights: each of its own, so that training can go on at any of them.
    fn random(&self, epoch: usize) -> StdRng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.options.seed.to_le_bytes());
        key[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
        StdRng::from_seed(key)
    }

    /// What training begins with.
    fn first_weights(&self) -> Result<Weights, ModelError> {
        let (inputs, mut random) = (self.normalization.inputs(), self.random(0));
        let encoded = || {
            let mut rows = Vec::with_capacity(self.training.labels.len() * inputs);
            self.normalization.encode(&self.training.rows, &mut rows);
            rows
        };
        Ok(match &self.options.network {
            NetworkConfig::Mlp { hidden } => {
                let shapes = layer_shapes(inputs, hidden).into_iter();
                Weights::Mlp(shapes.map(|shape| Dense::random(shape, &mut random)).collect())
            }
            NetworkConfig::Tabular { pieces, members, hidden } => {
                let encoding = Encoding::fit(&encoded(), inputs, &self.training.labels, *pieces);
                Weights::Tabular(Tabular::random(encoding, *members, hidden, &mut random))
            }
            NetworkConfig::History { pieces, members, hidden, width } => {
                let places = Places::of(self.layout).map_err(ModelError::Training)?;
                let shape = Shape { pieces: *pieces, members: *members, hidden, width: *width };
                let (rows, labels) = (encoded(), &self.training.labels);
                Weights::History(History::random(places, (&rows, inputs), labels, shape, &mut random))
            }
        })
    }

    /// By what outputs are multiplied: 0 for a share of them, and for the rest what keeps their mean.
    fn dropout<B: Backend>(
        &self,
        rows: usize,
        outputs: usize,
        random: &mut StdRng,
        device: &B::Device,
    ) -> Option<Tensor<B, 2>> {
        if outputs == 0 || self.options.dropout == 0.0 {
            return None;
        }
        let (share, kept) = (self.options.dropout as f32, 1.0 / (1.0 - self.options.dropout as f32));
        let mask = (0..rows * outputs).map(|_| if random.random::<f32>() < share { 0.0 } else { kept }).collect();
        Some(Tensor::from_data(TensorData::new::<f32, _>(mask, [rows, outputs]), device))
    }

    /// The inputs (rows × inputs) and labels (rows) of these training rows.
    fn batch<B: Backend>(&self, rows: &[usize], device: &B::Device) -> (Tensor<B, 2>, Tensor<B, 1>) {
        let width = self.training.width;
        let mut inputs = Vec::with_capacity(rows.len() * self.normalization.inputs());
        for row in rows {
            self.normalization.encode(&self.training.rows[row * width..(row + 1) * width], &mut inputs);
        }
        let labels: Vec<f32> = rows.iter().map(|row| f32::from(u8::from(self.training.labels[*row]))).collect();
        let inputs = TensorData::new(inputs, [rows.len(), self.normalization.inputs()]);
        let labels = TensorData::new(labels, [rows.len()]);
        (Tensor::from_data(inputs, device), Tensor::from_data(labels, device))
    }

    fn validation_logits<B: Backend>(&self, network: &Network<B>, device: &B::Device) -> Vec<f32> {
        let mut logits = Vec::with_capacity(self.validation.labels.len());
        for rows in self.validation.rows.chunks(VALIDATION_ROWS * self.validation.width) {
            let mut inputs = Vec::new();
            self.normalization.encode(rows, &mut inputs);
            let shape = [rows.len() / self.validation.width, self.normalization.inputs()];
            let inputs = Tensor::from_data(TensorData::new(inputs, shape), device);
            logits.extend(host(network.forward(inputs)));
        }
        logits
    }
}

/// A record of burn's as bytes.
fn written<B: Backend, R: Record<B>>(keeper: &Keeper<'_>, record: R) -> Result<Vec<u8>, ModelError> {
    let written = Recorder::<B>::record(&NamedMpkBytesRecorder::<FullPrecisionSettings>::default(), record, ());
    written.map_err(|error| {
        keeper.refuse(format!("can't be written ({error})"), "this is a defect of the program, please report it")
    })
}

fn read<B: Backend, R: Record<B>>(keeper: &Keeper<'_>, bytes: Vec<u8>, device: &B::Device) -> Result<R, ModelError> {
    let read = Recorder::<B>::load(&NamedMpkBytesRecorder::<FullPrecisionSettings>::default(), bytes, device);
    read.map_err(|error| {
        let problem = format!("holds another network or optimizer than this program's ({error})");
        keeper.refuse(problem, "remove the file and train from the start")
    })
}

/// Mean cross entropy of logits z: `(1 − y) z − ln σ(z)`, without overflow.
fn cross_entropy<B: Backend, const D: usize>(logits: Tensor<B, D>, labels: Tensor<B, D>) -> Tensor<B, 1> {
    ((-labels + 1.0) * logits.clone() - log_sigmoid(logits)).mean()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_stable_and_right() {
        let device = Default::default();
        let tensor = |values: [f32; 4]| Tensor::<Flex, 1>::from_data(values, &device);
        let loss = host(cross_entropy(tensor([0.0, 200.0, -200.0, 1.0]), tensor([1.0, 1.0, 0.0, 0.0])))[0];
        let expected = (2f64.ln() + (1.0 + 1f64.exp()).ln()) / 4.0;
        assert!((f64::from(loss) - expected).abs() < 1e-6, "{loss} {expected}");
    }
}
