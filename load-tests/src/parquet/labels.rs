use std::fs::File;
use std::path::Path;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use anyhow::Context;
use compact_str::ToCompactString;
use schemas::{Id, Label};

use super::column::Column;
use super::read::caught;
use super::*;

/// What became known of transactions, by the time at which it did: the rows of a Parquet file with the columns TRANSACTION_ID,
/// TERMINAL_ID, TX_DATETIME (of the transaction), LABEL_DATETIME and TX_FRAUD, in any order; other columns are ignored. The labels name no card.
///
/// # Errors
/// If the file can't be read, a column is missing or of another type, or a value is missing or out of its range.
pub fn read_labels(path: impl AsRef<Path>) -> anyhow::Result<Vec<Label>> {
    let path = path.as_ref();
    caught(|| read(path)).with_context(|| format!("reading {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<Label>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?).context("not a good Parquet file")?;
    let mut labels = Vec::new();
    for batch in builder.build()? {
        let batch = batch.context("the file is damaged")?;
        let before = labels.len() as u64;
        let column = |name| Column::of(&batch, name, before).with_context(|| format!("column {name} is missing"));
        let (transaction_ids, terminal_ids) = (column(TRANSACTION_ID)?.integers()?, column(TERMINAL_ID)?.integers()?);
        let (times, label_times) = (column(TX_DATETIME)?.times()?, column(LABEL_DATETIME)?.times()?);
        let frauds = column(TX_FRAUD)?.bytes(1)?;
        for row in 0..batch.num_rows() {
            labels.push(Label {
                transaction_id: transaction_ids[row].to_compact_string(),
                card_id: Id::default(),
                terminal_id: terminal_ids[row].to_compact_string(),
                transaction_time: times[row],
                label_time: label_times[row],
                fraud: frauds[row] == 1,
            });
        }
    }
    labels.sort_by_key(|label| label.label_time);
    Ok(labels)
}
