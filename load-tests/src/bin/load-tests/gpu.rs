//! `gpu`: a device beside the CPU, and beside PyTorch on the same device with the same weights: scores, speed, and where the time
//! goes.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use models::{Artifact, Device, DeviceStages, Scorer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

use crate::environment::write_report;
use crate::progress::Progress;

/// How far a score may be from the CPU's.
const TOLERANCE: f32 = 1e-4;
/// Rows that are scored again in batches of these sizes, to see that a row's bits stay.
const COMPARED_ROWS: usize = 10_000;
const OTHER_BATCHES: [usize; 4] = [1, 37, 256, 3000];
/// Different batches of one size, at most, which take turns.
const BATCHES_MAX: usize = 64;

#[derive(Debug, Args)]
pub struct GpuArgs {
    /// Artifact [default: the model in the binary]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// `cuda:N`; `cpu` shows what this does where there is none
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Rows that are scored at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256, 1024, 8192, 32_768, 131_072])]
    batches: Vec<usize>,
    /// Of each batch size in each round
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A Python that has PyTorch; `load-tests/peers/pytorch/run` makes one
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Report [default: standard output]
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

/// What came out for one implementation.
#[derive(Debug, Serialize)]
struct Measured {
    name: String,
    /// The largest distance of a score from the CPU's.
    score_distance: f32,
    batches: Vec<BatchMeasured>,
}

#[derive(Debug, Serialize)]
struct BatchMeasured {
    rows: usize,
    /// Of the rounds: the lowest, the median and the highest.
    rows_per_second: [f64; 3],
    /// Of a batch, from rows of features on the host to scores on the host: medians of the rounds' percentiles.
    p50_us: f64,
    p99_us: f64,
    /// Medians over single batches; absent for peers.
    stages: Option<Stages>,
}

/// Microseconds that the steps of a batch take when each is waited for ([`DeviceStages`] says what they are).
#[derive(Clone, Copy, Debug, Serialize)]
struct Stages {
    normalize_us: f64,
    upload_us: f64,
    launch_us: f64,
    compute_us: f64,
    download_us: f64,
}

/// One round of a batch size.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Round {
    rows_per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

pub fn run(args: GpuArgs) -> anyhow::Result<bool> {
    let device: Device = args.device.parse()?;
    ensure!(args.rounds > 0 && args.seconds > 0.0, "rounds and seconds must be above 0");
    ensure!(!args.batches.is_empty() && !args.batches.contains(&0), "batch sizes must be above 0");
    let artifact = match &args.model {
        Some(folder) => Artifact::load(folder)?,
        None => Artifact::bundled()?,
    };
    let mut scorer = match Scorer::open(&artifact, device) {
        Ok(scorer) => scorer,
        Err(error) => {
            println!("skipped: gpu: {error}");
            return Ok(std::env::var("FRAUDLINE_GPU").as_deref() != Ok("required"));
        }
    };
    let width = artifact.layout().width();
    let rows = rows(&artifact, args.batches.iter().copied().max().unwrap_or(1).max(COMPARED_ROWS));
    let compared = &rows[..COMPARED_ROWS * width];
    let mut cpu = Scorer::open(&artifact, Device::Cpu)?;
    let (mut expected, mut expected_logits, mut found) = (Vec::new(), Vec::new(), Vec::new());
    cpu.score(compared, &mut expected)?;
    cpu.logits(compared, &mut expected_logits)?;
    scorer.score(compared, &mut found)?;
    let same_bits = in_other_batches(&mut scorer, compared, width, &found)?;

    let folder = tempfile::tempdir()?;
    let mut peers = match &args.python {
        Some(python) => peers(python, &artifact, &rows, &args.device, folder.path())?,
        None => Vec::new(),
    };
    let mut all = vec![Measured {
        name: format!("fraudline on {}", scorer.device()),
        score_distance: distance(&found, &expected)?,
        batches: Vec::new(),
    }];
    for peer in &mut peers {
        let logits = peer.logits(folder.path())?;
        // PyTorch has no calibration, so its logits are compared; by the logistic function a quarter of that is the most that a
        // probability can differ.
        let score_distance = distance(&logits[..COMPARED_ROWS], &expected_logits)? / 4.0;
        all.push(Measured { name: peer.name.clone(), score_distance, batches: Vec::new() });
    }
    let mut progress = Progress::new("batches", (args.batches.len() * args.rounds) as u64);
    for (at, &batch) in args.batches.iter().enumerate() {
        let mut rounds = vec![Vec::new(); all.len()];
        for round in 0..args.rounds {
            rounds[0].push(measure(&mut scorer, &rows, batch * width, args.seconds)?);
            for (peer, rounds) in peers.iter_mut().zip(&mut rounds[1..]) {
                rounds.push(peer.measure(batch, args.seconds)?);
            }
            progress.at((at * args.rounds + round + 1) as u64, &format!("of {batch}"));
        }
        for (index, (measured, rounds)) in all.iter_mut().zip(rounds).enumerate() {
            let stages = match index {
                0 => Some(stages(&mut scorer, &rows[..batch * width])?),
                _ => None,
            };
            measured.batches.push(summary(batch, rounds, stages));
        }
    }
    println!("{}", artifact.label());
    all.iter().for_each(print);
    if !same_bits {
        println!("FAILED: a row's bits are others in another batch");
    }
    let ours = all[0].score_distance;
    if ours > TOLERANCE {
        println!("FAILED: scores are up to {ours} from the CPU's, and {TOLERANCE} is allowed");
    }
    if args.report.is_some() {
        write_report(&all, args.report.as_deref())?;
    }
    Ok(same_bits && ours <= TOLERANCE)
}

