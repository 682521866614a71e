//! `--follow` traces every process started by the command separately. No record is in another
//! process's ring.

use crate::history::{assert_sums, history};
use crate::support::python::pythons;
use crate::support::report::{Process, TreeReport};
use crate::support::trace::{ctl_ok, kill, live_sizes, printed, read_snapshot, report_on, tree_report};
use crate::support::victim::{self, line_of, source};
use crate::support::{Outcome, PATIENCE, Random, Trace, has, is_root, wait_for};
use heapline_shared_format::snapshot::{Begun, Birth, Domain, End, Snapshot};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const INHERITED: u64 = 100;

fn tree(mode: &str) -> Trace {
    Trace::of(victim::build("tree.c", &["-O1"])).arg(mode)
}

/// The folder of the children's snapshots.
fn folder(outcome: &Outcome) -> PathBuf {
    outcome.directory().join("out")
}

/// Reads the children's snapshots, without snapshots of images replaced by exec.
fn snapshots_in(folder: &Path) -> Vec<Snapshot> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let files = entries.map(|entry| entry.expect("a file").path());
    files.filter(|path| path.to_string_lossy().ends_with(".snap.zst")).map(|path| read_snapshot(&path)).collect()
}

pub fn children(outcome: &Outcome) -> Vec<Snapshot> {
    snapshots_in(&folder(outcome))
}

/// Number of live blocks for each of the victim's sizes. Blocks of libc are left out.
pub fn sizes(snapshot: &Snapshot, wanted: &[u64]) -> BTreeMap<u64, u64> {
    live_sizes(snapshot).into_iter().filter(|(size, _)| wanted.contains(size)).collect()
}

pub fn assert_exact(snapshot: &Snapshot) {
    let meta = &snapshot.meta;
    assert_eq!(meta.lost.values().sum::<u64>(), 0, "{}: {:?}", meta.command, meta.lost);
    assert_eq!(meta.contradictions.values().sum::<u64>(), 0, "{}: {:?}", meta.command, meta.contradictions);
    for row in &snapshot.domains {
        let origin = snapshot.origin.as_ref();
        let inherited = origin.and_then(|origin| origin.inherited.as_ref()?.get(&row.domain.to_string()).copied());
        let inherited = inherited.unwrap_or(0);
        assert_eq!(inherited + row.allocs - row.frees, row.blocks, "{}: {row:?}", meta.command);
    }
}

/// Counts the children of `nth` by the number of freed inherited blocks.
fn by_freed(children: &[Snapshot]) -> BTreeMap<u64, u64> {
    let mut freed = BTreeMap::new();
    for child in children {
        let sizes = sizes(child, &[77, 1000]);
        let (left, new) = (sizes.get(&1000).copied().unwrap_or(0), sizes.get(&77).copied().unwrap_or(0));
        assert_eq!(INHERITED - left + 1, new, "what was freed and what is new are of one child");
        *freed.entry(INHERITED - left).or_default() += 1;
    }
    freed
}

#[test]
fn a_storm_of_forks_leaves_an_exact_snapshot_of_each() {
    let outcome = tree("storm").run().expect_code(0);
    let children = children(&outcome);
    assert_eq!(children.len(), 500, "{}", outcome.stderr());
    let pid = outcome.snapshot().meta.pid;
    for child in &children {
        assert_exact(child);
        let origin = child.origin.as_ref().expect("a child");
        assert_eq!((origin.parent, origin.birth, child.meta.begun), (pid, Birth::Fork, Begun::Fork));
        assert_eq!((child.meta.end, child.meta.untracked_frees), (End::Exited, 0));
        assert_eq!(origin.inherited.as_ref().expect("known").get("native"), Some(&INHERITED));
        assert_sums(child);
        let first = history(child).steps[0].domain(Domain::Native).map(|row| row.blocks);
        assert_eq!((first, history(child).marks[0].kind.as_str()), (Some(INHERITED), "fork"));
        let native = &child.domains[0];
        let of_the_first = u64::from(native.frees == 0) * 77;
        assert_eq!(
            native.peak,
            INHERITED * 1000 + of_the_first,
            "it begins with what it has inherited, and then shrinks"
        );
    }
    assert_eq!(by_freed(&children), (0..100).map(|k| (k, 5)).collect(), "each frees what its number says");
    assert_eq!(
        sizes(&outcome.snapshot(), &[77, 1000]),
        BTreeMap::from([(1000, INHERITED)]),
        "none of it is the parent's"
    );
    assert!(outcome.stderr().contains("500 child processes"), "{}", outcome.stderr());
}

