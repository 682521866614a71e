//! Programs of musl: under `run`, as followed children, and attached to while they run. The victims
//! and the checks are those of glibc, where they apply.

use crate::loaders::MUSL_SAYS;
use crate::support::stepped::{Stepped, attach_command, detach, ended};
use crate::support::trace::{kill, report_on};
use crate::support::victim::{self, build_for_musl, line_of};
use crate::support::{Outcome, Random, Trace, is_root, programs, rounds, stdout_of, wait_for};
use crate::{counts, follow, fork, kill as kills, threads, verify, waits};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const LOADER: &str = "/lib/ld-musl-x86_64.so.1";

/// Ways to link a program. `musl-gcc` leaves the table of unwind information out, other compilers
/// for musl do not.
const LINKED: [&[&str]; 2] = [&["-O1"], &["-O1", "-Wl,--eh-frame-hdr"]];

#[test]
fn counts_are_those_of_the_program() {
    for flags in ["-O0", "-O2"] {
        let Some(program) = build_for_musl("counts.c", &[flags]) else { return };
        counts::assert_counts_of(&program, "strict");
        counts::assert_counts_of(&program, "others");
    }
}

#[test]
fn blocks_handed_between_threads_are_never_mixed_up() {
    let Some(program) = build_for_musl("threads.c", &["-O2"]) else { return };
    for threads in [2, 4] {
        let numbers = [threads, 20_000, 0, 5].map(|n: u64| n.to_string());
        threads::assert_exact(&Trace::of(&program).args(&numbers).run().expect_code(0), &format!("{threads} threads"));
    }
}

/// Lines of a traceback in `through.c`, from the most recent on; `None` for other frames.
fn traceback(outcome: &Outcome, size: u64) -> Vec<Option<u64>> {
    let report = outcome.report(&["--by", "traceback", "--raw-frames"]);
    let found: Vec<_> = report.stats.iter().filter(|row| row.size == size).collect();
    let [row] = &found[..] else { panic!("{} rows with {size} bytes", found.len()) };
    assert_eq!(row.total_nframe, u64::try_from(row.traceback.len()).ok(), "all frames are there");
    let line = |frame: &crate::support::report::Frame| frame.filename.ends_with("/through.c").then_some(frame.lineno);
    row.traceback.iter().rev().map(line).collect()
}

/// musl's own code has no unwind information.
#[test]
fn tracebacks_lead_through_the_c_library() {
    for flags in LINKED {
        let Some(program) = build_for_musl("through.c", flags) else { return };
        let outcome = Trace::of(&program).run().expect_code(0);
        let report = outcome.report(&[]);
        report.assert_exact();
        assert!(
            outcome.snapshot().stacks.iter().all(|stack| stack.leaf.is_none() || !stack.truncated),
            "{flags:?}: to the root"
        );
        let at = |marker: &str| Some(line_of("through.c", marker));
        let lines = |size| {
            let mut lines = traceback(&outcome, size);
            lines.dedup();
            lines
        };
        let (copied, formatted) = (at("// LINE copied"), at("// LINE formatted"));
        assert_eq!(lines(34), [None, copied, at("// LINE main copied"), None], "{flags:?}");
        assert_eq!(lines(42), [None, formatted, at("// LINE main formatted"), None], "{flags:?}");
        let (compare, sorted) = (at("// LINE compare"), at("// LINE sorted"));
        assert_eq!(lines(777), [compare, None, sorted, at("// LINE main sorted"), None], "{flags:?}");
        let (handle, raised) = (at("// LINE handle"), at("// LINE raised"));
        assert_eq!(lines(888), [handle, None, raised, at("// LINE main raised"), None], "{flags:?}");
        assert_eq!(lines(555), [at("// LINE once"), None, at("// LINE work"), None], "{flags:?}");
    }
}

#[test]
fn forked_children_are_unharmed() {
    let Some(program) = build_for_musl("fork.c", &["-O1"]) else { return };
    ["fork", "thread", "vfork", "spawn", "clone"].into_iter().for_each(|mode| fork::assert_exact_in(&program, mode));
}

fn tree(mode: &str) -> Option<Trace> {
    build_for_musl("tree.c", &["-O1"]).map(|program| Trace::of(program).arg(mode))
}

