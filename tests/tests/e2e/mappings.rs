//! Mapped ranges of a program (cut, mapped over, moved, reserved), compared with the victim's own
//! account.

use crate::support::report::{Domain, Report, Stat};
use crate::support::trace::{ctl, ctl_ok, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{Outcome, Running, Trace, find_in_path, programs, rounds, skip, stdout_of};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;

const PAGE: u64 = 4096;

/// Sums of a domain. All sums are zero if the domain is missing.
fn sums(domains: &[Domain], name: &str) -> Domain {
    domains.iter().find(|domain| domain.domain == name).cloned().unwrap_or_else(|| Domain {
        domain: name.to_owned(),
        current: 0,
        peak: 0,
        blocks: 0,
        allocs: 0,
        frees: 0,
        allocated_bytes: 0,
    })
}

fn run(mode: &str, flags: &str) -> Outcome {
    Trace::of(victim::build("mappings.c", &[flags])).arg(mode).run().expect_code(0)
}

/// Checks that the report of a domain agrees with the victim's numbers. The names of the victim's
/// numbers begin with `prefix`.
fn assert_sums(report: &Report, domain: &str, said: &BTreeMap<String, u64>, prefix: &str) {
    let found = sums(&report.domains, domain);
    let said = |name: &str| said.get(&format!("{prefix}{name}")).copied().unwrap_or(0);
    let found = (found.current, found.blocks, found.allocs, found.frees);
    assert_eq!(found, (said("pages") * PAGE, said("ranges"), said("allocs"), said("frees")), "{domain}");
}

fn assert_lines(report: &Report, said: &BTreeMap<String, u64>, names: &[&str]) {
    for name in names {
        let line = line_of("mappings.c", &format!("// LINE {name}"));
        let said = |what: &str| said.get(&format!("{name}_{what}")).copied();
        let (bytes, ranges) = report.at_line("mappings.c", line);
        assert_eq!(bytes, said("pages").expect("said") * PAGE, "{name}");
        assert_eq!(ranges, said("ranges").unwrap_or(1), "{name}");
    }
}

#[test]
fn ranges_are_what_the_victim_says() {
    for flags in ["-O0", "-O2"] {
        for mode in ["split", "sizes", "failures", "moves", "reserved", "break"] {
            let outcome = run(mode, flags);
            let said = outcome.printed();
            let report = outcome.report(&["--domain", "mmap"]);
            report.assert_exact();
            assert_sums(&report, "mmap", &said, "");
            assert_sums(&report, "mmap:reserved", &said, "reserved_");
            assert_eq!(sums(&report.domains, "mmap").allocated_bytes, said["asked"] * PAGE, "{flags} {mode}");
            assert_eq!(report.view, "mmap");
            assert_eq!(
                (report.total.size, report.total.count),
                (said["pages"] * PAGE, said["ranges"]),
                "{flags} {mode}"
            );
            assert_eq!(report.snapshot.untracked_frees, said.get("untracked").copied().unwrap_or(0), "{flags} {mode}");
        }
    }
}

#[test]
fn parts_keep_the_line_that_mapped_them() {
    for (mode, names) in [("split", &["map", "overlay"][..]), ("moves", &["grow"]), ("break", &["sbrk"])] {
        let outcome = run(mode, "-O0");
        let report = outcome.report(&["--domain", "mmap", "--by", "lineno"]);
        assert_lines(&report, &outcome.printed(), names);
    }
}

/// A reservation belongs to the line that made the reservation. A usable part belongs to the line
/// of the call allowing the use.
#[test]
fn reservations_are_apart() {
    let outcome = run("reserved", "-O0");
    let said = outcome.printed();
    let memory = outcome.report(&["--domain", "mmap", "--by", "lineno"]);
    assert_lines(&memory, &said, &["commit"]);
    let reserved = outcome.report(&["--domain", "mmap:reserved", "--by", "lineno"]);
    assert_eq!((reserved.view.as_str(), reserved.total.size), ("mmap:reserved", said["reserved_pages"] * PAGE));
    assert_lines(&reserved, &said, &["decommit"]);
    let line = line_of("mappings.c", "// LINE map");
    assert_eq!(reserved.at_line("mappings.c", line), (84 * PAGE, 4));
}

#[test]
fn the_usual_view_and_the_blocks_are_as_they_were() {
    let outcome = run("split", "-O0");
    let report = outcome.report(&[]);
    assert_eq!((report.view.as_str(), report.total.size), ("native", 0), "the victim calls no malloc");
    let by_size = outcome.report(&["--domain", "mmap", "--by", "size"]);
    let mut sizes: Vec<_> = by_size.stats.iter().map(|s| (s.key.as_u64().expect("bytes") / PAGE, s.count)).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [(1, 1), (2, 2), (3, 1)]);
    let threads = outcome.report(&["--domain", "mmap", "--by", "thread"]);
    assert_eq!((threads.total.groups, threads.total.size), (1, 8 * PAGE));
    let total = outcome.report(&["--domain", "mmap", "--at", "total", "--by", "traceback"]);
    assert_eq!((total.total.size, total.total.count), (13 * PAGE, 3));
    let peak = outcome.report(&["--domain", "mmap", "--at", "peak"]);
    assert_eq!((peak.total.size, sums(&peak.domains, "mmap").peak), (10 * PAGE, 10 * PAGE));
}

