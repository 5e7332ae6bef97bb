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
    let pending: Vec<Pending> = rows.chunks(6 * 7).map(|rows| thread.submit(rows.to_vec()).unwrap()).take(4).collect();
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
    let queued: Vec<(usize, Pending)> =
        [2, 3, 4, 9, 1].into_iter().map(|rows| (rows, thread.submit(vec![rows as f32; rows * 2]).unwrap())).collect();
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
