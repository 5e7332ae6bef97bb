//! The online store in ScyllaDB or Cassandra.
//!
//! A row holds one state, and is a partition of its own: a request for it goes straight to a replica
//! that has it. States are written `USING TIMESTAMP` from their stamp, so that the newest stays,
//! whatever the order in which replicas get them, and no lightweight transaction is needed.
//!
//! Of two states with equal stamps, which hold the same events, one stays as a whole.
//!
//! A row that is deleted by hand hides all that is written later with a lower timestamp, which is
//! everything here: empty the tables with `TRUNCATE`, never with `DELETE`.

mod failure;
mod migrate;
mod options;

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use scylla::client::session::Session;
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::OnceCell;

use super::codec::{decode_progress, encode_progress};
use super::{
    Checkpoint, OnlineStore, PartitionCheckpoint, Read, Result, StateWrite, StoreError, StoredState, Watermark,
};
use crate::metrics::RoundTrips;
use failure::Failures;
pub use migrate::{CqlReplication, Migration};
pub use options::{CqlConsistency, CqlOptions};

/// Requests of one operation that are on their way at a time.
const CONCURRENCY: usize = 128;
/// Timestamps and `bigint` are signed; Cassandra and ScyllaDB reserve the ends of their range.
const STAMP_MAX: u64 = 1 << 62;

/// An [`OnlineStore`] in ScyllaDB or Cassandra. Its operations need a tokio runtime.
pub struct CqlStore {
    options: CqlOptions,
    failures: Failures,
    live: OnceCell<Live>,
    round_trips: RoundTrips,
}

/// A session, which keeps its connections up by itself.
struct Live {
    session: Session,
    read_state: PreparedStatement,
    write_state: PreparedStatement,
    read_watermark: PreparedStatement,
    write_watermark: PreparedStatement,
}

impl CqlStore {
    /// A store that connects when it is first used, so that it can be made while the database is
    /// away.
    pub fn new(options: CqlOptions) -> Result<CqlStore> {
        options.check()?;
        options.session()?;
        let failures = Failures { address: options.address(), keyspace: options.keyspace.clone() };
        Ok(CqlStore { options, failures, live: OnceCell::new(), round_trips: RoundTrips::of("cql") })
    }

    /// A store whose servers answer, let it in, and have its tables.
    pub async fn connect(options: CqlOptions) -> Result<CqlStore> {
        let store = CqlStore::new(options)?;
        store.read("", &[], &[0]).await?;
        Ok(store)
    }

    /// Creates the keyspace, unless it is there, and the tables that it lacks. Again and again
    /// does nothing more.
    pub async fn migrate(options: CqlOptions, replication: CqlReplication) -> Result<Migration> {
        let store = CqlStore::new(options)?;
        migrate::migrate(&store.session().await?, &store.failures, &replication).await
    }

    async fn session(&self) -> Result<Session> {
        let session = self.options.session()?.build().await.map_err(|error| self.failures.of_session(&error))?;
        let nodes = session.get_cluster_state();
        let datacenters: Vec<&str> =
            nodes.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
        match &self.options.local_datacenter {
            Some(local) if !datacenters.contains(&local.as_str()) => Err(StoreError::Refused(format!(
                "{}: there is no datacenter {local}; there are {datacenters:?}",
                self.options.address()
            ))),
            _ => Ok(session),
        }
    }

    async fn live(&self) -> Result<&Live> {
        self.live
            .get_or_try_init(async || {
                let session = self.session().await?;
                let keyspace = &self.options.keyspace;
                let prepare = async |statement: String| {
                    let prepared = session.prepare(statement).await;
                    let mut prepared = prepared.map_err(|error| self.failures.of_prepare(&error))?;
                    prepared.set_is_idempotent(true);
                    Ok::<_, StoreError>(prepared)
                };
                let ttl = self.options.ttl.map_or(String::new(), |ttl| format!(" AND TTL {}", ttl.as_secs()));
                let read_state =
                    prepare(format!("SELECT stamp, state FROM {keyspace}.states WHERE entity_view = ? AND id = ?"));
                let write_state = format!(
                    "INSERT INTO {keyspace}.states (entity_view, id, stamp, state) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
                );
                let read_watermark = format!(
                    "SELECT log_offset, progress FROM {keyspace}.watermarks WHERE entity_view = ? AND log_partition = ?"
                );
                let write_watermark = format!(
                    "INSERT INTO {keyspace}.watermarks (entity_view, log_partition, log_offset, progress) \
                     VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
                );
                Ok(Live {
                    read_state: read_state.await?,
                    write_state: prepare(write_state + &ttl).await?,
                    read_watermark: prepare(read_watermark).await?,
                    write_watermark: prepare(write_watermark).await?,
                    session,
                })
            })
            .await
    }

