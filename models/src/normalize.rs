//! From a row of features to the inputs of a network.
//!
//! A value becomes `clip((signed_log(x) − mean) · scale)`; a missing one becomes 0, the mean. Each
//! nullable column has one more input, 1 where its value is missing. Columns of one channel of a sequence share mean and scale: the same
//! value gives the same input wherever in the sequence it stands.

use schemas::FeatureLayout;

use crate::{Dataset, ModelError};

/// Standard deviations beyond which an input is cut off, so that no outlier drives the network far
/// from what it has seen.
const CLIP: f32 = 8.0;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Normalization {
    /// Per column, of the signed logs of the values present in the training rows.
    pub(crate) mean: Vec<f32>,
    /// One over the standard deviation; 0 for a column that never varied, whose weights learned nothing.
    pub(crate) scale: Vec<f32>,
    nullable: Vec<usize>,
}

impl Normalization {
    /// `None` unless both have the layout's width and every number is finite.
    pub(crate) fn new(layout: &FeatureLayout, mean: Vec<f32>, scale: Vec<f32>) -> Option<Normalization> {
        let usable = mean.len() == layout.width()
            && scale.len() == layout.width()
            && mean.iter().chain(&scale).all(|number| number.is_finite());
        usable.then(|| Normalization { mean, scale, nullable: nullable_columns(layout) })
    }

    pub(crate) fn fit(layout: &FeatureLayout, training: &Dataset) -> Normalization {
        let width = layout.width();
        // Where a column's moments are: its own, or those of its channel's first column.
        let mut shared: Vec<usize> = (0..width).collect();
        for sequence in layout.sequences() {
            for columns in &sequence.columns {
                columns.iter().zip(&sequence.columns[0]).for_each(|(column, first)| shared[*column] = *first);
            }
        }
        // Welford's running mean and sum of squares, per column.
        let mut moments = vec![(0u64, 0.0f64, 0.0f64); width];
        for row in training.rows.chunks_exact(width) {
            for (value, shared) in row.iter().zip(&shared) {
                if !value.is_nan() {
                    let (count, mean, squares) = &mut moments[*shared];
                    let logged = f64::from(signed_log(*value));
                    *count += 1;
                    let delta = logged - *mean;
                    *mean += delta / *count as f64;
                    *squares += delta * (logged - *mean);
                }
            }
        }
        let moments = || shared.iter().map(|shared| &moments[*shared]);
        let scale = moments().map(|(count, _, squares)| {
            let deviation = (squares / (*count).max(1) as f64).sqrt();
            if deviation > 1e-6 { (1.0 / deviation) as f32 } else { 0.0 }
        });
        Normalization {
            scale: scale.collect(),
            mean: moments().map(|(_, mean, _)| *mean as f32).collect(),
            nullable: nullable_columns(layout),
        }
    }

    /// Columns of a row.
    pub(crate) fn width(&self) -> usize {
        self.mean.len()
    }

    /// Inputs of the network.
    pub(crate) fn inputs(&self) -> usize {
        self.mean.len() + self.nullable.len()
    }

    /// The largest absolute value an input can have.
    pub(crate) fn bound(&self) -> f32 {
        CLIP
    }

    /// Appends the inputs of `rows` (whole rows, row-major).
    pub(crate) fn encode(&self, rows: &[f32], inputs: &mut Vec<f32>) {
        for row in rows.chunks_exact(self.width()) {
            let columns = row.iter().zip(&self.mean).zip(&self.scale);
            inputs.extend(columns.map(|((value, mean), scale)| {
                let standardized = ((signed_log(*value) - mean) * scale).clamp(-CLIP, CLIP);
                if value.is_nan() { 0.0 } else { standardized }
            }));
            inputs.extend(self.nullable.iter().map(|column| f32::from(u8::from(row[*column].is_nan()))));
        }
    }
}

/// Those with an input that says where their value is missing, in this order.
pub(crate) fn nullable_columns(layout: &FeatureLayout) -> Vec<usize> {
    let columns = layout.features().iter().enumerate();
    columns.filter(|(_, feature)| feature.nullable).map(|(column, _)| column).collect()
}

/// `sign(x) · log2(1 + |x|)`, with straight lines between the powers of two: continuous, rising, exact
/// to the same bit on every processor, and a handful of instructions. Infinity gives 128.
fn signed_log(value: f32) -> f32 {
    // An f32's bits, read as an integer, are its exponent and mantissa: a logarithm in 23-bit fixed point.
    let fixed = (1.0 + value.abs()).to_bits().wrapping_sub(1.0f32.to_bits());
    (fixed as i32 as f32 * 2f32.powi(-23)).copysign(value)
}

