//! CPython's own answers about CPython's allocators are equal with and without tracing.

use crate::support::python::{Python, pythons};
use crate::support::trace::{ctl, ctl_ok};
use crate::support::victim::source;
use crate::support::{Trace, programs, skip, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// Values of PYTHONMALLOC. `malloc` is refused by a free-threaded interpreter.
fn allocators(python: &Python) -> Vec<&'static str> {
    if python.is_free_threaded {
        return vec!["", "debug", "mimalloc", "mimalloc_debug", "malloc"];
    }
    let common = ["", "malloc", "debug", "pymalloc_debug", "malloc_debug"];
    common.into_iter().chain((python.minor >= 13).then_some("mimalloc")).collect()
}

#[test]
fn names_and_statistics_of_allocators_are_the_interpreters_own() {
    for python in pythons() {
        for allocator in allocators(&python) {
            for trace_of_its_own in ["", "1"] {
                let trace = Trace::of(&python.program).arg(source("python/view.py")).env("PYTHONMALLOC", allocator);
                let trace = trace.env("PYTHONTRACEMALLOC", trace_of_its_own);
                let theirs = String::from_utf8(trace.untraced().stdout).expect("text");
                let outcome = trace.run();
                let what = format!("3.{} {allocator:?} {trace_of_its_own:?}", python.minor);
                assert_eq!(outcome.stdout(), theirs, "{what}");
                if outcome.status().success() {
                    outcome.report(&[]).assert_exact();
                }
            }
        }
    }
}

#[test]
fn pymalloc_prints_its_statistics_as_often_as_untraced() {
    let reports = |text: &[u8]| String::from_utf8_lossy(text).matches("Small block threshold").count();
    for python in pythons().into_iter().filter(|python| !python.is_free_threaded) {
        let trace = Trace::of(&python.program).args(["-c", "pass"]).env("PYTHONMALLOCSTATS", "1");
        let untraced = trace.untraced();
        let theirs = reports(&untraced.stderr);
        let outcome = trace.run();
        assert!(theirs > 1, "3.{}: for arenas, and at the end", python.minor);
        assert_eq!(reports(outcome.stderr().as_bytes()), theirs, "3.{}", python.minor);
        // Python 3.12.1 ends with SIGSEGV here. The launcher reports a signal as a shell does.
        let theirs = untraced.status.code().or(untraced.status.signal().map(|signal| 128 + signal));
        assert_eq!(outcome.status().code(), theirs, "3.{}", python.minor);
        outcome.report(&[]).assert_exact();
    }
}

#[test]
fn an_extension_may_wrap_the_allocators_and_put_them_back() {
    let built: Vec<(Python, tempfile::TempDir)> = pythons()
        .into_iter()
        .map(|python| (python, tempfile::tempdir().expect("a folder")))
        .filter(|(python, folder)| python.build_module("wrapper", folder.path()))
        .collect();
    if built.is_empty() {
        skip("no CPython has its headers installed");
    }
    for (python, folder) in built {
        let trace = Trace::of(&python.program).arg(source("python/view.py")).arg(folder.path());
        let theirs = String::from_utf8(trace.untraced().stdout).expect("text");
        assert!(theirs.contains(" True ("), "the wrapper was called: {theirs}");
        let outcome = trace.run().expect_code(0);
        assert_eq!(outcome.stdout(), theirs, "3.{}", python.minor);
        outcome.report(&[]).assert_exact();
    }
}

/// An interpreter that answers each line of input with the view of the allocators. The lines "wrap"
/// and "unwrap" wrap and unwrap the allocators first.
const ASKED: &str = "import sys\n\
    sys.path[:0] = sys.argv[1:]\n\
    import view, wrapper\n\
    for line in sys.stdin:\n    \
        line.strip() == 'wrap' and wrapper.wrap()\n    \
        line.strip() == 'unwrap' and wrapper.unwrap()\n    \
        print(view.view(), flush=True)\n";

/// Actions on the interpreter, in this order.
const STEPS: &str = "attach view wrap unwrap detach view \
    wrap attach view detach view unwrap \
    attach wrap detach view attach view unwrap view detach view \
    attach wrap detach unwrap view attach view detach view";

#[test]
fn attached_to_and_let_go_the_interpreter_tells_the_same() {
    // In a free-threaded interpreter no entry of a function is overwritten while threads may run
    // the function, and the allocators have no name after an attach.
    for python in pythons().into_iter().filter(|python| !python.is_free_threaded) {
        let folder = tempfile::tempdir().expect("a folder");
        if !python.build_module("wrapper", folder.path()) {
            continue;
        }
        let mut command = Command::new(&python.program);
        command.args(["-c", ASKED]).arg(source("python")).arg(folder.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let mut input = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut ask = |word: &str| {
            writeln!(input, "{word}").expect("it reads");
            let mut line = String::new();
            output.read_line(&mut line).expect("it answers");
            line
        };
        let (alone, wrapped) = (ask("view"), ask("wrap"));
        assert_eq!(ask("unwrap"), alone);
        let mut is_wrapped = false;
        let mut attached = None;
        for (number, step) in STEPS.split_whitespace().enumerate() {
            match step {
                "attach" => {
                    let mut attach = Command::new(&programs().aggregator);
                    attach.args(["--attach", &pid.to_string(), "-o"]).arg(folder.path().join("s.snap.zst"));
                    attached = Some(attach.stderr(Stdio::null()).spawn().expect("it starts"));
                    wait_for("the aggregator", || ctl(pid, &["stats"]).status.success().then_some(()));
                }
                "detach" => {
                    ctl_ok(pid, &["detach"]);
                    let mut aggregator = attached.take().expect("attached before");
                    assert!(aggregator.wait().expect("it ends").success());
                }
                word => {
                    is_wrapped = word == "wrap" || (is_wrapped && word != "unwrap");
                    let expected = if is_wrapped { &wrapped } else { &alone };
                    assert_eq!(&ask(word), expected, "3.{} step {number}: {word}", python.minor);
                }
            }
        }
        drop(input);
        assert!(child.wait().expect("it ends").success());
    }
}
