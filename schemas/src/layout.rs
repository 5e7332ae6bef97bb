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

    /// SHA-256 over names, definitions and nullability, in order; lower-case hex.
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
    }
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, definition: &str) -> FeatureSpec {
        FeatureSpec { name: name.into(), definition: definition.into(), nullable: false }
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
}
