//! Definitions compiled to what the hot path runs: slots, windows, and the vector's layout.

use std::cell::LazyCell;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use schemas::{EventTime, FeatureLayout, Id, ProfileUpdate, Transaction};

use crate::aggregate::{aggregated, units};
use crate::compile;
use crate::definitions::{Aggregate, Entity};
use crate::expression::{Field, Formula, IdField, Source};
use crate::window::{Held, Sample, Series, SeriesSpec, WindowState};

const DEFAULT_DEFINITIONS: &str = include_str!("../definitions/handbook.yaml");

/// Why a definition file is not taken: what is wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{file}{place}: {message}")]
pub struct DefinitionError {
    pub(crate) file: String,
    pub(crate) place: String,
    pub(crate) message: String,
}

/// All features of one definition file. A value is an `f64`; missing is `NaN`.
///
/// Streaming and backfill both compute a vector through [`FeatureSet::join`] and [`FeatureSet::assemble`].
#[derive(Debug)]
pub struct FeatureSet {
    pub(crate) names: Vec<String>,
    pub(crate) views: Vec<View>,
    /// What an event is joined by, in this order.
    pub(crate) join: Vec<Step>,
    /// What is left to compute then.
    pub(crate) assemble: Vec<(usize, Formula)>,
    pub(crate) allowed_lateness: Duration,
    pub(crate) layout: FeatureLayout,
    /// By name, each with its features.
    pub(crate) services: Vec<(String, Vec<ViewFeature>)>,
}

/// A feature of a view: the view's place in [`FeatureSet::views`], and the slot of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewFeature {
    pub view: usize,
    pub slot: usize,
}

/// What a name doesn't name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFeature {
    View,
    /// The view is known, and has no such feature.
    Feature,
}

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
#[derive(Debug)]
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
    pub(crate) profile: ProfilePlan,
}

/// The columns of a profile; none in a view of windows.
#[derive(Debug, Default)]
pub(crate) struct ProfilePlan {
    pub(crate) columns: Vec<ProfileColumn>,
    pub(crate) ttl: Option<Duration>,
    /// The resolution in time by which values are kept and read, in milliseconds: a part of the staleness.
    pub(crate) step: i64,
}

#[derive(Debug)]
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
#[derive(Debug)]
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
#[derive(Debug)]
pub(crate) struct RangePlan {
    pub(crate) offset: Duration,
    pub(crate) over: Duration,
    pub(crate) include_current: bool,
    pub(crate) features: Vec<WindowFeature>,
}

#[derive(Debug)]
pub(crate) struct WindowFeature {
    pub(crate) slot: usize,
    pub(crate) aggregate: Aggregate,
    /// Of the values, not just of the events: the series may have values that this feature doesn't ask for.
    pub(crate) of_values: bool,
    /// Instead of a missing value.
    pub(crate) empty: f64,
}

/// Where the event that is joined stands in the series it went into; memory that is used again for the next one.
#[derive(Debug, Default)]
pub struct Scratch {
    current: Vec<Current>,
    values: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Current {
    /// Its value in the series, whether it passed the filter or not.
    value: Option<i64>,
    /// It is the newest of the events up to its time that are kept one by one.
    kept: bool,
}

impl FeatureSet {
    /// The Handbook's features, which the bundled model was trained on.
    pub fn bundled() -> FeatureSet {
        FeatureSet::parse(DEFAULT_DEFINITIONS, "handbook.yaml")
            .expect("the bundled definitions are valid; a test reads them")
    }

