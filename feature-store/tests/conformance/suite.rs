//! What every online store has to do, whatever it is made of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use feature_store::{
    Checkpoint, OnlineStore, PartitionCheckpoint, Read, StateWrite, StoreError, StoredState, Watermark, WindowState,
};
use proptest::test_runner::{Config, TestRunner};
use schemas::EventTime;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::oracle::{Case, case};
use crate::streamed;

/// A store under test.
#[async_trait]
pub trait Subject: Send + Sync {
    fn store(&self) -> Arc<dyn OnlineStore>;

    /// The highest stamp that it takes.
    fn stamp_max(&self) -> u64 {
        u64::MAX
    }

    /// Whether of two states with equal stamps the later one stays, and not just one of them.
    fn last_of_equals_stays(&self) -> bool {
        true
    }

    /// Takes a watermark away behind the store's back.
    async fn lose_watermark(&self, view: &str, partition: u32, offset: u64);
}

/// A name that no other test, and no other run, has.
pub fn unique(name: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{name}-{}-{now:x}", std::process::id())
}

pub fn state(stamp: u64, bytes: impl AsRef<[u8]>) -> StoredState {
    StoredState { stamp, bytes: bytes.as_ref().to_vec() }
}

pub fn watermark(offset: u64) -> Watermark {
    Watermark { offset, progress: vec![offset as u8; 3], event_time: EventTime::from_millis(-(offset as i64)) }
}

pub fn checkpoint(view: &str, partition: u32, states: &[(&str, StoredState)], offset: u64) -> Checkpoint {
    let states = states.iter().map(|(key, state)| StateWrite { key: (*key).into(), state: state.clone() }).collect();
    let watermark = watermark(offset);
    let written = PartitionCheckpoint { view: view.into(), partition, follows: None, states, watermark };
    Checkpoint { partitions: vec![written] }
}

pub fn following(follows: u64, mut checkpoint: Checkpoint) -> Checkpoint {
    checkpoint.partitions.iter_mut().for_each(|written| written.follows = Some(follows));
    checkpoint
}

pub async fn states(store: &dyn OnlineStore, view: &str, keys: &[&str]) -> Vec<Option<StoredState>> {
    store.read(view, keys, &[]).await.unwrap().states
}

pub async fn order_missing_and_repeated_keys(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("order"));
    let high = subject.stamp_max();
    let written = checkpoint(&view, 3, &[("a", state(1, "A")), ("b", state(high, "")), ("", state(0, "E"))], 9);
    store.write(&written).await.unwrap();
    let read = states(&*store, &view, &["b", "x", "a", "", "a"]).await;
    let (a, b) = (Some(state(1, "A")), Some(state(high, "")));
    assert_eq!(read, [b, None, a.clone(), Some(state(0, "E")), a]);
}

pub async fn nothing_asked(subject: &dyn Subject) {
    let store = subject.store();
    assert_eq!(store.read("anything", &[], &[]).await.unwrap(), Read::default());
    store.write(&Checkpoint::default()).await.unwrap();
}

pub async fn watermarks_in_reads(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("watermarks"));
    store.write(&checkpoint(&view, 3, &[("a", state(8, "A"))], 9)).await.unwrap();
    store.write(&checkpoint(&view, 1, &[], 4)).await.unwrap();
    let read = store.read(&view, &["a", "b"], &[1, 2, 3, 1]).await.unwrap();
    assert_eq!(read.states, [Some(state(8, "A")), None]);
    assert_eq!(read.watermarks, [Some(watermark(4)), None, Some(watermark(9)), Some(watermark(4))]);
    assert_eq!(store.watermark(&view, 3).await.unwrap(), Some(watermark(9)));
    assert_eq!(store.watermark(&view, 4).await.unwrap(), None);
    assert_eq!(store.watermark(&unique("other"), 3).await.unwrap(), None);
    // Extremes survive, and progress may be empty.
    let written = [(EventTime::MIN, vec![]), (EventTime::MAX, (0..=255).collect::<Vec<u8>>())];
    for (offset, (event_time, progress)) in written.into_iter().enumerate() {
        let mut extreme = checkpoint(&view, u32::MAX, &[], offset as u64);
        extreme.partitions[0].watermark = Watermark { offset: offset as u64, progress, event_time };
        store.write(&extreme).await.unwrap();
        let read = store.watermark(&view, u32::MAX).await.unwrap();
        assert_eq!(read.as_ref(), Some(&extreme.partitions[0].watermark));
    }
}

