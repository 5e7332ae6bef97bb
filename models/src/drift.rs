//! What the columns and the score looked like when a model was trained, to tell later how far they have moved.

use schemas::FeatureLayout;
use serde::{Deserialize, Serialize};

use crate::{Dataset, ModelError, normalize::check_rows};

/// Bins of equally many training values, as far as ties allow.
const BINS: usize = 10;
/// Shares below this count as this, so that one value in a bin that was empty doesn't make an index infinite.
pub(crate) const SHARE_MIN: f64 = 1e-4;

/// A population stability index from here on says that a distribution has shifted somewhat.
pub const PSI_SHIFTED: f64 = 0.1;
/// And from here on, that it is another one.
pub const PSI_OTHER: f64 = 0.25;

/// How often a value fell between which edges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// Rising. Bin i holds the values above edge i − 1, and up to and with edge i; the last bin what is above all edges.
    pub edges: Vec<f32>,
    /// Values in each bin: one more than edges.
    pub counts: Vec<u64>,
    /// Rows without a value.
    pub missing: u64,
}

/// A column of the training rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnReference {
    pub name: String,
    pub histogram: Histogram,
    /// Median of the column among the legitimate rows, the lower one of two; none where most of them have no value. What is usual, to
    /// compare a value with.
    pub usual: Option<f32>,
}

/// The distributions that a model was trained on: `reference.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// In the layout's order, of the training rows.
    pub columns: Vec<ColumnReference>,
    /// The calibrated scores of the validation rows, which the model had not seen.
    pub score: Histogram,
}

/// How far the distribution of one column, or of the score, is from its reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    pub name: String,
    /// Population stability index, [`Histogram::psi`].
    pub psi: f64,
    /// Share of the rows without a value, in the reference and now.
    pub missing_reference: f64,
    pub missing: f64,
}

impl Histogram {
    /// Edges at the deciles of these values (each the lowest value that so many are not above), NaN is missing.
    pub fn of(values: impl Iterator<Item = f32>) -> Histogram {
        let mut sorted: Vec<f32> = values.map(finite).collect();
        let rows = sorted.len();
        sorted.retain(|value| !value.is_nan());
        sorted.sort_unstable_by(f32::total_cmp);
        let decile = |bin: usize| (bin * sorted.len()).div_ceil(BINS).checked_sub(1).map(|rank| sorted[rank]);
        let mut edges: Vec<f32> = (1..BINS).filter_map(decile).collect();
        edges.dedup_by(|b, a| a == b);
        let missing = (rows - sorted.len()) as u64;
        let mut histogram = Histogram { counts: vec![0; edges.len() + 1], edges, missing };
        sorted.into_iter().for_each(|value| histogram.push(value));
        histogram
    }

    /// The same edges, and no values yet.
    pub fn emptied(&self) -> Histogram {
        Histogram { edges: self.edges.clone(), counts: vec![0; self.counts.len()], missing: 0 }
    }

    /// Other values in the same bins.
    pub(crate) fn counting(&self, values: impl Iterator<Item = f32>) -> Histogram {
        let mut counted = self.emptied();
        values.for_each(|value| counted.push(value));
        counted
    }

    /// Counts a value; NaN is missing.
    pub fn push(&mut self, value: f32) {
        match value.is_nan() {
            true => self.missing += 1,
            false => self.counts[self.edges.partition_point(|edge| *edge < finite(value))] += 1,
        }
    }

    /// Rows, with a value or without.
    pub fn rows(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.missing
    }

    /// Share of the rows that have no value; 0 of no rows.
    pub fn missing_share(&self) -> f64 {
        self.missing as f64 / self.rows().max(1) as f64
    }

    /// The population stability index `Σ (p − q) ln(p / q)` over the bins and the missing, q being the shares here, p those of
    /// `other`, which has the same edges. Shares below 0.0001 count as that. 0 is no change; [`PSI_SHIFTED`] and [`PSI_OTHER`] are the
    /// usual bounds.
    ///
    /// `None` if the edges differ, or without rows on either side.
    pub fn psi(&self, other: &Histogram) -> Option<f64> {
        if self.edges != other.edges || self.rows() == 0 || other.rows() == 0 {
            return None;
        }
        let shares = |histogram: &Histogram| {
            let rows = histogram.rows() as f64;
            let bins = histogram.counts.iter().chain([&histogram.missing]);
            bins.map(|count| (*count as f64 / rows).max(SHARE_MIN)).collect::<Vec<f64>>()
        };
        let terms = shares(self).into_iter().zip(shares(other)).map(|(q, p)| (p - q) * (p / q).ln());
        Some(terms.sum())
    }

