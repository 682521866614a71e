//! CPython's allocators and lines, for every installed version.

use crate::support::python::{Python, pythons};
use crate::support::report::{Domain, Frame, Stat};
use crate::support::trace::{ctl_ok, report_on};
use crate::support::victim::{line_of, source};
use crate::support::{Outcome, Report, Trace, programs, stdout_of, wait_for};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Runs a script of `tests/victims/python` in each interpreter.
fn in_each(script: &str, check: impl Fn(&Python, &Outcome)) {
    for python in pythons() {
        eprintln!("{} {script}", python.program.display());
        let outcome = Trace::of(&python.program).arg(source(script)).run().expect_code(0);
        check(&python, &outcome);
    }
}

fn domain<'r>(report: &'r Report, name: &str) -> &'r Domain {
    report.domains.iter().find(|row| row.domain == name).expect("a row for the domain")
}

fn assert_exact(report: &Report) {
    report.assert_exact();
    let python = domain(report, "python");
    assert_eq!(python.allocs - python.frees, python.blocks);
}

/// Bytes and blocks of a line of `lines.py`.
fn at(report: &Report, line: u64) -> (u64, u64) {
    report.at_line("lines.py", line)
}

#[test]
fn blocks_are_blamed_on_lines_and_functions() {
    const SCRIPT: &str = "python/lines.py";
    let line = |marker: &str| line_of(SCRIPT, marker);
    in_each(SCRIPT, |python, outcome| {
        let report = outcome.report(&[]);
        assert_eq!(report.view, "python", "the default in a CPython process");
        assert_exact(&report);
        assert_eq!(outcome.stdout(), "done\n");
        // Thirty buffers of 1000 to 1009 bytes plus 1 byte each, and thirty objects of 56 bytes.
        let (size, count) = at(&report, line("# line: init"));
        assert!(count >= 60 && size >= 3 * (10 * 1001 + 45) + 30 * 56, "{size} bytes in {count} blocks");
        assert!(size < 3 * (10 * 1001 + 45) + 30 * 56 + 4096, "{size} bytes: lists and frames are small");
        let (size, _) = at(&report, line("# line: extend"));
        assert!((100_101..140_000).contains(&size), "a bytearray that has grown: {size}");
        assert!(domain(&report, "python").peak > 4_000_000 + 100_000, "the buffer that is gone");

        let by_traceback = outcome.report(&["--by", "traceback"]);
        let deep = by_traceback
            .stats
            .iter()
            .find(|stat| (70_000..80_000).contains(&stat.size) && stat.most_recent().lineno == line("# line: deep"))
            .expect("the deepest block");
        assert_eq!(deep.total_nframe, Some(202), "201 calls and the module");
        assert_eq!(deep.traceback.len(), 64, "the default of --nframe");
        assert!(deep.traceback.iter().all(|frame| frame.function.as_deref() == Some("recurse")));

        let in_generator = by_traceback.stats.iter().find(|stat| stat.most_recent().lineno == line("# line: yield"));
        let frames = functions(in_generator.expect("the generator's blocks"));
        assert_eq!(frames, ["<module>", "produce"]);
        let made =
            by_traceback.stats.iter().find(|stat| stat.traceback.iter().any(|f| f.lineno == line("# line: make")));
        let qualified = if python.minor >= 11 { "Holder.__init__" } else { "__init__" };
        assert!(functions(made.expect("what make made")).contains(&qualified));
    });
}

fn functions(stat: &Stat) -> Vec<&str> {
    stat.traceback.iter().filter_map(|frame: &Frame| frame.function.as_deref()).collect()
}

