//! `aggregator list`: the traced processes of the machine. Other tests trace processes at the same
//! time, so the tests look for their own processes.

use crate::support::stepped::{Background, Stepped, detach};
use crate::support::trace::{ctl, kill};
use crate::support::{Outcome, Running, Trace, is_root, programs, stdout_of, victim, wait_for};
use heapline_shared_format::snapshot::End;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn list() -> Vec<Value> {
    let mut command = Command::new(&programs().aggregator);
    let text = stdout_of(command.args(["list", "--format", "json"]));
    let list: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(list["heapline_list"], 1);
    list["traces"].as_array().expect("a list").clone()
}

fn entry(list: &[Value], pid: i32) -> Option<&Value> {
    list.iter().find(|traced| traced["pid"] == pid)
}

/// Waits until the aggregator of a process answers.
fn await_traced(pid: i32) {
    wait_for("an aggregator that answers", || ctl(pid, &["stats"]).status.success().then_some(()));
}

/// A traced shell that waits for a traced `cat`, and the process ids of both.
fn shell_with_child() -> (Running, i32, i32) {
    let running = Trace::of("/bin/sh").args(["-c", "cat; true"]).spawn();
    let shell = running.target_pid();
    let cat = wait_for("the child", || {
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?;
        let pid: i32 = children.split_whitespace().next()?.parse().ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        exe.ends_with("cat").then_some(pid)
    });
    await_traced(cat);
    (running, shell, cat)
}

fn end(mut running: Running) -> Outcome {
    drop(running.child.stdin.take());
    running.finish()
}

#[test]
fn two_runs_a_followed_child_and_an_attach_are_listed() {
    let story = victim::build("story.c", &["-O0"]);
    let alone = Trace::of(&story).option("--sample").option("1M").spawn();
    let (shell, shell_pid, cat) = shell_with_child();
    let attached = Stepped::start(&mut Command::new(&story));
    let snapshot = attached.snapshot_path("s.snap.zst");
    let aggregator = attached.attach(&snapshot, &[]);
    let alone_pid = alone.target_pid();
    await_traced(alone_pid);

    let listed = list();
    let of = |pid| entry(&listed, pid).unwrap_or_else(|| panic!("{pid} is not in {listed:?}"));
    let path = |path: &Path| Value::from(path.to_str().expect("UTF-8"));
    let run = of(alone_pid);
    assert_eq!(run["aggregator_pid"], alone.aggregator_pid());
    assert_eq!(
        (&run["begun"], &run["mode"], &run["sample_interval"]),
        (&"start".into(), &"sampled".into(), &(1 << 20).into())
    );
    assert_eq!((&run["parent"], &run["output"]), (&Value::Null, &path(&alone.snapshot_path())));
    assert_eq!(run["command"], path(&story));
    assert!(run["since"].as_str().is_some_and(|since| since.starts_with("20") && since.ends_with('Z')), "{run}");
    for pid in [shell_pid, cat] {
        assert_eq!((&of(pid)["aggregator_pid"], &of(pid)["begun"]), (&shell.aggregator_pid().into(), &"start".into()));
    }
    assert_eq!(of(cat)["parent"], shell_pid);
    assert_eq!(of(cat)["output"], path(&shell.snapshot_path().with_file_name("out")), "a child's is in the folder");
    let late = of(attached.pid());
    assert_eq!((&late["begun"], &late["mode"]), (&"attach".into(), &"exact".into()));
    assert_eq!((&late["aggregator_pid"], &late["output"]), (&aggregator.id().into(), &path(&snapshot)));
    let native = &late["domains"][0];
    assert_eq!((&native["domain"], &native["current"], &native["peak"]), (&"native".into(), &0.into(), &0.into()));

    let text = stdout_of(Command::new(&programs().aggregator).arg("list"));
    let line = |pid: i32| text.lines().position(|line| line.split_whitespace().next() == Some(&pid.to_string()));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("PID ") && lines[0].ends_with(" SNAPSHOT"), "{text}");
    let (parent, child) = (line(shell_pid).expect("a line"), line(cat).expect("a line"));
    assert!(parent < child && lines[child].starts_with("  ") && !lines[parent].starts_with(' '), "{text}");
    let run = lines[line(alone_pid).expect("a line")];
    assert!(run.contains(" sampled 1 in 1024 KiB ") && run.contains(" native "), "{text}");
    assert!(lines[line(attached.pid()).expect("a line")].contains(" exact, attached "), "{text}");

    detach(aggregator);
    attached.finish();
    end(alone);
    end(shell);
    let later = list();
    assert!([alone_pid, shell_pid, cat].iter().all(|&pid| entry(&later, pid).is_none()), "{later:?}");
}

