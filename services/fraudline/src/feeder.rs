//! The feeder: the source's transactions and labels, into the log.

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use load_tests::Feed;
use parking_lot::Mutex;
use schemas::{Id, topics};
use scorer::log::{Log, Outbox};
use scorer::system_clock;
use scorer::worker::Stats;

/// Transactions appended at a time, at most.
const CHUNK: usize = 1024;
/// At `max`, transactions that are in the log but not scored: enough to keep every hop busy, few
/// enough that the latency is the path's and not the queue's.
const OUTSTANDING_MAX: u64 = 8192;

/// How fast transactions come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    /// On a schedule, whether they are scored in time or not (open loop).
    PerSecond(u64),
    /// As fast as they are scored.
    Max,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text.parse() {
            _ if text == "max" => Ok(Rate::Max),
            Ok(rate @ 1..=10_000_000) => Ok(Rate::PerSecond(rate)),
            _ => Err("a rate is a number of events per second up to 10000000, or `max`".to_owned()),
        }
    }
}

/// Ids of the transactions that are frauds, known from the moment they are fed.
pub(crate) type Frauds = Arc<Mutex<HashSet<Id>>>;

/// When the next transaction is due.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) rate: Rate,
    /// At `max`, whose scores to wait for; without them, the log is filled as fast as it goes.
    pub(crate) outstanding: Option<Outstanding>,
    pub(crate) events_max: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Outstanding {
    pub(crate) stats: Arc<Stats>,
    /// Fed but not scored when this process began.
    pub(crate) backlog: u64,
}

pub(crate) struct Feeder {
    log: Arc<dyn Log>,
    feed: Feed,
    pace: Pace,
    frauds: Frauds,
}

impl Feeder {
    pub(crate) fn new(log: Arc<dyn Log>, feed: Feed, pace: Pace) -> Feeder {
        Feeder { log, feed, pace, frauds: Frauds::default() }
    }

    pub(crate) fn frauds(&self) -> Frauds {
        Arc::clone(&self.frauds)
    }

    /// Goes to where the log ends: returns how many transactions stand in it.
    pub(crate) fn resume(&mut self) -> anyhow::Result<u64> {
        let written = |topic: &str| -> anyhow::Result<u64> {
            Ok(self.log.topic(topic)?.offsets.iter().map(|kept| kept.end).sum())
        };
        let (transactions, labels) = (written(topics::TRANSACTIONS)?, written(topics::LABELS)?);
        let released = self.feed.skip(transactions)?;
        anyhow::ensure!(
            released == labels,
            "the data directory has {labels} labels for {transactions} transactions, the source {released}: \
             it was fed with another source"
        );
        *self.frauds.lock() = self.feed.fraud_ids().clone();
        Ok(transactions)
    }

    /// Feeds until the source ends or `feeding` is unset; tells how many transactions that are so
    /// far, and in the end.
    pub(crate) fn run(mut self, feeding: &AtomicBool, mut tell: impl FnMut(u64)) -> anyhow::Result<u64> {
        let clock = system_clock();
        let started = Instant::now();
        let mut fed = 0u64;
        let mut outbox = Outbox::default();
        while feeding.load(Relaxed) {
            let allowed = match (self.pace.rate, &self.pace.outstanding) {
                (Rate::PerSecond(rate), _) => (started.elapsed().as_secs_f64() * rate as f64) as u64 - fed,
                (Rate::Max, Some(Outstanding { stats, backlog })) => {
                    let done = stats.scores.load(Relaxed) + stats.dead_letters.load(Relaxed);
                    // Whole chunks: what is appended together is cheaper to write and to read.
                    match OUTSTANDING_MAX.saturating_sub(backlog + fed - done) {
                        allowed if allowed < CHUNK as u64 => 0,
                        allowed => allowed,
                    }
                }
                (Rate::Max, None) => CHUNK as u64,
            };
            let left = self.pace.events_max.map_or(u64::MAX, |max| max - fed);
            if left == 0 {
                break;
            }
            if allowed == 0 {
                std::thread::sleep(Duration::from_micros(500));
                continue;
            }
            let next = usize::try_from(allowed.min(left)).unwrap_or(CHUNK).min(CHUNK);
            let Some(chunk) = self.feed.next_chunk(next)? else { break };
            let frauds = chunk.transactions.iter().filter(|labelled| labelled.fraud);
            self.frauds.lock().extend(frauds.map(|labelled| labelled.transaction.transaction_id.clone()));
            // Labels first: one that was known when a transaction took place stands before it.
            let now_us = clock();
            for label in &chunk.labels {
                outbox.push(topics::LABELS, label.card_id.as_bytes(), now_us, |out| label.write_json(out));
            }
            for labelled in &chunk.transactions {
                let transaction = &labelled.transaction;
                outbox.push(topics::TRANSACTIONS, transaction.card_id.as_bytes(), now_us, |out| {
                    transaction.write_json(out);
                });
            }
            self.log.append(&outbox)?;
            outbox.clear();
            fed += chunk.transactions.len() as u64;
            tell(fed);
        }
        Ok(fed)
    }
}
