//! One series: the events of an entity that pass a filter, with what its features need of them.

use std::collections::VecDeque;
use std::ops::Range;

use schemas::EventTime;

use super::tiles::{Part, Tiles, begin_of};

/// What a series keeps of its events besides their times: a set of the constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs(pub(super) u8);

impl Needs {
    /// Counts and times only.
    pub(crate) const NOTHING: Needs = Needs(0);
    /// Sums of the values.
    pub(crate) const TOTAL: Needs = Needs(1);
    /// Sums of the squares, too.
    pub(crate) const SQUARES: Needs = Needs(1 | 2);
    /// Smallest and largest value.
    pub(crate) const EXTREMES: Needs = Needs(1 | 4);
    /// Values to be told apart, or held against another.
    pub(crate) const CODES: Needs = Needs(8);
    /// Where each value was seen last.
    pub(crate) const DISTINCT: Needs = Needs(8 | 16);
    /// Which events match, in runs.
    pub(crate) const RUNS: Needs = Needs(32);

    /// Values to be read one by one, of events that may have none: [`MISSING`] stands for it.
    pub(crate) const GAPS: Needs = Needs(8 | 64);

    pub(super) const KNOWN: Needs = Needs(127);

    pub(crate) const fn has(self, other: Needs) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn with(self, other: Needs) -> Needs {
        Needs(self.0 | other.0)
    }

    /// Memory of an event, in bytes; those of extremes are of blocks of events.
    pub(super) fn event_bytes(self) -> usize {
        let column = |needs: Needs, bytes: usize| if self.has(needs) { bytes } else { 0 };
        size_of::<Event>()
            + column(Needs::SQUARES, size_of::<i128>())
            + column(Needs::CODES, size_of::<i64>())
            + column(Needs::DISTINCT, size_of::<u64>())
            + column(Needs::RUNS, size_of::<Run>())
    }

    /// The most memory that a series takes with so many events and tiles, in bytes; `None` beyond any memory.
    pub(super) fn series_bytes_max(self, events: usize, tiles: usize) -> Option<usize> {
        // Rings grow by doubling, when there is one more than they hold, from 4 on.
        let ring = |count: usize, size: usize| count.checked_add(2)?.checked_mul(2)?.checked_mul(size);
        let blocks = if self.has(Needs::EXTREMES) { events / BLOCK as usize + 2 } else { 0 };
        let rings = ring(events, self.event_bytes())?
            .checked_add(ring(blocks, size_of::<(i64, i64)>())?)?
            .checked_add(ring(tiles, Tiles::TILE_BYTES)?)?;
        rings.checked_add(size_of::<Series>() + size_of::<Columns>())
    }

    /// Anything but totals, which stand beside the times.
    const fn has_columns(self) -> bool {
        self.0 & !1 != 0
    }
}

/// The value of an event that has none, in a series of [`Needs::GAPS`].
pub(crate) const MISSING: i64 = i64::MIN;

/// What a view's definition says of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeriesSpec {
    pub(crate) needs: Needs,
    /// The newest so many events are kept one by one, older ones in tiles.
    pub(crate) exact: usize,
    /// Length of a tile, in milliseconds.
    pub(crate) tile: i64,
}

impl SeriesSpec {
    pub(crate) fn begin_of_tile(&self, time: EventTime) -> EventTime {
        EventTime::from_millis(begin_of(self.tile, time))
    }
}

/// What an event gives to a series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// A number in ten-thousandths, or the code of an id.
    pub(crate) value: i64,
    /// Whether it belongs to a run.
    pub(crate) matches: bool,
}

/// Events in event-time order, those of the same time in log order: the newest ones one by one, those before them in
/// tiles. Which are the newest does not depend on the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pub(super) needs: Needs,
    pub(super) events: VecDeque<Event>,
    /// The running total just before the first event kept.
    base: i64,
    /// What few series need.
    pub(super) columns: Option<Box<Columns>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) time: EventTime,
    /// Sum of the values up to and with this event. May wrap around; differences don't.
    total: i64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    /// Number of events dropped in front: positions are counted from there.
    dropped: u64,
    squares: VecDeque<i128>,
    base_square: i128,
    /// Smallest and largest value of the positions `BLOCK * i` to `BLOCK * (i + 1)`, dropped ones counted.
    blocks: VecDeque<(i64, i64)>,
    codes: VecDeque<i64>,
    /// One more than the position, dropped ones counted, at which the same code stood last; 0: it never did.
    previous: VecDeque<u64>,
    runs: VecDeque<Run>,
    pub(super) tiles: Tiles,
}

