//! From how many transactions a day can be looked into to the score that an alert takes.

use serde::{Deserialize, Serialize};

/// Budgets that every artifact has a threshold for, as shares of the transactions.
pub const ALERT_BUDGETS: [f64; 5] = [0.001, 0.002, 0.005, 0.01, 0.02];

/// The threshold that keeps one alert budget, and what it gave on the validation rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertThreshold {
    /// Share of the transactions that may be alerted.
    pub alert_budget: f64,
    /// An alert is a score of this or more.
    pub threshold: f32,
    /// Share of the validation rows at or above the threshold; below the budget where many rows tie.
    pub alert_share: f64,
    /// Share of frauds among those; 0 where there are none.
    pub precision: f64,
    /// Share of the frauds that are among those.
    pub recall: f64,
}

/// One threshold for each of [`ALERT_BUDGETS`] and for `chosen`, by rising budget.
pub(crate) fn thresholds(scores: &[f32], labels: &[bool], chosen: f64) -> Vec<AlertThreshold> {
    let mut budgets = ALERT_BUDGETS.to_vec();
    budgets.push(chosen);
    budgets.sort_by(f64::total_cmp);
    budgets.dedup();
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let frauds = labels.iter().filter(|label| **label).count();
    let of_budget = |alert_budget: f64| {
        let threshold = threshold(&sorted, alert_budget);
        let alerts = sorted.partition_point(|score| *score >= threshold);
        let hits = scores.iter().zip(labels).filter(|(score, fraud)| **fraud && **score >= threshold).count();
        let share = |of: usize| if of == 0 { 0.0 } else { hits as f64 / of as f64 };
        let alert_share = alerts as f64 / scores.len() as f64;
        AlertThreshold { alert_budget, threshold, alert_share, precision: share(alerts), recall: share(frauds) }
    };
    budgets.into_iter().map(of_budget).collect()
}

/// What is wrong with thresholds that were read, if anything is.
pub(crate) fn check(thresholds: &[AlertThreshold], chosen: f64) -> Result<(), String> {
    for AlertThreshold { alert_budget, threshold, .. } in thresholds {
        if !(0.0..=1.0).contains(threshold) {
            return Err(format!("has threshold {threshold}, which is not between 0 and 1"));
        }
        if !(*alert_budget > 0.0 && *alert_budget < 1.0) {
            return Err(format!("has an alert budget of {alert_budget}, which is no share between 0 and 1"));
        }
    }
    if !thresholds
        .windows(2)
        .all(|pair| pair[0].alert_budget < pair[1].alert_budget && pair[0].threshold >= pair[1].threshold)
    {
        return Err("has thresholds that don't fall while their alert budgets rise".into());
    }
    match thresholds.iter().any(|threshold| threshold.alert_budget == chosen) {
        true => Ok(()),
        false => Err(format!("has no threshold for its own alert budget of {chosen}")),
    }
}

/// The lowest threshold that at most `budget` of these scores, sorted from the highest on, reach (at least one of them may, unless
/// more than that tie at the top).
fn threshold(sorted: &[f32], budget: f64) -> f32 {
    let allowed = ((budget * sorted.len() as f64) as usize).max(1);
    match (sorted.get(allowed - 1), sorted.get(allowed)) {
        (Some(last), Some(next)) if last > next => *last,
        // A tie across the border: none of it is alerted.
        (Some(_), Some(next)) => {
            sorted[..allowed].iter().rev().copied().find(|score| score > next).unwrap_or(next.next_up().min(1.0))
        }
        _ => sorted.last().copied().unwrap_or(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_keeps_the_budget() {
        let scores: Vec<f32> = (0..1000).rev().map(|x| x as f32 / 1000.0).collect();
        assert_eq!(threshold(&scores, 0.005), 0.995);
        assert_eq!(threshold(&scores, 0.0001), 0.999);
        // Ties across the border are left out, up to the next score above them.
        assert_eq!(threshold(&[0.9, 0.5, 0.5, 0.5, 0.1], 0.4), 0.9);
        assert_eq!(threshold(&[0.5; 10], 0.3), 0.5f32.next_up());
        assert_eq!(threshold(&[0.2, 0.1], 0.999), 0.2);
    }

    #[test]
    fn each_budget_has_its_threshold_and_figures() {
        // 10,000 rows; of the 100 highest scores, every second is a fraud, and no other is.
        let scores: Vec<f32> = (0..10_000).map(|row| row as f32 / 10_000.0).collect();
        let labels: Vec<bool> = (0..10_000).map(|row| row >= 9_900 && row % 2 == 1).collect();
        let found = thresholds(&scores, &labels, 0.003);
        let budgets: Vec<f64> = found.iter().map(|threshold| threshold.alert_budget).collect();
        assert_eq!(budgets, [0.001, 0.002, 0.003, 0.005, 0.01, 0.02]);
        assert_eq!(
            found[2],
            AlertThreshold { alert_budget: 0.003, threshold: 0.997, alert_share: 0.003, precision: 0.5, recall: 0.3 }
        );
        assert_eq!((found[5].precision, found[5].recall), (0.25, 1.0));
        assert_eq!(check(&found, 0.003), Ok(()));
        assert_eq!(thresholds(&scores, &labels, 0.01).len(), 5);

        for (edit, says) in [
            ((|found| found[0].threshold = f32::NAN) as fn(&mut Vec<AlertThreshold>), "NaN, which is not between"),
            (|found| found[1].threshold = 1.0, "don't fall"),
            (|found| found[1].alert_budget = 0.5, "don't fall"),
            (|found| found[5].alert_budget = 1.5, "1.5, which is no share"),
            (|found| found.retain(|at| at.alert_budget != 0.003), "no threshold for its own alert budget of 0.003"),
        ] {
            let mut broken = found.clone();
            edit(&mut broken);
            let problem = check(&broken, 0.003).unwrap_err();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
