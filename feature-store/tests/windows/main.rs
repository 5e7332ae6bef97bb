//! Windows against an oracle that keeps every event and filters.
#![allow(clippy::unwrap_used)]

mod oracle;
mod streamed;

use std::time::Duration;

use feature_store::{Backfill, FeatureSet, Scratch, WindowState};
use oracle::{Entry, START_MS, Tx, case, id};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use schemas::{Amount, EventTime, Label, Transaction, write_unsigned};
use streamed::{bits, carried, insert_label, time, views};

fn round_trip(state: &mut WindowState) {
    let mut bytes = Vec::new();
    state.encode(&mut bytes);
    let decoded = WindowState::decode(&bytes).expect("what was encoded decodes");
    assert_eq!(&decoded, state);
    *state = decoded;
}

/// `FRAUDLINE_CASES` cases, where that is set.
fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("FRAUDLINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn a_window_is_what_filtering_the_log_gives(case in case()) {
        streamed::check(&case, |_, _, state| round_trip(state))?;
    }

    #[test]
    fn backfill_gives_what_filtering_the_log_gives(case in case()) {
        let features = case.features();
        let mut backfill = Backfill::new(&features);
        for entry in case.log_with_labels_in_time() {
            let (Entry::Transaction(index) | Entry::Label(index, _)) = entry;
            let tx = &case.transactions[index];
            let transaction = tx.transaction(index);
            match entry {
                Entry::Label(_, label) => backfill.label(&Label {
                    transaction_id: transaction.transaction_id,
                    card_id: transaction.card_id,
                    terminal_id: transaction.terminal_id,
                    transaction_time: transaction.event_time,
                    label_time: time(label.known),
                    fraud: label.fraud,
                }),
                Entry::Transaction(at) => {
                    let mut row = Vec::new();
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
        if case.transactions.is_empty() {
            return Ok(());
        }
        let features = case.features();
        let (_, view) = views(&features);
        // Labels come as they become known.
        let mut newest: Vec<i64> = case.transactions.iter().map(|tx| tx.time).collect();
        for at in 1..newest.len() {
            newest[at] = newest[at].max(newest[at - 1]);
        }
        let log = case.log(|label, at| newest[at] >= label.known);
        let carried = carried(&features, &case);
        let (mut row, mut scratch) = (vec![0.0; features.width()], Scratch::default());
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
                    Entry::Transaction(_) => {
                        view.apply_carrying(&other.transaction(index), &carried[index], &mut state, &mut scratch);
                    }
                }
            }
            view.evaluate(Some(&state), time(tx.time), &mut row);
            let expected = case.expected_row(at);
            let terminal = features.width() - view.slots().count()..;
            prop_assert_eq!(bits(&row[terminal.clone()]), bits(&expected[terminal]), "event {} read at {}", at, through);
        }
    }

    /// Events of different times give one state, in whatever order they come.
    #[test]
    fn the_order_of_arrival_does_not_matter(case in case(), order: Vec<Index>) {
        let features = case.features();
        let (_, view) = views(&features);
        let transactions = case.transactions.iter().enumerate().map(|(at, tx)| tx.transaction(at));
        let mut events: Vec<(Transaction, Vec<f64>)> = transactions.zip(carried(&features, &case)).collect();
        events.sort_by_key(|(event, _)| event.event_time);
        events.dedup_by_key(|(event, _)| event.event_time);
        let state = |events: &[(Transaction, Vec<f64>)]| {
            let mut state = WindowState::default();
            let mut scratch = Scratch::default();
            for (event, carried) in events {
                view.apply_carrying(event, carried, &mut state, &mut scratch);
            }
            state
        };
        let in_order = state(&events);
        for (at, with) in order.iter().enumerate().take(events.len()) {
            let with = with.index(events.len());
            events.swap(at, with);
        }
        prop_assert_eq!(state(&events), in_order);
    }

    #[test]
    fn no_state_is_a_state_without_events(case in case()) {
        let features = case.features();
        for view in features.views() {
            let (mut none, mut empty) = (vec![0.0; features.width()], vec![0.0; features.width()]);
            view.evaluate(None, time(START_MS), &mut none);
            view.evaluate(Some(&WindowState::default()), time(START_MS), &mut empty);
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
        let (cards, _) = views(&features);
        let mut state = WindowState::default();
        let mut scratch = Scratch::default();
        for (index, tx) in case.transactions.iter().enumerate() {
            cards.apply(&tx.transaction(index), &mut state, &mut scratch);
            tx.labels.iter().for_each(|label| insert_label(&mut state, index, tx, label));
        }
        let mut damaged = Vec::new();
        state.encode(&mut damaged);
        for (at, byte) in flips {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        damaged.truncate(cut.map_or(usize::MAX, |cut| cut.index(damaged.len())));
        let versioned: Vec<u8> = [2].into_iter().chain(noise.iter().copied()).collect();
        for bytes in [damaged, noise, versioned] {
            let Ok(mut state) = WindowState::decode(&bytes) else { continue };
            // A series takes three bytes at least and a kilobyte with all its columns in memory; an event two bytes, and 100 with all that can be kept of it.
            prop_assert!(state.bytes() <= 1000 + 500 * bytes.len(), "{} of {}", state.bytes(), bytes.len());
            round_trip(&mut state);
            let mut row = vec![0.0; features.width()];
            for at in [EventTime::MIN, time(START_MS), EventTime::MAX] {
                features.views().iter().for_each(|view| view.evaluate(Some(&state), at, &mut row));
            }
            let transaction = Tx { time: START_MS, card: 0, terminal: 0, units: 1, labels: Vec::new() }.transaction(0);
            features.join(&transaction, Some(&mut state), &[], &mut scratch, &mut row);
        }
    }
}

/// A view of cards with these keys and windows, each after a `- `.
fn card_view(keys: &str, windows: &[&str]) -> FeatureSet {
    let windows: String = windows.iter().map(|window| format!("      - {window}\n")).collect();
    let text = format!(
        "version: 1\nallowed_lateness: 1d\nviews:\n  - name: card\n    entity: card_id\n{keys}    windows:\n{windows}"
    );
    FeatureSet::parse(&text, "view.yaml").unwrap_or_else(|error| panic!("{error}"))
}

fn payment(millis: i64, amount: Amount) -> Transaction {
    Transaction {
        transaction_id: "1".into(),
        event_time: time(millis),
        card_id: "c".into(),
        terminal_id: "t".into(),
        amount,
    }
}

/// Brings payments into a state of `features`' first view.
fn apply(features: &FeatureSet, state: &mut WindowState, payments: impl IntoIterator<Item = (i64, Amount)>) {
    let mut scratch = Scratch::default();
    for (millis, amount) in payments {
        features.views()[0].apply(&payment(millis, amount), state, &mut scratch);
    }
}

#[test]
fn amounts_and_times_of_any_size_survive_the_codec() {
    let features = card_view("    exact: all\n", &["{ name: S, aggregate: sum, over: [1d] }"]);
    let mut state = WindowState::default();
    for (index, millis) in [i64::MIN, i64::MIN + 1, -1001, -1000, 0, 1, 1000, i64::MAX].into_iter().enumerate() {
        let units = [0, 1, -1, 100, i64::MAX >> 1, (i64::MAX >> 1) - 1, i64::MIN >> 1, i64::MAX, i64::MIN];
        apply(&features, &mut state, units.map(|units| (millis, Amount::from_units(units))));
        state.insert_label(&id(index), time(millis), time(-millis.max(-i64::MAX)), index.is_multiple_of(3));
    }
    round_trip(&mut state);
    assert_eq!(state.len(), 72);
}

#[test]
fn a_forged_count_reserves_nothing() {
    for count in [3, 1 << 20, 1 << 40, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
        // Series, three bytes each at least; events of a series with totals, two bytes; its tiles; labels, four bytes.
        for (head, rest) in [(&[2][..], 4), (&[2, 1, 1][..], 4), (&[2, 1, 1, 0][..], 8), (&[2, 0][..], 8)] {
            let mut bytes = head.to_vec();
            write_unsigned(&mut bytes, count);
            bytes.resize(bytes.len() + rest, 0);
            assert!(WindowState::decode(&bytes).is_err(), "{count}");
        }
    }
}

#[test]
fn what_a_busy_entity_took_is_given_back() {
    let features = card_view("    exact: all\n", &["{ name: S, aggregate: sum, over: [1d] }"]);
    let view = &features.views()[0];
    let keep = Duration::from_secs(1000);
    let mut state = WindowState::default();
    let mut busiest = 0;
    for second in 0..100_000 {
        // A hundredfold for a while.
        let times = if (20_000..21_000).contains(&second) { 100 } else { 1 };
        apply(&features, &mut state, (0..times).map(|_| (second * 1000, Amount::from_cents(second))));
        state.insert_label(&id(second as usize), time(second * 1000), time(second * 1000 + 5), true);
        busiest = busiest.max(state.bytes());
        view.evict(&mut state, time(second * 1000) - keep);
        let kept = if (20_000..22_000).contains(&second) { 100_000 } else { 1000 };
        assert!(state.len() <= kept, "{} events", state.len());
    }
    // 1,000 events of 16 bytes and labels of 48 and an id of 36 for half of them, in buffers at
    // most four times too large.
    assert!(busiest > 100_000 * 16 && state.bytes() < 4 * 1000 * (16 + 48 + 18), "{} of {busiest}", state.bytes());
    view.evict(&mut state, EventTime::MAX);
    assert!(state.is_empty() && state.bytes() < 4096, "{}", state.bytes());
}

#[test]
fn memory_is_bounded_however_busy_an_entity_is() {
    let windows = ["count", "sum", "mean", "min", "max", "std", "last", "rank", "first_seen"];
    let mut lines: Vec<String> =
        windows.iter().map(|name| format!("{{ name: {name}, aggregate: {name}, over: [7d] }}")).collect();
    lines.push("{ name: distinct, aggregate: distinct, value: terminal_id, over: [7d] }".into());
    lines.push("{ name: run, aggregate: run_length, match: amount > 2, over: [7d] }".into());
    lines.push("{ name: 'back{back}', aggregate: previous, value: amount / mean, back: 16, over: [7d] }".into());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let features = card_view("    exact: 100\n    tile: 1h\n", &lines);
    let view = &features.views()[0];
    let mut state = WindowState::default();
    let mut bytes = 0;
    for second in 0..10 * 86_400 {
        apply(&features, &mut state, [(second * 1000, Amount::from_cents(second % 977))]);
        view.evict(&mut state, time(second * 1000) - view.keep());
        if second == 9 * 86_400 {
            bytes = state.bytes();
        }
    }
    assert_eq!(state.len(), 100);
    assert!(state.bytes() <= bytes, "{} after {bytes}", state.bytes());
    let most = view.entity_bytes_max().expect("tiles bound it");
    assert!(bytes <= most && most < 4 * bytes, "{bytes} of {most}");
    // Four series of 100 events and 193 tiles (8 days, lateness included, and one) of 96 bytes, in buffers at most twice too large.
    assert!(bytes < 2 * 4 * (100 * 100 + 193 * 112) + 4096, "{bytes}");
}

#[test]
fn long_ids_of_labels_count_as_memory() {
    let features = card_view("", &["{ name: S, aggregate: sum, over: [1d] }"]);
    let mut state = WindowState::default();
    for index in 0..1000 {
        state.insert_label(&format!("{index:-<200}").into(), time(index), time(index), true);
    }
    assert!(state.bytes() > 1000 * (200 + 48), "{}", state.bytes());
    let before = state.bytes();
    round_trip(&mut state);
    assert!(state.bytes() > 1000 * (200 + 48) && state.bytes() <= before, "{} of {before}", state.bytes());
    features.views()[0].evict(&mut state, EventTime::MAX);
    assert!(state.bytes() < 4096, "{}", state.bytes());
}