#[test]
fn forked_children_begin_with_what_their_parent_had() {
    let Some(trace) = tree("nested") else { return };
    let mut children = follow::children(&trace.run().expect_code(0));
    children.sort_by_key(|child| child.meta.pid);
    children.iter().for_each(follow::assert_exact);
    let sizes: Vec<_> = children.iter().map(|child| follow::sizes(child, &[1000, 201, 202, 203])).collect();
    let wanted: [&[(u64, u64)]; 3] =
        [&[(1000, 90), (201, 10)], &[(1000, 80), (201, 10), (202, 10)], &[(1000, 70), (201, 10), (202, 10), (203, 10)]];
    assert_eq!(sizes, wanted.map(|sizes| sizes.iter().copied().collect::<BTreeMap<_, _>>()));
}

/// From musl to glibc and to musl, however the program is started.
#[test]
fn programs_are_followed_however_they_are_started() {
    let Some(of_musl) = build_for_musl("counts.c", &["-O0"]) else { return };
    for counts in [of_musl, victim::build("counts.c", &["-O0"])] {
        let outcome = tree("spawn").expect("built before").arg(&counts).run().expect_code(0);
        let children = follow::children(&outcome);
        assert_eq!(children.len(), 5, "{}", outcome.stderr());
        let said = crate::support::trace::printed(outcome.stdout().as_bytes());
        for child in &children {
            follow::assert_exact(child);
            let native = &child.domains[0];
            assert_eq!((native.allocs, native.frees), (said["allocs"], said["frees"]), "{}", counts.display());
            assert_eq!(Path::new(&child.meta.executable), counts);
        }
        for mode in ["system", "popen"] {
            let trace = tree(mode).expect("built before").arg(format!("{}; true", counts.display()));
            let children = follow::children(&trace.run().expect_code(0));
            assert!(children.iter().any(|child| Path::new(&child.meta.executable) == counts), "{mode}");
        }
    }
}

/// The program itself, below glibc's shell, as a script's interpreter, after exec, and through
/// musl's loader.
#[test]
fn a_program_does_as_alone_and_is_traced() {
    let Some(program) = build_for_musl("musl.c", &["-O1"]) else { return };
    let path = program.to_str().expect("UTF-8");
    let traced = |outcome: &Outcome| {
        let own = outcome.snapshot();
        follow::children(outcome).into_iter().chain([own]).filter(|s| s.domains[0].allocs >= 8000).count()
    };
    let script = program.with_file_name("script");
    std::fs::write(&script, format!("#!{path}\n")).expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let script = script.to_str().expect("UTF-8");
    let mut traces = vec![Trace::of(&program), Trace::of(script)];
    for command in [path, script, &format!("/bin/sh -c '{path}; true'"), &format!("/bin/sh -c 'exec {script}'")] {
        traces.push(Trace::of("/bin/sh").args(["-c", command]));
        traces.push(Trace::of("/bin/sh").args(["-c", &format!("exec {command}")]));
    }
    if Path::new(LOADER).exists() {
        traces.push(Trace::of(LOADER).arg(path));
        traces.push(Trace::of(LOADER).args(["--library-path", "/nowhere", "--", path]));
        traces.push(Trace::of("/bin/sh").args(["-c", &format!("{LOADER} {path}; true")]));
    }
    for trace in traces {
        let outcome = trace.run().expect_code(0);
        assert_eq!(outcome.stdout(), MUSL_SAYS);
        // The image replaced by exec, and the forked child with its parent's blocks.
        let folder = outcome.directory().to_owned();
        let replaced = std::fs::read_dir(&folder).expect("a folder").flatten().filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.contains(".exec") && live_or_past_allocs(&entry.path()) >= 8000
        });
        let below = std::fs::read_dir(folder.join("out")).into_iter().flatten().flatten().filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.contains(".exec") && live_or_past_allocs(&entry.path()) >= 8000
        });
        assert!(traced(&outcome) + replaced.count() + below.count() > 0, "{}", outcome.stderr());
        assert!(!outcome.stderr().contains("Error relocating"), "{}", outcome.stderr());
    }
}

fn live_or_past_allocs(snapshot: &Path) -> u64 {
    report_on(snapshot, &[]).native().allocs
}

