//! Lists the living threads of the target, with the target's own thread ids.

use crate::process::procfs;
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Lists the threads of a process.
#[derive(Clone, Copy, Debug)]
pub struct Tasks {
    pid: u32,
    /// Whether the target has another pid namespace than the aggregator. The thread ids of the
    /// target then differ from the ids of the aggregator.
    is_foreign: bool,
}

impl Tasks {
    /// Returns a list of the threads of `pid`.
    pub fn of(pid: u32) -> Tasks {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let (ours, theirs) = (namespace("self"), namespace(&pid.to_string()));
        Tasks { pid, is_foreign: theirs.is_some() && ours != theirs }
    }

    /// Returns the process id in the aggregator's namespace.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Returns the ids of the living threads. An error says nothing about any thread.
    pub fn living(self) -> io::Result<BTreeSet<u32>> {
        let mut living = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let name = entry?.file_name();
            let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if !self.is_foreign {
                living.insert(tid);
            } else if let Some(inner) = self.inner_id(tid) {
                living.insert(inner);
            }
        }
        Ok(living)
    }

    /// Whether a thread missing in a listing is really gone. A listing may miss a thread while
    /// other threads end.
    pub fn is_gone(self, tid: u32) -> bool {
        if self.is_foreign {
            return self.living().is_ok_and(|living| !living.contains(&tid));
        }
        fs::exists(format!("/proc/{}/task/{tid}", self.pid)).is_ok_and(|exists| !exists)
    }

    /// Returns the process id in the process's own namespace.
    pub fn inner_pid(self) -> u32 {
        if self.is_foreign { self.inner_id(self.pid).unwrap_or(self.pid) } else { self.pid }
    }

    /// Returns the name of a living thread.
    pub fn name(self, tid: u32) -> Option<String> {
        if self.is_foreign {
            return None;
        }
        let name = fs::read(format!("/proc/{}/task/{tid}/comm", self.pid)).ok()?;
        Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
    }

    fn inner_id(self, tid: u32) -> Option<u32> {
        let status = fs::read(format!("/proc/{}/task/{tid}/status", self.pid)).ok()?;
        procfs::parse_status(&status, "NSpid")?.split_whitespace().next_back()?.parse().ok()
    }
}
