use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use schemas::{EventTime, Id, Label};

use crate::{Labelled, ParquetSource, Simulator, SimulatorOptions};

/// How long after a fraud its chargeback comes: uniform in [min, max), in whole milliseconds, a
/// function of the seed and the transaction's id alone. Always `min` if `max` is not above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargebackDelay {
    pub min: Duration,
    pub max: Duration,
    pub seed: u64,
}

impl Default for ChargebackDelay {
    /// One to four days.
    fn default() -> ChargebackDelay {
        let day = Duration::from_secs(86_400);
        ChargebackDelay { min: day, max: 4 * day, seed: 0 }
    }
}

impl ChargebackDelay {
    /// The delay of this transaction's chargeback.
    pub fn of(&self, transaction_id: &str) -> Duration {
        let span_ms = self.max.saturating_sub(self.min).as_millis();
        // The high half of hash * span is uniform below the span; a span beyond 2^64 ms is cut.
        let span_ms = span_ms.min(u128::from(u64::MAX));
        let offset_ms = (u128::from(hash(self.seed, transaction_id.as_bytes())) * span_ms) >> 64;
        self.min.saturating_add(Duration::from_millis(offset_ms as u64))
    }
}

/// FNV-1a, then the finalizer of SplitMix64 (Steele, Lea, Flood 2014), so that ids that follow
/// each other spread over all 64 bits. The standard library's hasher may change with its version.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let basis = 0xcbf2_9ce4_8422_2325 ^ mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    mix(bytes.iter().fold(basis, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)))
}

/// Transactions, and the labels that became known while they took place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedChunk {
    /// As the source orders them.
    pub transactions: Vec<Labelled>,
    /// Chargebacks with a label time up to the last transaction, those of earlier chunks left
    /// out; by label time, then transaction id (as text), where the source is in order of time.
    pub labels: Vec<Label>,
}

/// What a pipeline is fed with: transactions, and the chargebacks of the frauds among them as
/// events of their own, days later.
///
/// A label is released with the first transaction at or after its label time. So which labels
/// are out, and in which order, depends on the transactions fed, never on how they were cut into
/// chunks or on a restart in between ([`Feed::skip`]). Labels whose time no transaction reached
/// are never released; [`Feed::fraud_ids`] has their transactions too.
#[derive(Debug)]
pub struct Feed {
    source: Source,
    delay: ChargebackDelay,
    pending: BTreeMap<(EventTime, Id), Label>,
    fraud_ids: HashSet<Id>,
    fed: u64,
}

#[derive(Debug)]
enum Source {
    Simulated(Box<Simulator>),
    Parquet(Box<ParquetSource>),
}

impl Source {
    fn next(&mut self) -> anyhow::Result<Option<Labelled>> {
        match self {
            Source::Simulated(simulator) => Ok(simulator.next()),
            Source::Parquet(source) => source.next().transpose(),
        }
    }
}

impl Feed {
    pub fn simulated(options: SimulatorOptions, delay: ChargebackDelay) -> Feed {
        Feed::new(Source::Simulated(Box::new(Simulator::new(options))), delay)
    }

    /// The rows of a file, see [`ParquetSource`].
    ///
    /// # Errors
    /// Those of [`ParquetSource::open`].
    pub fn parquet(path: impl AsRef<Path>, delay: ChargebackDelay) -> anyhow::Result<Feed> {
        Ok(Feed::new(Source::Parquet(Box::new(ParquetSource::open(path)?)), delay))
    }

    fn new(source: Source, delay: ChargebackDelay) -> Feed {
        Feed { source, delay, pending: BTreeMap::new(), fraud_ids: HashSet::new(), fed: 0 }
    }

    /// Transactions of the whole source, where that is known: for files.
    #[expect(clippy::len_without_is_empty, reason = "a feed of unknown length is not empty or full")]
    pub fn len(&self) -> Option<u64> {
        match &self.source {
            Source::Simulated(_) => None,
            Source::Parquet(source) => Some(source.rows()),
        }
    }

    /// Whether the source says which transactions are frauds; where it doesn't, none of them is.
    pub fn is_labelled(&self) -> bool {
        match &self.source {
            Source::Simulated(_) => true,
            Source::Parquet(source) => source.is_labelled(),
        }
    }

    /// Transactions fed or skipped so far.
    pub fn fed(&self) -> u64 {
        self.fed
    }

    /// The next transactions, at most `max` (at least one, so that a feed always ends), and the
    /// labels that go with them. `None` at the end of the source.
    ///
    /// # Errors
    /// Those of the source; the chunk that it occurs in is lost, and the feed can't go on.
    pub fn next_chunk(&mut self, max: usize) -> anyhow::Result<Option<FeedChunk>> {
        let mut chunk = FeedChunk::default();
        while chunk.transactions.len() < max.max(1) {
            let Some(labelled) = self.source.next()? else { break };
            self.take(&labelled, |label| chunk.labels.push(label));
            chunk.transactions.push(labelled);
        }
        Ok(Some(chunk).filter(|chunk| !chunk.transactions.is_empty()))
    }

    /// Goes past `transactions` that were fed before a restart, and returns how many labels were
    /// released with them; those are not released again, the pending ones are pending again.
    ///
    /// # Errors
    /// Those of the source, and if it has fewer transactions left.
    pub fn skip(&mut self, transactions: u64) -> anyhow::Result<u64> {
        let mut released = 0;
        for skipped in 0..transactions {
            let labelled = self.source.next().with_context(|| format!("skipping {transactions} transactions"))?;
            let Some(labelled) = labelled else {
                bail!(
                    "{transactions} transactions are to be skipped, but the source has only {skipped}: \
                     is it the one that was fed before, with the same options?"
                );
            };
            self.take(&labelled, |_| released += 1);
        }
        Ok(released)
    }

    /// Labels of transactions fed or skipped that no transaction has reached in time yet.
    pub fn pending_labels(&self) -> usize {
        self.pending.len()
    }

    /// Ids of all frauds among the transactions fed or skipped so far, whether their label is out
    /// or pending. Grows with the feed: 0.8 % of the transactions at the simulator's default
    /// sizes, about 50 bytes each, so 400 kB per million transactions.
    pub fn fraud_ids(&self) -> &HashSet<Id> {
        &self.fraud_ids
    }

    /// Counts a transaction, and hands out the labels that are due with it.
    fn take(&mut self, labelled: &Labelled, mut release: impl FnMut(Label)) {
        let transaction = &labelled.transaction;
        self.fed += 1;
        if labelled.fraud {
            let label_time = transaction.event_time + self.delay.of(&transaction.transaction_id);
            let label = Label {
                transaction_id: transaction.transaction_id.clone(),
                card_id: transaction.card_id.clone(),
                terminal_id: transaction.terminal_id.clone(),
                transaction_time: transaction.event_time,
                label_time,
                fraud: true,
            };
            self.fraud_ids.insert(transaction.transaction_id.clone());
            self.pending.insert((label_time, transaction.transaction_id.clone()), label);
        }
        while let Some(first) = self.pending.first_entry()
            && first.key().0 <= transaction.event_time
        {
            release(first.remove());
        }
    }
}

#[cfg(test)]
mod tests;
