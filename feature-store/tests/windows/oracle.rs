//! Features by their definition: every event is kept, and every question goes through all of them.

use feature_store::FeatureSet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use schemas::{Amount, EventTime, Id, Transaction};

pub const START_MS: i64 = 1_522_540_800_000;
pub const ENTITIES: usize = 3;
/// The value of an event that has none, where it counts all the same.
const NO_VALUE: i64 = i64::MIN;

/// One window feature, as it stands in the definition file.
#[derive(Clone, Debug)]
pub struct Window {
    pub aggregate: &'static str,
    pub value: Value,
    pub filter: Filter,
    pub matches: Filter,
    pub over_ms: i64,
    pub offset_ms: i64,
    pub include_current: bool,
    pub empty: Option<f64>,
    /// How many features it gives, where it is of single events.
    pub back: u16,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Amount,
    /// `amount / BASE - 1`: missing where the base is, and of either sign.
    Relative,
    /// The other entity's id.
    Other,
    /// None, where an aggregate takes one or none.
    Nothing,
}

/// A condition on an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filter {
    Always,
    /// `amount > units`
    Above(i64),
    /// `amount > BASE`, the card's own mean, brought along to the terminal
    AboveBase,
    /// `other != "…0"`
    NotFirst,
    /// Known to be fraud; in runs only.
    Fraud,
}

#[derive(Clone, Debug)]
pub struct Tx {
    pub time: i64,
    pub card: usize,
    pub terminal: usize,
    pub units: i64,
    pub labels: Vec<TxLabel>,
}

#[derive(Clone, Debug)]
pub struct TxLabel {
    pub known: i64,
    pub fraud: bool,
    /// Where in the log it comes, among the places that it may come at; more than one: it is repeated.
    pub arrivals: Vec<Index>,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    Transaction(usize),
    Label(usize, &'a TxLabel),
}

/// Windows over the events of one entity.
#[derive(Clone, Debug)]
pub struct View {
    pub windows: Vec<Window>,
    /// How many events are kept one by one; `None`: all.
    pub exact: Option<usize>,
    pub tile_ms: i64,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub lateness_ms: i64,
    pub staleness_ms: i64,
    pub card: View,
    pub terminal: View,
    /// Length of the window that `BASE` is the mean over.
    pub base_ms: i64,
    /// In log order.
    pub transactions: Vec<Tx>,
    /// At which entries of the log states are written and read back, or evicted from; by position,
    /// over and over.
    pub round_trips: Vec<bool>,
    pub evictions: Vec<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Card,
    Terminal,
}

impl Tx {
    fn entity(&self, side: Side) -> usize {
        match side {
            Side::Card => self.card,
            Side::Terminal => self.terminal,
        }
    }

    fn other(&self, side: Side) -> usize {
        match side {
            Side::Card => self.terminal,
            Side::Terminal => self.card,
        }
    }

    pub fn transaction(&self, index: usize) -> Transaction {
        Transaction {
            transaction_id: id(index),
            event_time: EventTime::from_millis(self.time),
            card_id: format!("c{}", self.card).into(),
            terminal_id: format!("t{}", self.terminal).into(),
            amount: Amount::from_units(self.units),
        }
    }
}

/// Some are short enough to be held inline, some are not.
pub fn id(index: usize) -> Id {
    if index.is_multiple_of(2) { format!("{index}") } else { format!("{index:-<36}") }.into()
}

impl Window {
    fn line(&self, name: &str, side: Side) -> String {
        let (other, first) = if side == Side::Card { ("terminal_id", "t0") } else { ("card_id", "c0") };
        let condition = |key: &str, filter: Filter| match filter {
            Filter::Always if key == "where" => String::new(),
            Filter::Always => format!(", {key}: 1"),
            Filter::Above(units) => format!(", {key}: amount > {}", units as f64 / 10_000.0),
            Filter::AboveBase => format!(", {key}: amount > BASE"),
            Filter::NotFirst => format!(", {key}: '{other} != \"{first}\"'"),
            Filter::Fraud => format!(", {key}: fraud"),
        };
        let value = match self.value {
            Value::Nothing => String::new(),
            Value::Amount => ", value: amount".to_owned(),
            Value::Relative => ", value: amount / BASE - 1".to_owned(),
            Value::Other => format!(", value: {other}"),
        };
        let matches = if self.is_of_runs() { condition("match", self.matches) } else { String::new() };
        let include = if self.include_current { "" } else { ", include_current: false" };
        let empty = self.empty.map(|value| format!(", empty: {value:?}")).unwrap_or_default();
        let single = self.is_of_single_events();
        let back = if single { format!(", back: {}", self.back) } else { String::new() };
        let name = if single { format!("\"{name}_{{back}}\"") } else { name.to_owned() };
        let filter = condition("where", self.filter);
        let Window { aggregate, over_ms, offset_ms, .. } = self;
        format!(
            "      - {{ name: {name}, aggregate: {aggregate}{value}{filter}{matches}{back}, over: [{over_ms}ms], offset: {offset_ms}ms{include}{empty} }}\n"
        )
    }

