use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow_array::{
    ArrayRef, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt32Array,
};
use schemas::{Amount, EventTime, Id};
use tempfile::TempDir;

use super::*;
use crate::{Labelled, Simulator, SimulatorOptions};

const START: EventTime = EventTime::from_millis(1_522_540_800_000);

fn simulated() -> Vec<Labelled> {
    let options = SimulatorOptions { customers: 1_000, terminals: 2_000, days: Some(15), ..Default::default() };
    let rows: Vec<Labelled> = Simulator::new(options).collect();
    assert!(rows.len() > 20_000 && rows.iter().any(|row| row.fraud), "more than one batch, and frauds");
    rows
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.parquet");
    (folder, path)
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = ArrowWriter::try_new(File::create(path).expect("a file"), batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("a batch is written");
    writer.close().expect("the file is complete");
}

fn read(path: &Path) -> anyhow::Result<Vec<Labelled>> {
    ParquetSource::open(path)?.collect()
}

/// Three good rows, in other types than the Handbook's.
fn columns() -> Vec<(&'static str, ArrayRef)> {
    vec![
        ("TX_AMOUNT", Arc::new(Float64Array::from(vec![57.16, 0.0, 146.0]))),
        ("EXTRA", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
        ("TRANSACTION_ID", Arc::new(Int32Array::from(vec![0, 1, 2]))),
        (
            "TX_DATETIME",
            Arc::new(TimestampNanosecondArray::from(vec![1_522_540_831_000_999_999, 1_522_540_931_000_000_000, 0])),
        ),
        ("CUSTOMER_ID", Arc::new(Int64Array::from(vec![596, 4_961, 5_000_000_000]))),
        ("TERMINAL_ID", Arc::new(Int16Array::from(vec![3_156, 3_412, 1_365]))),
    ]
}

fn with(name: &str, array: impl arrow_array::Array + 'static) -> Vec<(&'static str, ArrayRef)> {
    let mut columns = columns();
    let name = *NAMES.iter().find(|known| **known == name).expect("a column's name");
    columns.retain(|(other, _)| *other != name);
    columns.push((name, Arc::new(array)));
    columns
}

const NAMES: [&str; 7] =
    [TRANSACTION_ID, TX_DATETIME, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT, TX_FRAUD, TX_FRAUD_SCENARIO];

/// The message of the error that reading these columns ends with.
fn refusal(columns: Vec<(&str, ArrayRef)>) -> String {
    let (_folder, path) = folder();
    write(&path, columns);
    let message = format!("{:#}", read(&path).expect_err("the columns are refused"));
    assert!(message.contains(&path.display().to_string()), "{message}");
    message
}

#[test]
fn what_is_written_is_read_back() {
    let (folder, path) = folder();
    let rows = simulated();
    let mut progress = Vec::new();
    let written = write_parquet(&path, rows.iter().cloned(), START, |rows| progress.push(rows)).expect("written");
    assert_eq!(written, rows.len() as u64);
    assert_eq!(progress.first(), Some(&16_384));
    assert_eq!(progress.last(), Some(&written));
    let source = ParquetSource::open(&path).expect("the file opens");
    assert_eq!(source.rows(), written);
    assert_eq!(source.collect::<anyhow::Result<Vec<_>>>().expect("every row is read"), rows);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1, "no temporary file is left");
}

#[test]
fn the_file_has_the_columns_of_the_handbook() {
    let (_folder, path) = folder();
    let rows = simulated();
    write_parquet(&path, rows.iter().cloned(), START, |_| {}).expect("written");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).expect("the file")).expect("Parquet");
    let fields: Vec<String> =
        reader.schema().fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    assert_eq!(
        fields,
        [
            "TRANSACTION_ID Int64",
            "TX_DATETIME Timestamp(ms)",
            "CUSTOMER_ID Int32",
            "TERMINAL_ID Int32",
            "TX_AMOUNT Float64",
            "TX_TIME_SECONDS Int32",
            "TX_TIME_DAYS Int32",
            "TX_FRAUD Int8",
            "TX_FRAUD_SCENARIO Int8",
        ]
    );
    // The columns that `ParquetSource` doesn't read.
    let mut index = 0;
    for batch in reader.build().expect("a reader") {
        let batch = batch.expect("a batch");
        let column = |name| batch.column_by_name(name).expect(name).as_any().downcast_ref::<Int32Array>().expect(name);
        for (seconds, days) in column(TX_TIME_SECONDS).values().iter().zip(column(TX_TIME_DAYS).values()) {
            let since_start = rows[index].transaction.event_time.as_millis() - START.as_millis();
            assert_eq!(i64::from(*seconds), since_start / 1000);
            assert_eq!(i64::from(*days), since_start / 86_400_000);
            index += 1;
        }
    }
    assert_eq!(index, rows.len());
}

