//! Platt scaling: a network's logit becomes a probability that can be taken at its word.

use serde::{Deserialize, Serialize};

/// `p = 1 / (1 + exp(−(slope · logit + intercept)))`, with a slope above 0, so that order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calibration {
    pub(crate) slope: f32,
    pub(crate) intercept: f32,
}

const STEPS_MAX: usize = 100;
const HALVINGS_MAX: usize = 40;

impl Calibration {
    pub(crate) const IDENTITY: Calibration = Calibration { slope: 1.0, intercept: 0.0 };

    /// In f64, so that rounding to f32 hides what differs between math libraries in the last bit.
    pub(crate) fn probability(self, logit: f32) -> f32 {
        let line = f64::from(self.slope) * f64::from(logit) + f64::from(self.intercept);
        sigmoid(line) as f32
    }

    /// Fits both by Newton's method with backtracking, against Platt's smoothed targets, which keep
    /// the fit finite where the classes are separable. H.-T. Lin, C.-J. Lin, R. Weng, "A note on
    /// Platt's probabilistic outputs for support vector machines" (2007), algorithm 1.
    ///
    /// Logits that rank frauds below the rest (or don't rank at all) give the identity: no
    /// calibration may turn the order round.
    pub(crate) fn fit(logits: &[f32], labels: &[bool]) -> Calibration {
        let positives = labels.iter().filter(|label| **label).count() as f64;
        let negatives = labels.len() as f64 - positives;
        let target_positive = (positives + 1.0) / (positives + 2.0);
        let target_negative = 1.0 / (negatives + 2.0);
        let rows = || {
            let targets = labels.iter().map(|label| if *label { target_positive } else { target_negative });
            logits.iter().map(|logit| f64::from(*logit)).zip(targets)
        };
        let loss = |slope: f64, intercept: f64| -> f64 {
            rows().map(|(logit, target)| cross_entropy(slope * logit + intercept, target)).sum()
        };

        let (mut slope, mut intercept) = (1.0, 0.0);
        let mut current = loss(slope, intercept);
        for _ in 0..STEPS_MAX {
            // Gradient and Hessian; the small ridge keeps the latter invertible.
            let (mut g_slope, mut g_intercept) = (0.0, 0.0);
            let (mut h_ss, mut h_si, mut h_ii) = (1e-12, 0.0, 1e-12);
            for (logit, target) in rows() {
                let p = sigmoid(slope * logit + intercept);
                let (error, weight) = (p - target, p * (1.0 - p));
                g_slope += error * logit;
                g_intercept += error;
                h_ss += weight * logit * logit;
                h_si += weight * logit;
                h_ii += weight;
            }
            let tolerance = 1e-9 * labels.len() as f64;
            if g_slope.abs() < tolerance && g_intercept.abs() < tolerance {
                break;
            }
            let determinant = h_ss * h_ii - h_si * h_si;
            let step_slope = -(h_ii * g_slope - h_si * g_intercept) / determinant;
            let step_intercept = -(h_ss * g_intercept - h_si * g_slope) / determinant;
            let descent = g_slope * step_slope + g_intercept * step_intercept;
            let accepted = (0..HALVINGS_MAX).map(|halvings| 0.5f64.powi(halvings as i32)).find_map(|size| {
                let (s, i) = (slope + size * step_slope, intercept + size * step_intercept);
                let next = loss(s, i);
                (next < current + 1e-4 * size * descent).then_some((s, i, next))
            });
            match accepted {
                Some(next) => (slope, intercept, current) = next,
                None => break,
            }
        }
        let fitted = Calibration { slope: slope as f32, intercept: intercept as f32 };
        let usable = fitted.slope > 1e-6 && fitted.slope.is_finite() && fitted.intercept.is_finite();
        if usable { fitted } else { Calibration::IDENTITY }
    }
}

/// Mean negative log likelihood of `labels` (nats per row) under the probabilities of these logits.
pub(crate) fn log_loss(calibration: Calibration, logits: &[f32], labels: &[bool]) -> f64 {
    let losses = logits.iter().zip(labels).map(|(logit, label)| {
        let line = f64::from(calibration.slope) * f64::from(*logit) + f64::from(calibration.intercept);
        cross_entropy(line, f64::from(u8::from(*label)))
    });
    losses.sum::<f64>() / labels.len() as f64
}

/// `−target · ln σ(line) − (1 − target) · ln(1 − σ(line))`, without overflow.
fn cross_entropy(line: f64, target: f64) -> f64 {
    line.max(0.0) - line * target + (-line.abs()).exp().ln_1p()
}

fn sigmoid(line: f64) -> f64 {
    1.0 / (1.0 + (-line).exp())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Labels drawn with `P = σ(slope · logit + intercept)`.
    fn sample(slope: f64, intercept: f64, rows: usize) -> (Vec<f32>, Vec<bool>) {
        let mut random = StdRng::seed_from_u64(11);
        let logits: Vec<f32> = (0..rows).map(|_| random.random_range(-8.0..4.0)).collect();
        let labels = logits
            .iter()
            .map(|logit| random.random::<f64>() < sigmoid(slope * f64::from(*logit) + intercept))
            .collect();
        (logits, labels)
    }

    #[test]
    fn finds_the_distortion_of_overconfident_logits() {
        let (logits, labels) = sample(0.4, -1.0, 200_000);
        let fitted = Calibration::fit(&logits, &labels);
        assert!((fitted.slope - 0.4).abs() < 0.01 && (fitted.intercept + 1.0).abs() < 0.03, "{fitted:?}");
        let (before, after) = (log_loss(Calibration::IDENTITY, &logits, &labels), log_loss(fitted, &logits, &labels));
        assert!(after < before * 0.8, "{before} {after}");
    }

    #[test]
    fn keeps_order_and_range() {
        let (logits, labels) = sample(0.4, -1.0, 5_000);
        let fitted = Calibration::fit(&logits, &labels);
        let mut sorted = logits.clone();
        sorted.extend([-1e30, -200.0, 200.0, 1e30]);
        sorted.sort_by(f32::total_cmp);
        let scores: Vec<f32> = sorted.iter().map(|logit| fitted.probability(*logit)).collect();
        assert!(scores.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
    }

    #[test]
    fn separable_and_reversed_logits_give_a_finite_rising_curve() {
        let logits: Vec<f32> = (-50..50).map(|x| x as f32).collect();
        let separable: Vec<bool> = logits.iter().map(|logit| *logit > 10.0).collect();
        let fitted = Calibration::fit(&logits, &separable);
        assert!(fitted.slope > 0.0 && fitted.slope < 100.0, "{fitted:?}");
        let reversed: Vec<bool> = separable.iter().map(|label| !label).collect();
        assert_eq!(Calibration::fit(&logits, &reversed), Calibration::IDENTITY);
        assert!(Calibration::fit(&[3.0; 100], &separable).slope > 0.0);
    }
}
