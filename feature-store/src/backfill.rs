//! The offline driver: vectors for a recorded stream, point in time, as the scorer gave them.

use std::hash::BuildHasher;
use std::num::NonZero;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};
use schemas::{EventTime, Id, Label, ProfileUpdate, Transaction};

use crate::features::{FeatureSet, Scratch, Status, View};
use crate::window::WindowState;

/// Computes the features of a stream that is read in log order, by the very code the scorer runs
/// (invariant I5).
///
/// Many rows at a time are computed on all threads: first the views that others keep, each entity on one thread, then the cards'
/// own, each card on one. So every state sees its events in the order of the rows, whatever the number of threads.
#[derive(Debug)]
pub struct Backfill<'a> {
    features: &'a FeatureSet,
    shards: Vec<Shard>,
    hasher: DefaultHashBuilder,
    newest: EventTime,
    /// The newest event when states that are needed no more were last taken out.
    swept: EventTime,
}

/// Vectors, and what their values are worth.
#[derive(Debug, Default)]
pub struct Rows {
    /// One row of the layout's width for each transaction; `NaN` is a missing value.
    pub values: Vec<f32>,
    /// One row of [`FeatureSet::status_columns`] for each transaction.
    pub statuses: Vec<Status>,
}

/// The entities whose hash is of one residue.
#[derive(Debug)]
struct Shard {
    /// Of each view, by entity.
    states: Vec<HashMap<Id, WindowState>>,
    scratch: Scratch,
}

/// What a shard computed: indexes of its rows, and for each its values and statuses.
struct Part {
    rows: Vec<u32>,
    values: Vec<f64>,
    statuses: Vec<Status>,
}

