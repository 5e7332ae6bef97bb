//! Calibration: a network's logit becomes a probability that can be taken at its word.

mod isotonic;
mod platt;

use serde::{Deserialize, Serialize};

pub(crate) use self::{isotonic::Isotonic, platt::Platt};

/// Parts that the validation rows are cut into to choose between the methods.
const FOLDS: usize = 5;

/// A rising curve from logits to log odds. It rises strictly, so that what ranks by logit ranks the same by score: ties come only
/// from rounding to f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub(crate) enum Calibration {
    Platt(Platt),
    Isotonic(Isotonic),
}

/// How the calibration was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationChoice {
    /// `platt` or `isotonic`: the one with the lower loss below.
    pub method: String,
    /// Mean negative log likelihood of the validation labels (nats per row), each fifth of the rows under a curve that was fitted to the
    /// other four, so that a curve that follows the noise doesn't win.
    pub log_loss_platt: f64,
    /// The same; none where some four fifths don't carry an isotonic curve.
    pub log_loss_isotonic: Option<f64>,
}

impl Calibration {
    pub(crate) const IDENTITY: Calibration = Calibration::Platt(Platt::IDENTITY);

    /// Fits both methods to the logits and labels of the validation rows (in order of time, so that the parts are periods), and takes
    /// the one that does better on rows it wasn't fitted to. Platt's, of two parameters, wins a draw.
    pub(crate) fn choose(logits: &[f32], labels: &[bool]) -> (Calibration, CalibrationChoice) {
        let platt = |logits: &[f32], labels: &[bool]| Some(Calibration::Platt(Platt::fit(logits, labels)));
        let isotonic = |logits: &[f32], labels: &[bool]| Isotonic::fit(logits, labels).map(Calibration::Isotonic);
        let log_loss_platt = cross_fitted_loss(logits, labels, platt).unwrap_or(f64::INFINITY);
        let log_loss_isotonic = cross_fitted_loss(logits, labels, isotonic);
        let wins = log_loss_isotonic.is_some_and(|loss| loss < log_loss_platt);
        let fitted = if wins { isotonic(logits, labels) } else { None };
        let calibration = fitted.unwrap_or_else(|| Calibration::Platt(Platt::fit(logits, labels)));
        let choice = CalibrationChoice { method: calibration.method().into(), log_loss_platt, log_loss_isotonic };
        (calibration, choice)
    }

    /// `platt` or `isotonic`.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Calibration::Platt(_) => "platt",
            Calibration::Isotonic(_) => "isotonic",
        }
    }

    /// In f64, so that rounding to f32 hides what differs between math libraries in the last bit.
    pub(crate) fn probability(&self, logit: f32) -> f32 {
        sigmoid(self.log_odds(logit)) as f32
    }

    pub(crate) fn log_odds(&self, logit: f32) -> f64 {
        match self {
            Calibration::Platt(platt) => platt.log_odds(logit),
            Calibration::Isotonic(isotonic) => isotonic.log_odds(logit),
        }
    }

    /// Whether every number is finite, and the curve rises strictly.
    pub(crate) fn is_rising(&self) -> bool {
        match self {
            Calibration::Platt(platt) => platt.is_rising(),
            Calibration::Isotonic(isotonic) => isotonic.is_rising(),
        }
    }
}

/// Mean loss over all rows, each part of them under the curve that `fit` gives for the others. `None` if it gives none somewhere.
fn cross_fitted_loss(
    logits: &[f32],
    labels: &[bool],
    fit: impl Fn(&[f32], &[bool]) -> Option<Calibration>,
) -> Option<f64> {
    let rows = labels.len();
    let mut sum = 0.0;
    for fold in 0..FOLDS {
        let (from, to) = (fold * rows / FOLDS, (fold + 1) * rows / FOLDS);
        if from < to {
            let fitted = fit(&[&logits[..from], &logits[to..]].concat(), &[&labels[..from], &labels[to..]].concat())?;
            sum += log_loss(&fitted, &logits[from..to], &labels[from..to]) * (to - from) as f64;
        }
    }
    Some(sum / rows as f64)
}

/// Mean negative log likelihood of `labels` (nats per row) under the probabilities of these logits.
pub(crate) fn log_loss(calibration: &Calibration, logits: &[f32], labels: &[bool]) -> f64 {
    let losses = logits
        .iter()
        .zip(labels)
        .map(|(logit, label)| cross_entropy(calibration.log_odds(*logit), f64::from(u8::from(*label))));
    losses.sum::<f64>() / labels.len() as f64
}

