//! What an event costs in the windows of its entity, however many events these hold.
//!
//! `taskset -c 0 cargo bench --workspace --bench windows`. Prints ns per event for bringing it into a state and reading all features off
//! it, for decoding a state, and bytes per entity in memory and in a store; medians of the rounds, and their spread. The sizes take
//! turns within a round, so that they meet the same noise.

use std::hint::black_box;
use std::time::Instant;

use feature_store::{FeatureSet, Scratch, WindowState};
use schemas::{Amount, EventTime, Transaction};

/// Events within the longest window.
const SIZES: [usize; 3] = [10, 1000, 100_000];
const ROUNDS: usize = 9;

/// Name, keys of the view, aggregates, what each of them is over.
const CASES: [(&str, &str, &[&str], Over); 6] = [
    ("count, mean", "    exact: all\n", &["aggregate: count", "aggregate: mean"], WINDOWS),
    ("count, mean; 1,000 kept one by one", "", &["aggregate: count", "aggregate: mean"], WINDOWS),
    ("min, std; 1,000 kept one by one", "", &["aggregate: min", "aggregate: std"], WINDOWS),
    ("distinct, rank; 1,000 kept one by one", "", &["aggregate: distinct, value: amount", "aggregate: rank"], WINDOWS),
    (
        "runs, filtered sums; 1,000 kept one by one",
        "",
        &["aggregate: run_length, match: amount < 20", "aggregate: sum, where: amount > 20"],
        WINDOWS,
    ),
    (
        "last 16 events: amount, seconds, a value that may be missing, same terminal; 1,000 kept one by one",
        "",
        &[
            "aggregate: previous",
            "aggregate: time_since_previous",
            "aggregate: previous, value: log1p(amount)",
            "aggregate: same_as_previous, value: terminal_id",
        ],
        EVENTS,
    ),
];

/// What tells the features of an aggregate apart, and the key that says of what they are.
type Over = (&'static str, &'static str);
const WINDOWS: Over = ("{days}", "over: [1d, 2d, 3d, 5d, 7d, 10d, 14d, 20d, 25d, 30d]");
const EVENTS: Over = ("{back}", "back: 16, over: [30d]");

fn main() {
    // `cargo test --all-targets` runs benches too, to see that they work; it has no use for the figures.
    let quick = std::env::args().any(|arg| arg == "--test") || !std::env::args().any(|arg| arg == "--bench");
    let (rounds, events) = if quick { (1, 100) } else { (ROUNDS, 20_000) };
    println!("windows of up to 30 days; {rounds} rounds; median (lowest to highest)");
    for (name, keys, aggregates, over) in CASES {
        let features = features(keys, aggregates, over);
        let mut subjects: Vec<Subject> = SIZES.iter().map(|&size| Subject::new(&features, size)).collect();
        for _ in 0..rounds {
            subjects.iter_mut().for_each(|subject| subject.measure(&features, events));
        }
        println!("{name}: {} features", features.width());
        for subject in subjects {
            let Subject { size, updates, decodings, state, encoded, .. } = subject;
            println!(
                "  {size:>7} events: update and read {} ns, decode {} ns, {} bytes, {} stored",
                spread(updates),
                spread(decodings),
                state.bytes(),
                encoded.len(),
            );
        }
    }
}

fn features(keys: &str, aggregates: &[&str], (apart, over): Over) -> FeatureSet {
    let windows = aggregates.iter().enumerate();
    let windows: String = windows
        .map(|(at, aggregate)| format!("      - {{ name: \"F{at}_{apart}\", {aggregate}, {over} }}\n"))
        .collect();
    let text = format!(
        "version: 1\nallowed_lateness: 0s\nviews:\n  - name: card\n    entity: card_id\n{keys}    windows:\n{windows}"
    );
    FeatureSet::parse(&text, "bench.yaml").unwrap_or_else(|error| panic!("{error}"))
}

/// An entity with so many events in 30 days, and one more at every step.
struct Subject {
    size: usize,
    state: WindowState,
    encoded: Vec<u8>,
    payment: Transaction,
    step_ms: i64,
    scratch: Scratch,
    row: Vec<f64>,
    updates: Vec<f64>,
    decodings: Vec<f64>,
}

impl Subject {
    fn new(features: &FeatureSet, size: usize) -> Subject {
        let payment = Transaction {
            transaction_id: "1".into(),
            event_time: EventTime::from_millis(1_522_540_800_000),
            card_id: "c".into(),
            terminal_id: "t".into(),
            amount: Amount::from_cents(0),
        };
        let mut subject = Subject {
            size,
            state: WindowState::default(),
            encoded: Vec::new(),
            payment,
            step_ms: 30 * 86_400_000 / size as i64,
            scratch: Scratch::default(),
            row: vec![0.0; features.width()],
            updates: Vec::new(),
            decodings: Vec::new(),
        };
        (0..size + 10).for_each(|_| subject.step(features));
        subject
    }

    fn step(&mut self, features: &FeatureSet) {
        let view = &features.views()[0];
        self.payment.event_time = EventTime::from_millis(self.payment.event_time.as_millis() + self.step_ms);
        self.payment.amount = Amount::from_cents(self.payment.event_time.as_millis() / 7 % 4999);
        view.evict(&mut self.state, self.payment.event_time - view.keep());
        features.join(&self.payment, Some(&mut self.state), &[], &mut self.scratch, &mut self.row);
    }

    fn measure(&mut self, features: &FeatureSet, events: usize) {
        let started = Instant::now();
        for _ in 0..events {
            self.step(features);
            black_box(&self.row);
        }
        self.updates.push(started.elapsed().as_nanos() as f64 / events as f64);
        self.encoded.clear();
        self.state.encode(&mut self.encoded);
        let times = (events / self.size).max(1);
        let started = Instant::now();
        for _ in 0..times {
            black_box(WindowState::decode(black_box(&self.encoded)).expect("what was encoded decodes"));
        }
        self.decodings.push(started.elapsed().as_nanos() as f64 / times as f64);
    }
}

fn spread(mut ns: Vec<f64>) -> String {
    ns.sort_by(f64::total_cmp);
    format!("{:.0} ({:.0} to {:.0})", ns[ns.len() / 2], ns[0], ns[ns.len() - 1])
}
