//! The definition file: what a feature is, declared once.
//!
//! The comments on these types are what a person reads: the JSON Schema and the reference page are made of them.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use schemas::{Id, Transaction};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

/// Everything that is computed for a transaction. The vector's columns are the features in the order of this file: `request`,
/// then those of the views, then `derived`.
// [`crate::FeatureSet`] is what it is compiled to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Feature definitions of fraudline")]
pub(crate) struct Definitions {
    /// Version of this format.
    #[schemars(with = "u32", extend("const" = 1))]
    pub(crate) version: Spanned<u32>,
    /// How much later than the newest event of its partition a transaction may come; it is placed where it belongs. What comes
    /// later still becomes a dead letter.
    #[schemars(extend("examples" = ["1d"]))]
    pub(crate) allowed_lateness: Span,
    /// Features of the event alone.
    #[serde(default)]
    pub(crate) request: Vec<Computed>,
    /// Features of the events before, by entity: one view for each.
    #[serde(default)]
    pub(crate) views: Vec<ViewDefinition>,
    /// Features of other features. They may use each other in any order, but not in a circle.
    #[serde(default)]
    pub(crate) derived: Vec<Computed>,
    /// Lists of features under names of their own, for lookups that ask for a `feature_service`.
    #[serde(default)]
    pub(crate) feature_services: Vec<ServiceDefinition>,
}

/// Features of views that are looked up together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "feature_service")]
pub(crate) struct ServiceDefinition {
    /// The service's name, unique among them.
    #[schemars(with = "String", extend("examples" = ["fraud_v1"]))]
    pub(crate) name: Spanned<String>,
    /// `view:feature`, or a view's name for all of its features, in the order of the answer.
    #[schemars(with = "Vec<String>", extend("examples" = [["card", "terminal:TERMINAL_ID_RISK_7DAY_WINDOW"]]))]
    pub(crate) features: Vec<Spanned<String>>,
}

/// A feature that is computed from others, or from fields of the event.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "feature")]
pub(crate) struct Computed {
    /// The column's name: unique, without spaces, colons, braces or backticks.
    #[schemars(with = "String", extend("examples" = ["LOG_AMOUNT"]))]
    pub(crate) name: Spanned<String>,
    /// What it is computed from: features and fields.
    #[schemars(with = "String", title = "expression", extend("examples" = ["amount", "log1p(TX_AMOUNT)", "TX_AMOUNT / MEAN_7D"]))]
    pub(crate) value: Spanned<String>,
    /// What is said of the feature where it has part in an alert; `fraudline features reference` has what stands in braces. By itself, its name,
    /// value and what is usual.
    #[schemars(with = "Option<String>", extend("examples" = ["{value:.1} times the usual amount"]))]
    pub(crate) reason: Option<Spanned<String>>,
    /// What features have in common that say the same thing in different ways: only one of them is named in an alert, for all. By itself
    /// each feature stands alone.
    #[schemars(extend("examples" = ["amount"]))]
    pub(crate) reason_group: Option<String>,
}

