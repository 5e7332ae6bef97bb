//! Every figure beside scikit-learn's (and NumPy's, for the stability index), over rows by a rule that both languages follow.
//! `scikit_learn.py` prints the numbers.
#![allow(clippy::unwrap_used)]

use models::{Histogram, calibration_error, evaluate};

/// Scores and labels; every fourth score is one of twenty.
fn rows() -> (Vec<f32>, Vec<bool>) {
    let mut state: u64 = 11;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let row = |row: u64| {
        let score =
            if !row.is_multiple_of(4) { below(16_777_216) as f64 / 16_777_216.0 } else { below(20) as f64 / 32.0 };
        (score as f32, (below(1000) as f64) < 5.0 + 700.0 * score.powi(3))
    };
    (0..4000).map(row).unzip()
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-7, "{found}, not {expected}");
}

#[test]
fn figures_are_scikit_learns() {
    let (scores, labels) = rows();
    let figures = evaluate(&scores, &labels, 0.75).unwrap();
    assert_eq!((figures.count, figures.positives), (4000, 586));
    assert_near(figures.auc, 0.8638103792654618);
    assert_near(figures.average_precision, 0.5248711798502683);
    assert_near(figures.precision, 0.48010269576379977);
    assert_near(figures.recall, 0.6382252559726962);
}

#[test]
fn the_calibration_error_and_the_stability_index_are_too() {
    let (scores, labels) = rows();
    let without_ties = |row: &usize| !row.is_multiple_of(4);
    let scores: Vec<f32> = (0..4000).filter(without_ties).map(|row| scores[row]).collect();
    let labels: Vec<bool> = (0..4000).filter(without_ties).map(|row| labels[row]).collect();
    assert_near(calibration_error(&scores, &labels, 20).unwrap(), 0.322045665025711);

    let reference = Histogram::of(scores[..1500].iter().copied());
    let mut later = reference.emptied();
    scores[1500..].iter().for_each(|score| later.push(score * score));
    assert_near(reference.psi(&later).unwrap(), 0.35706722930814305);
}
