use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use scorer::log::KafkaLog;
use scorer::log::kafka::{Mechanism, Sasl, Tls};

use super::*;

pub fn fraudline(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fraudline"));
    command.env("FRAUDLINE_CONFIG", config).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    command
}

/// A service as a process; killed where a test fails.
pub struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    pub fn start(config: &Path, args: &[&str]) -> Process {
        let log = config.with_file_name(format!("{}.log", args.join("")));
        let output = std::fs::File::create(&log).unwrap();
        let mut command = fraudline(config);
        command.args(args).args(["--http", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(output);
        Process { child: command.spawn().unwrap(), log }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and what it ends with.
    pub fn terminate(mut self) {
        let started = Instant::now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
        assert!(started.elapsed() < Duration::from_secs(25), "it took {:?} to drain", started.elapsed());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn write(path: &Path, text: &str) {
    std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

pub fn run(config: &Path, args: &[&str]) -> Output {
    fraudline(config).args(args).output().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// TLS and a login on all three: the Kafka part, and the store's.
fn secure(prefix: &str, store: Service, password: &str, ca: &str) -> String {
    let user = variable_or("FRAUDLINE_TEST_USER", "fraudline");
    let login = format!("username: {user}\n    password: {password}\n    ca_certificate: {ca}");
    let store = match store {
        Service::Cassandra => format!(
            "  cql:\n    hosts: [\"{}\"]\n    keyspace: {}\n    timeout: 10s\n    {login}\n",
            store.address(),
            keyspace(prefix)
        ),
        // The user may only touch keys that begin so.
        _ => format!(
            "  redis:\n    urls: [\"{}\"]\n    key_prefix: \"fraudline:{prefix}\"\n    {login}\n",
            store.address()
        ),
    };
    format!(
        "kafka:\n  brokers: {}\n  topic_prefix: {prefix}\n  session_timeout: 10s\n  request_timeout: 8s\n  tls:\n    ca_certificate: {ca}\n  \
         sasl:\n    mechanism: SCRAM-SHA-512\n    username: {user}\n    password: {password}\n\
         topics:\n  partitions: {PARTITIONS}\nstore:\n{store}\
         scorer:\n  log_features: 1\nmodel:\n  device: cpu\n",
        Service::SecureKafka.address(),
    )
}

fn password() -> String {
    variable_or("FRAUDLINE_TEST_PASSWORD", "fraudline-secret")
}

/// A client of the test's own, on the listener that asks for a login.
fn secure_log(prefix: &str, ca: &str) -> KafkaLog {
    let username = variable_or("FRAUDLINE_TEST_USER", "fraudline");
    let sasl = Sasl { mechanism: Mechanism::ScramSha512, username, password: password(), token_file: None };
    let tls = Tls { ca_certificate: Some(ca.into()), ..Tls::default() };
    let brokers = Service::SecureKafka.address();
    KafkaLog::connect(KafkaOptions { brokers, tls: Some(tls), sasl: Some(sasl), ..kafka(prefix) }).unwrap()
}

fn with_tls_and_logins(store: Service) {
    let Some(ca) = file("FRAUDLINE_TEST_CA") else { return };
    let Some(_turn) = have(&[Service::SecureKafka, store]) else { return };
    let (prefix, folder) = (prefix(), tempfile::tempdir().unwrap());
    let config = folder.path().join("fraudline.yaml");
    write(&config, &secure(&prefix, store, &password(), &ca));
    let migrated = run(&config, &["store", "migrate", "--replication", "1"]);
    assert!(migrated.status.success(), "{}", text(&migrated));
    let checked = run(&config, &["config", "check"]);
    assert!(checked.status.success(), "{}", text(&checked));
    assert!(!text(&checked).contains(&password()), "{}", text(&checked));

    let log = secure_log(&prefix, &ca);
    create_topics(&log);
    let expected = feed(&log, &FeatureSet::bundled(), 2000);
    let mut materializer = Process::start(&config, &["materialize"]);
    let mut scorer = Process::start(&config, &["score", "--instance", "a"]);
    wait_for_scores(&log, || {
        assert!(scorer.is_running(), "{}", scorer.said());
        assert!(materializer.is_running(), "{}", materializer.said());
    });
    scorer.terminate();
    materializer.terminate();
    check(&log, expected);
}

#[test]
fn processes_score_over_tls_with_logins_on_redis() {
    with_tls_and_logins(Service::SecureRedis);
}

#[test]
fn processes_score_over_tls_with_logins_on_cassandra() {
    with_tls_and_logins(Service::Cassandra);
}

#[test]
fn a_wrong_password_or_an_untrusted_certificate_is_told_and_nothing_is_consumed() {
    let (Some(ca), Some(untrusted)) = (file("FRAUDLINE_TEST_CA"), file("FRAUDLINE_TEST_UNTRUSTED_CA")) else { return };
    let Some(_turn) = have(&[Service::SecureKafka, Service::SecureRedis, Service::Cassandra]) else { return };
    let (prefix, folder) = (prefix(), tempfile::tempdir().unwrap());
    let log = secure_log(&prefix, &ca);
    create_topics(&log);
    feed(&log, &FeatureSet::bundled(), 100);
    let right = secure(&prefix, Service::SecureRedis, &password(), &ca);
    let cassandra = secure(&prefix, Service::Cassandra, &password(), &ca);
    let of_store = |text: &str, from: &str, to: &str| {
        let (before, after) = text.split_once("store:").unwrap();
        format!("{before}store:{}", after.replace(from, to))
    };
    let of_kafka = |from: &str, to: &str| {
        let (before, after) = right.split_once("store:").unwrap();
        format!("{}store:{after}", before.replace(from, to))
    };
    let wrong = "not-the-one";
    let cases = [
        ("kafka password", of_kafka(&password(), wrong), "uthentication"),
        ("kafka certificate", of_kafka(&ca, &untrusted), "certificate"),
        ("redis password", of_store(&right, &password(), wrong), "assword"),
        ("redis certificate", of_store(&right, &ca, &untrusted), "ertificate"),
        ("cassandra password", of_store(&cassandra, &password(), wrong), "assword"),
        ("cassandra certificate", of_store(&cassandra, &ca, &untrusted), "ertificate"),
    ];
    for (name, settings, told) in cases {
        let config = folder.path().join(format!("{}.yaml", name.replace(' ', "-")));
        write(&config, &settings);
        for args in [&["score", "--instance", "a", "--http", "127.0.0.1:0"][..], &["config", "check"]] {
            let output = run(&config, args);
            let said = text(&output);
            assert!(!output.status.success(), "{name}, {args:?}: {said}");
            assert!(said.contains(told), "{name}, {args:?}: {said}");
            assert!(!said.contains(wrong), "{name}, {args:?} tells the password: {said}");
            assert!(!said.contains("panicked"), "{name}, {args:?}: {said}");
        }
    }
    for partition in 0..PARTITIONS {
        let partition = TopicPartition { topic: topics::TRANSACTIONS.to_owned(), partition };
        assert_eq!(log.committed(scorer::GROUP, &partition).unwrap(), None);
    }
    assert_eq!(all(&log, topics::SCORES).len(), 0);
}

#[test]
fn dead_letters_go_back_once() {
    let Some(_turn) = have(&[Service::Kafka, Service::Redis]) else { return };
    let (prefix, folder) = (prefix(), tempfile::tempdir().unwrap());
    let config = folder.path().join("fraudline.yaml");
    write(&config, &format!("kafka: {{brokers: \"{}\", topic_prefix: {prefix}}}\n", Service::Kafka.address()));
    let log = KafkaLog::connect(kafka(&prefix)).unwrap();
    create_topics(&log);
    let mut outbox = Outbox::default();
    for (number, (topic, reason)) in
        [("transactions", "too_late"), ("labels", "not_json"), ("transactions", "not_json")].into_iter().enumerate()
    {
        let connect = |name: &str, value: &str| (name.to_owned(), bytes::Bytes::copy_from_slice(value.as_bytes()));
        let headers = vec![
            connect("trace", "kept"),
            connect(schemas::headers::TOPIC, topic),
            connect(schemas::headers::EXCEPTION_CLASS_NAME, reason),
        ];
        let key = format!("card-{number}");
        outbox.push_with(topics::DEAD_LETTERS, None, key.as_bytes(), 1_700_000_000_000_000, headers, |out| {
            out.extend_from_slice(b"value");
        });
    }
    log.append(&outbox).unwrap();
    let tried = run(&config, &["dead-letters", "replay", "--topic", "transactions", "--dry-run", "--group", "dry"]);
    assert!(
        tried.status.success() && text(&tried).contains("1 would be put back: transactions too_late"),
        "{}",
        text(&tried)
    );
    assert_eq!(all(&log, topics::TRANSACTIONS).len(), 0);
    for _ in 0..2 {
        let replayed = run(&config, &["dead-letters", "replay", "--reason", "too_late"]);
        assert!(replayed.status.success(), "{}", text(&replayed));
    }
    let back = all(&log, topics::TRANSACTIONS);
    assert_eq!(back.len(), 1, "once, however often it is run");
    assert_eq!(
        (&back[0].key[..], &back[0].value[..], back[0].timestamp_us),
        (&b"card-0"[..], &b"value"[..], 1_700_000_000_000_000)
    );
    assert_eq!(back[0].headers, [("trace".to_owned(), bytes::Bytes::from_static(b"kept"))]);
    assert_eq!(all(&log, topics::LABELS).len(), 0);
}
