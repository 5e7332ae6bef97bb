//! What all clients share: their log lines, what the brokers complain of, and tokens.

use std::error::Error;
use std::path::PathBuf;

use base64::Engine as _;
use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use serde::Deserialize;

use super::KafkaOptions;
use crate::log::LogError;

/// The context of a client.
#[derive(Debug, Default)]
pub(super) struct Context {
    token_file: Option<PathBuf>,
    /// What won't pass by itself: a wrong password, an untrusted certificate, a missing right.
    refused: Mutex<Option<String>>,
    /// The last thing that went wrong.
    last: Mutex<Option<String>>,
    /// Why a record could not be delivered.
    undelivered: Mutex<Option<KafkaError>>,
}

impl Context {
    pub(super) fn new(options: &KafkaOptions) -> Context {
        let token_file = options.sasl.as_ref().and_then(|sasl| sasl.token_file.clone());
        Context { token_file, ..Context::default() }
    }

    /// What a failed call of this client comes to.
    pub(super) fn explain(&self, doing: &str, error: &KafkaError) -> LogError {
        if let Some(refused) = self.refused() {
            return LogError::Refused(refused);
        }
        if let Some(code) = error.rdkafka_error_code().filter(|code| is_refusal(*code)) {
            return LogError::Refused(format!("{doing}: {code}"));
        }
        match self.last.lock().clone() {
            Some(last) => LogError::Unavailable(format!("{doing}: {error} ({last})")),
            None => LogError::Unavailable(format!("{doing}: {error}")),
        }
    }

    /// Takes note of an error that a poll gave. Its code alone comes this way; what it is about was
    /// logged before.
    pub(super) fn note(&self, error: &KafkaError) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let logged = self.last.lock().clone();
        let reason = logged.unwrap_or_else(|| code.to_string());
        if is_refusal(code) && self.refused.lock().replace(reason.clone()).is_none() {
            tracing::error!(target: "librdkafka", "{reason}");
        }
    }

    /// Why the brokers turn this client away, if they do.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    /// Why a record was not delivered, if one was not since the last call.
    pub(super) fn take_undelivered(&self) -> Option<KafkaError> {
        self.undelivered.lock().take()
    }

    fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        #[derive(Deserialize)]
        struct Claims {
            #[serde(default)]
            sub: String,
            exp: i64,
        }
        let Some(path) = &self.token_file else {
            return Err("OAUTHBEARER needs a token_file".into());
        };
        let failed = |reason: String| format!("the token in {}: {reason}", path.display());
        let token = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?.trim().to_owned();
        let claims = token.split('.').nth(1).ok_or_else(|| failed("it is no JWT".to_owned()))?;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
        let claims = claims.map_err(|error| failed(error.to_string()))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|error| failed(error.to_string()))?;
        Ok(OAuthToken { token, principal_name: claims.sub, lifetime_ms: claims.exp.saturating_mul(1000) })
    }
}

fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        Authentication, ClusterAuthorizationFailed, GroupAuthorizationFailed, SSL, SaslAuthenticationFailed,
        TopicAuthorizationFailed, TransactionalIdAuthorizationFailed, UnsupportedSASLMechanism,
    };
    matches!(
        code,
        Authentication
            | SaslAuthenticationFailed
            | UnsupportedSASLMechanism
            | SSL
            | TopicAuthorizationFailed
            | GroupAuthorizationFailed
            | ClusterAuthorizationFailed
            | TransactionalIdAuthorizationFailed
    )
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                // It comes as an error too, but without the words.
                *self.last.lock() = Some(message.to_owned());
                tracing::info!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
                tracing::info!(target: "librdkafka", facility, "{message}");
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        *self.last.lock() = Some(reason.to_owned());
        self.note(&error);
    }

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.token().inspect_err(|error| tracing::error!("{error}"))
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.undelivered.lock().get_or_insert_with(|| error.clone());
        }
    }
}
