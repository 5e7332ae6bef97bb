//! `fraudline simulate`: simulated transactions in the Handbook's columns.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use load_tests::{Simulator, SimulatorOptions, write_parquet};

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[arg(long, default_value_t = 5000)]
    customers: u32,
    #[arg(long, default_value_t = 10_000)]
    terminals: u32,
    #[arg(long, default_value_t = 183)]
    days: u32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, value_name = "FILE.parquet")]
    output: PathBuf,
}

pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    let options = SimulatorOptions {
        customers: args.customers,
        terminals: args.terminals,
        days: Some(args.days),
        seed: args.seed,
        ..SimulatorOptions::default()
    };
    let start = options.start;
    // A customer makes 2 transactions a day on average; a few fall outside the day.
    let expected = u64::from(args.customers) * u64::from(args.days) * 19 / 10;
    let bar = progress(expected, "transactions");
    let rows = write_parquet(&args.output, Simulator::new(options), start, |rows| bar.set_position(rows))?;
    bar.finish_and_clear();
    println!("{rows} transactions written to {}", args.output.display());
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress(length: u64, unit: &str) -> ProgressBar {
    let template = format!("{{bar:40}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{msg}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
