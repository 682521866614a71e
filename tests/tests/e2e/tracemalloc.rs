//! `import tracemalloc` in a traced CPython. Heapline answers, and the answers do not differ from
//! CPython's own.

use crate::support::python::{Python, pythons};
use crate::support::trace::{ctl, ctl_ok, kill, stats};
use crate::support::victim::{line_of, source};
use crate::support::{Outcome, Trace, programs, skip, stdout_of, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Command;

/// Interpreters with CPython's own tests installed.
fn tested_pythons() -> Vec<Python> {
    let is_tested = |python: &Python| {
        let find = "import importlib.util as u, sys; sys.exit(u.find_spec('test.test_tracemalloc') is None)";
        Command::new(&python.program).args(["-c", find]).status().is_ok_and(|status| status.success())
    };
    let tested: Vec<Python> = pythons().into_iter().filter(is_tested).collect();
    if tested.is_empty() {
        skip("no CPython has its own tests installed");
    }
    tested
}

#[test]
fn cpythons_own_tests_pass() {
    for python in tested_pythons() {
        eprintln!("{}", python.program.display());
        let trace = Trace::of(&python.program).args(["-m", "unittest", "-v", "test.test_tracemalloc"]);
        let running = trace.spawn();
        let pid = running.target_pid();
        let mut queries = 0;
        // Keeps the last answer before the end of the process.
        while let Ok(stats) = serde_json::from_slice(&ctl(pid, &["stats", "--format", "json"]).stdout) {
            let stats: crate::support::report::Stats = stats;
            queries = stats.own.tracemalloc_queries;
        }
        let outcome = running.finish().expect_code(0);
        let said = outcome.stderr();
        assert!(said.lines().any(|line| line == "OK"), "not one skipped\n{said}");
        let ran = |class: &str| said.lines().filter(|line| line.contains(class) && line.ends_with("ok")).count();
        for class in
            ["TestTraceback", "TestTracemallocEnabled", "TestSnapshot", "TestFilters", "TestCommandLine", "TestCAPI"]
        {
            assert!(ran(class) > 0, "{class}\n{said}");
        }
        assert!(queries > 50, "{queries} of its questions were seen to be answered");
        outcome.report(&[]).assert_exact();
    }
}

#[test]
fn it_is_the_aggregator_that_serves() {
    for python in pythons() {
        let mut running = Trace::of(&python.program).arg(source("python/gone.py")).spawn();
        let mut output = BufReader::new(running.child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert!(line.starts_with("ready ") && line.trim_end().ends_with(" True True"), "{line}");
        let object = line.split_whitespace().nth(1).expect("its address");
        let lookup = ctl_ok(running.target_pid(), &["lookup", object]);
        let made = format!("gone.py\", line {}, in <module>", line_of("python/gone.py", "bytearray(100_000)"));
        assert!(lookup.contains(" (python), ") && lookup.contains(&made), "{lookup}");
        kill(running.aggregator_pid(), libc::SIGKILL);
        // `wait` would close standard input, so standard input is taken first.
        let mut input = running.child.stdin.take().expect("piped");
        running.child.wait().expect("killed");
        input.write_all(b"\n").expect("the program reads on");
        line.clear();
        output.read_to_string(&mut line).expect("text");
        let gone = "tracemalloc is served by Heapline in this process, and its aggregator is gone";
        let nothing = "the tracemalloc module must be tracing memory allocations to take a snapshot";
        assert_eq!(line.trim_end(), format!("[False, (0, 0), None, {nothing:?}, {gone:?}]").replace('"', "'"));
    }
}

/// Sums of each traceback: (lines with the most recent first; depth) to (bytes, blocks).
type Sums = BTreeMap<(Vec<(String, u64)>, u64), (u64, u64)>;

fn traced(printed: &str) -> ((u64, u64), Sums) {
    type Traces = Vec<(u64, u64, Vec<(String, u64)>)>;
    let last = printed.lines().last().unwrap_or_default();
    let (sums, traces): ((u64, u64), Traces) = serde_json::from_str(last).expect("what differential.py prints");
    let mut by_traceback = Sums::new();
    for (size, total, frames) in traces {
        let sum = by_traceback.entry((frames, total)).or_default();
        *sum = (sum.0 + size, sum.1 + 1);
    }
    (sums, by_traceback)
}

#[test]
fn every_traceback_and_both_sums_equal_cpythons_own() {
    let objects = source("python/objects.py").display().to_string();
    for python in pythons() {
        let mut works = vec![objects.as_str()];
        // Later interpreters keep a few strings more or less from run to run, depending on
        // addresses.
        if python.minor == 9 && tested_pythons().iter().any(|tested| tested.program == python.program) {
            works.extend(["test.test_json.test_decode", "test.test_ast"]);
        }
        for (work, nframe) in works.iter().flat_map(|work| [(work, "1"), (work, "25")]) {
            let script = source("python/differential.py");
            // About 1 of 40 runs of the interpreter keeps some bytes more, most often on a busy
            // machine.
            let differences = (0..3).map_while(|_| {
                let mut stock = Command::new(&python.program);
                stock.arg(&script).args([work, nframe]).env("PYTHONHASHSEED", "0");
                let theirs = traced(&stdout_of(&mut stock));
                let trace = Trace::of(&python.program).arg(&script).args([work, nframe]).env("PYTHONHASHSEED", "0");
                let outcome = trace.run().expect_code(0);
                outcome.report(&[]).assert_exact();
                assert!(theirs.1.len() > 3, "{work} leaves something");
                difference(&traced(&outcome.stdout()), &theirs)
            });
            let differences: Vec<String> = differences.collect();
            assert!(differences.len() < 3, "{} {work} {nframe}: {differences:#?}", python.program.display());
        }
    }
}

/// Differences of two results, Heapline's first.
fn difference(ours: &((u64, u64), Sums), theirs: &((u64, u64), Sums)) -> Option<String> {
    let keys: BTreeSet<_> = ours.1.keys().chain(theirs.1.keys()).collect();
    let rows = keys.into_iter().filter(|&key| ours.1.get(key) != theirs.1.get(key));
    let rows: Vec<String> = rows.map(|key| format!("{key:?}: {:?} {:?}", ours.1.get(key), theirs.1.get(key))).collect();
    (ours != theirs).then(|| format!("{:?} {:?} {rows:#?}", ours.0, theirs.0))
}

/// The second list of traces comes from the free list, filled by the program and by the objects
/// made for the first answer.
#[test]
fn objects_made_for_an_answer_leave_no_block_to_the_program() {
    let script = "import gc, tracemalloc\n\
        def lines(traces): return sorted((size, frames[0][1]) for _, size, frames, _ in traces)\n\
        gc.collect()\n\
        tracemalloc.start()\n\
        hold = [[] for _ in range(200)]\n\
        hold.extend([(i, i) for i in range(4000)])\n\
        traces = tracemalloc._get_traces()\n\
        print(tracemalloc._get_object_traceback(traces))\n\
        a, b = [], []\n\
        del a, b\n\
        traces = tracemalloc._get_traces()\n\
        print([row for row in lines(traces) if row[1] in (7, 9, 11)], tracemalloc._get_object_traceback(traces))\n";
    for python in pythons() {
        let theirs = stdout_of(Command::new(&python.program).args(["-c", script]));
        let ours = Trace::of(&python.program).args(["-c", script]).run().expect_code(0).stdout();
        assert_eq!(ours, theirs, "3.{}", python.minor);
    }
}

#[test]
fn the_documentations_examples_run_as_they_are_written() {
    let run = |command: &mut Command| stdout_of(command.current_dir(tempfile::tempdir().expect("a folder").keep()));
    // The sums and the biggest lines are equal to the byte. Other memory kept by the interpreter
    // depends on addresses.
    let told = |text: &str| -> Vec<String> {
        let is_told = |line: &&str| line.contains("_size=") || line.contains("examples.py");
        text.lines().filter(is_told).map(str::to_owned).collect()
    };
    for python in pythons() {
        // A few runs of the interpreter keep some bytes more, most often on a busy machine.
        let differences = (0..3).map_while(|_| {
            let theirs = told(&run(Command::new(&python.program).arg(source("python/examples.py"))));
            let folder = tempfile::tempdir().expect("a folder");
            let mut command = Command::new(&programs().aggregator);
            command.args(["run", "-o"]).arg(folder.path().join("s.snap")).arg("--").arg(&python.program);
            let ours = run(command.arg(source("python/examples.py")));
            assert!(told(&ours).len() == 5 && ours.contains("[ Top 1 difference ]"), "{ours}");
            let ours = told(&ours);
            (ours != theirs).then_some((ours, theirs))
        });
        let differences: Vec<_> = differences.collect();
        assert!(differences.len() < 3, "{}: {differences:#?}", python.program.display());
    }
}

#[test]
fn what_is_tracked_by_hand_has_its_domain() {
    let line = line_of("python/tracked.py", "# line: array");
    for python in pythons() {
        let outcome = Trace::of(&python.program).arg(source("python/tracked.py")).run().expect_code(0);
        let report = outcome.report(&["--domain", "track:389047"]);
        report.assert_exact();
        assert_eq!(
            report.at_line("tracked.py", line),
            (6_001_000, 2),
            "also what was tracked while nothing was traced"
        );
        let domain = report.domains.iter().find(|row| row.domain == "track:389047").expect("its row");
        assert_eq!((domain.current, domain.blocks, domain.allocs), (6_001_000, 2, 4));
    }
}

#[test]
fn the_command_line_and_the_environment_begin_it() {
    for python in pythons() {
        let said = |arguments: &[&str], variable: &str| {
            let trace = Trace::of(&python.program).args(arguments).arg(source("python/limit.py"));
            let trace = trace.env("PYTHONTRACEMALLOC", variable);
            let theirs = String::from_utf8(trace.untraced().stdout).expect("text");
            let ours = trace.run().expect_code(0).stdout();
            assert_eq!(ours, theirs, "{} {arguments:?} {variable:?}", python.program.display());
            ours
        };
        assert!(said(&["-X", "tracemalloc=3"], "").starts_with("True 3 3 "));
        assert!(said(&["-X", "tracemalloc"], "7").starts_with("True 1 1 "));
        assert!(said(&[], "100").starts_with("True 100 100 "), "more frames than reports keep");
        assert!(said(&["-E"], "100").starts_with("False 1 None "));
        assert!(said(&["-I"], "100").starts_with("False 1 None "));
        let wrong = Trace::of(&python.program).args(["-X", "tracemalloc=-1", "-c", ""]);
        let theirs = wrong.untraced();
        let ours = wrong.run();
        assert_eq!(ours.status().code(), theirs.status.code());
        assert!(ours.stderr().contains("-X tracemalloc=NFRAME: invalid number of frames"), "{}", ours.stderr());
    }
}

/// CPython's tracemalloc starts after the first modules and codecs. Their blocks are not the
/// program's.
#[test]
fn it_begins_where_cpythons_own_begins() {
    let script = "import tracemalloc\n\
        sums = tracemalloc.get_traced_memory()\n\
        print(*sums, len(tracemalloc.take_snapshot().traces))";
    let numbers =
        |text: &str| -> Vec<u64> { text.split_whitespace().map(|number| number.parse().expect("a number")).collect() };
    for python in pythons() {
        let trace = Trace::of(&python.program).args(["-X", "tracemalloc=2", "-c", script]).env("PYTHONHASHSEED", "0");
        let theirs = numbers(&String::from_utf8(trace.untraced().stdout).expect("text"));
        let ours = numbers(&trace.run().expect_code(0).stdout());
        assert_eq!(ours.len(), 3);
        // Memory kept by an interpreter depends on addresses, so the numbers differ a little from
        // run to run.
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(ours.abs_diff(*theirs) * 200 <= *theirs, "3.{}: {ours} and {theirs}", python.minor);
        }
    }
}

#[test]
fn an_extension_modules_leak_is_blamed_on_the_python_line() {
    let built: Vec<(Python, tempfile::TempDir)> = pythons()
        .into_iter()
        .map(|python| (python, tempfile::tempdir().expect("a folder")))
        .filter(|(python, folder)| python.build_module("leaky", folder.path()))
        .collect();
    if built.is_empty() {
        skip("no CPython has its headers installed");
    }
    let [leak, call] = ["# line: leak", "# line: call"].map(|marker| line_of("python/leaky.py", marker));
    let in_c = line_of("python/leaky.c", "/* LINE leak */");
    for (python, folder) in built {
        let trace = Trace::of(&python.program).arg(source("python/leaky.py")).arg(folder.path());
        let outcome = trace.run().expect_code(0);
        let by_line = |options: &[&str]| outcome.report(&[&["--domain", "native"], options].concat());
        assert_eq!(by_line(&["--frames", "python"]).at_line("leaky.py", leak), (550_000, 55));
        assert_eq!(by_line(&[]).at_line("leaky.c", in_c), (550_000, 55));
        let traceback = |count: u64, options: &[&str]| -> Vec<(String, u64)> {
            let report = by_line(&[&["--by", "traceback", "--filter", "*leaky*", "--all-frames"], options].concat());
            let stat = report.stats.iter().find(|stat| stat.count == count && stat.size == count * 10_000);
            let frames = stat.unwrap_or_else(|| panic!("{count} blocks\n{report:?}")).traceback.iter();
            let name = |file: &str| file.rsplit('/').next().unwrap_or_default().to_owned();
            frames.map(|frame| (name(frame.file()), frame.lineno)).filter(|(file, _)| file.contains("leaky")).collect()
        };
        let frames = |rows: &[(&str, u64)]| rows.iter().map(|&(f, l)| (f.to_owned(), l)).collect::<Vec<_>>();
        assert_eq!(traceback(50, &[])[1..], frames(&[("leaky.py", leak), ("leaky.c", in_c)]));
        let through = traceback(5, &[]);
        // The frames are: the module, through_c, C, the lambda, serve, C.
        let calls = frames(&[("leaky.py", call), ("leaky.py", call), ("leaky.py", leak), ("leaky.c", in_c)]);
        let without_c: Vec<_> =
            through[1..].iter().filter(|(file, line)| file != "leaky.c" || *line == in_c).cloned().collect();
        assert_eq!(without_c, calls);
        let native = by_line(&["--by", "traceback", "--frames", "native"]);
        let mut files = native.stats.iter().flat_map(|stat| &stat.traceback).map(|frame| frame.file());
        assert!(files.all(|file| !file.ends_with(".py")), "none of Python's");
    }
}

#[test]
fn a_service_that_is_killed_leaves_a_whole_snapshot() {
    let Some(python) = pythons().pop() else { return };
    let script = "import http.server, sys\n\
        kept = []\n\
        class Handler(http.server.BaseHTTPRequestHandler):\n    \
            def do_GET(self):\n        \
                kept.append(bytearray(10_000))\n        \
                self.send_response(200); self.end_headers(); self.wfile.write(b'ok')\n    \
            def log_message(self, *arguments): pass\n\
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)\n\
        print(server.server_address[1], flush=True)\n\
        server.serve_forever()\n";
    let mut running = Trace::of(&python.program).args(["-c", script]).spawn();
    let mut line = String::new();
    let mut output = BufReader::new(running.child.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("a line");
    let port: u16 = line.trim().parse().expect("a port");
    for _ in 0..50 {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it serves");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("ok"), "{answer}");
    }
    kill(running.target_pid(), libc::SIGKILL);
    let outcome: Outcome = running.finish().expect_code(128 + 9);
    let report = outcome.report(&[]);
    report.assert_exact();
    assert_eq!(report.snapshot.end, "killed");
    let (size, count) = report.at_line("<string>", 5);
    assert!((500_000..600_000).contains(&size) && count >= 100, "{size} bytes in {count} blocks");
}

#[test]
fn a_process_that_dies_of_memory_names_the_line() {
    let Some(python) = pythons().pop() else { return };
    let script = "import resource\n\
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))\n\
        kept = []\n\
        while True:\n    \
            kept.append(bytearray(4 << 20))\n";
    let outcome = Trace::of(&python.program).args(["-c", script]).run().expect_code(1);
    assert!(outcome.stderr().contains("MemoryError"));
    let report = outcome.report(&["--at", "peak"]);
    let (size, _) = report.at_line("<string>", 5);
    assert!(size > 300 << 20, "{size} bytes");
    assert_eq!(report.stats[0].traceback.last().map(|frame| frame.lineno), Some(5), "the first row");
}

#[test]
fn a_fatal_error_of_the_debug_allocators_is_cpythons_own() {
    let overflow = "import ctypes\n\
        api = ctypes.pythonapi\n\
        api.PyMem_Malloc.restype = ctypes.c_void_p\n\
        block = api.PyMem_Malloc(ctypes.c_size_t(10))\n\
        ctypes.memset(block + 10, 0, 1)\n\
        api.PyMem_Free(ctypes.c_void_p(block))\n";
    for python in pythons() {
        let trace = Trace::of(&python.program).args(["-c", overflow]).env("PYTHONMALLOC", "debug");
        let outcome = trace.run().expect_code(128 + libc::SIGABRT);
        assert!(outcome.stderr().contains("bad trailing pad byte"), "{}", outcome.stderr());
        assert!(outcome.stderr().contains("line 6 in <module>"), "{}", outcome.stderr());
    }
}

#[test]
fn a_thread_that_asks_when_the_program_is_replaced_does_no_harm() {
    let script = "import os, threading, tracemalloc\n\
        tracemalloc.start()\n\
        threading.Timer(0.3, lambda: os.execv('/bin/sleep', ['sleep', '60'])).start()\n\
        while True: tracemalloc.get_traced_memory()\n";
    for python in pythons() {
        let running = Trace::of(&python.program).args(["-c", script]).spawn();
        let target = running.target_pid();
        let comm = std::path::PathBuf::from(format!("/proc/{target}/comm"));
        wait_for("the other program", || (std::fs::read_to_string(&comm).ok()?.trim() == "sleep").then_some(()));
        let stats = stats(target);
        assert_eq!(stats.contradictions(), 0);
        kill(target, libc::SIGTERM);
        running.finish().report(&[]).assert_exact();
    }
}
