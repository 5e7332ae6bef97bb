//! The materializer's metrics: all names in one place.

pub const REKEYED: &str = "fraudline_rekeyed_records_total";
pub const SIDE_DEAD_LETTERS: &str = "fraudline_side_dead_letters_total";
pub const VIEW_STATES_WRITTEN: &str = "fraudline_view_states_written_total";
pub const VIEW_STATE_BYTES: &str = "fraudline_view_state_bytes";
pub const VIEW_EVENT_TIME: &str = "fraudline_view_event_time_seconds";
