//! The connection to Redis: made when it is first needed, and again after it failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, Pipeline, RedisError, RedisResult, TlsMode, Value};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::failure::classify;
use super::options::{RedisMode, RedisOptions};
use crate::store::{Result, StoreError, tls};

/// A caller who gives up sooner says nothing about the connection.
const PATIENCE: Duration = Duration::from_millis(100);

/// Connects to Redis, and sends requests that are made together in one round trip.
pub(super) struct Connector {
    options: RedisOptions,
    /// For messages.
    address: String,
    current: Mutex<Current>,
    /// The last link that failed, by its number.
    broken: AtomicU64,
}

#[derive(Default)]
struct Current {
    link: Option<Link>,
    /// Its number, from 1 on: a failure of an earlier one doesn't end this.
    number: u64,
}

#[derive(Clone)]
enum Link {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connector {
    /// Checks the options; makes no connection.
    pub(super) fn new(options: RedisOptions) -> Result<Connector> {
        tls::install_provider();
        options.servers()?;
        options.certificates()?;
        let address = options.address();
        Ok(Connector { options, address, current: Mutex::default(), broken: AtomicU64::new(0) })
    }

    /// Whether keys have to be grouped by hash tag.
    pub(super) fn is_cluster(&self) -> bool {
        self.options.mode == RedisMode::Cluster
    }

    /// Sends all of `commands` in one round trip, and returns their answers in order.
    pub(super) async fn ask(&self, commands: Vec<Cmd>) -> Result<Vec<Value>> {
        match self.try_ask(commands).await {
            Ok(answers) => Ok(answers),
            Err(Failed::Connecting(error)) => Err(error),
            Err(Failed::Asking(error)) => Err(classify(&self.address, &error)),
        }
    }

    /// Calls a script, with each of `calls` as its keys and arguments. Servers that don't have it get
    /// its text, with one more round trip.
    pub(super) async fn call(&self, script: &redis::Script, text: &str, calls: &[Call]) -> Result<Vec<Value>> {
        let command = |name: &str, script: &str, call: &Call| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(call.keys.len());
            call.keys.iter().for_each(|key| _ = command.arg(key));
            call.arguments.iter().for_each(|argument| _ = command.arg(argument));
            command
        };
        let by_hash = calls.iter().map(|call| command("EVALSHA", script.get_hash(), call)).collect();
        match self.try_ask(by_hash).await {
            Ok(answers) => Ok(answers),
            Err(Failed::Connecting(error)) => Err(error),
            Err(Failed::Asking(error)) if has_code(&error, "NOSCRIPT") => {
                // Some of the calls may have been done; both scripts may be done twice.
                self.ask(calls.iter().map(|call| command("EVAL", text, call)).collect()).await
            }
            Err(Failed::Asking(error)) => Err(classify(&self.address, &error)),
        }
    }

    async fn try_ask(&self, commands: Vec<Cmd>) -> std::result::Result<Vec<Value>, Failed> {
        let (number, link) = self.link().await.map_err(Failed::Connecting)?;
        let mut asking = Asking { connector: self, number, began: Instant::now(), answered: false };
        let answers = link.ask(commands).await;
        asking.answered = true;
        if let Err(error) = &answers
            && matches!(classify(&self.address, error), StoreError::Unavailable(_))
        {
            // After a failover the master is elsewhere, and a request that timed out may mean
            // that the connection is dead without either side knowing.
            self.broken.fetch_max(number, Ordering::Relaxed);
        }
        answers.map_err(Failed::Asking)
    }

    async fn link(&self) -> Result<(u64, Link)> {
        // Held while connecting: whoever comes meanwhile waits for the same connection.
        let mut current = self.current.lock().await;
        if let Some(link) = &current.link
            && current.number > self.broken.load(Ordering::Relaxed)
        {
            return Ok((current.number, link.clone()));
        }
        let link = match timeout(self.options.timeout, self.connect()).await {
            Ok(link) => link?,
            Err(_) => {
                let limit = self.options.timeout;
                return Err(StoreError::Unavailable(format!("{}: no connection within {limit:?}", self.address)));
            }
        };
        current.link = Some(link.clone());
        current.number += 1;
        Ok((current.number, link))
    }

