//! The definition file: what a feature is, declared once.

use std::fmt;
use std::time::Duration;

use schemas::{Id, Transaction};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

/// The file as it is written. [`crate::FeatureSet`] is what it is compiled to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definitions {
    pub(crate) version: Spanned<u32>,
    pub(crate) allowed_lateness: Span,
    #[serde(default)]
    pub(crate) request: Vec<Computed>,
    #[serde(default)]
    pub(crate) views: Vec<ViewDefinition>,
    #[serde(default)]
    pub(crate) derived: Vec<Computed>,
}

/// A feature that is computed from others, or from fields of the event.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Computed {
    pub(crate) name: Spanned<String>,
    /// An expression over features and fields: `amount`, `TX_AMOUNT / AVG_7DAY`, `log1p(TX_AMOUNT)`.
    pub(crate) value: Spanned<String>,
}

/// What is known of one entity: windows over its events, or its profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ViewDefinition {
    pub(crate) name: Spanned<String>,
    pub(crate) entity: Entity,
    /// How far behind event time the view may be read; for profiles, and for an entity whose events are spread
    /// over the partitions. A value of a profile counts for events that come later than it by this, and up to a 16th more.
    pub(crate) staleness: Option<Span>,
    /// How old a value of a profile may be; an older one is missing. Without it, values hold until they change.
    pub(crate) ttl: Option<Spanned<Span>>,
    /// Values that are known of the entity besides its events, from the topic `profiles`.
    #[serde(default)]
    pub(crate) profile: Vec<ProfileFeature>,
    /// How many of the newest events are kept one by one, for each entity, filter and value; older ones are kept in
    /// tiles, so that memory is bounded however busy an entity is. `all`: no tiles. 0: tiles only.
    pub(crate) exact: Option<Spanned<Exact>>,
    /// Length of a tile: bounds of windows among events in tiles are rounded down to a tile's begin.
    pub(crate) tile: Option<Spanned<Span>>,
    /// Windows over the events of the entity.
    #[serde(default)]
    pub(crate) windows: Vec<Windows>,
}

impl ViewDefinition {
    /// Whether the scorer keeps it itself; all others are the materializer's.
    pub(crate) fn is_owned(&self) -> bool {
        self.entity == Entity::CardId && self.profile.is_empty()
    }
}

/// A number of an entity's profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProfileFeature {
    pub(crate) name: Spanned<String>,
    /// What profile updates call it, if not by the feature's name. True is 1, false 0.
    pub(crate) field: Option<String>,
    /// The value where there is none; missing if not given.
    pub(crate) empty: Option<f64>,
}

/// What a view is keyed by: a field of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entity {
    /// The key of the transactions topic: one partition sees all events of a card.
    CardId,
    TerminalId,
}

impl Entity {
    /// The entity's id in an event.
    pub fn id_in(self, transaction: &Transaction) -> &Id {
        match self {
            Entity::CardId => &transaction.card_id,
            Entity::TerminalId => &transaction.terminal_id,
        }
    }
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
    /// What is aggregated: an expression, or `card_id` or `terminal_id` where ids can be. Events where it is missing don't count.
    pub(crate) value: Option<Spanned<String>>,
    /// Only events for which this expression holds, at their own time, count.
    #[serde(rename = "where")]
    pub(crate) filter: Option<Spanned<String>>,
    /// Which events make up a run, for the aggregates of runs: an expression.
    #[serde(rename = "match")]
    pub(crate) matches: Option<Spanned<String>>,
    pub(crate) over: Vec<Span>,
    /// The window is `(t - offset - over, t - offset]` for an event at `t`.
    #[serde(default)]
    pub(crate) offset: Span,
    pub(crate) include_current: Option<bool>,
    /// The value where there is none by itself; missing if not given.
    pub(crate) empty: Option<f64>,
}

/// How many events are kept one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exact(pub(crate) usize);

