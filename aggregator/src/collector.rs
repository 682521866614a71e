//! The collector's library, which travels inside the aggregator.

use crate::output::Temporary;
use crate::private_dir::{self, PrivateDirError};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

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

/// Writes the library to a file. Whatever the umask says, everybody may read it: a program that drops its privileges must be
/// able to load it.
pub fn write_to(path: &Path) -> Result<(), CollectorError> {
    let absolute = std::path::absolute(path).and_then(|path| match path.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(path),
    });
    let written = absolute.and_then(|path| Temporary::fill(&path, LIBRARY, 0o644));
    written.map_err(|source| CollectorError::Write { path: path.to_owned(), source })
}