/// A victim that does a step for each byte of input and prints lines of a name and a number.
struct Steps {
    running: Running,
    said: BTreeMap<String, u64>,
    output: BufReader<std::process::ChildStdout>,
}

impl Steps {
    fn start() -> Steps {
        let mut running = Trace::of(victim::build("mappings.c", &["-O0"])).arg("steps").spawn();
        let output = BufReader::new(running.child.stdout.take().expect("piped"));
        Steps { running, said: BTreeMap::new(), output }
    }

    /// Reads lines until the victim prints `name`. Returns the number.
    fn wait(&mut self, name: &str) -> u64 {
        loop {
            if let Some(&value) = self.said.get(name) {
                return value;
            }
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).expect("a pipe") > 0, "it ended before {name}");
            self.said.extend(crate::support::trace::printed(line.as_bytes()));
        }
    }

    fn step(&mut self) {
        self.running.child.stdin.as_mut().expect("piped").write_all(b".").expect("the victim listens");
    }

    fn lookup(&self, address: u64) -> String {
        ctl_ok(self.running.target_pid(), &["lookup", &format!("{address:#x}")])
    }

    fn current(&self, domain: &str) -> (u64, u64, u64) {
        let sums = sums(&stats(self.running.target_pid()).domains, domain);
        (sums.current / PAGE, sums.peak / PAGE, sums.blocks)
    }
}

