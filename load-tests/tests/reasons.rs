//! Whether the reasons of alerts are why they are alerts: a group that is named is put back to what is usual, and the score must fall.
#![allow(clippy::unwrap_used)]

use std::num::NonZero;
use std::sync::Arc;
use std::time::Instant;

use feature_store::{Backfill, FeatureSet};
use load_tests::{ChargebackDelay, Feed, SimulatorOptions};
use models::{Artifact, Contribution, Device, Explain, ModelThread, Scorer, ServeOptions};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use schemas::Transaction;

const TRANSACTIONS: usize = 600_000;
const CHUNK: usize = 32_768;

/// Alerts of simulated payments, and what scores them.
struct Alerts {
    width: usize,
    groups: Vec<Vec<usize>>,
    usual: Vec<f32>,
    threshold: f32,
    rows: Vec<f32>,
    scorer: Scorer,
}

impl Alerts {
    fn simulated() -> Alerts {
        let (features, artifact) = (FeatureSet::bundled(), Artifact::bundled().unwrap());
        let width = features.width();
        let mut scorer = Scorer::open(&artifact, Device::Cpu).unwrap();
        let mut feed = Feed::simulated(SimulatorOptions::default(), ChargebackDelay::default());
        let mut backfill = Backfill::on_threads(&features, NonZero::new(2).unwrap());
        let (mut rows, mut seen) = (Vec::new(), 0);
        while seen < TRANSACTIONS {
            let chunk = feed.next_chunk(CHUNK).unwrap().unwrap();
            chunk.labels.iter().for_each(|label| backfill.label(label));
            let transactions: Vec<&Transaction> = chunk.transactions.iter().map(|row| &row.transaction).collect();
            seen += transactions.len();
            let computed = backfill.rows(&transactions).values;
            let mut scores = Vec::new();
            scorer.score(&computed, &mut scores).unwrap();
            let scored = computed.chunks_exact(width).zip(scores);
            scored.filter(|(_, score)| *score >= artifact.threshold()).for_each(|(row, _)| rows.extend(row));
        }
        let groups = features.reason_groups().iter().map(|group| group.columns.clone()).collect();
        Alerts { width, groups, usual: artifact.usual(), threshold: artifact.threshold(), rows, scorer }
    }

    fn count(&self) -> usize {
        self.rows.len() / self.width
    }

    /// The alerts with some columns of each put back to what is usual.
    fn without(&self, columns: impl Iterator<Item = Vec<usize>>) -> Vec<f32> {
        let mut rows = self.rows.clone();
        for (row, columns) in rows.chunks_exact_mut(self.width).zip(columns) {
            columns.into_iter().for_each(|column| row[column] = self.usual[column]);
        }
        rows
    }

    fn log_odds(&mut self, rows: &[f32]) -> Vec<f32> {
        let mut log_odds = Vec::new();
        self.scorer.logits(rows, &mut log_odds).unwrap();
        log_odds
    }

    /// Mean fall of the log-odds, and the share that is still an alert, once columns are put back.
    fn effect(&mut self, name: &str, columns: impl Iterator<Item = Vec<usize>>) -> (f64, f64) {
        let changed = self.without(columns);
        let (own, left) = (self.log_odds(&self.rows.clone()), self.log_odds(&changed));
        let mut scores = Vec::new();
        self.scorer.score(&changed, &mut scores).unwrap();
        let count = self.count() as f64;
        let fall = own.iter().zip(&left).map(|(own, left)| f64::from(own - left)).sum::<f64>() / count;
        let alerts = scores.iter().filter(|score| **score >= self.threshold).count() as f64 / count;
        println!("{name:<34} {fall:>8.2} {:>11.1}%", alerts * 100.0);
        (fall, alerts)
    }

    fn columns_of(&self, groups: impl Iterator<Item = usize>) -> Vec<usize> {
        groups.flat_map(|group| self.groups[group].iter().copied()).collect()
    }
}

