//! Definitions of `malloc`: the preload exports hooks and nothing else, and no program of Heapline
//! defines `malloc`.

use crate::support::{has, programs, stdout_of};
use std::path::Path;
use std::process::Command;

/// Exports allowed in the preload.
const HOOKS: [&str; 45] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "free",
    "cfree",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "free_sized",
    "free_aligned_sized",
    "mmap",
    "mmap64",
    "munmap",
    "mremap",
    "mprotect",
    "pkey_mprotect",
    "brk",
    "sbrk",
    // exec, so that the next image is traced too.
    "execl",
    "execle",
    "execlp",
    "execv",
    "execve",
    "execveat",
    "execvp",
    "execvpe",
    "fexecve",
    // Functions that make children.
    "fork",
    "popen",
    "posix_spawn",
    "posix_spawnp",
    "system",
    // Functions that change the collector's surroundings.
    "dlclose",
    "dlmopen",
    "dlopen",
    "dlsym",
    "dlvsym",
    "mlockall",
    "prctl",
    "pthread_key_create",
    "sigaltstack",
    // A collector built into the program finds the preloaded collector by this symbol.
    "heapline_preloaded",
];

/// Functions and variables used by an aggregator in a running process.
const OWN: [&str; 6] =
    ["heapline_attach", "heapline_detach", "heapline_hooks", "heapline_origin", "heapline_release", "heapline_stubs"];
/// Number of malloc functions at the beginning of `HOOKS`. The mmap functions come next.
const ALLOCATORS: usize = 13;
const MAPPINGS: usize = 8;

/// Names of the functions and variables defined by a file, without version.
fn defined(file: &Path, dynamic: bool) -> Vec<String> {
    let mut nm = Command::new("nm");
    nm.args(["--defined-only", "--format=posix"]).args(dynamic.then_some("--dynamic")).arg(file);
    let text = stdout_of(&mut nm);
    let name = |line: &str| line.split([' ', '@']).next().unwrap_or_default().to_owned();
    text.lines().map(name).collect()
}

/// Whether the name is an operator new, new[], delete or delete[] in any form.
fn is_operator(name: &str) -> bool {
    ["_Znw", "_Zna", "_Zdl", "_Zda"].iter().any(|prefix| name.starts_with(prefix))
}

#[test]
fn no_program_of_ours_defines_the_malloc_family() {
    if !has("nm") {
        return;
    }
    let tests = std::env::current_exe().expect("this test");
    for program in [&programs().aggregator, &programs().report, &tests] {
        let found = defined(program, false);
        assert!(found.iter().any(|name| name == "main"), "{} has symbols", program.display());
        for hook in &HOOKS[..ALLOCATORS + MAPPINGS] {
            assert!(!found.iter().any(|name| name == hook), "{} defines {hook}", program.display());
        }
    }
}

#[test]
fn the_preload_exports_hooks_and_nothing_else() {
    if !has("nm") {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    let preload = folder.path().join("preload.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&preload));
    let exported = defined(&preload, true);
    for direct in &exported {
        // The entry of a hook for direct calls.
        let name = direct.strip_prefix("heapline_direct_").unwrap_or(direct);
        let is_known = HOOKS.contains(&name) || OWN.contains(&name);
        // The C++ library's own operators stay in front of malloc.
        let is_direct_operator = direct != name && is_operator(name);
        assert!(is_known || is_direct_operator, "the preload exports {direct}");
    }
    for hook in &HOOKS[..ALLOCATORS + MAPPINGS] {
        assert!(exported.iter().any(|name| name == hook), "the preload does not export {hook}");
    }
}
