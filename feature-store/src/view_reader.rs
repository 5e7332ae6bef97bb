//! Views that others keep, read through a cache of decoded states.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_executor::block_on;
use moka::sync::Cache;
use parking_lot::Mutex;
use schemas::{EventTime, Id, partition_for_key};
use tokio::sync::Semaphore;

use crate::features::FeatureSet;
use crate::store::{OnlineStore, StoreError};
use crate::view::View;
use crate::window::WindowState;

/// Keys that wait to be refreshed ahead, at most; beyond it they are read when they are asked for.
const AHEAD_MAX: usize = 4096;
/// Keys refreshed in one read of the store at most.
const AHEAD_BATCH: usize = 256;
/// How many times older than it is meant to be a view's progress may be, if looking takes that long.
const AGES_MAX: u32 = 2;
/// A state is refreshed once this part of the staleness is all that is left of it.
const AHEAD_PART: u32 = 8;

/// An entity's state as it was read, and up to which event time it is complete.
#[derive(Debug)]
pub struct ViewState {
    /// `None`: nothing is known of the entity.
    pub state: Option<WindowState>,
    pub complete_to: EventTime,
}

/// Reads the states of one view, in batches, each no staler than its reader can bear. All readers of a process share one: what
/// one has read is there for the others, and what one is reading is not read again.
#[derive(Debug)]
pub struct ViewReader {
    core: Arc<Core>,
    /// Refreshes what is about to be too old. Bounded: what doesn't fit is read when it is asked for.
    ahead: Option<mpsc::SyncSender<Id>>,
}

#[derive(Debug)]
struct Core {
    view: Id,
    staleness: Duration,
    store: Arc<dyn OnlineStore>,
    cache: Cache<Id, Arc<ViewState>>,
    /// What is being read, and what to wait for until it was: closed then.
    loading: Mutex<HashMap<Id, Arc<Semaphore>>>,
    /// For each partition of the view's stream, the event time (in milliseconds) that its stored states are known to be
    /// complete to.
    watermarks: Vec<AtomicI64>,
    /// When all of them were last read at once, for [`ViewReader::latest`]: in milliseconds since `began`, and one.
    looked_at: AtomicU64,
    began: Instant,
    /// Held by the one that is reading them.
    looking: Arc<tokio::sync::Mutex<()>>,
    lookups: AtomicU64,
    hits: AtomicU64,
    refreshed: AtomicU64,
    /// The oldest state handed out, in milliseconds of event time.
    staleness_ms: AtomicI64,
}

/// What is asked for: an entity's state, complete to an event time.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub key: &'a Id,
    pub complete_to: EventTime,
}

/// Whether a view was far enough.
#[derive(Debug)]
pub enum ViewRead {
    /// The states, in the order asked for.
    Ready(Vec<Arc<ViewState>>),
    /// This partition of the view has yet to reach that event time.
    Behind { partition: u32, reached: EventTime, wanted: EventTime },
}

/// What was asked of a reader since it was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewCounts {
    pub lookups: u64,
    /// Lookups that the cache answered.
    pub hits: u64,
    /// States read again before they were too old.
    pub refreshed: u64,
    /// How far the oldest state handed out was behind the event it was read for.
    pub staleness: Duration,
}

impl ViewReader {
    /// `partitions`: of the stream that the view is built from. `cache_bytes` bounds the states held.
    pub fn new(view: &View, store: Arc<dyn OnlineStore>, partitions: u32, cache_bytes: u64) -> ViewReader {
        let cache = Cache::builder()
            .max_capacity(cache_bytes)
            .weigher(|key: &Id, value: &Arc<ViewState>| {
                let state = value.state.as_ref().map_or(0, WindowState::bytes);
                u32::try_from(state + key.len() + 128).unwrap_or(u32::MAX)
            })
            .build();
        let core = Core {
            view: view.key().clone(),
            staleness: view.staleness(),
            store,
            cache,
            loading: Mutex::new(HashMap::new()),
            watermarks: (0..partitions).map(|_| AtomicI64::new(i64::MIN)).collect(),
            looked_at: AtomicU64::new(0),
            began: Instant::now(),
            looking: Arc::default(),
            lookups: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            refreshed: AtomicU64::new(0),
            staleness_ms: AtomicI64::new(0),
        };
        ViewReader { core: Arc::new(core), ahead: None }
    }

