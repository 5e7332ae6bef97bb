use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const NOW: EventTime = EventTime::from_millis(1_700_000_000_000);

/// A registry with the versions `random@1` to `random@3`, of three columns.
fn registry() -> (tempfile::TempDir, Registry) {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    for seed in 1..=3 {
        Artifact::random(3, &[4], seed).save(&folder.path().join("random").join(seed.to_string())).unwrap();
    }
    (folder, registry)
}

fn promote(registry: &Registry, version: &str, alias: &str) -> Result<Move, ModelError> {
    registry.promote("random", version, alias, LayoutCheck::Replaced, NOW)
}

#[test]
fn aliases_move_back_and_forth() {
    let (_folder, registry) = registry();
    Artifact::random(3, &[4], 10).save(&registry.root().join("random").join("10")).unwrap();
    std::fs::create_dir(registry.root().join("random").join("11")).unwrap();
    assert_eq!(registry.names().unwrap(), ["random"]);
    assert_eq!(registry.versions("random").unwrap(), ["1", "2", "3", "10"], "an empty folder is no version");
    let first = promote(&registry, "1", "champion").unwrap();
    assert_eq!((first.from, first.to.as_deref(), first.generation), (None, Some("1"), 1_700_000_000_000));
    promote(&registry, "10", "champion").unwrap();
    promote(&registry, "2", "challenger").unwrap();
    let back = registry.rollback("random", "champion", NOW).unwrap();
    assert_eq!((back.from.as_deref(), back.to.as_deref(), back.kind), (Some("10"), Some("1"), MoveKind::RolledBack));
    assert_eq!(registry.resolve("random").unwrap(), ("random".into(), "1".into()));
    assert_eq!(registry.resolve("random@challenger").unwrap().1, "2");
    assert_eq!(registry.resolve("random@3").unwrap().1, "3");
    registry.remove_alias("random", "challenger", NOW).unwrap();
    let aliases = registry.aliases("random").unwrap();
    assert_eq!(aliases.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["champion"]);
    let generations: Vec<u64> = aliases.history().iter().map(|made| made.generation).collect();
    assert!(generations.is_sorted_by(|a, b| a < b), "{generations:?}");
    let files: Vec<String> = std::fs::read_dir(registry.root().join("random"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("lock") || name.contains("partial"))
        .collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (_folder, registry) = registry();
    promote(&registry, "1", "champion").unwrap();
    let stood = registry.aliases("random").unwrap();
    let wider = Artifact::random(5, &[4], 7).named("random", "7");
    wider.save(&registry.root().join("random").join("7")).unwrap();
    let weights = registry.root().join("random").join("2").join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    Artifact::random(3, &[4], 1).save(&registry.root().join("random").join("8")).unwrap();

    let said = |outcome: Result<Move, ModelError>| outcome.unwrap_err().to_string();
    for (error, says) in [
        (
            said(promote(&registry, "7", "champion")),
            "can't take over (the model was trained with another feature layout",
        ),
        (
            said(promote(&registry, "2", "champion")),
            "model.safetensors: is not the file that SHA256SUMS was written with",
        ),
        (said(promote(&registry, "8", "champion")), "holds random@1, not random@8"),
        (said(promote(&registry, "9", "champion")), "random/9/config.json: can't be read"),
        (said(promote(&registry, "1", "3")), "can't have the alias `3`: it is a version"),
        (said(promote(&registry, "1", "../x")), "alias `../x` must begin with a letter or digit"),
        (
            said(registry.promote("cards", "1", "champion", LayoutCheck::None, NOW)),
            "cards/1/config.json: can't be read",
        ),
        (said(registry.rollback("random", "champion", NOW)), "knows nothing that `champion` stood at before"),
        (said(registry.rollback("cards", "champion", NOW)), "has no model `cards`; the registry has random"),
        (said(registry.remove_alias("random", "challenger", NOW)), "has no alias `challenger`"),
        (
            registry.resolve("random@4").unwrap_err().to_string(),
            "has no `random@4`; `random` has the versions 1, 2, 3, 7, 8",
        ),
        (registry.resolve("cards").unwrap_err().to_string(), "has no `cards@champion`; the registry has random"),
    ] {
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(registry.aliases("random").unwrap(), stood);
    // On purpose, another layout can be promoted, or checked against definitions.
    let layout = Artifact::random(5, &[4], 7).layout().clone();
    registry.promote("random", "7", "canary", LayoutCheck::Features(&layout), NOW).unwrap();
    assert!(registry.promote("random", "1", "canary", LayoutCheck::Features(&layout), NOW).is_err());
    registry.promote("random", "1", "canary", LayoutCheck::None, NOW).unwrap();
}

#[test]
fn a_version_that_is_damaged_does_not_keep_its_successor_out() {
    let (_folder, registry) = registry();
    promote(&registry, "1", "champion").unwrap();
    std::fs::remove_dir_all(registry.root().join("random").join("1")).unwrap();
    promote(&registry, "2", "champion").unwrap();
    let error = registry.rollback("random", "champion", NOW).unwrap_err().to_string();
    assert!(error.contains("random/1/config.json: can't be read"), "{error}");
}

#[test]
fn damaged_aliases_are_told_and_not_overwritten() {
    let (_folder, registry) = registry();
    promote(&registry, "1", "champion").unwrap();
    let file = registry.root().join("random").join(ALIASES);
    let whole = std::fs::read(&file).unwrap();
    for damage in [&whole[..whole.len() / 2], b"", b"{\"generation\": 1, \"aliases\": {}, \"history\": [], \"x\": 1}"] {
        std::fs::write(&file, damage).unwrap();
        for error in [
            registry.aliases("random").map(|_| ()).unwrap_err(),
            promote(&registry, "2", "champion").map(|_| ()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("aliases.json: is damaged"), "{error}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), damage);
    }
    let gone = Registry { root: registry.root().join("nowhere") };
    assert!(gone.aliases("random").unwrap_err().to_string().contains("nowhere: can't be read"));
}

#[test]
fn many_promote_at_once_and_no_move_is_lost() {
    const THREADS: u64 = 6;
    const MOVES: u64 = 15;
    let (_folder, registry) = registry();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::SeqCst) {
                let moves = registry.aliases("random").unwrap().history().len();
                assert!(moves >= seen, "the history is never seen to shrink");
                seen = moves;
            }
        });
        let promoters: Vec<_> = (0..THREADS)
            .map(|thread| {
                let registry = &registry;
                scope.spawn(move || {
                    for step in 0..MOVES {
                        promote(registry, &(1 + (thread + step) % 3).to_string(), "champion").unwrap();
                    }
                })
            })
            .collect();
        promoters.into_iter().for_each(|promoter| promoter.join().unwrap());
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    });
    let aliases = registry.aliases("random").unwrap();
    let history = aliases.history();
    assert_eq!(history.len() as u64, THREADS * MOVES);
    assert!(history.windows(2).all(|pair| pair[1].generation > pair[0].generation && pair[1].from == pair[0].to));
    assert_eq!(aliases.get("champion").map(|at| Some(at.version.clone())), history.last().map(|last| last.to.clone()));
}