/// A killed aggregator leaves its socket.
#[test]
fn a_socket_without_an_aggregator_is_skipped() {
    let mut running = Trace::of(victim::build("story.c", &["-O0"])).spawn();
    let pid = running.target_pid();
    await_traced(pid);
    // SAFETY: geteuid has no preconditions.
    let socket = format!("/tmp/heapline-{}/{pid}.sock", unsafe { libc::geteuid() });
    kill(running.aggregator_pid(), libc::SIGKILL);
    running.child.wait().expect("the killed aggregator");
    assert!(Path::new(&socket).exists(), "{socket}");
    let output = Command::new(&programs().aggregator).arg("list").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(!text.split_whitespace().any(|word| word == pid.to_string()), "{text}");
    drop(running.child.stdin.take());
    std::fs::remove_file(socket).expect("ours");
}

#[test]
fn an_aggregator_that_does_not_answer_does_not_hold_the_list_up() {
    let running = Trace::of(victim::build("story.c", &["-O0"])).spawn();
    let pid = running.target_pid();
    await_traced(pid);
    kill(running.aggregator_pid(), libc::SIGSTOP);
    let text = stdout_of(Command::new(&programs().aggregator).arg("list"));
    kill(running.aggregator_pid(), libc::SIGCONT);
    let aggregator = running.aggregator_pid();
    let wanted = format!("aggregator {aggregator} does not answer (is it stopped?); it traces {pid}");
    assert!(text.lines().any(|line| line == wanted), "{text}");
    assert_eq!(end(running).snapshot().meta.end, End::Exited);
}

/// A process with another file system below /tmp, and another network, sees no trace.
#[test]
fn nothing_traced_is_said() {
    if !is_root() {
        return;
    }
    let script = "exec 9<\"$0\" && mount -t tmpfs none /tmp && exec /proc/self/fd/9 list \"$@\"";
    let alone = |args: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--", "sh", "-c", script]).arg(&programs().aggregator).args(args);
        stdout_of(&mut unshare)
    };
    let sleeper = Background::sleep();
    assert_eq!(alone(&[]), "nothing is traced on this machine\n");
    let json = alone(&["--format", "json"]);
    assert_eq!(json, "{\"heapline_list\":1,\"traces\":[],\"silent\":[],\"others\":[]}\n");
    drop(sleeper);
}

#[test]
fn traces_of_other_users_are_counted() {
    const USER: u32 = 54_322;
    if !is_root() {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
    let copy = folder.path().join("aggregator");
    std::fs::copy(&programs().aggregator, &copy).expect("a copy");
    let running = Trace::of(victim::build("story.c", &["-O0"])).spawn();
    let pid = running.target_pid();
    await_traced(pid);
    let as_user = |args: &[&str]| {
        let mut command = Command::new(&copy);
        stdout_of(command.arg("list").args(args).current_dir("/tmp").uid(USER).gid(USER))
    };
    let text = as_user(&[]);
    let line = text.lines().find(|line| line.starts_with("user 0 traces ")).unwrap_or_else(|| panic!("{text}"));
    let pids = line.split_once('(').and_then(|(_, rest)| rest.split_once(')')).expect("the processes").0;
    assert!(pids.split(", ").any(|listed| listed == pid.to_string()), "{line}");
    assert!(line.ends_with(": ask as that user or as root"), "{line}");
    let list: Value = serde_json::from_str(&as_user(&["--format", "json"])).expect("JSON");
    let others = list["others"].as_array().expect("a list");
    assert!(others.contains(&serde_json::json!({"uid": 0, "pid": pid})), "{list}");
    assert_eq!(list["traces"], serde_json::json!([]));
    end(running);
}
