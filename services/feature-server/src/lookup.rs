//! `POST /get-online-features`, as Feast's feature server answers it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use feature_store::{UnknownFeature, View, ViewFeature, ViewReader, ViewState};
use schemars::JsonSchema;
use schemas::{EventTime, Id};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::Context;
use crate::error::LookupError;
use crate::metrics;
use crate::request::{LookupRequest, ids_of};

/// Rows of one request at most; a lookup holds them all in memory.
const ROWS_MAX: usize = 10_000;
/// How old what is known of a view's progress is meant to be, see [`ViewReader::latest`]; a lookup reads nothing else twice.
const PROGRESS_AGE: Duration = Duration::from_millis(100);
/// About what a value takes in an answer, with its status and time.
const VALUE_BYTES: usize = 64;
/// Feast's time of a column that has none, and of an entity that is not known.
const NO_TIME: &str = "1970-01-01T00:00:00Z";

/// The answer: `results` has one entry a name in `metadata.feature_names`, each over all rows.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LookupResponse<'a> {
    pub(crate) metadata: Metadata<'a>,
    pub(crate) results: Vec<Column<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Metadata<'a> {
    pub(crate) feature_names: Vec<Cow<'a, str>>,
    pub(crate) feature_view_metadata: Vec<ViewMetadata<'a>>,
}

/// A view that was read, and how far behind it is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ViewMetadata<'a> {
    pub(crate) name: &'a str,
    /// Feast's number of a version of the view; there is only one.
    pub(crate) version: u32,
    /// RFC 3339: the event time that every row is complete to; none if there are no rows, or nothing was written yet.
    pub(crate) complete_to: Option<String>,
    /// How long ago that was.
    pub(crate) staleness_seconds: Option<f64>,
    /// How far behind event time the scorer reads the view at most; 0 for what it keeps itself.
    pub(crate) staleness_max_seconds: f64,
}