    async fn execute(
        &self,
        live: &Live,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult> {
        live.session.execute_unpaged(statement, values).await.map_err(|error| self.failures.of_execution(&error))
    }

    async fn read_state(&self, live: &Live, view: &str, id: &str) -> Result<Option<StoredState>> {
        let answer = self.execute(live, &live.read_state, (view, id)).await?;
        let rows = answer.into_rows_result().map_err(|error| self.failures.of_answer(&error))?;
        let row = rows.maybe_first_row::<(i64, Vec<u8>)>().map_err(|error| self.failures.of_answer(&error))?;
        let Some((stamp, bytes)) = row else { return Ok(None) };
        let stamp = u64::try_from(stamp).map_err(|_| damaged(view, id, "its stamp is negative"))?;
        Ok(Some(StoredState { stamp, bytes }))
    }

    async fn write_state(&self, live: &Live, view: &str, write: &StateWrite) -> Result<()> {
        let (stamp, timestamp) = stamped(view, write.state.stamp)?;
        let values = (view, write.key.as_str(), stamp, &write.state.bytes, timestamp);
        self.execute(live, &live.write_state, values).await.map(drop)
    }

    async fn read_watermark(&self, live: &Live, view: &str, partition: u32) -> Result<Option<Watermark>> {
        let answer = self.execute(live, &live.read_watermark, (view, i64::from(partition))).await?;
        let rows = answer.into_rows_result().map_err(|error| self.failures.of_answer(&error))?;
        let row = rows.maybe_first_row::<(i64, Vec<u8>)>().map_err(|error| self.failures.of_answer(&error))?;
        let Some((offset, progress)) = row else { return Ok(None) };
        let watermark = u64::try_from(offset).ok().and_then(|offset| decode_progress(offset, &progress));
        let damaged = || damaged(view, &format!("watermark {partition}"), "its columns are not what was written");
        watermark.map(Some).ok_or_else(damaged)
    }

    /// Between the look and the write another owner may write: its watermark stays if it is higher.
    async fn write_watermark(&self, live: &Live, written: &PartitionCheckpoint) -> Result<()> {
        let PartitionCheckpoint { view, partition, watermark, .. } = written;
        let stored = self.read_watermark(live, view, *partition).await?;
        if written.goes_on_from(stored.map(|stored| stored.offset))? {
            let (offset, timestamp) = stamped(view, watermark.offset)?;
            let values = (view.as_str(), i64::from(*partition), offset, encode_progress(watermark), timestamp);
            self.execute(live, &live.write_watermark, values).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl OnlineStore for CqlStore {
    async fn read(&self, view: &str, keys: &[&str], partitions: &[u32]) -> Result<Read> {
        if keys.is_empty() && partitions.is_empty() {
            return Ok(Read::default());
        }
        let live = self.live().await?;
        let mut read = Read::default();
        if !keys.is_empty() {
            self.round_trips.read.increment(1);
            let states: Vec<_> = keys.iter().map(|id| self.read_state(live, view, id)).collect();
            read.states = iter(states).buffered(CONCURRENCY).try_collect().await?;
        }
        // After the states: a watermark read with them might be the older.
        if !partitions.is_empty() {
            self.round_trips.read.increment(1);
            let watermarks: Vec<_> =
                partitions.iter().map(|&partition| self.read_watermark(live, view, partition)).collect();
            read.watermarks = iter(watermarks).buffered(CONCURRENCY).try_collect().await?;
        }
        Ok(read)
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        if checkpoint.partitions.is_empty() {
            return Ok(());
        }
        let live = self.live().await?;
        let mut states = Vec::new();
        for written in &checkpoint.partitions {
            stamped(&written.view, written.watermark.offset)?;
            states.extend(written.states.iter().map(|write| self.write_state(live, &written.view, write)));
        }
        if !states.is_empty() {
            self.round_trips.write.increment(1);
            let () = iter(states).buffer_unordered(CONCURRENCY).try_collect().await?;
        }
        // Every state is acknowledged.
        self.round_trips.write.increment(2);
        let watermarks: Vec<_> =
            checkpoint.partitions.iter().map(|written| self.write_watermark(live, written)).collect();
        iter(watermarks).buffer_unordered(CONCURRENCY).try_collect().await
    }
}

impl fmt::Debug for CqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CqlStore").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A stamp as it is stored, and the timestamp it is written with, which must not be 0.
fn stamped(view: &str, stamp: u64) -> Result<(i64, i64)> {
    match i64::try_from(stamp) {
        Ok(signed) if stamp <= STAMP_MAX => Ok((signed, signed + 1)),
        _ => Err(StoreError::Refused(format!(
            "offset {stamp} of view {view} is above {STAMP_MAX}, the highest that ScyllaDB and Cassandra can order"
        ))),
    }
}

fn damaged(view: &str, key: &str, reason: &str) -> StoreError {
    StoreError::Damaged { view: view.to_owned(), key: key.to_owned(), reason: reason.to_owned() }
}
