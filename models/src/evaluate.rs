//! How well scores rank and separate: figures that need no model.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// Quality of scores against known labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Area under the ROC curve: the chance that a fraud scores above a legitimate row, ties counted half.
    pub auc: f64,
    /// `Σ (R_n − R_(n−1)) P_n` over the distinct scores, descending; without interpolation, as scikit-learn does.
    pub average_precision: f64,
    /// Share of frauds among the rows at or above the threshold; 0 where there are none.
    pub precision: f64,
    /// Share of the frauds that are at or above the threshold.
    pub recall: f64,
    pub count: u64,
    pub positives: u64,
}

/// Rows of one score (or of scores too close to tell apart).
#[derive(Clone, Copy, Default)]
struct Tie {
    positives: u64,
    negatives: u64,
}

/// Evaluates `scores` against `labels` (true = fraud); an alert is a score of `threshold` or more.
///
/// `None` unless the two have one length, every score is a number, and both classes occur.
pub fn evaluate(scores: &[f32], labels: &[bool], threshold: f32) -> Option<Evaluation> {
    if scores.len() != labels.len() || scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let mut rows: Vec<(f32, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let mut alerts = Tie::default();
    for &(_, label) in rows.iter().take_while(|(score, _)| *score >= threshold) {
        alerts.push(label);
    }
    figures(rows.chunk_by(|a, b| a.0 == b.0).map(Tie::of), alerts)
}

impl Tie {
    fn of(rows: &[(f32, bool)]) -> Tie {
        let mut tie = Tie::default();
        rows.iter().for_each(|(_, label)| tie.push(*label));
        tie
    }

    fn push(&mut self, label: bool) {
        match label {
            true => self.positives += 1,
            false => self.negatives += 1,
        }
    }
}

/// The figures of ties in descending order of score.
fn figures(ties: impl Iterator<Item = Tie>, alerts: Tie) -> Option<Evaluation> {
    // Twice the area, in pairs (fraud above legitimate): whole numbers, so no rounding adds up.
    let mut twice_area: u128 = 0;
    let mut precision_sum = 0.0;
    let (mut positives, mut negatives) = (0u64, 0u64);
    for tie in ties {
        twice_area += u128::from(tie.negatives) * (2 * u128::from(positives) + u128::from(tie.positives));
        positives += tie.positives;
        negatives += tie.negatives;
        if tie.positives > 0 {
            precision_sum += tie.positives as f64 * (positives as f64 / (positives + negatives) as f64);
        }
    }
    if positives == 0 || negatives == 0 {
        return None;
    }
    let alert_count = alerts.positives + alerts.negatives;
    Some(Evaluation {
        auc: twice_area as f64 / 2.0 / (positives as f64 * negatives as f64),
        average_precision: precision_sum / positives as f64,
        precision: if alert_count == 0 { 0.0 } else { alerts.positives as f64 / alert_count as f64 },
        recall: alerts.positives as f64 / positives as f64,
        count: positives + negatives,
        positives,
    })
}

/// A scored transaction of a card, for [`card_precision`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredCard {
    /// Days since any one day.
    pub day: i64,
    pub card: u32,
    pub score: f32,
    pub fraud: bool,
}

/// Card precision@`top`, as the Fraud Detection Handbook has it: each day the `top` cards with the highest scores are looked into; the
/// share of them that were defrauded that day, mean over the days. A card once found leaves the later days. Of equal
/// scores the lower card number comes first.
///
/// `None` over no transactions.
pub fn card_precision(rows: &[ScoredCard], top: usize) -> Option<f64> {
    let mut rows = rows.to_vec();
    rows.sort_unstable_by_key(|row| (row.day, row.card));
    let (mut found, mut sum, mut days) = (HashSet::new(), 0.0, 0);
    for day in rows.chunk_by(|a, b| a.day == b.day) {
        let highest =
            |a: ScoredCard, b: &ScoredCard| ScoredCard { score: a.score.max(b.score), fraud: a.fraud | b.fraud, ..a };
        let of_card = |rows: &[ScoredCard]| rows[1..].iter().fold(rows[0], highest);
        let mut cards: Vec<ScoredCard> = day.chunk_by(|a, b| a.card == b.card).map(of_card).collect();
        cards.retain(|row| !found.contains(&row.card));
        cards.sort_by(|a, b| b.score.total_cmp(&a.score));
        let hits: Vec<u32> = cards.iter().take(top).filter(|row| row.fraud).map(|row| row.card).collect();
        sum += hits.len() as f64 / top as f64;
        days += 1;
        found.extend(hits);
    }
    (days > 0).then(|| sum / f64::from(days))
}

