//! The stored form of records: all that one write brings to one partition is one value.
//!
//! Fixed header (big-endian): version (1 byte), number of records (4), timestamp of the first
//! record (8), latest timestamp of the partition up to and including this batch (8). Then for each
//! record, all integers LEB128: timestamp as a difference to the first (zigzag), length of the
//! key, key, length of the value, value, number of headers, and each one's name and value with
//! their lengths.

use bytes::Bytes;
use schemas::{CodecError, Reader, write_bytes, write_signed, write_unsigned};

use crate::log::{OutRecord, Record};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 21;
const COUNT_AT: usize = 1;
const LATEST_AT: usize = 13;

/// An upper bound of what a record takes, headers' lengths included.
pub(super) fn size_bound(record: &OutRecord<'_>) -> usize {
    // Timestamp 10, three lengths 5 each.
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
    record.key.len() + record.value.len() + 25 + headers
}

/// A batch that is being written.
pub(super) struct BatchWriter {
    bytes: Vec<u8>,
    count: u32,
    first_us: i64,
    latest_us: i64,
}

impl BatchWriter {
    /// `record_bytes` is the sum of the records' [`size_bound`]s: the buffer never grows.
    pub(super) fn new(record_bytes: usize) -> BatchWriter {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + record_bytes);
        bytes.resize(HEADER_BYTES, 0);
        BatchWriter { bytes, count: 0, first_us: 0, latest_us: i64::MIN }
    }

    pub(super) fn push(&mut self, record: &OutRecord<'_>) {
        if self.count == 0 {
            self.first_us = record.timestamp_us;
        }
        self.count += 1;
        self.latest_us = self.latest_us.max(record.timestamp_us);
        let out = &mut self.bytes;
        write_signed(out, record.timestamp_us.wrapping_sub(self.first_us));
        write_bytes(out, record.key);
        write_bytes(out, record.value);
        write_unsigned(out, record.headers.len() as u64);
        for (name, value) in record.headers {
            write_bytes(out, name.as_bytes());
            write_bytes(out, value);
        }
    }

    pub(super) fn count(&self) -> u64 {
        u64::from(self.count)
    }

    /// The finished batch and the partition's latest timestamp with it. `latest_before_us` is
    /// the latest one of the partition without it.
    pub(super) fn finish(mut self, latest_before_us: i64) -> (Bytes, i64) {
        let latest_us = self.latest_us.max(latest_before_us);
        self.bytes[0] = VERSION;
        self.bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.count.to_be_bytes());
        self.bytes[COUNT_AT + 4..LATEST_AT].copy_from_slice(&self.first_us.to_be_bytes());
        self.bytes[LATEST_AT..HEADER_BYTES].copy_from_slice(&latest_us.to_be_bytes());
        (Bytes::from(self.bytes), latest_us)
    }
}

/// Reads a stored batch front to back; keys and values are slices of it, not copies.
#[derive(Clone, Debug)]
pub(super) struct BatchReader {
    bytes: Bytes,
    /// Where the rest of the next record begins: what follows its timestamp.
    position: usize,
    base: u64,
    /// Offset of the next record.
    next: u64,
    end: u64,
    first_us: i64,
    latest_us: i64,
    /// Timestamp of the next record; without meaning at the end.
    head_us: i64,
}

impl BatchReader {
    pub(super) fn new(bytes: Bytes, base: u64) -> Result<BatchReader, CodecError> {
        let mut header = Reader::new(&bytes);
        let version = header.byte()?;
        if version != VERSION {
            return Err(CodecError::UnknownVersion { found: version, known: VERSION });
        }
        let count = u32::from_be_bytes(array(&mut header)?);
        let first_us = i64::from_be_bytes(array(&mut header)?);
        let latest_us = i64::from_be_bytes(array(&mut header)?);
        let end = base.checked_add(u64::from(count)).ok_or(CodecError::Invalid("an offset beyond 64 bits"))?;
        let mut reader = BatchReader {
            bytes,
            position: HEADER_BYTES,
            base,
            next: base,
            end,
            first_us,
            latest_us,
            head_us: first_us,
        };
        reader.read_head()?;
        Ok(reader)
    }

    /// The offset of the batch's first record.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// The offset behind the batch's last record.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Offset of the next record.
    pub(super) fn next_offset(&self) -> u64 {
        self.next
    }

    /// The latest timestamp of the partition up to the end of this batch: it never falls from
    /// one batch to the next, whatever the producers' clocks do.
    pub(super) fn latest_us(&self) -> i64 {
        self.latest_us
    }

    /// Timestamp of the next record; none at the end of the batch.
    pub(super) fn head_us(&self) -> Option<i64> {
        (self.next < self.end).then_some(self.head_us)
    }

