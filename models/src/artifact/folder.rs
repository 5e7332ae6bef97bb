//! The folder of an artifact: its files, and their checksums.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{
    Artifact, Parts, card,
    config::{Config, RESTORE, Unusable, check_format},
    weights,
};
use crate::{
    ModelError, Reference, TrainingMetrics,
    files::{beside, hex, write},
    plot,
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const METRICS: &str = "metrics.json";
const REFERENCE: &str = "reference.json";
/// SHA-256 of each of the others, in the format of `sha256sum`.
const SUMS: &str = "SHA256SUMS";
const CARD: &str = "README.md";

pub(super) const FILES: [&str; 5] = [CONFIG, WEIGHTS, METRICS, REFERENCE, SUMS];

/// The bytes of the files that loading reads.
pub(super) struct Contents<'a> {
    pub(super) config: &'a [u8],
    pub(super) weights: &'a [u8],
    pub(super) metrics: &'a [u8],
    pub(super) reference: &'a [u8],
    pub(super) sums: &'a [u8],
}

impl<'a> Contents<'a> {
    /// Those that have a checksum.
    fn summed(&self) -> [(&'static str, &'a [u8]); 4] {
        [(CONFIG, self.config), (WEIGHTS, self.weights), (METRICS, self.metrics), (REFERENCE, self.reference)]
    }
}

pub(super) fn load(dir: &Path) -> Result<Artifact, ModelError> {
    let read = |name: &str| {
        let file = dir.join(name);
        fs::read(&file).map_err(|error| ModelError::Artifact {
            file,
            problem: format!("can't be read ({error})"),
            remedy: "name the folder that `fraudline train` wrote, with all its files",
        })
    };
    let config = read(CONFIG)?;
    // Before the others, which another format may not have.
    check_format(&config).map_err(|unusable| refusal(dir, CONFIG, unusable))?;
    let [weights, metrics, reference, sums] = [read(WEIGHTS)?, read(METRICS)?, read(REFERENCE)?, read(SUMS)?];
    let contents =
        Contents { config: &config, weights: &weights, metrics: &metrics, reference: &reference, sums: &sums };
    decode(dir, &contents)
}

pub(super) fn decode(dir: &Path, contents: &Contents<'_>) -> Result<Artifact, ModelError> {
    let refuse = |file: &str, problem: String| refusal(dir, file, Unusable { problem, remedy: RESTORE });
    check_format(contents.config).map_err(|unusable| refusal(dir, CONFIG, unusable))?;
    let sums = String::from_utf8_lossy(contents.sums);
    for (file, bytes) in contents.summed() {
        let written = sums.lines().find_map(|line| line.split_once("  ").filter(|(_, name)| *name == file));
        let Some((written, _)) = written else {
            return Err(refuse(SUMS, format!("has no checksum of {file}")));
        };
        let found = sha256(bytes);
        if found != written {
            let problem = format!("is not the file that {SUMS} was written with (SHA-256 {found}, not {written})");
            return Err(refuse(file, problem));
        }
    }
    let (config, layout) = Config::read(contents.config).map_err(|unusable| refusal(dir, CONFIG, unusable))?;
    let (normalization, weights) =
        weights::decode(contents.weights, &layout, &config.network).map_err(|problem| refuse(WEIGHTS, problem))?;
    let metrics: TrainingMetrics = json(contents.metrics).map_err(|problem| refuse(METRICS, problem))?;
    let reference: Reference = json(contents.reference).map_err(|problem| refuse(REFERENCE, problem))?;
    reference.check(&layout).map_err(|problem| refuse(REFERENCE, problem))?;
    Ok(Artifact::new(Parts {
        name: config.name,
        version: config.version,
        layout,
        network: config.network,
        normalization,
        weights,
        calibration: config.calibration,
        thresholds: config.thresholds,
        alert_budget: config.alert_budget,
        metrics,
        reference,
    }))
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("is not valid ({error})"))
}

fn refusal(dir: &Path, file: &str, Unusable { problem, remedy }: Unusable) -> ModelError {
    ModelError::Artifact { file: dir.join(file), problem, remedy }
}

/// The files, by name; the same bytes for the same artifact.
fn encode(artifact: &Artifact, dir: &Path) -> Result<Vec<(&'static str, Vec<u8>)>, ModelError> {
    let failed = |file: &str, problem: String| {
        refusal(dir, file, Unusable { problem, remedy: "this is a defect of the program, please report it" })
    };
    let json = |file: &'static str, bytes: serde_json::Result<Vec<u8>>| match bytes {
        Ok(bytes) => Ok((file, bytes)),
        Err(error) => Err(failed(file, error.to_string())),
    };
    let mut files = vec![
        json(CONFIG, Config::of(artifact).and_then(|config| pretty(&config)))?,
        (WEIGHTS, weights::encode(artifact).map_err(|error| failed(WEIGHTS, error.to_string()))?),
        json(METRICS, pretty(&artifact.metrics))?,
        json(REFERENCE, pretty(&artifact.reference))?,
    ];
    let sums: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect();
    files.push((SUMS, sums.into_bytes()));
    files.push((card::CURVES, plot::training(&artifact.metrics.curve, artifact.metrics.best_epoch)?.into_bytes()));
    files.push((CARD, card::write(artifact).into_bytes()));
    Ok(files)
}

fn pretty(value: &impl serde::Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

pub(super) fn save(artifact: &Artifact, dir: &Path) -> Result<(), ModelError> {
    let io = |file: &Path, error: io::Error| ModelError::Artifact {
        file: file.to_path_buf(),
        problem: format!("can't be written ({error})"),
        remedy: "check the path, its permissions and the space left",
    };
    if dir.exists() {
        return Err(ModelError::Artifact {
            file: dir.to_path_buf(),
            problem: "already exists".into(),
            remedy: "artifacts are never overwritten: choose another version, or remove the folder",
        });
    }
    let files = encode(artifact, dir)?;
    if dir.file_name().is_none() {
        return Err(io(dir, io::ErrorKind::InvalidInput.into()));
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|error| io(parent, error))?;
    let partial = beside(dir);
    let save = || {
        fs::create_dir(&partial).map_err(|error| io(&partial, error))?;
        for (file, bytes) in &files {
            let path = partial.join(file);
            write(&path, bytes).map_err(|error| io(&path, error))?;
        }
        fs::rename(&partial, dir).map_err(|error| io(dir, error))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| io(parent, error))
    };
    let saved = save();
    if saved.is_err() {
        // What failed is reported; that a rest can't be removed either would add nothing.
        let _ = fs::remove_dir_all(&partial);
    }
    saved
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
