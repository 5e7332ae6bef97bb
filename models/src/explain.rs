//! Why a row has its score: what each group of its columns adds to the network's log-odds, beside a row of usual values.
//!
//! Shapley values (L. S. Shapley, "A value for n-person games", 1953) over groups of columns: for each coalition of groups a row is
//! scored that has its own values in those and the reference's elsewhere, and a group's contribution is what it adds on average over all
//! orders in which the groups can be added. Contributions add up to the row's log-odds less the reference's. Columns that say the
//! same thing in different ways belong in one group: apart from each other they would share, or contradict each other.

use std::collections::HashMap;

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::ModelError;

/// With so many groups at most, all coalitions are scored; with more of them, those along some orders.
const EXACT_GROUPS_MAX: usize = 7;
/// Orders where there are more groups, each followed by its reverse, which takes out most of the variance that drawn orders have.
const ORDER_PAIRS: usize = 4;
/// Orders are the same at every start, so that the same row gives the same bits.
const ORDER_SEED: u64 = 0xa1e27;
/// Rows that are scored at a time, if one row doesn't take more: bounds memory, however many alerts a batch has.
const ROWS_MAX: usize = 4096;

/// Which reasons a submission asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    /// Columns of the layout that say the same thing in different ways; each column is in one group.
    pub groups: Vec<Vec<usize>>,
    /// Reasons of an alert at most.
    pub most: usize,
}

/// What a group of columns adds to a row's log-odds, before calibration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contribution {
    /// By its place among the groups.
    pub group: usize,
    /// The column that tells most of it: without it alone the log-odds fall furthest.
    pub column: usize,
    /// What the column usually is; `NaN` if it is usually missing.
    pub reference: f32,
    /// In log-odds.
    pub contribution: f32,
}

/// Rows for the coalitions of a row, and what their log-odds come to.
pub(crate) struct Explainer {
    /// Of each column, its group.
    group_of: Vec<usize>,
    /// Columns of each group.
    groups: Vec<Vec<usize>>,
    reference: Vec<f32>,
    coalitions: Coalitions,
    /// Columns whose absence is tried alone: those with others in their group.
    alone: Vec<usize>,
    rows: Vec<f32>,
    log_odds: Vec<f32>,
}

/// Which coalitions are scored, and how much a group adds between two of them.
struct Coalitions {
    /// Of each, which groups are in. The first has none of them, the second all.
    members: Vec<Vec<bool>>,
    steps: Vec<Step>,
}

/// The log-odds of one coalition less those of another, which lacks one group: a part of the group's contribution.
struct Step {
    group: usize,
    with: usize,
    without: usize,
    weight: f64,
}

impl Coalitions {
    fn over(groups: usize) -> Coalitions {
        let mut coalitions = Coalitions { members: Vec::new(), steps: Vec::new() };
        let mut known = HashMap::new();
        coalitions.index(&mut known, &vec![false; groups]);
        coalitions.index(&mut known, &vec![true; groups]);
        if groups <= EXACT_GROUPS_MAX {
            coalitions.all(&mut known, groups)
        } else {
            coalitions.drawn(&mut known, groups)
        }
        coalitions
    }

    fn index(&mut self, known: &mut HashMap<Vec<bool>, usize>, members: &[bool]) -> usize {
        *known.entry(members.to_vec()).or_insert_with(|| {
            self.members.push(members.to_vec());
            self.members.len() - 1
        })
    }

    /// Every group, added to every coalition of the others.
    fn all(&mut self, known: &mut HashMap<Vec<bool>, usize>, groups: usize) {
        for set in 0..1u32 << groups {
            let members: Vec<bool> = (0..groups).map(|group| set >> group & 1 == 1).collect();
            let size = set.count_ones() as usize;
            // One over the number of coalitions of this size without the group, and of sizes.
            let weight = 1.0 / (binomial(groups.saturating_sub(1), size) * groups as f64);
            for group in (0..groups).filter(|&group| !members[group]) {
                let mut joined = members.clone();
                joined[group] = true;
                let (without, with) = (self.index(known, &members), self.index(known, &joined));
                self.steps.push(Step { group, with, without, weight });
            }
        }
    }

    /// One group after another, in some orders.
    fn drawn(&mut self, known: &mut HashMap<Vec<bool>, usize>, groups: usize) {
        let mut random = StdRng::seed_from_u64(ORDER_SEED);
        let mut order: Vec<usize> = (0..groups).collect();
        for _ in 0..ORDER_PAIRS {
            order.shuffle(&mut random);
            for order in [order.clone(), order.iter().rev().copied().collect()] {
                let mut members = vec![false; groups];
                let mut without = 0;
                for group in order {
                    members[group] = true;
                    let with = self.index(known, &members);
                    self.steps.push(Step { group, with, without, weight: 1.0 / (2 * ORDER_PAIRS) as f64 });
                    without = with;
                }
            }
        }
    }
}

fn binomial(n: usize, k: usize) -> f64 {
    (0..k).map(|at| (n - at) as f64 / (at + 1) as f64).product::<f64>().round()
}