/// How an event stands to those that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Length of the last unbroken run of matches, up to this event; 0: nothing matched yet.
    length: u32,
    /// Number of events since its end.
    others: u32,
}

const BLOCK: u64 = 64;

/// The events of a window: what is in tiles, and positions of those that are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    tiles: Range<usize>,
    events: Range<usize>,
}

impl Window {
    pub(crate) fn is_empty(&self) -> bool {
        self.tiles.is_empty() && self.events.is_empty()
    }
}

impl Series {
    pub(super) fn new(needs: Needs) -> Series {
        Series { needs, ..Series::default() }
    }

    /// Adds an event behind all with times up to its own, and tells whether it is kept by itself.
    ///
    /// O(1) for the newest; a late one moves those behind it, at most the allowed lateness' worth.
    #[inline]
    pub(super) fn insert(&mut self, spec: &SeriesSpec, time: EventTime, sample: Sample) -> bool {
        let newest = self.events.back().is_none_or(|last| last.time <= time);
        let position = if newest { self.events.len() } else { self.position_after(time) };
        if position == 0 && self.events.len() >= spec.exact {
            self.tiles_mut().add(spec.tile, time, sample.value);
            return false;
        }
        let value = if self.needs.has(Needs::TOTAL) { sample.value } else { 0 };
        let total = self.total_before(position).wrapping_add(value);
        if newest {
            self.events.push_back(Event { time, total });
        } else {
            self.events.insert(position, Event { time, total });
            for event in self.events.range_mut(position + 1..) {
                event.total = event.total.wrapping_add(value);
            }
        }
        if self.needs.has_columns() {
            self.insert_columns(position, sample);
        }
        if self.events.len() > spec.exact
            && let Some((time, value)) = self.pop()
        {
            self.tiles_mut().add(spec.tile, time, value);
        }
        true
    }

    fn insert_columns(&mut self, position: usize, sample: Sample) {
        let needs = self.needs;
        let columns = self.columns.get_or_insert_default();
        let newest = position + 1 == self.events.len();
        if needs.has(Needs::SQUARES) {
            let square = i128::from(sample.value).wrapping_mul(i128::from(sample.value));
            let before = if position == 0 { columns.base_square } else { columns.squares[position - 1] };
            columns.squares.insert(position, before.wrapping_add(square));
            for later in columns.squares.range_mut(position + 1..) {
                *later = later.wrapping_add(square);
            }
        }
        if needs.has(Needs::CODES) {
            columns.codes.insert(position, sample.value);
        }
        if needs.has(Needs::DISTINCT) {
            columns.insert_previous(position);
        }
        if needs.has(Needs::RUNS) {
            columns.insert_run(position, sample.matches);
        }
        if needs.has(Needs::EXTREMES) {
            let at = columns.dropped + position as u64;
            if newest && !at.is_multiple_of(BLOCK) && !columns.blocks.is_empty() {
                let last = columns.blocks.len() - 1;
                let (least, most) = columns.blocks[last];
                columns.blocks[last] = (least.min(sample.value), most.max(sample.value));
            } else {
                self.rebuild_blocks(position);
            }
        }
    }

    /// Computes the blocks anew from the one that holds `position` on.
    fn rebuild_blocks(&mut self, position: usize) {
        let Some(mut columns) = self.columns.take() else { return };
        let first_block = columns.dropped / BLOCK;
        let mut block = (columns.dropped + position as u64) / BLOCK;
        columns.blocks.truncate((block - first_block) as usize);
        loop {
            let from = (block * BLOCK).saturating_sub(columns.dropped) as usize;
            let end = ((block + 1) * BLOCK - columns.dropped).min(self.events.len() as u64) as usize;
            if from >= end {
                break;
            }
            columns.blocks.push_back(self.scan(from..end));
            block += 1;
        }
        self.columns = Some(columns);
    }

    /// Drops the oldest event; returns its time and value.
    fn pop(&mut self) -> Option<(EventTime, i64)> {
        let value = self.value_at(0)?;
        let event = self.events.pop_front()?;
        self.base = event.total;
        if let Some(columns) = &mut self.columns {
            columns.pop();
        }
        Some((event.time, value))
    }

