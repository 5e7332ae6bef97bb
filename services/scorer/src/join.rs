//! Join: each event with the windows of its card, kept here, and the views that others keep.

use std::collections::BTreeMap;

use feature_store::{Entity, FeatureSet, OnlineStore, Scratch, ViewRead, ViewReader, Wanted};
use schemas::EventTime;

use crate::Result;
use crate::ingest::{DeadLetter, Event, Ingested, PartitionIngest};
use crate::states::PartitionStates;

/// The card windows of the partitions owned, by partition.
pub type OwnedPartitions = BTreeMap<u32, PartitionStates<PartitionIngest>>;

/// A batch after the join.
#[derive(Debug)]
pub struct Joined {
    pub events: Vec<Event>,
    /// One row of [`FeatureSet::width`] values for each event; `NaN` is a missing one.
    pub values: Vec<f64>,
    pub dead_letters: Vec<DeadLetter>,
    pub next: Vec<(u32, u64)>,
}

/// What a join came to.
#[derive(Debug)]
pub enum Join {
    Done(Joined),
    /// A view has yet to reach the event time that the batch needs; nothing was changed, and the
    /// same batch is to be joined again.
    ViewBehind {
        batch: Ingested,
        reached: EventTime,
        wanted: EventTime,
    },
    /// The store has a state that includes an event of the batch: another owner has scored it
    /// meanwhile, and this one has yet to hear that the partition is no longer its own.
    Overtaken {
        partition: u32,
        stamp: u64,
    },
}

/// Joins a batch: states are brought into memory first, in one read each; then every event, in
/// offset order, goes into its card's windows and reads its features off them.
///
/// `readers`: of the shared views, in their order. `force`: take the views as they are.
pub fn join(
    features: &FeatureSet,
    store: &dyn OnlineStore,
    partitions: &mut OwnedPartitions,
    readers: &[ViewReader],
    batch: Ingested,
    force: bool,
) -> Result<Join> {
    let mut read = Vec::with_capacity(readers.len());
    for ((index, view), reader) in features.shared_views().zip(readers) {
        let wanted: Vec<Wanted<'_>> = batch
            .events
            .iter()
            .map(|event| Wanted {
                key: view.entity().id_in(&event.transaction),
                complete_to: event.transaction.event_time - view.staleness(),
            })
            .collect();
        match futures_executor::block_on(reader.read(&wanted, force))? {
            ViewRead::Ready(states) => read.push((index, states)),
            ViewRead::Behind { reached, wanted, .. } => return Ok(Join::ViewBehind { batch, reached, wanted }),
        }
    }

    let keeps_cards = features.view_of(Entity::CardId).is_some();
    if keeps_cards {
        for (partition, states) in partitions.iter_mut() {
            let events = batch.events.iter().filter(|event| event.partition == *partition);
            states.load(store, events.map(|event| &event.transaction.card_id))?;
        }
    }

    let width = features.width();
    let mut values = vec![f64::NAN; batch.events.len() * width];
    let mut scratch = Scratch::default();
    let mut shared = vec![None; features.views().len()];
    for (index, event) in batch.events.iter().enumerate() {
        let row = &mut values[index * width..(index + 1) * width];
        let transaction = &event.transaction;
        for (view, states) in &read {
            shared[*view] = states[index].state.as_ref();
        }
        if !keeps_cards {
            features.join(transaction, None, &shared, &mut scratch, row);
            continue;
        }
        let states = partitions.get_mut(&event.partition).expect("a batch has records of owned partitions only");
        let applied = states.table.update(&transaction.card_id, event.offset, |state| {
            features.join(transaction, Some(state), &shared, &mut scratch, row);
        });
        if applied.is_none() {
            let stamp = states.table.stamp(&transaction.card_id).unwrap_or_default();
            return Ok(Join::Overtaken { partition: event.partition, stamp });
        }
    }
    for (partition, next) in &batch.next {
        partitions.get_mut(partition).expect("a batch has records of owned partitions only").advance(*next);
    }
    Ok(Join::Done(Joined { events: batch.events, values, dead_letters: batch.dead_letters, next: batch.next }))
}
