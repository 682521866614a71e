//! The objects that a process has mapped, looked at now and then while it runs: one whose code
//! never allocates by malloc is on no recorded stack, and after the process's end nobody can say
//! what it had.

use super::allocators::Finding;
use super::cache::allocators_in;
use crate::process::procfs;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Between the first two looks at a process; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Lines of a process's map that are looked at.
const MOST_MAPPINGS: usize = 1 << 16;

/// An object and an allocator in it.
pub type Found = (String, Finding);

/// What was found in a process, by the program that it ran.
#[derive(Debug)]
pub struct Objects {
    pid: u32,
    /// When the process began, by which another one of the same number is told apart.
    began: Option<u64>,
    by_program: Mutex<BTreeMap<String, Program>>,
}

/// What was seen of one program.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Allocators in its objects.
    pub found: BTreeSet<Found>,
    /// The variables of its environment that decide on allocators, once it was asked for.
    environment: Option<BTreeMap<String, String>>,
}

impl Program {
    /// A variable of its environment; the aggregator's own stands for one that could not be read.
    pub fn variable(&self, name: &str) -> Option<String> {
        match &self.environment {
            Some(known) => known.get(name).cloned(),
            None => std::env::var(name).ok(),
        }
    }
}

impl Objects {
    /// Of a process, which is looked at from now on.
    pub fn watch(pid: u32) -> Arc<Objects> {
        let objects = Arc::new(Objects { pid, began: procfs::began(pid), by_program: Mutex::default() });
        watcher::add(&objects);
        objects
    }

    /// Of no process: nothing is to be seen of it.
    pub fn of_none() -> Arc<Objects> {
        Arc::new(Objects { pid: 0, began: None, by_program: Mutex::default() })
    }

    /// Looks at the process now. False when there is nothing to be seen: it has ended, or is not
    /// ours to read.
    pub fn look(&self) -> bool {
        let Some(program) = procfs::executable(self.pid) else { return false };
        let Ok(lines) = procfs::mappings(self.pid) else { return false };
        let paths: BTreeSet<String> = lines.take(MOST_MAPPINGS).filter_map(|line| code_of(&line)).collect();
        if paths.is_empty() || procfs::began(self.pid) != self.began {
            return false;
        }
        let mut found: BTreeSet<Found> = BTreeSet::new();
        for path in paths {
            // It may have another root.
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

    /// What is known of a program that the process ran or runs.
    pub fn of_program(&self, executable: &str) -> Program {
        let by_program = self.by_program.lock().unwrap_or_else(PoisonError::into_inner);
        by_program.get(executable).cloned().unwrap_or_default()
    }
}

/// Whether a variable of the environment decides on an allocator.
const DECISIVE: fn(&str) -> bool = |name| {
    super::allocators::ALLOCATORS.iter().any(|row| row.unused_with.is_some_and(|(variable, _)| variable == name))
};

/// The file whose code a line of a process's map is about.
fn code_of(line: &str) -> Option<String> {
    let mut fields = line.splitn(6, ' ');
    let rights = fields.nth(1)?;
    let path = fields.nth(3)?.trim_start();
    let is_file = path.starts_with('/') && !path.ends_with(" (deleted)");
    (is_file && rights.contains('x')).then(|| path.to_owned())
}

/// One thread for all processes.
mod watcher {
    use super::{
        Arc, Duration, FIRST_PAUSE, Instant, LONGEST_PAUSE, LazyLock, Mutex, Objects, PoisonError, Weak, thread,
    };

    /// A process that is looked at again.
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
