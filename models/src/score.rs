//! Scores on a device, the same for a row whatever is scored beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::{
        Cuda, Flex,
        cuda::CudaDevice,
    },
    tensor::{Tensor, TensorData, backend::Backend},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use schemas::FeatureLayout;

use crate::{
    Artifact, Device, ModelError,
    calibrate::Calibration,
    error::panic_message,
    network::{Network, host},
    normalize::{Normalization, check_rows},
};

/// Rows that one run of the network takes, smallest first. Batches are cut and padded to these.
const CPU_BLOCKS: &[usize] = &[8, 32];
const CUDA_BLOCKS: &[usize] = &[32, 128, 512, 2048];
/// How far another device's probabilities may be from the CPU's (tensor cores round inputs to 10 bits).
const DEVICE_TOLERANCE: f32 = 0.02;

/// The artifact's network on a device, ready to score.
///
/// A row's score is the same, bit for bit, whatever rows are scored beside it. The order in which a
/// matrix product adds up may depend on the product's shape and on a row's place in it. So the network
/// runs on blocks of a few fixed sizes, and [`Scorer::open`] checks on this very device that a row
/// gets the same bits at every place of every size; sizes that give other bits than the largest are
/// not used. Bits may differ between kinds of devices, and between processors of another kind.
pub struct Scorer {
    layout: FeatureLayout,
    normalization: Normalization,
    calibration: Calibration,
    blocks: Box<dyn Blocks>,
    device: String,
    /// Reused between calls.
    inputs: Vec<f32>,
    logits: Vec<f32>,
}

/// Runs whole blocks.
trait Blocks {
    /// Sizes of blocks, smallest first.
    fn sizes(&self) -> &[usize];
    /// Appends the logits of `inputs`, whose rows fill blocks of `size`.
    fn run(&self, inputs: &[f32], size: usize, logits: &mut Vec<f32>);
}

