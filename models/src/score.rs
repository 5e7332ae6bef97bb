//! Scores on a device, the same for a row whatever is scored beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::{Cuda, Flex, cuda::CudaDevice},
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
///
/// On the CPU, blocks that stay in the first-level cache win. A 20-64-32-1 network takes some 6.6 µs for 8 rows and
/// 21 µs for 64 (0.33 µs a row); 128 rows and more cost 0.5 µs a row and up.
const CPU_BLOCKS: &[usize] = &[8, 16, 32, 64];
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
trait Blocks: Send {
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
        tracing::info!(model = artifact.label(), device, blocks = ?blocks.sizes(), "model ready");
        Ok(Scorer {
            layout: artifact.layout().clone(),
            normalization: artifact.normalization().clone(),
            calibration: artifact.calibration().clone(),
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
pub(crate) fn cuda_driver_is_loaded() -> bool {
    ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"].iter().any(|path| std::path::Path::new(path).exists())
}

fn cpu(artifact: &Artifact) -> Result<BurnBlocks<Flex>, ModelError> {
    BurnBlocks::<Flex>::open(artifact, Default::default(), CPU_BLOCKS, "cpu")
}

fn cuda(artifact: &Artifact, index: usize) -> Result<BurnBlocks<Cuda>, ModelError> {
    let name = Device::Cuda(index).to_string();
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let blocks = BurnBlocks::<Cuda>::open(artifact, CudaDevice::new(index), CUDA_BLOCKS, &name)?;
        check_agreement(artifact, &cpu(artifact)?, &blocks, &name)?;
        Ok(blocks)
    }));
    opened.unwrap_or_else(|panic| Err(ModelError::Device { device: name.clone(), problem: panic_message(&*panic) }))
}

/// Refuses a device whose probabilities are not those of the CPU.
fn check_agreement(artifact: &Artifact, cpu: &dyn Blocks, other: &dyn Blocks, device: &str) -> Result<(), ModelError> {
    let width = artifact.normalization().inputs();
    // Every size of CUDA's blocks is a multiple of the CPU's smallest.
    let (rows, cpu_rows) = (other.sizes()[0], cpu.sizes()[0]);
    let inputs = probe(rows, width);
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    inputs.chunks_exact(cpu_rows * width).for_each(|block| cpu.run(block, cpu_rows, &mut expected));
    other.run(&inputs, rows, &mut found);
    let probability = |logit: &f32| artifact.calibration().probability(*logit);
    let agrees = |(a, b): (&f32, &f32)| (probability(a) - probability(b)).abs() <= DEVICE_TOLERANCE;
    match expected.len() == found.len() && expected.iter().zip(&found).all(agrees) {
        true => Ok(()),
        false => {
            let problem = "its scores are not those of the CPU; score on the CPU".into();
            Err(ModelError::Device { device: device.into(), problem })
        }
    }
}

/// The sizes that give a row the same bits as the largest does, at every place and beside any rows.
fn invariant_sizes(blocks: &dyn Blocks, width: usize) -> Vec<usize> {
    let largest = block_size(blocks.sizes(), usize::MAX);
    let probe = probe(largest, width);
    let mut expected = Vec::new();
    blocks.run(&probe, largest, &mut expected);
    let is_invariant = |size: &usize| {
        // Each probed row comes to stand at other places, beside other rows.
        [0, 1, size / 2 + 3].into_iter().all(|shift| {
            let shift = shift % largest;
            let (mut rotated, mut expected, mut found) = (probe.clone(), expected.clone(), Vec::new());
            rotated.rotate_left(shift * width);
            expected.rotate_left(shift);
            rotated.chunks_exact(size * width).for_each(|block| blocks.run(block, *size, &mut found));
            found.iter().map(|logit| logit.to_bits()).eq(expected.iter().map(|logit| logit.to_bits()))
        })
    };
    blocks.sizes().iter().copied().filter(is_invariant).collect()
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
    /// Opens the device and runs every size, which compiles its kernels. Fails if a row's place in the
    /// largest block matters; smaller ones that give other bits are left out.
    fn open(artifact: &Artifact, device: B::Device, sizes: &[usize], name: &str) -> Result<BurnBlocks<B>, ModelError> {
        let (network, inputs) = (Network::new(artifact.weights(), &device), artifact.normalization().inputs());
        let mut blocks = BurnBlocks { network, inputs, device, sizes: sizes.to_vec() };
        let kept = invariant_sizes(&blocks, inputs);
        if kept.last() != sizes.last() {
            let problem = "a row's score depends on its place in the batch; score on another device".into();
            return Err(ModelError::Device { device: name.into(), problem });
        }
        if kept.len() < sizes.len() {
            tracing::warn!(device = name, wanted = ?sizes, ?kept, "some block sizes give other bits, and are not used");
        }
        blocks.sizes = kept;
        Ok(blocks)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_default_network_runs_in_every_block_size() {
        for width in [15, 20, 24, 30, 40] {
            let artifact = Artifact::random(width, &[64, 32], 9);
            assert_eq!(cpu(&artifact).unwrap().sizes, CPU_BLOCKS, "{width} columns");
        }
    }

    /// Logits that depend on more than the row: a device of the kind that must not serve.
    struct Broken {
        sizes: Vec<usize>,
        logit: fn(place: usize, size: usize) -> f32,
    }

    impl Blocks for Broken {
        fn sizes(&self) -> &[usize] {
            &self.sizes
        }

        fn run(&self, inputs: &[f32], size: usize, logits: &mut Vec<f32>) {
            let width = inputs.len() / size;
            logits.extend((0..size).map(|place| inputs[place * width] + (self.logit)(place, size)));
        }
    }

    #[test]
    fn sizes_and_devices_with_other_bits_are_found() {
        let kept = |logit| invariant_sizes(&Broken { sizes: vec![8, 16, 32], logit }, 3);
        assert_eq!(kept(|_, _| 0.0), [8, 16, 32]);
        assert_eq!(kept(|_, size| f32::from(u8::from(size == 16))), [8, 32]);
        assert_eq!(kept(|_, size| f32::from(u8::from(size == 32))), [32]);
        // A single place, in a single size.
        assert_eq!(kept(|place, size| f32::from(u8::from(size == 8 && place == 5))), [16, 32]);
        assert_eq!(kept(|place, size| f32::from(u8::from(size == 32 && place == 31))), [0; 0]);
    }

    #[test]
    fn a_device_that_disagrees_with_the_cpu_is_refused() {
        let artifact = Artifact::random(5, &[8], 2);
        let cpu = cpu(&artifact).unwrap();
        check_agreement(&artifact, &cpu, &cpu, "cuda:7").unwrap();
        for logit in [|_, _| 5.0, |_, _| f32::NAN] {
            let error = check_agreement(&artifact, &cpu, &Broken { sizes: vec![32], logit }, "cuda:7").unwrap_err();
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
