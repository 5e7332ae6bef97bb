//! Lookups that can't be answered, as Feast's feature server tells it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use feature_store::StoreError;
use serde_json::json;

/// What Feast's clients raise again as the exception of this name in `feast.errors`.
#[derive(Debug)]
pub(crate) struct Raised {
    pub(crate) class: &'static str,
    pub(crate) message: String,
}

#[derive(Debug)]
pub(crate) enum LookupError {
    /// The body is no lookup: 422.
    Invalid { kind: &'static str, place: Vec<&'static str>, message: String },
    /// What is asked for is not there: 404.
    NotFound(Raised),
    /// One of Feast's own exceptions about a request that makes no sense: 400.
    Senseless(Raised),
    /// It makes no sense: 400.
    Refused(String),
    /// The store is away: 503.
    Unavailable(String),
    /// 500.
    Failed(String),
}

impl LookupError {
    pub(crate) fn refused(message: impl Into<String>) -> LookupError {
        LookupError::Refused(message.into())
    }

    pub(crate) fn invalid(error: &serde_json::Error) -> LookupError {
        let message = error.to_string();
        if message.starts_with("missing field `entities`") {
            let message = "Field required".to_owned();
            return LookupError::Invalid { kind: "missing", place: vec!["body", "entities"], message };
        }
        let kind = if error.is_data() { "value_error" } else { "json_invalid" };
        LookupError::Invalid { kind, place: vec!["body"], message }
    }

    pub(crate) fn unknown_view(name: &str, known: &[&str]) -> LookupError {
        let message = format!("Feature view {name} does not exist; there are: {}", known.join(", "));
        LookupError::NotFound(Raised { class: "FeatureViewNotFoundException", message })
    }

    pub(crate) fn unknown_service(name: &str, known: &[&str]) -> LookupError {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message = format!("Feature service {name} does not exist; the definitions have: {known}");
        LookupError::NotFound(Raised { class: "FeatureServiceNotFoundException", message })
    }

    pub(crate) fn collision(name: &str) -> LookupError {
        let message = format!("Duplicate features named {name} found; ask for each once");
        LookupError::Senseless(Raised { class: "FeatureNameCollisionError", message })
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            LookupError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            LookupError::NotFound(_) => StatusCode::NOT_FOUND,
            LookupError::Senseless(_) | LookupError::Refused(_) => StatusCode::BAD_REQUEST,
            LookupError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            LookupError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Of an answer that can't be written.
impl From<serde_json::Error> for LookupError {
    fn from(error: serde_json::Error) -> LookupError {
        LookupError::Failed(error.to_string())
    }
}

impl From<StoreError> for LookupError {
    fn from(error: StoreError) -> LookupError {
        match error {
            StoreError::Unavailable(_) => LookupError::Unavailable(error.to_string()),
            error => LookupError::Failed(error.to_string()),
        }
    }
}

impl IntoResponse for LookupError {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = match self {
            LookupError::Invalid { kind, place, message } => {
                json!({ "detail": [{ "type": kind, "loc": place, "msg": message }] })
            }
            // A text of JSON, itself as JSON: what Feast's client takes apart.
            LookupError::NotFound(raised) | LookupError::Senseless(raised) => {
                let detail = json!({ "module": "feast.errors", "class": raised.class, "message": raised.message });
                json!(detail.to_string())
            }
            LookupError::Refused(message) | LookupError::Unavailable(message) | LookupError::Failed(message) => {
                json!(message)
            }
        };
        (status, Json(body)).into_response()
    }
}