#[test]
fn folders_are_taken_in_with_all_that_is_in_them() {
    let (_folder, registry) = registry();
    let elsewhere = tempfile::tempdir().unwrap();
    let trained = elsewhere.path().join("mine");
    Artifact::random(3, &[4], 20).save(&trained).unwrap();
    std::fs::write(trained.join("MODEL_CARD.md"), "about it").unwrap();
    assert_eq!(registry.add(&trained, None).unwrap(), "random@20");
    let card = registry.root().join("random").join("20").join("MODEL_CARD.md");
    assert_eq!(std::fs::read_to_string(card).unwrap(), "about it");
    let again = registry.add(&trained, None).unwrap_err().to_string();
    assert!(again.contains("already exists; versions are never overwritten"), "{again}");
    assert_eq!(registry.add(&trained, Some(("fraud", "1"))).unwrap(), "fraud@1");
    assert_eq!(registry.load("fraud", "1").unwrap().weights(), registry.load("random", "20").unwrap().weights());
    let error = registry.add(&trained, Some(("../fraud", "1"))).unwrap_err().to_string();
    assert!(error.contains("name `../fraud` must begin"), "{error}");

    // As the Hugging Face cache keeps it: links to blobs, in a snapshot that a ref names.
    let cache = elsewhere.path().join("models--acme--fraud");
    let (snapshots, blobs) = (cache.join("snapshots"), cache.join("blobs"));
    std::fs::create_dir_all(&blobs).unwrap();
    for (revision, seed) in [("aaaa", 30), ("bbbb", 31)] {
        let made = elsewhere.path().join(revision);
        Artifact::random(3, &[4], seed).save(&made).unwrap();
        std::fs::create_dir_all(snapshots.join(revision)).unwrap();
        for entry in std::fs::read_dir(&made).unwrap() {
            let entry = entry.unwrap();
            let blob = format!("{revision}-{}", entry.file_name().to_str().unwrap());
            std::fs::copy(entry.path(), blobs.join(&blob)).unwrap();
            let link = snapshots.join(revision).join(entry.file_name());
            std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), link).unwrap();
        }
    }
    assert_eq!(registry.add(&snapshots.join("aaaa"), None).unwrap(), "random@30");
    let error = registry.add(&cache, None).unwrap_err().to_string();
    assert!(error.contains("has several snapshots and no ref `main`"), "{error}");
    std::fs::create_dir(cache.join("refs")).unwrap();
    std::fs::write(cache.join("refs").join("main"), "bbbb\n").unwrap();
    assert_eq!(registry.add(&cache, None).unwrap(), "random@31");
    let copied = registry.root().join("random").join("31").join("config.json");
    assert!(!copied.symlink_metadata().unwrap().is_symlink());
}
