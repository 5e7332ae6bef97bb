//! Windows against an oracle that keeps every event and filters.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use feature_store::{Backfill, Entity, FeatureSet, View, WindowState};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use schemas::{Amount, EventTime, Label, Transaction, write_unsigned};

const START_MS: i64 = 1_522_540_800_000;
const ENTITIES: usize = 3;

/// One window feature, as it stands in the definition file.
#[derive(Clone, Debug)]
struct Window {
    aggregate: &'static str,
    over_ms: i64,
    offset_ms: i64,
    include_current: bool,
    empty: Option<f64>,
}

#[derive(Clone, Debug)]
struct Tx {
    time: i64,
    card: usize,
    terminal: usize,
    units: i64,
    labels: Vec<TxLabel>,
}

#[derive(Clone, Debug)]
struct TxLabel {
    known: i64,
    fraud: bool,
    /// Where in the log it comes, among the places that it may come at; more than one: it is repeated.
    arrivals: Vec<Index>,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug)]
enum Entry<'a> {
    Transaction(usize),
    Label(usize, &'a TxLabel),
}

#[derive(Clone, Debug)]
struct Case {
    lateness_ms: i64,
    staleness_ms: i64,
    card: Vec<Window>,
    terminal: Vec<Window>,
    /// In log order.
    transactions: Vec<Tx>,
    /// At which entries of the log states are written and read back, or evicted from; by position,
    /// over and over.
    round_trips: Vec<bool>,
    evictions: Vec<bool>,
}

impl Case {
    fn features(&self) -> FeatureSet {
        let windows = |prefix: &str, windows: &[Window]| -> String {
            let line = |(index, window): (usize, &Window)| {
                let include = if window.include_current { "" } else { ", include_current: false" };
                let empty = window.empty.map(|value| format!(", empty: {value:?}")).unwrap_or_default();
                let Window { aggregate, over_ms, offset_ms, .. } = window;
                format!(
                    "      - {{ name: {prefix}{index}, aggregate: {aggregate}, over: [{over_ms}ms], offset: {offset_ms}ms{include}{empty} }}\n"
                )
            };
            windows.iter().enumerate().map(line).collect()
        };
        let text = format!(
            "version: 1\nallowed_lateness: {}ms\nviews:\n  - name: card\n    entity: card_id\n    windows:\n{}  \
             - name: terminal\n    entity: terminal_id\n    staleness: {}ms\n    windows:\n{}",
            self.lateness_ms,
            windows("card", &self.card),
            self.staleness_ms,
            windows("terminal", &self.terminal),
        );
        FeatureSet::parse(&text, "case.yaml").unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// Transactions in their order, and the labels between them, each before the first
    /// transaction that `needs` it.
    fn log(&self, needs: impl Fn(&TxLabel, usize) -> bool) -> Vec<Entry<'_>> {
        let count = self.transactions.len();
        let mut before: Vec<Vec<Entry<'_>>> = vec![Vec::new(); count + 1];
        for (index, transaction) in self.transactions.iter().enumerate() {
            for label in &transaction.labels {
                let latest = (0..count).find(|&at| needs(label, at)).unwrap_or(count);
                for arrival in &label.arrivals {
                    before[arrival.index(latest + 1)].push(Entry::Label(index, label));
                }
            }
        }
        let mut log = Vec::new();
        for (at, labels) in before.into_iter().enumerate() {
            log.extend(labels);
            log.extend((at < count).then_some(Entry::Transaction(at)));
        }
        log
    }

