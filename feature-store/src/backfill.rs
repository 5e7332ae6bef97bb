//! The offline driver: vectors for a recorded stream, point in time, as the scorer gave them.

use hashbrown::HashMap;
use schemas::{EventTime, Id, Label, Transaction};

use crate::definitions::Entity;
use crate::features::{FeatureSet, Scratch};
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
    scratch: Scratch,
}

impl<'a> Backfill<'a> {
    pub fn new(features: &'a FeatureSet) -> Backfill<'a> {
        Backfill {
            features,
            cards: HashMap::new(),
            terminals: HashMap::new(),
            newest: EventTime::MIN,
            values: vec![f64::NAN; features.width()],
            scratch: Scratch::default(),
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
        let features = self.features;
        let time = transaction.event_time;
        self.newest = self.newest.max(time);
        let mut shared: [Option<&WindowState>; Entity::COUNT] = [None; Entity::COUNT];
        if let Some((index, view)) = features.shared_views().next() {
            let state = self.terminals.entry_ref(&transaction.terminal_id).or_default();
            view.evict(state, self.newest - view.keep());
            view.apply(transaction, state, &mut self.scratch);
            shared[index] = Some(state);
        }
        let own = features.view_of(Entity::CardId).map(|view| {
            let state = self.cards.entry_ref(&transaction.card_id).or_default();
            view.evict(state, time - view.keep());
            state
        });
        features.join(transaction, own, &shared, &mut self.scratch, &mut self.values);
        features.assemble(transaction, &mut self.values, out);
    }
}
