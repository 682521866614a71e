//! Figures of the traced process and of the aggregator, as the system tells.
//!
//! Only files are read that the kernel fills without the process's memory map: the process can make
//! no reader of them wait.

use crate::base::sys;
use crate::process::procfs;
use crate::process::tasks::Tasks;
use crate::session::arena_map::ArenaMap;
use heapline_shared_format::snapshot::history::ProcessStep;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Least time between two readings.
const LEAST: Duration = Duration::from_millis(100);
/// Least time between two readings, as a multiple of the time taken by a reading.
const SHARE: u32 = 200;
/// Time between two looks for the control group, as the process may be moved to another.
const LOOK: Duration = Duration::from_secs(60);

/// Reader of the figures.
pub struct Gauges {
    map: Arc<ArenaMap>,
    /// The process, once it is known.
    tasks: Arc<OnceLock<Tasks>>,
    last: Option<ProcessStep>,
    /// Greatest resident memory since the last end of a step.
    greatest: u64,
    next: Duration,
    group: Option<Group>,
    next_look: Duration,
}

impl Gauges {
    /// Returns gauges of the process with this arena.
    pub fn new(map: Arc<ArenaMap>, tasks: Arc<OnceLock<Tasks>>) -> Gauges {
        let (next, next_look) = (Duration::ZERO, Duration::ZERO);
        Gauges { map, tasks, last: None, greatest: 0, next, group: None, next_look }
    }

    /// Returns the figures at the end of a step at the time `now`, read at most a few times a
    /// second. The last figures stay when the process has ended.
    pub fn at_end_of_step(&mut self, now: Duration) -> Option<ProcessStep> {
        if now >= self.next
            && let Some(tasks) = self.tasks.get()
        {
            let begun = Instant::now();
            if now >= self.next_look {
                self.group = Group::of(tasks.pid());
                self.next_look = now + LOOK;
            }
            if let Some(read) = self.read(tasks.pid()) {
                self.greatest = self.greatest.max(read.resident);
                self.last = Some(read);
            }
            self.next = now + LEAST.max(begun.elapsed() * SHARE);
        }
        let last = self.last?;
        let greatest_resident = std::mem::replace(&mut self.greatest, last.resident).max(last.resident);
        Some(ProcessStep { greatest_resident, ..last })
    }

    fn read(&self, pid: u32) -> Option<ProcessStep> {
        let status = fs::read(format!("/proc/{pid}/status")).ok()?;
        let bytes = |field| kilobytes(&procfs::parse_status(&status, field)?);
        // A process that has ended has no memory, and is still there until its parent has waited.
        let resident = bytes("VmRSS")?;
        let number = |field| procfs::parse_status(&status, field)?.parse().ok();
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let (minor_faults, major_faults) = procfs::parse_stat_faults(&stat)?;
        let (cgroup_current, cgroup_limit) = self.group.as_ref().map_or((None, None), Group::read);
        let target = &self.map.arena().header().target;
        Some(ProcessStep {
            resident,
            greatest_resident: resident,
            anonymous: bytes("RssAnon").unwrap_or(0),
            file: bytes("RssFile").unwrap_or(0),
            shared: bytes("RssShmem").unwrap_or(0),
            swap: bytes("VmSwap").unwrap_or(0),
            threads: number("Threads").unwrap_or(0),
            minor_faults,
            major_faults,
            cgroup_current,
            cgroup_limit,
            own_target: self.map.touched_bytes() + target.own_bytes.load(Ordering::Relaxed),
            own_resident: procfs::own_resident_bytes(),
            own_cpu: u64::try_from(sys::processor_time().as_micros()).unwrap_or(u64::MAX),
        })
    }
}

/// Returns the bytes of `1234 kB`.
fn kilobytes(value: &str) -> Option<u64> {
    value.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Files of a control group.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    current: PathBuf,
    limit: PathBuf,
}

/// A hierarchy of control groups of memory.
struct Hierarchy {
    /// Folder of the hierarchy in the file system.
    mount: PathBuf,
    /// Group of the process, below the mount.
    group: PathBuf,
    current: &'static str,
    limit: &'static str,
}

