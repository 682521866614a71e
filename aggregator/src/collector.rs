//! The collector's library, which travels inside the aggregator.

use crate::private_dir::{self, PrivateDirError};
use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;

/// The library's bytes.
pub static LIBRARY: &[u8] = include_bytes!(env!("HEAPLINE_PRELOAD"));

/// Why the library is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// Its folder is not usable.
    #[error(transparent)]
    Folder(#[from] PrivateDirError),
    /// It could not be written.
    #[error("cannot write the collector to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Puts the library where the loader of a program finds it, under a name that changes with its content, so that
/// another version never replaces one that is in use.
pub fn install() -> Result<PathBuf, CollectorError> {
    let mut hasher = DefaultHasher::new();
    hasher.write(LIBRARY);
    let path = private_dir::open()?.join(format!("libheapline-{:016x}.so", hasher.finish()));
    let is_there = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file())
        && fs::read(&path).is_ok_and(|bytes| bytes == LIBRARY);
    if !is_there {
        write_to(&path)?;
    }
    Ok(path)
}

/// Writes the library to a file.
pub fn write_to(path: &Path) -> Result<(), CollectorError> {
    let fail = |source| CollectorError::Write { path: path.to_owned(), source };
    let mut name = path.file_name().ok_or_else(|| fail(io::ErrorKind::IsADirectory.into()))?.to_owned();
    name.push(format!(".{}.tmp", process::id()));
    let temporary = path.with_file_name(name);
    let written = write_new(&temporary).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // The first error is the one that matters.
        let _ = fs::remove_file(&temporary);
        fail(error)
    })
}

fn write_new(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(LIBRARY)?;
    // Whatever the umask says: a program that drops its privileges must be able to load it.
    file.set_permissions(fs::Permissions::from_mode(0o644))
}
