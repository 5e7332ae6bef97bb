//! What became known of an entity: for each column of its profile, the values that a reader may still ask for.

use std::time::Duration;

use schemas::EventTime;

/// Values of a profile, by column; each since when it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(super) columns: Vec<Vec<Held>>,
}

/// A value, and since when it holds; `NaN` is a missing one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) since: EventTime,
    pub(crate) value: f64,
}

impl Profile {
    /// Takes in a value of a column. Of those within one `step` of time only the last is kept, so that their number
    /// doesn't grow with the number of updates; of those of the same time, the one that comes last.
    pub(super) fn insert(&mut self, step: i64, column: usize, held: Held) {
        if self.columns.len() <= column {
            self.columns.resize_with(column + 1, Vec::new);
        }
        let values = &mut self.columns[column];
        let begin = begin_of(step, held.since);
        let position = values.partition_point(|known| begin_of(step, known.since) < begin);
        match values.get_mut(position) {
            Some(known) if begin_of(step, known.since) == begin => {
                if known.since <= held.since {
                    *known = held;
                }
            }
            _ => values.insert(position, held),
        }
    }

    /// What is read at `at` holds since before this: the begin of the step that `at` falls into.
    pub(crate) fn readable_before(step: i64, at: EventTime) -> EventTime {
        begin_of(step, at)
    }

    /// The value that holds since before that.
    #[inline]
    pub(super) fn read(&self, column: usize, before: EventTime) -> Option<Held> {
        let values = self.columns.get(column)?;
        let position = values.partition_point(|known| known.since < before);
        values[..position].last().copied()
    }

    /// Forgets what nobody asks for who reads at `through` or later.
    pub(super) fn evict(&mut self, step: i64, through: EventTime) {
        if self.columns.is_empty() {
            return;
        }
        let before = Profile::readable_before(step, through);
        for values in &mut self.columns {
            let position = values.partition_point(|known| known.since < before);
            values.drain(..position.saturating_sub(1));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.iter().all(Vec::is_empty)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let values: usize = self.columns.iter().map(|values| values.capacity() * size_of::<Held>()).sum();
        self.columns.capacity() * size_of::<Vec<Held>>() + values
    }
}

/// The most memory of so many columns, in bytes: a value for each step of the time kept, and those around.
pub(crate) fn profile_bytes_max(columns: usize, step: i64, keep: Duration) -> usize {
    let steps = usize::try_from(keep.as_millis() as i64 / step.max(1)).unwrap_or(usize::MAX) + 3;
    // A vector holds up to twice of what is in it.
    columns * (size_of::<Vec<Held>>() + 2 * steps * size_of::<Held>()) + size_of::<super::WindowState>()
}

fn begin_of(step: i64, time: EventTime) -> EventTime {
    EventTime::from_millis(super::tiles::begin_of(step, time))
}