/// Rows as they might come: values of every size, some missing where they may be.
fn rows(artifact: &Artifact, count: usize) -> Vec<f32> {
    let mut random = ChaCha12Rng::seed_from_u64(1);
    let features = artifact.layout().features();
    let columns = features.iter().cycle().take(count * features.len());
    let values = columns.map(|feature| match feature.nullable && random.random_bool(0.1) {
        true => f32::NAN,
        false => random.random_range(-6.0f32..6.0).exp() - 1.0,
    });
    values.collect()
}

fn distance(found: &[f32], expected: &[f32]) -> anyhow::Result<f32> {
    ensure!(found.len() == expected.len(), "{} scores instead of {}", found.len(), expected.len());
    let distances = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    // A score that is no number is as far as can be.
    Ok(distances.fold(0.0, |most, distance| if distance.is_nan() { f32::INFINITY } else { distance.max(most) }))
}

/// Whether the rows get the same bits in batches of other sizes.
fn in_other_batches(scorer: &mut Scorer, rows: &[f32], width: usize, expected: &[f32]) -> anyhow::Result<bool> {
    let bits = |scores: &[f32]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
    for batch in OTHER_BATCHES {
        // One at a time is slow, so fewer of these.
        let some = &rows[..rows.len().min(batch * width * 200)];
        let mut found = Vec::new();
        for batch in some.chunks(batch * width) {
            scorer.score(batch, &mut found)?;
        }
        if bits(&found) != bits(&expected[..found.len()]) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Scores batches of so many values, one after the other.
fn measure(scorer: &mut Scorer, rows: &[f32], batch: usize, seconds: f64) -> anyhow::Result<Round> {
    let (mut scores, mut times) = (Vec::new(), Vec::new());
    let mut count = 0;
    let begun = Instant::now();
    for batch in rows.chunks_exact(batch).take(BATCHES_MAX).cycle() {
        scores.clear();
        let since = Instant::now();
        scorer.score(batch, &mut scores)?;
        times.push(since.elapsed());
        count += scores.len();
        if begun.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    let percentile = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    Ok(Round { rows_per_second: count as f64 / total.as_secs_f64(), p50_us: percentile(0.5), p99_us: percentile(0.99) })
}

/// Medians over runs of the same batch.
fn stages(scorer: &mut Scorer, rows: &[f32]) -> anyhow::Result<Stages> {
    let runs = (0..21).map(|_| scorer.stages(rows)).collect::<Result<Vec<_>, _>>()?;
    let micros = |stage: fn(&DeviceStages) -> Duration| median(runs.iter().map(|run| stage(run).as_secs_f64() * 1e6));
    Ok(Stages {
        normalize_us: micros(|run| run.normalize),
        upload_us: micros(|run| run.upload),
        launch_us: micros(|run| run.launch),
        compute_us: micros(|run| run.compute),
        download_us: micros(|run| run.download),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn summary(rows: usize, rounds: Vec<Round>, stages: Option<Stages>) -> BatchMeasured {
    let rates = || rounds.iter().map(|round| round.rows_per_second);
    BatchMeasured {
        rows,
        rows_per_second: [rates().fold(f64::INFINITY, f64::min), median(rates()), rates().fold(0.0, f64::max)],
        p50_us: median(rounds.iter().map(|round| round.p50_us)),
        p99_us: median(rounds.iter().map(|round| round.p99_us)),
        stages,
    }
}

fn print(measured: &Measured) {
    println!("\n{}: scores up to {:.1e} from the CPU's", measured.name, measured.score_distance);
    println!("{:>7} {:>36} {:>9} {:>9}   steps of a batch, each waited for, µs", "batch", "rows/s", "p50 µs", "p99 µs");
    for BatchMeasured { rows, rows_per_second: [low, median, high], p50_us, p99_us, stages } in &measured.batches {
        let rates = format!("{median:.0} ({low:.0} to {high:.0})");
        print!("{rows:>7} {rates:>36} {p50_us:>9.1} {p99_us:>9.1}");
        if let Some(Stages { normalize_us, upload_us, launch_us, compute_us, download_us }) = stages {
            let all = normalize_us + upload_us + launch_us + compute_us + download_us;
            let step = |name: &str, micros: &f64| format!("{name} {micros:.1} ({:.0} %)", micros / all * 100.0);
            print!("   {}, {}", step("normalize", normalize_us), step("upload", upload_us));
            print!(", {}, {}", step("launch", launch_us), step("compute", compute_us));
            print!(", {}", step("download", download_us));
        }
        println!();
    }
}

/// A library that runs the same network, in a process that answers as load-tests/peers/artifact.py says.
struct Peer {
    name: String,
    process: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// PyTorch, eager and compiled.
fn peers(python: &Path, artifact: &Artifact, rows: &[f32], device: &str, folder: &Path) -> anyhow::Result<Vec<Peer>> {
    let (model, rows_file) = (folder.join("model"), folder.join("rows.f32"));
    artifact.save(&model)?;
    std::fs::write(&rows_file, rows.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/pytorch/peer.py");
    let start = |mode: &str| {
        let mut command = Command::new(python);
        command.arg(&script).args([&model, &rows_file]).args([device, mode]);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = spawned.with_context(|| format!("starting {} {}", python.display(), script.display()))?;
        let (asked, answers) = (process.stdin.take(), process.stdout.take());
        let (asked, answers) = asked.zip(answers).context("the peer has no standard input and output")?;
        let mut peer = Peer { name: String::new(), process, asked, answers: BufReader::new(answers) };
        peer.name = peer.answer()?.strip_prefix("ready ").context("the peer is not ready")?.to_owned();
        Ok(peer)
    };
    ["eager", "compiled"].into_iter().map(start).collect()
}

impl Peer {
    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("{} has ended; what it wrote to standard error says why", self.name);
        }
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        writeln!(self.asked, "{question}").and_then(|()| self.asked.flush()).context("asking a peer")?;
        self.answer()
    }

    fn logits(&mut self, folder: &Path) -> anyhow::Result<Vec<f32>> {
        let file = folder.join("logits.f32");
        self.ask(&format!("logits {}", file.display()))?;
        let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn measure(&mut self, rows: usize, seconds: f64) -> anyhow::Result<Round> {
        let answer = self.ask(&format!("measure {rows} {seconds}"))?;
        serde_json::from_str(&answer).with_context(|| format!("{} answered `{answer}`", self.name))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It would end by itself with its standard input; nothing is lost by being sure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
