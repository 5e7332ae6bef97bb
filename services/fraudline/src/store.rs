//! `fraudline store migrate`: the online store's schema.

use clap::{Args, Subcommand};
use feature_store::{CqlReplication, CqlStore};

use crate::config::{ConfigArgs, StoreConfig};
use crate::service::runtime;

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Create what the online store lacks; what is there stays as it is
    Migrate(MigrateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Copies of each row: a number, or one for each datacenter as in dc1=3,dc2=3
    #[arg(long, default_value = "3", value_parser = replication)]
    replication: CqlReplication,
}

pub(crate) fn replication(text: &str) -> Result<CqlReplication, String> {
    let wrong = || format!("`{text}` is no replication; write a number, or dc1=3,dc2=3");
    if let Ok(factor) = text.parse() {
        return Ok(CqlReplication::Simple { factor });
    }
    let of = |part: &str| {
        let (datacenter, factor) = part.split_once('=').ok_or_else(wrong)?;
        Ok((datacenter.to_owned(), factor.parse().map_err(|_| wrong())?))
    };
    text.split(',').map(of).collect::<Result<_, _>>().map(CqlReplication::PerDatacenter)
}

pub(crate) fn run(command: &StoreCommand) -> anyhow::Result<()> {
    let StoreCommand::Migrate(args) = command;
    match args.config.load()?.store {
        StoreConfig::Redis(_) => println!("Redis needs no schema."),
        StoreConfig::Cql(options) => {
            let done = runtime()?.block_on(CqlStore::migrate(options, args.replication.clone()))?;
            for what in done.created {
                println!("created  {what}");
            }
            for what in done.present {
                println!("present  {what}");
            }
        }
    }
    Ok(())
}
