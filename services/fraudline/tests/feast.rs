//! Feast itself: its client reads from fraudline, and what it materialized into Redis is read. `infra/local/services install feast`
//! brings its Python packages; without them these tests are skipped, by name, and with `FRAUDLINE_SERVICES=required` they fail.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

mod command;

use std::env;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use command::{Up, fraudline, tail};
use schemas::{EventTime, ProfileUpdate, topics};
use scorer::log::{EmbeddedLog, EmbeddedOptions, Log, TopicSpec};
use serde_json::{Value, json};

const DEFINITIONS: &str = "../../feature-store/definitions/three_views.yaml";

fn skipped(test: &str, reason: &str) {
    let message = format!("skipped: {test}: {reason}");
    assert_ne!(env::var("FRAUDLINE_SERVICES").as_deref(), Ok("required"), "{message}");
    eprintln!("{message}");
}

/// `load-tests/feast/store.py` with Feast's Python; `None`: there is none.
fn feast(test: &str) -> Option<Command> {
    let Some(python) = env::var_os("FRAUDLINE_TEST_FEAST") else {
        skipped(test, "FRAUDLINE_TEST_FEAST names no Python that has Feast");
        return None;
    };
    let mut command = Command::new(python);
    command.arg("../../load-tests/feast/store.py").env("FEAST_USAGE", "False");
    Some(command)
}

/// Runs it to a good end; its output.
fn finished(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn what_feast_materialized_is_loaded_as_feast_reads_it() {
    let test = "what_feast_materialized_is_loaded_as_feast_reads_it";
    let redis = env::var("FRAUDLINE_TEST_REDIS").unwrap_or("redis://127.0.0.1:16379".to_owned());
    let address = redis.strip_prefix("redis://").unwrap().to_owned();
    let Some(mut store) = feast(test) else { return };
    if TcpStream::connect(&address).is_err() {
        return skipped(test, &format!("no Redis at {address}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, repository) = (folder.path().join("data"), folder.path().join("feast"));
    let project = format!("of_{}", std::process::id());
    store.arg("materialize").arg(&repository);
    finished(store.args([&address, &project, "200", "10"]));
    let log = EmbeddedLog::open(&data, EmbeddedOptions::default()).unwrap();
    log.create_topic(&TopicSpec { name: topics::PROFILES.to_owned(), partitions: 2, retention: None }).unwrap();
    drop(log);
    let mut load = fraudline();
    load.args(["profiles", "load", "--view", "card_profile", "--features", DEFINITIONS, "--feast-redis", &redis]);
    finished(load.args(["--feast-project", &project, "--data-dir"]).arg(&data));

    let read: Value = serde_json::from_slice(&std::fs::read(repository.join("card_profile.json")).unwrap()).unwrap();
    let updates = updates(&data);
    assert_eq!(updates.len(), 200, "once each, however the scan of Redis went");
    let since: EventTime = "2018-03-01T00:00:00Z".parse().unwrap();
    let mut missing = 0;
    for update in updates {
        assert_eq!(update.event_time, since);
        let row = read["card_id"].as_array().unwrap().iter().position(|card| *card == *update.entity_id).unwrap();
        for field in ["credit_limit", "premium", "chargebacks"] {
            // Feast has flags and whole numbers as such.
            let expected = match &read[field][row] {
                Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
                number => number.as_f64(),
            };
            let found = update.values[field].as_number().unwrap();
            let found = if found.is_nan() { None } else { Some(found) };
            assert_eq!(found, expected, "{field} of card {}", update.entity_id);
            missing += u32::from(expected.is_none());
        }
    }
    assert_eq!(missing, 1, "a value is not known, and that is what is loaded");
}

fn updates(data: &Path) -> Vec<ProfileUpdate> {
    let update = |line: Value| ProfileUpdate::from_json(line["value"].to_string().as_bytes()).unwrap();
    tail(data, topics::PROFILES).into_iter().map(update).collect()
}

#[test]
fn feasts_client_reads_what_the_lookup_answers() {
    let test = "feasts_client_reads_what_the_lookup_answers";
    if feast(test).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let up = |rate, duration| {
        let mut up = Up::new(&data);
        up.args(["--customers", "300", "--terminals", "600", "--rate", rate, "--duration", duration]);
        up.start()
    };
    up("5000", "3s").finish();
    // Slow enough that what is looked up holds for a while.
    let mut running = up("1", "300s");
    let url = running.url();
    let names = ["card:CUSTOMER_ID_NB_TX_7DAY_WINDOW", "terminal:TERMINAL_ID_RISK_7DAY_WINDOW"];
    let entities = json!({ "card_id": ["1", "nobody"], "terminal_id": ["1", "nowhere"] });
    let by_name = json!({ "features": names, "entities": entities, "full_feature_names": true });
    let by_service = json!({ "feature_service": "fraud", "entities": entities });
    let started = Instant::now();
    let (by_name, by_service, read) = loop {
        let answers = || [&by_name, &by_service].map(|body| columns(&url, body));
        let before = answers();
        // It is not ready yet, or has yet to read what is known of the card.
        if let [Some(by_name), Some(by_service)] = &before
            && !by_name["card__CUSTOMER_ID_NB_TX_7DAY_WINDOW"][0].is_null()
        {
            let mut client = feast(test).unwrap();
            let read: Value = serde_json::from_slice(&finished(client.args(["client", &url]))).unwrap();
            // Whatever was scored meanwhile.
            if before == answers() {
                break (by_name.clone(), by_service.clone(), read);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(240), "the card's values did not hold still for the client");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(read["values"], by_name);
    assert!(by_name["card__CUSTOMER_ID_NB_TX_7DAY_WINDOW"][1].is_null(), "nothing is known of nobody");
    assert_eq!(read["by_service"], by_service);
    assert!(read["refused"].as_str().unwrap().contains("Feature view unknown does not exist"), "{read}");
    running.interrupt();
    running.finish();
}

/// The columns of an answer by name; `None`: there is none yet.
fn columns(url: &str, body: &Value) -> Option<Value> {
    let request = ureq::post(format!("{url}/get-online-features")).header("content-type", "application/json");
    let text = request.send(body.to_string()).ok()?.body_mut().read_to_string().unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    let names = answer["metadata"]["feature_names"].as_array()?.iter().map(|name| name.as_str().unwrap().to_owned());
    let values = answer["results"].as_array()?.iter().map(|column| column["values"].clone());
    Some(names.zip(values).collect::<serde_json::Map<_, _>>().into())
}
