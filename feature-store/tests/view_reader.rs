//! Views that others keep, read through the cache: never less complete than asked for.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use feature_store::{
    Checkpoint, Entity, FeatureSet, OnlineStore, Read, Scratch, StoreError, StoredState, View, ViewRead, ViewReader,
    ViewState, Wanted, Watermark, WindowState,
};
use proptest::collection::vec;
use proptest::prelude::*;
use schemas::{Amount, EventTime, Id, Transaction, partition_for_key};

const PARTITIONS: u32 = 3;
const CACHE_BYTES: u64 = 1 << 20;

/// A store in memory that takes note of what it is asked.
#[derive(Debug, Default)]
struct MemoryStore {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    states: HashMap<(String, String), StoredState>,
    watermarks: BTreeMap<(String, u32), Watermark>,
    /// The keys of each read.
    reads: Vec<Vec<String>>,
    /// The partition of each look at a watermark.
    looks: Vec<u32>,
}

#[async_trait]
impl OnlineStore for MemoryStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> Result<Read, StoreError> {
        let mut kept = self.kept.lock().expect("no panic while it is held");
        kept.reads.push(keys.iter().map(|key| (*key).to_owned()).collect());
        let states = keys.iter().map(|key| kept.states.get(&(view.to_owned(), (*key).to_owned())).cloned());
        let watermarks =
            partitions.iter().map(|&partition| kept.watermarks.get(&(view.to_owned(), partition)).cloned());
        Ok(Read { states: states.collect(), watermarks: watermarks.collect() })
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut kept = self.kept.lock().expect("no panic while it is held");
        for partition in &checkpoint.partitions {
            for write in &partition.states {
                kept.states.insert((partition.view.to_string(), write.key.to_string()), write.state.clone());
            }
            kept.watermarks.insert((partition.view.to_string(), partition.partition), partition.watermark.clone());
        }
        Ok(())
    }

    async fn watermark(&self, view: &str, partition: u32) -> Result<Option<Watermark>, StoreError> {
        let mut kept = self.kept.lock().expect("no panic while it is held");
        kept.looks.push(partition);
        Ok(kept.watermarks.get(&(view.to_owned(), partition)).cloned())
    }
}

impl MemoryStore {
    /// All of the view's states now have one event, at this time, and are complete to it.
    fn advance(&self, partition: u32, keys: &[Id], millis: i64) {
        let mut state = WindowState::default();
        let payment = Transaction {
            transaction_id: "1".into(),
            event_time: time(millis),
            card_id: "c".into(),
            terminal_id: "t".into(),
            amount: Amount::from_cents(1),
        };
        view().apply(&payment, &mut state, &mut Scratch::default());
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        let mut kept = self.kept.lock().expect("no panic while it is held");
        for key in keys.iter().filter(|key| partition_of(key) == partition) {
            kept.states
                .insert((view().key().to_string(), key.to_string()), StoredState { stamp: 1, bytes: bytes.clone() });
        }
        let watermark = Watermark { offset: 1, progress: Vec::new(), event_time: time(millis) };
        kept.watermarks.insert((view().key().to_string(), partition), watermark);
    }

    fn advance_all(&self, keys: &[Id], millis: i64) {
        (0..PARTITIONS).for_each(|partition| self.advance(partition, keys, millis));
    }

    /// What was asked since the last call: keys of each read, partitions looked at.
    fn asked(&self) -> (Vec<Vec<String>>, Vec<u32>) {
        let mut kept = self.kept.lock().expect("no panic while it is held");
        (std::mem::take(&mut kept.reads), std::mem::take(&mut kept.looks))
    }
}

fn view() -> &'static View {
    static FEATURES: LazyLock<FeatureSet> = LazyLock::new(FeatureSet::bundled);
    FEATURES.view_of(Entity::TerminalId).expect("the bundled definitions have one")
}

fn time(millis: i64) -> EventTime {
    EventTime::from_millis(millis)
}

fn partition_of(key: &Id) -> u32 {
    partition_for_key(key.as_bytes(), PARTITIONS)
}

fn ids(count: usize) -> Vec<Id> {
    (0..count).map(|index| format!("terminal-{index}").into()).collect()
}

fn reader() -> (Arc<MemoryStore>, ViewReader) {
    let store = Arc::new(MemoryStore::default());
    let reader = ViewReader::new(view(), Arc::clone(&store) as Arc<dyn OnlineStore>, PARTITIONS, CACHE_BYTES);
    (store, reader)
}

async fn read(reader: &ViewReader, wanted: &[(&Id, i64)], force: bool) -> ViewRead {
    let wanted: Vec<Wanted<'_>> = wanted.iter().map(|&(key, at)| Wanted { key, complete_to: time(at) }).collect();
    reader.read(&wanted, force).await.expect("the store works")
}

