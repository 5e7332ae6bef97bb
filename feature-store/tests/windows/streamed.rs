//! A case's log, event by event, against the oracle.

use feature_store::{Entity, FeatureSet, Scratch, View, WindowState};
use proptest::prelude::*;
use schemas::EventTime;

use crate::oracle::{Case, ENTITIES, Entry, Side, Tx, TxLabel, id};

pub fn time(millis: i64) -> EventTime {
    EventTime::from_millis(millis)
}

/// Equal bit for bit, all missing values being one.
pub fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }).collect()
}

pub fn insert_label(state: &mut WindowState, index: usize, transaction: &Tx, label: &TxLabel) {
    state.insert_label(&id(index), time(transaction.time), time(label.known), label.fraud);
}

pub fn views(features: &FeatureSet) -> (&View, &View) {
    let view = |entity| features.view_of(entity).expect("a case has both views");
    (view(Entity::CardId), view(Entity::TerminalId))
}

/// What each transaction brings along to its terminal.
pub fn carried(features: &FeatureSet, case: &Case) -> Vec<Vec<f64>> {
    let (mut cards, mut scratch) = (vec![WindowState::default(); ENTITIES], Scratch::default());
    let of_transaction = |(at, tx): (usize, &Tx)| match features.carry() {
        Some(carry) => carry.values(&tx.transaction(at), &mut cards[tx.card], &mut scratch).collect(),
        None => Vec::new(),
    };
    case.transactions.iter().enumerate().map(of_transaction).collect()
}

/// Every row as the oracle has it. `round_trip` gets the states of the entities of some of the events, to write them
/// somewhere and to read them back.
pub fn check(case: &Case, mut round_trip: impl FnMut(Side, usize, &mut WindowState)) -> Result<(), TestCaseError> {
    let features = case.features();
    let (cards_view, terminals_view) = views(&features);
    let mut cards = vec![WindowState::default(); ENTITIES];
    let mut terminals = cards.clone();
    let (mut row, mut scratch) = (vec![0.0; features.width()], Scratch::default());
    let (mut newest, carried) = (EventTime::MIN, carried(&features, case));
    for (step, entry) in case.log_with_labels_in_time().into_iter().enumerate() {
        let (Entry::Transaction(index) | Entry::Label(index, _)) = entry;
        let tx = &case.transactions[index];
        let (card, terminal) = (&mut cards[tx.card], &mut terminals[tx.terminal]);
        if case.evictions[step % case.evictions.len()] {
            cards_view.evict(card, newest - cards_view.keep());
            terminals_view.evict(terminal, newest - terminals_view.keep());
        }
        match entry {
            Entry::Label(_, label) => insert_label(terminal, index, tx, label),
            Entry::Transaction(at) => {
                newest = newest.max(time(tx.time));
                let transaction = tx.transaction(at);
                terminals_view.apply_carrying(&transaction, &carried[at], terminal, &mut scratch);
                let mut replayed = card.clone();
                features.join(&transaction, Some(card), &[None, Some(terminal)], &mut scratch, &mut row);
                let expected = case.expected_row(at);
                prop_assert_eq!(bits(&row), bits(&expected), "transaction {}: {:?}, expected {:?}", at, row, expected);
                cards_view.apply(&transaction, &mut replayed, &mut scratch);
                prop_assert_eq!(&replayed, &*card, "a replay of transaction {} gives another state", at);
            }
        }
        if case.round_trips[step % case.round_trips.len()] {
            round_trip(Side::Card, tx.card, card);
            round_trip(Side::Terminal, tx.terminal, terminal);
        }
    }
    Ok(())
}
