//! The offline driver: vectors for a recorded stream, point in time, as the scorer gave them.

use std::hash::BuildHasher;
use std::num::NonZero;
use std::ops::Range;
use std::panic::resume_unwind;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};
use schemas::{EventTime, Id, Label, ProfileUpdate, Transaction};

use crate::carry::Carry;
use crate::definitions::Entity;
use crate::features::FeatureSet;
use crate::view::{Scratch, Status, View};
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
    /// One row of [`FeatureSet::status_columns`] for each transaction. A view of windows is `NotFound` where none of them can
    /// hold an event (of a card, one before this), else `Null` where a value is missing.
    pub statuses: Vec<Status>,
}

/// The entities whose hash is of one residue.
#[derive(Debug)]
struct Shard {
    /// Of each view, by entity.
    states: Vec<HashMap<Id, WindowState>>,
    /// Of cards, for what their events bring along.
    carrying: HashMap<Id, WindowState>,
    scratch: Scratch,
}

/// Rows, shared out by an entity of theirs.
struct Split {
    /// The rows of each shard.
    rows: Vec<Vec<u32>>,
    /// Of each row, its shard and its place among the rows of that.
    places: Vec<(u32, u32)>,
}

/// What a shard read off a view that others keep, in the order of its rows.
#[derive(Default)]
struct Shared {
    values: Vec<f64>,
    statuses: Vec<Status>,
}

/// A view, as all shards see it.
struct ViewPlan<'a> {
    index: usize,
    view: &'a View,
    slots: Vec<usize>,
    statuses: Range<usize>,
    /// How long before a row the windows begin and end.
    sees: Range<Duration>,
}

