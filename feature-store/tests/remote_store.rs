//! The waiting and retrying around a remote store, with a store that fails to order.
#![allow(clippy::unwrap_used, reason = "a failed test is to panic")]

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use feature_store::store::Result;
use feature_store::{Checkpoint, OnlineStore, Read, RemoteOptions, RemoteStore, Retry, StoreError, StoredState};
use futures_executor::block_on;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::runtime::{Builder, Runtime};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Fails so many times, then answers.
#[derive(Debug, Default)]
struct Flaky {
    failures_left: AtomicU32,
    attempts: AtomicU32,
    refuses: bool,
    hangs: bool,
    written: Mutex<Vec<Checkpoint>>,
}

impl Flaky {
    fn failing(times: u32) -> Arc<Flaky> {
        Arc::new(Flaky { failures_left: times.into(), ..Flaky::default() })
    }

    async fn attempt(&self) -> Result<()> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        // As the drivers do, it needs the runtime.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.hangs {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        if self.refuses {
            return Err(StoreError::Refused("the login failed".to_owned()));
        }
        let left = self.failures_left.load(Ordering::SeqCst);
        if left > 0 {
            self.failures_left.store(left - 1, Ordering::SeqCst);
            return Err(StoreError::Unavailable("the cable is cut".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl OnlineStore for Flaky {
    async fn read(&self, _: &str, keys: &[&str], _: &[u32]) -> Result<Read> {
        self.attempt().await?;
        let state = |key: &&str| Some(StoredState { stamp: 1, bytes: key.as_bytes().to_vec() });
        Ok(Read { states: keys.iter().map(state).collect(), watermarks: Vec::new() })
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.attempt().await?;
        self.written.lock().unwrap().push(checkpoint.clone());
        Ok(())
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn remote(store: &Arc<Flaky>, runtime: &Runtime, retry: Retry) -> RemoteStore {
    let timeout = Duration::from_millis(200);
    let options = RemoteOptions { name: "test", runtime: runtime.handle().clone(), timeout, retry };
    RemoteStore::new(store.clone(), options)
}

#[test]
fn a_plain_thread_waits_until_the_store_is_back() {
    let (runtime, store) = (runtime(), Flaky::failing(4));
    let remote = remote(&store, &runtime, Retry::UntilStopped(Arc::default()));
    let read = block_on(remote.read("v", &["a", "b"], &[])).unwrap();
    assert_eq!(read.states.len(), 2);
    assert_eq!(store.attempts.load(Ordering::SeqCst), 5);
    store.failures_left.store(2, Ordering::SeqCst);
    block_on(remote.write(&Checkpoint::default())).unwrap();
    assert_eq!(*store.written.lock().unwrap(), [Checkpoint::default()]);
}

#[test]
fn lookups_give_up_after_their_attempts() {
    let (runtime, store) = (runtime(), Flaky::failing(3));
    let remote = remote(&store, &runtime, Retry::Bounded { attempts: 3 });
    assert!(matches!(block_on(remote.read("v", &[], &[])), Err(StoreError::Unavailable(_))));
    assert_eq!(store.attempts.load(Ordering::SeqCst), 3);
    block_on(remote.read("v", &[], &[])).unwrap();
}

#[test]
fn what_does_not_pass_is_not_retried() {
    let (runtime, store) = (runtime(), Arc::new(Flaky { refuses: true, ..Flaky::default() }));
    let remote = remote(&store, &runtime, Retry::UntilStopped(Arc::default()));
    assert!(matches!(block_on(remote.write(&Checkpoint::default())), Err(StoreError::Refused(_))));
    assert_eq!(store.attempts.load(Ordering::SeqCst), 1);
}

#[test]
fn an_attempt_that_hangs_is_given_up() {
    let (runtime, store) = (runtime(), Arc::new(Flaky { hangs: true, ..Flaky::default() }));
    let remote = remote(&store, &runtime, Retry::Bounded { attempts: 2 });
    let error = block_on(remote.read("v", &[], &[])).unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(reason) if reason.contains("200ms")), "{error}");
    assert_eq!(store.attempts.load(Ordering::SeqCst), 2);
}

#[test]
fn the_flag_ends_the_waiting_but_not_an_attempt() {
    let (runtime, store) = (runtime(), Flaky::failing(u32::MAX));
    let stopped = Arc::new(AtomicBool::new(false));
    let waiting = remote(&store, &runtime, Retry::UntilStopped(stopped.clone()));
    let waiting = std::thread::spawn(move || block_on(waiting.write(&Checkpoint::default())));
    std::thread::sleep(Duration::from_millis(700));
    assert!(!waiting.is_finished());
    let began = Instant::now();
    stopped.store(true, Ordering::Relaxed);
    assert!(matches!(waiting.join().unwrap(), Err(StoreError::Unavailable(_))));
    assert!(began.elapsed() < Duration::from_millis(500));
    // The last checkpoint of an owner that stops is still written.
    let store = Flaky::failing(0);
    block_on(remote(&store, &runtime, Retry::UntilStopped(stopped)).write(&Checkpoint::default())).unwrap();
}

#[test]
fn what_nobody_awaits_is_broken_off() {
    let (runtime, store) = (runtime(), Flaky::failing(u32::MAX));
    let remote = remote(&store, &runtime, Retry::UntilStopped(Arc::default()));
    let _within = runtime.enter();
    let read = tokio::time::timeout(Duration::from_millis(100), remote.read("v", &[], &[]));
    assert!(block_on(read).is_err());
    // The attempt that was under way may have been the last.
    std::thread::sleep(Duration::from_millis(50));
    let attempts = store.attempts.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(store.attempts.load(Ordering::SeqCst), attempts);
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("feature_store")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
        }
        let mut text = Text(event.metadata().level().to_string());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn an_outage_is_logged_once() {
    let all = Lines::default();
    // For all threads: it is on the runtime's that the store is called.
    tracing::subscriber::set_global_default(all.clone()).unwrap();
    let (runtime, store) = (runtime(), Flaky::failing(5));
    let remote = RemoteStore::new(
        store,
        RemoteOptions {
            name: "logged",
            runtime: runtime.handle().clone(),
            timeout: Duration::from_secs(10),
            retry: Retry::UntilStopped(Arc::default()),
        },
    );
    for _ in 0..3 {
        block_on(remote.read("v", &[], &[])).unwrap();
    }
    let lines = all.0.lock().unwrap().clone();
    // Not those of the tests beside this one.
    let lines: Vec<_> = lines.into_iter().filter(|line| line.contains("store=\"logged\"")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("WARN") && lines[0].contains("the cable is cut"), "{lines:?}");
    assert!(lines[1].starts_with("INFO") && lines[1].contains("away_seconds"), "{lines:?}");
}

#[test]
fn attempts_are_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let (runtime, store) = (runtime(), Flaky::failing(3));
    let remote = metrics::with_local_recorder(&recorder, || remote(&store, &runtime, Retry::Bounded { attempts: 2 }));
    let has = |line: &str| {
        let rendered = recorder.handle().render();
        assert!(rendered.lines().any(|found| found == line), "{line} is not in\n{rendered}");
    };
    block_on(remote.read("v", &[], &[])).unwrap_err();
    has("fraudline_store_up{store=\"test\"} 0");
    has("fraudline_store_errors_total{store=\"test\",operation=\"read\"} 2");
    block_on(remote.write(&Checkpoint::default())).unwrap();
    has("fraudline_store_up{store=\"test\"} 1");
    has("fraudline_store_errors_total{store=\"test\",operation=\"write\"} 1");
    has("fraudline_store_operation_duration_seconds_count{store=\"test\",operation=\"write\"} 2");
}
