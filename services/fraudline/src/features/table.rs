//! Features as a Parquet file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use arrow_array::types::Int8Type;
use arrow_array::{ArrayRef, DictionaryArray, Float32Array, Int8Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use feature_store::{FeatureSet, Status};
use load_tests::Partial;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use schemas::Id;

const TRANSACTION_ID: &str = "TRANSACTION_ID";
const TX_FRAUD: &str = "TX_FRAUD";
/// A group is held in memory until it is whole.
const ROWS_PER_GROUP: usize = 1 << 18;
/// By the numbers that [`code`] gives them.
const STATUSES: [&str; 4] = ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"];

fn code(status: Status) -> i8 {
    match status {
        Status::Present => 0,
        Status::Null => 1,
        Status::NotFound => 2,
        Status::OutsideMaxAge => 3,
    }
}

/// Rows of a file, as they are handed to its writer.
#[derive(Debug)]
pub(super) struct TableChunk {
    pub(super) ids: Vec<Id>,
    pub(super) rows: feature_store::Rows,
    /// `None`: nothing is known of the transaction.
    pub(super) labels: Vec<Option<bool>>,
}

/// Writes TRANSACTION_ID, the features under their names, `<view>__status` for each view of windows and `<feature>__status` for
/// each value of a profile, and TX_FRAUD. The file is there under its name once it is whole.
pub(super) struct TableWriter {
    writer: ArrowWriter<File>,
    schema: Arc<Schema>,
    statuses: ArrayRef,
    width: usize,
    numeric_ids: bool,
    partial: Partial,
    path: PathBuf,
}

impl TableWriter {
    /// `numeric_ids`: TRANSACTION_ID is an int64, else a text.
    pub(super) fn create(path: &Path, features: &FeatureSet, numeric_ids: bool) -> anyhow::Result<TableWriter> {
        anyhow::ensure!(!path.exists(), "{} exists already; name a new file", path.display());
        let status_type = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
        let id_type = if numeric_ids { DataType::Int64 } else { DataType::Utf8 };
        let mut fields = vec![Field::new(TRANSACTION_ID, id_type, false)];
        fields.extend(features.names().iter().map(|name| Field::new(name, DataType::Float32, true)));
        let statuses = features.status_columns().map(|name| format!("{name}__status"));
        fields.extend(statuses.map(|name| Field::new(name, status_type.clone(), false)));
        fields.push(Field::new(TX_FRAUD, DataType::Int8, true));
        for (index, field) in fields.iter().enumerate() {
            anyhow::ensure!(
                !fields[..index].iter().any(|other| other.name() == field.name()),
                "two columns of the file would be named {}; give the feature another name",
                field.name()
            );
        }
        let schema = Arc::new(Schema::new(fields));
        let (partial, file) = Partial::create(path)?;
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties(features)))?;
        let statuses = Arc::new(StringArray::from_iter_values(STATUSES)) as ArrayRef;
        Ok(TableWriter {
            writer,
            schema,
            statuses,
            width: features.width(),
            numeric_ids,
            partial,
            path: path.to_owned(),
        })
    }

    pub(super) fn write(&mut self, chunk: &TableChunk) -> anyhow::Result<()> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        columns.push(if self.numeric_ids {
            let ids = chunk.ids.iter().map(|id| id.parse::<i64>()).collect::<Result<Vec<i64>, _>>()?;
            Arc::new(Int64Array::from(ids))
        } else {
            Arc::new(StringArray::from_iter_values(chunk.ids.iter().map(Id::as_str)))
        });
        let count = chunk.ids.len();
        for values in turned(&chunk.rows.values, self.width, count) {
            columns.push(if values.iter().any(|value| value.is_nan()) {
                Arc::new(Float32Array::from_iter(values.into_iter().map(|value| (!value.is_nan()).then_some(value))))
            } else {
                Arc::new(Float32Array::from(values))
            });
        }
        let statuses = chunk.rows.statuses.len() / count.max(1);
        for column in turned(&chunk.rows.statuses, statuses, count) {
            let keys = Int8Array::from_iter_values(column.into_iter().map(code));
            columns.push(Arc::new(DictionaryArray::<Int8Type>::try_new(keys, Arc::clone(&self.statuses))?));
        }
        columns.push(Arc::new(Int8Array::from_iter(chunk.labels.iter().map(|label| label.map(i8::from)))));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.writer.write(&batch).with_context(|| format!("writing {}", self.path.display()))
    }

    pub(super) fn finish(self) -> anyhow::Result<()> {
        let writing = || format!("writing {}", self.path.display());
        let file = self.writer.into_inner().with_context(writing)?;
        self.partial.complete(&file, &self.path).with_context(writing)
    }
}

fn properties(features: &FeatureSet) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(ROWS_PER_GROUP));
    // Many floating-point values hardly repeat: a dictionary of them costs more than it saves.
    for name in features.names() {
        let column = parquet::schema::types::ColumnPath::new(vec![name.clone()]);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::PLAIN);
    }
    properties.build()
}

/// Rows of `width` as columns of `count`.
fn turned<T: Copy>(rows: &[T], width: usize, count: usize) -> Vec<Vec<T>> {
    let mut columns: Vec<Vec<T>> = (0..width).map(|_| Vec::with_capacity(count)).collect();
    for row in rows.chunks_exact(width.max(1)) {
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(*value);
        }
    }
    columns
}
