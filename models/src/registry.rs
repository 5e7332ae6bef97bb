//! The registry: a folder of models, `NAME/VERSION/`, and for each name the aliases that say which version serves.
//!
//! It needs nothing of its file system but that a file can be created only once, and renamed: a folder on a disk will do, and
//! so does an object store that is mounted. Versions are never changed once they stand; what changes is `NAME/aliases.json`,
//! one move after another.

mod aliases;
mod files;

use std::{
    fs,
    path::{Path, PathBuf},
};

use schemas::{EventTime, FeatureLayout};

pub use aliases::{Alias, Aliases, Move, MoveKind};

use crate::{Artifact, ModelError, artifact::check_name};
use files::{Lock, copy_folder, replace};

/// The alias that scorers follow unless they are told another.
pub const CHAMPION: &str = "champion";

const ALIASES: &str = "aliases.json";

/// A folder of models.
#[derive(Clone, Debug)]
pub struct Registry {
    root: PathBuf,
}

/// What a promotion is checked against.
#[derive(Clone, Copy, Debug)]
pub enum LayoutCheck<'a> {
    /// The layout of the version that is replaced, if there is one: what running scorers can swap to.
    Replaced,
    /// The layout that definitions give.
    Features(&'a FeatureLayout),
    /// None: scorers that run go on with what they have, until they are started with other definitions.
    None,
}

