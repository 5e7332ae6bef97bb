//! `POST /get-online-features`, as Feast's feature server answers it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use feature_store::{FeatureSet, View, WindowState};
use schemas::{EventTime, partition_for_key};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Context;

/// Rows of one request at most; a lookup holds them all in memory.
const ROWS_MAX: usize = 10_000;

/// The body of a lookup.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// `view:feature`, in the order wanted.
    pub features: Vec<String>,
    /// For each entity key, as in `card_id`, one id a row. Numbers are taken as their text.
    pub entities: BTreeMap<String, Vec<Value>>,
    /// Whether features are named `view__feature` in the response.
    #[serde(default)]
    pub full_feature_names: bool,
}

/// The answer: `results` has one entry a name in `metadata.feature_names`, each over all rows.
#[derive(Debug, Serialize)]
pub struct LookupResponse {
    pub metadata: Metadata,
    pub results: Vec<Column>,
}

#[derive(Debug, Serialize)]
pub struct Metadata {
    pub feature_names: Vec<String>,
}

/// One entity key or feature over all rows.
#[derive(Debug, Default, Serialize)]
pub struct Column {
    pub values: Vec<Value>,
    pub statuses: Vec<Status>,
    /// RFC 3339: up to when the value is complete.
    pub event_timestamps: Vec<String>,
}

/// Feast's `FieldStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    Present,
    /// The entity is known, and the value is missing: a mean over no events.
    NullValue,
    /// Nothing is known of the entity.
    NotFound,
    /// The value is older than the view's TTL.
    OutsideMaxAge,
}

impl From<feature_store::Status> for Status {
    fn from(status: feature_store::Status) -> Status {
        match status {
            feature_store::Status::Present => Status::Present,
            feature_store::Status::Null => Status::NullValue,
            feature_store::Status::NotFound => Status::NotFound,
            feature_store::Status::OutsideMaxAge => Status::OutsideMaxAge,
        }
    }
}

/// A request that can't be answered: 4xx with Feast's `detail`, or 500 when the store fails.
#[derive(Debug)]
pub(crate) struct LookupError(StatusCode, String);

impl IntoResponse for LookupError {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "detail": self.1 }))).into_response()
    }
}

fn refused(message: impl Into<String>) -> LookupError {
    LookupError(StatusCode::UNPROCESSABLE_ENTITY, message.into())
}

pub(crate) async fn get_online_features(
    State(context): State<Context>,
    request: Result<Json<LookupRequest>, JsonRejection>,
) -> Result<Json<LookupResponse>, LookupError> {
    let Json(request) = request.map_err(|rejection| LookupError(rejection.status(), rejection.body_text()))?;
    let rows = request.entities.values().map(Vec::len).max().unwrap_or(0);
    if rows == 0 || request.entities.values().any(|ids| ids.len() != rows) {
        return Err(refused("`entities` needs at least one key, with as many ids as every other key"));
    }
    if rows > ROWS_MAX {
        return Err(refused(format!("{rows} rows were asked for, at most {ROWS_MAX} are answered at a time")));
    }
    let wanted = request.features.iter().map(|name| resolve(&context.features, name)).collect::<Result<Vec<_>, _>>()?;

    let mut names = Vec::new();
    let mut results = Vec::new();
    for (key, ids) in &request.entities {
        names.push(key.clone());
        results.push(Column {
            values: ids.clone(),
            statuses: vec![Status::Present; rows],
            event_timestamps: vec![EventTime::from_millis(0).to_string(); rows],
        });
    }
    // One read of the store for each view, however many features and rows.
    let mut views: Vec<(&View, ViewRows)> = Vec::new();
    for &(view, slot) in &wanted {
        let at = match views.iter().position(|(known, _)| known.name() == view.name()) {
            Some(at) => at,
            None => {
                let ids = ids_of(&request, view)?;
                views.push((view, read(&context, view, &ids).await?));
                views.len() - 1
            }
        };
        let name = &context.features.names()[slot];
        names.push(if request.full_feature_names { format!("{}__{name}", view.name()) } else { name.clone() });
        results.push(views[at].1.column(slot));
    }
    Ok(Json(LookupResponse { metadata: Metadata { feature_names: names }, results }))
}

