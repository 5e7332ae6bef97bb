//! The names of the metrics that this crate records, in base units.

/// Seconds a submission waited until the model thread took it into a batch.
pub const QUEUE_WAIT_SECONDS: &str = "fraudline_model_queue_wait_seconds";
/// Seconds the network took for one batch, normalization and calibration included.
pub const COMPUTE_SECONDS: &str = "fraudline_model_compute_seconds";
/// The same for the challenger, where there is one.
pub const CHALLENGER_COMPUTE_SECONDS: &str = "fraudline_challenger_compute_seconds";
/// Seconds that the reasons of one submission's alerts took, where it had any.
pub const EXPLAIN_SECONDS: &str = "fraudline_model_explain_seconds";
/// Challengers that failed while they scored, and were dropped.
pub const CHALLENGER_FAILURES: &str = "fraudline_challenger_failures_total";
/// Models that took another's place; label `role`: `champion` or `challenger`.
pub const SWAPS: &str = "fraudline_model_swaps_total";
/// Versions that an alias moved to and that could not be followed: damaged, or of another layout; label `role`.
pub const REFUSALS: &str = "fraudline_model_refusals_total";
/// Generation of the alias that is served; label `role`. Scorers that show different ones for long are not alike.
pub const GENERATION: &str = "fraudline_model_generation";
/// 1 where the registry could be read when it was last looked at.
pub const REGISTRY_UP: &str = "fraudline_registry_up";
/// Rows of one batch, padding not counted.
pub const BATCH_ROWS: &str = "fraudline_model_batch_rows";
/// Devices that were lost while they served; label `reason`: `stuck` or `failed`.
pub const DEVICE_FAILURES: &str = "fraudline_model_device_failures_total";
/// 1 while a device other than the CPU scores, 0 once it is lost.
pub const DEVICE_UP: &str = "fraudline_model_device_up";

/// Tells the installed recorder what the metrics are.
pub(crate) fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_histogram!(QUEUE_WAIT_SECONDS, Unit::Seconds, "Wait of a submission for the model thread");
    describe_histogram!(COMPUTE_SECONDS, Unit::Seconds, "Time of one batch on the device");
    describe_histogram!(EXPLAIN_SECONDS, Unit::Seconds, "Time of the reasons of a submission's alerts");
    describe_histogram!(CHALLENGER_COMPUTE_SECONDS, Unit::Seconds, "Time of the challenger for one batch");
    describe_counter!(CHALLENGER_FAILURES, Unit::Count, "Challengers that failed and were dropped");
    describe_counter!(SWAPS, Unit::Count, "Models that took another's place");
    describe_counter!(REFUSALS, Unit::Count, "Versions that an alias moved to and that were refused");
    describe_gauge!(GENERATION, Unit::Count, "Generation of the alias that is served");
    describe_gauge!(REGISTRY_UP, Unit::Count, "Whether the registry could be read");
    describe_counter!(DEVICE_FAILURES, Unit::Count, "Devices that were lost while they served");
    describe_gauge!(DEVICE_UP, Unit::Count, "Whether a device other than the CPU scores");
    describe_histogram!(BATCH_ROWS, Unit::Count, "Rows of one batch");
}
