//! The threads of the target that are alive, as the target numbers them.

use crate::process::procfs;
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Lists a process's threads.
#[derive(Clone, Copy, Debug)]
pub struct Tasks {
    pid: u32,
    /// Whether the target has a pid namespace of its own, so that its numbers differ from ours.
    is_foreign: bool,
}

impl Tasks {
    /// The threads of `pid`.
    pub fn of(pid: u32) -> Tasks {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let (ours, theirs) = (namespace("self"), namespace(&pid.to_string()));
        Tasks { pid, is_foreign: theirs.is_some() && ours != theirs }
    }

    /// The process, as we number it.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// The ids of the living threads. An error says nothing about any thread.
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

    /// Whether a thread that a listing did not show is really gone: a listing may miss a thread while others end.
    pub fn is_gone(self, tid: u32) -> bool {
        if self.is_foreign {
            return self.living().is_ok_and(|living| !living.contains(&tid));
        }
        fs::exists(format!("/proc/{}/task/{tid}", self.pid)).is_ok_and(|exists| !exists)
    }

    /// The process's own idea of its id.
    pub fn inner_pid(self) -> u32 {
        if self.is_foreign { self.inner_id(self.pid).unwrap_or(self.pid) } else { self.pid }
    }

    /// The name of a living thread.
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