    pub fn load(path: &Path) -> Result<FeatureSet, DefinitionError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| DefinitionError {
            file: file.clone(),
            place: String::new(),
            message: format!("it can't be read: {error}"),
        })?;
        FeatureSet::parse(&text, &file)
    }

    /// Compiles the text of a definition file; `file` names it in errors.
    pub fn parse(text: &str, file: &str) -> Result<FeatureSet, DefinitionError> {
        compile::compile(text, file)
    }

    pub fn layout(&self) -> &FeatureLayout {
        &self.layout
    }

    /// Names of all values, by slot.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// The feature of a view by their names.
    ///
    /// # Errors
    /// What is not known.
    pub fn view_feature(&self, view: &str, feature: &str) -> Result<ViewFeature, UnknownFeature> {
        let view = self.views.iter().position(|known| known.name == view).ok_or(UnknownFeature::View)?;
        let slot = self.views[view].slots().find(|&slot| self.names[slot] == feature);
        Ok(ViewFeature { view, slot: slot.ok_or(UnknownFeature::Feature)? })
    }

    /// The features of a feature service.
    pub fn feature_service(&self, name: &str) -> Option<&[ViewFeature]> {
        self.services.iter().find(|(known, _)| known == name).map(|(_, features)| features.as_slice())
    }

    /// Names of the feature services.
    pub fn feature_services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|(name, _)| name.as_str())
    }

    /// The windows of an entity.
    pub fn view_of(&self, entity: Entity) -> Option<&View> {
        self.views.iter().find(|view| view.entity == entity && !view.is_profile())
    }

    /// The views that others keep, with their places in [`FeatureSet::views`].
    pub fn shared_views(&self) -> impl Iterator<Item = (usize, &View)> {
        self.views.iter().enumerate().filter(|(_, view)| !view.is_owned())
    }

    pub fn profile_views(&self) -> impl Iterator<Item = &View> {
        self.views.iter().filter(|view| view.is_profile())
    }

    /// The view of profiles by this name, with its place in [`FeatureSet::views`].
    pub fn profile_view(&self, name: &str) -> Option<(usize, &View)> {
        self.views.iter().enumerate().find(|(_, view)| view.is_profile() && view.name == name)
    }

    /// Whether a profile update is one that a view can take in.
    ///
    /// # Errors
    /// Says for a person why not: there is no such view, or a value that it has is no number.
    pub fn accepts(&self, update: &ProfileUpdate) -> Result<(), String> {
        let Some((_, view)) = self.profile_view(&update.view) else {
            return Err(format!("the definitions have no profile view `{}`", update.view));
        };
        let known = |field: &Id| view.fields().any(|known| known == field);
        let text = update.values.iter().find(|(field, value)| value.as_number().is_none() && known(field));
        match text {
            Some((field, value)) => Err(format!("`{field}` of view `{}` is a number, not {value:?}", update.view)),
            None => Ok(()),
        }
    }

    pub fn allowed_lateness(&self) -> Duration {
        self.allowed_lateness
    }

    /// Number of values of an event: the width of the rows that the functions below fill.
    pub fn width(&self) -> usize {
        self.names.len()
    }

    /// Brings an event into the state of its card, `own`, and fills in the features that are read off states.
    /// `shared` holds the states of the other views, by their place in [`FeatureSet::views`]; no state means no events.
    #[inline]
    pub fn join(
        &self,
        transaction: &Transaction,
        own: Option<&mut WindowState>,
        shared: &[Option<&WindowState>],
        scratch: &mut Scratch,
        values: &mut [f64],
    ) {
        let own = own.and_then(|state| self.view_of(Entity::CardId).map(|view| (view, state)));
        let shared = |view: usize, values: &mut [f64]| {
            self.views[view].evaluate(shared.get(view).copied().flatten(), transaction.event_time, values);
        };
        run(&self.join, transaction, own, shared, &mut scratch.current, values);
    }

    /// As [`FeatureSet::join`], with the values of the other views in `values` already.
    pub(crate) fn join_given(
        &self,
        transaction: &Transaction,
        own: Option<&mut WindowState>,
        scratch: &mut Scratch,
        values: &mut [f64],
    ) {
        let own = own.and_then(|state| self.view_of(Entity::CardId).map(|view| (view, state)));
        run(&self.join, transaction, own, |_, _| (), &mut scratch.current, values);
    }

    /// Fills in the features that are left, once an event is joined, and appends the vector to `out` in the layout's order.
    #[inline]
    pub fn assemble(&self, transaction: &Transaction, values: &mut [f64], out: &mut Vec<f32>) {
        for (slot, formula) in &self.assemble {
            values[*slot] = formula.value(transaction, values);
        }
        // Every slot is a column, in order.
        out.extend(values.iter().map(|&value| value as f32));
    }

    /// What has a status of its own: each view of windows, and each value of a profile.
    pub fn status_columns(&self) -> impl Iterator<Item = &str> {
        self.views.iter().flat_map(|view| {
            let windows = (!view.is_profile()).then_some(view.name.as_str());
            windows.into_iter().chain(view.profile.columns.iter().map(|column| self.names[column.slot].as_str()))
        })
    }

    /// Those of a view, by its place in [`FeatureSet::views`].
    pub(crate) fn status_columns_of(&self, view: usize) -> Range<usize> {
        let count = |view: &View| view.profile.columns.len().max(1);
        let start = self.views[..view].iter().map(count).sum();
        start..start + count(&self.views[view])
    }
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
        ranges.flat_map(|range| range.features.iter().map(|feature| feature.slot)).chain(profile)
    }

    /// Brings an event into a state, and no more: what a replay does.
    pub fn apply(&self, transaction: &Transaction, state: &mut WindowState, scratch: &mut Scratch) {
        let Scratch { current, values } = scratch;
        values.resize(self.width, f64::NAN);
        // What goes into a view never depends on other views; see the compiler.
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
            Value::Number(formula) => units(formula.value(transaction, values)),
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
        for index in 0..self.profile.columns.len() {
            let column = &self.profile.columns[index];
            let value = match self.profile_value(index, state, at) {
                (Status::Present, value) => value,
                _ => f64::NAN,
            };
            values[column.slot] = if value.is_finite() { value } else { column.empty };
        }
    }

    /// What a value of the view, as [`View::evaluate`] gave it for `at`, is worth.
    pub fn status(&self, state: Option<&WindowState>, at: EventTime, slot: usize, value: f64) -> Status {
        // The slots of a profile follow each other.
        let first = self.profile.columns.first().map_or(0, |column| column.slot);
        let Some(column) = slot.checked_sub(first).filter(|&column| column < self.profile.columns.len()) else {
            let known = state.is_some_and(|state| !state.is_empty());
            return match (known, value.is_nan()) {
                (false, _) => Status::NotFound,
                (true, true) => Status::Null,
                (true, false) => Status::Present,
            };
        };
        self.profile_value(column, state, at).0
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

    fn profile_value(&self, column: usize, state: Option<&WindowState>, at: EventTime) -> (Status, f64) {
        let known = state.filter(|state| !state.is_empty());
        let Some(state) = known else { return (Status::NotFound, f64::NAN) };
        match state.profile(self.profile.step, column, at - self.staleness) {
            None => (Status::NotFound, f64::NAN),
            Some(held) if self.profile.ttl.is_some_and(|ttl| held.since + ttl < at) => {
                (Status::OutsideMaxAge, held.value)
            }
            Some(held) if held.value.is_nan() => (Status::Null, f64::NAN),
            Some(held) => (Status::Present, held.value),
        }
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
            let frauds = LazyCell::new(|| self.frauds(spec, state, from, end, at) as f64);
            for feature in &range.features {
                let value = match feature.aggregate {
                    Aggregate::FraudCount => *frauds,
                    Aggregate::FraudRate => *frauds / series.count(&window) as f64,
                    _ => aggregated(feature, series, &window, at, current.value),
                };
                values[feature.slot] = if value.is_finite() { value } else { feature.empty };
            }
        }
    }

    fn frauds(
        &self,
        spec: &SeriesSpec,
        state: Option<&WindowState>,
        from: EventTime,
        end: EventTime,
        at: EventTime,
    ) -> u64 {
        // With the transactions in tiles, frauds are counted over the same ones.
        let bound = |time| if spec.exact == 0 { spec.begin_of_tile(time) - Duration::from_millis(1) } else { time };
        state.map_or(0, |state| state.frauds(bound(from), bound(end), at - self.staleness))
    }
}

/// Takes `steps` for an event: `own` is the view that it goes into, with its entity's state, and
/// `shared` fills in the values of each of the others.
#[inline]
fn run(
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
