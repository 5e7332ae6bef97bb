//! A history network on a problem where only the sequence of a card's payments tells frauds.
#![allow(clippy::unwrap_used)]

use std::fs;

use models::{Artifact, Checkpoints, Dataset, Device, Epoch, NetworkConfig, Scorer, TrainOptions, evaluate, train};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use schemas::{FeatureLayout, FeatureSpec, SequencePlace};
use sha2::{Digest, Sha256};

const STEPS: usize = 8;
/// Columns that are of no sequence.
const OTHERS: usize = 2;

fn layout() -> FeatureLayout {
    let column = |name: &str, nullable, place| FeatureSpec {
        name: name.to_string(),
        definition: name.to_string(),
        nullable,
        place,
    };
    let mut features = vec![column("amount", false, None), column("hour", false, None)];
    for channel in ["amount", "seconds"] {
        for position in 1..=STEPS as u16 {
            let place = SequencePlace { sequence: "last 8 by card_id".into(), channel: channel.into(), position };
            features.push(column(&format!("{channel}_{position}"), true, Some(place)));
        }
    }
    FeatureLayout::new(features)
}

/// Without the columns of the sequence.
fn others() -> FeatureLayout {
    FeatureLayout::new(layout().features()[..OTHERS].to_vec())
}

fn others_of(data: &Dataset) -> Dataset {
    let rows = data.rows.chunks_exact(data.width).flat_map(|row| row[..OTHERS].to_vec());
    Dataset { rows: rows.collect(), width: OTHERS, labels: data.labels.clone() }
}

