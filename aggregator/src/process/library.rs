//! The collector's library, contained in the aggregator.

use crate::base::private_dir;
use crate::base::private_dir::PrivateDirError;
use crate::base::sys;
use crate::base::whole_file::Temporary;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;

/// The bytes of the library.
pub static LIBRARY: &[u8] = include_bytes!(env!("HEAPLINE_PRELOAD"));

/// Name of the library's file. The name depends on the content, so another version never replaces a
/// version in use.
const FILE: &str = concat!("libheapline-", env!("HEAPLINE_PRELOAD_HASH"), ".so");

/// Reasons why the library could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The folder is not usable.
    #[error(transparent)]
    Folder(#[from] PrivateDirError),
    /// No place was found.
    #[error("there is no place for the collector: {0}; set TMPDIR to a folder that can be written")]
    NoPlace(Box<CollectorError>),
    /// The library could not be written.
    #[error("cannot write the collector to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The library in memory, for a machine without a usable folder but with /proc. The memory file is
/// open until this process ends.
static IN_MEMORY: OnceLock<File> = OnceLock::new();

/// Puts the library where the loader of a program finds it.
///
/// Without a folder, the library is a memory file of this process. Programs of the same user can
/// open this memory file by /proc. A root without /proc (a container's image as it is) is left with
/// a folder in `last`, removed at the end.
pub fn install(last: Option<&Path>) -> Result<PathBuf, CollectorError> {
    let in_last = || in_folder_of(&private_dir::open_in(last?).ok()?).ok();
    let in_folder = private_dir::open().map_err(CollectorError::from).and_then(|folder| in_folder_of(&folder));
    in_folder.or_else(|error| {
        let elsewhere = in_memory().ok().or_else(in_last);
        elsewhere.ok_or_else(|| CollectorError::NoPlace(Box::new(error)))
    })
}

fn in_memory() -> io::Result<PathBuf> {
    let file = match IN_MEMORY.get() {
        Some(file) => file,
        None => {
            let file = sys::sealed_memory_file(c"heapline-collector", LIBRARY)?;
            IN_MEMORY.get_or_init(|| file)
        }
    };
    let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
    File::open(&path).map(|_| path)
}

/// Puts the library into a folder.
fn in_folder_of(folder: &Path) -> Result<PathBuf, CollectorError> {
    let path = folder.join(FILE);
    let is_there = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
    if !is_there || !is_library(&path).unwrap_or(false) {
        write_to(&path)?;
    }
    Ok(path)
}

/// Whether a file has the library's content.
fn is_library(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != LIBRARY.len() as u64 {
        return Ok(false);
    }
    let mut buffer = [0; 32 << 10];
    for part in LIBRARY.chunks(buffer.len()) {
        let read = &mut buffer[..part.len()];
        file.read_exact(read)?;
        if read != part {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the library to a file. Every user may read the file, whatever the umask: a program
/// without its former privileges must be able to load the library.
pub fn write_to(path: &Path) -> Result<(), CollectorError> {
    let absolute = std::path::absolute(path).and_then(|path| match path.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(path),
    });
    let written = absolute.and_then(|path| Temporary::fill(&path, LIBRARY, 0o644));
    written.map_err(|source| CollectorError::Write { path: path.to_owned(), source })
}
