//! Metrics of the online stores: all names in one place, handles bound once.

use metrics::{Counter, counter};

/// 1 while the store answers, 0 while it doesn't; label `store`.
pub const STORE_UP: &str = "fraudline_store_up";
/// How long one attempt of an operation took; labels `store` and `operation`.
pub const STORE_OPERATION_SECONDS: &str = "fraudline_store_operation_duration_seconds";
/// Round trips to the store, one for all requests that are on their way together; labels `store`
/// and `operation`.
pub const STORE_ROUND_TRIPS: &str = "fraudline_store_round_trips_total";
/// Attempts that failed; labels `store` and `operation`.
pub const STORE_ERRORS: &str = "fraudline_store_errors_total";

/// Round trips of one store.
pub(crate) struct RoundTrips {
    pub(crate) read: Counter,
    pub(crate) write: Counter,
}

impl RoundTrips {
    pub(crate) fn of(store: &'static str) -> RoundTrips {
        let of = |operation: &'static str| counter!(STORE_ROUND_TRIPS, "store" => store, "operation" => operation);
        RoundTrips { read: of("read"), write: of("write") }
    }
}
