//! One OS thread owns the device, and scores whatever has queued up as its next batch.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread,
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use metrics::{Histogram, histogram};
use schemas::FeatureLayout;

use crate::{Artifact, Device, ModelError, Scorer, error::panic_message, metric_names, normalize::check_rows};

/// How to serve a model.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub device: Device,
    /// Submissions that wait at most. Full-policy: [`ModelThread::submit`] blocks.
    pub queue_capacity: usize,
    /// Rows of one batch at most; a larger submission is a batch of its own.
    pub batch_rows_max: usize,
}

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        ServeOptions { device: Device::Auto, queue_capacity: 64, batch_rows_max: 1024 }
    }
}

/// A handle to the thread that owns the device; clones are cheap and share the thread, which ends
/// when the last of them is dropped.
#[derive(Clone)]
pub struct ModelThread {
    queue: Sender<Submission>,
    shared: Arc<Shared>,
}

struct Shared {
    version: String,
    threshold: f32,
    layout: FeatureLayout,
    device: String,
    /// Why the thread ended, once it has by a failure.
    failure: OnceLock<String>,
}

impl Shared {
    fn ended(&self) -> ModelError {
        let reason = self.failure.get().cloned().unwrap_or_else(|| "it was stopped".into());
        ModelError::ThreadEnded { reason }
    }
}

struct Submission {
    rows: Vec<f32>,
    answer: Sender<Vec<f32>>,
    submitted: Instant,
}

/// Scores to come.
pub struct Pending {
    answer: Receiver<Vec<f32>>,
    shared: Arc<Shared>,
}

/// What the thread runs: appends one score per row.
type Score = Box<dyn FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError>>;

impl ModelThread {
    /// Starts the thread. Returns when the device is open and every block size has been compiled, run
    /// and checked, so that the first submission is as fast as any. Install a metrics recorder before.
    pub fn start(artifact: Artifact, options: &ServeOptions) -> Result<ModelThread, ModelError> {
        let device = options.device;
        let shared = |device: String| Shared {
            version: artifact.version().to_string(),
            threshold: artifact.threshold(),
            layout: artifact.layout().clone(),
            device,
            failure: OnceLock::new(),
        };
        let opened = artifact.clone();
        ModelThread::spawn(options, shared, move || {
            let mut scorer = Scorer::open(&opened, device)?;
            let device = scorer.device().to_string();
            Ok((Box::new(move |rows: &[f32], scores: &mut Vec<f32>| scorer.score(rows, scores)), device))
        })
    }

    /// Starts the thread on what `open`, called on it, returns: how to score, and the device's name.
    fn spawn(
        options: &ServeOptions,
        shared: impl FnOnce(String) -> Shared,
        open: impl FnOnce() -> Result<(Score, String), ModelError> + Send + 'static,
    ) -> Result<ModelThread, ModelError> {
        let (queue, submissions) = bounded(options.queue_capacity.max(1));
        let (opened, device) = bounded(1);
        let (start, started) = bounded::<Arc<Shared>>(1);
        let (name, batch_rows_max) = (options.device.to_string(), options.batch_rows_max);
        let broken = |problem: String| ModelError::Device { device: options.device.to_string(), problem };
        let run = move || {
            let panicked = |problem| Err(ModelError::Device { device: name, problem });
            let outcome = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| panicked(panic_message(&*panic)));
            let score = match outcome {
                Ok((score, device)) => {
                    let _ = opened.send(Ok(device));
                    score
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            // `start` waits for the device, and then sends this.
            if let Ok(shared) = started.recv() {
                let width = shared.layout.width();
                Loop { submissions, score, width, batch_rows_max, shared, histograms: Histograms::bind() }.run();
            }
        };
        thread::Builder::new()
            .name("model".into())
            .spawn(run)
            .map_err(|error| broken(format!("its thread can't be started ({error})")))?;
        let device = device.recv().unwrap_or_else(|_| Err(broken("its thread ended at once".into())))?;
        let shared = Arc::new(shared(device));
        start.send(shared.clone()).map_err(|_| broken("its thread ended at once".into()))?;
        Ok(ModelThread { queue, shared })
    }

    /// Queues rows (row-major, whole rows in the layout's columns) to be scored.
    ///
    /// Blocks while the queue is full: that is the backpressure. Fails on rows that the layout
    /// doesn't allow, and when the thread has ended.
    pub fn submit(&self, rows: Vec<f32>) -> Result<Pending, ModelError> {
        check_rows(&self.shared.layout, &rows)?;
        let (answer, pending) = bounded(1);
        let submission = Submission { rows, answer, submitted: Instant::now() };
        self.queue.send(submission).map_err(|_| self.shared.ended())?;
        Ok(Pending { answer: pending, shared: self.shared.clone() })
    }

    /// `name@version` of the model.
    pub fn version(&self) -> &str {
        &self.shared.version
    }

    /// An alert is a score of this or more.
    pub fn threshold(&self) -> f32 {
        self.shared.threshold
    }

    /// The columns that submitted rows must have.
    pub fn layout(&self) -> &FeatureLayout {
        &self.shared.layout
    }

    /// `cpu` or `cuda:N`.
    pub fn device(&self) -> &str {
        &self.shared.device
    }
}

impl Pending {
    /// Waits for the calibrated probabilities, one per row, in [0, 1].
    pub fn wait(self) -> Result<Vec<f32>, ModelError> {
        // Answers are dropped only when the thread ends by a failure.
        self.answer.recv().map_err(|_| self.shared.ended())
    }
}

impl std::fmt::Debug for ModelThread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { version, device, .. } = &*self.shared;
        out.debug_struct("ModelThread").field("version", version).field("device", device).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pending").finish_non_exhaustive()
    }
}

