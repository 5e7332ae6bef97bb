use serde::{Deserialize, Serialize};

use super::{cross_entropy, sigmoid, smoothed_targets};

/// Platt scaling: `p = 1 / (1 + exp(−(slope · logit + intercept)))`, with a slope above 0, so that order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Platt {
    pub(super) slope: f32,
    pub(super) intercept: f32,
}

const STEPS_MAX: usize = 100;
const HALVINGS_MAX: usize = 40;

impl Platt {
    pub(super) const IDENTITY: Platt = Platt { slope: 1.0, intercept: 0.0 };

    pub(super) fn log_odds(self, logit: f32) -> f64 {
        f64::from(self.slope) * f64::from(logit) + f64::from(self.intercept)
    }

    pub(super) fn is_rising(self) -> bool {
        self.slope > 0.0 && self.slope.is_finite() && self.intercept.is_finite()
    }

    /// Fits both by Newton's method with backtracking, against Platt's smoothed targets, which keep
    /// the fit finite where the classes are separable. H.-T. Lin, C.-J. Lin, R. Weng, "A note on
    /// Platt's probabilistic outputs for support vector machines" (2007), algorithm 1.
    ///
    /// Logits that rank frauds below the rest (or don't rank at all) give the identity: no
    /// calibration may turn the order round.
    pub(crate) fn fit(logits: &[f32], labels: &[bool]) -> Platt {
        let (target_positive, target_negative) = smoothed_targets(labels);
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
        let fitted = Platt { slope: slope as f32, intercept: intercept as f32 };
        if fitted.is_rising() && fitted.slope > 1e-6 { fitted } else { Platt::IDENTITY }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Calibration, log_loss, tests::sample},
        *,
    };

    #[test]
    fn finds_the_distortion_of_overconfident_logits() {
        let (logits, labels) = sample(200_000, |logit| sigmoid(0.4 * logit - 1.0));
        let fitted = Platt::fit(&logits, &labels);
        assert!((fitted.slope - 0.4).abs() < 0.01 && (fitted.intercept + 1.0).abs() < 0.03, "{fitted:?}");
        let before = log_loss(&Calibration::IDENTITY, &logits, &labels);
        let after = log_loss(&Calibration::Platt(fitted), &logits, &labels);
        assert!(after < before * 0.8, "{before} {after}");
    }

    #[test]
    fn separable_and_reversed_logits_give_a_finite_rising_curve() {
        let logits: Vec<f32> = (-50..50).map(|x| x as f32).collect();
        let separable: Vec<bool> = logits.iter().map(|logit| *logit > 10.0).collect();
        let fitted = Platt::fit(&logits, &separable);
        assert!(fitted.slope > 0.0 && fitted.slope < 100.0, "{fitted:?}");
        let reversed: Vec<bool> = separable.iter().map(|label| !label).collect();
        assert_eq!(Platt::fit(&logits, &reversed), Platt::IDENTITY);
        assert!(Platt::fit(&[3.0; 100], &separable).slope > 0.0);
    }
}
