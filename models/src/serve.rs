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
}

impl Served {
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::watchdog::tests as failing;

    fn options(queue_capacity: usize, batch_rows_max: usize) -> ServeOptions {
        ServeOptions { device: Device::Cpu, queue_capacity, batch_rows_max, ..ServeOptions::default() }
    }

    /// Scores by a function, whose log-odds are the scores themselves.
    struct Faked<F>(F);

    impl<F: FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> + Send> Scores for Faked<F> {
        fn score(&mut self, rows: &[f32], scores: &mut Vec<f32>) -> Result<(), ModelError> {
            (self.0)(rows, scores)
        }

        fn log_odds(&mut self, rows: &[f32], log_odds: &mut Vec<f32>) -> Result<(), ModelError> {
            (self.0)(rows, log_odds)
        }
    }

    /// A thread that runs `score` on rows of two columns.
    fn fake<F>(options: &ServeOptions, score: F) -> ModelThread
    where
        F: FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> + Send + 'static,
    {
        fake_with_handover(options, score).0
    }

    fn fake_with_handover<F>(options: &ServeOptions, score: F) -> (ModelThread, Handover)
    where
        F: FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> + Send + 'static,
    {
        let served = named("fake@1", score);
        let layout = Artifact::random(2, &[], 1).layout().clone();
        let opened = Opened { device: "fake".into(), rows_at_once: 1 };
        let (watchdog, model) = (options.watchdog(), served.model.clone());
        ModelThread::spawn(options, watchdog, layout, model, move || Ok((served, opened))).unwrap()
    }

    fn named<F>(label: &str, score: F) -> Served
    where
        F: FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> + Send + 'static,
    {
        let model = Arc::new(ModelInfo { label: label.into(), threshold: 0.5, promotion: None });
        Served { model, scorer: Box::new(Faked(score)), usual: vec![0.0; 2], explainer: None }
    }