struct Histograms {
    queue_wait: Histogram,
    compute: Histogram,
    batch_rows: Histogram,
}

impl Histograms {
    fn bind() -> Histograms {
        metric_names::describe();
        Histograms {
            queue_wait: histogram!(metric_names::QUEUE_WAIT_SECONDS),
            compute: histogram!(metric_names::COMPUTE_SECONDS),
            batch_rows: histogram!(metric_names::BATCH_ROWS),
        }
    }
}

struct Loop {
    submissions: Receiver<Submission>,
    score: Score,
    width: usize,
    batch_rows_max: usize,
    shared: Arc<Shared>,
    histograms: Histograms,
}

impl Loop {
    /// Scores until every handle is dropped, or scoring fails. A failed device is in no known state, so
    /// the thread then ends: all that wait, and all that come, are told why.
    fn run(mut self) {
        let (mut batch, mut rows, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        let mut taken_too_many = None;
        while let Some(first) = taken_too_many.take().or_else(|| self.submissions.recv().ok()) {
            taken_too_many = self.fill(first, &mut batch, &mut rows);
            let begun = Instant::now();
            scores.clear();
            let scored = catch_unwind(AssertUnwindSafe(|| (self.score)(&rows, &mut scores)));
            let failure = match scored {
                Ok(Ok(())) if scores.len() * self.width == rows.len() => None,
                Ok(Ok(())) => Some(format!("{} scores came back for {} values", scores.len(), rows.len())),
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic_message(&*panic)),
            };
            if let Some(failure) = failure {
                tracing::error!(model = self.shared.version, failure, "scoring failed, the model thread ends");
                // Set before the answers are dropped, so that whoever finds them gone finds the reason.
                let _ = self.shared.failure.set(failure);
                return;
            }
            self.histograms.compute.record(begun.elapsed().as_secs_f64());
            self.histograms.batch_rows.record(scores.len() as f64);
            let mut rest = scores.as_slice();
            for Submission { rows, answer, .. } in batch.drain(..) {
                let (own, after) = rest.split_at(rows.len() / self.width);
                // Who no longer waits needs no answer.
                let _ = answer.send(own.to_vec());
                rest = after;
            }
        }
    }

    /// Takes `first` and what else has queued up, in order; returns the one that no longer fitted.
    fn fill(&self, first: Submission, batch: &mut Vec<Submission>, rows: &mut Vec<f32>) -> Option<Submission> {
        rows.clear();
        let mut next = Some(first);
        while let Some(submission) = next {
            let fits = (rows.len() + submission.rows.len()) / self.width <= self.batch_rows_max;
            if !fits && !batch.is_empty() {
                return Some(submission);
            }
            self.histograms.queue_wait.record(submission.submitted.elapsed().as_secs_f64());
            rows.extend_from_slice(&submission.rows);
            batch.push(submission);
            next = self.submissions.try_recv().ok();
        }
        None
    }
}