/// A collector that finds no aggregator leaves the program alone.
#[test]
fn a_collector_without_an_aggregator_is_idle() {
    let Some(program) = build_for_musl("musl.c", &["-O1"]) else { return };
    let folder = tempfile::TempDir::new().expect("a folder");
    let library = folder.path().join("collector.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&library));
    for tree in ["", "1:2:3:4:5:6:7:8:9:0"] {
        let mut command = Command::new(&program);
        command.env("LD_PRELOAD", &library).env("HEAPLINE_TREE", tree);
        let says = stdout_of(&mut command);
        assert_eq!(says.replace("HEAPLINE_TREE=\n", ""), MUSL_SAYS);
    }
}

/// Static programs have no loader, and what is no program runs as little as alone.
#[test]
fn what_cannot_be_traced_is_left_alone() {
    let Some(program) = build_for_musl("musl.c", &["-O1", "-static"]) else { return };
    let path = program.to_str().expect("UTF-8");
    let outcome = Trace::of("/bin/sh").args(["-c", &format!("{path}; true")]).run().expect_code(0);
    assert_eq!(outcome.stdout(), MUSL_SAYS);
    let alone = Trace::of(&program).run();
    assert_eq!((alone.status().code(), alone.stdout().as_str()), (Some(0), MUSL_SAYS));
    assert!(alone.stderr().contains("statically linked"), "{}", alone.stderr());
    // The beginning of a program for another processor, with musl's loader.
    let garbage = program.with_file_name("garbage");
    let mut bytes = std::fs::read(build_for_musl("musl.c", &["-O1"]).expect("built")).expect("readable");
    bytes[18] = 0xb7;
    std::fs::write(&garbage, bytes).expect("written");
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let trace = Trace::of("/bin/sh").args(["-c", &format!("{}; echo $?", garbage.display())]);
    let alone = trace.untraced();
    assert_eq!(trace.run().stdout().into_bytes(), alone.stdout);
}

#[test]
fn a_killed_process_leaves_a_state_that_it_passed_through() {
    let Some(program) = build_for_musl("kill9.c", &["-O2"]) else { return };
    let mut random = Random(0x6d75_736c);
    for _ in 0..rounds("HEAPLINE_KILLS", 100) / 10 {
        kills::one_kill(&program, &mut random);
    }
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

fn plugin() -> Option<PathBuf> {
    build_for_musl("plugin.c", &["-O1", "-shared", "-fPIC"])
}

fn attached(flags: &[&str]) -> Option<Stepped> {
    Some(Stepped::start(Command::new(build_for_musl("attached.c", flags)?).arg(plugin()?)))
}

#[test]
fn an_untouched_process_is_traced_exactly_and_left_as_it_was() {
    for flags in LINKED.into_iter().chain([&["-O1", "-no-pie", "-Wl,-z,lazy,-z,norelro"][..]]) {
        let Some(mut victim) = attached(flags) else { return };
        victim.steps("mMr");
        let (address, before) = (victim.line(b'a'), descriptors(victim.pid()));
        for round in 0..2 {
            let snapshot = victim.snapshot_path("a.snap.zst");
            let aggregator = victim.attach(&snapshot, &[]);
            // Two blocks from before the attach are freed, and another is moved.
            victim.steps("fmMrmfvwvx");
            let said = detach(aggregator);
            assert!(said.contains("stopped for"), "{said}");
            let report = report_on(&snapshot, &["--at", "total"]);
            report.assert_exact();
            let rows = |marker| report.at_line("attached.c", line_of("attached.c", marker));
            assert_eq!(
                [rows("// LINE kept"), rows("// LINE found"), rows("// LINE moved")],
                [(2000, 2), (700, 1), (5000, 1)],
                "{flags:?}, round {round}"
            );
            let mapped = report_on(&snapshot, &["--domain", "mmap"]);
            assert_eq!(mapped.at_line("attached.c", line_of("attached.c", "// LINE mapped")), (65_536, 1), "{flags:?}");
            assert_eq!(victim.line(b'a'), address, "{flags:?}: malloc is malloc again");
            assert_eq!(descriptors(victim.pid()), before, "{flags:?}");
            victim.steps("mMwf");
        }
        assert_eq!(victim.finish(), 0, "{flags:?}");
    }
}

#[test]
fn what_is_loaded_later_is_seen_too() {
    let Some(mut victim) = attached(&["-O1"]) else { return };
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    victim.steps("ppzpz");
    detach(aggregator);
    let total = report_on(&snapshot, &["--at", "total"]);
    total.assert_exact();
    assert_eq!(total.at_line("plugin.c", line_of("plugin.c", "// LINE grab_a")), (3 * 2001, 3));
    assert_eq!(victim.finish(), 0);
    // With the program from its first instruction.
    let (program, plugin) = (build_for_musl("attached.c", &["-O1"]).expect("built"), plugin().expect("built"));
    let outcome = Trace::of(program).arg(plugin).input("ppzpq").run().expect_code(0);
    let total = outcome.report(&["--at", "total"]);
    total.assert_exact();
    assert_eq!(total.at_line("plugin.c", line_of("plugin.c", "// LINE grab_a")), (3 * 2001, 3));
}

#[test]
fn stacks_are_walked_as_by_gimli() {
    for flags in [["-O0", "-Wl,--eh-frame-hdr"], ["-O2", "-Wl,--eh-frame-hdr"], ["-O2", ""]] {
        let flags: Vec<&str> = flags.into_iter().filter(|flag| !flag.is_empty()).collect();
        let Some(program) = build_for_musl("moving.c", &flags) else { return };
        let (all, different) = verify::compared(Trace::of(program).arg("1000"));
        assert!(all >= 2000 && different == 0, "{different} of {all}, {flags:?}");
        let program = build_for_musl("signals.c", &flags).expect("built before");
        let (all, different) = verify::compared(Trace::of(program).args(["plain", "300"]));
        assert!(all > 100 && different == 0, "{different} of {all}, {flags:?}");
    }
}

#[test]
fn a_thread_in_a_signal_handler_is_not_borrowed() {
    let Some(program) = build_for_musl("waits.c", &["-O1"]) else { return };
    let victim = Stepped::start(Command::new(program).arg("handler"));
    let mut command = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
    let output = command.args(["--wait", "0"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("it is in a signal handler"), "{said}");
    assert_eq!(victim.finish(), 0);
}

#[test]
fn a_process_that_waits_is_attached_to_whatever_it_waits_for() {
    if let Some(program) = build_for_musl("waits.c", &["-O1"]) {
        waits::assert_all_are_attached_to(&program);
    }
}

/// Threads of before the attach have their words as well as threads of later.
#[test]
fn a_process_that_never_rests_is_traced() {
    let Some(program) = build_for_musl("churning.c", &["-O1"]) else { return };
    for mode in ["threads", "fork", "dlopen"] {
        let victim = Stepped::start(Command::new(&program).arg(mode).arg(plugin().expect("built")));
        for round in 0..5 {
            let snapshot = victim.snapshot_path(&format!("{round}.snap.zst"));
            ended(attach_command(victim.pid(), &snapshot).args(["--duration", "0.2"]).spawn().expect("it starts"));
            let report = report_on(&snapshot, &[]);
            report.assert_exact();
            assert!(report.native().allocs > 0, "{mode}, round {round}");
        }
        assert_eq!(victim.finish(), 0, "{mode}");
    }
}

#[test]
fn an_aggregator_that_dies_leaves_the_process_alone() {
    let Some(mut victim) = attached(&["-O1"]) else { return };
    let snapshot = victim.snapshot_path("a.snap.zst");
    let mut aggregator = victim.attach(&snapshot, &[]);
    victim.steps("mMr");
    kill(i32::try_from(aggregator.id()).expect("a pid"), libc::SIGKILL);
    aggregator.wait().expect("killed");
    victim.steps("fmMrf");
    victim.assert_can_be_traced("after a killed aggregator");
}

/// A process with a root folder that has musl's loader, the program and nothing else.
#[test]
fn a_process_in_a_container_is_attached_to() {
    let Some(program) = build_for_musl("attached.c", &["-O1"]) else { return };
    if !is_root() || !Path::new(LOADER).exists() {
        return;
    }
    let root = tempfile::TempDir::new().expect("a folder");
    std::fs::create_dir(root.path().join("lib")).expect("made");
    std::fs::copy(LOADER, root.path().join(LOADER.trim_start_matches('/'))).expect("copied");
    std::fs::copy(&program, root.path().join("attached")).expect("copied");
    for own_proc in [false, true] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--ipc", "--uts"]);
        if own_proc {
            std::fs::create_dir(root.path().join("proc")).expect("made");
            command.args(["sh", "-c", "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" /attached"]);
        } else {
            command.arg("chroot");
        }
        command.arg(root.path());
        if !own_proc {
            command.arg("/attached");
        }
        let mut victim = Stepped::start(&mut command);
        wait_for("the program", || ctl_would_know(victim.pid()).then_some(()));
        let report = victim.assert_counted(if own_proc { "with /proc" } else { "without /proc" });
        report.assert_exact();
        assert_eq!(victim.finish(), 0);
    }
    let left: Vec<_> = std::fs::read_dir(root.path()).expect("it is there").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 3, "nothing is left behind: {left:?}");
}

fn ctl_would_know(pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with("attached"))
}
