//! A synthetic problem: 3 % frauds, which only a nonlinear model finds, with heavy tails and missing values.

use models::Dataset;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use schemas::{FeatureLayout, FeatureSpec};

pub(crate) fn layout() -> FeatureLayout {
    let columns = [
        ("amount", "amount", false),
        ("night", "hour of event_time < 6", false),
        ("amount_over_mean_7d", "amount / mean(amount) over card_id, 7d", true),
        ("count_1d", "count() over card_id, 1d", false),
        ("terminal_risk_7d", "fraud rate over terminal_id, 7d, 7d late", true),
        ("unrelated", "unrelated", false),
        ("constant", "constant", false),
    ];
    let spec = |(name, definition, nullable): (&str, &str, bool)| FeatureSpec {
        name: name.into(),
        definition: definition.into(),
        nullable,
        place: None,
    };
    FeatureLayout::new(columns.map(spec).into())
}

/// Rows with labels drawn from the true chances of fraud, which are returned too.
pub(crate) fn sample(seed: u64, count: usize) -> (Dataset, Vec<f32>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = Dataset { rows: Vec::new(), width: layout().width(), labels: Vec::new() };
    let mut chances = Vec::new();
    for _ in 0..count {
        let normal = |random: &mut StdRng| (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
        let amount = (3.5 + 1.2 * normal(&mut random)).exp();
        let night = random.random_bool(0.25);
        let ratio = (0.6 * normal(&mut random)).exp();
        let count = random.random_range(0..12) as f32;
        let risk = random.random::<f32>().powi(4);
        let (no_history, new_terminal) = (random.random_bool(0.15), random.random_bool(0.1));

        // Large amounts are suspect by day, small ones by night; so is a ratio far from 1, either way.
        let mut logit = -8.3 + if (amount > 60.0) != night { 1.5 } else { -1.0 };
        logit += if no_history { 2.0 } else { 3.0 * ratio.ln().abs() };
        logit += if new_terminal { 1.0 } else { 5.0 * risk };
        logit += if count > 9.0 { 1.5 } else { 0.0 };
        let chance = 1.0 / (1.0 + (-logit).exp());

        let known = |value: f32, missing: bool| if missing { f32::NAN } else { value };
        data.rows.extend([
            amount,
            f32::from(u8::from(night)),
            known(ratio, no_history),
            count,
            known(risk, new_terminal),
            normal(&mut random) * 1e6,
            3.0,
        ]);
        data.labels.push(random.random::<f32>() < chance);
        chances.push(chance);
    }
    (data, chances)
}