#[test]
fn what_is_named_is_what_makes_the_alert() {
    let mut alerts = Alerts::simulated();
    let groups = alerts.groups.clone();
    assert!(alerts.count() > 500, "{} alerts", alerts.count());

    let thread = ModelThread::start(
        Artifact::bundled().unwrap(),
        &ServeOptions { device: Device::Cpu, ..ServeOptions::default() },
    )
    .unwrap();
    let explain = Arc::new(Explain { groups: groups.clone(), most: groups.len() });
    let timed = |explain: Option<&Arc<Explain>>| {
        let started = Instant::now();
        let answer = match explain {
            Some(explain) => thread.submit_explained(alerts.rows.clone(), explain),
            None => thread.submit(alerts.rows.clone()),
        };
        (answer.unwrap().wait().unwrap().reasons, started.elapsed().as_secs_f64())
    };
    let (_, alone) = timed(None);
    let (reasons, explained) = timed(Some(&explain));
    let each = (explained - alone) / alerts.count() as f64 * 1e6;
    println!("{} alerts, {each:.0} µs each for the reasons, in this build\n", alerts.count());
    assert_eq!(reasons.len(), alerts.count());

    // Single features, by what their absence alone takes away.
    let own = alerts.log_odds(&alerts.rows.clone());
    let falls: Vec<Vec<f32>> = (0..alerts.width)
        .map(|column| {
            let changed = alerts.without((0..alerts.count()).map(|_| vec![column]));
            alerts.log_odds(&changed).iter().zip(&own).map(|(left, own)| own - left).collect()
        })
        .collect();
    let single = |alert: usize, most: usize| {
        let mut columns: Vec<usize> = (0..falls.len()).collect();
        columns.sort_by(|&a, &b| falls[b][alert].total_cmp(&falls[a][alert]));
        columns.truncate(most);
        columns
    };
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut drawn = |most: usize| {
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.shuffle(&mut random);
        order.truncate(most);
        order
    };
    let named = |reasons: &[Contribution], most: usize| -> Vec<usize> {
        reasons.iter().take(most).map(|reason| reason.group).collect()
    };
    let least = |reasons: &[Contribution], most: usize| -> Vec<usize> {
        let lowering = (0..groups.len()).filter(|group| reasons.iter().all(|reason| reason.group != *group));
        lowering.chain(reasons.iter().rev().map(|reason| reason.group)).take(most).collect()
    };
    println!("{:<34} {:>8} {:>12}", "put back to what is usual", "log-odds", "still alerts");
    for most in 1..=3 {
        let sets = |choose: &dyn Fn(&[Contribution]) -> Vec<usize>| -> Vec<Vec<usize>> {
            reasons.iter().map(|reasons| alerts.columns_of(choose(reasons).into_iter())).collect()
        };
        let (top, last) = (sets(&|reasons| named(reasons, most)), sets(&|reasons| least(reasons, most)));
        let any: Vec<Vec<usize>> = (0..alerts.count()).map(|_| alerts.columns_of(drawn(most).into_iter())).collect();
        let features: Vec<Vec<usize>> = (0..alerts.count()).map(|alert| single(alert, most)).collect();
        let (fall, left) = alerts.effect(&format!("{most} named"), top.into_iter());
        let (of_features, left_of_features) = alerts.effect(&format!("{most} single features"), features.into_iter());
        let (of_any, left_of_any) = alerts.effect(&format!("{most} of the groups, drawn"), any.into_iter());
        let (of_last, _) = alerts.effect(&format!("{most} least"), last.into_iter());
        assert!(fall > 1.5 * of_any && of_any > of_last && fall > 5.0 * of_last.max(0.1), "{most}");
        assert!(left < 0.05 && left < left_of_any / 5.0, "{most} named leave {left} alerts, drawn ones {left_of_any}");
        if most == 1 {
            assert!(fall > of_features && left < left_of_features / 2.0, "one group says more than one feature");
        }
    }
}

#[test]
fn parts_add_up_to_the_score() {
    let mut alerts = Alerts::simulated();
    let thread = ModelThread::start(
        Artifact::bundled().unwrap(),
        &ServeOptions { device: Device::Cpu, ..ServeOptions::default() },
    )
    .unwrap();
    // All columns in one group are all of the difference.
    let own = alerts.log_odds(&alerts.rows.clone());
    let usual = alerts.log_odds(&alerts.usual.clone())[0];
    let whole = Arc::new(Explain { groups: vec![(0..alerts.width).collect()], most: 1 });
    let reasons = thread.submit_explained(alerts.rows.clone(), &whole).unwrap().wait().unwrap().reasons;
    for (own, reasons) in own.iter().zip(&reasons) {
        assert!((reasons[0].contribution - (own - usual)).abs() < 1e-4, "{reasons:?}, {own} less {usual}");
    }
    // Of all groups, those that raise it make up for those that don't.
    let explain = Arc::new(Explain { groups: alerts.groups.clone(), most: alerts.groups.len() });
    let reasons = thread.submit_explained(alerts.rows.clone(), &explain).unwrap().wait().unwrap().reasons;
    for (own, reasons) in own.iter().zip(&reasons) {
        let raised: f32 = reasons.iter().map(|reason| reason.contribution).sum();
        assert!(raised > own - usual - 1e-3, "{reasons:?}, {own} less {usual}");
    }

    // The same bits beside any rows, for a replay cuts them in other ways; and nothing where nobody asked.
    let some: Vec<&[f32]> = alerts.rows.chunks_exact(alerts.width).step_by(7).collect();
    let alone = some
        .iter()
        .map(|row| thread.submit_explained(row.to_vec(), &explain).unwrap().wait().unwrap().reasons.remove(0));
    assert!(alone.eq(reasons.into_iter().step_by(7)));
    assert!(thread.submit(alerts.rows.clone()).unwrap().wait().unwrap().reasons.is_empty());
}
