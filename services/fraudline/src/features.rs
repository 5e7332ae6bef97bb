//! `fraudline features`: what a definition file says.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use feature_store::{DefinitionError, FeatureSet};

#[derive(Debug, Subcommand)]
pub(crate) enum FeaturesCommand {
    /// Say what is wrong with a definition file, where, and what would be right
    Check(FileArgs),
    /// Print the vector, the views, their memory, and what a scoring reads
    Show(FileArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// Feature definitions [default: the Handbook's]
    #[arg(value_name = "FILE.yaml")]
    file: Option<PathBuf>,
}

pub(crate) fn run(command: &FeaturesCommand) -> anyhow::Result<()> {
    match command {
        FeaturesCommand::Check(FileArgs { file }) => {
            let features = load(file.as_deref())?;
            println!("ok: {} features in {} views", features.width(), features.views().len());
        }
        FeaturesCommand::Show(FileArgs { file }) => print!("{}", load(file.as_deref())?.describe()),
    }
    Ok(())
}

fn load(file: Option<&Path>) -> Result<FeatureSet, DefinitionError> {
    file.map_or_else(|| Ok(FeatureSet::bundled()), FeatureSet::load)
}
