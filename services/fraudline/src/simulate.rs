//! `fraudline simulate`: simulated transactions in the Handbook's columns, or as a stream.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::Context;
use clap::{Args, ValueEnum};
use load_tests::{Simulator, write_parquet};
use scorer::log::{Delivery, Log};

use crate::config::ConfigArgs;
use crate::feeder::{Feeder, Pace, Rate};
use crate::progress::Progress;
use crate::service::{connect, runtime, watch_signals};
use crate::source::SourceArgs;

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Days of simulated transactions [default: 183; to Kafka, without end]
    #[arg(long)]
    days: Option<u32>,
    /// Write them to this file
    #[arg(long, value_name = "FILE.parquet", required_unless_present = "to", conflicts_with = "to")]
    output: Option<PathBuf>,
    /// Stream them, and the chargebacks that follow, to the topics `transactions` and `labels`
    #[arg(long, value_enum)]
    to: Option<Target>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Events per second on a schedule, or `max`: as fast as Kafka takes them
    #[arg(long, default_value = "1000")]
    rate: Rate,
    /// Stop after so many transactions
    #[arg(long)]
    events: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    Kafka,
}

pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    match &args.output {
        Some(output) => to_file(args, output),
        None => to_kafka(args),
    }
}

fn to_file(args: &SimulateArgs, output: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(args.source.input.is_none(), "--input goes with --to kafka");
    let days = args.days.unwrap_or(183);
    let options = args.source.simulator(Some(days));
    let start = options.start;
    // A customer makes 2 transactions a day on average; a few fall outside the day.
    let expected = u64::from(options.customers) * u64::from(days) * 19 / 10;
    let progress = Progress::new(expected, "transactions");
    let rows = write_parquet(output, Simulator::new(options), start, |rows| progress.set(rows))?;
    progress.finish();
    println!("{rows} transactions written to {}", output.display());
    Ok(())
}

fn to_kafka(args: &SimulateArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let log = connect::kafka(&config, config.kafka(format!("{}-simulate", config.instance()), Delivery::AtLeastOnce))?;
    let feed = args.source.open(args.days, None)?;
    let runtime = runtime()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    watch_signals(&runtime, &interrupted);
    let feeding = Arc::new(AtomicBool::new(true));
    let watched = Arc::clone(&feeding);
    runtime.spawn(async move {
        while !interrupted.load(Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        watched.store(false, Relaxed);
    });
    let expected = args.events.or(feed.len()).unwrap_or(0);
    let progress = Progress::new(expected, "transactions");
    let pace = Pace { rate: args.rate, outstanding: None, events_max: args.events };
    let fed = Feeder::new(log as Arc<dyn Log>, feed, pace).run(&feeding, |fed| progress.set(fed));
    progress.finish();
    println!("{} transactions written to Kafka at {}", fed.context("writing to Kafka")?, config.kafka.brokers);
    runtime.shutdown_background();
    Ok(())
}
