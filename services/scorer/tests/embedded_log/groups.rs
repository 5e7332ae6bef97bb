use std::thread;
use std::time::Instant;

use feature_store::OnlineStore;
use scorer::log::LogError;

use super::*;

fn log_with(partitions: u32) -> (tempfile::TempDir, Arc<EmbeddedLog>) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("a", partitions)).unwrap();
    (dir, log)
}

#[test]
fn partitions_move_with_the_members_and_positions_stay() {
    let (_dir, log) = log_with(2);
    append(&log, "a", 0, 1, &["a0", "a1", "a2"]);
    append(&log, "a", 1, 1, &["b0", "b1", "b2"]);
    let mut first = log.join("g", "0", &["a"]).unwrap();
    assert_eq!(rebalanced(&mut *first, "a"), (vec![at("a", 0), at("a", 1)], vec![]));
    assert_eq!(values(&records(first.poll("a", 4, NOW).unwrap())), ["a0", "a1", "a2", "b0"]);
    commit_offsets(&mut *first, &[(at("a", 0), 1), (at("a", 1), 1)]).unwrap();

    let mut second = log.join("g", "0", &["a"]).unwrap();
    assert_eq!(rebalanced(&mut *second, "a"), (vec![at("a", 1)], vec![]));
    // The newly assigned one begins at what is committed, the kept one goes on.
    assert_eq!(values(&records(second.poll("a", 10, NOW).unwrap())), ["b1", "b2"]);
    assert_eq!(rebalanced(&mut *first, "a"), (vec![], vec![at("a", 1)]));
    append(&log, "a", 0, 2, &["a3"]);
    assert_eq!(values(&records(first.poll("a", 10, NOW).unwrap())), ["a3"]);

    drop(second);
    assert_eq!(rebalanced(&mut *first, "a"), (vec![at("a", 1)], vec![]));
    assert_eq!(values(&records(first.poll("a", 10, NOW).unwrap())), ["b1", "b2"]);

    // Another group knows nothing of all that.
    let mut other = log.join("h", "0", &["a"]).unwrap();
    rebalanced(&mut *other, "a");
    assert_eq!(records(other.poll("a", 100, NOW).unwrap()).len(), 7);
}

#[test]
fn a_lost_partition_cant_be_committed() {
    let (_dir, log) = log_with(2);
    append(&log, "a", 0, 1, &["a0", "a1"]);
    append(&log, "a", 1, 1, &["b0", "b1"]);
    let fenced = |result: scorer::log::Result<Committed>| matches!(result, Err(LogError::Fenced(p)) if p == at("a", 1));
    let mut first = log.join("g", "0", &["a"]).unwrap();
    rebalanced(&mut *first, "a");
    records(first.poll("a", 10, NOW).unwrap());

    let second = log.join("g", "0", &["a"]).unwrap();
    // Nothing of a fenced commit is written: neither outputs nor offsets nor states.
    let mut outputs = Outbox::default();
    push(&mut outputs, "a", 0, 1, "output");
    let states = checkpoint("cards", 0, "c", 1, b"s");
    let both = [(at("a", 0), 2), (at("a", 1), 2)];
    assert!(fenced(first.commit(&Commit {
        outputs: &outputs,
        offsets: &both,
        metadata: "",
        checkpoint: Some(&states)
    })));
    assert_eq!(log.topic("a").unwrap().offsets[0], 0..2);
    assert_eq!(log.committed("g", &at("a", 0)).unwrap(), None);
    assert_eq!(ready(log.store().read("cards", &["c"], &[])).unwrap().states, [None]);
    // What was not taken away still can be, before the change was noticed.
    commit_offsets(&mut *first, &both[..1]).unwrap();

    // Taken away and given back: the work of the earlier ownership is void all the same.
    drop(second);
    assert!(fenced(commit_offsets(&mut *first, &both)));
    let (assigned, revoked) = rebalanced(&mut *first, "a");
    assert_eq!((assigned, revoked), (vec![at("a", 1)], vec![at("a", 1)]));
    assert_eq!(values(&records(first.poll("a", 10, NOW).unwrap())), ["b0", "b1"]);
    commit_offsets(&mut *first, &both).unwrap();
    assert_eq!(log.committed("g", &at("a", 1)).unwrap(), Some(2));
    // Nor can what was never owned.
    let unowned = commit_offsets(&mut *first, &[(at("b", 0), 1)]);
    assert!(matches!(unowned, Err(LogError::Fenced(p)) if p == at("b", 0)));
}

