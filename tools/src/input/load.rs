//! Loads snapshot files, with errors that name the file.

use heapline_shared_format::snapshot::{ReadError, Snapshot, read};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Reason why a snapshot could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened.
    #[error("cannot open snapshot {}: {error}; give the path of a *.snap.zst file", path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The content is no snapshot, or an incomplete snapshot.
    #[error("{}: {error}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Problem with the content.
        error: ReadError,
    },
}

/// Reads the snapshot at `path`.
///
/// # Errors
///
/// Fails with a [`LoadError`].
pub fn load(path: &Path) -> Result<Snapshot, LoadError> {
    let file = File::open(path).map_err(|error| LoadError::Open { path: path.to_path_buf(), error })?;
    read(file).map_err(|error| LoadError::Read { path: path.to_path_buf(), error })
}
