//! Scores on a device, the same for a row whatever is scored beside it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use burn::backend::{Cuda, cuda::CudaDevice};
use schemas::FeatureLayout;

use crate::{
    Artifact, Device, ModelError,
    blocks::{BlockEngine, BurnBlocks, CUDA_BLOCKS, probe},
    calibrate::Calibration,
    cpu::CpuNetwork,
    error::panic_message,
    normalize::{Normalization, check_rows},
    watchdog::Watchdog,
};

/// How far another device's probabilities may be from the CPU's (tensor cores round inputs to 10 bits).
const DEVICE_TOLERANCE: f32 = 0.02;
/// Rows whose scores on another device are compared with the CPU's.
const COMPARED_ROWS: usize = 1000;

/// The artifact's network on a device, ready to score.
///
/// A row's score is the same, bit for bit, whatever rows are scored beside it. On the CPU that is so by the
/// order in which its kernel adds up, and the bits are the same on every processor. On other devices burn's
/// network runs on blocks of a few fixed sizes, and [`Scorer::open`] checks on this very device that a row
/// gets the same bits at every place of every size. Bits may differ between kinds of devices.
pub struct Scorer {
    layout: FeatureLayout,
    normalization: Normalization,
    calibration: Calibration,
    engine: Box<dyn Engine>,
    device: String,
    /// Reused between calls.
    inputs: Vec<f32>,
    logits: Vec<f32>,
}

/// Runs the network on rows of its inputs.
pub(crate) trait Engine: Send {
    /// Rows that are best pushed at a time, where there are so many.
    fn rows_at_once(&self) -> usize;
    /// Takes whole rows of inputs, and may return before their logits are there.
    fn push(&mut self, inputs: &[f32]);
    /// Waits for the logits of all rows that were pushed, and appends them in that order. May panic where a device fails,
    /// and is of no use after that, or after an error.
    fn take(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError>;
    /// Runs whole rows of inputs, one step after the other.
    fn stages(&mut self, inputs: &[f32]) -> Result<DeviceStages, ModelError>;
}

/// Opens the CUDA device of an index.
type OpenCuda<'a> = dyn Fn(&Artifact, usize) -> Result<Box<dyn Engine>, ModelError> + 'a;

/// Where the time of a batch goes, when each step is waited for before the next begins. (When scoring, they overlap.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStages {
    /// From rows to the network's inputs, on the host.
    pub normalize: Duration,
    /// Inputs to the device, padded to a block; without copies on the CPU, 0.
    pub upload: Duration,
    /// Until the network's kernels are all queued. The device works meanwhile, unless it waits for the next of them.
    pub launch: Duration,
    /// From then until the device is done: short where launches are what takes the time.
    pub compute: Duration,
    /// Logits to the host.
    pub download: Duration,
}

impl Scorer {
    /// Opens the device, compiles and runs every block size, and checks their bits.
    pub fn open(artifact: &Artifact, device: Device) -> Result<Scorer, ModelError> {
        Scorer::open_by(artifact, device, &cuda)
    }

    /// The same with the device that was asked for, which is watched from then on if it isn't the CPU.
    pub(crate) fn open_watched(artifact: &Artifact, watchdog: &Watchdog) -> Result<Scorer, ModelError> {
        let watched = |artifact: &Artifact, index: usize| -> Result<Box<dyn Engine>, ModelError> {
            let opened = artifact.clone();
            Ok(Box::new(watchdog.open(CpuNetwork::new(artifact), move || cuda(&opened, index))?))
        };
        Scorer::open_by(artifact, watchdog.asked(), &watched)
    }

    fn open_by(artifact: &Artifact, device: Device, cuda: &OpenCuda<'_>) -> Result<Scorer, ModelError> {
        let cpu = || (Box::new(CpuNetwork::new(artifact)) as Box<dyn Engine>, "cpu".to_string());
        let (engine, device) = match device {
            Device::Cpu => cpu(),
            Device::Cuda(index) => (cuda(artifact, index)?, device.to_string()),
            Device::Auto if cuda_driver_is_loaded() => match cuda(artifact, 0) {
                Ok(engine) => (engine, Device::Cuda(0).to_string()),
                Err(error) => {
                    tracing::warn!(%error, "cuda:0 can't be used, scoring on the CPU");
                    cpu()
                }
            },
            Device::Auto => {
                tracing::info!("no CUDA driver is loaded, scoring on the CPU");
                cpu()
            }
        };
        tracing::info!(model = artifact.label(), device, "model ready");
        Ok(Scorer::on(artifact, engine, device))
    }

