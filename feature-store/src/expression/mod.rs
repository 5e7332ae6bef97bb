//! Expressions of a definition file: `TX_AMOUNT > 2.5 * MEAN_14D`, computed for one event.
//!
//! A missing operand makes a result missing, but a comparison with a missing value is false.

mod parse;

use std::fmt;

use schemars::JsonSchema;
use schemas::Transaction;

pub(crate) use parse::parse;

/// What an event has by itself, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub(crate) enum Field {
    /// The transaction's amount.
    Amount,
    /// Hour of the day, 0 to 23, UTC.
    Hour,
    /// Day of the week, 0 (Monday) to 6 (Sunday), UTC.
    Weekday,
    /// 1 on a Saturday or Sunday, else 0; UTC.
    Weekend,
    /// 1 in the hours 0 to 6, else 0; UTC.
    Night,
}

/// What an event has by itself, to be told apart only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub(crate) enum IdField {
    /// The card's id.
    CardId,
    /// The terminal's id.
    TerminalId,
}

impl Field {
    pub(crate) const NAMES: [(&str, Field); 5] = [
        ("amount", Field::Amount),
        ("hour", Field::Hour),
        ("weekday", Field::Weekday),
        ("weekend", Field::Weekend),
        ("night", Field::Night),
    ];

    pub(crate) fn named(name: &str) -> Option<Field> {
        Field::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, field)| field)
    }

    #[inline]
    fn of(self, transaction: &Transaction) -> f64 {
        let time = transaction.event_time;
        match self {
            Field::Amount => transaction.amount.as_f64(),
            Field::Hour => f64::from(time.hour()),
            Field::Weekday => f64::from(time.weekday()),
            Field::Weekend => truth(time.weekday() >= 5),
            Field::Night => truth(time.hour() <= 6),
        }
    }
}

impl IdField {
    pub(crate) const NAMES: [(&str, IdField); 2] = [("card_id", IdField::CardId), ("terminal_id", IdField::TerminalId)];

    pub(crate) fn named(name: &str) -> Option<IdField> {
        IdField::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, field)| field)
    }

    /// 64 bits of the id. Two ids of one entity meet in one code once in 10^19 pairs.
    #[inline]
    pub(crate) fn code(self, transaction: &Transaction) -> i64 {
        match self {
            IdField::CardId => code(&transaction.card_id),
            IdField::TerminalId => code(&transaction.terminal_id),
        }
    }
}

