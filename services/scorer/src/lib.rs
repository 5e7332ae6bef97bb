//! The scorer: `ingest → join → assemble → score → emit`.

pub mod log;
