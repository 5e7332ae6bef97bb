//! Score: vectors to the model thread, probabilities back.

use std::sync::Arc;

use models::{Answer, Explain, ModelThread, Pending};

use crate::Result;
use crate::assemble::Assembled;
use crate::ingest::{DeadLetter, Event};

/// A batch on its way through the model.
#[derive(Debug)]
pub struct Scoring {
    batch: Assembled,
    pending: Option<Pending>,
}

/// A batch after scoring.
#[derive(Debug)]
pub struct Scored {
    pub events: Vec<Event>,
    pub rows: Vec<f32>,
    /// What the model says of the events: each answer of as many of them as it has scores, one after another.
    pub answers: Vec<Answer>,
    pub dead_letters: Vec<DeadLetter>,
    pub next: Vec<(u32, u64)>,
}

/// Hands the batch's vectors to the model, and asks for the reasons of alerts by `explain`; blocks while its queue is full.
pub fn submit(model: &ModelThread, explain: Option<&Arc<Explain>>, batch: Assembled) -> Result<Scoring> {
    let pending = match explain {
        _ if batch.events.is_empty() => None,
        Some(explain) => Some(model.submit_explained(batch.rows.clone(), explain)?),
        None => Some(model.submit(batch.rows.clone())?),
    };
    Ok(Scoring { batch, pending })
}

impl Scored {
    /// Adds a batch that was joined later.
    pub fn append(&mut self, mut later: Scored) {
        self.events.append(&mut later.events);
        self.rows.append(&mut later.rows);
        self.answers.append(&mut later.answers);
        self.dead_letters.append(&mut later.dead_letters);
        for (partition, next) in later.next {
            match self.next.iter_mut().find(|(known, _)| *known == partition) {
                Some((_, known)) => *known = next,
                None => self.next.push((partition, next)),
            }
        }
    }
}

impl Scoring {
    /// Whether records of this partition are in the batch.
    pub fn holds(&self, partition: u32) -> bool {
        self.batch.next.iter().any(|(of, _)| *of == partition)
    }

    /// Waits for the scores.
    pub fn wait(self) -> Result<Scored> {
        let answers = self.pending.map(Pending::wait).transpose()?.into_iter().collect();
        let Assembled { events, rows, dead_letters, next } = self.batch;
        Ok(Scored { events, rows, answers, dead_letters, next })
    }
}
