//! `load-tests`: the services as processes, on real brokers and stores, under load and under fire.

mod bad_input;
mod chaos;
mod check;
mod environment;
mod feeder;
mod fleet;
mod gpu;
mod latency;
mod lookup;
mod mutate;
mod oracle;
mod outages;
mod overload;
mod progress;
mod stamps;
mod swap;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Load and chaos tests of fraudline's services.
///
/// They run the `fraudline` beside this binary; `infra/local/services start all` starts what it needs.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill, freeze and cut off processes under load; then check that each event was scored exactly once
    Chaos(chaos::ChaosArgs),
    /// Latency at a rate, or the highest rate
    Latency(latency::LatencyArgs),
    /// Feed more than can be scored, then check that memory stayed and nothing was lost
    Overload(overload::OverloadArgs),
    /// Feed spoiled records; each must end as one score or one dead letter
    BadInput(bad_input::BadInputArgs),
    /// Promote models under load; nothing may be lost, repeated or held up, nor go back to an older model
    Swap(swap::SwapArgs),
    /// Feature servers side by side: latency at a rate, or the highest rate, and processor time
    Lookup(lookup::LookupArgs),
    /// A device beside the CPU and PyTorch: the same scores, rows per second, and where the time goes
    Gpu(gpu::GpuArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    let passed = match Cli::parse().command {
        Command::Chaos(args) => chaos::run(args)?,
        Command::Latency(args) => latency::run(args)?,
        Command::Overload(args) => overload::run(args)?,
        Command::BadInput(args) => bad_input::run(args)?,
        Command::Swap(args) => swap::run(args)?,
        Command::Lookup(args) => lookup::run(args)?,
        Command::Gpu(args) => gpu::run(args)?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
