//! The command's invisible parent: signals, job control, and the command's end.
//!
//! The kernel sends a terminal's signals to the whole foreground group, so the command already has
//! these signals. They are ignored here. A signal sent to this process alone is meant for the
//! command, and is passed on.

use crate::base::sys;
use crate::process::procfs;
use signal_hook::consts::signal::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level;
use signal_hook::low_level::siginfo::{Cause, Origin};
use std::io;

const HANDLED: [libc::c_int; 13] = [
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
];
/// Limit of the ancestors looked at from the sender upwards.
const GENERATIONS: usize = 16;

/// Receiver of this process's signals.
pub struct Signals(SignalsInfo<WithOrigin>);

/// The end of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An end with a status.
    Status(i32),
    /// An end by a signal.
    Signal(i32),
}

impl Exit {
    /// Returns the exit status in a shell's form: 128 + N for signal N.
    pub fn status(self) -> i32 {
        match self {
            Exit::Status(status) => status,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

impl Signals {
    /// Takes the signals over.
    pub fn take() -> io::Result<Signals> {
        SignalsInfo::new(HANDLED).map(Signals)
    }

    /// Waits for the child's end, and passes signals on to the child in the meantime.
    pub fn wait_for(&mut self, child: libc::pid_t) -> io::Result<Exit> {
        loop {
            if let Some(exit) = collect(child)? {
                return Ok(exit);
            }
            for origin in self.0.wait() {
                if is_for_child(&origin, child) {
                    tracing::debug!(signal = origin.signal, "passed on");
                    send(child, origin.signal);
                }
            }
        }
    }
}

fn is_for_child(origin: &Origin, child: libc::pid_t) -> bool {
    match origin.signal {
        SIGCHLD | SIGTSTP | SIGTTIN | SIGTTOU => false,
        // A sender of SIGCONT means the whole job.
        SIGCONT => true,
        _ => {
            let is_sent = matches!(origin.cause, Cause::Sent(_));
            let sender = origin.process.map(|process| process.pid);
            // A command that signals its own group has already received the signal.
            is_sent && !sender.is_some_and(|sender| is_from_child(sender, child))
        }
    }
}

fn is_from_child(sender: libc::pid_t, child: libc::pid_t) -> bool {
    let parent = |pid: &u32| procfs::parent(*pid).filter(|&parent| parent > 1);
    let ancestry = std::iter::successors(u32::try_from(sender).ok(), parent);
    ancestry.take(GENERATIONS).any(|pid| i64::from(pid) == i64::from(child))
}

/// Looks for changes of the child since the last look.
fn collect(child: libc::pid_t) -> io::Result<Option<Exit>> {
    loop {
        let mut status = 0;
        let flags = libc::WNOHANG | libc::WUNTRACED;
        // SAFETY: `status` is valid for the write.
        let pid = unsafe { libc::waitpid(child, &mut status, flags) };
        match sys::check(pid) {
            Ok(0) => return Ok(None),
            Ok(_) if libc::WIFEXITED(status) => return Ok(Some(Exit::Status(libc::WEXITSTATUS(status)))),
            Ok(_) if libc::WIFSIGNALED(status) => return Ok(Some(Exit::Signal(libc::WTERMSIG(status)))),
            Ok(_) => follow_stop(libc::WSTOPSIG(status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Stops this process like the child, so that the shell takes its terminal back.
///
/// This process stops only for the stop signals of a terminal. After a plain SIGSTOP, a user may
/// continue the child alone. A stopped aggregator would notice neither this nor the end of the
/// child.
fn follow_stop(signal: libc::c_int) {
    if matches!(signal, SIGTSTP | SIGTTIN | SIGTTOU)
        && let Err(error) = low_level::emulate_default_handler(signal)
    {
        tracing::warn!(%error, "cannot stop with the command");
    }
}

fn send(child: libc::pid_t, signal: libc::c_int) {
    // SAFETY: `kill` has no memory preconditions. The child was not waited for yet, so the id still
    // belongs to the child.
    unsafe { libc::kill(child, signal) };
}
