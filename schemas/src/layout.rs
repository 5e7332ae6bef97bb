use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One column of the vector that a model reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureSpec {
    pub name: String,
    /// What is computed, in a canonical form, as in `mean(amount) over card_id, 7d`. Two features
    /// of one name but different meaning differ here, and so in the layout's hash.
    pub definition: String,
    /// Whether a value can be missing (a mean over no events); missing is `NaN` in the vector.
    pub nullable: bool,
    /// Of a column that tells of one event in a sequence of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<SequencePlace>,
}

/// Which event of a sequence a column tells of, and what of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequencePlace {
    /// The events, in a canonical form, as in `last 16 by card_id, 30d, offset 0s`. Columns of the same sequence and position
    /// are of the same event.
    pub sequence: String,
    /// What of the event, as in `previous(amount)`.
    pub channel: String,
    /// 1 is the newest event before the one that is scored, 2 the one before that.
    pub position: u16,
}

/// The columns of a sequence of events, in a grid without holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The events, as in [`SequencePlace::sequence`].
    pub name: String,
    /// What the columns tell of each event, as in [`SequencePlace::channel`], in the layout's order.
    pub channels: Vec<String>,
    /// By position, newest event first, then by channel: the column of the vector.
    pub columns: Vec<Vec<usize>>,
}

/// The vector that features are assembled into: names, order, meaning. All columns are `f32`.
///
/// Invariant I4: a model refuses a layout other than the one it was trained with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureLayout {
    features: Vec<FeatureSpec>,
    hash: String,
}

/// How a layout differs from the one a model was trained with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model was trained with another feature layout (hash {trained}) than the definitions give (hash {served}): \
     {difference}. Serve the definitions it was trained with, or train it again on these"
)]
pub struct LayoutMismatch {
    pub trained: String,
    pub served: String,
    pub difference: String,
}

impl FeatureLayout {
    pub fn new(features: Vec<FeatureSpec>) -> FeatureLayout {
        let hash = hash(&features);
        FeatureLayout { features, hash }
    }

    pub fn features(&self) -> &[FeatureSpec] {
        &self.features
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.features.len()
    }

    /// The sequences of events among the columns, in the layout's order. Columns that leave a hole in their sequence, as no
    /// definition gives them, are left out of it.
    pub fn sequences(&self) -> Vec<Sequence> {
        let mut sequences: Vec<Sequence> = Vec::new();
        let places = || self.features.iter().enumerate().filter_map(|(at, spec)| Some((at, spec.place.as_ref()?)));
        for (_, place) in places() {
            let known = sequences.iter().position(|sequence| sequence.name == place.sequence);
            let index = known.unwrap_or_else(|| {
                let (channels, columns) = (Vec::new(), Vec::new());
                sequences.push(Sequence { name: place.sequence.clone(), channels, columns });
                sequences.len() - 1
            });
            if !sequences[index].channels.contains(&place.channel) {
                sequences[index].channels.push(place.channel.clone());
            }
        }
        for Sequence { name, channels, columns } in &mut sequences {
            let column = |channel: &String, position: u16| {
                let is_it = |place: &SequencePlace| (&place.channel, place.position) == (channel, position);
                places().find(|(_, place)| place.sequence == *name && is_it(place)).map(|(at, _)| at)
            };
            let event = |position| channels.iter().map(|channel| column(channel, position)).collect();
            columns.extend((1..=u16::MAX).map_while(event));
        }
        sequences
    }

    /// SHA-256 over names, definitions, nullability and places in sequences, in order; lower-case hex.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether the stored hash is the one of the stored columns (it is not after an edit by hand).
    pub fn is_consistent(&self) -> bool {
        self.hash == hash(&self.features)
    }

