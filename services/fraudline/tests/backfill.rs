//! `fraudline features backfill` and `verify` as a person meets them.
#![allow(clippy::unwrap_used)]

mod command;
mod table;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Int8Array, Int64Array, TimestampMillisecondArray};
use command::{Up, fraudline, simulate};
use feature_store::{FeatureSet, Scratch, WindowState};
use load_tests::{ChargebackDelay, Feed, Labelled, ParquetSource, SimulatorOptions, write_parquet};
use schemas::{EventTime, Id, Label, Transaction};
use table::{Table, write_table};

const HANDBOOK: &str = include_str!("../../../feature-store/definitions/handbook.yaml");
/// The Handbook's; with a profile besides, of which nothing is known here; with runs of known frauds; with the card's last payments; and all that a definition can ask for.
const DEFINITIONS: [&str; 5] = [
    "../../feature-store/definitions/handbook.yaml",
    "../../feature-store/definitions/three_views.yaml",
    "../../feature-store/definitions/fraud.yaml",
    "../../feature-store/definitions/history.yaml",
    "../../load-tests/tests/simulation/features.yaml",
];
const DAY: Duration = Duration::from_secs(86_400);
const RISKS: [&str; 3] =
    ["TERMINAL_ID_RISK_1DAY_WINDOW", "TERMINAL_ID_RISK_7DAY_WINDOW", "TERMINAL_ID_RISK_30DAY_WINDOW"];

fn features(args: &[&OsStr]) -> Output {
    fraudline().arg("features").args(args).env_remove("RUST_BACKTRACE").output().unwrap()
}

fn backfill(args: &[&OsStr]) -> Output {
    features(&[&["backfill".as_ref()], args].concat())
}