/// Platt's targets for a fraud and for the rest: smoothed, so that no fitted probability is 0 or 1.
fn smoothed_targets(labels: &[bool]) -> (f64, f64) {
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let negatives = labels.len() as f64 - positives;
    ((positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))
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

    /// Labels drawn with these chances of a logit.
    pub(super) fn sample(rows: usize, chance: impl Fn(f64) -> f64) -> (Vec<f32>, Vec<bool>) {
        let mut random = StdRng::seed_from_u64(11);
        let logits: Vec<f32> = (0..rows).map(|_| random.random_range(-8.0..4.0)).collect();
        let labels = logits.iter().map(|logit| random.random::<f64>() < chance(f64::from(*logit))).collect();
        (logits, labels)
    }

    #[test]
    fn a_line_is_found_where_the_truth_is_one_and_a_curve_where_it_is_none() {
        let line = |logit: f64| sigmoid(0.4 * logit - 1.0);
        let (logits, labels) = sample(20_000, line);
        let (calibration, choice) = Calibration::choose(&logits, &labels);
        assert_eq!((calibration.method(), choice.method.as_str()), ("platt", "platt"));
        let isotonic = choice.log_loss_isotonic.unwrap();
        assert!(isotonic > choice.log_loss_platt && isotonic < 1.02 * choice.log_loss_platt, "{choice:?}");

        // A plateau in the middle, which no line has.
        let steps = |logit: f64| if logit < -5.0 { 0.01 } else { 0.3 + if logit > 1.0 { 0.5 } else { 0.0 } };
        let (logits, labels) = sample(20_000, steps);
        let (calibration, choice) = Calibration::choose(&logits, &labels);
        assert_eq!(calibration.method(), "isotonic");
        assert!(choice.log_loss_isotonic.unwrap() < 0.97 * choice.log_loss_platt, "{choice:?}");
        for logit in [-7.0, -6.0, -4.0, -2.0, 0.0, 2.0, 3.5] {
            let (said, is) = (f64::from(calibration.probability(logit)), steps(f64::from(logit)));
            assert!((said - is).abs() < 0.05, "at {logit}: {said}, not {is}");
        }
    }

    #[test]
    fn both_methods_keep_order_and_range() {
        let (mut logits, mut labels) = sample(5_000, |logit| sigmoid(0.4 * logit - 1.0));
        // Ties of logits with other labels than each other.
        logits.extend([0.25; 40]);
        labels.extend((0..40).map(|row| row % 3 == 0));
        for calibration in [
            Calibration::Platt(Platt::fit(&logits, &labels)),
            Calibration::Isotonic(Isotonic::fit(&logits, &labels).unwrap()),
        ] {
            assert!(calibration.is_rising(), "{calibration:?}");
            let mut sorted = logits.clone();
            sorted.extend([-1e30, -200.0, 200.0, 1e30]);
            sorted.extend((0..4_000).map(|step| step as f32 / 200.0 - 10.0));
            sorted.sort_by(f32::total_cmp);
            sorted.dedup();
            let scores: Vec<f32> = sorted.iter().map(|logit| calibration.probability(*logit)).collect();
            assert!(scores.windows(2).all(|pair| pair[0] <= pair[1]));
            assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
            // Plateaus are no ties: ranks are kept wherever f32 can tell scores apart.
            let ties = sorted.windows(2).filter(|pair| {
                (-10.0..10.0).contains(&pair[0])
                    && pair[1] - pair[0] > 1e-3
                    && calibration.probability(pair[0]) == calibration.probability(pair[1])
            });
            assert_eq!(ties.count(), 0, "{}", calibration.method());
        }
    }

    #[test]
    fn written_and_read_again_it_is_the_same() {
        let (logits, labels) = sample(5_000, |logit| sigmoid(0.4 * logit - 1.0));
        for calibration in [
            Calibration::Platt(Platt::fit(&logits, &labels)),
            Calibration::Isotonic(Isotonic::fit(&logits, &labels).unwrap()),
        ] {
            let json = serde_json::to_string(&calibration).unwrap();
            assert_eq!(serde_json::from_str::<Calibration>(&json).unwrap(), calibration, "{json}");
        }
    }
}
