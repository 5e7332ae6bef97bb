//! Views: what is known of one entity, and the values that are read off it.

use std::cell::LazyCell;
use std::ops::Range;
use std::time::Duration;

use schemas::{EventTime, Id, Transaction};

use crate::aggregate::{aggregated, single_events, units};
use crate::definitions::{Aggregate, Entity};
use crate::expression::{Field, Formula, IdField, Source};
use crate::window::{Held, MISSING, Needs, Profile, Sample, Series, SeriesSpec, WindowState};

/// One of the things to be done for an event.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A feature of fields and of features that are there.
    Compute(usize, Formula),
    /// The event goes into this series of the view that the reader owns.
    Insert(usize),
    /// Features are read off this series of it.
    Read(usize),
    /// Features are read off this view, which others keep.
    Shared(usize),
}

/// What is known of one entity, and where the values go: windows over its events, or its profile.
#[derive(Clone, Debug)]
pub struct View {
    pub(crate) name: Id,
    pub(crate) key: Id,
    pub(crate) entity: Entity,
    pub(crate) staleness: Duration,
    pub(crate) series: Vec<SeriesPlan>,
    pub(crate) specs: Vec<SeriesSpec>,
    /// What brings an event into a state, without reading more than that takes.
    pub(crate) apply: Vec<Step>,
    /// How long before the newest event one may still be needed.
    pub(crate) keep: Duration,
    /// Number of values of an event, those of other views included.
    pub(crate) width: usize,
    /// Slots of the values that an event brings along, in their order; see [`Carry`](crate::Carry).
    pub(crate) carried: Vec<usize>,
    pub(crate) profile: ProfilePlan,
}

/// The columns of a profile; none in a view of windows.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProfilePlan {
    pub(crate) columns: Vec<ProfileColumn>,
    pub(crate) ttl: Option<Duration>,
    /// The resolution in time by which values are kept and read, in milliseconds: a part of the staleness.
    pub(crate) step: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct ProfileColumn {
    pub(crate) slot: usize,
    /// What updates call it.
    pub(crate) field: Id,
    /// Instead of a missing value.
    pub(crate) empty: f64,
}

/// What is known of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Present,
    /// The entity is known, and the value is missing: a mean over no events.
    Null,
    /// Nothing is known of the entity.
    NotFound,
    /// The value is older than the view's TTL.
    OutsideMaxAge,
}

/// A series, what goes into it, and what is read off it.
#[derive(Clone, Debug)]
pub(crate) struct SeriesPlan {
    pub(crate) filter: Option<Formula>,
    pub(crate) value: Value,
    pub(crate) matches: Option<Formula>,
    pub(crate) ranges: Vec<RangePlan>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Number(Formula),
    Id(IdField),
}

/// A range of event time that features are computed over.
#[derive(Clone, Debug)]
pub(crate) struct RangePlan {
    pub(crate) offset: Duration,
    pub(crate) over: Duration,
    pub(crate) include_current: bool,
    pub(crate) features: Vec<WindowFeature>,
}

#[derive(Clone, Debug)]
pub(crate) struct WindowFeature {
    /// One, or one for each number of events back.
    pub(crate) slots: Range<usize>,
    pub(crate) aggregate: Aggregate,
    /// Of the values, not just of the events: the series may have values that this feature doesn't ask for.
    pub(crate) of_values: bool,
    /// Of what became known of the events.
    pub(crate) of_labels: bool,
    /// Instead of a missing value.
    pub(crate) empty: f64,
}

/// Where the event that is joined stands in the series it went into; memory that is used again for the next one.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) current: Vec<Current>,
    pub(crate) values: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Current {
    /// Its value in the series, whether it passed the filter or not.
    value: Option<i64>,
    /// It is the newest of the events up to its time that are kept one by one.
    kept: bool,
}

impl View {
    pub fn name(&self) -> &Id {
        &self.name
    }

    /// What its states stand under in a store: the name, and a hash of what they hold. After a change of the definitions that the
    /// states don't fit, none are found, and they are built from the log again.
    pub fn key(&self) -> &Id {
        &self.key
    }

    pub fn entity(&self) -> Entity {
        self.entity
    }

    pub fn is_profile(&self) -> bool {
        !self.profile.columns.is_empty()
    }

    /// What updates of the profile call its values.
    pub fn fields(&self) -> impl Iterator<Item = &Id> {
        self.profile.columns.iter().map(|column| &column.field)
    }

    /// Whether the scorer keeps it itself, as the windows of cards; all others are the materializer's.
    pub fn is_owned(&self) -> bool {
        self.entity == Entity::CardId && !self.is_profile()
    }

    /// How old a value of a profile may be.
    pub fn ttl(&self) -> Option<Duration> {
        self.profile.ttl
    }