#[test]
fn an_interpreter_may_be_a_native_program_like_any_other() {
    let Some(python) = pythons().pop() else { return };
    let script =
        "import tracemalloc; tracemalloc.start(); kept = bytearray(100_000); print(tracemalloc.get_traced_memory()[0])";
    let outcome = Trace::of(&python.program).args(["-c", script]).env("HEAPLINE_PYTHON", "0").run().expect_code(0);
    assert!(outcome.stdout().trim().parse::<u64>().expect("CPython's own answer") > 100_000);
    let report = outcome.report(&["--by", "traceback"]);
    report.assert_exact();
    assert_eq!(report.view, "native");
    assert!(report.domains.iter().all(|domain| domain.domain != "python"), "{:?}", report.domains);
    let is_loop = |frame: &Frame| frame.function.as_deref() == Some("_PyEval_EvalFrameDefault");
    assert!(report.stats.iter().flat_map(|stat| &stat.traceback).any(is_loop), "the interpreter's own frames");
}

#[test]
fn an_address_that_gets_another_code_object_never_names_the_old_one() {
    in_each("python/reuse.py", |_, outcome| {
        let report = outcome.report(&["--filter", "generated_*"]);
        assert_exact(&report);
        for i in 0..3000 {
            let (size, count) = report.at_line(&format!("generated_{i}.py"), 2);
            let buffer = 5000 + i + 1;
            // The line also has a few small objects, new or in reused blocks.
            assert!(count >= 1 && (buffer..buffer + 300).contains(&size), "{i}: {size} bytes in {count} blocks");
        }
    });
}

#[test]
fn threads_record_at_once_with_and_without_the_interpreters_lock() {
    let line = line_of("python/threads.py", "# line: kept");
    in_each("python/threads.py", |python, outcome| {
        let report = outcome.report(&[]);
        assert_exact(&report);
        let (size, count) = report.at_line("threads.py", line);
        let blocks = 6 * 2000;
        let kept = blocks * python.bytearray(300);
        assert!(count >= 2 * blocks && size >= kept, "{size} bytes in {count} blocks");
        assert!(size < kept + (1 << 19), "the lists that keep them: {size}");
    });
}

#[test]
fn a_forked_child_runs_on_and_its_parent_is_traced() {
    let line = |marker: &str| line_of("python/fork.py", marker);
    in_each("python/fork.py", |python, outcome| {
        let report = outcome.report(&[]);
        assert_exact(&report);
        // The size includes the table of the module's names, which grows at this line in some
        // versions.
        let (size, _) = report.at_line("fork.py", line("# line: before"));
        let before = python.bytearray(200_000);
        assert!((before..before + 944).contains(&size), "{size}");
        let (size, _) = report.at_line("fork.py", line("# line: after"));
        let after = 50 * python.bytearray(2000);
        assert!((after..after + 2000).contains(&size), "{size}");
    });
}

#[test]
fn any_allocator_below_is_recorded_alike() {
    for python in pythons() {
        // Without the interpreter's lock all objects are mimalloc's.
        let below = if python.is_free_threaded { ["mimalloc", "mimalloc_debug"] } else { ["malloc", "pymalloc_debug"] };
        let below = below.map(|allocator| ("PYTHONMALLOC", allocator));
        for (name, value) in below.into_iter().chain([("PYTHONDEVMODE", "1")]) {
            let trace = Trace::of(&python.program).arg(source("python/lines.py")).env(name, value);
            let report = trace.run().expect_code(0).report(&[]);
            assert_exact(&report);
            let (size, _) = at(&report, line_of("python/lines.py", "# line: deep"));
            assert!((70_000..75_000).contains(&size), "{name}={value}: {size}");
        }
    }
}

#[test]
fn a_failure_of_ours_ends_tracing_and_not_the_interpreter() {
    for python in pythons() {
        let trace = Trace::of(&python.program).arg(source("python/lines.py")).env("HEAPLINE_FAULT", "code");
        let outcome = trace.run().expect_code(0);
        assert_eq!(outcome.stdout(), "done\n");
        assert_eq!(outcome.report(&[]).snapshot.end, "stalled");
        assert!(outcome.stderr().contains("the collector failed"), "{}", outcome.stderr());
    }
}

