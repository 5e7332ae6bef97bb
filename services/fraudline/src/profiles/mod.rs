//! `fraudline profiles load`: profiles in bulk, into the topic that the materializer reads.

mod feast;
mod read;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::Context;
use clap::{Args, Subcommand};
use feature_store::FeatureSet;
use schemas::{EventTime, topics};
use scorer::log::{Log, Outbox};
use serde::{Deserialize, Serialize};

use crate::features::{LogArgs, OpenLog};
use crate::progress::Progress;
use crate::service::{runtime, watch_signals};
use feast::{FeastRows, FeastView};
use read::{Columns, rows};

/// Rows that are written, and noted as written, at a time.
const BATCH: usize = 5000;

#[derive(Debug, Subcommand)]
pub(crate) enum ProfilesCommand {
    /// Write the rows of a file as profile updates; an interrupted load goes on where it stopped
    Load(LoadArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Profiles: a .parquet or .csv file with a column named as the view's entity (card_id, terminal_id), one for each value, and
    /// event_time (RFC 3339, or a timestamp) if not all of them hold since --event-time
    #[arg(long, value_name = "FILE", required_unless_present = "feast_redis")]
    input: Option<PathBuf>,
    /// Load a feature view that Feast materialized into this Redis instead, each profile since its event timestamp; loaded again, it
    /// writes the same updates again
    #[arg(long, value_name = "redis://HOST:PORT/DB", conflicts_with_all = ["input", "event_time"], requires = "feast_project")]
    feast_redis: Option<String>,
    /// Feast's project
    #[arg(long, value_name = "NAME", requires = "feast_redis")]
    feast_project: Option<String>,
    /// Feast's feature view, if it has not the name of --view
    #[arg(long, value_name = "NAME", requires = "feast_redis")]
    feast_view: Option<String>,
    /// The view of the definitions that the values belong to
    #[arg(long)]
    view: String,
    /// Since when the values hold, without a column event_time [default: now]
    #[arg(long, value_name = "RFC 3339")]
    event_time: Option<EventTime>,
    /// Feature definitions [default: those of the configuration, or the Handbook's]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
}

/// How far a load has come: stands beside its input until it is through.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    view: String,
    /// Of the input, by which another file of the same name is told apart.
    bytes: u64,
    modified_ms: u128,
    event_time: EventTime,
    rows: u64,
}

pub(crate) fn run(command: &ProfilesCommand) -> anyhow::Result<()> {
    let ProfilesCommand::Load(args) = command;
    let OpenLog { log, features, .. } = args.log.open(args.features.as_deref())?;
    let known: Vec<&str> = features.profile_views().map(|view| view.name().as_str()).collect();
    let (_, view) = features.profile_view(&args.view).with_context(|| {
        format!("the definitions have no profile view `{}`; they have: {}", args.view, known.join(", "))
    })?;
    let columns =
        Columns { entity: view.entity().to_string(), fields: view.fields().map(ToString::to_string).collect() };
    let Some(input) = &args.input else { return from_feast(args, &*log, &features, &columns) };
    let noted = note_of(input, &args.view);
    let mut position = resume(args, input, &noted)?;
    let (total, rows) = rows(input, &args.view, &columns, position.event_time)?;
    let skipped = position.rows;
    if skipped > 0 {
        println!("going on behind row {skipped}, as {} has it", noted.display());
    }
    let runtime = runtime()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    watch_signals(&runtime, &interrupted);
    let progress = Progress::new(total.unwrap_or(0), "profiles");
    let mut outbox = Outbox::default();
    let clock = scorer::system_clock();
    let write = |outbox: &mut Outbox, position: &Position| -> anyhow::Result<()> {
        let before = position.rows - outbox.len() as u64;
        log.append(outbox).with_context(|| format!("after {before} rows; run it again to go on"))?;
        outbox.clear();
        progress.set(position.rows);
        let partial = noted.with_extension("partial");
        fs::write(&partial, serde_json::to_string(position)?)
            .and_then(|()| fs::rename(&partial, &noted))
            .with_context(|| format!("noting the position in {}", noted.display()))
    };
    let mut pending = position.rows;
    for row in rows.skip(usize::try_from(skipped)?) {
        let update = row?;
        features.accepts(&update).map_err(|message| anyhow::anyhow!("row {pending}: {message}"))?;
        outbox.push(topics::PROFILES, update.entity_id.as_bytes(), clock(), |out| update.write_json(out));
        pending += 1;
        if outbox.len() == BATCH {
            position.rows = pending;
            write(&mut outbox, &position)?;
            anyhow::ensure!(!interrupted.load(Relaxed), "interrupted after {pending} rows; run it again to go on");
        }
    }
    position.rows = pending;
    write(&mut outbox, &position)?;
    progress.finish();
    fs::remove_file(&noted).with_context(|| format!("removing {}", noted.display()))?;
    println!("{} profiles written to view {}", position.rows - skipped, args.view);
    runtime.shutdown_background();
    Ok(())
}

