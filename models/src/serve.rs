//! One OS thread owns the device, and scores whatever has queued up as its next batch.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use metrics::{Counter, Histogram, counter, histogram};
use schemas::FeatureLayout;

use crate::{
    Artifact, Contribution, Device, Explain, ModelError, Promotion, Scorer, error::panic_message, explain::Explainer,
    follow::Watched, metric_names, normalize::check_rows, watchdog::Watchdog,
};

/// How to serve a model.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub device: Device,
    /// Submissions that wait at most. Full-policy: [`ModelThread::submit`] blocks.
    pub queue_capacity: usize,
    /// Rows of one batch at most, or as many as the device takes at a time if that is more; a larger submission is a
    /// batch of its own.
    pub batch_rows_max: usize,
    /// A device that takes longer than this for a batch is lost. (The CPU isn't watched.)
    pub stuck_after: Duration,
    /// A device that is lost (it hangs, fails or can't be opened) has its place taken by the CPU: what it was given is scored
    /// there, and all that comes. Its scores differ in their last bits. Otherwise nothing is scored any more.
    pub fallback_to_cpu: bool,
}

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        ServeOptions {
            device: Device::Auto,
            queue_capacity: 64,
            batch_rows_max: 1024,
            stuck_after: Duration::from_secs(10),
            fallback_to_cpu: false,
        }
    }
}

/// A model as its scores name it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `name@version`.
    pub label: String,
    /// An alert is a score of this or more.
    pub threshold: f32,
    /// The move of an alias by which it came to serve; `None` for a model that no alias was followed to.
    pub promotion: Option<Promotion>,
}

impl ServeOptions {
    pub(crate) fn watchdog(&self) -> Watchdog {
        Watchdog::new(self.device, self.stuck_after, self.fallback_to_cpu)
    }
}

impl ModelInfo {
    pub(crate) fn new(artifact: &Artifact, promotion: Option<Promotion>) -> Arc<ModelInfo> {
        Arc::new(ModelInfo { label: artifact.label().into(), threshold: artifact.threshold(), promotion })
    }
}

/// The scores of one submission: all of its rows by the same model.
#[derive(Clone, Debug)]
pub struct Answer {
    pub model: Arc<ModelInfo>,
    /// Calibrated probabilities, one per row, in [0, 1].
    pub scores: Vec<f32>,
    /// Of each row that reached the model's threshold, in order, what raised its score most, the largest part first; nothing
    /// where none was asked for.
    pub reasons: Vec<Vec<Contribution>>,
    /// What the challenger says of the same rows, where there is one.
    pub challenger: Option<Shadow>,
}

/// The scores of a model that runs beside the one that decides.
#[derive(Clone, Debug)]
pub struct Shadow {
    pub model: Arc<ModelInfo>,
    /// One per row, as in [`Answer`].
    pub scores: Vec<f32>,
}

/// A handle to the thread that owns the device; clones are cheap and share the thread, which ends
/// when the last of them is dropped.
#[derive(Clone)]
pub struct ModelThread {
    queue: Sender<Submission>,
    shared: Arc<Shared>,
    watched: Option<Watched>,
}

pub(crate) struct Shared {
    /// What scores whatever is submitted from now on.
    model: RwLock<Arc<ModelInfo>>,
    layout: FeatureLayout,
    device: String,
    watchdog: Watchdog,
    /// Why nothing is scored any more, once scoring has failed.
    failure: OnceLock<String>,
}

impl Shared {
    fn new(model: Arc<ModelInfo>, layout: FeatureLayout, device: String, watchdog: Watchdog) -> Shared {
        Shared { model: RwLock::new(model), layout, device, watchdog, failure: OnceLock::new() }
    }