    /// A reader of each of the shared views, in their order, that share `cache_bytes`.
    pub fn of_all(
        features: &FeatureSet,
        store: &Arc<dyn OnlineStore>,
        partitions: u32,
        cache_bytes: u64,
    ) -> Vec<ViewReader> {
        let share = cache_bytes / features.shared_views().count().max(1) as u64;
        features.shared_views().map(|(_, view)| ViewReader::new(view, Arc::clone(store), partitions, share)).collect()
    }

    /// Refreshes states on a thread of its own, shortly before they are too old, as long as they are asked for. The thread ends
    /// with the reader.
    pub fn refresh_ahead(mut self) -> ViewReader {
        let (ahead, keys) = mpsc::sync_channel::<Id>(AHEAD_MAX);
        let core = Arc::clone(&self.core);
        let refresh = move || {
            while let Ok(first) = keys.recv() {
                let mut batch: Vec<Id> = std::iter::once(first).chain(keys.try_iter().take(AHEAD_BATCH - 1)).collect();
                batch.sort_unstable();
                batch.dedup();
                block_on(core.refresh(batch));
            }
        };
        match std::thread::Builder::new().name("view-refresh".to_owned()).spawn(refresh) {
            Ok(_) => self.ahead = Some(ahead),
            Err(error) => tracing::warn!(%error, "no thread to refresh a view ahead; it is read when it is asked for"),
        }
        self
    }

