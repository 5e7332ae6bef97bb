//! Profiles against a naive reading of all updates that there were.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use feature_store::{FeatureSet, Status, View, WindowState};
use proptest::collection::vec;
use proptest::prelude::*;
use schemas::{EventTime, Id};

const DEFINITIONS: &str = "
version: 1
allowed_lateness: 1m
views:
  - name: card_profile
    entity: card_id
    staleness: 32s
    ttl: 100s
    profile:
      - { name: CREDIT_LIMIT, field: credit_limit }
      - { name: PREMIUM, empty: 0 }
";
/// Updates count from a 16th of the staleness to the next.
const STEP_MS: i64 = 2000;
const STALENESS_MS: i64 = 32_000;
const TTL_MS: i64 = 100_000;
const FIELDS: [&str; 2] = ["credit_limit", "PREMIUM"];

static FEATURES: LazyLock<FeatureSet> = LazyLock::new(|| FeatureSet::parse(DEFINITIONS, "profiles.yaml").unwrap());

fn view() -> &'static View {
    FEATURES.profile_view("card_profile").unwrap().1
}

#[derive(Clone, Debug)]
struct Update {
    at: i64,
    /// `NaN` takes the value away.
    values: BTreeMap<usize, f64>,
}

impl Update {
    fn apply(&self, state: &mut WindowState) {
        let fields: Vec<(Id, f64)> = self.values.iter().map(|(&field, &value)| (FIELDS[field].into(), value)).collect();
        let values = fields.iter().map(|(field, value)| (field, *value));
        view().apply_profile(EventTime::from_millis(self.at), values, state);
    }
}

fn updates() -> impl Strategy<Value = Vec<Update>> {
    let value = prop_oneof![4 => -5.0..5.0, 1 => Just(f64::NAN)];
    let update = (0..300_000i64, proptest::collection::btree_map(0..FIELDS.len(), value, 0..3))
        .prop_map(|(at, values)| Update { at, values });
    vec(update, 0..40)
}

/// The last value, by time and then by order, of those before the step that `read_at` falls into.
fn naive(updates: &[Update], field: usize, at: i64) -> (Status, f64) {
    let before = (at - STALENESS_MS).div_euclid(STEP_MS) * STEP_MS;
    let known = updates.iter().filter_map(|update| update.values.get(&field).map(|value| (update.at, *value)));
    let held = known.filter(|(since, _)| *since < before).max_by_key(|(since, _)| *since);
    match held {
        None => (Status::NotFound, f64::NAN),
        Some((since, value)) if since + TTL_MS < at => (Status::OutsideMaxAge, value),
        Some((_, value)) if value.is_nan() => (Status::Null, value),
        Some((_, value)) => (Status::Present, value),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whenever the state was encoded, and whatever was evicted that no reader after it may ask for.
    #[test]
    fn a_profile_reads_as_all_its_updates_do(
        updates in updates(),
        evict_at in 0..300_000i64,
        reads in vec(0..400_000i64, 1..20),
    ) {
        let mut state = WindowState::default();
        for (index, update) in updates.iter().enumerate() {
            update.apply(&mut state);
            if index % 5 == 0 {
                let mut bytes = Vec::new();
                state.encode(&mut bytes);
                let decoded = WindowState::decode(&bytes).unwrap();
                prop_assert_eq!(&decoded, &state);
                state = decoded;
            }
        }
        let evicted = EventTime::from_millis(evict_at);
        view().evict(&mut state, evicted - view().keep());
        for at in reads.into_iter().map(|at| at.max(evict_at)) {
            let time = EventTime::from_millis(at);
            let mut values = vec![f64::NAN; FEATURES.width()];
            let mut statuses = vec![Status::Present; FEATURES.width()];
            view().look_up(Some(&state), time, &mut values, &mut statuses);
            for (field, (slot, empty)) in [(0, f64::NAN), (1, 0.0)].into_iter().enumerate() {
                let (status, value) = naive(&updates, field, at);
                let expected = if status == Status::Present { value } else { empty };
                prop_assert_eq!(values[slot].to_bits(), expected.to_bits(), "field {} at {}: {:?}", field, at, status);
                prop_assert_eq!(statuses[slot], status);
            }
        }
    }

    /// Any number of updates takes a bounded number of values.
    #[test]
    fn memory_is_bounded_by_the_definition(times in vec(0..600_000i64, 1000..1001)) {
        let mut state = WindowState::default();
        let mut newest = 0;
        for at in times {
            newest = newest.max(at);
            Update { at, values: [(0, 1.0), (1, 2.0)].into() }.apply(&mut state);
        }
        view().evict(&mut state, EventTime::from_millis(newest) - view().keep());
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        let kept = i64::try_from(view().keep().as_millis()).unwrap() / STEP_MS + 2;
        prop_assert!(bytes.len() as i64 <= 20 + 2 * kept * 13, "{} bytes", bytes.len());
    }
}

#[test]
fn what_a_profile_view_needs_is_said_with_its_place() {
    let refused = |from: &str, to: &str| {
        let text = DEFINITIONS.replace(from, to);
        assert_ne!(text, DEFINITIONS, "{from} is not there");
        FeatureSet::parse(&text, "f.yaml").expect_err(to).to_string()
    };
    for (from, to, message) in [
        ("    staleness: 32s\n", "", "f.yaml:5:11: profiles come by another way than events"),
        ("staleness: 32s", "staleness: 5ms", "a `staleness` of a second is the least"),
        ("ttl: 100s", "ttl: 30s", "f.yaml:8:10: values would be too old before they count"),
        ("    ttl: 100s\n", "    exact: 5\n", "a profile has no events"),
        ("empty: 0", "empty: .nan", "`empty` is a finite number"),
        ("name: PREMIUM", "name: CREDIT_LIMIT", "there are two features `CREDIT_LIMIT`"),
        (
            "    profile:\n",
            "    windows: [{ name: N, aggregate: count, over: [1d] }]\n    profile:\n",
            "make two of this one",
        ),
    ] {
        let error = refused(from, to);
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(view().keep(), Duration::from_secs(60 + 32));
    assert_eq!(view().slots().collect::<Vec<_>>(), [0, 1]);
}
