//! How two models' scores of the same transactions compare.

use serde::Serialize;

use crate::{Histogram, PSI_OTHER, PSI_SHIFTED, evaluate};

/// A transaction that both models scored.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub champion: f32,
    pub challenger: f32,
    /// Whether each of them alerts.
    pub champion_alerts: bool,
    pub challenger_alerts: bool,
    /// Whether it is a fraud, where that is known.
    pub fraud: Option<bool>,
}

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Transactions that both scored.
    pub transactions: u64,
    pub decisions: Decisions,
    /// Spearman's, equal scores at their mean rank; -1 to 1. `None` where all scores of a model are equal.
    pub rank_correlation: Option<f64>,
    /// Population stability index of the challenger's scores, in ten bins of equally many of the champion's; natural logarithm.
    pub score_shift: f64,
    pub shift: Shift,
    /// On the transactions of which it is known whether they are frauds; `None` until there are some of both.
    pub labelled: Option<Labelled>,
}

/// Transactions by who alerts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Decisions {
    pub both: u64,
    pub champion_only: u64,
    pub challenger_only: u64,
    pub neither: u64,
}

/// The customary bands of a population stability index: below 0.1, below 0.25, and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    None,
    Moderate,
    Large,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Labelled {
    pub transactions: u64,
    pub frauds: u64,
    pub champion: Quality,
    pub challenger: Quality,
}

/// Precision and recall are of the alerts that were, or would have been, raised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quality {
    pub average_precision: f64,
    pub auc: f64,
    pub precision: f64,
    pub recall: f64,
}

impl Decisions {
    /// Share of the transactions on which both decide alike, 0 to 1.
    pub fn agreement(&self) -> f64 {
        let all = self.both + self.champion_only + self.challenger_only + self.neither;
        (self.both + self.neither) as f64 / all.max(1) as f64
    }
}

/// Compares what two models said; `None` if they said nothing of the same transactions.
pub fn compare(pairs: &[Pair]) -> Option<Comparison> {
    if pairs.is_empty() {
        return None;
    }
    let mut decisions = Decisions::default();
    for pair in pairs {
        *match (pair.champion_alerts, pair.challenger_alerts) {
            (true, true) => &mut decisions.both,
            (true, false) => &mut decisions.champion_only,
            (false, true) => &mut decisions.challenger_only,
            (false, false) => &mut decisions.neither,
        } += 1;
    }
    let champion: Vec<f32> = pairs.iter().map(|pair| pair.champion).collect();
    let challenger: Vec<f32> = pairs.iter().map(|pair| pair.challenger).collect();
    let score_shift = score_shift(&champion, &challenger);
    let shift = match score_shift {
        ..PSI_SHIFTED => Shift::None,
        ..PSI_OTHER => Shift::Moderate,
        _ => Shift::Large,
    };
    Some(Comparison {
        transactions: pairs.len() as u64,
        decisions,
        rank_correlation: rank_correlation(&champion, &challenger),
        score_shift,
        shift,
        labelled: labelled(pairs),
    })
}

/// The population stability index of the challenger's scores, in bins of the champion's. 0 is the same.
fn score_shift(champion: &[f32], challenger: &[f32]) -> f64 {
    let champion = Histogram::of(champion.iter().copied());
    champion.psi(&champion.counting(challenger.iter().copied())).unwrap_or(0.0)
}

fn labelled(pairs: &[Pair]) -> Option<Labelled> {
    let known: Vec<(&Pair, bool)> = pairs.iter().filter_map(|pair| Some((pair, pair.fraud?))).collect();
    let labels: Vec<bool> = known.iter().map(|(_, fraud)| *fraud).collect();
    let frauds = labels.iter().filter(|&&fraud| fraud).count();
    let quality = |score: fn(&Pair) -> f32, alerts: fn(&Pair) -> bool| {
        let scores: Vec<f32> = known.iter().map(|(pair, _)| score(pair)).collect();
        // The threshold is of no use here: models may have changed theirs, the alerts tell.
        let ranked = evaluate(&scores, &labels, 0.5)?;
        let alerted = known.iter().filter(|(pair, _)| alerts(pair)).count();
        let hits = known.iter().filter(|(pair, fraud)| *fraud && alerts(pair)).count();
        Some(Quality {
            average_precision: ranked.average_precision,
            auc: ranked.auc,
            precision: hits as f64 / alerted.max(1) as f64,
            recall: hits as f64 / frauds.max(1) as f64,
        })
    };
    Some(Labelled {
        transactions: known.len() as u64,
        frauds: frauds as u64,
        champion: quality(|pair| pair.champion, |pair| pair.champion_alerts)?,
        challenger: quality(|pair| pair.challenger, |pair| pair.challenger_alerts)?,
    })
}

