//! Finds known reasons for unseen memory of a program.
//!
//! Any part of the aggregator can add a reason to the job's [`Causes`]. Every snapshot and the last
//! lines of a run name all causes. This module finds allocators in objects, in two ways: by the
//! modules of the trace, and by the mappings of the process.

mod allocators;
mod cache;
mod objects;
mod scan;

use allocators::Finding;
use cache::allocators_in;
use heapline_shared_format::snapshot::{Module, Unseen};
use objects::{Found, Objects, Program};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Limit of the kept causes. A process may have any number of objects.
const MOST_CAUSES: usize = 64;

/// The causes of a single process.
#[derive(Debug)]
pub struct Causes {
    added: Mutex<BTreeSet<Unseen>>,
    /// Objects with an allocator that tells the collector about its blocks.
    recorded: Mutex<BTreeSet<String>>,
    objects: Arc<Objects>,
}

impl Causes {
    /// Begins the causes of a newly traced process.
    pub fn of(pid: u32) -> Causes {
        Causes { added: Mutex::default(), recorded: Mutex::default(), objects: Objects::watch(pid) }
    }

    /// Adds a cause. The same cause may be added again.
    pub fn add(&self, cause: Unseen) {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        if added.len() < MOST_CAUSES {
            added.insert(cause);
        }
    }

    /// Notes an object with an allocator that tells the collector about its blocks. The allocator
    /// is not named as unseen.
    pub fn is_recorded(&self, object: &str) {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.insert(object.to_owned()) {
            // The loader's name may lead through symbolic links, which the kernel's does not.
            let path = std::fs::canonicalize(object).ok().and_then(|path| path.into_os_string().into_string().ok());
            recorded.extend(path);
        }
    }

    /// Looks at the process once more, if the process still exists.
    pub fn look(&self) {
        self.objects.look();
    }

    /// Returns the name of the allocator behind the `malloc` of a program of the process. None
    /// before the first look at the program, and if several objects have a `malloc` besides the C
    /// library: the order of the look-up is not known.
    pub fn malloc_of(&self, executable: &str) -> Option<&'static str> {
        let mallocs = self.objects.of_program(executable).mallocs;
        let (libc, others): (Vec<&str>, Vec<&str>) =
            mallocs.into_iter().partition(|name| ["glibc", "musl"].contains(name));
        match (&others[..], &libc[..]) {
            ([only], _) | ([], [only]) => Some(only),
            _ => None,
        }
    }

    /// Returns all causes for a program of the process, with these modules.
    pub fn of_program(&self, executable: &str, modules: &[Module]) -> Vec<Unseen> {
        let program = self.objects.of_program(executable);
        let of_modules = modules.iter().map(|module| module.path.as_str()).chain([executable]);
        let mut found = program.found.clone();
        found.extend(of_modules.collect::<BTreeSet<_>>().into_iter().flat_map(found_in));
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recorded = |(object, finding): &Found| finding.allocator().has_listeners && recorded.contains(object);
        let is_unseen = |found: &Found| !is_recorded(found) && !is_unused(&program, &found.1);
        // The loader and the kernel may know a file by different links.
        let mut files = BTreeSet::new();
        let mut is_new = |(object, finding): &Found| {
            let file = fs::canonicalize(object).unwrap_or_else(|_| object.into());
            files.insert((file, finding.name()))
        };
        let mut causes = self.added.lock().unwrap_or_else(PoisonError::into_inner).clone();
        causes.extend(found.into_iter().filter(is_unseen).filter(|found| is_new(found)).map(|(object, finding)| {
            Unseen {
                kind: finding.allocator().kind.to_owned(),
                object,
                name: finding.name(),
                text: finding.allocator().text.to_owned(),
            }
        }));
        causes.into_iter().take(MOST_CAUSES).collect()
    }
}

/// Returns the causes of a program without a process, from the modules alone. `recorded` names the
/// objects with recorded allocators.
pub fn by_modules(executable: &str, modules: &[Module], recorded: BTreeSet<String>) -> Vec<Unseen> {
    let nothing = Objects::of_none();
    let causes = Causes { added: Mutex::default(), recorded: Mutex::new(recorded), objects: nothing };
    causes.of_program(executable, modules)
}

fn found_in(path: &str) -> Vec<Found> {
    let findings = if path.starts_with('/') { allocators_in(Path::new(path)) } else { Arc::default() };
    findings.unseen.iter().map(|finding| (path.to_owned(), finding.clone())).collect()
}

/// Whether the process's environment turns the allocator off.
fn is_unused(program: &Program, finding: &Finding) -> bool {
    let variable = finding.allocator().unused_with;
    variable.is_some_and(|(name, value)| program.variable(name).is_some_and(|set| set == value))
}

#[cfg(test)]
mod tests;