/// Refuses rows that are not whole, or lack a value where the layout promises one.
pub(crate) fn check_rows(layout: &FeatureLayout, rows: &[f32]) -> Result<(), ModelError> {
    let width = layout.width();
    if width == 0 || !rows.len().is_multiple_of(width) {
        return Err(ModelError::Ragged { values: rows.len(), width });
    }
    // Most batches miss nothing, and one pass over the values tells.
    if !rows.iter().fold(false, |missing, value| missing | value.is_nan()) {
        return Ok(());
    }
    for (row, values) in rows.chunks_exact(width).enumerate() {
        for (value, feature) in values.iter().zip(layout.features()) {
            if value.is_nan() && !feature.nullable {
                return Err(ModelError::Missing { row, column: feature.name.clone() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use schemas::FeatureSpec;

    use super::*;

    fn layout() -> FeatureLayout {
        let spec =
            |name: &str, nullable| FeatureSpec { name: name.into(), definition: name.into(), nullable, place: None };
        FeatureLayout::new(vec![spec("amount", false), spec("mean", true), spec("constant", false)])
    }

    #[test]
    fn signed_log_is_exact_at_powers_of_two_odd_rising_and_bounded() {
        for (value, log) in [(0.0, 0.0), (1.0, 1.0), (3.0, 2.0), (1023.0, 10.0), (-7.0, -3.0)] {
            assert_eq!(signed_log(value), log);
        }
        assert_eq!(signed_log(f32::INFINITY), 128.0);
        assert_eq!(signed_log(f32::NEG_INFINITY), -128.0);
        let mut last = f32::NEG_INFINITY;
        for step in -4_000..4_000 {
            let value = (step as f32 / 100.0).powi(3);
            assert!(signed_log(value) >= last);
            last = signed_log(value);
            let error = last - (1.0 + value.abs()).log2().copysign(value);
            assert!(error.abs() < 0.087, "{value}: {error}");
        }
    }

    #[test]
    fn fits_the_present_values_and_marks_the_missing() {
        let rows = vec![1.0, 3.0, 5.0, 3.0, f32::NAN, 5.0, 7.0, 7.0, 5.0];
        let training = Dataset { rows: rows.clone(), width: 3, labels: vec![false; 3] };
        let normalization = Normalization::fit(&layout(), &training);
        assert_eq!(normalization.mean[..2], [2.0, 2.5]);
        assert_eq!(normalization.scale[1..], [2.0, 0.0]);
        assert_eq!((normalization.width(), normalization.inputs()), (3, 4));

        let mut inputs = Vec::new();
        normalization.encode(&rows, &mut inputs);
        let deviation = (2.0f32 / 3.0).sqrt();
        for (input, expected) in inputs.iter().zip(
            [[-1.0 / deviation, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0 / deviation, 1.0, 0.0, 0.0]].as_flattened(),
        ) {
            assert!((input - expected).abs() < 1e-6, "{inputs:?}");
        }

        inputs.clear();
        normalization.encode(&[f32::INFINITY, f32::NEG_INFINITY, 1e9], &mut inputs);
        assert_eq!(inputs, [CLIP, -CLIP, 0.0, 0.0]);
    }

    #[test]
    fn columns_of_a_channel_share_mean_and_scale() {
        let placed = |channel: &str, position| schemas::SequencePlace {
            sequence: "last 2".into(),
            channel: channel.into(),
            position,
        };
        let spec =
            |name: &str, place| FeatureSpec { name: name.into(), definition: name.into(), nullable: true, place };
        let layout = FeatureLayout::new(vec![
            spec("own", None),
            spec("a1", Some(placed("a", 1))),
            spec("b1", Some(placed("b", 1))),
            spec("a2", Some(placed("a", 2))),
            spec("b2", Some(placed("b", 2))),
        ]);
        // Of a the signed logs 1, 3 and 5, one of them missing; of b 2 throughout.
        let rows = vec![0.0, 1.0, 3.0, 7.0, 3.0, 1.0, 31.0, 3.0, f32::NAN, 3.0];
        let training = Dataset { rows, width: 5, labels: vec![false; 2] };
        let normalization = Normalization::fit(&layout, &training);
        assert_eq!(normalization.mean, [0.5, 3.0, 2.0, 3.0, 2.0]);
        let deviation = (8.0f32 / 3.0).sqrt();
        let scales = [2.0, 1.0 / deviation, 0.0, 1.0 / deviation, 0.0];
        for (found, expected) in normalization.scale.iter().zip(scales) {
            assert!((found - expected).abs() < 1e-6, "{:?}", normalization.scale);
        }
    }

    #[test]
    fn rows_are_checked_against_the_layout() {
        let layout = layout();
        assert!(check_rows(&layout, &[]).is_ok());
        assert!(check_rows(&layout, &[1.0, f32::NAN, 2.0]).is_ok());
        let error = check_rows(&layout, &[1.0, 2.0]).unwrap_err().to_string();
        assert_eq!(error, "2 values don't make whole rows of 3 columns");
        let error = check_rows(&layout, &[1.0, 2.0, 3.0, f32::NAN, 1.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("row 1 has no value for `amount`"), "{error}");
    }
}