    /// Scores every row the same.
    fn constant(score: f32) -> impl FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> + Send + 'static {
        move |rows, scores| {
            scores.extend(rows.chunks_exact(2).map(|_| score));
            Ok(())
        }
    }

    /// The first column of each row.
    fn first_column(rows: &[f32], scores: &mut Vec<f32>) {
        scores.extend(rows.chunks_exact(2).map(|row| row[0]));
    }

    #[test]
    fn serves_the_artifact() {
        let artifact = Artifact::random(6, &[16, 8], 5);
        let thread = ModelThread::start(artifact.clone(), &options(4, 64)).unwrap();
        let expected = ModelInfo { label: "random@5".into(), threshold: artifact.threshold(), promotion: None };
        assert_eq!((&*thread.model(), thread.device()), (&expected, "cpu"));
        assert_eq!(thread.layout(), artifact.layout());
        let rows: Vec<f32> = (0..6 * 150).map(|x| (x as f32 * 0.37).sin() * 50.0).collect();
        let mut expected = Vec::new();
        Scorer::open(&artifact, Device::Cpu).unwrap().score(&rows, &mut expected).unwrap();
        let pending: Vec<Pending> =
            rows.chunks(6 * 7).map(|rows| thread.submit(rows.to_vec()).unwrap()).take(4).collect();
        let found: Vec<f32> = pending.into_iter().flat_map(|pending| pending.wait().unwrap().scores).collect();
        assert_eq!(found, expected[..28]);
        assert_eq!(thread.submit(rows).unwrap().wait().unwrap().scores, expected);
        assert!(thread.submit(Vec::new()).unwrap().wait().unwrap().scores.is_empty());
        assert!(matches!(thread.submit(vec![1.0; 7]), Err(ModelError::Ragged { values: 7, width: 6 })));
        assert!(matches!(thread.submit(vec![f32::NAN; 6]), Err(ModelError::Missing { row: 0, .. })));
    }

    #[test]
    fn what_queues_up_meanwhile_is_the_next_batch() {
        let (batch, batches) = bounded(16);
        let (go, gate) = bounded::<()>(16);
        let thread = fake(&options(16, 6), move |rows, scores| {
            batch.send(rows.len() / 2).unwrap();
            gate.recv().unwrap();
            first_column(rows, scores);
            Ok(())
        });
        let first = thread.submit(vec![0.0; 2]).unwrap();
        assert_eq!(batches.recv().unwrap(), 1);
        // While that one runs: 2 + 3 rows fit into the next batch, 4 more don't, and 9 are a batch of their own.
        let queued: Vec<(usize, Pending)> = [2, 3, 4, 9, 1]
            .into_iter()
            .map(|rows| (rows, thread.submit(vec![rows as f32; rows * 2]).unwrap()))
            .collect();
        (0..5).for_each(|_| go.send(()).unwrap());
        assert_eq!(first.wait().unwrap().scores, [0.0]);
        for (rows, pending) in queued {
            assert_eq!(pending.wait().unwrap().scores, vec![rows as f32; rows]);
        }
        assert_eq!(batches.try_iter().collect::<Vec<_>>(), [5, 4, 9, 1]);
    }

    #[test]
    fn a_full_queue_blocks_the_submitter() {
        let (go, gate) = bounded::<()>(16);
        let (begun, running) = bounded(16);
        let thread = fake(&options(2, 1), move |rows, scores| {
            begun.send(()).unwrap();
            gate.recv().unwrap();
            first_column(rows, scores);
            Ok(())
        });
        let mut pending = vec![thread.submit(vec![0.0; 2]).unwrap()];
        running.recv().unwrap();
        // One more row is taken off the queue to look whether it fits; it waits with the thread.
        let submitted = Arc::new(AtomicUsize::new(0));
        let (submitter, counter) = (thread.clone(), submitted.clone());
        let blocked = thread::spawn(move || {
            (1..=5)
                .map(|row| {
                    let pending = submitter.submit(vec![row as f32; 2]).unwrap();
                    counter.fetch_add(1, Ordering::SeqCst);
                    pending
                })
                .collect::<Vec<_>>()
        });
        thread::sleep(Duration::from_millis(200));
        assert_eq!(submitted.load(Ordering::SeqCst), 2, "the queue holds two");
        (0..6).for_each(|_| go.send(()).unwrap());
        pending.extend(blocked.join().unwrap());
        let scores: Vec<f32> = pending.into_iter().flat_map(|pending| pending.wait().unwrap().scores).collect();
        assert_eq!(scores, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn a_panic_or_an_error_is_told_to_all_who_wait_and_come() {
        let panic: fn() -> Result<(), ModelError> = || panic!("the device is on fire");
        let error: fn() -> Result<(), ModelError> =
            || Err(ModelError::Device { device: "fake".into(), problem: "the device is on fire".into() });
        let forgets: fn() -> Result<(), ModelError> = || Ok(());
        for (fail, reason) in [(panic, "on fire"), (error, "on fire"), (forgets, "0 scores came back for 2 values")] {
            let (go, gate) = bounded::<()>(16);
            let (begun, running) = bounded(16);
            let thread = fake(&options(1, 1), move |_, _| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                fail()
            });
            let scored = thread.submit(vec![1.0; 2]).unwrap();
            running.recv().unwrap();
            let queued = thread.submit(vec![2.0; 2]).unwrap();
            let submitter = thread.clone();
            let blocked = thread::spawn(move || submitter.submit(vec![3.0; 2]).and_then(Pending::wait));
            go.send(()).unwrap();
            for outcome in [scored.wait(), queued.wait(), blocked.join().unwrap()] {
                let error = outcome.unwrap_err().to_string();
                assert!(error.starts_with("the model thread has ended: ") && error.contains(reason), "{error}");
            }
            let error = thread.submit(vec![4.0; 2]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_thread_ends_with_its_last_handle_after_answering() {
        let (alive, gone) = bounded::<()>(0);
        let thread = fake(&options(8, 8), move |rows, scores| {
            let _held_until_the_thread_ends = &alive;
            first_column(rows, scores);
            Ok(())
        });
        let clone = thread.clone();
        drop(thread);
        let pending = clone.submit(vec![7.0; 2]).unwrap();
        drop(clone);
        assert_eq!(pending.wait().unwrap().scores, [7.0]);
        assert_eq!(gone.recv_timeout(Duration::from_secs(10)), Err(crossbeam_channel::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_device_that_cannot_be_opened_fails_the_start() {
        let artifact = Artifact::random(2, &[], 1);
        let serve = ServeOptions { device: Device::Cuda(62), ..options(1, 1) };
        let error = ModelThread::start(artifact.clone(), &serve).unwrap_err().to_string();
        assert!(error.starts_with("device cuda:62: "), "{error}");
        let (layout, model) = (artifact.layout().clone(), ModelInfo::new(&artifact, None));
        let opened = ModelThread::spawn(&serve, serve.watchdog(), layout, model, || panic!("no such bus"));
        let error = opened.map(|(thread, _)| thread).unwrap_err().to_string();
        assert_eq!(error, "device cuda:62: no such bus");
    }

    #[test]
    fn what_a_lost_device_was_given_is_scored_on_the_cpu_in_order() {
        let artifact = failing::artifact();
        let width = artifact.layout().width();
        let rows: Vec<f32> = (0..40 * 3 * width).map(|x| (x as f32 * 0.37).sin() * 50.0).collect();
        let mut expected = Vec::new();
        Scorer::open(&artifact, Device::Cpu).unwrap().score(&rows, &mut expected).unwrap();
        for then in [failing::hang, failing::err, failing::panics] {
            for fallback_to_cpu in [true, false] {
                let (device, stuck_after) = (Device::Cuda(7), Duration::from_secs(1));
                let options = ServeOptions { device, stuck_after, fallback_to_cpu, ..options(4, 6) };
                let (watchdog, model) = (options.watchdog(), ModelInfo::new(&artifact, None));
                let engine = failing::open(&watchdog, 5, then);
                let scorer = Scorer::on(&artifact, Box::new(engine), "cuda:7".into());
                let (served, opened) = Served::new(model.clone(), scorer, artifact.usual());
                let layout = artifact.layout().clone();
                let (thread, _) =
                    ModelThread::spawn(&options, watchdog, layout, model, move || Ok((served, opened))).unwrap();
                assert_eq!(thread.device(), "cuda:7");
                let submitter = thread.clone();
                let submissions: Vec<Vec<f32>> = rows.chunks(3 * width).map(<[f32]>::to_vec).collect();
                let pending = thread::spawn(move || {
                    submissions.into_iter().map(|rows| submitter.submit(rows)).collect::<Vec<Result<Pending, _>>>()
                });
                let answers: Result<Vec<Answer>, ModelError> =
                    pending.join().unwrap().into_iter().map(|pending| pending.and_then(Pending::wait)).collect();
                if fallback_to_cpu {
                    let found: Vec<f32> = answers.unwrap().into_iter().flat_map(|answer| answer.scores).collect();
                    assert_eq!(found, expected);
                    assert_eq!(thread.device(), "cpu");
                } else {
                    let error = answers.unwrap_err().to_string();
                    assert!(error.starts_with("the model thread has ended: device cuda:7: "), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_model_takes_over_between_two_batches() {
        let (begun, running) = bounded(16);
        let (go, gate) = bounded::<()>(16);
        let (thread, handover) = fake_with_handover(&options(16, 64), move |rows, scores| {
            begun.send(()).unwrap();
            gate.recv().unwrap();
            first_column(rows, scores);
            Ok(())
        });
        let before = thread.submit(vec![7.0; 4]).unwrap();
        running.recv().unwrap();
        // While that batch runs: one more for the old model, or the new one, and one behind it.
        let meanwhile = thread.submit(vec![8.0; 2]).unwrap();
        handover.champion(named("fake@2", constant(0.25)));
        handover.challenger(Some(named("fake@3", constant(0.75))));
        assert_eq!(thread.model().label, "fake@2");
        let after = thread.submit(vec![9.0; 6]).unwrap();
        go.send(()).unwrap();
        let before = before.wait().unwrap();
        assert_eq!((before.model.label.as_str(), before.scores), ("fake@1", vec![7.0; 2]));
        assert!(before.challenger.is_none());
        for (pending, rows) in [(meanwhile, 1), (after, 3)] {
            let answer = pending.wait().unwrap();
            assert_eq!((answer.model.label.as_str(), answer.scores), ("fake@2", vec![0.25; rows]));
            let shadow = answer.challenger.unwrap();
            assert_eq!((shadow.model.label.as_str(), shadow.scores), ("fake@3", vec![0.75; rows]));
        }
        handover.challenger(None);
        assert!(thread.submit(vec![0.0; 2]).unwrap().wait().unwrap().challenger.is_none());
    }

    #[test]
    fn what_is_submitted_behind_a_new_model_is_not_scored_by_the_old_one() {
        let (thread, handover) = fake_with_handover(&options(64, 1024), constant(0.0));
        let stop = Arc::new(AtomicUsize::new(0));
        // Others keep the thread in the middle of batches.
        let noise: Vec<_> = (0..2)
            .map(|_| {
                let (thread, stop) = (thread.clone(), stop.clone());
                thread::spawn(move || {
                    let mut last = 0.0;
                    while stop.load(Ordering::SeqCst) == 0 {
                        let score = thread.submit(vec![0.0; 20]).unwrap().wait().unwrap().scores[0];
                        assert!(score >= last, "models go back: {score} behind {last}");
                        last = score;
                    }
                })
            })
            .collect();
        for turn in 1..=500u16 {
            let score = f32::from(turn) / 1000.0;
            handover.champion(named("fake", constant(score)));
            assert_eq!(thread.submit(vec![0.0; 2]).unwrap().wait().unwrap().scores, [score]);
        }
        stop.store(1, Ordering::SeqCst);
        noise.into_iter().for_each(|noise| noise.join().unwrap());
    }

    #[test]
    fn a_challenger_that_fails_stops_nothing() {
        let (thread, handover) = fake_with_handover(&options(4, 64), constant(0.5));
        let panic = |_: &[f32], _: &mut Vec<f32>| -> Result<(), ModelError> { panic!("the challenger is on fire") };
        let forgets = |_: &[f32], _: &mut Vec<f32>| Ok(());
        for challenger in [named("bad@1", panic), named("bad@2", forgets)] {
            handover.challenger(Some(challenger));
            for _ in 0..2 {
                let answer = thread.submit(vec![0.0; 2]).unwrap().wait().unwrap();
                assert_eq!((answer.scores, answer.challenger.is_none()), (vec![0.5], true));
            }
        }
    }
}
