//! A log and a store that fail, once, at a chosen operation: as a process does that is killed
//! there. Whatever is asked of them afterwards fails too, until the world is built anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use feature_store::{Checkpoint, OnlineStore, Read, StoreError, StoredState, Watermark};
use scorer::log::{
    Commit, Committed, Consumer, Log, LogError, Outbox, Polled, Record, Result, Topic, TopicPartition, TopicSpec,
};

/// Counts operations down to the crash.
#[derive(Debug, Default)]
pub struct Faults {
    /// Operations left; the crash is at 0, negative is never.
    countdown: AtomicI64,
    crashed: AtomicBool,
}

impl Faults {
    /// Crashes at the operation after `operations` more; never, if negative.
    pub fn arm(&self, operations: i64) {
        self.crashed.store(false, SeqCst);
        self.countdown.store(operations, SeqCst);
    }

    pub fn crashed(&self) -> bool {
        self.crashed.load(SeqCst)
    }

    /// Whether the process dies here.
    fn strikes(&self) -> bool {
        if self.crashed() {
            return true;
        }
        let left = self.countdown.load(SeqCst);
        if left == 0 {
            self.crashed.store(true, SeqCst);
        }
        self.countdown.store(left - 1, SeqCst);
        left == 0
    }

    fn log(&self) -> Result<()> {
        if self.strikes() { Err(LogError::Storage("crash".to_owned())) } else { Ok(()) }
    }

    fn store(&self) -> std::result::Result<(), StoreError> {
        if self.strikes() { Err(StoreError::Storage("crash".to_owned())) } else { Ok(()) }
    }
}

#[derive(Debug)]
pub struct FaultyLog {
    pub log: Arc<dyn Log>,
    pub faults: Arc<Faults>,
}

impl Log for FaultyLog {
    fn create_topic(&self, spec: &TopicSpec) -> Result<()> {
        self.log.create_topic(spec)
    }

    fn topics(&self) -> Result<Vec<Topic>> {
        self.log.topics()
    }

    fn topic(&self, name: &str) -> Result<Topic> {
        self.log.topic(name)
    }

    fn read(&self, partition: &TopicPartition, from: u64, max_records: usize) -> Result<Vec<Record>> {
        self.faults.log()?;
        self.log.read(partition, from, max_records)
    }

    fn offset_at(&self, partition: &TopicPartition, timestamp_us: i64) -> Result<u64> {
        self.log.offset_at(partition, timestamp_us)
    }

    fn append(&self, records: &Outbox) -> Result<()> {
        self.log.append(records)
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<u64>> {
        self.log.committed(group, partition)
    }

    fn committed_metadata(&self, group: &str, partition: &TopicPartition) -> Result<String> {
        self.log.committed_metadata(group, partition)
    }

    fn join(&self, group: &str, member: &str, topics: &[&str]) -> Result<Box<dyn Consumer>> {
        let consumer = self.log.join(group, member, topics)?;
        Ok(Box::new(FaultyConsumer { consumer, faults: Arc::clone(&self.faults) }))
    }
}

struct FaultyConsumer {
    consumer: Box<dyn Consumer>,
    faults: Arc<Faults>,
}

impl Consumer for FaultyConsumer {
    fn poll(&mut self, topic: &str, max_records: usize, _timeout: Duration) -> Result<Polled> {
        self.faults.log()?;
        self.consumer.poll(topic, max_records, Duration::ZERO)
    }

    /// Dies before the commit, or after it and before anyone hears of it.
    fn commit(&mut self, commit: &Commit<'_>) -> Result<Committed> {
        self.faults.log()?;
        let committed = self.consumer.commit(commit)?;
        self.faults.log()?;
        Ok(committed)
    }

    fn reached(&mut self, topic: &str, ends: &[u64]) -> Result<Vec<(u32, bool)>> {
        self.consumer.reached(topic, ends)
    }
}

/// The embedded store, in one process with the log: its writes are atomic.
#[derive(Debug)]
pub struct FaultyStore {
    pub store: Arc<dyn OnlineStore>,
    pub faults: Arc<Faults>,
}

#[async_trait]
impl OnlineStore for FaultyStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> std::result::Result<Read, StoreError> {
        self.faults.store()?;
        self.store.read(view, keys, partitions).await
    }

    async fn write(&self, checkpoint: &Checkpoint) -> std::result::Result<(), StoreError> {
        self.faults.store()?;
        self.store.write(checkpoint).await?;
        self.faults.store()
    }
}

/// A store apart from the log, as Redis is: a write may die between any two states, and before
/// the watermark.
#[derive(Debug)]
pub struct ApartStore {
    pub faults: Arc<Faults>,
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    states: HashMap<(String, String), StoredState>,
    watermarks: HashMap<(String, u32), Watermark>,
}

impl ApartStore {
    pub fn new(faults: Arc<Faults>) -> ApartStore {
        ApartStore { faults, contents: Mutex::default() }
    }

    /// Loses everything, as a flushed Redis does.
    pub fn flush(&self) {
        *self.contents.lock().unwrap() = Contents::default();
    }

    /// Every stamp stored in a view, with its key.
    pub fn stamps(&self, view: &str) -> Vec<(String, u64)> {
        let contents = self.contents.lock().unwrap();
        let of_view = contents.states.iter().filter(|((of, _), _)| of == view);
        of_view.map(|((_, key), state)| (key.clone(), state.stamp)).collect()
    }
}

#[async_trait]
impl OnlineStore for ApartStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> std::result::Result<Read, StoreError> {
        self.faults.store()?;
        let contents = self.contents.lock().unwrap();
        let states = keys.iter().map(|key| contents.states.get(&(view.to_owned(), (*key).to_owned())).cloned());
        let watermarks = partitions.iter().map(|&of| contents.watermarks.get(&(view.to_owned(), of)).cloned());
        Ok(Read { states: states.collect(), watermarks: watermarks.collect() })
    }

    async fn write(&self, checkpoint: &Checkpoint) -> std::result::Result<(), StoreError> {
        for partition in &checkpoint.partitions {
            for write in &partition.states {
                self.faults.store()?;
                let mut contents = self.contents.lock().unwrap();
                let key = (partition.view.to_string(), write.key.to_string());
                if contents.states.get(&key).is_none_or(|stored| stored.stamp <= write.state.stamp) {
                    contents.states.insert(key, write.state.clone());
                }
            }
            self.faults.store()?;
            let mut contents = self.contents.lock().unwrap();
            let key = (partition.view.to_string(), partition.partition);
            if partition.goes_on_from(contents.watermarks.get(&key).map(|stored| stored.offset))? {
                contents.watermarks.insert(key, partition.watermark.clone());
            }
        }
        self.faults.store()
    }
}
