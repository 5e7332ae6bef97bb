//! A piecewise linear encoding of a network's inputs, whose pieces need not meet.
//!
//! Every input has edges `b_0 < b_1 < … < b_T`. Of a value v, piece t has two components: a ramp,
//! `clamp((v − b_t) / (b_(t+1) − b_t), 0, 1)` (Y. Gorishniy, I. Rubachev, A. Babenko, "On embeddings for numerical features
//! in tabular deep learning", 2022), and a step, 1 where `v ≥ b_t` and else 0. So whatever a layer makes of them is linear between two edges
//! and may jump at each: as sharp as a tree's split where frauds begin, as smooth as a network elsewhere.

/// Rows on either side of an edge, at least: less is no evidence.
const LEAF_ROWS: usize = 10;
/// The lower edge of a piece that isn't used: no value reaches it.
pub(crate) const UNUSED: f32 = f32::MAX;

/// The edges of every input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Encoding {
    /// Of an input.
    pieces: usize,
    /// Inputs × (pieces + 1), rising; an input with fewer edges repeats its last one.
    edges: Vec<f32>,
}

impl Encoding {
    /// `None` unless each of `inputs` has `pieces + 1` edges that rise.
    pub(crate) fn new(inputs: usize, pieces: usize, edges: Vec<f32>) -> Option<Encoding> {
        let usable = pieces > 0
            && edges.len() == inputs * (pieces + 1)
            && edges.iter().all(|edge| edge.is_finite() && edge.abs() < UNUSED)
            && edges.chunks_exact(pieces + 1).all(|edges| edges.is_sorted());
        usable.then_some(Encoding { pieces, edges })
    }

    /// Edges where a tree of one input would split the training rows, frauds from others, and at the lowest and the highest value.
    ///
    /// `rows` is rows × inputs, without missing values.
    pub(crate) fn fit(rows: &[f32], inputs: usize, labels: &[bool], pieces: usize) -> Encoding {
        Encoding::fitted(rows, inputs, labels, pieces, pieces)
    }

    /// The same with half as many splits, and the other edges spread evenly over the rows.
    ///
    /// For inputs that are held against others: where a value tells nothing by itself, a tree's splits are anywhere, and most of the
    /// values may lie between two of them.
    pub(crate) fn fit_spread(rows: &[f32], inputs: usize, labels: &[bool], pieces: usize) -> Encoding {
        Encoding::fitted(rows, inputs, labels, pieces, pieces.div_ceil(2))
    }

    /// Of at most `pieces`, by at most `leaves` of a tree.
    fn fitted(rows: &[f32], inputs: usize, labels: &[bool], pieces: usize, leaves: usize) -> Encoding {
        let mut edges = Vec::with_capacity(inputs * (pieces + 1));
        let mut column: Vec<(f32, bool)> = Vec::with_capacity(labels.len());
        for input in 0..inputs {
            column.clear();
            column.extend(rows.iter().skip(input).step_by(inputs).copied().zip(labels.iter().copied()));
            column.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let mut own = splits(&column, leaves);
            own.extend([column.first(), column.last()].into_iter().flatten().map(|(value, _)| *value));
            own.sort_unstable_by(f32::total_cmp);
            own.dedup();
            if leaves < pieces && !column.is_empty() {
                let free = (pieces + 1).saturating_sub(own.len());
                own.extend((1..=free).map(|edge| column[edge * column.len() / (free + 1)].0));
                own.sort_unstable_by(f32::total_cmp);
                own.dedup();
            }
            let last = own.last().copied().unwrap_or_default();
            own.resize(pieces + 1, last);
            edges.append(&mut own);
        }
        Encoding { pieces, edges }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.edges.len() / (self.pieces + 1)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.pieces
    }

    /// Inputs × (pieces + 1).
    pub(crate) fn edges(&self) -> &[f32] {
        &self.edges
    }

    /// Components of a row: for each input its ramps, then its steps.
    pub(crate) fn components(&self) -> usize {
        self.inputs() * self.pieces * 2
    }

    /// For each piece its lower edge and one over its width; [`UNUSED`] and 0 where edges are repeated, so that both components are 0.
    pub(crate) fn bounds(&self) -> (Vec<f32>, Vec<f32>) {
        let of_inputs = self.edges.chunks_exact(self.pieces + 1);
        let bounds = of_inputs.flat_map(|edges| edges.windows(2)).map(|edges| {
            let width = edges[1] - edges[0];
            if width > 0.0 { (edges[0], width.recip().min(f32::MAX)) } else { (UNUSED, 0.0) }
        });
        bounds.unzip()
    }
}

/// A part of the rows that a split would tell apart.
struct Leaf {
    /// By how many nats the split lowers the rows' negative log likelihood.
    gain: f64,
    rows: std::ops::Range<usize>,
    /// The first row of the upper part.
    split: usize,
}

/// Where at most `leaves` leaves of rows in order of their value meet: the split that gains most first.
fn splits(rows: &[(f32, bool)], leaves: usize) -> Vec<f32> {
    let mut frauds = Vec::with_capacity(rows.len() + 1);
    frauds.push(0u32);
    frauds.extend(rows.iter().scan(0, |count, (_, fraud)| {
        *count += u32::from(*fraud);
        Some(*count)
    }));
    let mut open: Vec<Leaf> = best_split(rows, &frauds, 0..rows.len()).into_iter().collect();
    let mut edges = Vec::new();
    while edges.len() + 1 < leaves
        && let Some(best) = (0..open.len()).max_by(|&a, &b| {
            // Of equal gains the lowest, so that the edges are the same at every training.
            open[a].gain.total_cmp(&open[b].gain).then(open[b].split.cmp(&open[a].split))
        })
    {
        let Leaf { rows: leaf, split, .. } = open.swap_remove(best);
        let (below, above) = (rows[split - 1].0, rows[split].0);
        // Halfway, unless rounding takes it down to the value below.
        let halfway = below + (above - below) / 2.0;
        edges.push(if halfway > below { halfway } else { above });
        open.extend(best_split(rows, &frauds, leaf.start..split));
        open.extend(best_split(rows, &frauds, split..leaf.end));
    }
    edges
}

