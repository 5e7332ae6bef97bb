//! The states that the owner of a partition keeps in memory.

use hashbrown::HashMap;
use schemas::{CodecError, Id};

use crate::store::{StateWrite, StoredState};
use crate::window::WindowState;

/// Entity states of one view and partition, with what the store has yet to be told.
#[derive(Debug, Default)]
pub struct EntityTable {
    slots: HashMap<Id, Slot>,
    /// Keys of states that changed since they were last handed out for writing.
    changed: Vec<Id>,
    bytes: usize,
    /// Counts batches: the clock by which a state was last used.
    now: u32,
}

#[derive(Debug)]
struct Slot {
    state: WindowState,
    /// The state includes all events of its partition below this offset.
    stamp: u64,
    /// In `changed`.
    listed: bool,
    /// Not in the store as it is here; must not be dropped.
    unwritten: bool,
    used: u32,
}

impl EntityTable {
    /// Of `keys`, those that are not in memory, each once.
    pub fn missing<'a>(&self, keys: impl Iterator<Item = &'a Id>) -> Vec<Id> {
        let mut missing: Vec<Id> = keys.filter(|key| !self.slots.contains_key(*key)).cloned().collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// Takes in what the store has for `key`; nothing means an entity that was never seen.
    pub fn load(&mut self, key: Id, stored: Option<StoredState>) -> Result<(), CodecError> {
        let (state, stamp) = match stored {
            Some(stored) => (WindowState::decode(&stored.bytes)?, stored.stamp),
            None => (WindowState::default(), 0),
        };
        self.bytes += slot_bytes(&key, &state);
        self.slots.insert(key, Slot { state, stamp, listed: false, unwritten: false, used: self.now });
        Ok(())
    }

    pub fn get(&self, key: &Id) -> Option<&WindowState> {
        self.slots.get(key).map(|slot| &slot.state)
    }

    /// The state of `key` includes all events of its partition below this offset.
    pub fn stamp(&self, key: &Id) -> Option<u64> {
        self.slots.get(key).map(|slot| slot.stamp)
    }

    /// Applies the event at `offset` to the state of `key`, which must be in memory, unless the
    /// state includes the event already (it was written ahead of the watermark); tells whether.
    #[inline]
    pub fn update<R>(&mut self, key: &Id, offset: u64, change: impl FnOnce(&mut WindowState) -> R) -> Option<R> {
        let slot = self.slots.get_mut(key).expect("states are loaded ahead of the events that change them");
        slot.used = self.now;
        if slot.stamp > offset {
            return None;
        }
        let before = slot.state.bytes();
        let result = change(&mut slot.state);
        self.bytes = self.bytes + slot.state.bytes() - before;
        slot.stamp = offset + 1;
        slot.unwritten = true;
        if !slot.listed {
            slot.listed = true;
            self.changed.push(key.clone());
        }
        Some(result)
    }

    /// The states that changed since the last call, encoded, once `evict` has taken out what is needed no
    /// more. They stay in memory until [`EntityTable::written`].
    pub fn changed(&mut self, evict: impl Fn(&mut WindowState)) -> Vec<StateWrite> {
        let mut writes = Vec::with_capacity(self.changed.len());
        for key in self.changed.drain(..) {
            let slot = self.slots.get_mut(&key).expect("a changed state stays in memory");
            slot.listed = false;
            let before = slot.state.bytes();
            evict(&mut slot.state);
            self.bytes = self.bytes + slot.state.bytes() - before;
            let mut bytes = Vec::with_capacity(16 + 6 * slot.state.len());
            slot.state.encode(&mut bytes);
            writes.push(StateWrite { key, state: StoredState { stamp: slot.stamp, bytes } });
        }
        writes
    }

    /// Number of states that [`EntityTable::changed`] would give.
    pub fn changed_len(&self) -> usize {
        self.changed.len()
    }

    /// Takes note that the store has these states.
    pub fn written(&mut self, writes: &[StateWrite]) {
        for write in writes {
            if let Some(slot) = self.slots.get_mut(&write.key)
                && slot.stamp == write.state.stamp
            {
                slot.unwritten = false;
            }
        }
    }

    /// Starts a batch, and first drops written states until `budget` bytes are kept, those that
    /// were not used for the longest time before the others.
    pub fn begin_batch(&mut self, budget: usize) {
        if self.bytes > budget {
            // A tenth more than needed, so that the scan below is rare.
            let mut surplus = self.bytes - budget + budget / 10;
            let mut candidates: Vec<(u32, Id)> = self
                .slots
                .iter()
                .filter(|(_, slot)| !slot.unwritten)
                .map(|(key, slot)| (slot.used, key.clone()))
                .collect();
            candidates.sort_unstable_by_key(|(used, _)| *used);
            for (_, key) in candidates {
                if surplus == 0 {
                    break;
                }
                if let Some(slot) = self.slots.remove(&key) {
                    let freed = slot_bytes(&key, &slot.state);
                    self.bytes -= freed;
                    surplus = surplus.saturating_sub(freed);
                }
            }
        }
        self.now = self.now.wrapping_add(1);
    }

    /// Memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of states in memory.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

fn slot_bytes(key: &Id, state: &WindowState) -> usize {
    let heap = if key.is_heap_allocated() { key.capacity() } else { 0 };
    size_of::<(Id, Slot)>() - size_of::<WindowState>() + heap + state.bytes()
}

#[cfg(test)]
mod tests {
    use schemas::{Amount, EventTime, Transaction};

    use super::*;
    use crate::{Entity, FeatureSet, Scratch};

    fn touch(table: &mut EntityTable, key: &str, offset: u64) -> bool {
        let key = Id::from(key);
        if table.get(&key).is_none() {
            table.load(key.clone(), None).expect("nothing to decode");
        }
        let transaction = Transaction {
            transaction_id: Id::from(""),
            event_time: EventTime::from_millis(offset as i64),
            card_id: key.clone(),
            terminal_id: Id::from(""),
            amount: Amount::from_cents(1),
        };
        let features = FeatureSet::bundled();
        let view = features.view_of(Entity::CardId).expect("the bundled definitions have one");
        table.update(&key, offset, |state| view.apply(&transaction, state, &mut Scratch::default())).is_some()
    }

    #[test]
    fn an_event_that_the_state_includes_is_skipped() {
        let mut table = EntityTable::default();
        assert!(touch(&mut table, "a", 7));
        assert!(!touch(&mut table, "a", 7));
        assert!(!touch(&mut table, "a", 3));
        assert!(touch(&mut table, "a", 8));
        assert_eq!(table.get(&Id::from("a")).map(WindowState::len), Some(2));
    }

    #[test]
    fn only_written_states_are_dropped_and_the_longest_unused_first() {
        let mut table = EntityTable::default();
        for (offset, key) in ["a", "b", "c"].into_iter().enumerate() {
            touch(&mut table, key, offset as u64);
            table.begin_batch(usize::MAX);
        }
        table.begin_batch(0);
        assert_eq!(table.len(), 3, "nothing was written yet");

        let writes = table.changed(|_| ());
        assert_eq!(writes.len(), 3);
        touch(&mut table, "b", 10);
        table.written(&writes);
        let one = table.bytes() / 3;
        table.begin_batch(2 * one + one / 2);
        assert!(table.get(&Id::from("a")).is_none(), "the longest unused goes");
        table.begin_batch(0);
        assert_eq!(table.len(), 1, "b changed after it was handed out");
        assert_eq!(table.changed(|_| ()).len(), 1);
    }

    #[test]
    fn bytes_follow_the_states() {
        let mut table = EntityTable::default();
        for offset in 0..1000 {
            touch(&mut table, if offset % 3 == 0 { "a" } else { "an id too long to be held inline" }, offset);
        }
        let writes = table.changed(|_| ());
        table.written(&writes);
        table.begin_batch(0);
        assert_eq!((table.len(), table.bytes()), (0, 0));
    }
}
