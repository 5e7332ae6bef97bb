//! The networks that score transactions: training, evaluation, the artifact on disk, and the thread
//! that owns the device. Nothing outside this crate sees a tensor.
//!
//! Rows are plain `f32` slices, row-major, in the column order of a [`schemas::FeatureLayout`];
//! `NaN` says that a value is missing. Scores are calibrated probabilities.
//!
//! **Batch invariance.** A row's score is the same, bit for bit, whatever rows are scored beside it:
//! after a crash the same transactions are cut into other batches, and must get the same scores.
//! See [`Scorer`] for how that is kept.

mod artifact;
mod blocks;
mod calibrate;
mod checkpoint;
mod compare;
mod cpu;
mod device;
mod drift;
mod encode;
mod error;
mod evaluate;
mod explain;
mod files;
mod follow;
pub mod metric_names;
mod network;
mod normalize;
pub mod plot;
mod promotion;
mod registry;
mod score;
mod serve;
mod threshold;
mod train;
mod watchdog;

pub use artifact::{Artifact, NetworkConfig, Period, TrainingData, TrainingMetrics};
pub use calibrate::CalibrationChoice;
pub use checkpoint::Checkpoints;
pub use compare::{Comparison, Decisions, Labelled, Pair, Quality, Shift, compare};
pub use device::Device;
pub use drift::{ColumnReference, Drift, Histogram, PSI_OTHER, PSI_SHIFTED, Reference};
pub use error::ModelError;
pub use evaluate::{
    CalibrationBin, Evaluation, OperatingPoint, ScoredCard, StreamingEvaluation, calibration_bins, calibration_error,
    card_precision, evaluate, operating_points,
};
pub use explain::{Contribution, Explain};
pub use follow::Follow;
pub use promotion::Promotion;
pub use registry::{Alias, Aliases, CHAMPION, LayoutCheck, Move, MoveKind, Registry};
pub use score::{DeviceStages, Scorer};
pub use serve::{Answer, ModelInfo, ModelThread, Pending, ServeOptions, Shadow};
pub use threshold::{ALERT_BUDGETS, AlertThreshold};
pub use train::{Dataset, Epoch, KeptEpoch, TrainOptions, train};