    pub(super) fn tiles_mut(&mut self) -> &mut Tiles {
        &mut self.columns.get_or_insert_default().tiles
    }

    /// Forgets what happened at `through` or before.
    pub(super) fn evict(&mut self, tile: i64, through: EventTime) {
        if let Some(columns) = &mut self.columns {
            columns.tiles.evict(tile, through);
            if !columns.tiles.is_empty() {
                // What is in tiles is older than the events.
                return;
            }
            if !self.needs.has_columns() {
                self.columns = None;
            }
        }
        while self.events.front().is_some_and(|event| event.time <= through) {
            self.pop();
        }
        // An entity that was busy once gives its memory back.
        if self.events.capacity() > 32 && self.events.len() < self.events.capacity() / 4 {
            let keep = self.events.len() * 2;
            self.events.shrink_to(keep);
            if let Some(columns) = &mut self.columns {
                columns.shrink_to(keep);
            }
        }
    }

    /// The events in `(from, end]`; without the newest of them if that is to be left out. Bounds that lie among the
    /// tiles are rounded down to a tile's begin.
    #[inline]
    pub(crate) fn window(&self, tile: i64, from: EventTime, end: EventTime, without_newest: bool) -> Window {
        let after = match self.events.back() {
            Some(newest) if newest.time <= end => self.events.len(),
            _ => self.position_after(end),
        };
        let start = self.position_after(from);
        let events = start.min(after)..after.saturating_sub(usize::from(without_newest)).max(start.min(after));
        let tiles = match (&self.columns, self.events.front()) {
            (Some(columns), oldest) if !columns.tiles.is_empty() => match oldest {
                Some(oldest) if from >= oldest.time => 0..0,
                Some(oldest) if end >= oldest.time => columns.tiles.range(tile, from, None),
                _ => columns.tiles.range(tile, from, Some(end)),
            },
            _ => 0..0,
        };
        Window { tiles, events }
    }

    /// Number of events kept with times up to `time`.
    #[inline]
    fn position_after(&self, time: EventTime) -> usize {
        self.events.partition_point(|event| event.time <= time)
    }

    #[inline]
    fn tiled(&self, window: &Window) -> Part {
        match &self.columns {
            Some(columns) if !window.tiles.is_empty() => columns.tiles.part(window.tiles.clone()),
            _ => Part::default(),
        }
    }

    #[inline]
    pub(crate) fn count(&self, window: &Window) -> u64 {
        window.events.len() as u64 + self.tiled(window).count
    }

    #[inline]
    pub(crate) fn total(&self, window: &Window) -> i64 {
        let exact = self.total_before(window.events.end).wrapping_sub(self.total_before(window.events.start));
        exact.wrapping_add(self.tiled(window).total)
    }

    pub(crate) fn squares(&self, window: &Window) -> i128 {
        let Some(columns) = &self.columns else { return 0 };
        let before = |position: usize| match position {
            0 => columns.base_square,
            position => columns.squares[position - 1],
        };
        let exact = before(window.events.end).wrapping_sub(before(window.events.start));
        exact.wrapping_add(self.tiled(window).squares)
    }

    /// Smallest and largest value; `None` over no events.
    pub(crate) fn extremes(&self, window: &Window) -> Option<(i64, i64)> {
        let columns = self.columns.as_deref()?;
        let (start, end) = (window.events.start as u64 + columns.dropped, window.events.end as u64 + columns.dropped);
        let (first, last) = (start.div_ceil(BLOCK), end / BLOCK);
        let (mut least, mut most) = if first < last {
            let skipped = (first - columns.dropped / BLOCK) as usize;
            let of_blocks = columns.blocks.range(skipped..skipped + (last - first) as usize);
            let relative = |block: u64| (block * BLOCK - columns.dropped) as usize;
            let edges = [window.events.start..relative(first), relative(last)..window.events.end];
            let edges = edges.map(|edge| self.scan(edge));
            of_blocks.chain(&edges).fold(NO_EXTREMES, |a, b| (a.0.min(b.0), a.1.max(b.1)))
        } else {
            self.scan(window.events.clone())
        };
        if !window.tiles.is_empty() {
            let tiled = columns.tiles.extremes(window.tiles.clone());
            (least, most) = (least.min(tiled.0), most.max(tiled.1));
        }
        (least <= most).then_some((least, most))
    }