    fn drift(&self, name: &str, now: &Histogram) -> Drift {
        Drift {
            name: name.into(),
            psi: self.psi(now).unwrap_or(0.0),
            missing_reference: self.missing_share(),
            missing: now.missing_share(),
        }
    }

    fn is_whole(&self) -> bool {
        let rising = self.edges.windows(2).all(|pair| pair[0] < pair[1]);
        rising && self.edges.iter().all(|edge| !edge.is_nan()) && self.counts.len() == self.edges.len() + 1
    }
}

impl Reference {
    pub(crate) fn of(layout: &FeatureLayout, training: &Dataset, validation_scores: &[f32]) -> Reference {
        let of_column = |(column, feature): (usize, &schemas::FeatureSpec)| {
            let values = || training.rows.iter().skip(column).step_by(training.width).copied();
            let legitimate = values().zip(&training.labels).filter(|(_, fraud)| !**fraud).map(|(value, _)| value);
            ColumnReference {
                name: feature.name.clone(),
                histogram: Histogram::of(values()),
                usual: usual(legitimate.collect()),
            }
        };
        Reference {
            columns: layout.features().iter().enumerate().map(of_column).collect(),
            score: Histogram::of(validation_scores.iter().copied()),
        }
    }

    /// How far the columns of `rows` (row-major, whole rows of the model's layout, `layout`) are from the training rows, in the
    /// layout's order, and then `score`, how far `scores` are from the validation rows'. 0 where there are no rows.
    ///
    /// Fails on rows that are not of the layout.
    pub fn drift(
        &self,
        layout: &FeatureLayout,
        rows: &[f32],
        scores: &[f32],
    ) -> Result<(Vec<Drift>, Drift), ModelError> {
        check_rows(layout, rows)?;
        let mut now: Vec<Histogram> = self.columns.iter().map(|column| column.histogram.emptied()).collect();
        for row in rows.chunks_exact(layout.width()) {
            row.iter().zip(&mut now).for_each(|(value, histogram)| histogram.push(*value));
        }
        let columns = self.columns.iter().zip(&now).map(|(column, now)| column.histogram.drift(&column.name, now));
        let score = self.score.counting(scores.iter().copied());
        Ok((columns.collect(), self.score.drift("score", &score)))
    }

    /// What is wrong with a reference that was read, if anything is.
    pub(crate) fn check(&self, layout: &FeatureLayout) -> Result<(), String> {
        let names = self.columns.iter().map(|column| &column.name);
        if !names.eq(layout.features().iter().map(|feature| &feature.name)) {
            return Err("has other columns than the layout".into());
        }
        let columns = self.columns.iter().map(|column| (column.name.as_str(), &column.histogram));
        match columns.chain([("score", &self.score)]).find(|(_, histogram)| !histogram.is_whole()) {
            Some((name, _)) => {
                Err(format!("has a histogram of `{name}` whose edges don't rise, or whose counts don't fit"))
            }
            None => Ok(()),
        }
    }
}

/// JSON has no infinity: it counts as the largest number. NaN stays.
fn finite(value: f32) -> f32 {
    value.clamp(f32::MIN, f32::MAX)
}

/// The lower median; none where most are missing.
fn usual(mut values: Vec<f32>) -> Option<f32> {
    let rows = values.len();
    values.retain(|value| !value.is_nan());
    if values.is_empty() || 2 * values.len() < rows {
        return None;
    }
    let middle = (values.len() - 1) / 2;
    Some(finite(*values.select_nth_unstable_by(middle, f32::total_cmp).1))
}

#[cfg(test)]
mod tests {
    use schemas::FeatureSpec;

    use super::*;

