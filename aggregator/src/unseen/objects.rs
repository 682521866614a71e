//! Looks at the mapped objects of a process from time to time while the process runs. The reason:
//! an object whose code never calls malloc is on no recorded stack. After the process's end, the
//! contents of such an object are unknown.

use super::allocators::Finding;
use super::cache::allocators_in;
use crate::process::procfs;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Pause between the first two looks at a process. Each pause is twice as long as the pause before,
/// up to the next constant.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Limit of the lines read from a process's map.
const MOST_MAPPINGS: usize = 1 << 16;

/// The kernel's mark behind a path.
const DELETED: &str = " (deleted)";

/// Path of an object, and an allocator in the object.
pub type Found = (String, Finding);

/// Allocators found in a process, for each program of the process.
#[derive(Debug)]
pub struct Objects {
    pid: u32,
    /// Start time of the process, to tell apart a later process of the same number.
    began: Option<u64>,
    by_program: Mutex<BTreeMap<String, Program>>,
}

/// Facts about a single program.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Allocators in the program's objects.
    pub found: BTreeSet<Found>,
    /// Names of the allocators behind each `malloc` of the program's objects, but for the loader's.
    /// Empty before the first look.
    pub mallocs: BTreeSet<&'static str>,
    /// The environment variables that decide on allocators; none before the environment was read.
    environment: Option<BTreeMap<String, String>>,
}

impl Program {
    /// Returns an environment variable of the program. If the environment could not be read,
    /// returns the aggregator's own variable.
    pub fn variable(&self, name: &str) -> Option<String> {
        match &self.environment {
            Some(known) => known.get(name).cloned(),
            None => std::env::var(name).ok(),
        }
    }
}

impl Objects {
    /// Begins to look at a process.
    pub fn watch(pid: u32) -> Arc<Objects> {
        let objects = Arc::new(Objects { pid, began: procfs::began(pid), by_program: Mutex::default() });
        watcher::add(&objects);
        objects
    }

    /// Returns an empty value, without a process.
    pub fn of_none() -> Arc<Objects> {
        Arc::new(Objects { pid: 0, began: None, by_program: Mutex::default() })
    }

    /// Looks at the process now. Returns false when the process has ended or cannot be read by this
    /// user.
    pub fn look(&self) -> bool {
        let Some(program) = procfs::executable(self.pid) else { return false };
        let Ok(lines) = procfs::mappings(self.pid) else { return false };
        let codes = lines.take(MOST_MAPPINGS).filter_map(|line| code_of(&line));
        let codes: BTreeMap<String, Code> = codes.map(|code| (code.path.clone(), code)).collect();
        if codes.is_empty() || procfs::began(self.pid) != self.began {
            return false;
        }
        let mut found: BTreeSet<Found> = BTreeSet::new();
        let is_loader = |path: &str| path.rsplit('/').next().is_some_and(|name| name.starts_with("ld-"));
        let mut mallocs = BTreeSet::new();
        for (path, code) in codes {
            let findings = allocators_in(&code.file(self.pid));
            found.extend(findings.unseen.iter().map(|finding| (path.clone(), finding.clone())));
            mallocs.extend(findings.malloc.filter(|_| !is_loader(&path)));
        }
        let decides = found.iter().any(|(_, finding)| finding.allocator().unused_with.is_some());
        let environment = || procfs::environment(self.pid, DECISIVE);
        let mut by_program = self.by_program.lock().unwrap_or_else(PoisonError::into_inner);
        let known = by_program.entry(without_mark(&program.to_string_lossy()).to_owned()).or_default();
        known.found.extend(found);
        known.mallocs.extend(mallocs);
        if decides && known.environment.is_none() {
            known.environment = environment();
        }
        true
    }

    /// Returns the facts about a current or earlier program of the process.
    pub fn of_program(&self, executable: &str) -> Program {
        let by_program = self.by_program.lock().unwrap_or_else(PoisonError::into_inner);
        by_program.get(without_mark(executable)).cloned().unwrap_or_default()
    }
}

/// Whether an environment variable decides on an allocator.
const DECISIVE: fn(&str) -> bool = |name| {
    super::allocators::ALLOCATORS.iter().any(|row| row.unused_with.is_some_and(|(variable, _)| variable == name))
};

/// Returns a path without the kernel's mark of a file that is at the path no more.
fn without_mark(path: &str) -> &str {
    path.strip_suffix(DELETED).unwrap_or(path)
}

