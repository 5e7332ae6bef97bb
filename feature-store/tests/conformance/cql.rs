//! What only ScyllaDB and Cassandra have.

use std::time::Duration;

use feature_store::{CqlConsistency, CqlOptions, CqlReplication, CqlStore, OnlineStore, StoreError};
use scylla::client::session_builder::SessionBuilder;
use tokio::sync::{Mutex, OnceCell};

use crate::services;
use crate::suite::{checkpoint, state, states, unique, watermark};

/// The tables of the suite, made once: concurrent changes of a schema get in each other's way.
pub async fn migrated(options: &CqlOptions) {
    static MIGRATED: OnceCell<()> = OnceCell::const_new();
    let migrate = async || {
        let _alone = SCHEMA.lock().await;
        CqlStore::migrate(options.clone(), CqlReplication::Simple { factor: 1 }).await.unwrap();
    };
    MIGRATED.get_or_init(migrate).await;
}

static SCHEMA: Mutex<()> = Mutex::const_new(());

async fn refused(options: CqlOptions) -> String {
    let password = options.password.clone().unwrap();
    assert!(!format!("{options:?}").contains(&format!("{password:?}")));
    match CqlStore::connect(options).await {
        Err(StoreError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrong_login_is_refused() {
    let Some(options) = services::cassandra("cql::a_wrong_login_is_refused") else { return };
    let wrong = CqlOptions { password: Some("not-the-secret".to_owned()), ..options.clone() };
    let reason = refused(wrong).await;
    assert!(reason.contains("check username and password") && !reason.contains("not-the-secret"), "{reason}");
    let none = CqlOptions { username: None, ..options };
    assert!(refused(none).await.contains("set username and password"));
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused() {
    let test = "cql::an_untrusted_certificate_is_refused";
    let (Some(options), Some(untrusted)) = (services::cassandra(test), services::untrusted_ca(test)) else { return };
    let reason = refused(CqlOptions { ca_certificate: Some(untrusted), ..options }).await;
    assert!(reason.contains("check ca_certificate"), "{reason}");
}

#[tokio::test]
async fn a_database_that_is_away_is_unavailable() {
    let nowhere =
        CqlOptions { hosts: vec!["127.0.0.1:9".to_owned()], timeout: Duration::from_secs(1), ..CqlOptions::default() };
    let store = CqlStore::new(nowhere).unwrap();
    let error = store.read("v", &["a"], &[]).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(reason) if reason.contains("127.0.0.1:9")), "{error}");
    store.read("v", &[], &[]).await.unwrap();
}

#[tokio::test]
async fn a_migration_makes_what_is_missing() {
    let Some(options) = services::cassandra("cql::a_migration_makes_what_is_missing") else { return };
    let _alone = SCHEMA.lock().await;
    let keyspace = unique("fraudline_m").replace('-', "_");
    let options = CqlOptions { keyspace: keyspace.clone(), ..options };
    let reason = refused(options.clone()).await;
    assert!(reason.contains("`fraudline store migrate`") && reason.contains(&keyspace), "{reason}");
    let migrate = || CqlStore::migrate(options.clone(), CqlReplication::Simple { factor: 1 });
    let all =
        [format!("keyspace {keyspace}"), format!("table {keyspace}.states"), format!("table {keyspace}.watermarks")];
    let first = migrate().await.unwrap();
    assert_eq!((&first.created[..], &first.present[..]), (&all[..], &[][..]));
    let second = migrate().await.unwrap();
    assert_eq!((&second.created[..], &second.present[..]), (&[][..], &all[..]));
    let store = CqlStore::connect(options.clone()).await.unwrap();
    store.write(&checkpoint("v", 0, &[("a", state(0, "A"))], 1)).await.unwrap();
    // A table that is missing, now and at the start.
    let (username, password) = (options.username.as_ref().unwrap(), options.password.as_ref().unwrap());
    let session = SessionBuilder::new().known_nodes(&options.hosts).user(username, password).build().await.unwrap();
    session.query_unpaged(format!("DROP TABLE {keyspace}.watermarks"), ()).await.unwrap();
    let error = store.read("v", &[], &[0]).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused(reason) if reason.contains("migrate")), "{error}");
    let reason = refused(options.clone()).await;
    assert!(reason.contains("`fraudline store migrate`"), "{reason}");
    assert_eq!(migrate().await.unwrap().created, [format!("table {keyspace}.watermarks")]);
    assert_eq!(states(&CqlStore::connect(options).await.unwrap(), "v", &["a"]).await, [Some(state(0, "A"))]);
    session.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await.unwrap();
}

