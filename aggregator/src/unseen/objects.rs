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
        let paths: BTreeSet<String> = lines.take(MOST_MAPPINGS).filter_map(|line| code_of(&line)).collect();
        if paths.is_empty() || procfs::began(self.pid) != self.began {
            return false;
        }
        let mut found: BTreeSet<Found> = BTreeSet::new();
        for path in paths {
            // The process may have another root.
            let findings = allocators_in(&PathBuf::from(format!("/proc/{}/root{path}", self.pid)));
            found.extend(findings.iter().map(|finding| (path.clone(), finding.clone())));
        }
        let decides = found.iter().any(|(_, finding)| finding.allocator().unused_with.is_some());
        let environment = || procfs::environment(self.pid, DECISIVE);
        let mut by_program = self.by_program.lock().unwrap_or_else(PoisonError::into_inner);
        let known = by_program.entry(program.to_string_lossy().into_owned()).or_default();
        known.found.extend(found);
        if decides && known.environment.is_none() {
            known.environment = environment();
        }
        true
    }

    /// Returns the facts about a current or earlier program of the process.
    pub fn of_program(&self, executable: &str) -> Program {
        let by_program = self.by_program.lock().unwrap_or_else(PoisonError::into_inner);
        by_program.get(executable).cloned().unwrap_or_default()
    }
}

/// Whether an environment variable decides on an allocator.
const DECISIVE: fn(&str) -> bool = |name| {
    super::allocators::ALLOCATORS.iter().any(|row| row.unused_with.is_some_and(|(variable, _)| variable == name))
};

/// Returns the file in a line of a process's map, if the line maps code.
fn code_of(line: &str) -> Option<String> {
    let mut fields = line.splitn(6, ' ');
    let rights = fields.nth(1)?;
    let path = fields.nth(3)?.trim_start();
    let is_file = path.starts_with('/') && !path.ends_with(" (deleted)");
    (is_file && rights.contains('x')).then(|| path.to_owned())
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
        let of = |line| code_of(line);
        assert_eq!(of("7f00-7f10 r-xp 00000000 08:01 1234   /usr/lib/a b.so").as_deref(), Some("/usr/lib/a b.so"));
        assert_eq!(of("7f00-7f10 r--p 00000000 08:01 1234   /usr/lib/a.so"), None);
        assert_eq!(of("7f00-7f10 r-xp 00000000 00:00 0      [vdso]"), None);
        assert_eq!(of("7f00-7f10 rwxp 00000000 00:00 0"), None);
        assert_eq!(of("7f00-7f10 r-xp 00000000 08:01 1234   /tmp/x (deleted)"), None);
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
