//! Assemble: joined values to the vector that the model was trained on.

use feature_store::FeatureSet;

use crate::ingest::{DeadLetter, Event};
use crate::join::Joined;

/// A batch after assembly.
#[derive(Debug)]
pub struct Assembled {
    pub events: Vec<Event>,
    /// One row a event in the layout's order; `NaN` is a missing value.
    pub rows: Vec<f32>,
    pub dead_letters: Vec<DeadLetter>,
    pub next: Vec<(u32, u64)>,
}

/// Derives the last features and puts all into the layout's order.
pub fn assemble(features: &FeatureSet, mut joined: Joined) -> Assembled {
    let mut rows = Vec::with_capacity(joined.events.len() * features.layout().width());
    for (event, values) in joined.events.iter().zip(joined.values.chunks_exact_mut(features.width())) {
        features.assemble(&event.transaction, values, &mut rows);
    }
    Assembled { events: joined.events, rows, dead_letters: joined.dead_letters, next: joined.next }
}
