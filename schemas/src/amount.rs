use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// An amount of money in ten-thousandths of the currency unit.
///
/// Every currency of ISO 4217 has at most four decimals, so every amount is held exactly. Sums of
/// amounts are sums of integers: they do not depend on the order of addition, which is what makes
/// window features equal bit for bit however a state was built up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

/// Why a text is no [`Amount`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    #[error("an amount is a decimal number such as 57.16, not {0}")]
    NotADecimal(String),
    #[error("the amount {0} has more than four decimals")]
    TooPrecise(String),
    #[error("the amount {0} is beyond ±100,000,000,000")]
    OutOfRange(String),
}

impl Amount {
    pub const ZERO: Amount = Amount(0);
    /// Units per currency unit.
    pub const SCALE: i64 = 10_000;
    /// 10^11 currency units; 9,000 years of one such payment a second fit the sum of a window.
    pub const MAX: Amount = Amount(100_000_000_000 * Amount::SCALE);

    pub const fn from_units(units: i64) -> Amount {
        Amount(units)
    }

    pub const fn units(self) -> i64 {
        self.0
    }

    /// From hundredths (cents), as most sources hold them.
    pub const fn from_cents(cents: i64) -> Amount {
        Amount(cents * (Amount::SCALE / 100))
    }

    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Amount::SCALE as f64
    }

    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Parses a JSON number exactly: no binary floating point lies between the text and the value.
    pub fn parse(text: &str) -> Result<Amount, AmountError> {
        let not_decimal = || AmountError::NotADecimal(text.chars().take(40).collect());
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            None => (text, 0),
            Some(at) => {
                let exponent: i32 = text[at + 1..].parse().map_err(|_| not_decimal())?;
                (&text[..at], exponent)
            }
        };
        let (negative, digits) = match mantissa.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, mantissa),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || (digits.contains('.') && fraction.is_empty()) {
            return Err(not_decimal());
        }
        // 30 digits are more than any amount in range needs, and keep the value inside i128.
        let mut value: i128 = 0;
        let mut significant = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            if !digit.is_ascii_digit() {
                return Err(not_decimal());
            }
            significant += usize::from(significant > 0 || digit != b'0');
            if significant > 30 {
                return Err(AmountError::OutOfRange(text.chars().take(40).collect()));
            }
            value = value * 10 + i128::from(digit - b'0');
        }
        // value * 10^(exponent - fraction.len()) currency units = value * 10^shift Amount units.
        let shift = i64::from(exponent) - fraction.len() as i64 + 4;
        if value != 0 && shift >= 0 {
            if shift > 30 {
                return Err(AmountError::OutOfRange(text.to_owned()));
            }
            value =
                value.checked_mul(10_i128.pow(shift as u32)).ok_or_else(|| AmountError::OutOfRange(text.to_owned()))?;
        }
        for _ in 0..(-shift).clamp(0, 64) {
            if value % 10 != 0 {
                return Err(AmountError::TooPrecise(text.to_owned()));
            }
            value /= 10;
        }
        if value > i128::from(Amount::MAX.0) {
            return Err(AmountError::OutOfRange(text.to_owned()));
        }
        let value = value as i64;
        Ok(Amount(if negative { -value } else { value }))
    }
}

/// The shortest decimal, as in `57.16`, `100` or `-0.005`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, fraction) = (self.0.unsigned_abs() / 10_000, self.0.unsigned_abs() % 10_000);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{fraction:04}");
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Below 2^53 units the shortest form of the double is the exact decimal again.
        if self.0 % Amount::SCALE == 0 {
            serializer.serialize_i64(self.0 / Amount::SCALE)
        } else {
            serializer.serialize_f64(self.as_f64())
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Amount::parse(raw.get()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_decimals_exactly() {
        for (text, units) in [
            ("57.16", 571_600),
            ("0", 0),
            ("0.0001", 1),
            ("-3.5", -35_000),
            ("1e2", 1_000_000),
            ("12E-1", 12_000),
            ("2.50000000", 25_000),
            ("0e99", 0),
            ("100000000000", Amount::MAX.0),
        ] {
            assert_eq!(Amount::parse(text), Ok(Amount(units)), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        for text in ["", ".5", "5.", "abc", "\"5\"", "null", "1e", "0x1", "--1", "1 "] {
            assert!(matches!(Amount::parse(text), Err(AmountError::NotADecimal(_))), "{text}");
        }
        assert!(matches!(Amount::parse("0.00001"), Err(AmountError::TooPrecise(_))));
        assert!(matches!(Amount::parse("1e-999999999"), Err(AmountError::TooPrecise(_))));
        for text in ["100000000000.0001", "1e400", "1e2147483647", &"9".repeat(5000)] {
            assert!(matches!(Amount::parse(text), Err(AmountError::OutOfRange(_))), "{text}");
        }
    }

    #[test]
    fn text_round_trips() {
        for units in [0, 1, -1, 571_600, 10_000, 123_456_789, Amount::MAX.0, -Amount::MAX.0 + 1] {
            let amount = Amount(units);
            assert_eq!(Amount::parse(&amount.to_string()), Ok(amount));
            let json = serde_json::to_string(&amount).expect("an amount is a number");
            assert_eq!(serde_json::from_str::<Amount>(&json).expect(&json), amount);
        }
    }
}