/// A file whose code is mapped.
#[derive(Debug, PartialEq, Eq)]
struct Code {
    /// Path of the file when the file was mapped.
    path: String,
    /// The range of the mapping, if the file at the path is another one by now.
    replaced: Option<String>,
}

impl Code {
    /// Returns where the file can be opened.
    fn file(&self, pid: u32) -> PathBuf {
        PathBuf::from(match &self.replaced {
            // The process may have another root.
            None => format!("/proc/{pid}/root{}", self.path),
            // Root alone may open the link.
            Some(range) => format!("/proc/{pid}/map_files/{range}"),
        })
    }
}

/// Returns the file in a line of a process's map, if the line maps code.
fn code_of(line: &str) -> Option<Code> {
    let mut fields = line.splitn(6, ' ');
    let (range, rights) = (fields.next()?, fields.next()?);
    let path = fields.nth(3)?.trim_start();
    let (path, is_replaced) = match path.strip_suffix(DELETED) {
        Some(path) => (path, true),
        None => (path, false),
    };
    let replaced = is_replaced.then(|| range.to_owned());
    let is_file = path.starts_with('/') && !path.starts_with("/memfd:");
    (is_file && rights.contains('x')).then(|| Code { path: path.to_owned(), replaced })
}

/// The thread that looks again at all processes.
mod watcher {
    use super::{
        Arc, Duration, FIRST_PAUSE, Instant, LONGEST_PAUSE, LazyLock, Mutex, Objects, PoisonError, Weak, thread,
    };

    /// A process to look at again.
    struct Watched {
        objects: Weak<Objects>,
        pause: Duration,
        due: Instant,
    }

    #[derive(Default)]
    struct State {
        watched: Vec<Watched>,
        runs: bool,
    }

    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

    pub fn add(objects: &Arc<Objects>) {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        let (objects, pause) = (Arc::downgrade(objects), FIRST_PAUSE);
        state.watched.push(Watched { objects, pause, due: Instant::now() + pause });
        if !state.runs {
            state.runs = thread::Builder::new().name("objects".to_owned()).spawn(run).is_ok();
        }
    }

    fn run() {
        loop {
            thread::sleep(FIRST_PAUSE);
            let now = Instant::now();
            let mut due = Vec::new();
            {
                let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
                state.watched.retain(|watched| watched.objects.strong_count() > 0);
                if state.watched.is_empty() {
                    state.runs = false;
                    return;
                }
                let (now_due, later) = state.watched.drain(..).partition(|watched: &Watched| watched.due <= now);
                due.extend::<Vec<_>>(now_due);
                state.watched = later;
            }
            for Watched { objects, pause, .. } in due {
                if objects.upgrade().is_some_and(|objects| objects.look()) {
                    let pause = (2 * pause).min(LONGEST_PAUSE);
                    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
                    state.watched.push(Watched { objects, pause, due: Instant::now() + pause });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_among_mappings() {
        let of = |line| code_of(line).map(|code| code.file(7));
        let there = of("7f00-7f10 r-xp 00000000 08:01 1234   /usr/lib/a b.so");
        assert_eq!(there, Some(PathBuf::from("/proc/7/root/usr/lib/a b.so")));
        assert_eq!(of("7f00-7f10 r-xp 00000000 00:01 9      /memfd:jit (deleted)"), None);
        assert_eq!(of("7f00-7f10 r--p 00000000 08:01 1234   /usr/lib/a.so"), None);
        assert_eq!(of("7f00-7f10 r-xp 00000000 00:00 0      [vdso]"), None);
        assert_eq!(of("7f00-7f10 rwxp 00000000 00:00 0"), None);
        let gone = code_of("7f00-7f10 r-xp 00000000 08:01 1234   /tmp/x (deleted)").expect("a file");
        assert_eq!(gone.file(7), PathBuf::from("/proc/7/map_files/7f00-7f10"));
        assert_eq!(gone.path, "/tmp/x");
    }

    #[test]
    fn this_process_is_looked_at_and_an_ended_one_is_not() {
        let own =
            Objects { pid: std::process::id(), began: procfs::began(std::process::id()), by_program: Mutex::default() };
        assert!(own.look());
        let other = Objects { began: Some(0), pid: std::process::id(), by_program: Mutex::default() };
        assert!(!other.look(), "another process of the same number");
    }
}
