use std::fs;

use bytes::Bytes;
use feature_store::OnlineStore;
use schemas::partition_for_key;
use scorer::log::{Durability, LogError};

use super::*;

#[test]
fn records_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let headers = vec![("reason".to_owned(), Bytes::from_static(b"x"))];
    {
        let log = open(dir.path());
        log.create_topic(&spec("a", 3)).unwrap();
        log.create_topic(&spec("b", 1)).unwrap();
        let mut outbox = Outbox::default();
        for index in 0..100_u32 {
            outbox.push("a", &index.to_be_bytes(), i64::from(index), |out| out.extend_from_slice(&[index as u8; 50]));
        }
        outbox.push_with("b", Some(0), b"", -5, headers.clone(), |_| {});
        log.append(&outbox).unwrap();
        log.append(&Outbox::default()).unwrap();
    }
    let log = open(dir.path());
    let mut seen = 0;
    for partition in 0..3 {
        let all = log.read(&at("a", partition), 0, usize::MAX).unwrap();
        let expected: Vec<u32> =
            (0..100_u32).filter(|key| partition_for_key(&key.to_be_bytes(), 3) == partition).collect();
        assert_eq!(log.topic("a").unwrap().offsets[partition as usize], 0..expected.len() as u64);
        for (offset, (record, key)) in all.iter().zip(&expected).enumerate() {
            assert_eq!(
                (record.partition, record.offset, record.timestamp_us),
                (partition, offset as u64, i64::from(*key))
            );
            assert_eq!((&record.key[..], &record.value[..]), (&key.to_be_bytes()[..], &[*key as u8; 50][..]));
            assert_eq!(
                log.read(&at("a", partition), offset as u64, 2).unwrap(),
                all[offset..all.len().min(offset + 2)]
            );
        }
        assert_eq!(all.len(), expected.len());
        seen += all.len();
        assert_eq!(log.read(&at("a", partition), all.len() as u64 + 7, 5).unwrap(), []);
    }
    assert_eq!(seen, 100);
    assert_eq!(log.read(&at("b", 0), 0, 9).unwrap()[0].headers, headers);
    assert_eq!(log.topics().unwrap().iter().map(|topic| &topic.spec.name[..]).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_write_with_an_unknown_target_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("a", 2)).unwrap();
    for (topic, partition, named) in [("a", 2, "a-2"), ("c", 0, "c")] {
        let mut outbox = Outbox::default();
        push(&mut outbox, "a", 0, 0, "x");
        push(&mut outbox, topic, partition, 0, "y");
        assert!(matches!(log.append(&outbox), Err(LogError::UnknownTopic(name)) if name == named));
    }
    assert_eq!(log.topic("a").unwrap().offsets, [0..0, 0..0]);
    assert!(matches!(log.read(&at("a", 2), 0, 1), Err(LogError::UnknownTopic(_))));
    assert!(matches!(log.topic("c"), Err(LogError::UnknownTopic(_))));
    assert!(matches!(log.join("g", "0", &["a", "c"]), Err(LogError::UnknownTopic(_))));
}

#[test]
fn topics_keep_their_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let retained = TopicSpec { retention: Some(Duration::from_secs(60)), ..spec("a", 2) };
    for _ in 0..2 {
        let log = open(dir.path());
        log.create_topic(&retained).unwrap();
        assert!(matches!(
            log.create_topic(&spec("a", 3)),
            Err(LogError::PartitionsDiffer { existing: 2, asked: 3, .. })
        ));
        assert!(matches!(log.create_topic(&spec("none", 0)), Err(LogError::NoPartitions(_))));
        assert_eq!(log.topic("a").unwrap().spec, retained);
    }
}

#[test]
fn a_large_write_is_split_and_stays_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("a", 2)).unwrap();
    let mut outbox = Outbox::default();
    let body = "x".repeat(10_000);
    for index in 0..600 {
        push(&mut outbox, "a", index % 2, 0, &format!("{index}{body}"));
    }
    // One that is larger than a batch may be.
    push(&mut outbox, "a", 0, 0, &"y".repeat(3 << 20));
    push(&mut outbox, "a", 0, 0, "last");
    log.append(&outbox).unwrap();
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.topic("a").unwrap().offsets, [0..302, 0..300]);
    let all = log.read(&at("a", 0), 0, usize::MAX).unwrap();
    for (record, index) in all.iter().zip((0..600).step_by(2)) {
        assert!(values(std::slice::from_ref(record))[0] == format!("{index}{body}"));
    }
    assert_eq!((all[300].value.len(), values(&all)[301]), (3 << 20, "last"));
    assert_eq!(log.read(&at("a", 0), 301, 1).unwrap()[0].value, "last");
}

#[test]
fn offsets_are_found_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("a", 1)).unwrap();
    // Producers' clocks differ: the times go back and forth.
    let times = [10, 30, 20, 20, 50, 40, 40, 60, 5, 60, 61];
    for batch in times.chunks(3) {
        let mut outbox = Outbox::default();
        for time in batch {
            push(&mut outbox, "a", 0, *time, "x");
        }
        log.append(&outbox).unwrap();
    }
    for timestamp_us in 0..=62 {
        let expected = times.iter().position(|time| *time >= timestamp_us).unwrap_or(times.len());
        assert_eq!(log.offset_at(&at("a", 0), timestamp_us).unwrap(), expected as u64, "{timestamp_us}");
    }
}