#[test]
fn children_of_children_begin_with_what_their_own_parent_had() {
    let outcome = tree("nested").run().expect_code(0);
    let mut children = children(&outcome);
    children.sort_by_key(|child| child.meta.pid);
    let [first, second, third] = &children[..] else { panic!("{} children", children.len()) };
    children.iter().for_each(assert_exact);
    let wanted = [1000, 201, 202, 203];
    assert_eq!(sizes(first, &wanted), BTreeMap::from([(1000, 90), (201, 10)]));
    assert_eq!(sizes(second, &wanted), BTreeMap::from([(1000, 80), (201, 10), (202, 10)]));
    assert_eq!(sizes(third, &wanted), BTreeMap::from([(1000, 70), (201, 10), (202, 10), (203, 10)]));
    let parent = |child: &Snapshot| child.origin.as_ref().expect("a child").parent;
    assert_eq!([second, third].map(parent), [first.meta.pid, second.meta.pid]);
}

#[test]
fn a_child_that_forks_at_once_has_a_table_of_its_own() {
    let outcome = tree("at-once").run().expect_code(0);
    let children = children(&outcome);
    // The child, the grandchild, and a process made by a raw clone, which no fork handler was told
    // of.
    assert_eq!(children.len(), 3);
    let known = |child: &&Snapshot| child.origin.as_ref().expect("a child").inherited.is_some();
    let (copied, raw): (Vec<_>, Vec<_>) = children.iter().partition(known);
    let mut left: Vec<_> = copied.iter().map(|child| sizes(child, &[77, 1000])).collect();
    left.sort();
    assert_eq!(left, [BTreeMap::from([(77, 6), (1000, 95)]), BTreeMap::from([(1000, 100)])]);
    let [raw] = raw[..] else { panic!("one was cloned") };
    assert_eq!((sizes(raw, &[77, 1000]), raw.meta.untracked_frees), (BTreeMap::from([(77, 7)]), 6));
}

#[test]
fn what_other_threads_do_during_a_fork_is_counted() {
    let outcome = tree("threads").run().expect_code(0);
    let children = children(&outcome);
    assert_eq!(children.len(), 20);
    for child in &children {
        assert!(child.meta.lost.keys().all(|cause| cause == "fork"), "{:?}", child.meta.lost);
        assert_eq!(child.meta.contradictions.values().sum::<u64>(), 0, "{:?}", child.meta.contradictions);
    }
    assert_eq!(by_freed(&children), (0..20).map(|k| (k, 1)).collect(), "the forking thread's own blocks are exact");
    outcome.report(&[]).assert_exact();
}

#[test]
fn workers_that_were_forked_first_serve_in_their_own_right() {
    let outcome = tree("server").run().expect_code(0);
    let children = children(&outcome);
    let served = |child: &Snapshot| sizes(child, &[301]).get(&301).copied().unwrap_or(0);
    assert_eq!(children.iter().map(served).sum::<u64>(), 600);
    for child in children.iter().filter(|child| served(child) > 0) {
        assert_exact(child);
        assert_eq!(sizes(child, &[1000]).get(&1000), Some(&INHERITED));
    }
    let together = tree_report(&folder(&outcome), &["--by", "size"]);
    let stat = together.stats.iter().find(|stat| stat.key == 301).expect("blocks of that size");
    assert_eq!((stat.count, stat.size), (600, 600 * 301));
}

