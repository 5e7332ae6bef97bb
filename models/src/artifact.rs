//! A trained model as a folder in the Hugging Face layout: `config.json` and `model.safetensors`.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use schemas::FeatureLayout;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Evaluation, ModelError,
    calibrate::Calibration,
    network::{Dense, layer_shapes},
    normalize::Normalization,
};

const FORMAT_VERSION: u32 = 1;
const MODEL_TYPE: &str = "fraudline-mlp";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// Logits up to here leave room for every sum on the way; only damaged weights reach it.
const LOGIT_BOUND: f64 = 1e30;

/// What an artifact was trained on, and how good it was on the validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingMetrics {
    pub training_rows: u64,
    pub training_positives: u64,
    /// Passes over the training rows, and the one whose weights were kept (counted from 1).
    pub epochs: usize,
    pub best_epoch: usize,
    pub seed: u64,
    /// On the validation rows, at the threshold. These rows also chose the epoch, the calibration and the
    /// threshold, so expect a little less elsewhere.
    pub validation: Evaluation,
    /// Mean negative log likelihood of the validation labels (nats per row), before and after calibration.
    pub log_loss_uncalibrated: f64,
    pub log_loss: f64,
    /// Share of the validation rows at or above the threshold.
    pub alert_share: f64,
}

/// A trained model: network, feature layout, normalization, calibration, threshold, training metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    name: String,
    version: String,
    /// `name@version`.
    label: String,
    layout: FeatureLayout,
    hidden: Vec<usize>,
    normalization: Normalization,
    layers: Vec<Dense>,
    calibration: Calibration,
    threshold: f32,
    metrics: TrainingMetrics,
}

/// What training yields, to be made an artifact.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) layout: FeatureLayout,
    pub(crate) hidden: Vec<usize>,
    pub(crate) normalization: Normalization,
    pub(crate) layers: Vec<Dense>,
    pub(crate) calibration: Calibration,
    pub(crate) threshold: f32,
    pub(crate) metrics: TrainingMetrics,
}

/// `config.json`. Numbers that scores depend on bit for bit are f32, or tensors in the other file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    format_version: u32,
    model_type: String,
    name: String,
    version: String,
    hidden: Vec<usize>,
    /// An alert is a score of this or more.
    threshold: f32,
    calibration: Calibration,
    /// SHA-256 of `model.safetensors`, lower-case hex.
    weights_sha256: String,
    metrics: TrainingMetrics,
    layout: serde_json::Value,
}

/// Read first, so that a newer format is told from a damaged file.
#[derive(Deserialize)]
struct Format {
    format_version: u32,
}

impl Artifact {
    /// The model that is compiled into the program.
    pub fn bundled() -> Result<Artifact, ModelError> {
        Artifact::decode(
            Path::new("(bundled model)"),
            include_bytes!("../artifacts/default/config.json"),
            include_bytes!("../artifacts/default/model.safetensors"),
        )
    }

    /// Reads an artifact from its folder.
    ///
    /// Refuses a folder that lacks a file, was changed after it was written, or has another format
    /// than this program's; the error names the file, what is wrong with it, and what to do.
    pub fn load(dir: &Path) -> Result<Artifact, ModelError> {
        let read = |name: &str| {
            let file = dir.join(name);
            fs::read(&file).map_err(|error| ModelError::Artifact {
                file,
                problem: format!("can't be read ({error})"),
                remedy: "name the folder that holds config.json and model.safetensors",
            })
        };
        Artifact::decode(dir, &read(CONFIG)?, &read(WEIGHTS)?)
    }

