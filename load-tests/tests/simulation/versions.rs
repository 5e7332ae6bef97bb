//! The models that a run is scored by: small ones, that say other things of the same vector.

use std::path::Path;
use std::sync::Arc;

use feature_store::FeatureSet;
use models::{
    Answer, Artifact, CHAMPION, Dataset, Device, Explain, Follow, LayoutCheck, ModelThread, NetworkConfig, Registry,
    ServeOptions, TrainOptions,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::EventTime;
use tempfile::TempDir;

use crate::world::FEATURES;

/// Of the model in every registry.
pub const NAME: &str = "cards";
pub const CHALLENGER: &str = "challenger";
/// Versions in every registry, each promoted once: so the version of a score tells its generation.
pub const VERSIONS: usize = 12;
/// Different networks among these.
const NETWORKS: usize = 3;
/// Never by itself: a run looks at its registry when its seed says so.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1 << 30);

/// Trained once for all seeds.
pub struct Models {
    folder: TempDir,
    networks: Vec<ModelThread>,
}

impl Models {
    pub fn train() -> Models {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path()).unwrap();
        let artifacts: Vec<Artifact> = (0..NETWORKS as u64).map(|seed| network(&FEATURES, seed)).collect();
        for (seed, artifact) in artifacts.iter().enumerate() {
            artifact.save(&folder.path().join(format!(".{seed}"))).unwrap();
        }
        for version in 1..=VERSIONS {
            let network = folder.path().join(format!(".{}", version % NETWORKS));
            registry.add(&network, Some((NAME, &version.to_string()))).unwrap();
        }
        let networks = artifacts.into_iter().map(|artifact| ModelThread::start(artifact, &options()).unwrap());
        Models { networks: networks.collect(), folder }
    }

    /// A registry with all versions in `root`; the first one is the champion.
    pub fn registry(&self, root: &Path) -> Registry {
        let name = root.join(NAME);
        std::fs::create_dir_all(&name).unwrap();
        for version in 1..=VERSIONS {
            let version = version.to_string();
            std::os::unix::fs::symlink(self.folder.path().join(NAME).join(&version), name.join(version)).unwrap();
        }
        let registry = Registry::open(root).unwrap();
        registry.promote(NAME, "1", CHAMPION, LayoutCheck::None, EventTime::from_millis(0)).unwrap();
        registry
    }

    /// What a version says of these rows, and why.
    pub fn answer(&self, label: &str, rows: Vec<f32>, explain: &Arc<Explain>) -> Answer {
        let network = &self.networks[version_of(label) % NETWORKS];
        network.submit_explained(rows, explain).unwrap().wait().unwrap()
    }
}

/// The number behind `cards@`.
pub fn version_of(label: &str) -> usize {
    let version = label.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('@'));
    version.and_then(|version| version.parse().ok()).unwrap_or_else(|| panic!("`{label}` is none of the versions"))
}

/// A thread that follows the registry, and looks at it only when it is asked to.
pub fn follow(registry: &Registry) -> ModelThread {
    let follow = Follow {
        registry: registry.clone(),
        name: NAME.to_owned(),
        alias: CHAMPION.to_owned(),
        challenger: Some(CHALLENGER.to_owned()),
        poll_interval: POLL_INTERVAL,
    };
    ModelThread::follow(follow, &options()).unwrap()
}

fn options() -> ServeOptions {
    ServeOptions { device: Device::Cpu, ..ServeOptions::default() }
}

/// Some network of the right layout: what it says doesn't matter, that it says the same again does.
fn network(features: &FeatureSet, seed: u64) -> Artifact {
    let layout = features.layout();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut part = |rows: usize| {
        let labels: Vec<bool> = (0..rows).map(|row| row.is_multiple_of(5)).collect();
        let value = |row: usize| rng.random_range(0.0..10.0f32) + f32::from(u8::from(row.is_multiple_of(5)));
        let rows = (0..rows * layout.width()).map(|at| at / layout.width()).map(value).collect();
        Dataset { rows, width: layout.width(), labels }
    };
    let (training, validation) = (part(2000), part(500));
    let options = TrainOptions {
        epochs: 2,
        network: NetworkConfig::Mlp { hidden: vec![8] },
        alert_budget: 0.1,
        seed,
        ..TrainOptions::default()
    };
    models::train(layout, &training, &validation, &options, &mut |_| {}).unwrap()
}
