//! The keyspace and the tables.

use std::fmt;

use scylla::client::session::Session;

use super::failure::Failures;
use crate::store::{Result, StoreError};

/// What a table is called, and its columns.
const TABLES: [(&str, &str); 2] = [
    ("states", "entity_view text, id text, stamp bigint, state blob, PRIMARY KEY ((entity_view, id))"),
    (
        "watermarks",
        "entity_view text, log_partition bigint, log_offset bigint, progress blob, \
         PRIMARY KEY ((entity_view, log_partition))",
    ),
];

/// How many copies of the keyspace's rows there are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CqlReplication {
    /// On so many nodes, wherever they are: for a single datacenter, or for development.
    Simple { factor: u32 },
    /// On so many nodes of each datacenter.
    PerDatacenter(Vec<(String, u32)>),
}

/// What a migration did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// What it created, in order: `keyspace k`, `table k.t`.
    pub created: Vec<String>,
    /// What was there already.
    pub present: Vec<String>,
}

pub(super) async fn migrate(session: &Session, failures: &Failures, replication: &CqlReplication) -> Result<Migration> {
    let keyspace = &failures.keyspace;
    let mut done = Migration::default();
    let exists = async |query: &str, values: Vec<&str>| {
        let answer = session.query_unpaged(query, values).await.map_err(|error| failures.of_execution(&error))?;
        let rows = answer.into_rows_result().map_err(|error| failures.of_answer(&error))?;
        Ok::<bool, StoreError>(rows.rows_num() > 0)
    };
    let mut ensure = async |there: bool, what: String, statement: String| {
        if there {
            done.present.push(what);
            return Ok(());
        }
        // `IF NOT EXISTS`: another migration may be faster.
        session.query_unpaged(statement, ()).await.map_err(|error| match failures.of_execution(&error) {
            StoreError::Refused(reason) => StoreError::Refused(format!(
                "{what} can't be created: {reason}; the user needs CREATE, or someone who has it runs `fraudline store \
                 migrate`"
            )),
            other => other,
        })?;
        done.created.push(what);
        Ok(())
    };
    let query = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let there = exists(query, vec![keyspace]).await?;
    let statement = format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}");
    ensure(there, format!("keyspace {keyspace}"), statement).await?;
    for (table, columns) in TABLES {
        let query = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?";
        let there = exists(query, vec![keyspace, table]).await?;
        // Rows are overwritten again and again, and each is read as a whole.
        let statement = format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.{table} ({columns}) \
             WITH compaction = {{'class': 'LeveledCompactionStrategy'}}"
        );
        ensure(there, format!("table {keyspace}.{table}"), statement).await?;
    }
    Ok(done)
}

/// As CQL has it.
impl fmt::Display for CqlReplication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CqlReplication::Simple { factor } => {
                write!(f, "{{'class': 'SimpleStrategy', 'replication_factor': {factor}}}")
            }
            CqlReplication::PerDatacenter(factors) => {
                f.write_str("{'class': 'NetworkTopologyStrategy'")?;
                for (datacenter, factor) in factors {
                    write!(f, ", '{}': {factor}", datacenter.replace('\'', "''"))?;
                }
                f.write_str("}")
            }
        }
    }
}