    fn is_of_runs(&self) -> bool {
        matches!(self.aggregate, "run_length" | "time_since_match" | "time_since_run_start" | "others_since_match")
    }

    fn is_of_earlier_events(&self) -> bool {
        matches!(self.aggregate, "last" | "time_since_last" | "first_seen" | "rank") || self.is_of_single_events()
    }

    fn is_of_single_events(&self) -> bool {
        matches!(self.aggregate, "previous" | "time_since_previous" | "same_as_previous")
    }

    fn columns(&self) -> usize {
        if self.is_of_single_events() { usize::from(self.back) } else { 1 }
    }
}

impl View {
    fn lines(&self, prefix: &str, side: Side) -> String {
        let exact = match self.exact {
            Some(count) => format!("    exact: {count}\n    tile: {}ms\n", self.tile_ms),
            None => "    exact: all\n".to_owned(),
        };
        let windows = self.windows.iter().enumerate();
        let windows: String = windows.map(|(index, window)| window.line(&format!("{prefix}{index}"), side)).collect();
        format!("{exact}    windows:\n{windows}")
    }

    fn floor(&self, time: i64) -> i64 {
        time - time.rem_euclid(self.tile_ms)
    }
}

impl Case {
    pub fn features(&self) -> FeatureSet {
        let base = format!("      - {{ name: BASE, aggregate: mean, over: [{}ms] }}\n", self.base_ms);
        let text = format!(
            "version: 1\nallowed_lateness: {}ms\nviews:\n  - name: card\n    entity: card_id\n{}{base}  \
             - name: terminal\n    entity: terminal_id\n    staleness: {}ms\n{}",
            self.lateness_ms,
            self.card.lines("card", Side::Card),
            self.staleness_ms,
            self.terminal.lines("terminal", Side::Terminal),
        );
        FeatureSet::parse(&text, "case.yaml").unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// Transactions in their order, and the labels between them, each before the first
    /// transaction that `needs` it.
    pub fn log(&self, needs: impl Fn(&TxLabel, usize) -> bool) -> Vec<Entry<'_>> {
        let count = self.transactions.len();
        let mut before: Vec<Vec<Entry<'_>>> = vec![Vec::new(); count + 1];
        for (index, transaction) in self.transactions.iter().enumerate() {
            for label in &transaction.labels {
                let latest = (0..count).find(|&at| needs(label, at)).unwrap_or(count);
                for arrival in &label.arrivals {
                    before[arrival.index(latest + 1)].push(Entry::Label(index, label));
                }
            }
        }
        let mut log = Vec::new();
        for (at, labels) in before.into_iter().enumerate() {
            log.extend(labels);
            log.extend((at < count).then_some(Entry::Transaction(at)));
        }
        log
    }

    /// A log in which every label is there when it counts for the first time.
    pub fn log_with_labels_in_time(&self) -> Vec<Entry<'_>> {
        self.log(|label, at| self.transactions[at].time >= label.known + self.staleness_ms)
    }

