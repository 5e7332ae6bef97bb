//! `fraudline materialize`: the views of entities that cut across partitions, into the online store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use clap::Args;
use feature_store::Retry;
use materializer::{Materializer, MaterializerOptions, aggregate, rekey};
use schemas::topics;
use scorer::log::{Delivery, KafkaOptions, Log};
use scorer::system_clock;

use super::score::spawn_lag_watch;
use super::{connect, install_metrics, runtime, spawn, start_http, supervise, watch_signals};
use crate::config::ConfigArgs;

/// One materializer at a time: each process takes this name in its groups, and with it the place
/// of the one before.
const INSTANCE: &str = "materializer";

#[derive(Debug, Args)]
pub(crate) struct MaterializeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where health, readiness and metrics are served
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
}

pub(crate) fn run(args: &MaterializeArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let metrics = install_metrics()?;
    let runtime = runtime()?;
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&runtime, &stop);
    let started = Arc::new(AtomicBool::new(false));
    let is_started = Arc::clone(&started);
    let ready = move || if is_started.load(Relaxed) { Ok(()) } else { Err("connecting") };
    let pages = feature_server::probes(Arc::new(ready), metrics);
    let url = start_http(&runtime, args.http.unwrap_or(config.materializer.http), pages)?;

    // Views are read as if every event was in them once, so there is no other delivery here.
    let kafka = KafkaOptions {
        gather: Some(config.materializer.commit_interval),
        ..config.kafka(INSTANCE.to_owned(), Delivery::ExactlyOnce)
    };
    let Some(log) = connect::kafka_waiting(&config, &kafka, &stop)? else { return Ok(()) };
    let context = materializer::Context {
        log: Arc::clone(&log) as Arc<dyn Log>,
        store: connect::store(&config, runtime.handle(), Retry::UntilStopped(Arc::clone(&stop)))?,
        features: connect::features(&config)?,
        clock: system_clock(),
    };
    let options = MaterializerOptions {
        batch_records_max: config.materializer.batch_records_max,
        state_bytes_max: config.materializer.state_bytes_max,
        checkpoint_interval: config.materializer.checkpoint_interval,
        commit_interval: config.materializer.commit_interval,
        future_skew: config.scorer.future_skew,
    };
    let materializer = Materializer::start(context, options)?;
    let stopping = Arc::clone(&stop);
    let part = spawn("materializer", move || Ok(materializer.run(&stopping)?))?;
    started.store(true, Relaxed);
    tracing::info!(url, "materializing");
    let groups =
        [(rekey::GROUP, &[topics::TRANSACTIONS, topics::LABELS][..]), (aggregate::GROUP, &[topics::ENTITY_EVENTS][..])];
    let mut watches = Vec::new();
    for (group, topics) in groups {
        watches.push(spawn_lag_watch(Arc::clone(&log) as Arc<dyn Log>, Arc::clone(&stop), group, topics)?);
    }
    let ended = supervise(vec![part], &stop, config.drain_timeout, || {});
    watches.into_iter().try_for_each(super::Part::join)?;
    runtime.shutdown_timeout(Duration::ZERO);
    ended
}
