//! What the services have in common: how a process starts, is watched, and ends.

pub(crate) mod connect;
pub(crate) mod materialize;
pub(crate) mod score;
pub(crate) mod serve;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Runtime;

/// A thread of the process; its end before it was told to stop is an error.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) thread: JoinHandle<anyhow::Result<()>>,
}

pub(crate) fn spawn(
    name: &'static str,
    run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Part> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
    Ok(Part { name, thread })
}

impl Part {
    pub(crate) fn join(self) -> anyhow::Result<()> {
        let name = self.name;
        let ended = self.thread.join().map_err(|_| anyhow!("the {name} panicked"))?;
        ended.with_context(|| format!("the {name} stopped"))
    }
}

/// How long measurements are kept one by one before they are added up.
const METRICS_UPKEEP: Duration = Duration::from_secs(2);

/// Metrics of this process, all in one place.
pub(crate) fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let (score, amount) = (scorer::metrics::SCORE.to_owned(), scorer::metrics::AMOUNT.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets(&[
            1e-5, 1e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 100.0, 1000.0,
        ])
        .and_then(|builder| {
            let scores = [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
            builder.set_buckets_for_metric(Matcher::Full(score), &scores)
        })
        .and_then(|builder| {
            let amounts = [1.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0];
            builder.set_buckets_for_metric(Matcher::Full(amount), &amounts)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .context("setting up metrics")?;
    // Else they would pile up in the memory of a process that nobody scrapes (I6).
    let upkeep = handle.clone();
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(METRICS_UPKEEP);
            upkeep.run_upkeep();
        }
    })?;
    Ok(handle)
}

pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Serves `router`; returns the URL, once it answers.
pub(crate) fn start_http(runtime: &Runtime, address: SocketAddr, router: axum::Router) -> anyhow::Result<String> {
    let (bound, listening) = std::sync::mpsc::channel();
    let tell = move |address| {
        let _ = bound.send(address);
    };
    let server = runtime.spawn(feature_server::serve(address, router, tell, std::future::pending()));
    match listening.recv() {
        Ok(address) => Ok(format!("http://{address}")),
        Err(_) => {
            runtime.block_on(server)?.with_context(|| {
                format!("HTTP can't listen on {address}; name another address with --http, as in 127.0.0.1:0")
            })?;
            Err(anyhow!("the HTTP server ended at once"))
        }
    }
}

/// The first Ctrl-C or SIGTERM sets `interrupted`; a second one ends the process where it stands.
pub(crate) fn watch_signals(runtime: &Runtime, interrupted: &Arc<AtomicBool>) {
    let interrupted = Arc::clone(interrupted);
    runtime.spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            tracing::warn!("signals can't be watched; Ctrl-C ends the process without draining");
            return;
        };
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if interrupted.swap(true, Relaxed) {
                std::process::exit(130);
            }
        }
    });
}

/// Runs until a signal comes or a part ends; `tick` is called every second. Then the parts have
/// `drain_timeout` to finish what they have begun: what they don't is done by whoever comes next.
pub(crate) fn supervise(
    parts: Vec<Part>,
    stop: &AtomicBool,
    drain_timeout: Duration,
    mut tick: impl FnMut(),
) -> anyhow::Result<()> {
    let mut ticked = Instant::now();
    while !stop.load(Relaxed) && !parts.iter().any(|part| part.thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(50));
        if ticked.elapsed() >= Duration::from_secs(1) {
            tick();
            ticked = Instant::now();
        }
    }
    stop.store(true, Relaxed);
    let deadline = Instant::now() + drain_timeout;
    while parts.iter().any(|part| !part.thread.is_finished()) {
        if Instant::now() >= deadline {
            let late: Vec<&str> =
                parts.iter().filter(|part| !part.thread.is_finished()).map(|part| part.name).collect();
            tracing::warn!("not drained within {}: {}", humantime::format_duration(drain_timeout), late.join(", "));
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    parts.into_iter().filter(|part| part.thread.is_finished()).try_for_each(Part::join)
}
