//! `bad-input`: whatever comes, it ends as one score or one dead letter, and nothing ends with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use load_tests::{Simulator, SimulatorOptions};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use schemas::{EventTime, topics};
use scorer::log::{Log, LogError};
use serde::Serialize;

use crate::check::Outcomes;
use crate::environment::{DeliveryArg, Environment, EnvironmentArgs, Settings, Store, lag, write_report};
use crate::fleet::{Exit, Fleet, MATERIALIZER};
use crate::mutate::mutate;
use crate::progress::Progress;

const PARTITIONS: u32 = 8;
const CUSTOMERS: u32 = 5000;
const DAY_MS: i64 = 86_400_000;

#[derive(Debug, Args)]
pub struct BadInputArgs {
    #[command(flatten)]
    environment: EnvironmentArgs,
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value_t = Store::Redis)]
    store: Store,
    /// How long the scorer may take
    #[arg(long, default_value = "15m", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    records: u64,
    scores: u64,
    dead_letters: u64,
    by_reason: BTreeMap<String, u64>,
    lost: u64,
    repeated: u64,
    foreign: u64,
    lag: u64,
    exits: Vec<Exit>,
    seconds: f64,
    samples: Vec<String>,
}

pub fn run(args: BadInputArgs) -> anyhow::Result<bool> {
    println!("seed {}; again with: load-tests bad-input --seed {} --records {}", args.seed, args.seed, args.records);
    let settings = Settings {
        store: args.store,
        partitions: PARTITIONS,
        delivery: DeliveryArg::ExactlyOnce,
        log_features: false,
        registry: false,
    };
    let mut environment = Environment::new(&args.environment, settings)?;
    let report = spoil(&args, &environment)?;
    write_report(&report, args.report.as_deref())?;
    let wrong = report.lost + report.repeated + report.foreign + report.lag + report.exits.len() as u64;
    println!(
        "{}: {} records, {} scores, {} dead letters, lost {}, repeated {}, lag {}, {} exits, {:.0} s\n{:?}",
        if wrong == 0 { "passed" } else { "FAILED" },
        report.records,
        report.scores,
        report.dead_letters,
        report.lost,
        report.repeated,
        report.lag,
        report.exits.len(),
        report.seconds,
        report.by_reason,
    );
    if wrong > 0 {
        println!("logs of the processes: {}", environment.keep_folder().display());
    }
    Ok(wrong == 0)
}

fn spoil(args: &BadInputArgs, environment: &Environment) -> anyhow::Result<Report> {
    let started = Instant::now();
    let mut fleet = Fleet::new(environment);
    fleet.start(MATERIALIZER)?;
    fleet.start("a")?;
    send(args, environment, &mut fleet)?;
    let log = environment.log("load-tests")?;
    let mut progress = Progress::new("scoring", args.records);
    let deadline = Instant::now() + args.drain_timeout;
    let left = loop {
        environment.go_on()?;
        fleet.tick()?;
        match lag(&log) {
            Ok(left) if left == 0 || Instant::now() >= deadline || fleet.exits.len() > 10 => break left,
            Ok(left) => progress.at(args.records.saturating_sub(left), ""),
            Err(LogError::Unavailable(_)) if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    drop(progress);
    fleet.end_all()?;
    let seconds = started.elapsed().as_secs_f64();
    let ends = log.ends(topics::TRANSACTIONS)?;
    let found = Outcomes::read(&log, &ends, false)?;
    Ok(Report {
        seed: args.seed,
        records: ends.iter().sum(),
        scores: found.scores,
        dead_letters: found.dead_letters,
        by_reason: found.by_reason,
        lost: found.lost,
        repeated: found.repeated,
        foreign: found.foreign,
        lag: left,
        exits: std::mem::take(&mut fleet.exits),
        seconds,
        samples: found.samples,
    })
}

/// Nulls need a producer of its own.
fn send(args: &BadInputArgs, environment: &Environment, fleet: &mut Fleet<'_>) -> anyhow::Result<()> {
    let settings = [
        ("bootstrap.servers", environment.brokers()),
        ("enable.idempotence", "true"),
        ("partitioner", "murmur2_random"),
        ("linger.ms", "5"),
    ];
    let config: rdkafka::ClientConfig =
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let producer: BaseProducer = config.create().context("making a producer")?;
    let topic = format!("{}{}", environment.prefix, topics::TRANSACTIONS);
    // In the past, but not by much: most times that a mutation makes are in the future.
    let days = (args.records / u64::from(CUSTOMERS * 2) + 2) as i64;
    let now_ms = scorer::system_clock()() / 1000;
    let start = EventTime::from_millis(((now_ms / DAY_MS) - days) * DAY_MS);
    let options = SimulatorOptions { customers: CUSTOMERS, seed: args.seed, start, ..SimulatorOptions::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut progress = Progress::new("feeding", args.records);
    let mut sent = 0;
    for labelled in Simulator::new(options).take(args.records as usize) {
        let record = mutate(&mut rng, &labelled.transaction, now_ms);
        let mut out: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
        (out.key, out.payload) = (record.key.as_deref(), record.value.as_deref());
        loop {
            match producer.send(out) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    out = back;
                    producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error).context("sending"),
            }
        }
        sent += 1;
        if sent % 1000 == 0 {
            producer.poll(Duration::ZERO);
            environment.go_on()?;
            fleet.tick()?;
            progress.at(sent, "");
        }
    }
    if let Err(error) = producer.flush(Duration::from_secs(60)) {
        bail!("not all records could be sent: {error}");
    }
    Ok(())
}
