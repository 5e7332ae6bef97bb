//! Records that are no transactions any more, or only just.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use schemas::Transaction;

/// A mutation may move an event by this much: one that moves it far ahead, though into no future,
/// would make all that follows in its partition too late.
const SHIFT_MS_MAX: i64 = 6 * 3_600_000;
const HUGE_BYTES_MAX: usize = 100_000;

/// A record as it is sent; `None` is Kafka's null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutated {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// Spoils about half of the records. `now_ms`: times beyond it are no danger to others.
pub fn mutate(rng: &mut ChaCha8Rng, transaction: &Transaction, now_ms: i64) -> Mutated {
    let mut value = Vec::new();
    transaction.write_json(&mut value);
    let good = Mutated { key: Some(transaction.card_id.as_bytes().to_vec()), value: Some(value) };
    if rng.random_ratio(1, 2) {
        return good;
    }
    let mutated = spoil(rng, transaction, good.clone());
    let time = mutated.value.as_deref().and_then(|value| Transaction::from_json(value).ok());
    let moved_ms = time.map_or(0, |read| {
        let (at_ms, was_ms) = (read.event_time.as_millis(), transaction.event_time.as_millis());
        if at_ms > now_ms + SHIFT_MS_MAX { 0 } else { at_ms - was_ms }
    });
    if moved_ms > SHIFT_MS_MAX { good } else { mutated }
}

fn spoil(rng: &mut ChaCha8Rng, transaction: &Transaction, mut record: Mutated) -> Mutated {
    let mut value = record.value.clone().unwrap_or_default();
    let at = rng.random_range(0..value.len());
    let text = String::from_utf8_lossy(&value).into_owned();
    match rng.random_range(0..20) {
        0 | 1 => {
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..value.len());
                value[at] ^= 1 << rng.random_range(0..8);
            }
        }
        2 => value.truncate(at),
        3 => {
            let end = (at + rng.random_range(1..20)).min(value.len());
            let copied = value[at..end].to_vec();
            value.splice(at..at, copied);
        }
        4 => {
            let end = (at + rng.random_range(1..20)).min(value.len());
            value.drain(at..end);
        }
        5 => {
            let depth = rng.random_range(1..20_000);
            let (open, close) = if rng.random_ratio(1, 2) { ("[", "]") } else { ("{\"a\":", "}") };
            let inner = if rng.random_ratio(1, 2) { "1" } else { "" };
            value = format!("{}{inner}{}", open.repeat(depth), close.repeat(depth)).into_bytes();
        }
        6 => {
            value = replaced(rng, &text, "amount", &["1e309", "-1e309", "1e-400", "99999999999999999999999", "0.00001"])
        }
        7 => {
            value = replaced(rng, &text, "amount", &["NaN", "Infinity", "-0", "-1", "\"57.16\"", "null", "[]", "true"])
        }
        8 => {
            let times = [
                "-2208988800001",
                "-2208988800000",
                "-1",
                "0",
                "7258118399999",
                "7258118400000",
                "9223372036854775807",
                "-9223372036854775808",
                "9223372036854775808",
                "1.5",
                "\"2018-04-01\"",
                "null",
                "1e12",
                "{}",
            ];
            value = replaced(rng, &text, "event_time", &times);
        }
        9 => {
            let name = ["transaction_id", "card_id", "terminal_id"][rng.random_range(0..3)];
            value =
                replaced(rng, &text, name, &["\"\"", "7", "null", "[\"a\"]", "\"\\u0000\"", "\"\\ud800\"", "false"]);
        }
        10 => {
            let name = ["transaction_id", "event_time", "card_id", "terminal_id", "amount"][rng.random_range(0..5)];
            value = text.replacen(name, "other", 1).into_bytes();
        }
        11 => value = text.replacen('{', "{\"more\":{\"a\":[1,2,{}]},", 1).into_bytes(),
        12 => value = text.replacen('{', "{\"amount\":1,", 1).into_bytes(),
        13 => {
            value[at] = [0xff, 0xc0, 0xed, 0x80, 0x00][rng.random_range(0..5)];
        }
        14 => value.clear(),
        15 => record.value = None,
        16 => record.key = None,
        17 => {
            let mut key = vec![0; rng.random_range(0..40)];
            rng.fill_bytes(&mut key);
            record.key = Some(key);
        }
        18 => {
            // Rare: they are large.
            let length = if rng.random_ratio(1, 20) { rng.random_range(1000..HUGE_BYTES_MAX) } else { 257 };
            let name = ["transaction_id", "card_id", "terminal_id", "more"][rng.random_range(0..4)];
            let huge = "x".repeat(length);
            value = match name {
                "more" => text.replacen('{', &format!("{{\"more\":\"{huge}\","), 1).into_bytes(),
                name => replaced(rng, &text, name, &[&format!("\"{huge}\"")]),
            };
            if name == "card_id" && rng.random_ratio(1, 2) {
                record.key = Some(huge.into_bytes());
            }
        }
        _ => {
            value = vec![0; rng.random_range(1..200)];
            rng.fill_bytes(&mut value);
        }
    }
    debug_assert!(!transaction.card_id.is_empty());
    record.value = record.value.map(|_| value);
    record
}

/// The object with one of `values` in place of the field's.
fn replaced(rng: &mut ChaCha8Rng, text: &str, field: &str, values: &[&str]) -> Vec<u8> {
    let value = values[rng.random_range(0..values.len())];
    let start = text.find(&format!("\"{field}\":")).map_or(text.len(), |at| at + field.len() + 3);
    let end = text[start..].find([',', '}']).map_or(text.len(), |length| start + length);
    format!("{}{value}{}", &text[..start], &text[end..]).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use schemas::{Amount, EventTime};

    #[test]
    fn about_half_stay_valid_and_none_moves_far_ahead() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let transaction = Transaction {
            transaction_id: "7".into(),
            event_time: EventTime::from_millis(1_700_000_000_000),
            card_id: "596".into(),
            terminal_id: "3156".into(),
            amount: Amount::from_cents(5716),
        };
        let now_ms = 1_700_500_000_000;
        let mut valid = 0;
        for _ in 0..10_000 {
            let Some(value) = mutate(&mut rng, &transaction, now_ms).value else { continue };
            let Ok(read) = Transaction::from_json(&value) else { continue };
            valid += 1;
            let at_ms = read.event_time.as_millis();
            assert!(at_ms <= 1_700_000_000_000 + SHIFT_MS_MAX || at_ms > now_ms + SHIFT_MS_MAX, "{at_ms}");
        }
        assert!((4500..7000).contains(&valid), "{valid}");
    }
}
