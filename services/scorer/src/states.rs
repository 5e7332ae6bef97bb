//! The states of a partition's entities: recovered on assignment, changed by its events, and
//! checkpointed behind the commits. The scorer's card windows and the materializer's views are the
//! same machinery over different streams.

use feature_store::{Checkpoint, EntityTable, OnlineStore, PartitionCheckpoint, StoreError, Watermark, WindowState};
use futures_executor::block_on;
use schemas::{CodecError, EventTime, Id};

use crate::log::{Log, Record, TopicPartition};
use crate::{Result, ScorerError};

/// Records read at a time while a partition is recovered.
const RECOVERY_RECORDS: usize = 4096;

/// How the records of a partition change the states of its entities.
pub trait Stream {
    type Event;

    /// Takes the partition's next record: the change it makes, if it makes one.
    fn read(&mut self, record: &Record) -> Option<Self::Event>;

    /// The entity that changes.
    fn key(event: &Self::Event) -> &Id;

    fn apply(&mut self, event: &Self::Event, state: &mut WindowState);

    /// Event time up to which the partition's states are complete.
    fn complete_to(&self) -> EventTime;

    /// Appends what [`Stream::read`] goes on from besides the states.
    fn save(&self, out: &mut Vec<u8>);

    fn restore(&mut self, bytes: &[u8]) -> std::result::Result<(), CodecError>;
}

/// Where a partition is recovered from.
#[derive(Clone, Copy, Debug)]
pub struct Recovery<'a> {
    pub log: &'a dyn Log,
    pub store: &'a dyn OnlineStore,
    /// Whose committed offset the states are to stand at.
    pub group: &'a str,
    pub view: &'a Id,
    pub state_bytes_max: usize,
}

/// The states of one view in one partition, and how far they and their stored copies have come.
#[derive(Debug)]
pub struct PartitionStates<S> {
    view: Id,
    partition: TopicPartition,
    pub stream: S,
    pub table: EntityTable,
    /// Every record below is in the states.
    next: u64,
    /// Every record below is in the stored states.
    stored: u64,
    /// Offset of the watermark that the store is known to have.
    watermark: Option<u64>,
}

impl<S: Stream> PartitionStates<S> {
    /// Takes over a partition: goes back to the stored watermark W and applies the records from
    /// there up to the committed offset C to the states alone, without any output.
    ///
    /// Without a watermark the states are rebuilt from the first record kept. `state_bytes_max`
    /// bounds the memory meanwhile: beyond it, states are written and dropped. `alive` is called
    /// now and then, so that the group waits.
    pub fn recover(
        from: &Recovery<'_>,
        partition: TopicPartition,
        stream: S,
        alive: &mut dyn FnMut() -> crate::log::Result<()>,
    ) -> Result<PartitionStates<S>> {
        let &Recovery { log, store, group, view, state_bytes_max } = from;
        let kept = log.topic(&partition.topic)?.offsets[partition.partition as usize].clone();
        let committed = log.committed(group, &partition)?.unwrap_or(kept.start);
        let mut states = PartitionStates {
            view: view.clone(),
            partition,
            stream,
            table: EntityTable::default(),
            next: kept.start,
            stored: kept.start,
            watermark: None,
        };
        if let Some(watermark) = block_on(store.watermark(view, states.partition.partition))? {
            let stored = watermark.offset;
            let (view, partition) = (view.to_string(), states.partition.clone());
            if stored > committed {
                return Err(ScorerError::StoreAhead { view, partition, stored, committed });
            }
            if stored < kept.start && stored < committed {
                return Err(ScorerError::LogTrimmed { view, partition, stored, first: kept.start });
            }
            states.stream.restore(&watermark.progress).map_err(|error| StoreError::Damaged {
                view,
                key: format!("watermark of {partition}"),
                reason: error.to_string(),
            })?;
            (states.next, states.stored, states.watermark) = (stored, stored, Some(stored));
        }
        while states.next < committed {
            alive()?;
            let count = usize::try_from(committed - states.next).unwrap_or(usize::MAX).min(RECOVERY_RECORDS);
            let mut records = log.read(&states.partition, states.next, count)?;
            // Offsets may have gaps, so as many records may reach beyond.
            records.retain(|record| record.offset < committed);
            let Some(last) = records.last() else {
                // Nothing is left below the committed offset: retention took it, or it never was a record.
                states.next = committed;
                break;
            };
            let next = last.offset + 1;
            states.replay(store, &records)?;
            states.next = next;
            if states.table.bytes() > state_bytes_max {
                let checkpoint = Checkpoint { partitions: vec![states.checkpoint(|_| ())] };
                block_on(store.write(&checkpoint))?;
                states.written(&checkpoint.partitions[0]);
                states.table.begin_batch(state_bytes_max / 2);
            }
        }
        Ok(states)
    }

