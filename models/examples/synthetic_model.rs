//! Trains a model on synthetic rows and writes it: `cargo run --example synthetic_model -- FOLDER`.

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

use std::{error::Error, path::PathBuf};

use models::{TrainOptions, train};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or("say which folder to write")?;
    let (training, _) = synthetic::sample(1, 60_000);
    let (validation, _) = synthetic::sample(2, 30_000);
    let options = TrainOptions { name: "synthetic".into(), ..TrainOptions::default() };
    let artifact = train(&synthetic::layout(), &training, &validation, &options, &mut |epoch| println!("{epoch:?}"))?;
    artifact.save(&folder)?;
    println!("{:#?}", artifact.metrics());
    Ok(())
}
