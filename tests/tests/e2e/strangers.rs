//! Malicious programs and users, as described in docs/security.md.

use crate::support::trace::ctl;
use crate::support::{Trace, is_root, programs, victim, wait_for};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

/// Checks that output for a person contains lines and no command to the terminal.
fn assert_harmless(output: &Output, what: &str) {
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(stream.clone()).expect("text");
        let found = text.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(found, None, "{what}: {text:?}");
    }
}

#[test]
fn a_name_is_no_command_to_a_terminal() {
    let trace = Trace::of(victim::build("names.c", &["-O0"])).arg("\u{1b}[31m\u{9b}2J\nheapline: 0 B");
    let mut running = trace.spawn();
    let mut address = String::new();
    let mut stdout = BufReader::new(running.child.stdout.take().expect("piped"));
    stdout.read_line(&mut address).expect("the victim speaks");
    running.child.stdout = Some(stdout.into_inner());
    let pid = running.target_pid();
    wait_for("an aggregator that answers", || ctl(pid, &["stats"]).status.success().then_some(()));
    for args in [&["stats"][..], &["stats", "--format", "json"], &["lookup", address.trim()], &["leaks", "--stop"]] {
        let output = ctl(pid, args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_harmless(&output, &format!("ctl {args:?}"));
    }
    assert!(String::from_utf8_lossy(&ctl(pid, &["lookup", address.trim()]).stdout).contains(r"t\u{1b}[2J\nt"));
    drop(running.child.stdin.take());
    let outcome = running.finish().expect_code(0);
    assert_harmless(&outcome.output, "aggregator run");
    for format in ["text", "json", "csv", "folded", "html"] {
        for by in ["traceback", "thread", "module"] {
            let mut command = Command::new(&programs().report);
            command.arg(outcome.snapshot_path()).args(["--format", format]);
            if !["folded", "html"].contains(&format) {
                command.args(["--by", by]);
            }
            let output = command.output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_harmless(&output, &format!("report --format {format} --by {by}"));
        }
    }
}

#[test]
fn a_snapshot_is_its_owners_alone() {
    let outcome = Trace::of("true").run().expect_code(0);
    let mode = std::fs::metadata(outcome.snapshot_path()).expect("it is there").mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Any user with write access to /tmp can make a folder of any name and listen in the folder.
#[test]
fn a_folder_that_somebody_else_has_made_is_not_believed() {
    const USER: u32 = 54_321;
    if !is_root() {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
    let copy = folder.path().join("aggregator");
    std::fs::copy(&programs().aggregator, &copy).expect("a copy");
    let squatted = Path::new("/tmp").join(format!("heapline-{USER}"));
    // A killed earlier run may have left the folder.
    std::fs::remove_dir_all(&squatted).ok();
    std::fs::create_dir(&squatted).expect("nobody has that number");
    chown(&squatted, Some(USER + 1), None).expect("given away");
    let _listener = std::os::unix::net::UnixListener::bind(squatted.join("1.sock")).expect("bound");
    let as_user = |args: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(args).current_dir("/tmp").uid(USER).gid(USER).env_remove("XDG_RUNTIME_DIR");
        command.output().expect("it runs")
    };
    let asked = as_user(&["ctl", "1", "stats"]);
    let stderr = String::from_utf8_lossy(&asked.stderr);
    assert!(!asked.status.success() && stderr.contains("not to be trusted"), "{stderr}");
    // The foreign folder does not prevent tracing and requests: the aggregator uses another folder.
    let script = format!("{} ctl $$ stats", copy.display());
    let ran = as_user(&["run", "-o", "/dev/null", "--", "/bin/sh", "-c", &script]);
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && stdout.contains("native: "), "{stdout}{stderr}");
    let left = std::fs::read_dir("/tmp").expect("a folder").flatten();
    let left = left.filter(|entry| entry.metadata().is_ok_and(|found| found.uid() == USER));
    assert_eq!(left.map(|entry| entry.file_name()).collect::<Vec<_>>(), [""; 0], "it is gone afterwards");
    std::fs::remove_dir_all(&squatted).expect("removed");
}

/// A user id without a mapping in a user namespace is, outside of the namespace, the id of another
/// user.
#[test]
fn a_run_in_a_user_namespace_without_a_map_leaves_nothing_in_the_way() {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--"]);
    if !unshare.arg("true").status().is_ok_and(|status| status.success()) {
        return crate::support::skip("user namespaces cannot be made here");
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).expect("our folder");
    let before = Path::new("/tmp/heapline-65534").exists();
    let script = format!("{} ctl $$ stats", programs().aggregator.display());
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--"]).arg(&programs().aggregator).args(["run", "-o", "/dev/null", "--", "/bin/sh", "-c"]);
    let output = unshare.arg(script).env("TMPDIR", &temporary).env_remove("XDG_RUNTIME_DIR").output().expect("it runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("native: "),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(Path::new("/tmp/heapline-65534").exists(), before);
    assert_eq!(std::fs::read_dir(&temporary).expect("our folder").count(), 0, "it is gone afterwards");
}
