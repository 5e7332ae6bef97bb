//! The first layer over a piecewise linear encoding ([`Encoding`]), without the encoding.
//!
//! Of the pieces below a value ramps and steps are 1, of the one that it lies in the step is 1 and the ramp a fraction, and beyond all are 0.
//! So an input adds to the layer's outputs the sum of the weights up to its piece, which is packed once, and that fraction of the ramp's
//! weights: two rows of a table, where the product would take two for each piece.

use pulp::{Simd, WithSimd};

use super::{
    dense::{Activations, Aligned, LANES, Rows},
    vectors::Vectors,
};
use crate::{encode::Encoding, network::Dense};

/// Outputs are `max(floor, bias + Σ over inputs, in order)`: the sum's order is that of the inputs, whatever the batch.
pub(crate) struct Piecewise {
    inputs: usize,
    pieces: usize,
    /// Padded to whole vectors.
    outputs: usize,
    /// Pieces × inputs: where pieces begin, so that all inputs' pieces are counted at once.
    lower: Vec<f32>,
    /// Inputs × (pieces + 1): where a piece begins and one over its width; first of all 0, for values below all pieces.
    ramps: Vec<(f32, f32)>,
    bias: Aligned,
    /// 0 for outputs with ReLU, and below everything for those without.
    floor: Aligned,
    /// Inputs × (pieces + 1) × 2 × outputs: the sum of all weights that stand for 1, and the ramp's.
    table: Aligned,
    /// Of the row at hand, reused: how many pieces of each input begin at or below its value.
    found: Vec<u32>,
    /// And for each input where its rows of the table begin, and the ramp.
    taken: Vec<(usize, f32)>,
}

impl Piecewise {
    /// `layer` takes the encoding's components; its outputs are put through ReLU, except those that are linear.
    pub(crate) fn pack(encoding: &Encoding, layer: &Dense, is_linear: impl Fn(usize) -> bool) -> Piecewise {
        let (inputs, pieces) = (encoding.inputs(), encoding.pieces());
        let outputs = layer.outputs.next_multiple_of(LANES);
        let (begins, per_width) = encoding.bounds();
        let mut lower = Vec::with_capacity(pieces * inputs);
        for piece in 0..pieces {
            lower.extend(begins.iter().skip(piece).step_by(pieces));
        }
        let mut ramps = Vec::with_capacity(inputs * (pieces + 1));
        for (begins, per_width) in begins.chunks_exact(pieces).zip(per_width.chunks_exact(pieces)) {
            ramps.push((0.0, 0.0));
            ramps.extend(begins.iter().copied().zip(per_width.iter().copied()));
        }
        let mut bias = Aligned::zeros(outputs);
        bias[..layer.outputs].copy_from_slice(&layer.bias);
        let mut floor = Aligned::zeros(outputs);
        (0..layer.outputs).filter(|output| is_linear(*output)).for_each(|output| floor[output] = f32::MIN);
        let mut table = Aligned::zeros(inputs * (pieces + 1) * 2 * outputs);
        for (output, weights) in layer.weight.chunks_exact(layer.inputs).enumerate() {
            for (input, weights) in weights.chunks_exact(2 * pieces).enumerate() {
                let (ramps, steps) = weights.split_at(pieces);
                // As exact as the sum that it stands for, or more.
                let mut before = 0.0f64;
                for (piece, (ramp, step)) in ramps.iter().zip(steps).enumerate() {
                    before += f64::from(*step);
                    let place = (input * (pieces + 1) + piece + 1) * 2 * outputs + output;
                    table[place] = before as f32;
                    table[place + outputs] = *ramp;
                    before += f64::from(*ramp);
                }
            }
        }
        let (found, taken) = (vec![0; inputs], Vec::new());
        Piecewise { inputs, pieces, outputs, lower, ramps, bias, floor, table, found, taken }
    }

    /// Writes the outputs of `count` rows of `input`.
    pub(crate) fn run(&mut self, vectors: Vectors, input: Rows<'_>, count: usize, output: &mut Activations) {
        vectors.dispatch(Gather { layer: self, input, count, output });
    }
}

struct Gather<'a> {
    layer: &'a mut Piecewise,
    input: Rows<'a>,
    count: usize,
    output: &'a mut Activations,
}

impl WithSimd for Gather<'_> {
    type Output = ();

    // Plain loops here and below: what a closure holds isn't compiled for the wider vectors unless it happens to be inlined.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Gather { layer, input, count, output } = self;
        for row in 0..count {
            let values = &input.values[row * input.stride..][..layer.inputs];
            layer.find(values);
            let outputs = &mut output.row_mut(row)[..layer.outputs];
            let (outputs, _) = S::as_mut_simd_f32s(outputs);
            let mut vector = 0;
            while vector < outputs.len() {
                vector += match outputs.len() - vector {
                    8.. => layer.sums::<S, 8>(simd, vector, outputs),
                    4.. => layer.sums::<S, 4>(simd, vector, outputs),
                    2.. => layer.sums::<S, 2>(simd, vector, outputs),
                    _ => layer.sums::<S, 1>(simd, vector, outputs),
                };
            }
        }
    }
}

impl Piecewise {
    /// Finds the piece and the ramp of each input.
    #[inline(always)]
    fn find(&mut self, values: &[f32]) {
        self.found.fill(0);
        for lower in self.lower.chunks_exact(self.inputs) {
            for ((found, value), lower) in self.found.iter_mut().zip(values).zip(lower) {
                *found += u32::from(*value >= *lower);
            }
        }
        self.taken.clear();
        for ((input, value), found) in values.iter().enumerate().zip(&self.found) {
            let piece = input * (self.pieces + 1) + *found as usize;
            let (lower, per_width) = self.ramps[piece];
            self.taken.push((piece * 2 * self.outputs, ((value - lower) * per_width).clamp(0.0, 1.0)));
        }
    }

    /// The outputs of `VECTORS` vectors, from that vector on; returns how many they are.
    #[allow(clippy::needless_range_loop, reason = "iterators over the sums are not always unrolled")]
    #[inline(always)]
    fn sums<S: Simd, const VECTORS: usize>(&self, simd: S, vector: usize, outputs: &mut [S::f32s]) -> usize {
        let begin = vector * S::F32_LANES;
        let (bias, _) = S::as_simd_f32s(&self.bias[begin..][..VECTORS * S::F32_LANES]);
        let mut sums = [simd.splat_f32s(0.0); VECTORS];
        sums.copy_from_slice(bias);
        for (place, ramp) in &self.taken {
            let before = &self.table[place + begin..][..VECTORS * S::F32_LANES];
            let own = &self.table[place + self.outputs + begin..][..VECTORS * S::F32_LANES];
            let ((before, _), (own, _)) = (S::as_simd_f32s(before), S::as_simd_f32s(own));
            let ramp = simd.splat_f32s(*ramp);
            for index in 0..VECTORS {
                sums[index] = simd.mul_add_f32s(ramp, own[index], simd.add_f32s(sums[index], before[index]));
            }
        }
        let (floor, _) = S::as_simd_f32s(&self.floor[begin..][..VECTORS * S::F32_LANES]);
        let outputs = &mut outputs[vector..][..VECTORS];
        for index in 0..VECTORS {
            outputs[index] = simd.max_f32s(sums[index], floor[index]);
        }
        VECTORS
    }
}