    pub(crate) fn layout(&self) -> &FeatureLayout {
        &self.layout
    }

    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    fn model(&self) -> Arc<ModelInfo> {
        self.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ended(&self) -> ModelError {
        let reason = self.failure.get().cloned().unwrap_or_else(|| "it is gone".into());
        ModelError::ThreadEnded { reason }
    }
}

struct Submission {
    rows: Vec<f32>,
    explain: Option<Arc<Explain>>,
    answer: Sender<Answer>,
    submitted: Instant,
}

/// Scores to come.
pub struct Pending {
    answer: Receiver<Answer>,
    shared: Arc<Shared>,
}

/// A network on a device; both append one number per row.
pub(crate) trait Scores: Send {
    /// Calibrated probabilities.
    fn score(&mut self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), ModelError>;
    /// The network's log-odds, before calibration.
    fn log_odds(&mut self, rows: &[f32], log_odds: &mut Vec<f32>) -> Result<(), ModelError>;
}

impl Scores for Scorer {
    fn score(&mut self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), ModelError> {
        Scorer::score(self, rows, scores)
    }

    fn log_odds(&mut self, rows: &[f32], log_odds: &mut Vec<f32>) -> Result<(), ModelError> {
        self.logits(rows, log_odds)
    }
}

/// A model, open and warm.
pub(crate) struct Served {
    model: Arc<ModelInfo>,
    scorer: Box<dyn Scores>,
    /// What each column usually is; `NaN` is missing.
    usual: Vec<f32>,
    /// For what was asked for last, which hardly ever changes.
    explainer: Option<(Arc<Explain>, Explainer)>,
}

/// A device, open.
pub(crate) struct Opened {
    /// `cpu` or `cuda:N`.
    device: String,
    rows_at_once: usize,
}

impl Served {
    /// Opens the artifact on the device, and has it watched.
    pub(crate) fn open(
        artifact: &Artifact,
        model: Arc<ModelInfo>,
        watchdog: &Watchdog,
    ) -> Result<(Served, Opened), ModelError> {
        Ok(Served::new(model, Scorer::open_watched(artifact, watchdog)?, artifact.usual()))
    }

    fn new(model: Arc<ModelInfo>, scorer: Scorer, usual: Vec<f32>) -> (Served, Opened) {
        let opened = Opened { device: scorer.device().to_string(), rows_at_once: scorer.rows_at_once() };
        (Served { model, scorer: Box::new(scorer), usual, explainer: None }, opened)
    }

    /// One score for each row, in a vector of their own.
    fn score(&mut self, rows: &[f32], width: usize) -> Result<Vec<f32>, String> {
        let mut scores = Vec::with_capacity(rows.len() / width);
        self.scorer.score(rows, &mut scores).map_err(|error| error.to_string())?;
        match scores.len() * width == rows.len() {
            true => Ok(scores),
            false => Err(format!("{} scores came back for {} values", scores.len(), rows.len())),
        }
    }

    /// What raised the scores of those of `rows` that reached the threshold.
    fn reasons(
        &mut self,
        explain: &Arc<Explain>,
        rows: &[f32],
        scores: &[f32],
    ) -> Result<Vec<Vec<Contribution>>, String> {
        let rows = rows.chunks_exact(self.usual.len().max(1)).zip(scores);
        let alerts: Vec<&[f32]> =
            rows.filter(|(_, score)| **score >= self.model.threshold).map(|(row, _)| row).collect();
        if alerts.is_empty() {
            return Ok(Vec::new());
        }
        if self.explainer.as_ref().is_none_or(|(known, _)| known != explain) {
            self.explainer = Some((explain.clone(), Explainer::new(&explain.groups, self.usual.clone())));
        }
        let Some((_, explainer)) = &mut self.explainer else { return Ok(Vec::new()) };
        let scorer = &mut self.scorer;
        let explained = explainer.explain(&alerts, explain.most, |rows, log_odds| scorer.log_odds(rows, log_odds));
        explained.map_err(|error| error.to_string())
    }
}

/// Where models are handed to a thread that runs; the thread takes them up between two batches.
///
/// What is submitted after [`Handover::champion`] has returned is scored by that model or a later one.
pub(crate) struct Handover {
    changes: Sender<Change>,
    shared: Arc<Shared>,
}

enum Change {
    Champion(Served),
    Challenger(Option<Served>),
}

impl Handover {
    pub(crate) fn champion(&self, served: Served) {
        let model = served.model.clone();
        // A thread that is gone needs no model.
        let _ = self.changes.send(Change::Champion(served));
        *self.shared.model.write().unwrap_or_else(PoisonError::into_inner) = model;
    }

