//! What became known of an entity's transactions.

use schemas::{EventTime, Id};

/// Labels by transaction time, then id, then the time at which they became known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    entries: Vec<LabelEntry>,
    /// Memory of the ids that are not held inline.
    id_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LabelEntry {
    pub(super) transaction_time: EventTime,
    pub(super) transaction_id: Id,
    pub(super) known: EventTime,
    pub(super) fraud: bool,
}

impl Labels {
    /// The same label again changes nothing, and the order in which labels come doesn't matter.
    pub(super) fn insert(&mut self, entry: LabelEntry) {
        if let Err(position) = self.entries.binary_search(&entry) {
            self.id_bytes += heap_bytes(&entry.transaction_id);
            self.entries.insert(position, entry);
        }
    }

    /// Forgets those of transactions at `through` or before.
    pub(super) fn evict(&mut self, through: EventTime) {
        let old = self.entries.partition_point(|label| label.transaction_time <= through);
        for label in self.entries.drain(..old) {
            self.id_bytes -= heap_bytes(&label.transaction_id);
        }
        if self.entries.capacity() > 32 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Number of transactions in `(from, end]` that are fraud by the last label known at `known_by`.
    pub(super) fn frauds(&self, from: EventTime, end: EventTime, known_by: EventTime) -> u64 {
        frauds(self.of_transactions(from, end), known_by)
    }

    /// The times at which transactions took place that are fraud, each with their number.
    pub(super) fn frauds_by_time(
        &self,
        from: EventTime,
        end: EventTime,
        known_by: EventTime,
    ) -> impl DoubleEndedIterator<Item = (EventTime, usize)> {
        let of_one_time = self.of_transactions(from, end).chunk_by(|a, b| a.transaction_time == b.transaction_time);
        let frauds = move |labels: &[LabelEntry]| (labels[0].transaction_time, frauds(labels, known_by) as usize);
        of_one_time.map(frauds).filter(|(_, frauds)| *frauds > 0)
    }

    fn of_transactions(&self, from: EventTime, end: EventTime) -> &[LabelEntry] {
        let position = |time| self.entries.partition_point(|label| label.transaction_time <= time);
        let start = position(from);
        &self.entries[start..position(end).max(start)]
    }

    pub(super) fn entries(&self) -> &[LabelEntry] {
        &self.entries
    }

    /// Takes entries that are in order; tells whether they were.
    pub(super) fn from_entries(entries: Vec<LabelEntry>) -> Option<Labels> {
        let id_bytes = entries.iter().map(|label| heap_bytes(&label.transaction_id)).sum();
        entries.is_sorted().then_some(Labels { entries, id_bytes })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<LabelEntry>() + self.id_bytes
    }
}

fn frauds(labels: &[LabelEntry], known_by: EventTime) -> u64 {
    let of_one = labels.chunk_by(|a, b| a.transaction_id == b.transaction_id);
    let last_known =
        |labels: &[LabelEntry]| labels.iter().rfind(|label| label.known <= known_by).map(|label| label.fraud);
    of_one.map(|labels| u64::from(last_known(labels) == Some(true))).sum()
}

/// What an id takes beyond its own size. By its length, which a copy has too.
fn heap_bytes(id: &Id) -> usize {
    if id.is_heap_allocated() { id.len() } else { 0 }
}
