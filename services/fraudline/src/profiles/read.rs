//! Rows of Parquet and CSV files as profile updates.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::{EventTime, Id, ProfileUpdate, ProfileValue};

/// What is read of a file.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// The column of the entity's ids.
    pub(super) entity: String,
    /// Those of the values, as far as they are there.
    pub(super) fields: Vec<String>,
}

const EVENT_TIME: &str = "event_time";

/// The rows of a file, and how many there are, where that is known.
type Rows = (Option<u64>, Box<dyn Iterator<Item = anyhow::Result<ProfileUpdate>>>);

pub(super) fn rows(path: &Path, view: &str, columns: &Columns, event_time: EventTime) -> anyhow::Result<Rows> {
    let make = Maker { view: view.into(), columns: columns.clone(), event_time };
    let of_file = || format!("reading {}", path.display());
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => parquet(path, make).with_context(of_file),
        Some("csv") => csv(path, make).with_context(of_file),
        _ => bail!("{} is no .parquet and no .csv file", path.display()),
    }
}

/// What makes an update of a row's values.
struct Maker {
    view: Id,
    columns: Columns,
    event_time: EventTime,
}

/// A value of a row.
enum Cell {
    Value(ProfileValue),
    Time(EventTime),
}

impl Maker {
    /// Refuses a file that lacks the ids, or all of the values.
    fn check<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> anyhow::Result<()> {
        let has = |wanted: &str| names.clone().any(|name| name == wanted);
        let found = || names.clone().collect::<Vec<_>>().join(", ");
        let Columns { entity, fields } = &self.columns;
        anyhow::ensure!(
            has(entity),
            "there is no column `{entity}`, by which view `{}` is keyed; there are: {}",
            self.view,
            found()
        );
        anyhow::ensure!(
            fields.iter().any(|field| has(field)),
            "there is no column of view `{}`, which has: {}; there are: {}",
            self.view,
            fields.join(", "),
            found()
        );
        Ok(())
    }

    fn update<'a>(&self, row: u64, cells: impl Iterator<Item = (&'a str, Cell)>) -> anyhow::Result<ProfileUpdate> {
        let mut update = ProfileUpdate {
            view: self.view.clone(),
            entity_id: Id::default(),
            event_time: self.event_time,
            values: BTreeMap::new(),
        };
        for (name, cell) in cells {
            match cell {
                Cell::Value(value) if name == self.columns.entity => {
                    update.entity_id = match value {
                        ProfileValue::Text(text) => text.into(),
                        other => bail!("row {row}: `{name}` is {other:?}, no id"),
                    };
                }
                Cell::Time(time) if name == EVENT_TIME => update.event_time = time,
                Cell::Value(ProfileValue::Text(text)) if name == EVENT_TIME => {
                    update.event_time = text.parse::<EventTime>().map_err(|error| anyhow!("row {row}: {error}"))?;
                }
                Cell::Value(other) if name == EVENT_TIME => bail!("row {row}: `{name}` is {other:?}, no time"),
                Cell::Time(time) => {
                    // As seconds, which a feature can be computed with.
                    update.values.insert(name.into(), ProfileValue::Number(time.as_millis() as f64 / 1000.0));
                }
                // JSON has none: it would be written as no value at all.
                Cell::Value(ProfileValue::Number(value)) if value.is_infinite() => {
                    bail!("row {row}: `{name}` is {value}, a number has to be finite")
                }
                Cell::Value(value) => {
                    update.values.insert(name.into(), value);
                }
            }
        }
        anyhow::ensure!(!update.entity_id.is_empty(), "row {row}: `{}` is empty", self.columns.entity);
        Ok(update)
    }

    fn wants(&self, name: &str) -> bool {
        name == EVENT_TIME || name == self.columns.entity || self.columns.fields.iter().any(|field| field == name)
    }
}

fn csv(path: &Path, make: Maker) -> anyhow::Result<Rows> {
    let mut reader = csv::Reader::from_path(path)?;
    let names: Vec<String> = reader.headers()?.iter().map(|name| name.trim().to_owned()).collect();
    make.check(names.iter().map(String::as_str))?;
    let rows = reader.into_records().zip(0..).map(move |(record, row)| {
        let record = record.with_context(|| format!("row {row}"))?;
        let is_text = |name: &str| name == EVENT_TIME || name == make.columns.entity;
        let cell = |name: &str, text: &str| {
            Cell::Value(match text.trim() {
                text if is_text(name) => ProfileValue::Text(text.to_owned()),
                "" => ProfileValue::Null,
                "true" | "True" | "TRUE" => ProfileValue::Bool(true),
                "false" | "False" | "FALSE" => ProfileValue::Bool(false),
                text => text.parse().map_or_else(|_| ProfileValue::Text(text.to_owned()), ProfileValue::Number),
            })
        };
        let cells = names.iter().zip(&record).filter(|(name, _)| make.wants(name));
        make.update(row, cells.map(|(name, text)| (name.as_str(), cell(name, text))))
    });
    Ok((None, Box::new(rows)))
}

