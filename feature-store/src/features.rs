//! Definitions compiled to what the hot path runs: slots, windows, and the vector's layout.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use schemas::{EventTime, FeatureLayout, FeatureSpec, Id, Transaction};
use serde_saphyr::Spanned;

use crate::definitions::{Aggregate, Definitions, Derived, Entity, RequestValue, Span, ViewDefinition, Windows};
use crate::window::WindowState;

const DEFAULT_DEFINITIONS: &str = include_str!("../definitions/handbook.yaml");

/// Why a definition file is not taken: what is wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{file}{place}: {message}")]
pub struct DefinitionError {
    file: String,
    place: String,
    message: String,
}

/// All features of one definition file. A value is an `f64`; missing is `NaN`.
///
/// Streaming and backfill both compute a vector through [`FeatureSet::request`],
/// [`View::evaluate`] and [`FeatureSet::assemble`], in this order.
#[derive(Debug)]
pub struct FeatureSet {
    names: Vec<String>,
    requests: Vec<RequestValue>,
    views: Vec<View>,
    derived: Vec<(usize, Operation)>,
    allowed_lateness: Duration,
    layout: FeatureLayout,
}

/// Windows over the events of one entity, and where their values go.
#[derive(Debug)]
pub struct View {
    name: Id,
    entity: Entity,
    staleness: Duration,
    /// Distinct ranges of event time that features are computed over.
    ranges: Vec<Range>,
    features: Vec<WindowFeature>,
    /// How long before the newest event one may still be needed.
    keep: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    offset: Duration,
    over: Duration,
    include_current: bool,
    with_labels: bool,
}

#[derive(Debug)]
struct WindowFeature {
    slot: usize,
    range: usize,
    aggregate: Aggregate,
    empty: f64,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Ratio(usize, usize),
    Difference(usize, usize),
    Log1p(usize),
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
            message: error.to_string(),
        })?;
        FeatureSet::parse(&text, &file)
    }

    /// Compiles the text of a definition file; `file` names it in errors.
    pub fn parse(text: &str, file: &str) -> Result<FeatureSet, DefinitionError> {
        let definitions: Definitions = serde_saphyr::from_str(text).map_err(|error| DefinitionError {
            file: file.to_owned(),
            place: error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default(),
            message: error.without_snippet().to_string(),
        })?;
        Compiler { file, slots: HashMap::new(), names: Vec::new(), specs: Vec::new(), signed: Vec::new() }
            .compile(definitions)
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

    pub fn view_of(&self, entity: Entity) -> Option<&View> {
        self.views.iter().find(|view| view.entity == entity)
    }

    pub fn allowed_lateness(&self) -> Duration {
        self.allowed_lateness
    }

    /// Number of values of an event: the width of the rows that the functions below fill.
    pub fn width(&self) -> usize {
        self.names.len()
    }

    /// Fills in the request features.
    #[inline]
    pub fn request(&self, transaction: &Transaction, values: &mut [f64]) {
        for (slot, request) in self.requests.iter().enumerate() {
            let time = transaction.event_time;
            values[slot] = match request {
                RequestValue::Amount => transaction.amount.as_f64(),
                RequestValue::Weekend => f64::from(u8::from(time.weekday() >= 5)),
                RequestValue::Night => f64::from(u8::from(time.hour() <= 6)),
            };
        }
    }

    /// Fills in the derived features, once all others are there, and appends the vector to `out`
    /// in the layout's order.
    #[inline]
    pub fn assemble(&self, values: &mut [f64], out: &mut Vec<f32>) {
        for &(slot, operation) in &self.derived {
            let value = match operation {
                Operation::Ratio(a, b) => values[a] / values[b],
                Operation::Difference(a, b) => values[a] - values[b],
                Operation::Log1p(a) => values[a].ln_1p(),
            };
            values[slot] = if value.is_finite() { value } else { f64::NAN };
        }
        // Every slot is a column, in order.
        out.extend(values.iter().map(|&value| value as f32));
    }
}

