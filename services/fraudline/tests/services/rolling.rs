//! A rolling restart, as the chart's StatefulSet does it: one scorer after another gets SIGTERM, starts again under its name, and
//! the next one follows when it is ready.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::processes::{Process, write};
use super::*;
use scorer::log::KafkaLog;

const SCORERS: usize = 3;
/// Payments fed at once, and how long after each other.
const CHUNK: usize = 20;
const EVERY: Duration = Duration::from_millis(100);
/// How long the group is left alone before and after the restarts.
const SETTLE: Duration = Duration::from_secs(4);

struct Scorer {
    process: Process,
    url: String,
}

impl Scorer {
    /// As the pod of that number; waits until it is ready.
    fn start(config: &Path, number: usize) -> Scorer {
        let mut process = Process::start(config, &["score", "--instance", &format!("fraudline-scorer-{number}")]);
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            assert!(process.is_running(), "{}", process.said());
            assert!(Instant::now() < deadline, "it is not ready: {}", process.said());
            let said = process.said();
            let address = said.split("http://").nth(1).and_then(|rest| rest.split('"').next());
            let url = address.map(|address| format!("http://{address}"));
            if let Some(url) = url.filter(|url| get(url, "/ready").is_some()) {
                return Scorer { url, process };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn rebalances(&self) -> u64 {
        let metrics = get(&self.url, "/metrics").unwrap();
        let line = metrics.lines().find(|line| line.starts_with("fraudline_rebalances_total ")).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

/// The page, if the answer is 200.
fn get(url: &str, path: &str) -> Option<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
    agent.get(format!("{url}{path}")).call().ok()?.body_mut().read_to_string().ok()
}

/// How often the broker's log says that it rebalances the group.
fn told_by_broker(log: &str, group: &str) -> usize {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    text.lines().filter(|line| line.contains(&format!("Preparing to rebalance group {group} "))).count()
}

/// The longest time between two scores of a partition that follow each other.
fn longest_pause(log: &dyn Log) -> Duration {
    let mut longest = 0;
    for partition in 0..PARTITIONS {
        let partition = TopicPartition { topic: topics::SCORES.to_owned(), partition };
        let mut times: Vec<i64> =
            log.read(&partition, 0, usize::MAX).unwrap().iter().map(|record| record.timestamp_us).collect();
        times.sort_unstable();
        longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(longest, i64::max);
    }
    Duration::from_micros(longest as u64)
}

#[test]
fn a_rolling_restart_rebalances_nothing_and_loses_nothing() {
    let Some(broker_log) = file("FRAUDLINE_TEST_KAFKA_LOG") else { return };
    let Some(_turn) = have(&[Service::Kafka, Service::Redis]) else { return };
    let (prefix, folder) = (prefix(), tempfile::tempdir().unwrap());
    let config = folder.path().join("fraudline.yaml");
    let (brokers, redis) = (Service::Kafka.address(), Service::Redis.address());
    write(
        &config,
        &format!(
            "kafka: {{brokers: \"{brokers}\", topic_prefix: {prefix}, session_timeout: 60s, leave_on_stop: false}}\n\
             topics: {{partitions: {PARTITIONS}}}\n\
             store: {{redis: {{urls: [\"{redis}\"], key_prefix: \"{prefix}\"}}}}\n\
             scorer: {{log_features: 1}}\nmodel: {{device: cpu}}\n"
        ),
    );
    let log = KafkaLog::connect(kafka(&prefix)).unwrap();
    create_topics(&log);
    let features = FeatureSet::bundled();
    let stop = AtomicBool::new(false);
    let expected = std::thread::scope(|scope| {
        let feeding = scope.spawn(|| {
            feed_while(&log, &features, |_| {
                std::thread::sleep(EVERY);
                if stop.load(Relaxed) { 0 } else { CHUNK }
            })
        });
        let _materializer = Process::start(&config, &["materialize"]);
        // Also where something below fails: the feeder would never end.
        let stopping = StopFeeding(&stop);
        let mut scorers: Vec<Scorer> = (0..SCORERS).map(|number| Scorer::start(&config, number)).collect();
        std::thread::sleep(SETTLE);
        let group = format!("{prefix}{}", scorer::GROUP);
        let told = told_by_broker(&broker_log, &group);
        assert!(told > 0, "the broker's log does not tell of rebalances");
        // The last one first, as a StatefulSet does.
        for number in (0..SCORERS).rev() {
            let before: Vec<u64> = scorers.iter().map(Scorer::rebalances).collect();
            let restarted = scorers.remove(number);
            restarted.process.terminate();
            scorers.insert(number, Scorer::start(&config, number));
            std::thread::sleep(SETTLE / 2);
            for (other, scorer) in scorers.iter().enumerate().filter(|(other, _)| *other != number) {
                assert_eq!(scorer.rebalances(), before[other], "scorer {other}, while {number} was restarted");
            }
        }
        assert_eq!(told_by_broker(&broker_log, &group), told, "the broker's log tells of a rebalance");
        drop(stopping);
        let expected = feeding.join().unwrap();
        wait_for_scores(&log, || {
            for scorer in &mut scorers {
                assert!(scorer.process.is_running(), "{}", scorer.process.said());
            }
        });
        expected
    });
    let events = expected.len();
    check(&log, expected);
    let pause = longest_pause(&log);
    println!(
        "{events} payments, 0 lost, 0 repeated, 0 rebalances, longest pause of a partition {:.1} s",
        pause.as_secs_f64()
    );
    assert!(pause < Duration::from_secs(60), "a partition paused for {pause:?}, as if its owner had been given up");
}

struct StopFeeding<'a>(&'a AtomicBool);

impl Drop for StopFeeding<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
