//! `swap`: models promoted under load. No event is lost or scored twice, each partition changes over at one offset, and
//! nobody waits for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use models::{Artifact, CHAMPION, LayoutCheck, Registry};
use schemas::{EventTime, Id, SourcePosition, topics};
use scorer::log::Log;
use scorer::system_clock;
use serde::{Deserialize, Serialize};

use crate::check::{Input, Outcomes, for_each};
use crate::environment::{DeliveryArg, Environment, EnvironmentArgs, MODEL, RunArgs, Settings, Store, write_report};
use crate::feeder::{Feeding, Plan};
use crate::fleet::{Exit, Fleet, MATERIALIZER};
use crate::latency::{LATENCY_MAX_US, Latency, PATIENCE, Scores, wait_until_ready};
use crate::progress::Progress;

/// They share the partitions, and each hears of a promotion by itself.
const SCORERS: [&str; 2] = ["a", "b"];
/// Events due so long behind a promotion count as those of a swap: scorers look every 200 ms, then load and warm up.
const WINDOW_US: i64 = 1_000_000;

#[derive(Debug, Args)]
pub struct SwapArgs {
    #[command(flatten)]
    environment: EnvironmentArgs,
    #[arg(long, value_enum, default_value_t = DeliveryArg::ExactlyOnce)]
    delivery: DeliveryArg,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    promotions: u32,
    /// Between two promotions
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Events per second, on a schedule (open loop)
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Events of the first seconds don't count
    #[arg(long, default_value_t = 10)]
    warm_up_seconds: u64,
    /// Then, before the first promotion, latency is measured without any
    #[arg(long, default_value_t = 20)]
    before_seconds: u64,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    delivery: DeliveryArg,
    store: Store,
    rate: u64,
    partitions: u32,
    promotions: u32,
    events: u64,
    scores: u64,
    lost: u64,
    repeated: u64,
    /// Changes of the model from one offset to the next, all partitions together.
    switches: u64,
    /// Of these, to an older model.
    switches_back: u64,
    /// Promotions that some partition passed over: nothing of it was scored until the next one.
    unseen: u64,
    /// From a promotion to the first event, by its due time, that was scored by the new model.
    noticed_ms: Option<Noticed>,
    before_us: Latency,
    /// Events due within a second behind a promotion.
    during_us: Latency,
    /// All others since the first promotion.
    between_us: Latency,
    /// p99 during swaps over p99 before them.
    p99_ratio: f64,
    exits: Vec<Exit>,
}

#[derive(Debug, Serialize)]
struct Noticed {
    median: f64,
    max: f64,
}

pub fn run(args: SwapArgs) -> anyhow::Result<bool> {
    ensure!(
        args.interval > Duration::from_micros(WINDOW_US as u64),
        "--interval must be more than the second behind a promotion that is measured"
    );
    let settings = Settings {
        store: args.run.store,
        partitions: args.run.partitions,
        delivery: args.delivery,
        log_features: false,
        registry: true,
    };
    let environment = Environment::new(&args.environment, settings)?;
    let registry = registry(&environment, args.promotions)?;
    let report = measure(&args, &environment, &registry)?;
    write_report(&report, args.run.report.as_deref())?;
    report.print();
    Ok(report.passed())
}

/// A registry of as many versions as will be promoted, and one that serves first: the bundled model under other names.
fn registry(environment: &Environment, promotions: u32) -> anyhow::Result<Registry> {
    let root = environment.registry();
    std::fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
    let bundled = environment.folder().join("bundled");
    Artifact::bundled()?.save(&bundled)?;
    let registry = Registry::open(&root)?;
    for version in 0..=promotions {
        registry.add(&bundled, Some((MODEL, &version.to_string())))?;
    }
    promote(&registry, 0)?;
    Ok(registry)
}

/// Returns when it was done, in microseconds since the Unix epoch.
fn promote(registry: &Registry, version: u32) -> anyhow::Result<i64> {
    let now = EventTime::from_millis(system_clock()() / 1000);
    registry.promote(MODEL, &version.to_string(), CHAMPION, LayoutCheck::Replaced, now)?;
    Ok(system_clock()())
}