    /// The states of `wanted`, from the cache where it has them complete enough, else from the
    /// store in one round trip. With `force`, as complete as they are.
    pub async fn read(&self, wanted: &[Wanted<'_>], force: bool) -> Result<ViewRead, StoreError> {
        let core = &*self.core;
        let mut states: Vec<Option<Arc<ViewState>>> = Vec::with_capacity(wanted.len());
        let mut missing: Vec<usize> = Vec::new();
        for (index, want) in wanted.iter().enumerate() {
            let cached = core.cached(want);
            match &cached {
                None => missing.push(index),
                Some(cached) => self.consider_ahead(want, cached),
            }
            states.push(cached);
        }
        let hits = wanted.len() - missing.len();
        let mut looked_at = vec![false; core.watermarks.len()];
        while !missing.is_empty() {
            for &index in &missing {
                let want = &wanted[index];
                let partition = core.partition_of(want.key);
                let looked_at = &mut looked_at[partition as usize];
                if core.reached(partition) < want.complete_to && !*looked_at {
                    *looked_at = true;
                    if let Some(watermark) = core.store.watermark(&core.view, partition).await? {
                        core.watermarks[partition as usize].fetch_max(watermark.event_time.as_millis(), Relaxed);
                    }
                }
                let reached = core.reached(partition);
                if reached < want.complete_to && !force {
                    return Ok(ViewRead::Behind { partition, reached, wanted: want.complete_to });
                }
            }
            let (claim, others) = core.claim(missing.iter().map(|&index| wanted[index].key));
            // After a loss the watermarks are lower: the next round sees it.
            let loaded = if claim.keys.is_empty() { None } else { core.load(&claim.keys).await? };
            let loaded: HashMap<&Id, Arc<ViewState>> = claim.keys.iter().zip(loaded.into_iter().flatten()).collect();
            let enough = |state: &Arc<ViewState>, want: &Wanted<'_>| force || state.complete_to >= want.complete_to;
            missing.retain(|&index| {
                let want = &wanted[index];
                states[index] = loaded.get(want.key).filter(|state| enough(state, want)).cloned();
                states[index].is_none()
            });
            drop(loaded);
            drop(claim);
            for other in others {
                // It is closed, never acquired.
                let _ = other.acquire().await;
            }
            // What another has read may be gone again already, or less complete than this one wants it: then once more.
            missing.retain(|&index| {
                states[index] = core.cached(&wanted[index]);
                states[index].is_none()
            });
        }
        core.lookups.fetch_add(wanted.len() as u64, Relaxed);
        core.hits.fetch_add(hits as u64, Relaxed);
        let states: Vec<Arc<ViewState>> = states.into_iter().flatten().collect();
        let staleness = |(state, want): (&Arc<ViewState>, &Wanted<'_>)| {
            (want.complete_to + core.staleness).as_millis().saturating_sub(state.complete_to.as_millis())
        };
        if let Some(oldest) = states.iter().zip(wanted).map(staleness).max() {
            core.staleness_ms.fetch_max(oldest, Relaxed);
        }
        Ok(ViewRead::Ready(states))
    }

    /// The states of `keys` as they are stored, complete to where the view was a moment ago: from the cache, else from the store in one
    /// round trip. How far the view has come is looked up beside this once that is known for longer than `age`, and
    /// before it, if that is so for longer than [`AGES_MAX`] times that.
    ///
    /// # Errors
    /// As the store fails.
    pub async fn latest(&self, keys: &[Id], age: Duration) -> Result<Vec<Arc<ViewState>>, StoreError> {
        let core = &*self.core;
        let known = core.progress_age();
        if known.is_none_or(|known| known >= age * AGES_MAX) {
            let looking = core.looking.lock().await;
            // Who waited for another's look needs none of its own.
            if core.progress_age().is_none_or(|known| known >= age) {
                core.look_at_watermarks().await?;
            }
            drop(looking);
        } else if known.is_some_and(|known| known >= age)
            && let Ok(looking) = Arc::clone(&core.looking).try_lock_owned()
        {
            let core = Arc::clone(&self.core);
            tokio::spawn(async move {
                // If it fails, the lookup fails that waits for one.
                let _ = core.look_at_watermarks().await;
                drop(looking);
            });
        }
        let wanted = |key| Wanted { key, complete_to: core.reached(core.partition_of(key)) };
        let wanted: Vec<Wanted<'_>> = keys.iter().map(wanted).collect();
        loop {
            // As complete as they are, so never behind.
            if let ViewRead::Ready(states) = self.read(&wanted, true).await? {
                return Ok(states);
            }
        }
    }

    fn consider_ahead(&self, want: &Wanted<'_>, cached: &ViewState) {
        if let Some(ahead) = &self.ahead
            && cached.complete_to < want.complete_to + self.core.staleness / AHEAD_PART
        {
            // Full: it is read when it is asked for.
            let _ = ahead.try_send(want.key.clone());
        }
    }

    /// What was asked since the last call.
    pub fn take_counts(&self) -> ViewCounts {
        let core = &self.core;
        let staleness = core.staleness_ms.swap(0, Relaxed);
        ViewCounts {
            lookups: core.lookups.swap(0, Relaxed),
            hits: core.hits.swap(0, Relaxed),
            refreshed: core.refreshed.swap(0, Relaxed),
            staleness: Duration::from_millis(u64::try_from(staleness).unwrap_or(0)),
        }
    }

    /// Memory held by the cache, in bytes.
    pub fn cache_bytes(&self) -> u64 {
        self.core.cache.weighted_size()
    }
}

/// Keys that this task reads; whoever else wants them waits until it is dropped.
struct Claim<'a> {
    core: &'a Core,
    keys: Vec<Id>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut loading = self.core.loading.lock();
        for key in &self.keys {
            if let Some(done) = loading.remove(key) {
                done.close();
            }
        }
    }
}

impl Core {
    fn partition_of(&self, key: &Id) -> u32 {
        partition_for_key(key.as_bytes(), self.watermarks.len() as u32)
    }

    fn reached(&self, partition: u32) -> EventTime {
        EventTime::from_millis(self.watermarks[partition as usize].load(Relaxed))
    }

    fn cached(&self, want: &Wanted<'_>) -> Option<Arc<ViewState>> {
        self.cache.get(want.key).filter(|cached| cached.complete_to >= want.complete_to)
    }