impl<'a> Backfill<'a> {
    /// A driver on the calling thread alone.
    pub fn new(features: &'a FeatureSet) -> Backfill<'a> {
        Backfill::on_threads(features, NonZero::<usize>::MIN)
    }

    pub fn on_threads(features: &'a FeatureSet, threads: NonZero<usize>) -> Backfill<'a> {
        let shard = || Shard {
            states: features.views().iter().map(|_| HashMap::new()).collect(),
            carrying: HashMap::new(),
            scratch: Scratch::default(),
        };
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
        // The newest event up to each.
        let newest: Vec<EventTime> = transactions
            .iter()
            .map(|transaction| {
                self.newest = self.newest.max(transaction.event_time);
                self.newest
            })
            .collect();
        let features = self.features;
        let mut splits: [Option<Split>; Entity::COUNT] = [const { None }; Entity::COUNT];
        let mut carried = vec![Vec::new(); transactions.len()];
        if let Some(carry) = features.carry() {
            let split = splits[Entity::CardId as usize].get_or_insert_with(|| self.split(Entity::CardId, transactions));
            let parts = self.on_shards(|shard, number| shard.carry(carry, &split.rows[number], transactions));
            for (rows, part) in split.rows.iter().zip(parts) {
                rows.iter().zip(part).for_each(|(&row, values)| carried[row as usize] = values);
            }
        }
        let mut shared = Vec::new();
        for (index, view) in features.shared_views() {
            let plan = ViewPlan::new(features, index);
            let split = splits[view.entity() as usize].get_or_insert_with(|| self.split(view.entity(), transactions));
            let read = self.on_shards(|shard, number| {
                shard.read_shared(&plan, &split.rows[number], transactions, &carried, &newest)
            });
            shared.push((plan, read));
        }
        splits[Entity::CardId as usize].get_or_insert_with(|| self.split(Entity::CardId, transactions));
        let own = features.views().iter().position(View::is_owned).map(|index| ViewPlan::new(features, index));
        let Some(cards) = &splits[Entity::CardId as usize] else { return Rows::default() };
        let joined = self.on_shards(|shard, number| {
            shard.join(features, own.as_ref(), &cards.rows[number], transactions, &shared, &splits)
        });
        self.sweep();
        cards.in_order(joined, features.width(), features.status_columns().count())
    }

    fn split(&self, entity: Entity, transactions: &[&Transaction]) -> Split {
        let mut split =
            Split { rows: vec![Vec::new(); self.shards.len()], places: Vec::with_capacity(transactions.len()) };
        for (row, transaction) in transactions.iter().enumerate() {
            let shard = self.shard_of(entity.id_in(transaction));
            split.places.push((shard as u32, split.rows[shard].len() as u32));
            split.rows[shard].push(row as u32);
        }
        split
    }

    /// Lets each shard compute, on a thread of its own; `compute` is told its number.
    fn on_shards<T: Send>(&mut self, compute: impl Fn(&mut Shard, usize) -> T + Sync) -> Vec<T> {
        if let [shard] = &mut self.shards[..] {
            return vec![compute(shard, 0)];
        }
        let compute = &compute;
        std::thread::scope(|scope| {
            let shards = self.shards.iter_mut().enumerate();
            let threads: Vec<_> = shards.map(|(number, shard)| scope.spawn(move || compute(shard, number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    /// Takes out the states of entities that were quiet for longer than any window reaches, once in that time.
    fn sweep(&mut self) {
        let keep = self.features.views().iter().map(View::keep).max().unwrap_or_default();
        if self.newest < self.swept.saturating_add(keep.max(Duration::from_secs(3600))) {
            return;
        }
        self.swept = self.newest;
        for shard in &mut self.shards {
            if let Some(carry) = self.features.carry() {
                retain(&mut shard.carrying, carry.view(), self.newest);
            }
            for (view, states) in self.features.views().iter().zip(&mut shard.states) {
                retain(states, view, self.newest);
            }
        }
    }
}

fn retain(states: &mut HashMap<Id, WindowState>, view: &View, newest: EventTime) {
    states.retain(|_, state| {
        view.evict(state, newest - view.keep());
        !state.is_empty()
    });
}

impl Split {
    /// What the shards computed of their rows, in the order of all rows.
    fn in_order(&self, mut parts: Vec<Rows>, width: usize, statuses: usize) -> Rows {
        if parts.len() == 1 {
            return parts.pop().unwrap_or_default();
        }
        let mut rows = Rows {
            values: Vec::with_capacity(self.places.len() * width),
            statuses: Vec::with_capacity(self.places.len() * statuses),
        };
        for &(shard, place) in &self.places {
            let (part, place) = (&parts[shard as usize], place as usize);
            rows.values.extend_from_slice(&part.values[place * width..(place + 1) * width]);
            rows.statuses.extend_from_slice(&part.statuses[place * statuses..(place + 1) * statuses]);
        }
        rows
    }
}

impl<'a> ViewPlan<'a> {
    fn new(features: &'a FeatureSet, index: usize) -> ViewPlan<'a> {
        let view = &features.views()[index];
        ViewPlan {
            index,
            view,
            slots: view.slots().collect(),
            statuses: features.status_columns_of(index),
            sees: view.nearest()..view.keep().saturating_sub(features.allowed_lateness()),
        }
    }

    /// Whether its windows can hold an event for a row at `time`; of the same for any order of the rows that is within the allowed
    /// lateness, whatever `state` has besides.
    fn is_known(&self, state: &WindowState, time: EventTime) -> bool {
        self.view.has_events(state, time - self.sees.end, time - self.sees.start)
    }

    fn status(&self, known: bool, values: &[f64]) -> Status {
        match known {
            false => Status::NotFound,
            true if self.slots.iter().any(|&slot| values[slot].is_nan()) => Status::Null,
            true => Status::Present,
        }
    }
}

impl Shard {
    /// What each of `rows` brings along.
    fn carry(&mut self, carry: &Carry, rows: &[u32], transactions: &[&Transaction]) -> Vec<Vec<f64>> {
        let of_row = |&row: &u32| {
            let transaction = transactions[row as usize];
            let state = self.carrying.entry_ref(&transaction.card_id).or_default();
            carry.view().evict(state, transaction.event_time - carry.view().keep());
            carry.values(transaction, state, &mut self.scratch).collect()
        };
        rows.iter().map(of_row).collect()
    }

    /// The values and statuses of a view that others keep, for each of `rows`.
    fn read_shared(
        &mut self,
        plan: &ViewPlan<'_>,
        rows: &[u32],
        transactions: &[&Transaction],
        carried: &[Vec<f64>],
        newest: &[EventTime],
    ) -> Shared {
        let ViewPlan { view, slots, .. } = plan;
        let width = view.width;
        let states = &mut self.states[plan.index];
        let (mut values, mut statuses) = (vec![f64::NAN; width], vec![Status::NotFound; width]);
        let mut read = Shared {
            values: Vec::with_capacity(rows.len() * slots.len()),
            statuses: Vec::with_capacity(rows.len() * plan.statuses.len()),
        };
        for &row in rows {
            let (transaction, newest) = (transactions[row as usize], newest[row as usize]);
            let id = view.entity().id_in(transaction);
            let time = transaction.event_time;
            if view.is_profile() {
                let state = states.get(id);
                view.look_up(state, time, &mut values, &mut statuses);
                read.statuses.extend(slots.iter().map(|&slot| statuses[slot]));
            } else {
                let state = states.entry_ref(id).or_default();
                view.evict(state, newest - view.keep());
                view.apply_carrying(transaction, &carried[row as usize], state, &mut self.scratch);
                view.evaluate(Some(state), time, &mut values);
                read.statuses.push(plan.status(plan.is_known(state, time), &values));
            }
            read.values.extend(slots.iter().map(|&slot| values[slot]));
        }
        read
    }

    /// The vectors of `rows`, for which `shared` has what was read off the views that others keep.
    fn join(
        &mut self,
        features: &FeatureSet,
        own: Option<&ViewPlan<'_>>,
        rows: &[u32],
        transactions: &[&Transaction],
        shared: &[(ViewPlan<'_>, Vec<Shared>)],
        splits: &[Option<Split>; Entity::COUNT],
    ) -> Rows {
        let (width, columns) = (features.width(), features.status_columns().count());
        let (mut values, mut statuses) = (vec![f64::NAN; width], vec![Status::NotFound; columns]);
        let mut joined =
            Rows { values: Vec::with_capacity(rows.len() * width), statuses: Vec::with_capacity(rows.len() * columns) };
        for &row in rows {
            let transaction = transactions[row as usize];
            for (plan, read) in shared {
                let Some(split) = &splits[plan.view.entity() as usize] else { continue };
                let (shard, place) = split.places[row as usize];
                let (read, place) = (&read[shard as usize], place as usize);
                for (&slot, &value) in plan.slots.iter().zip(&read.values[place * plan.slots.len()..]) {
                    values[slot] = value;
                }
                let count = plan.statuses.len();
                statuses[plan.statuses.clone()].copy_from_slice(&read.statuses[place * count..(place + 1) * count]);
            }
            let mut known = false;
            let state = own.map(|plan| {
                let time = transaction.event_time;
                let state = self.states[plan.index].entry_ref(&transaction.card_id).or_default();
                plan.view.evict(state, time - plan.view.keep());
                known = plan.is_known(state, time);
                state
            });
            features.join_given(transaction, state, &mut self.scratch, &mut values);
            if let Some(plan) = own {
                statuses[plan.statuses.start] = plan.status(known, &values);
            }
            features.assemble(transaction, &mut values, &mut joined.values);
            joined.statuses.extend_from_slice(&statuses);
        }
        joined
    }
}
