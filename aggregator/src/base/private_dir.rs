//! The folder with the collector's library and the control sockets: `/tmp/heapline-<uid>`.
//!
//! Everybody may write to /tmp, so a folder of that name counts only if it is ours and nobody else can write to it.
//! Others may read it: a traced program that drops its privileges loads the library again at exec.
//!
//! Where that folder cannot be had (it is another user's, a file, full, read-only; no program may
//! be run from it), the next of these is taken: one in `XDG_RUNTIME_DIR`, one with a name that
//! cannot be guessed, which is removed at the end. A user id that a user namespace does not map is
//! not a name: outside, other users have it.

use crate::base::sys;
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Room that the folder needs: for the collector's library, and for another one that replaces it.
pub const ROOM_BYTES: u64 = 16 << 20;
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

/// What the names of all folders begin with.
pub const NAME: &str = "heapline";

/// The usual folder's path for a user.
pub fn path_for(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/{NAME}-{uid}"))
}

/// The folder of this process, once it was asked for.
static OWN: Mutex<Option<Own>> = Mutex::new(None);

struct Own {
    path: PathBuf,
    is_temporary: bool,
}

/// The folder of this process, made if it is not there. The error is that of the usual folder.
pub fn open() -> Result<PathBuf, PrivateDirError> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = &*own {
        return Ok(own.path.clone());
    }
    let found = usual().or_else(|error| of_session().or_else(|_| temporary()).map_err(|_| error))?;
    Ok(own.insert(found).path.clone())
}

/// Removes the folder of this process if no other process can use it.
pub fn leave() {
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Own { path, is_temporary: true }) = own {
        // What cannot be removed is left.
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

/// The folder in the one that a session's manager has made for the user.
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
        let system = |source| PrivateDirError::System { path: base.clone(), source };
        let path = base.join(format!("{NAME}-{:016x}", sys::random().map_err(system)?));
        result = make(path.clone()).map(|own| Own { is_temporary: true, ..own });
        if result.is_ok() {
            break;
        }
        // Nobody else knows the name.
        let _ = fs::remove_dir(path);
    }
    result
}

/// Makes a folder if it is not there, and checks it.
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

/// Whether the library can be written there, and loaded from there.
fn check_room(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a C string, and memory that is valid for the write; zeros are a valid statvfs.
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

/// Whether a user has the usual folder. An error where there is something in its place that is not
/// to be trusted.
pub fn is_there(uid: u32) -> Result<bool, PrivateDirError> {
    match verify(&path_for(uid), uid) {
        Ok(()) => Ok(true),
        Err(PrivateDirError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that a folder is this user's, and that nobody else can write to it.
pub fn verify(path: &Path, uid: u32) -> Result<(), PrivateDirError> {
    // Of the entry itself: a symbolic link is not followed.
    let found =
        fs::symlink_metadata(path).map_err(|source| PrivateDirError::System { path: path.to_owned(), source })?;
    let what = if !found.is_dir() {
        "no directory"
    } else if found.uid() != uid {
        "another user's"
    } else if found.mode() & 0o022 != 0 {
        "writable by others"
    } else if uid == sys::geteuid() && !sys::can_write(path) {
        // Users that a user namespace does not map have one number there; the kernel knows them
        // apart.
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
        // Neither has room, and of one of them programs may not be run.
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
