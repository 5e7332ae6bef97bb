//! Watches a device that may hang, fail or go away, and scores on the CPU in its place.
//!
//! The device has a thread of its own. A call that hangs in a driver can't be ended, so that thread is left behind: what it may
//! answer one day goes nowhere, and a process that ends doesn't wait for it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use metrics::{counter, gauge};

use crate::{
    Device, ModelError,
    cpu::CpuNetwork,
    error::panic_message,
    metric_names,
    score::{DeviceStages, Engine},
};

/// Opening compiles the kernels of every block size, which takes a while; after this long it hangs.
const OPEN_MAX: Duration = Duration::from_secs(600);

/// What is done about a device that hangs or fails. Clones share the verdict: a device that one model lost is lost to all.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog {
    asked: Device,
    /// What it watches.
    name: String,
    stuck_after: Duration,
    to_cpu: bool,
    lost: Arc<OnceLock<String>>,
}

impl Watchdog {
    /// `stuck_after`: how long a batch may take. `to_cpu`: the CPU takes the place of a device that is lost.
    pub(crate) fn new(asked: Device, stuck_after: Duration, to_cpu: bool) -> Watchdog {
        let name = if asked == Device::Auto { Device::Cuda(0) } else { asked }.to_string();
        Watchdog { asked, name, stuck_after, to_cpu, lost: Arc::default() }
    }

    /// The device that was asked for.
    pub(crate) fn asked(&self) -> Device {
        self.asked
    }

    /// Whether the CPU has taken the device's place.
    pub(crate) fn is_on_cpu(&self) -> bool {
        self.to_cpu && self.lost.get().is_some()
    }

    /// Opens an engine of the device, in a thread of its own. Where that fails, and the CPU may take its place, it does.
    pub(crate) fn open(
        &self,
        cpu: CpuNetwork,
        open: impl FnOnce() -> Result<Box<dyn Engine>, ModelError> + Send + 'static,
    ) -> Result<WatchedEngine, ModelError> {
        let mut engine =
            WatchedEngine { watchdog: self.clone(), cpu, device: None, rows_at_once: 0, pushed: Vec::new() };
        if self.lost.get().is_none() {
            match DeviceThread::start(open) {
                Ok((device, rows_at_once)) => {
                    gauge!(metric_names::DEVICE_UP).set(1.0);
                    (engine.device, engine.rows_at_once) = (Some(device), rows_at_once);
                    return Ok(engine);
                }
                Err(problem) => self.report(problem),
            }
        }
        self.excuse().map(|()| engine)
    }

    fn report(&self, problem: Problem) {
        let (reason, problem) = match problem {
            Problem::Stuck(after) => ("stuck", format!("it did not answer within {} s", after.as_secs_f64())),
            Problem::Failed(problem) => ("failed", problem),
        };
        counter!(metric_names::DEVICE_FAILURES, "reason" => reason).increment(1);
        gauge!(metric_names::DEVICE_UP).set(0.0);
        let then = if self.to_cpu { "the CPU takes its place" } else { "nothing is scored any more" };
        tracing::error!(device = self.name, problem, "the device is lost, {then}; restart once it is well");
        // Another model may have found out first.
        let _ = self.lost.set(problem);
    }

    /// Whether scoring may go on without the device.
    fn excuse(&self) -> Result<(), ModelError> {
        match self.lost.get() {
            Some(problem) if !self.to_cpu => {
                Err(ModelError::Device { device: self.name.clone(), problem: problem.clone() })
            }
            _ => Ok(()),
        }
    }
}

enum Problem {
    Stuck(Duration),
    Failed(String),
}

/// The engine of a device, and the CPU's for when it is lost.
pub(crate) struct WatchedEngine {
    watchdog: Watchdog,
    cpu: CpuNetwork,
    /// Gone once it is lost.
    device: Option<DeviceThread>,
    rows_at_once: usize,
    /// What the device was given and has not answered yet.
    pushed: Vec<Arc<Vec<f32>>>,
}

impl WatchedEngine {
    /// Waits for an answer of the device, if there still is one.
    fn ask(&mut self, request: Request) -> Option<Reply> {
        // Another model's device is this one's, too.
        if self.watchdog.lost.get().is_some() {
            self.device = None;
        }
        let device = self.device.as_ref()?;
        // A thread that has ended says why, or is found gone below.
        let _ = device.requests.send(request);
        let problem = match device.replies.recv_timeout(self.watchdog.stuck_after) {
            Ok(Ok(reply)) => return Some(reply),
            Ok(Err(problem)) => Problem::Failed(problem),
            Err(RecvTimeoutError::Timeout) => Problem::Stuck(self.watchdog.stuck_after),
            Err(RecvTimeoutError::Disconnected) => Problem::Failed("its thread has ended".into()),
        };
        self.watchdog.report(problem);
        self.device = None;
        None
    }
}

