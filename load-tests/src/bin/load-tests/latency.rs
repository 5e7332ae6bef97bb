//! `latency`: from the time an event was due to its score being visible; and the highest rate.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use schemas::{Id, topics};
use scorer::log::{Consumer, Log, LogError, Polled};
use scorer::system_clock;
use serde::{Deserialize, Serialize};

use crate::environment::{DeliveryArg, Environment, EnvironmentArgs, RunArgs, Settings, Store, write_report};
use crate::feeder::{Feeding, Plan};
use crate::fleet::{Exit, Fleet, MATERIALIZER};
use crate::progress::Progress;

const GROUP: &str = "load-tests";
const POLL_MAX: usize = 10_000;
/// Without any score for so long, no more are waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// One microsecond to an hour.
pub const LATENCY_MAX_US: u64 = 3_600_000_000;

#[derive(Debug, Args)]
pub struct LatencyArgs {
    #[command(flatten)]
    environment: EnvironmentArgs,
    #[arg(long, value_enum, default_value_t = DeliveryArg::ExactlyOnce)]
    delivery: DeliveryArg,
    /// Events per second on a schedule (open loop), or `max`: a backlog, and how fast it is scored
    #[arg(long, default_value = "1000")]
    rate: Rate,
    /// How long events come, warm-up included
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Events of the first seconds don't count
    #[arg(long, default_value_t = 5)]
    warm_up_seconds: u64,
    /// Events of the backlog, for --rate max
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    PerSecond(u64),
    Max,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text.parse() {
            _ if text == "max" => Ok(Rate::Max),
            Ok(rate @ 1..=10_000_000) => Ok(Rate::PerSecond(rate)),
            _ => Err("a rate is a number of events per second up to 10000000, or `max`".to_owned()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    delivery: DeliveryArg,
    store: Store,
    /// Of the schedule; none for a backlog.
    rate: Option<u64>,
    events: u64,
    scores: u64,
    repeated: u64,
    /// Scores per second, from the first that was visible to the last.
    scores_per_second: f64,
    latency_us: Option<Latency>,
    exits: Vec<Exit>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

impl Latency {
    pub fn of(latency: &Histogram<u64>) -> Latency {
        let at = |quantile| latency.value_at_quantile(quantile);
        Latency {
            count: latency.len(),
            mean: latency.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: latency.max(),
        }
    }
}

pub fn run(args: LatencyArgs) -> anyhow::Result<bool> {
    let settings = Settings {
        store: args.run.store,
        partitions: args.run.partitions,
        delivery: args.delivery,
        log_features: false,
        registry: false,
    };
    let environment = Environment::new(&args.environment, settings)?;
    let report = match args.rate {
        Rate::PerSecond(rate) => at_rate(&args, &environment, rate)?,
        Rate::Max => backlog(&args, &environment)?,
    };
    write_report(&report, args.run.report.as_deref())?;
    println!("{:>12} {:>10} {:>10} {:>12}", "events", "scores", "repeated", "scores/s");
    let Report { events, scores, repeated, scores_per_second, .. } = &report;
    println!("{events:>12} {scores:>10} {repeated:>10} {scores_per_second:>12.0}");
    if let Some(latency) = &report.latency_us {
        println!("{:>10} {:>10} {:>10} {:>10} {:>10} {:>10}", "ms:  mean", "p50", "p90", "p99", "p99.9", "max");
        let ms = |us: u64| us as f64 / 1000.0;
        println!(
            "{:>10.2} {:>10.2} {:>10.2} {:>10.2} {:>10.2} {:>10.2}",
            latency.mean / 1000.0,
            ms(latency.p50),
            ms(latency.p90),
            ms(latency.p99),
            ms(latency.p99_9),
            ms(latency.max)
        );
    }
    Ok(report.scores == report.events && report.exits.is_empty())
}

/// Events per second that one scorer comes to.
pub fn capacity(environment: &Environment, seed: u64, events: u64) -> anyhow::Result<f64> {
    let (seen, exits, _) = consume_backlog(environment, seed, events)?;
    ensure!(exits.is_empty(), "the services ended while the capacity was measured: {exits:?}");
    Ok(seen.per_second())
}

fn backlog(args: &LatencyArgs, environment: &Environment) -> anyhow::Result<Report> {
    let (seen, exits, events) = consume_backlog(environment, args.run.seed, args.events)?;
    Ok(report(args, None, events, &seen, exits))
}

fn report(args: &LatencyArgs, rate: Option<u64>, events: u64, seen: &Seen, exits: Vec<Exit>) -> Report {
    let latency = &seen.latency;
    Report {
        delivery: args.delivery,
        store: args.run.store,
        rate,
        events,
        scores: seen.scores,
        repeated: seen.repeated,
        scores_per_second: seen.per_second(),
        latency_us: (!latency.is_empty()).then(|| Latency::of(latency)),
        exits,
    }
}

fn consume_backlog(environment: &Environment, seed: u64, events: u64) -> anyhow::Result<(Seen, Vec<Exit>, u64)> {
    let mut fleet = Fleet::new(environment);
    let plan = Plan { seed, events, rate: None, endless: false, spoiled_one_in: None };
    let mut feeding = Feeding::start(environment, plan)?;
    let mut progress = Progress::new("feeding", events);
    while !feeding.is_done()? {
        environment.go_on()?;
        progress.at(feeding.fed(), "");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(progress);
    fleet.start(MATERIALIZER)?;
    fleet.start("a")?;
    let mut seen = Seen::new(events)?;
    let mut scores = Scores::join(environment)?;
    let mut progress = Progress::new("scoring", events);
    let mut last = Instant::now();
    while seen.scores < events && last.elapsed() < PATIENCE {
        environment.go_on()?;
        fleet.tick()?;
        if scores.poll(|id, now_us| seen.take(id, now_us, None))? > 0 {
            last = Instant::now();
        }
        progress.at(seen.scores, "");
    }
    drop(progress);
    fleet.end_all()?;
    Ok((seen, std::mem::take(&mut fleet.exits), events))
}

fn at_rate(args: &LatencyArgs, environment: &Environment, rate: u64) -> anyhow::Result<Report> {
    ensure!(args.seconds > args.warm_up_seconds, "--seconds must be more than --warm-up-seconds");
    let mut fleet = Fleet::new(environment);
    fleet.start(MATERIALIZER)?;
    fleet.start("a")?;
    let events = rate * args.seconds;
    let mut scores = Scores::join(environment)?;
    let mut seen = Seen::new(events)?;
    // Until the first scores come, the processes only start. These are events of their own.
    let plan = Plan { seed: args.run.seed, events, rate: Some(rate as f64), endless: false, spoiled_one_in: None };
    wait_until_ready(environment, &mut fleet, "a")?;
    let mut feeding = Feeding::start(environment, plan)?;
    let started_us = feeding.started_us;
    let mut progress = Progress::new("scoring", events);
    let mut last = Instant::now();
    let warm = rate * args.warm_up_seconds;
    while seen.scores < events && last.elapsed() < PATIENCE {
        environment.go_on()?;
        fleet.tick()?;
        feeding.is_done()?;
        let due_us = |id: u64| (id >= warm).then(|| started_us + (id as f64 / rate as f64 * 1e6) as i64);
        if scores.poll(|id, now_us| seen.take(id, now_us, due_us(id)))? > 0 {
            last = Instant::now();
        }
        progress.at(seen.scores, "");
    }
    drop(progress);
    fleet.end_all()?;
    Ok(report(args, Some(rate), events, &seen, std::mem::take(&mut fleet.exits)))
}

/// Waits until a scorer has its partitions: it joins once its model is warm.
pub fn wait_until_ready(environment: &Environment, fleet: &mut Fleet<'_>, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !fleet.is_ready(name) {
        environment.go_on()?;
        fleet.tick()?;
        ensure!(Instant::now() < deadline, "scorer {name} is not ready after two minutes");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What became visible.
struct Seen {
    of: Vec<bool>,
    scores: u64,
    repeated: u64,
    latency: Histogram<u64>,
    first_us: i64,
    last_us: i64,
    /// Scores of the first poll that gave any: they were made before the clock ran.
    first: u64,
}

impl Seen {
    fn new(events: u64) -> anyhow::Result<Seen> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?;
        let of = vec![false; events as usize];
        Ok(Seen { of, scores: 0, repeated: 0, latency, first_us: 0, last_us: 0, first: 0 })
    }

    fn take(&mut self, id: u64, now_us: i64, due_us: Option<i64>) {
        let Some(seen) = self.of.get_mut(id as usize) else { return };
        if std::mem::replace(seen, true) {
            self.repeated += 1;
            return;
        }
        self.scores += 1;
        if self.first_us == 0 {
            self.first_us = now_us;
        }
        if now_us == self.first_us {
            self.first += 1;
        }
        self.last_us = now_us;
        if let Some(due_us) = due_us {
            self.latency.saturating_record((now_us - due_us).max(1) as u64);
        }
    }

    fn per_second(&self) -> f64 {
        let seconds = (self.last_us - self.first_us) as f64 / 1e6;
        if seconds > 0.0 { (self.scores - self.first) as f64 / seconds } else { 0.0 }
    }
}

/// A `read_committed` consumer of the scores.
pub struct Scores {
    consumer: Box<dyn Consumer>,
    clock: scorer::Clock,
}

#[derive(Deserialize)]
struct IdOnly {
    transaction_id: Id,
}

impl Scores {
    pub fn join(environment: &Environment) -> anyhow::Result<Scores> {
        let log = environment.log("load-tests-scores")?;
        Ok(Scores { consumer: log.join(GROUP, "0", &[topics::SCORES])?, clock: system_clock() })
    }

    /// Calls `each` with the number of every transaction whose score has come, and when it came;
    /// returns how many that were.
    pub fn poll(&mut self, mut each: impl FnMut(u64, i64)) -> anyhow::Result<usize> {
        match self.consumer.poll(topics::SCORES, POLL_MAX, Duration::from_millis(50)) {
            Ok(Polled::Records(records)) => {
                let now_us = (self.clock)();
                for record in &records {
                    let IdOnly { transaction_id } = serde_json::from_slice(&record.value)?;
                    each(transaction_id.parse()?, now_us);
                }
                Ok(records.len())
            }
            Ok(Polled::Revoking(partitions)) => {
                self.consumer.release(&partitions)?;
                Ok(0)
            }
            Ok(Polled::Rebalanced { .. }) | Err(LogError::Unavailable(_)) => Ok(0),
            Err(error) => bail!(error),
        }
    }
}
