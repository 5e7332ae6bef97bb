//! The feature engine against the values that the Handbook published for its own data.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use feature_store::{Backfill, FeatureSet, Scratch, WindowState};
use load_tests::{ChargebackDelay, Feed};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::{Id, Label, Transaction};

const ROWS: usize = 1_754_155;
/// Same-second ties of a customer, that the Handbook's own tools order one way or another.
const TIED_ROWS_MAX: usize = 20;
const CHUNK: usize = 32_768;

/// The Handbook's columns, by what may differ in them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Whole numbers: nothing.
    Exact,
    /// A customer's count: rows with ties.
    CustomerCount,
    /// A customer's mean: the last bits, and rows whose count differs.
    CustomerMean,
    /// The last bits.
    Rate,
}

/// Values of a file by column name, indexed by TRANSACTION_ID.
fn read_published(path: &Path, columns: &[(String, Kind)]) -> HashMap<String, Vec<f32>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("the file opens"));
    let reader = builder.expect("a Parquet file").with_batch_size(8192).build().expect("a good Parquet file");
    let mut published: HashMap<String, Vec<f32>> =
        columns.iter().map(|(name, _)| (name.clone(), vec![f32::NAN; ROWS])).collect();
    for batch in reader {
        let batch = batch.expect("a good batch");
        let ids = column(&batch, "TRANSACTION_ID");
        for (name, values) in &mut published {
            for (id, value) in ids.iter().zip(column(&batch, name)) {
                values[*id as usize] = value as f32;
            }
        }
    }
    published
}

fn column(batch: &RecordBatch, name: &str) -> Vec<f64> {
    let array = batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    assert_eq!(array.null_count(), 0, "{name}");
    match array.data_type() {
        DataType::Int8 => array.as_primitive::<Int8Type>().values().iter().map(|&value| value.into()).collect(),
        DataType::Int16 => array.as_primitive::<Int16Type>().values().iter().map(|&value| value.into()).collect(),
        DataType::Int32 => array.as_primitive::<Int32Type>().values().iter().map(|&value| value.into()).collect(),
        // Ids and counts: far below 2^53.
        DataType::Int64 => array.as_primitive::<Int64Type>().values().iter().map(|&value| value as f64).collect(),
        DataType::Float64 => array.as_primitive::<Float64Type>().values().to_vec(),
        other => panic!("column {name} is of type {other}"),
    }
}

/// Amounts are multiples of 0.01 and counts below 10^4, so no two values are this close. Below it
/// is what a running sum of doubles leaves over: the published mean of a single payment of 0 is
/// 1.7e-13 in one row.
const RESIDUE: f32 = 1e-12;

/// Whether the values are equal up to two units in the last place.
fn nearly_equal(ours: f32, published: f32) -> bool {
    (ours - published).abs() < RESIDUE
        || (ours > 0.0 && published > 0.0 && ours.to_bits().abs_diff(published.to_bits()) <= 2)
}

fn columns() -> Vec<(String, Kind)> {
    let mut columns = vec![("TX_DURING_WEEKEND".to_owned(), Kind::Exact), ("TX_DURING_NIGHT".to_owned(), Kind::Exact)];
    for days in [1, 7, 30] {
        for (name, kind) in [
            ("CUSTOMER_ID_NB_TX", Kind::CustomerCount),
            // After the count of the same window, which tells the rows with ties.
            ("CUSTOMER_ID_AVG_AMOUNT", Kind::CustomerMean),
            ("TERMINAL_ID_NB_TX", Kind::Exact),
            ("TERMINAL_ID_RISK", Kind::Rate),
        ] {
            columns.push((format!("{name}_{days}DAY_WINDOW"), kind));
        }
    }
    columns
}

/// An event at a time, as the scorer does it, with states that live here.
struct Stream<'a> {
    features: &'a FeatureSet,
    cards: HashMap<Id, WindowState>,
    terminals: HashMap<Id, WindowState>,
    scratch: Scratch,
    values: Vec<f64>,
}

