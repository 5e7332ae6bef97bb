//! `fraudline score`: a scorer process, beside Kafka and the online store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use clap::Args;
use feature_store::Retry;
use schemas::topics;
use scorer::log::{Log, LogError};
use scorer::worker::Stats;
use scorer::{Worker, system_clock};

use super::{connect, install_metrics, runtime, spawn, start_http, supervise, watch_signals};
use crate::config::ConfigArgs;

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The name of this process among the scorers [default: the host's]
    #[arg(long)]
    instance: Option<String>,
    /// Where health, readiness and metrics are served
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
}

pub(crate) fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let metrics = install_metrics()?;
    let runtime = runtime()?;
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&runtime, &stop);
    let stats = Arc::new(Stats::default());
    let assigned = Arc::clone(&stats);
    let ready = move || match assigned.assigned.load(Relaxed) {
        true => Ok(()),
        false => Err("the model is warming up, or no partition is assigned yet"),
    };
    let pages = feature_server::probes(Arc::new(ready), metrics);
    let url = start_http(&runtime, args.http.unwrap_or(config.scorer.http), pages)?;

    let features = connect::features(&config)?;
    let instance = args.instance.clone().unwrap_or_else(|| config.instance());
    let kafka = config.kafka(instance.clone(), config.scorer.delivery);
    let Some(log) = connect::kafka_waiting(&config, &kafka, &stop)? else {
        return Ok(());
    };
    let store = connect::store(&config, runtime.handle(), Retry::UntilStopped(Arc::clone(&stop)))?;
    // Loaded and warm before the group is joined: whoever joins can score.
    let model = config.model.serve()?;
    tracing::info!(instance, url, model = model.model().label, device = %model.device(), "scoring");

    let views = scorer::worker::views(&*log, &store, &features, config.scorer.view_cache_bytes)?;
    let mut parts = Vec::new();
    for index in 0..usize::from(config.scorer.workers.max(1)) {
        let context = scorer::worker::Context {
            log: Arc::clone(&log) as Arc<dyn Log>,
            store: Arc::clone(&store),
            features: Arc::clone(&features),
            model: model.clone(),
            clock: system_clock(),
            stats: Arc::clone(&stats),
            views: Arc::clone(&views),
        };
        let worker = Worker::start(context, config.worker(), index)?;
        let stopping = Arc::clone(&stop);
        parts.push(spawn("scorer", move || Ok(worker.run(&stopping)?))?);
    }
    let watched = Arc::clone(&log);
    let lag = spawn_lag_watch(watched, Arc::clone(&stop), scorer::GROUP, &[topics::TRANSACTIONS])?;
    let ended = supervise(parts, &stop, config.drain_timeout, || {});
    lag.join()?;
    // Threads that are stuck with a service that is away are not waited for.
    runtime.shutdown_background();
    ended
}

/// Keeps the lag of a group up to date, apart from the workers, which may be stuck.
pub(super) fn spawn_lag_watch(
    log: Arc<dyn Log>,
    stop: Arc<AtomicBool>,
    group: &'static str,
    topics: &'static [&'static str],
) -> anyhow::Result<super::Part> {
    spawn("lag watch", move || {
        while !stop.load(Relaxed) {
            for topic in topics {
                match scorer::metrics::observe_lag(&*log, group, topic) {
                    Ok(_) | Err(LogError::Unavailable(_)) => {}
                    Err(error) => tracing::warn!("the lag of group {group}: {error}"),
                }
            }
            for _ in 0..20 {
                if !stop.load(Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            }
        }
        Ok(())
    })
}