#[test]
fn a_child_that_is_killed_loses_nothing() {
    for _ in 0..10 {
        let outcome = tree("killed").run().expect_code(0);
        let [child] = &children(&outcome)[..] else { panic!("one child: {}", outcome.stderr()) };
        assert_exact(child);
        assert_eq!(sizes(child, &[501, 1000]), BTreeMap::from([(501, 9), (1000, 70)]));
    }
}

#[test]
fn a_child_that_closes_all_descriptors_is_traced_to_its_end() {
    let outcome = tree("closed").run().expect_code(0);
    let [child] = &children(&outcome)[..] else { panic!("one child: {}", outcome.stderr()) };
    assert_eq!(sizes(child, &[601]), BTreeMap::from([(601, 7)]));
}

#[test]
fn a_child_out_of_reach_runs_on_untraced_and_is_counted() {
    if !is_root() {
        return;
    }
    let outcome = tree("unreachable").run().expect_code(0);
    assert_eq!(children(&outcome).len(), 0);
    assert!(outcome.stderr().contains("1 of its child processes could not be followed"), "{}", outcome.stderr());
    outcome.report(&[]).assert_exact();
}

#[test]
fn programs_are_followed_however_they_are_started() {
    let counts = victim::build("counts.c", &["-O0"]);
    let outcome = tree("spawn").arg(&counts).run().expect_code(0);
    let children = children(&outcome);
    // posix_spawn, posix_spawnp, vfork, fork, and fork with other work before exec.
    assert_eq!(children.len(), 5, "{}", outcome.stderr());
    let said = printed(outcome.stdout().as_bytes());
    for child in &children {
        assert_exact(child);
        let native = &child.domains[0];
        assert_eq!(
            (native.allocs, native.frees),
            (said["allocs"], said["frees"]),
            "the whole program and nothing else"
        );
        assert!(child.meta.executable.ends_with("/counts"), "{}", child.meta.executable);
        let origin = child.origin.as_ref().expect("a child");
        let parent = outcome.snapshot().meta;
        assert_eq!((origin.parent, origin.birth), (parent.pid, Birth::Exec));
        assert_eq!((parent.begun, child.meta.begun), (Begun::Start, Begun::Start));
    }
    assert_eq!(std::fs::read_dir(folder(&outcome)).expect("the folder").count(), 5, "no copy is a program of its own");
    assert_eq!(sizes(&outcome.snapshot(), &[801, 1000]), BTreeMap::from([(1000, INHERITED)]));
}

#[test]
fn shells_that_libc_starts_are_followed() {
    let counts = victim::build("counts.c", &["-O0"]);
    for mode in ["system", "popen"] {
        let outcome = tree(mode).arg(format!("{}; true", counts.display())).run().expect_code(0);
        let mut programs: Vec<String> = children(&outcome)
            .iter()
            .inspect(|child| assert_exact(child))
            .map(|child| child.meta.executable.rsplit('/').next().unwrap_or_default().to_owned())
            .collect();
        programs.sort();
        let shell = Path::new("/bin/sh").canonicalize().expect("a shell");
        assert_eq!(programs, ["counts", shell.file_name().expect("a name").to_str().expect("UTF-8")], "{mode}");
    }
}

#[test]
fn each_program_of_a_pipeline_has_its_own_snapshot() {
    let script = "seq 1000 | sort -r | head -5 | wc -l";
    let outcome = Trace::of("/bin/sh").args(["-c", script]).run().expect_code(0);
    assert_eq!(outcome.stdout().trim(), "5");
    let children = children(&outcome);
    let mut programs: Vec<&str> =
        children.iter().map(|child| child.meta.executable.rsplit('/').next().unwrap_or_default()).collect();
    programs.sort_unstable();
    assert_eq!(programs, ["head", "seq", "sort", "wc"]);
    for child in &children {
        assert_exact(child);
        assert!(child.domains[0].allocs > 0, "{}", child.meta.command);
        assert_eq!(child.origin.as_ref().expect("a child").parent, outcome.snapshot().meta.pid);
    }
}

