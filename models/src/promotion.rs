use std::{fmt, str::FromStr};

/// The move of an alias by which a model came to serve: what tells which of two models is the later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// As in `fraud@champion`.
    pub alias: String,
    /// Rises with every move of the alias.
    pub generation: u64,
}

impl Promotion {
    /// Whether `self` was replaced by `other`. Moves of different aliases don't replace each other.
    pub fn is_before(&self, other: &Promotion) -> bool {
        self.alias == other.alias && self.generation < other.generation
    }
}

/// `name@alias:generation`, which [`Promotion::from_str`] reads.
impl fmt::Display for Promotion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.alias, self.generation)
    }
}

/// A text that is no promotion, as others may have left in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no promotion, as in fraud@champion:3")]
pub struct NoPromotion(String);

impl FromStr for Promotion {
    type Err = NoPromotion;

    fn from_str(text: &str) -> Result<Promotion, NoPromotion> {
        let no = || NoPromotion(text.to_owned());
        let (alias, generation) = text.rsplit_once(':').ok_or_else(no)?;
        let generation = generation.parse().map_err(|_| no())?;
        match alias.contains('@') {
            true => Ok(Promotion { alias: alias.to_owned(), generation }),
            false => Err(no()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotions_round_trip_and_others_are_refused() {
        let third = Promotion { alias: "fraud@champion".into(), generation: 3 };
        assert_eq!(third.to_string().parse(), Ok(third.clone()));
        for text in ["", "fraud@champion", "fraud:3", "fraud@champion:-1", "fraud@champion:x"] {
            assert_eq!(text.parse::<Promotion>(), Err(NoPromotion(text.into())));
        }
        let fourth = Promotion { generation: 4, ..third.clone() };
        assert!(third.is_before(&fourth) && !fourth.is_before(&third) && !third.is_before(&third));
        assert!(!third.is_before(&Promotion { alias: "fraud@canary".into(), ..fourth }));
    }
}
