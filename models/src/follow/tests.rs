use std::{path::Path, time::Instant};

use schemas::EventTime;

use super::*;
use crate::{Answer, CHAMPION, Device, LayoutCheck, Scorer};

const LONG: Duration = Duration::from_secs(3600);
const WAIT: Duration = Duration::from_secs(30);

/// A registry with the versions `random@1` to `random@4`, of two columns; the first one serves.
fn registry(root: &Path) -> Registry {
    for seed in 1..=4 {
        Artifact::random(2, &[4], seed).save(&root.join("random").join(seed.to_string())).unwrap();
    }
    let registry = Registry::open(root).unwrap();
    promote(&registry, 1, CHAMPION);
    registry
}

fn promote(registry: &Registry, version: u64, alias: &str) {
    let now = EventTime::from_millis(0);
    registry.promote("random", &version.to_string(), alias, LayoutCheck::None, now).unwrap();
}

fn follow(registry: &Registry, poll_interval: Duration) -> ModelThread {
    let follow = Follow {
        registry: registry.clone(),
        name: "random".into(),
        alias: CHAMPION.into(),
        challenger: Some("challenger".into()),
        poll_interval,
    };
    ModelThread::follow(follow, &ServeOptions { device: Device::Cpu, ..ServeOptions::default() }).unwrap()
}

const ROWS: [f32; 6] = [0.5, 1.0, -3.0, 0.25, 9.0, 2.0];

fn answer(thread: &ModelThread) -> Answer {
    thread.submit(ROWS.to_vec()).unwrap().wait().unwrap()
}

/// What version `seed` says of the rows.
fn expected(seed: u64) -> Vec<f32> {
    let mut scores = Vec::new();
    Scorer::open(&Artifact::random(2, &[4], seed), Device::Cpu).unwrap().score(&ROWS, &mut scores).unwrap();
    scores
}

#[test]
fn promotions_are_followed_when_asked_for_and_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let thread = follow(&registry, LONG);
    let first = answer(&thread);
    assert_eq!((first.model.label.as_str(), &first.scores), ("random@1", &expected(1)));
    promote(&registry, 2, CHAMPION);
    assert_eq!(answer(&thread).model.label, "random@1", "nobody has looked yet");
    thread.refresh(WAIT).unwrap();
    let second = answer(&thread);
    assert_eq!((second.model.label.as_str(), &second.scores), ("random@2", &expected(2)));
    let promotion = |answer: &Answer| answer.model.promotion.clone().unwrap();
    assert!(promotion(&first).is_before(&promotion(&second)));
    assert_eq!(promotion(&second).alias, "random@champion");
    // The same version again is a later promotion.
    promote(&registry, 2, CHAMPION);
    thread.refresh(WAIT).unwrap();
    assert!(promotion(&second).is_before(&promotion(&answer(&thread))));

    let polling = follow(&registry, Duration::from_millis(5));
    promote(&registry, 3, CHAMPION);
    let deadline = Instant::now() + WAIT;
    while answer(&polling).model.label != "random@3" {
        assert!(Instant::now() < deadline, "it is not noticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(answer(&polling).scores, expected(3));
}

#[test]
fn what_cannot_serve_is_refused_and_the_old_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let thread = follow(&registry, LONG);
    let name = folder.path().join("random");
    Artifact::random(3, &[4], 5).named("random", "5").save(&name.join("5")).unwrap();
    promote(&registry, 5, CHAMPION);
    let error = thread.refresh(WAIT).unwrap_err().to_string();
    assert!(error.contains("random@5 can't be served: the model was trained with another feature layout"), "{error}");
    assert_eq!(answer(&thread).model.label, "random@1");

    promote(&registry, 2, CHAMPION);
    let weights = name.join("2").join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 4]).unwrap();
    let error = thread.refresh(WAIT).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: is not the file"), "{error}");
    assert_eq!(answer(&thread).scores, expected(1));
    // Once it is whole it is followed.
    std::fs::write(&weights, &whole).unwrap();
    thread.refresh(WAIT).unwrap();
    assert_eq!(answer(&thread).scores, expected(2));
}

#[test]
fn a_registry_that_is_away_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    std::fs::create_dir(&root).unwrap();
    let registry = registry(&root);
    promote(&registry, 2, CHAMPION);
    let old = std::fs::read(root.join("random").join("aliases.json")).unwrap();
    promote(&registry, 3, CHAMPION);
    let thread = follow(&registry, LONG);
    let aside = folder.path().join("aside");
    std::fs::rename(&root, &aside).unwrap();
    let error = thread.refresh(WAIT).unwrap_err().to_string();
    assert!(error.contains("registry: can't be read"), "{error}");
    // What is left of a mount that is gone.
    std::fs::create_dir(&root).unwrap();
    let error = thread.refresh(WAIT).unwrap_err().to_string();
    assert!(error.contains("has no alias `champion` of `random`"), "{error}");
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&aside, &root).unwrap();
    thread.refresh(WAIT).unwrap();
    // Restored from an old copy it would make scores go back.
    std::fs::write(root.join("random").join("aliases.json"), old).unwrap();
    let error = thread.refresh(WAIT).unwrap_err().to_string();
    assert!(error.contains("stands at generation 2, and 3 serves already"), "{error}");
    assert_eq!(answer(&thread).scores, expected(3));
    promote(&registry, 4, CHAMPION);
    promote(&registry, 4, CHAMPION);
    thread.refresh(WAIT).unwrap();
    assert_eq!(answer(&thread).scores, expected(4));
}

#[test]
fn a_challenger_comes_changes_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let thread = follow(&registry, LONG);
    assert!(answer(&thread).challenger.is_none());
    for version in [2, 3] {
        promote(&registry, version, "challenger");
        thread.refresh(WAIT).unwrap();
        let answer = answer(&thread);
        assert_eq!((answer.model.label.as_str(), &answer.scores), ("random@1", &expected(1)));
        let shadow = answer.challenger.unwrap();
        assert_eq!((shadow.model.label.clone(), shadow.scores), (format!("random@{version}"), expected(version)));
    }
    registry.remove_alias("random", "challenger", EventTime::from_millis(0)).unwrap();
    thread.refresh(WAIT).unwrap();
    assert!(answer(&thread).challenger.is_none());
}

#[test]
fn an_alias_that_is_not_set_fails_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let follow =
        Follow { registry, name: "random".into(), alias: "canary".into(), challenger: None, poll_interval: LONG };
    let error = ModelThread::follow(follow, &ServeOptions::default()).unwrap_err().to_string();
    assert!(error.ends_with("set it: fraudline model promote random@VERSION --alias canary"), "{error}");
}
