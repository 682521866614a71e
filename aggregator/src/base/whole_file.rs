//! Files that appear whole or not at all.

use crate::base::sys;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A temporary file. Dropping the value removes the file, unless the file was put in its place.
pub struct Temporary {
    /// The file, open for writing.
    pub file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    /// Creates a file readable only by its owner: a snapshot shows the memory addresses of a
    /// running process.
    ///
    /// The name of the file cannot be guessed, so no other program can create the file first. An
    /// existing file is never opened.
    pub fn beside(place: &Path) -> io::Result<Temporary> {
        const ATTEMPTS: usize = 16;
        let directory = place.parent().unwrap_or(Path::new("/"));
        for _ in 0..ATTEMPTS {
            let path = directory.join(format!(".heapline-{:016x}.tmp", sys::random()?));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return Ok(Temporary { file: opened?, path: Some(path) }),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes a whole file to `place`, with these permissions.
    pub fn fill(place: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let mut temporary = Temporary::beside(place)?;
        temporary.file.write_all(bytes)?;
        temporary.file.set_permissions(Permissions::from_mode(mode))?;
        temporary.put(place, true)
    }

    /// Puts the file in its place. With `is_synced`, the file and its name survive a crash of the
    /// machine.
    pub fn put(mut self, place: &Path, is_synced: bool) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, place)?;
        }
        self.path = None;
        if let Some(directory) = place.parent().filter(|_| is_synced) {
            // The rename must survive a crash of the machine. A file system without this ability is
            // no failure.
            let _ = File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // A failed removal has no remedy.
            let _ = fs::remove_file(path);
        }
    }
}