/// The view and slot of `view:feature`.
fn resolve<'a>(features: &'a FeatureSet, name: &str) -> Result<(&'a View, usize), LookupError> {
    let (view_name, feature) =
        name.split_once(':').ok_or_else(|| refused(format!("`{name}` is no feature; write it as `view:feature`")))?;
    let view = features.views().iter().find(|view| view.name() == view_name).ok_or_else(|| {
        let known: Vec<&str> = features.views().iter().map(|view| view.name().as_str()).collect();
        refused(format!("there is no view `{view_name}`; there are: {}", known.join(", ")))
    })?;
    let slot = view.slots().find(|&slot| features.names()[slot] == feature).ok_or_else(|| {
        let known: Vec<&str> = view.slots().map(|slot| features.names()[slot].as_str()).collect();
        refused(format!("view `{view_name}` has no feature `{feature}`; it has: {}", known.join(", ")))
    })?;
    Ok((view, slot))
}

fn ids_of(request: &LookupRequest, view: &View) -> Result<Vec<String>, LookupError> {
    let key = view.entity().to_string();
    let ids =
        request.entities.get(&key).ok_or_else(|| refused(format!("view `{}` is looked up by `{key}`", view.name())))?;
    ids.iter()
        .map(|id| match id {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
            other => Err(refused(format!("`{other}` is no id; ids are texts or whole numbers"))),
        })
        .collect()
}

/// A view's values for all rows of a request.
struct ViewRows {
    /// Of each row, for each slot of the view its value and what that is worth.
    values: Vec<Vec<(usize, f64, Status)>>,
    complete_to: Vec<String>,
}

/// Reads the view as of the event time that its stored states are complete to: what a
/// transaction would be joined with that took place at that moment.
async fn read(context: &Context, view: &View, ids: &[String]) -> Result<ViewRows, LookupError> {
    let failed = |error: feature_store::StoreError| LookupError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let partitions = if view.is_owned() { context.card_partitions } else { context.entity_partitions };
    // Before the states: these are at least as complete then.
    let all: Vec<u32> = (0..partitions).collect();
    let watermarks = context.store.read(view.key(), &[], &all).await.map_err(failed)?.watermarks;
    let complete = watermarks.into_iter().map(|at| at.map_or(EventTime::from_millis(0), |at| at.event_time));
    let complete: Vec<EventTime> = complete.collect();
    let keys: Vec<&str> = ids.iter().map(String::as_str).collect();
    let stored = context.store.read(view.key(), &keys, &[]).await.map_err(failed)?.states;
    let mut rows = ViewRows { values: Vec::new(), complete_to: Vec::new() };
    let mut values = vec![f64::NAN; context.features.width()];
    for (id, stored) in ids.iter().zip(stored) {
        let state = stored.map(|stored| WindowState::decode(&stored.bytes)).transpose().map_err(|error| {
            LookupError(StatusCode::INTERNAL_SERVER_ERROR, format!("the state of `{id}` is damaged: {error}"))
        })?;
        let at = complete[partition_for_key(id.as_bytes(), partitions) as usize];
        view.evaluate(state.as_ref(), at, &mut values);
        let status = |slot: usize| view.status(state.as_ref(), at, slot, values[slot]).into();
        rows.values.push(view.slots().map(|slot| (slot, values[slot], status(slot))).collect());
        rows.complete_to.push(at.to_string());
    }
    Ok(rows)
}

impl ViewRows {
    fn column(&self, slot: usize) -> Column {
        let mut column = Column { event_timestamps: self.complete_to.clone(), ..Column::default() };
        for row in &self.values {
            let Some(&(_, value, status)) = row.iter().find(|(known, ..)| *known == slot) else { continue };
            // What the model would be given instead of a missing value is not what is known.
            column.values.push(if status == Status::Present { json!(value) } else { Value::Null });
            column.statuses.push(status);
        }
        column
    }
}