impl View {
    pub fn name(&self) -> &Id {
        &self.name
    }

    pub fn entity(&self) -> Entity {
        self.entity
    }

    /// How far behind an event's time the view may be when it is read for it. Values are the same
    /// wherever in that time it is: labels count once they have been known for so long, and
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
        self.features.iter().map(|feature| feature.slot)
    }

    /// Fills in the view's values as of `at`, from the events with times up to it.
    ///
    /// `current` is the position that [`WindowState::insert`] gave the event that is scored; it
    /// bounds what is seen: of the events at the same time, those before it in the log. `None`:
    /// a look from outside, which sees them all. No state means no events.
    pub fn evaluate(&self, state: Option<&WindowState>, at: EventTime, current: Option<usize>, values: &mut [f64]) {
        // Definitions have a handful of ranges; more than 32 distinct ones are refused.
        let mut sums = [(0u64, 0i64, 0u64); Compiler::RANGES_MAX];
        if let Some(state) = state {
            for (sum, range) in sums.iter_mut().zip(&self.ranges) {
                let end = at - range.offset;
                let from = end - range.over;
                let last = if range.offset.is_zero() { current } else { None };
                let (mut count, mut total) = state.sum(from, end, last);
                if !range.include_current
                    && let Some(position) = last
                {
                    count -= 1;
                    total -= state.amount_at(position);
                }
                let frauds = if range.with_labels { state.frauds(from, end, at - self.staleness) } else { 0 };
                *sum = (count, total, frauds);
            }
        }
        for feature in &self.features {
            let (count, total, frauds) = sums[feature.range];
            let value = match feature.aggregate {
                Aggregate::Count => count as f64,
                Aggregate::Sum => total as f64 / SCALE,
                Aggregate::Mean => total as f64 / (count as f64 * SCALE),
                Aggregate::FraudCount => frauds as f64,
                Aggregate::FraudRate => frauds as f64 / count as f64,
            };
            values[feature.slot] = if count == 0 && feature.aggregate.is_nullable() { feature.empty } else { value };
        }
    }
}

const SCALE: f64 = schemas::Amount::SCALE as f64;

/// A feature's place: the index of its value in a row.
struct Compiler<'a> {
    file: &'a str,
    slots: HashMap<String, usize>,
    names: Vec<String>,
    specs: Vec<FeatureSpec>,
    /// Slots of values that can be negative; a logarithm of those can be missing.
    signed: Vec<usize>,
}

