//! Training on a problem whose best possible figures are known.
#![allow(clippy::unwrap_used)]

mod synthetic;

use models::{Checkpoints, Dataset, Device, Epoch, KeptEpoch, NetworkConfig, Scorer, TrainOptions, evaluate, train};

fn options() -> TrainOptions {
    TrainOptions { name: "test".into(), version: "7".into(), epochs: 40, seed: 3, ..TrainOptions::default() }
}

fn scores(artifact: &models::Artifact, rows: &[f32]) -> Vec<f32> {
    let mut scores = Vec::new();
    Scorer::open(artifact, Device::Cpu).unwrap().score(rows, &mut scores).unwrap();
    scores
}

#[test]
fn comes_near_what_the_true_chances_reach() {
    let (training, _) = synthetic::sample(1, 40_000);
    let (validation, _) = synthetic::sample(2, 20_000);
    let (test, chances) = synthetic::sample(3, 20_000);
    let mut epochs: Vec<Epoch> = Vec::new();
    let layout = synthetic::layout();
    let artifact = train(&layout, &training, &validation, &options(), &mut |epoch| epochs.push(epoch.clone())).unwrap();

    let metrics = artifact.metrics();
    let share = metrics.training_positives as f64 / metrics.training_rows as f64;
    assert!((0.02..0.05).contains(&share), "{share} are frauds");
    let scores = scores(&artifact, &test.rows);
    let best = evaluate(&chances, &test.labels, artifact.threshold()).unwrap();
    let found = evaluate(&scores, &test.labels, artifact.threshold()).unwrap();
    println!("true chances {best:?}\ntrained {found:?}\n{metrics:?}");
    // 1,260 frauds to learn from: about four fifths of what the true chances would reach.
    assert!(found.average_precision > 0.75 * best.average_precision, "{found:?} {best:?}");
    assert!(found.auc > best.auc - 0.03, "{found:?} {best:?}");

    // Probabilities can be taken at their word, overall and where they are high.
    let mean = |values: &[f32]| values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    let rate = found.positives as f64 / found.count as f64;
    assert!((mean(&scores) / rate - 1.0).abs() < 0.15, "{} {rate}", mean(&scores));
    let high: Vec<usize> = (0..scores.len()).filter(|row| scores[*row] > 0.2).collect();
    let said = high.iter().map(|row| f64::from(scores[*row])).sum::<f64>() / high.len() as f64;
    let true_chance = high.iter().map(|row| f64::from(chances[*row])).sum::<f64>() / high.len() as f64;
    assert!((said / true_chance - 1.0).abs() < 0.15, "{said} {true_chance}");
    assert!(metrics.log_loss <= metrics.log_loss_uncalibrated * 1.001, "{metrics:?}");

    // The threshold keeps the budget, and the best epoch is the one that was kept.
    for threshold in artifact.thresholds() {
        let used = threshold.alert_share / threshold.alert_budget;
        assert!(used <= 1.0 && used > 0.8, "{threshold:?}");
    }
    assert_eq!(metrics.curve, epochs);
    assert!(found.precision > 0.5, "{found:?}");
    assert_eq!(epochs.iter().map(|epoch| epoch.epoch).collect::<Vec<_>>(), (1..=metrics.epochs).collect::<Vec<_>>());
    let best_epoch = epochs.iter().rev().find(|epoch| epoch.best).unwrap();
    assert_eq!(best_epoch.epoch, metrics.best_epoch);
    assert!(epochs.iter().all(|epoch| epoch.validation_ap <= best_epoch.validation_ap));
    // New rows of the same kind have not drifted, and rows of other amounts have.
    let (drift, score_drift) = artifact.reference().drift(&layout, &test.rows, &scores).unwrap();
    assert!(drift.iter().chain([&score_drift]).all(|drift| drift.psi < 0.01), "{drift:?} {score_drift:?}");
    let mut dearer = test.rows.clone();
    dearer.iter_mut().step_by(test.width).for_each(|amount| *amount *= 3.0);
    let (drift, _) = artifact.reference().drift(&layout, &dearer, &scores).unwrap();
    let drifted: Vec<&str> =
        drift.iter().filter(|drift| drift.psi > models::PSI_OTHER).map(|drift| drift.name.as_str()).collect();
    assert_eq!(drifted, ["amount"]);

    // The kept weights give the validation figures that the best epoch was reported with.
    assert!((metrics.validation.average_precision - best_epoch.validation_ap).abs() < 1e-3);
}

#[test]
fn the_same_seed_gives_the_same_artifact_and_another_seed_another() {
    let (training, _) = synthetic::sample(4, 4_000);
    let (validation, _) = synthetic::sample(5, 2_000);
    let run = |seed| {
        let options = TrainOptions { epochs: 3, seed, ..options() };
        train(&synthetic::layout(), &training, &validation, &options, &mut |_| {}).unwrap()
    };
    let first = run(3);
    assert_eq!(first, run(3));
    assert_ne!(scores(&first, &validation.rows), scores(&run(4), &validation.rows));
}

