use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use feature_store::{EmbeddedStore, RemoteOptions, RemoteStore, Retry};
use materializer::{Materializer, MaterializerOptions};
use models::{Artifact, Dataset, Device, ModelThread, NetworkConfig, ServeOptions, TrainOptions};
use scorer::log::{Delivery, KafkaLog};
use scorer::worker::Stats;
use scorer::{Worker, WorkerOptions};

use super::*;

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

const THREE_VIEWS: &str = include_str!("../../../../feature-store/definitions/three_views.yaml");

/// Some network of the right layout: what it says doesn't matter here.
fn some_model(features: &FeatureSet) -> Artifact {
    let width = features.layout().width();
    let part = |rows: usize| Dataset {
        rows: (0..rows * width).map(|at| (at % 97) as f32).collect(),
        width,
        labels: (0..rows).map(|row| row.is_multiple_of(5)).collect(),
    };
    let options = TrainOptions {
        epochs: 1,
        network: NetworkConfig::Mlp { hidden: vec![8] },
        alert_budget: 0.1,
        ..TrainOptions::default()
    };
    models::train(features.layout(), &part(1000), &part(500), &options, &mut |_| {}).unwrap()
}

/// Runs scorer and materializer in this process until all is scored; twice, so that the second
/// start recovers from what the first one stored.
fn run(delivery: Delivery, store: Arc<dyn OnlineStore>, prefix: &str) {
    let log = Arc::new(KafkaLog::connect(KafkaOptions { delivery, ..kafka(prefix) }).unwrap());
    let exactly_once = Arc::new(KafkaLog::connect(KafkaOptions { instance: "m".to_owned(), ..kafka(prefix) }).unwrap());
    create_topics(&*log);
    let features = FeatureSet::parse(THREE_VIEWS, "three_views.yaml").unwrap_or_else(|error| panic!("{error}"));
    let features = Arc::new(features);
    let options = ServeOptions { device: Device::Cpu, ..ServeOptions::default() };
    let model = ModelThread::start(some_model(&features), &options).unwrap();
    let mut expected = Expected::new();
    for events in [3000, 1500] {
        if expected.is_empty() {
            expected = feed(&*log, &features, events);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let context = scorer::worker::Context {
            log: Arc::clone(&log) as Arc<dyn Log>,
            store: Arc::clone(&store),
            features: Arc::clone(&features),
            model: model.clone(),
            clock: system_clock(),
            stats: Arc::new(Stats::default()),
            views: scorer::worker::views(&*log, &store, &features, scorer::worker::VIEW_CACHE_BYTES).unwrap(),
        };
        let options = WorkerOptions { log_features: 1.0, batch_events_max: 200, ..WorkerOptions::default() };
        let worker = Worker::start(context, options, 0).unwrap();
        let context = materializer::Context {
            log: Arc::clone(&exactly_once) as Arc<dyn Log>,
            store: Arc::clone(&store),
            features: Arc::clone(&features),
            clock: system_clock(),
        };
        let materializer = Materializer::start(context, MaterializerOptions::default()).unwrap();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| worker.run(&stop));
            let materializer = scope.spawn(|| materializer.run(&stop));
            // Also where the wait fails: the threads would never end.
            let _stopping = SetOnDrop(&stop);
            wait_for_scores(&*log, || assert!(!worker.is_finished() && !materializer.is_finished()));
            stop.store(true, SeqCst);
            worker.join().unwrap().unwrap();
            materializer.join().unwrap().unwrap();
        });
    }
    check(&*log, expected);
}

fn remote(name: &'static str, store: Arc<dyn OnlineStore>, runtime: &tokio::runtime::Runtime) -> Arc<dyn OnlineStore> {
    let retry = Retry::UntilStopped(Arc::new(AtomicBool::new(false)));
    let timeout = Duration::from_secs(20);
    Arc::new(RemoteStore::new(store, RemoteOptions { name, runtime: runtime.handle().clone(), timeout, retry }))
}

fn on_embedded(delivery: Delivery) {
    if let Some(_turn) = have(&[Service::Kafka]) {
        let folder = tempfile::tempdir().unwrap();
        let database = fjall::Database::builder(folder.path()).open().unwrap();
        run(delivery, Arc::new(EmbeddedStore::new(database).unwrap()), &prefix());
    }
}

fn on_redis(delivery: Delivery) {
    if let Some(_turn) = have(&[Service::Kafka, Service::Redis]) {
        let (prefix, runtime) = (prefix(), tokio::runtime::Runtime::new().unwrap());
        run(delivery, remote("redis", redis(&prefix), &runtime), &prefix);
    }
}

fn on_cassandra(delivery: Delivery) {
    if let Some(_turn) = have(&[Service::Kafka, Service::Cassandra]) {
        let (prefix, runtime) = (prefix(), tokio::runtime::Runtime::new().unwrap());
        run(delivery, remote("cql", cql(&prefix, &runtime), &runtime), &prefix);
    }
}

#[test]
fn exactly_once_with_the_embedded_store() {
    on_embedded(Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_with_the_embedded_store() {
    on_embedded(Delivery::AtLeastOnce);
}

#[test]
fn exactly_once_with_redis() {
    on_redis(Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_with_redis() {
    on_redis(Delivery::AtLeastOnce);
}

#[test]
fn exactly_once_with_cassandra() {
    on_cassandra(Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_with_cassandra() {
    on_cassandra(Delivery::AtLeastOnce);
}
