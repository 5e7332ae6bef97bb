use scorer::log::LogError;

use super::*;

const SECOND_US: i64 = 1_000_000;

fn retained(name: &str, seconds: u64) -> TopicSpec {
    TopicSpec { retention: Some(Duration::from_secs(seconds)), ..spec(name, 1) }
}

#[test]
fn whole_old_batches_go_from_the_front() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&retained("a", 10)).unwrap();
    log.create_topic(&spec("kept", 1)).unwrap();
    for second in 0..20 {
        for topic in ["a", "kept"] {
            let mut outbox = Outbox::default();
            push(&mut outbox, topic, 0, second * SECOND_US, "x");
            push(&mut outbox, topic, 0, second * SECOND_US + 500_000, "y");
            log.append(&outbox).unwrap();
        }
    }
    let start = |log: &EmbeddedLog| log.topic("a").unwrap().offsets[0].start;
    log.trim(10 * SECOND_US).unwrap();
    assert_eq!(start(&log), 0);
    // The batch of second 5 still has a record of 5.5 s.
    log.trim(15 * SECOND_US + 500_000).unwrap();
    assert_eq!(start(&log), 10);
    log.trim(15 * SECOND_US + 500_001).unwrap();
    assert_eq!(start(&log), 12);
    log.trim(0).unwrap();
    assert_eq!(start(&log), 12);

    let trimmed = log.read(&at("a", 0), 11, 1);
    assert!(matches!(trimmed, Err(LogError::Trimmed { offset: 11, first: 12, partition }) if partition == at("a", 0)));
    assert_eq!(log.read(&at("a", 0), 12, 99).unwrap().len(), 28);
    assert_eq!(log.offset_at(&at("a", 0), 0).unwrap(), 12);
    assert_eq!(log.offset_at(&at("a", 0), 7 * SECOND_US).unwrap(), 14);
    drop(log);

    let log = open(dir.path());
    assert_eq!(start(&log), 12);
    // However old it is, the last batch stays, and with it the next offset.
    log.trim(1000 * SECOND_US).unwrap();
    assert_eq!(log.topic("a").unwrap().offsets[0], 38..40);
    drop(log);
    let log = open(dir.path());
    append(&log, "a", 0, 0, &["late"]);
    assert_eq!(log.topic("a").unwrap().offsets[0], 38..41);
    assert_eq!(log.topic("kept").unwrap().offsets[0], 0..40);
}

#[test]
fn a_consumer_learns_that_its_position_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&retained("a", 1)).unwrap();
    for second in 0..10 {
        append(&log, "a", 0, second * SECOND_US, &["x", "y"]);
    }
    let mut consumer = log.join("g", "0", &["a"]).unwrap();
    rebalanced(&mut *consumer, "a");
    assert_eq!(records(consumer.poll("a", 3, NOW).unwrap()).len(), 3);
    log.trim(9 * SECOND_US).unwrap();
    for _ in 0..2 {
        let polled = consumer.poll("a", 3, NOW);
        assert!(matches!(polled, Err(LogError::Trimmed { offset: 3, first: 16, .. })), "{polled:?}");
    }
    // Committing the first one kept is the decision to go on without the others.
    commit_offsets(&mut *consumer, &[(at("a", 0), 16)]).unwrap();
    let got = records(consumer.poll("a", 100, NOW).unwrap());
    assert_eq!(got.iter().map(|record| record.offset).collect::<Vec<_>>(), [16, 17, 18, 19]);
}

/// Trimming gives the space back, though topics with and without retention share files.
#[test]
fn trimmed_space_is_reclaimed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&retained("short", 1)).unwrap();
    log.create_topic(&spec("kept", 1)).unwrap();
    // Incompressible, so that the files are as large as their content.
    let mut seed = 1_u64;
    let mut noise = |bytes: usize, out: &mut Vec<u8>| {
        for _ in 0..bytes / 8 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out.extend_from_slice(&(seed ^ seed >> 29).to_be_bytes());
        }
    };
    let mut kept = Vec::new();
    let mut write = |rounds: std::ops::Range<i64>| {
        for round in rounds {
            let mut outbox = Outbox::default();
            outbox.push("short", b"k", round * SECOND_US, |out| noise(700_000, out));
            outbox.push("kept", b"k", round * SECOND_US, |out| noise(50_000, out));
            kept.push(outbox.iter().nth(1).unwrap().value.to_vec());
            log.append(&outbox).unwrap();
        }
    };
    // The engine reclaims when it flushes and compacts, in the background.
    let (mut round, mut left) = (0, 0);
    while round < 2_000 && (round < 800 || left > 350 << 20) {
        write(round..round + 50);
        round += 50;
        log.trim(round * SECOND_US).unwrap();
        left = log.bytes_on_disk();
    }
    let written = round as u64 * 750_000;
    assert!(left < written * 2 / 3, "{left} of {written} bytes are left");
    drop(log);
    let log = open(dir.path());
    let all = log.read(&at("kept", 0), 0, usize::MAX).unwrap();
    assert!(all.len() == kept.len() && all.iter().zip(&kept).all(|(record, kept)| record.value == kept));
}