    /// How far behind an event's time the view may be when it is read for it. Values are the same
    /// wherever in that time it is: labels and values of profiles count once they have been known for so long, and
    /// windows of transactions end longer ago, by more than the allowed lateness.
    pub fn staleness(&self) -> Duration {
        self.staleness
    }

    /// How long before the newest event, the allowed lateness included, an event may be needed.
    pub fn keep(&self) -> Duration {
        self.keep
    }

    /// Slots of the view's values.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        let ranges = self.series.iter().flat_map(|series| &series.ranges);
        let profile = self.profile.columns.iter().map(|column| column.slot);
        ranges.flat_map(|range| range.features.iter().flat_map(|feature| feature.slots.clone())).chain(profile)
    }

    /// Brings an event into a state, and no more: what a replay does.
    pub fn apply(&self, transaction: &Transaction, state: &mut WindowState, scratch: &mut Scratch) {
        self.apply_carrying(transaction, &[], state, scratch);
    }

    /// As [`View::apply`], of an event that brings along what its card's windows were for it. What is not brought along is missing.
    pub fn apply_carrying(
        &self,
        transaction: &Transaction,
        carried: &[f64],
        state: &mut WindowState,
        scratch: &mut Scratch,
    ) {
        let Scratch { current, values } = scratch;
        values.resize(self.width, f64::NAN);
        for (index, &slot) in self.carried.iter().enumerate() {
            values[slot] = carried.get(index).copied().unwrap_or(f64::NAN);
        }
        // What goes into a view never depends on the states of others; see the compiler.
        run(&self.apply, transaction, Some((self, state)), |_, _| (), current, values);
    }

    /// Takes a profile update into a state: the numbers of the fields that the view has.
    pub fn apply_profile<'a>(
        &self,
        event_time: EventTime,
        values: impl Iterator<Item = (&'a Id, f64)>,
        state: &mut WindowState,
    ) {
        for (field, value) in values {
            let named = |column: &ProfileColumn| column.field == *field;
            for (index, _) in self.profile.columns.iter().enumerate().filter(|(_, column)| named(column)) {
                state.insert_profile(self.profile.step, index, Held { since: event_time, value });
            }
        }
    }

    /// Forgets what happened at `through` or before; of a profile, what nobody asks for who joins an event after that by
    /// the view's [`View::keep`].
    pub fn evict(&self, state: &mut WindowState, through: EventTime) {
        state.evict(&self.specs, through);
        state.evict_profile(self.profile.step, through);
    }

    #[inline]
    fn insert(&self, index: usize, transaction: &Transaction, state: &mut WindowState, values: &[f64]) -> Current {
        let plan = &self.series[index];
        let value = match &plan.value {
            Value::None => Some(0),
            Value::Number(Formula::Name(Source::Field(Field::Amount))) => Some(transaction.amount.units()),
            Value::Number(formula) => {
                let units = units(formula.value(transaction, values));
                let gaps = self.specs[index].needs.has(Needs::GAPS);
                if gaps { Some(units.map_or(MISSING, |units| units.max(MISSING + 1))) } else { units }
            }
            Value::Id(field) => Some(field.code(transaction)),
        };
        let passes = plan.filter.as_ref().is_none_or(|filter| filter.holds(transaction, values));
        let kept = match value {
            Some(value) if passes => {
                let matches = plan.matches.as_ref().is_some_and(|matches| matches.holds(transaction, values));
                state.insert(&self.specs, index, transaction.event_time, Sample { value, matches })
            }
            _ => false,
        };
        Current { value, kept }
    }

    /// Fills in the view's values as of `at`, from the events with times up to it: a look from outside, by which no event is scored. No
    /// state means no events.
    pub fn evaluate(&self, state: Option<&WindowState>, at: EventTime, values: &mut [f64]) {
        for index in 0..self.series.len() {
            self.read(index, state, at, Current::default(), values);
        }
        self.evaluate_profile(state, at, values, |_, _| ());
    }

    /// As [`View::evaluate`], and fills in what each of the values is worth, by the same slots.
    pub fn look_up(&self, state: Option<&WindowState>, at: EventTime, values: &mut [f64], statuses: &mut [Status]) {
        let known = state.is_some_and(|state| !state.is_empty());
        for index in 0..self.series.len() {
            self.read(index, state, at, Current::default(), values);
            let features = self.series[index].ranges.iter().flat_map(|range| &range.features);
            for slot in features.flat_map(|feature| feature.slots.clone()) {
                statuses[slot] = match (known, values[slot].is_nan()) {
                    (false, _) => Status::NotFound,
                    (true, true) => Status::Null,
                    (true, false) => Status::Present,
                };
            }
        }
        self.evaluate_profile(state, at, values, |slot, status| statuses[slot] = status);
    }

    #[inline]
    fn evaluate_profile(
        &self,
        state: Option<&WindowState>,
        at: EventTime,
        values: &mut [f64],
        mut status_of: impl FnMut(usize, Status),
    ) {
        let ProfilePlan { columns, ttl, step } = &self.profile;
        if columns.is_empty() {
            return;
        }
        let before = Profile::readable_before(*step, at - self.staleness);
        let oldest = ttl.map_or(EventTime::MIN, |ttl| at - ttl);
        for (index, column) in columns.iter().enumerate() {
            let held = state.and_then(|state| state.profile(index, before));
            let (status, value) = match held {
                None => (Status::NotFound, f64::NAN),
                Some(held) if held.since < oldest => (Status::OutsideMaxAge, f64::NAN),
                Some(held) if held.value.is_nan() => (Status::Null, f64::NAN),
                Some(held) => (Status::Present, held.value),
            };
            values[column.slot] = if value.is_finite() { value } else { column.empty };
            status_of(column.slot, status);
        }
    }

    /// Forgets what no event needs that is within the allowed lateness of the state's newest one.
    pub fn evict_unneeded(&self, state: &mut WindowState) {
        if let Some(newest) = state.newest() {
            self.evict(state, newest - self.keep);
        }
    }

    /// Whether an event of the entity lies in `(from, end]`.
    pub(crate) fn has_events(&self, state: &WindowState, from: EventTime, end: EventTime) -> bool {
        let tile_of = |index: usize| self.specs[index].tile;
        let mut series = (0..self.series.len()).filter_map(|index| Some((index, state.series(&self.specs, index)?)));
        series.any(|(index, series)| !series.window(tile_of(index), from, end, false).is_empty())
    }

    /// How long before an event the newest of those lies that the windows see.
    pub(crate) fn nearest(&self) -> Duration {
        let ranges = self.series.iter().flat_map(|series| &series.ranges);
        ranges.map(|range| range.offset).min().unwrap_or_default()
    }

    #[inline]
    fn read(&self, index: usize, state: Option<&WindowState>, at: EventTime, current: Current, values: &mut [f64]) {
        let (plan, spec) = (&self.series[index], &self.specs[index]);
        let empty = Series::default();
        let series = state.and_then(|state| state.series(&self.specs, index)).unwrap_or(&empty);
        for range in &plan.ranges {
            let end = at - range.offset;
            let from = end - range.over;
            let without_current = current.kept && !range.include_current && range.offset.is_zero();
            let window = series.window(spec.tile, from, end, without_current);
            let known_by = at - self.staleness;
            let frauds = LazyCell::new(|| match (state, &plan.filter) {
                (None, _) => 0.0,
                (Some(state), None) => self.frauds(spec, state, from, end, known_by) as f64,
                (Some(state), Some(_)) => state.frauds_among(series, &window, (from, end), known_by) as f64,
            });
            let fraud_run =
                LazyCell::new(|| state.and_then(|state| state.fraud_run(series, &window, (from, end), known_by)));
            for feature in &range.features {
                if feature.aggregate.is_of_single_events() {
                    single_events(feature, series, &window, at, current.value, &mut values[feature.slots.clone()]);
                    continue;
                }
                let value = match feature.aggregate {
                    Aggregate::FraudCount => *frauds,
                    Aggregate::FraudRate => *frauds / series.count(&window) as f64,
                    _ if feature.of_labels => aggregated(feature, series, &window, at, None, || fraud_run.clone()),
                    _ => aggregated(feature, series, &window, at, current.value, || series.run(&window)),
                };
                values[feature.slots.start] = if value.is_finite() { value } else { feature.empty };
            }
        }
    }

    fn frauds(
        &self,
        spec: &SeriesSpec,
        state: &WindowState,
        from: EventTime,
        end: EventTime,
        known_by: EventTime,
    ) -> u64 {
        // With the transactions in tiles, frauds are counted over the same ones.
        let bound = |time| if spec.exact == 0 { spec.begin_of_tile(time) - Duration::from_millis(1) } else { time };
        state.frauds(bound(from), bound(end), known_by)
    }
}

/// Takes `steps` for an event: `own` is the view that it goes into, with its entity's state, and
/// `shared` fills in the values of each of the others.
#[inline]
pub(crate) fn run(
    steps: &[Step],
    transaction: &Transaction,
    mut own: Option<(&View, &mut WindowState)>,
    shared: impl Fn(usize, &mut [f64]),
    current: &mut Vec<Current>,
    values: &mut [f64],
) {
    if let Some((view, _)) = &own {
        current.resize(view.series.len(), Current::default());
    }
    for step in steps {
        match (step, &mut own) {
            (Step::Compute(slot, formula), _) => values[*slot] = formula.value(transaction, values),
            (Step::Shared(view), _) => shared(*view, values),
            (Step::Insert(index), Some((view, state))) => {
                current[*index] = view.insert(*index, transaction, state, values);
            }
            (Step::Read(index), Some((view, state))) => {
                view.read(*index, Some(state), transaction.event_time, current[*index], values);
            }
            (Step::Insert(_) | Step::Read(_), None) => {}
        }
    }
}
