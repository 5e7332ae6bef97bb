//! The services that tests run against, found by the environment; a test whose service is away is
//! skipped, unless FRAUDLINE_SERVICES=required.

use std::env;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use feature_store::{CqlOptions, RedisMode, RedisOptions};

use crate::suite::unique;

fn variable(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Whether somebody listens at `address`, which may be a URL.
fn reachable(test: &str, service: &str, address: &str) -> bool {
    let authority = address.rsplit('/').next().unwrap_or_default();
    let found = authority.to_socket_addrs().is_ok_and(|mut addresses| {
        addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
    });
    found || skipped(test, &format!("no {service} at {address}"))
}

fn skipped(test: &str, reason: &str) -> bool {
    let message = format!("skipped: {test}: {reason}");
    assert_ne!(env::var("FRAUDLINE_SERVICES").as_deref(), Ok("required"), "{message}");
    eprintln!("{message}");
    false
}

fn certificate(test: &str, variable: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        skipped(test, &format!("{variable} names no file"));
    }
    path
}

/// Generous: the machine may be busy with a build.
const TIMEOUT: Duration = Duration::from_secs(20);

fn redis_options(mode: RedisMode, url: String) -> RedisOptions {
    let key_prefix = unique("fraudline:test");
    RedisOptions { mode, urls: vec![url], key_prefix, timeout: TIMEOUT, ..RedisOptions::default() }
}

pub fn redis(test: &str) -> Option<RedisOptions> {
    let url = variable("FRAUDLINE_TEST_REDIS", "redis://127.0.0.1:16379");
    reachable(test, "Redis", &url).then(|| redis_options(RedisMode::Single, url))
}

pub fn redis_cluster(test: &str) -> Option<RedisOptions> {
    let url = variable("FRAUDLINE_TEST_REDIS_CLUSTER", "redis://127.0.0.1:16401");
    reachable(test, "Redis Cluster", &url).then(|| redis_options(RedisMode::Cluster, url))
}

pub fn redis_sentinel(test: &str) -> Option<RedisOptions> {
    let url = variable("FRAUDLINE_TEST_REDIS_SENTINEL", "redis://127.0.0.1:26411");
    let mode = RedisMode::Sentinel { service: "fraudline".to_owned() };
    reachable(test, "Redis Sentinel", &url).then(|| redis_options(mode, url))
}

/// Over TLS, as a user who may touch nothing but the store's keys.
pub fn redis_secure(test: &str) -> Option<RedisOptions> {
    let url = variable("FRAUDLINE_TEST_REDIS_SECURE", "rediss://127.0.0.1:16380");
    if !reachable(test, "Redis", &url) {
        return None;
    }
    Some(RedisOptions {
        ca_certificate: Some(certificate(test, "FRAUDLINE_TEST_CA")?),
        username: Some(variable("FRAUDLINE_TEST_USER", "fraudline")),
        password: Some(variable("FRAUDLINE_TEST_PASSWORD", "fraudline-secret")),
        ..redis_options(RedisMode::Single, url)
    })
}

pub fn cassandra(test: &str) -> Option<CqlOptions> {
    let host = variable("FRAUDLINE_TEST_CASSANDRA", "127.0.0.1:19042");
    reachable(test, "Cassandra", &host).then(|| CqlOptions {
        hosts: vec![host],
        username: Some(variable("FRAUDLINE_TEST_CASSANDRA_USER", "cassandra")),
        password: Some(variable("FRAUDLINE_TEST_CASSANDRA_PASSWORD", "cassandra")),
        keyspace: "fraudline_test".to_owned(),
        timeout: TIMEOUT,
        ..CqlOptions::default()
    })
}

pub fn cassandra_secure(test: &str) -> Option<CqlOptions> {
    let options = cassandra(test)?;
    Some(CqlOptions { ca_certificate: Some(certificate(test, "FRAUDLINE_TEST_CA")?), ..options })
}

/// An authority that has signed nothing that the services use.
pub fn untrusted_ca(test: &str) -> Option<PathBuf> {
    certificate(test, "FRAUDLINE_TEST_UNTRUSTED_CA")
}