impl Scorer {
    /// Opens the device, compiles and runs every block size, and checks their bits.
    pub fn open(artifact: &Artifact, device: Device) -> Result<Scorer, ModelError> {
        let (blocks, device): (Box<dyn Blocks>, String) = match device {
            Device::Cpu => (Box::new(cpu(artifact)?), "cpu".into()),
            Device::Cuda(index) => (Box::new(cuda(artifact, index)?), device.to_string()),
            Device::Auto if cuda_driver_is_loaded() => match cuda(artifact, 0) {
                Ok(blocks) => (Box::new(blocks), Device::Cuda(0).to_string()),
                Err(error) => {
                    tracing::warn!(%error, "cuda:0 can't be used, scoring on the CPU");
                    (Box::new(cpu(artifact)?), "cpu".into())
                }
            },
            Device::Auto => {
                tracing::info!("no CUDA driver is loaded, scoring on the CPU");
                (Box::new(cpu(artifact)?), "cpu".into())
            }
        };
        tracing::info!(model = artifact.version(), device, blocks = ?blocks.sizes(), "model ready");
        Ok(Scorer {
            layout: artifact.layout().clone(),
            normalization: artifact.normalization().clone(),
            calibration: artifact.calibration(),
            blocks,
            device,
            inputs: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// `cpu` or `cuda:N`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Appends one calibrated probability per row of `rows` (row-major, whole rows) to `scores`.
    pub fn score(&mut self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), ModelError> {
        check_rows(&self.layout, rows)?;
        let (width, sizes) = (self.normalization.width(), self.blocks.sizes());
        let mut rest = rows;
        while !rest.is_empty() {
            let size = block_size(sizes, rest.len() / width);
            let (block, after) = rest.split_at(rest.len().min(size * width));
            self.inputs.clear();
            self.normalization.encode(block, &mut self.inputs);
            self.inputs.resize(size * self.normalization.inputs(), 0.0);
            self.logits.clear();
            self.blocks.run(&self.inputs, size, &mut self.logits);
            let logits = &self.logits[..block.len() / width];
            scores.extend(logits.iter().map(|logit| self.calibration.probability(*logit)));
            rest = after;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Scorer").field("device", &self.device).finish_non_exhaustive()
    }
}

/// The smallest size that holds all `rows`, or else the largest.
fn block_size(sizes: &[usize], rows: usize) -> usize {
    let largest = sizes.last().copied().unwrap_or(1);
    sizes.iter().copied().find(|size| *size >= rows).unwrap_or(largest)
}

/// Whether there is any point in asking CUDA for a device. (Where there is none, CUDA's bindings
/// panic, and leave a thread behind that polls for the rest of the process's life.)
fn cuda_driver_is_loaded() -> bool {
    ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"].iter().any(|path| std::path::Path::new(path).exists())
}

fn cpu(artifact: &Artifact) -> Result<BurnBlocks<Flex>, ModelError> {
    let blocks = BurnBlocks::<Flex>::new(artifact, Default::default(), CPU_BLOCKS);
    blocks.keep_invariant_sizes("cpu")
}

fn cuda(artifact: &Artifact, index: usize) -> Result<BurnBlocks<Cuda>, ModelError> {
    let name = Device::Cuda(index).to_string();
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let blocks = BurnBlocks::<Cuda>::new(artifact, CudaDevice::new(index), CUDA_BLOCKS);
        let blocks = blocks.keep_invariant_sizes(&name)?;
        check_agreement(artifact, &cpu(artifact)?, &blocks, &name)?;
        Ok(blocks)
    }));
    opened.unwrap_or_else(|panic| Err(ModelError::Device { device: name.clone(), problem: panic_message(&*panic) }))
}

/// Refuses a device whose probabilities are not those of the CPU.
fn check_agreement(
    artifact: &Artifact,
    cpu: &dyn Blocks,
    other: &dyn Blocks,
    device: &str,
) -> Result<(), ModelError> {
    let size = other.sizes()[0];
    let inputs = probe(size, artifact.normalization().inputs());
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    inputs.chunks_exact(cpu.sizes()[0] * artifact.normalization().inputs()).for_each(|block| cpu.run(block, cpu.sizes()[0], &mut expected));
    other.run(&inputs, size, &mut found);
    let distance = |(a, b): (&f32, &f32)| {
        (artifact.calibration().probability(*a) - artifact.calibration().probability(*b)).abs()
    };
    // NaN fails too.
    match expected.iter().zip(&found).map(distance).all(|distance| distance <= DEVICE_TOLERANCE) {
        true => Ok(()),
        false => Err(ModelError::Device { device: device.into(), problem: "its scores are not those of the CPU".into() }),
    }
}

/// Inputs to check a device with: the same numbers at every start.
fn probe(rows: usize, inputs: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(0x0ddba11);
    (0..rows * inputs).map(|_| random.random_range(-3.0..3.0)).collect()
}

struct BurnBlocks<B: Backend> {
    network: Network<B>,
    inputs: usize,
    device: B::Device,
    sizes: Vec<usize>,
}

impl<B: Backend> Blocks for BurnBlocks<B> {
    fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    fn run(&self, inputs: &[f32], size: usize, logits: &mut Vec<f32>) {
        let data = TensorData::new(inputs.to_vec(), [size, self.inputs]);
        logits.extend(host(self.network.forward(Tensor::from_data(data, &self.device))));
    }
}

impl<B: Backend> BurnBlocks<B> {
    fn new(artifact: &Artifact, device: B::Device, sizes: &[usize]) -> BurnBlocks<B> {
        let network = Network::new(artifact.layers(), &device);
        BurnBlocks { network, inputs: artifact.normalization().inputs(), device, sizes: sizes.to_vec() }
    }

    /// Drops the sizes whose bits are not those of the largest. Fails if a row's place in the largest matters.
    fn keep_invariant_sizes(mut self, device: &str) -> Result<BurnBlocks<B>, ModelError> {
        let largest = block_size(&self.sizes, usize::MAX);
        let probe = probe(largest, self.inputs);
        let mut expected = Vec::new();
        self.run(&probe, largest, &mut expected);
        let is_invariant = |size: usize| {
            // Each probed row comes to stand at another place, beside other rows.
            [0, 1, size / 2 + 3].into_iter().all(|shift| {
                let (mut rotated, mut expected) = (probe.clone(), expected.clone());
                rotated.rotate_left(shift * self.inputs % probe.len());
                expected.rotate_left(shift % largest);
                let mut found = Vec::new();
                rotated.chunks_exact(size * self.inputs).for_each(|block| self.run(block, size, &mut found));
                found.iter().map(|logit| logit.to_bits()).eq(expected.iter().map(|logit| logit.to_bits()))
            })
        };
        let kept: Vec<usize> = self.sizes.iter().copied().filter(|size| is_invariant(*size)).collect();
        if kept.len() < self.sizes.len() {
            tracing::warn!(device, wanted = ?self.sizes, ?kept, "some block sizes give other bits, and are not used");
        }
        if kept.last() != Some(&largest) {
            let problem = "a row's score depends on its place in the batch; score on another device".into();
            return Err(ModelError::Device { device: device.into(), problem });
        }
        self.sizes = kept;
        Ok(self)
    }
}