impl Engine for WatchedEngine {
    fn rows_at_once(&self) -> usize {
        if self.device.is_some() { self.rows_at_once } else { self.cpu.rows_at_once() }
    }

    fn push(&mut self, inputs: &[f32]) {
        let inputs = Arc::new(inputs.to_vec());
        if let Some(device) = &self.device {
            let _ = device.requests.send(Request::Push(inputs.clone()));
        }
        self.pushed.push(inputs);
    }

    fn take(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        if let Some(Reply::Logits(found)) = self.ask(Request::Take) {
            self.pushed.clear();
            logits.extend(found);
            return Ok(());
        }
        let pushed = std::mem::take(&mut self.pushed);
        self.watchdog.excuse()?;
        pushed.iter().for_each(|inputs| self.cpu.push(inputs));
        self.cpu.take(logits)
    }

    fn stages(&mut self, inputs: &[f32]) -> Result<DeviceStages, ModelError> {
        if let Some(Reply::Stages(stages)) = self.ask(Request::Stages(inputs.to_vec())) {
            return Ok(stages);
        }
        self.watchdog.excuse()?;
        self.cpu.stages(inputs)
    }
}

enum Request {
    Push(Arc<Vec<f32>>),
    Take,
    Stages(Vec<f32>),
}

enum Reply {
    Logits(Vec<f32>),
    Stages(DeviceStages),
}

/// The thread that owns the device's engine. It ends when this is dropped, or once its call returns after that.
struct DeviceThread {
    requests: Sender<Request>,
    replies: Receiver<Result<Reply, String>>,
}

impl DeviceThread {
    /// Returns once the engine is open, with the rows that it takes at a time.
    fn start(
        open: impl FnOnce() -> Result<Box<dyn Engine>, ModelError> + Send + 'static,
    ) -> Result<(DeviceThread, usize), Problem> {
        let (requests, requested) = unbounded();
        let (reply, replies) = unbounded();
        let (opened, is_open) = bounded(1);
        let run = move || {
            let mut engine = match caught(open) {
                Ok(engine) => {
                    let _ = opened.send(Ok(engine.rows_at_once()));
                    engine
                }
                Err(problem) => {
                    let _ = opened.send(Err(problem));
                    return;
                }
            };
            if let Err(problem) = caught(|| serve(&mut *engine, &requested, &reply)) {
                let _ = reply.send(Err(problem));
                // A device that failed is in no state to be closed.
                std::mem::forget(engine);
            }
        };
        let started = thread::Builder::new().name("device".into()).spawn(run);
        started.map_err(|error| Problem::Failed(format!("its thread can't be started ({error})")))?;
        match is_open.recv_timeout(OPEN_MAX) {
            Ok(Ok(rows_at_once)) => Ok((DeviceThread { requests, replies }, rows_at_once)),
            Ok(Err(problem)) => Err(Problem::Failed(problem)),
            Err(RecvTimeoutError::Timeout) => Err(Problem::Stuck(OPEN_MAX)),
            Err(RecvTimeoutError::Disconnected) => Err(Problem::Failed("its thread ended at once".into())),
        }
    }
}

/// What is wrong, be it an error or a panic.
fn caught<T>(run: impl FnOnce() -> Result<T, ModelError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ModelError::Device { problem, .. })) => Err(problem),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(panic_message(&*panic)),
    }
}

