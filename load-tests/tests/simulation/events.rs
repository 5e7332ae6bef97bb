//! The log that a seed feeds in: transactions good and bad, labels and profile updates.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use schemas::{
    Amount, DeadLetterReason, EventTime, Id, Label, ProfileUpdate, ProfileValue, Transaction, partition_for_key,
};

/// A record of the transactions topic, and what must become of it.
pub struct Input {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub fate: Fate,
}

pub enum Fate {
    Scored(Transaction),
    Dead(DeadLetterReason),
}

/// What is appended in one go: labels and profile updates stand before the transactions of their time.
pub struct Chunk {
    pub labels: Vec<Label>,
    pub updates: Vec<ProfileUpdate>,
    pub inputs: Vec<Input>,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// As the bundled definitions have it.
const LATENESS: Duration = DAY;

/// Chunks that are fed one after another. `appended` is the time at which records are appended:
/// later than every event but those that claim to be of the future.
pub fn chunks(rng: &mut ChaCha8Rng, partitions: u32, appended: EventTime) -> Vec<Chunk> {
    let (cards, terminals) = (rng.random_range(2..12), rng.random_range(1..6));
    let count = rng.random_range(60..220);
    let mut now = EventTime::from_millis(1_522_540_800_000);
    let mut newest = vec![EventTime::MIN; partitions as usize];
    let (mut pending, mut updates): (Vec<Label>, Vec<ProfileUpdate>) = (Vec::new(), Vec::new());
    let mut chunks = Vec::new();
    let mut id = 0;
    while id < count {
        let mut chunk = Chunk { labels: Vec::new(), updates: Vec::new(), inputs: Vec::new() };
        for _ in 0..rng.random_range(1..20) {
            // Mostly hours apart, at times the same second, seldom days without any event.
            now = now
                + match rng.random_range(0..20) {
                    0..3 => Duration::ZERO,
                    3 => DAY * rng.random_range(1..9),
                    _ => HOUR * rng.random_range(0..12) + Duration::from_secs(rng.random_range(0..3600)),
                };
            let late = if rng.random_ratio(1, 8) { HOUR * rng.random_range(0..24) } else { Duration::ZERO };
            let transaction = Transaction {
                transaction_id: Id::from(id.to_string()),
                event_time: now - late,
                card_id: Id::from(format!("card-{}", rng.random_range(0..cards))),
                terminal_id: Id::from(format!("terminal-{}", rng.random_range(0..terminals))),
                amount: Amount::from_cents(rng.random_range(0..100_000)),
            };
            id += 1;
            let input = match rng.random_ratio(1, 12) {
                true => spoiled(rng, &transaction, &newest, appended),
                false => Input::good(transaction),
            };
            // As ingest has it: the fate of a late event is decided by its own partition.
            let partition = partition_for_key(&input.key, partitions) as usize;
            let input = match input.fate {
                Fate::Scored(transaction) if transaction.event_time < newest[partition] - LATENESS => {
                    Input { fate: Fate::Dead(DeadLetterReason::TooLate), key: input.key, value: input.value }
                }
                fate => Input { fate, ..input },
            };
            if let Fate::Scored(transaction) = &input.fate {
                newest[partition] = newest[partition].max(transaction.event_time);
                label(rng, transaction, now, &mut pending);
                update(rng, transaction, now, &mut updates);
            }
            chunk.inputs.push(input);
        }
        // Out, in any order, is what is known by the newest transaction.
        let known = newest.iter().copied().max().unwrap_or(EventTime::MIN);
        let due;
        (due, pending) = pending.into_iter().partition(|label| label.label_time <= known);
        chunk.labels = due;
        (chunk.updates, updates) = updates.into_iter().partition(|update| update.event_time <= known);
        chunks.push(chunk);
    }
    chunks
}

impl Input {
    fn good(transaction: Transaction) -> Input {
        let mut value = Vec::new();
        transaction.write_json(&mut value);
        Input { key: transaction.card_id.as_bytes().to_vec(), value, fate: Fate::Scored(transaction) }
    }
}

/// A chargeback, mostly within days and at times weeks later; repeated or taken back now and then. It becomes known `now` or
/// later, also where the transaction is a late one: what is known stands in the log before any transaction that follows.
fn label(rng: &mut ChaCha8Rng, transaction: &Transaction, now: EventTime, pending: &mut Vec<Label>) {
    if !rng.random_ratio(1, 4) {
        return;
    }
    let days = if rng.random_ratio(1, 5) { 20 } else { 4 };
    let label = Label {
        transaction_id: transaction.transaction_id.clone(),
        card_id: transaction.card_id.clone(),
        terminal_id: transaction.terminal_id.clone(),
        transaction_time: transaction.event_time,
        label_time: now + HOUR * rng.random_range(0..24 * days),
        fraud: true,
    };
    if rng.random_ratio(1, 6) {
        pending.push(label.clone());
    }
    if rng.random_ratio(1, 6) {
        pending.push(Label { label_time: label.label_time + DAY, fraud: false, ..label.clone() });
    }
    pending.push(label);
}

/// News of the card, `now` or days later; at times several of the same second.
fn update(rng: &mut ChaCha8Rng, transaction: &Transaction, now: EventTime, updates: &mut Vec<ProfileUpdate>) {
    if !rng.random_ratio(1, 4) {
        return;
    }
    for _ in 0..rng.random_range(1..3) {
        let mut values = BTreeMap::new();
        if rng.random_ratio(2, 3) {
            let limit = match rng.random_ratio(1, 8) {
                true => ProfileValue::Null,
                false => ProfileValue::Number(rng.random_range(-10.0..5000.0)),
            };
            values.insert(Id::from("credit_limit"), limit);
        }
        if rng.random_ratio(1, 2) {
            values.insert(Id::from("premium"), ProfileValue::Bool(rng.random_ratio(1, 2)));
        }
        values.insert(Id::from("city"), ProfileValue::Text("Delft".to_owned()));
        let later = if rng.random_ratio(1, 2) { HOUR * rng.random_range(0..96) } else { Duration::ZERO };
        updates.push(ProfileUpdate {
            view: Id::from("card_profile"),
            entity_id: transaction.card_id.clone(),
            event_time: now + later,
            values,
        });
    }
}

fn spoiled(rng: &mut ChaCha8Rng, transaction: &Transaction, newest: &[EventTime], appended: EventTime) -> Input {
    let Input { key, mut value, .. } = Input::good(transaction.clone());
    let dead = |key: Vec<u8>, value: Vec<u8>, reason| Input { key, value, fate: Fate::Dead(reason) };
    let changed = |change: &dyn Fn(&mut Transaction)| {
        let mut changed = transaction.clone();
        change(&mut changed);
        Input::good(changed)
    };
    match rng.random_range(0..7) {
        0 => {
            value.truncate(rng.random_range(0..value.len()));
            dead(key, value, DeadLetterReason::NotJson)
        }
        1 => dead(key, b"{\"transaction_id\": 7}".to_vec(), DeadLetterReason::WrongShape),
        2 => {
            let mut noise = vec![0xff; 8];
            rng.fill_bytes(&mut noise[1..]);
            dead(key, noise, DeadLetterReason::NotJson)
        }
        3 => dead(b"another card".to_vec(), value, DeadLetterReason::KeyMismatch),
        4 => {
            let input = changed(&|transaction| transaction.amount = Amount::from_cents(-1));
            dead(input.key, input.value, DeadLetterReason::InvalidAmount)
        }
        5 => {
            let input = changed(&|transaction| transaction.event_time = appended + DAY);
            dead(input.key, input.value, DeadLetterReason::InFuture)
        }
        _ => {
            // Too late for its partition, where that has events already.
            let partition = partition_for_key(&key, newest.len() as u32) as usize;
            if newest[partition] == EventTime::MIN {
                return Input::good(transaction.clone());
            }
            let time = newest[partition] - LATENESS - Duration::from_millis(1);
            let input = changed(&|transaction| transaction.event_time = time);
            dead(input.key, input.value, DeadLetterReason::TooLate)
        }
    }
}
