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
    /// Why nothing is scored any more, once scoring has failed.
    failure: OnceLock<String>,
}

impl Shared {
    fn ended(&self) -> ModelError {
        let reason = self.failure.get().cloned().unwrap_or_else(|| "it is gone".into());
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
            version: artifact.label().to_string(),
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
                let (batch, rows, held) = (Vec::new(), Vec::new(), None);
                let histograms = Histograms::bind();
                Loop { submissions, score, width, batch_rows_max, shared, histograms, batch, rows, held }.run();
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
        if self.shared.failure.get().is_some() {
            return Err(self.shared.ended());
        }
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
        // An answer is dropped only when scoring has failed.
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
        tracing::error!(model = self.shared.version, failure, "scoring failed, nothing is scored any more");
        // Set before the answers are dropped, so that who finds them gone finds the reason.
        let _ = self.shared.failure.set(failure);
        self.batch.clear();
        self.held = None;
        // A queue keeps what it holds when its receiver goes. So this one stays, to turn away whatever
        // was sent before its sender knew, until the last handle is dropped.
        self.submissions.iter().for_each(drop);
    }

    fn serve(&mut self) -> Result<(), String> {
        let mut scores = Vec::new();
        while let Some(first) = self.held.take().or_else(|| self.submissions.recv().ok()) {
            self.fill(first);
            let begun = Instant::now();
            scores.clear();
            (self.score)(&self.rows, &mut scores).map_err(|error| error.to_string())?;
            if scores.len() * self.width != self.rows.len() {
                return Err(format!("{} scores came back for {} values", scores.len(), self.rows.len()));
            }
            self.histograms.compute.record(begun.elapsed().as_secs_f64());
            self.histograms.batch_rows.record(scores.len() as f64);
            let mut rest = scores.as_slice();
            for Submission { rows, answer, .. } in self.batch.drain(..) {
                let (own, after) = rest.split_at(rows.len() / self.width);
                // Who no longer waits needs no answer.
                let _ = answer.send(own.to_vec());
                rest = after;
            }
        }
        Ok(())
    }

    /// Makes `first` and what else has queued up, in order, the next batch; holds the one that no longer fits.
    fn fill(&mut self, first: Submission) {
        self.rows.clear();
        let mut next = Some(first);
        while let Some(submission) = next {
            let fits = (self.rows.len() + submission.rows.len()) / self.width <= self.batch_rows_max;
            if !fits && !self.batch.is_empty() {
                self.held = Some(submission);
                return;
            }
            self.histograms.queue_wait.record(submission.submitted.elapsed().as_secs_f64());
            self.rows.extend_from_slice(&submission.rows);
            self.batch.push(submission);
            next = self.submissions.try_recv().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    fn options(queue_capacity: usize, batch_rows_max: usize) -> ServeOptions {
        ServeOptions { device: Device::Cpu, queue_capacity, batch_rows_max }
    }

    /// A thread that runs `score` on rows of two columns.
    fn fake<F>(options: &ServeOptions, score: F) -> ModelThread
    where
        F: FnMut(&[f32], &mut Vec<f32>) -> Result<(), ModelError> + Send + 'static,
    {
        let artifact = Artifact::random(2, &[], 1);
        let shared = move |device| Shared {
            version: artifact.label().into(),
            threshold: artifact.threshold(),
            layout: artifact.layout().clone(),
            device,
            failure: OnceLock::new(),
        };
        ModelThread::spawn(options, shared, move || Ok((Box::new(score), "fake".into()))).unwrap()
    }

    /// The first column of each row.
    fn first_column(rows: &[f32], scores: &mut Vec<f32>) {
        scores.extend(rows.chunks_exact(2).map(|row| row[0]));
    }

    #[test]
    fn serves_the_artifact() {
        let artifact = Artifact::random(6, &[16, 8], 5);
        let thread = ModelThread::start(artifact.clone(), &options(4, 64)).unwrap();
        assert_eq!((thread.version(), thread.device(), thread.threshold()), ("random@5", "cpu", 0.5));
        assert_eq!(thread.layout(), artifact.layout());
        let rows: Vec<f32> = (0..6 * 150).map(|x| (x as f32 * 0.37).sin() * 50.0).collect();
        let mut expected = Vec::new();
        Scorer::open(&artifact, Device::Cpu).unwrap().score(&rows, &mut expected).unwrap();
        let pending: Vec<Pending> =
            rows.chunks(6 * 7).map(|rows| thread.submit(rows.to_vec()).unwrap()).take(4).collect();
        let found: Vec<f32> = pending.into_iter().flat_map(|pending| pending.wait().unwrap()).collect();
        assert_eq!(found, expected[..28]);
        assert_eq!(thread.submit(rows).unwrap().wait().unwrap(), expected);
        assert!(thread.submit(Vec::new()).unwrap().wait().unwrap().is_empty());
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
        assert_eq!(first.wait().unwrap(), [0.0]);
        for (rows, pending) in queued {
            assert_eq!(pending.wait().unwrap(), vec![rows as f32; rows]);
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
        let scores: Vec<f32> = pending.into_iter().flat_map(|pending| pending.wait().unwrap()).collect();
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
        assert_eq!(pending.wait().unwrap(), [7.0]);
        assert_eq!(gone.recv_timeout(Duration::from_secs(10)), Err(crossbeam_channel::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_device_that_cannot_be_opened_fails_the_start() {
        let artifact = Artifact::random(2, &[], 1);
        let serve = ServeOptions { device: Device::Cuda(62), ..options(1, 1) };
        let error = ModelThread::start(artifact.clone(), &serve).unwrap_err().to_string();
        assert!(error.starts_with("device cuda:62: "), "{error}");
        let shared = |_: String| -> Shared { unreachable!("nothing was opened") };
        let error = ModelThread::spawn(&serve, shared, || panic!("no such bus")).unwrap_err().to_string();
        assert_eq!(error, "device cuda:62: no such bus");
    }
}