fn measure(args: &SwapArgs, environment: &Environment, registry: &Registry) -> anyhow::Result<Report> {
    let mut fleet = Fleet::new(environment);
    for name in [&[MATERIALIZER], &SCORERS[..]].concat() {
        fleet.start(name)?;
    }
    let mut scores = Scores::join(environment)?;
    for name in SCORERS {
        wait_until_ready(environment, &mut fleet, name)?;
    }
    let quiet_seconds = args.warm_up_seconds + args.before_seconds;
    let promoting = args.interval * args.promotions;
    let events = args.rate * (quiet_seconds + promoting.as_secs_f64().ceil() as u64);
    let plan = Plan { seed: args.run.seed, events, rate: Some(args.rate as f64), endless: false, spoiled_one_in: None };
    let mut feeding = Feeding::start(environment, plan)?;
    let started = Instant::now();
    let started_us = feeding.started_us;
    let due_us = |id: u64| started_us + (id as f64 / args.rate as f64 * 1e6) as i64;
    let warm_us = started_us + args.warm_up_seconds as i64 * 1_000_000;

    let mut promoted_us: Vec<i64> = Vec::new();
    let mut latencies = Latencies::new()?;
    let mut progress = Progress::new("scoring", events);
    let (mut seen, mut last) = (0, Instant::now());
    while seen < events && last.elapsed() < PATIENCE {
        environment.go_on()?;
        fleet.tick()?;
        feeding.is_done()?;
        let next = Duration::from_secs(quiet_seconds) + args.interval * promoted_us.len() as u32;
        if promoted_us.len() < args.promotions as usize && started.elapsed() >= next {
            promoted_us.push(promote(registry, promoted_us.len() as u32 + 1)?);
            progress.say(&format!("promoted version {}", promoted_us.len()));
        }
        let came = scores.poll(|id, now_us| {
            let due_us = due_us(id);
            if due_us >= warm_us {
                latencies.record(&promoted_us, due_us, now_us);
            }
        })?;
        if came > 0 {
            (seen, last) = (seen + came as u64, Instant::now());
        }
        progress.at(seen, "");
    }
    drop(progress);
    fleet.end_all()?;
    let log = environment.log("load-tests")?;
    let ends = Input::read(&log)?.ends();
    let outcomes = Outcomes::read(&log, &ends, false)?;
    let models = Models::read(&log, &ends, due_us)?;
    let Latencies { before, during, between } = latencies;
    let p99_ratio = during.value_at_quantile(0.99) as f64 / before.value_at_quantile(0.99).max(1) as f64;
    Ok(Report {
        delivery: args.delivery,
        store: args.run.store,
        rate: args.rate,
        partitions: args.run.partitions,
        promotions: promoted_us.len() as u32,
        events,
        scores: outcomes.scores,
        lost: outcomes.lost,
        repeated: outcomes.repeated,
        switches: models.switches,
        switches_back: models.switches_back,
        unseen: models.unseen(promoted_us.len()),
        noticed_ms: models.noticed(&promoted_us),
        before_us: Latency::of(&before),
        during_us: Latency::of(&during),
        between_us: Latency::of(&between),
        p99_ratio,
        exits: std::mem::take(&mut fleet.exits),
    })
}

/// From when an event was due to its score being visible, by what happened meanwhile.
struct Latencies {
    before: Histogram<u64>,
    during: Histogram<u64>,
    between: Histogram<u64>,
}

impl Latencies {
    fn new() -> anyhow::Result<Latencies> {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_MAX_US, 3);
        Ok(Latencies { before: histogram()?, during: histogram()?, between: histogram()? })
    }

    fn record(&mut self, promoted_us: &[i64], due_us: i64, now_us: i64) {
        let since = promoted_us.iter().rev().find(|&&promoted| promoted <= due_us);
        let histogram = match since {
            None => &mut self.before,
            Some(promoted) if due_us - promoted < WINDOW_US => &mut self.during,
            Some(_) => &mut self.between,
        };
        histogram.saturating_record((now_us - due_us).max(1) as u64);
    }
}