    /// Units of the amount, of the mean, and of their quotient, as a state holds them; `None` is missing.
    fn value(&self, value: Value, at: usize, side: Side) -> Option<i64> {
        let tx = &self.transactions[at];
        match value {
            Value::Nothing => Some(0),
            Value::Amount => Some(tx.units),
            Value::Relative => {
                let relative = tx.units as f64 / 10_000.0 / self.base(at) - 1.0;
                relative.is_finite().then(|| (relative * 10_000.0).round() as i64)
            }
            Value::Other => Some(tx.other(side) as i64),
        }
    }

    fn base(&self, at: usize) -> f64 {
        let window = Window {
            aggregate: "mean",
            value: Value::Amount,
            filter: Filter::Always,
            matches: Filter::Always,
            over_ms: self.base_ms,
            offset_ms: 0,
            include_current: true,
            empty: None,
            back: 1,
        };
        self.expected(&window, at, Side::Card)[0]
    }

    fn passes(&self, filter: Filter, at: usize, side: Side) -> bool {
        let tx = &self.transactions[at];
        match filter {
            Filter::Always => true,
            Filter::Above(units) => tx.units > units,
            Filter::AboveBase => tx.units as f64 / 10_000.0 > self.base(at),
            Filter::NotFirst => tx.other(side) != 0,
            Filter::Fraud => unreachable!("what is fraud is not known at an event's own time"),
        }
    }

    /// The values of `window` for transaction `at` by its definition: of all transactions up to it
    /// in the log, those that the window holds.
    pub fn expected(&self, window: &Window, at: usize, side: Side) -> Vec<f64> {
        let view = if side == Side::Card { &self.card } else { &self.terminal };
        let now = &self.transactions[at];
        let end = now.time - window.offset_ms;
        let from = end - window.over_ms;
        // Time, value, and index of what counts at all, in order of time.
        let mut all: Vec<(i64, i64, usize)> = (0..=at)
            .filter(|&index| self.transactions[index].entity(side) == now.entity(side))
            .filter(|&index| self.passes(window.filter, index, side))
            .filter_map(|index| {
                let value = self.value(window.value, index, side);
                let value = if window.is_of_single_events() { Some(value.unwrap_or(NO_VALUE)) } else { value };
                Some((self.transactions[index].time, value?, index))
            })
            .collect();
        all.sort_by_key(|&(time, _, index)| (time, index));
        let tiled = all.len() - view.exact.map_or(all.len(), |exact| all.len().min(exact));
        let oldest_exact = all.get(tiled).map(|&(time, ..)| time);
        let without_current = window.is_of_earlier_events() || !window.include_current;
        let in_window = |&(position, &(time, _, index)): &(usize, &(i64, i64, usize))| {
            if position >= tiled {
                return time > from && time <= end && !(without_current && index == at);
            }
            let tile = view.floor(time);
            let begins = oldest_exact.is_none_or(|oldest| from < oldest) && tile >= view.floor(from);
            begins && (oldest_exact.is_some_and(|oldest| end >= oldest) || tile < view.floor(end))
        };
        let held: Vec<(usize, &(i64, i64, usize))> = all.iter().enumerate().filter(in_window).collect();
        let exact: Vec<(i64, i64, usize)> =
            held.iter().filter(|(position, _)| *position >= tiled).map(|(_, event)| **event).collect();
        let held: Vec<(i64, i64, usize)> = held.into_iter().map(|(_, event)| *event).collect();
        let (aggregate, missing) = (window.aggregate, window.empty.unwrap_or(f64::NAN));
        if window.is_of_single_events() {
            let of_event = |back| exact.iter().nth_back(back).and_then(|event| self.of_event(window, at, side, event));
            return (0..window.columns()).map(|back| of_event(back).unwrap_or(missing)).collect();
        }
        let value = self.aggregate(window, at, side, &held, &exact);
        let rounds = view.exact == Some(0);
        let bound = |time: i64| if rounds { view.floor(time) - 1 } else { time };
        let frauds = self.frauds(at, side, bound(from), bound(end)) as f64;
        let filtered = window.filter != Filter::Always;
        let flagged = || self.fraud_flags(at, side, &exact).into_iter().filter(|&fraud| fraud).count() as f64;
        let frauds = if filtered { flagged() } else { frauds };
        let value = match aggregate {
            "fraud_count" => Some(frauds),
            "fraud_rate" => (!held.is_empty()).then_some(frauds / held.len() as f64),
            _ => value,
        };
        vec![value.unwrap_or(missing)]
    }

