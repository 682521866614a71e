//! The folder with the collector's library and the control sockets: `/tmp/heapline-<uid>`.
//!
//! Every user may write to /tmp. A folder of this name therefore counts only if it belongs to this
//! user and no other user can write to it. Other users may read the folder: a traced program may
//! drop its privileges, and loads the library again at exec.
//!
//! The usual folder may be unusable: it belongs to another user, is a file, is full, is read-only,
//! or forbids running programs. Then the next usable folder of this list is taken:
//! 1. a folder in `XDG_RUNTIME_DIR`;
//! 2. a folder with an unguessable name, removed at the end.
//!
//! A user id without a mapping in a user namespace does not count as a name: outside of the
//! namespace, other users share the id.

use crate::base::sys;
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Room needed in the folder: for the collector's library, and for another version to replace it.
pub const ROOM_BYTES: u64 = 16 << 20;
/// Reasons why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum PrivateDirError {
    /// The system refused.
    #[error("cannot use {}: {source}", path.display())]
    System {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The folder belongs to another user, or is open to others.
    #[error("{} is {what}: remove it, it is not to be trusted", path.display())]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// Description of the fault.
        what: &'static str,
    },
}

/// First part of the names of all folders.
pub const NAME: &str = "heapline";

/// Returns the path of a user's usual folder.
pub fn path_for(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/{NAME}-{uid}"))
}

/// The folder of this process, after the first request.
static OWN: Mutex<Option<Own>> = Mutex::new(None);

struct Own {
    path: PathBuf,
    is_temporary: bool,
}

/// Returns the folder of this process, and makes the folder if needed. On failure, returns the
/// error of the usual folder.
pub fn open() -> Result<PathBuf, PrivateDirError> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = &*own {
        return Ok(own.path.clone());
    }
    let found = usual().or_else(|error| of_session().or_else(|_| temporary()).map_err(|_| error))?;
    Ok(own.insert(found).path.clone())
}

/// Makes a folder for this process in `base`, removed at the end. To be called when [`open`] has
/// failed.
pub fn open_in(base: &Path) -> Result<PathBuf, PrivateDirError> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = temporary_in(base)?;
    Ok(own.insert(found).path.clone())
}

/// Removes the folder of this process if no other process can use the folder.
pub fn leave() {
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Own { path, is_temporary: true }) = own {
        // A folder that cannot be removed is left.
        let _ = fs::remove_dir_all(path);
    }
}

fn usual() -> Result<Own, PrivateDirError> {
    let uid = sys::geteuid();
    let path = path_for(uid);
    if !sys::is_mapped_user() {
        return Err(PrivateDirError::Untrusted { path, what: "named after a user id that other users have outside" });
    }
    make(path)
}

/// Returns a folder in the user's folder of the session manager.
fn of_session() -> Result<Own, PrivateDirError> {
    let base = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_default());
    if !base.is_absolute() {
        return Err(PrivateDirError::System { path: base, source: io::ErrorKind::NotFound.into() });
    }
    verify(&base, sys::geteuid())?;
    make(base.join(NAME))
}

fn temporary() -> Result<Own, PrivateDirError> {
    let bases = [std::env::temp_dir(), "/tmp".into(), "/dev/shm".into(), "/var/tmp".into()];
    let mut result = Err(PrivateDirError::System { path: PathBuf::new(), source: io::ErrorKind::NotFound.into() });
    for base in bases.iter().filter(|base| base.is_absolute()) {
        result = temporary_in(base);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn temporary_in(base: &Path) -> Result<Own, PrivateDirError> {
    let system = |source| PrivateDirError::System { path: base.to_owned(), source };
    let path = base.join(format!("{NAME}-{:016x}", sys::random().map_err(system)?));
    make(path.clone()).map(|own| Own { is_temporary: true, ..own }).inspect_err(|_| {
        // No other process knows the name.
        let _ = fs::remove_dir(path);
    })
}

/// Makes a folder if needed, and checks the folder.
fn make(path: PathBuf) -> Result<Own, PrivateDirError> {
    let system = |source| PrivateDirError::System { path: path.clone(), source };
    match DirBuilder::new().mode(0o755).create(&path) {
        Ok(()) => fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(system)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(system(error)),
    }
    verify(&path, sys::geteuid())?;
    check_room(&path).map_err(system)?;
    Ok(Own { path, is_temporary: false })
}

/// Checks that the library can be written to the folder, and loaded from there.
fn check_room(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `name` is a C string, and `found` is valid for the write. Zeros are a valid statvfs.
    let found = unsafe {
        sys::check(libc::statvfs(name.as_ptr(), found.as_mut_ptr()))?;
        found.assume_init()
    };
    if found.f_flag & libc::ST_NOEXEC != 0 {
        return Err(io::Error::other("nothing may be run from that file system"));
    }
    if found.f_flag & libc::ST_RDONLY != 0 {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    if found.f_bavail.saturating_mul(found.f_frsize) < ROOM_BYTES {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// Whether a user has the usual folder. Fails for an untrusted entry at this path.
pub fn is_there(uid: u32) -> Result<bool, PrivateDirError> {
    match verify(&path_for(uid), uid) {
        Ok(()) => Ok(true),
        Err(PrivateDirError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that a folder belongs to this user, and that no other user can write to the folder.
pub fn verify(path: &Path, uid: u32) -> Result<(), PrivateDirError> {
    // Reads the entry itself: a symbolic link is not followed.
    let found =
        fs::symlink_metadata(path).map_err(|source| PrivateDirError::System { path: path.to_owned(), source })?;
    let what = if !found.is_dir() {
        "no directory"
    } else if found.uid() != uid {
        "another user's"
    } else if found.mode() & 0o022 != 0 {
        "writable by others"
    } else if uid == sys::geteuid() && !sys::can_write(path) {
        // In a user namespace, all users without a mapping have the same number. The kernel still
        // tells the users apart.
        "not writable"
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

    #[test]
    fn a_folder_from_which_nothing_can_be_loaded_is_not_taken() {
        assert!(check_room(&std::env::temp_dir()).is_ok());
        // Neither folder has room, and one of the two forbids running programs.
        assert!(check_room(Path::new("/proc")).is_err() && check_room(Path::new("/sys")).is_err());
        assert!(make(PathBuf::from("/proc/heapline")).is_err());
    }

    #[test]
    fn a_temporary_folder_has_another_name_each_time() {
        let [first, second] = [0; 2].map(|_| temporary().expect("there is room"));
        assert!(first.is_temporary && first.path != second.path);
        for own in [first, second] {
            assert!(verify(&own.path, sys::geteuid()).is_ok());
            fs::remove_dir(own.path).expect("ours, and empty");
        }
    }
}
