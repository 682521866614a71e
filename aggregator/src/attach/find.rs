//! Whether a process may be traced, and where its arena is.

use super::AttachError;
use crate::elf::{self, Obstacle};
use crate::{procfs, sys};
use heapline_shared_format::arena::MEMFD_NAME;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Flag of kernel threads in `/proc/PID/stat`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Checks that the process can be traced at all, and by us.
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

/// Whether the program of a process brings its own malloc.
pub fn has_own_malloc(pid: u32) -> bool {
    elf::examine_binary(&executable(pid)) == Some(Obstacle::OwnMalloc)
}

fn is_kernel_thread(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may contain anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = fields.split_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// The arena of a process in which the collector runs.
pub fn arena(pid: u32) -> Result<File, AttachError> {
    let open = |path: &Path| {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map_err(|source| AttachError::System { pid, source })
    };
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

fn is_arena(target: &str) -> bool {
    let name = target.strip_prefix("/memfd:").unwrap_or_default();
    name.strip_suffix(" (deleted)").unwrap_or(name) == MEMFD_NAME
}

/// The arena among the process's descriptors.
fn descriptor(pid: u32) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target.to_str().is_some_and(is_arena)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The arena among the process's mappings, for a program that has closed its descriptors.
fn mapping(pid: u32) -> Option<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let target = &rest[rest.find("/memfd:")?..];
        is_arena(target).then(|| PathBuf::from(format!("/proc/{pid}/map_files/{range}")))
    })
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
    fn only_the_arenas_name_is_an_arena() {
        assert!(is_arena("/memfd:heapline-arena (deleted)"));
        assert!(!is_arena("/memfd:heapline-arena-2 (deleted)"));
        assert!(!is_arena("/tmp/heapline-arena"));
    }
}
