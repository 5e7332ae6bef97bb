//! `lookup`: feature servers side by side under the same requests, one after the other in every round.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::Serialize;
use serde_json::json;

use crate::environment::write_report;

/// Clock ticks in a second, which Linux counts a process's time in.
const TICKS: f64 = 100.0;
/// A minute, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;
/// An answer that takes longer is none, and what was not asked that long after a round's end never is.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct LookupArgs {
    /// A server: `NAME=URL,PID`, the process whose processor time (and its children's) counts
    #[arg(long, required = true)]
    server: Vec<Server>,
    /// Also how long the first server takes to answer `GET /health`: what of a latency is the network's, the machine's and this
    /// program's
    #[arg(long)]
    floor: bool,
    /// View that is asked for, by card_id
    #[arg(long, default_value = "wide")]
    view: String,
    /// Features a request: value_000, value_001 …
    #[arg(long, default_value_t = 50)]
    features: usize,
    /// Entities a request
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Cards there are
    #[arg(long, default_value_t = 1000)]
    cards: u64,
    /// Requests per second on a schedule (open loop: a late answer delays no other request), or `max`: one after the other on each
    /// connection
    #[arg(long, default_value = "100")]
    rate: String,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Of each server in each round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Report [default: standard output]
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Server {
    name: String,
    url: String,
    pid: u32,
    /// What is asked for is `/health`.
    is_floor: bool,
}

impl std::str::FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        let parts = text.split_once('=').and_then(|(name, rest)| Some((name, rest.rsplit_once(',')?)));
        let (name, (url, pid)) = parts.ok_or("write it as NAME=URL,PID")?;
        let pid = pid.parse().map_err(|_| format!("`{pid}` is no process id"))?;
        Ok(Server { name: name.to_owned(), url: url.to_owned(), pid, is_floor: false })
    }
}

/// What one server did in one round.
#[derive(Debug, Serialize)]
struct Round {
    server: String,
    requests: u64,
    /// Answered with 200 and a value for every feature and row.
    succeeded: u64,
    requests_per_second: f64,
    /// From when a request was due to its whole answer.
    p50_ms: f64,
    p99_ms: f64,
    p99_9_ms: f64,
    /// Of the server's processes.
    cpu_seconds: f64,
    succeeded_per_cpu_second: f64,
}

pub fn run(args: LookupArgs) -> anyhow::Result<bool> {
    ensure!(args.rows > 0 && args.features > 0 && args.connections > 0, "there is nothing to ask for");
    let rate = match args.rate.as_str() {
        "max" => None,
        number => Some(number.parse::<f64>().context("--rate is a number or `max`")?),
    };
    let mut servers = args.server.clone();
    if args.floor {
        servers.insert(0, Server { name: "floor".to_owned(), is_floor: true, ..servers[0].clone() });
    }
    let mut rounds = Vec::new();
    // The first round warms both up and doesn't count.
    for number in 0..=args.rounds {
        for server in &servers {
            let round = measure(&args, server, rate, number as u64)?;
            eprintln!(
                "{number}  {:<10} {:>8.0}/s  {:>8.1}/cpu s  p50 {:.2} ms  p99 {:.2} ms  p99.9 {:.2} ms  {} of {} succeeded",
                round.server,
                round.requests_per_second,
                round.succeeded_per_cpu_second,
                round.p50_ms,
                round.p99_ms,
                round.p99_9_ms,
                round.succeeded,
                round.requests
            );
            if number > 0 {
                rounds.push(round);
            }
        }
    }
    let passed = rounds.iter().all(|round| round.succeeded == round.requests);
    write_report(&rounds, args.report.as_deref())?;
    Ok(passed)
}

fn measure(args: &LookupArgs, server: &Server, rate: Option<f64>, seed: u64) -> anyhow::Result<Round> {
    let path = if server.is_floor { "health" } else { "get-online-features" };
    let url = format!("{}/{path}", server.url);
    let features: Vec<String> = (0..args.features).map(|at| format!("{}:value_{at:03}", args.view)).collect();
    let histogram = Mutex::new(Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_US, 3)?);
    let (sent, succeeded) = (AtomicU64::new(0), AtomicU64::new(0));
    let cpu_before = cpu_seconds(server.pid)?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs(args.seconds);
    std::thread::scope(|scope| {
        for connection in 0..args.connections as u64 {
            let (url, features, histogram, sent, succeeded) = (&url, &features, &histogram, &sent, &succeeded);
            scope.spawn(move || {
                let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
                let agent: ureq::Agent = config.build().into();
                let record = |due: Instant| {
                    let took = due.elapsed().as_micros() as u64;
                    histogram.lock().unwrap_or_else(std::sync::PoisonError::into_inner).saturating_record(took);
                };
                let mut random = ChaCha12Rng::seed_from_u64(seed << 32 | connection);
                loop {
                    // Whoever is free takes the next request that is due; it counts from when it was.
                    let due = match rate {
                        None => Instant::now(),
                        Some(rate) => {
                            let number = sent.fetch_add(1, Relaxed);
                            begin + Duration::from_secs_f64(number as f64 / rate)
                        }
                    };
                    if due >= end {
                        if rate.is_some() {
                            sent.fetch_sub(1, Relaxed);
                        }
                        return;
                    }
                    if rate.is_none() {
                        sent.fetch_add(1, Relaxed);
                    }
                    if end.elapsed() > PATIENCE {
                        record(due);
                        continue;
                    }
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let cards: Vec<String> =
                        (0..args.rows).map(|_| random.random_range(0..args.cards).to_string()).collect();
                    let body = json!({ "features": features, "entities": { "card_id": cards } }).to_string();
                    let answer = match server.is_floor {
                        true => agent.get(url).call(),
                        false => agent.post(url).header("content-type", "application/json").send(body),
                    };
                    let text = answer.and_then(|mut answer| {
                        let body = answer.body_mut().with_config().limit(256 << 20).read_to_string();
                        Ok((answer.status().as_u16(), body?))
                    });
                    record(due);
                    if let Ok((200, text)) = text
                        && (server.is_floor || is_whole(&text, args))
                    {
                        succeeded.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let seconds = begin.elapsed().as_secs_f64();
    let cpu_seconds = cpu_seconds(server.pid)? - cpu_before;
    let histogram = histogram.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    let (requests, succeeded) = (sent.into_inner(), succeeded.into_inner());
    Ok(Round {
        server: server.name.clone(),
        requests,
        succeeded,
        requests_per_second: requests as f64 / seconds,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        p99_9_ms: ms(0.999),
        cpu_seconds,
        succeeded_per_cpu_second: succeeded as f64 / cpu_seconds,
    })
}

/// Whether every feature has a value for every row: one status each, all of them `PRESENT`, those of the ids included.
fn is_whole(answer: &str, args: &LookupArgs) -> bool {
    answer.matches("\"PRESENT\"").count() == (args.features + 1) * args.rows && !answer.contains("null,")
}

/// Processor time of a process and of all below it, those that ended included.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("there is no process {pid}"))?;
    // Behind the name, which may have spaces: state first, utime the twelfth, then stime, and both of children that ended.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let mut seconds = (11..15).map(ticks).sum::<f64>() / TICKS;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        seconds += cpu_seconds(child).unwrap_or(0.0);
    }
    Ok(seconds)
}
