//! `fraudline model`: the registry, from a model owner's side.

mod compare;
mod list;
mod mlflow;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Args, Subcommand};
use feature_store::FeatureSet;
use models::{CHAMPION, Device, LayoutCheck, Move, MoveKind, Registry};
use schemas::EventTime;

use crate::config::{ConfigArgs, ModelConfig};

/// Which model is served, by flags.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model artifact [default: the one in the binary]
    #[arg(long = "model", value_name = "DIR", conflicts_with = "registry")]
    path: Option<PathBuf>,
    /// Serve what an alias of this registry stands at, and follow its moves
    #[arg(long, value_name = "DIR", requires = "model_name")]
    registry: Option<PathBuf>,
    /// Of the model in the registry
    #[arg(long, value_name = "NAME", requires = "registry")]
    model_name: Option<String>,
    #[arg(long, default_value = CHAMPION, requires = "registry")]
    alias: String,
    /// Alias of a model that scores beside it, into the topic challenger-scores
    #[arg(long, value_name = "ALIAS", requires = "registry")]
    challenger: Option<String>,
    /// How often the registry is looked at
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    poll_interval: Duration,
    /// Alert at the threshold of this one of the model's alert budgets, as in 0.01 [default: the model's own]
    #[arg(long, value_name = "SHARE", conflicts_with = "registry")]
    alert_budget: Option<f64>,
    /// auto, cpu or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
}

impl ModelArgs {
    pub(crate) fn config(&self) -> ModelConfig {
        ModelConfig {
            path: self.path.clone(),
            registry: self.registry.clone(),
            name: self.model_name.clone(),
            alias: self.alias.clone(),
            challenger: self.challenger.clone(),
            poll_interval: self.poll_interval,
            alert_budget: self.alert_budget,
            device: self.device.to_string(),
            ..ModelConfig::default()
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Print all versions, how good they were on validation, and the aliases that stand at them
    List(list::ListArgs),
    /// Print a version, and the moves of its model's aliases
    Show(list::ShowArgs),
    /// Compare what a challenger said with what the champion did
    Compare(compare::CompareArgs),
    /// Take a model in: a trained one's folder, or one of MLflow's registry or of Hugging Face
    #[command(visible_alias = "import")]
    Add(AddArgs),
    /// Let an alias stand at a version: scorers that follow it swap to that one without a pause
    Promote(PromoteArgs),
    /// Let an alias stand where it stood before its last promotion
    Rollback(RollbackArgs),
    /// Take an alias away, as of a challenger that is none any more
    Retire(RollbackArgs),
}

/// Where the registry is.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// Folder of the registry [default: `model.registry` of the configuration]
    #[arg(long, value_name = "DIR", env = "FRAUDLINE_REGISTRY")]
    registry: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl RegistryArgs {
    pub(crate) fn open(&self) -> anyhow::Result<Registry> {
        let registry = match &self.registry {
            Some(registry) => Some(registry.clone()),
            None => self.config.load()?.model.registry,
        };
        let registry =
            registry.context("no registry is named: say --registry DIR, or `model.registry` in the configuration")?;
        Ok(Registry::open(&registry)?)
    }
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Folder of the artifact, a Hugging Face cache folder that holds it, or models:/NAME/VERSION or models:/NAME@ALIAS of
    /// MLflow's registry
    #[arg(value_name = "DIR|MODEL_URI")]
    source: String,
    /// MLflow's server, for models:/
    #[arg(long, value_name = "URL", env = "MLFLOW_TRACKING_URI")]
    mlflow: Option<String>,
    /// Name and version in the registry [default: those that it was trained under, or has in MLflow]
    #[arg(long = "as", value_name = "NAME@VERSION")]
    label: Option<String>,
    /// Let this alias stand at it, too
    #[arg(long)]
    alias: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// NAME@VERSION, or NAME@ALIAS for the version that another alias stands at
    #[arg(value_name = "NAME@VERSION")]
    model: String,
    #[arg(long, default_value = CHAMPION)]
    alias: String,
    /// Check against these definitions instead of the version that is replaced
    #[arg(long, value_name = "FILE.yaml", conflicts_with = "layout_change")]
    features: Option<PathBuf>,
    /// Promote a version of another feature layout: scorers go on with the old one until they start with its definitions
    #[arg(long)]
    layout_change: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    name: String,
    #[arg(long, default_value = CHAMPION)]
    alias: String,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) fn run(command: &ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::List(args) => list::list(args),
        ModelCommand::Show(args) => list::show(args),
        ModelCommand::Compare(args) => compare::compare(args),
        ModelCommand::Add(args) => add(args),
        ModelCommand::Promote(args) => promote(args),
        ModelCommand::Rollback(args) => {
            let made = args.registry.open()?.rollback(&args.name, &args.alias, now())?;
            told(&args.name, &made);
            Ok(())
        }
        ModelCommand::Retire(args) => {
            let made = args.registry.open()?.remove_alias(&args.name, &args.alias, now())?;
            told(&args.name, &made);
            Ok(())
        }
    }
}

fn add(args: &AddArgs) -> anyhow::Result<()> {
    let registry = args.registry.open()?;
    let label = args.label.as_deref().map(|label| {
        label.split_once('@').with_context(|| format!("`{label}` is no name and version; write it as in fraud@3"))
    });
    let label = label.transpose()?;
    let added = match args.source.starts_with(mlflow::SCHEME) {
        true => {
            let server =
                args.mlflow.as_deref().context("name MLflow's server: --mlflow URL, or MLFLOW_TRACKING_URI")?;
            let scratch = tempfile::tempdir().context("making a temporary folder")?;
            let uri = args.source.parse()?;
            let found = mlflow::Mlflow::new(server)?.download(&uri, &scratch.path().join("model"))?;
            registry.add(&found.folder, label.or(Some((&found.name, &found.version))))?
        }
        false => registry.add(Path::new(&args.source), label)?,
    };
    println!("added {added}");
    if let Some(alias) = &args.alias {
        let (name, version) = registry.resolve(&added)?;
        told(&name, &registry.promote(&name, &version, alias, LayoutCheck::Replaced, now())?);
    }
    Ok(())
}

fn promote(args: &PromoteArgs) -> anyhow::Result<()> {
    let registry = args.registry.open()?;
    let (name, version) = registry.resolve(&args.model)?;
    let features = args.features.as_deref().map(FeatureSet::load).transpose()?;
    let layout = match &features {
        Some(features) => LayoutCheck::Features(features.layout()),
        None if args.layout_change => LayoutCheck::None,
        None => LayoutCheck::Replaced,
    };
    told(&name, &registry.promote(&name, &version, &args.alias, layout, now())?);
    Ok(())
}

fn told(name: &str, made: &Move) {
    println!("{name}: {}", described(made));
}

/// What a move did.
fn described(made: &Move) -> String {
    let Move { alias, from, to, generation, .. } = made;
    let verb = match made.kind {
        MoveKind::Promoted => "promoted",
        MoveKind::RolledBack => "rolled back",
        MoveKind::Removed => "taken away",
    };
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
    format!("{alias} {verb}, {} -> {} (generation {generation})", version(from), version(to))
}

fn now() -> EventTime {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_millis(since_epoch.as_millis() as i64)
}