    /// Checks that vectors assembled as `served` are what a model trained on `self` expects.
    pub fn accept(&self, served: &FeatureLayout) -> Result<(), LayoutMismatch> {
        if self.hash == served.hash {
            return Ok(());
        }
        let pairs = self.features.iter().zip(&served.features).enumerate();
        let difference = pairs
            .filter(|(_, (trained, served))| trained != served)
            .map(|(index, (trained, served))| match trained.name == served.name {
                false => format!("column {index} was `{}` and is `{}`", trained.name, served.name),
                true => format!(
                    "column {index}, `{}`, was `{}` and is `{}`",
                    trained.name, trained.definition, served.definition
                ),
            })
            .next()
            .unwrap_or_else(|| format!("{} columns were trained, {} are served", self.width(), served.width()));
        Err(LayoutMismatch { trained: self.hash.clone(), served: served.hash.clone(), difference })
    }
}

fn hash(features: &[FeatureSpec]) -> String {
    let mut sha = Sha256::new();
    for feature in features {
        for part in [feature.name.as_str(), feature.definition.as_str()] {
            sha.update((part.len() as u64).to_le_bytes());
            sha.update(part.as_bytes());
        }
        sha.update([u8::from(feature.nullable)]);
        // Nothing at all where there is none: layouts without sequences have the hashes that they always had.
        if let Some(SequencePlace { sequence, channel, position }) = &feature.place {
            for part in [sequence.as_str(), channel.as_str()] {
                sha.update((part.len() as u64).to_le_bytes());
                sha.update(part.as_bytes());
            }
            sha.update(position.to_le_bytes());
        }
    }
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, definition: &str) -> FeatureSpec {
        FeatureSpec { name: name.into(), definition: definition.into(), nullable: false, place: None }
    }

    fn placed(channel: &str, position: u16) -> FeatureSpec {
        let place = SequencePlace { sequence: "last 2 by card_id".into(), channel: channel.into(), position };
        FeatureSpec { place: Some(place), ..spec(&format!("{channel}{position}"), channel) }
    }

    #[test]
    fn a_change_of_name_order_or_meaning_is_refused() {
        let trained = FeatureLayout::new(vec![spec("a", "count 1d"), spec("b", "count 7d")]);
        assert_eq!(trained.accept(&trained.clone()), Ok(()));
        for (served, says) in [
            (vec![spec("b", "count 7d"), spec("a", "count 1d")], "column 0 was `a` and is `b`"),
            (vec![spec("a", "count 2d"), spec("b", "count 7d")], "was `count 1d` and is `count 2d`"),
            (vec![spec("a", "count 1d")], "2 columns were trained, 1 are served"),
        ] {
            let error = trained.accept(&FeatureLayout::new(served)).expect_err(says);
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_sequence_is_a_grid_of_columns() {
        let layout = FeatureLayout::new(vec![
            spec("x", "count 1d"),
            placed("a", 1),
            placed("a", 2),
            placed("b", 1),
            placed("b", 2),
        ]);
        let sequences = layout.sequences();
        assert_eq!(sequences.len(), 1);
        assert_eq!(sequences[0].channels, ["a", "b"]);
        assert_eq!(sequences[0].columns, [[1, 3], [2, 4]]);
        let holed = FeatureLayout::new(vec![placed("a", 1), placed("a", 2), placed("b", 1)]);
        assert_eq!(holed.sequences()[0].columns, [[0, 2]]);
    }

    #[test]
    fn the_place_in_a_sequence_is_part_of_the_hash_and_of_nothing_without_one() {
        // As layouts were hashed before there were sequences.
        let plain = FeatureLayout::new(vec![spec("a", "count 1d")]);
        assert_eq!(plain.hash(), "40f2580f93f3365e046bea06d276e6b9d313697bca2a81688ae97b704d9da349");
        let moved = FeatureSpec { place: placed("a", 2).place, ..placed("a", 1) };
        assert!(FeatureLayout::new(vec![placed("a", 1)]).accept(&FeatureLayout::new(vec![moved])).is_err());
        let text = serde_json::to_string(&plain).expect("a layout is JSON");
        assert!(!text.contains("place"), "{text}");
    }
}
