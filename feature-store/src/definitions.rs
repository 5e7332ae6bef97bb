//! The definition file: what a feature is, declared once.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

/// The file as it is written. [`crate::FeatureSet`] is what it is compiled to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definitions {
    pub(crate) version: Spanned<u32>,
    pub(crate) allowed_lateness: Span,
    #[serde(default)]
    pub(crate) request: Vec<Request>,
    #[serde(default)]
    pub(crate) views: Vec<ViewDefinition>,
    #[serde(default)]
    pub(crate) derived: Vec<Derived>,
}

/// A field of the event, or a simple function of one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) name: Spanned<String>,
    pub(crate) value: RequestValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RequestValue {
    /// The amount in the currency unit.
    Amount,
    /// 1 on Saturday and Sunday (UTC), else 0.
    Weekend,
    /// 1 in the hours 0 to 6 (UTC), else 0.
    Night,
}

/// Windows over the events of one entity.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ViewDefinition {
    pub(crate) name: Spanned<String>,
    pub(crate) entity: Entity,
    /// How far behind event time the view may be read; only for an entity whose events are spread
    /// over the partitions.
    pub(crate) staleness: Option<Span>,
    pub(crate) windows: Vec<Windows>,
}

/// What a view is keyed by: a field of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entity {
    /// The key of the transactions topic: one partition sees all events of a card.
    CardId,
    TerminalId,
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Entity::CardId => "card_id",
            Entity::TerminalId => "terminal_id",
        })
    }
}

/// One aggregate over one or more windows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Windows {
    /// With `{days}` or `{hours}` in it where there are several windows.
    pub(crate) name: Spanned<String>,
    pub(crate) aggregate: Aggregate,
    pub(crate) over: Vec<Span>,
    /// The window is `(t - offset - over, t - offset]` for an event at `t`.
    #[serde(default)]
    pub(crate) offset: Span,
    #[serde(default = "yes")]
    pub(crate) include_current: bool,
    /// The value over no events, where there is none by itself; missing if not given.
    pub(crate) empty: Option<f64>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aggregate {
    /// Number of transactions.
    Count,
    /// Sum of the amounts, in the currency unit.
    Sum,
    /// Sum / count; missing over no transactions.
    Mean,
    /// Number of transactions known to be fraud.
    FraudCount,
    /// Fraud count / count; missing over no transactions.
    FraudRate,
}

impl Aggregate {
    pub(crate) fn needs_labels(self) -> bool {
        matches!(self, Aggregate::FraudCount | Aggregate::FraudRate)
    }

    pub(crate) fn is_nullable(self) -> bool {
        matches!(self, Aggregate::Mean | Aggregate::FraudRate)
    }
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aggregate::Count => "count",
            Aggregate::Sum => "sum(amount)",
            Aggregate::Mean => "mean(amount)",
            Aggregate::FraudCount => "fraud_count",
            Aggregate::FraudRate => "fraud_rate",
        })
    }
}

/// A function of features declared above it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Derived {
    pub(crate) name: Spanned<String>,
    /// First / second; missing if either is, or the second is 0.
    pub(crate) ratio: Option<(Spanned<String>, Spanned<String>)>,
    /// First - second.
    pub(crate) difference: Option<(Spanned<String>, Spanned<String>)>,
    /// ln(1 + x); missing for x <= -1.
    pub(crate) log1p: Option<Spanned<String>>,
}

/// A length of time, written as a whole number and a unit: `500ms`, `30s`, `15m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text).map(Span).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is no length of time; write it as in 30s, 15m, 12h or 7d"))
        })
    }
}

/// A [`Duration`] written as a [`Span`], for `deserialize_with`.
pub(crate) fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Span::deserialize(deserializer).map(|span| span.0)
}

/// An optional [`Duration`] written as a [`Span`], for `deserialize_with`.
pub(crate) fn optional_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Option::<Span>::deserialize(deserializer).map(|span| span.map(|span| span.0))
}

fn parse_span(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let count: u64 = text[..unit_at].parse().ok()?;
    let millis: u64 = match &text[unit_at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // 100 years are more than any window, and keep sums of spans far from overflow.
    count.checked_mul(millis).filter(|&total| total <= 100 * 366 * 86_400_000).map(Duration::from_millis)
}

/// The inverse of what is read: the largest unit that divides it.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
            if millis.is_multiple_of(size) {
                return write!(f, "{}{unit}", millis / size);
            }
        }
        write!(f, "{millis}ms")
    }
}
