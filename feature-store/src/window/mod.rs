//! The events of one entity, kept so that any window over them can be read at any event time.

mod codec;
mod labels;
mod profile;
mod series;
mod tiles;

use std::ops::Range;
use std::time::Duration;

use schemas::{EventTime, Id};

use labels::{LabelEntry, Labels};
pub(crate) use profile::{Held, Profile, profile_bytes_max};
pub(crate) use series::{MISSING, Needs, Sample, Series, SeriesSpec, Window};

/// Transactions and labels of one entity within the reach of its windows, one [`Series`] for each
/// filter and value of the view's definition; or the entity's profile.
///
/// A window is two binary searches and a subtraction, O(log n), and
/// exact: totals are integers, so they do not depend on how the state was built up. A window's
/// sum is exact up to 9.2·10^14 units of the value.
#[derive(Clone, Debug, Default)]
pub struct WindowState {
    series: Vec<Series>,
    labels: Labels,
    profile: Profile,
}

impl WindowState {
    /// Adds an event to series `index` of `specs`, the view's, and tells whether it is kept by itself.
    #[inline]
    pub(crate) fn insert(&mut self, specs: &[SeriesSpec], index: usize, time: EventTime, sample: Sample) -> bool {
        for spec in &specs[self.series.len().min(specs.len())..] {
            self.series.push(Series::new(spec.needs));
        }
        // Never so in a state that was written under these definitions.
        if self.series[index].needs != specs[index].needs {
            self.series[index] = Series::new(specs[index].needs);
        }
        self.series[index].insert(&specs[index], time, sample)
    }

    pub(crate) fn series(&self, specs: &[SeriesSpec], index: usize) -> Option<&Series> {
        self.series.get(index).filter(|series| series.needs == specs[index].needs)
    }

    /// Adds what became known of a transaction. The same label again changes nothing, and the
    /// order in which labels come doesn't matter.
    pub fn insert_label(&mut self, transaction_id: &Id, transaction_time: EventTime, known: EventTime, fraud: bool) {
        self.labels.insert(LabelEntry { transaction_time, transaction_id: transaction_id.clone(), known, fraud });
    }

    /// Number of transactions in `(from, end]` that are fraud by the last label known at `known_by`.
    pub(crate) fn frauds(&self, from: EventTime, end: EventTime, known_by: EventTime) -> u64 {
        self.labels.frauds(from, end, known_by)
    }

    /// As [`WindowState::frauds`], of the transactions that `window` has of a series. A label knows the time of its transaction, not
    /// what else the series asks of it: of those of one time as many are fraud as are known to be.
    pub(crate) fn frauds_among(
        &self,
        series: &Series,
        window: &Window,
        bounds: (EventTime, EventTime),
        known_by: EventTime,
    ) -> u64 {
        let frauds = self.labels.frauds_by_time(bounds.0, bounds.1, known_by);
        frauds.map(|(time, frauds)| series.events_at(window, time).len().min(frauds) as u64).sum()
    }

    /// The last unbroken run of frauds among these: the positions it takes. Of those of one time the last ones are fraud.
    pub(crate) fn fraud_run(
        &self,
        series: &Series,
        window: &Window,
        bounds: (EventTime, EventTime),
        known_by: EventTime,
    ) -> Option<Range<usize>> {
        let mut run: Option<Range<usize>> = None;
        for (time, frauds) in self.labels.frauds_by_time(bounds.0, bounds.1, known_by).rev() {
            let events = series.events_at(window, time);
            let matching = events.end - events.len().min(frauds)..events.end;
            match &mut run {
                _ if matching.is_empty() => continue,
                None => run = Some(matching.clone()),
                Some(run) if run.start == matching.end => run.start = matching.start,
                Some(_) => break,
            }
            if matching.start > events.start {
                break;
            }
        }
        run
    }

    /// Takes in a value of the profile; see [`Profile::insert`].
    pub(crate) fn insert_profile(&mut self, step: i64, column: usize, held: Held) {
        self.profile.insert(step, column, held);
    }

    #[inline]
    pub(crate) fn profile(&self, column: usize, before: EventTime) -> Option<Held> {
        self.profile.read(column, before)
    }

    /// Forgets the values of the profile that nobody asks for who reads at `through` or later.
    pub(crate) fn evict_profile(&mut self, step: i64, through: EventTime) {
        self.profile.evict(step, through);
    }

    /// Forgets what happened at `through` or before.
    pub(crate) fn evict(&mut self, specs: &[SeriesSpec], through: EventTime) {
        for (series, spec) in self.series.iter_mut().zip(specs) {
            series.evict(spec.tile, through);
        }
        self.labels.evict(through);
    }

    pub fn is_empty(&self) -> bool {
        self.series.iter().all(Series::is_empty) && self.labels.is_empty() && self.profile.is_empty()
    }

    /// Number of events kept one by one, in the series that keeps most.
    pub fn len(&self) -> usize {
        self.series.iter().map(|series| series.events.len()).max().unwrap_or(0)
    }

    /// Time of the newest transaction kept.
    pub fn newest(&self) -> Option<EventTime> {
        self.series.iter().filter_map(|series| series.events.back().map(|event| event.time)).max()
    }

    /// Memory in use, in bytes.
    #[inline]
    pub fn bytes(&self) -> usize {
        let series: usize = self.series.iter().map(|series| size_of::<Series>() + series.heap_bytes()).sum();
        size_of::<WindowState>() + series + self.labels.heap_bytes() + self.profile.heap_bytes()
    }
}

/// The most memory that the series of one entity take, in bytes, when the events of `keep` are kept; `None` if that
/// depends on their number.
pub(crate) fn entity_bytes_max(specs: &[SeriesSpec], keep: Duration) -> Option<usize> {
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    specs.iter().try_fold(size_of::<WindowState>(), |sum, spec| {
        let tiles = usize::try_from(keep / spec.tile).unwrap_or(usize::MAX).saturating_add(2);
        // `exact: all` bounds nothing.
        let events = Some(spec.exact).filter(|&exact| exact < usize::MAX)?;
        sum.checked_add(spec.needs.series_bytes_max(events, tiles)?)
    })
}

/// Memory of an event that is kept one by one in all of the series, and of a label, in bytes.
pub(crate) fn event_bytes(specs: &[SeriesSpec]) -> (usize, usize) {
    (specs.iter().map(|spec| spec.needs.event_bytes()).sum(), size_of::<LabelEntry>())
}

/// Equal states give equal features; where they come from doesn't matter.
impl PartialEq for WindowState {
    fn eq(&self, other: &WindowState) -> bool {
        let encoded = |state: &WindowState| {
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            bytes
        };
        encoded(self) == encoded(other)
    }
}
