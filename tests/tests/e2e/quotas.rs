//! Limited resources of a program. During a trace the program keeps the use of all address space
//! and descriptors. After the detach nothing of Heapline stays.

use crate::support::stepped::{Stepped, detach};
use crate::support::trace::report_on;
use crate::support::{rounds, victim, wait_for};
use std::process::Command;

fn start(what: &str, left: &str) -> Stepped {
    Stepped::start(Command::new(victim::build("quota.c", &["-O0"])).args([what, left]))
}

/// Answers of the program before, during and after a trace.
fn gets(what: &str, left: &str) -> [String; 3] {
    let mut victim = start(what, left);
    let before = victim.line(b'.');
    let snapshot = victim.snapshot_path("q.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    let during = victim.line(b'.');
    detach(aggregator);
    let after = victim.line(b'.');
    let report = report_on(&snapshot, &["--at", "total"]);
    assert!(report.at_line("quota.c", victim::line_of("quota.c", "/* step */")).1 > 0, "{what}: it was traced");
    assert_eq!(victim.finish(), 7, "{what}");
    [before, during, after]
}

#[test]
fn a_program_with_little_address_space_gets_what_it_gets_alone() {
    assert_eq!(gets("space", "90"), ["memory"; 3]);
}

#[test]
fn a_program_with_few_descriptors_gets_as_many_as_alone() {
    let [before, during, after] = gets("descriptors", "2");
    assert_eq!([&during, &after], [&before; 2]);
}

#[test]
fn closed_standard_streams_stay_closed() {
    assert_eq!(gets("streams", "0"), ["-1 -1"; 3]);
}

/// Descriptors, mappings, address space in KiB and memory in use in KiB of a process.
fn taken(pid: i32) -> [u64; 4] {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it lives");
    let status = read("status");
    let kilobytes = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count() as u64;
    let mappings = read("maps").lines().filter(|line| !line.contains("[heap]")).count() as u64;
    [descriptors, mappings, kilobytes("VmSize"), kilobytes("VmRSS")]
}

/// The first attach loads code, and the code stays. Further attaches and detaches leave nothing.
#[test]
fn a_storm_of_attaches_leaves_nothing_behind() {
    for (what, left) in [("none", "0"), ("threads", "20")] {
        let mut victim = start(what, left);
        let attach = |victim: &mut Stepped, round: u64| {
            let snapshot = victim.snapshot_path(&format!("{round}.snap.zst"));
            let aggregator = victim.attach(&snapshot, &[]);
            victim.line(b'.');
            let told = detach(aggregator);
            assert!(!told.contains("stays mapped"), "{what}: {told}");
        };
        let pid = victim.pid();
        let alone = taken(pid);
        attach(&mut victim, 0);
        let first = taken(pid);
        (1..=rounds("HEAPLINE_ATTACHES", 10)).for_each(|round| attach(&mut victim, round));
        let last = taken(pid);
        println!("{what}: descriptors, mappings, KiB of address space, KiB in use: {alone:?}, {first:?}, {last:?}");
        assert_eq!(last[..3], first[..3], "{what}: alone {alone:?}");
        assert_eq!(first[0], alone[0], "{what}: no descriptor stays");
        assert!(first[2] - alone[2] < 2 << 10, "{what}: the code and hardly more: {alone:?}, {first:?}");
        assert!(last[3] < first[3] + 512, "{what}: {first:?}, {last:?}");
        assert_eq!(victim.finish(), 7);
    }
}

/// A limit set by a traced shell applies to the program: the program has a separate arena of
/// suitable size.
#[test]
fn a_program_behind_ulimit_gets_what_it_gets_alone() {
    let program = victim::build("takes.c", &["-O0"]);
    for limit in [60_000u64, 75_000, 120_000, 200_000] {
        let wanted = limit / 1024 - 20;
        let script = format!("ulimit -v {limit}; exec {} {wanted}", program.display());
        let trace = crate::support::Trace::of("sh").args(["-c", &script]);
        let alone = trace.untraced();
        let outcome = trace.run();
        assert_eq!(
            (outcome.stdout().as_bytes(), outcome.status()),
            (&*alone.stdout, alone.status),
            "ulimit -v {limit}"
        );
        assert!(outcome.stdout().starts_with("taken"), "{}", outcome.stdout());
    }
}

/// A borrowed thread's work area is unmapped on the thread's way back, without help from an
/// aggregator.
#[test]
fn killed_attaches_leave_no_memory_behind_each() {
    for step in ["ready", "written", "loaded", "called"] {
        let mut victim = start("none", "0");
        let kill = || {
            let snapshot = victim.snapshot_path("k.snap.zst");
            let mut command = crate::support::stepped::attach_command(victim.pid(), &snapshot);
            let output = command.env("HEAPLINE_DIE_AT", step).output().expect("it runs");
            assert!(!output.status.success(), "{step}: the tracer was killed");
            let pid = victim.pid();
            // The thread waits a fifth of a second for further requests.
            wait_for("the thread's way back", || {
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
                let is_area = |line: &str| line.contains("r-xp 00000000 00:00 0") && !line.ends_with(']');
                (!maps.lines().any(is_area)).then_some(())
            });
            taken(pid)
        };
        let first = kill();
        let last = [(); 3].map(|()| kill())[2];
        // An attach removes or takes over the remains of an unfinished attach.
        assert_eq!(last[..3], first[..3], "{step}");
        victim.line(b'.');
        assert_eq!(victim.finish(), 7);
    }
}
