//! Destination of a report: standard output, or a file. A file is replaced as a whole or not at
//! all.

use anstream::{AutoStream, ColorChoice};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Columns of a terminal that does not say how many there are.
const USUAL_COLUMNS: usize = 80;

/// An error of a file, with the path.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {error}; choose another place with -o", path.display())]
pub struct FileError {
    path: PathBuf,
    error: io::Error,
}

/// An open destination of a report.
pub enum Output {
    /// Standard output.
    Stdout(BufWriter<StdoutLock<'static>>),
    /// A place that cannot be replaced, such as a pipe or `/dev/full`.
    Device(PathBuf, BufWriter<File>),
    /// A new file. Replaces the old file at the end.
    File(PathBuf, BufWriter<NamedTempFile>),
}

impl Output {
    /// Opens `path`, or standard output. Called before all other work, to find an unwritable place
    /// first.
    ///
    /// # Errors
    ///
    /// Fails if the place cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Output, FileError> {
        let Some(path) = path else { return Ok(Output::Stdout(BufWriter::new(io::stdout().lock()))) };
        Output::at(path).map_err(|error| FileError { path: path.to_path_buf(), error })
    }

    fn at(path: &Path) -> io::Result<Output> {
        let path = resolved(path)?;
        match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => {
                let file = open_special(&path, meta.file_type().is_fifo())?;
                Ok(Output::Device(path, BufWriter::new(file)))
            }
            Ok(meta) if meta.permissions().readonly() => Err(io::ErrorKind::PermissionDenied.into()),
            _ => {
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                // The umask decides, as for any other file.
                let file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(dir)?;
                Ok(Output::File(path, BufWriter::new(file)))
            }
        }
    }

    /// Columns of the terminal; none if the destination is no terminal.
    pub fn columns(&self) -> Option<usize> {
        let size = |fd: BorrowedFd<'_>| fd.is_terminal().then(|| tcgetwinsize(fd).map_or(0, |size| size.ws_col));
        let columns = match self {
            Output::Stdout(out) => size(out.get_ref().as_fd()),
            Output::Device(_, out) => size(out.get_ref().as_fd()),
            Output::File(..) => None,
        };
        columns.map(|columns| match usize::from(columns) {
            0 => USUAL_COLUMNS,
            columns => columns,
        })
    }

    /// Whether text may have colours: on a terminal that shows colours, as the user's NO_COLOR,
    /// CLICOLOR and CLICOLOR_FORCE say. A file has none.
    pub fn has_colours(&self) -> bool {
        let choice = match self {
            Output::Stdout(out) => AutoStream::choice(out.get_ref()),
            Output::Device(_, out) => AutoStream::choice(out.get_ref()),
            Output::File(..) => ColorChoice::Never,
        };
        choice != ColorChoice::Never
    }

    /// Writes the report with `write`, then moves the file to its place.
    ///
    /// # Errors
    ///
    /// Errors of a file carry the path. Errors of standard output are passed on as they are: a
    /// closed pipe is no failure of a report.
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

/// Longest wait for the reader of a pipe.
const READER_PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// Opens a pipe or a device. A blocking open of a pipe without a reader would wait for ever, so the
/// open is repeated instead.
fn open_special(path: &Path, is_pipe: bool) -> io::Result<File> {
    let begun = Instant::now();
    let flags = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits();
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    let file = loop {
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Err(error) if is_pipe && error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                if begun.elapsed() >= READER_PATIENCE {
                    return Err(io::Error::other("nobody reads the pipe"));
                }
                std::thread::sleep(LOOK);
            }
            opened => break opened?,
        }
    };
    // Writes may block from here on: a reader may be slow, and every signal ends a report.
    fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
    Ok(file)
}

/// Returns the path to write.
///
/// - A link owned by this user or by root stays, and the link's target is replaced.
/// - A link, pipe or device of another user is refused: in a shared folder, another user could have
///   placed it under a name easy to guess.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    const MOST_LINKS: usize = 40;
    let own = rustix::process::geteuid().as_raw();
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            found => found?,
        };
        if found.is_file() || found.is_dir() {
            return Ok(path);
        }
        if ![0, own].contains(&found.uid()) {
            return Err(io::Error::other(format!("it is a link, pipe or device of user {}", found.uid())));
        }
        // Pipes and devices are used as they are. A link in /proc may lead to a pipe without a
        // path, such as the pipe of standard output.
        if !found.is_symlink() || fs::metadata(&path).is_ok_and(|target| !target.is_file() && !target.is_dir()) {
            return Ok(path);
        }
        path = path.parent().unwrap_or(Path::new(".")).join(fs::read_link(&path)?);
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// Reason why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Standard output could not be written.
    #[error("cannot write to standard output: {0}; check where it leads, or use -o FILE")]
    Stdout(io::Error),
    /// The file could not be written.
    #[error(transparent)]
    File(FileError),
}

impl WriteError {
    /// Whether the reader closed the pipe of standard output.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, WriteError::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_links_are_followed_and_those_of_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        Output::open(Some(&link)).unwrap().write(|out| out.write_all(b"report")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"report");
        Output::open(Some(Path::new("/dev/null"))).unwrap().write(|out| out.write_all(b"report")).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
            assert!(Output::open(Some(&link)).is_err());
            assert_eq!(fs::read(&file).unwrap(), b"report");
        }
    }
}