impl<'a> Stream<'a> {
    fn new(features: &'a FeatureSet) -> Stream<'a> {
        let (cards, terminals) = (HashMap::new(), HashMap::new());
        Stream { features, cards, terminals, scratch: Scratch::default(), values: vec![f64::NAN; features.width()] }
    }

    fn label(&mut self, label: &Label) {
        let state = self.terminals.entry(label.terminal_id.clone()).or_default();
        state.insert_label(&label.transaction_id, label.transaction_time, label.label_time, label.fraud);
    }

    fn transaction(&mut self, transaction: &Transaction, out: &mut Vec<f32>) {
        let Stream { features, cards, terminals, scratch, values } = self;
        let time = transaction.event_time;
        let mut shared = [None; 2];
        let (index, view) = features.shared_views().next().expect("the view of terminals");
        let terminal = terminals.entry(transaction.terminal_id.clone()).or_default();
        shared[index] = Some(&*terminal);
        let card = cards.entry(transaction.card_id.clone()).or_default();
        features.join(transaction, Some(card), &shared, scratch, values);
        features.assemble(transaction, values, out);
        // Only then, as the windows of a terminal end days before.
        view.apply(transaction, terminal, scratch);
        view.evict(terminal, time - view.keep());
        let own = features.views().iter().find(|view| view.is_owned()).expect("the view of cards");
        own.evict(card, time - own.keep());
    }
}

#[test]
fn the_features_are_the_published_ones() {
    let data = std::env::var_os("FRAUDLINE_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let (transactions, published) =
        (data.join("handbook_transactions.parquet"), data.join("handbook_features.parquet"));
    if let Some(missing) = [&transactions, &published].into_iter().find(|path| !path.exists()) {
        println!("skipped: the_features_are_the_published_ones: there is no {}", missing.display());
        return;
    }
    let columns = columns();
    let published = read_published(&published, &columns);
    let features = FeatureSet::bundled();
    let slots: Vec<usize> = columns
        .iter()
        .map(|(name, _)| features.names().iter().position(|known| known == name).unwrap_or_else(|| panic!("{name}")))
        .collect();

    let mut feed = Feed::parquet(&transactions, ChargebackDelay::default()).expect("the file opens");
    // Two at least, so that rows are shared out.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let mut backfill = Backfill::on_threads(&features, NonZero::new(threads).expect("two at least"));
    let mut stream = Stream::new(&features);
    let (mut in_backfill, mut in_stream) = (Duration::ZERO, Duration::ZERO);
    // By column: rows that differ, and the first few of them.
    let mut different: Vec<Vec<(usize, f32, f32)>> = vec![Vec::new(); columns.len()];
    let (mut rows, mut labels, mut seen) = (0, 0, vec![false; ROWS]);
    // Rows of which the customer has another in the same second, and each customer's last row.
    let (mut tied, mut last) = (HashSet::new(), HashMap::new());
    while let Some(chunk) = feed.next_chunk(CHUNK).expect("every row is good") {
        labels += chunk.labels.len();
        let transactions: Vec<&Transaction> = chunk.transactions.iter().map(|row| &row.transaction).collect();
        let started = Instant::now();
        chunk.labels.iter().for_each(|label| backfill.label(label));
        let computed = backfill.rows(&transactions).values;
        in_backfill += started.elapsed();
        let started = Instant::now();
        let mut streamed = Vec::with_capacity(computed.len());
        // Each with the first transaction at or after its time.
        let mut due = chunk.labels.iter().peekable();
        for transaction in &transactions {
            while let Some(label) = due.next_if(|label| label.label_time <= transaction.event_time) {
                stream.label(label);
            }
            stream.transaction(transaction, &mut streamed);
        }
        assert_eq!(due.next(), None, "labels come with the transactions that reach their time");
        in_stream += started.elapsed();
        assert_eq!(computed.len(), streamed.len());
        let vectors = computed.chunks_exact(features.width()).zip(streamed.chunks_exact(features.width()));
        for (transaction, (row, streamed)) in transactions.into_iter().zip(vectors) {
            let same = |(ours, theirs): (&f32, &f32)| ours.to_bits() == theirs.to_bits();
            assert!(row.iter().zip(streamed).all(same), "{transaction:?}: {row:?}, streamed {streamed:?}");
            let id: usize = transaction.transaction_id.parse().expect("the Handbook's ids are numbers");
            assert!(!std::mem::replace(&mut seen[id], true), "transaction {id} comes twice");
            rows += 1;
            let second = transaction.event_time.as_millis() / 1000;
            if let Some((same_second, other)) = last.insert(transaction.card_id.clone(), (second, id))
                && same_second == second
            {
                tied.extend([id, other]);
            }
            for (column, (name, _)) in columns.iter().enumerate() {
                let (ours, theirs) = (row[slots[column]], published[name][id]);
                if !nearly_equal(ours, theirs) {
                    different[column].push((id, ours, theirs));
                }
            }
        }
    }
    let seconds = [in_backfill, in_stream].map(|time| time.as_secs_f64());
    println!(
        "{rows} transactions and {labels} labels: {:.1} s on {threads} threads, {:.1} s streamed",
        seconds[0], seconds[1]
    );
    println!("{} values equal to the streamed ones, bit for bit", rows * features.width());
    assert_eq!(rows, ROWS);
    assert!(labels > 14_000, "most chargebacks come while the data lasts");

    let (mut differing_rows, mut wrong) = (HashSet::new(), Vec::new());
    for (column, (name, kind)) in columns.iter().enumerate() {
        let differ = &different[column];
        println!("{name:<38} {rows} compared, {:>3} differ", differ.len());
        let explained = match kind {
            Kind::Exact | Kind::Rate => differ.is_empty(),
            Kind::CustomerCount => {
                differing_rows.extend(differ.iter().map(|(id, ..)| *id));
                differ.iter().all(|(id, ours, theirs)| tied.contains(id) && (ours - theirs).abs() == 1.0)
            }
            Kind::CustomerMean => {
                let counts = &different[column - 1];
                differ.iter().all(|(id, ..)| counts.iter().any(|(other, ..)| other == id))
            }
        };
        if !explained {
            let first = &differ[..differ.len().min(5)];
            wrong.push(format!("{name}: {} differ, as (id, computed, published) {first:?}", differ.len()));
        }
    }
    let differing_rows = differing_rows.len();
    println!("{} values compared; {differing_rows} of {} rows with a tie differ", ROWS * columns.len(), tied.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(differing_rows <= TIED_ROWS_MAX, "the counts of {differing_rows} rows differ");
}
