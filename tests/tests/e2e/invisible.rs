//! `aggregator run` is invisible: the command's streams, signals, environment and exit status do
//! not change.

use crate::support::trace::kill;
use crate::support::{Running, Trace, has, programs, victim, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn shell(script: &str) -> Trace {
    Trace::of("/bin/sh").args(["-c", script])
}

#[test]
fn exit_codes_are_the_commands() {
    for code in [0, 1, 7, 100, 255] {
        shell(&format!("exit {code}")).run().expect_code(code);
    }
}

#[test]
fn a_signal_that_ends_the_command_is_128_and_its_number() {
    for signal in [libc::SIGSEGV, libc::SIGKILL, libc::SIGTERM, libc::SIGPIPE, libc::SIGABRT] {
        let outcome = shell(&format!("kill -{signal} $$")).run().expect_code(128 + signal);
        assert_eq!(outcome.report(&[]).snapshot.end, "killed", "signal {signal}");
    }
}

#[test]
fn what_cannot_be_started_has_the_shells_codes() {
    let one_line = |trace: Trace, code: i32, word: &str| {
        let outcome = trace.run().expect_code(code);
        assert_eq!(outcome.stderr().lines().count(), 1, "{}", outcome.stderr());
        assert!(outcome.stderr().contains(word), "{}", outcome.stderr());
        assert!(!outcome.snapshot_path().exists(), "nothing ran, nothing is written");
    };
    one_line(Trace::of("/nonexistent/program"), 127, "/nonexistent/program");
    one_line(Trace::of("no-such-program-anywhere"), 127, "no-such-program-anywhere");
    one_line(Trace::of("/etc/passwd"), 126, "/etc/passwd");
    one_line(Trace::of("/etc"), 126, "/etc");
}

#[test]
fn streams_are_passed_through_byte_for_byte() {
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let outcome = Trace::of("cat").input(bytes.clone()).run().expect_code(0);
    assert_eq!(outcome.output.stdout.len(), bytes.len());
    assert!(outcome.output.stdout == bytes);
    let noise = shell("echo to-stderr >&2; echo to-stdout").run().expect_code(0);
    assert_eq!(noise.stdout(), "to-stdout\n");
    assert_eq!(noise.stderr().lines().next(), Some("to-stderr"));
}

#[test]
fn one_line_says_where_the_snapshot_is_and_how_to_read_it() {
    let outcome = Trace::of("true").run().expect_code(0);
    let stderr = outcome.stderr();
    let path = outcome.snapshot_path();
    let line = stderr.lines().find(|l| l.contains(path.to_str().expect("UTF-8"))).expect("a line names the snapshot");
    assert!(line.contains("report "), "{line}");
}

#[test]
fn a_snapshot_without_a_name_is_called_after_the_command() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut run = Command::new(&programs().aggregator);
    let output = run.args(["run", "--", "true"]).current_dir(folder.path()).output().expect("it runs");
    assert!(output.status.success());
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).expect("the folder").map(|e| e.expect("a file").file_name()).collect();
    let [name] = names.as_slice() else { panic!("{names:?}") };
    let name = name.to_str().expect("UTF-8");
    let pid = name.strip_prefix("heapline-true-").and_then(|n| n.strip_suffix(".snap.zst"));
    assert!(pid.is_some_and(|pid| pid.parse::<u32>().is_ok()), "{name}");
}

/// Starts a shell and waits until the shell is ready for a signal.
fn ready(script: &str) -> Running {
    let mut running = shell(script).spawn();
    let stdout = running.child.stdout.take().expect("piped");
    let mut lines = BufReader::new(stdout);
    let mut line = String::new();
    lines.read_line(&mut line).expect("the shell speaks");
    assert_eq!(line, "ready\n");
    running.child.stdout = Some(lines.into_inner());
    running
}

#[test]
fn signals_to_the_aggregator_reach_the_command() {
    for (signal, name) in
        [(libc::SIGTERM, "TERM"), (libc::SIGHUP, "HUP"), (libc::SIGUSR1, "USR1"), (libc::SIGINT, "INT")]
    {
        let script = format!("trap 'exit 33' {name}; echo ready; while :; do sleep 0.01; done");
        let running = ready(&script);
        kill(running.aggregator_pid(), signal);
        running.finish().expect_code(33);
    }
}

