//! `fraudline features verify`: the vectors that scores carry, computed again from the log.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use feature_store::{Backfill, FeatureSet};
use schemas::{EventTime, Transaction};

use super::history::{History, LoggedTransaction, LoggedVectors};
use super::{LogArgs, OpenLog, threads};
use crate::progress::Progress;

const CHUNK: usize = 16_384;
/// Differences printed at most.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    log: LogArgs,
    /// Feature definitions [default: those of the configuration, or the Handbook's]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<std::path::PathBuf>,
    /// Threads to compute on [default: all cores]
    #[arg(long)]
    threads: Option<NonZero<usize>>,
}

/// What a comparison came to.
#[derive(Debug, Default)]
struct Verified {
    compared: u64,
    without_vector: u64,
    warming_up: u64,
    differing: u64,
    values: u64,
    /// For each feature, how many values differ.
    by_feature: Vec<u64>,
    shown: Vec<String>,
}

pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let OpenLog { log, features, future_skew } = args.log.open(args.features.as_deref())?;
    let mut history = History::open(&*log, &features, future_skew)?;
    let mut vectors = LoggedVectors::open(&*log)?;
    let mut backfill = Backfill::on_threads(&features, threads(args.threads));
    History::side(&*log, &features, &mut backfill, drop)?;
    // Where the log has lost its beginning, windows are whole only once they begin behind it.
    let keep = features.views().iter().map(feature_store::View::keep).max().unwrap_or_default();
    let warm_up = if history.is_trimmed() { keep } else { Duration::ZERO };
    let mut verified = Verified { by_feature: vec![0; features.width()], ..Verified::default() };
    let mut whole_from = None;
    let progress = Progress::new(history.progress().0, "records");
    loop {
        let mut chunk: Vec<LoggedTransaction> = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK
            && let Some(next) = history.next()?
        {
            chunk.push(next);
        }
        let Some(first) = chunk.first() else { break };
        let whole_from = *whole_from.get_or_insert(first.transaction.event_time + warm_up);
        let transactions: Vec<&Transaction> = chunk.iter().map(|logged| &logged.transaction).collect();
        let rows = backfill.rows(&transactions);
        for (logged, row) in chunk.iter().zip(rows.values.chunks_exact(features.width())) {
            verified.compare(&features, logged, row, whole_from, &mut vectors)?;
        }
        progress.set(history.progress().1);
    }
    progress.finish();
    verified.report(&features)
}

impl Verified {
    fn compare(
        &mut self,
        features: &FeatureSet,
        logged: &LoggedTransaction,
        row: &[f32],
        whole_from: EventTime,
        vectors: &mut LoggedVectors<'_>,
    ) -> anyhow::Result<()> {
        let &LoggedTransaction { partition, offset, ref transaction } = logged;
        let Some(vector) = vectors.take(partition, offset)? else {
            self.without_vector += 1;
            return Ok(());
        };
        let of = format!("transaction {} (partition {partition}, offset {offset})", transaction.transaction_id);
        anyhow::ensure!(
            vector.transaction_id == transaction.transaction_id,
            "the score of {of} names transaction {}: scores and transactions are not of one log",
            vector.transaction_id
        );
        anyhow::ensure!(
            vector.values.len() == row.len(),
            "the score of {of} carries {} values, the definitions have {}: name the definitions that it was made with",
            vector.values.len(),
            row.len()
        );
        if transaction.event_time < whole_from {
            self.warming_up += 1;
            return Ok(());
        }
        self.compared += 1;
        self.values += row.len() as u64;
        let mut differs = false;
        for (slot, (computed, found)) in row.iter().zip(&vector.values).enumerate() {
            let same = match found {
                Some(found) => found.to_bits() == computed.to_bits(),
                None => computed.is_nan(),
            };
            if !same {
                differs = true;
                self.by_feature[slot] += 1;
                if self.shown.len() < SHOWN {
                    let text = |value: Option<f32>| value.map_or("missing".to_owned(), |value| value.to_string());
                    let computed = text(Some(*computed).filter(|value| !value.is_nan()));
                    let name = &features.names()[slot];
                    self.shown.push(format!("{of}: {name} was {}, is {computed}", text(*found)));
                }
            }
        }
        self.differing += u64::from(differs);
        Ok(())
    }

    fn report(self, features: &Arc<FeatureSet>) -> anyhow::Result<()> {
        for line in &self.shown {
            println!("{line}");
        }
        for (name, &count) in features.names().iter().zip(&self.by_feature).filter(|(_, count)| **count > 0) {
            println!("{name}: {count} values differ");
        }
        println!(
            "{} vectors compared ({} values), {} differ; {} transactions without a logged vector",
            self.compared, self.values, self.differing, self.without_vector
        );
        if self.warming_up > 0 {
            println!("{} vectors left out: the log no longer has all of their windows", self.warming_up);
        }
        anyhow::ensure!(self.differing == 0, "{} of {} vectors differ", self.differing, self.compared);
        anyhow::ensure!(
            self.compared > 0,
            "there was nothing to compare: have the scorer log vectors with `log_features: 1`"
        );
        Ok(())
    }
}
