use serde::{Deserialize, Serialize};

use super::{Platt, smoothed_targets};

/// Isotonic regression, made strictly rising: the blocks that it pools rows into become knots, with straight lines between them.
///
/// A block's knot stands at its mean logit, with the log odds of its share of frauds. Beyond the outermost knots the curve goes on with
/// the slope of Platt's line, as there are no rows to say more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Isotonic {
    /// Rising; two at least.
    logits: Vec<f32>,
    /// Of each knot; rising.
    log_odds: Vec<f32>,
    /// Log odds per logit beyond the knots.
    outer_slope: f32,
}

/// Rows pooled: their sums.
#[derive(Clone, Copy)]
struct Block {
    rows: f64,
    logits: f64,
    targets: f64,
}

impl Block {
    fn target(&self) -> f64 {
        self.targets / self.rows
    }
}

impl Isotonic {
    /// Pools adjacent violators (Ayer et al. 1955) over Platt's smoothed targets, which keep a block without frauds, or of nothing
    /// but frauds, from being taken for certain.
    ///
    /// `None` where all rows end in one block: there is nothing to tell apart.
    pub(crate) fn fit(logits: &[f32], labels: &[bool]) -> Option<Isotonic> {
        let (target_positive, target_negative) = smoothed_targets(labels);
        let mut rows: Vec<(f32, bool)> = logits.iter().copied().zip(labels.iter().copied()).collect();
        // Equal logits are one row of their sums, so the order among them doesn't matter.
        rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut blocks: Vec<Block> = Vec::new();
        for tie in rows.chunk_by(|a, b| a.0 == b.0) {
            let (count, frauds) = (tie.len() as f64, tie.iter().filter(|row| row.1).count() as f64);
            let targets = frauds * target_positive + (count - frauds) * target_negative;
            let mut block = Block { rows: count, logits: f64::from(tie[0].0) * count, targets };
            while let Some(before) = blocks.pop_if(|before| before.target() >= block.target()) {
                block.rows += before.rows;
                block.logits += before.logits;
                block.targets += before.targets;
            }
            blocks.push(block);
        }
        let knots = blocks.iter().map(|block| {
            let share = block.target();
            ((block.logits / block.rows) as f32, (share / (1.0 - share)).ln() as f32)
        });
        // Rounding may have made neighbours equal.
        let mut rising: Vec<(f32, f32)> = Vec::new();
        for (logit, log_odds) in knots {
            if rising.last().is_none_or(|last| logit > last.0 && log_odds > last.1) {
                rising.push((logit, log_odds));
            }
        }
        let (at, log_odds): (Vec<f32>, Vec<f32>) = rising.into_iter().unzip();
        let fitted = Isotonic { logits: at, log_odds, outer_slope: Platt::fit(logits, labels).slope };
        fitted.is_rising().then_some(fitted)
    }

    pub(super) fn log_odds(&self, logit: f32) -> f64 {
        let knot = |index: usize| (f64::from(self.logits[index]), f64::from(self.log_odds[index]));
        let (x, last) = (f64::from(logit), self.logits.len() - 1);
        let after = self.logits.partition_point(|knot| *knot <= logit);
        if after == 0 || after > last {
            let (x0, y0) = knot(if after == 0 { 0 } else { last });
            return y0 + (x - x0) * f64::from(self.outer_slope);
        }
        let ((x0, y0), (x1, y1)) = (knot(after - 1), knot(after));
        // Rounding must not lift it above the next knot.
        (y0 + (x - x0) * ((y1 - y0) / (x1 - x0))).min(y1)
    }

    pub(super) fn is_rising(&self) -> bool {
        let rises = |values: &[f32]| {
            values.iter().all(|value| value.is_finite()) && values.windows(2).all(|pair| pair[0] < pair[1])
        };
        let paired = self.logits.len() >= 2 && self.logits.len() == self.log_odds.len();
        paired && rises(&self.logits) && rises(&self.log_odds) && self.outer_slope > 0.0 && self.outer_slope.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of `IsotonicRegression` are where its fitted values change.
    #[test]
    fn the_knots_are_the_blocks_of_scikit_learns() {
        // y_ of IsotonicRegression().fit(range(12), labels): 0 three times, 1/3 three times, 1/2 twice, 2/3 three times, 1.
        let logits: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let labels = [0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1].map(|label| label == 1);
        let fitted = Isotonic::fit(&logits, &labels).unwrap();
        assert_eq!(fitted.logits, [1.0, 4.0, 6.5, 9.0, 11.0]);
        let (fraud, rest) = smoothed_targets(&labels);
        for (found, share) in fitted.log_odds.iter().zip([0.0, 1.0 / 3.0, 0.5, 2.0 / 3.0, 1.0]) {
            let target: f64 = share * fraud + (1.0 - share) * rest;
            assert!((f64::from(*found) - (target / (1.0 - target)).ln()).abs() < 1e-6, "{fitted:?}");
        }
        // Straight between the knots, Platt's slope beyond.
        assert!((fitted.log_odds(2.5) - (fitted.log_odds(1.0) + fitted.log_odds(4.0)) / 2.0).abs() < 1e-9);
        let slope = f64::from(fitted.outer_slope);
        assert!(slope > 0.0 && (fitted.log_odds(13.0) - fitted.log_odds(12.0) - slope).abs() < 1e-9);
        assert!((fitted.log_odds(-1.0) - fitted.log_odds(-2.0) - slope).abs() < 1e-9);
    }

    #[test]
    fn what_ranks_the_wrong_way_has_no_curve() {
        let logits: Vec<f32> = (0..100).map(|x| x as f32).collect();
        let reversed: Vec<bool> = logits.iter().map(|logit| *logit < 10.0).collect();
        assert_eq!(Isotonic::fit(&logits, &reversed), None);
        assert_eq!(Isotonic::fit(&[3.0; 100], &reversed), None);
        // Without a fraud, or without rows.
        assert_eq!(Isotonic::fit(&logits, &[false; 100]), None);
        assert_eq!(Isotonic::fit(&[], &[]), None);
    }
}