    /// Writes the artifact to a new folder: all of it or nothing (it is written beside it, then renamed).
    ///
    /// Refuses to overwrite a folder that exists.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        let io = |file: &Path, error: std::io::Error| ModelError::Artifact {
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
        let (config, weights) = self.encode(dir)?;
        let name = dir.file_name().ok_or_else(|| io(dir, std::io::ErrorKind::InvalidInput.into()))?;
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|error| io(parent, error))?;
        let partial = parent.join(format!(".{}.{}.partial", name.display(), std::process::id()));
        let write = || {
            fs::create_dir(&partial).map_err(|error| io(&partial, error))?;
            for (file, bytes) in [(CONFIG, &config), (WEIGHTS, &weights)] {
                let path = partial.join(file);
                let written =
                    File::create(&path).and_then(|mut out| out.write_all(bytes).and_then(|()| out.sync_all()));
                written.map_err(|error| io(&path, error))?;
            }
            fs::rename(&partial, dir).map_err(|error| io(dir, error))?;
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| io(parent, error))
        };
        let written = write();
        if written.is_err() {
            // What failed is reported; that a rest can't be removed either would add nothing.
            let _ = fs::remove_dir_all(&partial);
        }
        written
    }

    /// The columns that rows must have; serve only features whose layout it accepts.
    pub fn layout(&self) -> &FeatureLayout {
        &self.layout
    }

    /// An alert is a score of this or more.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// `name@version`.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn name_and_version(&self) -> (String, String) {
        (self.name.clone(), self.version.clone())
    }

    /// The same model under another name and version, both of them plain.
    pub(crate) fn named(self, name: &str, version: &str) -> Artifact {
        Artifact { name: name.into(), version: version.into(), label: format!("{name}@{version}"), ..self }
    }

    pub fn metrics(&self) -> &TrainingMetrics {
        &self.metrics
    }

    pub(crate) fn new(parts: Parts) -> Artifact {
        let Parts { name, version, layout, hidden, normalization, layers, calibration, threshold, metrics } = parts;
        let label = format!("{name}@{version}");
        Artifact { name, version, label, layout, hidden, normalization, layers, calibration, threshold, metrics }
    }

    pub(crate) fn normalization(&self) -> &Normalization {
        &self.normalization
    }

    pub(crate) fn layers(&self) -> &[Dense] {
        &self.layers
    }

    pub(crate) fn calibration(&self) -> Calibration {
        self.calibration
    }

    /// The bytes of both files.
    fn encode(&self, dir: &Path) -> Result<(Vec<u8>, Vec<u8>), ModelError> {
        let refuse = |file: &str, problem: String| ModelError::Artifact {
            file: dir.join(file),
            problem,
            remedy: "this is a defect of the program, please report it",
        };
        let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
        let width = self.layout.width();
        let mut tensors = vec![
            ("normalization.mean".to_string(), vec![width], bytes(&self.normalization.mean)),
            ("normalization.scale".to_string(), vec![width], bytes(&self.normalization.scale)),
        ];
        for (index, layer) in self.layers.iter().enumerate() {
            tensors.push((format!("layers.{index}.weight"), vec![layer.outputs, layer.inputs], bytes(&layer.weight)));
            tensors.push((format!("layers.{index}.bias"), vec![layer.outputs], bytes(&layer.bias)));
        }
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect();
        let weights = views.and_then(|views| safetensors::serialize(views, None));
        let weights = weights.map_err(|error| refuse(WEIGHTS, error.to_string()))?;
        let config = serde_json::to_value(&self.layout).and_then(|layout| {
            serde_json::to_vec_pretty(&Config {
                format_version: FORMAT_VERSION,
                model_type: MODEL_TYPE.into(),
                name: self.name.clone(),
                version: self.version.clone(),
                hidden: self.hidden.clone(),
                threshold: self.threshold,
                calibration: self.calibration,
                weights_sha256: sha256(&weights),
                metrics: self.metrics.clone(),
                layout,
            })
        });
        Ok((config.map_err(|error| refuse(CONFIG, error.to_string()))?, weights))
    }

    fn decode(dir: &Path, config: &[u8], weights: &[u8]) -> Result<Artifact, ModelError> {
        let refuse = |file: &str, problem: String, remedy: &'static str| {
            Err(ModelError::Artifact { file: dir.join(file), problem, remedy })
        };
        const RESTORE: &str = "restore the file from where it was trained, or train the model again";

        let format = match serde_json::from_slice::<Format>(config) {
            Ok(format) => format.format_version,
            Err(error) => return refuse(CONFIG, format!("is no model configuration ({error})"), RESTORE),
        };
        if format != FORMAT_VERSION {
            let problem = format!("has format version {format}, and this program reads {FORMAT_VERSION}");
            return refuse(CONFIG, problem, "use the program that wrote it, or train the model again");
        }
        let config: Config = match serde_json::from_slice(config) {
            Ok(config) => config,
            Err(error) => return refuse(CONFIG, format!("is not valid ({error})"), RESTORE),
        };
        if config.model_type != MODEL_TYPE {
            let problem = format!("holds a model of type `{}`, not `{MODEL_TYPE}`", config.model_type);
            return refuse(CONFIG, problem, "name the folder of a model trained by fraudline");
        }
        if let Err(problem) = check_name("name", &config.name).and(check_name("version", &config.version)) {
            return refuse(CONFIG, problem, RESTORE);
        }
        let layout: FeatureLayout = match serde_json::from_value(config.layout.clone()) {
            Ok(layout) => layout,
            Err(error) => return refuse(CONFIG, format!("has no valid `layout` ({error})"), RESTORE),
        };
        // Written again, it must be the same: a key that nothing reads would say what isn't so.
        if serde_json::to_value(&layout).ok().as_ref() != Some(&config.layout) {
            return refuse(CONFIG, "has an unknown key in `layout`".into(), RESTORE);
        }
        if !layout.is_consistent() || layout.width() == 0 {
            return refuse(CONFIG, "has a `layout` that was edited: its hash is another".into(), RESTORE);
        }
        let Calibration { slope, intercept } = config.calibration;
        if !(slope > 0.0 && slope.is_finite() && intercept.is_finite()) {
            return refuse(CONFIG, "has a `calibration` that is no rising curve".into(), RESTORE);
        }
        if !(0.0..=1.0).contains(&config.threshold) {
            let problem = format!("has threshold {}, which is not between 0 and 1", config.threshold);
            return refuse(CONFIG, problem, "set a probability");
        }

        let found = sha256(weights);
        if found != config.weights_sha256 {
            let problem = format!("is not the file that {CONFIG} was written with (SHA-256 {found})");
            return refuse(WEIGHTS, problem, RESTORE);
        }
        let (normalization, layers) = match read_weights(weights, &layout, &config.hidden) {
            Ok(read) => read,
            Err(problem) => return refuse(WEIGHTS, problem, RESTORE),
        };
        Ok(Artifact::new(Parts {
            name: config.name,
            version: config.version,
            layout,
            hidden: config.hidden,
            normalization,
            layers,
            calibration: config.calibration,
            threshold: config.threshold,
            metrics: config.metrics,
        }))
    }
}