impl<'a> Backfill<'a> {
    /// A driver on the calling thread alone.
    pub fn new(features: &'a FeatureSet) -> Backfill<'a> {
        Backfill::on_threads(features, NonZero::<usize>::MIN)
    }

    pub fn on_threads(features: &'a FeatureSet, threads: NonZero<usize>) -> Backfill<'a> {
        let shard =
            || Shard { states: features.views().iter().map(|_| HashMap::new()).collect(), scratch: Scratch::default() };
        Backfill {
            features,
            shards: (0..threads.get()).map(|_| shard()).collect(),
            hasher: DefaultHashBuilder::default(),
            newest: EventTime::MIN,
            swept: EventTime::MIN,
        }
    }

    /// Takes in a label. It counts from the event time on at which it has been known for the
    /// view's staleness, so it may come any time before that.
    pub fn label(&mut self, label: &Label) {
        for (index, _) in self.features.shared_views().filter(|(_, view)| !view.is_profile()) {
            let state = self.state(index, &label.terminal_id);
            state.insert_label(&label.transaction_id, label.transaction_time, label.label_time, label.fraud);
        }
    }

    /// Takes in a profile update; like a label it may come any time before it counts. An update of a view that the definitions
    /// don't have changes nothing.
    pub fn profile(&mut self, update: &ProfileUpdate) {
        let Some((index, view)) = self.features.profile_view(&update.view) else { return };
        let numbers = update.values.iter().filter_map(|(field, value)| value.as_number().map(|value| (field, value)));
        view.apply_profile(update.event_time, numbers, self.state(index, &update.entity_id));
    }

    fn state(&mut self, view: usize, entity: &Id) -> &mut WindowState {
        let shard = self.shard_of(entity);
        self.shards[shard].states[view].entry_ref(entity).or_default()
    }

    fn shard_of(&self, entity: &Id) -> usize {
        match self.shards.len() {
            1 => 0,
            shards => (self.hasher.hash_one(entity) % shards as u64) as usize,
        }
    }

    /// Takes in the next transaction, and appends its vector to `out`.
    pub fn transaction(&mut self, transaction: &Transaction, out: &mut Vec<f32>) {
        out.extend(self.rows(&[transaction]).values);
    }

    /// Takes in the next transactions, and gives their vectors, in their order.
    pub fn rows(&mut self, transactions: &[&Transaction]) -> Rows {
        let features = self.features;
        let (width, statuses) = (features.width(), features.status_columns().count());
        let count = transactions.len();
        // The newest event up to each.
        let newest: Vec<EventTime> = transactions
            .iter()
            .map(|transaction| {
                self.newest = self.newest.max(transaction.event_time);
                self.newest
            })
            .collect();
        let mut rows = Rows { values: Vec::new(), statuses: vec![Status::NotFound; count * statuses] };
        let mut values = vec![f64::NAN; count * width];
        for (index, view) in features.shared_views() {
            let slots: Vec<usize> = view.slots().collect();
            let columns = features.status_columns_of(index);
            let parts = self.on_shards(
                |this, row| this.shard_of(view.entity().id_in(transactions[row])),
                count,
                |shard, part| shard.read_shared(features, index, transactions, &newest, &slots, part),
            );
            for part in parts {
                for (at, &row) in part.rows.iter().enumerate() {
                    let row = row as usize;
                    for (&slot, value) in slots.iter().zip(&part.values[at * slots.len()..]) {
                        values[row * width + slot] = *value;
                    }
                    let found = &part.statuses[at * columns.len()..(at + 1) * columns.len()];
                    rows.statuses[row * statuses + columns.start..row * statuses + columns.end].copy_from_slice(found);
                }
            }
        }
        let own = features.views().iter().position(View::is_owned);
        let values = &values;
        let parts = self.on_shards(
            |this, row| this.shard_of(&transactions[row].card_id),
            count,
            |shard, part| shard.join(features, own, transactions, values, part),
        );
        rows.values = vec![f32::NAN; count * width];
        let own_column = own.map(|own| features.status_columns_of(own).start);
        for part in parts {
            for (at, &row) in part.rows.iter().enumerate() {
                let row = row as usize;
                let vector = &part.values[at * width..(at + 1) * width];
                for (out, &value) in rows.values[row * width..(row + 1) * width].iter_mut().zip(vector) {
                    *out = value as f32;
                }
                if let Some(column) = own_column {
                    rows.statuses[row * statuses + column] = part.statuses[at];
                }
            }
        }
        self.sweep();
        rows
    }

    /// Lets each shard compute its rows, on a thread of its own.
    fn on_shards(
        &mut self,
        shard_of: impl Fn(&Backfill<'a>, usize) -> usize,
        count: usize,
        compute: impl Fn(&mut Shard, &mut Part) + Sync,
    ) -> Vec<Part> {
        let part = || Part { rows: Vec::new(), values: Vec::new(), statuses: Vec::new() };
        let mut parts: Vec<Part> = self.shards.iter().map(|_| part()).collect();
        for row in 0..count {
            parts[shard_of(self, row)].rows.push(row as u32);
        }
        if let ([shard], [part]) = (&mut self.shards[..], &mut parts[..]) {
            compute(shard, part);
            return parts;
        }
        let compute = &compute;
        std::thread::scope(|scope| {
            for (shard, part) in self.shards.iter_mut().zip(&mut parts) {
                scope.spawn(move || compute(shard, part));
            }
        });
        parts
    }

    /// Takes out the states of entities that were quiet for longer than any window reaches, once in that time.
    fn sweep(&mut self) {
        let keep = self.features.views().iter().map(View::keep).max().unwrap_or_default();
        if self.newest < self.swept.saturating_add(keep.max(Duration::from_secs(3600))) {
            return;
        }
        self.swept = self.newest;
        for shard in &mut self.shards {
            for (view, states) in self.features.views().iter().zip(&mut shard.states) {
                states.retain(|_, state| {
                    view.evict(state, self.newest - view.keep());
                    !state.is_empty()
                });
            }
        }
    }
}

impl Shard {
    /// The values and statuses of a view that others keep, for each row of `part`.
    fn read_shared(
        &mut self,
        features: &FeatureSet,
        view: usize,
        transactions: &[&Transaction],
        newest: &[EventTime],
        slots: &[usize],
        part: &mut Part,
    ) {
        let states = &mut self.states[view];
        let view = &features.views()[view];
        let mut values = vec![f64::NAN; features.width()];
        part.values.reserve(part.rows.len() * slots.len());
        for &row in &part.rows {
            let (transaction, newest) = (transactions[row as usize], newest[row as usize]);
            let id = view.entity().id_in(transaction);
            let time = transaction.event_time;
            if view.is_profile() {
                let state = states.get(id);
                view.evaluate(state, time, &mut values);
                part.statuses.extend(slots.iter().map(|&slot| view.status(state, time, slot, values[slot])));
            } else {
                let state = states.entry_ref(id).or_default();
                view.evict(state, newest - view.keep());
                part.statuses.push(if state.is_empty() { Status::NotFound } else { Status::Present });
                view.apply(transaction, state, &mut self.scratch);
                view.evaluate(Some(state), time, &mut values);
            }
            part.values.extend(slots.iter().map(|&slot| values[slot]));
        }
    }

    /// The vectors of the rows of `part`, of which `values` has what was read from the views that others keep, and whether the card
    /// was known.
    fn join(
        &mut self,
        features: &FeatureSet,
        own: Option<usize>,
        transactions: &[&Transaction],
        values: &[f64],
        part: &mut Part,
    ) {
        let width = features.width();
        part.values.reserve(part.rows.len() * width);
        for &row in &part.rows {
            let transaction = transactions[row as usize];
            let begin = part.values.len();
            part.values.extend_from_slice(&values[row as usize * width..(row as usize + 1) * width]);
            let vector = &mut part.values[begin..];
            let state = own.map(|own| {
                let view = &features.views()[own];
                let state = self.states[own].entry_ref(&transaction.card_id).or_default();
                view.evict(state, transaction.event_time - view.keep());
                part.statuses.push(if state.is_empty() { Status::NotFound } else { Status::Present });
                state
            });
            features.join_given(transaction, state, &mut self.scratch, vector);
            features.derive(transaction, vector);
        }
    }
}
