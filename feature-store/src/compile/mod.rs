//! The compiler of definition files: names to slots, features to a graph, the graph to steps.

mod plan;
mod windows;
mod yaml;

use std::collections::HashMap;
use std::fmt;

use schemas::{FeatureLayout, FeatureSpec, Id, SequencePlace};
use serde_saphyr::{Location, Spanned};

use crate::carry::Carry;
use crate::definitions::{Computed, Definitions, Entity, Span, Windows};
use crate::expression::{self, Binary, Expression, Field, Formula, IdField, Source, Unary};
use crate::features::{DefinitionError, FeatureSet, ViewFeature};
use crate::reason::{Known, ReasonGroup, Template};
use crate::view::{Step, View};
use plan::{Order, Plan, inputs, slots};

const VERSION: u32 = 1;

pub(crate) fn compile(text: &str, file: &str) -> Result<FeatureSet, DefinitionError> {
    let definitions: Definitions = serde_saphyr::from_str(text).map_err(|error| yaml::refusal(&error, file))?;
    let mut compiler = Compiler { file, slots: HashMap::new(), features: Vec::new(), views: Vec::new() };
    compiler.declare_all(&definitions)?;
    compiler.resolve_all(&definitions)?;
    compiler.finish(&definitions)
}

/// What a feature is made of.
enum Origin {
    /// Its text, until all names are known.
    Parsed(Expression<String>),
    Computed(Formula),
    Window {
        view: usize,
        series: usize,
    },
    Profile {
        view: usize,
    },
}

struct Feature {
    name: String,
    at: Location,
    definition: String,
    origin: Origin,
    place: Option<SequencePlace>,
    /// What is said of it where it has part in an alert.
    reason: Template,
    reason_group: String,
    nullable: bool,
    /// It can be below 0, so that a logarithm of it can be missing.
    signed: bool,
}

struct Compiler<'a> {
    file: &'a str,
    slots: HashMap<String, usize>,
    features: Vec<Feature>,
    views: Vec<View>,
}