    /// The value of one event before this one.
    fn of_event(&self, window: &Window, at: usize, side: Side, event: &(i64, i64, usize)) -> Option<f64> {
        let &(time, value, _) = event;
        match window.aggregate {
            "previous" => (value != NO_VALUE).then_some(value as f64 / 10_000.0),
            "time_since_previous" => Some((self.transactions[at].time - time) as f64 / 1000.0),
            // Nothing is the same as what is missing.
            _ => Some(f64::from(u8::from(self.value(window.value, at, side) == Some(value)))),
        }
    }

    /// The value over the events that are `held`, or those of them kept one by one.
    fn aggregate(
        &self,
        window: &Window,
        at: usize,
        side: Side,
        held: &[(i64, i64, usize)],
        exact: &[(i64, i64, usize)],
    ) -> Option<f64> {
        const SCALE: f64 = 10_000.0;
        let since = |&(time, ..): &(i64, i64, usize)| (self.transactions[at].time - time) as f64 / 1000.0;
        let scaled = |units: i64| units as f64 / SCALE;
        let count = held.len();
        let values = || held.iter().map(|&(_, value, _)| value);
        let total: i64 = values().sum();
        // The last unbroken run of matches.
        let matches: Vec<bool> = match window.matches {
            Filter::Fraud => self.fraud_flags(at, side, exact),
            _ if !window.is_of_runs() => Vec::new(),
            filter => exact.iter().map(|&(_, _, index)| self.passes(filter, index, side)).collect(),
        };
        let run_end = matches.iter().rposition(|&matches| matches).map(|position| position + 1);
        let run = run_end.map(|end| {
            let start = matches[..end].iter().rposition(|&matches| !matches).map_or(0, |position| position + 1);
            (start, end)
        });
        match window.aggregate {
            "count" => Some(count as f64),
            "sum" => Some(scaled(total)),
            "mean" => (count > 0).then(|| total as f64 / (count as f64 * SCALE)),
            "min" => values().min().map(scaled),
            "max" => values().max().map(scaled),
            "std" => (count > 1).then(|| {
                // In whole numbers up to the last step, and then as the engine does.
                let n = count as i128;
                let squares: i128 = values().map(|value| i128::from(value) * i128::from(value)).sum();
                let scatter = n * squares - i128::from(total) * i128::from(total);
                (scatter as f64 / (n as f64 * (n - 1) as f64)).sqrt() / SCALE
            }),
            "distinct" => {
                let mut codes: Vec<i64> = exact.iter().map(|&(_, value, _)| value).collect();
                codes.sort_unstable();
                codes.dedup();
                Some(codes.len() as f64)
            }
            "last" => held.last().map(|&(_, value, _)| scaled(value)),
            "time_since_last" => held.last().map(since),
            "first_seen" if window.value == Value::Nothing => held.first().map(since),
            "first_seen" => {
                let own = self.value(window.value, at, side)?;
                exact.iter().find(|&&(_, value, _)| value == own).map(since)
            }
            "rank" => {
                let own = self.value(window.value, at, side)?;
                let less = exact.iter().filter(|&&(_, value, _)| value < own).count();
                let equal = exact.iter().filter(|&&(_, value, _)| value == own).count();
                (!exact.is_empty()).then(|| (2 * less + equal) as f64 / (2 * exact.len()) as f64)
            }
            "run_length" => Some(run.map_or(0.0, |(start, end)| (end - start) as f64)),
            "time_since_match" => run.map(|(_, end)| since(&exact[end - 1])),
            "time_since_run_start" => run.map(|(start, _)| since(&exact[start])),
            "others_since_match" => run.map(|(_, end)| (exact.len() - end) as f64),
            _ => None,
        }
    }

    /// Which of these events are fraud as far as labels tell, which know but the time: of those of one time the last ones, as many as
    /// are known to be.
    fn fraud_flags(&self, at: usize, side: Side, events: &[(i64, i64, usize)]) -> Vec<bool> {
        let flag = |(position, &(time, ..)): (usize, &(i64, i64, usize))| {
            let later = events[position + 1..].iter().filter(|&&(other, ..)| other == time).count();
            later < self.frauds(at, side, time - 1, time)
        };
        events.iter().enumerate().map(flag).collect()
    }

