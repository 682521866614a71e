//! Checks whether a process may be traced, and finds the arena of the process.

use super::AttachError;
use crate::base::sys;
use crate::process::{elf, procfs};
use heapline_shared_format::arena::MEMFD_NAME;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Flag of kernel threads in `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Checks whether the process can be traced, and whether this user may trace the process.
pub fn check(pid: u32) -> Result<(), AttachError> {
    let owner = procfs::uid(pid).ok_or(AttachError::NoProcess { pid })?;
    let own = sys::geteuid();
    if own != 0 && own != owner {
        return Err(AttachError::OtherUser { pid, owner });
    }
    if procfs::status(pid, "State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
        return Err(AttachError::Ended { pid });
    }
    if is_kernel_thread(pid) {
        return Err(AttachError::KernelThread { pid });
    }
    let thread_group = procfs::status(pid, "Tgid").and_then(|tgid| tgid.parse().ok());
    if let Some(process) = thread_group.filter(|&process| process != pid) {
        return Err(AttachError::Thread { tid: pid, process });
    }
    let tracer = procfs::status(pid, "TracerPid").and_then(|id| id.parse().ok()).filter(|&id| id != 0);
    if let Some(by) = tracer {
        let tracer = procfs::name(by).unwrap_or_else(|| "another program".to_owned());
        return Err(AttachError::Traced { pid, by, tracer });
    }
    match elf::examine_binary(&executable(pid)) {
        Some(obstacle) if obstacle.is_certain() => Err(AttachError::Obstacle { pid, obstacle }),
        _ => Ok(()),
    }
}

fn executable(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

fn is_kernel_thread(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    procfs::parse_stat_flags(&stat).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// Opens the arena of a process with a running collector.
pub fn arena(pid: u32) -> Result<File, AttachError> {
    let open = |path: &Path| open_arena(path).map_err(|source| AttachError::System { pid, source });
    if let Some(path) = descriptor(pid).map_err(|source| AttachError::System { pid, source })? {
        return open(&path);
    }
    match mapping(pid) {
        None => Err(AttachError::NoArena { pid }),
        Some(path) => match open(&path) {
            Err(AttachError::System { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(AttachError::Closed { pid })
            }
            opened => opened,
        },
    }
}

/// Opens a file known as an arena from an earlier look.
///
/// The process may have replaced the file since. Opening a device, or a file of a file system made
/// by the process, can do harm or block forever. Therefore:
/// 1. The file is opened with `O_PATH`, without any effect on a device.
/// 2. The name of the held file is checked.
/// 3. Only an arena is opened for reading and writing.
fn open_arena(path: &Path) -> io::Result<File> {
    let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let own_path = format!("/proc/self/fd/{}", held.as_raw_fd());
    if !fs::read_link(&own_path)?.to_str().is_some_and(is_arena) {
        return Err(io::ErrorKind::NotFound.into());
    }
    OpenOptions::new().read(true).write(true).open(&own_path)
}

fn is_arena(target: &str) -> bool {
    let name = target.strip_prefix("/memfd:").unwrap_or_default();
    name.strip_suffix(" (deleted)").unwrap_or(name) == MEMFD_NAME
}

/// Finds the arena among the descriptors of the process.
fn descriptor(pid: u32) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target.to_str().is_some_and(is_arena)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Finds the arena among the mappings of the process, for a program with closed descriptors.
fn mapping(pid: u32) -> Option<PathBuf> {
    let range = procfs::mappings(pid).ok()?.find_map(|line| parse_mapping(&line).map(str::to_owned))?;
    Some(PathBuf::from(format!("/proc/{pid}/map_files/{range}")))
}

/// Returns the address range in a line of `/proc/PID/maps`, if the line maps an arena.
pub fn parse_mapping(line: &str) -> Option<&str> {
    let (range, rest) = line.split_once(' ')?;
    let is_range = range.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (is_range && is_arena(&rest[rest.find("/memfd:")?..])).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    #[test]
    fn processes_that_cannot_be_traced_are_told_apart() {
        assert!(matches!(check(u32::MAX), Err(AttachError::NoProcess { .. })));
        assert!(check(process::id()).is_ok());
        assert!(matches!(arena(process::id()), Err(AttachError::NoArena { .. })));
        if procfs::name(2).as_deref() == Some("kthreadd") && sys::geteuid() == 0 {
            assert!(matches!(check(2), Err(AttachError::KernelThread { .. })));
        }
    }

    #[test]
    fn what_is_no_arena_any_more_is_not_opened() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = folder.path().join("memfd:heapline-arena");
        assert!(process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        // A full open of the pipe would wait for the other end. A full open of a device would run
        // the code of the driver.
        assert_eq!(open_arena(&pipe).expect_err("no arena").kind(), io::ErrorKind::NotFound);
        assert_eq!(open_arena(Path::new("/dev/null")).expect_err("no arena").kind(), io::ErrorKind::NotFound);
        assert_eq!(parse_mapping("7f00-7f01 rw-s 00000000 00:01 2 /memfd:heapline-arena (deleted)"), Some("7f00-7f01"));
        assert_eq!(parse_mapping("../../x rw-s 0 00:01 2 /memfd:heapline-arena (deleted)"), None);
    }

    #[test]
    fn only_the_arenas_name_is_an_arena() {
        assert!(is_arena("/memfd:heapline-arena (deleted)"));
        assert!(!is_arena("/memfd:heapline-arena-2 (deleted)"));
        assert!(!is_arena("/tmp/heapline-arena"));
    }
}
