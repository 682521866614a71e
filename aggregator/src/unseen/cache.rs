//! Caches the allocators in the files of objects: each file is read once.

use super::scan::{Scanned, scan};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Identity of a file's content. The content is unchanged as long as none of these numbers changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Content {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// Limit of the remembered files. Files beyond the limit are read anew each time.
const MOST_FILES: usize = 1 << 16;

static KNOWN: LazyLock<Mutex<HashMap<Content, Arc<Scanned>>>> = LazyLock::new(Mutex::default);

/// Returns the allocators in the file at a path. There are none without a regular file.
pub fn allocators_in(path: &Path) -> Arc<Scanned> {
    let Some((file, content)) = open(path) else { return Arc::default() };
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(&content) {
        return Arc::clone(found);
    }
    // The scan runs without the lock. Two scans of a file at the same time find the same
    // allocators.
    let found = Arc::new(scan(&file));
    let mut known = known();
    if known.len() < MOST_FILES {
        known.insert(content, Arc::clone(&found));
    }
    found
}

/// Opens a regular file. The entry at the path may have changed, and a pipe would wait for its
/// writer.
fn open(path: &Path) -> Option<(File, Content)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    let found = file.metadata().ok()?;
    found.is_file().then(|| {
        let modified = (found.mtime(), found.mtime_nsec());
        (file, Content { device: found.dev(), inode: found.ino(), length: found.len(), modified })
    })
}