#[test]
fn make_and_all_that_it_runs() {
    if !has("make") {
        return;
    }
    let counts = victim::build("counts.c", &["-O0"]);
    let trace = Trace::of("make").args(["-j4", "-s", "-C"]);
    let directory = trace.directory().join("project");
    std::fs::create_dir(&directory).expect("a folder");
    let rules = "all: $(addprefix t,$(shell seq 24))\nt%:\n\t@$(COUNTS) > $@ && test -s $@\n";
    std::fs::write(directory.join("Makefile"), rules).expect("written");
    let outcome = trace.arg(&directory).env("COUNTS", &counts).run().expect_code(0);
    let children = children(&outcome);
    let said = printed(&std::fs::read(directory.join("t7")).expect("made"));
    let programs: Vec<_> = children.iter().filter(|child| child.meta.executable.ends_with("/counts")).collect();
    assert_eq!(programs.len(), 24);
    for program in programs {
        let native = &program.domains[0];
        assert_eq!((native.allocs, native.frees), (said["allocs"], said["frees"]));
    }
    children.iter().for_each(assert_exact);
    let together = tree_report(&folder(&outcome), &[]);
    assert_eq!(together.processes.len(), children.len() + 1);
    assert_eq!(together.processes[0].command.split(' ').next(), Some("make"), "the first one stands first");
    let sum: u64 = children.iter().map(|child| child.domains[0].allocs).sum();
    assert_eq!(together.native().allocs, sum + outcome.snapshot().domains[0].allocs);
    for process in &together.processes[1..] {
        let child = children.iter().find(|child| child.meta.pid == process.pid).expect("one of them");
        let row = &child.domains[0];
        let Process { parent, current, peak, blocks, allocs, frees, allocated_bytes, .. } = process;
        assert_eq!(*parent, child.origin.as_ref().map(|origin| origin.parent));
        assert_eq!([*current, *peak, *blocks], [row.current, row.peak, row.blocks]);
        assert_eq!([*allocs, *frees, *allocated_bytes], [row.allocs, row.frees, row.allocated_bytes]);
        assert_eq!(
            (process.end.as_str(), process.domain.as_str(), process.inherited_blocks),
            ("exited", "native", None)
        );
    }
}

#[test]
fn a_pool_of_python_processes_is_traced_in_python() {
    for python in pythons() {
        let outcome = Trace::of(&python.program).arg(source("python/pool.py")).run().expect_code(0);
        let line = |marker: &str| line_of("python/pool.py", marker);
        let said = outcome.stdout();
        let pids: Vec<u64> = said.lines().filter_map(|line| line.strip_prefix("worker ")?.parse().ok()).collect();
        let mut kept = (0, 0);
        let mut inherited = 0;
        for entry in std::fs::read_dir(folder(&outcome)).expect("the folder") {
            let path = entry.expect("a file").path();
            let snapshot = read_snapshot(&path);
            if !pids.contains(&u64::from(snapshot.meta.pid)) {
                continue;
            }
            let report = report_on(&path, &[]);
            assert_eq!((report.view.as_str(), report.snapshot.contradictions), ("python", 0));
            let (size, count) = report.at_line("pool.py", line("# line: worker"));
            kept = (kept.0 + size, kept.1 + count);
            inherited += u64::from(report.at_line("pool.py", line("# line: inherited")).0 >= 50 * 3000);
        }
        let wanted: u64 = (0..300).map(|n| 10_001 + n + 56).sum();
        assert!(kept.0 >= wanted && kept.0 < wanted + 300 * 64, "3.{}: {kept:?} of {wanted}", python.minor);
        assert_eq!(inherited, pids.len() as u64, "3.{}: what the parent had is there too", python.minor);
        let started = children(&outcome).into_iter().filter(|child| child.meta.command.contains("bytearray(7000)"));
        assert_eq!(started.count(), 1, "3.{}: what subprocess has started", python.minor);
    }
}

