//! A store that is reached over the network, from threads that have no async runtime.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use rand::RngExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{Checkpoint, OnlineStore, Read, Result, StoreError};
use crate::metrics::{STORE_ERRORS, STORE_OPERATION_SECONDS, STORE_UP};

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How soon a waiting operation sees that it is to stop.
const STOP_POLL: Duration = Duration::from_millis(20);

/// How long an operation goes on after [`StoreError::Unavailable`].
#[derive(Clone, Debug)]
pub enum Retry {
    /// So many attempts in all: for lookups, which have a caller who waits.
    Bounded { attempts: u32 },
    /// Until the store is back, or the flag is set: for owners of partitions, which can do nothing
    /// better than wait. An attempt that is under way when the flag is set is not broken off.
    UntilStopped(Arc<AtomicBool>),
}

/// How a [`RemoteStore`] reaches its store.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// What the store is called in metrics and messages: `redis` or `cql`.
    pub name: &'static str,
    /// Where its operations run.
    pub runtime: Handle,
    /// For one attempt, which may connect first and make several round trips: more than the
    /// store's own timeout.
    pub timeout: Duration,
    pub retry: Retry,
}

/// An [`OnlineStore`] that can be awaited on any executor, and that waits and tries again while the
/// store it wraps is away.
///
/// An operation runs as a task of the given runtime, and is broken off when it is no longer
/// awaited. A write may be repeated as a whole: stores compare what they hold in each attempt.
pub struct RemoteStore {
    reach: Arc<Reach>,
    runtime: Handle,
    read: OperationMetrics,
    write: OperationMetrics,
}

struct Reach {
    store: Arc<dyn OnlineStore>,
    name: &'static str,
    timeout: Duration,
    retry: Retry,
    /// Since when the store is away.
    away: Mutex<Option<Instant>>,
    up: Gauge,
}

#[derive(Clone)]
struct OperationMetrics {
    seconds: Histogram,
    errors: Counter,
}

impl RemoteStore {
    /// Connects nothing and waits for nothing.
    pub fn new(store: Arc<dyn OnlineStore>, options: RemoteOptions) -> RemoteStore {
        let RemoteOptions { name, runtime, timeout, retry } = options;
        let metrics = |operation: &'static str| OperationMetrics {
            seconds: histogram!(STORE_OPERATION_SECONDS, "store" => name, "operation" => operation),
            errors: counter!(STORE_ERRORS, "store" => name, "operation" => operation),
        };
        let up = gauge!(STORE_UP, "store" => name);
        let reach = Reach { store, name, timeout, retry, away: Mutex::default(), up };
        RemoteStore { reach: Arc::new(reach), runtime, read: metrics("read"), write: metrics("write") }
    }

    async fn run<T: Send + 'static>(&self, operation: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let mut task = AbortOnDrop(self.runtime.spawn(operation));
        (&mut task.0).await.unwrap_or_else(|error| {
            // A panic of the store, or a runtime that was shut down under it.
            Err(StoreError::Storage(format!("an operation of the online store did not end: {error}")))
        })
    }
}

#[async_trait]
impl OnlineStore for RemoteStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> Result<Read> {
        let (reach, metrics) = (self.reach.clone(), self.read.clone());
        let (view, partitions) = (view.to_owned(), partitions.to_owned());
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        self.run(async move {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            reach.attempts(&metrics, || reach.store.read(&view, &keys, &partitions)).await
        })
        .await
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (reach, metrics, checkpoint) = (self.reach.clone(), self.write.clone(), checkpoint.clone());
        self.run(async move { reach.attempts(&metrics, || reach.store.write(&checkpoint)).await }).await
    }
}

impl Reach {
    async fn attempts<T, F: Future<Output = Result<T>>>(
        &self,
        metrics: &OperationMetrics,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T> {
        let mut made = 0;
        loop {
            let began = Instant::now();
            let outcome = tokio::time::timeout(self.timeout, attempt()).await.unwrap_or_else(|_| {
                Err(StoreError::Unavailable(format!("{}: no answer within {:?}", self.name, self.timeout)))
            });
            metrics.seconds.record(began.elapsed().as_secs_f64());
            made += 1;
            let Err(error) = outcome else {
                self.answered();
                return outcome;
            };
            metrics.errors.increment(1);
            if !matches!(error, StoreError::Unavailable(_)) {
                // It answered, if not as hoped; only a refusal may come from somewhere else.
                if matches!(error, StoreError::Refused(_)) {
                    self.up.set(0.0);
                } else {
                    self.answered();
                }
                return Err(error);
            }
            self.failed(&error);
            if !self.pause(made).await {
                return Err(error);
            }
        }
    }

    /// Waits before the next attempt; `false` if there is to be none.
    async fn pause(&self, made: u32) -> bool {
        if matches!(self.retry, Retry::Bounded { attempts } if made >= attempts) {
            return false;
        }
        let longest = PAUSE_MIN.saturating_mul(1 << (made - 1).min(16)).min(PAUSE_MAX);
        // Those who lost the store together don't come back together.
        let mut left = longest.mul_f64(rand::rng().random_range(0.5..=1.0));
        while !left.is_zero() {
            if self.is_stopped() {
                return false;
            }
            let step = left.min(STOP_POLL);
            tokio::time::sleep(step).await;
            left -= step;
        }
        !self.is_stopped()
    }

    fn is_stopped(&self) -> bool {
        matches!(&self.retry, Retry::UntilStopped(stopped) if stopped.load(Ordering::Relaxed))
    }

    fn failed(&self, error: &StoreError) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away.is_none() {
            *away = Some(Instant::now());
            self.up.set(0.0);
            warn!(store = self.name, %error, "the online store is away");
        }
    }

    fn answered(&self) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.up.set(1.0);
        if let Some(since) = away {
            info!(store = self.name, away_seconds = since.elapsed().as_secs_f64(), "the online store is back");
        }
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStore").field("store", &self.reach.store).field("retry", &self.reach.retry).finish()
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
