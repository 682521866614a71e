//! `/tmp/heapline-<uid>`: the collector's library and the control sockets.
//!
//! Everybody may write to /tmp, so a folder of that name counts only if it is ours and nobody else can write to it.
//! Others may read it: a traced program that drops its privileges loads the library again at exec.

use crate::sys;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum PrivateDirError {
    /// The system refused.
    #[error("cannot use {}: {source}", path.display())]
    System {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is somebody else's, or open to others.
    #[error("{} is {what}: remove it, it is not to be trusted", path.display())]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The folder's path for a user.
pub fn path_for(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/heapline-{uid}"))
}

/// The caller's folder, made if it is not there.
pub fn open() -> Result<PathBuf, PrivateDirError> {
    let uid = sys::geteuid();
    let path = path_for(uid);
    let system = |source| PrivateDirError::System { path: path.clone(), source };
    match DirBuilder::new().mode(0o755).create(&path) {
        Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(system)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(system(error)),
    }
    verify(&path, uid)?;
    Ok(path)
}

/// Whether a user has a folder. An error where there is something in its place that is not to be trusted.
pub fn is_there(uid: u32) -> Result<bool, PrivateDirError> {
    match verify(&path_for(uid), uid) {
        Ok(()) => Ok(true),
        Err(PrivateDirError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn verify(path: &Path, uid: u32) -> Result<(), PrivateDirError> {
    // Of the entry itself: a symbolic link is not followed.
    let found =
        fs::symlink_metadata(path).map_err(|source| PrivateDirError::System { path: path.to_owned(), source })?;
    let what = if !found.is_dir() {
        "no directory"
    } else if found.uid() != uid {
        "another user's"
    } else if found.mode() & 0o022 != 0 {
        "writable by others"
    } else {
        return Ok(());
    };
    Err(PrivateDirError::Untrusted { path: path.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_ours_that_others_cannot_write_is_trusted() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let folder = base.path().join("d");
        fs::create_dir(&folder).expect("created");
        let set = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("set");
        set(0o755);
        assert!(verify(&folder, sys::geteuid()).is_ok());
        assert!(verify(&folder, sys::geteuid() + 1).is_err());
        set(0o777);
        assert!(verify(&folder, sys::geteuid()).is_err());
        let link = base.path().join("l");
        set(0o755);
        std::os::unix::fs::symlink(&folder, &link).expect("linked");
        assert!(verify(&link, sys::geteuid()).is_err());
    }
}