#[test]
fn a_daemon_is_let_go_when_the_command_ends() {
    let begun = Instant::now();
    let outcome = tree("daemon").run().expect_code(0);
    assert!(begun.elapsed() < Duration::from_secs(20), "the daemon is not waited for");
    let children = children(&outcome);
    let daemon = children.iter().find(|child| child.meta.end == End::Detached).expect("it still runs");
    kill(i32::try_from(daemon.meta.pid).expect("a pid"), libc::SIGKILL);
    assert!(outcome.stderr().contains("1 of them still running"), "{}", outcome.stderr());
    assert_eq!(sizes(daemon, &[901, 902, 1000]), BTreeMap::from([(901, 2), (902, 3), (1000, INHERITED)]));
}

#[test]
fn the_environment_of_children_is_the_same_byte_for_byte() {
    let shell = |script: &str| Trace::of("/bin/sh").args(["-c", script]).env("A_LONG_ONE", "x".repeat(5000));
    let scripts =
        ["env | cat; true", "env -0 | cat; env", "(env; (env; true); true); true", "env -i /bin/sh -c 'env; env'"];
    for preload in [None, Some("/lib/x86_64-linux-gnu/libm.so.6"), Some("")] {
        for script in scripts {
            let trace = match preload {
                Some(preload) => shell(script).env("LD_PRELOAD", preload),
                None => shell(script),
            };
            let alone = trace.untraced().stdout;
            let traced = trace.run().expect_code(0).output.stdout;
            assert!(traced == alone, "{script}, LD_PRELOAD {preload:?}:\n{}", String::from_utf8_lossy(&traced));
        }
    }
    let counts = "for p in 1 2; do cat /proc/self/environ | tr '\\0' '\\n' | wc -l; done";
    let trace = shell(counts);
    let alone = trace.untraced().stdout;
    let traced = trace.run().expect_code(0).output.stdout;
    // The kernel's own copy is older than the loader's work: the copy has the two variables of
    // Heapline, as for the command itself.
    assert_eq!(alone.len(), traced.len());
}

#[test]
fn no_descriptor_of_ours_is_in_a_child() {
    let listing =
        Trace::of("/bin/sh").args(["-c", "ls -l /proc/self/fd | wc -l; (ls /proc/self/fd; true) | cat; true"]);
    let alone = listing.untraced().stdout;
    let traced = listing.run().expect_code(0);
    assert_eq!(traced.stdout(), String::from_utf8_lossy(&alone));
}

#[test]
fn the_command_alone_where_following_is_refused() {
    for trace in [tree("nested").option("--no-follow"), tree("nested").env("HEAPLINE_DISABLE", "1")] {
        let outcome = trace.run().expect_code(0);
        assert!(!folder(&outcome).exists());
        assert!(!outcome.stderr().contains("child process"), "{}", outcome.stderr());
    }
}

#[test]
fn ctl_answers_for_every_process() {
    let running = Trace::of("/bin/sh").args(["-c", "sleep 60; true"]).spawn();
    let shell = running.target_pid();
    let sleep = wait_for("the child", || {
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?;
        let pid: i32 = children.split_whitespace().next()?.parse().ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        exe.ends_with("sleep").then_some(pid)
    });
    for pid in [shell, sleep] {
        let stats = wait_for("an answer", || {
            let output = crate::support::trace::ctl(pid, &["stats", "--format", "json"]);
            output.status.success().then_some(output.stdout)
        });
        let stats: serde_json::Value = serde_json::from_slice(&stats).expect("JSON");
        assert_eq!(stats["snapshot"]["pid"], pid);
    }
    let said = ctl_ok(sleep, &["stats"]);
    assert!(said.contains(" since the start\n") && !said.contains("began with"), "exec begins anew: {said}");
    let file = running.snapshot_path().with_file_name("sleep.zst");
    ctl_ok(sleep, &["snapshot", "-o", file.to_str().expect("UTF-8")]);
    assert_eq!(read_snapshot(&file).origin.expect("a child").parent, u32::try_from(shell).expect("a pid"));
    kill(sleep, libc::SIGTERM);
    running.finish().expect_code(0);
}

