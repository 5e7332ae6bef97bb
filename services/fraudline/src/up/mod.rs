//! `fraudline up`: source, log, scorer, materializer and HTTP in one process, on one data directory.

mod report;
mod view;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use feature_store::{FeatureSet, OnlineStore};
use materializer::{Materializer, MaterializerOptions};
use models::ModelThread;
use schemas::topics;
use scorer::log::embedded::{Durability, EmbeddedOptions};
use scorer::log::{EmbeddedLog, Log, TopicSpec};
use scorer::worker::Stats;
use scorer::{Worker, WorkerOptions, system_clock};

use crate::feeder::{Feeder, Outstanding, Pace, Rate};
use crate::model::ModelArgs;
use crate::records;
use crate::service::{Part, install_metrics, runtime, spawn, start_http, watch_signals};
use crate::source::SourceArgs;
use report::Report;
use view::View;
use watch::Watch;

/// Name of the file in a data directory that says where its process listens.
pub(crate) const RUNNING_FILE: &str = "running.url";

/// Without --input the simulator goes on for ever; the log keeps this much of it by default.
const SIMULATED_RETENTION: Duration = Duration::from_secs(3600);
/// Retention never takes what is not consumed: beyond this lag nothing is trimmed.
const TRIM_LAG_MAX: u64 = 100_000;
/// Memory of each view for lookups.
const LOOKUP_CACHE_BYTES: u64 = 32 << 20;

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Events per second, or `max`: as fast as they are scored [default: 20000, with --input max]
    #[arg(long)]
    rate: Option<Rate>,
    /// Stop after this long, as in 30s or 5m [default: at the end of the source]
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Where everything is kept, for a later start to go on from [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write the figures of the run to this file
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Feature definitions [default: the Handbook's]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Partitions of every topic; only for a new data directory
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    partitions: u32,
    /// Scorer threads; partitions are shared out among them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Where HTTP listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:6566")]
    http: SocketAddr,
    /// What a commit survives
    #[arg(long, value_enum, default_value_t = SurvivesArg::Process)]
    survive: SurvivesArg,
    /// How long records are kept [default: 1h, with --input for ever]
    #[arg(long, value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// Write the feature vector into this share of the scores; into all if no number is given
    #[arg(long, value_name = "SHARE", num_args = 0..=1, default_value_t = 0.0, default_missing_value = "1", value_parser = parse_share)]
    log_features: f64,
    /// Reasons that an alert carries at most
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    reasons: usize,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("`{text}` is no share; write a number from 0 to 1"))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SurvivesArg {
    /// The end of the process, kill -9 included
    Process,
    /// Power loss too: every commit waits for the disk
    Power,
}

pub(crate) fn run(args: &UpArgs) -> anyhow::Result<()> {
    let temporary = args.data_dir.is_none().then(tempfile::tempdir).transpose().context("making a temporary folder")?;
    let data_dir = match (&args.data_dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => anyhow::bail!("no data directory"),
    };
    let features = Arc::new(match &args.features {
        Some(path) => FeatureSet::load(path)?,
        None => FeatureSet::bundled(),
    });
    let metrics = install_metrics()?;
    let log = open_log(args, &data_dir)?;
    let store = log.store() as Arc<dyn OnlineStore>;
    let feed = args.source.open(None, None)?;
    args.source.claim(&feed, &data_dir)?;

    let stats = Arc::new(Stats::default());
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = runtime()?;
    // Bound and answering /health before the model is warm, as a probe expects it.
    let router = router(args, &log, &store, &features, &stats, metrics);
    let url = start_http(&runtime, args.http, router)?;
    std::fs::write(data_dir.join(RUNNING_FILE), &url).context("writing to the data directory")?;
    watch_signals(&runtime, &interrupted);

    let model = args.model.config().serve()?;

    let outstanding = Outstanding { stats: Arc::clone(&stats), backlog: lag(&*log)? };
    let pace = Pace { rate: args.rate(), outstanding: Some(outstanding), events_max: None };
    let mut feeder = Feeder::new(Arc::clone(&log) as Arc<dyn Log>, feed, pace);
    let resumed_at = feeder.resume()?;
    let mut watch = Watch::new(Arc::clone(&log) as Arc<dyn Log>, feeder.frauds(), model.model().threshold);
    let mut view = View::new(&url, &data_dir, &model.model().label, model.device(), resumed_at);

    let stop = Arc::new(AtomicBool::new(false));
    let parts = start_parts(args, &log, &store, &features, &model, &stats, &stop)?;
    let feeding = Arc::new(AtomicBool::new(true));
    let feeder = {
        let feeding = Arc::clone(&feeding);
        spawn("feeder", move || feeder.run(&feeding, |_| ()).map(|_| ()))?
    };

    let started = Instant::now();
    let mut trimmed = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        watch.step()?;
        let lag = lag(&*log)?;
        view.show(&stats, &watch, lag, started.elapsed());
        if parts.iter().any(|part| part.thread.is_finished()) {
            break;
        }
        if interrupted.load(Relaxed) || args.duration.is_some_and(|duration| started.elapsed() >= duration) {
            feeding.store(false, Relaxed);
        }
        if feeder.thread.is_finished() && lag == 0 {
            break;
        }
        if trimmed.elapsed() >= Duration::from_secs(60) && lag < TRIM_LAG_MAX {
            log.trim(system_clock()())?;
            trimmed = Instant::now();
        }
    }
    // Everything fed is committed by now; what is left is to write the states.
    let elapsed = started.elapsed();
    feeding.store(false, Relaxed);
    stop.store(true, Relaxed);
    parts.into_iter().chain([feeder]).try_for_each(Part::join)?;
    while watch.step()? > 0 {}
    log.persist()?;
    view.close();
    let _ = std::fs::remove_file(data_dir.join(RUNNING_FILE));
    let report = Report::new(&*log, &stats, &watch, &model, elapsed, resumed_at)?;
    report.print();
    crate::report::write(&report, args.report.as_deref())?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(())
}