    async fn connect(&self) -> Result<Link> {
        let failed = |error: RedisError| classify(&self.address, &error);
        let limit = Some(self.options.timeout);
        let config = AsyncConnectionConfig::new().set_connection_timeout(limit).set_response_timeout(limit);
        match &self.options.mode {
            RedisMode::Single => {
                let connection = self.node()?.get_multiplexed_async_connection_with_config(&config).await;
                connection.map(Link::Node).map_err(failed)
            }
            RedisMode::Sentinel { service } => {
                let mut sentinel = self.sentinel(service)?;
                let connection = sentinel.get_async_connection_with_config(&config).await;
                connection.map(Link::Node).map_err(failed)
            }
            RedisMode::Cluster => self.cluster().await.map(Link::Cluster),
        }
    }

    fn node(&self) -> Result<Client> {
        let mut server = self.options.servers()?.remove(0);
        let mut settings = server.redis_settings().clone();
        if let Some(username) = &self.options.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.options.password {
            settings = settings.set_password(password);
        }
        server = server.set_redis_settings(settings);
        let client = match self.options.certificates()? {
            Some(certificates) => Client::build_with_tls(server, certificates),
            None => Client::open(server),
        };
        client.map_err(|error| classify(&self.address, &error))
    }

    fn sentinel(&self, service: &str) -> Result<SentinelClient> {
        let failed = |error: RedisError| classify(&self.address, &error);
        let servers = self.options.servers()?;
        let addresses: Vec<ConnectionAddr> = servers.iter().map(|server| server.addr().clone()).collect();
        let secure = addresses.iter().any(|address| matches!(address, ConnectionAddr::TcpTls { .. }));
        let own = servers[0].redis_settings();
        let mut builder = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master).map_err(failed)?;
        if let Some(username) = own.username() {
            builder = builder.set_client_to_sentinel_username(username);
        }
        if let Some(password) = own.password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(username) = &self.options.username {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = &self.options.password {
            builder = builder.set_client_to_redis_password(password);
        }
        if secure {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            if let Some(certificates) = self.options.certificates()? {
                builder = builder.set_client_to_sentinel_certificates(certificates.clone());
                builder = builder.set_client_to_redis_certificates(certificates);
            }
        }
        builder.build().map_err(failed)
    }

    async fn cluster(&self) -> Result<ClusterConnection> {
        let failed = |error: RedisError| classify(&self.address, &error);
        let limit = self.options.timeout;
        let mut builder = ClusterClientBuilder::new(self.options.servers()?)
            .connection_timeout(limit)
            .response_timeout(limit)
            .overall_response_timeout(Some(limit));
        if let Some(username) = &self.options.username {
            builder = builder.username(username);
        }
        if let Some(password) = &self.options.password {
            builder = builder.password(password);
        }
        if let Some(certificates) = self.options.certificates()? {
            builder = builder.certs(certificates);
        }
        builder.build().map_err(failed)?.get_async_connection().await.map_err(failed)
    }
}

/// One call of a script.
pub(super) struct Call {
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Vec<u8>>,
}

/// A caller's own time limit may be shorter than ours: the connection is no less dead when nobody is
/// left to see that.
struct Asking<'a> {
    connector: &'a Connector,
    number: u64,
    began: Instant,
    answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered && self.began.elapsed() >= PATIENCE {
            self.connector.broken.fetch_max(self.number, Ordering::Relaxed);
        }
    }
}

enum Failed {
    Connecting(StoreError),
    Asking(RedisError),
}

impl Link {
    async fn ask(self, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
        match self {
            Link::Node(mut connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command);
                }
                pipeline.query_async(&mut connection).await
            }
            Link::Cluster(connection) => {
                try_join_all(commands.into_iter().map(|command| {
                    let mut connection = connection.clone();
                    async move { command.query_async(&mut connection).await }
                }))
                .await
            }
        }
    }
}

fn has_code(error: &RedisError, code: &str) -> bool {
    error.clone().into_server_errors().is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == code))
}