pub async fn several_partitions_and_views_at_once(subject: &dyn Subject) {
    let (store, cards, terminals) = (subject.store(), unique("cards"), unique("terminals"));
    let mut both = checkpoint(&cards, 0, &[("a", state(1, "1"))], 2);
    both.partitions.extend(checkpoint(&terminals, 0, &[("a", state(2, "2")), ("b", state(1, "1"))], 3).partitions);
    both.partitions.extend(checkpoint(&cards, 1, &[("c", state(5, "5"))], 6).partitions);
    store.write(&both).await.unwrap();
    let read = store.read(&cards, &["a", "b", "c"], &[0, 1]).await.unwrap();
    assert_eq!(read.states, [Some(state(1, "1")), None, Some(state(5, "5"))]);
    assert_eq!(read.watermarks, [Some(watermark(2)), Some(watermark(6))]);
    let read = store.read(&terminals, &["a", "b"], &[0, 1]).await.unwrap();
    assert_eq!(read.states, [Some(state(2, "2")), Some(state(1, "1"))]);
    assert_eq!(read.watermarks, [Some(watermark(3)), None]);
}

pub async fn states_are_bytes(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("bytes"));
    let every: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let written = [("every", state(1, every)), ("none", state(2, "")), ("zeros", state(3, [0; 9]))];
    store.write(&checkpoint(&view, 0, &written, 4)).await.unwrap();
    let read = states(&*store, &view, &["every", "none", "zeros"]).await;
    assert!(read == written.map(|(_, state)| Some(state)));
}

pub async fn ids_are_any_text(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("ids"));
    let long = "x".repeat(2000);
    let ids = ["", " ", "a b", "ключ", "{x}", "a}b{c", "}", "'; --", "\"", "\0", "\n\r", "%7D", ":", "*", "💳", &long];
    let written: Vec<_> = ids.iter().enumerate().map(|(index, id)| (*id, state(index as u64, id))).collect();
    store.write(&checkpoint(&view, 0, &written, 100)).await.unwrap();
    let read = states(&*store, &view, &ids).await;
    assert_eq!(read, written.into_iter().map(|(_, state)| Some(state)).collect::<Vec<_>>());
}

pub async fn views_with_similar_names_stay_apart(subject: &dyn Subject) {
    let (store, name) = (subject.store(), unique("view"));
    let names = ["", "a", "ab", "a}", "a{", "a-1", "a-w0", "a:", "a%7D", "a}:b", "A"].map(|end| format!("{name}{end}"));
    let ids = ["c", "bc", "watermark", "1}:c", ":c"];
    for (number, view) in names.iter().enumerate() {
        let written = ids.map(|id| (id, state(number as u64, format!("{view} {id}"))));
        store.write(&checkpoint(view, 0, &written, number as u64)).await.unwrap();
    }
    for (number, view) in names.iter().enumerate() {
        let read = store.read(view, &ids, &[0]).await.unwrap();
        assert_eq!(read.states, ids.map(|id| Some(state(number as u64, format!("{view} {id}")))));
        assert_eq!(read.watermarks, [Some(watermark(number as u64))]);
    }
    // An id that continues a view's name.
    assert_eq!(states(&*store, &name, &["ac", "-1}:c"]).await, [None, None]);
    // No name at all, and one id for every run.
    let id = unique("id");
    store.write(&checkpoint("", 0, &[(&id, state(1, "x"))], 1)).await.unwrap();
    assert_eq!(states(&*store, "", &[&id]).await, [Some(state(1, "x"))]);
}

pub async fn a_former_owner_changes_nothing(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("former"));
    store.write(&checkpoint(&view, 0, &[("a", state(5, "new")), ("b", state(5, "new"))], 6)).await.unwrap();
    // Late: lower for one, higher for the other; the watermark would go back.
    store.write(&checkpoint(&view, 0, &[("a", state(4, "old")), ("b", state(6, "newer"))], 5)).await.unwrap();
    assert_eq!(states(&*store, &view, &["a", "b"]).await, [Some(state(5, "new")), Some(state(6, "newer"))]);
    assert_eq!(store.watermark(&view, 0).await.unwrap(), Some(watermark(6)));
}