impl Compiler<'_> {
    const VERSION: u32 = 1;
    const RANGES_MAX: usize = 32;

    fn compile(mut self, definitions: Definitions) -> Result<FeatureSet, DefinitionError> {
        if definitions.version.value != Compiler::VERSION {
            return Err(self.error(&definitions.version, "this version of fraudline reads definitions of `version: 1`"));
        }
        let lateness = definitions.allowed_lateness;
        let mut requests = Vec::new();
        for request in &definitions.request {
            self.declare(
                &request.name,
                request.name.value.clone(),
                format!("{:?}", request.value).to_lowercase(),
                false,
            )?;
            requests.push(request.value);
        }
        let mut views: Vec<View> = Vec::new();
        for definition in &definitions.views {
            if views.iter().any(|view| view.entity == definition.entity || view.name == definition.name.value) {
                let message = format!(
                    "there is a view of this name or of entity {} already; put its windows there",
                    definition.entity
                );
                return Err(self.error(&definition.name, message));
            }
            views.push(self.view(definition, lateness)?);
        }
        let mut derived = Vec::new();
        for definition in &definitions.derived {
            derived.push(self.derived(definition)?);
        }
        if self.names.is_empty() {
            return Err(self.error(&definitions.version, "no feature is declared"));
        }
        Ok(FeatureSet {
            names: self.names,
            requests,
            views,
            derived,
            allowed_lateness: lateness.0,
            layout: FeatureLayout::new(self.specs),
        })
    }

    fn view(&mut self, definition: &ViewDefinition, lateness: Span) -> Result<View, DefinitionError> {
        let name = &definition.name;
        let owned = definition.entity == Entity::CardId;
        let staleness = match (owned, definition.staleness) {
            (true, None) => Span::default(),
            (true, Some(_)) => {
                return Err(self.error(
                    name,
                    "the view of card_id is kept by the scorer itself and never stale; leave `staleness` out",
                ));
            }
            (false, Some(staleness)) => staleness,
            (false, None) => {
                return Err(self.error(name, format!("the events of a {} are spread over the partitions; say how stale the view may be, as in `staleness: 3d`", definition.entity)));
            }
        };
        let mut view = View {
            name: Id::from(name.value.as_str()),
            entity: definition.entity,
            staleness: staleness.0,
            ranges: Vec::new(),
            features: Vec::new(),
            keep: Duration::ZERO,
        };
        for windows in &definition.windows {
            self.windows(&mut view, windows, staleness, lateness)?;
        }
        view.keep += lateness.0;
        Ok(view)
    }

    fn windows(
        &mut self,
        view: &mut View,
        windows: &Windows,
        staleness: Span,
        lateness: Span,
    ) -> Result<(), DefinitionError> {
        let at = &windows.name;
        let owned = view.entity == Entity::CardId;
        // An event as late as allowed may still come for the very millisecond that far back.
        if !owned && windows.offset.0 <= staleness.0 + lateness.0 {
            return Err(self.error(
                at,
                format!(
                    "the window ends {} ago, but the view may be {staleness} stale and events {lateness} late: its values are exact with an `offset` of more than {}",
                    windows.offset,
                    Span(staleness.0 + lateness.0),
                ),
            ));
        }
        if owned && windows.aggregate.needs_labels() {
            return Err(self.error(at, "labels are joined by terminal; declare this under the view of terminal_id"));
        }
        if !windows.include_current && !windows.offset.0.is_zero() {
            return Err(
                self.error(at, "a window with an offset never holds the current event; leave `include_current` out")
            );
        }
        if windows.empty.is_some() && !windows.aggregate.is_nullable() {
            return Err(self.error(at, format!("a {} over no events is 0; leave `empty` out", windows.aggregate)));
        }
        if windows.empty.is_some_and(|value| !value.is_finite()) {
            return Err(self.error(at, "`empty` is a finite number; leave it out for a missing value"));
        }
        if windows.over.is_empty() {
            return Err(self.error(at, "name at least one window, as in `over: [1d, 7d]`"));
        }
        for &over in &windows.over {
            if over.0.is_zero() {
                return Err(self.error(at, "a window is longer than 0"));
            }
            let name = self.window_name(at, over, windows.over.len() > 1)?;
            let mut definition = format!("{} by {}, {over}, offset {}", windows.aggregate, view.entity, windows.offset);
            if !windows.include_current {
                definition += ", before current";
            }
            if let Some(empty) = windows.empty {
                definition += &format!(", empty {empty}");
            }
            if windows.aggregate.needs_labels() {
                definition += &format!(", labels known {staleness}");
            }
            let nullable = windows.aggregate.is_nullable() && windows.empty.is_none();
            let slot = self.declare(at, name, definition, nullable)?;
            if windows.empty.is_some_and(f64::is_sign_negative) {
                self.signed.push(slot);
            }
            let mut range = Range {
                offset: windows.offset.0,
                over: over.0,
                include_current: windows.include_current,
                with_labels: windows.aggregate.needs_labels(),
            };
            let same = |known: &Range| Range { with_labels: range.with_labels, ..*known } == range;
            let index = match view.ranges.iter().position(same) {
                Some(index) => {
                    range.with_labels |= view.ranges[index].with_labels;
                    view.ranges[index] = range;
                    index
                }
                None => {
                    view.ranges.push(range);
                    view.ranges.len() - 1
                }
            };
            if view.ranges.len() > Compiler::RANGES_MAX {
                return Err(self.error(at, format!("a view has at most {} distinct windows", Compiler::RANGES_MAX)));
            }
            view.features.push(WindowFeature {
                slot,
                range: index,
                aggregate: windows.aggregate,
                empty: windows.empty.unwrap_or(f64::NAN),
            });
            view.keep = view.keep.max(windows.offset.0 + over.0);
        }
        Ok(())
    }

    fn window_name(&self, name: &Spanned<String>, over: Span, several: bool) -> Result<String, DefinitionError> {
        let seconds = over.0.as_secs();
        let mut text = name.value.clone();
        for (placeholder, unit) in [("{days}", 86_400), ("{hours}", 3600)] {
            if text.contains(placeholder) {
                if !seconds.is_multiple_of(unit) || over.0.subsec_millis() != 0 {
                    return Err(self.error(name, format!("the window {over} is no whole number for `{placeholder}`")));
                }
                text = text.replace(placeholder, &(seconds / unit).to_string());
            }
        }
        if several && text == name.value {
            return Err(
                self.error(name, "several windows need different names: put `{days}` or `{hours}` into this one")
            );
        }
        Ok(text)
    }

    fn derived(&mut self, definition: &Derived) -> Result<(usize, Operation), DefinitionError> {
        let name = &definition.name;
        let (operation, text, nullable) = match (&definition.ratio, &definition.difference, &definition.log1p) {
            (Some((a, b)), None, None) => {
                (Operation::Ratio(self.slot(a)?, self.slot(b)?), format!("{} / {}", a.value, b.value), true)
            }
            (None, Some((a, b)), None) => {
                let (a_slot, b_slot) = (self.slot(a)?, self.slot(b)?);
                let nullable = self.specs[a_slot].nullable || self.specs[b_slot].nullable;
                (Operation::Difference(a_slot, b_slot), format!("{} - {}", a.value, b.value), nullable)
            }
            (None, None, Some(a)) => {
                let slot = self.slot(a)?;
                let nullable = self.specs[slot].nullable || self.signed.contains(&slot);
                (Operation::Log1p(slot), format!("log1p({})", a.value), nullable)
            }
            _ => return Err(self.error(name, "a derived feature has exactly one of `ratio`, `difference` and `log1p`")),
        };
        let slot = self.declare(name, name.value.clone(), text, nullable)?;
        self.signed.push(slot);
        Ok((slot, operation))
    }

    fn slot(&self, name: &Spanned<String>) -> Result<usize, DefinitionError> {
        self.slots.get(&name.value).copied().ok_or_else(|| {
            let nearest = self.names.iter().min_by_key(|known| edit_distance(known, &name.value));
            let hint = nearest.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
            self.error(name, format!("no feature `{}` is declared above{hint}", name.value))
        })
    }

    fn declare(
        &mut self,
        at: &Spanned<String>,
        name: String,
        definition: String,
        nullable: bool,
    ) -> Result<usize, DefinitionError> {
        if name.is_empty() || name.contains([':', '{', '}']) || name.contains(char::is_whitespace) {
            return Err(self.error(at, format!("`{name}` is no name for a feature: no spaces, colons or braces")));
        }
        let slot = self.names.len();
        if self.slots.insert(name.clone(), slot).is_some() {
            return Err(self.error(at, format!("there are two features `{name}`")));
        }
        self.names.push(name.clone());
        self.specs.push(FeatureSpec { name, definition, nullable });
        Ok(slot)
    }

    fn error<T>(&self, at: &Spanned<T>, message: impl fmt::Display) -> DefinitionError {
        DefinitionError {
            file: self.file.to_owned(),
            place: format!(":{}:{}", at.referenced.line(), at.referenced.column()),
            message: message.to_string(),
        }
    }
}

/// Levenshtein's distance, to guess what a misspelt name was meant to be.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