#[test]
fn a_forked_child_says_what_it_has_inherited() {
    let mut running = tree("waiting").spawn();
    let parent = running.target_pid();
    let child = wait_for("the child's number", || {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        children.split_whitespace().next()?.parse::<i32>().ok()
    });
    let began = format!("began with {INHERITED} native blocks of process {parent}");
    let said = wait_for("the child's own block", || {
        let output = crate::support::trace::ctl(child, &["stats"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.contains("1 allocation of 77 B").then_some(said)
    });
    assert!(said.contains(&format!("\n{began}\n")) && said.contains(" since the fork\n"), "{said}");
    let file = running.snapshot_path().with_file_name("child.zst");
    let said = ctl_ok(child, &["snapshot", "-o", file.to_str().expect("UTF-8")]);
    assert!(said.starts_with("peak since the fork ") && said.contains(&format!("; {began}; snapshot: ")), "{said}");
    running.child.stdin.take();
    running.finish().expect_code(0);
}

#[test]
fn children_outlive_a_killed_aggregator_unharmed() {
    let mut random = Random(7);
    for _ in 0..5 {
        let marker = tempfile::TempDir::new().expect("a folder");
        let done = marker.path().join("done");
        let script = format!(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do seq 2000 | sort -r | tail -1; done > {0}.all; \
             mv {0}.all {0}",
            done.display()
        );
        let mut running = Trace::of("/bin/sh").args(["-c", &script]).spawn();
        running.target_pid();
        std::thread::sleep(Duration::from_millis(random.below(60)));
        kill(running.aggregator_pid(), libc::SIGKILL);
        running.child.wait().expect("the killed aggregator");
        let written = wait_for("the work of the command", || std::fs::read_to_string(&done).ok());
        assert_eq!(written, "1\n".repeat(20));
    }
}

#[test]
fn all_goes_into_a_folder_that_is_named() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let place = folder.path().join("today");
    let mut run = std::process::Command::new(&crate::support::programs().aggregator);
    run.args(["run", "-o"]).arg(&place).args(["--", "/bin/sh", "-c", "ls >/dev/null; true"]);
    let output = run.current_dir(folder.path()).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut programs: Vec<_> =
        snapshots_in(&place).iter().map(|s| s.meta.command.split(' ').next().unwrap_or_default().to_owned()).collect();
    programs.sort();
    assert_eq!(programs, ["/bin/sh", "ls"]);
    let report: TreeReport = tree_report(&place, &[]);
    assert_eq!(
        report.processes.iter().map(|process| process.birth.as_deref()).collect::<Vec<_>>(),
        [None, Some("exec")]
    );
}

#[test]
fn a_preloaded_process_is_followed_from_the_attach_on() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let library = folder.path().join("collector.so");
    let aggregator = &crate::support::programs().aggregator;
    let status = std::process::Command::new(aggregator).args(["collector", "-o"]).arg(&library).status();
    assert!(status.expect("it runs").success());
    let script = "read x; seq 100 | tail -1 >/dev/null; read x; exit 9";
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .env("LD_PRELOAD", &library)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = i32::try_from(child.id()).expect("a pid");
    wait_for("the collector", || {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        maps.contains("heapline-arena").then_some(())
    });
    let out = folder.path().join("out.snap.zst");
    let attached = std::process::Command::new(aggregator)
        .args(["--attach", &pid.to_string(), "--follow", "-o"])
        .arg(&out)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    wait_for("the aggregator", || crate::support::trace::ctl(pid, &["stats"]).status.success().then_some(()));
    let mut stdin = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, b"1\n2\n").expect("written");
    drop(stdin);
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
    let output = attached.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut programs: Vec<_> = snapshots_in(&folder.path().join("out"))
        .iter()
        .map(|child| child.meta.executable.rsplit('/').next().unwrap_or_default().to_owned())
        .collect();
    programs.sort();
    assert_eq!(programs, ["seq", "tail"]);
    assert!(PATIENCE > Duration::ZERO);
}
