//! What a record costs. Run by hand:
//! `cargo test --workspace --test embedded_log -- --ignored --nocapture speed`.

use std::time::Instant;

use super::*;

const RECORDS: usize = 1_000;
const ROUNDS: usize = 3_000;
const STATES: usize = 200;

fn report(what: &str, mut nanos_per_record: Vec<f64>) {
    nanos_per_record.sort_by(f64::total_cmp);
    let at = |share: f64| nanos_per_record[((nanos_per_record.len() - 1) as f64 * share) as usize];
    let mean = nanos_per_record.iter().sum::<f64>() / nanos_per_record.len() as f64;
    println!(
        "{what}: mean {mean:.0} ns/record, p10 {:.0}, p50 {:.0}, p90 {:.0}, p99 {:.0}, max {:.0}",
        at(0.1),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

/// Bytes that this process had the kernel write, and its CPU time in seconds.
fn usage() -> (u64, f64) {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (written, ticks as f64 / 100.0)
}

/// A transaction as JSON, about 150 bytes.
fn transaction(index: u64, out: &mut Vec<u8>) {
    use std::io::Write;
    let noise = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    write!(
        out,
        r#"{{"transaction_id":"t{index:012}","card":"c{:06}","terminal":"m{:05}","amount":"{}.{:02}","currency":"EUR","event_time":"2018-04-{:02}T{:02}:00:31.000Z"}}"#,
        noise % 200_000, noise % 10_007, noise % 300, noise % 100, noise % 28 + 1, noise % 24
    )
    .unwrap();
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.create_topic(&spec("in", 4)).unwrap();
    log.create_topic(&spec("out", 4)).unwrap();
    let mut appended = Vec::new();
    let mut payload = 0;
    let (written_before, cpu_before) = usage();
    let started = Instant::now();
    for round in 0..ROUNDS {
        let mut outbox = Outbox::default();
        for index in (round * RECORDS) as u64..((round + 1) * RECORDS) as u64 {
            outbox.push("in", format!("c{:06}", index * 7919 % 200_000).as_bytes(), index as i64 * 10, |out| {
                transaction(index, out)
            });
        }
        payload += outbox.iter().map(|record| record.key.len() + record.value.len()).sum::<usize>();
        let start = Instant::now();
        log.append(&outbox).unwrap();
        appended.push(start.elapsed().as_nanos() as f64 / RECORDS as f64);
    }
    println!("{} bytes a record", payload / ROUNDS / RECORDS);
    report("append", appended);
    let (written, cpu) = usage();
    println!("append: {:.1} s, CPU {:.1} s", started.elapsed().as_secs_f64(), cpu - cpu_before);

    let mut consumer = log.join("g", "0", &["in"]).unwrap();
    rebalanced(&mut *consumer, "in");
    let mut position = [0; 4];
    for (pace_us, rounds) in [(0, ROUNDS / 2), (1_000_000 * RECORDS / 150_000, ROUNDS / 2)] {
        let (mut polled, mut committed) = (Vec::new(), Vec::new());
        let (_, cpu_before) = usage();
        let started = Instant::now();
        for round in 0..rounds {
            let due = Duration::from_micros((pace_us * round) as u64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            let start = Instant::now();
            let got = records(consumer.poll("in", RECORDS, NOW).unwrap());
            polled.push(start.elapsed().as_nanos() as f64 / RECORDS as f64);
            assert_eq!(got.len(), RECORDS);
            let (mut outputs, mut states) = (Outbox::default(), checkpoint("cards", 0, "c", round as u64, b""));
            for (index, record) in got.iter().enumerate() {
                position[record.partition as usize] = record.offset + 1;
                outputs.push("out", &record.key, record.timestamp_us, |out| out.extend_from_slice(&record.value));
                if index % (RECORDS / STATES) == 0 {
                    let key = schemas::Id::from(std::str::from_utf8(&record.key).unwrap());
                    let mut bytes = record.value.to_vec();
                    bytes.resize(500, index as u8);
                    payload += bytes.len();
                    states.partitions[0]
                        .states
                        .push(StateWrite { key, state: StoredState { stamp: record.offset, bytes } });
                }
            }
            payload += outputs.iter().map(|record| record.key.len() + record.value.len()).sum::<usize>();
            let offsets: Vec<_> = (0..).zip(position).map(|(partition, next)| (at("in", partition), next)).collect();
            let start = Instant::now();
            consumer
                .commit(&Commit { outputs: &outputs, offsets: &offsets, metadata: "", checkpoint: Some(&states) })
                .unwrap();
            committed.push(start.elapsed().as_nanos() as f64 / RECORDS as f64);
        }
        let (_, cpu_after) = usage();
        let (took, cpu) = (started.elapsed().as_secs_f64(), cpu_after - cpu_before);
        println!("{:.0} records/s, {cpu:.1} CPU s in {took:.1} s", (rounds * RECORDS) as f64 / took);
        report("  poll (of a backlog)", polled);
        report("  commit with states", committed);
    }
    let mut warm = Vec::new();
    for round in 0..500 {
        let mut outbox = Outbox::default();
        for index in (round * RECORDS) as u64..((round + 1) * RECORDS) as u64 {
            outbox.push("in", format!("c{:06}", index * 7919 % 200_000).as_bytes(), i64::MAX / 2, |out| {
                transaction(index, out)
            });
        }
        log.append(&outbox).unwrap();
        let start = Instant::now();
        let got = records(consumer.poll("in", RECORDS, NOW).unwrap());
        warm.push(start.elapsed().as_nanos() as f64 / RECORDS as f64);
        assert_eq!(got.len(), RECORDS);
    }
    report("poll (of what was just written)", warm);
    let (written_after, cpu_after) = usage();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!(
        "payload {} MB, written {} MB (appends alone {} MB), on disk {} MB, CPU {:.1} s, {}",
        payload / 1_000_000,
        (written_after - written_before) / 1_000_000,
        (written - written_before) / 1_000_000,
        log.bytes_on_disk() / 1_000_000,
        cpu_after - cpu_before,
        status.lines().find(|line| line.starts_with("VmHWM")).unwrap()
    );
    let started = Instant::now();
    drop(consumer);
    drop(log);
    println!("closed in {:.2} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    open(dir.path());
    println!("opened in {:.2} s", started.elapsed().as_secs_f64());
}
