//! `chaos`: each event scored exactly once, features included, whatever dies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use feature_store::FeatureSet;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scorer::log::{KafkaLog, LogError};
use serde::Serialize;

use crate::check::{Input, Outcomes};
use crate::environment::{DeliveryArg, Environment, EnvironmentArgs, Settings, Store, lag, write_report};
use crate::feeder::{Feeding, Plan};
use crate::fleet::{Exit, Fleet, MATERIALIZER};
use crate::oracle::{self, Difference};
use crate::outages::Outages;
use crate::progress::Progress;
use crate::stamps;

/// The scorers that always run, and the one that joins and leaves.
const SCORERS: [&str; 2] = ["a", "b"];
const THIRD: &str = "c";
/// What becomes of the lots below out of this many.
const LOTS: u32 = 120;
/// A transaction that nobody ends is given up by the broker after this long.
const TRANSACTIONS_SETTLE: Duration = Duration::from_secs(25);
const SAMPLES_MAX: usize = 20;

#[derive(Debug, Args)]
pub struct ChaosArgs {
    #[command(flatten)]
    environment: EnvironmentArgs,
    /// Decides what happens when; times on the machine still differ from run to run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// kill -9s of scorers; without any, nothing else happens either
    #[arg(long, default_value_t = 50)]
    kills: u64,
    /// Transactions, at least: more are fed while kills are outstanding
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    #[arg(long, value_enum, default_value_t = Store::Redis)]
    store: Store,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    partitions: u32,
    /// Transactions per second
    #[arg(long, default_value_t = 4000)]
    rate: u64,
    /// Leave brokers and stores alone
    #[arg(long)]
    no_outages: bool,
    /// How long the scorers may take to catch up in the end
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    store: Store,
    partitions: u32,
    events: u64,
    scores: u64,
    dead_letters: u64,
    alerts: u64,
    kills: u64,
    actions: BTreeMap<&'static str, u64>,
    exits: Vec<Exit>,
    append_retries: u64,
    lost: u64,
    repeated: u64,
    foreign: u64,
    wrong_alerts: u64,
    differing_features: u64,
    differing_scores: u64,
    differing_outcomes: u64,
    stamps_ahead: u64,
    lag: u64,
    /// From the first event fed until the lag was gone.
    seconds: f64,
    events_per_second: f64,
    samples: Vec<String>,
    differences: Vec<Difference>,
}

impl Report {
    fn passed(&self) -> bool {
        let wrong = self.lost + self.repeated + self.foreign + self.wrong_alerts + self.stamps_ahead + self.lag;
        wrong + self.differing_features + self.differing_scores + self.differing_outcomes == 0
    }
}

/// What the dice say next.
enum Action {
    Kill,
    KillMaterializer,
    Freeze,
    Rebalance,
    StoreOutage,
    BrokerOutage,
}

impl Action {
    fn draw(rng: &mut ChaCha8Rng, outages: bool) -> Action {
        match rng.random_range(0..LOTS) {
            0..10 if outages => Action::StoreOutage,
            10..18 if outages => Action::BrokerOutage,
            18..33 => Action::Rebalance,
            33..43 => Action::Freeze,
            43..55 => Action::KillMaterializer,
            _ => Action::Kill,
        }
    }
}

pub fn run(args: ChaosArgs) -> anyhow::Result<bool> {
    let outages = if args.no_outages { " --no-outages" } else { "" };
    let again = format!(
        "load-tests chaos --seed {} --kills {} --events {} --store {} --partitions {} --rate {}{outages}",
        args.seed,
        args.kills,
        args.events,
        args.store.service(),
        args.partitions,
        args.rate,
    );
    println!("seed {}; again with: {again}", args.seed);
    let settings = Settings {
        store: args.store,
        partitions: args.partitions,
        delivery: DeliveryArg::ExactlyOnce,
        log_features: true,
        registry: false,
    };
    let mut environment = Environment::new(&args.environment, settings)?;
    let report = torment(&args, &environment)?;
    write_report(&report, args.report.as_deref())?;
    let passed = report.passed();
    println!(
        "{}: {} events, {} scores, {} dead letters, {} alerts, {} kills, {} exits, lost {}, repeated {}, differing \
         features {}, stamps ahead {}, lag {}, {:.0} s, {:.0} events/s\n{:?}",
        if passed { "passed" } else { "FAILED" },
        report.events,
        report.scores,
        report.dead_letters,
        report.alerts,
        report.kills,
        report.exits.len(),
        report.lost,
        report.repeated,
        report.differing_features,
        report.stamps_ahead,
        report.lag,
        report.seconds,
        report.events_per_second,
        report.actions,
    );
    if !passed {
        println!("logs of the processes: {}\nagain with: {again}", environment.keep_folder().display());
    }
    Ok(passed)
}

