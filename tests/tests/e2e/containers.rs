//! Containers: processes behind all kinds of namespaces, images with nothing but a program and its
//! libraries, and settings that forbid ptrace.

use crate::support::stepped::{Background, Stepped, attach_command, detach};
use crate::support::trace::{ctl, report_on};
use crate::support::victim::{self, copy_with_libraries, line_of};
use crate::support::{has, is_root, programs, skip, stdout_of, wait_for};
use std::process::Command;
use tempfile::TempDir;

/// Whether a command with these words runs here.
fn works(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).status().is_ok_and(|status| status.success())
}

/// A folder with a victim and its libraries, and nothing else: no /tmp, no /proc, no /dev.
fn image(source: &str) -> TempDir {
    let root = TempDir::new().expect("a folder");
    let victim = root.path().join("victim");
    stdout_of(Command::new("cp").arg(victim::build(source, &["-O0"])).arg(&victim));
    let libraries = TempDir::new().expect("a folder");
    copy_with_libraries(&victim, libraries.path());
    for folder in ["lib", "lib64"] {
        std::fs::rename(libraries.path().join(folder), root.path().join(folder)).expect("moved");
    }
    root
}

/// The process ids of the children of a process with one thread.
fn children_of(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    children.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

/// Every namespace is another, the root is read-only, and the root has neither /proc nor /tmp.
#[test]
fn a_process_behind_all_walls_at_once_is_attached_to_from_outside() {
    const ALL: [&str; 7] = ["unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts"];
    if !is_root() || !has("unshare") {
        return;
    }
    let image = image("attached.c");
    let root = image.path().display();
    let script = format!("mount --bind {root} {root} && mount -o remount,ro,bind {root} && exec chroot {root} /victim");
    for users in [&[][..], &["--user", "--map-root-user", "--cgroup"]] {
        let words = [&ALL[..], users].concat();
        if !works(&[&words[..], &["true"]].concat()) {
            skip("namespaces cannot be made here");
            continue;
        }
        let mut victim = Stepped::start(Command::new(words[0]).args(&words[1..]).args(["sh", "-c", &script]));
        // unshare --fork waits for the program, so the program is a child.
        let [pid] = children_of(victim.pid())[..] else { panic!("one child of unshare") };
        let snapshot = victim.snapshot_path("a.snap.zst");
        let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
        let before = open();
        for round in 0..2 {
            let mut aggregator = attach_command(pid, &snapshot).spawn().expect("it starts");
            wait_for("the attached aggregator", || {
                assert!(aggregator.try_wait().expect("ours").is_none(), "{users:?}: it attaches");
                ctl(pid, &["stats"]).status.success().then_some(())
            });
            victim.steps("mMf");
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
            assert!(maps.contains("/memfd:heapline-collector"), "{maps}");
            detach(aggregator);
            let report = report_on(&snapshot, &[]);
            report.assert_exact();
            assert_eq!((report.native().allocs, report.native().frees), (2, 2), "{users:?}, round {round}");
            let lines = report_on(&snapshot, &["--at", "total"]);
            assert!(lines.at_line("attached.c", line_of("attached.c", "// LINE kept")).1 >= 1, "{users:?}");
        }
        assert_eq!(open(), before, "no descriptor is left");
        assert_eq!(victim.finish(), 0, "{users:?}");
    }
    let left = std::fs::read_dir(image.path()).expect("it is there").count();
    assert_eq!(left, 3, "the program, and two folders with libraries");
}

/// Without /proc the thread opens the collector by a replaced system call, which it goes on with.
#[test]
fn a_process_without_proc_survives_the_aggregators_death() {
    if !is_root() || !has("chroot") {
        return;
    }
    let image = image("attached.c");
    let mut victim = Stepped::start(Command::new("chroot").arg(image.path()).arg("/victim"));
    for step in ["written", "handed", "loaded"] {
        let snapshot = victim.snapshot_path("killed.snap.zst");
        let mut command = attach_command(victim.pid(), &snapshot);
        let output = command.env("HEAPLINE_DIE_AT", step).output().expect("it runs");
        assert!(!output.status.success(), "{step}");
        victim.steps("mMf");
    }
    victim.assert_can_be_traced("after the deaths");
}

/// The aggregator runs inside of the image, as by `docker run` with the aggregator's file mounted.
#[test]
fn a_command_in_an_image_with_nothing_else_is_traced() {
    if !is_root() || !has("chroot") || !has("ldd") {
        return;
    }
    let image = image("lines.c");
    let root = image.path();
    copy_with_libraries(&programs().aggregator, root);
    let aggregator = programs().aggregator.canonicalize().expect("the program");
    let run = |before: &str, output: &str, variable: (&str, &str)| {
        let chroot =
            format!("{before} exec chroot {} {} run -o {output} -- /victim", root.display(), aggregator.display());
        let command = ["--mount", "sh", "-c", &chroot];
        Command::new("unshare").args(command).env_remove("XDG_RUNTIME_DIR").env(variable.0, variable.1).output()
    };
    let none = ("NOTHING", "");
    let ran = run("", "/out.snap.zst", none).expect("it runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.lines().count() == 1 && !said.contains("NOTHING"), "{said}");
    let report = report_on(&root.join("out.snap.zst"), &[]);
    report.assert_exact();
    assert_eq!(report.total.size, 1001 + 1002 + 1003 + 1005 + 700 + 1024 + 40, "{said}");
    let left: Vec<_> = std::fs::read_dir(root).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("heapline")), "nothing is left: {left:?}");
    // A read-only root, with a folder for the output. Elsewhere nothing can be written.
    std::fs::create_dir(root.join("out")).expect("made");
    let read_only = format!(
        "mount --bind {0} {0} && mount -o remount,ro,bind {0} && mount -t tmpfs none {0}/out &&",
        root.display()
    );
    let ran = run(&read_only, "/out/x.snap.zst", none).expect("it runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.lines().count() == 1 && !said.contains("NOTHING"), "{said}");
    let ran = run(&read_only, "/proc/x.snap.zst", ("TMPDIR", "/out")).expect("it runs");
    assert_eq!(ran.status.code(), Some(125), "no place for the snapshot: {}", String::from_utf8_lossy(&ran.stderr));
}

/// The message of an aggregator that may not attach.
fn refusal(before: &[&str], pid: &str) -> String {
    let aggregator = programs().aggregator.to_str().expect("UTF-8");
    let words = [before, &[aggregator, "--attach", pid, "-o", "/dev/null"]].concat();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.lines().count() == 1, "{said}");
    said
}