    #[test]
    fn bins_hold_equally_many_values_as_far_as_ties_allow() {
        let values = || (1..=100).map(|value| value as f32);
        let even = Histogram::of(values().chain([f32::NAN; 20]));
        assert_eq!(even.edges, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]);
        assert_eq!((even.counts.as_slice(), even.missing, even.rows()), (&[10; 10][..], 20, 120));
        let ties = Histogram::of((0..100).map(|value| if value < 85 { 0.0 } else { value as f32 }));
        assert_eq!((ties.edges.as_slice(), ties.counts.as_slice()), (&[0.0, 89.0][..], &[85, 5, 10][..]));
        let constant = Histogram::of([3.0; 7].into_iter());
        assert_eq!((constant.edges.as_slice(), constant.counts.as_slice()), (&[3.0][..], &[7, 0][..]));
        let nothing = Histogram::of([f32::NAN; 2].into_iter());
        let infinite = Histogram::of([f32::INFINITY, f32::NEG_INFINITY].into_iter());
        assert_eq!(
            (infinite.edges.as_slice(), infinite.counts.as_slice()),
            (&[f32::MIN, f32::MAX][..], &[1, 1, 0][..])
        );
        assert_eq!((nothing.edges.len(), nothing.counts.as_slice(), nothing.missing_share()), (0, &[0][..], 1.0));
    }

    #[test]
    fn the_index_is_its_formula_and_bounded() {
        let reference = Histogram { edges: vec![1.0], counts: vec![60, 30], missing: 10 };
        let same = Histogram { counts: vec![600, 300], missing: 100, ..reference.clone() };
        assert_eq!(reference.psi(&same), Some(0.0));
        let moved = Histogram { counts: vec![40, 60], missing: 0, ..reference.clone() };
        // (.4 − .6) ln(.4/.6) + (.6 − .3) ln(.6/.3) + (.0001 − .1) ln(.0001/.1)
        let expected = -0.2 * (0.4f64 / 0.6).ln() + 0.3 * 2f64.ln() + (1e-4 - 0.1) * (1e-3f64).ln();
        assert!((reference.psi(&moved).unwrap() - expected).abs() < 1e-12);
        assert_eq!(reference.psi(&Histogram { edges: vec![2.0], ..same.clone() }), None);
        assert_eq!(reference.psi(&reference.emptied()), None);
    }

    #[test]
    fn drift_names_the_column_that_moved() {
        let spec = |name: &str| FeatureSpec { name: name.into(), definition: name.into(), nullable: true, place: None };
        let layout = FeatureLayout::new(vec![spec("amount"), spec("risk")]);
        let rows = |shift: f32, missing: usize| -> Vec<f32> {
            let risk = |row: usize| if row < missing { f32::NAN } else { row as f32 };
            (0..1000).flat_map(|row| [(row * 7 % 1000) as f32 + shift, risk(row)]).collect()
        };
        let labels = (0..1000).map(|row| row % 10 == 0).collect();
        let training = Dataset { rows: rows(0.0, 300), width: 2, labels };
        let scores: Vec<f32> = (0..1000).map(|row| row as f32 / 1000.0).collect();
        let reference = Reference::of(&layout, &training, &scores);
        assert_eq!(reference.check(&layout), Ok(()));
        // Legitimate are the 900 rows whose amount doesn't end in 0; 630 of them have a risk.
        let usual: Vec<Option<f32>> = reference.columns.iter().map(|column| column.usual).collect();
        assert_eq!(usual, [Some(499.0), Some(649.0)]);
        assert_eq!(super::usual(vec![f32::NAN, f32::NAN, 1.0]), None);

        let (same, score) = reference.drift(&layout, &training.rows, &scores).unwrap();
        assert!(same.iter().chain([&score]).all(|drift| drift.psi == 0.0), "{same:?} {score:?}");
        let (moved, score) = reference.drift(&layout, &rows(500.0, 300), &scores[500..]).unwrap();
        assert!(moved[0].psi > PSI_OTHER && moved[1].psi == 0.0 && score.psi > PSI_OTHER, "{moved:?} {score:?}");
        let (moved, _) = reference.drift(&layout, &rows(0.0, 600), &scores).unwrap();
        assert_eq!((moved[0].psi, moved[1].missing_reference, moved[1].missing), (0.0, 0.3, 0.6));
        assert!(moved[1].psi > PSI_SHIFTED, "{moved:?}");
        assert!(reference.drift(&layout, &[1.0], &[]).is_err());
        let (nothing, _) = reference.drift(&layout, &[], &[]).unwrap();
        assert_eq!(nothing[0].psi, 0.0);

        let other = FeatureLayout::new(vec![spec("amount"), spec("count")]);
        assert!(reference.check(&other).unwrap_err().contains("other columns"));
        let mut broken = reference.clone();
        broken.columns[1].histogram.counts.pop();
        assert!(broken.check(&layout).unwrap_err().contains("`risk`"));
    }
}
