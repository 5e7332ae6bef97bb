//! Which failures of Redis pass by themselves.

use redis::{ErrorKind, RedisError};

use crate::store::{StoreError, tls};

/// Codes of answers that another attempt may not get.
const PASSING: [&str; 14] = [
    "LOADING",
    "READONLY",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MASTERDOWN",
    "MOVED",
    "ASK",
    "OOM",
    "NOREPLICAS",
    "MISCONF",
    "BUSY",
    "UNKILLABLE",
    "NOSCRIPT",
    "EXECABORT",
];
/// The same for an error that came out of a script, or has no code of its own.
const PASSING_TEXT: [&str; 6] =
    ["max number of clients", "OOM command", "READONLY", "MISCONF", "LOADING", "Not enough good replicas"];

/// What `error`, met at `address`, is to the store's user.
pub(super) fn classify(address: &str, error: &RedisError) -> StoreError {
    if let Some(error) = tls::tls_error(error) {
        return tls::refused(address, error);
    }
    if let Some(errors) = error.clone().into_server_errors()
        && let Some((_, error)) = errors.first()
    {
        return of_server(address, error.code(), error.details().unwrap_or_default());
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => wrong_login(address),
        ErrorKind::InvalidClientConfig | ErrorKind::Client | ErrorKind::EmptySentinelList => {
            StoreError::Refused(format!("{address}: {error}; check the store's settings"))
        }
        ErrorKind::UnexpectedReturnType | ErrorKind::RESP3NotSupported => {
            StoreError::Refused(format!("{address}: {error}"))
        }
        _ => of_cluster(address, &error.to_string()),
    }
}

fn of_server(address: &str, code: &str, details: &str) -> StoreError {
    let error = format!("{code} {details}");
    match code {
        "NOAUTH" | "WRONGPASS" => wrong_login(address),
        "NOPERM" => StoreError::Refused(format!(
            "{address}: {error}; the user needs the string and script commands (+@string +eval +evalsha) on its keys"
        )),
        code if PASSING.contains(&code) || PASSING_TEXT.iter().any(|text| details.contains(text)) => {
            StoreError::Unavailable(format!("{address}: {error}"))
        }
        _ => StoreError::Refused(format!("{address}: {error}")),
    }
}

/// The driver tells of a failed connection to a cluster in words alone.
fn of_cluster(address: &str, error: &str) -> StoreError {
    if ["AuthenticationFailed", "NOAUTH", "WRONGPASS"].iter().any(|text| error.contains(text)) {
        wrong_login(address)
    } else if error.contains("invalid peer certificate") {
        StoreError::Refused(format!("{address}: {error}; check ca_certificate"))
    } else {
        StoreError::Unavailable(format!("{address}: {error}"))
    }
}

fn wrong_login(address: &str) -> StoreError {
    StoreError::Refused(format!("{address}: the login failed; check username and password"))
}
