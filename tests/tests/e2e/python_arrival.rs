//! CPython that arrives late or twice: loaded with `dlopen`, finalised and initialised again,
//! unloaded.

use crate::support::python::libraries;
use crate::support::victim::{build, line_of};
use crate::support::{Outcome, Trace};

/// Checks for three thousand objects of 1033 bytes and the list of these objects.
fn assert_seen(outcome: &Outcome, what: &str) {
    let report = outcome.report(&["--domain", "python"]);
    report.assert_exact();
    let (size, count) = report.at_line("<string>", 2);
    assert!((3_099_000..3_200_000).contains(&size) && count >= 3000, "{what}: {size} bytes in {count} blocks");
    assert_eq!(report.snapshot.untracked_frees, 0, "{what}");
}

#[test]
fn an_interpreter_is_traced_however_often_it_comes_and_goes() {
    let program = build("embed.c", &["-ldl"]);
    for (python, library, home) in libraries() {
        for words in [&["1"][..], &["3"], &["3", "close"]] {
            let what = format!("3.{} {words:?}", python.minor);
            let trace = Trace::of(&program).arg(&library).args(words).env("PYTHONHOME", &home);
            let outcome = trace.run().expect_code(0);
            assert_eq!(outcome.stdout(), "done\n", "{what}");
            assert_seen(&outcome, &what);
        }
    }
}

#[test]
fn an_interpreter_that_begins_again_has_its_own_allocators_below() {
    let program = build("embed.c", &["-ldl"]);
    for (python, library, home) in libraries() {
        for (name, value) in [("PYTHONMALLOC", "debug"), ("PYTHONMALLOC", "malloc"), ("PYTHONTRACEMALLOC", "5")] {
            let trace = Trace::of(&program).arg(&library).arg("2").env("PYTHONHOME", &home).env(name, value);
            assert_seen(&trace.run().expect_code(0), &format!("3.{} {name}={value}", python.minor));
        }
    }
}

#[test]
fn a_library_that_is_looked_up_for_its_caller_is_traced_or_said_to_be_missing() {
    for (python, library, home) in libraries() {
        let folder = library.parent().expect("a folder").display().to_string();
        let program = build("embed.c", &["-ldl", &format!("-Wl,-rpath,{folder}")]);
        let name = library.file_name().expect("a name");
        let outcome = Trace::of(&program).arg(name).arg("1").env("PYTHONHOME", &home).run().expect_code(0);
        assert_eq!(outcome.stdout(), "done\n");
        let is_said = outcome.stderr().contains("Python's own blocks were not recorded");
        if !is_said {
            assert_seen(&outcome, &format!("3.{}", python.minor));
        }
    }
}

#[test]
fn a_second_library_is_said_to_be_missing() {
    let program = build("embed.c", &["-ldl"]);
    let Some((_, library, home)) = libraries().pop() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("libother.so");
    std::fs::copy(&library, &other).expect("a copy");
    let trace = Trace::of(&program).arg(&library).args(["1", "with"]).arg(&other).env("PYTHONHOME", &home);
    let outcome = trace.run().expect_code(0);
    assert!(outcome.stderr().contains("a second Python library began in this process"), "{}", outcome.stderr());
    let (size, _) = outcome.report(&["--domain", "python"]).at_line("<string>", 1);
    assert!(size > 700_000, "the first is traced: {size}");
}

#[test]
fn an_interpreter_of_an_unknown_version_is_said_by_its_version() {
    let outcome = Trace::of(build("future.c", &["-rdynamic"])).run().expect_code(0);
    assert_eq!(outcome.stdout(), "done\n");
    let said = "Python's own blocks were not recorded: the interpreter is CPython 3.99, and 3.9 to 3.15 are known";
    assert!(outcome.stderr().contains(said), "{}", outcome.stderr());
    let (size, _) =
        outcome.report(&["--domain", "native"]).at_line("future.c", line_of("future.c", "/* LINE block */"));
    assert_eq!(size, 100_000, "the native memory is recorded");
}