/// `frauds[i]` counts those before row i.
fn best_split(rows: &[(f32, bool)], frauds: &[u32], leaf: std::ops::Range<usize>) -> Option<Leaf> {
    // −(k ln(k/n) + (n − k) ln((n − k)/n)) of k frauds among n rows.
    let loss = |from: usize, to: usize| {
        let (count, positives) = ((to - from) as f64, f64::from(frauds[to] - frauds[from]));
        let entropy = |part: f64| if part > 0.0 { -part * (part / count).ln() } else { 0.0 };
        entropy(positives) + entropy(count - positives)
    };
    let whole = loss(leaf.start, leaf.end);
    if whole == 0.0 {
        return None;
    }
    let candidates = leaf.start + LEAF_ROWS..(leaf.end + 1).saturating_sub(LEAF_ROWS);
    let apart = candidates.filter(|&row| rows[row - 1].0 < rows[row].0);
    let gains = apart.map(|split| (whole - loss(leaf.start, split) - loss(split, leaf.end), split));
    // Here, too, of equal gains the lowest.
    let (gain, split) = gains.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    (gain > 1e-9).then_some(Leaf { gain, rows: leaf, split })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_where_frauds_begin_and_end() {
        // Frauds from 300 to 400, and from 900 on, of values 0 to 999; a second input that tells nothing.
        let labels: Vec<bool> = (0..1000).map(|row| (300..400).contains(&row) || row >= 900).collect();
        let rows: Vec<f32> = (0..1000).flat_map(|row| [row as f32, 7.0]).collect();
        let encoding = Encoding::fit(&rows, 2, &labels, 6);
        assert_eq!(encoding.edges[..7], [0.0, 299.5, 399.5, 899.5, 999.0, 999.0, 999.0]);
        assert_eq!(encoding.edges[7..], [7.0; 7]);
        assert_eq!((encoding.inputs(), encoding.pieces(), encoding.components()), (2, 6, 24));
        let (lower, inverse) = encoding.bounds();
        assert_eq!(lower[..6], [0.0, 299.5, 399.5, 899.5, UNUSED, UNUSED]);
        assert_eq!(inverse[..6], [1.0 / 299.5, 0.01, 1.0 / 500.0, 1.0 / 99.5, 0.0, 0.0]);
        assert!(lower[6..].iter().all(|edge| *edge == UNUSED));
        assert_eq!(Encoding::new(2, 6, encoding.edges().to_vec()), Some(encoding));
    }

    #[test]
    fn edges_that_no_split_takes_are_spread_over_the_rows() {
        // Frauds above 900; a second input that tells nothing and has three values.
        let rows: Vec<f32> = (0..1000).flat_map(|row| [row as f32, (row % 3) as f32]).collect();
        let labels: Vec<bool> = (0..1000).map(|row| row >= 900).collect();
        let encoding = Encoding::fit_spread(&rows, 2, &labels, 6);
        assert_eq!(encoding.edges()[..7], [0.0, 200.0, 400.0, 600.0, 800.0, 899.5, 999.0]);
        let mut edges = encoding.edges()[7..].to_vec();
        edges.dedup();
        assert!([0.0, 1.0, 2.0].iter().all(|value| edges.contains(value)), "{edges:?}");
        assert_eq!(Encoding::fit_spread(&[1.0, 2.0], 1, &[true, false], 1).edges(), [1.0, 2.0]);
        assert_eq!(Encoding::fit_spread(&[], 1, &[], 2).edges(), [0.0; 3]);
    }

    #[test]
    fn the_splits_that_gain_most_come_first_and_no_leaf_is_too_small() {
        let labels: Vec<bool> = (0..1000).map(|row| (300..400).contains(&row) || row == 700).collect();
        let column: Vec<(f32, bool)> = labels.iter().enumerate().map(|(row, fraud)| (row as f32, *fraud)).collect();
        let mut two = splits(&column, 3);
        two.sort_unstable_by(f32::total_cmp);
        assert_eq!(two, [299.5, 399.5]);
        let mut all = splits(&column, 100);
        all.sort_unstable_by(f32::total_cmp);
        assert!(all.len() > 2 && all.windows(2).all(|edges| edges[1] - edges[0] >= LEAF_ROWS as f32), "{all:?}");
        assert!(splits(&[(1.0, true), (2.0, false)], 8).is_empty());
        assert!(splits(&[], 8).is_empty());
    }

    #[test]
    fn edges_that_dont_rise_are_refused() {
        assert!(Encoding::new(1, 2, vec![0.0, 1.0, 2.0]).is_some());
        assert!(Encoding::new(1, 2, vec![0.0, 1.0, 1.0]).is_some());
        for edges in [vec![0.0, 2.0, 1.0], vec![0.0, 1.0], vec![0.0, 1.0, f32::NAN], vec![0.0, 1.0, f32::MAX]] {
            assert_eq!(Encoding::new(1, 2, edges), None);
        }
        assert_eq!(Encoding::new(1, 0, vec![0.0]), None);
    }
}