/// Runs it, which has to end well, and reads what it wrote.
fn backfilled(args: &[&OsStr], output: &Path) -> Table {
    let done = backfill(&[args, &["--output".as_ref(), output.as_ref()]].concat());
    assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    let table = Table::read(output);
    assert!(text(&done.stdout).starts_with(&format!("{} transactions in ", table.rows())), "{}", text(&done.stdout));
    table
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn rows_of(input: &Path) -> Vec<Labelled> {
    ParquetSource::open(input).unwrap().map(Result::unwrap).collect()
}

/// Feature values bit for bit, by transaction; `None` is a missing value.
type Vectors = HashMap<Id, Vec<Option<u32>>>;

/// An event at a time, as the scorer does it, with states that live here and forget nothing.
#[derive(Default)]
struct Stream {
    cards: HashMap<Id, WindowState>,
    terminals: HashMap<Id, WindowState>,
    /// Of cards, where the events are re-keyed.
    carrying: HashMap<Id, WindowState>,
    scratch: Scratch,
    vectors: Vectors,
}

impl Stream {
    fn label(&mut self, label: &Label) {
        let state = self.terminals.entry(label.terminal_id.clone()).or_default();
        state.insert_label(&label.transaction_id, label.transaction_time, label.label_time, label.fraud);
    }

    fn transaction(&mut self, features: &FeatureSet, transaction: &Transaction) {
        let (index, terminal) = features.shared_views().find(|(_, view)| !view.is_profile()).unwrap();
        let mut values = vec![f64::NAN; features.width()];
        let mut shared = vec![None; features.views().len()];
        shared[index] = self.terminals.get(&transaction.terminal_id);
        let card = self.cards.entry(transaction.card_id.clone()).or_default();
        features.join(transaction, Some(card), &shared, &mut self.scratch, &mut values);
        let mut vector = Vec::new();
        features.assemble(transaction, &mut values, &mut vector);
        // Only then, as the windows of a terminal end days before.
        let state = self.terminals.entry(transaction.terminal_id.clone()).or_default();
        let card = self.carrying.entry(transaction.card_id.clone()).or_default();
        let carried: Vec<f64> = match features.carry() {
            Some(carry) => carry.values(transaction, card, &mut self.scratch).collect(),
            None => Vec::new(),
        };
        terminal.apply_carrying(transaction, &carried, state, &mut self.scratch);
        let bits = vector.iter().map(|value| (!value.is_nan()).then_some(value.to_bits())).collect();
        assert_eq!(self.vectors.insert(transaction.transaction_id.clone(), bits), None, "every id is there once");
    }
}

/// What the scorer gives for the transactions of a file, whose frauds become known days later.
fn streamed(features: &FeatureSet, input: &Path) -> Vectors {
    let mut feed = Feed::parquet(input, ChargebackDelay::default()).unwrap();
    let mut stream = Stream::default();
    while let Some(chunk) = feed.next_chunk(1).unwrap() {
        chunk.labels.iter().for_each(|label| stream.label(label));
        stream.transaction(features, &chunk.transactions[0].transaction);
    }
    stream.vectors
}

fn vectors(features: &FeatureSet, table: &Table) -> Vectors {
    let columns: Vec<Vec<Option<u32>>> = features.names().iter().map(|name| table.bits(name)).collect();
    let vector = |row: usize| columns.iter().map(|column| column[row]).collect();
    table.ids().into_iter().enumerate().map(|(row, id)| (id, vector(row))).collect()
}

#[test]
fn a_backfill_on_many_threads_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    // More than are computed at a time.
    let rows = simulate(&input, 1200, 30);
    assert!(rows > 33_000, "{rows}");
    let transactions = rows_of(&input);
    let ids: Vec<Id> = transactions.iter().map(|row| row.transaction.transaction_id.clone()).collect();
    for (number, definitions) in DEFINITIONS.into_iter().enumerate() {
        let features = FeatureSet::load(definitions.as_ref()).unwrap();
        let [one, three] = ["1", "3"].map(|threads| {
            let output = folder.path().join(format!("{number}-on-{threads}.parquet"));
            let args = ["--threads", threads, "--features", definitions, "--input"].map(OsStr::new);
            backfilled(&[&args, &[input.as_ref()][..]].concat(), &output)
        });
        assert!(one == three, "{definitions}: not a bit depends on the threads, nor the order of the rows");
        assert_eq!(one.ids(), ids, "the rows of the file, in its order");
        let (found, expected) = (vectors(&features, &one), streamed(&features, &input));
        for id in &ids {
            assert_eq!(found[id], expected[id], "{definitions}: transaction {id}");
        }
    }

    let table = backfilled(&["--input".as_ref(), input.as_ref()], &folder.path().join("output.parquet"));
    assert!(vectors(&FeatureSet::bundled(), &table) == streamed(&FeatureSet::bundled(), &input), "on all cores");
    let frauds: Vec<Option<i8>> = transactions.iter().map(|row| Some(i8::from(row.fraud))).collect();
    assert_eq!(table.labels(), frauds);
    assert!(table.bits(RISKS[2]).iter().any(|&risk| risk > Some(0)), "chargebacks came while the data lasts");
}

#[test]
fn statuses_say_what_was_known_of_card_and_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.parquet");
    simulate(&input, 80, 30);
    let table = backfilled(&["--input".as_ref(), input.as_ref()], &folder.path().join("output.parquet"));
    let transactions = rows_of(&input);
    let (cards, terminals) = (table.texts("card__status"), table.texts("terminal__status"));
    let card_columns: Vec<Vec<Option<u32>>> = FeatureSet::bundled()
        .names()
        .iter()
        .filter(|name| name.starts_with("CUSTOMER_ID_"))
        .map(|name| table.bits(name))
        .collect();
    let mut seen: HashMap<&Id, Vec<EventTime>> = HashMap::new();
    for (row, Labelled { transaction, .. }) in transactions.iter().enumerate() {
        let at = format!("row {row}: {transaction:?}");
        let of_card = seen.entry(&transaction.card_id).or_default();
        let missing = card_columns.iter().any(|column| column[row].is_none());
        // The thirty days of the file fit the longest window, so what a card did at all is known.
        let expected = match (of_card.is_empty(), missing) {
            (true, _) => "NOT_FOUND",
            (false, true) => "NULL_VALUE",
            (false, false) => "PRESENT",
        };
        assert_eq!(cards[row], expected, "{at}");
        of_card.push(transaction.event_time);
        // Windows of a terminal end seven days before.
        let is_known = |earlier: &Labelled| {
            earlier.transaction.terminal_id == transaction.terminal_id
                && earlier.transaction.event_time <= transaction.event_time - 7 * DAY
        };
        let expected = if transactions[..row].iter().any(is_known) { "PRESENT" } else { "NOT_FOUND" };
        assert_eq!(terminals[row], expected, "{at}");
    }
    for (column, status) in
        [(&cards, "NOT_FOUND"), (&cards, "NULL_VALUE"), (&cards, "PRESENT"), (&terminals, "PRESENT")]
    {
        assert!(column.iter().any(|found| found == status), "no {status}");
    }
}

