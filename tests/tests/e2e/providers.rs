//! Other allocators below the hooks give the same numbers for the same victims.

use crate::support::{Outcome, Trace, skip, victim};
use std::path::PathBuf;

pub const PROVIDERS: [&str; 3] = ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"];

/// Path of `library` in the loader's usual folders.
pub fn installed(library: &str) -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    let found = folders.iter().map(|f| PathBuf::from(f).join(library)).find(|p| p.exists());
    if found.is_none() {
        skip(&format!("{library} is not installed"));
    }
    found
}

/// Compares the allocations of `counts.c` alone, because a provider or a needed library may
/// allocate at start.
fn assert_counts(outcome: &Outcome, what: &str) {
    let said = outcome.printed();
    let live = outcome.report(&["--filter", "*/counts.c"]);
    live.assert_exact();
    assert_eq!((live.total.count, live.total.size), (said["live_blocks"], said["live_bytes"]), "{what}: live");
    let total = outcome.report(&["--filter", "*/counts.c", "--at", "total"]);
    assert_eq!((total.total.count, total.total.size), (said["allocs"], said["bytes"]), "{what}: ever");
}

#[test]
fn a_preloaded_provider_is_counted_like_the_c_librarys() {
    for library in PROVIDERS {
        let Some(path) = installed(library) else { continue };
        let outcome =
            Trace::of(victim::build("counts.c", &["-O0"])).arg("foreign").env("LD_PRELOAD", &path).run().expect_code(0);
        assert_counts(&outcome, library);
    }
}

#[test]
fn a_linked_provider_is_counted_like_the_c_librarys() {
    for library in PROVIDERS {
        let Some(path) = installed(library) else { continue };
        let path = path.to_str().expect("UTF-8");
        let program = victim::build("counts.c", &["-O0", "-Wl,--no-as-needed", path]);
        assert_counts(&Trace::of(program).arg("foreign").run().expect_code(0), library);
    }
}

/// tcmalloc and mimalloc have an operator new that does not call malloc.
#[test]
fn a_providers_own_operators_are_counted_once() {
    let lines = |library: Option<&PathBuf>| {
        let mut trace = Trace::of(victim::build("lines.cpp", &["-O0"]));
        if let Some(library) = library {
            trace = trace.env("LD_PRELOAD", library);
        }
        let report = trace.run().expect_code(0).report(&["--by", "lineno", "--cumulative"]);
        report.assert_exact();
        let of_victim = report.stats.iter().filter(|s| s.most_recent().file() == "lines.cpp");
        let mut rows: Vec<_> = of_victim.map(|s| (s.most_recent().lineno, s.size, s.count)).collect();
        rows.sort_unstable();
        rows
    };
    let wanted = lines(None);
    assert_eq!(wanted.len(), 10);
    for library in PROVIDERS {
        let Some(path) = installed(library) else { continue };
        assert_eq!(lines(Some(&path)), wanted, "{library}");
    }
}

#[test]
fn threads_on_another_provider_are_exact() {
    for library in PROVIDERS {
        let Some(path) = installed(library) else { continue };
        let outcome = Trace::of(victim::build("threads.c", &["-O2"]))
            .args(["4", "50000", "3", "4"])
            .env("LD_PRELOAD", &path)
            .run()
            .expect_code(0);
        outcome.report(&[]).assert_exact();
        let said = outcome.printed();
        let live = crate::support::trace::live_sizes(&outcome.snapshot());
        for size in [17, 33, 49, 65] {
            assert_eq!(live.get(&size), said.get(&format!("left_{size}")), "{library}: blocks of {size} bytes");
        }
    }
}
