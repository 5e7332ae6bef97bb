//! Random operations on the log beside an obviously right model of it.

use std::collections::BTreeMap;

use feature_store::OnlineStore;
use proptest::prelude::*;
use scorer::log::LogError;

use super::*;

const PARTITIONS: u32 = 3;
const RETENTION_US: i64 = 50_000_000;

#[derive(Clone, Debug)]
enum Step {
    /// Partition and size of each record, and how far the clock goes on with it.
    Append(Vec<(u32, usize, i64)>),
    Read {
        partition: u32,
        from: u64,
        max: usize,
    },
    OffsetAt {
        partition: u32,
        back_us: i64,
    },
    Trim,
    Reopen,
    Join,
    Leave(usize),
    Poll {
        member: usize,
        max: usize,
    },
    Commit {
        member: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = (0..PARTITIONS, 0_usize..200, -2_000_000..5_000_000_i64);
    let step = prop_oneof![
        4 => prop::collection::vec(record, 1..30).prop_map(Step::Append),
        3 => (0..PARTITIONS, 0_u64..400, 0_usize..50).prop_map(|(partition, from, max)| Step::Read { partition, from, max }),
        2 => (0..PARTITIONS, 0_i64..100_000_000).prop_map(|(partition, back_us)| Step::OffsetAt { partition, back_us }),
        1 => Just(Step::Trim),
        1 => Just(Step::Reopen),
        2 => Just(Step::Join),
        1 => (0_usize..4).prop_map(Step::Leave),
        8 => (0_usize..4, 1_usize..40).prop_map(|(member, max)| Step::Poll { member, max }),
        6 => (0_usize..4).prop_map(|member| Step::Commit { member }),
    ];
    prop::collection::vec(step, 1..200)
}

#[derive(Default)]
struct Partition {
    start: u64,
    records: Vec<(i64, Vec<u8>)>,
    /// End and latest timestamp of each write.
    writes: Vec<(u64, i64)>,
    committed: Option<u64>,
    /// What consumers skipped because it was trimmed: no output comes of it.
    skipped: Vec<std::ops::Range<u64>>,
}

struct Member {
    consumer: Box<dyn Consumer>,
    /// Records polled and not yet committed.
    pending: BTreeMap<u32, Vec<Record>>,
    positions: BTreeMap<u32, u64>,
    /// No member came or went since its last poll.
    current: bool,
}

struct World {
    dir: tempfile::TempDir,
    log: Option<Arc<EmbeddedLog>>,
    partitions: Vec<Partition>,
    members: Vec<Member>,
    clock_us: i64,
    outputs: Vec<(u32, u64)>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        let retention = Some(Duration::from_micros(RETENTION_US as u64));
        log.create_topic(&TopicSpec { retention, ..spec("in", PARTITIONS) }).unwrap();
        log.create_topic(&spec("out", 2)).unwrap();
        let partitions = (0..PARTITIONS).map(|_| Partition::default()).collect();
        World { dir, log: Some(log), partitions, members: Vec::new(), clock_us: 1_000_000_000, outputs: Vec::new() }
    }