#[test]
fn a_running_program_can_be_asked_for_its_ranges() {
    let mut steps = Steps::start();
    let (kept, moving) = (steps.wait("kept"), steps.wait("moving"));
    let pid = steps.running.target_pid();
    assert_eq!((steps.current("mmap"), steps.current("mmap:reserved")), ((3, 3, 1), (50, 50, 1)));
    let found = steps.lookup(kept + 2 * PAGE + 5);
    assert!(found.starts_with(&format!("{kept:#x}: 12288 bytes (mmap)")), "{found}");
    assert!(steps.lookup(moving).starts_with(&format!("{moving:#x}: 204800 bytes (mmap:reserved)")));
    let before = steps.running.snapshot_path().with_file_name("before.snap.zst");
    ctl_ok(pid, &["snapshot", "-o", before.to_str().expect("UTF-8")]);

    steps.step();
    let moved = steps.wait("moved");
    assert_eq!((steps.current("mmap"), steps.current("mmap:reserved")), ((2, 3, 2), (70, 70, 2)));
    assert!(steps.lookup(moved + 49 * PAGE).starts_with(&format!("{moved:#x}: 204800 bytes (mmap:reserved)")));
    assert!(steps.lookup(moved + 50 * PAGE).starts_with(&format!("{:#x}: 81920 bytes", moved + 50 * PAGE)));
    for page in [kept, kept + PAGE, kept + 2 * PAGE, moving, moved, moved + 69 * PAGE] {
        let found = ctl(pid, &["lookup", &format!("{page:#x}")]).status.success();
        assert_eq!(found, is_mapped(pid, page), "{page:#x}: what the kernel says");
    }
    ctl_ok(pid, &["reset-peak"]);
    assert_eq!(steps.current("mmap"), (2, 2, 2));
    assert_diff(&steps, &before);

    ctl_ok(pid, &["clear-traces"]);
    assert_eq!((steps.current("mmap"), steps.current("mmap:reserved")), ((0, 0, 0), (0, 0, 0)));
    steps.step();
    steps.wait("done");
    // Unmapping parts of forgotten ranges is an untracked free. Mapping over forgotten ranges makes
    // a new range.
    assert_eq!((steps.current("mmap"), steps.current("mmap:reserved")), ((5, 5, 1), (0, 0, 0)));
    assert_eq!(stats(pid).snapshot.untracked_frees, 1);
    assert_eq!(stats(pid).contradictions(), 0);
    steps.step();
    steps.running.finish().expect_code(0);
}

/// Whether `/proc/PID/maps` contains the address.
fn is_mapped(pid: i32, address: u64) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("a running process");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("an address");
    let mut ranges = maps.lines().filter_map(|line| line.split_once(' ')?.0.split_once('-'));
    ranges.any(|(start, end)| (hex(start)..hex(end)).contains(&address))
}

fn assert_diff(steps: &Steps, before: &Path) {
    let after = steps.running.snapshot_path().with_file_name("after.snap.zst");
    ctl_ok(steps.running.target_pid(), &["snapshot", "-o", after.to_str().expect("UTF-8")]);
    let diff = report_on(&after, &["--domain", "mmap", "--diff", before.to_str().expect("UTF-8")]);
    let changes: Vec<_> = diff.stats.iter().map(|stat| (stat.size_diff, stat.count_diff)).collect();
    assert_eq!(changes, [(Some(-4096), Some(1))], "a page less, and a range more: the two around it");
}

/// The kernel may give an unmapped range to another thread before the first thread can record the
/// unmap.
#[test]
fn ranges_that_threads_take_over_from_each_other_are_never_mixed_up() {
    let program = victim::build("mapthreads.c", &["-O2"]);
    for seed in 0..rounds("HEAPLINE_SEEDS", 100).div_ceil(20) {
        for threads in ["2", "4", "16"] {
            let outcome = Trace::of(&program).args([threads, "5000", &seed.to_string()]).run().expect_code(0);
            let said = outcome.printed();
            let report = outcome.report(&["--domain", "mmap"]);
            report.assert_exact();
            let found = ["mmap", "mmap:reserved"].map(|domain| sums(&report.domains, domain).current / PAGE);
            assert_eq!(found, [said["pages"], said["reserved_pages"]], "{threads} threads, seed {seed}");
            assert_eq!(
                sums(&report.domains, "mmap").allocated_bytes,
                said["asked"] * PAGE,
                "{threads} threads, seed {seed}"
            );
            assert_eq!(report.snapshot.untracked_frees, 0, "{threads} threads, seed {seed}");
        }
    }
}

#[test]
fn another_providers_own_mappings_are_its_own_lines() {
    let library = Path::new("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2");
    if !library.exists() {
        return skip("libjemalloc.so.2 is not installed");
    }
    let trace = || Trace::of(victim::build("mappings.c", &["-O0"])).env("LD_PRELOAD", library);
    let outcome = trace().arg("reserved").run().expect_code(0);
    let said = outcome.printed();
    let own = outcome.report(&["--domain", "mmap", "--filter", "*/mappings.c"]);
    own.assert_exact();
    assert_eq!((own.total.size, own.total.count), (said["pages"] * PAGE, said["ranges"]));
    // With an allocating program the mappings behind the program's blocks are recorded too.
    let blocks =
        Trace::of(victim::build("sizes.c", &["-O1"])).arg("1000").env("LD_PRELOAD", library).run().expect_code(0);
    let report = blocks.report(&["--filter", "*/sizes.c"]);
    report.assert_exact();
    assert_eq!(report.total.count, 1000);
    let memory = sums(&report.domains, "mmap");
    assert!(memory.current >= report.native().current, "{memory:?}");
}

