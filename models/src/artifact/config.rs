//! `config.json`.

use schemas::FeatureLayout;
use serde::{Deserialize, Serialize};

use super::Artifact;
use crate::{AlertThreshold, ModelError, calibrate::Calibration, network::Places, threshold};

pub(super) const FORMAT_VERSION: u32 = 2;
const MODEL_TYPE: &str = "fraudline";

/// A network without its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkConfig {
    /// A multilayer perceptron with hidden layers of these widths.
    Mlp { hidden: Vec<usize> },
    /// Several multilayer perceptrons, of whose logits the mean is taken, over one piecewise linear
    /// encoding.
    Tabular {
        /// Of the encoding, for each input at most.
        pieces: usize,
        members: usize,
        /// Widths of each member's hidden layers, of which there is at least one.
        hidden: Vec<usize>,
    },
    /// A tabular network whose members also read the sequences of the layout, step by step, with attention.
    History {
        /// As of a tabular network, and of the channels of a step.
        pieces: usize,
        members: usize,
        hidden: Vec<usize>,
        /// Numbers that a member makes of a step.
        width: usize,
    },
}

impl std::fmt::Display for NetworkConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths = |hidden: &[usize]| match hidden {
            [] => "none".to_string(),
            hidden => hidden.iter().map(usize::to_string).collect::<Vec<_>>().join(" and "),
        };
        match self {
            NetworkConfig::Mlp { hidden } => write!(out, "a multilayer perceptron, hidden layers {}", widths(hidden)),
            NetworkConfig::Tabular { pieces, members, hidden } => write!(
                out,
                "the mean of {members} multilayer perceptrons, hidden layers {}, over a piecewise linear encoding of up to \
                 {pieces} pieces for each input",
                widths(hidden)
            ),
            NetworkConfig::History { pieces, members, hidden, width } => write!(
                out,
                "the mean of {members} multilayer perceptrons, hidden layers {}, over a piecewise linear encoding of up to {pieces} \
                 pieces for each input, beside what each reads in the sequences of earlier transactions, with attention over \
                 vectors of {width}",
                widths(hidden)
            ),
        }
    }
}

impl NetworkConfig {
    pub(crate) fn check(&self) -> Result<(), String> {
        let (numbers, hidden) = match self {
            NetworkConfig::Mlp { hidden } => (vec![], hidden),
            NetworkConfig::Tabular { hidden, .. } | NetworkConfig::History { hidden, .. } if hidden.is_empty() => {
                return Err("a tabular or history network needs a hidden layer".into());
            }
            NetworkConfig::Tabular { pieces, members, hidden } => (vec![*pieces, *members], hidden),
            NetworkConfig::History { pieces, members, hidden, width } => (vec![*pieces, *members, *width], hidden),
        };
        match numbers.iter().chain(hidden).all(|number| *number > 0) {
            true => Ok(()),
            false => Err("a network's pieces, members and widths must be above 0".into()),
        }
    }

    /// Fails, saying what to do, where such a network can't read vectors of this layout.
    pub fn check_layout(&self, layout: &FeatureLayout) -> Result<(), ModelError> {
        match self {
            NetworkConfig::Mlp { .. } | NetworkConfig::Tabular { .. } => Ok(()),
            NetworkConfig::History { .. } => Places::of(layout).map(|_| ()).map_err(ModelError::Training),
        }
    }
}

/// Numbers that scores depend on bit for bit are f32 here, or tensors in the file of the weights.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    format_version: u32,
    model_type: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) network: NetworkConfig,
    pub(super) calibration: Calibration,
    /// The one of the thresholds that alerts go by.
    pub(super) alert_budget: f64,
    /// By rising budget.
    pub(super) thresholds: Vec<AlertThreshold>,
    layout: serde_json::Value,
}

/// What of a configuration can't be used, and what to do.
pub(super) struct Unusable {
    pub(super) problem: String,
    pub(super) remedy: &'static str,
}

pub(super) const RESTORE: &str = "restore the file from where it was trained, or train the model again";

/// Read first, so that another format is told from a damaged file.
#[derive(Deserialize)]
struct Format {
    format_version: u32,
}

/// Refuses a configuration of another format than this program's.
pub(super) fn check_format(bytes: &[u8]) -> Result<(), Unusable> {
    let Format { format_version } = serde_json::from_slice(bytes)
        .map_err(|error| Unusable { problem: format!("is no model configuration ({error})"), remedy: RESTORE })?;
    match format_version == FORMAT_VERSION {
        true => Ok(()),
        false => Err(Unusable {
            problem: format!("has format version {format_version}, and this program reads {FORMAT_VERSION}"),
            remedy: "train the model again with `fraudline train`, or use the program that wrote it",
        }),
    }
}

impl Config {
    pub(super) fn of(artifact: &Artifact) -> serde_json::Result<Config> {
        Ok(Config {
            format_version: FORMAT_VERSION,
            model_type: MODEL_TYPE.into(),
            name: artifact.name.clone(),
            version: artifact.version.clone(),
            network: artifact.network.clone(),
            calibration: artifact.calibration.clone(),
            alert_budget: artifact.alert_budget,
            thresholds: artifact.thresholds.clone(),
            layout: serde_json::to_value(&artifact.layout)?,
        })
    }

    /// Reads a configuration of this format, with the layout that it holds; refuses what makes no model.
    pub(super) fn read(bytes: &[u8]) -> Result<(Config, FeatureLayout), Unusable> {
        let refuse = |problem: String, remedy: &'static str| Err(Unusable { problem, remedy });
        let config: Config = match serde_json::from_slice(bytes) {
            Ok(config) => config,
            Err(error) => return refuse(format!("is not valid ({error})"), RESTORE),
        };
        if config.model_type != MODEL_TYPE {
            let problem = format!("holds a model of type `{}`, not `{MODEL_TYPE}`", config.model_type);
            return refuse(problem, "name the folder of a model trained by fraudline");
        }
        if let Err(problem) = check_name("name", &config.name).and(check_name("version", &config.version)) {
            return refuse(problem, RESTORE);
        }
        let layout: FeatureLayout = match serde_json::from_value(config.layout.clone()) {
            Ok(layout) => layout,
            Err(error) => return refuse(format!("has no valid `layout` ({error})"), RESTORE),
        };
        // Written again, it must be the same: a key that nothing reads would say what isn't so.
        if serde_json::to_value(&layout).ok().as_ref() != Some(&config.layout) {
            return refuse("has an unknown key in `layout`".into(), RESTORE);
        }
        if !layout.is_consistent() || layout.width() == 0 {
            return refuse("has a `layout` that was edited: its hash is another".into(), RESTORE);
        }
        if let Err(problem) = config.network.check() {
            return refuse(format!("has no usable network: {problem}"), RESTORE);
        }
        if let Err(problem) = config.network.check_layout(&layout) {
            return refuse(format!("has a network that can't read its `layout`: {problem}"), RESTORE);
        }
        if !config.calibration.is_rising() {
            return refuse("has a `calibration` that is no rising curve".into(), RESTORE);
        }
        match threshold::check(&config.thresholds, config.alert_budget) {
            Ok(()) => Ok((config, layout)),
            Err(problem) => refuse(problem, RESTORE),
        }
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