    /// Goes forward to `offset`, or to the end of the batch.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<(), CodecError> {
        while self.next < offset.min(self.end) {
            let mut reader = Reader::new(&self.bytes[self.position..]);
            for _ in 0..2 {
                read_bytes(&mut reader)?;
            }
            for _ in 0..2 * reader.count(2)? {
                read_bytes(&mut reader)?;
            }
            self.position = self.bytes.len() - reader.remaining();
            self.next += 1;
            self.read_head()?;
        }
        Ok(())
    }

    /// The next record; none at the end of the batch.
    pub(super) fn take(&mut self, partition: u32) -> Result<Option<Record>, CodecError> {
        if self.next == self.end {
            return Ok(None);
        }
        let mut reader = Reader::new(&self.bytes[self.position..]);
        let key = self.bytes.slice_ref(read_bytes(&mut reader)?);
        let value = self.bytes.slice_ref(read_bytes(&mut reader)?);
        let header_count = reader.count(2)?;
        let mut headers = Vec::with_capacity(header_count);
        for _ in 0..header_count {
            let name = reader.text()?.to_owned();
            headers.push((name, self.bytes.slice_ref(read_bytes(&mut reader)?)));
        }
        let record = Record { partition, offset: self.next, timestamp_us: self.head_us, key, value, headers };
        self.position = self.bytes.len() - reader.remaining();
        self.next += 1;
        self.read_head()?;
        Ok(Some(record))
    }

    fn read_head(&mut self) -> Result<(), CodecError> {
        let mut reader = Reader::new(&self.bytes[self.position..]);
        if self.next == self.end {
            return reader.finish();
        }
        self.head_us = self.first_us.wrapping_add(reader.signed()?);
        self.position = self.bytes.len() - reader.remaining();
        Ok(())
    }
}

fn read_bytes<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], CodecError> {
    let length = reader.count(1)?;
    reader.bytes(length)
}

fn array<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], CodecError> {
    reader.bytes(N)?.try_into().map_err(|_| CodecError::Truncated)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test is to panic")]
mod tests {
    use super::*;
    use crate::log::Outbox;

    fn batch(outbox: &Outbox) -> Bytes {
        let mut writer = BatchWriter::new(outbox.iter().map(|record| size_bound(&record)).sum());
        let capacity = writer.bytes.capacity();
        for record in outbox.iter() {
            writer.push(&record);
        }
        assert_eq!(writer.bytes.capacity(), capacity, "the buffer must not grow");
        writer.finish(i64::MIN).0
    }

    fn outbox() -> Outbox {
        let mut outbox = Outbox::default();
        outbox.push("t", b"a", 5, |out| out.extend_from_slice(b"one"));
        let headers = vec![("why".to_owned(), Bytes::from_static(b"x")), (String::new(), Bytes::new())];
        outbox.push_with("t", Some(0), b"", i64::MAX, headers, |_| {});
        outbox.push("t", &[7; 300], i64::MIN, |out| out.extend_from_slice(&[9; 20_000]));
        outbox
    }

    #[test]
    fn round_trips() {
        let outbox = outbox();
        let mut reader = BatchReader::new(batch(&outbox), 10).unwrap();
        assert_eq!((reader.end(), reader.latest_us()), (13, i64::MAX));
        for (offset, expected) in (10..).zip(outbox.iter()) {
            assert_eq!(reader.head_us(), Some(expected.timestamp_us));
            let record = reader.take(3).unwrap().unwrap();
            assert_eq!((record.partition, record.offset, record.timestamp_us), (3, offset, expected.timestamp_us));
            assert_eq!((&record.key[..], &record.value[..]), (expected.key, expected.value));
            assert_eq!(record.headers, expected.headers);
        }
        assert_eq!((reader.take(3).unwrap(), reader.head_us()), (None, None));
    }

    #[test]
    fn skips_as_taking_does() {
        let bytes = batch(&outbox());
        for offset in 10..=13 {
            let mut taken = BatchReader::new(bytes.clone(), 10).unwrap();
            for _ in 10..offset {
                taken.take(0).unwrap();
            }
            let mut skipped = BatchReader::new(bytes.clone(), 10).unwrap();
            skipped.skip_to(offset).unwrap();
            assert_eq!(skipped.take(0).unwrap(), taken.take(0).unwrap());
        }
    }

    #[test]
    fn refuses_damage() {
        let whole = batch(&outbox());
        let read = |bytes: Bytes| -> Result<(), CodecError> {
            let mut reader = BatchReader::new(bytes, 0)?;
            while reader.take(0)?.is_some() {}
            Ok(())
        };
        assert_eq!(read(whole.clone()), Ok(()));
        for length in 0..whole.len() {
            assert!(read(whole.slice(..length)).is_err(), "{length}");
        }
        let mut newer = whole.to_vec();
        newer[0] = 2;
        assert_eq!(read(newer.into()), Err(CodecError::UnknownVersion { found: 2, known: 1 }));
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(read(longer.into()), Err(CodecError::TrailingBytes(1)));
    }
}
