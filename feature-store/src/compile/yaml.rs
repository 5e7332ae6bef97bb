//! What is wrong with a text that has not the shape of a definition file, in the words of one.

use std::borrow::Cow;

use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

use super::edit_distance;
use crate::features::DefinitionError;

pub(super) fn refusal(error: &Error, file: &str) -> DefinitionError {
    DefinitionError {
        file: file.to_owned(),
        place: error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default(),
        message: message(error.without_snippet()).into_owned(),
    }
}

fn message(error: &Error) -> Cow<'_, str> {
    Cow::Owned(match error {
        Error::AliasError { error, .. } => return message(error),
        Error::Message { msg, .. } => msg.clone(),
        Error::Eof { .. } => {
            "the file ends here; a definition file begins with `version: 1` and `allowed_lateness: 1d`".into()
        }
        Error::SerdeMissingField { field, .. } => {
            format!("the key `{field}` is missing; `fraudline features reference` says what it takes")
        }
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("there is no key `{field}` here{}", instead(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("there is no `{variant}`{}", instead(variant, expected))
        }
        Error::DuplicateMappingKey { key, .. } => {
            format!("the key `{}` is here twice; leave one out", key.as_deref().unwrap_or_default())
        }
        Error::NullIntoString { .. } => "a value is missing here".into(),
        Error::InvalidScalar { ty, .. } => {
            let expected = match *ty {
                "boolean" => "`true` or `false`",
                "floating point" => "a number",
                _ => "a whole number",
            };
            format!("{expected} is expected here")
        }
        Error::Unexpected { expected, .. } => {
            let expected = match *expected {
                "sequence start" => "a list is expected here, as in `[1d, 7d]`, or lines that begin with `-`",
                "mapping start" => "keys and values are expected here, as in `name: AMOUNT`",
                "string scalar" => {
                    "one value is expected here, no list and no keys; a text with special signs stands in quotes"
                }
                other => return Cow::Owned(format!("expected {other}")),
            };
            expected.into()
        }
        _ => return UserMessageFormatter.format_message(error),
    })
}

/// What was meant, and what there is.
fn instead(found: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|known| edit_distance(known, found));
    // A guess that shares little with what was written is none.
    let guess = nearest.filter(|known| edit_distance(known, found) <= found.chars().count().min(known.len()) / 2);
    let guess = guess.map(|known| format!("; did you mean `{known}`?")).unwrap_or_else(|| ";".to_owned());
    format!("{guess} there are {}", known.join(", "))
}