    /// Number of transactions in `(from, end]` that are known to be fraud.
    fn frauds(&self, at: usize, side: Side, from: i64, end: i64) -> usize {
        let now = &self.transactions[at];
        let known_by = now.time - self.staleness_ms;
        let is_fraud = |tx: &&Tx| {
            let known = tx.labels.iter().filter(|label| label.known <= known_by);
            known.max_by_key(|label| (label.known, label.fraud)).is_some_and(|label| label.fraud)
        };
        let of_entity = self.transactions[..=at].iter().filter(|tx| tx.entity(side) == now.entity(side));
        of_entity.filter(|tx| tx.time > from && tx.time <= end).filter(is_fraud).count()
    }

    /// The features of transaction `at`, in the layout's order.
    pub fn expected_row(&self, at: usize) -> Vec<f64> {
        let card = self.card.windows.iter().flat_map(|window| self.expected(window, at, Side::Card));
        let terminal = self.terminal.windows.iter().flat_map(|window| self.expected(window, at, Side::Terminal));
        card.chain([self.base(at)]).chain(terminal).collect()
    }
}

fn over_ms() -> impl Strategy<Value = i64> {
    prop_oneof![3 => (1..=20_i64).prop_map(|seconds| seconds * 1000), 1 => 1..=20_000_i64]
}

fn filter() -> impl Strategy<Value = Filter> {
    let above = prop_oneof![Just(0), (0..=100_000_i64).prop_map(|cents| cents * 100)].prop_map(Filter::Above);
    prop_oneof![3 => Just(Filter::Always), 1 => above, 1 => Just(Filter::AboveBase), 1 => Just(Filter::NotFirst)]
}

/// Aggregates that take numbers.
const OF_NUMBERS: [&str; 8] = ["sum", "mean", "min", "max", "std", "last", "rank", "previous"];

fn windows(
    side: Side,
    exact: Option<usize>,
    offset_ms: impl Strategy<Value = i64>,
) -> impl Strategy<Value = Vec<Window>> {
    let empty = proptest::option::of(prop_oneof![Just(0.0), Just(-1.5), Just(0.1), Just(1e6)]);
    let values = prop_oneof![2 => Just(Value::Amount), 1 => Just(Value::Relative), 1 => Just(Value::Other)];
    // As far as events are kept one by one.
    let most = exact.map_or(8, |exact| u16::try_from(exact).unwrap_or(8).saturating_sub(1).clamp(1, 8));
    let window = (over_ms(), offset_ms, any::<bool>(), 1..=most);
    let drawn = (proptest::sample::select(aggregates(side, exact)), window, empty);
    let window = (drawn, values, any::<bool>(), filter(), filter()).prop_map(
        move |((aggregate, (over_ms, offset_ms, include_current, back), empty), value, bare, filter, matches)| {
            let value = match (aggregate, value) {
                ("distinct" | "same_as_previous", value) => value,
                ("first_seen", value) if side == Side::Card && !bare && exact != Some(0) => value,
                (name, Value::Relative) if OF_NUMBERS.contains(&name) => Value::Relative,
                (name, _) if OF_NUMBERS.contains(&name) => Value::Amount,
                _ => Value::Nothing,
            };
            let mut window =
                Window { aggregate, value, filter, matches, over_ms, offset_ms, include_current, empty, back };
            window.include_current |= offset_ms > 0 || window.is_of_earlier_events();
            if aggregate.starts_with("fraud") && exact == Some(0) {
                window.filter = Filter::Always;
            }
            if window.is_of_runs() && side == Side::Terminal && bare {
                window.matches = Filter::Fraud;
            }
            window.empty =
                empty.filter(|_| !matches!(aggregate, "count" | "sum" | "distinct" | "run_length" | "fraud_count"));
            window
        },
    );
    vec(window, 1..7)
}