fn write_labels(path: &Path, labels: &[Label]) {
    let ids = |id: fn(&Label) -> &Id| -> ArrayRef {
        Arc::new(labels.iter().map(|label| id(label).parse::<i64>().unwrap()).collect::<Int64Array>())
    };
    let times = |time: fn(&Label) -> EventTime| -> ArrayRef {
        Arc::new(labels.iter().map(|label| Some(time(label).as_millis())).collect::<TimestampMillisecondArray>())
    };
    write_table(
        path,
        vec![
            ("TRANSACTION_ID", ids(|label| &label.transaction_id)),
            ("TERMINAL_ID", ids(|label| &label.terminal_id)),
            ("TX_DATETIME", times(|label| label.transaction_time)),
            ("LABEL_DATETIME", times(|label| label.label_time)),
            ("TX_FRAUD", Arc::new(labels.iter().map(|label| Some(i8::from(label.fraud))).collect::<Int8Array>())),
        ],
    );
}

#[test]
fn labels_of_a_file_count_from_their_own_times() {
    let folder = tempfile::tempdir().unwrap();
    let (input, labels_file) = (folder.path().join("input.parquet"), folder.path().join("labels.parquet"));
    // More than are computed at a time.
    simulate(&input, 1200, 30);
    let transactions = rows_of(&input);
    // Two thirds of the rows have a label, an hour after the transaction; newest first, as a file may be in any order.
    let labelled = |delay: Duration| -> Vec<Label> {
        let known = transactions.iter().enumerate().filter(|(row, _)| row % 3 != 0);
        let label = |Labelled { transaction, fraud, .. }: &Labelled| Label {
            transaction_id: transaction.transaction_id.clone(),
            card_id: transaction.card_id.clone(),
            terminal_id: transaction.terminal_id.clone(),
            transaction_time: transaction.event_time,
            label_time: transaction.event_time + delay,
            fraud: *fraud,
        };
        known.map(|(_, row)| label(row)).rev().collect()
    };
    let run = |name: &str, labels: Option<Vec<Label>>| {
        let mut args: Vec<&OsStr> = vec!["--input".as_ref(), input.as_ref(), "--threads".as_ref(), "2".as_ref()];
        if let Some(labels) = labels {
            write_labels(&labels_file, &labels);
            args.extend::<[&OsStr; 2]>(["--labels".as_ref(), labels_file.as_ref()]);
        }
        backfilled(&args, &folder.path().join(name))
    };
    let without = run("without.parquet", None);
    let soon = run("soon.parquet", Some(labelled(Duration::from_secs(3600))));
    let after_twelve_days = run("later.parquet", Some(labelled(12 * DAY)));
    let never = run("never.parquet", Some(labelled(365 * DAY)));
    for risk in RISKS {
        assert!(never.bits(risk).iter().all(|&value| value == Some(0)), "{risk}: known too late for any row");
        assert!(soon.bits(risk).iter().any(|&value| value > Some(0)), "{risk}");
        assert_ne!(soon.bits(risk), without.bits(risk), "{risk}: the frauds of the input are no labels then");
    }
    assert_ne!(soon.bits(RISKS[2]), after_twelve_days.bits(RISKS[2]), "it counts when a label came");
    let others = |table: &Table| {
        let names = FeatureSet::bundled().names().to_vec();
        names.iter().filter(|name| !RISKS.contains(&&name[..])).map(|name| table.bits(name)).collect::<Vec<_>>()
    };
    assert_eq!(others(&soon), others(&without), "only the fraud rates know of labels");

    for (table, delay) in [(&soon, Duration::from_secs(3600)), (&after_twelve_days, 12 * DAY)] {
        let mut stream = Stream::default();
        labelled(delay).iter().for_each(|label| stream.label(label));
        let features = FeatureSet::bundled();
        transactions.iter().for_each(|row| stream.transaction(&features, &row.transaction));
        assert!(vectors(&FeatureSet::bundled(), table) == stream.vectors, "as streamed with labels after {delay:?}");
    }
    // What is known in the end, whenever that was; null where there is no label.
    let verdicts: Vec<Option<i8>> =
        transactions.iter().enumerate().map(|(row, of)| (row % 3 != 0).then_some(i8::from(of.fraud))).collect();
    assert_eq!(soon.labels(), verdicts);
    assert_eq!(never.labels(), verdicts);
}

