//! Transactions in Parquet files of the Handbook's layout.

mod column;
mod labels;
mod read;
mod write;

pub use labels::read_labels;
pub use read::ParquetSource;
pub use write::{Partial, write_parquet};

const TRANSACTION_ID: &str = "TRANSACTION_ID";
const TX_DATETIME: &str = "TX_DATETIME";
const CUSTOMER_ID: &str = "CUSTOMER_ID";
const TERMINAL_ID: &str = "TERMINAL_ID";
const TX_AMOUNT: &str = "TX_AMOUNT";
const TX_TIME_SECONDS: &str = "TX_TIME_SECONDS";
const TX_TIME_DAYS: &str = "TX_TIME_DAYS";
const LABEL_DATETIME: &str = "LABEL_DATETIME";
const TX_FRAUD: &str = "TX_FRAUD";
const TX_FRAUD_SCENARIO: &str = "TX_FRAUD_SCENARIO";

#[cfg(test)]
mod tests;
