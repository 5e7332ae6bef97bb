//! Fully connected layers: weights packed once, bias and activation fused, registers filled with sums.
//!
//! **Order of additions.** An output is `fma(x[k], w[k], …)` from its bias upwards in k, one chain, whatever
//! tile or batch its row falls into and however wide the processor's vectors are. [`Head`] adds up
//! in [`LANES`] chains, and those in a fixed tree. So a row's bits depend on the row alone, and are the
//! same on every processor.

use std::ops::{Deref, DerefMut};

use pulp::{Simd, WithSimd};

use super::vectors::Vectors;
use crate::network::Dense;

/// Outputs of a panel, which is a cache line: one vector of AVX-512, two of AVX2, four of NEON.
pub(crate) const LANES: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;

/// A fully connected layer with ReLU, packed: for each [`LANES`] outputs a panel, which holds their biases and then, input by
/// input, their weights. Outputs are padded with zeros to whole panels.
pub(crate) struct Panels {
    inputs: usize,
    outputs: usize,
    panels: Aligned,
}

/// A layer of one output.
pub(crate) struct Head {
    /// Padded with zeros to whole vectors.
    weight: Aligned,
    inputs: usize,
    bias: f32,
}

/// Rows of values, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

/// Room for the outputs of layers.
pub(crate) struct Activations {
    values: Aligned,
    stride: usize,
}

impl Panels {
    pub(crate) fn pack(layer: &Dense) -> Panels {
        let Dense { inputs, outputs, ref weight, ref bias } = *layer;
        let mut panels = Aligned::zeros(outputs.div_ceil(LANES) * (inputs + 1) * LANES);
        for (output, (weights, bias)) in weight.chunks_exact(inputs).zip(bias).enumerate() {
            let panel = &mut panels[output / LANES * (inputs + 1) * LANES..][..(inputs + 1) * LANES];
            let own = panel.iter_mut().skip(output % LANES).step_by(LANES);
            own.zip(std::iter::once(bias).chain(weights)).for_each(|(place, value)| *place = *value);
        }
        Panels { inputs, outputs, panels }
    }

    /// Writes the outputs of `count` rows of `input`.
    pub(crate) fn run(&self, vectors: Vectors, input: Rows<'_>, count: usize, output: &mut Activations) {
        let Activations { values, stride } = output;
        vectors.dispatch(Product { layer: self, input, count, output: values, stride: *stride });
    }
}

impl Head {
    /// Of a layer with one output.
    pub(crate) fn pack(layer: &Dense) -> Head {
        let mut weight = Aligned::zeros(layer.inputs.next_multiple_of(LANES));
        weight[..layer.inputs].copy_from_slice(&layer.weight);
        Head { weight, inputs: layer.inputs, bias: layer.bias[0] }
    }

    /// Appends the outputs of `count` rows of `input`.
    pub(crate) fn run(&self, vectors: Vectors, input: Rows<'_>, count: usize, outputs: &mut Vec<f32>) {
        vectors.dispatch(Dot { head: self, input, count, outputs });
    }
}

impl Activations {
    /// For `rows` rows of up to `width` values.
    pub(crate) fn new(rows: usize, width: usize) -> Activations {
        // One line more than the values take, lest rows of 1,024 values all fall into the same few sets of the cache.
        let stride = width.next_multiple_of(LANES) + LANES;
        Activations { values: Aligned::zeros(rows * stride), stride }
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { values: &self.values, stride: self.stride }
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.stride..][..self.stride]
    }
}

/// Values that begin at a cache line.
pub(crate) struct Aligned {
    values: Vec<f32>,
    begin: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeros(len: usize) -> Aligned {
        let values = vec![0.0; len + LANES];
        let begin = values.as_ptr().align_offset(LINE).min(LANES);
        Aligned { values, begin, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.begin..][..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.begin..][..self.len]
    }
}

/// A layer over rows: panels outermost, so that a panel is read from the first-level cache for all but the first of the
/// row tiles.
struct Product<'a> {
    layer: &'a Panels,
    input: Rows<'a>,
    count: usize,
    output: &'a mut [f32],
    stride: usize,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.tiles::<S, 1>(simd),
            8 => self.tiles::<S, 2>(simd),
            4 => self.tiles::<S, 4>(simd),
            _ => self.tiles::<S, LANES>(simd),
        }
    }
}

/// Whether the sums of `rows` rows by `wide` panels of `vectors` vectors stay in registers, with what they are made of: a value,
/// and weights unless a single row uses each only once. Without vectors nothing does, and a tile is one row by one panel.
const fn fits<S: Simd>(rows: usize, wide: usize, vectors: usize) -> bool {
    let weights = if rows == 1 { 0 } else { wide * vectors };
    rows * wide == 1 || rows * wide * vectors + weights < S::REGISTER_COUNT
}

/// Rows of a tile at most.
const TILE_ROWS_MAX: usize = 14;

