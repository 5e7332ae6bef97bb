//! What a definition file comes to, for people.

use std::fmt;

use crate::definitions::{Entity, Span};
use crate::features::FeatureSet;
use crate::view::{Step, View};
use crate::window::{entity_bytes_max, event_bytes, profile_bytes_max};

/// The vector, the views, and what a scoring costs: what `fraudline features show` prints.
#[derive(Debug)]
pub struct Description<'a>(&'a FeatureSet);

impl FeatureSet {
    pub fn describe(&self) -> Description<'_> {
        Description(self)
    }
}

impl View {
    /// The most memory that the windows of one entity take, in bytes, labels aside; `None` if that depends on its traffic.
    pub fn entity_bytes_max(&self) -> Option<usize> {
        if self.is_profile() {
            return Some(profile_bytes_max(self.profile.columns.len(), self.profile.step, self.keep));
        }
        entity_bytes_max(&self.specs, self.keep)
    }

    fn has_labels(&self) -> bool {
        let ranges = self.series.iter().flat_map(|series| &series.ranges);
        ranges.flat_map(|range| &range.features).any(|feature| feature.of_labels)
    }
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.0;
        let layout = features.layout();
        writeln!(f, "{} features, f32, layout {}", layout.width(), layout.hash())?;
        let widest = features.names().iter().map(String::len).max().unwrap_or(0);
        for (slot, spec) in layout.features().iter().enumerate() {
            let missing = if spec.nullable { "may be missing" } else { "always there" };
            writeln!(f, "{slot:>4}  {:widest$}  {missing:14}  {}", spec.name, spec.definition)?;
        }
        for view in features.views() {
            let windows: usize = view.series.iter().map(|series| series.ranges.len()).sum();
            writeln!(f, "\nview {}, by {}, stored as {}", view.name(), view.entity(), view.key())?;
            if view.is_owned() {
                writeln!(f, "  kept by the scorer; an event sees itself and all before it")?;
            } else {
                writeln!(f, "  kept by the materializer; read up to {} stale", Span(view.staleness()))?;
            }
            if view.is_profile() {
                writeln!(f, "  {} of a profile", plural(view.profile.columns.len(), "value"))?;
                if let Some(ttl) = view.ttl() {
                    writeln!(f, "  missing once it is older than {}", Span(ttl))?;
                }
                writeln!(f, "  needs the updates of the last {}, and the last before", Span(view.keep()))?;
            } else {
                writeln!(f, "  {} of {} series of events", plural(windows, "window"), view.series.len())?;
                writeln!(f, "  needs the events of the last {}", Span(view.keep()))?;
            }
            let (event, label) = event_bytes(&view.specs);
            match view.entity_bytes_max() {
                Some(bytes) => writeln!(f, "  at most {} of memory an entity", bytes_text(bytes))?,
                None => writeln!(f, "  {event} bytes of memory for each of them; `exact: 0` keeps tiles instead")?,
            }
            if view.has_labels() {
                writeln!(f, "  {label} bytes for each label")?;
            }
        }
        if let Some(carry) = features.carry() {
            let names: Vec<&str> = carry.slots.iter().map(|&slot| features.names()[slot].as_str()).collect();
            writeln!(
                f,
                "\nthe materializer keeps the windows of cards, too, as each event brings along: {}",
                names.join(", ")
            )?;
        }
        writeln!(f, "\na scoring reads")?;
        let mut reads = false;
        for step in &features.join {
            let Step::Shared(index) = step else { continue };
            let view = &features.views()[*index];
            writeln!(f, "  {}: one state by {}, from the cache or the online store", view.name(), view.entity())?;
            reads = true;
        }
        if let Some(view) = features.view_of(Entity::CardId) {
            writeln!(f, "  {}: one state by card_id, from memory, or the online store if it was dropped", view.name())?;
            reads = true;
        }
        if !reads {
            writeln!(f, "  nothing")?;
        }
        writeln!(f, "\nsaid of their part in an alert, one of each group")?;
        for group in features.reason_groups() {
            writeln!(f, "  {}", group.name)?;
            for &column in &group.columns {
                writeln!(f, "    {:widest$}  {}", features.names()[column], features.reasons[column])?;
            }
        }
        Ok(())
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn bytes_text(bytes: usize) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1024 / 1024),
    }
}
