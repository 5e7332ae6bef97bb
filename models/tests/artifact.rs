//! The artifact on disk: what is written is what is read, and damage is refused.
#![allow(clippy::unwrap_used)]

mod synthetic;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use models::{Artifact, Device, Period, Scorer, TrainOptions, TrainingData, train};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn trained() -> &'static Artifact {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    ARTIFACT.get_or_init(|| {
        let (training, _) = synthetic::sample(1, 3_000);
        let (validation, _) = synthetic::sample(2, 1_500);
        let day = |text: &str| format!("{text}T12:00:00Z").parse().unwrap();
        let data = TrainingData {
            source: "synthetic rows".into(),
            training: Some(Period { from: day("2018-04-01"), to: day("2018-05-31") }),
            validation: None,
        };
        let options =
            TrainOptions { name: "cards".into(), version: "2".into(), epochs: 2, data, ..TrainOptions::default() };
        train(&synthetic::layout(), &training, &validation, &options, &mut |_| {}).unwrap()
    })
}

/// A fresh folder holding the saved artifact.
fn saved() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cards").join("2");
    trained().save(&path).unwrap();
    (folder, path)
}

fn score_bits(artifact: &Artifact) -> Vec<u32> {
    let (data, _) = synthetic::sample(3, 1_000);
    let mut scores = Vec::new();
    Scorer::open(artifact, Device::Cpu).unwrap().score(&data.rows, &mut scores).unwrap();
    scores.iter().map(|score| score.to_bits()).collect()
}

fn refusal(path: &Path) -> String {
    Artifact::load(path).unwrap_err().to_string()
}

/// Replaces a file, with a checksum to match: what only the checks of its content can find.
fn replace(path: &Path, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path.join(name)).unwrap();
    edit(&mut bytes);
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(path.join(name), bytes).unwrap();
    let sums = fs::read_to_string(path.join("SHA256SUMS")).unwrap();
    let sums = sums.lines().map(|line| match line.ends_with(&format!("  {name}")) {
        true => format!("{hash}  {name}\n"),
        false => format!("{line}\n"),
    });
    fs::write(path.join("SHA256SUMS"), sums.collect::<String>()).unwrap();
}

/// The same for a file of JSON.
fn edit_json(path: &Path, name: &str, edit: impl FnOnce(&mut Value)) {
    replace(path, name, |bytes| {
        let mut value: Value = serde_json::from_slice(bytes).unwrap();
        edit(&mut value);
        *bytes = serde_json::to_vec(&value).unwrap();
    });
}

/// Edits the header of a safetensors file, keeping its length.
fn edit_header(weights: &mut Vec<u8>, from: &str, to: &str) {
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(weights[8..8 + length].to_vec()).unwrap();
    assert!(header.contains(from), "{header}");
    let edited = header.replacen(from, to, 1);
    weights.splice(..8 + length, (edited.len() as u64).to_le_bytes().into_iter().chain(edited.bytes()));
}

/// Sets every number of a safetensors file to `number`.
fn overwrite_data(weights: &mut Vec<u8>, number: f32) {
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let count = (weights.len() - header) / 4;
    weights.truncate(header);
    weights.extend(std::iter::repeat_n(number.to_le_bytes(), count).flatten());
}

