//! Where ScyllaDB or Cassandra is, and how to talk to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::statement::Consistency;
use serde::Deserialize;

use crate::definitions::{optional_span, span};
use crate::store::{Result, StoreError, tls};

const KEEPALIVE: Duration = Duration::from_secs(5);

/// How many replicas have to answer a read and acknowledge a write. Below a quorum an acknowledged
/// write may be missing from the next read, which its owner takes for a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CqlConsistency {
    One,
    LocalOne,
    Quorum,
    #[default]
    LocalQuorum,
    All,
}

/// Settings of a [`CqlStore`](super::CqlStore).
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CqlOptions {
    /// `host:port` of some of the nodes; the others are found through them.
    pub hosts: Vec<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    /// A PEM file with the only authorities to trust. With it connections use TLS, without it
    /// they don't.
    pub ca_certificate: Option<PathBuf>,
    pub keyspace: String,
    pub consistency: CqlConsistency,
    /// How long a state is kept after it was last written, in whole seconds. Must be longer than
    /// any window reaches: an older state is forgotten without a trace.
    #[serde(deserialize_with = "optional_span")]
    pub ttl: Option<Duration>,
    /// For a connection to be made, and for a request to be answered.
    #[serde(deserialize_with = "span")]
    pub timeout: Duration,
    /// Requests go to this datacenter alone.
    pub local_datacenter: Option<String>,
}

impl Default for CqlOptions {
    fn default() -> CqlOptions {
        CqlOptions {
            hosts: vec!["127.0.0.1:9042".to_owned()],
            username: None,
            password: None,
            ca_certificate: None,
            keyspace: "fraudline".to_owned(),
            consistency: CqlConsistency::LocalQuorum,
            ttl: None,
            timeout: Duration::from_secs(2),
            local_datacenter: None,
        }
    }
}

impl CqlOptions {
    /// Refuses what the database would refuse later, or take for something else.
    pub(super) fn check(&self) -> Result<()> {
        let refused = |reason: &str| Err(StoreError::Refused(reason.to_owned()));
        let name = self.keyspace.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        if !(name.len() <= 48 && name.first().is_some_and(u8::is_ascii_lowercase) && name.iter().all(plain)) {
            return refused("a keyspace's name must begin with a small letter, and have at most 48 of a-z, 0-9 and _");
        }
        if self.hosts.is_empty() {
            return refused("the online store has no hosts");
        }
        // Twenty years are the most that the databases take.
        if self.ttl.is_some_and(|ttl| ttl.subsec_nanos() != 0 || !(1..=630_720_000).contains(&ttl.as_secs())) {
            return refused("a ttl of the online store must be whole seconds, at least one and at most 20 years");
        }
        Ok(())
    }

    /// What a session is made with.
    pub(super) fn session(&self) -> Result<SessionBuilder> {
        let consistency = match self.consistency {
            CqlConsistency::One => Consistency::One,
            CqlConsistency::LocalOne => Consistency::LocalOne,
            CqlConsistency::Quorum => Consistency::Quorum,
            CqlConsistency::LocalQuorum => Consistency::LocalQuorum,
            CqlConsistency::All => Consistency::All,
        };
        let mut policy = DefaultPolicy::builder().token_aware(true);
        if let Some(datacenter) = &self.local_datacenter {
            policy = policy.prefer_datacenter(datacenter.clone());
        }
        let profile = ExecutionProfile::builder()
            .consistency(consistency)
            .request_timeout(Some(self.timeout))
            .load_balancing_policy(policy.build());
        let mut builder = SessionBuilder::new()
            .known_nodes(&self.hosts)
            .connection_timeout(self.timeout)
            .hostname_resolution_timeout(Some(self.timeout))
            // A connection that is dead without either side knowing is found out.
            .keepalive_interval(KEEPALIVE)
            .keepalive_timeout(self.timeout)
            .default_execution_profile_handle(profile.build().into_handle());
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            builder = builder.user(username, password);
        }
        if let Some(ca_certificate) = &self.ca_certificate {
            builder = builder.tls_context(Some(tls::client_config(ca_certificate)?));
        }
        Ok(builder)
    }

    /// The hosts for people to read.
    pub(super) fn address(&self) -> String {
        self.hosts.join(", ")
    }
}

/// Without the password.
impl fmt::Debug for CqlOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CqlOptions")
            .field("hosts", &self.hosts)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("ca_certificate", &self.ca_certificate)
            .field("keyspace", &self.keyspace)
            .field("consistency", &self.consistency)
            .field("ttl", &self.ttl)
            .field("timeout", &self.timeout)
            .field("local_datacenter", &self.local_datacenter)
            .finish()
    }
}
