//! The offline driver: vectors for a recorded stream, point in time, as the scorer gave them.

use hashbrown::HashMap;
use schemas::{EventTime, Id, Label, ProfileUpdate, Transaction};

use crate::features::{FeatureSet, Scratch};
use crate::window::WindowState;

/// Computes the features of a stream that is read in log order, by the very code the scorer runs
/// (invariant I5).
#[derive(Debug)]
pub struct Backfill<'a> {
    features: &'a FeatureSet,
    /// Of each view, by entity.
    states: Vec<HashMap<Id, WindowState>>,
    newest: EventTime,
    values: Vec<f64>,
    scratch: Scratch,
}

impl<'a> Backfill<'a> {
    pub fn new(features: &'a FeatureSet) -> Backfill<'a> {
        Backfill {
            features,
            states: features.views().iter().map(|_| HashMap::new()).collect(),
            newest: EventTime::MIN,
            values: vec![f64::NAN; features.width()],
            scratch: Scratch::default(),
        }
    }

    /// Takes in a label. It counts from the event time on at which it has been known for the
    /// view's staleness, so it may come any time before that.
    pub fn label(&mut self, label: &Label) {
        for (index, _) in self.features.shared_views().filter(|(_, view)| !view.is_profile()) {
            let state = self.states[index].entry_ref(&label.terminal_id).or_default();
            state.insert_label(&label.transaction_id, label.transaction_time, label.label_time, label.fraud);
        }
    }

    /// Takes in a profile update; like a label it may come any time before it counts. An update of a view that the definitions
    /// don't have changes nothing.
    pub fn profile(&mut self, update: &ProfileUpdate) {
        let Some((index, view)) = self.features.profile_view(&update.view) else { return };
        let state = self.states[index].entry_ref(&update.entity_id).or_default();
        let numbers = update.values.iter().filter_map(|(field, value)| value.as_number().map(|value| (field, value)));
        view.apply_profile(update.event_time, numbers, state);
    }

    /// Takes in the next transaction, and appends its vector to `out`.
    pub fn transaction(&mut self, transaction: &Transaction, out: &mut Vec<f32>) {
        let features = self.features;
        let time = transaction.event_time;
        self.newest = self.newest.max(time);
        let mut shared: Vec<Option<&WindowState>> = Vec::with_capacity(self.states.len());
        let mut own = None;
        for (view, states) in features.views().iter().zip(&mut self.states) {
            let id = view.entity().id_in(transaction);
            if view.is_profile() {
                shared.push(states.get(id));
                continue;
            }
            let state = states.entry_ref(id).or_default();
            if view.is_owned() {
                view.evict(state, time - view.keep());
                own = Some(state);
                shared.push(None);
            } else {
                view.evict(state, self.newest - view.keep());
                view.apply(transaction, state, &mut self.scratch);
                shared.push(Some(state));
            }
        }
        features.join(transaction, own, &shared, &mut self.scratch, &mut self.values);
        features.assemble(transaction, &mut self.values, out);
    }
}