fn torment(args: &ChaosArgs, environment: &Environment) -> anyhow::Result<Report> {
    let services = if args.no_outages || args.kills == 0 { vec![] } else { vec!["kafka", args.store.service()] };
    // Dropped last: what it stopped is started again.
    let mut outages = Outages::new(environment, &services)?;
    let mut fleet = Fleet::new(environment);
    fleet.start(MATERIALIZER)?;
    for name in SCORERS {
        fleet.start(name)?;
    }
    let plan = Plan {
        seed: args.seed,
        events: args.events,
        rate: Some(args.rate as f64),
        endless: true,
        spoiled_one_in: Some(500),
    };
    let started = Instant::now();
    let mut feeding = Feeding::start(environment, plan)?;
    let mut chaos = Chaos {
        args,
        rng: ChaCha8Rng::seed_from_u64(args.seed),
        kills: 0,
        actions: BTreeMap::new(),
        progress: Progress::new("feeding", args.events),
    };
    // Spread over the feed, whatever its length.
    let span = Duration::from_secs_f64(args.events as f64 / args.rate.max(1) as f64);
    let gap = span.mul_f64(0.5 / args.kills.max(1) as f64).clamp(Duration::from_millis(400), Duration::from_secs(10));
    let mut next = Instant::now() + 2 * gap;
    while feeding.fed() < args.events || chaos.kills < args.kills {
        environment.go_on()?;
        fleet.tick()?;
        outages.tick()?;
        if feeding.is_done()? {
            break;
        }
        if args.kills > 0 && Instant::now() >= next {
            chaos.act(&mut fleet, &mut outages)?;
            next = Instant::now() + gap.mul_f64(chaos.rng.random_range(0.3..1.7));
        }
        chaos.progress.at(feeding.fed(), &format!("{} kills", chaos.kills));
        std::thread::sleep(Duration::from_millis(20));
    }
    feeding.finish()?;
    let (kills, actions) = (chaos.kills, std::mem::take(&mut chaos.actions));
    drop(chaos);
    let lag = drain(args, environment, &mut fleet, &mut outages)?;
    let seconds = started.elapsed().as_secs_f64();
    outages.finish()?;
    fleet.end_all()?;
    let exits = std::mem::take(&mut fleet.exits);
    drop(fleet);

    let log = environment.log("load-tests")?;
    let features = Arc::new(FeatureSet::bundled());
    let input = Input::read(&log)?;
    let mut found = Outcomes::read(&log, &input.ends(), true)?;
    if found.lost > 0 {
        // A transaction may still hang before what is missing.
        std::thread::sleep(TRANSACTIONS_SETTLE);
        found = Outcomes::read(&log, &input.ends(), true)?;
    }
    let ahead = stamps::ahead(environment, &log, &features, &input)?;
    let reference = oracle::reference(environment, &features, &input)?;
    anyhow::ensure!(
        reference.lost + reference.repeated + reference.foreign + reference.wrong_alerts == 0,
        "the reference run is wrong in itself: {:?}",
        reference.samples
    );
    let comparison = oracle::compare(&features, &input, &found, &reference)?;
    let mut samples = found.samples;
    samples.extend(ahead.iter().take(SAMPLES_MAX).cloned());
    Ok(Report {
        seed: args.seed,
        store: args.store,
        partitions: args.partitions,
        events: input.events(),
        scores: found.scores,
        dead_letters: found.dead_letters,
        alerts: found.alerts,
        kills,
        actions,
        exits,
        append_retries: feeding.retries(),
        lost: found.lost,
        repeated: found.repeated,
        foreign: found.foreign,
        wrong_alerts: found.wrong_alerts,
        differing_features: comparison.features,
        differing_scores: comparison.scores,
        differing_outcomes: comparison.outcomes,
        stamps_ahead: ahead.len() as u64,
        lag,
        seconds,
        events_per_second: input.events() as f64 / seconds,
        samples,
        differences: comparison.samples,
    })
}

