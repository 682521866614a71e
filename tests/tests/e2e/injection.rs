//! Attaching to processes that were started without Heapline, and restoring them on detach.

use crate::providers::{PROVIDERS, installed};
use crate::support::python::pythons;
use crate::support::stepped::{Background, STEPS, Stepped, attach_command, detach, ended};
use crate::support::trace::{ctl, ctl_ok, kill, report_on, stats};
use crate::support::victim::{self, line_of};
use crate::support::{Random, Trace, has, is_root, rounds, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Ways of linking a program. The place and the protection of the words changed by an attach
/// differ.
const LINKED: [&[&str]; 4] = [
    &["-fPIE", "-pie", "-Wl,-z,now,-z,relro"],
    &["-fPIE", "-pie", "-Wl,-z,lazy"],
    &["-fno-pie", "-no-pie", "-Wl,-z,lazy,-z,norelro"],
    &["-fPIE", "-pie", "-fno-plt", "-Wl,-z,now,-z,relro"],
];

fn plugin() -> PathBuf {
    victim::build("plugin.c", &["-O1", "-shared", "-fPIC"])
}

fn victim_linked(flags: &[&str]) -> Stepped {
    let flags = [flags, &["-O1"]].concat();
    Stepped::start(Command::new(victim::build("attached.c", &flags)).arg(plugin()))
}

fn victim() -> Stepped {
    victim_linked(LINKED[0])
}

/// The mappings of files in a process, with protection, as "range protection". The collector's own
/// mappings are left out.
fn protections(pid: i32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let own = |line: &&str| !line.contains("heapline") && line.contains('/');
    let fields = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    maps.lines().filter(own).map(fields).collect()
}

/// Bytes and blocks ever allocated at a victim's line, from a snapshot.
fn at_line(snapshot: &Path, file: &str, marker: &str) -> (u64, u64) {
    report_on(snapshot, &["--at", "total"]).at_line(file, line_of(file, marker))
}

#[test]
fn an_untouched_process_is_traced_exactly_and_left_as_it_was() {
    for flags in LINKED {
        let mut victim = victim_linked(flags);
        victim.steps("mMr");
        let (protected, address) = (protections(victim.pid()), victim.line(b'a'));
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        assert_eq!(protections(victim.pid()), protected, "{flags:?}: what was protected is so again");
        // Two blocks from before the attach are freed, and another is moved.
        victim.steps("fmMr");
        let now = stats(victim.pid());
        assert_eq!((now.native().allocs, now.native().current), (3, 6700), "{flags:?}");
        assert_eq!(now.snapshot.untracked_frees, 3, "{flags:?}");
        victim.steps("mfvwv");
        let said = detach(aggregator);
        assert!(said.contains("stopped for"), "{said}");
        let report = report_on(&snapshot, &["--at", "total"]);
        report.assert_exact();
        assert_eq!(report.snapshot.end, "detached");
        let rows = |marker| report.at_line("attached.c", line_of("attached.c", marker));
        assert_eq!(
            [rows("// LINE kept"), rows("// LINE found"), rows("// LINE moved")],
            [(2000, 2), (700, 1), (5000, 1)]
        );
        let mapped = report_on(&snapshot, &["--domain", "mmap"]);
        let line = line_of("attached.c", "// LINE mapped");
        assert_eq!(mapped.at_line("attached.c", line), (65_536, 1), "{flags:?}");
        assert_eq!(victim.line(b'a'), address, "{flags:?}: malloc is malloc again");
        assert_eq!(protections(victim.pid()), protected, "{flags:?}");
        victim.steps("mMpf");
        assert_eq!(victim.finish(), 0, "{flags:?}");
    }
}

#[test]
fn what_is_loaded_later_is_seen_too() {
    let mut victim = victim();
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    victim.steps("pp");
    victim.steps("zpz");
    detach(aggregator);
    report_on(&snapshot, &[]).assert_exact();
    assert_eq!(at_line(&snapshot, "plugin.c", "// LINE grab_a"), (3 * 2001, 3));
    // Libraries loaded while no aggregator was attached are seen as well.
    victim.step(b'p');
    let snapshot = victim.snapshot_path("b.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    victim.steps("ppz");
    detach(aggregator);
    assert_eq!(at_line(&snapshot, "plugin.c", "// LINE grab_a"), (2 * 2001, 2));
    victim.steps("pz");
    assert_eq!(victim.finish(), 0);
}

/// Numbers of the process that must not grow: mapped bytes, descriptors, threads.
fn footprint(pid: i32) -> (u64, usize, String) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned();
    let mapped = field("VmSize:").trim_end_matches(" kB").parse().expect("a number");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
    (mapped, open, field("Threads:"))
}

#[test]
fn it_can_be_attached_many_times_without_growing() {
    let mut victim = victim();
    let mut first = None;
    for round in 0..rounds("HEAPLINE_ATTACHES", 12) {
        victim.assert_counted(&format!("round {round}"));
        if round == 0 {
            // A thread's slot differs from session to session. From the second round on the process
            // has both.
            continue;
        }
        let now = footprint(victim.pid());
        assert_eq!(*first.get_or_insert_with(|| now.clone()), now, "round {round}: mapped, open, threads");
    }
    assert_eq!(victim.finish(), 0);
}

/// The victim checks its registers after every wait.
#[test]
fn a_process_survives_the_aggregators_death_at_every_step() {
    for round in 0..rounds("HEAPLINE_KILLS", 2) {
        for step in STEPS {
            let victim = victim_linked(LINKED[usize::try_from(round).expect("small") % LINKED.len()]);
            let mut dying = attach_command(victim.pid(), &victim.snapshot_path("a.snap.zst"));
            let status = dying.env("HEAPLINE_DIE_AT", step).stderr(Stdio::null()).status().expect("it runs");
            assert!(!status.success(), "round {round}: it dies at {step}");
            victim.assert_can_be_traced(&format!("round {round}: {step}"));
        }
    }
}

#[test]
fn a_process_that_dies_in_the_middle_is_no_trouble() {
    let mut random = Random(5);
    for round in 0..rounds("HEAPLINE_KILLS", 10) {
        let victim = victim();
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = attach_command(victim.pid(), &snapshot).spawn().expect("it starts");
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        kill(victim.pid(), libc::SIGKILL);
        let begun = Instant::now();
        let output = aggregator.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(begun.elapsed() < Duration::from_secs(30), "round {round}");
        assert!(!said.contains("panicked") && said.starts_with("heapline: "), "round {round}: {said}");
    }
}

/// A sleeping call goes on sleeping, and a call that waits for a signal still gets the signal.
#[test]
fn system_calls_in_progress_go_on() {
    let program = victim::build("sleeper.c", &["-O1"]);
    for call in ["nanosleep", "poll", "read", "futex", "select", "sigwait", "pause"] {
        let mut command = Command::new(&program);
        let mut child = command.arg(call).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        wait_for("the call", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.contains(") S ").then_some(())
        });
        let folder = tempfile::TempDir::new().expect("a folder");
        let snapshot = folder.path().join("a.snap.zst");
        let mut once = attach_command(pid, &snapshot);
        let attached = once.args(["--duration", "0.2"]).spawn().expect("it starts");
        ended(attached);
        if call == "pause" || call == "sigwait" {
            kill(pid, libc::SIGUSR1);
        }
        drop(child.stdin.take());
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0), "{call}: it took its time and was not interrupted");
    }
}