    /// Takes those of `keys` that nobody is reading; for the others, what to wait for.
    fn claim<'a>(&self, keys: impl Iterator<Item = &'a Id>) -> (Claim<'_>, Vec<Arc<Semaphore>>) {
        let done = Arc::new(Semaphore::new(0));
        let mut claim = Claim { core: self, keys: Vec::new() };
        let mut others = Vec::new();
        let mut loading = self.loading.lock();
        for key in keys {
            match loading.get(key) {
                None => {
                    loading.insert(key.clone(), Arc::clone(&done));
                    claim.keys.push(key.clone());
                }
                Some(other) if Arc::ptr_eq(other, &done) => {}
                Some(other) => others.push(Arc::clone(other)),
            }
        }
        drop(loading);
        (claim, others)
    }

    /// Reads states and puts them into the cache, each as complete as its partition is known to be beforehand. `None`: the
    /// store lost writes meanwhile.
    async fn load(&self, keys: &[Id]) -> Result<Option<Vec<Arc<ViewState>>>, StoreError> {
        let before: Vec<EventTime> = (0..self.watermarks.len() as u32).map(|at| self.reached(at)).collect();
        let partitions: Vec<u32> =
            (0..before.len() as u32).filter(|&at| before[at as usize] > EventTime::MIN).collect();
        let texts: Vec<&str> = keys.iter().map(Id::as_str).collect();
        let read = self.store.read(&self.view, &texts, &partitions).await?;
        // The watermarks were read before the states, so the states are at least as complete,
        // unless the store lost writes meanwhile: then one of them has gone back.
        let mut lost = false;
        for (&partition, watermark) in partitions.iter().zip(&read.watermarks) {
            let reached = watermark.as_ref().map_or(EventTime::MIN, |watermark| watermark.event_time);
            let known = &self.watermarks[partition as usize];
            if reached < before[partition as usize] {
                known.store(reached.as_millis(), Relaxed);
                lost = true;
            } else {
                known.fetch_max(reached.as_millis(), Relaxed);
            }
        }
        if lost {
            return Ok(None);
        }
        let mut states = Vec::with_capacity(keys.len());
        for (key, stored) in keys.iter().zip(read.states) {
            let state = stored.map(|stored| WindowState::decode(&stored.bytes)).transpose().map_err(|error| {
                StoreError::Damaged { view: self.view.to_string(), key: key.to_string(), reason: error.to_string() }
            })?;
            let complete_to = before[self.partition_of(key) as usize];
            let state = Arc::new(ViewState { state, complete_to });
            self.cache.insert(key.clone(), Arc::clone(&state));
            states.push(state);
        }
        Ok(Some(states))
    }

    /// Learns how far all partitions have come.
    async fn look_at_watermarks(&self) -> Result<(), StoreError> {
        let partitions: Vec<u32> = (0..self.watermarks.len() as u32).collect();
        let read = self.store.read(&self.view, &[], &partitions).await?;
        for (known, watermark) in self.watermarks.iter().zip(read.watermarks) {
            if let Some(watermark) = watermark {
                known.fetch_max(watermark.event_time.as_millis(), Relaxed);
            }
        }
        self.looked_at.store(self.began.elapsed().as_millis() as u64 + 1, Relaxed);
        Ok(())
    }

    /// How long ago all watermarks were looked at; `None`: never.
    fn progress_age(&self) -> Option<Duration> {
        let looked_at = self.looked_at.load(Relaxed).checked_sub(1)?;
        Some(self.began.elapsed().saturating_sub(Duration::from_millis(looked_at)))
    }

    /// Reads `keys` anew, as complete as they are. What fails is read when it is asked for.
    async fn refresh(&self, keys: Vec<Id>) {
        if self.look_at_watermarks().await.is_err() {
            return;
        }
        let further = |key: &Id| {
            let cached = self.cache.get(key).map_or(EventTime::MIN, |cached| cached.complete_to);
            self.reached(self.partition_of(key)) > cached
        };
        let keys: Vec<Id> = keys.into_iter().filter(further).collect();
        let (claim, _) = self.claim(keys.iter());
        if !claim.keys.is_empty() && matches!(self.load(&claim.keys).await, Ok(Some(_))) {
            self.refreshed.fetch_add(claim.keys.len() as u64, Relaxed);
        }
    }
}
