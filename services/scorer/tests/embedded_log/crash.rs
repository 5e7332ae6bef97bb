//! What a process leaves that dies: the state is that of a whole number of commits.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use feature_store::OnlineStore;
use scorer::log::LogError;

use super::*;

const COMMITS: u64 = 40;
/// Outputs of one commit.
const OUTPUTS: u64 = 7;

fn prepare(dir: &Path) -> Arc<EmbeddedLog> {
    let log = open(dir);
    log.create_topic(&spec("in", 1)).unwrap();
    log.create_topic(&spec("out", 3)).unwrap();
    for _ in 0..COMMITS {
        append(&log, "in", 0, 1, &["x"]);
    }
    log
}

/// Consumes one record at a time; every commit says in all it writes which one it is, and is
/// told to `committed`.
fn run(log: &EmbeddedLog, mut committed: impl FnMut(u64)) {
    let mut consumer = log.join("g", "0", &["in"]).unwrap();
    rebalanced(&mut *consumer, "in");
    for _ in 0..COMMITS {
        let got = records(consumer.poll("in", 1, NOW).unwrap());
        let next = got[0].offset + 1;
        let mut outputs = Outbox::default();
        for index in 0..OUTPUTS {
            let padding = "z".repeat((next * 97 % 700) as usize);
            push(&mut outputs, "out", (index % 3) as u32, next as i64, &format!("{next} {index} {padding}"));
        }
        let states = checkpoint("cards", 0, "card", next, &vec![next as u8; 300]);
        consumer
            .commit(&Commit {
                outputs: &outputs,
                offsets: &[(at("in", 0), next)],
                metadata: "",
                checkpoint: Some(&states),
            })
            .unwrap();
        committed(next);
    }
}

/// Opens what is in `dir`, and checks that all of it is that of the same number of commits.
fn commits_in(dir: &Path) -> scorer::log::Result<u64> {
    let log = EmbeddedLog::open(dir, EmbeddedOptions::default())?;
    let commits = match log.topic("in") {
        Ok(_) => log.committed("g", &at("in", 0))?.unwrap_or(0),
        Err(_) => 0,
    };
    let mut outputs = Vec::new();
    for partition in 0..log.topic("out").map_or(0, |topic| topic.spec.partitions) {
        outputs.extend(log.read(&at("out", partition), 0, usize::MAX)?);
    }
    let mut found: Vec<(u64, u64)> = outputs
        .iter()
        .map(|record| {
            let text = std::str::from_utf8(&record.value).unwrap();
            let mut numbers = text.split(' ').map(|number| number.parse());
            (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap())
        })
        .collect();
    found.sort();
    let expected: Vec<_> = (1..=commits).flat_map(|commit| (0..OUTPUTS).map(move |index| (commit, index))).collect();
    assert_eq!(found, expected, "outputs and offsets agree");
    let state = ready(log.store().read("cards", &["card"], &[])).unwrap().states.remove(0);
    let watermark = ready(log.store().watermark("cards", 0)).unwrap();
    match commits {
        0 => assert_eq!((state, watermark), (None, None)),
        _ => {
            let expected = checkpoint("cards", 0, "card", commits, &vec![commits as u8; 300]).partitions.remove(0);
            assert_eq!(state.as_ref(), Some(&expected.states[0].state), "states and offsets agree");
            assert_eq!(watermark, Some(expected.watermark));
        }
    }
    Ok(commits)
}

/// Copies a data directory without the zeros behind the content of its journal.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            let mut content = fs::read(entry.path()).unwrap();
            if target.extension().is_some_and(|extension| extension == "jnl") {
                content.truncate(content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            }
            fs::write(target, content).unwrap();
        }
    }
}

fn journal(dir: &Path) -> PathBuf {
    let journals = fs::read_dir(dir.join("db")).unwrap().map(|entry| entry.unwrap().path());
    journals.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).max().unwrap()
}

/// What `kill -9` leaves: the files as they are, nothing closed.
#[test]
fn a_copy_of_a_running_directory_has_every_commit() {
    let dir = tempfile::tempdir().unwrap();
    let log = prepare(dir.path());
    run(&log, |commits| {
        if commits % 7 == 1 {
            let copied = tempfile::tempdir().unwrap();
            copy(dir.path(), copied.path());
            assert_eq!(commits_in(copied.path()).unwrap(), commits);
        }
    });
    drop(log);
    assert_eq!(commits_in(dir.path()).unwrap(), COMMITS);
}

#[test]
fn a_torn_journal_loses_whole_commits_from_the_end() {
    let dir = tempfile::tempdir().unwrap();
    run(&prepare(dir.path()), |_| ());
    let whole = tempfile::tempdir().unwrap();
    copy(dir.path(), whole.path());
    let content = fs::read(journal(whole.path())).unwrap();
    let mut seen = Vec::new();
    for step in 0..36_usize {
        // Cuts spread over the journal, and one by one near its end.
        let cut = if step < 24 { content.len() * step / 24 } else { content.len() - (step - 24) * 5 };
        let torn = tempfile::tempdir().unwrap();
        copy(dir.path(), torn.path());
        let mut file = File::create(journal(torn.path())).unwrap();
        file.write_all(&content[..cut]).unwrap();
        if step % 2 == 1 {
            // The file is allocated ahead of what is written to it.
            file.set_len(1 << 20).unwrap();
        }
        let commits = commits_in(torn.path()).unwrap();
        // What is found is kept, and can be gone on from.
        assert_eq!(commits_in(torn.path()).unwrap(), commits);
        seen.push(commits);
    }
    assert!(seen[..24].is_sorted() && seen[..24].contains(&0) && seen[24..].contains(&(COMMITS - 1)));
    assert_eq!(seen[24], COMMITS);
}

#[test]
fn damage_in_a_journal_is_refused_or_costs_whole_commits() {
    let dir = tempfile::tempdir().unwrap();
    run(&prepare(dir.path()), |_| ());
    let whole = tempfile::tempdir().unwrap();
    copy(dir.path(), whole.path());
    let content = fs::read(journal(whole.path())).unwrap();
    // The last state, the watermark behind it, the checksum and the trailer.
    for back in (1..400).step_by(29) {
        let damaged = tempfile::tempdir().unwrap();
        copy(dir.path(), damaged.path());
        let mut content = content.clone();
        let position = content.len() - back;
        content[position] ^= 0x20;
        fs::write(journal(damaged.path()), content).unwrap();
        match commits_in(damaged.path()) {
            // Some bytes of the journal have no meaning; what is read is checked either way.
            Ok(commits) => assert!(commits >= COMMITS - 1, "{back}"),
            Err(error) => assert!(matches!(error, LogError::DataDirectory { .. }), "{back}: {error}"),
        }
    }
}
