use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use anyhow::{Context, anyhow, bail};
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use compact_str::ToCompactString;
use schemas::{Amount, EventTime, Transaction};

use super::column::{Column, Kind};
use super::*;
use crate::Labelled;

const ROWS_PER_BATCH: usize = 8_192;
/// The columns that are read; others are ignored. TX_TIME_SECONDS and TX_TIME_DAYS only repeat
/// TX_DATETIME.
const COLUMNS: [(&str, Kind, Presence); 7] = [
    (TRANSACTION_ID, Kind::Integer, Presence::Required),
    (TX_DATETIME, Kind::Time, Presence::Required),
    (CUSTOMER_ID, Kind::Integer, Presence::Required),
    (TERMINAL_ID, Kind::Integer, Presence::Required),
    (TX_AMOUNT, Kind::Amount, Presence::Required),
    (TX_FRAUD, Kind::Integer, Presence::Optional),
    (TX_FRAUD_SCENARIO, Kind::Integer, Presence::Optional),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Presence {
    Required,
    Optional,
}

/// The rows of a Parquet file in the Handbook's layout, in the order of the file.
///
/// Integers may have any width up to 64 bits, times any unit (below a millisecond they are cut).
/// Without TX_FRAUD no row is fraud; without TX_FRAUD_SCENARIO the scenario is 0. Ids are the
/// decimal text of the integers. Holds 8,192 decoded rows.
///
/// Yields an error for a value that is missing, out of its range, or, an amount, further than
/// 10^-6 from a multiple of 0.0001; it names file, row (from 0) and column. After an error there
/// is nothing more.
pub struct ParquetSource {
    path: PathBuf,
    rows: u64,
    labelled: bool,
    reader: Option<ParquetRecordBatchReader>,
    batch: Batch,
    /// Within `batch`.
    next: usize,
    /// Of the rows of the file, those that came before `batch`.
    before: u64,
}

impl ParquetSource {
    /// Opens the file and checks its columns.
    ///
    /// # Errors
    /// If it can't be read, is no Parquet file, or a column is missing or of another type.
    pub fn open(path: impl AsRef<Path>) -> anyhow::Result<ParquetSource> {
        let path = path.as_ref();
        caught(|| ParquetSource::open_unchecked(path)).with_context(|| format!("reading {}", path.display()))
    }

    fn open_unchecked(path: &Path) -> anyhow::Result<ParquetSource> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?).context("not a good Parquet file")?;
        let found = columns(builder.schema())?;
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows())
            .context("the file is damaged: it says that it has a negative number of rows")?;
        let labelled = builder.schema().column_with_name(TX_FRAUD).is_some();
        let projection = ProjectionMask::roots(builder.parquet_schema(), found);
        let reader = builder.with_projection(projection).with_batch_size(ROWS_PER_BATCH).build()?;
        let path = path.to_owned();
        Ok(ParquetSource { path, rows, labelled, reader: Some(reader), batch: Batch::default(), next: 0, before: 0 })
    }

    /// Rows of the whole file, as it says itself.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether the file has a column TX_FRAUD.
    pub fn is_labelled(&self) -> bool {
        self.labelled
    }

    fn read_batch(&mut self) -> anyhow::Result<Option<Batch>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let batch = caught(|| reader.next().transpose().context("the file is damaged"))?;
        batch.map(|batch| Batch::decode(&batch, self.before)).transpose()
    }
}

/// The decoder asserts some of what a damaged file breaks: to the caller that is an error like the
/// others. What it was working on is dropped.
pub(super) fn caught<T>(read: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(anyhow!("the file is damaged")))
}

/// Where in the file the columns are that are to be read.
fn columns(schema: &Schema) -> anyhow::Result<Vec<usize>> {
    let mut found = Vec::new();
    for (name, kind, presence) in COLUMNS {
        match schema.column_with_name(name) {
            Some((_, field)) if !kind.accepts(field.data_type()) => {
                bail!("column {name} is of type {}, it has to be {kind}", field.data_type());
            }
            Some((index, _)) => found.push(index),
            None if presence == Presence::Optional => {}
            None => bail!("column {name} is missing, it has to be {kind}"),
        }
    }
    Ok(found)
}

impl Iterator for ParquetSource {
    type Item = anyhow::Result<Labelled>;

    fn next(&mut self) -> Option<anyhow::Result<Labelled>> {
        while self.next == self.batch.len() {
            self.before += self.batch.len() as u64;
            self.next = 0;
            self.batch = Batch::default();
            match self.read_batch() {
                Ok(Some(batch)) => self.batch = batch,
                Ok(None) => {
                    self.reader = None;
                    return None;
                }
                Err(error) => {
                    self.reader = None;
                    return Some(Err(error.context(format!("reading {}", self.path.display()))));
                }
            }
        }
        self.next += 1;
        Some(Ok(self.batch.row(self.next - 1)))
    }
}

impl fmt::Debug for ParquetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.before + self.next as u64;
        f.debug_struct("ParquetSource").field("path", &self.path).field("row", &row).finish_non_exhaustive()
    }
}

/// Checked values, column by column; all of one length.
#[derive(Default)]
struct Batch {
    transaction_id: Vec<i64>,
    time: Vec<EventTime>,
    customer_id: Vec<i64>,
    terminal_id: Vec<i64>,
    amount: Vec<Amount>,
    fraud: Vec<bool>,
    scenario: Vec<u8>,
}

impl Batch {
    /// `before` is the row of the file that the batch begins with.
    fn decode(batch: &RecordBatch, before: u64) -> anyhow::Result<Batch> {
        let optional = |name| Column::of(batch, name, before);
        let column = |name| optional(name).with_context(|| format!("column {name} is missing"));
        let rows = batch.num_rows();
        Ok(Batch {
            transaction_id: column(TRANSACTION_ID)?.integers()?,
            time: column(TX_DATETIME)?.times()?,
            customer_id: column(CUSTOMER_ID)?.integers()?,
            terminal_id: column(TERMINAL_ID)?.integers()?,
            amount: column(TX_AMOUNT)?.amounts()?,
            fraud: match optional(TX_FRAUD) {
                Some(column) => column.bytes(1)?.into_iter().map(|value| value == 1).collect(),
                None => vec![false; rows],
            },
            scenario: match optional(TX_FRAUD_SCENARIO) {
                Some(column) => column.bytes(u8::MAX)?,
                None => vec![0; rows],
            },
        })
    }

    fn len(&self) -> usize {
        self.time.len()
    }

    fn row(&self, index: usize) -> Labelled {
        let transaction = Transaction {
            transaction_id: self.transaction_id[index].to_compact_string(),
            event_time: self.time[index],
            card_id: self.customer_id[index].to_compact_string(),
            terminal_id: self.terminal_id[index].to_compact_string(),
            amount: self.amount[index],
        };
        Labelled { transaction, fraud: self.fraud[index], scenario: self.scenario[index] }
    }
}
