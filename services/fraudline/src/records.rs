//! Records as JSON, for people: from an open data directory, or over HTTP from the process that
//! has it open.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use scorer::log::{Log, LogError, Record, TopicPartition};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A record as `fraudline tail` prints it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RecordLine {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    /// When it was appended, in milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
    pub(crate) key: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    /// The value as JSON where it is that, else as text.
    pub(crate) value: Value,
}

impl From<&Record> for RecordLine {
    fn from(record: &Record) -> RecordLine {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        RecordLine {
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp_us / 1000,
            key: text(&record.key),
            headers: record.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            value: serde_json::from_slice(&record.value).unwrap_or_else(|_| Value::String(text(&record.value))),
        }
    }
}

/// Some records of a topic in the order of their timestamps, and where to go on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) records: Vec<RecordLine>,
    /// For each partition the offset of the next record.
    pub(crate) next: Vec<u64>,
}

/// Where a page begins.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PageQuery {
    /// Offsets by partition, separated by commas; `beginning` or `end` for all.
    pub(crate) from: String,
}

/// Records of a page at most.
const PAGE_RECORDS_MAX: usize = 1000;

/// The next page of a topic.
pub(crate) fn page(log: &dyn Log, topic: &str, from: &str) -> anyhow::Result<Page> {
    let offsets = log.topic(topic)?.offsets;
    let mut next: Vec<u64> = match from {
        "beginning" => offsets.iter().map(|kept| kept.start).collect(),
        "end" => offsets.iter().map(|kept| kept.end).collect(),
        list => list.split(',').map(str::parse).collect::<Result<_, _>>()?,
    };
    anyhow::ensure!(next.len() == offsets.len(), "`{topic}` has {} partitions; name an offset for each", offsets.len());
    let mut records = Vec::new();
    for (partition, next) in next.iter_mut().enumerate() {
        // What retention took meanwhile is passed over.
        *next = (*next).max(offsets[partition].start);
        let partition = TopicPartition { topic: topic.to_owned(), partition: partition as u32 };
        records.extend(log.read(&partition, *next, PAGE_RECORDS_MAX / offsets.len().max(1) + 1)?);
    }
    records.sort_by_key(|record| record.timestamp_us);
    for record in &records {
        next[record.partition as usize] = next[record.partition as usize].max(record.offset + 1);
    }
    Ok(Page { records: records.iter().map(RecordLine::from).collect(), next })
}

/// `GET /topics/{topic}/records?from=…`
pub(crate) async fn get_page(
    State(log): State<Arc<dyn Log>>,
    Path(topic): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page>, (StatusCode, String)> {
    let page = tokio::task::spawn_blocking(move || page(&*log, &topic, &query.from)).await;
    let page = page.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    page.map(Json).map_err(|error| {
        let unknown = matches!(error.downcast_ref(), Some(LogError::UnknownTopic(_)));
        (if unknown { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST }, format!("{error:#}"))
    })
}