#[test]
fn a_write_that_fails_leaves_the_folder_as_it_was() {
    let (folder, path) = folder();
    fs::write(&path, "the file of before").expect("written");
    for spoil in [
        |row: &mut Labelled| row.transaction.card_id = Id::from("card-7"),
        |row: &mut Labelled| row.transaction.terminal_id = Id::from("3000000000"),
        |row: &mut Labelled| row.transaction.event_time = EventTime::from_millis(0),
        |row: &mut Labelled| row.transaction.event_time = EventTime::LATEST,
        |row: &mut Labelled| row.scenario = 200,
    ] {
        let mut rows = simulated();
        spoil(&mut rows[17_000]);
        let error = write_parquet(&path, rows.into_iter(), START, |_| {}).expect_err("a row that does not fit");
        let message = format!("{error:#}");
        assert!(message.contains("transaction 17000") && message.contains("rows.parquet"), "{message}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
    assert_eq!(fs::read(&path).expect("the file"), b"the file of before");
    let nowhere = write_parquet(folder.path().join("no/such/file"), std::iter::empty(), START, |_| {});
    assert!(format!("{:#}", nowhere.expect_err("no such folder")).contains("no/such/file"));
}

#[test]
fn no_rows_are_a_file_too() {
    let (_folder, path) = folder();
    assert_eq!(write_parquet(&path, std::iter::empty(), START, |_| {}).expect("written"), 0);
    assert_eq!(read(&path).expect("read"), []);
}

#[test]
fn other_types_of_the_columns_are_read() {
    let (_folder, path) = folder();
    write(&path, columns());
    let rows = read(&path).expect("the columns are good");
    let first = &rows[0].transaction;
    assert_eq!(
        (first.transaction_id.as_str(), first.card_id.as_str(), first.terminal_id.as_str()),
        ("0", "596", "3156")
    );
    assert_eq!(first.event_time, EventTime::from_millis(1_522_540_831_000));
    assert_eq!(first.amount, Amount::from_cents(5_716));
    assert_eq!(rows[2].transaction.card_id, "5000000000");
    assert!(rows.iter().all(|row| !row.fraud && row.scenario == 0), "without TX_FRAUD there are no frauds");

    let mut columns = with(TX_DATETIME, TimestampSecondArray::from(vec![-1, 0, 1]).with_timezone("UTC"));
    columns.push((TX_FRAUD, Arc::new(Int64Array::from(vec![0, 1, 1]))));
    columns.push((TX_FRAUD_SCENARIO, Arc::new(UInt32Array::from(vec![0, 3, 255]))));
    write(&path, columns);
    let rows = read(&path).expect("the columns are good");
    let seen: Vec<_> =
        rows.iter().map(|row| (row.transaction.event_time.as_millis(), row.fraud, row.scenario)).collect();
    assert_eq!(seen, [(-1000, false, 0), (0, true, 3), (1000, true, 255)]);

    write(&path, with(TX_AMOUNT, Int8Array::from(vec![1, 2, 3])));
    assert_eq!(read(&path).expect("whole amounts").pop().expect("three rows").transaction.amount.to_string(), "3");
    write(&path, with(TX_DATETIME, TimestampMicrosecondArray::from(vec![-1, 0, 1_001])));
    let millis: Vec<i64> =
        read(&path).expect("microseconds").iter().map(|row| row.transaction.event_time.as_millis()).collect();
    assert_eq!(millis, [-1, 0, 1]);
}

#[test]
fn a_missing_column_is_named() {
    for name in [TRANSACTION_ID, TX_DATETIME, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT] {
        let mut columns = columns();
        columns.retain(|(other, _)| *other != name);
        let message = refusal(columns);
        assert!(message.contains(&format!("column {name} is missing, it has to be a")), "{message}");
    }
}

#[test]
fn a_column_of_another_type_is_named() {
    for name in NAMES {
        let message = refusal(with(name, StringArray::from(vec!["1", "2", "3"])));
        assert!(message.contains(&format!("column {name} is of type Utf8, it has to be a")), "{message}");
    }
    let message = refusal(with(TX_DATETIME, Int64Array::from(vec![1, 2, 3])));
    assert!(message.contains("TX_DATETIME is of type Int64, it has to be a timestamp"), "{message}");
}

#[test]
fn a_value_that_is_none_names_row_and_column() {
    let nulls = || Int64Array::from(vec![Some(1), None, Some(1)]);
    for name in [TRANSACTION_ID, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT, TX_FRAUD, TX_FRAUD_SCENARIO] {
        let message = refusal(with(name, nulls()));
        assert!(message.contains(&format!("row 1: column {name} is null")), "{message}");
    }
    let amounts = |last| with(TX_AMOUNT, Float64Array::from(vec![1.0, 2.0, last]));
    for bad in [f64::NAN, -1.0, 1e12, 0.123_45] {
        let message = refusal(amounts(bad));
        assert!(message.contains(&format!("row 2: column TX_AMOUNT is {bad:?}: ")), "{message}");
    }
    let message = refusal(with(TX_FRAUD, Int8Array::from(vec![0, 1, 2])));
    assert!(message.contains("row 2: column TX_FRAUD is 2, it has to lie between 0 and 1"), "{message}");
    let message = refusal(with(TX_FRAUD_SCENARIO, Int8Array::from(vec![-1, 1, 2])));
    assert!(message.contains("row 0: column TX_FRAUD_SCENARIO is -1"), "{message}");
    for far in [1_522_540_831_000, i64::MAX] {
        let message = refusal(with(TX_DATETIME, TimestampSecondArray::from(vec![0, far, 0])));
        assert!(message.contains("row 1: column TX_DATETIME") && message.contains("1900 and 2200"), "{message}");
    }
}

#[test]
fn an_error_in_a_later_batch_names_the_row_of_the_file_and_ends_the_source() {
    let (_folder, path) = folder();
    let rows = 20_000;
    let ids = Int64Array::from_iter_values(0..rows);
    let times = TimestampSecondArray::from_iter_values(0..rows);
    let fraud = Int8Array::from_iter((0..rows).map(|row| (row != 17_000).then_some(0)));
    let ids: ArrayRef = Arc::new(ids);
    let mut columns: Vec<(&str, ArrayRef)> =
        [TRANSACTION_ID, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT].map(|name| (name, Arc::clone(&ids))).into();
    columns.push((TX_DATETIME, Arc::new(times)));
    columns.push((TX_FRAUD, Arc::new(fraud)));
    write(&path, columns);
    let mut source = ParquetSource::open(&path).expect("the file opens");
    let error = source.by_ref().find_map(Result::err).expect("a null");
    assert!(format!("{error:#}").contains("row 17000: column TX_FRAUD is null"), "{error:#}");
    assert!(source.next().is_none());
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let (_folder, path) = folder();
    write_parquet(&path, simulated().into_iter(), START, |_| {}).expect("written");
    let good = fs::read(&path).expect("the file");
    let zeroed = [&good[..4], &vec![0; good.len() / 2], &good[4 + good.len() / 2..]].concat();
    for bytes in [&b""[..], b"PAR1", b"TRANSACTION_ID,TX_AMOUNT\n1,2\n", &good[..good.len() / 2], &good[1..], &zeroed] {
        fs::write(&path, bytes).expect("written");
        let error = read(&path).expect_err("the file is damaged");
        assert!(format!("{error:#}").contains("rows.parquet"), "{error:#}");
    }
    fs::remove_file(&path).expect("removed");
    assert!(format!("{:#}", read(&path).expect_err("no file")).contains("rows.parquet"));
}

#[test]
fn no_damage_of_one_byte_ends_in_a_panic() {
    let (_folder, path) = folder();
    write_parquet(&path, simulated().into_iter().take(50), START, |_| {}).expect("written");
    let good = fs::read(&path).expect("the file");
    let mut file = File::options().write(true).open(&path).expect("the file");
    let mut put = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).expect("a place in the file");
        file.write_all(&[byte]).expect("written");
    };
    let mut refused = 0;
    for (at, byte) in good.iter().enumerate() {
        for flipped in [0x01, 0x80] {
            put(at, byte ^ flipped);
            // Damage within a value can't be told from another value.
            let Err(error) = read(&path) else { continue };
            assert!(format!("{error:#}").contains("rows.parquet"), "{error:#}");
            refused += 1;
        }
        put(at, *byte);
    }
    assert!(refused > good.len() / 2, "{refused} of {} times 2", good.len());
    assert_eq!(read(&path).expect("whole again").len(), 50);
}

/// The Handbook's own data, if at hand.
#[test]
fn the_data_of_the_handbook_is_read() {
    let data = std::env::var_os("FRAUDLINE_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let path = data.join("handbook_transactions.parquet");
    if !path.exists() {
        println!("skipped: the_data_of_the_handbook_is_read: there is no {}", path.display());
        return;
    }
    let source = ParquetSource::open(&path).expect("the file opens");
    assert_eq!(source.rows(), 1_754_155);
    let (mut rows, mut frauds, mut last) = (0_u64, 0, EventTime::MIN);
    for row in source {
        let row = row.expect("every row is good");
        if rows == 0 {
            let json = r#"{"transaction_id":"0","event_time":1522540831000,"card_id":"596","terminal_id":"3156","amount":57.16}"#;
            let mut written = Vec::new();
            row.transaction.write_json(&mut written);
            assert_eq!(String::from_utf8(written).expect("JSON"), json);
        }
        assert!(row.transaction.event_time >= last, "in order of time");
        assert_eq!(row.fraud, row.scenario > 0);
        last = row.transaction.event_time;
        rows += 1;
        frauds += u64::from(row.fraud);
    }
    assert_eq!((rows, frauds), (1_754_155, 14_681));
}
