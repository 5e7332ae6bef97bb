//! The data directory: whose it is, who uses it, and in which format it was written.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::log::{LogError, Result};

/// Marks a data directory, holds its format, and is locked by the process that uses it.
const MARKER: &str = "FRAUDLINE";
const MARKER_TEXT: &str = "fraudline data directory, format ";
/// Version of the layout of everything below the directory.
const FORMAT: u32 = 1;
const DATABASE: &str = "db";
/// The file that the storage engine writes last when it creates a database.
const DATABASE_MARKER: &str = "version";

/// A data directory in the use of this process, until it is dropped.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    marker: File,
    created: bool,
}

impl DataDirectory {
    /// Takes the directory, and creates it where there is none.
    pub(super) fn open(path: &Path) -> Result<DataDirectory> {
        let unusable = |reason: String| LogError::DataDirectory { path: path.display().to_string(), reason };
        fs::create_dir_all(path).map_err(|error| unusable(error.to_string()))?;
        let marker_path = path.join(MARKER);
        let files = fs::read_dir(path).map_err(|error| unusable(error.to_string()))?.count();
        if files > 0 && !marker_path.exists() {
            return Err(unusable("it holds other files, and is no data directory of fraudline".to_owned()));
        }
        let mut marker = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&marker_path)
            .map_err(|error| unusable(error.to_string()))?;
        // A process that was killed may let go a moment after its end is seen.
        let patience = Instant::now() + Duration::from_secs(2);
        while let Err(error) = marker.try_lock() {
            match error {
                TryLockError::WouldBlock if Instant::now() < patience => std::thread::sleep(Duration::from_millis(10)),
                TryLockError::WouldBlock => return Err(LogError::InUse(path.display().to_string())),
                TryLockError::Error(error) => return Err(unusable(error.to_string())),
            }
        }
        let mut text = String::new();
        marker.read_to_string(&mut text).map_err(|error| unusable(error.to_string()))?;
        let created = text.is_empty();
        if created {
            remove_unfinished(&path.join(DATABASE)).map_err(|error| unusable(error.to_string()))?;
        } else {
            match text.trim_end().strip_prefix(MARKER_TEXT).and_then(|format| format.parse::<u32>().ok()) {
                Some(FORMAT) => {}
                Some(newer) if newer > FORMAT => {
                    return Err(unusable(format!("a newer version wrote it (format {newer}, known here: {FORMAT})")));
                }
                Some(_) | None => return Err(unusable(format!("its file {MARKER} is damaged"))),
            }
        }
        Ok(DataDirectory { path: path.to_owned(), marker, created })
    }

    /// Whether nothing can have been written to it yet.
    pub(super) fn is_new(&self) -> bool {
        self.created
    }

    /// Where the storage engine keeps its files.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Notes that the directory is complete, before anything is written to the database.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.created {
            writeln!(self.marker, "{MARKER_TEXT}{FORMAT}")?;
            self.marker.sync_all()?;
            File::open(&self.path)?.sync_all()?;
            self.created = false;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the files take on disk; holes that were never written are not counted.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        bytes_below(&self.path)
    }
}

/// A process that died while it created the database leaves one that can't be opened, and in
/// which nothing was ever written. A complete one is left alone, whatever the marker says.
fn remove_unfinished(database: &Path) -> io::Result<()> {
    if database.exists() && !database.join(DATABASE_MARKER).exists() {
        fs::remove_dir_all(database)?;
    }
    Ok(())
}

fn bytes_below(folder: &Path) -> u64 {
    // Files come and go meanwhile: what can't be read any more takes no space.
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