impl Group {
    /// Finds the group of a process or, of the groups around it, the group with the least limit.
    fn of(pid: u32) -> Option<Group> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        hierarchies(&groups, &mounts).into_iter().find_map(|hierarchy| {
            let around = hierarchy.group.ancestors().map(|group| {
                let folder = hierarchy.mount.join(group.strip_prefix("/").unwrap_or(group));
                Group { current: folder.join(hierarchy.current), limit: folder.join(hierarchy.limit) }
            });
            // The outermost group of all has no files.
            let around: Vec<Group> = around.filter(|group| number(&group.current).is_some()).collect();
            let limited = around.iter().enumerate().filter_map(|(index, group)| Some((number(&group.limit)?, index)));
            let nearest = limited.min().map_or(0, |(_, index)| index);
            around.into_iter().nth(nearest)
        })
    }

    fn read(&self) -> (Option<u64>, Option<u64>) {
        (number(&self.current), number(&self.limit))
    }
}

/// Returns the number in a file. None for a file without a number, such as `max`, and for version
/// 1's number for no limit.
fn number(path: &Path) -> Option<u64> {
    const UNLIMITED: u64 = 1 << 62;
    fs::read_to_string(path).ok()?.trim().parse().ok().filter(|&number| number < UNLIMITED)
}

/// Returns the hierarchies that may account for the memory of a process: version 1 first, since a
/// machine with both accounts for memory there. `groups` is `/proc/PID/cgroup`, `mounts` is
/// `/proc/self/mountinfo`.
fn hierarchies(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let of = |is_first: bool| {
        let group = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
            let is_it =
                if is_first { has_word(controllers, "memory") } else { number == "0" && controllers.is_empty() };
            is_it.then_some(group)
        })?;
        let (root, mount) = mounts.lines().find_map(|line| {
            let (before, behind) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, mount) = (before.next()?, before.next()?);
            let mut behind = behind.split(' ');
            let (kind, options) = (behind.next()?, behind.nth(1)?);
            let is_it = if is_first { kind == "cgroup" && has_word(options, "memory") } else { kind == "cgroup2" };
            is_it.then_some((root, mount))
        })?;
        let group = Path::new("/").join(Path::new(group).strip_prefix(root).unwrap_or(Path::new(group)));
        let (current, limit) = match is_first {
            true => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
            false => ("memory.current", "memory.max"),
        };
        Some(Hierarchy { mount: mount.into(), group, current, limit })
    };
    [true, false].into_iter().filter_map(of).collect()
}

fn has_word(list: &str, word: &str) -> bool {
    list.split(',').any(|one| one == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 1 0:22 / /sys rw - sysfs sysfs rw\n\
        30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate\n\
        36 24 0:31 /docker/abc /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n\
        37 24 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";

    fn places(groups: &str, mounts: &str) -> Vec<(String, String)> {
        let place = |found: Hierarchy| (found.mount.display().to_string(), found.group.display().to_string());
        hierarchies(groups, mounts).into_iter().map(place).collect()
    }

    #[test]
    fn control_groups_of_both_versions_are_found() {
        let groups = "12:cpu,cpuacct:/a\n9:memory:/docker/abc/inner\n0::/init.scope\n";
        let own = |mount: &str, group: &str| (mount.to_owned(), group.to_owned());
        assert_eq!(
            places(groups, MOUNTS),
            [own("/sys/fs/cgroup/memory", "/inner"), own("/sys/fs/cgroup/unified", "/init.scope")]
        );
        assert_eq!(places("0::/x\n", MOUNTS), [own("/sys/fs/cgroup/unified", "/x")]);
        assert_eq!(places(groups, ""), []);
        assert_eq!(places("nonsense\n1:2\n", MOUNTS), []);
    }

    #[test]
    fn the_nearest_limit_counts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (outer, inner) = (folder.path().join("outer"), folder.path().join("outer/inner"));
        fs::create_dir_all(&inner).expect("made");
        let write = |path: &Path, current: &str, limit: &str| {
            fs::write(path.join("memory.current"), current).expect("written");
            fs::write(path.join("memory.max"), limit).expect("written");
        };
        write(&outer, "900\n", "1000\n");
        write(&inner, "500\n", "max\n");
        let found = |path: &Path| (number(&path.join("memory.current")), number(&path.join("memory.max")));
        assert_eq!((found(&outer), found(&inner)), ((Some(900), Some(1000)), (Some(500), None)));
    }

    #[test]
    fn sizes_of_the_system_are_bytes() {
        assert_eq!(["12 kB", "  3 kB", "max", "1"].map(kilobytes), [Some(12288), Some(3072), None, None]);
    }
}
