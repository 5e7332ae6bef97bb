//! Where Redis is, and how to talk to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use redis::{ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use serde::Deserialize;

use crate::definitions::{optional_span, span};
use crate::store::{Result, StoreError, tls};

/// How the servers stand to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RedisMode {
    /// One server, at the one URL.
    #[default]
    Single,
    /// A master with replicas; the URLs are those of the Sentinels that watch it as `service`.
    Sentinel { service: String },
    /// A Redis Cluster; the URLs are those of some of its nodes.
    Cluster,
}

/// Settings of a [`RedisStore`](super::RedisStore).
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisOptions {
    pub mode: RedisMode,
    /// `redis://host:port/database`, or `rediss://` for TLS. A login in the URL of a Sentinel is
    /// the Sentinel's own.
    pub urls: Vec<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    /// A PEM file with the only authorities to trust; without it, those of the system.
    pub ca_certificate: Option<PathBuf>,
    /// PEM files that identify the client; both or neither.
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// What every key begins with.
    pub key_prefix: String,
    /// How long a state is kept after it was last written. Must be longer than any window
    /// reaches: an older state is forgotten without a trace.
    #[serde(deserialize_with = "optional_span")]
    pub ttl: Option<Duration>,
    /// For a connection to be made, and for a request to be answered.
    #[serde(deserialize_with = "span")]
    pub timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        RedisOptions {
            mode: RedisMode::Single,
            urls: vec!["redis://127.0.0.1:6379".to_owned()],
            username: None,
            password: None,
            ca_certificate: None,
            client_certificate: None,
            client_key: None,
            key_prefix: "fraudline".to_owned(),
            ttl: None,
            timeout: Duration::from_secs(2),
        }
    }
}

impl RedisOptions {
    /// The servers' addresses, with the logins that their URLs carry.
    pub(super) fn servers(&self) -> Result<Vec<ConnectionInfo>> {
        let server = |(index, url): (usize, &String)| {
            // Neither the URL nor the driver's message: they may hold a password.
            url.as_str().into_connection_info().map_err(|_| {
                let expected = "redis://host:port/database or rediss://host:port/database";
                StoreError::Refused(format!("URL {} of Redis is not valid: expected {expected}", index + 1))
            })
        };
        let servers: Vec<ConnectionInfo> = self.urls.iter().enumerate().map(server).collect::<Result<_>>()?;
        let fits = if self.mode == RedisMode::Single { servers.len() == 1 } else { !servers.is_empty() };
        if !fits {
            let count = servers.len();
            return Err(StoreError::Refused(format!("{count} URLs of Redis do not fit the mode {:?}", self.mode)));
        }
        Ok(servers)
    }

    /// What TLS connections are made with; `None` if the system's authorities will do.
    pub(super) fn certificates(&self) -> Result<Option<TlsCertificates>> {
        let client_tls = match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => {
                Some(ClientTlsConfig { client_cert: tls::read_pem(certificate)?, client_key: tls::read_pem(key)? })
            }
            (None, None) => None,
            _ => {
                let reason = "client_certificate and client_key go together";
                return Err(StoreError::Refused(reason.to_owned()));
            }
        };
        let root_cert = self.ca_certificate.as_deref().map(tls::read_pem).transpose()?;
        Ok((client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates { client_tls, root_cert }))
    }

    /// The servers for people to read, without logins.
    pub(super) fn address(&self) -> String {
        let servers = self.servers().unwrap_or_default();
        servers.iter().map(|server| server.addr().to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// Without the password, and without the URLs' logins.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("mode", &self.mode)
            .field("servers", &self.address())
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("ca_certificate", &self.ca_certificate)
            .field("client_certificate", &self.client_certificate)
            .field("key_prefix", &self.key_prefix)
            .field("ttl", &self.ttl)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
