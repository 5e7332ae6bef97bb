//! The evaluation protocol of the Fraud Detection Handbook: a week of training, a week of delay, a week of test, on four test folds, with
//! what is to be chosen chosen on four folds before them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, ensure};
use models::{Dataset, Device, KeptEpoch, NetworkConfig, ScoredCard, Scorer, TrainOptions, card_precision};
use parking_lot::Mutex;
use schemas::{EventTime, FeatureLayout};
use serde::Serialize;

use super::DAY_MS;
use crate::dataset::Vectors;
use crate::features::threads;
use crate::progress::Progress;

/// First day of training of each fold, as the Handbook has them.
const TEST_FOLDS: [&str; 4] = ["2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"];
const VALIDATION_FOLDS: [&str; 4] = ["2018-07-11", "2018-07-04", "2018-06-27", "2018-06-20"];
/// Days of training, of delay, and of test.
const WEEK: i64 = 7;
/// Of the legitimate training rows, how many are for calibration, too.
const CALIBRATED_ONE_IN: usize = 20;
/// Legitimate transactions for each fraud in an epoch of training: so many, unless all together are more than that.
const LEGITIMATE_PER_FRAUD: usize = 60;
const LEGITIMATE_AN_EPOCH_MAX: usize = 200_000;
/// Cards looked into each day.
const CARDS: usize = 100;

/// What a fold trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrainDays {
    /// The days before the delay, this many.
    Last(i64),
    /// All days before the delay.
    All,
}

impl std::str::FromStr for TrainDays {
    type Err = String;

    fn from_str(text: &str) -> Result<TrainDays, String> {
        match (text, text.parse()) {
            ("all", _) => Ok(TrainDays::All),
            (_, Ok(days)) if days > 0 => Ok(TrainDays::Last(days)),
            _ => Err("write a number of days, or `all`".to_owned()),
        }
    }
}

/// How the protocol is run.
#[derive(Debug)]
pub(super) struct Protocol {
    pub(super) train_days: TrainDays,
    pub(super) seeds: u64,
    pub(super) epochs: usize,
    pub(super) device: Device,
}

/// What is chosen on the validation folds.
#[derive(Clone, Debug, Serialize)]
struct Candidate {
    network: NetworkConfig,
    dropout: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Over the test folds.
    mean: Figures,
    /// The test folds.
    folds: Vec<FoldFigures>,
    /// The candidate with the best mean average precision on the validation folds.
    chosen: Candidate,
    candidates: Vec<Validated>,
    epochs: usize,
    seeds: u64,
}

/// A candidate's figures on the validation folds.
#[derive(Debug, Serialize)]
struct Validated {
    #[serde(flatten)]
    candidate: Candidate,
    mean: Figures,
    folds: Vec<FoldFigures>,
}

/// Means over the seeds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Figures {
    auc: f64,
    average_precision: f64,
    card_precision_100: f64,
}

#[derive(Debug, Serialize)]
struct FoldFigures {
    /// The first day of the week before the delay.
    training: &'static str,
    training_transactions: usize,
    test_transactions: usize,
    test_frauds: usize,
    #[serde(flatten)]
    figures: Figures,
}

impl Report {
    pub(super) fn print(&self) {
        println!("chosen on the validation folds, means over {} seeds:", self.seeds);
        for Validated { candidate: Candidate { network, dropout }, mean, .. } in &self.candidates {
            println!("  {network}, dropout {dropout}: average precision {:.4}", mean.average_precision);
        }
        println!("{}, dropout {}, {} epochs", self.chosen.network, self.chosen.dropout, self.epochs);
        println!("test fold    AUC     average precision   card precision@{CARDS}");
        let line = |name: &str, figures: &Figures| {
            let Figures { auc, average_precision, card_precision_100 } = figures;
            println!("{name:<12} {auc:.4}  {average_precision:<18.4}  {card_precision_100:.4}");
        };
        self.folds.iter().for_each(|fold| line(fold.training, &fold.figures));
        line("mean", &self.mean);
    }
}

/// A fold's rows.
struct Fold {
    training_from: &'static str,
    training: Dataset,
    /// Of these, what scores are calibrated on.
    calibrating: Dataset,
    test: Dataset,
    /// Of each row of the test.
    cards: Vec<(i64, u32)>,
}

