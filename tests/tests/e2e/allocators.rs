//! Allocation calls that reach no exported hook:
//!
//! - look-ups past the collector
//! - other allocators, and functions of a single allocator
//! - allocation functions built on other allocation functions
//! - code running before the collector's own constructor

use crate::providers::installed;
use crate::support::trace::live_sizes;
use crate::support::{Outcome, Trace, victim};
use std::path::PathBuf;

const WAYS: [&str; 5] = ["plain", "deep", "deeplazy", "namespace", "namespacelazy"];

fn plugin(flags: &[&str]) -> PathBuf {
    victim::build("pastplug.c", &[&["-shared", "-fPIC", "-O1"], flags].concat())
}

fn live_count(outcome: &Outcome) -> u64 {
    live_sizes(&outcome.snapshot()).values().sum()
}

fn in_file(file: &'static str) -> [&'static str; 2] {
    ["--filter", file]
}

/// A plug-in's allocations are counted for every binding of the plug-in's calls and for every
/// allocator below.
#[test]
fn libraries_that_look_past_the_collector_are_seen() {
    let program = victim::build("pastmain.c", &["-O1"]);
    for flags in [&[][..], &["-DOWN"]] {
        let plug = plugin(flags);
        for way in WAYS {
            let outcome = Trace::of(&program).arg(way).arg(&plug).run().expect_code(0);
            assert_eq!(outcome.stdout(), "ok\n", "{way} {flags:?}");
            let [option, filter] = in_file("*/pastplug.c");
            let live = outcome.report(&[option, filter]);
            assert_eq!((live.total.count, live.total.size), (2, 101_000), "{way} {flags:?}: live");
            live.assert_exact();
            let ever = outcome.report(&[option, filter, "--at", "total"]);
            assert_eq!((ever.total.count, ever.total.size), (202, 30_101_000), "{way} {flags:?}: ever");
        }
    }
}

#[test]
fn functions_that_are_looked_up_by_a_handle_are_seen() {
    let outcome = Trace::of(victim::build("pastmain.c", &["-O1"])).arg("handle").run().expect_code(0);
    let line = victim::line_of("pastmain.c", "/* handle */");
    assert_eq!(outcome.report(&[]).at_line("pastmain.c", line), (100_000, 1));
    assert_eq!(outcome.report(&["--at", "total"]).at_line("pastmain.c", line), (101_234, 2));
    outcome.report(&[]).assert_exact();
}

/// A preloaded jemalloc is the program's allocator. A library that bypasses jemalloc uses the C
/// library's allocator.
#[test]
fn a_library_past_another_provider_keeps_its_own_allocator() {
    for library in crate::providers::PROVIDERS {
        let Some(path) = installed(library) else { continue };
        let trace = Trace::of(victim::build("pastmain.c", &["-O1"])).arg("deep").arg(plugin(&[]));
        let outcome = trace.env("LD_PRELOAD", &path).run().expect_code(0);
        let report = outcome.report(&["--filter", "*/pastplug.c"]);
        assert_eq!((report.total.count, report.total.size), (2, 101_000), "{library}");
        report.assert_exact();
    }
}

#[test]
fn functions_that_only_one_allocator_has_are_seen() {
    let kinds = [
        ("libjemalloc.so.2", "-DJEMALLOC"),
        ("libtcmalloc_minimal.so.4", "-DTCMALLOC"),
        ("libmimalloc.so.2", "-DMIMALLOC"),
    ];
    for (library, kind) in kinds {
        let Some(path) = installed(library) else { continue };
        let path = path.to_str().expect("UTF-8");
        for binding in ["-Wl,-z,now", "-Wl,-z,lazy"] {
            let program = victim::build("owndoors.c", &["-O0", kind, binding, "-Wl,--no-as-needed", path]);
            let outcome = Trace::of(&program).run().expect_code(0);
            let report = outcome.report(&["--filter", "*/owndoors.c"]);
            assert_eq!(report.total.size, outcome.printed()["kept"], "{library} {binding}");
            report.assert_exact();
            let ever = outcome.report(&["--at", "total", "--filter", "*/owndoors.c"]);
            assert!(ever.total.count > 100, "{library}: {} blocks", ever.total.count);
            // With an interval of 1 byte each block of the victim is a sample.
            let sampled = Trace::of(&program).option("--sample").option("1").run().expect_code(0);
            assert_eq!(live_count(&sampled), live_count(&outcome), "{library} {binding}: sampled");
        }
    }
}

#[test]
fn a_malloc_that_is_made_of_other_functions_is_counted_once() {
    let program = victim::build("shimmed.c", &["-O0"]);
    for flag in ["-DOF_CALLOC", "-DOF_NEXT"] {
        let shim = victim::build("shim.c", &["-shared", "-fPIC", "-O1", flag]);
        // Only the program gets the shim, because the shim lacks functions used by the aggregator.
        let preload = format!("LD_PRELOAD={}", shim.display());
        let outcome = Trace::of("env").arg(preload).arg(&program).run().expect_code(0);
        let line = victim::line_of("shimmed.c", "/* kept */");
        assert_eq!(outcome.report(&[]).at_line("shimmed.c", line), (300_000, 600), "{flag}");
        let ever = outcome.report(&["--at", "total", "--filter", "*/shimmed.c"]);
        assert_eq!((ever.total.count, ever.total.size), (1001, 509_000), "{flag}");
        outcome.report(&[]).assert_exact();
    }
}

