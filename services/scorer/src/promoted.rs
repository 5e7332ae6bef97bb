//! Scores of a partition never go back to an older model, whoever owns it: what a partition was scored by stands beside its
//! committed offset, and the next owner catches up before it scores.

use std::time::Duration;

use models::{Answer, ModelThread, Promotion};

use crate::log::{Log, TopicPartition};
use crate::{GROUP, Result, ScorerError};

/// The newest promotion that the partitions of a worker were scored by, or may have been.
#[derive(Debug, Default)]
pub(crate) struct Promoted {
    newest: Option<Promotion>,
}

impl Promoted {
    /// Before the partitions are scored: whoever had them may have heard of a promotion that this process has yet to notice.
    ///
    /// The registry is waited for up to `wait_max`. A model that is not older than that of the former owner then goes on;
    /// an older one must not.
    pub(crate) fn catch_up(
        &mut self,
        log: &dyn Log,
        model: &ModelThread,
        assigned: &[TopicPartition],
        wait_max: Duration,
    ) -> Result<()> {
        if assigned.is_empty() {
            return Ok(());
        }
        let refreshed = model.refresh(wait_max);
        let served = model.model().promotion.clone();
        for partition in assigned {
            let metadata = log.committed_metadata(GROUP, partition)?;
            // What others left there says nothing of this alias, nor of a model that none was followed to.
            let (Ok(committed), Some(served)) = (metadata.parse::<Promotion>(), &served) else { continue };
            if served.is_before(&committed) {
                let (partition, served) = (partition.clone(), served.clone());
                let reason = match &refreshed {
                    Ok(()) => "Promote the version that is to serve once more, if the registry was restored".to_owned(),
                    Err(error) => error.to_string(),
                };
                return Err(ScorerError::ModelBehind { partition, committed, served, reason });
            }
        }
        if let Err(error) = refreshed {
            tracing::warn!(%error, "the model that serves goes on");
        }
        self.advance(served.as_ref());
        Ok(())
    }

    /// Takes note of what a batch was scored by.
    pub(crate) fn note(&mut self, answers: &[Answer]) {
        self.advance(answers.last().and_then(|answer| answer.model.promotion.as_ref()));
    }

    /// What is committed beside the offsets. It may name a promotion that a partition was not scored by yet; that one is in
    /// the registry, so the next owner can follow it, too.
    pub(crate) fn metadata(&self) -> String {
        self.newest.as_ref().map(Promotion::to_string).unwrap_or_default()
    }

    /// A batch that was under way meanwhile may be of an older one.
    fn advance(&mut self, to: Option<&Promotion>) {
        if let Some(to) = to
            && self.newest.as_ref().is_none_or(|newest| newest.is_before(to))
        {
            self.newest = Some(to.clone());
        }
    }
}
