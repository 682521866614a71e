//! What holds for all that the tests start: no process outlives its limit, and none inherits an
//! ignored signal.
//!
//! Both are seen to before the first test, for every way of starting a process. A test whose
//! process hangs would wait for it, or for its output, for ever; here the process and its
//! descendants are killed, and the test fails.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long a process of a test may run. A machine under load is slow.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// They build what is tested, which takes as long as it takes.
const WITHOUT_LIMIT: [&str; 2] = ["cargo", "rustc"];

#[used]
// SAFETY: the loader calls each entry of this section once, with arguments that the function does
// not take.
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    handle_ignored_signals();
    // The tests can run without it; they end less surely then.
    thread::Builder::new().name("watch".to_owned()).spawn(watch).ok();
}

/// Gives signals that are ignored a handler that does nothing: exec resets a handler, and hands on
/// what is ignored. So a test under `nohup`, or in the background of a shell, starts its processes
/// as in a terminal, and survives what it survived before.
fn handle_ignored_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTSTP]
    {
        // SAFETY: zeros are a valid action; each call reads or writes whole ones, and the handler
        // does nothing.
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

/// Processes that a process has started and that are not waited for yet, by whichever thread.
fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Kills a process and all below it: a descendant would keep the pipes open that the test reads.
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
    // Ends only when nobody has the pipe any more.
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