/// Which model scored what.
struct Models {
    switches: u64,
    switches_back: u64,
    /// Of each partition and version the first event, by its due time in microseconds.
    first_us: BTreeMap<(u32, u32), i64>,
    partitions: u64,
}

#[derive(Deserialize)]
struct Line {
    transaction_id: Id,
    model: Id,
    source: SourcePosition,
}

impl Models {
    fn read(log: &dyn Log, ends: &[u64], due_us: impl Fn(u64) -> i64) -> anyhow::Result<Models> {
        let mut versions: Vec<Vec<u32>> = ends.iter().map(|&end| vec![0; end as usize]).collect();
        let mut first_us = BTreeMap::new();
        for_each(log, topics::SCORES, |record| {
            let Line { transaction_id, model, source } = serde_json::from_slice(&record.value)?;
            let version: u32 = model.rsplit('@').next().unwrap_or_default().parse()?;
            versions[source.partition as usize][source.offset as usize] = version;
            let due_us = due_us(transaction_id.parse()?);
            let first = first_us.entry((source.partition, version)).or_insert(due_us);
            *first = due_us.min(*first);
            Ok(())
        })?;
        let changes = versions.iter().flat_map(|of| of.windows(2)).filter(|pair| pair[0] != pair[1]);
        let (mut switches, mut switches_back) = (0, 0);
        for pair in changes {
            switches += 1;
            switches_back += u64::from(pair[1] < pair[0]);
        }
        Ok(Models { switches, switches_back, first_us, partitions: ends.iter().filter(|&&end| end > 0).count() as u64 })
    }

    fn unseen(&self, promotions: usize) -> u64 {
        let complete =
            |version: &u32| self.first_us.keys().filter(|(_, seen)| seen == version).count() as u64 == self.partitions;
        (1..=promotions as u32).filter(|version| !complete(version)).count() as u64
    }

    fn noticed(&self, promoted_us: &[i64]) -> Option<Noticed> {
        let of_version = |version: u32| self.first_us.iter().filter(move |((_, seen), _)| *seen == version);
        let mut ms: Vec<f64> = (1..)
            .zip(promoted_us)
            .flat_map(|(version, promoted)| {
                of_version(version).map(move |(_, first)| (first - promoted) as f64 / 1000.0)
            })
            .collect();
        ms.sort_unstable_by(f64::total_cmp);
        Some(Noticed { median: *ms.get(ms.len() / 2)?, max: *ms.last()? })
    }
}

impl Report {
    fn passed(&self) -> bool {
        let repeated = self.delivery == DeliveryArg::ExactlyOnce && self.repeated > 0;
        let wrong = self.lost > 0 || repeated || self.switches_back > 0 || self.switches == 0;
        !wrong && self.exits.is_empty()
    }

    fn print(&self) {
        println!(
            "{}: {} promotions, {} events, {} scores, lost {}, repeated {}, {} switches, {} of them back, {} promotions passed over by a partition",
            if self.passed() { "passed" } else { "FAILED" },
            self.promotions,
            self.events,
            self.scores,
            self.lost,
            self.repeated,
            self.switches,
            self.switches_back,
            self.unseen,
        );
        if let Some(Noticed { median, max }) = &self.noticed_ms {
            println!("from a promotion to the first event scored by it: median {median:.0} ms, at most {max:.0} ms");
        }
        println!("{:<16} {:>10} {:>10} {:>10} {:>10}", "ms", "events", "p50", "p99", "p99.9");
        for (name, latency) in
            [("before", &self.before_us), ("during swaps", &self.during_us), ("between swaps", &self.between_us)]
        {
            let ms = |us: u64| us as f64 / 1000.0;
            let Latency { count, p50, p99, p99_9, .. } = latency;
            println!("{name:<16} {count:>10} {:>10.2} {:>10.2} {:>10.2}", ms(*p50), ms(*p99), ms(*p99_9));
        }
        println!("p99 during swaps over p99 before: {:.2}", self.p99_ratio);
    }
}
