//! What is known of events too many to be kept one by one: sums, extremes and ends of each stretch of time.

use std::collections::VecDeque;
use std::ops::Range;

use schemas::EventTime;

/// Tiles in order of time; those without events are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Tiles {
    tiles: VecDeque<(Tile, Running)>,
    /// The running sums before the first tile kept.
    base: Running,
}

/// Sums up to and with a tile.
type Running = Part;

/// Sums over some events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) count: u64,
    pub(super) total: i64,
    pub(super) squares: i128,
}

/// What is known of the events of a stretch of time, sums aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) begin: i64,
    pub(super) first: EventTime,
    pub(super) last: EventTime,
    pub(super) last_value: i64,
    pub(super) least: i64,
    pub(super) most: i64,
}

impl Part {
    fn of(value: i64) -> Part {
        Part { count: 1, total: value, squares: i128::from(value).wrapping_mul(i128::from(value)) }
    }

    fn plus(self, other: Part) -> Part {
        Part {
            count: self.count.wrapping_add(other.count),
            total: self.total.wrapping_add(other.total),
            squares: self.squares.wrapping_add(other.squares),
        }
    }

    fn minus(self, other: Part) -> Part {
        Part {
            count: self.count.wrapping_sub(other.count),
            total: self.total.wrapping_sub(other.total),
            squares: self.squares.wrapping_sub(other.squares),
        }
    }
}

/// The begin of the tile that holds `time`.
pub(super) fn begin_of(tile: i64, time: EventTime) -> i64 {
    let millis = time.as_millis();
    millis.saturating_sub(millis.rem_euclid(tile))
}

impl Tiles {
    pub(super) const TILE_BYTES: usize = size_of::<(Tile, Running)>();

    /// Adds an event behind all of its time and before.
    pub(super) fn add(&mut self, tile: i64, time: EventTime, value: i64) {
        let begin = begin_of(tile, time);
        let index = match self.tiles.back() {
            Some((newest, _)) if newest.begin == begin => self.tiles.len() - 1,
            _ => {
                let index = self.position(begin);
                if self.tiles.get(index).is_none_or(|(known, _)| known.begin != begin) {
                    let running = self.running_before(index);
                    let empty = Tile {
                        begin,
                        first: EventTime::MAX,
                        last: EventTime::MIN,
                        last_value: 0,
                        least: i64::MAX,
                        most: i64::MIN,
                    };
                    self.tiles.insert(index, (empty, running));
                }
                index
            }
        };
        let (held, _) = &mut self.tiles[index];
        held.first = held.first.min(time);
        if time >= held.last {
            (held.last, held.last_value) = (time, value);
        }
        (held.least, held.most) = (held.least.min(value), held.most.max(value));
        for (_, running) in self.tiles.range_mut(index..) {
            *running = running.plus(Part::of(value));
        }
    }

    /// Forgets the tiles of which all happened at `through` or before.
    pub(super) fn evict(&mut self, tile: i64, through: EventTime) {
        while let Some((oldest, running)) = self.tiles.front()
            && oldest.begin.saturating_add(tile - 1) <= through.as_millis()
        {
            self.base = *running;
            self.tiles.pop_front();
        }
        if self.tiles.capacity() > 32 && self.tiles.len() < self.tiles.capacity() / 4 {
            self.tiles.shrink_to(self.tiles.len() * 2);
        }
    }

    /// The tiles of `(from, end]`, both rounded down to a tile's begin; without `end`, all from there on.
    pub(super) fn range(&self, tile: i64, from: EventTime, end: Option<EventTime>) -> Range<usize> {
        let end = end.map_or(self.tiles.len(), |end| self.position(begin_of(tile, end)));
        self.position(begin_of(tile, from)).min(end)..end
    }

    /// Of the first tile that begins at `begin` or later.
    fn position(&self, begin: i64) -> usize {
        self.tiles.partition_point(|(known, _)| known.begin < begin)
    }

    /// Sums over tiles.
    pub(super) fn part(&self, range: Range<usize>) -> Part {
        self.running_before(range.end).minus(self.running_before(range.start))
    }

    fn running_before(&self, index: usize) -> Part {
        if index == 0 { self.base } else { self.tiles[index - 1].1 }
    }

    /// Smallest and largest value in tiles.
    pub(super) fn extremes(&self, range: Range<usize>) -> (i64, i64) {
        self.tiles
            .range(range)
            .fold((i64::MAX, i64::MIN), |(least, most), (tile, _)| (least.min(tile.least), most.max(tile.most)))
    }

    /// Time of the first event in a tile.
    pub(super) fn first(&self, index: usize) -> EventTime {
        self.tiles[index].0.first
    }

    /// Time and value of the last event in a tile.
    pub(super) fn last(&self, index: usize) -> (EventTime, i64) {
        (self.tiles[index].0.last, self.tiles[index].0.last_value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tiles.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.tiles.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.tiles.capacity() * Tiles::TILE_BYTES
    }

    /// The tiles, each with its own sums.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Tile, Part)> {
        let tiles = self.tiles.iter().enumerate();
        tiles.map(|(index, (tile, running))| (tile, running.minus(self.running_before(index))))
    }

    /// Adds a tile behind all others; tells whether it was one.
    pub(super) fn push(&mut self, tile: Tile, sums: Part) -> bool {
        let behind = self.tiles.back().is_none_or(|(newest, _)| newest.begin < tile.begin && newest.last <= tile.first);
        if behind {
            let running = self.running_before(self.tiles.len()).plus(sums);
            self.tiles.push_back((tile, running));
        }
        behind
    }
}
