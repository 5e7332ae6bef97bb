//! The stores under test, and what is done to them behind their backs.

use std::sync::Arc;

use async_trait::async_trait;
use feature_store::{CqlOptions, CqlStore, EmbeddedStore, OnlineStore, RedisMode, RedisOptions, RedisStore};
use fjall::{Database, KeyspaceCreateOptions};
use redis::cluster::ClusterClient;
use schemas::write_unsigned;
use scylla::client::session_builder::SessionBuilder;
use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::services;
use crate::suite::Subject;

pub async fn embedded(_: &str) -> Option<Box<dyn Subject>> {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::builder(dir.path()).open().unwrap();
    let store = Arc::new(EmbeddedStore::new(database.clone()).unwrap());
    Some(Box::new(Embedded { store, database, _dir: dir }))
}

pub async fn redis_single(test: &str) -> Option<Box<dyn Subject>> {
    Some(Box::new(Redis::connect(services::redis(test)?).await))
}

pub async fn redis_cluster(test: &str) -> Option<Box<dyn Subject>> {
    Some(Box::new(Redis::connect(services::redis_cluster(test)?).await))
}

pub async fn redis_sentinel(test: &str) -> Option<Box<dyn Subject>> {
    let options = services::redis_sentinel(test)?;
    let steady = SENTINEL.read().await;
    Some(Box::new(Redis { _steady: Some(steady), ..Redis::connect(options).await }))
}

pub async fn redis_secure(test: &str) -> Option<Box<dyn Subject>> {
    Some(Box::new(Redis::connect(services::redis_secure(test)?).await))
}

pub async fn cql(test: &str) -> Option<Box<dyn Subject>> {
    Some(Box::new(Cql::connect(services::cassandra(test)?).await))
}

pub async fn cql_secure(test: &str) -> Option<Box<dyn Subject>> {
    Some(Box::new(Cql::connect(services::cassandra_secure(test)?).await))
}

/// Held for writing by the test that makes the master fail over.
pub static SENTINEL: RwLock<()> = RwLock::const_new(());

struct Embedded {
    store: Arc<EmbeddedStore>,
    database: Database,
    _dir: TempDir,
}

#[async_trait]
impl Subject for Embedded {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.store.clone()
    }

    async fn lose_watermark(&self, view: &str, partition: u32, _: u64) {
        let mut key = Vec::new();
        write_unsigned(&mut key, view.len() as u64);
        key.extend_from_slice(view.as_bytes());
        key.extend_from_slice(&partition.to_be_bytes());
        let watermarks = self.database.keyspace("watermarks", KeyspaceCreateOptions::default).unwrap();
        watermarks.remove(key).unwrap();
    }
}

struct Redis {
    store: Arc<RedisStore>,
    options: RedisOptions,
    _steady: Option<RwLockReadGuard<'static, ()>>,
}

impl Redis {
    async fn connect(options: RedisOptions) -> Redis {
        let store = Arc::new(RedisStore::connect(options.clone()).await.unwrap());
        Redis { store, options, _steady: None }
    }
}

#[async_trait]
impl Subject for Redis {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.store.clone()
    }

    async fn lose_watermark(&self, view: &str, partition: u32, _: u64) {
        let mut delete = redis::cmd("DEL");
        delete.arg(format!("{}:{{{view}-w{partition}}}:watermark", self.options.key_prefix));
        let deleted: i64 = match &self.options.mode {
            RedisMode::Cluster => {
                let client = ClusterClient::new(self.options.urls.clone()).unwrap();
                delete.query_async(&mut client.get_async_connection().await.unwrap()).await.unwrap()
            }
            _ => delete.query_async(&mut node(&self.options).await).await.unwrap(),
        };
        assert_eq!(deleted, 1);
    }
}

/// A connection to the server that the options name; over TLS too.
async fn node(options: &RedisOptions) -> redis::aio::MultiplexedConnection {
    let client = match (&options.mode, &options.ca_certificate) {
        (RedisMode::Sentinel { service }, _) => {
            let server_type = redis::sentinel::SentinelServerType::Master;
            let mut sentinel =
                redis::sentinel::SentinelClient::build(options.urls.clone(), service.clone(), None, server_type)
                    .unwrap();
            sentinel.async_get_client().await.unwrap()
        }
        (_, Some(ca_certificate)) => {
            let login =
                format!("rediss://{}:{}@", options.username.as_ref().unwrap(), options.password.as_ref().unwrap());
            let url = options.urls[0].replace("rediss://", &login);
            let root_cert = Some(std::fs::read(ca_certificate).unwrap());
            redis::Client::build_with_tls(url, redis::TlsCertificates { client_tls: None, root_cert }).unwrap()
        }
        _ => redis::Client::open(options.urls[0].clone()).unwrap(),
    };
    client.get_multiplexed_async_connection().await.unwrap()
}

struct Cql {
    store: Arc<CqlStore>,
    options: CqlOptions,
}

impl Cql {
    async fn connect(options: CqlOptions) -> Cql {
        crate::cql::migrated(&options).await;
        Cql { store: Arc::new(CqlStore::connect(options.clone()).await.unwrap()), options }
    }
}

#[async_trait]
impl Subject for Cql {
    fn store(&self) -> Arc<dyn OnlineStore> {
        self.store.clone()
    }

    fn stamp_max(&self) -> u64 {
        1 << 62
    }

    fn last_of_equals_stays(&self) -> bool {
        false
    }

    async fn lose_watermark(&self, view: &str, partition: u32, offset: u64) {
        let (username, password) = (self.options.username.as_ref().unwrap(), self.options.password.as_ref().unwrap());
        let plain = services::cassandra("lose_watermark").unwrap();
        let session = SessionBuilder::new().known_nodes(plain.hosts).user(username, password).build().await.unwrap();
        // With the timestamp it was written with: one of now would hide all that is written later.
        let statement = format!(
            "DELETE FROM {}.watermarks USING TIMESTAMP {} WHERE entity_view = ? AND log_partition = ?",
            self.options.keyspace,
            offset + 1
        );
        session.query_unpaged(statement, (view, i64::from(partition))).await.unwrap();
    }
}