    fn replay(&mut self, store: &dyn OnlineStore, records: &[Record]) -> Result<()> {
        let mut events = Vec::with_capacity(records.len());
        for record in records {
            if let Some(event) = self.stream.read(record) {
                events.push((record.offset, event));
            }
        }
        self.load(store, events.iter().map(|(_, event)| S::key(event)))?;
        for (offset, event) in &events {
            self.table.update(S::key(event), *offset, |state| self.stream.apply(event, state));
        }
        Ok(())
    }

    /// Brings the states of `keys` into memory, in one read of the store for all that are missing.
    pub fn load<'a>(&mut self, store: &dyn OnlineStore, keys: impl Iterator<Item = &'a Id>) -> Result<()> {
        let missing = self.table.missing(keys);
        if missing.is_empty() {
            return Ok(());
        }
        let keys: Vec<&str> = missing.iter().map(Id::as_str).collect();
        let partition = self.partition.partition;
        let read = block_on(store.read(&self.view, &keys, &[partition]))?;
        // States that were dropped from memory because the store had them are gone with its writes.
        let found = read.watermarks.into_iter().flatten().next().map(|watermark| watermark.offset);
        if let Some(expected) = self.watermark.filter(|&expected| found.is_none_or(|found| found < expected)) {
            let view = self.view.to_string();
            return Err(StoreError::WentBack { view, partition, expected, found }.into());
        }
        for (key, stored) in missing.into_iter().zip(read.states) {
            self.table.load(key.clone(), stored).map_err(|error| StoreError::Damaged {
                view: self.view.to_string(),
                key: key.to_string(),
                reason: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// Makes sure that the store still has what was written: who has nothing to write and nothing to
    /// read would not notice, while others wait for the view.
    pub fn verify(&self, store: &dyn OnlineStore) -> Result<()> {
        let Some(expected) = self.watermark else { return Ok(()) };
        let partition = self.partition.partition;
        let found = block_on(store.watermark(&self.view, partition))?.map(|watermark| watermark.offset);
        if found.is_none_or(|found| found < expected) {
            return Err(StoreError::WentBack { view: self.view.to_string(), partition, expected, found }.into());
        }
        Ok(())
    }

    /// Notes that the records below `next` are in the states.
    pub fn advance(&mut self, next: u64) {
        self.next = next;
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    /// Offset below which every record is in the stored states.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Whether a checkpoint would tell the store anything new.
    pub fn is_ahead_of_store(&self) -> bool {
        self.next > self.stored
    }

    /// The changed states and the watermark that holds once they are written. Only when all that is
    /// in the states is committed, or about to be in the same step (I3). `evict` takes out of a state what is needed no more.
    pub fn checkpoint(&mut self, evict: impl Fn(&mut WindowState)) -> PartitionCheckpoint {
        let mut progress = Vec::new();
        self.stream.save(&mut progress);
        PartitionCheckpoint {
            view: self.view.clone(),
            partition: self.partition.partition,
            follows: self.watermark,
            states: self.table.changed(evict),
            watermark: Watermark { offset: self.next, progress, event_time: self.stream.complete_to() },
        }
    }

    /// What is wrong where a state includes the event at `offset` already, and those below are all that was committed.
    pub fn store_ahead(&self, offset: u64) -> ScorerError {
        let (view, partition) = (self.view.to_string(), self.partition.clone());
        ScorerError::StoreAhead { view, partition, stored: offset + 1, committed: offset }
    }

    /// Whether a checkpoint is of these states.
    pub fn is_of(&self, checkpoint: &PartitionCheckpoint) -> bool {
        (&self.view, self.partition.partition) == (&checkpoint.view, checkpoint.partition)
    }

    /// Takes note that a checkpoint of these states is in the store.
    pub fn written(&mut self, checkpoint: &PartitionCheckpoint) {
        self.stored = checkpoint.watermark.offset;
        self.watermark = Some(self.stored);
        self.table.written(&checkpoint.states);
    }
}