    fn log(&self) -> &EmbeddedLog {
        self.log.as_ref().unwrap()
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Append(records) => self.append(records),
            Step::Read { partition, from, max } => self.read(*partition, *from, *max),
            Step::OffsetAt { partition, back_us } => self.offset_at(*partition, self.clock_us - back_us),
            Step::Trim => self.trim(),
            Step::Reopen => {
                self.members.clear();
                self.log = None;
                self.log = Some(open(self.dir.path()));
            }
            Step::Join => {
                if self.members.len() < 4 {
                    let consumer = self.log().join("g", "0", &["in"]).unwrap();
                    let (pending, positions) = (BTreeMap::new(), BTreeMap::new());
                    self.members.iter_mut().for_each(|member| member.current = false);
                    self.members.push(Member { consumer, pending, positions, current: false });
                }
            }
            Step::Leave(member) => {
                if *member < self.members.len() {
                    self.members.remove(*member);
                    self.members.iter_mut().for_each(|member| member.current = false);
                }
            }
            Step::Poll { member, max } => self.poll(*member, *max),
            Step::Commit { member } => self.commit(*member),
        }
        self.check_bounds();
    }

    fn append(&mut self, records: &[(u32, usize, i64)]) {
        let mut outbox = Outbox::default();
        let mut touched = BTreeMap::new();
        for (partition, size, step_us) in records {
            self.clock_us += step_us;
            let model = &mut self.partitions[*partition as usize];
            let value = vec![model.records.len() as u8; *size];
            outbox.push_with("in", Some(*partition), b"k", self.clock_us, Vec::new(), |out| {
                out.extend_from_slice(&value)
            });
            model.records.push((self.clock_us, value));
            let latest = touched.entry(*partition).or_insert(i64::MIN);
            *latest = self.clock_us.max(*latest);
        }
        self.log().append(&outbox).unwrap();
        for (partition, latest_us) in touched {
            let model = &mut self.partitions[partition as usize];
            model.writes.push((model.records.len() as u64, latest_us));
        }
    }

    fn assert_is_model(&self, records: &[Record], partition: u32, from: u64) {
        for (offset, record) in (from..).zip(records) {
            let (timestamp_us, value) = &self.partitions[partition as usize].records[offset as usize];
            assert_eq!((record.partition, record.offset, record.timestamp_us), (partition, offset, *timestamp_us));
            assert_eq!(&record.value[..], &value[..]);
        }
    }

    fn read(&self, partition: u32, from: u64, max: usize) {
        let model = &self.partitions[partition as usize];
        let read = self.log().read(&at("in", partition), from, max);
        if from < model.start && max > 0 {
            assert!(
                matches!(read, Err(LogError::Trimmed { first, offset, .. }) if (first, offset) == (model.start, from))
            );
            return;
        }
        let records = read.unwrap();
        assert_eq!(records.len(), max.min((model.records.len()).saturating_sub(from as usize)));
        self.assert_is_model(&records, partition, from);
    }

    fn offset_at(&self, partition: u32, timestamp_us: i64) {
        let model = &self.partitions[partition as usize];
        let kept = &model.records[model.start as usize..];
        let expected = kept.iter().position(|(time, _)| *time >= timestamp_us).unwrap_or(kept.len());
        let found = self.log().offset_at(&at("in", partition), timestamp_us).unwrap();
        assert_eq!(found, model.start + expected as u64);
    }

    fn trim(&mut self) {
        self.log().trim(self.clock_us).unwrap();
        for model in &mut self.partitions {
            for (end, latest_us) in &model.writes {
                if *latest_us >= self.clock_us - RETENTION_US || *end == model.records.len() as u64 {
                    break;
                }
                model.start = model.start.max(*end);
            }
        }
    }

    fn poll(&mut self, index: usize, max: usize) {
        if index >= self.members.len() {
            return;
        }
        let polled = self.members[index].consumer.poll("in", max, NOW);
        match polled {
            Ok(Polled::Rebalanced { assigned, revoked }) => {
                let member = &mut self.members[index];
                assert!(!member.current, "nobody came or went");
                member.current = true;
                for partition in revoked {
                    assert!(member.positions.remove(&partition.partition).is_some());
                    member.pending.remove(&partition.partition);
                }
                for TopicPartition { partition, .. } in assigned {
                    let model = &self.partitions[partition as usize];
                    let position = model.committed.unwrap_or(model.start);
                    assert!(member.positions.insert(partition, position).is_none());
                }
            }
            Ok(Polled::Revoking(partitions)) => panic!("revoked at once: {partitions:?}"),
            Ok(Polled::Records(records)) => {
                assert!(self.members[index].current, "a change must be told first");
                assert!(records.len() <= max);
                let waiting: u64 = self.members[index]
                    .positions
                    .iter()
                    .map(|(partition, position)| self.partitions[*partition as usize].records.len() as u64 - position)
                    .sum();
                assert_eq!(records.len() as u64, waiting.min(max as u64));
                for record in records {
                    let from = self.members[index].positions[&record.partition];
                    self.assert_is_model(std::slice::from_ref(&record), record.partition, from);
                    let member = &mut self.members[index];
                    member.positions.insert(record.partition, from + 1);
                    member.pending.entry(record.partition).or_default().push(record);
                }
            }
            Err(LogError::Trimmed { partition, offset, first }) => {
                let model = &mut self.partitions[partition.partition as usize];
                assert_eq!(first, model.start);
                let member = &mut self.members[index];
                assert_eq!(offset, member.positions[&partition.partition]);
                assert!(offset < first);
                // Go on without what is lost, and without the work that is not yet committed.
                let from = model.committed.unwrap_or(0);
                if commit_offsets(&mut *member.consumer, &[(partition.clone(), first)]).is_ok() {
                    model.skipped.push(from..first);
                    model.committed = Some(first);
                    member.pending.remove(&partition.partition);
                    member.positions.insert(partition.partition, first);
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Commits one output for each record that is pending.
    fn commit(&mut self, index: usize) {
        if index >= self.members.len() {
            return;
        }
        let member = &mut self.members[index];
        let mut outputs = Outbox::default();
        let (mut offsets, mut states) = (Vec::new(), Checkpoint::default());
        for (partition, records) in &member.pending {
            for record in records {
                push(
                    &mut outputs,
                    "out",
                    partition % 2,
                    record.timestamp_us,
                    &format!("{partition} {}", record.offset),
                );
            }
            let next = records.last().unwrap().offset + 1;
            offsets.push((at("in", *partition), next));
            states.partitions.extend(checkpoint("v", *partition, &format!("k{partition}"), next, b"s").partitions);
        }
        match member.consumer.commit(&Commit {
            outputs: &outputs,
            offsets: &offsets,
            metadata: "",
            checkpoint: Some(&states),
        }) {
            Ok(committed) => {
                assert_eq!(committed, Committed::WithCheckpoint);
                for (partition, records) in std::mem::take(&mut member.pending) {
                    let model = &mut self.partitions[partition as usize];
                    let first = records[0].offset;
                    match model.committed {
                        Some(committed) => assert_eq!(first, committed, "nothing twice, nothing left out"),
                        None => model.skipped.push(0..first),
                    }
                    model.committed = Some(records.last().unwrap().offset + 1);
                    self.outputs.extend(records.iter().map(|record| (partition, record.offset)));
                }
            }
            Err(LogError::Fenced(_)) => assert!(!member.current, "the owner is not fenced"),
            Err(error) => panic!("{error}"),
        }
    }

    fn check_bounds(&self) {
        let topic = self.log().topic("in").unwrap();
        for (partition, (offsets, model)) in topic.offsets.iter().zip(&self.partitions).enumerate() {
            let partition = partition as u32;
            assert_eq!(*offsets, model.start..model.records.len() as u64);
            assert_eq!(self.log().committed("g", &at("in", partition)).unwrap(), model.committed);
            // I3: a state is never ahead of what is committed; here it never trails either, but where
            // records were skipped.
            let stamp = ready(self.log().store().read("v", &[&format!("k{partition}")], &[])).unwrap().states.remove(0);
            let stamp = stamp.map_or(0, |state| state.stamp);
            let last_output = self.outputs.iter().rev().find(|(of, _)| *of == partition);
            assert_eq!(stamp, last_output.map_or(0, |(_, offset)| offset + 1));
        }
    }

    /// One member works off all that is left: every record that was not skipped has one output.
    fn finish(mut self) {
        self.members.clear();
        self.apply(&Step::Join);
        for _ in 0..10_000 {
            self.apply(&Step::Poll { member: 0, max: 50 });
            self.apply(&Step::Commit { member: 0 });
            if self.partitions.iter().all(|model| model.committed.unwrap_or(0) == model.records.len() as u64) {
                break;
            }
        }
        for (partition, model) in self.partitions.iter().enumerate() {
            let outputs: Vec<u64> =
                self.outputs.iter().filter(|(of, _)| *of == partition as u32).map(|(_, offset)| *offset).collect();
            let expected: Vec<u64> = (0..model.records.len() as u64)
                .filter(|offset| !model.skipped.iter().any(|range| range.contains(offset)))
                .collect();
            assert_eq!(outputs, expected);
        }
        let mut written = Vec::new();
        for partition in 0..2 {
            for record in self.log().read(&at("out", partition), 0, usize::MAX).unwrap() {
                let text = std::str::from_utf8(&record.value).unwrap();
                let (of, offset) = text.split_once(' ').unwrap();
                written.push((of.parse().unwrap(), offset.parse().unwrap()));
            }
        }
        written.sort_unstable();
        self.outputs.sort_unstable();
        assert_eq!(written, self.outputs);
    }
}

/// Opening a directory waits for the disk many times: few cases, but long ones. More with
/// `PROPTEST_CASES`, and `TMPDIR` in memory.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(16);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn does_what_the_model_does(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.finish();
    }
}