/// What is known of one entity: windows over its events, or its profile.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "view")]
pub(crate) struct ViewDefinition {
    /// The view's name, unique: lookups ask for `view:feature`.
    #[schemars(with = "String", extend("examples" = ["card"]))]
    pub(crate) name: Spanned<String>,
    /// What the view is keyed by.
    pub(crate) entity: Entity,
    /// How far behind event time the view may be read: needed for profiles, and for an entity whose events are spread over the
    /// partitions; refused for one whose events one scorer sees all of. Windows end longer ago than this and the allowed lateness, and
    /// a value of a profile counts for events that come later than it by this (and up to a 16th more), so that values are
    /// the same however far behind the view is.
    #[schemars(extend("examples" = ["3d"]))]
    pub(crate) staleness: Option<Span>,
    /// How old a value of a profile may be; an older one is missing. Without it, values hold until they change.
    #[schemars(with = "Option<Span>", extend("examples" = ["90d"]))]
    pub(crate) ttl: Option<Spanned<Span>>,
    /// Values that are known of the entity besides its events, from the topic `profiles`; a view has these or windows.
    #[serde(default)]
    pub(crate) profile: Vec<ProfileFeature>,
    /// How many of the newest events are kept one by one, for each entity, filter and value; older ones are kept in
    /// tiles, so that memory is bounded however busy an entity is. `all`: no tiles. 0: tiles only. 1000 for `card_id` unless given,
    /// and `all` for other entities, which know only `all` and 0.
    #[schemars(with = "Option<Exact>", extend("examples" = [1000, "all"]))]
    pub(crate) exact: Option<Spanned<Exact>>,
    /// Length of a tile: bounds of windows among events in tiles are rounded down to a tile's begin.
    #[schemars(with = "Option<Span>", extend("default" = "1h"))]
    pub(crate) tile: Option<Spanned<Span>>,
    /// Features over windows of the entity's events.
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
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "profile")]
pub(crate) struct ProfileFeature {
    /// The feature's name, unique in the file.
    #[schemars(with = "String", extend("examples" = ["CREDIT_LIMIT"]))]
    pub(crate) name: Spanned<String>,
    /// What profile updates call it, if not by the feature's name. True is 1, false 0.
    pub(crate) field: Option<String>,
    /// The value where there is none; missing if not given.
    pub(crate) empty: Option<f64>,
    /// What is said of the feature where it has part in an alert; `fraudline features reference` has what stands in braces. By itself, its name,
    /// value and what is usual.
    #[schemars(with = "Option<String>", extend("examples" = ["a credit limit of {value:.0}"]))]
    pub(crate) reason: Option<Spanned<String>>,
    /// What features have in common that say the same thing in different ways: only one of them is named in an alert, for all. By itself
    /// each feature stands alone.
    #[schemars(extend("examples" = ["amount"]))]
    pub(crate) reason_group: Option<String>,
}

/// What a view is keyed by: a field of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "entity")]
pub enum Entity {
    /// The key of the transactions topic: one scorer sees all events of a card, and keeps its windows, the current event included.
    CardId,
    /// Paid at with cards of every partition: the materializer keeps its windows, and the scorer reads them through the online store.
    /// What goes into them may depend on windows of the card that paid, as they were for the event.
    TerminalId,
}

impl Entity {
    pub(crate) const COUNT: usize = 2;

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

/// One aggregate over one or more windows: a feature for each.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "window")]
pub(crate) struct Windows {
    /// The column's name; with `{days}` or `{hours}`, the window's length, in it where there are several windows, and with `{back}`
    /// where there are several events.
    #[schemars(with = "String", extend("examples" = ["COUNT_{days}D", "AMOUNT_{back}_BEFORE"]))]
    pub(crate) name: Spanned<String>,
    /// What is computed over the events of a window.
    pub(crate) aggregate: Aggregate,
    /// What is aggregated: numbers, or `card_id` or `terminal_id` where ids can be. Events where it is missing don't count. Where numbers
    /// are taken it is the amount unless given.
    #[schemars(with = "Option<String>", title = "expression", extend("examples" = ["AMOUNT / MEAN_7D", "terminal_id"]))]
    pub(crate) value: Option<Spanned<String>>,
    /// Only events for which this holds, at their own time, count. A label finds its transaction by the time: of those of one time and
    /// entity that count, as many are fraud as are known to be.
    #[serde(rename = "where")]
    #[schemars(with = "Option<String>", title = "expression", extend("examples" = ["amount > 2.5 * MEAN_14D"]))]
    pub(crate) filter: Option<Spanned<String>>,
    /// Which events make up a run, for the aggregates of runs; `fraud`: those known to be fraud, by the same labels as in a `fraud_count`.
    #[serde(rename = "match")]
    #[schemars(with = "Option<String>", title = "expression", extend("examples" = ["amount < 2", "fraud"]))]
    pub(crate) matches: Option<Spanned<String>>,
    /// How many events back, for the aggregates of single events: a feature for each, from the newest event before this one on. At most 256.
    #[schemars(with = "Option<u16>", extend("minimum" = 1, "maximum" = 256, "examples" = [16]))]
    pub(crate) back: Option<Spanned<u16>>,
    /// Lengths of the windows: a feature for each.
    #[schemars(length(min = 1), extend("examples" = [["1d", "7d", "30d"]]))]
    pub(crate) over: Vec<Span>,
    /// How long ago the windows end: for an event at `t` a window is `(t - offset - over, t - offset]`.
    #[serde(default)]
    #[schemars(extend("default" = "0s", "examples" = ["7d"]))]
    pub(crate) offset: Span,
    /// Whether an event counts in its own windows; for windows without an offset, of aggregates that are not of earlier events anyway.
    #[schemars(extend("default" = true))]
    pub(crate) include_current: Option<bool>,
    /// The value where there is none by itself; missing if not given. For aggregates that can be missing.
    #[schemars(extend("examples" = [0]))]
    pub(crate) empty: Option<f64>,
    /// What is said of the features where it has part in an alert; `fraudline features reference` has what stands in braces. By itself, its name,
    /// value and what is usual.
    #[schemars(with = "Option<String>", extend("examples" = ["{value} payments in {over}, usually {reference}"]))]
    pub(crate) reason: Option<Spanned<String>>,
    /// What features have in common that say the same thing in different ways: only one of them is named in an alert, for all. By itself
    /// the windows of one line, or the events of one sequence.
    #[schemars(extend("examples" = ["amount"]))]
    pub(crate) reason_group: Option<String>,
}

/// How many events are kept one by one: a whole number up to 1000000, or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline, title = "number or `all`")]
pub(crate) struct Exact(#[schemars(schema_with = "exact_schema")] pub(crate) usize);

fn exact_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 1_000_000 }, { "const": "all" }] })
}

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