#[test]
fn five_thousand_frames_are_counted_and_the_newest_are_told() {
    const DEPTH: u64 = 5_000;
    let script = format!(
        "import os, sys, threading\n\
         sys.setrecursionlimit({})\n\
         threading.stack_size(512 << 20)\n\
         def down(n):\n    \
             return bytearray(50_000) if n == 0 else down(n - 1)\n\
         def run():\n    \
             global kept\n    \
             kept = down({DEPTH})\n    \
             os._exit(0)\n\
         threading.Thread(target=run).start()\n",
        2 * DEPTH
    );
    for python in pythons() {
        let outcome = Trace::of(&python.program).args(["-c", &script]).run().expect_code(0);
        let report = outcome.report(&["--by", "traceback"]);
        assert_exact(&report);
        let is_it = |stat: &&Stat| stat.size >= 50_000 && stat.most_recent().lineno == 5;
        let deep = report.stats.iter().find(is_it).expect("the deepest block");
        let total = deep.total_nframe.expect("by traceback");
        assert!((DEPTH + 1..DEPTH + 10).contains(&total), "3.{}: {total} frames", python.minor);
        assert_eq!(deep.traceback.len(), 64);
    }
}

/// Compares Heapline with tracemalloc by traceback, for the same program in the same state.
#[test]
fn totals_equal_tracemallocs() {
    let environment = |stock: &str, nframe: u32| {
        let mark = format!("{} ctl %d clear-traces >/dev/null 2>&1 || true", programs().aggregator.display());
        [
            ("STOCK", stock.to_owned()),
            ("NFRAME", nframe.to_string()),
            ("MARK", mark),
            ("WORK", source("python/work.py").display().to_string()),
            ("PYTHONHASHSEED", "0".to_owned()),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ]
    };
    type Traces = Vec<(u64, Vec<(String, u64)>)>;
    for python in pythons() {
        for nframe in [1, 25] {
            let mut stock = Command::new(&python.program);
            stock.arg(source("python/same.py")).envs(environment("1", nframe));
            let traces: Traces = serde_json::from_str(&stdout_of(&mut stock)).expect("what same.py prints");
            let mut theirs: BTreeMap<String, (u64, u64)> = BTreeMap::new();
            for (size, frames) in &traces {
                let frames: Vec<String> = frames.iter().rev().map(|(file, line)| format!("{file}:{line}")).collect();
                let sum = theirs.entry(frames.join(" ")).or_default();
                *sum = (sum.0 + size, sum.1 + 1);
            }
            let trace = Trace::of(&python.program).arg(source("python/same.py"));
            let trace = trace.option("--nframe").option(nframe.to_string());
            let trace = environment("0", nframe).iter().fold(trace, |trace, (name, value)| trace.env(name, value));
            let report = trace.run().expect_code(0).report(&["--by", "traceback"]);
            assert_exact(&report);
            let mut ours: BTreeMap<String, (u64, u64)> = BTreeMap::new();
            for stat in &report.stats {
                let frames: Vec<String> =
                    stat.traceback.iter().map(|frame| format!("{}:{}", frame.filename, frame.lineno)).collect();
                let sum = ours.entry(frames.join(" ")).or_default();
                *sum = (sum.0 + stat.size, sum.1 + stat.count);
            }
            let total = |sums: &BTreeMap<String, (u64, u64)>| {
                sums.values().fold((0, 0), |(size, count), sum| (size + sum.0, count + sum.1))
            };
            assert_eq!(total(&ours), total(&theirs), "3.{} at {nframe} frames", python.minor);
            assert_eq!(ours, theirs, "3.{} at {nframe} frames", python.minor);
        }
    }
}