    fn scan(&self, events: Range<usize>) -> (i64, i64) {
        let mut before = self.total_before(events.start);
        self.events.range(events).fold(NO_EXTREMES, |(least, most), event| {
            let value = event.total.wrapping_sub(before);
            before = event.total;
            (least.min(value), most.max(value))
        })
    }

    /// Time and value of the newest event in the window.
    pub(crate) fn last(&self, window: &Window) -> Option<(EventTime, i64)> {
        match window.events.clone().next_back() {
            Some(position) => Some((self.events[position].time, self.value_at(position)?)),
            None if window.tiles.is_empty() => None,
            None => self.columns.as_ref().map(|columns| columns.tiles.last(window.tiles.end - 1)),
        }
    }

    /// Time of the oldest event in the window.
    pub(crate) fn first(&self, window: &Window) -> Option<EventTime> {
        match &self.columns {
            Some(columns) if !window.tiles.is_empty() => Some(columns.tiles.first(window.tiles.start)),
            _ => window.events.clone().next().map(|position| self.events[position].time),
        }
    }

    /// Times of the events kept one by one, newest first.
    #[inline]
    pub(crate) fn times_back(&self, window: &Window) -> impl Iterator<Item = EventTime> {
        self.events.range(window.events.clone()).rev().map(|event| event.time)
    }

    /// Values of the events kept one by one, newest first; `None` for one without.
    #[inline]
    pub(crate) fn values_back(&self, window: &Window) -> impl Iterator<Item = Option<i64>> {
        let coded = self.columns.as_ref().filter(|_| self.needs.has(Needs::CODES));
        let gaps = self.needs.has(Needs::GAPS);
        window.events.clone().rev().map(move |position| {
            let value = match coded {
                Some(columns) => columns.codes[position],
                None => self.events[position].total.wrapping_sub(self.total_before(position)),
            };
            (!gaps || value != MISSING).then_some(value)
        })
    }

    /// Number of different values among the events kept one by one.
    pub(crate) fn distinct(&self, window: &Window) -> u64 {
        let Some(columns) = &self.columns else { return 0 };
        // The first of its kind in the window is the one that was seen before the window, or never.
        let start = columns.dropped + window.events.start as u64;
        slices(&columns.previous, &window.events)
            .map(|slice| slice.iter().map(|&previous| u64::from(previous <= start)).sum::<u64>())
            .sum()
    }

    /// The share of the values that are smaller than `value`, those equal to it counted half; among the events kept
    /// one by one. `None` over no events.
    pub(crate) fn rank(&self, window: &Window, value: i64) -> Option<f64> {
        let columns = self.columns.as_ref()?;
        let twice: u64 = slices(&columns.codes, &window.events)
            .map(|slice| slice.iter().map(|&code| u64::from(code < value) + u64::from(code <= value)).sum::<u64>())
            .sum();
        let count = window.events.len();
        (count > 0).then(|| twice as f64 / (2 * count) as f64)
    }

    /// When `code` first came up in the window, among the events kept one by one.
    pub(crate) fn first_of(&self, window: &Window, code: i64) -> Option<EventTime> {
        let columns = self.columns.as_ref()?;
        let mut position = window.events.start;
        for slice in slices(&columns.codes, &window.events) {
            match slice.iter().position(|&known| known == code) {
                Some(at) => return Some(self.events[position + at].time),
                None => position += slice.len(),
            }
        }
        None
    }

    /// The last unbroken run of matches in the window, among the events kept one by one: the positions it takes.
    pub(crate) fn run(&self, window: &Window) -> Option<Range<usize>> {
        let columns = self.columns.as_ref()?;
        let newest = window.events.clone().next_back()?;
        let Run { length, others } = columns.runs[newest];
        let end = (newest + 1).checked_sub(others as usize).filter(|&end| end > window.events.start)?;
        (length > 0).then(|| end.saturating_sub(length as usize).max(window.events.start)..end)
    }

    /// Positions of the window's events of one time, among those kept one by one.
    pub(super) fn events_at(&self, window: &Window, time: EventTime) -> Range<usize> {
        let before = self.events.partition_point(|event| event.time < time).max(window.events.start);
        before..self.position_after(time).min(window.events.end).max(before)
    }

    pub(crate) fn time_at(&self, position: usize) -> EventTime {
        self.events[position].time
    }