pub async fn a_write_is_repeated_with_equal_stamps(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("equal"));
    let first = checkpoint(&view, 0, &[("a", state(5, "one"))], 6);
    store.write(&first).await.unwrap();
    store.write(&first).await.unwrap();
    assert_eq!(states(&*store, &view, &["a"]).await, [Some(state(5, "one"))]);
    // The rest of a write that had failed half way.
    store.write(&checkpoint(&view, 0, &[("a", state(5, "again")), ("b", state(4, "b"))], 6)).await.unwrap();
    let read = states(&*store, &view, &["a", "b"]).await;
    let one = !subject.last_of_equals_stays() && read[0] == Some(state(5, "one"));
    assert!(one || read[0] == Some(state(5, "again")), "{:?}", read[0]);
    assert_eq!(read[1], Some(state(4, "b")));
    assert_eq!(store.watermark(&view, 0).await.unwrap(), Some(watermark(6)));
}

/// Stamps whose order a text, a double or a signed half would get wrong.
pub async fn stamps_are_compared_as_numbers(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("stamps"));
    let stamps = [
        0,
        1,
        9,
        10,
        127,
        128,
        255,
        256,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        (1 << 53) - 1,
        1 << 53,
        (1 << 53) + 1,
        (1 << 62) - 1,
        subject.stamp_max(),
    ];
    for pair in stamps.windows(2) {
        let (low, high) = (pair[0], pair[1]);
        let (up, down) = (format!("up {high}"), format!("down {high}"));
        store
            .write(&checkpoint(&view, 0, &[(&up, state(low, "low")), (&down, state(high, "high"))], low))
            .await
            .unwrap();
        store
            .write(&checkpoint(&view, 0, &[(&up, state(high, "high")), (&down, state(low, "low"))], high))
            .await
            .unwrap();
        store.write(&checkpoint(&view, 0, &[], low)).await.unwrap();
        let read = store.read(&view, &[&up, &down], &[0]).await.unwrap();
        assert_eq!(read.states, [Some(state(high, "high")), Some(state(high, "high"))]);
        assert_eq!(read.watermarks[0].as_ref().map(|watermark| watermark.offset), Some(high));
        // Nor is a loss seen where there is none, or overlooked.
        store.write(&following(high, checkpoint(&view, 0, &[], high))).await.unwrap();
        if let Some(next) = high.checked_add(1) {
            let error = store.write(&following(next, checkpoint(&view, 0, &[], high))).await.unwrap_err();
            assert!(
                matches!(error, StoreError::WentBack { expected, found, .. } if (expected, found) == (next, Some(high)))
            );
        }
    }
}

pub async fn the_highest_stamp_wins_a_race(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("race"));
    let stamp = |writer: u64, step: u64| (step * 7919 + writer * 104_729) % 1000;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, view) = (store.clone(), view.clone());
            tokio::spawn(async move {
                for step in 0..100 {
                    let stamp = stamp(writer, step);
                    store.write(&checkpoint(&view, 0, &[("a", state(stamp, stamp.to_string()))], stamp)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let highest = (0..4).flat_map(|writer| (0..100).map(move |step| stamp(writer, step))).max().unwrap();
    let read = store.read(&view, &["a"], &[0]).await.unwrap();
    assert_eq!(read.states, [Some(state(highest, highest.to_string()))]);
    assert_eq!(read.watermarks, [Some(watermark(highest))]);
}

pub async fn a_loss_is_noticed(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("loss"));
    let went_back = |error: StoreError, at: (u64, Option<u64>)| match error {
        StoreError::WentBack { view: of, partition, expected, found } => {
            assert_eq!((of, partition, expected, found), (view.clone(), 7, at.0, at.1));
        }
        other => panic!("{other}"),
    };
    // Nothing was there where something should be.
    let error = store.write(&following(3, checkpoint(&view, 7, &[], 5))).await.unwrap_err();
    went_back(error, (3, None));
    assert_eq!(store.watermark(&view, 7).await.unwrap(), None);
    store.write(&checkpoint(&view, 7, &[], 5)).await.unwrap();
    store.write(&following(5, checkpoint(&view, 7, &[("a", state(7, "A"))], 8))).await.unwrap();
    // A watermark below: what was restored is older.
    let error = store.write(&following(9, checkpoint(&view, 7, &[], 10))).await.unwrap_err();
    went_back(error, (9, Some(8)));
    assert_eq!(store.watermark(&view, 7).await.unwrap(), Some(watermark(8)));
    subject.lose_watermark(&view, 7, 8).await;
    assert_eq!(store.watermark(&view, 7).await.unwrap(), None);
    let lost = following(8, checkpoint(&view, 7, &[("a", state(9, "B"))], 10));
    went_back(store.write(&lost).await.unwrap_err(), (8, None));
    assert_eq!(store.watermark(&view, 7).await.unwrap(), None);
    // Other partitions don't suffer, and an owner who found none starts anew.
    store.write(&checkpoint(&view, 6, &[], 1)).await.unwrap();
    store.write(&checkpoint(&view, 7, &[], 12)).await.unwrap();
    assert_eq!(store.watermark(&view, 7).await.unwrap(), Some(watermark(12)));
}

pub async fn five_thousand_keys_at_once(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("many"));
    let ids: Vec<String> = (0..5000).map(|number| format!("{:016}", number * 7_919_000_003_u64)).collect();
    let written: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(index, id)| (id.as_str(), state(index as u64, format!("state of {id}"))))
        .collect();
    store.write(&checkpoint(&view, 0, &written, 5000)).await.unwrap();
    let asked: Vec<&str> = ids.iter().rev().map(String::as_str).collect();
    let read = store.read(&view, &asked, &[0]).await.unwrap();
    let expected: Vec<_> = written.iter().rev().map(|(_, state)| Some(state.clone())).collect();
    assert!(read.states == expected);
    assert_eq!(read.watermarks, [Some(watermark(5000))]);
}