impl Exact {
    pub(crate) const ALL: Exact = Exact(usize::MAX);
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exact, D::Error> {
        let text = String::deserialize(deserializer)?;
        let most = match text.as_str() {
            "all" => Some(Exact::ALL),
            number => number.parse().ok().filter(|&number| number <= 1_000_000).map(Exact),
        };
        most.ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no number up to 1000000, and not `all`")))
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Exact::ALL { f.write_str("all") } else { write!(f, "{}", self.0) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aggregate {
    /// Number of events.
    Count,
    /// Sum of the values.
    Sum,
    /// Sum / count; missing over no events.
    Mean,
    /// The smallest value; missing over no events.
    Min,
    /// The largest value; missing over no events.
    Max,
    /// The sample's standard deviation, `sqrt(sum((x - mean)^2) / (count - 1))`; missing over fewer than two events.
    Std,
    /// Number of different values among the events kept one by one.
    Distinct,
    /// The value of the newest event before this one; missing if there is none.
    Last,
    /// Seconds since the newest event before this one; missing if there is none.
    TimeSinceLast,
    /// Seconds since the oldest event in the window before this one; with a value, the oldest of this event's value; missing if there is none.
    FirstSeen,
    /// The share of the earlier values below this event's, equal ones counted half: 0 to 1; missing if there is none.
    Rank,
    /// Number of events in the last unbroken run of matches; 0 if nothing matched.
    RunLength,
    /// Seconds since the last match; missing if nothing matched.
    TimeSinceMatch,
    /// Seconds since the first match of the last unbroken run; missing if nothing matched.
    TimeSinceRunStart,
    /// Number of events since the last match; missing if nothing matched.
    OthersSinceMatch,
    /// Number of transactions known to be fraud.
    FraudCount,
    /// Fraud count / count; missing over no transactions.
    FraudRate,
}

/// What an aggregate can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    /// Numbers; the amount if no value is given.
    Numbers,
    /// Numbers or ids, which must be given.
    Anything,
    /// Numbers or ids, or nothing.
    AnythingOrNothing,
    Matches,
}

impl Aggregate {
    pub(crate) fn needs_labels(self) -> bool {
        matches!(self, Aggregate::FraudCount | Aggregate::FraudRate)
    }

    /// Whether it can be missing.
    pub(crate) fn is_nullable(self) -> bool {
        !matches!(
            self,
            Aggregate::Count | Aggregate::Sum | Aggregate::Distinct | Aggregate::RunLength | Aggregate::FraudCount
        )
    }

    /// Whether it looks at the events before this one only.
    pub(crate) fn is_of_earlier_events(self) -> bool {
        matches!(self, Aggregate::Last | Aggregate::TimeSinceLast | Aggregate::FirstSeen | Aggregate::Rank)
    }

    pub(crate) fn takes(self) -> Takes {
        match self {
            Aggregate::Count | Aggregate::TimeSinceLast | Aggregate::FraudCount | Aggregate::FraudRate => {
                Takes::Nothing
            }
            Aggregate::Sum | Aggregate::Mean | Aggregate::Min | Aggregate::Max | Aggregate::Std | Aggregate::Last => {
                Takes::Numbers
            }
            Aggregate::Rank => Takes::Numbers,
            Aggregate::Distinct => Takes::Anything,
            Aggregate::FirstSeen => Takes::AnythingOrNothing,
            Aggregate::RunLength
            | Aggregate::TimeSinceMatch
            | Aggregate::TimeSinceRunStart
            | Aggregate::OthersSinceMatch => Takes::Matches,
        }
    }
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aggregate::Count => "count",
            Aggregate::Sum => "sum",
            Aggregate::Mean => "mean",
            Aggregate::Min => "min",
            Aggregate::Max => "max",
            Aggregate::Std => "std",
            Aggregate::Distinct => "distinct",
            Aggregate::Last => "last",
            Aggregate::TimeSinceLast => "time_since_last",
            Aggregate::FirstSeen => "first_seen",
            Aggregate::Rank => "rank",
            Aggregate::RunLength => "run_length",
            Aggregate::TimeSinceMatch => "time_since_match",
            Aggregate::TimeSinceRunStart => "time_since_run_start",
            Aggregate::OthersSinceMatch => "others_since_match",
            Aggregate::FraudCount => "fraud_count",
            Aggregate::FraudRate => "fraud_rate",
        })
    }
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