#[tokio::test]
async fn states_live_as_long_as_their_ttl() {
    let Some(options) = services::cassandra("cql::states_live_as_long_as_their_ttl") else { return };
    migrated(&options).await;
    let store = CqlStore::connect(CqlOptions { ttl: Some(Duration::from_secs(1)), ..options }).await.unwrap();
    let view = unique("ttl");
    store.write(&checkpoint(&view, 0, &[("a", state(1, "A"))], 2)).await.unwrap();
    assert_eq!(states(&store, &view, &["a"]).await, [Some(state(1, "A"))]);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(states(&store, &view, &["a"]).await, [None]);
    assert_eq!(store.watermark(&view, 0).await.unwrap(), Some(watermark(2)));
}

#[tokio::test]
async fn stamps_that_cannot_be_ordered_are_refused() {
    let Some(options) = services::cassandra("cql::stamps_that_cannot_be_ordered_are_refused") else { return };
    migrated(&options).await;
    let store = CqlStore::connect(options.clone()).await.unwrap();
    let view = unique("stamp");
    for stamp in [(1 << 62) + 1, u64::MAX] {
        for written in [checkpoint(&view, 0, &[("a", state(stamp, "A"))], 1), checkpoint(&view, 0, &[], stamp)] {
            let error = store.write(&written).await.unwrap_err();
            assert!(matches!(&error, StoreError::Refused(reason) if reason.contains(&stamp.to_string())), "{error}");
        }
    }
    assert_eq!(store.watermark(&view, 0).await.unwrap(), None);
    let nowhere = CqlOptions { local_datacenter: Some("atlantis".to_owned()), ..options.clone() };
    assert!(refused(nowhere).await.contains("datacenter1"));
    let here = CqlOptions { local_datacenter: Some("datacenter1".to_owned()), ..options };
    CqlStore::connect(here).await.unwrap();
}

#[test]
fn options_are_read_and_checked() {
    let read = |json: &str| serde_json::from_str::<CqlOptions>(json);
    let options = read(r#"{"hosts": ["a:9042"], "consistency": "quorum", "ttl": "30d", "password": "hush"}"#).unwrap();
    assert_eq!((options.consistency, options.ttl), (CqlConsistency::Quorum, Some(Duration::from_secs(30 * 86_400))));
    assert_eq!(options.keyspace, "fraudline");
    assert!(!format!("{options:?}").contains("hush"));
    CqlStore::new(options).unwrap();
    assert!(read(r#"{"urls": []}"#).is_err());
    let wrong = [
        CqlOptions { hosts: vec![], ..CqlOptions::default() },
        CqlOptions { keyspace: "a; DROP".to_owned(), ..CqlOptions::default() },
        CqlOptions { keyspace: "x".repeat(49), ..CqlOptions::default() },
        CqlOptions { ttl: Some(Duration::from_millis(1500)), ..CqlOptions::default() },
        CqlOptions { ca_certificate: Some("/no/such/file.pem".into()), ..CqlOptions::default() },
    ];
    for options in wrong {
        let error = CqlStore::new(options).unwrap_err();
        assert!(matches!(error, StoreError::Refused(_)), "{error}");
    }
}
