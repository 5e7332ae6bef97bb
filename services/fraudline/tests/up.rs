//! `fraudline up` and `fraudline tail` as a person meets them.
#![allow(clippy::unwrap_used)]

mod command;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use command::{Up, fraudline, simulate, tail};
use schemas::EventTime;
use serde_json::{Value, json};

#[test]
fn a_simulated_run_reports_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::new(&folder.path().join("data"));
    up.args(["--duration", "3s", "--rate", "20000", "--customers", "500", "--terminals", "1000"]);
    let report = up.start().finish();
    let number = |of: &Value| of.as_f64().unwrap();
    assert!(number(&report["events_in"]) > 10_000.0, "{report}");
    assert_eq!(number(&report["events_in"]), number(&report["scores"]) + number(&report["dead_letters"]));
    assert!(number(&report["alerts"]) > 0.0);
    let latency = &report["latency_ms"];
    assert!(number(&latency["p50"]) <= number(&latency["p99"]) && number(&latency["p99"]) <= number(&latency["p99_9"]));
    let quality = &report["quality"];
    assert!(number(&quality["auc"]) > 0.8 && number(&quality["average_precision"]) > 0.3, "{quality}");
    assert!(number(&quality["precision"]) > 0.5 && number(&quality["recall"]) > 0.1, "{quality}");
}

#[test]
fn interrupted_it_drains_and_a_second_start_goes_on_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let start = |duration: &str| {
        let mut up = Up::new(&data);
        up.args(["--rate", "5000", "--duration", duration]);
        up.start()
    };
    let mut running = start("60s");
    let url = running.url();
    until("scores come", || get(&url, "/metrics").1.contains("fraudline_scores_total 1"));
    running.interrupt();
    let first = running.finish();
    assert!(first["events_in"].as_u64().unwrap() > 0);
    assert_eq!(first["events_in"], first["scores"], "what was fed is scored");
    let second = start("1s").finish();
    assert_eq!(second["resumed_at"], first["events_in"]);
    assert_eq!(second["events_in"], second["scores"]);
    assert!(second["events_in"].as_u64() > first["events_in"].as_u64());
    let scores = tail(&data, "scores");
    let ids: HashSet<&str> = scores.iter().map(|line| line["value"]["transaction_id"].as_str().unwrap()).collect();
    assert_eq!((ids.len() as u64, scores.len() as u64), (second["scores"].as_u64().unwrap(), ids.len() as u64));

    let mut other_seed = Up::new(&data);
    other_seed.args(["--seed", "9"]);
    let refusal = other_seed.refused();
    assert!(refusal.contains("was fed from another source"), "{refusal}");
}

