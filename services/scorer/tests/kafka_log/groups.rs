use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use scorer::log::LogError;

use super::*;

#[test]
fn a_commit_takes_outputs_and_offsets_along() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let Some(options) = options(delivery) else { return };
        let log = KafkaLog::connect(options).unwrap();
        let (from, out, group) = (topic(&log, "in", 2), topic(&log, "out", 2), unique("group"));
        fill(&log, &from, 2, 0..100);
        let mut consumer = log.join(&group, "0", &[&from]).unwrap();
        let mut taken = 0;
        while taken < 200 {
            let batch = records(&mut *consumer, &from, 30);
            taken += batch.len();
            commit(&mut *consumer, &from, &out, &batch).unwrap();
        }
        let ends = log.ends(&from).unwrap();
        assert_eq!(consumer.reached(&from, &ends).unwrap(), [(0, true), (1, true)]);
        fill(&log, &from, 1, 100..101);
        assert_eq!(consumer.reached(&from, &ends).unwrap(), [(0, true), (1, true)]);
        let ends = log.ends(&from).unwrap();
        assert!(consumer.reached(&from, &ends).unwrap().contains(&(0, false)), "a record is on its way");
        assert_eq!(records(&mut *consumer, &from, 30).len(), 1);
        drop(consumer);
        for partition in 0..2 {
            let deadline = Instant::now() + Duration::from_secs(5);
            // In the background, where they don't go with the outputs.
            while log.committed(&group, &at(&from, partition)).unwrap() != Some(100) {
                assert!(Instant::now() < deadline && delivery == Delivery::AtLeastOnce, "{delivery:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(all(&log, &out, partition), (0..100).collect::<Vec<_>>(), "{delivery:?}");
        }
        // Transactions leave markers behind; a reader of the outputs is at the end nevertheless.
        let mut reader = log.join(&unique("group"), "0", &[&out]).unwrap();
        let mut read = 0;
        while read < 200 {
            read += records(&mut *reader, &out, 1000).len();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let ends = log.ends(&out).unwrap();
        while !reader.reached(&out, &ends).unwrap().iter().all(|(_, reached)| *reached) {
            assert!(Instant::now() < deadline, "it never was at the end");
            reader.poll(&out, 10, Duration::from_millis(20)).unwrap();
        }
    }
}

/// Members come and go while a topic is consumed: each record has one output all the same.
#[test]
fn each_record_has_one_output_while_members_come_and_go() {
    const NUMBERS: u64 = 3000;
    const PARTITIONS: u32 = 4;
    let Some(options) = options(Delivery::ExactlyOnce) else { return };
    let log = KafkaLog::connect(options.clone()).unwrap();
    let (from, out, group) = (topic(&log, "in", PARTITIONS), topic(&log, "out", PARTITIONS), unique("group"));
    fill(&log, &from, PARTITIONS, 0..NUMBERS);
    let stop = AtomicBool::new(false);
    let work = |instance: &str, until: Option<Instant>| {
        let log = KafkaLog::connect(KafkaOptions { instance: instance.to_owned(), ..options.clone() }).unwrap();
        let mut consumer = log.join(&group, "0", &[&from]).unwrap();
        while !stop.load(SeqCst) && until.is_none_or(|until| Instant::now() < until) {
            match consumer.poll(&from, 50, Duration::from_millis(50)).unwrap() {
                Polled::Records(batch) if batch.is_empty() => {}
                Polled::Records(batch) => match commit(&mut *consumer, &from, &out, &batch) {
                    // Somebody else has the partition, or is about to.
                    Err(LogError::Fenced(_) | LogError::Unavailable(_)) => {
                        drop(consumer);
                        consumer = log.join(&group, "0", &[&from]).unwrap();
                    }
                    committed => {
                        committed.unwrap();
                    }
                },
                Polled::Rebalanced { .. } => {}
                Polled::Revoking(partitions) => consumer.release(&partitions).unwrap(),
            }
        }
    };
    let done = || (0..PARTITIONS).all(|of| log.committed(&group, &at(&from, of)).unwrap() == Some(NUMBERS));
    std::thread::scope(|scope| {
        scope.spawn(|| work("first", None));
        scope.spawn(|| {
            for round in 0..3 {
                std::thread::sleep(Duration::from_millis(300));
                work(&format!("guest-{}", round % 2), Some(Instant::now() + Duration::from_secs(1)));
            }
        });
        let deadline = Instant::now() + Duration::from_secs(90);
        while !done() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, SeqCst);
    });
    for partition in 0..PARTITIONS {
        assert_eq!(all(&log, &out, partition), (0..NUMBERS).collect::<Vec<_>>(), "partition {partition}");
    }
}