fn transactions(lateness_ms: i64) -> impl Strategy<Value = Vec<Tx>> {
    // Steps of whole seconds meet the edges of windows, none at all makes ties.
    let step = prop_oneof![3 => Just(0), 4 => (1..=8_i64).prop_map(|seconds| seconds * 1000), 1 => 1..=4000_i64];
    let late = prop_oneof![3 => Just(0), 1 => 0..=100_i64, 1 => Just(100)];
    let units = prop_oneof![
        1 => Just(70_000),
        3 => (0..=100_000_i64).prop_map(|cents| cents * 100),
        1 => 0..=1_000_000_000_i64
    ];
    let label = (0..=50_i64, any::<bool>(), vec(any::<Index>(), 1..3));
    let transaction = (step, late, 0..ENTITIES, 0..ENTITIES, units, vec(label, 0..3));
    vec(transaction, 0..50).prop_map(move |drawn| {
        let mut newest = START_MS;
        let transaction = |(step, late, card, terminal, units, labels): (_, i64, _, _, _, Vec<(i64, _, _)>)| {
            newest += step;
            let time = newest - lateness_ms * late / 100;
            let label = |(delay, fraud, arrivals)| TxLabel { known: time + delay * 500, fraud, arrivals };
            Tx { time, card, terminal, units, labels: labels.into_iter().map(label).collect() }
        };
        drawn.into_iter().map(transaction).collect()
    })
}

/// What can be asked for of a side, with so many events kept one by one.
fn aggregates(side: Side, exact: Option<usize>) -> Vec<&'static str> {
    let mut aggregates = vec!["count", "sum", "mean", "min", "max", "std", "last", "time_since_last", "first_seen"];
    if exact != Some(0) {
        aggregates.extend(["distinct", "run_length", "time_since_match", "time_since_run_start", "others_since_match"]);
    }
    // This event is one of those that are kept one by one.
    if exact.is_none_or(|exact| exact > 1) {
        aggregates.extend(["previous", "time_since_previous"]);
        aggregates.extend((side == Side::Card).then_some("same_as_previous"));
    }
    match side {
        Side::Card if exact == Some(0) => {}
        Side::Card => aggregates.push("rank"),
        Side::Terminal => aggregates.extend(["fraud_count", "fraud_rate"]),
    }
    aggregates
}

pub fn case() -> impl Strategy<Value = Case> {
    let bound = prop_oneof![3 => Just(None), 3 => (1..8_usize).prop_map(Some), 1 => Just(Some(0))];
    let tile_ms = || prop_oneof![(1..=5_i64).prop_map(|seconds| seconds * 1000), 1..=5000_i64];
    let bounds = (bound, any::<bool>(), tile_ms(), tile_ms(), over_ms());
    (0..=5_i64, 0..=5_i64, bounds).prop_flat_map(|(lateness, staleness, bounds)| {
        let (lateness_ms, staleness_ms) = (lateness * 1000, staleness * 1000);
        let (card_exact, tiled, card_tile_ms, terminal_tile_ms, base_ms) = bounds;
        let terminal_exact = tiled.then_some(0);
        let card_offset = prop_oneof![2 => Just(0), 1 => (1..=8_i64).prop_map(|seconds| seconds * 1000)];
        // The edge itself, where nothing may come any more, is the millisecond after.
        let terminal_offset = prop_oneof![1 => Just(1), 2 => (1..=8_i64).prop_map(|seconds| seconds * 1000)]
            .prop_map(move |more| staleness_ms + lateness_ms + more);
        let card = windows(Side::Card, card_exact, card_offset);
        let terminal = windows(Side::Terminal, terminal_exact, terminal_offset);
        let marks = || vec(prop::bool::weighted(0.2), 1..20);
        (card, terminal, transactions(lateness_ms), marks(), marks()).prop_map(
            move |(card, terminal, transactions, round_trips, evictions)| Case {
                lateness_ms,
                staleness_ms,
                card: View { windows: card, exact: card_exact, tile_ms: card_tile_ms },
                terminal: View { windows: terminal, exact: terminal_exact, tile_ms: terminal_tile_ms },
                base_ms,
                transactions,
                round_trips,
                evictions,
            },
        )
    })
}
