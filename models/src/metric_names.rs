//! The names of the metrics that this crate records. All are histograms, in base units.

/// Seconds a submission waited until the model thread took it into a batch.
pub const QUEUE_WAIT_SECONDS: &str = "fraudline_model_queue_wait_seconds";
/// Seconds the network took for one batch, normalization and calibration included.
pub const COMPUTE_SECONDS: &str = "fraudline_model_compute_seconds";
/// Rows of one batch, padding not counted.
pub const BATCH_ROWS: &str = "fraudline_model_batch_rows";

/// Tells the installed recorder what the metrics are.
pub(crate) fn describe() {
    use metrics::{Unit, describe_histogram};
    describe_histogram!(QUEUE_WAIT_SECONDS, Unit::Seconds, "Wait of a submission for the model thread");
    describe_histogram!(COMPUTE_SECONDS, Unit::Seconds, "Time of one batch on the device");
    describe_histogram!(BATCH_ROWS, Unit::Count, "Rows of one batch");
}
