//! Opens files with paths chosen by others: paths in a snapshot, or paths of a traced process.
//!
//! Whoever chose these paths may own the files there. So only regular files of ordinary file
//! systems are opened:
//!
//! - opening a device can be a command to the device;
//! - opening a pipe would block;
//! - files in /proc and /sys are interfaces of the kernel.
//!
//! A file that another user can shorten is read, not mapped.

use rustix::fs::OFlags;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use symbolic_common::ByteView;

/// Most bytes read from another user's file.
const MAX_READ_BYTES: u64 = 1 << 30;

/// File systems without ordinary files: proc, sysfs, debugfs, tracefs, configfs, securityfs,
/// efivarfs, pstore, bpf, cgroup, cgroup2.
const NO_FILES: [u32; 11] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x6265_6570,
    0x7363_6673,
    0xde5e_81e4,
    0x6165_676c,
    0xcafe_4a11,
    0x0027_e0eb,
    0x6367_7270,
];

/// An open regular file.
pub struct Foreign {
    file: File,
    bytes: u64,
    /// Whether only this user and root can change the file.
    is_trusted: bool,
    /// Whether everybody may read the file.
    is_public: bool,
}

/// Opens the file at `path`, if a regular file is there.
pub fn open(path: &Path) -> io::Result<Foreign> {
    // `held` is checked first and opened for reading afterwards: nobody can exchange the file in
    // between.
    let held = OpenOptions::new().read(true).custom_flags(flag(OFlags::PATH)).open(path)?;
    check(&held)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flag(OFlags::NONBLOCK | OFlags::NOCTTY))
        .open(format!("/proc/self/fd/{}", held.as_raw_fd()))?;
    Foreign::of(file)
}

/// Returns the properties of a regular file of an ordinary file system.
fn check(file: &File) -> io::Result<Metadata> {
    let found = file.metadata()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers have 32 bits")]
    let kind = rustix::fs::fstatfs(file)?.f_type as u32;
    match found.is_file() && !NO_FILES.contains(&kind) {
        true => Ok(found),
        false => Err(io::Error::other("it is no regular file")),
    }
}

fn flag(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

impl Foreign {
    /// Takes an open file, if the file is a regular file of an ordinary file system.
    pub fn of(file: File) -> io::Result<Foreign> {
        const WRITABLE_BY_OTHERS: u32 = 0o022;
        const READABLE_BY_OTHERS: u32 = 0o004;
        let found = check(&file)?;
        let own = rustix::process::geteuid().as_raw();
        Ok(Foreign {
            file,
            bytes: found.len(),
            is_trusted: [0, own].contains(&found.uid()) && found.mode() & WRITABLE_BY_OTHERS == 0,
            is_public: found.mode() & READABLE_BY_OTHERS != 0,
        })
    }

    /// Takes a memory file of this process. Nobody else can change the file.
    pub fn of_own(file: File) -> Foreign {
        let bytes = file.metadata().map_or(0, |found| found.len());
        Foreign { file, bytes, is_trusted: true, is_public: false }
    }

    /// Returns the open file.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Whether only this user and root can change the file.
    pub fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// Returns the content, mapped if nobody else can shorten the file meanwhile.
    pub fn view(mut self) -> io::Result<ByteView<'static>> {
        if self.is_trusted {
            return ByteView::map_file(self.file);
        }
        // Copies of a descriptor share the position.
        self.file.rewind()?;
        match self.bytes {
            0..=MAX_READ_BYTES => ByteView::read(self.file.take(self.bytes)),
            _ => Err(io::Error::other("it is another user's, and too large to be read")),
        }
    }

    /// Returns the content as text to be shown. Root may read everything, but shows only files that
    /// everybody may read.
    pub fn text(self, max_bytes: u64) -> io::Result<Vec<u8>> {
        let is_root = rustix::process::geteuid().is_root();
        if self.bytes > max_bytes || (is_root && !self.is_public) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut bytes = Vec::new();
        self.file.take(self.bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let none =
            ["/dev/null", "/dev/zero", "/proc/self/maps", "/proc/kmsg", "/sys/kernel/mm/transparent_hugepage/enabled"];
        for path in none.map(Path::new).into_iter().chain([pipe.as_path(), folder.path()]) {
            assert!(open(path).is_err(), "{}", path.display());
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self/exe", &link).unwrap();
        assert!(open(&link).unwrap().view().unwrap().starts_with(b"\x7fELF"));
    }

    #[test]
    fn what_others_can_change_is_not_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(open(&path).unwrap().is_trusted());
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let writable = open(&path).unwrap();
        assert!(!writable.is_trusted());
        // The file is cut while in use: with a mapping, access would raise SIGBUS.
        let view = writable.view().unwrap();
        File::options().write(true).truncate(true).open(&path).unwrap();
        assert_eq!(&*view, b"content");
        File::options().write(true).open(&path).unwrap().set_len(MAX_READ_BYTES + 1).unwrap();
        assert!(open(&path).unwrap().view().is_err());
    }

    #[test]
    fn root_shows_what_everybody_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(open(&path).unwrap().text(100).is_err(), is_root);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(open(&path).unwrap().text(100).unwrap(), b"secret");
        assert!(open(&path).unwrap().text(5).is_err());
    }
}
