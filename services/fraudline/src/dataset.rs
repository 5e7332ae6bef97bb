//! Vectors of recorded transactions, point in time, with what became of them: what models are trained on and evaluated by.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use feature_store::{Backfill, FeatureSet};
use load_tests::Feed;
use models::Dataset;
use schemas::{EventTime, Id, Transaction};

use crate::features::threads;
use crate::progress::Progress;

/// Rows in the order of the source.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    pub(crate) dataset: Dataset,
    pub(crate) times: Vec<EventTime>,
    /// Of each row, its card: the same number for the same card.
    pub(crate) cards: Vec<u32>,
    /// Of each row, the kind of fraud: 0 if it is none, or of no kind that the source tells.
    pub(crate) scenarios: Vec<u8>,
}

impl Vectors {
    /// Reads `feed` to its end, by the scorer's own implementation of the features. Its first days only fill the windows.
    pub(crate) fn read(mut feed: Feed, features: &FeatureSet, warm_up_days: u32) -> anyhow::Result<Vectors> {
        let width = features.layout().width();
        let progress = Progress::new(feed.len().unwrap_or(0), "transactions");
        let mut backfill = Backfill::on_threads(features, threads(None));
        let mut all = Vectors { dataset: Dataset { width, ..Dataset::default() }, ..Vectors::default() };
        let mut numbers: HashMap<Id, u32> = HashMap::new();
        let (mut start, mut read) = (None, 0);
        while let Some(chunk) = feed.next_chunk(8192)? {
            for label in &chunk.labels {
                backfill.label(label);
            }
            let transactions: Vec<&Transaction> =
                chunk.transactions.iter().map(|labelled| &labelled.transaction).collect();
            let rows = backfill.rows(&transactions);
            for (labelled, row) in chunk.transactions.iter().zip(rows.values.chunks_exact(width)) {
                let transaction = &labelled.transaction;
                let time = transaction.event_time;
                if time >= *start.get_or_insert(time) + days(warm_up_days) {
                    let next = numbers.len() as u32;
                    all.dataset.rows.extend_from_slice(row);
                    all.dataset.labels.push(labelled.fraud);
                    all.scenarios.push(labelled.scenario);
                    all.times.push(time);
                    all.cards.push(*numbers.entry(transaction.card_id.clone()).or_insert(next));
                }
            }
            read += chunk.transactions.len() as u64;
            progress.set(read);
        }
        progress.finish();
        Ok(all)
    }

    /// These rows.
    pub(crate) fn rows(&self, rows: impl Iterator<Item = usize>) -> Dataset {
        let Dataset { rows: values, width, labels } = &self.dataset;
        let mut chosen = Dataset { width: *width, ..Dataset::default() };
        for row in rows {
            chosen.rows.extend_from_slice(&values[row * width..(row + 1) * width]);
            chosen.labels.push(labels[row]);
        }
        chosen
    }

    /// A part of the rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Dataset {
        let Dataset { rows: values, width, labels } = &self.dataset;
        Dataset {
            rows: values[rows.start * width..rows.end * width].to_vec(),
            width: *width,
            labels: labels[rows].to_vec(),
        }
    }
}

pub(crate) fn days(count: u32) -> Duration {
    Duration::from_secs(u64::from(count) * 86_400)
}
