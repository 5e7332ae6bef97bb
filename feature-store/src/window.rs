//! The events of one entity, kept so that any window over them can be read at any event time.

use std::collections::VecDeque;

use schemas::{Amount, CodecError, EventTime, Id, Reader, write_signed, write_unsigned};

const VERSION: u8 = 1;

/// Transactions and labels of one entity within the reach of its windows.
///
/// Transactions stand in event-time order, those of the same time in log order, each with the
/// running total of the amounts. A window is two binary searches and a subtraction, O(log n), and
/// exact: totals are integers, so they do not depend on how the state was built up. A window's
/// sum is exact up to 9.2·10^14 currency units.
#[derive(Clone, Debug, Default)]
pub struct WindowState {
    events: VecDeque<Event>,
    /// The running total just before the first event kept.
    base: i64,
    /// By transaction time, then id, then the time at which they became known.
    labels: Vec<LabelEntry>,
    /// Memory of those labels' ids that are not held inline.
    label_id_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    time: EventTime,
    /// Sum of the amounts up to and with this event, in units of [`Amount`]. May wrap around;
    /// differences don't.
    total: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LabelEntry {
    transaction_time: EventTime,
    transaction_id: Id,
    known: EventTime,
    fraud: bool,
}

impl WindowState {
    /// Adds a transaction and returns its position: behind all with times up to its own.
    ///
    /// O(1) for the newest; a late one moves those behind it, at most the allowed lateness' worth.
    #[inline]
    pub fn insert(&mut self, time: EventTime, amount: Amount) -> usize {
        let newest = self.events.back().is_none_or(|last| last.time <= time);
        let position = if newest { self.events.len() } else { self.events.partition_point(|event| event.time <= time) };
        let total = self.total_before(position).wrapping_add(amount.units());
        if newest {
            self.events.push_back(Event { time, total });
        } else {
            self.events.insert(position, Event { time, total });
            for event in self.events.range_mut(position + 1..) {
                event.total = event.total.wrapping_add(amount.units());
            }
        }
        position
    }

    /// Adds what became known of a transaction. The same label again changes nothing, and the
    /// order in which labels come doesn't matter.
    pub fn insert_label(&mut self, transaction_id: &Id, transaction_time: EventTime, known: EventTime, fraud: bool) {
        let entry = LabelEntry { transaction_time, transaction_id: transaction_id.clone(), known, fraud };
        if let Err(position) = self.labels.binary_search(&entry) {
            self.label_id_bytes += heap_bytes(transaction_id);
            self.labels.insert(position, entry);
        }
    }

    /// Forgets what happened at `through` or before.
    pub fn evict(&mut self, through: EventTime) {
        while let Some(event) = self.events.front()
            && event.time <= through
        {
            self.base = event.total;
            self.events.pop_front();
        }
        let old = self.labels.partition_point(|label| label.transaction_time <= through);
        for label in self.labels.drain(..old) {
            self.label_id_bytes -= heap_bytes(&label.transaction_id);
        }
        // An entity that was busy once gives its memory back.
        if self.events.capacity() > 32 && self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
        if self.labels.capacity() > 32 && self.labels.len() < self.labels.capacity() / 4 {
            self.labels.shrink_to(self.labels.len() * 2);
        }
    }

    /// Count and amount (in units) of the transactions in `(from, end]`; with `last`, of those of
    /// them that stand no further than this position.
    #[inline]
    pub(crate) fn sum(&self, from: EventTime, end: EventTime, last: Option<usize>) -> (u64, i64) {
        let end = match last {
            Some(position) => position + 1,
            None => self.events.partition_point(|event| event.time <= end),
        };
        let start = self.events.partition_point(|event| event.time <= from);
        if start >= end {
            return (0, 0);
        }
        ((end - start) as u64, self.total_before(end).wrapping_sub(self.total_before(start)))
    }

    /// Amount of the transaction at `position`, in units.
    pub(crate) fn amount_at(&self, position: usize) -> i64 {
        self.total_before(position + 1).wrapping_sub(self.total_before(position))
    }

    /// Number of transactions in `(from, end]` that are fraud by the last label known at `known_by`.
    pub(crate) fn frauds(&self, from: EventTime, end: EventTime, known_by: EventTime) -> u64 {
        let start = self.labels.partition_point(|label| label.transaction_time <= from);
        let mut labels = self.labels[start..].iter().take_while(|label| label.transaction_time <= end).peekable();
        let mut frauds = 0;
        while let Some(first) = labels.next() {
            let mut fraud = first.known <= known_by && first.fraud;
            while let Some(next) = labels.next_if(|next| next.transaction_id == first.transaction_id) {
                if next.known <= known_by {
                    fraud = next.fraud;
                }
            }
            frauds += u64::from(fraud);
        }
        frauds
    }

