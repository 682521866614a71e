//! Writes the last state of programs that exec has replaced, on a thread of its own: `FILE.exec1`, `FILE.exec2` ...

use crate::cut::Cut;
use crate::output::Destination;
use crate::snapshot::{About, build};
use heapline_shared_format::snapshot::End;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;

/// What the archive is sent.
pub enum Replaced {
    /// A program's last state.
    Program(Box<Cut>),
    /// Answer with what was done so far.
    Report(mpsc::Sender<Vec<Archived>>),
}

/// A program that was written, or not.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Where.
    pub destination: Destination,
    /// Calls recorded in it.
    pub records: u64,
    /// Why it was not.
    pub error: Option<String>,
}

/// Where the snapshots go and whose they are; known once the process has started.
#[derive(Clone, Debug)]
pub struct Place {
    /// `FILE`.
    pub destination: Destination,
    /// Process id of the target.
    pub pid: u32,
}

/// Starts the thread. It ends when all senders are gone.
pub fn start(place: Arc<OnceLock<Place>>, interrupted: Arc<AtomicBool>) -> io::Result<SyncSender<Replaced>> {
    // One waits while one is written; with more, exec in a loop would fill the memory.
    let (sender, replaced) = mpsc::sync_channel(1);
    let body = move || {
        let mut done = Vec::new();
        for message in replaced {
            match message {
                Replaced::Program(cut) => done.extend(write(*cut, done.len(), &place, &interrupted)),
                Replaced::Report(reply) => {
                    // Whoever asked may have left.
                    let _ = reply.send(done.clone());
                }
            }
        }
    };
    thread::Builder::new().name("archive".to_owned()).spawn(body)?;
    Ok(sender)
}

fn write(cut: Cut, before: usize, place: &OnceLock<Place>, interrupted: &AtomicBool) -> Option<Archived> {
    let place = place.wait();
    let n = u32::try_from(before).ok()? + 1;
    let destination = place.destination.replaced(n);
    let notes = vec![format!("exec has replaced this program by another; it was number {n} of the process")];
    let records = cut.figures.records;
    let snapshot = build(cut, About { pid: place.pid, end: End::Exited, exit_status: None, notes });
    let error = destination.write(&snapshot, interrupted).err().map(|error| error.to_string());
    Some(Archived { destination, records, error })
}