    /// How many events of the window stand behind `position`.
    pub(crate) fn behind(&self, window: &Window, position: usize) -> u64 {
        (window.events.end - position) as u64
    }

    #[inline]
    fn total_before(&self, position: usize) -> i64 {
        if position == 0 { self.base } else { self.events[position - 1].total }
    }

    pub(super) fn value_at(&self, position: usize) -> Option<i64> {
        let event = self.events.get(position)?;
        match &self.columns {
            Some(columns) if self.needs.has(Needs::CODES) => columns.codes.get(position).copied(),
            _ => Some(event.total.wrapping_sub(self.total_before(position))),
        }
    }

    pub(super) fn matches_at(&self, position: usize) -> bool {
        let run = self.columns.as_ref().and_then(|columns| columns.runs.get(position));
        run.is_some_and(|run| run.length > 0 && run.others == 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.columns.as_ref().is_none_or(|columns| columns.tiles.is_empty())
    }

    /// Memory beyond its own size, in bytes.
    #[inline]
    pub(super) fn heap_bytes(&self) -> usize {
        let columns = self.columns.as_ref().map_or(0, |columns| columns.bytes());
        self.events.capacity() * size_of::<Event>() + columns
    }

    pub(super) fn reserve(&mut self, count: usize) {
        self.events.reserve_exact(count);
    }
}

const NO_EXTREMES: (i64, i64) = (i64::MAX, i64::MIN);

impl Columns {
    /// The code at `position` is new there: those behind have moved by one.
    fn insert_previous(&mut self, position: usize) {
        let at = self.dropped + position as u64;
        let code = self.codes[position];
        let same = |&(_, &known): &(usize, &i64)| known == code;
        let before = self
            .codes
            .range(..position)
            .enumerate()
            .rev()
            .find(same)
            .map_or(0, |(found, _)| self.dropped + found as u64 + 1);
        for later in self.previous.range_mut(position..) {
            *later += u64::from(*later > at);
        }
        self.previous.insert(position, before);
        if let Some((next, _)) = self.codes.range(position + 1..).enumerate().find(same) {
            self.previous[position + 1 + next] = at + 1;
        }
    }

    fn insert_run(&mut self, position: usize, matches: bool) {
        self.runs.insert(position, Run { length: u32::from(matches), others: u32::from(!matches) });
        let mut last = match position {
            0 => Run { length: 0, others: 0 },
            position => self.runs[position - 1],
        };
        for run in self.runs.range_mut(position..) {
            let matches = run.length > 0 && run.others == 0;
            last = match matches {
                true if last.others == 0 => Run { length: last.length + 1, others: 0 },
                true => Run { length: 1, others: 0 },
                false => Run { length: last.length, others: last.others + 1 },
            };
            *run = last;
        }
    }

    /// Drops what belongs to the oldest event.
    fn pop(&mut self) {
        if let Some(square) = self.squares.pop_front() {
            self.base_square = square;
        }
        self.codes.pop_front();
        self.previous.pop_front();
        self.runs.pop_front();
        self.dropped += 1;
        if self.dropped.is_multiple_of(BLOCK) {
            self.blocks.pop_front();
        }
    }

    fn shrink_to(&mut self, count: usize) {
        self.squares.shrink_to(count);
        self.codes.shrink_to(count);
        self.previous.shrink_to(count);
        self.runs.shrink_to(count);
        self.blocks.shrink_to(count);
    }

    fn bytes(&self) -> usize {
        size_of::<Columns>()
            + self.squares.capacity() * size_of::<i128>()
            + self.blocks.capacity() * size_of::<(i64, i64)>()
            + self.codes.capacity() * size_of::<i64>()
            + self.previous.capacity() * size_of::<u64>()
            + self.runs.capacity() * size_of::<Run>()
            + self.tiles.heap_bytes()
    }
}

/// The parts of `range` in a ring, so that they are gone through as fast as memory.
fn slices<'a, T>(ring: &'a VecDeque<T>, range: &Range<usize>) -> impl Iterator<Item = &'a [T]> {
    let (front, back) = ring.as_slices();
    let split = front.len();
    let of_front = &front[range.start.min(split)..range.end.min(split)];
    let of_back = &back[range.start.max(split) - split..range.end.max(split) - split];
    [of_front, of_back].into_iter()
}
