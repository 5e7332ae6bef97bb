//! The graph of features: its order, and the steps that follow from it.

use super::{Compiler, Origin};
use crate::expression::{Formula, Source};
use crate::features::DefinitionError;
use crate::view::{SeriesPlan, Step, Value};

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

/// A depth-first search, by which everything stands behind what it needs.
pub(super) struct Order {
    visited: Vec<Mark>,
    path: Vec<usize>,
    /// What each needs stands before it.
    pub(super) sorted: Vec<usize>,
}

impl Order {
    pub(super) fn over(features: usize) -> Order {
        Order { visited: vec![Mark::New; features], path: Vec::new(), sorted: Vec::new() }
    }

    pub(super) fn visit(&mut self, compiler: &Compiler<'_>, slot: usize) -> Result<(), DefinitionError> {
        if self.visited[slot] == Mark::Done {
            return Ok(());
        }
        let feature = &compiler.features[slot];
        if self.visited[slot] == Mark::Open {
            let from = self.path.iter().position(|&known| known == slot).unwrap_or(0);
            let names = self.path[from..].iter().chain([&slot]).map(|&slot| compiler.features[slot].name.as_str());
            let names: Vec<&str> = names.collect();
            return Err(compiler.error_at(
                feature.at,
                format!(
                    "`{}` is computed from itself: {}; take one of these out of what the next is computed from",
                    feature.name,
                    names.join(" <- ")
                ),
            ));
        }
        self.visited[slot] = Mark::Open;
        self.path.push(slot);
        let needed = match &feature.origin {
            Origin::Computed(formula) => slots(formula),
            Origin::Window { view, series } => inputs(&compiler.views[*view].series[*series]),
            Origin::Profile { .. } | Origin::Parsed(_) => Vec::new(),
        };
        for needed in needed {
            self.visit(compiler, needed)?;
        }
        self.path.pop();
        self.visited[slot] = Mark::Done;
        self.sorted.push(slot);
        Ok(())
    }
}

/// The slots that a formula reads.
pub(super) fn slots(formula: &Formula) -> Vec<usize> {
    let mut slots = Vec::new();
    formula.names(&mut |source| {
        if let Source::Slot(slot) = source {
            slots.push(*slot);
        }
    });
    slots
}

/// The slots that decide what goes into a series.
pub(super) fn inputs(plan: &SeriesPlan) -> Vec<usize> {
    let mut inputs: Vec<usize> = plan.filter.iter().chain(&plan.matches).flat_map(slots).collect();
    if let Value::Number(formula) = &plan.value {
        inputs.extend(slots(formula));
    }
    inputs
}

/// Steps in an order in which each finds what it needs.
pub(super) struct Plan<'a> {
    compiler: &'a Compiler<'a>,
    /// The view whose states are at hand, and its series.
    own: Option<usize>,
    plans: &'a [SeriesPlan],
    /// Slots whose values an event brings along.
    carried: &'a [usize],
    done: Done,
    pub(super) steps: Vec<Step>,
}

#[derive(Default)]
struct Done {
    computed: Vec<usize>,
    inserted: Vec<usize>,
    read: Vec<usize>,
    shared: Vec<usize>,
}

/// Adds `item`, and tells whether it is new.
fn first_time(done: &mut Vec<usize>, item: usize) -> bool {
    let new = !done.contains(&item);
    if new {
        done.push(item);
    }
    new
}

impl<'a> Plan<'a> {
    pub(super) fn new(compiler: &'a Compiler<'a>, own: Option<usize>, plans: &'a [SeriesPlan]) -> Plan<'a> {
        Plan { compiler, own, plans, carried: &[], done: Done::default(), steps: Vec::new() }
    }

    pub(super) fn given(self, carried: &'a [usize]) -> Plan<'a> {
        Plan { carried, ..self }
    }

    pub(super) fn insert(&mut self, series: usize) {
        if first_time(&mut self.done.inserted, series) {
            inputs(&self.plans[series]).into_iter().for_each(|slot| self.compute(slot));
            self.steps.push(Step::Insert(series));
        }
    }

    pub(super) fn read(&mut self, series: usize) {
        if first_time(&mut self.done.read, series) {
            self.insert(series);
            self.steps.push(Step::Read(series));
        }
    }

    pub(super) fn shared(&mut self, view: usize) {
        if first_time(&mut self.done.shared, view) {
            self.steps.push(Step::Shared(view));
        }
    }

    pub(super) fn compute(&mut self, slot: usize) {
        if self.carried.contains(&slot) {
            return;
        }
        match &self.compiler.features[slot].origin {
            Origin::Window { view, series } if Some(*view) == self.own => self.read(*series),
            Origin::Window { view, .. } | Origin::Profile { view } => self.shared(*view),
            Origin::Computed(formula) => {
                if first_time(&mut self.done.computed, slot) {
                    slots(formula).into_iter().for_each(|slot| self.compute(slot));
                    self.steps.push(Step::Compute(slot, formula.clone()));
                }
            }
            Origin::Parsed(_) => {}
        }
    }
}