    #[inline]
    fn total_before(&self, position: usize) -> i64 {
        if position == 0 { self.base } else { self.events[position - 1].total }
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.labels.is_empty()
    }

    /// Number of transactions kept.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Time of the newest transaction kept.
    pub fn newest(&self) -> Option<EventTime> {
        self.events.back().map(|event| event.time)
    }

    /// Memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<WindowState>()
            + self.events.capacity() * size_of::<Event>()
            + self.labels.capacity() * size_of::<LabelEntry>()
            + self.label_id_bytes
    }

    /// Appends the state in its binary form, version 1: a count, then per transaction the distance
    /// in time to the one before and the amount; the same for labels. Values that are whole
    /// seconds and cents, nearly all, are written as such: about 5 bytes a transaction.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        write_unsigned(out, self.events.len() as u64);
        let (mut time, mut total) = (0, self.base);
        for event in &self.events {
            write_scaled(out, event.time.as_millis().wrapping_sub(time), 1000);
            write_scaled(out, event.total.wrapping_sub(total), Amount::SCALE / 100);
            (time, total) = (event.time.as_millis(), event.total);
        }
        write_unsigned(out, self.labels.len() as u64);
        let mut time = 0;
        for label in &self.labels {
            let transaction_time = label.transaction_time.as_millis();
            write_scaled(out, transaction_time.wrapping_sub(time), 1000);
            write_scaled(out, label.known.as_millis().wrapping_sub(transaction_time), 1000);
            out.push(u8::from(label.fraud));
            write_unsigned(out, label.transaction_id.len() as u64);
            out.extend_from_slice(label.transaction_id.as_bytes());
            time = transaction_time;
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<WindowState, CodecError> {
        let mut reader = Reader::new(bytes);
        let version = reader.byte()?;
        if version != VERSION {
            return Err(CodecError::UnknownVersion { found: version, known: VERSION });
        }
        let count = reader.count(2)?;
        let mut state = WindowState { events: VecDeque::with_capacity(count), ..WindowState::default() };
        let (mut time, mut total) = (0i64, 0i64);
        for _ in 0..count {
            time = time.wrapping_add(read_scaled(&mut reader, 1000)?);
            total = total.wrapping_add(read_scaled(&mut reader, Amount::SCALE / 100)?);
            state.events.push_back(Event { time: EventTime::from_millis(time), total });
        }
        let count = reader.count(4)?;
        state.labels.reserve_exact(count);
        let mut time = 0i64;
        for _ in 0..count {
            time = time.wrapping_add(read_scaled(&mut reader, 1000)?);
            let known = time.wrapping_add(read_scaled(&mut reader, 1000)?);
            let label = LabelEntry {
                transaction_time: EventTime::from_millis(time),
                known: EventTime::from_millis(known),
                fraud: reader.byte()? != 0,
                transaction_id: reader.text()?.into(),
            };
            state.label_id_bytes += heap_bytes(&label.transaction_id);
            state.labels.push(label);
        }
        reader.finish()?;
        if !state.labels.is_sorted() || !state.events.iter().is_sorted_by_key(|event| event.time) {
            return Err(CodecError::Invalid("a state that is out of order"));
        }
        Ok(state)
    }
}

/// Equal states give equal features; where they come from (their base) doesn't matter.
impl PartialEq for WindowState {
    fn eq(&self, other: &WindowState) -> bool {
        let events = |state: &WindowState| -> Vec<(EventTime, i64)> {
            (0..state.len()).map(|position| (state.events[position].time, state.amount_at(position))).collect()
        };
        self.labels == other.labels && events(self) == events(other)
    }
}

/// What an id takes beyond its own size. By its length, which a copy has too.
fn heap_bytes(id: &Id) -> usize {
    if id.is_heap_allocated() { id.len() } else { 0 }
}

/// Writes `value`, divided by `unit` where that goes, which the lowest bit tells.
#[inline]
fn write_scaled(out: &mut Vec<u8>, value: i64, unit: i64) {
    if value % unit == 0 {
        // unit is at least 100, so the quotient has bits to spare.
        write_signed(out, (value / unit) << 1);
    } else {
        write_wide(out, value);
    }
}

/// A value in its own unit: the bit shifted in must not push its sign out.
#[inline]
fn write_wide(out: &mut Vec<u8>, value: i64) {
    if value << 1 >> 1 == value && value != i64::MAX >> 1 {
        write_signed(out, value << 1 | 1);
    } else {
        // i64::MAX announces a value that is written without the bit.
        write_signed(out, i64::MAX);
        write_signed(out, value);
    }
}

#[inline]
fn read_scaled(reader: &mut Reader<'_>, unit: i64) -> Result<i64, CodecError> {
    let value = reader.signed()?;
    if value == i64::MAX {
        return reader.signed();
    }
    if value & 1 == 1 { Ok(value >> 1) } else { Ok((value >> 1).wrapping_mul(unit)) }
}
