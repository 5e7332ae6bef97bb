//! Metrics of the lookups.

use std::time::Duration;

use axum::http::StatusCode;
use feature_store::{View, ViewCounts};
use metrics::{counter, histogram};

/// Lookups answered; label `status`: the HTTP status.
pub const LOOKUPS: &str = "fraudline_lookups_total";
/// How long a lookup took, from its body to its answer.
pub const LOOKUP_SECONDS: &str = "fraudline_lookup_duration_seconds";
/// Entities looked up; label `view`.
pub const LOOKUP_ENTITIES: &str = "fraudline_lookup_entities_total";
/// Those that the cache had; label `view`.
pub const LOOKUP_HITS: &str = "fraudline_lookup_cache_hits_total";

pub(crate) fn answered(took: Duration, refused: Option<StatusCode>) {
    let status = refused.unwrap_or(StatusCode::OK);
    counter!(LOOKUPS, "status" => status.as_str().to_owned()).increment(1);
    histogram!(LOOKUP_SECONDS).record(took.as_secs_f64());
}

pub(crate) fn read(view: &View, counts: ViewCounts) {
    let view = view.name().to_string();
    counter!(LOOKUP_ENTITIES, "view" => view.clone()).increment(counts.lookups);
    counter!(LOOKUP_HITS, "view" => view).increment(counts.hits);
}