/// XXH3, whose values are the same everywhere and for good: they stand in stored states.
#[inline]
fn code(id: &str) -> i64 {
    twox_hash::XxHash3_64::oneshot(id.as_bytes()) as i64
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// A parsed expression; `N` stands for a name: a text first, then what it means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expression<N> {
    Number(f64),
    Name(N),
    /// Whether a field holds this text.
    Is {
        field: IdField,
        text: String,
        code: i64,
        negated: bool,
    },
    Unary(Unary, Box<Expression<N>>),
    Binary(Binary, Box<Expression<N>>, Box<Expression<N>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub(crate) enum Unary {
    /// The number with the other sign.
    Minus,
    /// 1 if `a` is 0 or missing, else 0.
    Not,
    /// The natural logarithm of `1 + a`; missing for -1 and below.
    Log1p,
    /// The number without its sign.
    Abs,
    /// The square root; missing below 0.
    Sqrt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub(crate) enum Binary {
    /// 1 if one of the two holds, else 0.
    Or,
    /// 1 if both hold, else 0.
    And,
    /// 1 if `a` is below `b`, else 0.
    Less,
    /// 1 if `a` is at most `b`, else 0.
    LessEqual,
    /// 1 if `a` is above `b`, else 0.
    Greater,
    /// 1 if `a` is at least `b`, else 0.
    GreaterEqual,
    /// 1 if both are the same number, or an id is the text beside it, else 0.
    Equal,
    /// 1 if both are there and differ, or an id is another than the text beside it, else 0.
    NotEqual,
    /// The sum.
    Plus,
    /// The difference.
    Minus,
    /// The product.
    Times,
    /// The ratio; missing over 0.
    Over,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl Binary {
    /// Those that stand between their operands; longer symbols first: `<=` is not `<`.
    pub(crate) const INFIX: [Binary; 12] = [
        Binary::Or,
        Binary::And,
        Binary::LessEqual,
        Binary::GreaterEqual,
        Binary::Less,
        Binary::Greater,
        Binary::Equal,
        Binary::NotEqual,
        Binary::Plus,
        Binary::Minus,
        Binary::Times,
        Binary::Over,
    ];

    /// How it is written, and how tightly it binds.
    pub(crate) fn infix(self) -> Option<(&'static str, u8)> {
        Some(match self {
            Binary::Or => ("or", 1),
            Binary::And => ("and", 2),
            Binary::Less => ("<", 4),
            Binary::LessEqual => ("<=", 4),
            Binary::Greater => (">", 4),
            Binary::GreaterEqual => (">=", 4),
            Binary::Equal => ("==", 4),
            Binary::NotEqual => ("!=", 4),
            Binary::Plus => ("+", 5),
            Binary::Minus => ("-", 5),
            Binary::Times => ("*", 6),
            Binary::Over => ("/", 6),
            Binary::Min | Binary::Max => return None,
        })
    }

    /// Whether the result is 0 or 1, and never missing.
    pub(crate) fn is_truth(self) -> bool {
        self.infix().is_some_and(|(_, binding)| binding <= 4)
    }
}

/// What a name means: a field of the event, or the slot of another feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Field(Field),
    Slot(usize),
}

pub(crate) type Formula = Expression<Source>;

impl Formula {
    /// The value for `transaction`, whose features `values` this one is made of; `NaN` if missing.
    #[inline]
    pub(crate) fn value(&self, transaction: &Transaction, values: &[f64]) -> f64 {
        let value = self.evaluate(transaction, values);
        if value.is_finite() { value } else { f64::NAN }
    }

    /// Whether the condition holds; it doesn't where it is missing.
    #[inline]
    pub(crate) fn holds(&self, transaction: &Transaction, values: &[f64]) -> bool {
        holds(self.evaluate(transaction, values))
    }

    fn evaluate(&self, transaction: &Transaction, values: &[f64]) -> f64 {
        match self {
            Expression::Number(number) => *number,
            Expression::Name(Source::Field(field)) => field.of(transaction),
            Expression::Name(Source::Slot(slot)) => values[*slot],
            Expression::Is { field, code, negated, .. } => truth((field.code(transaction) == *code) != *negated),
            Expression::Unary(operator, operand) => {
                let value = operand.evaluate(transaction, values);
                match operator {
                    Unary::Minus => -value,
                    Unary::Not => truth(!holds(value)),
                    Unary::Log1p => value.ln_1p(),
                    Unary::Abs => value.abs(),
                    Unary::Sqrt => value.sqrt(),
                }
            }
            Expression::Binary(operator, left, right) => {
                let (left, right) = (left.evaluate(transaction, values), right.evaluate(transaction, values));
                match operator {
                    Binary::Or => truth(holds(left) || holds(right)),
                    Binary::And => truth(holds(left) && holds(right)),
                    Binary::Less => truth(left < right),
                    Binary::LessEqual => truth(left <= right),
                    Binary::Greater => truth(left > right),
                    Binary::GreaterEqual => truth(left >= right),
                    Binary::Equal => truth(left == right),
                    // A missing value differs from nothing, as it equals nothing.
                    Binary::NotEqual => truth(!left.is_nan() && !right.is_nan() && left != right),
                    Binary::Plus => left + right,
                    Binary::Minus => left - right,
                    Binary::Times => left * right,
                    Binary::Over => left / right,
                    Binary::Min if left.is_nan() || right.is_nan() => f64::NAN,
                    Binary::Max if left.is_nan() || right.is_nan() => f64::NAN,
                    Binary::Min => left.min(right),
                    Binary::Max => left.max(right),
                }
            }
        }
    }
}

fn holds(value: f64) -> bool {
    !value.is_nan() && value != 0.0
}

impl<N> Expression<N> {
    /// Calls `visit` with every name.
    pub(crate) fn names<'a>(&'a self, visit: &mut dyn FnMut(&'a N)) {
        match self {
            Expression::Number(_) | Expression::Is { .. } => {}
            Expression::Name(name) => visit(name),
            Expression::Unary(_, operand) => operand.names(visit),
            Expression::Binary(_, left, right) => {
                left.names(visit);
                right.names(visit);
            }
        }
    }

    /// The same with `resolve`d names.
    pub(crate) fn resolved<M, E>(&self, resolve: &mut dyn FnMut(&N) -> Result<M, E>) -> Result<Expression<M>, E> {
        Ok(match self {
            Expression::Number(number) => Expression::Number(*number),
            Expression::Name(name) => Expression::Name(resolve(name)?),
            Expression::Is { field, text, code, negated } => {
                Expression::Is { field: *field, text: text.clone(), code: *code, negated: *negated }
            }
            Expression::Unary(operator, operand) => Expression::Unary(*operator, Box::new(operand.resolved(resolve)?)),
            Expression::Binary(operator, left, right) => {
                Expression::Binary(*operator, Box::new(left.resolved(resolve)?), Box::new(right.resolved(resolve)?))
            }
        })
    }
}

/// In its canonical form: two texts that mean the same differ in spaces and brackets only.
impl fmt::Display for Expression<String> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

impl Expression<String> {
    fn write(&self, f: &mut fmt::Formatter<'_>, around: u8) -> fmt::Result {
        match self {
            Expression::Number(number) => write!(f, "{number}"),
            Expression::Name(name) if is_plain(name) => f.write_str(name),
            Expression::Name(name) => write!(f, "`{name}`"),
            Expression::Is { field, text, negated, .. } => {
                let name = IdField::NAMES.iter().find(|(_, known)| known == field).map_or("", |(name, _)| name);
                write!(f, "{name} {} \"{text}\"", if *negated { "!=" } else { "==" })
            }
            Expression::Unary(operator, operand) => match operator {
                Unary::Minus => {
                    f.write_str("-")?;
                    operand.write(f, 7)
                }
                Unary::Not => {
                    f.write_str(if around > 3 { "(not " } else { "not " })?;
                    operand.write(f, 3)?;
                    f.write_str(if around > 3 { ")" } else { "" })
                }
                Unary::Log1p | Unary::Abs | Unary::Sqrt => {
                    let name =
                        FUNCTIONS_OF_ONE.iter().find(|(_, known)| known == operator).map_or("", |(name, _)| name);
                    write!(f, "{name}(")?;
                    operand.write(f, 0)?;
                    f.write_str(")")
                }
            },
            Expression::Binary(operator, left, right) => match operator.infix() {
                Some((symbol, binding)) => {
                    f.write_str(if around > binding { "(" } else { "" })?;
                    left.write(f, binding)?;
                    write!(f, " {symbol} ")?;
                    right.write(f, binding + 1)?;
                    f.write_str(if around > binding { ")" } else { "" })
                }
                None => {
                    f.write_str(if *operator == Binary::Min { "min(" } else { "max(" })?;
                    left.write(f, 0)?;
                    f.write_str(", ")?;
                    right.write(f, 0)?;
                    f.write_str(")")
                }
            },
        }
    }
}

pub(crate) const FUNCTIONS_OF_ONE: [(&str, Unary); 3] =
    [("log1p", Unary::Log1p), ("abs", Unary::Abs), ("sqrt", Unary::Sqrt)];
pub(crate) const FUNCTIONS_OF_TWO: [(&str, Binary); 2] = [("min", Binary::Min), ("max", Binary::Max)];

fn is_plain(name: &str) -> bool {
    name.starts_with(|first: char| first.is_alphabetic() || first == '_')
        && name.chars().all(|char| char.is_alphanumeric() || char == '_' || char == '.')
        && !["and", "or", "not"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        match parse(text) {
            Ok(expression) => expression.to_string(),
            Err(error) => format!("! {error}"),
        }
    }

    fn value(text: &str) -> f64 {
        let transaction = Transaction {
            transaction_id: "1".into(),
            event_time: schemas::EventTime::from_millis(1_522_540_831_000),
            card_id: "596".into(),
            terminal_id: "3156".into(),
            amount: schemas::Amount::from_cents(5716),
        };
        let formula = parse(text).unwrap_or_else(|error| panic!("{error}")).resolved(&mut |name| {
            Field::named(name).map(Source::Field).or((name == "none").then_some(Source::Slot(0))).ok_or(())
        });
        formula.expect("known names").value(&transaction, &[f64::NAN])
    }

    #[test]
    fn brackets_stand_where_they_are_needed() {
        for text in [
            "amount",
            "a / b",
            "log1p(a)",
            "a - (b - c)",
            "(a + b) * c",
            "a > 2.5 * b and not (c or d)",
            "-(a + b)",
            "min(a, b) + max(1, -2)",
            "`a-b` * 2",
            "terminal_id != \"x y\"",
            "(not a) + 1",
        ] {
            assert_eq!(canonical(text), text);
        }
        assert_eq!(canonical("((a)/b)"), "a / b");
        assert_eq!(canonical("a-b-c"), "a - b - c");
        assert_eq!(canonical("a<b"), "a < b");
    }

    #[test]
    fn operators_bind_as_everywhere() {
        assert_eq!(value("1 + 2 * 3 - 4 / 2 - 1"), 4.0);
        assert_eq!(value("-2 * -3"), 6.0);
        assert_eq!(value("1 < 2 and 2 < 1 or 1"), 1.0);
        assert_eq!(value("not 1 == 2"), 1.0);
        assert_eq!(value("amount >= 57.16 and weekday == 6 and hour == 0 and night and weekend"), 1.0);
        assert_eq!(value("terminal_id == \"3156\" and terminal_id != \"1\""), 1.0);
        assert_eq!(value("sqrt(abs(-9)) + min(1, 2) + max(1, 2)"), 6.0);
        assert_eq!(value("1e3"), 1000.0);
    }

    #[test]
    fn what_is_missing_stays_missing_and_fulfils_nothing() {
        for text in ["none + 1", "1 / 0", "0 / 0", "sqrt(-1)", "log1p(-1)", "log1p(-2)", "min(none, 1)", "max(1, none)"]
        {
            assert!(value(text).is_nan(), "{text}");
        }
        for text in ["none == none", "none != none", "none < 1", "none > 1", "none != 1", "none or none", "none and 1"]
        {
            assert_eq!(value(text), 0.0, "{text}");
        }
        assert_eq!(value("not none"), 1.0);
    }

    #[test]
    fn errors_say_what_was_expected_where() {
        for (text, says) in [
            ("", "expected a feature, a field, a number or a bracket, found the end"),
            ("a >", "found the end"),
            ("a b", "expected an operator or the end, found `b`"),
            ("(a", "expected `)`, found the end"),
            ("ln(a)", "no function `ln`; there are log1p"),
            ("1.2.3", "expected a number"),
            ("a < b < c", "after a comparison, found `c`"),
            ("amount == \"x\"", "`amount` is none"),
            ("min(a)", "expected `,`"),
            ("`a", "a closing backtick"),
            ("a & b", "found `& b`"),
        ] {
            assert!(canonical(text).contains(says), "{text}: {}", canonical(text));
        }
        assert!(canonical(&"(".repeat(5000)).contains("nested too deeply"));
    }
}
