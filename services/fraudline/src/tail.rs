//! `fraudline tail`: the records of a topic as JSON lines.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use scorer::log::{Delivery, EmbeddedLog, EmbeddedOptions, KafkaLog, Log, LogError};

use crate::config::ConfigArgs;
use crate::records::{Page, page};
use crate::up::RUNNING_FILE;

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// transactions, labels, profiles, scores, challenger-scores, alerts, dead-letters, or what `fraudline replay` wrote
    topic: String,
    /// Data directory to read; without it, a running `fraudline up` is asked at --url
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where a running `fraudline up` listens
    #[arg(long, default_value = "http://127.0.0.1:6566", conflicts_with = "data_dir")]
    url: String,
    /// Read Kafka, as the configuration has it (`--config`, `FRAUDLINE__KAFKA__BROKERS`)
    #[arg(long, conflicts_with_all = ["data_dir", "url"])]
    kafka: bool,
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to begin
    #[arg(long, value_enum)]
    from: Option<Begin>,
    /// Go on with what comes
    #[arg(long)]
    follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Begin {
    Beginning,
    End,
}

enum Source {
    Log(std::sync::Arc<dyn Log>),
    Http(String),
}

pub(crate) fn run(args: &TailArgs) -> anyhow::Result<()> {
    let source = open(args)?;
    // Without --follow the end is of no use.
    let begin = args.from.unwrap_or(if args.follow { Begin::End } else { Begin::Beginning });
    let mut from = if begin == Begin::Beginning { "beginning".to_owned() } else { "end".to_owned() };
    let mut out = BufWriter::new(std::io::stdout().lock());
    loop {
        let page = source.page(&args.topic, &from)?;
        for record in &page.records {
            let line = serde_json::to_string(record)?;
            match writeln!(out, "{line}") {
                // The reader has seen enough, as `head` does.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
        from = page.next.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        if page.records.is_empty() {
            match out.flush() {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                flushed => flushed?,
            }
            if !args.follow {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn open(args: &TailArgs) -> anyhow::Result<Source> {
    if args.kafka || args.config.config.is_some() {
        let config = args.config.load()?;
        let log = KafkaLog::connect(config.kafka(config.instance(), Delivery::AtLeastOnce))?;
        return Ok(Source::Log(std::sync::Arc::new(log)));
    }
    let Some(dir) = &args.data_dir else { return Ok(Source::Http(args.url.clone())) };
    anyhow::ensure!(dir.is_dir(), "there is no data directory {}", dir.display());
    match EmbeddedLog::open(dir, EmbeddedOptions::default()) {
        Ok(log) => Ok(Source::Log(log)),
        // A running `fraudline up` has it; it notes where it listens.
        Err(LogError::InUse(_)) => {
            let note = dir.join(RUNNING_FILE);
            let url = std::fs::read_to_string(&note).with_context(|| {
                format!(
                    "{} is in use by another process, and {} does not say where it listens",
                    dir.display(),
                    note.display()
                )
            })?;
            Ok(Source::Http(url.trim().to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

impl Source {
    fn page(&self, topic: &str, from: &str) -> anyhow::Result<Page> {
        match self {
            Source::Log(log) => page(&**log, topic, from),
            Source::Http(url) => {
                let url = format!("{url}/topics/{topic}/records?from={from}");
                let mut response = ureq::get(&url).call().with_context(|| {
                    format!("asking {url}; is `fraudline up` running there? Else name its --data-dir")
                })?;
                Ok(serde_json::from_str(&response.body_mut().with_config().limit(64 << 20).read_to_string()?)?)
            }
        }
    }
}
