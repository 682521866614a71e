//! Places of the snapshots of a followed run: the snapshot of the command, and the snapshots of its
//! child processes.
//!
//! | `-o` | the command's | its children's |
//! | --- | --- | --- |
//! | none | `heapline-<name>-<pid>.snap.zst` | in `heapline-<name>-<pid>/` |
//! | `x.snap.zst`, `x.zst` | there | in `x/` |
//! | an existing other file `x` | there | in `x.tree/` |
//! | a device or a pipe | there | nowhere: they are not followed |
//! | any other path | in this folder | in this folder |

use crate::snapshot::write::{Destination, Folder, OutputError};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Places of the snapshots of a run. Names with the process id are not complete yet.
pub enum Outputs {
    /// All snapshots are named after the process.
    ByName {
        /// `<name>` of the table.
        name: String,
        /// A place in the current folder; checked under another name.
        checked: Destination,
    },
    /// A file for the process itself, and a folder for its children.
    File(Destination, Option<Folder>),
    /// All snapshots are in one folder.
    Folder {
        /// `<name>` of the table.
        name: String,
        /// The folder.
        folder: Folder,
    },
}

impl Outputs {
    /// Checks that all snapshots can be written. Without `follows`, the path is a file.
    pub fn check(output: Option<&Path>, name: &str, follows: bool) -> Result<Outputs, OutputError> {
        let Some(path) = output else {
            let checked = Destination::check(&default_output(name, 0))?;
            return Ok(Outputs::ByName { name: name.to_owned(), checked });
        };
        if !follows {
            return Ok(Outputs::File(Destination::check(path)?, None));
        }
        let found = fs::metadata(path).ok();
        let is_file = found.as_ref().is_some_and(|found| !found.is_dir());
        if is_file || found.is_none() && path.extension().is_some_and(|extension| extension == "zst") {
            let is_special = found.is_some_and(|found| !found.is_file());
            let folder = (!is_special).then(|| Folder::new(&folder_of(path))).transpose()?;
            return Ok(Outputs::File(Destination::check(path)?, folder));
        }
        let folder = Folder::new(path)?;
        folder.make()?;
        Ok(Outputs::Folder { name: name.to_owned(), folder })
    }

    /// Whether there is a place for the snapshots of children.
    pub fn can_follow(&self) -> bool {
        !matches!(self, Outputs::File(_, None))
    }

    /// Returns the places for this process.
    pub fn settle(self, pid: u32) -> Result<(Destination, Option<Arc<Folder>>), OutputError> {
        Ok(match self {
            Outputs::ByName { name, checked } => {
                let own = checked.beside(&default_output(&name, pid));
                let folder = Folder::new(&folder_of(own.path()))?;
                (own, Some(Arc::new(folder)))
            }
            Outputs::File(own, folder) => (own, folder.map(Arc::new)),
            Outputs::Folder { name, folder } => (folder.file(&default_output(&name, pid)), Some(Arc::new(folder))),
        })
    }
}

/// Returns `heapline-<name>-<pid>.snap.zst`. A process can give itself any name, so slashes and
/// control characters are replaced: a shell or a terminal would treat them specially.
pub fn default_output(name: &str, pid: u32) -> PathBuf {
    let is_plain = |c: char| !c.is_control() && c != '/';
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    PathBuf::from(format!("heapline-{name}-{pid}.snap.zst"))
}

/// Returns the folder for the children of a snapshot's process.
fn folder_of(snapshot: &Path) -> PathBuf {
    let name = snapshot.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let stem = name.strip_suffix(".snap.zst").or_else(|| name.strip_suffix(".zst")).filter(|stem| !stem.is_empty());
    match stem {
        Some(stem) => snapshot.with_file_name(stem),
        None => {
            let mut name = OsString::from(snapshot);
            name.push(".tree");
            name.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the place of the command's snapshot, and the folder of its children's snapshots.
    fn places(output: Option<&Path>, follows: bool) -> (PathBuf, Option<PathBuf>) {
        let (own, folder) = Outputs::check(output, "make", follows).and_then(|o| o.settle(7)).expect("writable");
        (own.path().to_owned(), folder.map(|folder| folder.path().to_owned()))
    }

    #[test]
    fn the_path_says_what_goes_where() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| base.path().join(name);
        assert_eq!(places(Some(&at("a.snap.zst")), true), (at("a.snap.zst"), Some(at("a"))));
        assert_eq!(places(Some(&at("b.zst")), true), (at("b.zst"), Some(at("b"))));
        assert_eq!(places(Some(&at("c")), true), (at("c/heapline-make-7.snap.zst"), Some(at("c"))));
        assert!(at("c").is_dir() && !at("a").exists(), "a folder is made at once only where all goes into it");
        fs::create_dir(at("d.zst")).expect("made");
        assert_eq!(places(Some(&at("d.zst")), true), (at("d.zst/heapline-make-7.snap.zst"), Some(at("d.zst"))));
        fs::write(at("e"), "old").expect("written");
        assert_eq!(places(Some(&at("e")), true), (at("e"), Some(at("e.tree"))));
        assert_eq!(places(Some(&at("f")), false), (at("f"), None));
        assert_eq!(places(Some(Path::new("/dev/null")), true), ("/dev/null".into(), None));
        let (own, folder) = places(None, true);
        assert!(own.ends_with("heapline-make-7.snap.zst") && folder.expect("a folder").ends_with("heapline-make-7"));
        assert!(Outputs::check(Some(&at("e/x")), "make", true).is_err(), "a file is no folder");
    }
}
