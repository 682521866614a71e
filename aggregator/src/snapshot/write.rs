//! Writes a snapshot so that a whole file exists at all times: first next to its place, then
//! renamed into the place.
//!
//! A full disk, an interruption or a crash leaves the old file as it was. A device or a pipe is
//! written to directly. The writer never waits in the kernel for such a file: a reader that does
//! not come, or does not read, would block this process forever.

use crate::base::sys;
use crate::base::whole_file::Temporary;
use crate::process::image::Image;
use heapline_shared_format::snapshot::{self, Snapshot};
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time of a write after which the progress is shown on a terminal.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// Reasons why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A directory is at the place.
    #[error("cannot write the snapshot to {}: it is a directory; name a file with --output", path.display())]
    Directory {
        /// The place.
        path: PathBuf,
    },
    /// The place cannot be written to.
    #[error("cannot write the snapshot to {}: {source}; name another file with --output", path.display())]
    Place {
        /// The place.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another user's link, pipe or device is at the place.
    #[error(
        "cannot write the snapshot to {}: it is a link, pipe or device of user {owner}; remove it, or name another file \
         with --output", path.display()
    )]
    Planted {
        /// The link, pipe or device.
        path: PathBuf,
        /// Owner of the link, pipe or device.
        owner: u32,
    },
    /// The pipe at the place has no reader.
    #[error(
        "the snapshot was not written: nobody reads the pipe {}; start its reader first, or name a file with --output",
        path.display()
    )]
    NoReader {
        /// The pipe.
        path: PathBuf,
    },
    /// Writing failed half-way.
    #[error("the snapshot {} was not written: {source}; what was there before is unchanged", path.display())]
    Write {
        /// The place.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Place of a snapshot.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The user's path, made absolute.
    path: PathBuf,
    /// Whether the snapshot is part of a large set. Such a snapshot is not synced to the disk.
    is_one_of_many: bool,
}

/// Folder for the snapshots of a tree's processes; made when the first snapshot is written.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Names in use. A process id may come again, with the same program.
    given: Mutex<HashSet<String>>,
}

impl Folder {
    /// Returns the folder at `path`. The folder need not exist.
    pub fn new(path: &Path) -> Result<Folder, OutputError> {
        let fail = |source| OutputError::Place { path: path.to_owned(), source };
        Ok(Folder { path: std::path::absolute(path).map_err(fail)?, given: Mutex::default() })
    }

    /// Makes the folder now, and checks that the folder is writable.
    pub fn make(&self) -> Result<(), OutputError> {
        let fail = |source| OutputError::Place { path: self.path.clone(), source };
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
            _ => {}
        }
        Temporary::beside(&self.path.join("any")).map(drop).map_err(fail)
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file of this name in the folder.
    pub fn file(&self, name: &Path) -> Destination {
        Destination { path: self.path.join(name), is_one_of_many: false }
    }

    /// Returns the place for the snapshot of a process with this program.
    pub fn place(&self, image: &Image, pid: u32) -> Result<Destination, OutputError> {
        let fail = |source| OutputError::Place { path: self.path.clone(), source };
        fs::create_dir_all(&self.path).map_err(fail)?;
        let program = Path::new(&image.executable).file_name().map(|name| name.to_string_lossy());
        let stem = format!("heapline-{}-{pid}", program.unwrap_or("process".into()));
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = (1..).map(|n| if n == 1 { stem.clone() } else { format!("{stem}-{n}") });
        let name = names.find(|name| given.insert(name.clone())).unwrap_or(stem);
        Ok(Destination { path: self.path.join(format!("{name}.snap.zst")), is_one_of_many: true })
    }
}

