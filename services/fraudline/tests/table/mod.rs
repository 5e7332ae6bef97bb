//! Parquet files as tests write and read them.
#![allow(dead_code)]

use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int8Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::Id;

pub fn write_table(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// The file of a backfill.
#[derive(PartialEq)]
pub struct Table(RecordBatch);

impl Table {
    pub fn read(path: &Path) -> Table {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
        // All of it at once.
        let rows = builder.metadata().file_metadata().num_rows();
        let mut reader = builder.with_batch_size(usize::try_from(rows).unwrap().max(1)).build().unwrap();
        let batch = reader.next().unwrap().unwrap();
        assert_eq!(batch.num_rows() as i64, rows);
        Table(batch)
    }

    pub fn rows(&self) -> usize {
        self.0.num_rows()
    }

    fn column(&self, name: &str) -> &ArrayRef {
        self.0.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"))
    }

    /// The TRANSACTION_IDs, as text.
    pub fn ids(&self) -> Vec<Id> {
        let ids = self.column("TRANSACTION_ID");
        match ids.data_type() {
            DataType::Int64 => {
                ids.as_primitive::<Int64Type>().values().iter().map(|id| id.to_string().into()).collect()
            }
            _ => ids.as_string::<i32>().iter().map(|id| id.unwrap().into()).collect(),
        }
    }

    /// The values of a feature bit for bit; `None` is null.
    pub fn bits(&self, name: &str) -> Vec<Option<u32>> {
        self.column(name).as_primitive::<Float32Type>().iter().map(|value| value.map(f32::to_bits)).collect()
    }

    /// A column of statuses.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let column = self.column(name).as_dictionary::<Int8Type>();
        let texts = column.values().as_string::<i32>();
        column.keys().iter().map(|key| texts.value(key.unwrap() as usize).to_owned()).collect()
    }

    /// TX_FRAUD.
    pub fn labels(&self) -> Vec<Option<i8>> {
        self.column("TX_FRAUD").as_primitive::<Int8Type>().iter().collect()
    }
}
