//! What a feature's part in an alert is said with: plain text with places for its value and what is usual.

use std::fmt::{self, Write};
use std::time::Duration;

/// Features that say the same thing in different ways, and so have one part in a score between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonGroup {
    pub name: String,
    /// Columns of the layout, in order.
    pub columns: Vec<usize>,
}

/// A text that is filled in for an alert.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Number(Number, Format),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Value,
    Reference,
}

/// How a number is written.
#[derive(Clone, Debug, PartialEq)]
enum Format {
    /// At most two decimals, none where they are 0.
    Short,
    /// So many decimals.
    Decimals(usize),
    /// A share as `12.5%`.
    Percent,
    /// Seconds as `3 days`.
    Duration,
    /// One text where it isn't 0, another where it is.
    Choice(String, String),
}

/// What a declaration knows of its features that a text may name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) over: Option<Duration>,
    pub(crate) back: Option<u16>,
}

impl Template {
    /// Reads a text; `{over}` and `{back}` become what `known` has.
    ///
    /// # Errors
    /// Says for a person what is wrong, and what would be right.
    pub(crate) fn parse(text: &str, known: Known) -> Result<Template, String> {
        let mut template = Template::default();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (inside, after) = after.split_once('}').ok_or("a `{` has no `}` behind it")?;
            template.push(Part::Text(before.to_owned()));
            template.push(placeholder(inside, known)?);
            rest = after;
        }
        if rest.contains('}') {
            return Err("a `}` has no `{` before it".to_owned());
        }
        template.push(Part::Text(rest.to_owned()));
        Ok(template)
    }

    /// Adds a part; texts beside each other are one.
    fn push(&mut self, part: Part) {
        match (part, self.parts.last_mut()) {
            (Part::Text(text), _) if text.is_empty() => {}
            (Part::Text(text), Some(Part::Text(before))) => before.push_str(&text),
            (part, _) => self.parts.push(part),
        }
    }

    /// What is said of a feature whose definition says nothing.
    pub(crate) fn plain(name: &str) -> Template {
        Template {
            parts: vec![
                Part::Text(format!("{name} is ")),
                Part::Number(Number::Value, Format::Short),
                Part::Text(", usually ".to_owned()),
                Part::Number(Number::Reference, Format::Short),
            ],
        }
    }

    /// The text for a value and its reference; `NaN` is a missing one.
    pub(crate) fn fill(&self, name: &str, value: f64, reference: f64) -> String {
        if value.is_nan() {
            return format!("{name} is missing, usually {}", Written(&Format::Short, reference));
        }
        let mut text = String::new();
        for part in &self.parts {
            let _ = match part {
                Part::Text(fixed) => text.write_str(fixed),
                Part::Number(Number::Value, format) => write!(text, "{}", Written(format, value)),
                Part::Number(Number::Reference, format) => write!(text, "{}", Written(format, reference)),
            };
        }
        text
    }
}

/// As it was read, for people.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Text(text) => f.write_str(text)?,
                Part::Number(number, format) => {
                    let name = if *number == Number::Value { "value" } else { "reference" };
                    match format {
                        Format::Short => write!(f, "{{{name}}}")?,
                        Format::Decimals(digits) => write!(f, "{{{name}:.{digits}}}")?,
                        Format::Percent => write!(f, "{{{name}:percent}}")?,
                        Format::Duration => write!(f, "{{{name}:duration}}")?,
                        Format::Choice(yes, no) => write!(f, "{{{name}?{yes}|{no}}}")?,
                    }
                }
            }
        }
        Ok(())
    }
}

fn placeholder(inside: &str, known: Known) -> Result<Part, String> {
    match (inside, known) {
        ("over", Known { over: Some(over), .. }) => return Ok(Part::Text(words(over.as_secs_f64()))),
        ("over", _) => return Err("`{over}` is the length of a window, and this is none".to_owned()),
        ("back", Known { back: Some(back), .. }) => return Ok(Part::Text(back.to_string())),
        ("back", _) => return Err("`{back}` is for features with `back`".to_owned()),
        _ => {}
    }
    let (name, format) = match (inside.split_once('?'), inside.split_once(':')) {
        (Some((name, choice)), _) => match choice.split_once('|') {
            Some((yes, no)) => (name, Format::Choice(yes.to_owned(), no.to_owned())),
            None => return Err(format!("`{{{inside}}}` has one text; write both, as in `{{value?at night|by day}}`")),
        },
        (None, Some((name, "percent"))) => (name, Format::Percent),
        (None, Some((name, "duration"))) => (name, Format::Duration),
        (None, Some((name, digits))) => {
            let count = digits.strip_prefix('.').and_then(|digits| digits.parse().ok()).filter(|&count| count <= 6);
            match count {
                Some(count) => (name, Format::Decimals(count)),
                None => {
                    return Err(format!(
                        "there is no format `{digits}`; there are `.2` (decimals, up to 6), `percent` and `duration`"
                    ));
                }
            }
        }
        (None, None) => (inside, Format::Short),
    };
    match name {
        "value" => Ok(Part::Number(Number::Value, format)),
        "reference" => Ok(Part::Number(Number::Reference, format)),
        _ => Err(format!("there is no `{{{name}}}`; there are {{value}}, {{reference}}, {{over}} and {{back}}")),
    }
}

