//! `fraudline`: the one binary.

mod admin;
mod config;
mod dataset;
mod dead_letters;
mod evaluate;
mod features;
mod feeder;
mod model;
mod profiles;
mod progress;
mod records;
mod replay;
mod report;
mod service;
mod simulate;
mod source;
mod store;
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
    /// Score transactions from Kafka
    Score(service::score::ScoreArgs),
    /// Keep the views of entities that cut across partitions, from Kafka into the online store
    Materialize(service::materialize::MaterializeArgs),
    /// Answer feature lookups over HTTP
    Serve(service::serve::ServeArgs),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Topics and the online store's schema, from one file
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Feature definitions
    #[command(subcommand)]
    Features(features::FeaturesCommand),
    /// Profiles of cards and terminals
    #[command(subcommand)]
    Profiles(profiles::ProfilesCommand),
    /// The online store
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// The registry of models: which versions there are, and which of them serves
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Records that could not be processed
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Print the records of a topic as JSON lines
    Tail(tail::TailArgs),
    /// Write simulated transactions to a Parquet file, or to Kafka
    Simulate(simulate::SimulateArgs),
    /// Train a model on recorded or simulated transactions
    Train(train::TrainArgs),
    /// Score history again by another model, into a topic of its own
    Replay(replay::ReplayArgs),
    /// Evaluate a model on recorded or simulated transactions
    Evaluate(evaluate::EvaluateArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read it, try every connection in it, and say what is wrong
    Check(config::CheckArgs),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // A service tells what it does; a command prints its result.
    let level = match cli.command {
        Command::Score(_) | Command::Materialize(_) | Command::Serve(_) => "info,librdkafka=warn,scylla=off",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("FRAUDLINE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli.command {
        Command::Up(args) => up::run(&args),
        Command::Score(args) => service::score::run(&args),
        Command::Materialize(args) => service::materialize::run(&args),
        Command::Serve(args) => service::serve::run(&args),
        Command::Config(ConfigCommand::Check(args)) => config::check(&args),
        Command::Admin(command) => admin::run(&command),
        Command::Features(command) => features::run(&command),
        Command::Profiles(command) => profiles::run(&command),
        Command::Store(command) => store::run(&command),
        Command::Model(command) => model::run(&command),
        Command::DeadLetters(command) => dead_letters::run(&command),
        Command::Tail(args) => tail::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
    }
}