#[test]
fn a_commit_takes_outputs_offsets_and_states_along() {
    for atomic_checkpoints in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let options =
            EmbeddedOptions { atomic_checkpoints, durability: Durability::Power, ..EmbeddedOptions::default() };
        let log = EmbeddedLog::open(dir.path(), options.clone()).unwrap();
        log.create_topic(&spec("in", 1)).unwrap();
        log.create_topic(&spec("out", 1)).unwrap();
        append(&log, "in", 0, 1, &["a", "b"]);
        let mut consumer = log.join("g", "0", &["in"]).unwrap();
        rebalanced(&mut *consumer, "in");
        assert_eq!(values(&records(consumer.poll("in", 10, NOW).unwrap())), ["a", "b"]);
        let mut outputs = Outbox::default();
        push(&mut outputs, "out", 0, 2, "A");
        let states = checkpoint("cards", 0, "c1", 1, b"state");
        let commit =
            Commit { outputs: &outputs, offsets: &[(at("in", 0), 1)], metadata: "née", checkpoint: Some(&states) };
        let committed = consumer.commit(&commit).unwrap();
        let expected = if atomic_checkpoints { Committed::WithCheckpoint } else { Committed::WithoutCheckpoint };
        assert_eq!(committed, expected);
        // What was not committed comes again, to the next member.
        drop(consumer);
        drop(log);
        let log = EmbeddedLog::open(dir.path(), options).unwrap();
        assert_eq!(values(&log.read(&at("out", 0), 0, 10).unwrap()), ["A"]);
        assert_eq!(log.committed("g", &at("in", 0)).unwrap(), Some(1));
        assert_eq!(log.committed_metadata("g", &at("in", 0)).unwrap(), "née");
        assert_eq!(log.committed("other", &at("in", 0)).unwrap(), None);
        assert_eq!(log.committed_metadata("other", &at("in", 0)).unwrap(), "");
        let mut consumer = log.join("g", "0", &["in"]).unwrap();
        rebalanced(&mut *consumer, "in");
        assert_eq!(values(&records(consumer.poll("in", 10, NOW).unwrap())), ["b"]);
        let stored = ready(log.store().read("cards", &["c1", "c2"], &[])).unwrap().states;
        let watermark = ready(log.store().watermark("cards", 0)).unwrap();
        if atomic_checkpoints {
            assert_eq!(stored, [Some(states.partitions[0].states[0].state.clone()), None]);
            assert_eq!(watermark.as_ref(), Some(&states.partitions[0].watermark));
        } else {
            assert_eq!((stored, watermark), (vec![None, None], None));
        }
    }
}

#[test]
fn a_directory_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let path = dir.path().display().to_string();
    let second = EmbeddedLog::open(dir.path(), EmbeddedOptions::default());
    assert!(matches!(second, Err(LogError::InUse(used)) if used == path));
    drop(log);
    open(dir.path());
}

#[test]
fn unusable_directories_are_refused() {
    let refused = |dir: &Path, reason: &str| match EmbeddedLog::open(dir, EmbeddedOptions::default()) {
        Err(LogError::DataDirectory { path, reason: given }) => {
            assert_eq!(path, dir.display().to_string());
            assert!(given.contains(reason), "{given}");
        }
        other => panic!("{other:?}"),
    };
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("thesis.txt"), "years of work").unwrap();
    refused(foreign.path(), "no data directory of fraudline");
    refused(&foreign.path().join("thesis.txt"), "exists");
    assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1);

    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let marker = dir.path().join("FRAUDLINE");
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, text.replace('1', "2")).unwrap();
    refused(dir.path(), "newer version");
    fs::write(&marker, "something else").unwrap();
    refused(dir.path(), "damaged");
    fs::write(&marker, text).unwrap();
    open(dir.path());

    // Damage below: the database's own files.
    for damage in [|file: &Path| fs::write(file, "garbage").unwrap(), |file: &Path| fs::remove_file(file).unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        damage(&dir.path().join("db/keyspaces/1/current"));
        let opened = EmbeddedLog::open(dir.path(), EmbeddedOptions::default());
        assert!(matches!(opened, Err(LogError::DataDirectory { .. })), "{opened:?}");
    }
}

#[test]
fn an_unfinished_creation_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("FRAUDLINE"), "").unwrap();
    fs::create_dir_all(dir.path().join("db/keyspaces")).unwrap();
    fs::write(dir.path().join("db/0.jnl"), "").unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("a", 1)).unwrap();
    append(&log, "a", 0, 0, &["x"]);
    drop(log);
    // A lost marker of a complete directory costs nothing.
    fs::write(dir.path().join("FRAUDLINE"), "").unwrap();
    assert_eq!(values(&open(dir.path()).read(&at("a", 0), 0, 9).unwrap()), ["x"]);
}

#[test]
fn the_directory_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("a", 1)).unwrap();
    let before = log.bytes_on_disk();
    append(&log, "a", 0, 0, &[&"x".repeat(5 << 20)]);
    log.persist().unwrap();
    let grown = log.bytes_on_disk() - before;
    assert!(((5 << 20)..(7 << 20)).contains(&grown), "{grown}");
}