    /// A log in which every label is there when it counts for the first time.
    fn log_with_labels_in_time(&self) -> Vec<Entry<'_>> {
        self.log(|label, at| self.transactions[at].time >= label.known + self.staleness_ms)
    }

    /// The value of `window` for transaction `at` by its definition: of all transactions up to it
    /// in the log, those that the window holds.
    fn expected(&self, window: &Window, at: usize, entity: impl Fn(&Tx) -> usize) -> f64 {
        let now = &self.transactions[at];
        let end = now.time - window.offset_ms;
        let held: Vec<&Tx> = self.transactions[..=at]
            .iter()
            .enumerate()
            .filter(|(index, _)| window.include_current || *index != at)
            .map(|(_, tx)| tx)
            .filter(|tx| entity(tx) == entity(now) && tx.time > end - window.over_ms && tx.time <= end)
            .collect();
        let is_fraud = |tx: &&&Tx| {
            let known = tx.labels.iter().filter(|label| label.known <= now.time - self.staleness_ms);
            known.max_by_key(|label| (label.known, label.fraud)).is_some_and(|label| label.fraud)
        };
        let count = held.len() as f64;
        let total = held.iter().map(|tx| tx.units).sum::<i64>() as f64;
        let frauds = held.iter().filter(is_fraud).count() as f64;
        match window.aggregate {
            "count" => count,
            "sum" => total / 10_000.0,
            "fraud_count" => frauds,
            "mean" if count > 0.0 => total / (count * 10_000.0),
            "fraud_rate" if count > 0.0 => frauds / count,
            "mean" | "fraud_rate" => window.empty.unwrap_or(f64::NAN),
            other => panic!("{other}"),
        }
    }

    fn expected_row(&self, at: usize) -> Vec<f64> {
        let card = self.card.iter().map(|window| self.expected(window, at, |tx| tx.card));
        card.chain(self.terminal.iter().map(|window| self.expected(window, at, |tx| tx.terminal))).collect()
    }
}

fn time(millis: i64) -> EventTime {
    EventTime::from_millis(millis)
}

/// Equal bit for bit, all missing values being one.
fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }).collect()
}

fn insert_label(state: &mut WindowState, index: usize, transaction: &Tx, label: &TxLabel) {
    state.insert_label(&id(index), time(transaction.time), time(label.known), label.fraud);
}

/// Some are short enough to be held inline, some are not.
fn id(index: usize) -> schemas::Id {
    if index.is_multiple_of(2) { format!("{index}") } else { format!("{index:-<36}") }.into()
}

fn round_trip(state: &mut WindowState) {
    let mut bytes = Vec::new();
    state.encode(&mut bytes);
    let decoded = WindowState::decode(&bytes).expect("what was encoded decodes");
    assert_eq!(&decoded, state);
    *state = decoded;
}

fn over_ms() -> impl Strategy<Value = i64> {
    prop_oneof![3 => (1..=20_i64).prop_map(|seconds| seconds * 1000), 1 => 1..=20_000_i64]
}

fn windows(
    aggregates: &'static [&'static str],
    offset_ms: impl Strategy<Value = i64>,
) -> impl Strategy<Value = Vec<Window>> {
    let empty = proptest::option::of(prop_oneof![Just(0.0), Just(-1.5), Just(0.1), Just(1e6)]);
    let window = (proptest::sample::select(aggregates), over_ms(), offset_ms, any::<bool>(), empty);
    let window = window.prop_map(|(aggregate, over_ms, offset_ms, include_current, empty)| Window {
        aggregate,
        over_ms,
        offset_ms,
        include_current: include_current || offset_ms > 0,
        empty: empty.filter(|_| matches!(aggregate, "mean" | "fraud_rate")),
    });
    vec(window, 1..6)
}

fn transactions(lateness_ms: i64) -> impl Strategy<Value = Vec<Tx>> {
    // Steps of whole seconds meet the edges of windows, none at all makes ties.
    let step = prop_oneof![3 => Just(0), 4 => (1..=8_i64).prop_map(|seconds| seconds * 1000), 1 => 1..=4000_i64];
    let late = prop_oneof![3 => Just(0), 1 => 0..=100_i64, 1 => Just(100)];
    let units = prop_oneof![3 => (0..=100_000_i64).prop_map(|cents| cents * 100), 1 => 0..=1_000_000_000_i64];
    let label = (0..=50_i64, any::<bool>(), vec(any::<Index>(), 1..3));
    let transaction = (step, late, 0..ENTITIES, 0..ENTITIES, units, vec(label, 0..3));
    vec(transaction, 0..50).prop_map(move |drawn| {
        let mut newest = START_MS;
        let transaction = |(step, late, card, terminal, units, labels): (_, i64, _, _, _, Vec<(i64, _, _)>)| {
            newest += step;
            let time = newest - lateness_ms * late / 100;
            let label = |(delay, fraud, arrivals)| TxLabel { known: time + delay * 500, fraud, arrivals };
            Tx { time, card, terminal, units, labels: labels.into_iter().map(label).collect() }
        };
        drawn.into_iter().map(transaction).collect()
    })
}