/// The states, or where the view is behind.
async fn ready(reader: &ViewReader, wanted: &[(&Id, i64)]) -> Vec<Arc<ViewState>> {
    match read(reader, wanted, false).await {
        ViewRead::Ready(states) => states,
        behind @ ViewRead::Behind { .. } => panic!("{behind:?}"),
    }
}

fn counts(reader: &ViewReader) -> (u64, u64) {
    let counts = reader.take_counts();
    (counts.lookups, counts.hits)
}

fn newest(state: &ViewState) -> Option<EventTime> {
    state.state.as_ref().and_then(WindowState::newest)
}

#[tokio::test]
async fn a_view_is_behind_until_its_watermark_gets_there() {
    let (store, reader) = reader();
    let ids = ids(1);
    let expect_behind =
        async |reader: &ViewReader, expected: EventTime| match read(reader, &[(&ids[0], 100)], false).await {
            ViewRead::Behind { partition, reached, wanted } => {
                assert_eq!((partition, reached, wanted), (partition_of(&ids[0]), expected, time(100)));
            }
            ViewRead::Ready(states) => panic!("{states:?}"),
        };
    expect_behind(&reader, EventTime::MIN).await;
    for millis in [-7, 50, 99] {
        store.advance_all(&ids, millis);
        expect_behind(&reader, time(millis)).await;
    }
    // Another partition's progress says nothing of this one.
    store.advance((partition_of(&ids[0]) + 1) % PARTITIONS, &ids, 1000);
    expect_behind(&reader, time(99)).await;
    assert_eq!(store.asked(), (vec![], vec![partition_of(&ids[0]); 5]), "states are read when they are worth it");
    assert_eq!(counts(&reader), (0, 0), "nothing was answered");

    store.advance_all(&ids, 100);
    let states = ready(&reader, &[(&ids[0], 100)]).await;
    assert_eq!((states[0].complete_to, newest(&states[0])), (time(100), Some(time(100))));
}

#[tokio::test]
async fn one_that_lags_holds_the_batch_and_none_of_it_is_lost() {
    let (store, reader) = reader();
    let ids = ids(20);
    store.advance_all(&ids, 100);
    let lagging = partition_of(&ids[0]);
    (0..PARTITIONS).filter(|&partition| partition != lagging).for_each(|partition| store.advance(partition, &ids, 200));
    let wanted: Vec<(&Id, i64)> = ids.iter().rev().map(|id| (id, 200)).collect();
    let behind = read(&reader, &wanted, false).await;
    assert!(
        matches!(behind, ViewRead::Behind { partition, reached, .. } if partition == lagging && reached == time(100))
    );
    store.advance(lagging, &ids, 200);
    store.asked();
    assert_eq!(ready(&reader, &wanted).await.len(), ids.len());
    let (reads, mut looks) = store.asked();
    looks.sort_unstable();
    assert_eq!((reads.len(), looks), (1, vec![0, 1, 2]), "one round trip, and one look at each watermark");
    let in_order: Vec<String> = ids.iter().rev().map(Id::to_string).collect();
    assert_eq!(reads[0], in_order);
}

#[tokio::test]
async fn a_cached_state_is_read_again_only_when_more_is_asked_of_it() {
    let (store, reader) = reader();
    let ids = ids(2);
    store.advance_all(&ids, 200);
    let states = ready(&reader, &[(&ids[0], 100)]).await;
    assert_eq!(states[0].complete_to, time(200), "as complete as the watermark says, not as was asked");
    assert_eq!(counts(&reader), (1, 0));

    store.advance_all(&ids, 300);
    store.asked();
    for at in [150, 200, -1000] {
        let states = ready(&reader, &[(&ids[0], at), (&ids[0], 7)]).await;
        assert_eq!(newest(&states[0]), Some(time(200)));
    }
    assert_eq!(store.asked(), (vec![], vec![]), "the cache answers all of it");
    assert_eq!(counts(&reader), (6, 6));

    // Of two lookups of one key, each gets what it asked for.
    let states = ready(&reader, &[(&ids[0], 200), (&ids[0], 201), (&ids[1], 1)]).await;
    assert_eq!(states.iter().map(|state| newest(state)).collect::<Vec<_>>(), [200, 300, 300].map(|at| Some(time(at))));
    assert_eq!(store.asked().0, [[ids[0].to_string(), ids[1].to_string()]]);
    assert_eq!(counts(&reader), (3, 1));
    ready(&reader, &[(&ids[0], 300), (&ids[1], 300)]).await;
    assert_eq!(store.asked(), (vec![], vec![]));
}

#[tokio::test]
async fn an_entity_without_events_is_known_to_have_none_for_as_long_as_that_is_known() {
    let (store, reader) = reader();
    let ids = ids(1);
    store.advance_all(&[], 100);
    assert!(ready(&reader, &[(&ids[0], 100)]).await[0].state.is_none());
    store.advance_all(&ids, 200);
    store.asked();
    assert!(ready(&reader, &[(&ids[0], 100)]).await[0].state.is_none());
    assert_eq!(store.asked(), (vec![], vec![]));
    assert!(ready(&reader, &[(&ids[0], 101)]).await[0].state.is_some());
}

