use std::collections::BTreeMap;

use schemas::EventTime;
use serde::{Deserialize, Serialize};

/// Moves kept; older ones are forgotten.
const HISTORY_MAX: usize = 1000;

/// Which versions the aliases of a model stand at, and how they came there. `aliases.json` holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aliases {
    /// Of the last move of any alias; see [`Alias::generation`].
    generation: u64,
    aliases: BTreeMap<String, Alias>,
    /// Oldest first.
    history: Vec<Move>,
}

/// Where an alias stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    pub version: String,
    /// Rises with every move: of two scores the one of the higher generation is by the later model. It is the time of
    /// the move in milliseconds since 1970, or one more than the last, so it rises beyond that of a registry that was lost.
    pub generation: u64,
}

/// A move of an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    pub generation: u64,
    #[serde(with = "rfc3339")]
    pub time: EventTime,
    pub kind: MoveKind,
    pub alias: String,
    pub from: Option<String>,
    /// `None`: the alias was taken away.
    pub to: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveKind {
    Promoted,
    RolledBack,
    Removed,
}

mod rfc3339 {
    use schemas::EventTime;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &EventTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventTime, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Aliases {
    pub fn get(&self, alias: &str) -> Option<&Alias> {
        self.aliases.get(alias)
    }

    /// All aliases, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Alias)> {
        self.aliases.iter().map(|(name, alias)| (name.as_str(), alias))
    }

    /// The moves, oldest first.
    pub fn history(&self) -> &[Move] {
        &self.history
    }

    pub(super) fn from_json(bytes: &[u8]) -> Result<Aliases, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("aliases hold nothing that JSON can't");
        json.push(b'\n');
        json
    }

    pub(super) fn move_to(&mut self, alias: &str, version: &str, now: EventTime) -> Move {
        self.note(alias, Some(version), MoveKind::Promoted, now)
    }

    pub(super) fn roll_back(&mut self, alias: &str, version: &str, now: EventTime) -> Move {
        self.note(alias, Some(version), MoveKind::RolledBack, now)
    }

    /// `None`: there is no such alias.
    pub(super) fn remove(&mut self, alias: &str, now: EventTime) -> Option<Move> {
        self.aliases.contains_key(alias).then(|| self.note(alias, None, MoveKind::Removed, now))
    }

    /// The version that the alias stood at before the one it stands at, promotions that were rolled back left out.
    pub(super) fn previous(&self, alias: &str) -> Option<String> {
        let mut stack: Vec<Option<&str>> = Vec::new();
        for made in self.history.iter().filter(|made| made.alias == alias) {
            match made.kind {
                MoveKind::RolledBack => {
                    stack.pop();
                }
                MoveKind::Promoted | MoveKind::Removed => {
                    // Of a history that was cut off, the first move tells where it began.
                    if stack.is_empty() {
                        stack.push(made.from.as_deref());
                    }
                    stack.push(made.to.as_deref());
                }
            }
        }
        stack.pop();
        stack.pop().flatten().map(str::to_owned)
    }

    fn note(&mut self, alias: &str, to: Option<&str>, kind: MoveKind, now: EventTime) -> Move {
        let time_ms = u64::try_from(now.as_millis()).unwrap_or(0);
        self.generation = time_ms.max(self.generation + 1);
        let generation = self.generation;
        let moved = to.map(|version| Alias { version: version.to_owned(), generation });
        let from = match moved {
            Some(moved) => self.aliases.insert(alias.to_owned(), moved),
            None => self.aliases.remove(alias),
        };
        let from = from.map(|alias| alias.version);
        let made = Move { generation, time: now, kind, alias: alias.to_owned(), from, to: to.map(str::to_owned) };
        self.history.push(made.clone());
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> EventTime {
        EventTime::from_millis(millis)
    }

    #[test]
    fn generations_rise_whatever_the_clock_does() {
        let mut aliases = Aliases::default();
        let first = aliases.move_to("champion", "1", at(5_000)).generation;
        let second = aliases.move_to("champion", "2", at(4_000)).generation;
        let other = aliases.move_to("challenger", "3", at(4_500)).generation;
        let third = aliases.remove("champion", at(9_000)).unwrap().generation;
        assert_eq!([first, second, other, third], [5_000, 5_001, 5_002, 9_000]);
        assert_eq!(aliases.remove("champion", at(9_001)), None);
        assert_eq!(Aliases::from_json(&aliases.to_json()).unwrap(), aliases);
    }

    #[test]
    fn a_rollback_goes_one_step_further_each_time() {
        let mut aliases = Aliases::default();
        for version in ["1", "2", "3"] {
            aliases.move_to("champion", version, at(0));
        }
        aliases.move_to("challenger", "9", at(0));
        let mut back = || {
            let version = aliases.previous("champion")?;
            Some(aliases.roll_back("champion", &version, at(0)).to.unwrap())
        };
        assert_eq!((back().as_deref(), back().as_deref(), back()), (Some("2"), Some("1"), None));
        aliases.move_to("champion", "4", at(0));
        assert_eq!(aliases.previous("champion").as_deref(), Some("1"));
        // An alias that was taken away comes back.
        aliases.remove("champion", at(0));
        assert_eq!(aliases.previous("champion").as_deref(), Some("4"));
    }

    #[test]
    fn a_history_that_was_cut_off_still_rolls_back() {
        let mut aliases = Aliases::default();
        for version in 0..2 * HISTORY_MAX {
            aliases.move_to("champion", &version.to_string(), at(0));
        }
        assert_eq!(aliases.history().len(), HISTORY_MAX);
        for version in (HISTORY_MAX - 1..2 * HISTORY_MAX - 1).rev() {
            let previous = aliases.previous("champion");
            // Each rollback is a move, too, and pushes an old one out.
            let Some(previous) = previous else { break };
            assert_eq!(previous, version.to_string());
            aliases.roll_back("champion", &previous, at(0));
        }
    }
}
