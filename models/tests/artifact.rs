//! The artifact on disk: what is written is what is read, and damage is refused.
#![allow(clippy::unwrap_used)]

mod synthetic;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use models::{Artifact, Device, Scorer, TrainOptions, train};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn trained() -> &'static Artifact {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    ARTIFACT.get_or_init(|| {
        let (training, _) = synthetic::sample(1, 3_000);
        let (validation, _) = synthetic::sample(2, 1_500);
        let options = TrainOptions { name: "cards".into(), version: "2".into(), epochs: 2, ..TrainOptions::default() };
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

fn edit_config(path: &Path, edit: impl FnOnce(&mut Value)) {
    let file = path.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    edit(&mut config);
    fs::write(file, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// Replaces the weights, with a hash to match: what only the checks of the tensors can find.
fn replace_weights(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let file = path.join("model.safetensors");
    let mut weights = fs::read(&file).unwrap();
    edit(&mut weights);
    let hash: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(file, weights).unwrap();
    edit_config(path, |config| config["weights_sha256"] = json!(hash));
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
    // Saved again, the weights are the same bytes.
    let again = path.with_file_name("3");
    loaded.save(&again).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), fs::read(again.join("model.safetensors")).unwrap());
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
    fs::remove_file(path.join("model.safetensors")).unwrap();
    assert!(refusal(&path).contains("2/model.safetensors: can't be read"));
}

#[test]
fn every_damage_to_the_configuration_is_refused() {
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 14] = [
        (|config| config["format_version"] = json!(2), "has format version 2, and this program reads 1"),
        (|config| config["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["calibration"]["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["metrics"]["unheard_of"] = json!(1), "unknown field `unheard_of`"),
        (|config| config["layout"]["unheard_of"] = json!(1), "unknown key in `layout`"),
        (|config| config["layout"]["features"][0]["unheard_of"] = json!(1), "unknown key in `layout`"),
        (|config| config["layout"]["features"][0]["name"] = json!("other"), "`layout` that was edited"),
        (|config| config["layout"]["features"][2]["nullable"] = json!(false), "`layout` that was edited"),
        (|config| config["model_type"] = json!("bert"), "model of type `bert`"),
        (|config| config["name"] = json!("../cards"), "name `../cards`"),
        (|config| config["threshold"] = json!(1.5), "threshold 1.5"),
        (|config| config["calibration"]["slope"] = json!(-1.0), "no rising curve"),
        (
            |config| {
                config.as_object_mut().unwrap().remove("hidden");
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
        edit_config(&path, edit);
        let error = refusal(&path);
        assert!(error.contains("2/config.json: ") && error.contains(says), "{error}");
    }
    let (_folder, path) = saved();
    let config = fs::read(path.join("config.json")).unwrap();
    for length in [0, 1, config.len() / 2, config.len() - 1] {
        fs::write(path.join("config.json"), &config[..length]).unwrap();
        assert!(refusal(&path).contains("2/config.json: "), "{length} bytes");
    }
}

#[test]
fn every_changed_or_missing_byte_of_the_weights_is_refused() {
    let (_folder, path) = saved();
    let file = path.join("model.safetensors");
    let weights = fs::read(&file).unwrap();
    for length in [0, 7, 100, weights.len() / 2, weights.len() - 1] {
        fs::write(&file, &weights[..length]).unwrap();
        assert!(refusal(&path).contains("model.safetensors: is not the file that config.json was written with"));
    }
    for place in [0, 20, weights.len() / 2, weights.len() - 1] {
        let mut changed = weights.clone();
        changed[place] ^= 1;
        fs::write(&file, changed).unwrap();
        assert!(refusal(&path).contains("model.safetensors: is not the file that config.json was written with"));
    }
}

#[test]
fn tensors_of_another_network_are_refused_even_with_a_hash_that_fits() {
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
        replace_weights(&path, edit);
        let error = refusal(&path);
        assert!(error.contains("2/model.safetensors: ") && error.contains(says), "{error}");
    }
    let (_folder, path) = saved();
    edit_config(&path, |config| config["hidden"] = json!([64, 31]));
    assert!(refusal(&path).contains("model.safetensors: has `layers.1.weight` of shape [32, 64], not [31, 64]"));
    let (_folder, path) = saved();
    edit_config(&path, |config| config["hidden"] = json!([64, 32, 1]));
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
