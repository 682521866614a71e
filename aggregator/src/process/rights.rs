//! Says why the kernel does not let this process trace another.
//!
//! The kernel only answers EPERM or EACCES. The reason is one of several settings, and each has
//! another remedy. The settings of this process are read, and the first one that forbids is named.

use crate::process::procfs;
use std::io;

/// The ways to trace a process without ptrace.
const WITHOUT: &str = "without ptrace: start it with aggregator run, or with LD_PRELOAD=FILE after aggregator \
     collector -o FILE, and attach then";

/// Settings on which the kernel decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rights {
    /// Whether this process runs as root.
    is_root: bool,
    /// Whether this process has CAP_SYS_PTRACE.
    has_capability: bool,
    /// Whether this process is in another user namespace than the machine's first processes. Its
    /// capabilities count only for processes of the namespace.
    is_in_user_namespace: bool,
    /// Whether a seccomp filter restricts this process.
    has_filter: bool,
    /// `kernel.yama.ptrace_scope`; 0 without Yama.
    scope: u8,
}

/// Returns the reason for an error of ptrace, or of reading another process's memory, to be
/// appended to a message. Empty for an error that is no refusal.
pub fn hint(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            format!("; {}; {WITHOUT}", Rights::of_this_process().reason())
        }
        _ => String::new(),
    }
}

impl Rights {
    fn of_this_process() -> Rights {
        let own = std::process::id();
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Rights {
            is_root: crate::base::sys::geteuid() == 0,
            has_capability: procfs::status(own, "CapEff").is_some_and(|set| has_ptrace(&set)),
            is_in_user_namespace: !maps_all(&map),
            has_filter: procfs::status(own, "Seccomp").is_some_and(|mode| mode == "2"),
            scope: scope.trim().parse().unwrap_or(0),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Rights { scope: 3.., .. } => "kernel.yama.ptrace_scope=3 forbids it to everybody until reboot",
            Rights { has_capability: false, scope: 1 | 2, is_root: false, .. } => {
                "kernel.yama.ptrace_scope allows it to root only: attach as root"
            }
            Rights { has_capability: false, is_root: false, .. } => {
                "it may be another user's, or have changed its user: attach as root with CAP_SYS_PTRACE"
            }
            Rights { has_capability: false, .. } => {
                "this root has no CAP_SYS_PTRACE: a container gets it by --cap-add=SYS_PTRACE"
            }
            Rights { is_in_user_namespace: true, .. } => {
                "this process has CAP_SYS_PTRACE only for its own user namespace: attach from the host"
            }
            Rights { has_filter: true, .. } => {
                "a seccomp filter on this process may forbid it: a container gets it by --security-opt \
                 seccomp=PROFILE that allows ptrace"
            }
            _ => "a security module (AppArmor, SELinux) may forbid it",
        }
    }
}

/// Whether CAP_SYS_PTRACE is in a set of capabilities, written as in `/proc/PID/status`.
fn has_ptrace(set: &str) -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    u64::from_str_radix(set, 16).is_ok_and(|set| set >> CAP_SYS_PTRACE & 1 == 1)
}

/// Whether a `uid_map` is the map of the first user namespace, in which every id is itself.
fn maps_all(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_forbids_is_named() {
        let may = Rights { is_root: true, has_capability: true, ..Rights::default() };
        let reason = |rights: Rights, part: &str| assert!(rights.reason().contains(part), "{rights:?}");
        reason(may, "security module");
        reason(Rights { has_filter: true, ..may }, "seccomp");
        reason(Rights { is_in_user_namespace: true, has_filter: true, ..may }, "user namespace");
        reason(Rights { has_capability: false, has_filter: true, ..may }, "--cap-add=SYS_PTRACE");
        reason(Rights { scope: 3, ..may }, "ptrace_scope=3");
        reason(Rights { scope: 1, ..may }, "security module");
        let user = Rights::default();
        reason(user, "attach as root");
        reason(Rights { scope: 1, ..user }, "ptrace_scope");
        reason(Rights { scope: 2, ..user }, "ptrace_scope");
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        assert!(has_ptrace("000001fffeffffff") && !has_ptrace("00000000a80425fb") && !has_ptrace(""));
        assert!(maps_all("         0          0 4294967295\n") && !maps_all("0 1000 1\n") && !maps_all(""));
        assert_eq!(hint(&io::Error::from_raw_os_error(libc::ESRCH)), "");
    }
}