fn case() -> impl Strategy<Value = Case> {
    (0..=5_i64, 0..=5_i64).prop_flat_map(|(lateness, staleness)| {
        let (lateness_ms, staleness_ms) = (lateness * 1000, staleness * 1000);
        let card_offset = prop_oneof![2 => Just(0), 1 => (1..=8_i64).prop_map(|seconds| seconds * 1000)];
        // The edge itself, where nothing may come any more, is the millisecond after.
        let terminal_offset = prop_oneof![1 => Just(1), 2 => (1..=8_i64).prop_map(|seconds| seconds * 1000)]
            .prop_map(move |more| staleness_ms + lateness_ms + more);
        let card = windows(&["count", "sum", "mean"], card_offset);
        let terminal = windows(&["count", "sum", "mean", "fraud_count", "fraud_rate"], terminal_offset);
        let marks = || vec(prop::bool::weighted(0.2), 1..20);
        (card, terminal, transactions(lateness_ms), marks(), marks()).prop_map(
            move |(card, terminal, transactions, round_trips, evictions)| Case {
                lateness_ms,
                staleness_ms,
                card,
                terminal,
                transactions,
                round_trips,
                evictions,
            },
        )
    })
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn a_window_is_what_filtering_the_log_gives(case in case()) {
        let features = case.features();
        let (cards_view, terminals_view) = views(&features);
        let mut cards = vec![WindowState::default(); ENTITIES];
        let mut terminals = cards.clone();
        let mut row = vec![0.0; features.width()];
        let mut newest = EventTime::MIN;
        for (step, entry) in case.log_with_labels_in_time().into_iter().enumerate() {
            let (Entry::Transaction(index) | Entry::Label(index, _)) = entry;
            let tx = &case.transactions[index];
            let (card, terminal) = (&mut cards[tx.card], &mut terminals[tx.terminal]);
            if case.evictions[step % case.evictions.len()] {
                card.evict(newest - cards_view.keep());
                terminal.evict(newest - terminals_view.keep());
            }
            match entry {
                Entry::Label(_, label) => insert_label(terminal, index, tx, label),
                Entry::Transaction(at) => {
                    newest = newest.max(time(tx.time));
                    let position = card.insert(time(tx.time), Amount::from_units(tx.units));
                    terminal.insert(time(tx.time), Amount::from_units(tx.units));
                    cards_view.evaluate(Some(card), time(tx.time), Some(position), &mut row);
                    terminals_view.evaluate(Some(terminal), time(tx.time), None, &mut row);
                    let expected = case.expected_row(at);
                    prop_assert_eq!(bits(&row), bits(&expected), "transaction {}: {:?}, expected {:?}", at, row, expected);
                }
            }
            if case.round_trips[step % case.round_trips.len()] {
                round_trip(card);
                round_trip(terminal);
            }
        }
    }

    #[test]
    fn backfill_gives_what_filtering_the_log_gives(case in case()) {
        let features = case.features();
        let mut backfill = Backfill::new(&features);
        for entry in case.log_with_labels_in_time() {
            let (Entry::Transaction(index) | Entry::Label(index, _)) = entry;
            let tx = &case.transactions[index];
            let (card_id, terminal_id) = (format!("c{}", tx.card).into(), format!("t{}", tx.terminal).into());
            match entry {
                Entry::Label(_, label) => backfill.label(&Label {
                    transaction_id: id(index),
                    card_id,
                    terminal_id,
                    transaction_time: time(tx.time),
                    label_time: time(label.known),
                    fraud: label.fraud,
                }),
                Entry::Transaction(at) => {
                    let mut row = Vec::new();
                    let amount = Amount::from_units(tx.units);
                    let event_time = time(tx.time);
                    let transaction = Transaction { transaction_id: id(index), event_time, card_id, terminal_id, amount };
                    backfill.transaction(&transaction, &mut row);
                    // A vector is of f32: widening is exact, so the bits tell.
                    let row: Vec<f64> = row.into_iter().map(f64::from).collect();
                    let expected: Vec<f64> = case.expected_row(at).into_iter().map(|value| f64::from(value as f32)).collect();
                    prop_assert_eq!(bits(&row), bits(&expected), "transaction {}", at);
                }
            }
        }
    }

    /// The promise of `staleness`: from the moment on at which the view has come that near, its
    /// values for an event stay the same, whatever comes later.
    #[test]
    fn a_view_near_enough_gives_the_same_values_ever_after(case in case(), read_at: Vec<Index>) {
        prop_assume!(!case.transactions.is_empty());
        let features = case.features();
        let (_, view) = views(&features);
        // Labels come as they become known.
        let mut newest: Vec<i64> = case.transactions.iter().map(|tx| tx.time).collect();
        for at in 1..newest.len() {
            newest[at] = newest[at].max(newest[at - 1]);
        }
        let log = case.log(|label, at| newest[at] >= label.known);
        let mut row = vec![0.0; features.width()];
        for (at, read_at) in read_at.iter().enumerate().map(|(at, read)| (at % newest.len(), read)) {
            let tx = &case.transactions[at];
            let near_enough = newest.iter().position(|&newest| newest >= tx.time - case.staleness_ms).expect("at itself is");
            let through = near_enough + read_at.index(newest.len() - near_enough);
            let end = log.iter().position(|entry| matches!(entry, Entry::Transaction(index) if *index == through));
            let mut state = WindowState::default();
            for entry in &log[..=end.expect("every transaction is in the log")] {
                let (Entry::Transaction(index) | Entry::Label(index, _)) = *entry;
                let other = &case.transactions[index];
                match entry {
                    _ if other.terminal != tx.terminal => {}
                    Entry::Label(_, label) => insert_label(&mut state, index, other, label),
                    Entry::Transaction(_) => { state.insert(time(other.time), Amount::from_units(other.units)); }
                }
            }
            view.evaluate(Some(&state), time(tx.time), None, &mut row);
            let expected = case.expected_row(at);
            let terminal = case.card.len()..;
            prop_assert_eq!(bits(&row[terminal.clone()]), bits(&expected[terminal]), "event {} read at {}", at, through);
        }
    }

    #[test]
    fn no_state_is_a_state_without_events(case in case()) {
        let features = case.features();
        for view in features.views() {
            let (mut none, mut empty) = (vec![0.0; features.width()], vec![0.0; features.width()]);
            view.evaluate(None, time(START_MS), None, &mut none);
            view.evaluate(Some(&WindowState::default()), time(START_MS), None, &mut empty);
            prop_assert_eq!(bits(&none), bits(&empty));
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_make_a_sound_state(
        case in case(),
        noise in vec(any::<u8>(), 0..120),
        flips in vec((any::<Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let features = case.features();
        let mut state = WindowState::default();
        for (index, tx) in case.transactions.iter().enumerate() {
            state.insert(time(tx.time), Amount::from_units(tx.units));
            tx.labels.iter().for_each(|label| insert_label(&mut state, index, tx, label));
        }
        let mut damaged = Vec::new();
        state.encode(&mut damaged);
        for (at, byte) in flips {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        damaged.truncate(cut.map_or(usize::MAX, |cut| cut.index(damaged.len())));
        let versioned: Vec<u8> = [1].into_iter().chain(noise.iter().copied()).collect();
        for bytes in [damaged, noise, versioned] {
            let Ok(mut state) = WindowState::decode(&bytes) else { continue };
            // An event takes two bytes at least and 16 in memory, a label four and 48.
            prop_assert!(state.bytes() <= size_of::<WindowState>() + 16 * bytes.len(), "{} of {}", state.bytes(), bytes.len());
            round_trip(&mut state);
            let mut row = vec![0.0; features.width()];
            for at in [EventTime::MIN, time(START_MS), EventTime::MAX] {
                features.views().iter().for_each(|view| view.evaluate(Some(&state), at, None, &mut row));
            }
            state.evict(EventTime::MAX);
            prop_assert!(state.is_empty());
        }
    }
}

fn views(features: &FeatureSet) -> (&View, &View) {
    let view = |entity| features.view_of(entity).expect("a case has both views");
    (view(Entity::CardId), view(Entity::TerminalId))
}

#[test]
fn amounts_and_times_of_any_size_survive_the_codec() {
    let mut state = WindowState::default();
    for (index, millis) in [i64::MIN, i64::MIN + 1, -1001, -1000, 0, 1, 1000, i64::MAX].into_iter().enumerate() {
        for units in [0, 1, -1, 100, i64::MAX >> 1, (i64::MAX >> 1) - 1, i64::MIN >> 1, i64::MAX, i64::MIN] {
            state.insert(time(millis), Amount::from_units(units));
        }
        state.insert_label(&id(index), time(millis), time(-millis.max(-i64::MAX)), index.is_multiple_of(3));
    }
    round_trip(&mut state);
    assert_eq!(state.len(), 72);
}

#[test]
fn a_forged_count_reserves_nothing() {
    for count in [3, 1 << 20, 1 << 40, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
        // Events, two bytes each at least; then labels, four bytes each.
        for (head, rest) in [(&[1][..], 4), (&[1, 0][..], 8)] {
            let mut bytes = head.to_vec();
            write_unsigned(&mut bytes, count);
            bytes.resize(bytes.len() + rest, 0);
            assert!(matches!(WindowState::decode(&bytes), Err(schemas::CodecError::Truncated)), "{count}");
        }
    }
}

#[test]
fn what_a_busy_entity_took_is_given_back() {
    let keep = Duration::from_secs(1000);
    let mut state = WindowState::default();
    let mut busiest = 0;
    for second in 0..100_000 {
        // A hundredfold for a while.
        let times = if (20_000..21_000).contains(&second) { 100 } else { 1 };
        for _ in 0..times {
            state.insert(time(second * 1000), Amount::from_cents(second));
        }
        state.insert_label(&id(second as usize), time(second * 1000), time(second * 1000 + 5), true);
        busiest = busiest.max(state.bytes());
        state.evict(time(second * 1000) - keep);
        let kept = if (20_000..22_000).contains(&second) { 100_000 } else { 1000 };
        assert!(state.len() <= kept, "{} events", state.len());
    }
    // 1,000 events of 16 bytes and labels of 48 and an id of 36 for half of them, in buffers at
    // most four times too large.
    assert!(busiest > 100_000 * 16 && state.bytes() < 4 * 1000 * (16 + 48 + 18), "{} of {busiest}", state.bytes());
    state.evict(EventTime::MAX);
    assert!(state.is_empty() && state.bytes() < 4096, "{}", state.bytes());
}

#[test]
fn long_ids_of_labels_count_as_memory() {
    let mut state = WindowState::default();
    for index in 0..1000 {
        state.insert_label(&format!("{index:-<200}").into(), time(index), time(index), true);
    }
    assert!(state.bytes() > 1000 * (200 + 48), "{}", state.bytes());
    let before = state.bytes();
    round_trip(&mut state);
    assert!(state.bytes() > 1000 * (200 + 48) && state.bytes() <= before, "{} of {before}", state.bytes());
    state.evict(EventTime::MAX);
    assert!(state.bytes() < 4096, "{}", state.bytes());
}