/// Does what is asked for until nobody asks any more.
fn serve(
    engine: &mut dyn Engine,
    requested: &Receiver<Request>,
    reply: &Sender<Result<Reply, String>>,
) -> Result<(), ModelError> {
    for request in requested {
        let answer = match request {
            Request::Push(inputs) => {
                engine.push(&inputs);
                continue;
            }
            Request::Take => {
                let mut logits = Vec::new();
                engine.take(&mut logits)?;
                Reply::Logits(logits)
            }
            Request::Stages(inputs) => Reply::Stages(engine.stages(&inputs)?),
        };
        // Who gave this device up doesn't hear it.
        let _ = reply.send(Ok(answer));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{Artifact, blocks::probe};

    const INPUTS: usize = 6;

    /// Scores as the CPU does until it has taken that many batches; then it does that.
    struct Failing {
        cpu: CpuNetwork,
        batches: usize,
        then: fn() -> Result<(), ModelError>,
    }

    impl Engine for Failing {
        fn rows_at_once(&self) -> usize {
            50
        }

        fn push(&mut self, inputs: &[f32]) {
            self.cpu.push(inputs);
        }

        fn take(&mut self, logits: &mut Vec<f32>) -> Result<(), ModelError> {
            if self.batches == 0 {
                (self.then)()?;
            }
            self.batches -= 1;
            self.cpu.take(logits)
        }

        fn stages(&mut self, inputs: &[f32]) -> Result<DeviceStages, ModelError> {
            self.cpu.stages(inputs)
        }
    }

    /// Longer than any test waits; the thread is left behind.
    pub(crate) fn hang() -> Result<(), ModelError> {
        thread::sleep(Duration::from_secs(3600));
        Ok(())
    }

    pub(crate) fn err() -> Result<(), ModelError> {
        Err(ModelError::Device { device: "cuda:7".into(), problem: "fell off the bus".into() })
    }

    pub(crate) fn panics() -> Result<(), ModelError> {
        panic!("fell off the bus")
    }

    pub(crate) fn artifact() -> Artifact {
        let artifact = Artifact::random(4, &[12], 8);
        assert_eq!(artifact.normalization().inputs(), INPUTS);
        artifact
    }

    pub(crate) fn open(watchdog: &Watchdog, batches: usize, then: fn() -> Result<(), ModelError>) -> WatchedEngine {
        let device = Failing { cpu: CpuNetwork::new(&artifact()), batches, then };
        watchdog.open(CpuNetwork::new(&artifact()), move || Ok(Box::new(device))).unwrap()
    }

    /// The logits of one row after the other, in batches of 7 that are pushed in two parts.
    fn run(engine: &mut dyn Engine, rows: &[f32]) -> Result<Vec<f32>, ModelError> {
        let mut logits = Vec::new();
        for batch in rows.chunks(7 * INPUTS) {
            batch.chunks(4 * INPUTS).for_each(|part| engine.push(part));
            engine.take(&mut logits)?;
        }
        Ok(logits)
    }

    #[test]
    fn the_cpu_takes_the_place_of_a_device_that_hangs_fails_or_panics_and_nothing_is_lost() {
        let rows = probe(100, INPUTS);
        let expected = run(&mut CpuNetwork::new(&artifact()), &rows).unwrap();
        for then in [hang, err, panics] {
            let watchdog = Watchdog::new(Device::Cuda(7), Duration::from_secs(1), true);
            let mut engine = open(&watchdog, 3, then);
            assert_eq!((watchdog.is_on_cpu(), engine.rows_at_once()), (false, 50));
            let begun = Instant::now();
            assert_eq!(run(&mut engine, &rows).unwrap(), expected, "all rows, in order");
            // It is waited for once.
            assert!(begun.elapsed() < Duration::from_secs(20));
            assert_eq!((watchdog.is_on_cpu(), engine.rows_at_once()), (true, engine.cpu.rows_at_once()));
        }
    }

    #[test]
    fn without_a_fallback_the_reason_is_told_from_then_on() {
        let rows = probe(100, INPUTS);
        for (then, says) in
            [(hang as fn() -> _, "did not answer within 1 s"), (err, "off the bus"), (panics, "off the bus")]
        {
            let watchdog = Watchdog::new(Device::Cuda(7), Duration::from_secs(1), false);
            let mut engine = open(&watchdog, 3, then);
            for _ in 0..2 {
                let error = run(&mut engine, &rows).unwrap_err().to_string();
                assert!(error.starts_with("device cuda:7: ") && error.contains(says), "{error}");
            }
            let device = Failing { cpu: CpuNetwork::new(&artifact()), batches: 9, then };
            let opened = watchdog.open(CpuNetwork::new(&artifact()), move || Ok(Box::new(device)));
            assert!(opened.is_err_and(|error| error.to_string().contains(says)), "a lost device isn't opened again");
        }
    }

    #[test]
    fn a_device_that_one_model_lost_is_lost_to_all() {
        let rows = probe(20, INPUTS);
        let watchdog = Watchdog::new(Device::Cuda(7), Duration::from_secs(1), true);
        let (mut first, mut second) = (open(&watchdog, 0, err), open(&watchdog, 0, || panic!("it is asked again")));
        let expected = run(&mut CpuNetwork::new(&artifact()), &rows).unwrap();
        assert_eq!(run(&mut first, &rows).unwrap(), expected);
        assert_eq!(run(&mut second, &rows).unwrap(), expected);
        assert_eq!(watchdog.lost.get().unwrap(), "fell off the bus");
        let third = watchdog.open(CpuNetwork::new(&artifact()), || panic!("it is opened again"));
        assert_eq!(run(&mut third.unwrap(), &rows).unwrap(), expected);
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_lost() {
        for to_cpu in [true, false] {
            let watchdog = Watchdog::new(Device::Cuda(7), Duration::from_secs(1), to_cpu);
            let opened = watchdog.open(CpuNetwork::new(&artifact()), || panic!("no such bus"));
            assert_eq!(opened.is_ok(), to_cpu);
            assert_eq!(watchdog.is_on_cpu(), to_cpu);
            if let Err(error) = opened {
                assert_eq!(error.to_string(), "device cuda:7: no such bus");
            }
        }
    }
}