#[tokio::test]
async fn force_takes_what_there_is_and_says_how_complete_it_is() {
    let (store, reader) = reader();
    let ids = ids(1);
    let forced = async |reader: &ViewReader| match read(reader, &[(&ids[0], 100)], true).await {
        ViewRead::Ready(mut states) => states.pop().expect("one was asked for"),
        behind @ ViewRead::Behind { .. } => panic!("{behind:?}"),
    };
    let state = forced(&reader).await;
    assert_eq!((state.complete_to, newest(&state)), (EventTime::MIN, None));
    store.advance_all(&ids, 60);
    let state = forced(&reader).await;
    assert_eq!((state.complete_to, newest(&state)), (time(60), Some(time(60))));
    // It went through the cache, and still counts for no more than it is.
    assert!(
        matches!(read(&reader, &[(&ids[0], 100)], false).await, ViewRead::Behind { reached, .. } if reached == time(60))
    );
    store.advance_all(&ids, 100);
    assert_eq!(newest(&ready(&reader, &[(&ids[0], 100)]).await[0]), Some(time(100)));
}

#[tokio::test]
async fn damage_is_named_with_its_view_and_key() {
    let (store, reader) = reader();
    let ids = ids(3);
    store.advance_all(&ids, 100);
    for bytes in [vec![], vec![9], vec![1, 200], b"{}".to_vec(), vec![1, 0, 0, 7]] {
        let damaged = StoredState { stamp: 1, bytes };
        let key = (view().key().to_string(), ids[1].to_string());
        store.kept.lock().expect("no panic while it is held").states.insert(key, damaged);
        let wanted: Vec<Wanted<'_>> = ids.iter().map(|key| Wanted { key, complete_to: time(100) }).collect();
        let error = reader.read(&wanted, false).await.expect_err("a damaged state");
        assert!(
            matches!(&error, StoreError::Damaged { view: of, key, .. } if *of == view().key().as_str() && *key == ids[1])
        );
        assert!(error.to_string().contains(&format!("{}/terminal-1", view().key())), "{error}");
    }
    // It is not cached, and the others are as good as ever.
    assert_eq!(ready(&reader, &[(&ids[0], 100), (&ids[2], 100)]).await.len(), 2);
    store.advance_all(&ids, 100);
    assert_eq!(newest(&ready(&reader, &[(&ids[1], 100)]).await[0]), Some(time(100)));
}

#[derive(Clone, Debug)]
enum Step {
    Advance { partition: u32, by: i64 },
    Read { wanted: Vec<(usize, i64)>, force: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..PARTITIONS, 1..30_i64).prop_map(|(partition, by)| Step::Advance { partition, by }),
        (vec((0..8_usize, 0..200_i64), 0..6), prop::bool::weighted(0.2))
            .prop_map(|(wanted, force)| Step::Read { wanted, force }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The store's states have their last event exactly at the watermark they were written with,
    /// so a state tells how complete it is.
    #[test]
    fn no_state_is_less_complete_than_asked_for(steps in vec(step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (store, reader) = reader();
        let ids = ids(8);
        let mut reached = [i64::MIN; PARTITIONS as usize];
        for step in steps {
            let (wanted, force) = match step {
                Step::Advance { partition, by } => {
                    let reached = &mut reached[partition as usize];
                    *reached = (*reached).max(0) + by;
                    store.advance(partition, &ids, *reached);
                    continue;
                }
                Step::Read { wanted, force } => (wanted, force),
            };
            let wanted: Vec<(&Id, i64)> = wanted.into_iter().map(|(index, at)| (&ids[index], at)).collect();
            let there = wanted.iter().all(|(key, at)| reached[partition_of(key) as usize] >= *at);
            match runtime.block_on(read(&reader, &wanted, force)) {
                ViewRead::Behind { partition, reached: seen, wanted: at } => {
                    prop_assert!(!there && !force);
                    prop_assert_eq!(seen.as_millis(), reached[partition as usize]);
                    prop_assert!(at > seen);
                }
                ViewRead::Ready(states) => {
                    prop_assert!(there || force);
                    prop_assert_eq!(states.len(), wanted.len());
                    for (state, (key, at)) in states.iter().zip(&wanted) {
                        let reached = reached[partition_of(key) as usize];
                        prop_assert!(state.complete_to.as_millis() >= (*at).min(reached), "{} {:?}", at, state);
                        // Read after the watermark, so never less complete than it says.
                        prop_assert!(newest(state).unwrap_or(EventTime::MIN) >= state.complete_to);
                        prop_assert!(state.complete_to.as_millis() <= reached);
                    }
                }
            }
        }
    }
}