/// Payments of cards with up to eight before them. In a fraud the last three repeat the amount, within minutes. As many legitimate cards
/// repeat an amount every few days, twice as many pay several amounts within minutes, and some do either of it longer ago.
fn sample(seed: u64, count: usize) -> Dataset {
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = Dataset { rows: Vec::new(), width: layout().width(), labels: Vec::new() };
    for _ in 0..count {
        let amount = |random: &mut StdRng| {
            let normal = (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
            (3.5 + 1.2 * normal).exp()
        };
        let own = amount(&mut random);
        let kind = random.random_range(0..20);
        let (fraud, subscription, burst, older) = (kind == 0, kind == 1, kind == 2 || kind == 3, kind == 4);
        let known = if fraud || subscription || burst || older { STEPS } else { random.random_range(0..=STEPS) };
        let (mut amounts, mut seconds, mut ago) = ([f32::NAN; STEPS], [f32::NAN; STEPS], 0.0);
        for step in 0..known {
            let is_repeated = (fraud || subscription) && step < 3 || older && step >= 4;
            let is_soon = (fraud || burst) && step < 3 || older && step > 4;
            ago += if is_soon { random.random_range(20.0..300.0) } else { random.random_range(3e4f32..4e5) };
            amounts[step] = if is_repeated { own * random.random_range(0.98..1.02) } else { amount(&mut random) };
            seconds[step] = ago;
        }
        data.rows.extend([own, random.random_range(0..24) as f32]);
        data.rows.extend(amounts);
        data.rows.extend(seconds);
        data.labels.push(fraud);
    }
    data
}

fn history() -> NetworkConfig {
    NetworkConfig::History { pieces: 8, members: 2, hidden: vec![24, 16], width: 12 }
}

fn options(network: NetworkConfig) -> TrainOptions {
    TrainOptions { name: "history".into(), network, epochs: 3, seed: 3, ..TrainOptions::default() }
}

fn average_precision(artifact: &Artifact, data: &Dataset) -> f64 {
    let mut scores = Vec::new();
    Scorer::open(artifact, Device::Cpu).unwrap().score(&data.rows, &mut scores).unwrap();
    evaluate(&scores, &data.labels, artifact.threshold()).unwrap().average_precision
}

#[test]
fn finds_what_only_the_sequence_tells() {
    let (training, validation, test) = (sample(1, 24_000), sample(2, 8_000), sample(3, 8_000));
    let share = test.labels.iter().filter(|label| **label).count() as f64 / test.labels.len() as f64;
    let epochs = |network, epochs| TrainOptions { epochs, batch_size: 128, ..options(network) };

    let network = NetworkConfig::Tabular { pieces: 8, members: 2, hidden: vec![24, 16] };
    let (training_of, validation_of) = (others_of(&training), others_of(&validation));
    let blind = train(&others(), &training_of, &validation_of, &epochs(network, 4), &mut |_| {}).unwrap();
    let chance = average_precision(&blind, &others_of(&test));
    assert!(chance < 1.5 * share, "{chance} without the sequence, by chance {share}");

    let reading = train(&layout(), &training, &validation, &epochs(history(), 14), &mut |epoch| {
        println!("{epoch:?}");
    });
    let found = average_precision(&reading.unwrap(), &test);
    println!("average precision {found} with the sequence, {chance} without, {share} by chance");
    assert!(found > 0.9, "{found}");
}

#[test]
fn an_artifact_round_trips_and_an_interrupted_training_goes_on_to_it() {
    let (training, validation) = (sample(4, 3_000), sample(5, 1_500));
    let folder = tempfile::tempdir().unwrap();
    let run = |options: &TrainOptions, progress: &mut dyn FnMut(&Epoch)| {
        train(&layout(), &training, &validation, options, progress).unwrap()
    };
    let artifact = run(&options(history()), &mut |_| {});
    artifact.save(&folder.path().join("1")).unwrap();
    let loaded = Artifact::load(&folder.path().join("1")).unwrap();
    assert_eq!(loaded.layout(), artifact.layout());
    let bits = |artifact: &Artifact, batch: usize| {
        let (mut scorer, mut scores) = (Scorer::open(artifact, Device::Cpu).unwrap(), Vec::new());
        for rows in validation.rows.chunks(batch * validation.width) {
            scorer.score(rows, &mut scores).unwrap();
        }
        scores.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let expected = bits(&artifact, 1_500);
    for batch in [1, 7, 64, 1_500] {
        assert_eq!(bits(&loaded, batch), expected, "batches of {batch}");
    }
    let card = fs::read_to_string(folder.path().join("1").join("README.md")).unwrap();
    let network = "encoding of up to 8 pieces for each input, beside what each reads in the sequences of earlier transactions, with \
                   attention over vectors of 12, ";
    assert!(card.contains(network), "{card}");

    let checkpoints = |resume| Some(Checkpoints { file: folder.path().join("run.checkpoint"), resume });
    let stopped = std::panic::catch_unwind(|| {
        let options = TrainOptions { checkpoints: checkpoints(false), ..options(history()) };
        run(&options, &mut |epoch| assert!(epoch.epoch < 2, "stopped on purpose"))
    });
    assert!(stopped.is_err(), "it was not stopped");
    let mut told = 0;
    let options = TrainOptions { checkpoints: checkpoints(true), ..options(history()) };
    assert_eq!(run(&options, &mut |_| told += 1), artifact);
    assert_eq!(told, 3);
}

#[test]
fn weights_of_another_shape_are_refused() {
    let (training, validation) = (sample(4, 2_000), sample(5, 1_000));
    let options = TrainOptions { epochs: 1, ..options(history()) };
    let artifact = train(&layout(), &training, &validation, &options, &mut |_| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (version, (from, to, says)) in [
        // Two members with 24 outputs of their own, and a query of 12 or 13.
        ("\"width\": 12", "\"width\": 13", "has `first.weight` of shape [72, 32], not [74, 32]"),
        ("\"members\": 2", "\"members\": 3", "has `first.weight` of shape [72, 32], not [108, 32]"),
        ("\"pieces\": 8", "\"pieces\": 7", "has `encoding.edges` of shape [2, 9], not [2, 8]"),
        ("\"type\": \"history\"", "\"type\": \"histories\"", "unknown variant `histories`"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(version.to_string());
        artifact.save(&path).unwrap();
        // With a checksum to match.
        let config = fs::read_to_string(path.join("config.json")).unwrap();
        let edited = config.replacen(from, to, 1);
        assert_ne!(edited, config);
        let sum = |text: &str| Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let sums = fs::read_to_string(path.join("SHA256SUMS")).unwrap().replace(&sum(&config), &sum(&edited));
        fs::write(path.join("config.json"), edited).unwrap();
        fs::write(path.join("SHA256SUMS"), sums).unwrap();
        let error = Artifact::load(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_network_without_layers_and_a_layout_without_a_sequence_are_refused() {
    let (training, validation) = (sample(4, 2_000), sample(5, 1_000));
    let error = train(&others(), &others_of(&training), &others_of(&validation), &options(history()), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("no sequence of them: declare `previous`") && error.contains("history.yaml"), "{error}");
    for network in [
        NetworkConfig::History { pieces: 8, members: 2, hidden: vec![], width: 4 },
        NetworkConfig::History { pieces: 8, members: 2, hidden: vec![4], width: 0 },
    ] {
        let error = train(&layout(), &training, &validation, &options(network), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("hidden layer") || error.contains("widths must be above 0"), "{error}");
    }
}
