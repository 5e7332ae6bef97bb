use std::fmt;

use anyhow::{anyhow, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use schemas::{Amount, EventTime};

/// An amount further than this, in currency units, from a multiple of 0.0001 has digits that
/// would be lost.
const AMOUNT_TOLERANCE: f64 = 1e-6;

/// What a column has to hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Integer,
    Time,
    Amount,
}

impl Kind {
    pub(super) fn accepts(self, data_type: &DataType) -> bool {
        use DataType::*;
        let integer = matches!(data_type, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32);
        match self {
            Kind::Integer => integer,
            Kind::Time => matches!(data_type, Timestamp(_, _)),
            Kind::Amount => integer || *data_type == Float64,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Integer => "an integer (int8 to int64)",
            Kind::Time => "a timestamp (s, ms, us or ns)",
            Kind::Amount => "an amount (float64 or an integer)",
        })
    }
}

/// One column of a batch. Errors name the row of the file, from 0, and the column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column<'a> {
    name: &'static str,
    array: &'a dyn Array,
    /// The row of the file that the batch begins with.
    before: u64,
}

impl<'a> Column<'a> {
    pub(super) fn of(batch: &'a RecordBatch, name: &'static str, before: u64) -> Option<Column<'a>> {
        Some(Column { name, array: batch.column_by_name(name)?.as_ref(), before })
    }

    pub(super) fn integers(&self) -> anyhow::Result<Vec<i64>> {
        match self.array.data_type() {
            DataType::Int8 => self.values::<Int8Type, _>(|value| Ok(value.into())),
            DataType::Int16 => self.values::<Int16Type, _>(|value| Ok(value.into())),
            DataType::Int32 => self.values::<Int32Type, _>(|value| Ok(value.into())),
            DataType::Int64 => self.values::<Int64Type, _>(Ok),
            DataType::UInt8 => self.values::<UInt8Type, _>(|value| Ok(value.into())),
            DataType::UInt16 => self.values::<UInt16Type, _>(|value| Ok(value.into())),
            DataType::UInt32 => self.values::<UInt32Type, _>(|value| Ok(value.into())),
            _ => Err(self.wrong_type(Kind::Integer)),
        }
    }

    /// Integers from 0 to `max`.
    pub(super) fn bytes(&self, max: u8) -> anyhow::Result<Vec<u8>> {
        let byte = |(index, value): (usize, i64)| match u8::try_from(value) {
            Ok(byte) if byte <= max => Ok(byte),
            _ => bail!("{} is {value}, it has to lie between 0 and {max}", self.at(index)),
        };
        self.integers()?.into_iter().enumerate().map(byte).collect()
    }

    pub(super) fn times(&self) -> anyhow::Result<Vec<EventTime>> {
        let time = |millis: Option<i64>| {
            let time = millis.map(EventTime::from_millis);
            time.filter(|time| (EventTime::EARLIEST..EventTime::LATEST).contains(time))
                .ok_or("not between the years 1900 and 2200")
        };
        match self.array.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => {
                self.values::<TimestampSecondType, _>(|value| time(value.checked_mul(1000)))
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                self.values::<TimestampMillisecondType, _>(|value| time(Some(value)))
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                self.values::<TimestampMicrosecondType, _>(|value| time(Some(value.div_euclid(1000))))
            }
            DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                self.values::<TimestampNanosecondType, _>(|value| time(Some(value.div_euclid(1_000_000))))
            }
            _ => Err(self.wrong_type(Kind::Time)),
        }
    }

    pub(super) fn amounts(&self) -> anyhow::Result<Vec<Amount>> {
        if *self.array.data_type() == DataType::Float64 {
            return self.values::<Float64Type, _>(amount);
        }
        if !Kind::Amount.accepts(self.array.data_type()) {
            return Err(self.wrong_type(Kind::Amount));
        }
        let whole = |(index, value)| {
            amount_from_integer(value).map_err(|reason| anyhow!("{} is {value}: {reason}", self.at(index)))
        };
        self.integers()?.into_iter().enumerate().map(whole).collect()
    }

    /// All values, none of them null, each converted.
    fn values<T: ArrowPrimitiveType, V>(
        &self,
        convert: impl Fn(T::Native) -> Result<V, &'static str>,
    ) -> anyhow::Result<Vec<V>> {
        if let Some(null) = (0..self.array.len()).find(|index| self.array.is_null(*index)) {
            bail!("{} is null", self.at(null));
        }
        let values = self.array.as_primitive::<T>().values().iter().enumerate();
        let converted = values.map(|(index, value)| {
            convert(*value).map_err(|reason| anyhow!("{} is {value:?}: {reason}", self.at(index)))
        });
        converted.collect()
    }

    fn at(&self, index: usize) -> String {
        format!("row {}: column {}", self.before + index as u64, self.name)
    }

    fn wrong_type(&self, kind: Kind) -> anyhow::Error {
        anyhow!("column {} is of type {}, it has to be {kind}", self.name, self.array.data_type())
    }
}

fn amount_from_integer(value: i64) -> Result<Amount, &'static str> {
    in_range(value.saturating_mul(Amount::SCALE))
}

fn amount(value: f64) -> Result<Amount, &'static str> {
    if !value.is_finite() {
        return Err("no number");
    }
    // A cast out of range saturates, and is refused with the range.
    let amount = in_range((value * Amount::SCALE as f64).round_ties_even() as i64)?;
    if (amount.as_f64() - value).abs() > AMOUNT_TOLERANCE {
        return Err("an amount has at most four decimals");
    }
    Ok(amount)
}

fn in_range(units: i64) -> Result<Amount, &'static str> {
    match Amount::from_units(units) {
        amount if amount.is_negative() => Err("an amount is not negative"),
        amount if amount > Amount::MAX => Err("an amount is at most 100,000,000,000"),
        amount => Ok(amount),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_become_the_decimals_they_stand_for() {
        for (value, units) in [
            (57.16, 571_600),
            (0.0, 0),
            (-0.0, 0),
            (0.1 + 0.2, 3_000),
            (0.0001, 1),
            (1_234_567.89, 12_345_678_900),
            (99_999_999_999.99, 999_999_999_999_900),
            (1e11, Amount::MAX.units()),
        ] {
            assert_eq!(amount(value), Ok(Amount::from_units(units)), "{value}");
        }
        for value in [-0.01, f64::NAN, f64::INFINITY, 1e300, -1e300, 1.000_01, 0.000_05, 100_000_000_000.01] {
            assert!(amount(value).is_err(), "{value}");
        }
        assert!(amount_from_integer(i64::MAX).is_err() && amount_from_integer(-1).is_err());
        assert_eq!(amount_from_integer(57), Ok(Amount::from_cents(5_700)));
    }

    #[test]
    fn every_amount_of_whole_cents_survives_a_double() {
        for cents in (0..10_000_000).step_by(7).chain([9_999_999_999_999, 4_503_599_627_371]) {
            let exact = Amount::from_cents(cents);
            assert_eq!(amount(exact.as_f64()), Ok(exact));
        }
    }
}