fn parquet(path: &Path, make: Maker) -> anyhow::Result<Rows> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?).context("not a good Parquet file")?;
    make.check(builder.schema().fields().iter().map(|field| field.name().as_str()))?;
    for field in builder.schema().fields().iter().filter(|field| make.wants(field.name())) {
        anyhow::ensure!(
            is_readable(field.data_type()),
            "column `{}` is of type {}: a number, a boolean, a text or a timestamp can be read",
            field.name(),
            field.data_type()
        );
    }
    let total = u64::try_from(builder.metadata().file_metadata().num_rows()).ok();
    let mut row = 0;
    let rows = builder.build()?.flat_map(move |batch| {
        let read = batch.context("the file is damaged").and_then(|batch| of_batch(&batch, &make, row));
        match read {
            Ok(updates) => {
                row += updates.len() as u64;
                updates.into_iter().map(Ok).collect()
            }
            Err(error) => vec![Err(error)],
        }
    });
    Ok((total, Box::new(rows)))
}

fn of_batch(batch: &RecordBatch, make: &Maker, before: u64) -> anyhow::Result<Vec<ProfileUpdate>> {
    let schema = batch.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let columns: Vec<(&str, &dyn Array)> =
        names.zip(batch.columns()).filter(|(name, _)| make.wants(name)).map(|(name, array)| (name, &**array)).collect();
    (0..batch.num_rows())
        .map(|at| {
            make.update(
                before + at as u64,
                columns.iter().map(|&(name, array)| (name, cell(array, at, name == make.columns.entity))),
            )
        })
        .collect()
}

fn is_readable(data_type: &DataType) -> bool {
    use DataType::*;
    data_type.is_integer() && *data_type != UInt64
        || matches!(data_type, Float32 | Float64 | Boolean | Utf8 | LargeUtf8 | Timestamp(_, _))
}

/// A value; `as_id`: of the entity, of which a double would lose digits.
fn cell(array: &dyn Array, at: usize, as_id: bool) -> Cell {
    fn of<T: ArrowPrimitiveType>(array: &dyn Array, at: usize) -> T::Native {
        array.as_primitive::<T>().value(at)
    }
    let number = |value: f64| Cell::Value(ProfileValue::Number(value));
    let integer = |value: i64| match as_id {
        true => Cell::Value(ProfileValue::Text(value.to_string())),
        false => number(value as f64),
    };
    let text = |text: &str| Cell::Value(ProfileValue::Text(text.to_owned()));
    let time = |millis: i64| Cell::Time(EventTime::from_millis(millis));
    if array.is_null(at) {
        return Cell::Value(ProfileValue::Null);
    }
    match array.data_type() {
        DataType::Boolean => Cell::Value(ProfileValue::Bool(array.as_boolean().value(at))),
        DataType::Int8 => integer(of::<Int8Type>(array, at).into()),
        DataType::Int16 => integer(of::<Int16Type>(array, at).into()),
        DataType::Int32 => integer(of::<Int32Type>(array, at).into()),
        DataType::Int64 => integer(of::<Int64Type>(array, at)),
        DataType::UInt8 => integer(of::<UInt8Type>(array, at).into()),
        DataType::UInt16 => integer(of::<UInt16Type>(array, at).into()),
        DataType::UInt32 => integer(of::<UInt32Type>(array, at).into()),
        DataType::Float32 => number(of::<Float32Type>(array, at).into()),
        DataType::Float64 => number(of::<Float64Type>(array, at)),
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(at)),
        DataType::Utf8 => text(array.as_string::<i32>().value(at)),
        DataType::Timestamp(TimeUnit::Second, _) => time(of::<TimestampSecondType>(array, at).saturating_mul(1000)),
        DataType::Timestamp(TimeUnit::Millisecond, _) => time(of::<TimestampMillisecondType>(array, at)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            time(of::<TimestampMicrosecondType>(array, at).div_euclid(1000))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            time(of::<TimestampNanosecondType>(array, at).div_euclid(1_000_000))
        }
        _ => Cell::Value(ProfileValue::Null),
    }
}