/// Spearman's rank correlation: Pearson's of the ranks. `None` where a side has but one value.
fn rank_correlation(a: &[f32], b: &[f32]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    // The mean of ranks is the same with and without ties.
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let (mut product, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a - mean, b - mean);
        product += a * b;
        square_a += a * a;
        square_b += b * b;
    }
    let scale = square_a.sqrt() * square_b.sqrt();
    (scale > 0.0).then(|| product / scale)
}

/// Ranks from 0, equal values at their mean rank.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    for tie in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = begin as f64 + (tie.len() as f64 - 1.0) / 2.0;
        tie.iter().for_each(|&at| ranks[at] = rank);
        begin += tie.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::SHARE_MIN;

    fn pair(champion: f32, challenger: f32, fraud: Option<bool>) -> Pair {
        Pair { champion, challenger, champion_alerts: champion >= 0.5, challenger_alerts: challenger >= 0.7, fraud }
    }

    #[test]
    fn decisions_ranks_and_labels_are_compared() {
        let pairs = [
            pair(0.9, 0.8, Some(true)),
            pair(0.6, 0.1, Some(false)),
            pair(0.2, 0.75, Some(true)),
            pair(0.1, 0.2, Some(false)),
            pair(0.3, 0.3, None),
        ];
        let compared = compare(&pairs).unwrap();
        let decisions = Decisions { both: 1, champion_only: 1, challenger_only: 1, neither: 2 };
        assert_eq!((compared.transactions, compared.decisions), (5, decisions));
        assert!((decisions.agreement() - 0.6).abs() < 1e-12);
        // scipy.stats.spearmanr([.9, .6, .2, .1, .3], [.8, .1, .75, .2, .3])
        assert!((compared.rank_correlation.unwrap() - 0.3).abs() < 1e-12, "{compared:?}");
        let labelled = compared.labelled.unwrap();
        assert_eq!((labelled.transactions, labelled.frauds), (4, 2));
        // sklearn.metrics.average_precision_score([1, 0, 1, 0], [.9, .6, .2, .1])
        assert!((labelled.champion.average_precision - 5.0 / 6.0).abs() < 1e-9, "{labelled:?}");
        assert_eq!((labelled.champion.precision, labelled.champion.recall), (0.5, 0.5));
        assert_eq!(
            (labelled.challenger.auc, labelled.challenger.precision, labelled.challenger.recall),
            (1.0, 1.0, 1.0)
        );
        assert_eq!(compare(&[]), None);
    }

    #[test]
    fn the_shift_is_none_for_the_same_scores_and_grows_with_the_distance() {
        let at = |scale: f32| -> Vec<Pair> {
            (0..1000).map(|row| row as f32 / 1000.0).map(|score| pair(score, (score * scale).min(1.0), None)).collect()
        };
        let same = compare(&at(1.0)).unwrap();
        assert_eq!((same.score_shift, same.shift, same.labelled), (0.0, Shift::None, None));
        assert_eq!(same.rank_correlation, Some(1.0));
        let (moderate, large) = (compare(&at(1.2)).unwrap(), compare(&at(3.0)).unwrap());
        assert_eq!((moderate.shift, large.shift), (Shift::Moderate, Shift::Large), "{moderate:?} {large:?}");
        // A tenth in each of two bins that moved wholly into the other: 2 × 0.1 ln 2 from one, and an empty one.
        let (reference, found): (Vec<f32>, Vec<f32>) =
            (0..10).map(|bin| (bin as f32, if bin == 9 { 8.0 } else { bin as f32 })).unzip();
        let expected = (0.2 - 0.1) * 2f64.ln() + (SHARE_MIN - 0.1) * (SHARE_MIN / 0.1).ln();
        assert!((score_shift(&reference, &found) - expected).abs() < 1e-9);
    }

    #[test]
    fn equal_scores_share_their_rank() {
        assert_eq!(ranks(&[0.5, 0.1, 0.5, 0.5, 0.9]), [2.0, 0.0, 2.0, 2.0, 4.0]);
        // scipy.stats.spearmanr([1, 2, 2, 3], [1, 3, 2, 4])
        let found = rank_correlation(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0]).unwrap();
        assert!((found - 0.948_683_298_050_513_8).abs() < 1e-12, "{found}");
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
    }
}
