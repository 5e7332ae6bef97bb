//! Views that others keep, read through a cache of decoded states.

use std::sync::Arc;

use moka::sync::Cache;
use schemas::{EventTime, Id, partition_for_key};

use crate::features::View;
use crate::store::{OnlineStore, StoreError};
use crate::window::WindowState;

/// An entity's state as it was read, and up to which event time it is complete.
#[derive(Debug)]
pub struct ViewState {
    /// `None`: the entity has no events.
    pub state: Option<WindowState>,
    pub complete_to: EventTime,
}

/// Reads the states of one view, in batches, each no staler than its reader can bear.
#[derive(Debug)]
pub struct ViewReader {
    view: Id,
    store: Arc<dyn OnlineStore>,
    cache: Cache<Id, Arc<ViewState>>,
    /// For each partition of the view's stream, the event time that its stored states are known to
    /// be complete to.
    watermarks: Vec<EventTime>,
    lookups: u64,
    hits: u64,
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
        ViewReader {
            view: view.key().clone(),
            store,
            cache,
            watermarks: vec![EventTime::MIN; partitions as usize],
            lookups: 0,
            hits: 0,
        }
    }

    /// The states of `wanted`, from the cache where it has them complete enough, else from the
    /// store in one round trip. With `force`, as complete as they are.
    pub async fn read(&mut self, wanted: &[Wanted<'_>], force: bool) -> Result<ViewRead, StoreError> {
        let partitions = self.watermarks.len() as u32;
        let mut refreshed = vec![false; self.watermarks.len()];
        let mut states: Vec<Option<Arc<ViewState>>> = Vec::with_capacity(wanted.len());
        let mut stale: Vec<(usize, EventTime)> = Vec::new();
        for (index, want) in wanted.iter().enumerate() {
            let cached = self.cache.get(want.key).filter(|cached| cached.complete_to >= want.complete_to);
            if cached.is_none() {
                let partition = partition_for_key(want.key.as_bytes(), partitions);
                let at = partition as usize;
                if self.watermarks[at] < want.complete_to && !refreshed[at] {
                    refreshed[at] = true;
                    if let Some(watermark) = self.store.watermark(&self.view, partition).await? {
                        self.watermarks[at] = watermark.event_time;
                    }
                }
                let reached = self.watermarks[at];
                if reached < want.complete_to && !force {
                    return Ok(ViewRead::Behind { partition, reached, wanted: want.complete_to });
                }
                stale.push((index, reached));
            }
            states.push(cached);
        }
        self.lookups += wanted.len() as u64;
        self.hits += (wanted.len() - stale.len()) as u64;
        if !stale.is_empty() {
            // The watermarks were read before the states, so the states are at least as complete,
            // unless the store lost writes meanwhile: then one of them has gone back.
            let keys: Vec<&str> = stale.iter().map(|&(index, _)| wanted[index].key.as_str()).collect();
            let known: Vec<u32> = (0..partitions).filter(|&at| self.watermarks[at as usize] > EventTime::MIN).collect();
            let read = self.store.read(&self.view, &keys, &known).await?;
            let mut lost = None;
            for (&partition, watermark) in known.iter().zip(&read.watermarks) {
                let reached = watermark.as_ref().map_or(EventTime::MIN, |watermark| watermark.event_time);
                if reached < self.watermarks[partition as usize] {
                    lost = Some(partition);
                }
                self.watermarks[partition as usize] = reached;
            }
            if let Some(partition) = lost
                && !force
            {
                let wanted = wanted[stale[0].0].complete_to;
                return Ok(ViewRead::Behind { partition, reached: self.watermarks[partition as usize], wanted });
            }
            for ((index, complete_to), stored) in stale.into_iter().zip(read.states) {
                let key = wanted[index].key;
                let state = stored.map(|stored| WindowState::decode(&stored.bytes)).transpose().map_err(|error| {
                    StoreError::Damaged { view: self.view.to_string(), key: key.to_string(), reason: error.to_string() }
                })?;
                let state = Arc::new(ViewState { state, complete_to });
                self.cache.insert(key.clone(), Arc::clone(&state));
                states[index] = Some(state);
            }
        }
        Ok(ViewRead::Ready(states.into_iter().flatten().collect()))
    }

    /// Lookups since the last call, and how many of them the cache answered.
    pub fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.lookups), std::mem::take(&mut self.hits))
    }

    /// Memory held by the cache, in bytes.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.weighted_size()
    }
}
