//! Features as a Parquet file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use arrow_array::types::Int8Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, Float32Array, Int8Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use feature_store::{FeatureSet, Status};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use schemas::Id;

const STATUSES: [&str; 4] = ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"];

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
    partial: PathBuf,
    path: PathBuf,
}

impl TableWriter {
    /// `numeric_ids`: TRANSACTION_ID is an int64, else a text.
    pub(super) fn create(path: &Path, features: &FeatureSet, numeric_ids: bool) -> anyhow::Result<TableWriter> {
        anyhow::ensure!(!path.exists(), "{} exists already; name a new file", path.display());
        let id_type = if numeric_ids { DataType::Int64 } else { DataType::Utf8 };
        let mut fields = vec![Field::new("TRANSACTION_ID", id_type, false)];
        fields.extend(features.names().iter().map(|name| Field::new(name, DataType::Float32, true)));
        let status_type = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
        fields.extend(
            features.status_columns().map(|name| Field::new(format!("{name}__status"), status_type.clone(), false)),
        );
        anyhow::ensure!(
            !features.names().iter().any(|name| name == "TX_FRAUD"),
            "the label is written as TX_FRAUD; give the feature of that name another"
        );
        fields.push(Field::new("TX_FRAUD", DataType::Int8, true));
        let schema = Arc::new(Schema::new(fields));
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::Chunk);
        // Floating-point values hardly repeat: a dictionary of them costs more than it saves.
        for name in features.names() {
            let column = parquet::schema::types::ColumnPath::new(vec![name.clone()]);
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::PLAIN);
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties.build()))?;
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
        let (count, values) = (chunk.ids.len(), &chunk.rows.values);
        for slot in 0..self.width {
            let column = (0..count).map(|row| values[row * self.width + slot]);
            let missing = column.clone().any(f32::is_nan);
            columns.push(if missing {
                Arc::new(Float32Array::from_iter(column.map(|value| Some(value).filter(|value| !value.is_nan()))))
            } else {
                Arc::new(Float32Array::from_iter_values(column))
            });
        }
        let statuses = chunk.rows.statuses.len() / count.max(1);
        for at in 0..statuses {
            let keys = (0..count).map(|row| match chunk.rows.statuses[row * statuses + at] {
                Status::Present => 0,
                Status::Null => 1,
                Status::NotFound => 2,
                Status::OutsideMaxAge => 3,
            });
            let keys = Int8Array::from_iter_values(keys);
            columns.push(Arc::new(DictionaryArray::<Int8Type>::try_new(keys, Arc::clone(&self.statuses))?));
        }
        let labels = chunk.labels.iter().map(|label| label.map(i8::from));
        columns.push(Arc::new(Int8Array::from_iter(labels)) as Arc<dyn Array>);
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
        Ok(())
    }

    pub(super) fn finish(self) -> anyhow::Result<()> {
        self.writer.close().with_context(|| format!("writing {}", self.partial.display()))?;
        std::fs::rename(&self.partial, &self.path)
            .with_context(|| format!("renaming {} to {}", self.partial.display(), self.path.display()))
    }
}
