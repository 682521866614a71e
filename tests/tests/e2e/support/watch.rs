//! Rules for all processes started by tests: no process outlives the time limit, and no process
//! inherits an ignored signal.
//!
//! Both rules are set up before the first test and cover every way of starting a process. Without a
//! limit, a test with a hanging process would wait for ever for the process or for the process's
//! output. The watch kills the process and all descendants, and the test fails.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Time limit of a test's process. A machine under load is slow.
const LIMIT: Duration = Duration::from_secs(600);
/// Time between two checks.
const LOOK: Duration = Duration::from_secs(1);
/// Programs without a time limit: builds of the programs under test take a varying time.
const WITHOUT_LIMIT: [&str; 2] = ["cargo", "rustc"];

#[used]
// SAFETY: the loader calls each entry of this section once, and `begin` ignores the loader's
// arguments.
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    handle_ignored_signals();
    // If the thread cannot start, the tests still run, only without the time limit.
    thread::Builder::new().name("watch".to_owned()).spawn(watch).ok();
}

/// Gives ignored signals a handler that does nothing. exec resets a handler but passes an ignored
/// signal on. So a test under `nohup`, or in the background of a shell, starts processes as in a
/// terminal, and still survives these signals.
fn handle_ignored_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTSTP]
    {
        // SAFETY: zeros are a valid `sigaction`; each call reads or writes a whole `sigaction`; the
        // handler does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            if action.sa_sigaction == libc::SIG_IGN {
                action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }
}

fn watch() {
    let mut seen: HashMap<i32, Instant> = HashMap::new();
    loop {
        let children = children(i32::try_from(std::process::id()).unwrap_or(0));
        seen.retain(|pid, _| children.contains(pid));
        for pid in children {
            let since = seen.entry(pid).or_insert_with(Instant::now);
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if since.elapsed() > LIMIT && !WITHOUT_LIMIT.contains(&name.trim()) {
                eprintln!("process {pid} ({}) of a test is killed: it has run for {LIMIT:?}", name.trim());
                kill_all(pid);
            }
        }
        thread::sleep(LOOK);
    }
}

/// Running and unreaped children of a process, started by any of the process's threads.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Kills a process and all descendants. A surviving descendant would keep the test's pipes open.
fn kill_all(pid: i32) {
    let below = children(pid);
    super::trace::kill(pid, libc::SIGKILL);
    below.into_iter().for_each(kill_all);
}

#[test]
fn a_process_and_its_descendants_are_killed() {
    let mut shell = std::process::Command::new("/bin/sh");
    let mut shell =
        shell.args(["-c", "sleep 1000; true"]).stdout(std::process::Stdio::piped()).spawn().expect("it starts");
    let pid = i32::try_from(shell.id()).expect("a pid");
    assert!(children(i32::try_from(std::process::id()).expect("a pid")).contains(&pid));
    super::wait_for("the shell's child", || (!children(pid).is_empty()).then_some(()));
    kill_all(pid);
    let mut rest = Vec::new();
    // Returns only when no process has the pipe any more.
    std::io::Read::read_to_end(shell.stdout.as_mut().expect("piped"), &mut rest).expect("the end");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&shell.wait().expect("it was killed")),
        Some(libc::SIGKILL)
    );
}

#[test]
fn no_process_of_a_test_ignores_a_signal() {
    let status = super::stdout_of(std::process::Command::new("cat").arg("/proc/self/status"));
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a line of that name");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a number");
    let ours = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM].iter().fold(0u64, |bits, signal| bits | 1 << (signal - 1));
    assert_eq!(ignored & ours, 0, "{ignored:x}");
}