#[test]
fn what_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = Up::new(&data);
    up.args(["--rate", "100", "--duration", "60s"]);
    let mut running = up.start();
    let url = running.url();
    let refusal = Up::new(&data).refused();
    assert!(refusal.contains("is in use by another process"), "{refusal}");
    let taken = url.trim_start_matches("http://");
    let refusal = Up::listening(&folder.path().join("other"), taken).refused();
    assert!(refusal.contains("HTTP can't listen on") && refusal.contains("--http"), "{refusal}");
    running.interrupt();
    running.finish();

    let definitions = folder.path().join("features.yaml");
    let text = include_str!("../../../feature-store/definitions/handbook.yaml");
    std::fs::write(
        &definitions,
        text.replace("count, over: [1d, 7d, 30d], offset: 7d,", "count, over: [1d, 7d, 29d], offset: 7d,"),
    )
    .unwrap();
    let mut other_features = Up::new(&folder.path().join("third"));
    other_features.args(["--features"]).arg(&definitions);
    let refusal = other_features.refused();
    assert!(refusal.contains("trained with another feature layout"), "I4: {refusal}");
    assert!(refusal.contains("TERMINAL_ID_NB_TX_29DAY_WINDOW"), "it names the column: {refusal}");

    let output = fraudline().args(["tail", "scores", "--data-dir", "nowhere"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no data directory nowhere"));
    let output = fraudline().args(["tail", "scores", "--url", &url]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("is `fraudline up` running there?"));
}

#[test]
fn http_answers_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let input = folder.path().join("input.parquet");
    simulate(&input, 300, 20);
    let mut up = Up::new(&data);
    up.args(["--rate", "1500", "--duration", "60s", "--input"]).arg(&input);
    let mut running = up.start();
    let url = running.url();
    assert_eq!(get(&url, "/health"), (200, "ok\n".to_owned()));
    until("it is ready", || get(&url, "/ready").0 == 200);
    let names = ["card:CUSTOMER_ID_NB_TX_7DAY_WINDOW", "terminal:TERMINAL_ID_RISK_7DAY_WINDOW"];
    let ask = |card: &str| {
        let body =
            json!({ "features": names, "entities": { "card_id": [card, "nobody"], "terminal_id": ["0", "nowhere"] } });
        post(&url, &body)
    };
    let card = tail(&data, "transactions")[0]["key"].as_str().unwrap().to_owned();
    until("the card is in the store", || ask(&card).1["results"][2]["statuses"][0] == "PRESENT");
    let (_, answer) = ask(&card);
    let columns = ["card_id", "terminal_id", "CUSTOMER_ID_NB_TX_7DAY_WINDOW", "TERMINAL_ID_RISK_7DAY_WINDOW"];
    assert_eq!(answer["metadata"]["feature_names"], json!(columns));
    assert_eq!(answer["results"].as_array().unwrap().len(), columns.len(), "one entry a feature");
    assert_eq!(answer["results"][0]["values"], json!([card, "nobody"]));
    assert_eq!(answer["results"][2]["statuses"], json!(["PRESENT", "NOT_FOUND"]));
    assert_eq!(answer["results"][2]["values"][1], Value::Null);
    assert!(answer["results"][2]["values"][0].as_f64().is_some());
    let time = answer["results"][2]["event_timestamps"][0].as_str().unwrap();
    assert!(time.starts_with("2018-04-") && time.ends_with('Z'), "{time}");

    let mut body = json!({ "features": names[..1], "entities": { "card_id": [card] }, "full_feature_names": true });
    assert_eq!(post(&url, &body).1["metadata"]["feature_names"][1], "card__CUSTOMER_ID_NB_TX_7DAY_WINDOW");
    body["features"] = json!(["card:NOTHING"]);
    let (status, answer) = post(&url, &body);
    assert_eq!(status, 400);
    let message = "Feature NOTHING not found in projection card; it has: CUSTOMER_ID";
    assert!(answer.as_str().unwrap().starts_with(message), "{answer}");
    lookups_are_answered_as_feast_does(&url, &card);

    let metrics = get(&url, "/metrics").1;
    use scorer::metrics as names;
    for name in [
        names::EVENTS,
        names::SCORES,
        names::DEAD_LETTERS,
        names::STAGE_SECONDS,
        names::LATENCY_SECONDS,
        names::LAG,
        names::COMMITTED_OFFSET,
        names::STATE_BYTES,
        names::VIEW_LOOKUPS,
        names::INVARIANT_VIOLATIONS,
    ] {
        assert!(metrics.contains(name), "no {name} in\n{metrics}");
    }
    let violated = |line: &&str| line.starts_with(names::INVARIANT_VIOLATIONS) && !line.ends_with(" 0");
    assert_eq!(metrics.lines().find(violated), None);

    let follow = fraudline().args(["tail", "scores", "--data-dir"]).arg(&data).output().unwrap();
    assert!(follow.stdout.starts_with(b"{\"partition\":"), "a running data directory is read over HTTP");
    running.interrupt();
    running.finish();
}