/// A number in a format.
struct Written<'a>(&'a Format, f64);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Written(format, number) = *self;
        if number.is_nan() {
            return f.write_str("missing");
        }
        match format {
            Format::Short => f.write_str(&short(number, 2)),
            &Format::Decimals(digits) => write!(f, "{number:.digits$}"),
            Format::Percent => write!(f, "{}%", short(number * 100.0, 1)),
            Format::Duration => f.write_str(&words(number)),
            Format::Choice(yes, no) => f.write_str(if number == 0.0 { no } else { yes }),
        }
    }
}

/// At most so many decimals, and none that are 0.
fn short(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Seconds in the largest unit that they are two of, or in seconds.
pub(crate) fn words(seconds: f64) -> String {
    const UNITS: [(&str, f64); 4] = [("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0)];
    let exact = UNITS.iter().find(|(_, size)| seconds == *size);
    let (unit, size) = exact.or_else(|| UNITS.iter().find(|(_, size)| seconds >= 2.0 * size)).unwrap_or(&UNITS[3]);
    let count = (seconds / size).round();
    format!("{count} {unit}{}", if count == 1.0 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str, value: f64, reference: f64) -> Result<String, String> {
        let known = Known { over: Some(Duration::from_secs(7 * 86_400)), back: Some(3) };
        Template::parse(text, known).map(|template| {
            assert_eq!(Template::parse(&template.to_string(), Known::default()).as_ref(), Ok(&template));
            template.fill("NAME", value, reference)
        })
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (text, value, reference, expected) in [
            ("{value} in {over}, {back} back", 12.0, 2.0, "12 in 7 days, 3 back"),
            ("{value} not {reference}", 1234.567, -0.001, "1234.57 not 0"),
            ("{value:.2} not {reference:.0}", 3.0, 2.6, "3.00 not 3"),
            ("{value:percent}, {reference:percent}", 0.125, 1.0, "12.5%, 100%"),
            ("{value:duration}, {reference:duration}", 86_400.0, 172_700.0, "1 day, 48 hours"),
            ("{value:duration}, {reference:duration}", 1.0, 0.2, "1 second, 0 seconds"),
            ("{value:duration}, {reference:duration}", 3601.0, 1e6, "60 minutes, 12 days"),
            ("paid {value?at night|by day}", 1.0, 0.0, "paid at night"),
            ("paid {value?at night|by day}", 0.0, 0.0, "paid by day"),
            ("{value} ({reference})", 5.0, f64::NAN, "5 (missing)"),
            ("{value} times", f64::NAN, 1.5, "NAME is missing, usually 1.5"),
            ("nothing of numbers", 5.0, 1.0, "nothing of numbers"),
        ] {
            assert_eq!(filled(text, value, reference).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(Template::plain("NAME").fill("NAME", 2.5, 1.0), "NAME is 2.5, usually 1");
    }

    #[test]
    fn what_can_not_be_filled_in_is_refused() {
        for (text, says) in [
            ("{amount}", "there is no `{amount}`; there are {value}"),
            ("{value", "no `}` behind"),
            ("value}", "no `{` before"),
            ("{value:euro}", "no format `euro`"),
            ("{value:.7}", "no format `.7`"),
            ("{value?at night}", "one text; write both"),
            ("{usual?a|b}", "there is no `{usual}`"),
        ] {
            let error = filled(text, 0.0, 0.0).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = Template::parse("{over}", Known::default()).expect_err("no window");
        assert!(error.contains("length of a window"), "{error}");
        let error = Template::parse("{back}", Known::default()).expect_err("no events");
        assert!(error.contains("features with `back`"), "{error}");
    }
}