#[test]
fn what_cannot_be_computed_says_why_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (input, output) = (path("input.parquet"), path("output.parquet"));
    simulate(&input, 20, 10);
    let start = SimulatorOptions::default().start;
    let mut rows = rows_of(&input);
    let first = rows.remove(0);
    rows.push(first);
    let at = rows.len() - 1;
    write_parquet(path("unsorted.parquet"), rows.into_iter(), start, |_| {}).unwrap();
    let one = |value| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    write_table(&path("columns.parquet"), vec![("TRANSACTION_ID", one(1)), ("CUSTOMER_ID", one(2))]);
    std::fs::write(path("text.parquet"), "no Parquet file").unwrap();
    std::fs::write(path("existing.parquet"), "somebody's").unwrap();
    let before = entries(folder.path());

    let refused = |args: &[&OsStr], code: i32, says: &[&str]| {
        let done = backfill(args);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{args:?}: {error}");
        says.iter().for_each(|says| assert!(error.contains(says), "{args:?}: no `{says}` in {error}"));
        assert!(done.stdout.is_empty(), "{}", text(&done.stdout));
        assert_eq!(entries(folder.path()), before, "{args:?}: neither an output nor a part of one");
    };
    let on = |file: &str, code, says: &[&str]| {
        let file = path(file);
        refused(&["--input".as_ref(), file.as_ref(), "--output".as_ref(), output.as_ref()], code, says);
    };
    on("nothing.parquet", 1, &["reading", "nothing.parquet", "No such file"]);
    on("columns.parquet", 1, &["columns.parquet", "column TX_DATETIME is missing", "timestamp"]);
    on("text.parquet", 1, &["text.parquet", "not a good Parquet file"]);
    let says = format!("row {at} is at 2018-04-01T");
    on("unsorted.parquet", 1, &[&says, "allowed lateness of 1day", "sort the file by TX_DATETIME"]);

    let [input, output, existing, columns] =
        [&input, &output, &path("existing.parquet"), &path("columns.parquet")].map(|path| path.as_os_str().to_owned());
    let [i, o, labels, log, data_dir, definitions] =
        ["--input", "--output", "--labels", "--from-log", "--data-dir", "--features"].map(OsStr::new);
    refused(&[i, &input, o, &existing], 1, &["existing.parquet exists already; name a new file"]);
    assert_eq!(std::fs::read(&existing).unwrap(), b"somebody's");
    refused(&[i, &input, o, &output, labels, &columns], 1, &["columns.parquet", "column TERMINAL_ID is missing"]);
    refused(&[i, &input, o, &output, labels, "no.parquet".as_ref()], 1, &["reading no.parquet", "No such file"]);
    refused(&[i, &input, o, &output, definitions, "no.yaml".as_ref()], 1, &["no.yaml: it can't be read"]);
    let nowhere = path("nowhere").join("output.parquet");
    refused(&[i, &input, o, nowhere.as_ref()], 1, &["creating", "nowhere", "No such file"]);
    refused(&[log, data_dir, "nowhere".as_ref(), o, &output], 1, &["there is no data directory nowhere"]);
    // Those of the command line itself.
    refused(&[o, &output], 2, &["--input <FILE.parquet>", "--from-log"]);
    refused(&[i, &input], 2, &["--output <FILE.parquet>"]);
    refused(&[i, &input, log, o, &output], 2, &["cannot be used with", "--from-log"]);
    refused(&[log, labels, &columns, o, &output], 2, &["cannot be used with", "--labels"]);
    refused(&[i, &input, o, &output, "--threads".as_ref(), "0".as_ref()], 2, &["--threads"]);
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn vectors_that_were_logged_are_those_of_a_backfill() {
    let folder = tempfile::tempdir().unwrap();
    let (data, input) = (folder.path().join("data"), folder.path().join("input.parquet"));
    let rows = simulate(&input, 80, 30);
    let mut up = Up::new(&data);
    up.args(["--rate", "max", "--log-features", "--input"]).arg(&input);
    let report = up.start().finish();
    assert_eq!(report["scores"].as_u64(), Some(rows));

    let from_log: [&OsStr; 3] = ["--from-log".as_ref(), "--data-dir".as_ref(), data.as_ref()];
    let output = folder.path().join("output.parquet");
    let table = backfilled(&from_log, &output);
    assert_eq!(table.rows() as u64, rows);
    // The chargebacks of the log come as those of the file do, so the values are the same.
    assert!(vectors(&FeatureSet::bundled(), &table) == streamed(&FeatureSet::bundled(), &input), "as streamed");
    let frauds: HashMap<Id, bool> =
        rows_of(&input).into_iter().map(|row| (row.transaction.transaction_id, row.fraud)).collect();
    let mut known = 0;
    for (id, label) in table.ids().iter().zip(table.labels()) {
        // Only chargebacks are in the log, and those of the last days are not in it yet.
        assert!(label.is_none() || (label == Some(1) && frauds[id]), "transaction {id}: {label:?}");
        known += u64::from(label.is_some());
    }
    assert_eq!(Some(known), Some(command::tail(&data, "labels").len() as u64).filter(|&labels| labels > 0));

    let verify = |definitions: Option<&str>| {
        let mut args: Vec<&OsStr> = vec!["verify".as_ref(), "--data-dir".as_ref(), data.as_ref()];
        let file = folder.path().join("features.yaml");
        if let Some(definitions) = definitions {
            std::fs::write(&file, definitions).unwrap();
            args.extend::<[&OsStr; 2]>(["--features".as_ref(), file.as_ref()]);
        }
        let done = features(&args);
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let values = rows * FeatureSet::bundled().width() as u64;
    let good = format!("{rows} vectors compared ({values} values), 0 differ; 0 transactions without a logged vector\n");
    assert_eq!(verify(None), (Some(0), good, String::new()));

    let changed = |from: &str, to: &str| {
        assert!(HANDBOOK.contains(from), "{from}");
        HANDBOOK.replace(from, to)
    };
    let (code, printed, error) =
        verify(Some(&changed("aggregate: count, over: [1d, 7d, 30d],\n", "aggregate: count, over: [1d, 6d, 30d],\n")));
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains(": CUSTOMER_ID_NB_TX_6DAY_WINDOW was "), "an example: {printed}");
    let named: Vec<&str> = printed.lines().filter(|line| line.ends_with(" values differ")).collect();
    assert_eq!(named.len(), 1, "one window is another, and nothing else: {named:?}");
    assert!(named[0].starts_with("CUSTOMER_ID_NB_TX_6DAY_WINDOW: "), "{named:?}");
    assert!(error.contains(&format!(" of {rows} vectors differ")), "{error}");

    let narrower = changed(
        "  - { name: LOG_AMOUNT, value: log1p(TX_AMOUNT),\n      reason_group: amount, reason: \"a logarithm of the amount of {value}, usually {reference}\" }\n",
        "",
    );
    let (code, _, error) = verify(Some(&narrower));
    assert_eq!(code, Some(1));
    assert!(error.contains("carries 23 values, the definitions have 22: name the definitions"), "{error}");
}

#[test]
fn without_logged_vectors_there_is_nothing_to_verify() {
    let folder = tempfile::tempdir().unwrap();
    let (data, input) = (folder.path().join("data"), folder.path().join("input.parquet"));
    let rows = simulate(&input, 20, 5);
    let mut up = Up::new(&data);
    up.args(["--rate", "max", "--input"]).arg(&input);
    up.start().finish();
    let done = features(&["verify".as_ref(), "--data-dir".as_ref(), data.as_ref()]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stdout).contains(&format!("{rows} transactions without a logged vector")));
    assert!(
        text(&done.stderr).contains("have the scorer log vectors with `log_features: 1`"),
        "{}",
        text(&done.stderr)
    );
}
