//! Files that appear whole or not at all.

use crate::base::sys;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file that is gone when it is dropped, unless it was put in its place.
pub struct Temporary {
    /// Open for writing.
    pub file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    /// A new file, which its owner alone may read: a snapshot tells where everything is in a process that runs.
    ///
    /// Its name cannot be guessed, so nobody can be there first, and what is there is never opened.
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

    /// Puts the file in its place; `is_synced` makes that survive a crash of the machine.
    pub fn put(mut self, place: &Path, is_synced: bool) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, place)?;
        }
        self.path = None;
        if let Some(directory) = place.parent().filter(|_| is_synced) {
            // The rename itself must survive a crash of the machine; a file system that cannot is no failure.
            let _ = File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing more can be done about it.
            let _ = fs::remove_file(path);
        }
    }
}
