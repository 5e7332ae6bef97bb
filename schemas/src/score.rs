use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Amount, EventTime, Id, SourcePosition};

/// The score of one transaction. Holds nothing that a replay would give differently: no arrival
/// time, no duration (the record's own timestamp tells when it was written).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub transaction_id: Id,
    pub card_id: Id,
    pub event_time: EventTime,
    /// Calibrated probability of fraud, 0 to 1.
    pub score: f32,
    /// Whether an alert was raised.
    pub alert: bool,
    /// The model that made it, as `name@version`.
    pub model: Id,
    /// The transaction's record; what a consumer drops repeats by in at-least-once delivery.
    pub source: SourcePosition,
    /// The assembled vector, in the order of the model's layout, where the scorer was told to log
    /// it. `null` is a missing value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<Option<f32>>>,
}

/// A transaction whose score reached the model's threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    pub transaction_id: Id,
    pub card_id: Id,
    pub terminal_id: Id,
    pub event_time: EventTime,
    pub amount: Amount,
    pub score: f32,
    /// The score from which on the model alerts.
    pub threshold: f32,
    pub model: Id,
    pub source: SourcePosition,
    /// What raised the score most, the largest part first; none where the scorer was told to give none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// What the model saw, by feature name. `null` is a missing value.
    pub features: BTreeMap<String, Option<f32>>,
}

/// A group of features that raised an alert's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// Name of the group, as the definitions have it; features that say the same thing in different ways are in one.
    pub group: String,
    /// The feature that tells most of it.
    pub feature: String,
    /// Its value. `null` is a missing one.
    pub value: Option<f32>,
    /// What it usually is, by the rows that the model was trained on. `null` where it is usually missing.
    pub reference: Option<f32>,
    /// What the group adds to the score, in log-odds of the model before calibration; all groups' parts, those not named here among
    /// them, add up to the log-odds of this score less those of a transaction that is usual in everything.
    pub contribution: f32,
    /// The same for people.
    pub text: String,
}