    pub(crate) fn challenger(&self, served: Option<Served>) {
        let _ = self.changes.send(Change::Challenger(served));
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl ModelThread {
    /// Starts the thread. Returns when the device is open and every block size has been compiled, run
    /// and checked, so that the first submission is as fast as any. Install a metrics recorder before.
    pub fn start(artifact: Artifact, options: &ServeOptions) -> Result<ModelThread, ModelError> {
        Ok(ModelThread::launch(artifact, None, options)?.0)
    }

    /// Starts the thread on a model that others can take the place of.
    pub(crate) fn launch(
        artifact: Artifact,
        promotion: Option<Promotion>,
        options: &ServeOptions,
    ) -> Result<(ModelThread, Handover), ModelError> {
        let (watchdog, layout) = (options.watchdog(), artifact.layout().clone());
        let (served, watched) = (ModelInfo::new(&artifact, promotion), watchdog.clone());
        let model = served.clone();
        ModelThread::spawn(options, watchdog, layout, model, move || Served::open(&artifact, served, &watched))
    }

    /// Starts the thread on the model that `open`, called on it, returns.
    fn spawn(
        options: &ServeOptions,
        watchdog: Watchdog,
        layout: FeatureLayout,
        model: Arc<ModelInfo>,
        open: impl FnOnce() -> Result<(Served, Opened), ModelError> + Send + 'static,
    ) -> Result<(ModelThread, Handover), ModelError> {
        let (queue, submissions) = bounded(options.queue_capacity.max(1));
        let (changes, changed) = unbounded();
        let (opened, device) = bounded(1);
        let (start, started) = bounded::<Arc<Shared>>(1);
        let (name, batch_rows_max) = (options.device.to_string(), options.batch_rows_max);
        let broken = |problem: String| ModelError::Device { device: options.device.to_string(), problem };
        let run = move || {
            let panicked = |problem| Err(ModelError::Device { device: name, problem });
            let outcome = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| panicked(panic_message(&*panic)));
            let (champion, batch_rows_max) = match outcome {
                Ok((champion, Opened { device, rows_at_once })) => {
                    let _ = opened.send(Ok(device));
                    (champion, batch_rows_max.max(rows_at_once))
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            // `start` waits for the device, and then sends this.
            if let Ok(shared) = started.recv() {
                let (width, metrics) = (shared.layout.width(), Metrics::bind());
                let (batch, rows, held, challenger) = Default::default();
                Loop {
                    submissions,
                    changed,
                    champion,
                    challenger,
                    width,
                    batch_rows_max,
                    shared,
                    metrics,
                    batch,
                    rows,
                    held,
                }
                .run();
            }
        };
        thread::Builder::new()
            .name("model".into())
            .spawn(run)
            .map_err(|error| broken(format!("its thread can't be started ({error})")))?;
        let device = device.recv().unwrap_or_else(|_| Err(broken("its thread ended at once".into())))?;
        let shared = Arc::new(Shared::new(model, layout, device, watchdog));
        start.send(shared.clone()).map_err(|_| broken("its thread ended at once".into()))?;
        Ok((ModelThread { queue, shared: shared.clone(), watched: None }, Handover { changes, shared }))
    }

    /// Queues rows (row-major, whole rows in the layout's columns) to be scored, all by one model.
    ///
    /// Blocks while the queue is full: that is the backpressure. Fails on rows that the layout
    /// doesn't allow, and when the thread has ended.
    pub fn submit(&self, rows: Vec<f32>) -> Result<Pending, ModelError> {
        self.queue_up(rows, None)
    }

    /// As [`ModelThread::submit`], and has the scores explained that reach the model's threshold, by the same network right behind
    /// them.
    pub fn submit_explained(&self, rows: Vec<f32>, explain: &Arc<Explain>) -> Result<Pending, ModelError> {
        self.queue_up(rows, Some(explain.clone()))
    }

    fn queue_up(&self, rows: Vec<f32>, explain: Option<Arc<Explain>>) -> Result<Pending, ModelError> {
        check_rows(&self.shared.layout, &rows)?;
        if self.shared.failure.get().is_some() {
            return Err(self.shared.ended());
        }
        let (answer, pending) = bounded(1);
        let submission = Submission { rows, explain, answer, submitted: Instant::now() };
        self.queue.send(submission).map_err(|_| self.shared.ended())?;
        Ok(Pending { answer: pending, shared: self.shared.clone() })
    }

    pub(crate) fn watched(self, watched: Watched) -> ModelThread {
        ModelThread { watched: Some(watched), ..self }
    }

    /// Has the registry looked at now, and follows it; at once where none is followed. Returns once the model that it gave is
    /// the one that scores whatever is submitted.
    ///
    /// Fails where the registry can't be read, does not answer in time, or gave a version that is refused. The model
    /// that served goes on.
    pub fn refresh(&self, timeout: Duration) -> Result<(), ModelError> {
        self.watched.as_ref().map_or(Ok(()), |watched| watched.refresh(timeout))
    }

    /// The model that scores what is submitted from now on, until another takes its place.
    pub fn model(&self) -> Arc<ModelInfo> {
        self.shared.model()
    }

    /// The columns that submitted rows must have; the same for every model that takes another's place.
    pub fn layout(&self) -> &FeatureLayout {
        &self.shared.layout
    }

    /// `cpu` or `cuda:N`: what scores now.
    pub fn device(&self) -> &str {
        if self.shared.watchdog.is_on_cpu() { "cpu" } else { &self.shared.device }
    }
}

impl Pending {
    /// Waits for the scores.
    pub fn wait(self) -> Result<Answer, ModelError> {
        // An answer is dropped only when scoring has failed.
        self.answer.recv().map_err(|_| self.shared.ended())
    }
}

impl std::fmt::Debug for ModelThread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = out.debug_struct("ModelThread");
        out.field("model", &self.model().label).field("device", &self.device()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pending").finish_non_exhaustive()
    }
}

struct Metrics {
    queue_wait: Histogram,
    compute: Histogram,
    explain: Histogram,
    challenger_compute: Histogram,
    batch_rows: Histogram,
    challenger_failures: Counter,
}

impl Metrics {
    fn bind() -> Metrics {
        metric_names::describe();
        Metrics {
            queue_wait: histogram!(metric_names::QUEUE_WAIT_SECONDS),
            compute: histogram!(metric_names::COMPUTE_SECONDS),
            explain: histogram!(metric_names::EXPLAIN_SECONDS),
            challenger_compute: histogram!(metric_names::CHALLENGER_COMPUTE_SECONDS),
            batch_rows: histogram!(metric_names::BATCH_ROWS),
            challenger_failures: counter!(metric_names::CHALLENGER_FAILURES),
        }
    }
}

struct Loop {
    submissions: Receiver<Submission>,
    changed: Receiver<Change>,
    champion: Served,
    challenger: Option<Served>,
    width: usize,
    batch_rows_max: usize,
    shared: Arc<Shared>,
    metrics: Metrics,
    /// The submissions of the batch that runs, and their rows.
    batch: Vec<Submission>,
    rows: Vec<f32>,
    /// Taken off the queue, but too large for that batch: the first of the next.
    held: Option<Submission>,
}

impl Loop {
    /// Scores until every handle is dropped, or scoring fails. A failed device is in no known state, so
    /// nothing is scored any more: all that wait, and all that come, are told why.
    fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let failure = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(panic) => panic_message(&*panic),
        };
        tracing::error!(model = self.champion.model.label, failure, "scoring failed, nothing is scored any more");
        // Set before the answers are dropped, so that who finds them gone finds the reason.
        let _ = self.shared.failure.set(failure);
        self.batch.clear();
        self.held = None;
        // A queue keeps what it holds when its receiver goes. So this one stays, to turn away whatever
        // was sent before its sender knew, until the last handle is dropped.
        self.submissions.iter().for_each(drop);
    }

