//! burn's network on a device that wants work of a few fixed sizes: CUDA.

use std::{collections::VecDeque, time::Instant};

use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Artifact, ModelError,
    network::{Network, host},
    score::{DeviceStages, Engine},
};

/// Rows that one run of the network takes, smallest first. Batches are cut and padded to these, so that every kernel there
/// will ever be is compiled before the first batch. With powers of two less than half of a block is padding.
pub(crate) const CUDA_BLOCKS: &[usize] = &[32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768];
/// The size that says what the bits are: most batches of a running service fit into it.
const ANCHOR_ROWS: usize = 256;
/// Blocks under way at once: while one is computed, the next is normalized and copied.
const UNDER_WAY: usize = 2;
/// Blocks of one size that are run to check its bits, at each of a few shifts.
const PROBED_BLOCKS: usize = 8;

/// A network that runs whole blocks.
pub(crate) trait Blocks: Send {
    type Uploaded;
    type Running: Send;
    /// Begins to copy `inputs`, whose rows fill a block of `size`, to the device.
    fn upload(&self, inputs: Vec<f32>, size: usize) -> Self::Uploaded;
    /// Begins to run the network.
    fn run(&self, uploaded: Self::Uploaded) -> Self::Running;
    /// Waits for the block's logits.
    fn download(&self, running: Self::Running) -> Vec<f32>;
    /// Waits until the device has nothing left to do.
    fn wait(&self);
}

/// Cuts rows into blocks, and pads the last.
///
/// The order in which a matrix product adds up may depend on the product's shape and on a row's place in it.
/// So [`BlockEngine::open`] checks on this very device that a row gets the same bits at every place of every size; sizes that
/// give other bits than [`ANCHOR_ROWS`] are not used.
pub(crate) struct BlockEngine<N: Blocks> {
    network: N,
    inputs: usize,
    sizes: Vec<usize>,
    /// Blocks that run, oldest first, with their rows that are not padding.
    running: VecDeque<(N::Running, usize)>,
    logits: Vec<f32>,
}

impl<N: Blocks> BlockEngine<N> {
    /// Runs every size, which compiles its kernels. Fails if a row's place in a block of [`ANCHOR_ROWS`] matters.
    pub(crate) fn open(network: N, inputs: usize, sizes: &[usize], device: &str) -> Result<BlockEngine<N>, ModelError> {
        let kept = invariant_sizes(&network, sizes, inputs);
        if !kept.contains(&ANCHOR_ROWS) {
            let problem = "a row's score depends on its place in the batch; score on another device".into();
            return Err(ModelError::Device { device: device.into(), problem });
        }
        if kept.len() < sizes.len() {
            tracing::warn!(device, wanted = ?sizes, ?kept, "some block sizes give other bits, and are not used");
        }
        tracing::info!(device, blocks = ?kept, "every block size is compiled and checked");
        Ok(BlockEngine { network, inputs, sizes: kept, running: VecDeque::new(), logits: Vec::new() })
    }

    fn finish_oldest(&mut self) {
        if let Some((running, rows)) = self.running.pop_front() {
            self.logits.extend_from_slice(&self.network.download(running)[..rows]);
        }
    }

    /// The rows, padded to a block, and its size.
    fn block(&self, rows: &[f32]) -> (Vec<f32>, usize) {
        let size = block_size(&self.sizes, rows.len() / self.inputs);
        let mut block = Vec::with_capacity(size * self.inputs);
        block.extend_from_slice(rows);
        block.resize(size * self.inputs, 0.0);
        (block, size)
    }
}

impl<N: Blocks> Engine for BlockEngine<N> {
    fn rows_at_once(&self) -> usize {
        block_size(&self.sizes, usize::MAX)
    }

    fn push(&mut self, inputs: &[f32]) {
        for rows in inputs.chunks(self.rows_at_once() * self.inputs) {
            let (block, size) = self.block(rows);
            if self.running.len() == UNDER_WAY {
                self.finish_oldest();
            }
            let running = self.network.run(self.network.upload(block, size));
            self.running.push_back((running, rows.len() / self.inputs));
        }
    }

    fn take(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        while !self.running.is_empty() {
            self.finish_oldest();
        }
        logits.append(&mut self.logits);
        Ok(())
    }

    fn stages(&mut self, inputs: &[f32]) -> Result<DeviceStages, ModelError> {
        let mut stages = DeviceStages::default();
        for rows in inputs.chunks(self.rows_at_once() * self.inputs) {
            self.network.wait();
            let begun = Instant::now();
            let (block, size) = self.block(rows);
            let uploaded = self.network.upload(block, size);
            self.network.wait();
            let is_uploaded = Instant::now();
            let running = self.network.run(uploaded);
            let is_launched = Instant::now();
            self.network.wait();
            let is_computed = Instant::now();
            self.network.download(running);
            stages.upload += is_uploaded - begun;
            stages.launch += is_launched - is_uploaded;
            stages.compute += is_computed - is_launched;
            stages.download += is_computed.elapsed();
        }
        Ok(stages)
    }
}

/// The smallest size that holds all `rows`, or else the largest.
fn block_size(sizes: &[usize], rows: usize) -> usize {
    let largest = sizes.last().copied().unwrap_or(1);
    sizes.iter().copied().find(|size| *size >= rows).unwrap_or(largest)
}

