//! Where a report goes: standard output, or a file that is replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, StdoutLock, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {error}; choose another place with -o", path.display())]
pub struct FileError {
    path: PathBuf,
    error: io::Error,
}

/// See the module's header.
pub enum Output {
    /// Standard output.
    Stdout(BufWriter<StdoutLock<'static>>),
    /// Something that cannot be replaced, such as a pipe or `/dev/full`.
    Device(PathBuf, BufWriter<File>),
    /// A new file that takes the old one's place at the end.
    File(PathBuf, BufWriter<NamedTempFile>),
}

impl Output {
    /// Opens `path`, or standard output. Comes before the work, so that a place that cannot be written is found first.
    ///
    /// # Errors
    ///
    /// When the place cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Output, FileError> {
        let Some(path) = path else { return Ok(Output::Stdout(BufWriter::new(io::stdout().lock()))) };
        Output::at(path).map_err(|error| FileError { path: path.to_path_buf(), error })
    }

    fn at(path: &Path) -> io::Result<Output> {
        match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                Ok(Output::Device(path.to_path_buf(), BufWriter::new(file)))
            }
            Ok(meta) if meta.permissions().readonly() => Err(io::ErrorKind::PermissionDenied.into()),
            _ => {
                // A link stays, and what it leads to is replaced.
                let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                // The umask decides, as for any other file.
                let file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(dir)?;
                Ok(Output::File(path, BufWriter::new(file)))
            }
        }
    }

    /// Writes everything, by `write`, and puts the file in its place.
    ///
    /// # Errors
    ///
    /// Of a file, with its name; of standard output, as they are: a closed pipe is no failure of a report.
    pub fn write(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WriteError> {
        match self {
            Output::Stdout(mut out) => write(&mut out).and_then(|()| out.flush()).map_err(WriteError::Stdout),
            Output::Device(path, mut out) => {
                write(&mut out).and_then(|()| out.flush()).map_err(|error| WriteError::File(FileError { path, error }))
            }
            Output::File(path, mut out) => {
                let written = write(&mut out).and_then(|()| out.into_inner().map_err(io::IntoInnerError::into_error));
                let placed = written.and_then(|file| file.persist(&path).map_err(|error| error.error));
                placed.map(drop).map_err(|error| WriteError::File(FileError { path, error }))
            }
        }
    }
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// To standard output.
    #[error("cannot write to standard output: {0}; check where it leads, or use -o FILE")]
    Stdout(io::Error),
    /// To a file.
    #[error(transparent)]
    File(FileError),
}

impl WriteError {
    /// Whether who read the output has seen enough.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, WriteError::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
