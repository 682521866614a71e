//! Writes the last state of programs that exec has replaced, on a thread of its own: `FILE.exec1`, `FILE.exec2` ...

use crate::process::image::Image;
use crate::snapshot::build::{About, build};
use crate::snapshot::cut::Cut;
use crate::snapshot::write::{Destination, Folder, OutputError};
use crate::unseen;
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
    pub spot: Spot,
    /// Process id of the target.
    pub pid: u32,
}

/// How the file's name is found.
#[derive(Clone, Debug)]
pub enum Spot {
    /// It is known.
    File(Destination),
    /// After the program, in the folder of a tree's snapshots.
    In(Arc<Folder>),
}

impl Place {
    /// Where the snapshot of a program goes.
    pub fn of(&self, image: &Image) -> Result<Destination, OutputError> {
        match &self.spot {
            Spot::File(destination) => Ok(destination.clone()),
            Spot::In(folder) => folder.place(image, self.pid),
        }
    }
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
    let destination = place.of(&cut.figures.image).ok()?.replaced(n);
    let records = cut.figures.records;
    let notes = vec![note(n)];
    let recorded = cut.figures.recorded.clone();
    let about = About { pid: place.pid, end: End::Exited, exit_status: None, notes, origin: None };
    let mut snapshot = build(cut, about);
    snapshot.meta.unseen = unseen::by_modules(&snapshot.meta.executable, &snapshot.modules, recorded);
    let error = destination.write(&snapshot, interrupted).err().map(|error| error.to_string());
    Some(Archived { destination, records, error })
}

/// What a snapshot of a program says that was the `n`th of its process.
pub fn note(n: u32) -> String {
    format!("exec has replaced this program by another; it was number {n} of the process")
}
