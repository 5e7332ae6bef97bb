//! I3: no stored state is ahead of the committed offset of its partition.

use std::collections::BTreeSet;

use anyhow::anyhow;
use feature_store::{Entity, FeatureSet};
use schemas::{Id, Transaction, partition_for_key, topics};
use scorer::log::{Log, TopicPartition};

use crate::check::Input;
use crate::environment::Environment;
use crate::progress::Progress;

const KEYS: usize = 500;

/// States and watermarks that are ahead; each with a line that says how far.
pub fn ahead(
    environment: &Environment,
    log: &dyn Log,
    features: &FeatureSet,
    input: &Input,
) -> anyhow::Result<Vec<String>> {
    let (mut cards, mut terminals) = (BTreeSet::<Id>::new(), BTreeSet::<Id>::new());
    for record in input.transactions.iter().flatten() {
        if let Ok(transaction) = Transaction::from_json(&record.value) {
            cards.insert(transaction.card_id);
            terminals.insert(transaction.terminal_id);
        }
    }
    let view = |entity| features.view_of(entity).map(|view| view.key().clone()).ok_or(anyhow!("no view of {entity}"));
    let (card, terminal) = (view(Entity::CardId)?, view(Entity::TerminalId)?);
    let rekey = materializer::rekey::view(features);
    let store = environment.store()?;
    let mut progress = Progress::new("reading stored states", (cards.len() + terminals.len()) as u64);
    let mut read = 0;
    let mut ahead = Vec::new();
    for (view, keys, topic, group) in [
        (card, cards, topics::TRANSACTIONS, scorer::GROUP),
        (terminal, terminals, topics::ENTITY_EVENTS, materializer::aggregate::GROUP),
        (rekey, BTreeSet::new(), topics::TRANSACTIONS, materializer::rekey::GROUP),
    ] {
        let partitions = log.ends(topic)?.len() as u32;
        let committed = (0..partitions)
            .map(|partition| log.committed(group, &TopicPartition { topic: topic.to_owned(), partition }))
            .collect::<Result<Vec<Option<u64>>, _>>()?;
        let numbers: Vec<u32> = (0..partitions).collect();
        let marks = environment.runtime.block_on(store.read(&view, &[], &numbers))?.watermarks;
        for (partition, mark) in marks.into_iter().enumerate() {
            let committed = committed[partition].unwrap_or(0);
            if let Some(mark) = mark.filter(|mark| mark.offset > committed) {
                ahead.push(format!("watermark {view}-{partition}: {} > {committed}", mark.offset));
            }
        }
        let keys: Vec<&str> = keys.iter().map(Id::as_str).collect();
        for keys in keys.chunks(KEYS) {
            let states = environment.runtime.block_on(store.read(&view, keys, &[]))?.states;
            for (key, state) in keys.iter().zip(states) {
                let partition = partition_for_key(key.as_bytes(), partitions);
                let committed = committed[partition as usize].unwrap_or(0);
                if let Some(state) = state.filter(|state| state.stamp > committed) {
                    ahead.push(format!("{view}/{key}, partition {partition}: {} > {committed}", state.stamp));
                }
            }
            read += keys.len() as u64;
            progress.at(read, "");
        }
    }
    Ok(ahead)
}