/// Services, points in time, and every refusal.
fn lookups_are_answered_as_feast_does(url: &str, card: &str) {
    let of_cards = json!({ "card_id": [card], "unknown_key": [1] });
    let by_service =
        format!(r#"{{"feature_service":"fraud","entities":{{"terminal_id":["0"],"card_id":["{card}"]}}}}"#);
    let (status, answer) = post(url, &by_service);
    assert_eq!(status, 200, "{answer}");
    let names = answer["metadata"]["feature_names"].as_array().unwrap();
    assert_eq!(names[..2], [json!("terminal_id"), json!("card_id")], "keys in the order of the request");
    assert_eq!(names.len(), answer["results"].as_array().unwrap().len());
    let views = &answer["metadata"]["feature_view_metadata"];
    assert_eq!([&views[0]["name"], &views[1]["name"]], ["card", "terminal"]);
    assert_eq!(views[1]["staleness_max_seconds"], json!(3.0 * 86_400.0));
    assert!(views[0]["staleness_seconds"].as_f64().unwrap() > 0.0 && views[0]["complete_to"].is_string(), "{views}");

    // Grouped by view, and keys that no view needs are passed over; so is what the request has besides.
    let mixed = ["card:CUSTOMER_ID_NB_TX_1DAY_WINDOW", "card:CUSTOMER_ID_NB_TX_30DAY_WINDOW"];
    let request = json!({ "features": mixed, "entities": of_cards, "include_feature_view_version_metadata": true });
    let (_, answer) = post(url, &request);
    let expected = json!(["card_id", "CUSTOMER_ID_NB_TX_1DAY_WINDOW", "CUSTOMER_ID_NB_TX_30DAY_WINDOW"]);
    assert_eq!(answer["metadata"]["feature_names"], expected);
    assert_eq!(answer["results"][0]["event_timestamps"], json!(["1970-01-01T00:00:00Z"]));

    let mut complete_to = EventTime::from_millis(0);
    until("the input is through", || {
        std::thread::sleep(Duration::from_millis(500));
        let (_, answer) = post(url, &request);
        let before = complete_to;
        complete_to = answer["results"][1]["event_timestamps"][0].as_str().unwrap().parse().unwrap();
        complete_to == before
    });
    let at = |time: EventTime| {
        let body = json!({ "features": mixed, "entities": { "card_id": [card] }, "at": time.to_string() });
        post(url, &body)
    };
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
    let (status, answer) = at(complete_to - hour);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["results"][1]["event_timestamps"], json!([(complete_to - hour).to_string()]));
    for outside in [complete_to - 3 * day, complete_to + 30 * day] {
        let (status, answer) = at(outside);
        assert_eq!(status, 400);
        assert!(answer.as_str().unwrap().contains("features backfill --from-log"), "{answer}");
    }

    let features = json!(["card:CUSTOMER_ID_NB_TX_1DAY_WINDOW"]);
    for (body, status, says) in [
        (json!({ "features": ["nothing:A"], "entities": of_cards }), 404, "FeatureViewNotFoundException"),
        (json!({ "feature_service": "nothing", "entities": of_cards }), 404, "FeatureServiceNotFoundException"),
        (
            json!({ "features": [mixed[0], mixed[0]], "entities": { "card_id": [card] } }),
            400,
            "FeatureNameCollisionError",
        ),
        (json!({ "features": ["nothing"], "entities": of_cards }), 400, "Invalid feature reference 'nothing'"),
        (json!({ "features": [], "entities": of_cards }), 400, "No features specified for retrieval"),
        (
            json!({ "features": features, "entities": { "terminal_id": ["1"] } }),
            400,
            "Missing join key values for keys: ['card_id']",
        ),
        (json!({ "features": features, "entities": { "card_id": ["1"], "a": [] } }), 400, "must have the same columns"),
        (json!({ "features": features, "entities": { "card_id": [1.5] } }), 400, "`1.5` is no id of card_id"),
        (json!({ "features": features }), 422, "Field required"),
        (json!({ "features": 1, "entities": of_cards }), 422, "value_error"),
        (json!({ "features": features, "entities": of_cards, "at": "noon" }), 422, "`noon` is no time"),
    ] {
        let (answered, answer) = post(url, &body);
        assert_eq!(answered, status, "{body}: {answer}");
        assert!(answer.to_string().contains(says), "{body}: {answer}");
        if status == 404 {
            // JSON in a text: the client raises the exception again.
            let raised: Value = serde_json::from_str(answer.as_str().unwrap()).unwrap();
            assert_eq!(raised["module"], "feast.errors");
        }
    }

    let document: Value = serde_json::from_str(&get(url, "/openapi.json").1).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let response = &document["components"]["schemas"]["LookupResponse"]["properties"];
    assert!(response["metadata"].is_object() && response["results"].is_object(), "{document}");
    assert!(document["components"]["schemas"]["LookupRequest"]["properties"]["at"].is_object(), "{document}");
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

fn get(url: &str, path: &str) -> (u16, String) {
    let mut response = agent().get(format!("{url}{path}")).call().unwrap();
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

fn post(url: &str, body: &impl std::fmt::Display) -> (u16, Value) {
    let request = agent().post(format!("{url}/get-online-features")).header("content-type", "application/json");
    let mut response = request.send(body.to_string()).unwrap();
    (response.status().as_u16(), serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap())
}
