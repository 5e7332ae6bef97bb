//! What only Redis has.

use std::time::Duration;

use feature_store::{OnlineStore, RedisMode, RedisOptions, RedisStore, StoreError};

use crate::services;
use crate::suite::{checkpoint, state, states, unique};

async fn refused(options: RedisOptions) -> String {
    let password = options.password.clone();
    assert!(!format!("{options:?}").contains(password.as_deref().unwrap_or("\0")));
    match RedisStore::connect(options).await {
        Err(StoreError::Refused(reason)) => {
            assert!(!password.is_some_and(|password| reason.contains(&password)), "{reason}");
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrong_login_is_refused() {
    let Some(options) = services::redis_secure("redis_modes::a_wrong_login_is_refused") else { return };
    let wrong = RedisOptions { password: Some("not-the-secret".to_owned()), ..options.clone() };
    assert!(refused(wrong).await.contains("check username and password"));
    let unknown = RedisOptions { username: Some("nobody".to_owned()), ..options.clone() };
    assert!(refused(unknown).await.contains("check username and password"));
    // A login in the URL is one too, and no message shows it.
    let url = options.urls[0].replace("rediss://", "rediss://fraudline:not-the-secret@");
    let in_url = RedisOptions { urls: vec![url], username: None, password: None, ..options.clone() };
    assert!(!format!("{in_url:?}").contains("not-the-secret"));
    assert!(!refused(in_url).await.contains("not-the-secret"));
    // Right, but not for these keys.
    let elsewhere = RedisOptions { key_prefix: unique("elsewhere"), ..options };
    assert!(refused(elsewhere).await.contains("NOPERM"));
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused() {
    let test = "redis_modes::an_untrusted_certificate_is_refused";
    let (Some(options), Some(untrusted)) = (services::redis_secure(test), services::untrusted_ca(test)) else { return };
    let address = options.urls[0].trim_start_matches("rediss://");
    let reason = refused(RedisOptions { ca_certificate: Some(untrusted), ..options.clone() }).await;
    assert!(reason.contains("check ca_certificate") && reason.contains(address), "{reason}");
    // The system's authorities have not signed it either.
    let reason = refused(RedisOptions { ca_certificate: None, ..options.clone() }).await;
    assert!(reason.contains("check ca_certificate"), "{reason}");
    let missing = RedisOptions { ca_certificate: Some("/no/such/file.pem".into()), ..options.clone() };
    assert!(refused(missing).await.contains("/no/such/file.pem"));
    // TLS where none is spoken.
    if let Some(plain) = services::redis(test) {
        let url = plain.urls[0].replace("redis://", "rediss://");
        let options = RedisOptions { urls: vec![url], timeout: Duration::from_secs(1), ..options };
        let error = RedisStore::connect(options).await.unwrap_err();
        assert!(error.to_string().contains(plain.urls[0].trim_start_matches("redis://")), "{error}");
    }
}

#[tokio::test]
async fn a_cluster_refuses_and_is_missed_like_a_server() {
    let test = "redis_modes::a_cluster_refuses_and_is_missed_like_a_server";
    if let Some(options) = services::redis_cluster(test) {
        let login = RedisOptions {
            username: Some("nobody".to_owned()),
            password: Some("not-the-secret".to_owned()),
            ..options.clone()
        };
        assert!(refused(login).await.contains("check username and password"));
        let nowhere =
            RedisOptions { urls: vec!["redis://127.0.0.1:9".to_owned()], timeout: Duration::from_secs(1), ..options };
        let error = RedisStore::connect(nowhere).await.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(reason) if reason.contains("127.0.0.1:9")), "{error}");
    }
}

#[tokio::test]
async fn states_live_as_long_as_their_ttl() {
    let Some(options) = services::redis("redis_modes::states_live_as_long_as_their_ttl") else { return };
    let store = RedisStore::connect(RedisOptions { ttl: Some(Duration::from_millis(300)), ..options }).await.unwrap();
    store.write(&checkpoint("v", 0, &[("a", state(1, "A"))], 2)).await.unwrap();
    assert_eq!(states(&store, "v", &["a"]).await, [Some(state(1, "A"))]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(states(&store, "v", &["a"]).await, [None]);
    assert!(store.watermark("v", 0).await.unwrap().is_some());
}

/// A server that was restarted has lost the scripts; one that is flushed, too.
#[tokio::test]
async fn scripts_are_sent_again() {
    let Some(options) = services::redis("redis_modes::scripts_are_sent_again") else { return };
    let client = redis::Client::open(options.urls[0].clone()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let store = RedisStore::connect(options).await.unwrap();
    for offset in 1..4 {
        redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.unwrap();
        store.write(&checkpoint("v", 0, &[("a", state(offset, "A"))], offset + 1)).await.unwrap();
        assert_eq!(states(&store, "v", &["a"]).await, [Some(state(offset, "A"))]);
    }
}

/// What other programs find, and what is not the store's own.
#[tokio::test]
async fn keys_have_the_stated_layout() {
    let Some(options) = services::redis("redis_modes::keys_have_the_stated_layout") else { return };
    let client = redis::Client::open(options.urls[0].clone()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let prefix = options.key_prefix.clone();
    let store = RedisStore::connect(options).await.unwrap();
    store.write(&checkpoint("cards", 3, &[("4111", state(258, "A"))], 259)).await.unwrap();
    let bucket = schemas::partition_for_key(b"4111", 128);
    let key = format!("{prefix}:{{cards-{bucket}}}:4111");
    let stored: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
    assert_eq!(stored, b"\0\0\0\0\0\0\x01\x02A");
    let mark = format!("{prefix}:{{cards-w3}}:watermark");
    let stored: Vec<u8> = redis::cmd("GET").arg(&mark).query_async(&mut connection).await.unwrap();
    assert_eq!(stored[..8], [0, 0, 0, 0, 0, 0, 1, 3]);
    for key in [&key, &mark] {
        redis::cmd("SET").arg(key).arg("short").query_async::<()>(&mut connection).await.unwrap();
    }
    let damaged = |error| matches!(error, StoreError::Damaged { .. });
    assert!(damaged(store.read("cards", &["4111"], &[]).await.unwrap_err()));
    assert!(damaged(store.read("cards", &[], &[3]).await.unwrap_err()));
    assert!(damaged(store.write(&checkpoint("cards", 4, &[("4111", state(9, "x"))], 10)).await.unwrap_err()));
    assert!(damaged(store.write(&checkpoint("cards", 3, &[], 10)).await.unwrap_err()));
}

#[test]
fn options_are_read_and_checked() {
    let read = |json: &str| serde_json::from_str::<RedisOptions>(json);
    let options = read(
        r#"{"mode": {"sentinel": {"service": "fraudline"}}, "urls": ["redis://a:1", "redis://b:2"], "ttl": "30d",
            "timeout": "500ms", "password": "hush"}"#,
    )
    .unwrap();
    assert_eq!(options.mode, RedisMode::Sentinel { service: "fraudline".to_owned() });
    assert_eq!((options.ttl, options.timeout), (Some(Duration::from_secs(30 * 86_400)), Duration::from_millis(500)));
    assert_eq!(options.key_prefix, "fraudline");
    assert!(!format!("{options:?}").contains("hush"));
    RedisStore::new(options).unwrap();
    assert_eq!(read(r#"{"mode": "cluster"}"#).unwrap().mode, RedisMode::Cluster);
    assert!(read(r#"{"hosts": []}"#).is_err());
    let wrong = [
        RedisOptions { urls: vec![], ..RedisOptions::default() },
        RedisOptions { urls: vec!["redis://a".to_owned(), "redis://b".to_owned()], ..RedisOptions::default() },
        RedisOptions { urls: vec!["http://user:hush@a".to_owned()], ..RedisOptions::default() },
        RedisOptions { key_prefix: "a{b}".to_owned(), ..RedisOptions::default() },
        RedisOptions { ttl: Some(Duration::ZERO), ..RedisOptions::default() },
        RedisOptions { client_key: Some("key.pem".into()), ..RedisOptions::default() },
    ];
    for options in wrong {
        let error = RedisStore::new(options).unwrap_err();
        assert!(matches!(&error, StoreError::Refused(reason) if !reason.contains("hush")), "{error}");
    }
}
