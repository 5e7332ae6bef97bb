use bytes::Bytes;
use scorer::log::{LogError, OutRecord};

use super::*;

#[test]
fn records_come_back_as_they_were_written() {
    let Some(options) = options(Delivery::ExactlyOnce) else { return };
    let log = KafkaLog::connect(options).unwrap();
    let name = topic(&log, "in", 3);
    let mut outbox = Outbox::default();
    let headers = vec![("a".to_owned(), Bytes::from_static(b"1")), ("b".to_owned(), Bytes::from_static(&[0, 255]))];
    outbox.push_with(&name, Some(2), b"card", 1_700_000_000_123_000, headers.clone(), |out| out.extend(b"value"));
    outbox.push(&name, b"card-7", 1_700_000_000_124_000, |out| out.extend(b"by key"));
    log.append(&outbox).unwrap();

    let read = log.read(&at(&name, 2), 0, 10).unwrap();
    let first = read.iter().find(|record| record.value == b"value"[..]).unwrap();
    assert_eq!((&first.key[..], first.timestamp_us, &first.headers), (&b"card"[..], 1_700_000_000_123_000, &headers));
    // As the Java client would have placed it.
    let partition = schemas::partition_for_key(b"card-7", 3);
    assert!(log.read(&at(&name, partition), 0, 10).unwrap().iter().any(|record| record.value == b"by key"[..]));

    let known = log.topic(&name).unwrap();
    assert_eq!(known.spec.partitions, 3);
    assert_eq!(known.offsets.iter().map(|kept| kept.end).sum::<u64>(), 2);
    assert_eq!(log.ends(&name).unwrap().iter().sum::<u64>(), 2);
    let spec = TopicSpec { name: name.clone(), partitions: 4, retention: None };
    assert!(matches!(log.create_topic(&spec), Err(LogError::PartitionsDiffer { existing: 3, asked: 4, .. })));
    assert!(matches!(log.topic("no-such-topic"), Err(LogError::UnknownTopic(_))));
    // What the key is hashed to is the same in every language.
    let record = outbox.iter().next().unwrap();
    assert!(matches!(record, OutRecord { partition: Some(2), .. }));
}

#[test]
fn reads_go_on_where_they_stopped_and_end_at_the_end() {
    let Some(options) = options(Delivery::ExactlyOnce) else { return };
    let log = KafkaLog::connect(options).unwrap();
    let name = topic(&log, "in", 2);
    assert_eq!(log.read(&at(&name, 0), 0, 10).unwrap(), []);
    fill(&log, &name, 2, 0..1000);
    let mut from = 0;
    let mut read = Vec::new();
    loop {
        let records = log.read(&at(&name, 1), from, 300).unwrap();
        let Some(last) = records.last() else { break };
        from = last.offset + 1;
        read.extend(records.iter().map(number));
    }
    assert_eq!(read, (0..1000).collect::<Vec<_>>());
    assert_eq!(log.offset_at(&at(&name, 0), 501 * 1_000_000).unwrap(), 500);
    assert_eq!(log.offset_at(&at(&name, 0), i64::MAX).unwrap(), 1000);
    assert!(matches!(log.read(&at(&name, 0), 5000, 1), Err(LogError::OutOfRange { offset: 5000, .. })));
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let options = KafkaOptions {
        brokers: "127.0.0.1:1".to_owned(),
        request_timeout: Duration::from_millis(500),
        ..KafkaOptions::default()
    };
    let error = KafkaLog::connect(options).unwrap_err();
    assert!(matches!(&error, LogError::Unavailable(reason) if reason.contains("127.0.0.1:1")), "{error}");
}
