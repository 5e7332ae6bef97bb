use crate::{
    Amount, CodecError, EventTime, Id, Label, ProfileUpdate, Reader, Transaction, write_bytes, write_float,
    write_signed, write_unsigned,
};

const VERSION: u8 = 2;
const KIND_TRANSACTION: u8 = 0;
const KIND_LABEL: u8 = 1;
const KIND_PROGRESS: u8 = 2;
const KIND_PROFILE: u8 = 3;
const KIND_CARRYING_TRANSACTION: u8 = 4;

/// A record of the stream that is re-keyed by entity: what the materializer writes for itself, in a compact binary
/// form, version 2.
#[derive(Clone, Debug, PartialEq)]
pub enum EntityEvent {
    /// By its terminal.
    Transaction {
        transaction: Transaction,
        carried: Option<Carried>,
    },
    Label {
        entity: Id,
        transaction_id: Id,
        transaction_time: EventTime,
        label_time: EventTime,
        fraud: bool,
    },
    /// The numbers of a profile update; `NaN` takes a value away.
    Profile {
        view: Id,
        entity: Id,
        event_time: EventTime,
        values: Vec<(Id, f64)>,
    },
    /// How far the re-keying has come: for each source partition the event time up to which all
    /// transactions, and all labels and profile updates known by then, stand before this record.
    Progress {
        sources: Vec<(u32, EventTime)>,
    },
}

/// What a transaction brings along from the windows of its card.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    /// A hash of the definitions of the values.
    pub meaning: u64,
    /// `NaN` is missing.
    pub values: Vec<f64>,
}

impl EntityEvent {
    pub fn of_label(label: Label) -> EntityEvent {
        EntityEvent::Label {
            entity: label.terminal_id,
            transaction_id: label.transaction_id,
            transaction_time: label.transaction_time,
            label_time: label.label_time,
            fraud: label.fraud,
        }
    }

    pub fn of_profile(update: ProfileUpdate) -> EntityEvent {
        let values =
            update.values.into_iter().filter_map(|(field, value)| value.as_number().map(|value| (field, value)));
        EntityEvent::Profile {
            view: update.view,
            entity: update.entity_id,
            event_time: update.event_time,
            values: values.collect(),
        }
    }

