//! The offline driver: vectors for a recorded stream, point in time, as the scorer gave them.

use hashbrown::HashMap;
use schemas::{EventTime, Id, Label, Transaction};

use crate::definitions::Entity;
use crate::features::FeatureSet;
use crate::window::WindowState;

/// Computes the features of a stream that is read in log order, by the very code the scorer runs
/// (invariant I5).
#[derive(Debug)]
pub struct Backfill<'a> {
    features: &'a FeatureSet,
    cards: HashMap<Id, WindowState>,
    terminals: HashMap<Id, WindowState>,
    newest: EventTime,
    values: Vec<f64>,
}

impl<'a> Backfill<'a> {
    pub fn new(features: &'a FeatureSet) -> Backfill<'a> {
        Backfill {
            features,
            cards: HashMap::new(),
            terminals: HashMap::new(),
            newest: EventTime::MIN,
            values: vec![f64::NAN; features.width()],
        }
    }

    /// Takes in a label. It counts from the event time on at which it has been known for the
    /// view's staleness, so it may come any time before that.
    pub fn label(&mut self, label: &Label) {
        let state = self.terminals.entry_ref(&label.terminal_id).or_default();
        state.insert_label(&label.transaction_id, label.transaction_time, label.label_time, label.fraud);
    }

    /// Takes in the next transaction, and appends its vector to `out`.
    pub fn transaction(&mut self, transaction: &Transaction, out: &mut Vec<f32>) {
        let time = transaction.event_time;
        self.newest = self.newest.max(time);
        self.features.request(transaction, &mut self.values);
        if let Some(view) = self.features.view_of(Entity::TerminalId) {
            let state = self.terminals.entry_ref(&transaction.terminal_id).or_default();
            state.evict(self.newest - view.keep());
            state.insert(time, transaction.amount);
            view.evaluate(Some(state), time, None, &mut self.values);
        }
        if let Some(view) = self.features.view_of(Entity::CardId) {
            let state = self.cards.entry_ref(&transaction.card_id).or_default();
            state.evict(time - view.keep());
            let position = state.insert(time, transaction.amount);
            view.evaluate(Some(state), time, Some(position), &mut self.values);
        }
        self.features.assemble(&mut self.values, out);
    }
}
