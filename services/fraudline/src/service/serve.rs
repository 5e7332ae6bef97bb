//! `fraudline serve`: feature lookups over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use feature_store::Retry;
use schemas::topics;
use scorer::log::{Delivery, Log};

use super::{connect, install_metrics, runtime, start_http, supervise, watch_signals};
use crate::config::ConfigArgs;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where lookups are answered
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
}

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let metrics = install_metrics()?;
    let runtime = runtime()?;
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&runtime, &stop);
    let retry = Retry::Bounded { attempts: config.server.store_attempts.max(1) };
    let store = connect::store(&config, runtime.handle(), retry)?;
    // Where an entity's watermark stands is a matter of the number of partitions.
    let log = connect::kafka(&config, config.kafka("server".to_owned(), Delivery::AtLeastOnce))?;
    let stored = feature_server::Stored {
        store,
        card_partitions: log.ends(topics::TRANSACTIONS)?.len() as u32,
        entity_partitions: log.ends(topics::ENTITY_EVENTS)?.len() as u32,
        cache_bytes: config.server.cache_bytes,
    };
    let features = connect::features(&config)?;
    let context = feature_server::Context::new(features, &stored, Arc::new(|| Ok(())), metrics);
    drop(log);
    let url = start_http(&runtime, args.http.unwrap_or(config.server.http), feature_server::router(context))?;
    println!("serving features at {url}");
    supervise(Vec::new(), &stop, config.drain_timeout, || {})?;
    runtime.shutdown_timeout(config.drain_timeout);
    Ok(())
}