/// A member that was away for longer than its session, and comes back with a batch in its hands.
#[test]
fn a_zombie_is_fenced() {
    let Some(options) = options(Delivery::ExactlyOnce) else { return };
    let mortal = KafkaOptions {
        instance: "zombie".to_owned(),
        // It dies for the group by not polling: nothing in this process can stop its heartbeats.
        properties: BTreeMap::from([
            ("max.poll.interval.ms".to_owned(), "2000".to_owned()),
            ("session.timeout.ms".to_owned(), "2000".to_owned()),
            ("heartbeat.interval.ms".to_owned(), "500".to_owned()),
        ]),
        ..options.clone()
    };
    let log = KafkaLog::connect(mortal).unwrap();
    let (from, out, group) = (topic(&log, "in", 1), topic(&log, "out", 1), unique("group"));
    fill(&log, &from, 1, 0..10);
    let mut zombie = log.join(&group, "0", &[&from]).unwrap();
    let held = records(&mut *zombie, &from, 10);
    let other = KafkaLog::connect(KafkaOptions { instance: "other".to_owned(), ..options }).unwrap();
    let mut successor = other.join(&group, "0", &[&from]).unwrap();
    let taken = records(&mut *successor, &from, 10);
    assert_eq!(taken, held, "what was not committed comes again");
    let refused = commit(&mut *zombie, &from, &out, &held);
    assert!(matches!(refused, Err(LogError::Fenced(_) | LogError::Unavailable(_))), "{refused:?}");
    commit(&mut *successor, &from, &out, &taken).unwrap();
    assert_eq!(all(&log, &out, 0), (0..10).collect::<Vec<_>>());
}

#[test]
fn who_starts_again_under_its_name_gets_its_partitions_at_once() {
    let Some(options) = options(Delivery::ExactlyOnce) else { return };
    let options = KafkaOptions { session_timeout: Duration::from_secs(30), ..options };
    let log = KafkaLog::connect(options.clone()).unwrap();
    let (from, group) = (topic(&log, "in", 2), unique("group"));
    fill(&log, &from, 2, 0..5);
    let mut consumer = log.join(&group, "0", &[&from]).unwrap();
    records(&mut *consumer, &from, 100);
    drop(consumer);
    let started = Instant::now();
    let mut consumer = log.join(&group, "0", &[&from]).unwrap();
    records(&mut *consumer, &from, 100);
    assert!(started.elapsed() < Duration::from_secs(15), "it waited for its own session: {:?}", started.elapsed());
}

#[test]
fn who_comes_under_the_same_name_takes_the_place() {
    let Some(options) = options(Delivery::ExactlyOnce) else { return };
    let log = KafkaLog::connect(options.clone()).unwrap();
    let (from, group) = (topic(&log, "in", 2), unique("group"));
    fill(&log, &from, 2, 0..5);
    let mut consumer = log.join(&group, "0", &[&from]).unwrap();
    records(&mut *consumer, &from, 100);
    // As another process does: it has clients of its own.
    let twin = KafkaLog::connect(options).unwrap();
    let mut other = twin.join(&group, "0", &[&from]).unwrap();
    records(&mut *other, &from, 100);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match consumer.poll(&from, 10, Duration::from_millis(100)) {
            Err(LogError::Replaced { .. }) => break,
            Ok(Polled::Revoking(partitions)) => consumer.release(&partitions).unwrap(),
            Ok(_) => assert!(Instant::now() < deadline, "the first one was never told"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn metadata_stands_beside_the_committed_offsets() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let Some(options) = options(delivery) else { return };
        let log = KafkaLog::connect(options).unwrap();
        let (from, group) = (topic(&log, "in", 2), unique("group"));
        fill(&log, &from, 2, 0..3);
        let committed = |partition| {
            let of = at(&from, partition);
            (log.committed(&group, &of).unwrap(), log.committed_metadata(&group, &of).unwrap())
        };
        assert_eq!(committed(0), (None, String::new()));
        let mut consumer = log.join(&group, "0", &[&from]).unwrap();
        records(&mut *consumer, &from, 1);
        // The last one is committed when the consumer goes, where offsets are committed now and then.
        for (offset, metadata) in [(1, "fraud@champion:1"), (2, "fraud@champion:7")] {
            let offsets = [(at(&from, 0), offset)];
            let commit = Commit { outputs: &Outbox::default(), offsets: &offsets, metadata, checkpoint: None };
            consumer.commit(&commit).unwrap();
        }
        let commit =
            Commit { outputs: &Outbox::default(), offsets: &[(at(&from, 1), 1)], metadata: "", checkpoint: None };
        if delivery == Delivery::ExactlyOnce {
            consumer.commit(&commit).unwrap();
        }
        drop(consumer);
        let deadline = Instant::now() + Duration::from_secs(10);
        while committed(0).0 != Some(2) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(committed(0), (Some(2), "fraud@champion:7".to_owned()), "{delivery:?}");
        assert_eq!(committed(1).1, "");
    }
}