    fn serve(&mut self) -> Result<(), String> {
        while let Some(first) = self.held.take().or_else(|| self.submissions.recv().ok()) {
            self.change();
            self.fill(first);
            let begun = Instant::now();
            let scores = self.champion.score(&self.rows, self.width)?;
            self.metrics.compute.record(begun.elapsed().as_secs_f64());
            self.metrics.batch_rows.record(scores.len() as f64);
            let mut shadow = self.shadow();
            let mut rest = scores.as_slice();
            for Submission { rows, explain, answer, .. } in self.batch.drain(..) {
                let (own, after) = rest.split_at(rows.len() / self.width);
                let begun = Instant::now();
                let reasons = match &explain {
                    Some(explain) => self.champion.reasons(explain, &rows, own)?,
                    None => Vec::new(),
                };
                if !reasons.is_empty() {
                    self.metrics.explain.record(begun.elapsed().as_secs_f64());
                }
                let challenger = shadow.as_mut().map(|(model, scores)| {
                    let after = scores.split_off(own.len());
                    Shadow { model: model.clone(), scores: std::mem::replace(scores, after) }
                });
                // Who no longer waits needs no answer.
                let model = self.champion.model.clone();
                let _ = answer.send(Answer { model, scores: own.to_vec(), reasons, challenger });
                rest = after;
            }
        }
        Ok(())
    }