    /// Appends the record value to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match self {
            EntityEvent::Transaction { transaction, carried } => {
                out.push(if carried.is_some() { KIND_CARRYING_TRANSACTION } else { KIND_TRANSACTION });
                write_bytes(out, transaction.transaction_id.as_bytes());
                write_signed(out, transaction.event_time.as_millis());
                write_bytes(out, transaction.card_id.as_bytes());
                write_bytes(out, transaction.terminal_id.as_bytes());
                write_signed(out, transaction.amount.units());
                if let Some(Carried { meaning, values }) = carried {
                    write_unsigned(out, *meaning);
                    write_unsigned(out, values.len() as u64);
                    values.iter().for_each(|value| write_float(out, *value));
                }
            }
            EntityEvent::Label { entity, transaction_id, transaction_time, label_time, fraud } => {
                out.push(KIND_LABEL);
                write_bytes(out, entity.as_bytes());
                write_bytes(out, transaction_id.as_bytes());
                write_signed(out, transaction_time.as_millis());
                write_signed(out, label_time.as_millis());
                out.push(u8::from(*fraud));
            }
            EntityEvent::Profile { view, entity, event_time, values } => {
                out.push(KIND_PROFILE);
                write_bytes(out, view.as_bytes());
                write_bytes(out, entity.as_bytes());
                write_signed(out, event_time.as_millis());
                write_unsigned(out, values.len() as u64);
                for (field, value) in values {
                    write_bytes(out, field.as_bytes());
                    write_float(out, *value);
                }
            }
            EntityEvent::Progress { sources } => {
                out.push(KIND_PROGRESS);
                write_unsigned(out, sources.len() as u64);
                for (partition, time) in sources {
                    write_unsigned(out, u64::from(*partition));
                    write_signed(out, time.as_millis());
                }
            }
        }
    }

    pub fn decode(value: &[u8]) -> Result<EntityEvent, CodecError> {
        let mut reader = Reader::new(value);
        let version = reader.byte()?;
        if version != VERSION {
            return Err(CodecError::UnknownVersion { found: version, known: VERSION });
        }
        let time = |reader: &mut Reader| reader.signed().map(EventTime::from_millis);
        let event = match reader.byte()? {
            kind @ (KIND_TRANSACTION | KIND_CARRYING_TRANSACTION) => {
                let transaction = Transaction {
                    transaction_id: reader.text()?.into(),
                    event_time: time(&mut reader)?,
                    card_id: reader.text()?.into(),
                    terminal_id: reader.text()?.into(),
                    amount: Amount::from_units(reader.signed()?),
                };
                let carried = (kind == KIND_CARRYING_TRANSACTION).then(|| -> Result<Carried, CodecError> {
                    let meaning = reader.unsigned()?;
                    let count = reader.count(8)?;
                    let values = (0..count).map(|_| reader.float()).collect::<Result<_, _>>()?;
                    Ok(Carried { meaning, values })
                });
                EntityEvent::Transaction { transaction, carried: carried.transpose()? }
            }
            KIND_LABEL => EntityEvent::Label {
                entity: reader.text()?.into(),
                transaction_id: reader.text()?.into(),
                transaction_time: time(&mut reader)?,
                label_time: time(&mut reader)?,
                fraud: reader.byte()? != 0,
            },
            KIND_PROFILE => {
                let (view, entity, event_time) = (reader.text()?.into(), reader.text()?.into(), time(&mut reader)?);
                let count = reader.count(9)?;
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    values.push((reader.text()?.into(), reader.float()?));
                }
                EntityEvent::Profile { view, entity, event_time, values }
            }
            KIND_PROGRESS => {
                let count = reader.count(2)?;
                let mut sources = Vec::with_capacity(count);
                for _ in 0..count {
                    let partition = reader.unsigned()?;
                    let partition = u32::try_from(partition).map_err(|_| CodecError::Invalid("a partition"))?;
                    sources.push((partition, time(&mut reader)?));
                }
                EntityEvent::Progress { sources }
            }
            _ => return Err(CodecError::Invalid("the kind of an entity event")),
        };
        reader.finish()?;
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_every_cut() {
        let time = EventTime::from_millis(1_522_540_831_000);
        let transaction = Transaction {
            transaction_id: "7".into(),
            event_time: time,
            card_id: "596".into(),
            terminal_id: "3156".into(),
            amount: Amount::from_cents(5716),
        };
        let carried = Carried { meaning: u64::MAX, values: vec![1.25, -3.0] };
        let events = [
            EntityEvent::Transaction { transaction: transaction.clone(), carried: None },
            EntityEvent::Transaction { transaction, carried: Some(carried) },
            EntityEvent::Label {
                entity: "3156".into(),
                transaction_id: "7".into(),
                transaction_time: time,
                label_time: EventTime::MAX,
                fraud: true,
            },
            EntityEvent::Profile {
                view: "card_profile".into(),
                entity: "596".into(),
                event_time: time,
                values: vec![("credit_limit".into(), 5000.5), ("premium".into(), 1.0)],
            },
            EntityEvent::Progress { sources: vec![(0, EventTime::MIN), (7, time)] },
        ];
        for event in events {
            let mut bytes = Vec::new();
            event.encode(&mut bytes);
            assert_eq!(EntityEvent::decode(&bytes), Ok(event));
            for cut in 0..bytes.len() {
                assert!(EntityEvent::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            bytes.push(0);
            assert_eq!(EntityEvent::decode(&bytes), Err(CodecError::TrailingBytes(1)));
        }
    }
}
