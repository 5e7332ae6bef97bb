//! `fraudline model list` and `show`.

use clap::Args;
use models::{Artifact, Registry};
use serde_json::json;

use super::{RegistryArgs, described};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this model's versions
    name: Option<String>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// NAME@VERSION, NAME@ALIAS, or NAME for its champion
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let registry = args.registry.open()?;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => registry.names()?,
    };
    if !args.json {
        println!("{:<32} {:>10} {:>8} {:>10}  {:<12} aliases", "model", "AP", "AUC", "threshold", "layout");
    }
    for name in names {
        for version in registry.versions(&name)? {
            let aliases = aliases_at(&registry, &name, &version)?;
            let label = format!("{name}@{version}");
            match registry.load(&name, &version) {
                Ok(artifact) if args.json => println!("{}", summary(&artifact, &aliases)),
                Ok(artifact) => {
                    let validation = &artifact.metrics().validation;
                    println!(
                        "{label:<32} {:>10.4} {:>8.4} {:>10.4}  {:<12} {}",
                        validation.average_precision,
                        validation.auc,
                        artifact.threshold(),
                        &artifact.layout().hash()[..12],
                        aliases.join(" "),
                    );
                }
                Err(error) if args.json => {
                    println!("{}", json!({ "model": label, "aliases": aliases, "damaged": error.to_string() }));
                }
                Err(error) => println!("{label:<32} DAMAGED  {error}"),
            }
        }
    }
    Ok(())
}

pub(super) fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let registry = args.registry.open()?;
    let (name, version) = registry.resolve(&args.model)?;
    let artifact = registry.load(&name, &version)?;
    let aliases = aliases_at(&registry, &name, &version)?;
    let all = registry.aliases(&name)?;
    if args.json {
        let mut shown = summary(&artifact, &aliases);
        shown["metrics"] = json!(artifact.metrics());
        shown["features"] = json!(artifact.layout().features());
        shown["history"] = json!(all.history());
        println!("{shown:#}");
        return Ok(());
    }
    let metrics = artifact.metrics();
    let validation = &metrics.validation;
    println!("{} in {}", artifact.label(), registry.root().join(&name).join(&version).display());
    println!("aliases      {}", if aliases.is_empty() { "none".to_owned() } else { aliases.join(" ") });
    println!("features     {}, layout {}", artifact.layout().width(), artifact.layout().hash());
    for at in artifact.thresholds() {
        println!(
            "threshold    {:.4} alerts {:.3} % of the transactions{}",
            at.threshold,
            100.0 * at.alert_share,
            if at.alert_budget == artifact.alert_budget() { " (used)" } else { "" }
        );
    }
    println!("trained on   {} transactions, {} frauds", metrics.training_rows, metrics.training_positives);
    println!(
        "validation   AUC {:.4}, average precision {:.4}, precision {:.3}, recall {:.3} ({} transactions, {} frauds)",
        validation.auc,
        validation.average_precision,
        validation.precision,
        validation.recall,
        validation.count,
        validation.positives
    );
    println!("moves of {name}'s aliases, newest first:");
    for made in all.history().iter().rev().take(20) {
        println!("  {}  {}", made.time, described(made));
    }
    Ok(())
}

fn summary(artifact: &Artifact, aliases: &[String]) -> serde_json::Value {
    json!({
        "model": artifact.label(),
        "aliases": aliases,
        "threshold": artifact.threshold(),
        "thresholds": artifact.thresholds(),
        "feature_layout": artifact.layout().hash(),
        "validation": artifact.metrics().validation,
    })
}

fn aliases_at(registry: &Registry, name: &str, version: &str) -> anyhow::Result<Vec<String>> {
    let aliases = registry.aliases(name)?;
    let here = aliases.iter().filter(|(_, alias)| alias.version == version);
    Ok(here.map(|(name, _)| name.to_owned()).collect())
}