/// What is computed over the events of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "aggregate")]
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
    /// The value of the event so many events before this one, among those kept one by one; missing if there are fewer. Events whose value
    /// is missing count, so that features of one number of events back are of one event.
    Previous,
    /// Seconds since the event so many events before this one; missing if there are fewer.
    TimeSincePrevious,
    /// 1 if the event so many events before this one had this event's value, else 0; missing if there are fewer.
    SameAsPrevious,
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

impl Windows {
    /// The most events that features can be of.
    pub(crate) const BACK_MAX: u16 = 256;

    /// How many features each of the windows gives.
    pub(crate) fn features_of_each(&self) -> u16 {
        self.back.as_ref().map_or(1, |back| back.value)
    }

    /// Whether it is computed from what became known of the events.
    pub(crate) fn is_of_labels(&self) -> bool {
        let of_frauds = self.matches.as_ref().is_some_and(|matches| matches.value.trim() == "fraud");
        self.aggregate.needs_labels() || of_frauds && self.aggregate.takes() == Takes::Matches
    }
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
        let of_all =
            matches!(self, Aggregate::Last | Aggregate::TimeSinceLast | Aggregate::FirstSeen | Aggregate::Rank);
        of_all || self.is_of_single_events()
    }

    /// Whether it gives a feature for each of the newest events before this one.
    pub(crate) fn is_of_single_events(self) -> bool {
        matches!(self, Aggregate::Previous | Aggregate::TimeSincePrevious | Aggregate::SameAsPrevious)
    }

    pub(crate) fn takes(self) -> Takes {
        match self {
            Aggregate::Count
            | Aggregate::TimeSinceLast
            | Aggregate::TimeSincePrevious
            | Aggregate::FraudCount
            | Aggregate::FraudRate => Takes::Nothing,
            Aggregate::Sum | Aggregate::Mean | Aggregate::Min | Aggregate::Max | Aggregate::Std | Aggregate::Last => {
                Takes::Numbers
            }
            Aggregate::Rank | Aggregate::Previous => Takes::Numbers,
            Aggregate::Distinct | Aggregate::SameAsPrevious => Takes::Anything,
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
            Aggregate::Previous => "previous",
            Aggregate::TimeSincePrevious => "time_since_previous",
            Aggregate::SameAsPrevious => "same_as_previous",
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

/// A length of time, written as a whole number and a unit: `500ms`, `30s`, `15m`, `12h`, `7d`. At most 100 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(inline, title = "length of time", extend("pattern" = "^[0-9]+(ms|s|m|h|d)$"))]
pub(crate) struct Span(#[schemars(with = "String")] pub(crate) Duration);

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
