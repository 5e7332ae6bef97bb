//! Time per row on the CPU: on the scoring thread itself, and through [`ModelThread`].
//!
//! `cargo bench -p models --bench score`, or with an artifact: `… -- FOLDER`. `… -- wide FOLDER` writes the artifact of a
//! 64-256-256-1 network, and `… -- peer FOLDER ROWS` answers as load-tests/peers/artifact.py says (rows per second of processor time), to be
//! measured beside other libraries.

use std::{
    error::Error,
    fs,
    hint::black_box,
    io::{BufRead, Write},
    path::Path,
    time::Instant,
};

use models::{Artifact, Dataset, Device, ModelThread, NetworkConfig, Scorer, ServeOptions, TrainOptions, train};
use schemas::{FeatureLayout, FeatureSpec};

const BATCHES: [usize; 6] = [1, 8, 32, 64, 256, 1024];
const REPEATS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => table(Artifact::bundled()?),
        [folder] => table(Artifact::load(Path::new(folder))?),
        ["wide", folder] => Ok(wide()?.save(Path::new(folder))?),
        ["peer", folder, rows] => peer(&Artifact::load(Path::new(folder))?, Path::new(rows)),
        _ => Err("say nothing, FOLDER, `wide FOLDER`, or `peer FOLDER ROWS`".into()),
    }
}

fn table(artifact: Artifact) -> Result<(), Box<dyn Error>> {
    let options = ServeOptions { device: Device::Cpu, ..ServeOptions::default() };
    let mut scorer = Scorer::open(&artifact, Device::Cpu)?;
    let thread = ModelThread::start(artifact.clone(), &options)?;
    let width = artifact.layout().width();
    println!("{}, {width} columns, best of {REPEATS}", artifact.label());
    println!("{:>6} {:>16} {:>16}", "batch", "scorer ns/row", "thread ns/row");
    for batch in BATCHES {
        let rows = values(batch * width);
        let mut scores = Vec::new();
        let mut direct = || {
            scores.clear();
            scorer.score(&rows, &mut scores).map(|()| black_box(scores.len()))
        };
        let alone = time_per_row(batch, &mut direct)?;
        let mut submitted =
            || thread.submit(rows.clone()).and_then(|pending| pending.wait()).map(|answer| answer.scores.len());
        let through = time_per_row(batch, &mut submitted)?;
        println!("{batch:>6} {alone:>16.0} {through:>16.0}");
    }
    Ok(())
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|x| (x as f32 * 0.37).sin().abs() * 100.0).collect()
}

/// Nanoseconds per row: the best of a few runs, each of some 20,000 rows.
fn time_per_row<E>(batch: usize, run: &mut dyn FnMut() -> Result<usize, E>) -> Result<f64, E> {
    let calls = (20_000 / batch).max(20);
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let begun = Instant::now();
        for _ in 0..calls {
            run()?;
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / (calls * batch) as f64);
    }
    Ok(best)
}

/// A network of 64 inputs and two hidden layers of 256, trained for one epoch on made-up rows: its weights are no
/// special ones.
fn wide() -> Result<Artifact, Box<dyn Error>> {
    let width = 64;
    let features = (0..width).map(|column| FeatureSpec {
        name: format!("column_{column}"),
        definition: format!("made up, column {column}"),
        nullable: false,
        place: None,
    });
    let rows = values(4000 * width);
    let labels = rows.chunks_exact(width).map(|row| row[0] + row[1] > 185.0).collect();
    let data = Dataset { rows, width, labels };
    let options = TrainOptions {
        name: "wide".into(),
        network: NetworkConfig::Mlp { hidden: vec![256, 256] },
        epochs: 1,
        ..TrainOptions::default()
    };
    Ok(train(&FeatureLayout::new(features.collect()), &data, &data, &options, &mut |_| {})?)
}

/// Answers on standard output what is asked on standard input, a line each.
fn peer(artifact: &Artifact, rows: &Path) -> Result<(), Box<dyn Error>> {
    let rows: Vec<f32> = fs::read(rows)?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let (mut scorer, width) = (Scorer::open(artifact, Device::Cpu)?, artifact.layout().width());
    let mut scores = Vec::new();
    println!("ready fraudline");
    for line in std::io::stdin().lock().lines() {
        match line?.split_whitespace().collect::<Vec<_>>()[..] {
            ["logits", file] => {
                scores.clear();
                scorer.logits(&rows, &mut scores)?;
                fs::write(file, scores.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>())?;
                println!("written");
            }
            ["measure", batch, seconds] => {
                let (batch, seconds) = (batch.parse::<usize>()?, seconds.parse::<f64>()?);
                let batches: Vec<&[f32]> = rows.chunks_exact(batch * width).take(64).collect();
                let (mut count, since) = (0, thread_time()?);
                // The kernel brings the time up to date every few milliseconds, so it is asked seldom.
                let elapsed = loop {
                    for rows in &batches {
                        scores.clear();
                        scorer.score(rows, &mut scores)?;
                        count += batch;
                    }
                    let elapsed = thread_time()? - since;
                    if elapsed >= seconds {
                        break elapsed;
                    }
                };
                println!(r#"{{"rows_per_second": {}}}"#, count as f64 / elapsed);
            }
            _ => return Err("ask for `logits FILE` or `measure ROWS SECONDS`".into()),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Seconds of processor time that this thread has had: what other programs take of a shared machine doesn't count.
fn thread_time() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: u64 = stat.split(' ').next().ok_or("there is no time in schedstat")?.parse()?;
    Ok(nanoseconds as f64 / 1e9)
}
