//! Being the command's invisible parent: signals, job control, and its end.
//!
//! The kernel sends a terminal's signals to the whole foreground group, so the command has them
//! already; those are ignored here. A signal that somebody sent to this process alone is meant for
//! the command, and goes on to it.

use crate::base::sys;
use crate::target::procfs;
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
/// How far up the sender's ancestors are followed.
const GENERATIONS: usize = 16;

/// The signals that this process receives from now on.
pub struct Signals(SignalsInfo<WithOrigin>);

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With a status.
    Status(i32),
    /// By a signal.
    Signal(i32),
}

impl Exit {
    /// As a shell reports it: 128 + N for signal N.
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

    /// Waits for the child's end, and passes on what is meant for it meanwhile.
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
        // Whoever continues us means the job.
        SIGCONT => true,
        _ => {
            let is_sent = matches!(origin.cause, Cause::Sent(_));
            let sender = origin.process.map(|process| process.pid);
            // A command that signals its own group has signalled itself already.
            is_sent && !sender.is_some_and(|sender| is_from_child(sender, child))
        }
    }
}

fn is_from_child(sender: libc::pid_t, child: libc::pid_t) -> bool {
    let parent = |pid: &u32| procfs::parent(*pid).filter(|&parent| parent > 1);
    let ancestry = std::iter::successors(u32::try_from(sender).ok(), parent);
    ancestry.take(GENERATIONS).any(|pid| i64::from(pid) == i64::from(child))
}

/// Looks at what has happened to the child since the last look.
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

/// Stops as the child did, so that the shell takes its terminal back.
///
/// Only for the terminal's stops. After a plain SIGSTOP somebody may continue the child alone;
/// stopped, this process would never see that, nor the end of the child.
fn follow_stop(signal: libc::c_int) {
    if matches!(signal, SIGTSTP | SIGTTIN | SIGTTOU)
        && let Err(error) = low_level::emulate_default_handler(signal)
    {
        tracing::warn!(%error, "cannot stop with the command");
    }
}

fn send(child: libc::pid_t, signal: libc::c_int) {
    // SAFETY: signals a child that was not waited for yet, so the id is still its own.
    unsafe { libc::kill(child, signal) };
}