impl Registry {
    /// A registry in a folder, which must be there.
    pub fn open(root: &Path) -> Result<Registry, ModelError> {
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => Ok(Registry { root: root.to_owned() }),
            Ok(_) => Err(refused(root, "is no folder", "name the folder of the registry")),
            Err(error) => {
                let problem = format!("can't be read ({error})");
                Err(refused(root, problem, "name the folder of the registry, or create it"))
            }
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an alias stands; an error if it is not set.
    pub(crate) fn alias(&self, aliases: &Aliases, name: &str, alias: &str) -> Result<Alias, ModelError> {
        aliases.get(alias).cloned().ok_or_else(|| {
            let remedy = format!("set it: fraudline model promote {name}@VERSION --alias {alias}");
            refused(&self.root, format!("has no alias `{alias}` of `{name}`"), remedy)
        })
    }

    /// Names that have versions, sorted.
    pub fn names(&self) -> Result<Vec<String>, ModelError> {
        let mut names = Vec::new();
        for name in folders(&self.root)? {
            if !self.versions(&name)?.is_empty() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Versions of a name, oldest first where they are numbers; none if there is no such name.
    pub fn versions(&self, name: &str) -> Result<Vec<String>, ModelError> {
        check(name, "name")?;
        let dir = self.root.join(name);
        if !dir.is_dir() {
            return Ok(Vec::new());
        }
        let mut versions = folders(&dir)?;
        versions.retain(|version| dir.join(version).join("config.json").is_file());
        versions.sort_by(|a, b| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => a.cmp(b),
        });
        Ok(versions)
    }

    /// The aliases of a name, as they stand.
    pub fn aliases(&self, name: &str) -> Result<Aliases, ModelError> {
        check(name, "name")?;
        let file = self.root.join(name).join(ALIASES);
        match fs::read(&file) {
            Ok(bytes) => Aliases::from_json(&bytes).map_err(|error| {
                let remedy = "restore the file, or remove it and promote the version that is to serve";
                refused(&file, format!("is damaged ({error})"), remedy)
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Registry::open(&self.root)?;
                Ok(Aliases::default())
            }
            Err(error) => {
                Err(refused(&file, format!("can't be read ({error})"), "check its permissions and its mount"))
            }
        }
    }

    /// The version that `reference` means: `NAME@VERSION`, `NAME@ALIAS`, or `NAME` for its champion.
    pub fn resolve(&self, reference: &str) -> Result<(String, String), ModelError> {
        let (name, of) = reference.split_once('@').unwrap_or((reference, CHAMPION));
        let versions = self.versions(name)?;
        if versions.iter().any(|version| version == of) {
            return Ok((name.to_owned(), of.to_owned()));
        }
        if let Some(alias) = self.aliases(name)?.get(of) {
            return Ok((name.to_owned(), alias.version.clone()));
        }
        let remedy = match versions.is_empty() {
            true => format!("the registry has {}", listed(&self.names()?)),
            false => format!("`{name}` has the versions {}", listed(&versions)),
        };
        Err(refused(&self.root, format!("has no `{name}@{of}`"), remedy))
    }

    /// Loads a version, all checks made.
    pub fn load(&self, name: &str, version: &str) -> Result<Artifact, ModelError> {
        check(name, "name")?;
        check(version, "version")?;
        let dir = self.root.join(name).join(version);
        let artifact = Artifact::load(&dir)?;
        let label = format!("{name}@{version}");
        if artifact.label() != label {
            let problem = format!("holds {}, not {label}", artifact.label());
            return Err(refused(&dir, problem, "versions are not renamed: add the model anew, under that name"));
        }
        Ok(artifact)
    }

    /// Takes a folder's model in, with all files beside it under its own name and version, or written anew under those of
    /// `label`. Returns `name@version`. The folder may be one of the Hugging Face cache. A version that is there is never
    /// overwritten.
    pub fn add(&self, folder: &Path, label: Option<(&str, &str)>) -> Result<String, ModelError> {
        let folder = &files::snapshot(folder)?;
        let artifact = Artifact::load(folder)?;
        let (name, version) = match label {
            Some((name, version)) => {
                check(name, "name")?;
                check(version, "version")?;
                (name.to_owned(), version.to_owned())
            }
            None => artifact.name_and_version(),
        };
        let dir = self.root.join(&name).join(&version);
        if dir.exists() {
            let remedy = "versions are never overwritten: choose another one with --as NAME@VERSION";
            return Err(refused(&dir, "already exists", remedy));
        }
        if self.aliases(&name)?.get(&version).is_some() {
            return Err(refused(&dir, format!("can't be added: `{version}` is an alias"), "choose another version"));
        }
        match artifact.name_and_version() == (name.clone(), version.clone()) {
            true => copy_folder(folder, &dir, |copied| Artifact::load(copied).map(|_| ()))?,
            // Its files name it, so they are written anew.
            false => artifact.named(&name, &version).save(&dir)?,
        }
        self.load(&name, &version)?;
        Ok(format!("{name}@{version}"))
    }

    /// Moves an alias to a version. The version must load, and its layout pass `check`.
    pub fn promote(
        &self,
        name: &str,
        version: &str,
        alias: &str,
        layout: LayoutCheck<'_>,
        now: EventTime,
    ) -> Result<Move, ModelError> {
        check(alias, "alias")?;
        if self.versions(name)?.iter().any(|version| version == alias) {
            let problem = format!("can't have the alias `{alias}`: it is a version");
            return Err(refused(&self.root.join(name), problem, "choose another alias"));
        }
        let artifact = self.load(name, version)?;
        self.change(name, |aliases| {
            let replaced = aliases.get(alias).map(|alias| alias.version.clone());
            let accepted = match (layout, &replaced) {
                (LayoutCheck::Features(features), _) => artifact.layout().accept(features),
                // One that can't be loaded any more must not stand in the way of its successor.
                (LayoutCheck::Replaced, Some(replaced)) => match self.load(name, replaced) {
                    Ok(replaced) => artifact.layout().accept(replaced.layout()),
                    Err(_) => Ok(()),
                },
                (LayoutCheck::Replaced, None) | (LayoutCheck::None, _) => Ok(()),
            };
            accepted.map_err(|error| {
                let remedy = "scorers that run would refuse it: promote a version of their layout, or allow another one with \
                              --layout-change and start them anew with its definitions";
                refused(&self.root.join(name).join(version), format!("can't take over ({error})"), remedy)
            })?;
            Ok(aliases.move_to(alias, version, now))
        })
    }

    /// Moves an alias back to where it stood before its last promotion, and with every further call one step more.
    pub fn rollback(&self, name: &str, alias: &str, now: EventTime) -> Result<Move, ModelError> {
        self.change(name, |aliases| {
            let file = self.root.join(name).join(ALIASES);
            let none = || refused(&file, format!("knows nothing that `{alias}` stood at before"), "promote a version");
            let version = aliases.previous(alias).ok_or_else(none)?;
            self.load(name, &version)?;
            Ok(aliases.roll_back(alias, &version, now))
        })
    }

    /// Takes an alias away: a challenger that is none any more.
    pub fn remove_alias(&self, name: &str, alias: &str, now: EventTime) -> Result<Move, ModelError> {
        self.change(name, |aliases| {
            let file = self.root.join(name).join(ALIASES);
            let none = || refused(&file, format!("has no alias `{alias}`"), "see `fraudline model show`");
            aliases.remove(alias, now).ok_or_else(none)
        })
    }

    /// Changes the aliases of a name, one who changes them at a time.
    fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Aliases) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        check(name, "name")?;
        let dir = self.root.join(name);
        if !dir.is_dir() {
            let remedy = format!("the registry has {}", listed(&self.names()?));
            return Err(refused(&self.root, format!("has no model `{name}`"), remedy));
        }
        let _lock = Lock::take(&dir.join("aliases.lock"))?;
        let mut aliases = self.aliases(name)?;
        let changed = change(&mut aliases)?;
        replace(&dir.join(ALIASES), &aliases.to_json())?;
        Ok(changed)
    }
}

pub(crate) fn refused(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> ModelError {
    ModelError::Registry { path: path.to_owned(), problem: problem.into(), remedy: remedy.into() }
}

fn check(name: &str, what: &str) -> Result<(), ModelError> {
    check_name(what, name).map_err(|problem| refused(Path::new(name), problem, "write it as in fraud@3"))
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Names of the folders in a folder, hidden ones left out.
fn folders(dir: &Path) -> Result<Vec<String>, ModelError> {
    let unreadable =
        |error: std::io::Error| refused(dir, format!("can't be read ({error})"), "check its permissions and its mount");
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // A link to a folder is one, so the file type of the entry is not enough.
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.path().is_dir()
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