#[test]
fn a_busy_process_with_many_threads_is_borrowed_from_for_a_moment() {
    let program = victim::build("busy.c", &["-O1"]);
    let mut victim = Stepped::start(Command::new(program).args(["100", "1"]));
    for round in 0..rounds("HEAPLINE_ATTACHES", 5) {
        let snapshot = victim.snapshot_path("a.snap.zst");
        // With so little room, threads wait for space when the session ends. The records of the
        // waiting threads come after the end of the session, and no session ends because of them.
        let aggregator = victim.attach(&snapshot, &["--max-target-memory", "1M"]);
        std::thread::sleep(Duration::from_millis(300));
        victim.step(b'.');
        println!("{}", detach(aggregator));
        let report = report_on(&snapshot, &[]);
        report.assert_exact();
        assert!(report.native().allocs > 1000, "{round}: {}", report.native().allocs);
    }
    assert_eq!(victim.finish(), 0);
}

/// The victim's threads count received signals: no signal may be lost or do harm.
#[test]
fn signals_that_rain_on_it_are_all_delivered() {
    let program = victim::build("busy.c", &["-O1"]);
    for _ in 0..rounds("HEAPLINE_RAINS", 3) {
        let mut victim = Stepped::start(Command::new(&program).args(["8", "rain"]));
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        std::thread::sleep(Duration::from_millis(100));
        detach(aggregator);
        victim.step(b'.');
        report_on(&snapshot, &[]).assert_exact();
        assert_eq!(victim.finish(), 0, "what was sent came");
    }
}