#[test]
fn what_is_loaded_scores_bit_for_bit_like_what_was_saved() {
    let (_folder, path) = saved();
    let loaded = Artifact::load(&path).unwrap();
    assert_eq!(score_bits(&loaded), score_bits(trained()));
    assert_eq!((loaded.label(), loaded.layout()), ("cards@2", trained().layout()));
    assert_eq!(loaded.threshold().to_bits(), trained().threshold().to_bits());
    assert_eq!(loaded.metrics().validation.count, 1_500);
    let thresholds = |artifact: &Artifact| {
        let all = artifact.thresholds().iter();
        all.map(|at| (at.alert_budget.to_bits(), at.threshold.to_bits())).collect::<Vec<_>>()
    };
    assert_eq!(thresholds(&loaded), thresholds(trained()));
    assert_eq!(loaded.reference(), trained().reference());
    // Saved again, what scores depend on has the same bytes.
    let again = path.with_file_name("3");
    loaded.save(&again).unwrap();
    for name in ["model.safetensors", "reference.json"] {
        assert_eq!(fs::read(path.join(name)).unwrap(), fs::read(again.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn people_find_a_card_a_plot_and_checksums_that_sha256sum_understands() {
    let (_folder, path) = saved();
    let card = fs::read_to_string(path.join("README.md")).unwrap();
    for part in [
        "---\nlibrary_name: fraudline\n",
        "# cards@2",
        "| training | 2018-04-01 to 2018-05-31 | 3000 |",
        "Epoch ",
        "![Loss and average precision by epoch](training.svg)",
        "| 0.5 % (default) | ",
        "| amount_over_mean_7d | `amount / mean(amount) over card_id, 7d` | 1",
        "## Intended use",
        "## Limits",
    ] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    let plot = fs::read_to_string(path.join("training.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("average precision") && plot.contains("nats per row"), "{plot}");
    let mut sha256sum = std::process::Command::new("sha256sum");
    let checked = sha256sum.args(["--check", "--strict", "SHA256SUMS"]).current_dir(&path).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    // What is for people only may be edited.
    fs::write(path.join("README.md"), "# Ours\n").unwrap();
    fs::remove_file(path.join("training.svg")).unwrap();
    Artifact::load(&path).unwrap();
}

#[test]
fn another_alert_budget_has_its_own_threshold() {
    let artifact = trained();
    assert_eq!(artifact.alert_budget(), 0.005);
    let budgets: Vec<f64> = artifact.thresholds().iter().map(|threshold| threshold.alert_budget).collect();
    assert_eq!(budgets, models::ALERT_BUDGETS);
    let wide = artifact.clone().with_alert_budget(0.02).unwrap();
    assert_eq!(wide.threshold(), artifact.thresholds()[4].threshold);
    assert!(wide.threshold() < artifact.threshold() && wide.alert_budget() == 0.02);
    let error = artifact.clone().with_alert_budget(0.03).unwrap_err().to_string();
    assert!(error.contains("cards@2") && error.contains("0.03") && error.contains("0.001, 0.002, 0.005"), "{error}");
}

#[test]
fn a_folder_is_written_whole_and_never_overwritten() {
    let (_folder, path) = saved();
    let parent: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(parent, ["2"], "no temporary folder is left");
    let error = trained().save(&path).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()) && error.contains("already exists"), "{error}");

    // A parent that is a file: an error that names it, and nothing written.
    let blocked = path.join("config.json").join("x");
    let error = trained().save(&blocked).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("can't be written"), "{error}");
}

#[test]
fn missing_files_are_named() {
    let (_folder, path) = saved();
    assert!(refusal(&path.join("nowhere")).contains("nowhere/config.json: can't be read"));
    for name in Artifact::FILES {
        let bytes = fs::read(path.join(name)).unwrap();
        fs::remove_file(path.join(name)).unwrap();
        assert!(refusal(&path).contains(&format!("2/{name}: can't be read")));
        fs::write(path.join(name), bytes).unwrap();
    }
    Artifact::load(&path).unwrap();
}

#[test]
fn every_damage_to_the_configuration_is_refused() {
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 18] = [
        (|config| config["format_version"] = json!(3), "has format version 3, and this program reads 2"),
        (|config| config["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["calibration"]["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["network"]["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["thresholds"][0]["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["layout"]["unheard_of"] = json!(1), "unknown key in `layout`"),
        (|config| config["layout"]["features"][0]["unheard_of"] = json!(1), "unknown key in `layout`"),
        (|config| config["layout"]["features"][0]["name"] = json!("other"), "`layout` that was edited"),
        (|config| config["layout"]["features"][2]["nullable"] = json!(false), "`layout` that was edited"),
        (|config| config["model_type"] = json!("bert"), "model of type `bert`"),
        (|config| config["name"] = json!("../cards"), "name `../cards`"),
        (|config| config["thresholds"][0]["threshold"] = json!(1.5), "threshold 1.5"),
        (|config| config["alert_budget"] = json!(0.3), "no threshold for its own alert budget of 0.3"),
        (
            |config| config["calibration"] = json!({"method": "platt", "slope": -1.0, "intercept": 0.0}),
            "no rising curve",
        ),
        (
            |config| {
                let knots = json!({"logits": [0.0, 1.0], "log_odds": [0.0, 0.0], "outer_slope": 1.0});
                config["calibration"] = knots;
                config["calibration"]["method"] = json!("isotonic");
            },
            "no rising curve",
        ),
        (|config| config["network"] = json!({"type": "forest"}), "unknown variant `forest`"),
        (
            |config| {
                config["network"].as_object_mut().unwrap().remove("hidden");
            },
            "missing field `hidden`",
        ),
        (
            |config| {
                config.as_object_mut().unwrap().remove("format_version");
            },
            "missing field `format_version`",
        ),
    ];
    for (edit, says) in edits {
        let (_folder, path) = saved();
        edit_json(&path, "config.json", edit);
        let error = refusal(&path);
        assert!(error.contains("2/config.json: ") && error.contains(says), "{error}");
    }
}

#[test]
fn a_folder_of_the_first_format_is_refused_for_its_format() {
    let (_folder, path) = saved();
    for name in ["SHA256SUMS", "metrics.json", "reference.json"] {
        fs::remove_file(path.join(name)).unwrap();
    }
    fs::write(path.join("config.json"), r#"{"format_version": 1, "model_type": "fraudline-mlp"}"#).unwrap();
    let error = refusal(&path);
    assert!(error.contains("format version 1, and this program reads 2; train the model again"), "{error}");
}

#[test]
fn every_damage_to_metrics_and_reference_is_refused() {
    let (_folder, path) = saved();
    edit_json(&path, "metrics.json", |metrics| metrics["unheard_of"] = json!(1));
    let error = refusal(&path);
    assert!(error.contains("2/metrics.json: is not valid (unknown field `unheard_of`"), "{error}");
    let (_folder, path) = saved();
    edit_json(&path, "reference.json", |reference| reference["columns"][1]["name"] = json!("other"));
    let error = refusal(&path);
    assert!(error.contains("2/reference.json: has other columns than the layout"), "{error}");
    let (_folder, path) = saved();
    edit_json(&path, "reference.json", |reference| reference["score"]["counts"] = json!([1]));
    let error = refusal(&path);
    assert!(error.contains("2/reference.json: has a histogram of `score` whose edges"), "{error}");
    let (_folder, path) = saved();
    let sums = fs::read_to_string(path.join("SHA256SUMS")).unwrap();
    fs::write(path.join("SHA256SUMS"), sums.replace("metrics", "metricz")).unwrap();
    assert!(refusal(&path).contains("2/SHA256SUMS: has no checksum of metrics.json"));
}

#[test]
fn every_changed_or_missing_byte_is_refused() {
    let (_folder, path) = saved();
    for name in ["config.json", "model.safetensors", "metrics.json", "reference.json"] {
        let file = path.join(name);
        let whole = fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let error = refusal(&path);
            let of_sums = error.contains(&format!("2/{name}: is not the file that SHA256SUMS was written with"));
            // A configuration may be too damaged to tell its format.
            let of_format = name == "config.json"
                && (error.contains("is no model configuration") || error.contains("has format version"));
            assert!(of_sums || of_format, "{error}");
        };
        for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            refused(&whole[..length]);
        }
        for place in [0, 20, whole.len() / 2, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            refused(&changed);
        }
        fs::write(&file, whole).unwrap();
    }
    Artifact::load(&path).unwrap();
}

#[test]
fn tensors_of_another_network_are_refused_even_with_a_checksum_that_fits() {
    type Edit = fn(&mut Vec<u8>);
    let edits: [(Edit, &str); 7] = [
        (|weights| weights.truncate(weights.len() - 4), "is no safetensors file"),
        (|weights| weights.clear(), "is no safetensors file"),
        (|weights| edit_header(weights, "layers.1.bias", "layers.9.bias"), "lacks the tensor `layers.1.bias`"),
        (|weights| edit_header(weights, "[64,9]", "[9,64]"), "has `layers.0.weight` of shape [9, 64], not [64, 9]"),
        (|weights| edit_header(weights, "\"F32\"", "\"I32\""), "as I32, not F32"),
        (|weights| overwrite_data(weights, f32::NAN), "that is not finite"),
        (|weights| overwrite_data(weights, f32::MAX), "so large that a score could overflow"),
    ];
    for (edit, says) in edits {
        let (_folder, path) = saved();
        replace(&path, "model.safetensors", edit);
        let error = refusal(&path);
        assert!(error.contains("2/model.safetensors: ") && error.contains(says), "{error}");
    }
    let (_folder, path) = saved();
    edit_json(&path, "config.json", |config| config["network"]["hidden"] = json!([64, 31]));
    assert!(refusal(&path).contains("model.safetensors: has `layers.1.weight` of shape [32, 64], not [31, 64]"));
    let (_folder, path) = saved();
    edit_json(&path, "config.json", |config| config["network"]["hidden"] = json!([64, 32, 1]));
    assert!(refusal(&path).contains("model.safetensors: lacks the tensor `layers.3.weight`"));
}

#[test]
fn the_bundled_model_is_whole() {
    let bundled = Artifact::bundled().unwrap();
    let width = bundled.layout().width();
    let mut scores = Vec::new();
    Scorer::open(&bundled, Device::Cpu).unwrap().score(&vec![1.0; 3 * width], &mut scores).unwrap();
    assert!(scores.len() == 3 && scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
    assert!(bundled.metrics().validation.average_precision > 0.2, "{:?}", bundled.metrics());
}