impl Destination {
    /// Checks that a snapshot can be written to `path`, without a change to an existing file.
    pub fn check(path: &Path) -> Result<Destination, OutputError> {
        let fail = |source| OutputError::Place { path: path.to_owned(), source };
        let destination = Destination { path: std::path::absolute(path).map_err(fail)?, is_one_of_many: false };
        match destination.resolved()? {
            // A pipe is not opened, because the open would wait for the reader.
            Place::Special(_) => Ok(destination),
            Place::File(place) => {
                match fs::symlink_metadata(&place) {
                    Ok(found) if found.is_dir() => return Err(OutputError::Directory { path: path.to_owned() }),
                    Ok(_) => drop(OpenOptions::new().write(true).open(&place).map_err(fail)?),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(fail(error)),
                }
                Temporary::beside(&place).map_err(fail)?;
                Ok(destination)
            }
        }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns another file in the same folder.
    pub fn beside(&self, name: &Path) -> Destination {
        Destination { path: self.path.with_file_name(name), ..self.clone() }
    }

    /// Returns the place of the `n`th program replaced by exec.
    pub fn replaced(&self, n: u32) -> Destination {
        let mut name = OsString::from(&self.path);
        name.push(format!(".exec{n}"));
        Destination { path: name.into(), ..self.clone() }
    }

    /// Writes the snapshot. Fails as soon as `interrupted` is set.
    pub fn write(&self, snapshot: &Snapshot, interrupted: &AtomicBool) -> Result<(), OutputError> {
        self.write_until(snapshot, || interrupted.load(Ordering::Relaxed))
    }

    /// Writes the snapshot. Fails as soon as `is_over` returns true.
    pub fn write_until(&self, snapshot: &Snapshot, is_over: impl Fn() -> bool) -> Result<(), OutputError> {
        let fail = |source| OutputError::Write { path: self.path.clone(), source };
        let is_synced = !self.is_one_of_many;
        match self.resolved()? {
            Place::Special(path) => {
                let file = open_special(&path, &is_over)?;
                encode(snapshot, &file, &is_over, true).map_err(fail)
            }
            Place::File(place) => {
                let temporary = Temporary::beside(&place).map_err(fail)?;
                encode(snapshot, &temporary.file, &is_over, is_synced).map_err(fail)?;
                temporary.put(&place, is_synced).map_err(fail)
            }
        }
    }

    /// Follows links to the real place of the snapshot, and keeps the links.
    ///
    /// Names of snapshots can be guessed, and folders can be shared. Therefore:
    /// - Links of this user and of root are followed. Another user's links are not followed.
    /// - Another user's pipe or device is not written to.
    fn resolved(&self) -> Result<Place, OutputError> {
        const MOST_LINKS: usize = 40;
        let fail = |source| OutputError::Place { path: self.path.clone(), source };
        let mut path = self.path.clone();
        for _ in 0..MOST_LINKS {
            let found = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Place::File(path)),
                found => found.map_err(fail)?,
            };
            if found.is_file() || found.is_dir() {
                return Ok(Place::File(path));
            }
            if ![0, sys::geteuid()].contains(&found.uid()) {
                return Err(OutputError::Planted { path, owner: found.uid() });
            }
            // This covers also a link in /proc to an object without a path, such as the pipe of
            // standard output.
            if !found.is_symlink() || fs::metadata(&path).is_ok_and(|target| !target.is_file() && !target.is_dir()) {
                return Ok(Place::Special(path));
            }
            let target = fs::read_link(&path).map_err(fail)?;
            path = path.parent().unwrap_or(Path::new("/")).join(target);
        }
        Err(fail(io::Error::from_raw_os_error(libc::ELOOP)))
    }
}

/// Kind of a snapshot's place.
enum Place {
    /// A file, to be replaced as a whole.
    File(PathBuf),
    /// A pipe or a device, which cannot be replaced.
    Special(PathBuf),
}

/// Limit of the wait for the reader of a pipe.
const READER_PATIENCE: Duration = Duration::from_secs(10);
/// Interval between two looks for a signal or the end of a client.
const LOOK: Duration = Duration::from_millis(50);

/// Opens a pipe or a device so that no write waits in the kernel.
fn open_special(path: &Path, is_over: &dyn Fn() -> bool) -> Result<File, OutputError> {
    let begun = Instant::now();
    let is_pipe = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
            Err(error) if is_pipe && error.raw_os_error() == Some(libc::ENXIO) => {
                if is_over() || begun.elapsed() >= READER_PATIENCE {
                    return Err(OutputError::NoReader { path: path.to_owned() });
                }
                std::thread::sleep(LOOK);
            }
            opened => return opened.map_err(|source| OutputError::Write { path: path.to_owned(), source }),
        }
    }
}

