//! Time per row of the bundled model: on the scoring thread itself, and through [`ModelThread`].
//!
//! `cargo bench -p models`, or with a folder: `cargo bench -p models -- FOLDER`.

use std::{error::Error, hint::black_box, path::Path, time::Instant};

use models::{Artifact, Device, ModelThread, Scorer, ServeOptions};

const BATCHES: [usize; 6] = [1, 8, 32, 64, 256, 1024];
const REPEATS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let artifact = match folder {
        Some(folder) => Artifact::load(Path::new(&folder))?,
        None => Artifact::bundled()?,
    };
    let options = ServeOptions { device: Device::Cpu, ..ServeOptions::default() };
    let mut scorer = Scorer::open(&artifact, Device::Cpu)?;
    let thread = ModelThread::start(artifact.clone(), &options)?;
    let width = artifact.layout().width();
    println!("{}, {width} columns, best of {REPEATS}", artifact.label());
    println!("{:>6} {:>16} {:>16}", "batch", "scorer ns/row", "thread ns/row");
    for batch in BATCHES {
        let rows: Vec<f32> = (0..batch * width).map(|x| (x as f32 * 0.37).sin().abs() * 100.0).collect();
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