/// The C library's debug allocator stays the program's allocator, although only an old symbol
/// version finds it.
#[test]
fn the_c_librarys_debug_allocator_stays_in_front_of_the_c_library() {
    let library = "libc_malloc_debug.so.0";
    let Some(_) = installed(library) else { return };
    let traced = |check: &str| {
        let trace = Trace::of(victim::build("overrun.c", &["-O0", "-Wno-stringop-overflow"]));
        let trace = trace.env("LD_PRELOAD", library).env("MALLOC_CHECK_", check);
        (trace.untraced().status.code(), trace.run().status().code())
    };
    assert_eq!(traced("0"), (Some(0), Some(0)));
    let (alone, traced) = traced("3");
    assert_eq!((alone, traced), (None, Some(128 + libc::SIGABRT)), "both are aborted");
}

#[test]
fn what_runs_before_the_collectors_constructor_is_counted() {
    let outcome = Trace::of(victim::build("earliest.c", &["-O0"])).run().expect_code(0);
    assert_eq!(outcome.stdout(), "answer 42\n");
    let report = outcome.report(&[]);
    assert_eq!(report.at_line("earliest.c", victim::line_of("earliest.c", "/* before */")), (10_000, 10));
    assert_eq!(report.at_line("earliest.c", victim::line_of("earliest.c", "/* resolver */")), (2000, 1));
    report.assert_exact();
    assert_eq!(report.snapshot.untracked_frees, 0);
}

/// The constructor of an `initfirst` library runs before all others.
#[test]
fn a_library_that_is_initialised_first_is_counted() {
    let library = victim::build("initfirst.c", &["-shared", "-fPIC", "-O0", "-Wl,-z,initfirst"]);
    let path = library.to_str().expect("UTF-8");
    let program = victim::build("shimmed.c", &["-O0", "-Wl,--no-as-needed", path]);
    let outcome = Trace::of(program).run().expect_code(0);
    let report = outcome.report(&[]);
    assert_eq!(report.at_line("initfirst.c", victim::line_of("initfirst.c", "/* first */")), (6000, 6));
    report.assert_exact();
}

/// Only a dependency of a plug-in knows the C++ library.
#[test]
fn cxx_below_a_plugin_of_a_c_program_is_counted() {
    let dependency = victim::build("cxxdep.cpp", &["-shared", "-fPIC", "-O1"]);
    let dependency = dependency.to_str().expect("UTF-8");
    let plug = victim::build("cxxplug.c", &["-shared", "-fPIC", "-O1", dependency]);
    let program = victim::build("cxxmain.c", &["-O1"]);
    let outcome = Trace::of(program).arg(plug).run().expect_code(0);
    assert_eq!(outcome.stdout(), "run 3\n");
    let report = outcome.report(&["--at", "total"]);
    assert_eq!(report.at_line("cxxdep.cpp", victim::line_of("cxxdep.cpp", "// static")), (48, 1));
    assert_eq!(report.at_line("cxxdep.cpp", victim::line_of("cxxdep.cpp", "// array")), (200, 2));
    report.assert_exact();
}

/// The loader looks for a library in the search path of the object that loaded the caller.
#[test]
fn a_library_is_found_by_the_search_path_of_whoever_loaded_the_caller() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let place = |built: PathBuf, name: &str| {
        let path = folder.path().join(name);
        std::fs::copy(built, &path).expect("copied");
        path
    };
    let shared = ["-shared", "-fPIC", "-O1"];
    place(victim::build("pastplug.c", &shared), "libpathfound.so");
    let opens =
        place(victim::build("pathopen.c", &[&shared[..], &["-Wl,-soname,libpathopen.so"]].concat()), "libpathopen.so");
    let search = format!("-Wl,--disable-new-dtags,-rpath,{}", folder.path().display());
    let opens = opens.to_str().expect("UTF-8");
    let between =
        victim::build("pathbetween.c", &[&shared[..], &[opens, &search, "-Wl,-soname,libpathbetween.so"]].concat());
    let between = place(between, "libpathbetween.so");
    // The program has a search path of the kind that applies to no other object (RUNPATH).
    let search = format!("-Wl,--enable-new-dtags,-rpath,{}", folder.path().display());
    let allow = "-Wl,--allow-shlib-undefined";
    let program = victim::build("pathmain.c", &[between.to_str().expect("UTF-8"), &search, allow]);
    let trace = Trace::of(program);
    assert_eq!(trace.untraced().status.code(), Some(0), "alone");
    trace.run().expect_code(0);
}

/// A program that clears its environment passes no variables on.
#[test]
fn a_cleared_environment_stays_cleared() {
    let outcome = Trace::of(victim::build("clearenv.c", &["-O0"])).option("--no-follow").run().expect_code(0);
    assert_eq!(outcome.stdout(), "");
}