#[test]
fn more_members_than_partitions_wait_their_turn() {
    let (_dir, log) = log_with(1);
    let mut members: Vec<_> = (0..3).map(|_| log.join("g", "0", &["a"]).unwrap()).collect();
    let assigned: Vec<_> = members.iter_mut().map(|member| rebalanced(&mut **member, "a").0).collect();
    assert_eq!(assigned, [vec![at("a", 0)], vec![], vec![]]);
    drop(members.remove(0));
    let assigned: Vec<_> = members.iter_mut().map(|member| rebalanced(&mut **member, "a").0).collect();
    assert_eq!(assigned, [vec![at("a", 0)], vec![]]);
}

#[test]
fn a_waiting_poll_is_woken_by_records_and_by_a_rebalance() {
    let (_dir, log) = log_with(2);
    let mut first = log.join("g", "0", &["a"]).unwrap();
    rebalanced(&mut *first, "a");
    let started = Instant::now();
    assert!(records(first.poll("a", 10, Duration::from_millis(30)).unwrap()).is_empty());
    assert!(started.elapsed() >= Duration::from_millis(30));

    let poller = thread::spawn(move || {
        let got = records(first.poll("a", 10, LONG).unwrap());
        let change = first.poll("a", 10, LONG).unwrap();
        (got, change)
    });
    thread::sleep(Duration::from_millis(30));
    append(&log, "a", 1, 1, &["x"]);
    thread::sleep(Duration::from_millis(30));
    let _second = log.join("g", "0", &["a"]).unwrap();
    let (got, change) = poller.join().unwrap();
    assert_eq!(values(&got), ["x"]);
    assert!(matches!(change, Polled::Rebalanced { revoked, .. } if revoked == [at("a", 1)]));
    assert!(started.elapsed() < LONG);
}

/// A backlog comes in about the order in which it was appended, whatever partition it lies in.
#[test]
fn a_backlog_is_merged_by_time() {
    const SLACK_US: i64 = 10_000;
    let (_dir, log) = log_with(4);
    // Partition p has a batch of p + 1 records every 3 ms × (p + 1): days in some, hours in others.
    let mut total = 0_u64;
    for partition in 0..4_u32 {
        for step in 0..200_i64 {
            let mut outbox = Outbox::default();
            for record in 0..=i64::from(partition) {
                push(&mut outbox, "a", partition, (step * i64::from(partition + 1) + record) * 3_000, "x");
                total += 1;
            }
            log.append(&outbox).unwrap();
        }
    }
    let mut consumer = log.join("g", "0", &["a"]).unwrap();
    rebalanced(&mut *consumer, "a");
    let (mut latest_us, mut next, mut polls) = (i64::MIN, [0; 4], 0);
    loop {
        let got = records(consumer.poll("a", 64, NOW).unwrap());
        if got.is_empty() {
            break;
        }
        polls += 1;
        assert!(got.len() <= 64);
        for record in got {
            let next = &mut next[record.partition as usize];
            assert_eq!(record.offset, *next, "offset order within the partition");
            *next += 1;
            assert!(
                record.timestamp_us >= latest_us.saturating_sub(2 * SLACK_US),
                "{} after {latest_us}",
                record.timestamp_us
            );
            latest_us = latest_us.max(record.timestamp_us);
        }
    }
    assert_eq!((next.iter().sum::<u64>(), polls), (total, total.div_ceil(64)));
}

/// Equal times must not let one partition starve the others.
#[test]
fn partitions_of_equal_time_take_turns() {
    let (_dir, log) = log_with(3);
    for _ in 0..5 {
        for partition in 0..3 {
            append(&log, "a", partition, 7, &["x", "y"]);
        }
    }
    let mut consumer = log.join("g", "0", &["a"]).unwrap();
    rebalanced(&mut *consumer, "a");
    let order: Vec<u32> = records(consumer.poll("a", 12, NOW).unwrap()).iter().map(|record| record.partition).collect();
    assert_eq!(order, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]);
}

#[test]
fn topics_of_a_group_are_polled_apart() {
    let (_dir, log) = log_with(2);
    log.create_topic(&spec("b", 2)).unwrap();
    append(&log, "a", 0, 1, &["of a"]);
    append(&log, "b", 0, 1, &["of b"]);
    let mut first = log.join("g", "0", &["a", "b"]).unwrap();
    let mut second = log.join("g", "0", &["b", "a"]).unwrap();
    assert_eq!(rebalanced(&mut *first, "a").0, [at("a", 0), at("b", 0)]);
    assert_eq!(rebalanced(&mut *second, "b").0, [at("a", 1), at("b", 1)]);
    assert_eq!(values(&records(first.poll("b", 10, NOW).unwrap())), ["of b"]);
    assert_eq!(values(&records(first.poll("a", 10, NOW).unwrap())), ["of a"]);
    assert!(matches!(first.poll("c", 10, NOW), Err(LogError::UnknownTopic(_))));
}