/// A preloaded library may map memory before any symbol was looked up and before libc has an
/// environment.
#[test]
fn what_is_mapped_before_the_collectors_start_works_as_ever() {
    let early = victim::build("mappings.c", &["-O1", "-shared", "-fPIC", "-DEARLY"]);
    let trace = Trace::of(victim::build("mappings.c", &["-O0"])).arg("reserved").env("LD_PRELOAD", &early);
    let outcome = trace.run().expect_code(0);
    let report = outcome.report(&["--domain", "mmap", "--by", "traceback"]);
    report.assert_exact();
    let is_programs = |stat: &&Stat| stat.traceback.iter().any(|frame| frame.function.as_deref() == Some("main"));
    let size: u64 = report.stats.iter().filter(is_programs).map(|stat| stat.size).sum();
    assert_eq!(size, outcome.printed()["pages"] * PAGE);
}

/// Entries that forward six arguments have a stack frame. No traceback shows this frame, and every
/// walk gets past it.
#[test]
fn tracebacks_are_walked_as_by_gimli() {
    let trace = Trace::of(victim::build("mapthreads.c", &["-O2", "-fomit-frame-pointer"])).args(["2", "3000", "7"]);
    let outcome = trace.env("HEAPLINE_VERIFY", "1").run().expect_code(0);
    let notes = outcome.snapshot().meta.notes;
    assert!(notes.iter().any(|note| note.contains("fresh walk, 0 of them differed")), "{notes:?}");
    for mode in ["split", "moves", "reserved", "break"] {
        let report = run(mode, "-O2").report(&["--domain", "mmap", "--by", "traceback", "--at", "total"]);
        for stat in &report.stats {
            let functions: Vec<_> = stat.traceback.iter().filter_map(|frame| frame.function.as_deref()).collect();
            assert!(functions.contains(&"main"), "{functions:?}");
            assert_eq!(stat.most_recent().file(), "mappings.c", "{functions:?}");
        }
    }
}

/// Mappings of the interpreter for Python objects are blamed on Python's line.
#[test]
fn pythons_arenas_are_below_its_blocks() {
    if find_in_path("python3").is_none() {
        return skip("python3 is not installed");
    }
    let script = "keep = [object() for i in range(300000)]";
    let outcome = Trace::of("python3").args(["-c", script]).run().expect_code(0);
    // The interpreter returns most of the memory before exit.
    let report = outcome.report(&["--domain", "mmap", "--at", "peak"]);
    report.assert_exact();
    assert_eq!(report.view, "mmap");
    let of_line: u64 = report.stats.iter().filter(|s| s.most_recent().filename == "<string>").map(|s| s.size).sum();
    assert!(of_line >= 300_000 * 16, "{of_line} bytes on the line");
}

/// If only ranges were recorded, the report still says why there are no blocks.
#[test]
fn a_program_with_its_own_malloc_is_still_said_to_have_no_records() {
    let program = victim::build("mappings.c", &["-O0"]);
    let outcome = Trace::of(program).arg("split").run().expect_code(0);
    let said = outcome.stderr();
    assert!(said.contains("NOTHING WAS RECORDED, but what it mapped (report --domain mmap): "), "{said}");
    for (domain, is_said) in [("native", true), ("mmap", false)] {
        let mut report = Command::new(&programs().report);
        let text = stdout_of(report.arg(outcome.snapshot_path()).args(["--domain", domain]));
        assert_eq!(text.contains("NO RECORDS: nothing but mappings (--domain mmap)"), is_said, "{text}");
    }
}
