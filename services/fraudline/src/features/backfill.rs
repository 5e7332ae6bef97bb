//! `fraudline features backfill`: vectors for recorded transactions, point in time.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, anyhow};
use clap::{ArgGroup, Args};
use feature_store::Backfill;
use load_tests::{ChargebackDelay, Feed};
use schemas::{EventTime, Id, Label, Transaction};

use super::history::History;
use super::table::{TableChunk, TableWriter};
use super::{LogArgs, OpenLog, load, threads};
use crate::progress::Progress;

/// Rows that are computed at a time.
const CHUNK: usize = 32_768;
/// Chunks between two threads at most; whoever is ahead waits.
const CHUNKS: usize = 2;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["input", "from_log"]))]
pub(crate) struct BackfillArgs {
    /// Transactions in the order of their time: a Parquet file with the columns of the Fraud Detection Handbook (TRANSACTION_ID,
    /// TX_DATETIME, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT, and TX_FRAUD if there are labels)
    #[arg(long, value_name = "FILE.parquet")]
    input: Option<PathBuf>,
    /// What became known of the transactions, and when: a Parquet file with the columns TRANSACTION_ID, TERMINAL_ID, TX_DATETIME,
    /// LABEL_DATETIME and TX_FRAUD. Without it, frauds of the input become known after one to four days
    #[arg(long, value_name = "FILE.parquet", conflicts_with = "from_log")]
    labels: Option<PathBuf>,
    /// Take transactions, labels and profile updates from the log instead
    #[arg(long)]
    from_log: bool,
    #[command(flatten)]
    log: LogArgs,
    /// Feature definitions [default: those of the configuration, or the Handbook's]
    #[arg(long, value_name = "FILE.yaml")]
    features: Option<PathBuf>,
    /// Parquet file to write; must not exist
    #[arg(long, value_name = "FILE.parquet")]
    output: PathBuf,
    /// Threads to compute on [default: all cores]
    #[arg(long)]
    threads: Option<NonZero<usize>>,
}

/// What is read at a time.
struct Input {
    /// Known by the last of the transactions.
    labels: Vec<Label>,
    transactions: Vec<Transaction>,
    /// Of each transaction.
    known: Vec<Option<bool>>,
}

pub(crate) fn run(args: &BackfillArgs) -> anyhow::Result<()> {
    let threads = threads(args.threads);
    if args.from_log {
        let OpenLog { log, features, future_skew } = args.log.open(args.features.as_deref())?;
        let mut backfill = Backfill::on_threads(&features, threads);
        let mut known: HashMap<Id, (EventTime, bool)> = HashMap::new();
        History::side(&*log, &features, &mut backfill, |label| {
            let latest = known.entry(label.transaction_id).or_insert((label.label_time, label.fraud));
            *latest = (*latest).max((label.label_time, label.fraud));
        })?;
        let writer = TableWriter::create(&args.output, &features, false)?;
        let mut history = History::open(&*log, &features, future_skew)?;
        if history.is_trimmed() {
            eprintln!("the log no longer has its beginning: windows that begin before it are short");
        }
        let records = history.progress().0;
        return stream(backfill, writer, records, move |send| {
            loop {
                let mut input = Input { labels: Vec::new(), transactions: Vec::new(), known: Vec::new() };
                while input.transactions.len() < CHUNK
                    && let Some(logged) = history.next()?
                {
                    input.known.push(known.get(&logged.transaction.transaction_id).map(|(_, fraud)| *fraud));
                    input.transactions.push(logged.transaction);
                }
                if input.transactions.is_empty() || send.send(input).is_err() {
                    return Ok(());
                }
            }
        });
    }
    let input = args.input.as_deref().context("name the transactions with --input, or a log with --from-log")?;
    let features = load(args.features.as_deref())?;
    let mut feed = Feed::parquet(input, ChargebackDelay::default())?;
    let mut labels = args.labels.as_deref().map(load_tests::read_labels).transpose()?;
    let writer = TableWriter::create(&args.output, &features, true)?;
    let rows = feed.len().unwrap_or(0);
    let lateness = features.allowed_lateness();
    let labelled_input = feed.is_labelled();
    stream(Backfill::on_threads(&features, threads), writer, rows, move |send| {
        let (mut row, mut newest) = (0, EventTime::MIN);
        let verdicts: Option<HashMap<Id, bool>> = labels
            .as_ref()
            .map(|labels| labels.iter().map(|label| (label.transaction_id.clone(), label.fraud)).collect());
        while let Some(chunk) = feed.next_chunk(CHUNK)? {
            let mut read = Input { labels: chunk.labels, transactions: Vec::new(), known: Vec::new() };
            for labelled in chunk.transactions {
                let time = labelled.transaction.event_time;
                if time < newest - lateness {
                    return Err(anyhow!(
                        "row {row} is at {time}, more than the allowed lateness of {} before an earlier row; sort the file by TX_DATETIME",
                        humantime::format_duration(lateness)
                    ));
                }
                newest = newest.max(time);
                row += 1;
                read.known.push(match &verdicts {
                    Some(verdicts) => verdicts.get(&labelled.transaction.transaction_id).copied(),
                    None => labelled_input.then_some(labelled.fraud),
                });
                read.transactions.push(labelled.transaction);
            }
            if let Some(labels) = &mut labels {
                // In the order of their times, which the file was sorted by.
                let due = labels.partition_point(|label| label.label_time <= newest);
                read.labels = labels.drain(..due).collect();
            }
            if send.send(read).is_err() {
                return Ok(());
            }
        }
        Ok(())
    })
}

/// Reads, computes and writes, each on threads of its own; whichever is slowest makes the others wait.
fn stream(
    mut backfill: Backfill<'_>,
    mut writer: TableWriter,
    expected: u64,
    read: impl FnOnce(SyncSender<Input>) -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let progress = Progress::new(expected, "transactions");
    let (inputs, received): (SyncSender<Input>, Receiver<Input>) = sync_channel(CHUNKS);
    let (tables, computed): (SyncSender<TableChunk>, Receiver<TableChunk>) = sync_channel(CHUNKS);
    let rows = std::thread::scope(|scope| -> anyhow::Result<u64> {
        let reader = scope.spawn(move || read(inputs));
        let progress = &progress;
        let written = scope.spawn(move || -> anyhow::Result<(u64, TableWriter)> {
            let mut rows = 0;
            for chunk in computed {
                writer.write(&chunk)?;
                rows += chunk.ids.len() as u64;
                progress.set(rows);
            }
            Ok((rows, writer))
        });
        for input in received {
            input.labels.iter().for_each(|label| backfill.label(label));
            let transactions: Vec<&Transaction> = input.transactions.iter().collect();
            let rows = backfill.rows(&transactions);
            let ids = input.transactions.into_iter().map(|transaction| transaction.transaction_id).collect();
            if tables.send(TableChunk { ids, rows, labels: input.known }).is_err() {
                break;
            }
        }
        drop(tables);
        // Where either of them failed, the file is not given its name.
        let written = written.join().map_err(|_| anyhow!("the writer panicked"))?;
        reader.join().map_err(|_| anyhow!("the reader panicked"))??;
        let (rows, writer) = written?;
        writer.finish()?;
        Ok(rows)
    })?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    println!("{rows} transactions in {seconds:.1} s, {:.0} a second", rows as f64 / seconds);
    Ok(())
}