impl Explainer {
    /// Contributions of `groups` of columns, each column in one, beside the row `reference`.
    pub(crate) fn new(groups: &[Vec<usize>], reference: Vec<f32>) -> Explainer {
        let mut group_of = vec![0; reference.len()];
        for (group, columns) in groups.iter().enumerate() {
            columns.iter().for_each(|&column| group_of[column] = group);
        }
        let alone = groups.iter().filter(|columns| columns.len() > 1).flatten().copied().collect();
        Explainer {
            group_of,
            groups: groups.to_vec(),
            coalitions: Coalitions::over(groups.len()),
            reference,
            alone,
            rows: Vec::new(),
            log_odds: Vec::new(),
        }
    }

    /// How many rows are scored for one.
    pub(crate) fn rows_of_each(&self) -> usize {
        self.coalitions.members.len() + self.alone.len()
    }

    /// The `most` groups that raise the score of each of `rows` most, the largest contribution first, without those that lower it.
    /// `score` appends the log-odds of rows.
    pub(crate) fn explain(
        &mut self,
        rows: &[&[f32]],
        most: usize,
        mut score: impl FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError>,
    ) -> Result<Vec<Vec<Contribution>>, ModelError> {
        let mut explained = Vec::with_capacity(rows.len());
        let each = self.rows_of_each();
        for chunk in rows.chunks((ROWS_MAX / each).max(1)) {
            self.rows.clear();
            chunk.iter().for_each(|row| self.lay_out(row));
            self.log_odds.clear();
            score(&self.rows, &mut self.log_odds)?;
            let answers = chunk.iter().zip(self.log_odds.chunks_exact(each));
            explained.extend(answers.map(|(row, log_odds)| self.raising(row, log_odds, most)));
        }
        Ok(explained)
    }

    /// Appends the rows that one is explained by.
    fn lay_out(&mut self, row: &[f32]) {
        for members in &self.coalitions.members {
            let own = self.group_of.iter().map(|&group| members[group]);
            let values = own.zip(row.iter().zip(&self.reference));
            self.rows.extend(values.map(|(own, (&value, &usual))| if own { value } else { usual }));
        }
        for &column in &self.alone {
            let start = self.rows.len();
            self.rows.extend_from_slice(row);
            self.rows[start + column] = self.reference[column];
        }
    }

    /// What each group adds, by the log-odds of the coalitions.
    fn contributions(&self, log_odds: &[f32]) -> Vec<f64> {
        let mut contributions = vec![0.0; self.groups.len()];
        for &Step { group, with, without, weight } in &self.coalitions.steps {
            contributions[group] += weight * (f64::from(log_odds[with]) - f64::from(log_odds[without]));
        }
        contributions
    }