impl UpArgs {
    fn rate(&self) -> Rate {
        self.rate.unwrap_or(if self.source.input.is_some() { Rate::Max } else { Rate::PerSecond(20_000) })
    }
}

fn open_log(args: &UpArgs, data_dir: &Path) -> anyhow::Result<Arc<EmbeddedLog>> {
    let durability = match args.survive {
        SurvivesArg::Process => Durability::Process,
        SurvivesArg::Power => Durability::Power,
    };
    let log = EmbeddedLog::open(data_dir, EmbeddedOptions { durability, ..EmbeddedOptions::default() })?;
    let retention = args.retention.or(args.source.input.is_none().then_some(SIMULATED_RETENTION));
    for name in topics::ALL {
        log.create_topic(&TopicSpec { name: name.to_owned(), partitions: args.partitions, retention })?;
    }
    Ok(log)
}

fn router(
    args: &UpArgs,
    log: &Arc<EmbeddedLog>,
    store: &Arc<dyn OnlineStore>,
    features: &Arc<FeatureSet>,
    stats: &Arc<Stats>,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
) -> axum::Router {
    let assigned = Arc::clone(stats);
    let ready = move || match assigned.assigned.load(Relaxed) {
        true => Ok(()),
        false => Err("the model is warming up, or no partition is assigned yet"),
    };
    let stored = feature_server::Stored {
        store: Arc::clone(store),
        card_partitions: args.partitions,
        entity_partitions: args.partitions,
        cache_bytes: LOOKUP_CACHE_BYTES,
    };
    let context = feature_server::Context::new(Arc::clone(features), &stored, Arc::new(ready), metrics);
    let pages = axum::Router::new()
        .route("/topics/{topic}/records", axum::routing::get(records::get_page))
        .with_state(Arc::clone(log) as Arc<dyn Log>);
    feature_server::router(context).merge(pages)
}

fn start_parts(
    args: &UpArgs,
    log: &Arc<EmbeddedLog>,
    store: &Arc<dyn OnlineStore>,
    features: &Arc<FeatureSet>,
    model: &ModelThread,
    stats: &Arc<Stats>,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let context = materializer::Context {
        log: Arc::clone(log) as Arc<dyn Log>,
        store: Arc::clone(store),
        features: Arc::clone(features),
        clock: system_clock(),
    };
    let materializer = Materializer::start(context, MaterializerOptions::default())?;
    let stopping = Arc::clone(stop);
    parts.push(spawn("materializer", move || Ok(materializer.run(&stopping)?))?);
    let views = scorer::worker::views(&**log, store, features, scorer::worker::VIEW_CACHE_BYTES)?;
    for index in 0..usize::from(args.workers) {
        let context = scorer::worker::Context {
            log: Arc::clone(log) as Arc<dyn Log>,
            store: Arc::clone(store),
            features: Arc::clone(features),
            model: model.clone(),
            clock: system_clock(),
            stats: Arc::clone(stats),
            views: Arc::clone(&views),
        };
        let options =
            WorkerOptions { log_features: args.log_features, reasons: args.reasons, ..WorkerOptions::default() };
        let worker = Worker::start(context, options, index)?;
        let stopping = Arc::clone(stop);
        parts.push(spawn("scorer", move || Ok(worker.run(&stopping)?))?);
    }
    Ok(parts)
}

/// Transactions in the log that are not scored yet; sets the metric too.
fn lag(log: &dyn Log) -> anyhow::Result<u64> {
    Ok(scorer::metrics::observe_lag(log, scorer::GROUP, topics::TRANSACTIONS)?)
}
