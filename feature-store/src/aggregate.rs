//! What windows come to: the formulas of the aggregates.

use std::ops::Range;

use schemas::EventTime;

use crate::definitions::Aggregate;
use crate::view::WindowFeature;
use crate::window::{Series, Window};

/// The value of an aggregate; `NaN` where there is none. `run`: the positions of the last unbroken run of matches.
pub(crate) fn aggregated(
    feature: &WindowFeature,
    series: &Series,
    window: &Window,
    at: EventTime,
    current: Option<i64>,
    run: impl FnOnce() -> Option<Range<usize>>,
) -> f64 {
    let since = |time: EventTime| seconds_between(time, at);
    let missing = f64::NAN;
    match feature.aggregate {
        Aggregate::Count => series.count(window) as f64,
        Aggregate::Sum => series.total(window) as f64 / SCALE,
        Aggregate::Mean => series.total(window) as f64 / (series.count(window) as f64 * SCALE),
        Aggregate::Min => series.extremes(window).map_or(missing, |(least, _)| least as f64 / SCALE),
        Aggregate::Max => series.extremes(window).map_or(missing, |(_, most)| most as f64 / SCALE),
        Aggregate::Std => deviation(series.count(window), series.total(window), series.squares(window)),
        Aggregate::Distinct => series.distinct(window) as f64,
        Aggregate::Last => series.last(window).map_or(missing, |(_, value)| value as f64 / SCALE),
        Aggregate::TimeSinceLast => series.last(window).map_or(missing, |(time, _)| since(time)),
        Aggregate::FirstSeen if feature.of_values => {
            current.and_then(|value| series.first_of(window, value)).map_or(missing, since)
        }
        Aggregate::FirstSeen => series.first(window).map_or(missing, since),
        Aggregate::Rank => current.and_then(|value| series.rank(window, value)).unwrap_or(missing),
        Aggregate::RunLength => run().map_or(0.0, |run| run.len() as f64),
        Aggregate::TimeSinceMatch => run().map_or(missing, |run| since(series.time_at(run.end - 1))),
        Aggregate::TimeSinceRunStart => run().map_or(missing, |run| since(series.time_at(run.start))),
        Aggregate::OthersSinceMatch => run().map_or(missing, |run| series.behind(window, run.end) as f64),
        // Several values, and values of labels: see below, and the view.
        Aggregate::Previous
        | Aggregate::TimeSincePrevious
        | Aggregate::SameAsPrevious
        | Aggregate::FraudCount
        | Aggregate::FraudRate => missing,
    }
}

/// The features of single events, newest first, into `values`. `current`: the value of the event itself, where it is one that is
/// scored.
pub(crate) fn single_events(
    feature: &WindowFeature,
    series: &Series,
    window: &Window,
    at: EventTime,
    current: Option<i64>,
    values: &mut [f64],
) {
    fn fill(values: &mut [f64], found: impl Iterator<Item = Option<f64>>, empty: f64) {
        let mut found = found.fuse();
        values.iter_mut().for_each(|value| *value = found.next().flatten().unwrap_or(empty));
    }
    let empty = feature.empty;
    match feature.aggregate {
        Aggregate::Previous => {
            fill(values, series.values_back(window).map(|value| value.map(|value| value as f64 / SCALE)), empty);
        }
        Aggregate::TimeSincePrevious => {
            fill(values, series.times_back(window).map(|time| Some(seconds_between(time, at))), empty);
        }
        Aggregate::SameAsPrevious => {
            let same = |value: Option<i64>| {
                let current = current?;
                Some(f64::from(u8::from(value == Some(current))))
            };
            fill(values, series.values_back(window).map(same), empty);
        }
        _ => values.fill(empty),
    }
}

fn seconds_between(from: EventTime, to: EventTime) -> f64 {
    (to.as_millis() - from.as_millis()) as f64 / 1000.0
}

/// The sample's standard deviation, from exact sums: `sqrt((n Σx² - (Σx)²) / (n (n - 1)))`.
fn deviation(count: u64, total: i64, squares: i128) -> f64 {
    if count < 2 {
        return f64::NAN;
    }
    let (n, total) = (i128::from(count), i128::from(total));
    let exact = n.checked_mul(squares).and_then(|product| product.checked_sub(total * total));
    let scaled = exact.map_or(n as f64 * squares as f64 - total as f64 * total as f64, |exact| exact as f64);
    (scaled.max(0.0) / (n as f64 * (n - 1) as f64)).sqrt() / SCALE
}

const SCALE: f64 = schemas::Amount::SCALE as f64;

/// A value as it stands in a state, in ten-thousandths; `None` if it is missing.
pub(crate) fn units(value: f64) -> Option<i64> {
    (!value.is_nan()).then(|| (value * SCALE).round() as i64)
}
