//! Views: their windows, and the series that these are read off.

use std::time::Duration;

use schemas::{Id, SequencePlace};

use super::{Compiler, Origin};
use crate::definitions::{Aggregate, Entity, Exact, Span, Takes, ViewDefinition, Windows};
use crate::expression::{Field, Formula, IdField, Source};
use crate::features::DefinitionError;
use crate::view::{ProfileColumn, ProfilePlan, RangePlan, SeriesPlan, Value, View, WindowFeature};
use crate::window::{Needs, SeriesSpec, WindowState};

/// How many events a view keeps one by one, if the definition doesn't say.
fn default_exact(entity: Entity) -> Exact {
    if entity == Entity::CardId { Exact(1000) } else { Exact::ALL }
}

const TILE: Span = Span(Duration::from_secs(3600));

impl Compiler<'_> {
    pub(super) fn view(
        &mut self,
        index: usize,
        definition: &ViewDefinition,
        lateness: Span,
    ) -> Result<View, DefinitionError> {
        let name = &definition.name;
        let owned = definition.is_owned();
        let staleness = match (owned, definition.staleness) {
            (true, None) => Span::default(),
            (true, Some(_)) => {
                return Err(self.error(
                    name,
                    "the windows of card_id are kept by the scorer itself and never stale; leave `staleness` out",
                ));
            }
            (false, Some(staleness)) => staleness,
            (false, None) if definition.profile.is_empty() => {
                return Err(self.error(name, format!("the events of a {} are spread over the partitions; say how stale the view may be, as in `staleness: 3d`", definition.entity)));
            }
            (false, None) => {
                return Err(self.error(
                    name,
                    "profiles come by another way than events; say how stale the view may be, as in `staleness: 1h`",
                ));
            }
        };
        let profile = self.profile(definition, staleness)?;
        let exact = definition.exact.as_ref().map_or(default_exact(definition.entity), |exact| exact.value);
        if let Some(at) = &definition.exact
            && !owned
            && !matches!(exact, Exact::ALL | Exact(0))
        {
            return Err(self.error(at, "which events are the newest depends on how far a view of this entity has come: `exact` is `all` or 0 here"));
        }
        let tile = definition.tile.as_ref().map_or(TILE, |tile| tile.value);
        if let Some(at) = &definition.tile {
            if exact == Exact::ALL {
                return Err(self.error(at, "without tiles, `tile` says nothing; leave it out, or set `exact`"));
            }
            if tile.0.is_zero() {
                return Err(self.error(at, "a tile is longer than 0, as in `tile: 1h`"));
            }
        }
        let mut layout = ViewLayout {
            index,
            definition,
            staleness,
            lateness,
            exact,
            tile,
            series: Vec::new(),
            // A profile is read as of that long ago.
            reach: if profile.columns.is_empty() { Span::default() } else { staleness },
        };
        for windows in &definition.windows {
            self.windows(&mut layout, windows)?;
        }
        let tiled = exact != Exact::ALL && profile.columns.is_empty();
        let rounding = if tiled { tile.0 } else { Duration::ZERO };
        let keep = layout.reach.0 + lateness.0 + rounding;
        let key = layout.key(keep, &profile);
        let tile = i64::try_from(tile.0.as_millis()).unwrap_or(i64::MAX);
        let mut view = View {
            name: Id::from(name.value.as_str()),
            key,
            entity: definition.entity,
            staleness: staleness.0,
            series: Vec::new(),
            specs: Vec::new(),
            apply: Vec::new(),
            keep,
            width: self.features.len(),
            carried: Vec::new(),
            profile,
        };
        for series in layout.series {
            view.specs.push(SeriesSpec { needs: series.needs, exact: exact.0, tile });
            view.series.push(series.plan);
        }
        Ok(view)
    }

    /// The columns of a profile, if the view is one.
    fn profile(&mut self, definition: &ViewDefinition, staleness: Span) -> Result<ProfilePlan, DefinitionError> {
        let ttl = definition.ttl.as_ref();
        if definition.profile.is_empty() {
            return match ttl {
                Some(at) => Err(self.error(at, "windows know the times of their events; a `ttl` is for a `profile`")),
                None => Ok(ProfilePlan::default()),
            };
        }
        let name = &definition.name;
        if staleness.0 < Duration::from_secs(1) {
            return Err(
                self.error(name, "a `staleness` of a second is the least: updates take as long until they are read")
            );
        }
        if let Some(at) = ttl.filter(|ttl| ttl.value.0 <= staleness.0) {
            return Err(self.error(
                at,
                format!(
                    "values would be too old before they count; a `ttl` is longer than the `staleness` of {staleness}"
                ),
            ));
        }
        if definition.exact.is_some() || definition.tile.is_some() {
            return Err(self.error(name, "a profile has no events; leave `exact` and `tile` out"));
        }
        let step = i64::try_from(staleness.0.as_millis() / 16).unwrap_or(i64::MAX);
        let mut plan = ProfilePlan { columns: Vec::new(), ttl: ttl.map(|ttl| ttl.value.0), step };
        for declared in &definition.profile {
            let slot = self.slots[&declared.name.value];
            let field = declared.field.as_ref().unwrap_or(&declared.name.value);
            if declared.empty.is_some_and(|value| !value.is_finite()) {
                return Err(self.error(&declared.name, "`empty` is a finite number; leave it out for a missing value"));
            }
            let mut text = format!("profile {}:{field} by {}, known {staleness}", name.value, definition.entity);
            if let Some(ttl) = ttl {
                text += &format!(", ttl {}", ttl.value);
            }
            if let Some(empty) = declared.empty {
                text += &format!(", empty {empty}");
            }
            let feature = &mut self.features[slot];
            (feature.definition, feature.nullable, feature.signed) = (text, declared.empty.is_none(), true);
            let empty = declared.empty.unwrap_or(f64::NAN);
            plan.columns.push(ProfileColumn { slot, field: Id::from(field.as_str()), empty });
        }
        Ok(plan)
    }

    fn windows(&mut self, layout: &mut ViewLayout<'_>, windows: &Windows) -> Result<(), DefinitionError> {
        let aggregate = windows.aggregate;
        let offset = windows.offset;
        let include_current = self.check(layout, windows)?;
        let filter = windows.filter.as_ref().map(|filter| self.formula(filter)).transpose()?;
        let of_labels = windows.is_of_labels();
        // What matches by its label is not known when it goes into a series.
        let matches =
            windows.matches.as_ref().filter(|_| !of_labels).map(|matches| self.formula(matches)).transpose()?;
        let (text, value) = self.value(windows)?;
        let signed = match &value {
            Value::Number(formula) => self.signs(formula).1,
            Value::None | Value::Id(_) => false,
        };
        let needs = match aggregate {
            // Fields of an event are always there.
            Aggregate::Previous | Aggregate::SameAsPrevious
                if !matches!(value, Value::Number(Formula::Name(Source::Field(_))) | Value::Id(_)) =>
            {
                Needs::GAPS
            }
            Aggregate::SameAsPrevious => Needs::CODES,
            Aggregate::Sum | Aggregate::Mean | Aggregate::Last | Aggregate::Previous => Needs::TOTAL,
            Aggregate::Std => Needs::SQUARES,
            Aggregate::Min | Aggregate::Max => Needs::EXTREMES,
            Aggregate::Distinct => Needs::DISTINCT,
            Aggregate::Rank => Needs::CODES,
            Aggregate::FirstSeen if value != Value::None => Needs::CODES,
            _ if matches.is_some() => Needs::RUNS,
            _ => Needs::NOTHING,
        };
        let Span(staleness) = layout.staleness;
        let back = windows.back.as_ref().map(|back| back.value);
        for &over in &windows.over {
            // The events, but for what the view says of them all.
            let mut events = format!("by {}, {over}, offset {offset}", layout.definition.entity);
            let mut definition = format!("{text} {events}");
            if let Some((filter, _)) = &filter {
                events += &format!(", where {filter}");
            }
            if !include_current && !aggregate.is_of_earlier_events() {
                definition += ", before current";
            }
            if let Some(empty) = windows.empty {
                definition += &format!(", empty {empty}");
            }
            if of_labels {
                definition += &format!(", labels known {}", Span(staleness));
            }
            if let Some((filter, _)) = &filter {
                definition += &format!(", where {filter}");
            }
            match &matches {
                Some((matches, _)) => definition += &format!(", match {matches}"),
                None if windows.matches.is_some() => definition += ", match fraud",
                None => {}
            }
            if (layout.exact, layout.tile) != (default_exact(layout.definition.entity), TILE) {
                definition += &format!(", exact {}, tile {}", layout.exact, layout.tile);
            }
            let first = self.slots[&self.window_name(windows, over, 1)?];
            let slots = first..first + usize::from(windows.features_of_each());
            let formula = |named: &Option<(String, Formula)>| named.as_ref().map(|(_, formula)| formula.clone());
            let series = layout.series_of(formula(&filter), value.clone(), formula(&matches), needs);
            // Declared one after another.
            for (feature, position) in self.features[slots.clone()].iter_mut().zip(1..) {
                feature.definition = match back {
                    Some(back) => format!("{definition}, {position} back of {back}"),
                    None => definition.clone(),
                };
                feature.place = back.map(|back| SequencePlace {
                    sequence: format!("last {back} {events}"),
                    channel: text.clone(),
                    position,
                });
                if let (None, Some(place)) = (&windows.reason_group, &feature.place) {
                    feature.reason_group.clone_from(&place.sequence);
                }
                feature.nullable = aggregate.is_nullable() && windows.empty.is_none();
                let values = matches!(
                    aggregate,
                    Aggregate::Sum
                        | Aggregate::Mean
                        | Aggregate::Min
                        | Aggregate::Max
                        | Aggregate::Last
                        | Aggregate::Previous
                );
                feature.signed = values && signed || windows.empty.is_some_and(f64::is_sign_negative);
                feature.origin = Origin::Window { view: layout.index, series };
            }
            let of_values = value != Value::None;
            let empty = windows.empty.unwrap_or(f64::NAN);
            let feature = WindowFeature { slots, aggregate, of_values, of_labels, empty };
            layout.series[series].add(offset.0, over.0, include_current, feature);
            layout.reach = layout.reach.max(Span(offset.0 + over.0));
        }
        Ok(())
    }

    /// Checks how many events back features go.
    pub(super) fn check_back(&self, windows: &Windows) -> Result<(), DefinitionError> {
        let aggregate = windows.aggregate;
        match &windows.back {
            None if aggregate.is_of_single_events() => Err(self.error(
                &windows.name,
                format!("a {aggregate} is of single events; say how many back the features go, as in `back: 16`"),
            )),
            Some(back) if !aggregate.is_of_single_events() => {
                Err(self.error(back, format!("a {aggregate} is of all events in the window; leave `back` out")))
            }
            Some(back) if !(1..=Windows::BACK_MAX).contains(&back.value) => {
                Err(self.error(back, format!("`back` is a number from 1 to {}", Windows::BACK_MAX)))
            }
            Some(back) if back.value > 1 && !windows.name.value.contains("{back}") => {
                Err(self.error(&windows.name, "several events need different names: put `{back}` into this one"))
            }
            _ => Ok(()),
        }
    }

    /// Checks what doesn't depend on other features; tells whether the current event is included.
    fn check(&self, layout: &ViewLayout<'_>, windows: &Windows) -> Result<bool, DefinitionError> {
        let (at, aggregate) = (&windows.name, windows.aggregate);
        let entity = layout.definition.entity;
        let owned = entity == Entity::CardId;
        let (staleness, lateness) = (layout.staleness, layout.lateness);
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
        let of_labels = windows.is_of_labels();
        if owned && of_labels {
            return Err(self.error(at, "labels are joined by terminal; declare this under the view of terminal_id"));
        }
        if of_labels
            && layout.exact == Exact(0)
            && let Some(filter) = &windows.filter
        {
            return Err(self.error(
                filter,
                "a label knows nothing of its transaction but the time, and finds it by that among those kept one by one, of which \
                 `exact: 0` leaves none; leave `where` out, or `exact`",
            ));
        }
        if let Some(include) = windows.include_current {
            if aggregate.is_of_earlier_events() {
                return Err(self.error(
                    at,
                    format!("a {aggregate} is of the events before this one; leave `include_current` out"),
                ));
            }
            if !include && !windows.offset.0.is_zero() {
                return Err(self
                    .error(at, "a window with an offset never holds the current event; leave `include_current` out"));
            }
        }
        let of_current = matches!(aggregate, Aggregate::Rank | Aggregate::SameAsPrevious)
            || aggregate == Aggregate::FirstSeen && windows.value.is_some();
        if !owned && of_current {
            return Err(self.error(at, format!("a {aggregate} compares with the current event, which a view of {entity} doesn't know when it is read; declare it under the view of card_id")));
        }
        if layout.exact == Exact(0) && matches!(aggregate.takes(), Takes::Anything | Takes::Matches)
            || layout.exact == Exact(0) && of_current
        {
            return Err(self.error(
                at,
                format!("a {aggregate} is computed over events kept one by one, of which `exact: 0` leaves none; raise it, or leave `exact` out"),
            ));
        }
        // The event itself is kept, too.
        if let (Some(back), Exact(exact)) = (&windows.back, layout.exact)
            && exact <= usize::from(back.value)
        {
            return Err(self.error(
                back,
                format!("of the events kept one by one, {exact} by `exact`, this one included, none is so many back; raise `exact`, or go less far back"),
            ));
        }
        if windows.empty.is_some() && !aggregate.is_nullable() {
            return Err(self.error(at, format!("a {aggregate} over no events is 0; leave `empty` out")));
        }
        if windows.empty.is_some_and(|value| !value.is_finite()) {
            return Err(self.error(at, "`empty` is a finite number; leave it out for a missing value"));
        }
        match (aggregate.takes(), &windows.matches) {
            (Takes::Matches, None) => {
                return Err(self.error(
                    at,
                    format!(
                        "a {aggregate} needs `match`, the condition that makes up a run, as in `match: amount < 2`"
                    ),
                ));
            }
            (takes, Some(matches)) if takes != Takes::Matches => {
                return Err(
                    self.error(matches, format!("a {aggregate} knows no runs; `where` says which events count"))
                );
            }
            _ => {}
        }
        Ok(!aggregate.is_of_earlier_events() && windows.include_current.unwrap_or(true))
    }

    /// What is aggregated, and the text of that.
    fn value(&self, windows: &Windows) -> Result<(String, Value), DefinitionError> {
        let aggregate = windows.aggregate;
        let amount = Value::Number(Formula::Name(Source::Field(Field::Amount)));
        match (aggregate.takes(), &windows.value) {
            (Takes::Nothing | Takes::Matches, Some(value)) => {
                Err(self.error(value, format!("a {aggregate} is of events, not of values; leave `value` out")))
            }
            (Takes::Anything, None) => {
                Err(self.error(&windows.name, format!("a {aggregate} needs a `value`, as in `value: terminal_id`")))
            }
            (Takes::Nothing | Takes::Matches | Takes::AnythingOrNothing, None) => {
                Ok((aggregate.to_string(), Value::None))
            }
            (Takes::Numbers, None) => Ok((format!("{aggregate}(amount)"), amount)),
            (takes, Some(value)) => match IdField::named(value.value.trim()) {
                Some(_) if takes == Takes::Numbers => Err(self.error(
                    value,
                    format!(
                        "`{}` is an id, no number; a {aggregate} is of numbers, `distinct` and `first_seen` take ids",
                        value.value
                    ),
                )),
                Some(field) => Ok((format!("{aggregate}({})", value.value.trim()), Value::Id(field))),
                None => {
                    let (text, formula) = self.formula(value)?;
                    Ok((format!("{aggregate}({text})"), Value::Number(formula)))
                }
            },
        }
    }
}