#[test]
fn the_setting_that_forbids_an_attach_is_named() {
    const WAYS: [&str; 2] = ["start it with aggregator run", "aggregator collector -o FILE"];
    if !is_root() || !has("setpriv") || !has("unshare") {
        return;
    }
    let filtered = victim::build("filtered.c", &["-O1"]);
    let filtered = filtered.to_str().expect("UTF-8");
    let sleep = Background::sleep();
    let pid = sleep.pid();
    let walls: [(&[&str], &str); 3] = [
        (&["setpriv", "--bounding-set", "-sys_ptrace"], "--cap-add=SYS_PTRACE"),
        (&["unshare", "--user", "--map-root-user"], "its own user namespace"),
        (&[filtered, "noptrace"], "seccomp"),
    ];
    for (wall, setting) in walls {
        if !works(&[wall, &["true"]].concat()) {
            skip("the wall cannot be made here");
            continue;
        }
        let said = refusal(wall, &pid);
        assert!(said.contains(setting) && WAYS.iter().all(|way| said.contains(way)), "{wall:?}: {said}");
    }
    if works(&["unshare", "--pid", "--fork", "--mount-proc", "true"]) {
        let said = refusal(&["unshare", "--pid", "--fork", "--mount-proc"], &pid);
        assert!(said.contains("there is no process") && said.contains("--pid=host"), "{said}");
    }
}

/// The way that the message names.
#[test]
fn a_preloaded_process_is_attached_to_without_ptrace() {
    let folder = TempDir::new().expect("a folder");
    let preload = folder.path().join("preload.so");
    stdout_of(Command::new(&programs().aggregator).args(["collector", "-o"]).arg(&preload));
    let filtered = victim::build("filtered.c", &["-O1"]);
    let mut victim = Stepped::start(Command::new(victim::build("attached.c", &["-O1"])).env("LD_PRELOAD", &preload));
    let snapshot = victim.snapshot_path("a.snap.zst");
    let mut command = Command::new(filtered);
    command.arg("noptrace").arg(&programs().aggregator).args(["--attach", &victim.pid().to_string(), "-o"]);
    let aggregator = command.arg(&snapshot).stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    wait_for("the attached aggregator", || ctl(victim.pid(), &["stats"]).status.success().then_some(()));
    victim.steps("mMf");
    detach(aggregator);
    let report = report_on(&snapshot, &[]);
    report.assert_exact();
    assert_eq!((report.native().allocs, report.native().frees), (2, 2));
    assert_eq!(victim.finish(), 0);
}
