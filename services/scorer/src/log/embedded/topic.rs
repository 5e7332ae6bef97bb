//! A topic in memory: the bounds of its partitions, and who waits for its records.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::log::{LogError, Result, Topic, TopicPartition, TopicSpec};

/// Locks; what a panicking thread left is sound, as every change under a lock is one assignment
/// after the write it stands for has succeeded.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) id: u32,
    pub(super) spec: TopicSpec,
    partitions: Vec<Mutex<Bounds>>,
    arrivals: Mutex<u64>,
    arrived: Condvar,
}

/// What can be read of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Offset of the first record kept.
    pub(super) start: u64,
    /// Offset of the next record to be written.
    pub(super) end: u64,
    /// The latest timestamp that was ever written.
    pub(super) latest_us: i64,
}

impl Bounds {
    pub(super) const EMPTY: Bounds = Bounds { start: 0, end: 0, latest_us: i64::MIN };
}

impl TopicState {
    pub(super) fn new(id: u32, spec: TopicSpec, bounds: impl Iterator<Item = Bounds>) -> TopicState {
        let partitions = bounds.map(Mutex::new).collect();
        TopicState { id, spec, partitions, arrivals: Mutex::new(0), arrived: Condvar::new() }
    }

    pub(super) fn partition(&self, partition: u32) -> TopicPartition {
        TopicPartition { topic: self.spec.name.clone(), partition }
    }

    /// The bounds of a partition, to be read or changed.
    pub(super) fn bounds(&self, partition: u32) -> Result<MutexGuard<'_, Bounds>> {
        match self.partitions.get(partition as usize) {
            Some(bounds) => Ok(lock(bounds)),
            None => Err(LogError::UnknownTopic(self.partition(partition).to_string())),
        }
    }

    pub(super) fn snapshot(&self) -> Topic {
        let offsets = self.partitions.iter().map(|bounds| {
            let bounds = lock(bounds);
            bounds.start..bounds.end
        });
        Topic { spec: self.spec.clone(), offsets: offsets.collect() }
    }

    /// Counts what may end a wait: new records, and changes of a group. Take it before looking
    /// for either.
    pub(super) fn arrivals(&self) -> u64 {
        *lock(&self.arrivals)
    }

    pub(super) fn announce(&self) {
        *lock(&self.arrivals) += 1;
        self.arrived.notify_all();
    }

    /// Waits until something was announced after `seen` was taken; false when the deadline
    /// passed before. No deadline: as long as it takes.
    pub(super) fn wait(&self, seen: u64, deadline: Option<Instant>) -> bool {
        let mut arrivals = lock(&self.arrivals);
        while *arrivals == seen {
            arrivals = match deadline {
                None => self.arrived.wait(arrivals).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.arrived.wait_timeout(arrivals, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }
}
