//! Files that others read while they are written: whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::refused;
use crate::{
    ModelError,
    files::{beside, write},
};

/// How long somebody else's change is waited for; it takes milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A file that is there for as long as somebody changes what lies beside it.
///
/// Not a lock of the operating system: those of a mounted object store reach no further than the machine.
pub(super) struct Lock {
    path: PathBuf,
}

impl Lock {
    /// Waits while another holds it.
    pub(super) fn take(path: &Path) -> Result<Lock, ModelError> {
        Lock::take_within(path, LOCK_WAIT)
    }

    fn take_within(path: &Path, wait: Duration) -> Result<Lock, ModelError> {
        let deadline = Instant::now() + wait;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(mut file) => {
                    let lock = Lock { path: path.to_owned() };
                    // For people, who may have to find out whose it is.
                    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                    let _ = write!(file, "process {} on {}", std::process::id(), host.trim());
                    return Ok(lock);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let holder = fs::read_to_string(path).unwrap_or_default();
                    let problem = format!("is held by {}", if holder.is_empty() { "another process" } else { &holder });
                    return Err(refused(path, problem, "if that one is gone, remove the file"));
                }
                Err(error) => {
                    let problem = format!("can't be written ({error})");
                    return Err(refused(path, problem, "check the permissions and the space left"));
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a lock can't be removed; remove the file");
        }
    }
}

/// Puts a file in the place of another: who reads it finds the one or the other.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let partial = beside(path);
    let written = write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&partial);
        refused(path, format!("can't be written ({error})"), "check the permissions and the space left")
    })?;
    sync_parent(path);
    Ok(())
}

/// The folder of files that is meant by one of the Hugging Face cache, `models--OWNER--NAME`: the snapshot that its ref
/// `main` names, or the only one. Any other folder is meant itself.
pub(super) fn snapshot(folder: &Path) -> Result<PathBuf, ModelError> {
    let snapshots = folder.join("snapshots");
    if folder.join("config.json").exists() || !snapshots.is_dir() {
        return Ok(folder.to_owned());
    }
    if let Ok(revision) = fs::read_to_string(folder.join("refs").join("main")) {
        return Ok(snapshots.join(revision.trim()));
    }
    match super::folders(&snapshots)?.as_slice() {
        [only] => Ok(snapshots.join(only)),
        [] => Err(refused(&snapshots, "has no snapshot", "download the model first")),
        _ => Err(refused(folder, "has several snapshots and no ref `main`", "name one: snapshots/REVISION")),
    }
}

/// Copies a folder with all that is in it, links followed. `check` sees the copy before it gets its name.
pub(super) fn copy_folder(
    from: &Path,
    to: &Path,
    check: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let failed = |error: io::Error| {
        refused(to, format!("can't be written ({error})"), "check the permissions and the space left")
    };
    let partial = beside(to);
    let parent = to.parent().unwrap_or(Path::new("."));
    let copied = fs::create_dir_all(parent).and_then(|()| copy_all(from, &partial)).map_err(failed);
    let moved = copied.and_then(|()| check(&partial)).and_then(|()| fs::rename(&partial, to).map_err(failed));
    if moved.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    moved?;
    sync_parent(to);
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        match fs::metadata(&source)?.is_dir() {
            true => copy_all(&source, &target)?,
            false => write(&target, &fs::read(&source)?)?,
        }
    }
    Ok(())
}

/// Makes a rename survive a power failure, where the file system can: an object store has no folders to sync.
fn sync_parent(path: &Path) {
    if let Some(Err(error)) = path.parent().map(|parent| File::open(parent).and_then(|parent| parent.sync_all())) {
        tracing::debug!(path = %path.display(), %error, "the folder can't be synced");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_says_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aliases.lock");
        let held = Lock::take(&path).unwrap();
        let error = Lock::take_within(&path, Duration::from_millis(30)).map(|_| ()).unwrap_err().to_string();
        let expected = format!("aliases.lock: is held by process {} on ", std::process::id());
        assert!(error.contains(&expected) && error.contains("remove the file"), "{error}");
        drop(held);
        Lock::take_within(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_copy_that_fails_its_check_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("plots")).unwrap();
        fs::write(from.join("plots").join("a.svg"), "a").unwrap();
        fs::write(from.join(".hidden"), "b").unwrap();
        let to = folder.path().join("registry").join("1");
        let error = copy_folder(&from, &to, |copied| Err(refused(copied, "is bad", "mend it"))).unwrap_err();
        assert!(error.to_string().contains("is bad"), "{error}");
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 0);
        copy_folder(&from, &to, |_| Ok(())).unwrap();
        assert_eq!(fs::read(to.join("plots").join("a.svg")).unwrap(), b"a");
        assert!(!to.join(".hidden").exists());
    }
}
