use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use anyhow::{Context, bail};
use arrow_array::{ArrayRef, Float64Array, Int8Array, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use schemas::EventTime;

use super::*;
use crate::Labelled;

const ROWS_PER_BATCH: usize = 16_384;
const ROWS_PER_GROUP: usize = 32 * ROWS_PER_BATCH;

/// Writes `rows` to `path` as the Handbook's nine columns, and returns how many there were.
///
/// TX_TIME_SECONDS and TX_TIME_DAYS count from `start`, as do those of the Handbook. Holds one
/// row group (524,288 rows) in memory. The file appears under its name when it is complete: until
/// then it is `.<name>.<process id>.partial` beside it, removed if something fails. `progress` is
/// told the rows written so far, every 16,384 rows and at the end.
///
/// # Errors
/// What the file system refuses; ids that are no integers of the column's type; a time before
/// `start` or more than 2^31 s after it. The message names the file, and the row if it is to blame.
pub fn write_parquet(
    path: impl AsRef<Path>,
    rows: impl Iterator<Item = Labelled>,
    start: EventTime,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<u64> {
    let path = path.as_ref();
    let writing = || format!("writing {}", path.display());
    let (partial, file) = Partial::create(path).with_context(writing)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
        .build();
    let schema = Arc::new(schema());
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).with_context(writing)?;
    let mut rows = rows.peekable();
    let mut written = 0;
    let mut columns = Columns::default();
    while rows.peek().is_some() {
        for row in rows.by_ref().take(ROWS_PER_BATCH) {
            columns.push(&row, start).with_context(|| {
                format!("writing {}: transaction {}", path.display(), row.transaction.transaction_id)
            })?;
            written += 1;
        }
        let batch = RecordBatch::try_new(Arc::clone(&schema), std::mem::take(&mut columns).into_arrays());
        writer.write(&batch.with_context(writing)?).with_context(writing)?;
        progress(written);
    }
    let file = writer.into_inner().with_context(writing)?;
    partial.complete(&file, path).with_context(writing)?;
    Ok(written)
}

fn schema() -> Schema {
    let field = |name, data_type| Field::new(name, data_type, false);
    Schema::new(vec![
        field(TRANSACTION_ID, DataType::Int64),
        field(TX_DATETIME, DataType::Timestamp(TimeUnit::Millisecond, None)),
        field(CUSTOMER_ID, DataType::Int32),
        field(TERMINAL_ID, DataType::Int32),
        field(TX_AMOUNT, DataType::Float64),
        field(TX_TIME_SECONDS, DataType::Int32),
        field(TX_TIME_DAYS, DataType::Int32),
        field(TX_FRAUD, DataType::Int8),
        field(TX_FRAUD_SCENARIO, DataType::Int8),
    ])
}

#[derive(Default)]
struct Columns {
    transaction_id: Vec<i64>,
    datetime_ms: Vec<i64>,
    customer_id: Vec<i32>,
    terminal_id: Vec<i32>,
    amount: Vec<f64>,
    time_seconds: Vec<i32>,
    time_days: Vec<i32>,
    fraud: Vec<i8>,
    scenario: Vec<i8>,
}

impl Columns {
    fn push(&mut self, row: &Labelled, start: EventTime) -> anyhow::Result<()> {
        let transaction = &row.transaction;
        let millis = transaction.event_time.as_millis();
        let seconds = (i128::from(millis) - i128::from(start.as_millis())).div_euclid(1000);
        let Some(seconds) = i32::try_from(seconds).ok().filter(|seconds| *seconds >= 0) else {
            bail!("{TX_TIME_SECONDS}: {} does not lie in the 2^31 s after {start}", transaction.event_time);
        };
        let Ok(scenario) = i8::try_from(row.scenario) else {
            bail!("{TX_FRAUD_SCENARIO} is at most 127, not {}", row.scenario);
        };
        self.transaction_id.push(integer(TRANSACTION_ID, &transaction.transaction_id)?);
        self.datetime_ms.push(millis);
        self.customer_id.push(integer(CUSTOMER_ID, &transaction.card_id)?);
        self.terminal_id.push(integer(TERMINAL_ID, &transaction.terminal_id)?);
        self.amount.push(transaction.amount.as_f64());
        self.time_seconds.push(seconds);
        self.time_days.push(seconds / 86_400);
        self.fraud.push(i8::from(row.fraud));
        self.scenario.push(scenario);
        Ok(())
    }

    /// In the order of the schema.
    fn into_arrays(self) -> Vec<ArrayRef> {
        vec![
            Arc::new(Int64Array::from(self.transaction_id)),
            Arc::new(TimestampMillisecondArray::from(self.datetime_ms)),
            Arc::new(Int32Array::from(self.customer_id)),
            Arc::new(Int32Array::from(self.terminal_id)),
            Arc::new(Float64Array::from(self.amount)),
            Arc::new(Int32Array::from(self.time_seconds)),
            Arc::new(Int32Array::from(self.time_days)),
            Arc::new(Int8Array::from(self.fraud)),
            Arc::new(Int8Array::from(self.scenario)),
        ]
    }
}

fn integer<T: std::str::FromStr>(column: &str, id: &str) -> anyhow::Result<T> {
    id.parse().ok().with_context(|| format!("{column} takes integers of {} bits, not {id:?}", 8 * size_of::<T>()))
}

/// A file under its temporary name, `.<name>.<process id>.partial` beside it; removed on drop unless completed.
#[derive(Debug)]
pub struct Partial(Option<PathBuf>);

impl Partial {
    /// # Errors
    /// If the path names no file, or one can't be created beside it.
    pub fn create(path: &Path) -> anyhow::Result<(Partial, File)> {
        let name = path.file_name().context("the path names no file")?;
        let partial = path.with_file_name(format!(".{}.{}.partial", name.display(), std::process::id()));
        let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
        Ok((Partial(Some(partial)), file))
    }

    /// Gives `file` its name, once all of it is on the disk.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn complete(mut self, file: &File, path: &Path) -> anyhow::Result<()> {
        file.sync_all()?;
        if let Some(partial) = &self.0 {
            fs::rename(partial, path)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(partial) = &self.0 {
            // Already failing: the first error is the one to report.
            let _ = fs::remove_file(partial);
        }
    }
}
