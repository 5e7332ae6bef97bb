//! The binary form of a state, version 3: what came in, from which the rest is computed again.

use schemas::{Amount, CodecError, EventTime, Reader, write_bytes, write_float, write_signed, write_unsigned};

use super::WindowState;
use super::labels::{LabelEntry, Labels};
use super::profile::{Held, Profile};
use super::series::{Needs, Sample, Series, SeriesSpec};
use super::tiles::{Part, Tile, Tiles};

const VERSION: u8 = 3;

const CENT: i64 = Amount::SCALE / 100;
const SECOND: i64 = 1000;

/// A series is given back as it was written, whatever its definition bounds it by.
const UNBOUNDED: SeriesSpec = SeriesSpec { needs: Needs::NOTHING, exact: usize::MAX, tile: 1 };

impl WindowState {
    /// Of the encoding.
    pub(crate) const VERSION: u8 = VERSION;

    /// Appends the state: per series what it keeps, then a count, and per event the distance in time to the one before, the value
    /// if there is one, and whether it matches; tiles likewise; then the labels, and the profile's columns. Values that are whole
    /// seconds and cents, nearly all, are written as such: about 5 bytes a transaction.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        write_unsigned(out, self.series.len() as u64);
        for series in &self.series {
            encode_series(series, out);
        }
        let labels = self.labels.entries();
        write_unsigned(out, labels.len() as u64);
        let mut time = 0;
        for label in labels {
            let transaction_time = label.transaction_time.as_millis();
            write_scaled(out, transaction_time.wrapping_sub(time), SECOND);
            write_scaled(out, label.known.as_millis().wrapping_sub(transaction_time), SECOND);
            out.push(u8::from(label.fraud));
            write_bytes(out, label.transaction_id.as_bytes());
            time = transaction_time;
        }
        write_unsigned(out, self.profile.columns.len() as u64);
        for values in &self.profile.columns {
            write_unsigned(out, values.len() as u64);
            for held in values {
                write_scaled(out, held.since.as_millis(), SECOND);
                write_float(out, held.value);
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<WindowState, CodecError> {
        let mut reader = Reader::new(bytes);
        let version = reader.byte()?;
        if version != VERSION {
            return Err(CodecError::UnknownVersion { found: version, known: VERSION });
        }
        let mut series = Vec::new();
        for _ in 0..reader.count(3)? {
            series.push(decode_series(&mut reader)?);
        }
        let count = reader.count(4)?;
        let mut entries = Vec::with_capacity(count);
        let mut time = 0i64;
        for _ in 0..count {
            time = time.wrapping_add(read_scaled(&mut reader, SECOND)?);
            let known = time.wrapping_add(read_scaled(&mut reader, SECOND)?);
            entries.push(LabelEntry {
                transaction_time: EventTime::from_millis(time),
                known: EventTime::from_millis(known),
                fraud: reader.byte()? != 0,
                transaction_id: reader.text()?.into(),
            });
        }
        let mut profile = Profile::default();
        for _ in 0..reader.count(1)? {
            let count = reader.count(9)?;
            let mut values = Vec::with_capacity(count);
            for _ in 0..count {
                let since = EventTime::from_millis(read_scaled(&mut reader, SECOND)?);
                values.push(Held { since, value: reader.float()? });
            }
            if !values.is_sorted_by_key(|held| held.since) {
                return Err(CodecError::Invalid("a value of a profile that is out of order"));
            }
            profile.columns.push(values);
        }
        reader.finish()?;
        let labels = Labels::from_entries(entries).ok_or(CodecError::Invalid("a label that is out of order"))?;
        Ok(WindowState { series, labels, profile })
    }
}

fn has_value(needs: Needs) -> bool {
    needs.has(Needs::TOTAL) || needs.has(Needs::CODES)
}

fn encode_series(series: &Series, out: &mut Vec<u8>) {
    let needs = series.needs;
    out.push(needs.0);
    write_unsigned(out, series.events.len() as u64);
    let mut time = 0;
    for (position, event) in series.events.iter().enumerate() {
        write_scaled(out, event.time.as_millis().wrapping_sub(time), SECOND);
        time = event.time.as_millis();
        if has_value(needs) {
            write_scaled(out, series.value_at(position).unwrap_or_default(), CENT);
        }
        if needs.has(Needs::RUNS) {
            out.push(u8::from(series.matches_at(position)));
        }
    }
    let empty = Tiles::default();
    let tiles = series.columns.as_ref().map_or(&empty, |columns| &columns.tiles);
    write_unsigned(out, tiles.len() as u64);
    let mut time = 0i64;
    for (tile, sums) in tiles.iter() {
        write_scaled(out, tile.begin.wrapping_sub(time), SECOND);
        write_scaled(out, tile.first.as_millis().wrapping_sub(tile.begin), SECOND);
        write_scaled(out, tile.last.as_millis().wrapping_sub(tile.first.as_millis()), SECOND);
        write_unsigned(out, sums.count);
        if has_value(needs) {
            for value in [tile.last_value, tile.least, tile.most, sums.total] {
                write_scaled(out, value, CENT);
            }
            out.extend_from_slice(&sums.squares.to_le_bytes());
        }
        time = tile.begin;
    }
}

fn decode_series(reader: &mut Reader<'_>) -> Result<Series, CodecError> {
    let needs = Needs(reader.byte()?);
    if !Needs::KNOWN.has(needs) || !is_closed(needs) {
        return Err(CodecError::Invalid("what a series keeps"));
    }
    let size = 1 + usize::from(has_value(needs)) + usize::from(needs.has(Needs::RUNS));
    let count = reader.count(size)?;
    let mut series = Series::new(needs);
    series.reserve(count);
    let mut time = EventTime::MIN;
    for index in 0..count {
        let before = if index == 0 { 0 } else { time.as_millis() };
        let next = EventTime::from_millis(before.wrapping_add(read_scaled(reader, SECOND)?));
        if next < time {
            return Err(CodecError::Invalid("an event that is out of order"));
        }
        time = next;
        let value = if has_value(needs) { read_scaled(reader, CENT)? } else { 0 };
        let matches = needs.has(Needs::RUNS) && reader.byte()? != 0;
        series.insert(&UNBOUNDED, time, Sample { value, matches });
    }
    let size = if has_value(needs) { 24 } else { 4 };
    let mut begin = 0i64;
    for _ in 0..reader.count(size)? {
        begin = begin.wrapping_add(read_scaled(reader, SECOND)?);
        let first = begin.wrapping_add(read_scaled(reader, SECOND)?);
        let last = first.wrapping_add(read_scaled(reader, SECOND)?);
        let mut sums = Part { count: reader.unsigned()?, total: 0, squares: 0 };
        let (mut last_value, mut least, mut most) = (0, 0, 0);
        if has_value(needs) {
            for value in [&mut last_value, &mut least, &mut most, &mut sums.total] {
                *value = read_scaled(reader, CENT)?;
            }
            let bytes: [u8; 16] = reader.bytes(16)?.try_into().map_err(|_| CodecError::Truncated)?;
            sums.squares = i128::from_le_bytes(bytes);
        }
        let (first, last) = (EventTime::from_millis(first), EventTime::from_millis(last));
        let oldest = series.events.front().map(|event| event.time);
        let tile = Tile { begin, first, last, last_value, least, most };
        let sound = first <= last && oldest.is_none_or(|oldest| last <= oldest);
        if !sound || !series.tiles_mut().push(tile, sums) {
            return Err(CodecError::Invalid("a tile that is out of order"));
        }
    }
    Ok(series)
}

/// Whether nothing is kept without what it is computed from.
fn is_closed(needs: Needs) -> bool {
    let squares = !needs.has(Needs(2)) || needs.has(Needs::SQUARES);
    let extremes = !needs.has(Needs(4)) || needs.has(Needs::EXTREMES);
    let distinct = !needs.has(Needs(16)) || needs.has(Needs::DISTINCT);
    let gaps = !needs.has(Needs(64)) || needs.has(Needs::GAPS);
    squares && extremes && distinct && gaps
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
