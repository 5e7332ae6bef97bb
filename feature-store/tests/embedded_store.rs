//! What the embedded online store does beyond what every store does (`conformance`).
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

use std::path::Path;

use feature_store::{
    Checkpoint, EmbeddedStore, OnlineStore, PartitionCheckpoint, StateWrite, StoreError, StoredState, Watermark,
};
use fjall::{Database, KeyspaceCreateOptions};
use schemas::EventTime;

fn open(dir: &Path) -> (Database, EmbeddedStore) {
    let database = Database::builder(dir).open().unwrap();
    (database.clone(), EmbeddedStore::new(database).unwrap())
}

fn state(stamp: u64, bytes: &str) -> StoredState {
    StoredState { stamp, bytes: bytes.as_bytes().to_vec() }
}

fn watermark(offset: u64) -> Watermark {
    Watermark { offset, progress: vec![offset as u8; 3], event_time: EventTime::from_millis(-(offset as i64)) }
}

fn checkpoint(view: &str, partition: u32, states: &[(&str, StoredState)], offset: u64) -> Checkpoint {
    let states = states.iter().map(|(key, state)| StateWrite { key: (*key).into(), state: state.clone() }).collect();
    let watermark = watermark(offset);
    Checkpoint {
        partitions: vec![PartitionCheckpoint { view: view.into(), partition, follows: None, states, watermark }],
    }
}

async fn states(store: &EmbeddedStore, view: &str, keys: &[&str]) -> Vec<Option<StoredState>> {
    store.read(view, keys, &[]).await.unwrap().states
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let written = checkpoint("cards", 3, &[("a", state(1, "A")), ("b", state(u64::MAX, "")), ("", state(0, "E"))], 9);
    {
        let (_, store) = open(dir.path());
        store.write(&written).await.unwrap();
        store.write(&Checkpoint::default()).await.unwrap();
    }
    let (_, store) = open(dir.path());
    let read = store.read("cards", &["b", "x", "a", "", "a"], &[]).await.unwrap().states;
    let (a, b) = (Some(state(1, "A")), Some(state(u64::MAX, "")));
    assert_eq!(read, [b, None, a.clone(), Some(state(0, "E")), a]);
    assert_eq!(store.watermark("cards", 3).await.unwrap(), Some(watermark(9)));
    assert_eq!(store.watermark("cards", 4).await.unwrap(), None);
    assert_eq!(store.watermark("terminals", 3).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_staged_appears_with_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (database, store) = open(dir.path());
    let other = database.keyspace("other", KeyspaceCreateOptions::default).unwrap();
    let written = checkpoint("v", 0, &[("a", state(5, "x"))], 5);
    let mut batch = database.batch();
    batch.insert(&other, "k", "v");
    drop(store.stage(&mut batch, &written));
    assert_eq!(states(&store, "v", &["a"]).await, [None]);
    drop(batch);
    let mut batch = database.batch();
    let staged = store.stage(&mut batch, &written);
    batch.commit().unwrap();
    drop(staged);
    assert_eq!(states(&store, "v", &["a"]).await, [Some(state(5, "x"))]);
    assert_eq!(store.watermark("v", 0).await.unwrap(), Some(watermark(5)));
    assert!(other.get("k").unwrap().is_none());
}

#[tokio::test]
async fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (database, store) = open(dir.path());
    let states = database.keyspace("states", KeyspaceCreateOptions::default).unwrap();
    for damaged in [&[][..], &[2, 1], &[1], &[1, 0x80]] {
        states.insert(b"\x01vkey", damaged).unwrap();
        let named =
            |error| matches!(error, StoreError::Damaged { view, key, .. } if (&view[..], &key[..]) == ("v", "key"));
        assert!(named(store.read("v", &["key"], &[]).await.unwrap_err()));
        assert!(named(store.write(&checkpoint("v", 0, &[("key", state(1, "x"))], 1)).await.unwrap_err()));
    }
}
