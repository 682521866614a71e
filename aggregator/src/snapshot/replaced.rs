//! Writes the last state of programs replaced by exec, on a thread of its own: `FILE.exec1`,
//! `FILE.exec2` ...

use crate::names::ProcessNames;
use crate::process::image::Image;
use crate::snapshot::build::{About, build};
use crate::snapshot::cut::Cut;
use crate::snapshot::write::{Destination, Folder, OutputError};
use crate::unseen;
use heapline_shared_format::snapshot::End;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;

/// Message to the archive.
pub enum Replaced {
    /// The last state of a program; none if the table was lost.
    Program(Box<dyn FnOnce() -> Option<Cut> + Send>),
    /// Request for a list of the programs handled so far.
    Report(mpsc::Sender<Vec<Archived>>),
}

/// A program with a written snapshot, or with an error.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Place of the snapshot.
    pub destination: Destination,
    /// Calls recorded in the snapshot.
    pub records: u64,
    /// Error of the writing; none after a success.
    pub error: Option<String>,
}

/// Place and process id of the snapshots; known after the start of the process.
#[derive(Clone, Debug)]
pub struct Place {
    /// `FILE`.
    pub spot: Spot,
    /// Process id of the target.
    pub pid: u32,
}

/// Source of the file's name.
#[derive(Clone, Debug)]
pub enum Spot {
    /// The name is known.
    File(Destination),
    /// The name is made from the program, in the folder of a tree's snapshots.
    In(Arc<Folder>),
}

impl Place {
    /// Returns the place for the snapshot of a program.
    pub fn of(&self, image: &Image) -> Result<Destination, OutputError> {
        match &self.spot {
            Spot::File(destination) => Ok(destination.clone()),
            Spot::In(folder) => folder.place(image, self.pid),
        }
    }
}

/// Starts the thread. The thread ends when all senders are gone.
pub fn start(
    place: Arc<OnceLock<Place>>,
    names: Arc<ProcessNames>,
    interrupted: Arc<AtomicBool>,
) -> io::Result<SyncSender<Replaced>> {
    // At most a single program waits while another program is written. With more, a loop of exec
    // would fill the memory.
    let (sender, replaced) = mpsc::sync_channel(1);
    let body = move || {
        let mut done = Vec::new();
        for message in replaced {
            match message {
                Replaced::Program(cut) => {
                    let written = cut().and_then(|cut| write(cut, done.len(), &place, &names, &interrupted));
                    done.extend(written);
                }
                Replaced::Report(reply) => {
                    // The asking thread may have left.
                    let _ = reply.send(done.clone());
                }
            }
        }
    };
    thread::Builder::new().name("archive".to_owned()).spawn(body)?;
    Ok(sender)
}

fn write(
    cut: Cut,
    before: usize,
    place: &OnceLock<Place>,
    names: &ProcessNames,
    interrupted: &AtomicBool,
) -> Option<Archived> {
    let place = place.wait();
    let n = u32::try_from(before).ok()? + 1;
    let destination = place.of(&cut.figures.image).ok()?.replaced(n);
    let (records, image) = (cut.figures.records, cut.figures.image.number);
    let notes = vec![note(n)];
    let recorded = cut.figures.recorded.clone();
    let about = About { pid: place.pid, end: End::Exited, exit_status: None, notes, origin: None };
    let mut snapshot = build(cut, about);
    snapshot.meta.unseen = unseen::by_modules(&snapshot.meta.executable, &snapshot.modules, recorded);
    names.fill(&mut snapshot, image, &|| interrupted.load(Ordering::Relaxed));
    let error = destination.write(&snapshot, interrupted).err().map(|error| error.to_string());
    Some(Archived { destination, records, error })
}

/// Returns the note in the snapshot of the `n`th program of a process.
pub fn note(n: u32) -> String {
    format!("exec has replaced this program by another; it was number {n} of the process")
}