    /// On an engine that is open.
    pub(crate) fn on(artifact: &Artifact, engine: Box<dyn Engine>, device: String) -> Scorer {
        Scorer {
            layout: artifact.layout().clone(),
            normalization: artifact.normalization().clone(),
            calibration: artifact.calibration().clone(),
            engine,
            device,
            inputs: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// `cpu` or `cuda:N`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Rows that the device takes at a time: with fewer it isn't busy, with more it is no faster.
    pub fn rows_at_once(&self) -> usize {
        self.engine.rows_at_once()
    }

    /// Appends one calibrated probability per row of `rows` (row-major, whole rows) to `scores`.
    pub fn score(&mut self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), ModelError> {
        let mut logits = std::mem::take(&mut self.logits);
        logits.clear();
        let outcome = self.logits(rows, &mut logits);
        scores.extend(logits.iter().map(|logit| self.calibration.probability(*logit)));
        self.logits = logits;
        outcome
    }

    /// Appends what the network itself says, before calibration: the log odds of fraud, one per row.
    pub fn logits(&mut self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        check_rows(&self.layout, rows)?;
        for rows in rows.chunks(self.engine.rows_at_once() * self.normalization.width()) {
            self.inputs.clear();
            self.normalization.encode(rows, &mut self.inputs);
            self.engine.push(&self.inputs);
        }
        self.engine.take(logits)
    }

    /// Runs `rows` step by step, for measurements; what comes out is thrown away.
    pub fn stages(&mut self, rows: &[f32]) -> Result<DeviceStages, ModelError> {
        check_rows(&self.layout, rows)?;
        let begun = Instant::now();
        self.inputs.clear();
        self.normalization.encode(rows, &mut self.inputs);
        let normalize = begun.elapsed();
        Ok(DeviceStages { normalize, ..self.engine.stages(&self.inputs)? })
    }
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Scorer").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Whether there is any point in asking CUDA for a device. (Where there is none, CUDA's bindings
/// panic, and leave a thread behind that polls for the rest of the process's life.)
pub(crate) fn cuda_driver_is_loaded() -> bool {
    ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"].iter().any(|path| std::path::Path::new(path).exists())
}

fn cuda(artifact: &Artifact, index: usize) -> Result<Box<dyn Engine>, ModelError> {
    let name = Device::Cuda(index).to_string();
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let network = BurnBlocks::<Cuda>::new(artifact, CudaDevice::new(index));
        let mut engine = BlockEngine::open(network, artifact.normalization().inputs(), CUDA_BLOCKS, &name)?;
        check_agreement(artifact, &mut CpuNetwork::new(artifact), &mut engine, &name)?;
        Ok(Box::new(engine) as Box<dyn Engine>)
    }));
    opened.unwrap_or_else(|panic| Err(ModelError::Device { device: name.clone(), problem: panic_message(&*panic) }))
}