/// One entity key or feature over all rows.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Column<'a> {
    pub(crate) values: Values<'a>,
    #[schemars(with = "Vec<Status>")]
    pub(crate) statuses: &'a RawValue,
    /// RFC 3339: the event time that the value is as of.
    #[schemars(with = "Vec<String>")]
    pub(crate) event_timestamps: &'a RawValue,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Values<'a> {
    Ids(&'a [Value]),
    Numbers(&'a [Option<f64>]),
}

/// Feast's `FieldStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Status {
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

pub(crate) async fn get_online_features(State(context): State<Context>, body: Bytes) -> Response {
    let started = Instant::now();
    let answer = answer(&context, &body).await;
    metrics::answered(started.elapsed(), answer.as_ref().err().map(LookupError::status));
    match answer {
        Ok(json) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => error.into_response(),
    }
}

/// The views of a request, each with its features and what was read of it.
struct ViewRows<'a> {
    view: &'a View,
    reader: &'a ViewReader,
    features: Vec<ViewFeature>,
    states: Vec<Arc<ViewState>>,
    /// Of each row, what the values are as of.
    at: Vec<EventTime>,
    /// Of each feature, its values, and which of the texts goes with them.
    columns: Vec<(Vec<Option<f64>>, usize)>,
    texts: Vec<Texts>,
}

/// Statuses and times of a column as JSON: most columns of a view have the same, and they are most of an answer.
struct Texts {
    of: Vec<Status>,
    statuses: Box<RawValue>,
    times: Box<RawValue>,
}

impl Texts {
    fn new(of: Vec<Status>, times: &[impl AsRef<str>]) -> Result<Texts, LookupError> {
        let known = |(status, time): (&Status, _)| if *status == Status::NotFound { NO_TIME } else { time };
        let times: Vec<&str> = of.iter().zip(times.iter().map(AsRef::as_ref)).map(known).collect();
        let (statuses, times) = (to_raw_value(&of)?, to_raw_value(&times)?);
        Ok(Texts { of, statuses, times })
    }
}

async fn answer(context: &Context, body: &[u8]) -> Result<Vec<u8>, LookupError> {
    let request = LookupRequest::parse(body)?;
    let wanted = wanted(context, &request)?;
    let rows = request.entities.first().map_or(0, |(_, ids)| ids.len());
    if request.entities.iter().any(|(_, ids)| ids.len() != rows) {
        return Err(LookupError::refused("All entity rows must have the same columns."));
    }
    if rows > ROWS_MAX {
        let message = format!("{rows} rows were asked for, at most {ROWS_MAX} are answered at a time");
        return Err(LookupError::refused(message));
    }
    // As Feast does: by view, in the order in which the views are named first.
    let mut views: Vec<ViewRows<'_>> = Vec::new();
    for feature in wanted {
        let view = &context.features.views()[feature.view];
        match views.iter_mut().find(|known| known.view.name() == view.name()) {
            Some(known) => known.features.push(feature),
            None => views.push(ViewRows {
                view,
                reader: &context.readers[feature.view],
                features: vec![feature],
                states: Vec::new(),
                at: Vec::new(),
                columns: Vec::new(),
                texts: Vec::new(),
            }),
        }
    }
    for rows in &mut views {
        let ids = ids_of(&request, rows.view)?;
        rows.read(context, &ids, request.at).await?;
        rows.evaluate(context.features.width())?;
    }
    let keys = Texts::new(vec![Status::Present; rows], &vec![NO_TIME; rows])?;
    let response = respond(context, &request, &keys, &views)?;
    let mut json = Vec::with_capacity(VALUE_BYTES * (rows + 1) * (response.results.len() + 1));
    serde_json::to_writer(&mut json, &response)?;
    Ok(json)
}

fn wanted(context: &Context, request: &LookupRequest) -> Result<Vec<ViewFeature>, LookupError> {
    let features = &context.features;
    if let Some(service) = &request.feature_service {
        let found = features.feature_service(service).ok_or_else(|| {
            let known: Vec<&str> = features.feature_services().collect();
            LookupError::unknown_service(service, &known)
        })?;
        return Ok(found.to_vec());
    }
    if request.features.is_empty() {
        return Err(LookupError::refused("No features specified for retrieval"));
    }
    let resolve = |name: &String| {
        let Some((view, feature)) = name.split_once(':') else {
            let message = format!("Invalid feature reference '{name}'. Expected format: '<feature_view>:<feature>'");
            return Err(LookupError::refused(message));
        };
        features.view_feature(view, feature).map_err(|unknown| match unknown {
            UnknownFeature::View => {
                let known: Vec<&str> = features.views().iter().map(|view| view.name().as_str()).collect();
                LookupError::unknown_view(view, &known)
            }
            UnknownFeature::Feature => {
                let known = features.views().iter().filter(|known| known.name() == view).flat_map(View::slots);
                let known: Vec<&str> = known.map(|slot| features.names()[slot].as_str()).collect();
                let message = format!("Feature {feature} not found in projection {view}; it has: {}", known.join(", "));
                LookupError::refused(message)
            }
        })
    };
    request.features.iter().map(resolve).collect()
}

impl ViewRows<'_> {
    /// Reads the view: as of the event time that it is complete to, what a transaction would be joined with that took place at that
    /// moment; or as of `at`, where the states still have all that was known then.
    async fn read(&mut self, context: &Context, ids: &[Id], at: Option<EventTime>) -> Result<(), LookupError> {
        self.states = self.reader.latest(ids, PROGRESS_AGE).await.map_err(LookupError::from)?;
        metrics::read(self.view, self.reader.take_counts());
        let lateness = context.features.allowed_lateness();
        for state in &self.states {
            let complete_to = state.complete_to.max(EventTime::from_millis(0));
            if let Some(at) = at
                && !(complete_to - lateness..=complete_to).contains(&at)
            {
                return Err(LookupError::refused(format!(
                    "view `{}` answers as of {} to {complete_to}, not as of {at}; `fraudline features backfill --from-log` has the \
                     values of every transaction",
                    self.view.name(),
                    complete_to - lateness
                )));
            }
            self.at.push(at.unwrap_or(complete_to));
        }
        Ok(())
    }

    fn metadata(&self) -> ViewMetadata<'_> {
        let complete_to = self.states.iter().map(|state| state.complete_to).min();
        let complete_to = complete_to.filter(|&time| time > EventTime::MIN);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        ViewMetadata {
            name: self.view.name(),
            version: 1,
            complete_to: complete_to.map(|time| time.to_string()),
            staleness_seconds: complete_to.map(|time| now.saturating_sub(time.as_millis()) as f64 / 1000.0),
            staleness_max_seconds: self.view.staleness().as_secs_f64(),
        }
    }

    fn evaluate(&mut self, width: usize) -> Result<(), LookupError> {
        let rows = self.states.len();
        let mut columns = vec![(Vec::with_capacity(rows), Vec::with_capacity(rows)); self.features.len()];
        let (mut values, mut statuses) = (vec![f64::NAN; width], vec![feature_store::Status::NotFound; width]);
        for (state, &at) in self.states.iter().zip(&self.at) {
            self.view.look_up(state.state.as_ref(), at, &mut values, &mut statuses);
            for ((numbers, of), feature) in columns.iter_mut().zip(&self.features) {
                let status = Status::from(statuses[feature.slot]);
                // What the model would be given instead of a missing value is not what is known.
                numbers.push((status == Status::Present).then_some(values[feature.slot]));
                of.push(status);
            }
        }
        let times: Vec<String> = self.at.iter().map(ToString::to_string).collect();
        for (numbers, of) in columns {
            let texts = match self.texts.iter().position(|texts| texts.of == of) {
                Some(texts) => texts,
                None => {
                    self.texts.push(Texts::new(of, &times)?);
                    self.texts.len() - 1
                }
            };
            self.columns.push((numbers, texts));
        }
        Ok(())
    }
}

fn respond<'a>(
    context: &'a Context,
    request: &'a LookupRequest,
    keys: &'a Texts,
    views: &'a [ViewRows<'a>],
) -> Result<LookupResponse<'a>, LookupError> {
    let mut feature_names: Vec<Cow<'a, str>> = Vec::new();
    let mut results = Vec::new();
    for (key, ids) in &request.entities {
        // Keys that no view is looked up by are passed over.
        if !views.iter().any(|rows| rows.view.entity().to_string() == *key) {
            continue;
        }
        feature_names.push(key.into());
        results.push(Column { values: Values::Ids(ids), statuses: &keys.statuses, event_timestamps: &keys.times });
    }
    for rows in views {
        for feature in &rows.features {
            let name = &context.features.names()[feature.slot];
            feature_names.push(match request.full_feature_names {
                true => format!("{}__{name}", rows.view.name()).into(),
                false => name.into(),
            });
        }
        results.extend(rows.columns.iter().map(|(numbers, texts)| {
            let Texts { statuses, times, .. } = &rows.texts[*texts];
            Column { values: Values::Numbers(numbers), statuses, event_timestamps: times }
        }));
    }
    let mut seen = HashSet::with_capacity(feature_names.len());
    if let Some(name) = feature_names.iter().map(Cow::as_ref).find(|&name| !seen.insert(name)) {
        return Err(LookupError::collision(name));
    }
    let feature_view_metadata = views.iter().map(ViewRows::metadata).collect();
    Ok(LookupResponse { metadata: Metadata { feature_names, feature_view_metadata }, results })
}