/// Runs `cat` on a file of /proc/self with and without tracing, from a parent that blocks and
/// ignores signals.
fn both_ways(file: &str) -> [String; 2] {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut traced = Command::new(&programs().aggregator);
    traced.args(["run", "-o"]).arg(folder.path().join("s.snap.zst")).args(["--", "cat", file]);
    let mut alone = Command::new("cat");
    alone.arg(file);
    [traced, alone].map(|mut command| {
        let prepare = || {
            // SAFETY: `sigemptyset` initialises the set before use; all called functions are
            // async-signal-safe.
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, libc::SIGUSR2);
                libc::sigaddset(&mut set, libc::SIGWINCH);
                libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
            }
            Ok(())
        };
        // SAFETY: `prepare` calls only functions that may be called between fork and exec.
        unsafe { command.pre_exec(prepare) };
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    })
}

#[test]
fn signal_masks_and_dispositions_are_inherited_unchanged() {
    let [traced, alone] = both_ways("/proc/self/status").map(|status| {
        let of_signals = |l: &&str| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|name| l.starts_with(name));
        status.lines().filter(of_signals).map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(alone.len(), 3);
    assert!(alone[0].ends_with("0000000008000800"), "the test blocks SIGWINCH and SIGUSR2: {}", alone[0]);
    assert_eq!(traced, alone);
}

#[test]
fn limits_and_descriptors_are_inherited_unchanged() {
    let [traced, alone] = both_ways("/proc/self/limits");
    assert_eq!(traced, alone);
    let descriptors = |output: Output| String::from_utf8(output.stdout).expect("UTF-8");
    let listing = Trace::of("/bin/sh").args(["-c", "ls /proc/self/fd"]);
    let alone = descriptors(listing.untraced());
    assert_eq!(descriptors(listing.run().expect_code(0).output), alone, "a child inherits no descriptor of ours");
}

#[test]
fn the_environment_is_the_same_byte_for_byte() {
    let library = "/lib/x86_64-linux-gnu/libm.so.6";
    let preloads = Path::new(library).exists().then_some(library);
    for preload in [None, preloads, Some("")] {
        for script in [&["env"][..], &["/bin/sh", "-c", "env"], &["env", "-0"]] {
            let mut trace = Trace::of(script[0]).args(&script[1..]).env("A_LONG_ONE", "x".repeat(5000));
            if let Some(preload) = preload {
                trace = trace.env("LD_PRELOAD", preload);
            }
            let alone = trace.untraced().stdout;
            let traced = trace.run().expect_code(0).output.stdout;
            let text = String::from_utf8_lossy(&traced);
            assert!(traced == alone, "{script:?}, LD_PRELOAD {preload:?}:\n{text}");
        }
    }
}

#[test]
fn the_command_is_in_the_foreground_of_our_terminal() {
    if !has("script") || !has("ps") {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a folder");
    let inner = "ps -o stat= -p $$; test -t 0 && test -t 1 && test -t 2 && echo terminal";
    let command = format!(
        "{} run -o {}/s.snap.zst -- /bin/sh -c '{inner}'",
        programs().aggregator.display(),
        folder.path().display()
    );
    let output = Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output();
    let text = String::from_utf8_lossy(&output.expect("script runs").stdout).into_owned();
    let state = text.lines().next().unwrap_or_default();
    assert!(state.trim_end().contains('+'), "in the foreground group: {text}");
    assert!(text.contains("terminal"), "{text}");
}

#[test]
fn a_stop_of_the_command_is_seen_and_undone() {
    let running = ready("echo ready; kill -STOP $$; exit 5");
    let target = running.target_pid();
    let state = || std::fs::read_to_string(format!("/proc/{target}/stat")).ok()?.rsplit(") ").next()?.chars().next();
    wait_for("the command to stop", || (state() == Some('T')).then_some(()));
    kill(target, libc::SIGCONT);
    kill(running.aggregator_pid(), libc::SIGCONT);
    running.finish().expect_code(5);
}

#[test]
fn a_program_with_its_own_malloc_is_said_loudly() {
    let program = victim::build("ownmalloc.c", &["-O1", "-rdynamic"]);
    let outcome = Trace::of(&program).run().expect_code(0);
    assert!(outcome.stderr().contains("malloc"), "{}", outcome.stderr());
    assert_eq!(outcome.report(&[]).native().allocs, 0);
}

#[test]
fn a_command_that_reads_nothing_ends_in_peace() {
    let mut child = Command::new(&programs().aggregator)
        .args(["run", "-o", "/dev/null", "--", "/bin/sh", "-c", "exec 0<&-; echo done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(b"unread").ok();
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    assert_eq!(output.stdout, b"done\n");
}