    fn raising(&self, row: &[f32], log_odds: &[f32], most: usize) -> Vec<Contribution> {
        let contributions = self.contributions(log_odds);
        let (coalitions, alone) = log_odds.split_at(self.coalitions.members.len());
        let own = coalitions[1];
        let mut raising: Vec<Contribution> = contributions
            .into_iter()
            .enumerate()
            .filter(|(_, contribution)| *contribution > 0.0)
            .map(|(group, contribution)| {
                let fall = |column: usize| {
                    let place = self.alone.iter().position(|&known| known == column);
                    place.map_or(0.0, |place| own - alone[place])
                };
                // A value that is the usual one tells nothing.
                let differs = |column: &usize| row[*column].to_bits() != self.reference[*column].to_bits();
                let columns = &self.groups[group];
                let telling = columns.iter().copied().filter(differs).max_by(|&a, &b| {
                    // The first of equals.
                    fall(a).total_cmp(&fall(b)).then(b.cmp(&a))
                });
                let column = telling.unwrap_or(columns[0]);
                let reference = self.reference[column];
                Contribution { group, column, reference, contribution: contribution as f32 }
            })
            .collect();
        raising.sort_by(|a, b| b.contribution.total_cmp(&a.contribution).then(a.group.cmp(&b.group)));
        raising.truncate(most);
        raising
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log-odds of rows of `width` columns by a formula.
    fn scored(
        width: usize,
        formula: impl Fn(&[f32]) -> f32,
    ) -> impl FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> {
        move |rows: &[f32], log_odds: &mut Vec<f32>| {
            log_odds.extend(rows.chunks_exact(width).map(&formula));
            Ok(())
        }
    }

    fn singles(width: usize) -> Vec<Vec<usize>> {
        (0..width).map(|column| vec![column]).collect()
    }

    /// All contributions of a row, by group.
    fn contributions(explainer: &mut Explainer, row: &[f32], formula: impl Fn(&[f32]) -> f32) -> Vec<f64> {
        explainer.rows.clear();
        explainer.lay_out(row);
        let mut log_odds = Vec::new();
        scored(row.len(), formula)(&explainer.rows, &mut log_odds).unwrap();
        explainer.contributions(&log_odds)
    }

    #[test]
    fn what_adds_up_is_told_apart_exactly() {
        for width in [1, 2, 5, EXACT_GROUPS_MAX, EXACT_GROUPS_MAX + 1, 30] {
            let reference: Vec<f32> = (0..width).map(|column| column as f32 / 8.0).collect();
            let row: Vec<f32> = (0..width).map(|column| (column * column) as f32 / 4.0 - 3.0).collect();
            let formula = |row: &[f32]| row.iter().zip(1..).map(|(value, weight)| value * weight as f32).sum::<f32>();
            let mut explainer = Explainer::new(&singles(width), reference.clone());
            let found = contributions(&mut explainer, &row, formula);
            for (column, found) in found.into_iter().enumerate() {
                let expected = f64::from((row[column] - reference[column]) * (column + 1) as f32);
                assert!((found - expected).abs() < 1e-3, "{width} groups, {column}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn contributions_add_up_and_what_belongs_together_is_shared_evenly() {
        // Two columns that work only together, one that works against them, and one without effect.
        let formula = |row: &[f32]| 6.0 * row[0] * row[1] - row[2] * row[0].max(row[3]) + 0.0 * row[4];
        let mut explainer = Explainer::new(&singles(5), vec![0.0; 5]);
        let row = [1.0, 1.0, 2.0, 0.5, 9.0];
        let found = contributions(&mut explainer, &row, formula);
        assert!((found.iter().sum::<f64>() - 4.0).abs() < 1e-6, "{found:?}");
        assert_eq!(found[4], 0.0);
        // By hand, over the six orders of columns 0, 2 and 3.
        for (column, expected) in [3.0 - 4.0 / 6.0, 3.0, -7.0 / 6.0, -1.0 / 6.0].into_iter().enumerate() {
            assert!((found[column] - expected).abs() < 1e-6, "{column}: {found:?}");
        }

        // With more groups than all coalitions are scored of, no less exactly.
        let many = 20;
        let formula = |row: &[f32]| row.windows(2).map(|pair| (pair[0] * pair[1]).sin()).sum::<f32>() * 3.0;
        let row: Vec<f32> = (0..many).map(|column| (column as f32 * 0.7).cos() * 2.0).collect();
        let reference = vec![0.25; many];
        let mut explainer = Explainer::new(&singles(many), reference.clone());
        let found: f64 = contributions(&mut explainer, &row, formula).iter().sum();
        let expected = f64::from(formula(&row)) - f64::from(formula(&reference));
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
        assert!(explainer.rows_of_each() <= 2 * ORDER_PAIRS * (many - 1) + 2);
    }

    #[test]
    fn reasons_are_the_groups_that_raise_the_score_by_their_most_telling_column() {
        // Group 0: columns 0 and 1 say the same, 1 more so; group 1 lowers; group 2 raises most; group 3 is as usual.
        let groups = [vec![0, 1], vec![2], vec![3], vec![4, 5]];
        let formula = |row: &[f32]| row[0] + 2.0 * row[1] - row[2] + 9.0 * row[3] + row[4] + row[5];
        let row = [1.0, 1.0, 1.0, 1.0, 0.0, f32::NAN];
        let reference = vec![0.0, 0.0, 0.0, 0.0, 0.0, f32::NAN];
        let nan_is_0 = |row: &[f32]| {
            let row: Vec<f32> = row.iter().map(|value| if value.is_nan() { 0.0 } else { *value }).collect();
            formula(&row)
        };
        let mut explainer = Explainer::new(&groups, reference.clone());
        let explained = explainer.explain(&[&row, &reference], 9, scored(6, nan_is_0)).unwrap();
        let reason = |group, column, contribution| Contribution { group, column, reference: 0.0, contribution };
        assert_eq!(explained, [vec![reason(2, 3, 9.0), reason(0, 1, 3.0)], vec![]]);
        let explained = explainer.explain(&[&row], 1, scored(6, nan_is_0)).unwrap();
        assert_eq!(explained, [vec![reason(2, 3, 9.0)]]);
    }

    #[test]
    fn however_many_rows_are_explained_they_are_scored_some_at_a_time() {
        let formula = |row: &[f32]| row[0] * row[1] + row[2];
        let rows: Vec<[f32; 3]> = (0..3000).map(|at| [at as f32, 0.5, 1.0 / (at + 1) as f32]).collect();
        let rows: Vec<&[f32]> = rows.iter().map(|row| row.as_slice()).collect();
        let mut explainer = Explainer::new(&[vec![0, 1], vec![2]], vec![0.0; 3]);
        let mut largest = 0;
        let mut score = scored(3, formula);
        let together = explainer.explain(&rows, 3, |rows, log_odds| {
            largest = largest.max(rows.len() / 3);
            score(rows, log_odds)
        });
        let alone = rows.iter().map(|row| explainer.explain(&[row], 3, scored(3, formula)).unwrap().remove(0));
        assert_eq!(together.unwrap(), alone.collect::<Vec<_>>());
        assert!(largest > ROWS_MAX / 2 && largest <= ROWS_MAX, "{largest}");
    }
}
