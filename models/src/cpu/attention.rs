//! What a history network reads in a sequence ([`crate::network::Attention`]), row by row: a row's steps stay in the first-level cache.
//!
//! **Order of operations.** Steps that are missing are left out; the others go from the newest back, in one chain of additions. A score adds up
//! in [`LANES`] chains, and those in a fixed tree. The exponential is made of additions and products of this file, and none of them is fused. So here,
//! too, a row's bits depend on the row alone, and are the same on every processor.

use pulp::{Simd, WithSimd};

use super::{
    dense::{Activations, LANES, Rows},
    piecewise::Piecewise,
    vectors::Vectors,
};
use crate::network::{Attention, BELOW, Grid, is_missing};

/// The attention of all members over one sequence.
pub(crate) struct Reader {
    grid: Grid,
    members: usize,
    /// What a member makes of a step.
    width: usize,
    /// Of a member, between two of its queries.
    stride: usize,
    /// Where the first member's query is.
    from: usize,
    layer: Piecewise,
    positions: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Of the row at hand: the channels of the steps there are, and which ones these are.
    channels: Vec<f32>,
    steps: Vec<usize>,
    /// Steps × members · width: what is made of each.
    made: Activations,
    /// Of one member, of each step: its score, then its share.
    shares: Vec<f32>,
}

impl Reader {
    /// `from` is where the first of `members` has its query among a row's values, `stride` how far from there the next has its own.
    pub(crate) fn pack(attention: &Attention, grid: &Grid, members: usize, from: usize, stride: usize) -> Reader {
        Reader {
            grid: grid.clone(),
            members,
            width: attention.score.inputs,
            stride,
            from,
            layer: Piecewise::pack(&attention.encoding, &attention.step, |_| true),
            positions: attention.positions.clone(),
            weight: attention.score.weight.clone(),
            bias: attention.score.bias.clone(),
            channels: Vec::with_capacity(grid.inputs.len()),
            steps: Vec::with_capacity(grid.steps),
            made: Activations::new(grid.steps, attention.step.outputs),
            shares: Vec::with_capacity(grid.steps),
        }
    }

    /// Puts what each member reads in the sequence of a row in place of its query among `values`.
    pub(crate) fn run(&mut self, vectors: Vectors, inputs: &[f32], values: &mut [f32]) {
        self.channels.clear();
        self.steps.clear();
        for step in 0..self.grid.steps {
            let inputs_of = self.grid.step(step);
            if !inputs_of.iter().all(|(_, missing)| is_missing(inputs, *missing)) {
                self.steps.push(step);
                let channels = inputs_of.iter();
                self.channels.extend(channels.map(|(value, missing)| {
                    if is_missing(inputs, *missing) { inputs[*value] - BELOW } else { inputs[*value] }
                }));
            }
        }
        let channels = Rows { values: &self.channels, stride: self.grid.channels };
        self.layer.run(vectors, channels, self.steps.len(), &mut self.made);
        vectors.dispatch(Attend { reader: self, values });
    }
}

struct Attend<'a> {
    reader: &'a mut Reader,
    values: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    // Plain loops here and below, compiled for the widest vectors there are: each lane is computed for itself, so their width makes no difference.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Attend { reader, values } = self;
        for member in 0..reader.members {
            let query = &mut values[reader.from + member * reader.stride..][..reader.width];
            reader.attend(member, query);
        }
    }
}

impl Reader {
    /// Reads for one member, into its query.
    #[inline(always)]
    fn attend(&mut self, member: usize, query: &mut [f32]) {
        let Reader { members, width, positions, weight, bias, steps, made, shares, .. } = self;
        let (outputs, own) = (*members * *width, member * *width);
        let weight = &weight[own..][..*width];
        shares.clear();
        let mut most = 0.0f32;
        for (row, step) in steps.iter().enumerate() {
            let made = &mut made.row_mut(row)[own..][..*width];
            let position = &positions[step * outputs + own..][..*width];
            for ((made, position), query) in made.iter_mut().zip(position).zip(&*query) {
                *made = (*made + *position + *query).max(0.0);
            }
            let score = dot(made, weight) + bias[member];
            most = most.max(score);
            shares.push(score);
        }
        for share in shares.iter_mut() {
            *share = exp_below_zero(*share - most);
        }
        // Of the step that is always there, whose score is 0.
        let mut sum = exp_below_zero(-most);
        for share in shares.iter() {
            sum += *share;
        }
        query.fill(0.0);
        for (row, share) in shares.iter().enumerate() {
            let share = *share / sum;
            for (read, made) in query.iter_mut().zip(&made.row_mut(row)[own..][..*width]) {
                *read += share * *made;
            }
        }
    }
}

/// Of as many values as weights.
#[inline(always)]
fn dot(values: &[f32], weights: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((values, values_rest), (weights, weights_rest)) = (values.as_chunks::<LANES>(), weights.as_chunks::<LANES>());
    for (values, weights) in values.iter().zip(weights) {
        for lane in 0..LANES {
            lanes[lane] += values[lane] * weights[lane];
        }
    }
    for (lane, (value, weight)) in lanes.iter_mut().zip(values_rest.iter().zip(weights_rest)) {
        *lane += value * weight;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// `exp(x)` for x ≤ 0, within three units in the last place where it is above 1e-37, and 0 below. (The standard library's has other bits with
/// other libraries and processors.)
#[inline(always)]
fn exp_below_zero(x: f32) -> f32 {
    /// 1.5 · 2²³: added and taken off again, it leaves the nearest whole number.
    const ROUNDING: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its product with a whole number of up to 8 bits is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Under this 2^n below would not be a normal number.
    const LOWEST: f32 = -86.0;
    let within = x.max(LOWEST);
    let shifted = within * std::f32::consts::LOG2_E + ROUNDING;
    let n = shifted - ROUNDING;
    let rest = (within - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's, within ±ln 2 / 2.
    let mut power = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * rest + coefficient;
    }
    // 2^n, from its bits: the whole number is in the low bits of `shifted`.
    let scale = f32::from_bits((shifted.to_bits().wrapping_sub(ROUNDING.to_bits()).wrapping_add(127)) << 23);
    if x < LOWEST { 0.0 } else { power * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_and_ends_in_zero() {
        assert_eq!((exp_below_zero(0.0), exp_below_zero(-0.0)), (1.0, 1.0));
        for number in [-86.1, -100.0, -1e9, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp_below_zero(number), 0.0);
        }
        let mut last = 0.0;
        for step in (0..86_000).rev() {
            let x = step as f32 * -1e-3;
            let (found, expected) = (exp_below_zero(x), f64::from(x).exp());
            let far = (f64::from(found) / expected - 1.0).abs();
            assert!(far < 3.0 * f64::from(f32::EPSILON), "exp({x}) is {expected}, not {found}: {far}");
            assert!(found >= last && found <= 1.0, "exp({x}) = {found}");
            last = found;
        }
    }

    #[test]
    fn a_dot_product_is_one_whatever_is_left_over() {
        for width in [1, 5, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..width).map(|index| index as f32 - 3.0).collect();
            let weights: Vec<f32> = (0..width).map(|index| 2.0 - index as f32).collect();
            let expected: f32 = values.iter().zip(&weights).map(|(value, weight)| value * weight).sum();
            assert_eq!(dot(&values, &weights), expected);
        }
    }
}