/// A view while its series are found.
struct ViewLayout<'a> {
    index: usize,
    definition: &'a ViewDefinition,
    staleness: Span,
    lateness: Span,
    exact: Exact,
    tile: Span,
    series: Vec<SeriesLayout>,
    /// How far back the longest window goes.
    reach: Span,
}

struct SeriesLayout {
    plan: SeriesPlan,
    needs: Needs,
}

impl ViewLayout<'_> {
    /// The series of these events and values. One that only counts takes part in one with values that are always there.
    fn series_of(&mut self, filter: Option<Formula>, value: Value, matches: Option<Formula>, needs: Needs) -> usize {
        let amount = Value::Number(Formula::Name(Source::Field(Field::Amount)));
        let found = self.series.iter().position(|known| {
            let plan = &known.plan;
            let values = plan.value == value
                || plan.value == amount && value == Value::None
                || plan.value == Value::None && value == amount;
            // What matches may depend on features of another series, so runs stand apart; and so does what counts events without a value.
            let gaps = known.needs.has(Needs::GAPS) == needs.has(Needs::GAPS);
            plan.filter == filter && values && plan.matches == matches && gaps
        });
        let index = found.unwrap_or_else(|| {
            let plan = SeriesPlan { filter, value: Value::None, matches, ranges: Vec::new() };
            self.series.push(SeriesLayout { plan, needs: Needs::NOTHING });
            self.series.len() - 1
        });
        let series = &mut self.series[index];
        series.needs = series.needs.with(needs);
        if value != Value::None {
            series.plan.value = value;
        }
        index
    }

    /// Name and hash of what the states hold.
    fn key(&self, keep: Duration, profile: &ProfilePlan) -> Id {
        let (exact, tile, entity) = (self.exact, self.tile, self.definition.entity);
        let mut text = format!("{} {exact:?} {tile:?} {entity:?} {keep:?}", WindowState::VERSION);
        for column in &profile.columns {
            text += &format!("\n{:?} {}", column.field, profile.step);
        }
        for SeriesLayout { plan, needs } in &self.series {
            text += &format!("\n{needs:?} {:?} {:?} {:?}", plan.filter, plan.value, plan.matches);
        }
        Id::from(format!("{}@{:016x}", self.definition.name.value, super::hash(&text)))
    }
}

impl SeriesLayout {
    fn add(&mut self, offset: Duration, over: Duration, include_current: bool, feature: WindowFeature) {
        let same =
            |range: &RangePlan| (range.offset, range.over, range.include_current) == (offset, over, include_current);
        match self.plan.ranges.iter().position(same) {
            Some(index) => self.plan.ranges[index].features.push(feature),
            None => self.plan.ranges.push(RangePlan { offset, over, include_current, features: vec![feature] }),
        }
    }
}