impl Product<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        // Two panels at a time where there are registers enough, so that a value is loaded once for both.
        let pair = if VECTORS == 1 { 2 } else { 1 };
        let rows_max = (1..=TILE_ROWS_MAX).rev().find(|rows| fits::<S>(*rows, pair, VECTORS)).unwrap_or(1);
        let tiles = self.count.div_ceil(rows_max);
        let panels = self.layer.outputs.div_ceil(LANES);
        let mut panel = 0;
        while panel < panels {
            // Tiles of few rows take more panels, so that there are sums enough to hide the latency of an addition.
            let rows = self.count.div_ceil(tiles.max(1));
            let wide = [4, 2].into_iter().find(|wide| fits::<S>(rows, *wide, VECTORS) && panel + wide <= panels);
            let wide = wide.unwrap_or(1);
            let mut row = 0;
            for tile in 0..tiles {
                let rows = (self.count - row).div_ceil(tiles - tile);
                let place = Place { row, rows, panel };
                match wide {
                    4 => self.rows::<S, VECTORS, 4>(simd, place),
                    2 => self.rows::<S, VECTORS, 2>(simd, place),
                    _ => self.rows::<S, VECTORS, 1>(simd, place),
                }
                row += rows;
            }
            panel += wide;
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const VECTORS: usize, const WIDE: usize>(&mut self, simd: S, place: Place) {
        macro_rules! of {
            ($($rows:literal)*) => {
                match place.rows {
                    $($rows if const { fits::<S>($rows, WIDE, VECTORS) } => {
                        simd.vectorize(Tile::<VECTORS, WIDE, $rows> { product: self, place })
                    })*
                    rows => unreachable!("a tile of {rows} rows by {WIDE} panels"),
                }
            };
        }
        of!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

/// The first row and panel of a tile, and its rows.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    rows: usize,
    panel: usize,
}

/// `ROWS` rows by `WIDE` panels of `VECTORS` vectors, whose sums stay in registers.
struct Tile<'p, 'a, const VECTORS: usize, const WIDE: usize, const ROWS: usize> {
    product: &'p mut Product<'a>,
    place: Place,
}

#[allow(clippy::needless_range_loop, reason = "iterators over the sums are not always unrolled")]
impl<const VECTORS: usize, const WIDE: usize, const ROWS: usize> WithSimd for Tile<'_, '_, VECTORS, WIDE, ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tile { product: Product { layer, input, output, stride, .. }, place: Place { row, panel, .. } } = self;
        let inputs = layer.inputs;
        // Plain loops of constant bounds, here and below: else the sums live in memory, and every access is checked.
        let mut panels: [&[[S::f32s; VECTORS]]; WIDE] = [&[]; WIDE];
        let mut sums = [[[simd.splat_f32s(0.0); VECTORS]; WIDE]; ROWS];
        for index in 0..WIDE {
            let packed = &layer.panels[(panel + index) * (inputs + 1) * LANES..][..(inputs + 1) * LANES];
            let packed: &[[S::f32s; VECTORS]] = S::as_simd_f32s(packed).0.as_chunks().0;
            for row in 0..ROWS {
                sums[row][index] = packed[0];
            }
            panels[index] = &packed[1..][..inputs];
        }
        let mut rows: [&[f32]; ROWS] = [&[]; ROWS];
        for index in 0..ROWS {
            rows[index] = &input.values[(row + index) * input.stride..][..inputs];
        }

        for k in 0..inputs {
            let mut weights = [[simd.splat_f32s(0.0); VECTORS]; WIDE];
            for panel in 0..WIDE {
                weights[panel] = panels[panel][k];
            }
            for row in 0..ROWS {
                let value = simd.splat_f32s(rows[row][k]);
                for panel in 0..WIDE {
                    for vector in 0..VECTORS {
                        sums[row][panel][vector] =
                            simd.mul_add_f32s(value, weights[panel][vector], sums[row][panel][vector]);
                    }
                }
            }
        }

        let zero = simd.splat_f32s(0.0);
        for index in 0..ROWS {
            let output = &mut output[(row + index) * *stride + panel * LANES..][..WIDE * LANES];
            let output = S::as_mut_simd_f32s(output).0;
            for panel in 0..WIDE {
                for vector in 0..VECTORS {
                    output[panel * VECTORS + vector] = simd.max_f32s(sums[index][panel][vector], zero);
                }
            }
        }
    }
}

struct Dot<'a> {
    head: &'a Head,
    input: Rows<'a>,
    count: usize,
    outputs: &'a mut Vec<f32>,
}

impl WithSimd for Dot<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.rows::<S, 1>(simd),
            8 => self.rows::<S, 2>(simd),
            4 => self.rows::<S, 4>(simd),
            _ => self.rows::<S, LANES>(simd),
        }
    }
}

#[allow(clippy::needless_range_loop, reason = "iterators over the sums are not always unrolled")]
impl Dot<'_> {
    #[inline(always)]
    fn rows<S: Simd, const VECTORS: usize>(self, simd: S) {
        let Dot { head, input, count, outputs } = self;
        let weights: &[[S::f32s; VECTORS]] = S::as_simd_f32s(&head.weight).0.as_chunks().0;
        // Plain loops: what a closure holds isn't compiled for the wider vectors unless it happens to be inlined.
        for row in 0..count {
            let (whole, rest) = input.values[row * input.stride..][..head.inputs].as_chunks::<LANES>();
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            let mut sums = [simd.splat_f32s(0.0); VECTORS];
            for (index, weights) in weights.iter().enumerate() {
                let values = S::as_simd_f32s(whole.get(index).unwrap_or(&last)).0;
                for vector in 0..VECTORS {
                    sums[vector] = simd.mul_add_f32s(values[vector], weights[vector], sums[vector]);
                }
            }
            let mut lanes = [0.0; LANES];
            S::as_mut_simd_f32s(&mut lanes).0.copy_from_slice(&sums);
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
            }
            outputs.push(lanes[0] + head.bias);
        }
    }
}