impl Compiler<'_> {
    /// Gives every feature its slot: request features, those of views, derived ones.
    fn declare_all(&mut self, definitions: &Definitions) -> Result<(), DefinitionError> {
        if definitions.version.value != VERSION {
            return Err(self.error(&definitions.version, "this version of fraudline reads definitions of `version: 1`"));
        }
        for computed in &definitions.request {
            self.declare_computed(computed)?;
        }
        let mut entities = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for (view, definition) in definitions.views.iter().enumerate() {
            let name = &definition.name;
            if names.contains(&name.value.as_str()) {
                return Err(self.error(name, "there is a view of this name already; give this one another"));
            }
            names.push(&name.value);
            match (definition.profile.is_empty(), definition.windows.is_empty()) {
                (true, true) => return Err(self.error(name, "the view is empty; give it `windows` or a `profile`")),
                (false, false) => {
                    return Err(self.error(name, "a view has `windows` or a `profile`; make two of this one"));
                }
                (true, false) if entities.contains(&definition.entity) => {
                    let message = format!("there are windows of {} already; put these there", definition.entity);
                    return Err(self.error(name, message));
                }
                (true, false) => entities.push(definition.entity),
                (false, true) => {}
            }
            for feature in &definition.profile {
                let name = feature.name.value.clone();
                let said = self.said(&feature.reason, &feature.reason_group, &name, Known::default(), &name)?;
                self.declare(&feature.name, name, String::new(), Origin::Profile { view }, said)?;
            }
            for windows in &definition.windows {
                if windows.over.is_empty() {
                    return Err(self.error(&windows.name, "name at least one window, as in `over: [1d, 7d]`"));
                }
                self.check_back(windows)?;
                for &over in &windows.over {
                    if over.0.is_zero() {
                        return Err(self.error(&windows.name, "a window is longer than 0, as in `over: [1d]`"));
                    }
                    for back in 1..=windows.features_of_each() {
                        let name = self.window_name(windows, over, back)?;
                        let known = Known { over: Some(over.0), back: windows.back.as_ref().map(|_| back) };
                        let alike = &windows.name.value;
                        let said = self.said(&windows.reason, &windows.reason_group, &name, known, alike)?;
                        self.declare(&windows.name, name, String::new(), Origin::Window { view, series: 0 }, said)?;
                    }
                }
            }
        }
        for computed in &definitions.derived {
            self.declare_computed(computed)?;
        }
        if self.features.is_empty() {
            return Err(self.error(
                &definitions.version,
                "no feature is declared; begin with `request: [{ name: AMOUNT, value: amount }]`",
            ));
        }
        Ok(())
    }

    fn declare_computed(&mut self, computed: &Computed) -> Result<(), DefinitionError> {
        let parsed = self.parse(&computed.value)?;
        let name = computed.name.value.clone();
        let said = self.said(&computed.reason, &computed.reason_group, &name, Known::default(), &name)?;
        self.declare(&computed.name, name, parsed.to_string(), Origin::Parsed(parsed), said)
    }

    /// What is said of a feature in an alert, and the group it stands for; `alone` if none is named.
    fn said(
        &self,
        reason: &Option<Spanned<String>>,
        group: &Option<String>,
        name: &str,
        known: Known,
        alone: &str,
    ) -> Result<(Template, String), DefinitionError> {
        let template = match reason {
            Some(text) => Template::parse(&text.value, known).map_err(|message| self.error(text, message))?,
            None => Template::plain(name),
        };
        Ok((template, group.as_deref().unwrap_or(alone).to_owned()))
    }

    fn declare(
        &mut self,
        at: &Spanned<String>,
        name: String,
        definition: String,
        origin: Origin,
        (reason, reason_group): (Template, String),
    ) -> Result<(), DefinitionError> {
        if name.is_empty() || name.contains([':', '{', '}', '`']) || name.contains(char::is_whitespace) {
            return Err(
                self.error(at, format!("`{name}` is no name for a feature: no spaces, colons, braces or backticks"))
            );
        }
        if Field::named(&name).is_some() || IdField::named(&name).is_some() {
            return Err(self.error(at, format!("`{name}` is a field of the event; give the feature another name")));
        }
        let slot = self.features.len();
        if self.slots.insert(name.clone(), slot).is_some() {
            return Err(self.error(at, format!("there are two features `{name}`; rename one of them")));
        }
        let at = at.referenced;
        let (place, nullable, signed) = (None, false, false);
        self.features.push(Feature { name, at, definition, origin, place, reason, reason_group, nullable, signed });
        Ok(())
    }

    /// The name of the feature over this window, of the event so many back.
    fn window_name(&self, windows: &Windows, over: Span, back: u16) -> Result<String, DefinitionError> {
        let (name, several) = (&windows.name, windows.over.len() > 1);
        let seconds = over.0.as_secs();
        let mut text = name.value.clone();
        for (placeholder, unit) in [("{days}", 86_400), ("{hours}", 3600)] {
            if text.contains(placeholder) {
                if !seconds.is_multiple_of(unit) || over.0.subsec_millis() != 0 {
                    return Err(self.error(name, format!("the window {over} is no whole number for `{placeholder}`; declare it by itself, under a name of its own")));
                }
                text = text.replace(placeholder, &(seconds / unit).to_string());
            }
        }
        if several && text == name.value {
            return Err(
                self.error(name, "several windows need different names: put `{days}` or `{hours}` into this one")
            );
        }
        if windows.back.is_some() {
            text = text.replace("{back}", &back.to_string());
        }
        Ok(text)
    }

    /// Finds out what every name means, now that all are known, and lays out the views' series.
    fn resolve_all(&mut self, definitions: &Definitions) -> Result<(), DefinitionError> {
        let computed = definitions.request.iter().chain(&definitions.derived);
        for computed in computed {
            let slot = self.slots[&computed.name.value];
            let Origin::Parsed(parsed) = &self.features[slot].origin else { continue };
            let formula = self.resolve(parsed, &computed.value)?;
            self.features[slot].origin = Origin::Computed(formula);
        }
        for (index, definition) in definitions.views.iter().enumerate() {
            let view = self.view(index, definition, definitions.allowed_lateness)?;
            self.views.push(view);
        }
        Ok(())
    }

    fn parse(&self, text: &Spanned<String>) -> Result<Expression<String>, DefinitionError> {
        expression::parse(&text.value).map_err(|message| self.error(text, message))
    }

    fn formula(&self, text: &Spanned<String>) -> Result<(String, Formula), DefinitionError> {
        let parsed = self.parse(text)?;
        let formula = self.resolve(&parsed, text)?;
        Ok((parsed.to_string(), formula))
    }

    fn resolve<T>(&self, parsed: &Expression<String>, at: &Spanned<T>) -> Result<Formula, DefinitionError> {
        parsed.resolved(&mut |name: &String| {
            if let Some(&slot) = self.slots.get(name) {
                // A mere name for a field is that field.
                return Ok(match &self.features[slot].origin {
                    Origin::Parsed(Expression::Name(field)) => {
                        Field::named(field).map_or(Source::Slot(slot), Source::Field)
                    }
                    Origin::Computed(Expression::Name(source @ Source::Field(_))) => *source,
                    _ => Source::Slot(slot),
                });
            }
            if let Some(field) = Field::named(name) {
                return Ok(Source::Field(field));
            }
            if IdField::named(name).is_some() {
                return Err(self.error(
                    at,
                    format!("`{name}` is an id, no number; compare it with a text, as in `{name} == \"x\"`"),
                ));
            }
            if name.starts_with('"') {
                return Err(self.error(
                    at,
                    format!("{name} is a text; only an id is compared with one, as in `terminal_id == {name}`"),
                ));
            }
            let fields = Field::NAMES.iter().map(|(known, _)| *known);
            let known = self.features.iter().map(|feature| feature.name.as_str()).chain(fields);
            let nearest = known.min_by_key(|known| edit_distance(known, name));
            let hint = nearest.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
            Err(self.error(at, format!("there is no feature or field `{name}`{hint}")))
        })
    }

    /// Orders the graph, and puts the steps together.
    fn finish(mut self, definitions: &Definitions) -> Result<FeatureSet, DefinitionError> {
        let mut order = Order::over(self.features.len());
        for slot in 0..self.features.len() {
            order.visit(&self, slot)?;
        }
        for &slot in &order.sorted {
            if let Origin::Computed(formula) = &self.features[slot].origin {
                let (nullable, signed) = self.signs(formula);
                (self.features[slot].nullable, self.features[slot].signed) = (nullable, signed);
            }
        }
        self.check_inputs()?;
        self.key_by_inputs();
        let carried = self.carried();
        let meaning = hash(&self.meaning(&carried));
        let mut views = std::mem::take(&mut self.views);
        for (index, view) in views.iter_mut().enumerate() {
            let given = if view.is_owned() { &[][..] } else { &carried };
            let mut plan = Plan::new(&self, Some(index), &view.series).given(given);
            (0..view.series.len()).for_each(|series| plan.insert(series));
            let steps = plan.steps;
            view.apply = steps;
            if !view.is_owned() && !view.is_profile() {
                view.carried.clone_from(&carried);
            }
        }
        let own = views.iter().position(View::is_owned);
        let carry = own.filter(|_| !carried.is_empty()).map(|own| {
            let mut plan = Plan::new(&self, Some(own), &views[own].series);
            carried.iter().for_each(|&slot| plan.compute(slot));
            let key = Id::from(format!("rekey@{:016x}", hash(&format!("{} {meaning:016x}", views[own].key))));
            let view = View { name: Id::const_new("rekey"), key, apply: plan.steps, ..views[own].clone() };
            Carry { view, slots: carried.clone(), meaning }
        });
        let none = Vec::new();
        let plans = own.map_or(&none, |own| &views[own].series);
        let mut plan = Plan::new(&self, own, plans);
        for (index, view) in views.iter().enumerate() {
            if Some(index) == own {
                (0..view.series.len()).for_each(|series| plan.read(series));
            } else {
                plan.shared(index);
            }
        }
        let joined = plan.steps.len();
        order.sorted.iter().for_each(|&slot| plan.compute(slot));
        let mut join = plan.steps;
        let assemble = join.split_off(joined).into_iter().filter_map(|step| match step {
            Step::Compute(slot, formula) => Some((slot, formula)),
            _ => None,
        });
        let assemble = assemble.collect();
        let specs = self.features.iter().map(|feature| FeatureSpec {
            name: feature.name.clone(),
            definition: feature.definition.clone(),
            nullable: feature.nullable,
            place: feature.place.clone(),
        });
        let layout = FeatureLayout::new(specs.collect());
        let services = self.services(definitions, &views)?;
        let of_view = |(index, view): (usize, &View)| {
            let feature = move |slot| (slot, ViewFeature { view: index, slot });
            view.slots().map(feature).collect::<Vec<_>>()
        };
        let of_views = views.iter().enumerate().flat_map(of_view);
        let of_views = of_views.map(|(slot, feature)| (self.features[slot].name.clone(), feature)).collect();
        let mut reason_groups: Vec<ReasonGroup> = Vec::new();
        for (column, feature) in self.features.iter().enumerate() {
            match reason_groups.iter_mut().find(|group| group.name == feature.reason_group) {
                Some(group) => group.columns.push(column),
                None => {
                    let (name, columns) = (feature.reason_group.clone(), vec![column]);
                    reason_groups.push(ReasonGroup { name, columns });
                }
            }
        }
        let (names, reasons) = self.features.into_iter().map(|feature| (feature.name, feature.reason)).unzip();
        Ok(FeatureSet {
            of_views,
            names,
            reasons,
            reason_groups,
            views,
            carry,
            join,
            assemble,
            allowed_lateness: definitions.allowed_lateness.0,
            layout,
            services,
        })
    }

    fn services(
        &self,
        definitions: &Definitions,
        views: &[View],
    ) -> Result<Vec<(String, Vec<ViewFeature>)>, DefinitionError> {
        let mut services: Vec<(String, Vec<ViewFeature>)> = Vec::new();
        for definition in &definitions.feature_services {
            let name = &definition.name;
            if services.iter().any(|(known, _)| *known == name.value) {
                return Err(self.error(name, "there is a feature service of this name already; give this one another"));
            }
            let mut features = Vec::new();
            for wanted in &definition.features {
                let (view_name, feature) = match wanted.value.split_once(':') {
                    Some((view, feature)) => (view, Some(feature)),
                    None => (wanted.value.as_str(), None),
                };
                let Some(view) = views.iter().position(|view| view.name() == view_name) else {
                    let known: Vec<&str> = views.iter().map(|view| view.name().as_str()).collect();
                    let message = format!("there is no view `{view_name}`; there are: {}", known.join(", "));
                    return Err(self.error(wanted, message));
                };
                let mut slots: Vec<usize> = views[view]
                    .slots()
                    .filter(|&slot| feature.is_none_or(|feature| self.features[slot].name == feature))
                    .collect();
                // As they are declared.
                slots.sort_unstable();
                if slots.is_empty() {
                    let known: Vec<&str> = views[view].slots().map(|slot| self.features[slot].name.as_str()).collect();
                    let message = format!(
                        "view `{view_name}` has no feature `{}`; it has: {}",
                        feature.unwrap_or_default(),
                        known.join(", ")
                    );
                    return Err(self.error(wanted, message));
                }
                features.extend(slots.into_iter().map(|slot| ViewFeature { view, slot }));
            }
            services.push((name.value.clone(), features));
        }
        Ok(services)
    }

    /// Features that decide what goes into the windows of other entities than cards, and are computed from those of cards.
    fn carried(&self) -> Vec<usize> {
        let shared = self.views.iter().filter(|view| !view.is_owned());
        let inputs = shared.flat_map(|view| &view.series).flat_map(inputs);
        let mut slots: Vec<usize> = inputs.filter(|&slot| self.is_of_cards(slot)).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    fn is_of_cards(&self, slot: usize) -> bool {
        match &self.features[slot].origin {
            Origin::Window { .. } => true,
            Origin::Computed(formula) => slots(formula).into_iter().any(|slot| self.is_of_cards(slot)),
            Origin::Profile { .. } | Origin::Parsed(_) => false,
        }
    }

    /// The definitions of these features, and of all that they are computed from.
    fn meaning(&self, slots: &[usize]) -> String {
        let (mut text, mut seen, mut todo) = (String::new(), Vec::new(), slots.to_vec());
        while let Some(slot) = todo.pop() {
            if seen.contains(&slot) {
                continue;
            }
            seen.push(slot);
            let feature = &self.features[slot];
            text += &format!("{} = {}\n", feature.name, feature.definition);
            match &feature.origin {
                Origin::Computed(formula) => todo.extend(plan::slots(formula)),
                Origin::Window { view, series } => todo.extend(inputs(&self.views[*view].series[*series])),
                Origin::Profile { .. } | Origin::Parsed(_) => {}
            }
        }
        text
    }

    /// States that features decide upon are of no use once these mean something else.
    fn key_by_inputs(&mut self) {
        for index in 0..self.views.len() {
            let view = &self.views[index];
            let inputs: Vec<usize> = view.series.iter().flat_map(inputs).collect();
            if !inputs.is_empty() {
                let hash = hash(&format!("{}\n{}", view.key, self.meaning(&inputs)));
                self.views[index].key = Id::from(format!("{}@{hash:016x}", view.name));
            }
        }
    }

    /// What goes into a state has to be known where and whenever the state is built, a replay included.
    fn check_inputs(&self) -> Result<(), DefinitionError> {
        for feature in &self.features {
            let Origin::Window { view, series } = feature.origin else { continue };
            let entity = self.views[view].entity;
            let mut todo = inputs(&self.views[view].series[series]);
            while let Some(slot) = todo.pop() {
                let input = &self.features[slot];
                match &input.origin {
                    Origin::Computed(formula) => todo.extend(slots(formula)),
                    Origin::Window { view: other, series } if *other == view && entity == Entity::CardId => {
                        todo.extend(inputs(&self.views[view].series[*series]));
                    }
                    // Carried along with the event.
                    Origin::Window { view: other, .. } if self.views[*other].is_owned() => {}
                    Origin::Window { view: other, .. } | Origin::Profile { view: other } => {
                        let message = match entity {
                            Entity::CardId => format!(
                                "`{}` goes into the windows of cards, which are built from the log alone, but `{}` is read from view `{}`; combine the two in a derived feature",
                                feature.name, input.name, self.views[*other].name
                            ),
                            _ => format!(
                                "`{}` is read from view `{}`, which lags behind; the events of a {entity} are aggregated by fields of the event, windows of its card, and features of these",
                                input.name, self.views[*other].name
                            ),
                        };
                        return Err(self.error_at(feature.at, message));
                    }
                    Origin::Parsed(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Whether a formula can be missing, and whether it can be below 0.
    fn signs(&self, formula: &Formula) -> (bool, bool) {
        match formula {
            Expression::Number(number) => (false, *number < 0.0),
            Expression::Name(Source::Field(_)) | Expression::Is { .. } => (false, false),
            Expression::Name(Source::Slot(slot)) => (self.features[*slot].nullable, self.features[*slot].signed),
            Expression::Unary(operator, operand) => {
                let (nullable, signed) = self.signs(operand);
                match operator {
                    Unary::Minus => (nullable, true),
                    Unary::Not => (false, false),
                    Unary::Abs => (nullable, false),
                    Unary::Log1p => (nullable || signed, signed),
                    Unary::Sqrt => (nullable || signed, false),
                }
            }
            Expression::Binary(operator, _, _) if operator.is_truth() => (false, false),
            Expression::Binary(operator, left, right) => {
                let ((left_nullable, left_signed), (right_nullable, right_signed)) =
                    (self.signs(left), self.signs(right));
                let nullable = left_nullable || right_nullable || *operator == Binary::Over;
                let signed = match operator {
                    Binary::Minus => true,
                    Binary::Max => left_signed && right_signed,
                    _ => left_signed || right_signed,
                };
                (nullable, signed)
            }
        }
    }

    fn error<T>(&self, at: &Spanned<T>, message: impl fmt::Display) -> DefinitionError {
        self.error_at(at.referenced, message)
    }

    fn error_at(&self, at: Location, message: impl fmt::Display) -> DefinitionError {
        DefinitionError {
            file: self.file.to_owned(),
            place: format!(":{}:{}", at.line(), at.column()),
            message: message.to_string(),
        }
    }
}

fn hash(text: &str) -> u64 {
    twox_hash::XxHash3_64::oneshot(text.as_bytes())
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
