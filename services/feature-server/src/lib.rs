//! The HTTP side: features by entity in Feast's shape, health, readiness, metrics, and a running
//! data directory's records for `fraudline tail`.

mod error;
mod lookup;
pub mod metrics;
mod openapi;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use feature_store::{FeatureSet, OnlineStore, View, ViewReader};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

/// Largest request body taken, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest that a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the process does its work: model warm, partitions assigned.
pub type Ready = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// What the server answers from.
#[derive(Clone)]
pub struct Context {
    features: Arc<FeatureSet>,
    /// Of all views, in their order.
    readers: Arc<[ViewReader]>,
    ready: Ready,
    metrics: PrometheusHandle,
}

/// Where the states of entities are.
#[derive(Debug)]
pub struct Stored {
    pub store: Arc<dyn OnlineStore>,
    /// Partitions of the transactions, and of the stream that is keyed by other entities: where an entity's watermark stands.
    pub card_partitions: u32,
    pub entity_partitions: u32,
    /// Memory for states of each view that were read already.
    pub cache_bytes: u64,
}

impl Context {
    pub fn new(features: Arc<FeatureSet>, stored: &Stored, ready: Ready, metrics: PrometheusHandle) -> Context {
        let reader = |view: &View| {
            let partitions = if view.is_owned() { stored.card_partitions } else { stored.entity_partitions };
            ViewReader::new(view, Arc::clone(&stored.store), partitions, stored.cache_bytes)
        };
        let readers = features.views().iter().map(reader).collect();
        Context { features, readers, ready, metrics }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("features", &self.features).finish_non_exhaustive()
    }
}

/// The routes of a process that answers lookups: those of [`probes`], and
/// - `POST /get-online-features`: Feast's feature lookup
/// - `GET /openapi.json`: what these take and answer
pub fn router(context: Context) -> Router {
    let probes = probes(Arc::clone(&context.ready), context.metrics.clone());
    Router::new()
        .route("/get-online-features", post(lookup::get_online_features))
        .route("/openapi.json", get(openapi::document))
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
        .with_state(context)
        .merge(probes)
}

/// The routes of every process:
/// - `GET /health`: 200 as long as it answers
/// - `GET /ready`: 200 once it does its work, else 503 with the reason
/// - `GET /metrics`: Prometheus text
pub fn probes(ready: Ready, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/ready", get(is_ready).with_state(ready))
        .route("/health", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics_text).with_state(metrics))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
}

/// Serves `router` on `address` until `shutdown` is done; tells the address that was bound (port 0
/// takes a free one) through `bound`.
pub async fn serve(
    address: SocketAddr,
    router: Router,
    bound: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    bound(listener.local_addr()?);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn is_ready(State(ready): State<Ready>) -> (StatusCode, String) {
    match ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics_text(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}