    /// Takes up the models that were handed over. It is called once the first submission of a batch is off the queue,
    /// so none that was handed over before that one was submitted is missed.
    fn change(&mut self) {
        for change in self.changed.try_iter() {
            match change {
                Change::Champion(served) => self.champion = served,
                Change::Challenger(served) => self.challenger = served,
            }
        }
    }

    /// What the challenger says of the batch. One that fails is dropped: it decides nothing, so it stops nothing.
    fn shadow(&mut self) -> Option<(Arc<ModelInfo>, Vec<f32>)> {
        let Some(challenger) = &mut self.challenger else { return None };
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| challenger.score(&self.rows, self.width)));
        match outcome.unwrap_or_else(|panic| Err(panic_message(&*panic))) {
            Ok(scores) => {
                self.metrics.challenger_compute.record(begun.elapsed().as_secs_f64());
                Some((challenger.model.clone(), scores))
            }
            Err(failure) => {
                tracing::error!(model = challenger.model.label, failure, "the challenger failed, and is dropped");
                self.metrics.challenger_failures.increment(1);
                self.challenger = None;
                None
            }
        }
    }

    /// Makes `first` and what else has queued up, in order, the next batch; holds the one that no longer fits.
    fn fill(&mut self, first: Submission) {
        self.rows.clear();
        let mut next = Some(first);
        while let Some(submission) = next {
            let fits = (self.rows.len() + submission.rows.len()) / self.width <= self.batch_rows_max;
            // One that came behind a model that was handed over is for that model.
            if !(self.batch.is_empty() || fits && self.changed.is_empty()) {
                self.held = Some(submission);
                return;
            }
            self.metrics.queue_wait.record(submission.submitted.elapsed().as_secs_f64());
            self.rows.extend_from_slice(&submission.rows);
            self.batch.push(submission);
            next = self.submissions.try_recv().ok();
        }
    }
}

#[cfg(test)]
mod tests;