/// Names become folder names, and parts of `name@version`.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let plain = name.bytes().all(is_plain) && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match plain {
        true => Ok(()),
        false => {
            Err(format!("{what} `{name}` must begin with a letter or digit, and hold only these and `.`, `_`, `-`"))
        }
    }
}

/// The tensors, checked against the shapes that layout and configuration ask for.
fn read_weights(bytes: &[u8], layout: &FeatureLayout, hidden: &[usize]) -> Result<(Normalization, Vec<Dense>), String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("is no safetensors file ({error})"))?;
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>, String> {
        let tensor = file.tensor(name).map_err(|_| format!("lacks the tensor `{name}`"))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("has `{name}` as {:?}, not F32", tensor.dtype()));
        }
        if tensor.shape() != shape {
            return Err(format!("has `{name}` of shape {:?}, not {shape:?}", tensor.shape()));
        }
        let numbers = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let numbers: Vec<f32> = numbers.collect();
        match numbers.iter().all(|number| number.is_finite()) {
            true => Ok(numbers),
            false => Err(format!("has a number in `{name}` that is not finite")),
        }
    };
    let width = [layout.width()];
    let (mean, scale) = (read("normalization.mean", &width)?, read("normalization.scale", &width)?);
    let normalization = Normalization::new(layout, mean, scale).ok_or("has no usable normalization")?;

    let mut layers = Vec::new();
    for (index, (inputs, outputs)) in layer_shapes(normalization.inputs(), hidden).into_iter().enumerate() {
        let weight = read(&format!("layers.{index}.weight"), &[outputs, inputs])?;
        let bias = read(&format!("layers.{index}.bias"), &[outputs])?;
        layers.push(Dense { inputs, outputs, weight, bias });
    }
    let expected = 2 + 2 * layers.len();
    if file.len() != expected {
        return Err(format!("has {} tensors, not {expected}", file.len()));
    }
    // Inputs are bounded, so this proves that no row can make a sum overflow.
    let bound = layers.iter().fold(f64::from(normalization.bound()), |bound, layer| layer.output_bound(bound));
    if bound > LOGIT_BOUND {
        return Err("has weights so large that a score could overflow".into());
    }
    Ok((normalization, layers))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
impl Artifact {
    /// A network of random weights over `width` columns, every second of them nullable.
    pub(crate) fn random(width: usize, hidden: &[usize], seed: u64) -> Artifact {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(seed);
        let features = (0..width).map(|column| schemas::FeatureSpec {
            name: format!("column_{column}"),
            definition: format!("random {column}"),
            nullable: column % 2 == 1,
            place: None,
        });
        let layout = FeatureLayout::new(features.collect());
        let mean = (0..width).map(|_| random.random_range(-1.0..1.0)).collect();
        let scale = (0..width).map(|_| random.random_range(0.2..2.0)).collect();
        let normalization = Normalization::new(&layout, mean, scale).unwrap();
        let mut layers = Vec::new();
        for shape in layer_shapes(normalization.inputs(), hidden) {
            let mut layer = Dense::random(shape, &mut random);
            layer.bias.iter_mut().for_each(|bias| *bias = random.random_range(0.0..0.5));
            layers.push(layer);
        }
        let validation =
            Evaluation { auc: 0.5, average_precision: 0.5, precision: 0.5, recall: 0.5, count: 2, positives: 1 };
        Artifact::new(Parts {
            name: "random".into(),
            version: seed.to_string(),
            layout,
            hidden: hidden.to_vec(),
            normalization,
            layers,
            calibration: Calibration { slope: 0.3, intercept: -0.1 },
            threshold: 0.5,
            metrics: TrainingMetrics {
                training_rows: 2,
                training_positives: 1,
                epochs: 1,
                best_epoch: 1,
                seed,
                validation,
                log_loss_uncalibrated: 0.7,
                log_loss: 0.7,
                alert_share: 0.5,
            },
        })
    }
}