/// The scan has no order to go on from: an interrupted load is begun again.
fn from_feast(args: &LoadArgs, log: &dyn Log, features: &FeatureSet, columns: &Columns) -> anyhow::Result<()> {
    let (Some(redis), Some(project)) = (&args.feast_redis, &args.feast_project) else {
        anyhow::bail!("name a file with --input, or Feast's Redis with --feast-redis and --feast-project");
    };
    let view = args.feast_view.as_deref().unwrap_or(&args.view);
    let rows = FeastRows::open(&FeastView { redis, project, view }, &args.view, columns)?;
    let progress = Progress::new(0, "profiles");
    let (mut outbox, mut written) = (Outbox::default(), 0);
    let clock = scorer::system_clock();
    for row in rows {
        let update = row?;
        let of = |message: String| anyhow::anyhow!("`{}`: {message}", update.entity_id);
        features.accepts(&update).map_err(of)?;
        outbox.push(topics::PROFILES, update.entity_id.as_bytes(), clock(), |out| update.write_json(out));
        written += 1;
        if outbox.len() == BATCH {
            log.append(&outbox)?;
            outbox.clear();
            progress.set(written);
        }
    }
    log.append(&outbox)?;
    progress.finish();
    anyhow::ensure!(
        written > 0,
        "Feast's project `{project}` has nothing of view `{view}` by {} in this Redis",
        columns.entity
    );
    println!("{written} profiles written to view {}", args.view);
    Ok(())
}

fn note_of(input: &Path, view: &str) -> PathBuf {
    let mut name = input.as_os_str().to_owned();
    name.push(format!(".{view}.position"));
    PathBuf::from(name)
}

/// Where an earlier load of the same file stopped, or the beginning.
fn resume(args: &LoadArgs, input: &Path, noted: &Path) -> anyhow::Result<Position> {
    let input = fs::metadata(input).with_context(|| format!("opening {}", input.display()))?;
    let modified = input.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = EventTime::from_millis((scorer::system_clock())() / 1000);
    let begin = Position {
        view: args.view.clone(),
        bytes: input.len(),
        modified_ms: modified.as_millis(),
        event_time: args.event_time.unwrap_or(now),
        rows: 0,
    };
    let text = match fs::read_to_string(noted) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(begin),
        read => read.with_context(|| format!("reading {}", noted.display()))?,
    };
    let known: Position = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged; remove it to begin anew", noted.display()))?;
    let same = (known.bytes, known.modified_ms) == (begin.bytes, begin.modified_ms)
        && args.event_time.is_none_or(|time| time == known.event_time);
    anyhow::ensure!(
        same,
        "{} is of another load: the file or --event-time has changed since; remove it to begin anew",
        noted.display()
    );
    Ok(known)
}
