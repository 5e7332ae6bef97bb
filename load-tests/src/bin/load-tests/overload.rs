//! `overload`: more than can be scored becomes lag, never memory or loss.

use std::time::{Duration, Instant};

use clap::Args;
use schemas::topics;
use scorer::log::{Log, LogError};
use serde::Serialize;

use crate::check::Outcomes;
use crate::environment::{DeliveryArg, Environment, EnvironmentArgs, RunArgs, Settings, lag, write_report};
use crate::feeder::{Feeding, Plan};
use crate::fleet::{Exit, Fleet, MATERIALIZER};
use crate::latency::capacity;
use crate::progress::Progress;

const WARM_UP: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct OverloadArgs {
    #[command(flatten)]
    environment: EnvironmentArgs,
    /// Times what can be scored
    #[arg(long, default_value_t = 3.0)]
    factor: f64,
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Events per second that can be scored [default: measured first]
    #[arg(long)]
    rate_capacity: Option<f64>,
    /// Events that the capacity is measured with
    #[arg(long, default_value_t = 200_000)]
    capacity_events: u64,
    #[command(flatten)]
    run: RunArgs,
    /// How long catching up may take [default: three times as long as the overload would need]
    #[arg(long, value_parser = humantime::parse_duration)]
    catch_up_timeout: Option<Duration>,
}

#[derive(Debug, Serialize)]
struct Report {
    capacity: f64,
    rate: f64,
    seconds: f64,
    events: u64,
    scores: u64,
    dead_letters: u64,
    rss_warm_bytes: u64,
    rss_max_bytes: u64,
    rss_end_bytes: u64,
    lag_max: u64,
    lag_end: u64,
    catch_up_seconds: f64,
    lost: u64,
    repeated: u64,
    exits: Vec<Exit>,
    samples: Vec<Sample>,
}

/// One a second.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    seconds: f64,
    rss_bytes: u64,
    lag: u64,
    fed: u64,
}

pub fn run(args: OverloadArgs) -> anyhow::Result<bool> {
    let settings = Settings {
        store: args.run.store,
        partitions: args.run.partitions,
        delivery: DeliveryArg::ExactlyOnce,
        log_features: false,
        registry: false,
    };
    let capacity = match args.rate_capacity {
        Some(capacity) => capacity,
        None => capacity(&Environment::new(&args.environment, settings)?, args.run.seed, args.capacity_events)?,
    };
    println!("capacity {capacity:.0} events/s");
    let mut environment = Environment::new(&args.environment, settings)?;
    let report = overload(&args, &environment, capacity)?;
    write_report(&report, args.run.report.as_deref())?;
    let mib = |bytes: u64| bytes >> 20;
    let wrong = report.lost + report.repeated + report.lag_end + report.exits.len() as u64;
    println!(
        "{}: {} events at {:.0}/s; resident {} MiB warm, {} MiB at most, {} MiB in the end; lag {} at most, caught up \
         in {:.0} s; lost {}, repeated {}, {} exits",
        if wrong == 0 { "passed" } else { "FAILED" },
        report.events,
        report.rate,
        mib(report.rss_warm_bytes),
        mib(report.rss_max_bytes),
        mib(report.rss_end_bytes),
        report.lag_max,
        report.catch_up_seconds,
        report.lost,
        report.repeated,
        report.exits.len(),
    );
    if wrong > 0 {
        println!("logs of the processes: {}", environment.keep_folder().display());
    }
    Ok(wrong == 0)
}

fn overload(args: &OverloadArgs, environment: &Environment, capacity: f64) -> anyhow::Result<Report> {
    let span = Duration::from_secs_f64(args.minutes * 60.0);
    let rate = capacity * args.factor;
    let mut fleet = Fleet::new(environment);
    fleet.start(MATERIALIZER)?;
    fleet.start("a")?;
    let log = environment.log("load-tests")?;
    let started = Instant::now();
    let events = (rate * span.as_secs_f64()) as u64;
    let plan = Plan { seed: args.run.seed, events, rate: Some(rate), endless: false, spoiled_one_in: None };
    let mut feeding = Feeding::start(environment, plan)?;
    let mut progress = Progress::new("feeding", events);
    let mut samples: Vec<Sample> = Vec::new();
    // Brokers that can't take as much are fed for the time anyway.
    while !feeding.is_done()? && started.elapsed() < span {
        sample(environment, &log, &mut fleet, &feeding, started, &mut samples)?;
        let behind = samples.last().map_or(0, |sample| sample.lag);
        progress.at(feeding.fed(), &format!("lag {behind}"));
    }
    feeding.finish()?;
    drop(progress);
    let fed = feeding.fed();
    let fed_seconds = started.elapsed().as_secs_f64();
    let timeout = args.catch_up_timeout.unwrap_or(span.mul_f64(3.0 * args.factor) + Duration::from_secs(60));
    let over = Instant::now();
    let mut progress = Progress::new("catching up", fed);
    let lag_end = loop {
        sample(environment, &log, &mut fleet, &feeding, started, &mut samples)?;
        let behind = samples.last().map_or(u64::MAX, |sample| sample.lag);
        progress.at(fed.saturating_sub(behind), "");
        if behind == 0 || over.elapsed() >= timeout {
            break behind;
        }
    };
    drop(progress);
    let catch_up_seconds = over.elapsed().as_secs_f64();
    fleet.end_all()?;
    let ends = log.ends(topics::TRANSACTIONS)?;
    let found = Outcomes::read(&log, &ends, false)?;
    let resident = |samples: &[Sample]| samples.iter().map(|sample| sample.rss_bytes).max().unwrap_or(0);
    let warm = samples.iter().position(|sample| sample.seconds >= WARM_UP.as_secs_f64()).unwrap_or(samples.len());
    Ok(Report {
        capacity,
        rate: fed as f64 / fed_seconds,
        seconds: fed_seconds,
        events: ends.iter().sum(),
        scores: found.scores,
        dead_letters: found.dead_letters,
        rss_warm_bytes: resident(&samples[..warm]),
        rss_max_bytes: resident(&samples),
        rss_end_bytes: samples.last().map_or(0, |sample| sample.rss_bytes),
        lag_max: samples.iter().map(|sample| sample.lag).max().unwrap_or(0),
        lag_end,
        catch_up_seconds,
        lost: found.lost,
        repeated: found.repeated + found.foreign,
        exits: std::mem::take(&mut fleet.exits),
        samples,
    })
}

fn sample(
    environment: &Environment,
    log: &dyn Log,
    fleet: &mut Fleet<'_>,
    feeding: &Feeding,
    started: Instant,
    samples: &mut Vec<Sample>,
) -> anyhow::Result<()> {
    std::thread::sleep(Duration::from_secs(1));
    environment.go_on()?;
    fleet.tick()?;
    let last = samples.last().map_or(0, |sample| sample.lag);
    let behind = match lag(log) {
        Err(LogError::Unavailable(_)) => last.max(1),
        known => known?,
    };
    let rss_bytes = fleet.resident_bytes("a").unwrap_or(0);
    samples.push(Sample { seconds: started.elapsed().as_secs_f64(), rss_bytes, lag: behind, fed: feeding.fed() });
    Ok(())
}