/// The sizes that give a row the same bits as [`ANCHOR_ROWS`] does, at every place and beside any rows.
fn invariant_sizes<N: Blocks>(network: &N, sizes: &[usize], width: usize) -> Vec<usize> {
    let largest = block_size(sizes, usize::MAX);
    let probe = probe(largest, width);
    let run = |rows: &[f32], size: usize| -> Vec<u32> {
        let blocks = rows.chunks_exact(size * width).map(|block| network.run(network.upload(block.to_vec(), size)));
        blocks.flat_map(|running| network.download(running)).map(f32::to_bits).collect()
    };
    let expected = run(&probe, ANCHOR_ROWS);
    let is_invariant = |size: &usize| {
        // Each probed row comes to stand at other places, beside other rows.
        [0, 1, size / 2 + 3].into_iter().all(|shift| {
            let (shift, rows) = (shift % largest, largest.min(size * PROBED_BLOCKS));
            let (mut rotated, mut expected) = (probe.clone(), expected.clone());
            rotated.rotate_left(shift * width);
            expected.rotate_left(shift);
            run(&rotated[..rows * width], *size) == expected[..rows]
        })
    };
    sizes.iter().copied().filter(is_invariant).collect()
}

/// Inputs to check a device with: the same numbers at every start.
pub(crate) fn probe(rows: usize, inputs: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(0x0ddba11);
    (0..rows * inputs).map(|_| random.random_range(-3.0..3.0)).collect()
}

/// burn's network with its device.
pub(crate) struct BurnBlocks<B: Backend> {
    network: Network<B>,
    inputs: usize,
    device: B::Device,
}

impl<B: Backend> BurnBlocks<B> {
    pub(crate) fn new(artifact: &Artifact, device: B::Device) -> BurnBlocks<B> {
        let (network, inputs) = (Network::new(artifact.weights(), &device), artifact.normalization().inputs());
        BurnBlocks { network, inputs, device }
    }
}

impl<B: Backend> Blocks for BurnBlocks<B> {
    type Uploaded = Tensor<B, 2>;
    type Running = Tensor<B, 1>;

    /// By way of pinned memory, where the device has any, so that this thread need not wait for the copy.
    fn upload(&self, inputs: Vec<f32>, size: usize) -> Tensor<B, 2> {
        let mut data = TensorData::new(inputs, [size, self.inputs]);
        B::staging(std::iter::once(&mut data), &self.device);
        Tensor::from_data(data, &self.device)
    }

    fn run(&self, uploaded: Tensor<B, 2>) -> Tensor<B, 1> {
        self.network.forward(uploaded)
    }

    fn download(&self, running: Tensor<B, 1>) -> Vec<f32> {
        host(running)
    }

    fn wait(&self) {
        B::sync(&self.device).expect("the device runs what it was given");
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::cpu::CpuNetwork;

    /// Logits that depend on more than the row: a device of the kind that must not serve.
    struct Broken(fn(place: usize, size: usize) -> f32);

    impl Blocks for Broken {
        type Uploaded = (Vec<f32>, usize);
        type Running = Vec<f32>;

        fn upload(&self, inputs: Vec<f32>, size: usize) -> (Vec<f32>, usize) {
            (inputs, size)
        }

        fn run(&self, (inputs, size): (Vec<f32>, usize)) -> Vec<f32> {
            let width = inputs.len() / size;
            (0..size).map(|place| inputs[place * width] + (self.0)(place, size)).collect()
        }

        fn download(&self, running: Vec<f32>) -> Vec<f32> {
            running
        }

        fn wait(&self) {}
    }

    #[test]
    fn sizes_and_devices_with_other_bits_are_found() {
        let sizes = [8, 128, 256, 512];
        let kept = |logit| invariant_sizes(&Broken(logit), &sizes, 3);
        assert_eq!(kept(|_, _| 0.0), sizes);
        assert_eq!(kept(|_, size| f32::from(u8::from(size == 128))), [8, 256, 512]);
        // The anchor says what is right.
        assert_eq!(kept(|_, size| f32::from(u8::from(size == 256))), [256]);
        // A single place, in a single size.
        assert_eq!(kept(|place, size| f32::from(u8::from(size == 8 && place == 5))), [128, 256, 512]);
        assert_eq!(kept(|place, size| f32::from(u8::from(size == 512 && place == 511))), [8, 128, 256]);
        let anchor: fn(usize, usize) -> f32 = |place, size| f32::from(u8::from(size == 256 && place == 255));
        assert!(!kept(anchor).contains(&256));
        let error = BlockEngine::open(Broken(anchor), 3, &sizes, "cuda:7").err().unwrap().to_string();
        assert_eq!(error, "device cuda:7: a row's score depends on its place in the batch; score on another device");
    }

    /// Blocks of burn's network, on the CPU: the way to a device, without one.
    #[test]
    fn blocks_give_each_row_its_logit_in_order_whatever_the_batch() {
        let artifact = Artifact::random(9, &[24, 16], 5);
        let inputs = artifact.normalization().inputs();
        let network = BurnBlocks::<Flex>::new(&artifact, Default::default());
        let mut engine = BlockEngine::open(network, inputs, &[32, 256], "flex").unwrap();
        assert_eq!(engine.rows_at_once(), 256);
        let rows = probe(1500, inputs);
        let mut expected = Vec::new();
        let mut cpu = CpuNetwork::new(&artifact);
        cpu.push(&rows);
        cpu.take(&mut expected).unwrap();
        for batches in [&[1500][..], &[1, 31, 33], &[256, 257], &[700]] {
            let (mut found, mut rest) = (Vec::new(), &rows[..]);
            for size in batches.iter().cycle() {
                let (batch, after) = rest.split_at(rest.len().min(size * inputs));
                engine.push(batch);
                engine.take(&mut found).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            assert_eq!(found.len(), 1500);
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "batches {batches:?}: {worst} from the CPU's");
        }
    }
}