/// Refuses a device whose probabilities are not those of the CPU.
fn check_agreement(
    artifact: &Artifact,
    cpu: &mut dyn Engine,
    other: &mut dyn Engine,
    device: &str,
) -> Result<(), ModelError> {
    let inputs = probe(COMPARED_ROWS, artifact.normalization().inputs());
    let calibration = artifact.calibration();
    let run = |engine: &mut dyn Engine| -> Result<Vec<f32>, ModelError> {
        let mut logits = Vec::new();
        engine.push(&inputs);
        engine.take(&mut logits)?;
        Ok(logits.into_iter().map(|logit| calibration.probability(logit)).collect())
    };
    let (expected, found) = (run(cpu)?, run(other)?);
    let agree = expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= DEVICE_TOLERANCE);
    match expected.len() == found.len() && agree {
        true => Ok(()),
        false => {
            let problem = "its scores are not those of the CPU; score on the CPU".into();
            Err(ModelError::Device { device: device.into(), problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Rows of features, some of them missing in the nullable columns.
    fn rows(artifact: &Artifact, count: usize, random: &mut StdRng) -> Vec<f32> {
        let columns = artifact.layout().features().iter().cycle().take(count * artifact.layout().width());
        let values = columns.map(|feature| match feature.nullable && random.random_bool(0.2) {
            true => f32::NAN,
            false => random.random_range(-6.0f32..6.0).exp() - 1.0,
        });
        values.collect()
    }

    /// The scores' bits, with the rows cut into batches of these sizes, in turn.
    fn bits(scorer: &mut Scorer, rows: &[f32], width: usize, batches: &[usize]) -> Vec<u32> {
        let (mut rest, mut scores) = (rows, Vec::new());
        for size in batches.iter().cycle() {
            let (batch, after) = rest.split_at(rest.len().min(size * width));
            scorer.score(batch, &mut scores).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        scores.iter().map(|score| score.to_bits()).collect()
    }

    #[test]
    fn scores_are_the_same_bits_however_the_rows_are_cut() {
        let networks: &[(usize, &[usize])] = &[
            (20, &[64, 32]),
            (31, &[64, 32]),
            (3, &[]),
            (1, &[4]),
            (7, &[1, 5]),
            (50, &[256, 256]),
            (13, &[100, 50, 9]),
        ];
        for (seed, (width, hidden)) in networks.iter().enumerate() {
            let artifact = Artifact::random(*width, hidden, seed as u64);
            let mut scorer = Scorer::open(&artifact, Device::Cpu).unwrap();
            let mut random = StdRng::seed_from_u64(seed as u64);
            let rows = rows(&artifact, 700, &mut random);
            let expected = bits(&mut scorer, &rows, *width, &[700]);
            assert!(
                expected.iter().collect::<std::collections::HashSet<_>>().len() > 300,
                "scores differ between rows"
            );
            for batches in [&[1usize][..], &[8], &[64], &[3, 1, 17], &[65], &[5, 200, 9]] {
                let found = bits(&mut scorer, &rows, *width, batches);
                assert_eq!(found, expected, "{width}-{hidden:?}-1, batches {batches:?}");
            }
            // Other neighbours, other places.
            for shift in [1, 13, 350] {
                let (mut rotated, mut expected) = (rows.clone(), expected.clone());
                rotated.rotate_left(shift * width);
                expected.rotate_left(shift);
                assert_eq!(bits(&mut scorer, &rotated, *width, &[100]), expected, "shifted by {shift}");
            }
        }
    }

    /// Logits that are no network's.
    struct Broken(f32, usize);

    impl Engine for Broken {
        fn rows_at_once(&self) -> usize {
            32
        }

        fn push(&mut self, inputs: &[f32]) {
            self.1 += inputs.len() / 7;
        }

        fn take(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
            logits.resize(logits.len() + std::mem::take(&mut self.1), self.0);
            Ok(())
        }

        fn stages(&mut self, _inputs: &[f32]) -> Result<DeviceStages, ModelError> {
            Ok(DeviceStages::default())
        }
    }

    #[test]
    fn a_device_that_disagrees_with_the_cpu_is_refused() {
        let artifact = Artifact::random(5, &[8], 2);
        assert_eq!(artifact.normalization().inputs(), 7);
        let cpu = || CpuNetwork::new(&artifact);
        check_agreement(&artifact, &mut cpu(), &mut cpu(), "cuda:7").unwrap();
        for logit in [5.0, f32::NAN] {
            let error = check_agreement(&artifact, &mut cpu(), &mut Broken(logit, 0), "cuda:7").unwrap_err();
            assert!(error.to_string().starts_with("device cuda:7: its scores are not those"), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_not_a_panic() {
        let artifact = Artifact::random(4, &[8], 3);
        let error = Scorer::open(&artifact, Device::Cuda(63)).unwrap_err().to_string();
        assert!(error.starts_with("device cuda:63: "), "{error}");
    }

    #[test]
    fn a_missing_value_is_refused_where_the_layout_promises_one() {
        let artifact = Artifact::random(2, &[4], 4);
        let mut scorer = Scorer::open(&artifact, Device::Cpu).unwrap();
        let (mut scores, name) = (Vec::new(), artifact.layout().features()[0].name.clone());
        assert!(!artifact.layout().features()[0].nullable && artifact.layout().features()[1].nullable);
        scorer.score(&[1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &mut scores).unwrap();
        assert!(scores.len() == 2 && scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        let error = scorer.score(&[f32::NAN, 1.0], &mut scores).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
        assert!(scorer.score(&[1.0, 2.0, 3.0], &mut scores).is_err());
    }
}