/// Trains on every fold, with every seed, and evaluates on the test week.
pub(super) fn run(protocol: &Protocol, layout: &FeatureLayout, vectors: &Vectors) -> anyhow::Result<Report> {
    let folds = |starts: [&'static str; 4]| {
        starts
            .into_iter()
            .map(|start| Fold::new(start, protocol.train_days, vectors))
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let (validation, test) = (folds(VALIDATION_FOLDS)?, folds(TEST_FOLDS)?);
    let candidates = candidates();
    let runs = (candidates.len() * validation.len() + test.len()) as u64 * protocol.seeds;
    let progress = Progress::new(runs, "trainings");
    let evaluated = |folds: &[Fold], candidate: &Candidate| protocol.evaluate_all(folds, candidate, layout, &progress);

    let mut validated = Vec::new();
    for candidate in candidates {
        let folds = evaluated(&validation, &candidate)?;
        validated.push(Validated { candidate, mean: mean(&folds), folds });
    }
    let best = validated
        .iter()
        .reduce(|best, next| if next.mean.average_precision > best.mean.average_precision { next } else { best });
    let chosen = best.context("there is no candidate")?.candidate.clone();
    let folds = evaluated(&test, &chosen)?;
    progress.finish();
    Ok(Report {
        mean: mean(&folds),
        folds,
        chosen,
        candidates: validated,
        epochs: protocol.epochs,
        seeds: protocol.seeds,
    })
}

/// What the validation folds choose among.
fn candidates() -> Vec<Candidate> {
    let network = |pieces| NetworkConfig::Tabular { pieces, members: 4, hidden: vec![64, 32] };
    [8, 16].map(|pieces| Candidate { network: network(pieces), dropout: 0.2 }).into()
}

fn mean(folds: &[FoldFigures]) -> Figures {
    folds.iter().fold(Figures::default(), |sum, fold| sum.plus(fold.figures)).over(folds.len() as f64)
}

impl Protocol {
    /// Trains on every fold with every seed, as many at a time as there are cores.
    fn evaluate_all(
        &self,
        folds: &[Fold],
        candidate: &Candidate,
        layout: &FeatureLayout,
        progress: &Progress,
    ) -> anyhow::Result<Vec<FoldFigures>> {
        let runs: Vec<(usize, u64)> =
            (0..folds.len()).flat_map(|fold| (0..self.seeds).map(move |seed| (fold, seed))).collect();
        let (next, results) = (AtomicUsize::new(0), Mutex::new(vec![None; runs.len()]));
        let run = || -> anyhow::Result<()> {
            while let Some(&(fold, seed)) = runs.get(next.fetch_add(1, Relaxed)) {
                let figures = self.evaluate(&folds[fold], candidate, layout, seed)?;
                progress.advance();
                progress.line(&format!(
                    "fold {}, {}, dropout {}, seed {seed}: average precision {:.4}",
                    folds[fold].training_from, candidate.network, candidate.dropout, figures.average_precision
                ));
                results.lock()[fold * self.seeds as usize + seed as usize] = Some(figures);
            }
            Ok(())
        };
        let threads = threads(None).get().min(runs.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        let figures = results.into_inner();
        let of_fold = |(fold, figures): (&Fold, &[Option<Figures>])| {
            let sum = figures.iter().flatten().fold(Figures::default(), |sum, figures| sum.plus(*figures));
            FoldFigures {
                training: fold.training_from,
                training_transactions: fold.training.labels.len(),
                test_transactions: fold.test.labels.len(),
                test_frauds: fold.test.labels.iter().filter(|&&fraud| fraud).count(),
                figures: sum.over(self.seeds as f64),
            }
        };
        Ok(folds.iter().zip(figures.chunks(self.seeds as usize)).map(of_fold).collect())
    }

    /// Trains without a look at the test week, and scores it.
    fn evaluate(
        &self,
        fold: &Fold,
        candidate: &Candidate,
        layout: &FeatureLayout,
        seed: u64,
    ) -> anyhow::Result<Figures> {
        let frauds = fold.training.labels.iter().filter(|&&fraud| fraud).count();
        let options = TrainOptions {
            seed,
            epochs: self.epochs,
            kept: KeptEpoch::Last,
            network: candidate.network.clone(),
            dropout: candidate.dropout,
            legitimate_per_fraud: LEGITIMATE_PER_FRAUD.min(LEGITIMATE_AN_EPOCH_MAX / frauds.max(1)).max(1),
            ..TrainOptions::default()
        };
        // The ranks of scores, which are all that counts, don't depend on the calibration: any rows will do, and few of them.
        let artifact = models::train(layout, &fold.training, &fold.calibrating, &options, &mut |_| ())?;
        let mut scores = Vec::with_capacity(fold.test.labels.len());
        Scorer::open(&artifact, self.device)?.score(&fold.test.rows, &mut scores)?;
        let labels = &fold.test.labels;
        let evaluation = models::evaluate(&scores, labels, artifact.threshold());
        let rows = fold.cards.iter().zip(&scores).zip(labels);
        let rows: Vec<ScoredCard> =
            rows.map(|((&(day, card), &score), &fraud)| ScoredCard { day, card, score, fraud }).collect();
        let (evaluation, card_precision) =
            evaluation.zip(card_precision(&rows, CARDS)).context("a test week without frauds")?;
        Ok(Figures {
            auc: evaluation.auc,
            average_precision: evaluation.average_precision,
            card_precision_100: card_precision,
        })
    }
}

impl Figures {
    fn plus(self, other: Figures) -> Figures {
        Figures {
            auc: self.auc + other.auc,
            average_precision: self.average_precision + other.average_precision,
            card_precision_100: self.card_precision_100 + other.card_precision_100,
        }
    }

    fn over(self, count: f64) -> Figures {
        Figures {
            auc: self.auc / count,
            average_precision: self.average_precision / count,
            card_precision_100: self.card_precision_100 / count,
        }
    }
}

impl Fold {
    fn new(training_from: &'static str, train_days: TrainDays, vectors: &Vectors) -> anyhow::Result<Fold> {
        let start: EventTime = format!("{training_from}T00:00:00Z").parse().map_err(anyhow::Error::msg)?;
        let start = start.as_millis() / DAY_MS;
        let day_of = |row: usize| vectors.times[row].as_millis().div_euclid(DAY_MS);
        let rows_of = |days: Range<i64>| {
            let row = |day: i64| vectors.times.partition_point(|time| time.as_millis() < day * DAY_MS);
            row(days.start)..row(days.end)
        };
        let defrauded = |days: Range<i64>| {
            let frauds = rows_of(days).filter(|&row| vectors.dataset.labels[row]);
            frauds.map(|row| vectors.cards[row]).collect::<HashSet<u32>>()
        };
        let training = match train_days {
            TrainDays::Last(days) => rows_of(start + WEEK - days..start + WEEK),
            TrainDays::All => 0..rows_of(start..start + WEEK).end,
        };
        // Cards known to be defrauded are blocked: by the week before the delay, and by the day eight days before each day of the test.
        let mut known = defrauded(start..start + WEEK);
        let mut test = Vec::new();
        for day in start + 2 * WEEK..start + 3 * WEEK {
            known.extend(defrauded(day - WEEK - 1..day - WEEK));
            test.extend(rows_of(day..day + 1).filter(|&row| !known.contains(&vectors.cards[row])));
        }
        ensure!(
            !training.is_empty() && !test.is_empty(),
            "the input has no transactions in the weeks of the fold that begins on {training_from}: the protocol is of the Handbook's transactions"
        );
        let calibrating =
            training.clone().filter(|&row| vectors.dataset.labels[row] || row.is_multiple_of(CALIBRATED_ONE_IN));
        let cards = test.iter().map(|&row| (day_of(row), vectors.cards[row])).collect();
        Ok(Fold {
            training_from,
            calibrating: vectors.rows(calibrating),
            training: vectors.part(training),
            test: vectors.rows(test.into_iter()),
            cards,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "2018-08-15";

    /// One transaction a day and card over 40 days from the training's begin on, and these frauds: days since then, and cards.
    fn vectors(frauds: &[(i64, u32)]) -> Vectors {
        let start: EventTime = format!("{START}T00:00:00Z").parse().unwrap();
        let rows = (-3..40).flat_map(|day| (0..5).map(move |card| (day, card)));
        let mut vectors = Vectors { dataset: Dataset { width: 1, ..Dataset::default() }, ..Vectors::default() };
        for (day, card) in rows {
            // At midnight, which is the day's.
            vectors.times.push(EventTime::from_millis(start.as_millis() + day * DAY_MS));
            vectors.cards.push(card);
            vectors.dataset.rows.push((day * 10) as f32 + card as f32);
            vectors.dataset.labels.push(frauds.contains(&(day, card)));
        }
        vectors
    }

    fn tested(fold: &Fold, card: u32) -> Vec<i64> {
        let start: EventTime = format!("{START}T00:00:00Z").parse().unwrap();
        let days = fold.cards.iter().filter(|row| row.1 == card);
        days.map(|row| row.0 - start.as_millis() / DAY_MS).collect()
    }

    #[test]
    fn cards_known_to_be_defrauded_are_not_tested() {
        // In training; before it; in the delay, known on the ninth day after; in the test itself.
        let vectors = vectors(&[(3, 0), (-1, 1), (9, 2), (15, 3)]);
        let fold = Fold::new(START, TrainDays::Last(7), &vectors).unwrap();
        assert_eq!(
            fold.training.rows,
            (0..70).filter(|value| value % 10 < 5).map(|value| value as f32).collect::<Vec<_>>()
        );
        let week: Vec<i64> = (14..21).collect();
        assert_eq!(tested(&fold, 0), [0; 0]);
        assert_eq!(tested(&fold, 1), week);
        assert_eq!(tested(&fold, 2), [14, 15, 16], "a fraud of day 9 is known on day 17");
        assert_eq!(tested(&fold, 3), week);
        assert_eq!(tested(&fold, 4), week);
        assert_eq!((fold.test.rows.len(), fold.test.labels.iter().filter(|&&fraud| fraud).count()), (4 * 7 - 4, 1));
        assert_eq!(fold.test.rows[0], 141.0, "the rows are those of their cards and days");

        let all = Fold::new(START, TrainDays::All, &vectors).unwrap();
        assert_eq!((all.training.labels.len(), all.training.rows[0]), (50, -30.0));
        assert_eq!(all.test.rows, fold.test.rows, "the same test, whatever is trained on");
    }

    #[test]
    fn days_of_training_are_a_number_or_all() {
        assert_eq!("7".parse(), Ok(TrainDays::Last(7)));
        assert_eq!("all".parse(), Ok(TrainDays::All));
        assert!("0".parse::<TrainDays>().is_err() && "week".parse::<TrainDays>().is_err());
    }
}