/// Attaches and detaches during forks, during loading and unloading of libraries, and while threads
/// start and end.
#[test]
fn what_never_stands_still_is_attached_to() {
    let program = victim::build("churning.c", &["-O1"]);
    for mode in ["fork", "dlopen", "threads"] {
        let mut victim = Stepped::start(Command::new(&program).arg(mode).arg(plugin()));
        for round in 0..rounds("HEAPLINE_ATTACHES", 3) {
            let snapshot = victim.snapshot_path("a.snap.zst");
            let aggregator = victim.attach(&snapshot, &[]);
            std::thread::sleep(Duration::from_millis(150));
            detach(aggregator);
            let report = report_on(&snapshot, &[]);
            report.assert_exact();
            assert!(report.native().allocs > 0, "{mode}, round {round}");
            victim.step(b'.');
        }
        assert_eq!(victim.finish(), 0, "{mode}");
    }
}

fn refusal(pid: &str) -> String {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut command = attach_command(pid.parse().expect("a pid"), &folder.path().join("x.snap.zst"));
    let output = command.args(["--duration", "1"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said
}

#[test]
fn a_stopped_process_is_refused_in_one_line() {
    let stopped = Background::sleep();
    kill(stopped.pid().parse().expect("a pid"), libc::SIGSTOP);
    stopped.wait_for(&["State:\tT"]);
    let said = refusal(&stopped.pid());
    assert!(said.contains("stopped by a signal") && said.contains("CONT"), "{said}");
}

#[test]
fn a_process_that_a_debugger_has_is_refused_in_one_line() {
    if !has("gdb") {
        return;
    }
    let target = Background::sleep();
    target.wait_for(&["State:\tS"]);
    let mut debugger = Command::new("gdb");
    // gdb waits for the next command until gdb is killed.
    debugger.args(["-q", "-nx", "-p", &target.pid(), "-ex", "shell sleep 60"]);
    let _debugger = Background::of(debugger);
    target.wait_for(&["State:\tt"]);
    let said = refusal(&target.pid());
    assert!(said.contains("being traced by gdb"), "{said}");
}

#[test]
fn a_seccomp_filter_that_would_kill_is_respected() {
    if !is_root() {
        return;
    }
    let program = victim::build("filtered.c", &["-O1"]);
    for (filter, refused) in
        [("none", None), ("futex", Some("futex")), ("memfd", Some("memfd_create")), ("strict", Some("strict"))]
    {
        let mut child = Command::new(&program);
        let mut child = child.arg(filter).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        use std::io::Read;
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it is ready");
        match refused {
            Some(what) => {
                let said = refusal(&child.id().to_string());
                assert!(said.contains("seccomp") && said.contains(what), "{filter}: {said}");
            }
            None => {
                let folder = tempfile::TempDir::new().expect("a folder");
                let mut once =
                    attach_command(i32::try_from(child.id()).expect("a pid"), &folder.path().join("a.snap.zst"));
                ended(once.args(["--duration", "0.2"]).spawn().expect("it starts"));
            }
        }
        drop(child.stdin.take());
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{filter}: it goes on");
    }
}

/// Reasons for missing shared memory: a filter that makes memfd_create or mmap fail, and a limit on
/// the size of files.
#[test]
fn a_process_that_gets_no_shared_memory_goes_on() {
    let program = victim::build("filtered.c", &["-O1"]);
    let cases = [("nomemfd", "memfd_create"), ("fsize", "shared memory file"), ("nommap", "mmap")];
    let rounds = rounds("HEAPLINE_FAULTS", 1);
    for (filter, reason) in (0..rounds).flat_map(|_| cases) {
        if filter != "fsize" && !is_root() {
            continue;
        }
        let mut child = Command::new(&program);
        let mut child = child.arg(filter).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        use std::io::Read;
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it is ready");
        let said = refusal(&child.id().to_string());
        assert!(said.contains(reason), "{filter}: {said}");
        drop(child.stdin.take());
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{filter}: it goes on");
    }
}

/// A snapshot that cannot be written is reported. The process is restored all the same.
#[test]
fn a_full_disk_is_the_aggregators_trouble_only() {
    if !is_root() {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    let mount = |arguments: &[&str]| Command::new("mount").args(arguments).arg(folder.path()).status();
    assert!(mount(&["-t", "tmpfs", "-o", "size=4k", "none"]).expect("mount runs").success(), "root may mount");
    let snapshot = folder.path().join("a.snap.zst");
    std::fs::write(folder.path().join("all"), [1; 4096]).expect("room for one page");
    let mut victim = victim();
    let address = victim.line(b'a');
    for round in 0..rounds("HEAPLINE_FAULTS", 2) {
        let mut once = attach_command(victim.pid(), &snapshot);
        let output = once.args(["--duration", "0.05"]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("No space left on device"), "round {round}: {said}");
        assert_eq!(victim.line(b'a'), address, "round {round}: malloc is malloc again");
        victim.steps("mMf");
    }
    assert!(Command::new("umount").arg(folder.path()).status().expect("umount runs").success());
    assert_eq!(victim.finish(), 0);
}

/// The first aggregator keeps the process and the hooks.
#[test]
fn a_second_aggregator_does_not_disturb_the_first() {
    let mut victim = victim();
    let snapshot = victim.snapshot_path("a.snap.zst");
    let aggregator = victim.attach(&snapshot, &[]);
    victim.steps("m");
    let said = refusal(&victim.pid().to_string());
    assert!(said.contains(&format!("traced by aggregator {}", aggregator.id())), "{said}");
    victim.steps("fmM");
    detach(aggregator);
    let report = report_on(&snapshot, &[]);
    report.assert_exact();
    assert_eq!((report.native().allocs, report.native().frees), (3, 1));
    assert_eq!(victim.finish(), 0);
}

#[test]
fn ctl_detach_leaves_too() {
    let mut victim = victim();
    let address = victim.line(b'a');
    let aggregator = victim.attach(&victim.snapshot_path("a.snap.zst"), &[]);
    assert_ne!(victim.line(b'a'), address, "the table leads to the collector");
    ctl_ok(victim.pid(), &["detach"]);
    ended(aggregator);
    assert_eq!(victim.line(b'a'), address);
    assert_eq!(victim.finish(), 0);
}

#[test]
fn a_sanitizer_is_let_run_and_no_attach_is_made() {
    let program = victim::build("attached.c", &["-O1", "-fsanitize=address"]);
    let victim = Stepped::start(&mut Command::new(&program));
    let said = refusal(&victim.pid().to_string());
    assert!(said.contains("sanitizer"), "{said}");
    assert_eq!(victim.finish(), 0);
    let run = Trace::of(&program).run().expect_code(0);
    assert_eq!(run.stdout(), ".", "it runs as alone");
    let said = run.stderr();
    assert!(said.contains("NOTHING WAS RECORDED: ") && said.contains("sanitizer"), "{said}");
}

/// Processes in separate namespaces, and a process with a root folder that has no /proc and no
/// other programs.
#[test]
fn walls_around_a_process_do_not_matter() {
    if !is_root() || !has("unshare") {
        return;
    }
    let program = victim::build("attached.c", &["-O1"]);
    let root = tempfile::TempDir::new().expect("a folder");
    victim::copy_with_libraries(&program, root.path());
    let entries = || std::fs::read_dir(root.path()).expect("it is there").count();
    let before = entries();
    let path = program.to_str().expect("text");
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let walls = [
        words(&format!("unshare --mount {path}")),
        words(&format!("unshare --user --map-root-user {path}")),
        words(&format!("unshare --pid --fork --mount-proc {path}")),
        words(&format!("chroot {} {path}", root.path().display())),
    ];
    for wall in walls {
        let mut victim = Stepped::start(Command::new(&wall[0]).args(&wall[1..]));
        // unshare --fork waits for the program, so the program is a child.
        let children = format!("/proc/{0}/task/{0}/children", victim.pid());
        let child =
            std::fs::read_to_string(children).ok().and_then(|pids| pids.split_whitespace().next()?.parse().ok());
        let pid: i32 = child.unwrap_or_else(|| victim.pid());
        let snapshot = victim.snapshot_path("a.snap.zst");
        let mut aggregator = attach_command(pid, &snapshot).spawn().expect("it starts");
        wait_for("the attached aggregator", || {
            assert!(aggregator.try_wait().expect("ours").is_none(), "{wall:?}: it attaches");
            ctl(pid, &["stats"]).status.success().then_some(())
        });
        victim.steps("mMf");
        detach(aggregator);
        let report = report_on(&snapshot, &[]);
        report.assert_exact();
        assert_eq!((report.native().allocs, report.native().frees), (2, 2), "{wall:?}");
        assert_eq!(victim.finish(), 0, "{wall:?}");
    }
    assert_eq!(entries(), before, "nothing is left behind");
}

/// CPython's allocators are hooked under the interpreter's lock, while other threads hold the lock,
/// and are restored afterwards.
#[test]
fn an_untouched_interpreter_is_traced_by_line() {
    let script = victim::source("python/attached.py");
    for python in pythons() {
        let (name, kept) = (format!("3.{}", python.minor), python.bytes(10_000));
        let mut victim = Stepped::start(Command::new(&python.program).arg(&script));
        let own = victim.line(b'a');
        for round in 0..3 {
            let snapshot = victim.snapshot_path("a.snap.zst");
            let aggregator = victim.attach(&snapshot, &[]);
            victim.steps("kfk");
            assert_ne!(victim.line(b'a'), own, "{name}: hooked in round {round}");
            detach(aggregator);
            assert_eq!(victim.line(b'a'), own, "{name}: its own again in round {round}");
            let line = line_of("python/attached.py", "# LINE kept");
            let live = report_on(&snapshot, &["--domain", "python"]);
            live.assert_exact();
            assert_eq!(live.at_line("attached.py", line), (kept, 1), "{name}: live in round {round}");
            let total = report_on(&snapshot, &["--domain", "python", "--at", "total"]);
            let (bytes, blocks) = total.at_line("attached.py", line);
            assert!(bytes >= 2 * kept && blocks >= 2, "{name}: ever in round {round}: {bytes} in {blocks}");
            victim.steps("f");
        }
        assert_eq!(victim.finish(), 0, "{name}");
    }
}

/// Under another allocator each block of the victim's own lines is counted once, whichever function
/// made the block.
#[test]
fn other_allocators_are_hooked_where_they_are() {
    for library in PROVIDERS {
        let Some(path) = installed(library) else { continue };
        let program = victim::build("attached.c", &["-O1"]);
        let mut victim = Stepped::start(Command::new(program).arg(plugin()).env("LD_PRELOAD", &path));
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        victim.steps("mMrpfmM");
        detach(aggregator);
        let report = report_on(&snapshot, &["--at", "total"]);
        report.assert_exact();
        let rows = |marker| report.at_line("attached.c", line_of("attached.c", marker));
        assert_eq!(
            [rows("// LINE kept"), rows("// LINE found"), rows("// LINE moved")],
            [(2000, 2), (1400, 2), (5000, 1)],
            "{library}"
        );
        victim.steps("fmMf");
        assert_eq!(victim.finish(), 0, "{library}");
    }
}

/// The C++ library's operators new and delete call malloc. The operators of other allocators do
/// not.
#[test]
fn operators_are_counted_once_under_every_allocator() {
    let program = victim::build("attached.cpp", &["-O1"]);
    let preloads = PROVIDERS.iter().filter_map(|library| installed(library).map(Some));
    for preload in preloads.chain([None]) {
        let mut command = Command::new(&program);
        if let Some(library) = &preload {
            command.env("LD_PRELOAD", library);
        }
        let mut victim = Stepped::start(&mut command);
        let snapshot = victim.snapshot_path("a.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        victim.steps("nnadn");
        detach(aggregator);
        let report = report_on(&snapshot, &["--at", "total"]);
        report.assert_exact();
        let rows = |marker| report.at_line("attached.cpp", line_of("attached.cpp", marker));
        assert_eq!([rows("// LINE one"), rows("// LINE array")], [(3 * 48, 3), (640, 1)], "{preload:?}");
        let live = report_on(&snapshot, &[]);
        let rows = |marker| live.at_line("attached.cpp", line_of("attached.cpp", marker));
        assert_eq!(
            [rows("// LINE one"), rows("// LINE array")],
            [(48, 1), (0, 0)],
            "{preload:?}: two were deleted, and the array"
        );
        assert_eq!(victim.finish(), 0, "{preload:?}");
    }
}
