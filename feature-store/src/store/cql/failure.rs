//! Which failures of ScyllaDB and Cassandra pass by themselves.

use std::error::Error;

use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError,
    MetadataFetchErrorKind, NewSessionError, PrepareError, RequestAttemptError,
};

use crate::store::{StoreError, tls};

/// Where errors are met, for their messages.
pub(super) struct Failures {
    pub(super) address: String,
    pub(super) keyspace: String,
}

impl Failures {
    pub(super) fn of_session(&self, error: &NewSessionError) -> StoreError {
        match error {
            NewSessionError::MetadataError(MetadataError::ConnectionPoolError(error)) => self.of_pool(error),
            NewSessionError::MetadataError(MetadataError::FetchError(fetch)) => match &fetch.error {
                MetadataFetchErrorKind::PrepareError(error) => self.of_attempt(error),
                _ => self.unavailable(error),
            },
            NewSessionError::EmptyKnownNodesList | NewSessionError::IllegalConfig(_) => self.refused(error),
            // Names that don't resolve may do so later, as when a cluster is being started.
            _ => self.unavailable(error),
        }
    }

    pub(super) fn of_prepare(&self, error: &PrepareError) -> StoreError {
        match error {
            PrepareError::ConnectionPoolError(error) => self.of_pool(error),
            PrepareError::AllAttemptsFailed { first_attempt } => self.of_attempt(first_attempt),
            _ => self.unavailable(error),
        }
    }

    pub(super) fn of_execution(&self, error: &ExecutionError) -> StoreError {
        match error {
            ExecutionError::BadQuery(_) => self.refused(error),
            ExecutionError::PrepareError(error) => self.of_prepare(error),
            ExecutionError::ConnectionPoolError(error) => self.of_pool(error),
            ExecutionError::LastAttemptError(error) => self.of_attempt(error),
            _ => self.unavailable(error),
        }
    }

    /// An answer that is not shaped as the tables are.
    pub(super) fn of_answer(&self, error: &dyn Error) -> StoreError {
        let advice = "is its table an older one? `fraudline store migrate` tells";
        StoreError::Refused(format!("{}: keyspace {}: {error}; {advice}", self.address, self.keyspace))
    }

    fn of_pool(&self, error: &ConnectionPoolError) -> StoreError {
        match error {
            ConnectionPoolError::Broken { last_connection_error } => self.of_connection(last_connection_error),
            _ => self.unavailable(error),
        }
    }

    fn of_connection(&self, error: &ConnectionError) -> StoreError {
        match error {
            ConnectionError::IoError(io) => match tls::tls_error(&**io) {
                Some(error) => tls::refused(&self.address, error),
                None => self.unavailable(error),
            },
            ConnectionError::ConnectionSetupRequestError(setup) => match &setup.error {
                ConnectionSetupRequestErrorKind::DbError(error, reason) => self.of_answered(error, reason),
                ConnectionSetupRequestErrorKind::MissingAuthentication => {
                    StoreError::Refused(format!("{} asks for a login: set username and password", self.address))
                }
                _ => self.unavailable(error),
            },
            _ => self.unavailable(error),
        }
    }

    fn of_attempt(&self, error: &RequestAttemptError) -> StoreError {
        match error {
            RequestAttemptError::DbError(error, reason) => self.of_answered(error, reason),
            RequestAttemptError::UnableToAllocStreamId | RequestAttemptError::BrokenConnectionError(_) => {
                self.unavailable(error)
            }
            _ => self.refused(error),
        }
    }

    fn of_answered(&self, error: &DbError, reason: &str) -> StoreError {
        let (address, keyspace) = (&self.address, &self.keyspace);
        match error {
            // Cassandra's words while the replicas that hold the roles are away.
            DbError::AuthenticationError if reason.contains("Unable to perform authentication") => {
                StoreError::Unavailable(format!("{address}: {reason}"))
            }
            DbError::AuthenticationError => {
                StoreError::Refused(format!("{address}: the login failed; check username and password"))
            }
            DbError::Unauthorized => StoreError::Refused(format!(
                "{address}: {reason}; the user needs SELECT and MODIFY on keyspace {keyspace}"
            )),
            DbError::Invalid if is_missing(reason) => StoreError::Refused(format!(
                "{address}: {reason}; create keyspace {keyspace} and its tables with `fraudline store migrate`"
            )),
            DbError::SyntaxError
            | DbError::Invalid
            | DbError::AlreadyExists { .. }
            | DbError::FunctionFailure { .. }
            | DbError::ConfigError
            | DbError::ProtocolError => StoreError::Refused(format!("{address}: {reason}")),
            _ => StoreError::Unavailable(format!("{address}: {error}: {reason}")),
        }
    }

    fn refused(&self, error: &dyn Error) -> StoreError {
        StoreError::Refused(format!("{}: {error}", self.address))
    }

    fn unavailable(&self, error: &dyn Error) -> StoreError {
        StoreError::Unavailable(format!("{}: {error}", self.address))
    }
}

/// Whether a keyspace, a table or a column of it is not there, in the words of either database.
fn is_missing(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    ["does not exist", "unconfigured", "undefined column", "unrecognized name", "unknown identifier", "no keyspace"]
        .iter()
        .any(|text| reason.contains(text))
}
