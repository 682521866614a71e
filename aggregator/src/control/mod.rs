//! The control socket: `aggregator ctl` on one side, a running aggregator on the other side.

mod client;
mod list;
mod places;
mod protocol;
mod server;

pub use client::{Ask, ask, is_answered, shown};
pub use list::list;
pub use protocol::{Change, Request};
pub use server::{Server, answer_apart, bind, serve};

use crate::base::private_dir;
use crate::base::private_dir::PrivateDirError;
use std::io;
use std::path::PathBuf;

/// Reasons why a request was not carried out, or a socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The folder is not usable.
    #[error(transparent)]
    Folder(#[from] PrivateDirError),
    /// No aggregator listens.
    #[error(
        "no aggregator traces process {pid}: start one with aggregator --attach {pid}, or as its user or root{}",
        also(untrusted)
    )]
    Nobody {
        /// The process.
        pid: u32,
        /// The untrusted entry in the place of the usual folder.
        untrusted: Option<PrivateDirError>,
    },
    /// The aggregator does not answer.
    #[error(
        "the aggregator of process {pid} does not answer: is it stopped? continue it, or kill it; the process is safe"
    )]
    Silent {
        /// The process.
        pid: u32,
    },
    /// The system refused.
    #[error("cannot use {}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The listening user is neither the folder's user nor root.
    #[error("{} is served by user {peer}, who is not to be trusted with it: remove it", path.display())]
    Impostor {
        /// The socket.
        path: PathBuf,
        /// The listening user.
        peer: u32,
    },
    /// The aggregator could not carry out the request.
    #[error("{0}")]
    Refused(String),
    /// The answer is not understood by this version.
    #[error("the aggregator's answer is not understood ({0}): use the aggregator program that it was started with")]
    Garbled(String),
    /// No live block begins at the address.
    #[error("no live block begins at {address:#x}: it was freed, is older than the trace, or begins elsewhere")]
    NotLive {
        /// The address.
        address: u64,
    },
}

fn also(untrusted: &Option<PrivateDirError>) -> String {
    untrusted.as_ref().map(|error| format!(" ({error})")).unwrap_or_default()
}

fn socket_path(uid: u32, pid: u32) -> PathBuf {
    private_dir::path_for(uid).join(format!("{pid}.sock"))
}
