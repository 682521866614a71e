//! Snapshot files, with errors that name the file.

use heapline_shared_format::snapshot::{ReadError, Snapshot, read};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Why a snapshot could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be opened.
    #[error("cannot open snapshot {}: {error}; give the path of a *.snap.zst file", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What it contains is no snapshot, or not all of one.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ReadError,
    },
}

/// Reads the snapshot at `path`.
///
/// # Errors
///
/// See [`LoadError`].
pub fn load(path: &Path) -> Result<Snapshot, LoadError> {
    let file = File::open(path).map_err(|error| LoadError::Open { path: path.to_path_buf(), error })?;
    read(file).map_err(|error| LoadError::Read { path: path.to_path_buf(), error })
}
