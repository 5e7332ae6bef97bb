//! `fraudline replay`: history scored again by another model, beside everything that runs.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use feature_store::{Backfill, View};
use models::{Artifact, Device, Registry, Scorer};
use schemas::{EventTime, Id, Transaction, topics};
use scorer::emit::{Verdict, write_score};
use scorer::log::{Log, LogError, Outbox, TopicSpec};
use scorer::system_clock;

use crate::features::history::{History, LoggedTransaction};
use crate::features::{LogArgs, OpenLog, threads};
use crate::progress::Progress;

const CHUNK: usize = 16_384;

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Score transactions since then, as in 2018-07-01T00:00:00Z; those before only fill the windows
    #[arg(long, value_name = "TIME")]
    from: EventTime,
    /// Score transactions before then [default: all]
    #[arg(long, value_name = "TIME")]
    until: Option<EventTime>,
    /// NAME@VERSION or NAME@ALIAS of the registry, or the folder of an artifact
    #[arg(long, value_name = "NAME@VERSION|DIR")]
    model: String,
    /// Topic to write the scores to: a new one
    #[arg(long, value_name = "TOPIC")]
    to: String,
    /// Folder of the registry [default: `model.registry` of the configuration]
    #[arg(long, value_name = "DIR", env = "FRAUDLINE_REGISTRY")]
    registry: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
    /// Feature definitions [default: those of the configuration, or the Handbook's]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<PathBuf>,
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda:N")]
    device: Device,
    /// Threads to compute features on [default: all cores]
    #[arg(long)]
    threads: Option<NonZero<usize>>,
}

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let artifact = args.artifact()?;
    let OpenLog { log, features, future_skew } = args.log.open(args.features.as_deref())?;
    artifact.layout().accept(features.layout())?;
    let mut scorer = Scorer::open(&artifact, args.device)?;
    create_topic(&*log, &args.to)?;
    let mut history = History::open(&*log, &features, future_skew)?;
    let mut backfill = Backfill::on_threads(&features, threads(args.threads));
    History::side(&*log, &features, &mut backfill, drop)?;

    let keep = features.views().iter().map(View::keep).max().unwrap_or_default();
    let model = Verdict { label: Id::from(artifact.label()), threshold: artifact.threshold() };
    let (mut scored, mut alerts) = (0u64, 0u64);
    let (mut first, mut scores, mut outbox) = (None, Vec::new(), Outbox::default());
    let progress = Progress::new(history.progress().0, "records");
    loop {
        let chunk = next_chunk(&mut history)?;
        let Some(begin) = chunk.first() else { break };
        first.get_or_insert(begin.transaction.event_time);
        let transactions: Vec<&Transaction> = chunk.iter().map(|logged| &logged.transaction).collect();
        let rows = backfill.rows(&transactions);
        let wanted = |logged: &LoggedTransaction| {
            let time = logged.transaction.event_time;
            time >= args.from && args.until.is_none_or(|until| time < until)
        };
        let rows = chunk.iter().zip(rows.values.chunks_exact(features.width())).filter(|(logged, _)| wanted(logged));
        let (logged, rows): (Vec<&LoggedTransaction>, Vec<&[f32]>) = rows.unzip();
        scores.clear();
        scorer.score(&rows.concat(), &mut scores)?;
        let now_us = system_clock()();
        for (logged, &score) in logged.iter().zip(&scores) {
            let score = model.score(&logged.transaction, (logged.partition, logged.offset), score);
            scored += 1;
            alerts += u64::from(score.alert);
            write_score(&mut outbox, &args.to, &score, now_us);
        }
        log.append(&outbox).with_context(|| format!("writing to `{}`; begin again with another topic", args.to))?;
        outbox.clear();
        progress.set(history.progress().1);
    }
    progress.finish();
    println!("{scored} transactions scored by {} into `{}`, {alerts} would have been alerts", model.label, args.to);
    if history.is_trimmed() && first.is_none_or(|first| args.from < first + keep) {
        let whole_from = first.unwrap_or(EventTime::MIN) + keep;
        println!(
            "the log no longer has all windows of transactions before {whole_from}: those scores are of windows that lack some"
        );
    }
    anyhow::ensure!(scored > 0, "the log has no transactions from {} on{}", args.from, args.until_text());
    Ok(())
}

impl ReplayArgs {
    fn artifact(&self) -> anyhow::Result<Artifact> {
        let folder = Path::new(&self.model);
        if folder.is_dir() {
            return Ok(Artifact::load(folder)?);
        }
        let registry = match &self.registry {
            Some(registry) => Some(registry.clone()),
            None => self.log.config()?.model.registry,
        };
        let registry = registry.with_context(|| {
            format!("there is no folder {}; for a model of a registry say --registry DIR", folder.display())
        })?;
        let registry = Registry::open(&registry)?;
        let (name, version) = registry.resolve(&self.model)?;
        Ok(registry.load(&name, &version)?)
    }

    fn until_text(&self) -> String {
        self.until.map(|until| format!(" before {until}")).unwrap_or_default()
    }
}

/// A topic of its own: what runs reads none but the known ones, and no score stands there twice.
fn create_topic(log: &dyn Log, name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!topics::ALL.contains(&name), "`{name}` is a topic that services read or write; name a new one");
    let partitions = log.ends(topics::TRANSACTIONS)?.len() as u32;
    match log.topic(name) {
        Err(LogError::UnknownTopic(_)) => {}
        existing => {
            let records: u64 = existing?.offsets.iter().map(|kept| kept.end - kept.start).sum();
            anyhow::ensure!(records == 0, "`{name}` holds {records} records already; name a new topic");
        }
    }
    Ok(log.create_topic(&TopicSpec { name: name.to_owned(), partitions, retention: None::<Duration> })?)
}

fn next_chunk(history: &mut History<'_>) -> anyhow::Result<Vec<LoggedTransaction>> {
    let mut chunk = Vec::with_capacity(CHUNK);
    while chunk.len() < CHUNK
        && let Some(next) = history.next()?
    {
        chunk.push(next);
    }
    Ok(chunk)
}
