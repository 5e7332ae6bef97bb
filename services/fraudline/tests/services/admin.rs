use super::processes::{run, text, write};
use super::*;
use scorer::log::KafkaLog;

fn file_of(partitions: u32, scores: u32, retention: &str) -> String {
    format!(
        "defaults: {{partitions: {partitions}, replication_factor: 1, min_insync_replicas: 1, retention: {retention}}}\n\
         topics: {{scores: {{partitions: {scores}}}}}\n"
    )
}

#[test]
fn topics_become_what_the_file_says_and_lose_nothing() {
    let Some(_turn) = have(&[Service::Kafka]) else { return };
    let (prefix, folder) = (prefix(), tempfile::tempdir().unwrap());
    let config = folder.path().join("fraudline.yaml");
    write(&config, &format!("kafka: {{brokers: \"{}\", topic_prefix: {prefix}}}\n", Service::Kafka.address()));
    let topics_file = folder.path().join("topics.yaml");
    let apply = |partitions, scores, retention, more: &[&str]| {
        write(&topics_file, &file_of(partitions, scores, retention));
        let output = run(&config, &[&["admin", "apply", topics_file.to_str().unwrap()], more].concat());
        (output.status.success(), text(&output))
    };
    let log = KafkaLog::connect(kafka(&prefix)).unwrap();

    let (done, said) = apply(2, 2, "40days", &["--dry-run"]);
    assert!(done && said.contains("create   topic scores: 2 partitions, 1 replicas"), "{said}");
    assert_eq!(log.settings(topics::SCORES).unwrap(), None, "it was a dry run");

    let (done, said) = apply(2, 2, "40days", &[]);
    assert!(done, "{said}");
    let (done, said) = apply(2, 2, "40days", &[]);
    assert!(done && said.matches("keep     topic").count() == topics::ALL.len(), "{said}");

    let mut outbox = Outbox::default();
    outbox.push(topics::TRANSACTIONS, b"card", 0, |out| out.extend_from_slice(b"{}"));
    log.append(&outbox).unwrap();
    for (partitions, scores, retention, told) in [
        (1, 3, "50days", "the records of the others would be lost"),
        (4, 3, "50days", "windows begin anew"),
        (2, 3, "1day", "--shorten-retention"),
    ] {
        let (done, said) = apply(partitions, scores, retention, &[]);
        assert!(!done && said.contains(told), "{said}");
        let scores = log.settings(topics::SCORES).unwrap().unwrap();
        assert_eq!(scores.partitions, 2, "something was refused, so nothing may be done");
    }

    let (done, said) = apply(2, 3, "50days", &[]);
    assert!(
        done && said.contains("change   topic scores: retention.ms 3456000000 -> 4320000000, partitions 2 -> 3"),
        "{said}"
    );
    let (scores, transactions) =
        (log.settings(topics::SCORES).unwrap().unwrap(), log.settings(topics::TRANSACTIONS).unwrap().unwrap());
    assert_eq!((scores.partitions, transactions.partitions), (3, 2));
    assert_eq!(transactions.config["retention.ms"], "4320000000");
    assert_eq!(transactions.config["min.insync.replicas"], "1");
}
