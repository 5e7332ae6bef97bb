//! `fraudline admin apply`: topics and the online store's schema, as one file has them.

mod plan;
mod wanted;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use feature_store::CqlStore;
use schemas::topics;
use scorer::log::{Delivery, KafkaLog, Log};

use crate::config::{Config, ConfigArgs, StoreConfig};
use crate::service::runtime;
use plan::{Allowed, Step, Topic};
use wanted::Wanted;

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Show what is to be done, and do it; what would lose data is refused, and then nothing is done at all
    Apply(ApplyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// What topics and store are to be
    #[arg(value_name = "FILE.yaml")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    /// Show the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Retention may become shorter: older records are deleted
    #[arg(long)]
    shorten_retention: bool,
}

pub(crate) fn run(command: &AdminCommand) -> anyhow::Result<()> {
    let AdminCommand::Apply(args) = command;
    let config = args.config.load()?;
    let wanted = Wanted::load(&args.file)?;
    let log = KafkaLog::connect(config.kafka(config.instance(), Delivery::AtLeastOnce))?;
    let allowed = Allowed { shorter_retention: args.shorten_retention };
    let mut steps = Vec::new();
    for name in topics::ALL {
        let current = log.settings(name)?;
        let is_empty = current.is_none() || log.topic(name)?.offsets.iter().all(|kept| kept.end == 0);
        let topic = Topic { name, wanted: wanted.topic(name), current, is_empty };
        steps.push((name, plan::step(&topic, &allowed), topic.wanted));
    }
    for (name, step, _) in &steps {
        println!("{:8} topic {name}{}", step.verb(), step.details());
    }
    if matches!(config.store, StoreConfig::Cql(_)) {
        println!("{:8} store: keyspace and tables, where they are missing", "ensure");
    }
    let refused = steps.iter().filter(|(_, step, _)| matches!(step, Step::Refuse(_))).count();
    anyhow::ensure!(refused == 0, "{refused} of {} topics can't be made so; nothing was done", steps.len());
    if args.dry_run {
        return Ok(());
    }
    for (name, step, settings) in &steps {
        match step {
            Step::Create(_) => log.create(name, settings)?,
            Step::Change { config, partitions, .. } => {
                if !config.is_empty() {
                    log.configure(name, config)?;
                }
                if let Some(partitions) = partitions {
                    log.add_partitions(name, *partitions)?;
                }
            }
            Step::Keep | Step::Refuse(_) => {}
        }
    }
    migrate(&config, &wanted)?;
    println!("applied");
    Ok(())
}

fn migrate(config: &Config, wanted: &Wanted) -> anyhow::Result<()> {
    if let StoreConfig::Cql(options) = &config.store {
        let replication = wanted.store_replication().context("`store.replication`")?;
        let done = runtime()?.block_on(CqlStore::migrate(options.clone(), replication))?;
        for what in done.created {
            println!("created  {what}");
        }
    }
    Ok(())
}