/// Training that is stopped after some epochs, in the middle of the next one.
fn interrupted(training: &Dataset, validation: &Dataset, options: &TrainOptions, after: usize) {
    let stopped = std::panic::catch_unwind(|| {
        let mut stop = |epoch: &Epoch| assert!(epoch.epoch < after, "stopped on purpose");
        train(&synthetic::layout(), training, validation, options, &mut stop)
    });
    assert!(stopped.is_err(), "it was not stopped");
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_artifact_bit_for_bit() {
    let (training, _) = synthetic::sample(4, 4_000);
    let (validation, _) = synthetic::sample(5, 2_000);
    let folder = tempfile::tempdir().unwrap();
    for kept in [KeptEpoch::Best, KeptEpoch::Last] {
        let plain = TrainOptions { epochs: 8, patience: 3, kept, ..options() };
        let run = |options: &TrainOptions| {
            let mut epochs = Vec::new();
            let artifact = train(&synthetic::layout(), &training, &validation, options, &mut |epoch: &Epoch| {
                epochs.push(epoch.clone());
            });
            (artifact.unwrap(), epochs)
        };
        let (expected, epochs) = run(&plain);
        let (first, second) = (2, epochs.len() - 1);
        let file = folder.path().join(format!("{kept:?}.checkpoint"));
        let with = |resume| {
            let checkpoints = Some(Checkpoints { file: file.clone(), resume });
            TrainOptions { checkpoints, ..plain.clone() }
        };
        interrupted(&training, &validation, &with(false), first);
        interrupted(&training, &validation, &with(true), second);
        let (resumed, told) = run(&with(true));
        assert_eq!(told, epochs, "the earlier epochs are told of, too");
        assert_eq!(resumed, expected);
        // Nothing is left to train: the same once more.
        assert_eq!(run(&with(true)).0, expected);
        let error = train(&synthetic::layout(), &training, &validation, &with(false), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("is of a training that was interrupted; go on from it (`--resume`)"));
    }
}

#[test]
fn training_stops_when_nothing_gets_better() {
    let (training, _) = synthetic::sample(6, 3_000);
    let (validation, _) = synthetic::sample(7, 1_000);
    let options = TrainOptions { epochs: 200, patience: 2, learning_rate: 0.02, ..options() };
    let artifact = train(&synthetic::layout(), &training, &validation, &options, &mut |_| {}).unwrap();
    let metrics = artifact.metrics();
    assert!(metrics.epochs < 200 && metrics.epochs == metrics.best_epoch + 2, "{metrics:?}");
}

#[test]
fn a_device_that_is_not_there_is_an_error_not_a_panic() {
    let (data, _) = synthetic::sample(8, 500);
    let options = TrainOptions { device: Device::Cuda(63), ..options() };
    let error = train(&synthetic::layout(), &data, &data, &options, &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("device cuda:63: ") && error.contains("train on the CPU"), "{error}");
}

#[test]
fn unusable_data_and_options_are_refused() {
    let layout = synthetic::layout();
    let (good, _) = synthetic::sample(8, 500);
    let refusal = |training: &Dataset, validation: &Dataset, options: &TrainOptions| {
        train(&layout, training, validation, options, &mut |_| {}).unwrap_err().to_string()
    };
    let change = |edit: fn(&mut Dataset)| {
        let mut data = good.clone();
        edit(&mut data);
        data
    };
    for (data, says) in [
        (change(|data| data.width = 6), "have 6 columns, and the layout 7"),
        (change(|data| data.rows.truncate(10)), "10 values don't make whole rows"),
        (change(|data| data.labels.truncate(499)), "are 500, and their labels 499"),
        (change(|data| data.labels.fill(false)), "hold no fraud"),
        (change(|data| data.labels.fill(true)), "hold nothing but frauds"),
        (change(|data| data.rows[7] = f32::NAN), "row 1 has no value for `amount`"),
        (Dataset { width: 7, ..Dataset::default() }, "hold no fraud"),
    ] {
        let error = refusal(&data, &good, &options());
        assert!(error.contains("the training rows") && error.contains(says), "{error}");
        let error = refusal(&good, &data, &options());
        assert!(error.contains("the validation rows") && error.contains(says), "{error}");
    }
    for (options, says) in [
        (TrainOptions { name: "a/b".into(), ..options() }, "name `a/b`"),
        (TrainOptions { version: String::new(), ..options() }, "version ``"),
        (TrainOptions { network: NetworkConfig::Mlp { hidden: vec![4, 0] }, ..options() }, "widths"),
        (TrainOptions { epochs: 0, ..options() }, "`epochs`"),
        (TrainOptions { batch_size: 0, ..options() }, "`batch_size`"),
        (TrainOptions { learning_rate: f64::NAN, ..options() }, "`learning_rate`"),
        (TrainOptions { patience: 0, ..options() }, "`patience`"),
        (TrainOptions { alert_budget: 0.0, ..options() }, "`alert_budget`"),
        (TrainOptions { alert_budget: 1.0, ..options() }, "`alert_budget`"),
    ] {
        let error = refusal(&good, &good, &options);
        assert!(error.contains(says), "{error}");
    }
}
