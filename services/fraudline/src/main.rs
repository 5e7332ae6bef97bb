//! `fraudline`: the one binary.

mod records;
mod simulate;
mod source;
mod tail;
mod train;
mod up;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Scores card transactions while they are in flight: each exactly once.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in this process: source, log, scorer, materializer, HTTP
    Up(up::UpArgs),
    /// Print the records of a topic as JSON lines
    Tail(tail::TailArgs),
    /// Write simulated transactions to a Parquet file
    Simulate(simulate::SimulateArgs),
    /// Train a model on recorded or simulated transactions
    Train(train::TrainArgs),
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("FRAUDLINE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Train(args) => train::run(&args),
    }
}
