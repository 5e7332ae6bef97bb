//! `fraudline features`: what a definition file says, and what it may say.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use feature_store::{DefinitionError, FeatureSet};

#[derive(Debug, Subcommand)]
pub(crate) enum FeaturesCommand {
    /// Say what is wrong with a definition file, where, and what would be right
    Check(FileArgs),
    /// Print the vector, the views, their memory, and what a scoring reads
    Show(FileArgs),
    /// Print the JSON Schema of definition files, for editors
    Schema,
    /// Print the reference page of definition files, in Markdown
    Reference,
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
            let views = features.views().iter().map(|view| format!(", view {} by {}", view.name(), view.entity()));
            let views: String = views.collect();
            println!("ok: {} features{views}, layout {}", features.width(), features.layout().hash());
        }
        FeaturesCommand::Show(FileArgs { file }) => print!("{}", load(file.as_deref())?.describe()),
        FeaturesCommand::Schema => print!("{}", feature_store::schema()),
        FeaturesCommand::Reference => print!("{}", feature_store::reference()),
    }
    Ok(())
}

fn load(file: Option<&Path>) -> Result<FeatureSet, DefinitionError> {
    file.map_or_else(|| Ok(FeatureSet::bundled()), FeatureSet::load)
}
