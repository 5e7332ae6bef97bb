//! `fraudline profiles load` as a person meets it.
#![allow(clippy::unwrap_used)]

mod command;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, StringArray, TimestampSecondArray,
};
use command::{Up, fraudline, simulate};
use schemas::{EventTime, Id, ProfileUpdate, ProfileValue, topics};
use scorer::log::{EmbeddedLog, EmbeddedOptions, Log, TopicPartition, TopicSpec};
use table::{Table, write_table};
use tempfile::TempDir;

/// Before the simulation begins, in April.
const MARCH: EventTime = EventTime::from_millis(1_519_862_400_000);
const MARCH_TEXT: &str = "2018-03-01T00:00:00Z";
const DEFINITIONS: &str = "../../feature-store/definitions/three_views.yaml";

struct Folder {
    folder: TempDir,
}

impl Folder {
    /// With a data directory to which nothing was written yet.
    fn new() -> Folder {
        let folder = Folder::without_data();
        let log = EmbeddedLog::open(&folder.data(), EmbeddedOptions::default()).unwrap();
        let name = topics::PROFILES.to_owned();
        log.create_topic(&TopicSpec { name, partitions: 3, retention: None }).unwrap();
        folder
    }

    fn without_data() -> Folder {
        Folder { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn position(&self, input: &str) -> PathBuf {
        self.path(&format!("{input}.card_profile.position"))
    }

    /// Loads into a view; the exit status, and what it says on either stream.
    fn load_into(&self, view: &str, input: &str, more: &[&str]) -> (Option<i32>, String, String) {
        let mut command = fraudline();
        command.args(["profiles", "load", "--view", view, "--features", DEFINITIONS, "--data-dir"]).arg(self.data());
        command.arg("--input").arg(self.path(input)).args(more).env_remove("RUST_BACKTRACE");
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Loads since March, which has to go well.
    fn load(&self, input: &str) -> String {
        let (code, printed, error) = self.load_into("card_profile", input, &["--event-time", MARCH_TEXT]);
        assert_eq!(code, Some(0), "{error}");
        assert!(!self.position(input).exists(), "the position goes once all is loaded");
        printed
    }

    /// Must not go well; returns what it says.
    fn refused(&self, view: &str, input: &str) -> String {
        let (code, printed, error) = self.load_into(view, input, &["--event-time", MARCH_TEXT]);
        assert_eq!(code, Some(1), "{input}: {printed}");
        error
    }

    /// All updates in the log, those of a card in their order, and cards by number.
    fn updates(&self) -> Vec<ProfileUpdate> {
        let log = EmbeddedLog::open(&self.data(), EmbeddedOptions::default()).unwrap();
        let mut updates = Vec::new();
        for (partition, kept) in log.topic(topics::PROFILES).unwrap().offsets.into_iter().enumerate() {
            let of = TopicPartition { topic: topics::PROFILES.to_owned(), partition: partition as u32 };
            let mut next = kept.start;
            while next < kept.end {
                for record in log.read(&of, next, 1000).unwrap() {
                    next = record.offset + 1;
                    let update = ProfileUpdate::from_json(&record.value).unwrap();
                    assert_eq!(record.key, update.entity_id.as_bytes(), "updates of a card stay in one partition");
                    updates.push(update);
                }
            }
        }
        updates.sort_by_key(|update| update.entity_id.parse::<i64>().unwrap());
        updates
    }
}

fn update(card: &str, event_time: EventTime, values: [(&str, ProfileValue); 3]) -> ProfileUpdate {
    let values = values.into_iter().map(|(name, value)| (Id::from(name), value)).collect::<BTreeMap<_, _>>();
    ProfileUpdate { view: "card_profile".into(), entity_id: card.into(), event_time, values }
}

fn values(limit: f64, premium: ProfileValue, chargebacks: ProfileValue) -> [(&'static str, ProfileValue); 3] {
    [("credit_limit", ProfileValue::Number(limit)), ("premium", premium), ("chargebacks", chargebacks)]
}

#[test]
fn rows_of_a_csv_file_become_updates() {
    let folder = Folder::new();
    let text = "credit_limit,card_id,country,premium,chargebacks,event_time\n\
                5000.5,1,NL,true,0,2018-03-04T05:06:07.089Z\n\
                12,2,,False, 3 ,2018-03-01T00:00:00Z\n\
                0,3,\"a, b\",,NaN,2018-03-01 00:00:01\n";
    fs::write(folder.path("profiles.csv"), text).unwrap();
    assert_eq!(folder.load("profiles.csv"), "3 profiles written to view card_profile\n");
    use ProfileValue::{Bool, Null, Number};
    let expected = [
        update("1", EventTime::from_millis(1_520_139_967_089), values(5000.5, Bool(true), Number(0.0))),
        update("2", MARCH, values(12.0, Bool(false), Number(3.0))),
        update("3", MARCH + std::time::Duration::from_secs(1), values(0.0, Null, Null)),
    ];
    assert_eq!(folder.updates(), expected, "a column that the view hasn't is left out");

    // A second load is one of its own: there is nothing to go on with.
    folder.load("profiles.csv");
    assert_eq!(folder.updates().len(), 6);
}

#[test]
fn rows_of_a_parquet_file_become_updates() {
    let folder = Folder::new();
    let times = TimestampSecondArray::from(vec![1_520_139_967, 1_519_862_400, 1_519_862_401]);
    write_table(
        &folder.path("profiles.parquet"),
        vec![
            // A double would lose its last digit.
            ("card_id", Arc::new(Int64Array::from(vec![1, 2, 9_007_199_254_740_993])) as ArrayRef),
            ("country", Arc::new(StringArray::from(vec!["NL", "DE", "FR"]))),
            ("credit_limit", Arc::new(Float64Array::from(vec![5000.5, 12.0, 0.0]))),
            ("premium", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
            ("chargebacks", Arc::new(Int32Array::from(vec![Some(0), Some(3), None]))),
            ("event_time", Arc::new(times)),
        ],
    );
    assert_eq!(folder.load("profiles.parquet"), "3 profiles written to view card_profile\n");
    use ProfileValue::{Bool, Null, Number};
    let expected = [
        update("1", EventTime::from_millis(1_520_139_967_000), values(5000.5, Bool(true), Number(0.0))),
        update("2", MARCH, values(12.0, Bool(false), Number(3.0))),
        update("9007199254740993", MARCH + std::time::Duration::from_secs(1), values(0.0, Null, Null)),
    ];
    assert_eq!(folder.updates(), expected);
}

/// A line for each of the first so many cards, its limit told by its number.
fn csv_of(cards: u32) -> String {
    (0..cards).fold("card_id,credit_limit\n".to_owned(), |mut text, card| {
        writeln!(text, "{card},{}", 1000 + card).unwrap();
        text
    })
}

fn assert_each_once(updates: &[ProfileUpdate], cards: std::ops::Range<u32>) {
    let found: Vec<(String, Option<f64>, EventTime)> = updates
        .iter()
        .map(|update| (update.entity_id.to_string(), update.values["credit_limit"].as_number(), update.event_time))
        .collect();
    let expected: Vec<_> = cards.map(|card| (card.to_string(), Some(f64::from(1000 + card)), MARCH)).collect();
    assert!(found == expected, "{} found, {} expected", found.len(), expected.len());
}

#[test]
fn a_load_that_stopped_goes_on_behind_its_position() {
    let folder = Folder::new();
    let input = folder.path("profiles.csv");
    let good = csv_of(6000);
    // Of the same length, so that the file is the same but for what stops the load.
    let bad = good.replace("\n5003,6003\n", "\n5003,none\n");
    assert_eq!((bad.len(), bad == good), (good.len(), false));
    fs::write(&input, &bad).unwrap();
    let modified = fs::metadata(&input).unwrap().modified().unwrap();
    let error = folder.refused("card_profile", "profiles.csv");
    assert!(error.contains("row 5003: `credit_limit` of view `card_profile` is a number, not"), "{error}");
    assert_each_once(&folder.updates(), 0..5000);
    let position = fs::read_to_string(folder.position("profiles.csv")).unwrap();
    assert!(position.contains("\"rows\":5000"), "{position}");

    fs::write(&input, &good).unwrap();
    File::options().write(true).open(&input).unwrap().set_modified(modified).unwrap();
    let printed = folder.load("profiles.csv");
    assert!(printed.starts_with("going on behind row 5000, as "), "{printed}");
    assert!(printed.ends_with("1000 profiles written to view card_profile\n"), "{printed}");
    assert_each_once(&folder.updates(), 0..6000);
}

#[test]
fn a_load_without_a_time_goes_on_with_that_of_its_beginning() {
    let folder = Folder::new();
    let input = folder.path("profiles.csv");
    fs::write(&input, csv_of(8)).unwrap();
    let of = fs::metadata(&input).unwrap();
    let modified = of.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let position = format!(
        r#"{{"view":"card_profile","bytes":{},"modified_ms":{modified},"event_time":{},"rows":5}}"#,
        of.len(),
        MARCH.as_millis()
    );
    fs::write(folder.position("profiles.csv"), position).unwrap();
    let (code, printed, error) = folder.load_into("card_profile", "profiles.csv", &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(printed.ends_with("3 profiles written to view card_profile\n"), "{printed}");
    assert_each_once(&folder.updates(), 5..8);
}

#[test]
fn the_position_of_another_load_is_refused() {
    let folder = Folder::new();
    let (input, noted) = (folder.path("profiles.csv"), folder.position("profiles.csv"));
    fs::write(&input, csv_of(6000).replace("\n5003,6003\n", "\n5003,none\n")).unwrap();
    folder.refused("card_profile", "profiles.csv");
    let position = fs::read_to_string(&noted).unwrap();

    // Another time, of the same file.
    let (code, _, error) = folder.load_into("card_profile", "profiles.csv", &["--event-time", "2018-03-02T00:00:00Z"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("is of another load") && error.contains("remove it to begin anew"), "{error}");
    // Another file of the same name.
    fs::write(&input, csv_of(7000)).unwrap();
    let error = folder.refused("card_profile", "profiles.csv");
    assert!(error.contains("profiles.csv.card_profile.position is of another load"), "{error}");
    assert_eq!(fs::read_to_string(&noted).unwrap(), position, "it is left as it was");
    fs::write(&noted, &position[1..]).unwrap();
    let error = folder.refused("card_profile", "profiles.csv");
    assert!(error.contains("is damaged; remove it to begin anew"), "{error}");
    assert_each_once(&folder.updates(), 0..5000);

    fs::remove_file(&noted).unwrap();
    assert_eq!(folder.load("profiles.csv"), "7000 profiles written to view card_profile\n");
    assert_eq!(folder.updates().len(), 12_000);
}

#[test]
fn what_cannot_be_loaded_is_named_by_row_and_column() {
    let folder = Folder::new();
    let refused = |input: &str, says: &[&str]| {
        let error = folder.refused("card_profile", input);
        says.iter().for_each(|says| assert!(error.contains(says), "{input}: no `{says}` in {error}"));
    };
    for (text, says) in [
        ("card_id,credit_limit\n1,5\n2,high\n", &["row 1: `credit_limit` of view `card_profile` is a number"][..]),
        ("card_id,credit_limit\n1,5\n2,-inf\n", &["row 1: `credit_limit` is -inf, a number has to be finite"]),
        ("card_id,credit_limit\n1,5\n,6\n", &["row 1: `card_id` is empty"]),
        ("card_id,credit_limit\n1,5,6\n", &["row 0", "3 fields"]),
        (
            "card_id,credit_limit,event_time\n1,5,yesterday\n",
            &["row 0: `yesterday` is no time", "write it as in 2018-04-01T00:00:31Z"],
        ),
        ("customer,credit_limit\n1,5\n", &["no column `card_id`, by which view `card_profile` is keyed", "customer"]),
        ("card_id,limit\n1,5\n", &["no column of view `card_profile`, which has: credit_limit, premium, chargebacks"]),
        ("", &["no column `card_id`"]),
    ] {
        fs::write(folder.path("profiles.csv"), text).unwrap();
        refused("profiles.csv", says);
    }
    let id = || Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
    let numbers = || Arc::new(Float64Array::from(vec![5.0, 6.0])) as ArrayRef;
    let texts = |texts: [&str; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let nothing: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    for (columns, says) in [
        (vec![("card_id", id()), ("credit_limit", texts(["5", "high"]))], "row 0: `credit_limit` of view"),
        (vec![("card_id", nothing), ("credit_limit", numbers())], "row 1: `card_id` is"),
        (vec![("card_id", numbers()), ("credit_limit", numbers())], "row 0: `card_id` is Number(5.0), no id"),
        (vec![("card_id", id()), ("premium", Arc::new(Date32Array::from(vec![1, 2])))], "column `premium` is of type"),
        (
            vec![("card_id", id()), ("premium", numbers()), ("event_time", numbers())],
            "row 0: `event_time` is Number(5.0), no time",
        ),
        (vec![("credit_limit", numbers())], "no column `card_id`"),
        (vec![("card_id", id())], "no column of view `card_profile`"),
    ] {
        write_table(&folder.path("profiles.parquet"), columns);
        refused("profiles.parquet", &[says]);
    }
    fs::write(folder.path("profiles.parquet"), "no Parquet file").unwrap();
    refused("profiles.parquet", &["profiles.parquet", "not a good Parquet file"]);
    fs::write(folder.path("profiles.txt"), "").unwrap();
    refused("profiles.txt", &["profiles.txt is no .parquet and no .csv file"]);
    refused("nothing.csv", &["opening", "nothing.csv", "No such file"]);

    fs::write(folder.path("profiles.csv"), csv_of(3)).unwrap();
    for view in ["cards", "terminal"] {
        let error = folder.refused(view, "profiles.csv");
        assert!(error.contains(&format!("no profile view `{view}`; they have: card_profile")), "{error}");
    }
    let (code, _, error) = folder.load_into("card_profile", "profiles.csv", &["--event-time", "soon"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("`soon` is no time"), "{error}");
    assert_eq!(folder.updates(), [], "nothing of any of these was written");

    let folder = Folder::without_data();
    fs::write(folder.path("profiles.csv"), csv_of(3)).unwrap();
    assert!(folder.refused("card_profile", "profiles.csv").contains("there is no data directory"));
    fs::create_dir(folder.data()).unwrap();
    let error = folder.refused("card_profile", "profiles.csv");
    assert!(error.contains("after 0 rows") && error.contains("there is no topic `profiles`"), "{error}");
    assert!(!folder.position("profiles.csv").exists());
}

#[test]
fn a_backfill_of_the_log_sees_the_profiles() {
    let folder = Folder::without_data();
    let input = folder.path("input.parquet");
    let rows = simulate(&input, 40, 10);
    let mut up = Up::new(&folder.data());
    up.args(["--rate", "max", "--input"]).arg(&input);
    up.start().finish();
    // Of every other card.
    let text: String = csv_of(40).lines().step_by(2).map(|line| format!("{line}\n")).collect();
    fs::write(folder.path("profiles.csv"), text).unwrap();
    folder.load("profiles.csv");

    let output = folder.path("output.parquet");
    let args: [&OsStr; 4] = ["features".as_ref(), "backfill".as_ref(), "--from-log".as_ref(), "--data-dir".as_ref()];
    let done = fraudline()
        .args(args)
        .arg(folder.data())
        .args(["--features", DEFINITIONS, "--output"])
        .arg(&output)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let table = Table::read(&output);
    assert_eq!(table.rows() as u64, rows);
    let statuses = ["CARD_CREDIT_LIMIT__status", "CARD_IS_PREMIUM__status"].map(|name| table.texts(name));
    let (limits, premium) = (table.bits("CARD_CREDIT_LIMIT"), table.bits("CARD_IS_PREMIUM"));
    let cards = cards_of(&input);
    let mut with_profile = 0;
    for (row, id) in table.ids().iter().enumerate() {
        let card = cards[id];
        // The header is line 0, so the odd lines, of the even cards, were left out.
        let known = card % 2 == 1;
        let limit = known.then_some((1000.0 + card as f32).to_bits());
        let expected = if known { "PRESENT" } else { "NOT_FOUND" };
        assert_eq!((limits[row], &statuses[0][row][..]), (limit, expected), "transaction {id} of card {card}");
        assert_eq!((premium[row], &statuses[1][row][..]), (Some(0), "NOT_FOUND"), "nobody has said so");
        with_profile += u64::from(known);
    }
    assert!(0 < with_profile && with_profile < rows);
}

/// The card of each transaction.
fn cards_of(input: &Path) -> BTreeMap<Id, u32> {
    let rows = load_tests::ParquetSource::open(input).unwrap().map(|row| row.unwrap().transaction);
    rows.map(|transaction| (transaction.transaction_id, transaction.card_id.parse().unwrap())).collect()
}