#[test]
fn an_idle_interpreter_is_attached_to_and_let_go() {
    let Some(python) = pythons().pop() else { return };
    let folder = tempfile::TempDir::new().expect("a folder");
    let preload = folder.path().join("preload.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&preload));
    let script =
        "import sys\nfor line in sys.stdin:\n    kept = bytearray(int(line))\n    print(len(kept), flush=True)\n";
    let mut child = Command::new(&python.program)
        .args(["-c", script])
        .env("LD_PRELOAD", &preload)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = i32::try_from(child.id()).expect("a pid");
    let (mut input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let mut output = std::io::BufReader::new(output);
    let mut say = |bytes: u64| {
        use std::io::{BufRead, Write};
        writeln!(input, "{bytes}").expect("it reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("it answers");
        assert_eq!(line.trim(), bytes.to_string());
    };
    say(100_000);
    let mut sizes = Vec::new();
    for (round, bytes) in [(1, 200_000), (2, 300_000)] {
        let snapshot = folder.path().join(format!("attached{round}.snap.zst"));
        let mut attach = Command::new(&programs().aggregator);
        attach.args(["--attach", &pid.to_string(), "-o"]).arg(&snapshot).stderr(Stdio::null());
        let mut attached = attach.spawn().expect("it starts");
        wait_for("the attached aggregator", || {
            crate::support::trace::ctl(pid, &["stats"]).status.success().then_some(())
        });
        say(bytes);
        ctl_ok(pid, &["detach"]);
        assert!(attached.wait().expect("it ends").success());
        let report = report_on(&snapshot, &["--domain", "python"]);
        assert_eq!(report.snapshot.contradictions, 0);
        sizes.push(report.at_line("<string>", 3).0);
        say(50_000);
    }
    drop(input);
    assert!(child.wait().expect("it ends").success());
    assert_eq!(
        sizes,
        [200_000, 300_000].map(|length| python.bytearray(length)),
        "the buffer of the round, and its object"
    );
}

/// Lists end and leave their blocks in a free list, and other lists take the blocks. From 3.13 on
/// an attached collector hears of them.
#[test]
fn objects_from_free_lists_are_seen_after_an_attach() {
    let script = "import sys\n\
        for line in sys.stdin:\n    \
            ended = [[] for _ in range(75)]\n    \
            del ended\n    \
            kept = [[] for _ in range(75)]\n    \
            print(len(kept), flush=True)\n";
    for python in pythons().into_iter().filter(|python| python.minor >= 13) {
        let folder = tempfile::TempDir::new().expect("a folder");
        let snapshot = folder.path().join("attached.snap.zst");
        let mut program = Command::new(&python.program);
        let mut child =
            program.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let (mut input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut output = std::io::BufReader::new(output);
        let mut turn = || {
            use std::io::{BufRead, Write};
            writeln!(input, "on").expect("it reads");
            let mut line = String::new();
            output.read_line(&mut line).expect("it answers");
            assert_eq!(line, "75\n");
        };
        turn();
        let mut attach = Command::new(&programs().aggregator);
        attach.args(["--attach", &pid.to_string(), "-o"]).arg(&snapshot).stderr(Stdio::null());
        let mut attached = attach.spawn().expect("it starts");
        wait_for("the attached aggregator", || {
            crate::support::trace::ctl(pid, &["stats"]).status.success().then_some(())
        });
        // The lists of the first turn after the attach fill the free list with known blocks.
        (0..3).for_each(|_| turn());
        ctl_ok(pid, &["detach"]);
        assert!(attached.wait().expect("it ends").success());
        turn();
        drop(input);
        assert!(child.wait().expect("it ends").success());
        let report = report_on(&snapshot, &["--domain", "python"]);
        let (_, count) = report.at_line("<string>", 5);
        assert!((75..80).contains(&count), "3.{}: {count} lists", python.minor);
    }
}

#[test]
fn interpreters_with_locks_of_their_own_are_recorded_at_the_same_time() {
    for python in pythons().into_iter().filter(|python| python.minor >= 14) {
        let outcome = Trace::of(&python.program).arg(source("python/interpreters.py")).run().expect_code(0);
        let report = outcome.report(&["--at", "total", "--domain", "python"]);
        assert_exact(&report);
        let (size, count) = report.at_line("<script>", 3);
        let blocks = 4 * 20 * 500;
        assert!((2 * blocks..2 * blocks + 4000).contains(&count), "3.{}: {count} blocks", python.minor);
        assert!(size >= blocks * python.bytearray(200), "3.{}: {size} bytes", python.minor);
    }
}
