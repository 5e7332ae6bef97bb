//! `fraudline dead-letters replay`: dead letters back to the topics that they came from.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use schemas::{headers, topics};
use scorer::log::{Commit, Consumer, Delivery, Log, Outbox, Polled, Record, TopicPartition};

use crate::config::ConfigArgs;
use crate::service::connect;

/// The consumer group: a dead letter that was passed over or put back is not seen again.
const GROUP: &str = "dead-letters-replay";
/// What Kafka Connect's headers begin with.
const CONNECT: &str = "__connect.errors.";

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// Put dead letters back into their topics, once what was wrong is put right
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only those with this reason, as the header `__connect.errors.exception.class.name` has it;
    /// others are passed over [default: all]
    #[arg(long)]
    reason: Option<String>,
    /// Only those of this topic, as in transactions or labels
    #[arg(long)]
    topic: Option<String>,
    /// Tell what would be put back, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The group that remembers what was seen: under a new name it begins with the first dead letter
    #[arg(long, default_value = GROUP)]
    group: String,
}

/// Counts by topic and reason.
type Counts = BTreeMap<(String, String), u64>;

pub(crate) fn run(command: &DeadLettersCommand) -> anyhow::Result<()> {
    let DeadLettersCommand::Replay(args) = command;
    let config = args.config.load()?;
    let log = connect::kafka(&config, config.kafka(format!("{}-replay", config.instance()), Delivery::ExactlyOnce))?;
    let mut consumer = log.join(&args.group, "0", &[topics::DEAD_LETTERS])?;
    let (mut replayed, mut passed) = (Counts::new(), Counts::new());
    let mut outbox = Outbox::default();
    loop {
        let records = match consumer.poll(topics::DEAD_LETTERS, 1000, Duration::from_millis(200))? {
            Polled::Records(records) => records,
            Polled::Rebalanced { .. } => continue,
            Polled::Revoking(partitions) => {
                consumer.release(&partitions)?;
                continue;
            }
        };
        if records.is_empty() && is_through(&*log, &mut *consumer)? {
            break;
        }
        let mut offsets: BTreeMap<TopicPartition, u64> = BTreeMap::new();
        for record in records {
            let partition = TopicPartition { topic: topics::DEAD_LETTERS.to_owned(), partition: record.partition };
            offsets.insert(partition, record.offset + 1);
            let of = |name: &str| header(&record, name).unwrap_or_default();
            let (topic, reason) = (of(headers::TOPIC), of(headers::EXCEPTION_CLASS_NAME));
            let wanted = args.reason.as_ref().is_none_or(|wanted| *wanted == reason)
                && args.topic.as_ref().is_none_or(|wanted| *wanted == topic)
                && !topic.is_empty();
            if wanted {
                put_back(&mut outbox, &topic, &record);
            }
            *(if wanted { &mut replayed } else { &mut passed }).entry((topic, reason)).or_default() += 1;
        }
        if !args.dry_run {
            let offsets: Vec<(TopicPartition, u64)> = offsets.into_iter().collect();
            let commit = Commit { outputs: &outbox, offsets: &offsets, metadata: "", checkpoint: None };
            consumer.commit(&commit).context("putting dead letters back; run it again, nothing is repeated")?;
        }
        outbox.clear();
    }
    let verb = if args.dry_run { "would be put back" } else { "put back" };
    for (counts, what) in [(replayed, verb), (passed, "passed over")] {
        for ((topic, reason), count) in counts {
            println!("{count} {what}: {topic} {reason}");
        }
    }
    Ok(())
}

/// Whether every dead letter was seen; a member has its partitions a while after it joined.
fn is_through(log: &dyn Log, consumer: &mut dyn Consumer) -> anyhow::Result<bool> {
    let reached = consumer.reached(topics::DEAD_LETTERS, &log.ends(topics::DEAD_LETTERS)?)?;
    Ok(!reached.is_empty() && reached.into_iter().all(|(_, reached)| reached))
}

fn header(record: &Record, name: &str) -> Option<String> {
    let (_, value) = record.headers.iter().find(|(known, _)| known == name)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Key, value, time and headers as they were, without those that told what was wrong.
fn put_back(outbox: &mut Outbox, topic: &str, record: &Record) {
    let headers = record.headers.iter().filter(|(name, _)| !name.starts_with(CONNECT)).cloned().collect();
    outbox.push_with(topic, None, &record.key, record.timestamp_us, headers, |out| {
        out.extend_from_slice(&record.value);
    });
}