fn encode(snapshot: &Snapshot, file: &File, is_over: &dyn Fn() -> bool, is_synced: bool) -> io::Result<()> {
    let begun = Instant::now();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let mut show = |bytes| {
        if bar.is_hidden() && begun.elapsed() > SHOW_AFTER {
            // Draws only if standard error is a terminal.
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.set_message("writing the snapshot");
        }
        bar.set_position(bytes);
    };
    let out = BufWriter::new(Interruptible { file, is_over });
    let written = snapshot::write(snapshot, out, &mut show).and_then(|mut out| out.flush());
    bar.finish_and_clear();
    written?;
    if !is_synced {
        return Ok(());
    }
    match file.sync_all() {
        // A pipe or a device has nothing to sync.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

struct Interruptible<'a> {
    file: &'a File,
    is_over: &'a dyn Fn() -> bool,
}

impl Write for Interruptible<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if (self.is_over)() {
                // Not ErrorKind::Interrupted, which means to try again.
                return Err(io::Error::other("interrupted"));
            }
            match self.file.write(bytes) {
                // The reader is slower than this process, or has stopped reading.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sys::await_writable(self.file, LOOK),
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<OsString> =
            fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_snapshot_takes_the_place_of_the_old_one_only_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("s");
        fs::write(&path, "old").expect("written");
        let destination = Destination::check(&path).expect("writable");
        assert_eq!(fs::read(&path).expect("there"), b"old", "checking touches nothing");
        assert!(destination.write(&Snapshot::default(), &AtomicBool::new(true)).is_err(), "interrupted");
        assert_eq!(fs::read(&path).expect("there"), b"old");
        assert_eq!(names_in(folder.path()), ["s"], "nothing is left behind");
        destination.write(&Snapshot::default(), &AtomicBool::new(false)).expect("written");
        assert_eq!(snapshot::read(File::open(&path).expect("there")).expect("valid"), Snapshot::default());
        assert_eq!(names_in(folder.path()), ["s"]);
    }

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        let write = |path: &Path| {
            let destination = Destination::check(path)?;
            destination.write(&Snapshot::default(), &AtomicBool::new(false))
        };
        write(&link).expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_ne!(fs::read(&file).expect("there"), b"old");
        write(Path::new("/dev/null")).expect("written");
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
        assert!(matches!(write(folder.path()), Err(OutputError::Directory { .. })));
        assert!(matches!(write(&folder.path().join("no/file")), Err(OutputError::Place { .. })));
    }

    #[test]
    fn the_snapshots_of_a_tree_lie_in_one_folder_each_under_a_name_of_its_own() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tree = Folder::new(&folder.path().join("a/b")).expect("a path");
        assert!(!tree.path().exists(), "nothing was written yet");
        let image = Image { executable: "/usr/bin/cc1".to_owned(), ..Image::default() };
        let names: Vec<PathBuf> = [7, 8, 7]
            .into_iter()
            .map(|pid| {
                tree.place(&image, pid).expect("writable").path().strip_prefix(tree.path()).expect("in it").into()
            })
            .collect();
        let wanted = ["heapline-cc1-7.snap.zst", "heapline-cc1-8.snap.zst", "heapline-cc1-7-2.snap.zst"];
        assert_eq!(names, wanted.map(PathBuf::from));
        let unknown = tree.place(&Image::default(), 9).expect("writable");
        unknown.write(&Snapshot::default(), &AtomicBool::new(false)).expect("written");
        assert_eq!(names_in(tree.path()), ["heapline-process-9.snap.zst"]);
    }

    #[test]
    fn a_snapshot_is_its_owners_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("s");
        let destination = Destination::check(&path).expect("writable");
        destination.write(&Snapshot::default(), &AtomicBool::new(false)).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    fn pipe(folder: &Path) -> PathBuf {
        let pipe = folder.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("it runs").success());
        pipe
    }

    #[test]
    fn a_pipe_without_a_reader_is_not_waited_for_once_it_is_over() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = pipe(folder.path());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).expect("linked");
        for place in [&pipe, &link] {
            let destination = Destination::check(place).expect("a place");
            let error = destination.write(&Snapshot::default(), &AtomicBool::new(true)).expect_err("nobody reads");
            assert!(matches!(error, OutputError::NoReader { .. }), "{error}");
            let looks = std::cell::Cell::new(0);
            let is_over = || looks.replace(looks.get() + 1) > 2;
            assert!(destination.write_until(&Snapshot::default(), is_over).is_err());
            assert!(looks.get() > 2, "a reader may come late");
        }
    }

    #[test]
    fn a_pipe_whose_reader_does_not_read_is_not_waited_for_once_it_is_over() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = pipe(folder.path());
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).expect("a reader");
        let filler = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).expect("a writer");
        while (&filler).write(&[0; 4096]).is_ok() {}
        let looks = std::cell::Cell::new(0);
        let destination = Destination::check(&pipe).expect("a place");
        let written = destination.write_until(&Snapshot::default(), || looks.replace(looks.get() + 1) > 2);
        assert!(matches!(written, Err(OutputError::Write { .. })));
        drop(reader);
    }

    /// Tests links, pipes and files planted by another user at the place of the snapshot.
    #[test]
    fn links_and_pipes_of_others_are_not_followed() {
        if sys::geteuid() != 0 {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, link, pipe) = (folder.path().join("file"), folder.path().join("link"), folder.path().join("pipe"));
        fs::write(&file, "precious").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        std::os::unix::fs::lchown(&link, Some(12345), None).expect("given away");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("it runs").success());
        std::os::unix::fs::chown(&pipe, Some(12345), None).expect("given away");
        for planted in [&link, &pipe] {
            assert!(matches!(Destination::check(planted), Err(OutputError::Planted { owner: 12345, .. })));
        }
        // A link put there after the check.
        let late = Destination::check(&file).expect("writable").beside(Path::new("link"));
        assert!(late.write(&Snapshot::default(), &AtomicBool::new(false)).is_err());
        assert_eq!(fs::read(&file).expect("there"), b"precious");
    }

    #[test]
    fn replaced_programs_are_numbered_behind_the_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let destination = Destination::check(&folder.path().join("s.zst")).expect("writable");
        assert!(destination.replaced(2).path().ends_with("s.zst.exec2"));
    }
}