/// While an owner writes, a reader's states never get older, and never lag the watermark it saw.
pub async fn reads_never_go_back(subject: &dyn Subject) {
    let (store, view) = (subject.store(), unique("reads"));
    let ids: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let writing = {
        let (store, view) = (store.clone(), view.clone());
        let ids: Vec<String> = ids.iter().map(|&id| id.to_owned()).collect();
        tokio::spawn(async move {
            for offset in 1..=100 {
                let written: Vec<_> =
                    ids.iter().map(|id| (id.as_str(), state(offset - 1, offset.to_string()))).collect();
                let written = checkpoint(&view, 0, &written, offset);
                let written = if offset == 1 { written } else { following(offset - 1, written) };
                store.write(&written).await.unwrap();
            }
        })
    };
    let (mut seen, mut complete) = (vec![None; ids.len()], 0);
    let mut distinct = BTreeSet::new();
    while complete < 100 {
        let read = store.read(&view, &ids, &[0]).await.unwrap();
        for (seen, state) in seen.iter_mut().zip(read.states) {
            let stamp = state.map(|state| state.stamp);
            assert!(stamp >= *seen, "{stamp:?} after {seen:?}");
            // The watermark of an earlier read: every event below it is in the states.
            assert!(stamp.map_or(0, |stamp| stamp + 1) >= complete, "{stamp:?} with the watermark at {complete}");
            *seen = stamp;
        }
        let now = read.watermarks[0].as_ref().map_or(0, |watermark| watermark.offset);
        assert!(now >= complete);
        complete = now;
        distinct.insert(now);
    }
    writing.await.unwrap();
    assert!(distinct.len() > 1, "the reader saw nothing but the end");
}

/// Cases of the windows' oracle, with every state that is written read back and gone on from.
pub async fn windows_go_on_from_what_was_stored(subject: &dyn Subject) {
    let (store, name, runtime) = (subject.store(), unique("windows"), Handle::current());
    let cases = AtomicU64::new(0);
    let check = |case: Case| {
        // Of no other case: its watermarks begin at the beginning.
        let view = format!("{name}-{}", cases.fetch_add(1, Ordering::Relaxed));
        let mut stamp = 0;
        streamed::check(&case, |side, entity, windows| {
            stamp += 1;
            let (key, mut bytes) = (format!("{side:?}{entity}"), Vec::new());
            windows.encode(&mut bytes);
            let read = runtime.block_on(async {
                store.write(&checkpoint(&view, 0, &[(&key, state(stamp, bytes))], stamp)).await.unwrap();
                states(&*store, &view, &[&key]).await.remove(0).unwrap()
            });
            assert_eq!(read.stamp, stamp);
            *windows = WindowState::decode(&read.bytes).unwrap();
        })
    };
    let config = Config { cases: 200, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    block_in_place(|| TestRunner::new(config).run(&case(), check).unwrap_or_else(|failed| panic!("{failed}")));
}
