//! States and watermarks as the remote stores keep them: eight bytes that order them, big-endian,
//! so that a script inside the store can compare them without knowing the rest.

use schemas::EventTime;

use super::{StoredState, Watermark};

/// The stamp, then the state's own bytes.
pub(super) fn encode_state(state: &StoredState) -> Vec<u8> {
    [&state.stamp.to_be_bytes()[..], &state.bytes].concat()
}

/// `None` if the bytes are too few.
pub(super) fn decode_state(mut value: Vec<u8>) -> Option<StoredState> {
    let stamp = u64::from_be_bytes(*value.first_chunk()?);
    value.drain(..8);
    Some(StoredState { stamp, bytes: value })
}

/// The offset, then [`encode_progress`].
pub(super) fn encode_watermark(watermark: &Watermark) -> Vec<u8> {
    [&watermark.offset.to_be_bytes()[..], &encode_progress(watermark)].concat()
}

/// `None` if the bytes are too few.
pub(super) fn decode_watermark(value: &[u8]) -> Option<Watermark> {
    let (offset, progress) = value.split_first_chunk()?;
    decode_progress(u64::from_be_bytes(*offset), progress)
}

/// Event time in milliseconds, then the owner's own progress.
pub(super) fn encode_progress(watermark: &Watermark) -> Vec<u8> {
    [&watermark.event_time.as_millis().to_be_bytes()[..], &watermark.progress].concat()
}

/// `None` if the bytes are too few.
pub(super) fn decode_progress(offset: u64, value: &[u8]) -> Option<Watermark> {
    let (event_time, progress) = value.split_first_chunk()?;
    let event_time = EventTime::from_millis(i64::from_be_bytes(*event_time));
    Some(Watermark { offset, progress: progress.to_vec(), event_time })
}