/// Rows of neighbouring scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CalibrationBin {
    pub rows: u64,
    /// What the scores say.
    pub mean_score: f64,
    /// And what is so.
    pub fraud_share: f64,
}

/// Rows by score in `bins` bins of equally many rows, or one for each row where there are fewer; from the lowest on.
///
/// `None` over no rows, or unless there is a label for each.
pub fn calibration_bins(scores: &[f32], labels: &[bool], bins: usize) -> Option<Vec<CalibrationBin>> {
    if scores.is_empty() || scores.len() != labels.len() || bins == 0 {
        return None;
    }
    let mut rows: Vec<(f32, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let bins = bins.min(rows.len());
    let of_bin = |bin: usize| {
        let bin = &rows[bin * rows.len() / bins..(bin + 1) * rows.len() / bins];
        let scores: f64 = bin.iter().map(|(score, _)| f64::from(*score)).sum();
        let frauds = bin.iter().filter(|(_, fraud)| *fraud).count() as f64;
        let count = bin.len() as f64;
        CalibrationBin { rows: bin.len() as u64, mean_score: scores / count, fraud_share: frauds / count }
    };
    Some((0..bins).map(of_bin).collect())
}

/// Expected calibration error over [`calibration_bins`]: the mean distance between a bin's mean score and its share of
/// frauds, weighted by its rows (Naeini, Cooper, Hauskrecht 2015, with bins of equal mass).
///
/// `None` over no rows, or unless there is a label for each.
pub fn calibration_error(scores: &[f32], labels: &[bool], bins: usize) -> Option<f64> {
    let bins = calibration_bins(scores, labels, bins)?;
    let errors = bins.iter().map(|bin| bin.rows as f64 * (bin.mean_score - bin.fraud_share).abs());
    Some(errors.sum::<f64>() / scores.len() as f64)
}

/// What a threshold of one of the scores would give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperatingPoint {
    pub threshold: f32,
    /// Share of frauds among the rows at or above the threshold.
    pub precision: f64,
    /// Share of the frauds, and of the others, that are at or above the threshold.
    pub recall: f64,
    pub false_positive_rate: f64,
}

