//! Figures of a run, in a file.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Writes `report` as JSON to the file, if one is named.
pub(crate) fn write(report: &impl Serialize, path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let json = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))
}
