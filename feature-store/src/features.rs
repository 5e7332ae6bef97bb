//! Definitions compiled to what the hot path runs: slots, windows, and the vector's layout.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use hashbrown::HashMap;
use schemas::{FeatureLayout, Id, ProfileUpdate, Transaction};

use crate::carry::Carry;
use crate::compile;
use crate::definitions::Entity;
use crate::expression::Formula;
use crate::reason::{ReasonGroup, Template};
use crate::view::{Scratch, Step, View, run};
use crate::window::WindowState;

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
    /// By slot, what is said of a value in an alert.
    pub(crate) reasons: Vec<Template>,
    pub(crate) reason_groups: Vec<ReasonGroup>,
    pub(crate) views: Vec<View>,
    pub(crate) carry: Option<Carry>,
    /// What an event is joined by, in this order.
    pub(crate) join: Vec<Step>,
    /// What is left to compute then.
    pub(crate) assemble: Vec<(usize, Formula)>,
    pub(crate) allowed_lateness: Duration,
    pub(crate) layout: FeatureLayout,
    /// The features of views, by name.
    pub(crate) of_views: HashMap<String, ViewFeature>,
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

    /// Groups of columns that have one part in a score between them: each column is in one.
    pub fn reason_groups(&self) -> &[ReasonGroup] {
        &self.reason_groups
    }

    /// What is said to a person of a column that has part in an alert, by its value and what is usual; `NaN` is missing.
    pub fn reason(&self, column: usize, value: f32, reference: f32) -> String {
        self.reasons[column].fill(&self.names[column], f64::from(value), f64::from(reference))
    }

    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// The feature of a view by their names.
    ///
    /// # Errors
    /// What is not known.
    pub fn view_feature(&self, view: &str, feature: &str) -> Result<ViewFeature, UnknownFeature> {
        match self.of_views.get(feature) {
            Some(&found) if self.views[found.view].name == view => Ok(found),
            _ if self.views.iter().any(|known| known.name == view) => Err(UnknownFeature::Feature),
            _ => Err(UnknownFeature::View),
        }
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

    /// What events bring along to the windows of other entities than cards, if the definitions ask for anything.
    pub fn carry(&self) -> Option<&Carry> {
        self.carry.as_ref()
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