/// Waits until all is scored; returns the lag that stays.
fn drain(
    args: &ChaosArgs,
    environment: &Environment,
    fleet: &mut Fleet<'_>,
    outages: &mut Outages,
) -> anyhow::Result<u64> {
    let deadline = Instant::now() + args.drain_timeout;
    let mut log: Option<KafkaLog> = None;
    let mut progress: Option<(Progress, u64)> = None;
    loop {
        environment.go_on()?;
        fleet.tick()?;
        outages.tick()?;
        let known = match &log {
            Some(log) => lag(log),
            None => match KafkaLog::connect(environment.kafka("load-tests")) {
                Ok(connected) => lag(log.insert(connected)),
                Err(error) => Err(error),
            },
        };
        let behind = match known {
            Ok(0) => return Ok(0),
            Ok(behind) => behind,
            Err(LogError::Unavailable(reason)) if Instant::now() < deadline => {
                eprintln!("{reason}; trying again");
                log = None;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            return Ok(behind);
        }
        let (progress, first) = progress.get_or_insert_with(|| (Progress::new("waiting for the lag", behind), behind));
        progress.at(first.saturating_sub(behind), "");
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Chaos<'a> {
    args: &'a ChaosArgs,
    rng: ChaCha8Rng,
    kills: u64,
    actions: BTreeMap<&'static str, u64>,
    progress: Progress,
}

impl Chaos<'_> {
    fn act(&mut self, fleet: &mut Fleet<'_>, outages: &mut Outages) -> anyhow::Result<()> {
        let pause = Duration::from_millis(self.rng.random_range(0..3000));
        let scorers = fleet.scorers();
        let chosen = self.rng.random_range(0..scorers.len().max(1));
        let action = Action::draw(&mut self.rng, !self.args.no_outages);
        let hard = self.rng.random_ratio(1, 2);
        let freeze = Duration::from_millis(self.rng.random_range(8000..10_000));
        let done = match action {
            // Once there were enough, all else goes on for as long as events are fed.
            Action::Kill if self.kills >= self.args.kills => None,
            Action::Kill => match scorers.get(chosen) {
                Some(name) if fleet.kill(name, pause) => {
                    self.kills += 1;
                    Some("kill_scorer")
                }
                _ => None,
            },
            Action::KillMaterializer => fleet.kill(MATERIALIZER, pause).then_some("kill_materializer"),
            Action::Freeze => match scorers.get(chosen) {
                Some(name) => fleet.freeze(name, freeze)?.then_some("freeze_scorer"),
                None => None,
            },
            Action::Rebalance if fleet.is_running(THIRD) => {
                fleet.end(THIRD)?;
                Some("scorer_leaves")
            }
            Action::Rebalance if !fleet.is_known(THIRD) => {
                fleet.start(THIRD)?;
                Some("scorer_joins")
            }
            Action::Rebalance => None,
            Action::StoreOutage => {
                let begun = outages.begin(self.args.store.service(), hard, pause)?;
                begun.then_some(if hard { "kill_store" } else { "stop_store" })
            }
            Action::BrokerOutage => {
                let begun = outages.begin("kafka", hard, pause)?;
                begun.then_some(if hard { "kill_broker" } else { "stop_broker" })
            }
        };
        if let Some(done) = done {
            *self.actions.entry(done).or_default() += 1;
            let whom = scorers.get(chosen).map_or("", String::as_str);
            self.progress.say(&if done.ends_with("_scorer") { format!("{done} {whom}") } else { done.to_owned() });
        }
        Ok(())
    }
}