/// The precision-recall curve and the ROC curve: a point for each distinct score, from the highest on; of those closer together
/// than `spacing` in both recall and false positive rate, only the first. The last one has all rows.
///
/// `None` where [`evaluate`] has no figures.
pub fn operating_points(scores: &[f32], labels: &[bool], spacing: f64) -> Option<Vec<OperatingPoint>> {
    evaluate(scores, labels, 0.0)?;
    let mut rows: Vec<(f32, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let total = Tie::of(&rows);
    let (mut above, mut points) = (Tie::default(), Vec::<OperatingPoint>::new());
    for tie in rows.chunk_by(|a, b| a.0 == b.0) {
        tie.iter().for_each(|(_, label)| above.push(*label));
        let point = OperatingPoint {
            threshold: tie[0].0,
            precision: above.positives as f64 / (above.positives + above.negatives) as f64,
            recall: above.positives as f64 / total.positives as f64,
            false_positive_rate: above.negatives as f64 / total.negatives as f64,
        };
        let apart = points.last().is_none_or(|last| {
            point.recall - last.recall >= spacing || point.false_positive_rate - last.false_positive_rate >= spacing
        });
        let all = above.positives + above.negatives == rows.len() as u64;
        if apart || all {
            points.push(point);
        }
    }
    Some(points)
}

/// How many low bits of a score are dropped: 20 stay, 11 of them mantissa.
const DROPPED_BITS: u32 = 12;
const BUCKETS: usize = (1.0f32.to_bits() >> DROPPED_BITS) as usize + 1;

/// The same figures over an endless stream, in bounded memory (4 MiB): rows are counted per bucket of
/// the score's bits, so scores closer than 2⁻¹¹ of their value count as ties. Precision and recall
/// are exact.
#[derive(Clone)]
pub struct StreamingEvaluation {
    threshold: f32,
    buckets: Vec<Tie>,
    alerts: Tie,
}

impl StreamingEvaluation {
    /// An alert is a score of `threshold` or more.
    pub fn new(threshold: f32) -> StreamingEvaluation {
        StreamingEvaluation { threshold, buckets: vec![Tie::default(); BUCKETS], alerts: Tie::default() }
    }

    /// Counts one row. Scores are probabilities: what is above 1 counts as 1; what is below 0, and
    /// what is not a number, as 0.
    pub fn push(&mut self, score: f32, label: bool) {
        let bits = if score > 0.0 { score.min(1.0).to_bits() } else { 0 };
        self.buckets[(bits >> DROPPED_BITS) as usize].push(label);
        if score >= self.threshold {
            self.alerts.push(label);
        }
    }

    /// The figures so far; `None` until both classes occurred.
    pub fn figures(&self) -> Option<Evaluation> {
        figures(self.buckets.iter().rev().copied(), self.alerts)
    }
}

impl std::fmt::Debug for StreamingEvaluation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("StreamingEvaluation").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// The definition of the AUC, pair by pair.
    fn auc_by_pairs(scores: &[f32], labels: &[bool]) -> f64 {
        let (mut wins, mut pairs) = (0.0, 0.0);
        for (positive, _) in scores.iter().zip(labels).filter(|(_, label)| **label) {
            for (negative, _) in scores.iter().zip(labels).filter(|(_, label)| !**label) {
                pairs += 1.0;
                wins += if positive > negative { 1.0 } else { f64::from(u8::from(positive == negative)) / 2.0 };
            }
        }
        wins / pairs
    }

    /// The definition of the average precision, threshold by threshold.
    fn average_precision_by_thresholds(scores: &[f32], labels: &[bool]) -> f64 {
        let mut thresholds = scores.to_vec();
        thresholds.sort_by(|a, b| b.total_cmp(a));
        thresholds.dedup();
        let total = labels.iter().filter(|label| **label).count() as f64;
        let (mut sum, mut recall_before) = (0.0, 0.0);
        for threshold in thresholds {
            let above: Vec<bool> =
                scores.iter().zip(labels).filter(|(s, _)| **s >= threshold).map(|(_, l)| *l).collect();
            let hits = above.iter().filter(|label| **label).count() as f64;
            sum += (hits / total - recall_before) * hits / above.len() as f64;
            recall_before = hits / total;
        }
        sum
    }

    fn sample(seed: u64, rows: usize, distinct: Option<u32>) -> (Vec<f32>, Vec<bool>) {
        let mut random = StdRng::seed_from_u64(seed);
        let scores = (0..rows).map(|_| match distinct {
            Some(distinct) => random.random_range(0..distinct) as f32 / distinct as f32,
            None => random.random::<f32>().powi(6),
        });
        let scores: Vec<f32> = scores.collect();
        let labels = scores.iter().map(|score| random.random::<f32>() < 0.02 + 0.7 * score).collect();
        (scores, labels)
    }

    #[test]
    fn the_example_of_scikit_learns_documentation() {
        // roc_auc_score and average_precision_score of y = [0, 0, 1, 1], scores = [.1, .4, .35, .8].
        let evaluation = evaluate(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true], 0.4).unwrap();
        assert_eq!(evaluation.auc, 0.75);
        assert!((evaluation.average_precision - 0.8333333333333333).abs() < 1e-15);
        assert_eq!((evaluation.precision, evaluation.recall), (0.5, 0.5));
        assert_eq!((evaluation.count, evaluation.positives), (4, 2));
    }

    #[test]
    fn agrees_with_the_definitions_with_and_without_ties() {
        for (seed, distinct) in [(1, Some(2)), (2, Some(7)), (3, Some(100)), (4, None)] {
            let (scores, labels) = sample(seed, 400, distinct);
            let evaluation = evaluate(&scores, &labels, 0.5).unwrap();
            assert!((evaluation.auc - auc_by_pairs(&scores, &labels)).abs() < 1e-12);
            let expected = average_precision_by_thresholds(&scores, &labels);
            assert!((evaluation.average_precision - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn nothing_is_said_without_both_classes_or_with_unusable_input() {
        assert_eq!(evaluate(&[], &[], 0.5), None);
        assert_eq!(evaluate(&[0.1, 0.2], &[true, true], 0.5), None);
        assert_eq!(evaluate(&[0.1, 0.2], &[false, false], 0.5), None);
        assert_eq!(evaluate(&[0.1], &[true, false], 0.5), None);
        assert_eq!(evaluate(&[0.1, f32::NAN], &[true, false], 0.5), None);
        let mut streaming = StreamingEvaluation::new(0.5);
        streaming.push(0.1, true);
        assert_eq!(streaming.figures(), None);
    }

    #[test]
    fn no_alert_means_no_precision() {
        let evaluation = evaluate(&[0.1, 0.2], &[true, false], 0.5).unwrap();
        assert_eq!((evaluation.precision, evaluation.recall), (0.0, 0.0));
        let all = evaluate(&[-0.0, 0.0], &[true, false], 0.0).unwrap();
        assert_eq!((all.auc, all.recall), (0.5, 1.0));
    }

    /// Rows by a rule that another language can follow; figures by the Handbook's own function (pandas) over them.
    #[test]
    fn card_precision_is_the_handbooks() {
        let mut state: u64 = 7;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let rows: Vec<ScoredCard> = (0..2000)
            .map(|_| {
                let (day, card, score) = (next(7) as i64, next(120) as u32, next(1_000_003) as f32 / 1_000_003.0);
                ScoredCard { day, card, score, fraud: next(100) < 2 + (score * 10.0) as u64 }
            })
            .collect();
        for (top, expected) in
            [(1, 0.142_857_142_857_142_85), (10, 0.171_428_571_428_571_42), (100, 0.105_714_285_714_285_72)]
        {
            assert!((card_precision(&rows, top).unwrap() - expected).abs() < 1e-12, "{top}");
        }
        assert_eq!(card_precision(&[], 100), None);
    }

    #[test]
    fn calibrated_scores_have_no_error_and_others_have_theirs() {
        let labels: Vec<bool> = (0..1000).map(|row| row % 10 == 0).collect();
        assert!(calibration_error(&[0.1; 1000], &labels, 10).unwrap() < 1e-6);
        assert!((calibration_error(&[0.3; 1000], &labels, 10).unwrap() - 0.2).abs() < 1e-6);
        // Half of the rows too high, half too low: no bin makes up for another.
        let scores: Vec<f32> = (0..1000).map(|row| if row < 500 { 0.0 } else { 0.2 }).collect();
        assert!((calibration_error(&scores, &labels, 2).unwrap() - 0.1).abs() < 1e-6);
        assert_eq!(calibration_error(&[], &[], 10), None);
        assert_eq!(calibration_error(&[0.5], &[true, false], 10), None);
    }

    #[test]
    fn the_curves_hold_the_figures() {
        let (scores, labels) = sample(8, 3_000, Some(200));
        let every = operating_points(&scores, &labels, 0.0).unwrap();
        let figures = evaluate(&scores, &labels, 0.3).unwrap();
        let at = every.iter().rev().find(|point| point.threshold >= 0.3).unwrap();
        assert_eq!((at.precision, at.recall), (figures.precision, figures.recall));
        // Average precision is the area under the steps, AUC under the straight lines.
        let (mut steps, mut trapezoids, mut last) = (0.0, 0.0, (0.0, 0.0));
        for point in &every {
            steps += (point.recall - last.0) * point.precision;
            trapezoids += (point.false_positive_rate - last.1) * (point.recall + last.0) / 2.0;
            last = (point.recall, point.false_positive_rate);
        }
        assert!((steps - figures.average_precision).abs() < 1e-12 && (trapezoids - figures.auc).abs() < 1e-12);
        assert_eq!(last, (1.0, 1.0));
        let few = operating_points(&scores, &labels, 0.1).unwrap();
        assert!(few.len() <= 21 && few.len() >= 8 && few.last() == every.last(), "{few:?}");
        assert_eq!(operating_points(&[0.5], &[true], 0.1), None);
    }

    #[test]
    fn streaming_agrees_with_exact() {
        let (scores, labels) = sample(5, 100_000, None);
        let exact = evaluate(&scores, &labels, 0.3).unwrap();
        let mut streaming = StreamingEvaluation::new(0.3);
        scores.iter().zip(&labels).for_each(|(score, label)| streaming.push(*score, *label));
        let streamed = streaming.figures().unwrap();
        assert!((exact.auc - streamed.auc).abs() < 1e-4, "{exact:?} {streamed:?}");
        assert!((exact.average_precision - streamed.average_precision).abs() < 1e-3, "{exact:?} {streamed:?}");
        assert_eq!((exact.precision, exact.recall), (streamed.precision, streamed.recall));
        assert_eq!((exact.count, exact.positives), (streamed.count, streamed.positives));
    }

    #[test]
    fn streaming_is_exact_where_scores_are_apart_and_takes_any_number() {
        let (scores, labels) = sample(6, 3_000, Some(64));
        let mut streaming = StreamingEvaluation::new(0.25);
        scores.iter().zip(&labels).for_each(|(score, label)| streaming.push(*score, *label));
        assert_eq!(streaming.figures(), evaluate(&scores, &labels, 0.25));
        for odd in [-0.0, -1.0, 2.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            streaming.push(odd, false);
        }
        assert_eq!(streaming.figures().unwrap().count, 3_006);
    }
}
