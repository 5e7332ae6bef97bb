use std::path::PathBuf;

/// What can go wrong with a model. Every message says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of an artifact is missing, damaged, or not of this program's format.
    #[error("{}: {problem}; {remedy}", file.display())]
    Artifact { file: PathBuf, problem: String, remedy: &'static str },
    /// A registry that can't be read or changed, or that lacks what was asked for.
    #[error("{}: {problem}; {remedy}", path.display())]
    Registry { path: PathBuf, problem: String, remedy: String },
    /// The registry did not answer in time, as a mount that hangs.
    #[error("the registry {} has not answered within {waited_s} s", path.display())]
    RegistryAway { path: PathBuf, waited_s: u64 },
    /// A model has no threshold for this alert budget.
    #[error("{model} has no threshold for an alert budget of {alert_budget}; it has some for {known}")]
    AlertBudget { model: String, alert_budget: f64, known: String },
    /// A chart that can't be drawn.
    #[error("drawing `{chart}`: {problem}")]
    Chart { chart: String, problem: String },
    /// Options or data that no model can be trained with.
    #[error("training: {0}")]
    Training(String),
    /// A device that cannot be opened, or that fails the checks made before it serves.
    #[error("device {device}: {problem}")]
    Device { device: String, problem: String },
    /// A device name that is none.
    #[error("`{0}` is no device; say `auto`, `cpu`, `cuda` or `cuda:N`")]
    UnknownDevice(String),
    /// Rows whose values don't fill whole rows.
    #[error("{values} values don't make whole rows of {width} columns")]
    Ragged { values: usize, width: usize },
    /// A value is missing in a column that the layout declares never to be missing.
    #[error("row {row} has no value for `{column}`, which the layout declares never to be missing")]
    Missing { row: usize, column: String },
    /// The thread that owns the device is gone; nothing more will be scored.
    #[error("the model thread has ended: {reason}")]
    ThreadEnded { reason: String },
}

/// The message of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_string()
}
