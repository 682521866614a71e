//! The collector's library, which travels inside the aggregator.

use crate::base::private_dir;
use crate::base::private_dir::PrivateDirError;
use crate::base::sys;
use crate::base::whole_file::Temporary;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;

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

/// The library in memory, for a machine without a folder that can be had. It is open until this
/// process ends.
static IN_MEMORY: OnceLock<File> = OnceLock::new();

/// Puts the library where the loader of a program finds it. Without a folder that is a memory file
/// of this process, which the programs of its user can open.
pub fn install() -> Result<PathBuf, CollectorError> {
    in_folder().or_else(|error| in_memory().map_err(|_| error))
}

fn in_memory() -> io::Result<PathBuf> {
    let file = match IN_MEMORY.get() {
        Some(file) => file,
        None => {
            let file = sys::sealed_memory_file(c"heapline-collector", LIBRARY)?;
            IN_MEMORY.get_or_init(|| file)
        }
    };
    Ok(PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd())))
}

/// Puts the library into our folder, under a name that changes with its content, so that another
/// version never replaces one that is in use.
fn in_folder() -> Result<PathBuf, CollectorError> {
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
