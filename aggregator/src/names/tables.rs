//! The symbols of all objects of all traced processes: each file is read once.
//!
//! Two threads work here, and begin with the first object:
//!
//! - the opener opens the files of new objects at once, before a program unloads or replaces them;
//! - the reader has the symbols of one file after another read, by a child process.

use super::object::{self, Opened, Place, View};
use super::worker::{self, Reading};
use super::{Found, ProcessNames};
use crate::base::sys;
use crate::table::modules::Object;
use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Identity of a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The build-id, of a file that only this user and root can have written.
    BuildId(Vec<u8>),
    /// Device, inode, length and time of another file. The content is unchanged as long as none of
    /// these numbers changes.
    Content(u64, u64, u64, (i64, i64)),
}

/// News of a process.
pub struct Sighting {
    /// The process.
    pub process: Arc<ProcessNames>,
    /// Number of the program.
    pub image: u32,
    /// The news.
    pub seen: Seen,
}

/// What was seen of a program.
pub enum Seen {
    /// The program has begun.
    Begin,
    /// Objects are new on stacks: the index of the first object, and the objects.
    Objects(usize, Vec<Object>),
}

/// State of a file's symbols.
enum Slot {
    /// The symbols are not read yet. `report` finds the file at the place.
    Waiting(Option<Place>),
    /// The symbols were read, or could not be read.
    Read(Found),
}

#[derive(Default)]
struct State {
    sightings: VecDeque<Sighting>,
    /// Sightings taken by the opener, but not yet finished.
    opening: usize,
    files: HashMap<Key, Slot>,
    queue: VecDeque<(Key, Reading)>,
    runs: bool,
    /// Number of snapshots that wait.
    waiting: usize,
}

impl State {
    /// Removes the next file from the queue: files that `report` cannot open come first.
    fn next(&mut self) -> Option<(Key, Reading)> {
        let is_waiting = |key: &Key| match self.files.get(key) {
            Some(Slot::Waiting(place)) => !is_lasting(place.as_ref()),
            _ => false,
        };
        let first = self.queue.iter().position(|(key, _)| is_waiting(key)).unwrap_or(0);
        self.queue.remove(first)
    }
}

/// Whether `report` finds a file now.
fn is_lasting(place: Option<&Place>) -> bool {
    place.is_some_and(Place::has_file)
}

/// The symbols of all files.
#[derive(Default)]
pub struct Tables {
    state: Mutex<State>,
    changed: Condvar,
}

/// The symbols of all files of this aggregator's processes.
pub static TABLES: LazyLock<Tables> = LazyLock::new(Tables::default);

/// Most files held open at a time. Objects beyond the limit are left to `report`.
const MOST_OPEN: usize = 256;
/// Most files with kept symbols.
const MOST_FILES: usize = 1 << 14;
/// Interval between two looks at the end of a wait.
const LOOK: Duration = Duration::from_millis(20);
/// Limit of the wait for a process id. A command's id is known a moment after its start.
const START: Duration = Duration::from_secs(1);

impl Tables {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes new objects, to be opened at once.
    pub fn open(&self, sighting: Sighting) {
        let mut state = self.state();
        state.sightings.push_back(sighting);
        if !state.runs {
            let start = |name: &str, body: fn()| thread::Builder::new().name(name.to_owned()).spawn(body).is_ok();
            state.runs = start("names", || TABLES.open_all()) && start("symbols", || TABLES.read_all());
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until all objects seen so far are opened, unless `is_over`.
    pub fn settle(&self, is_over: &dyn Fn() -> bool) {
        let mut state = self.state();
        while state.runs && !(state.sightings.is_empty() && state.opening == 0) && !is_over() {
            state = self.pause(state);
        }
    }

    /// Waits for the symbols of a file, unless `is_over`, which is told whether `report` can read
    /// the file later. Returns none without symbols.
    pub fn wait(&self, key: &Key, is_over: impl Fn(bool) -> bool) -> Found {
        let mut state = self.state();
        state.waiting += 1;
        let found = loop {
            match state.files.get(key) {
                Some(Slot::Read(found)) => break found.clone(),
                Some(Slot::Waiting(place)) if state.runs && !is_over(is_lasting(place.as_ref())) => {}
                _ => break None,
            }
            state = self.pause(state);
        };
        state.waiting -= 1;
        found
    }

    fn pause<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    fn open_all(&self) {
        // A program may unload an object, and replace the file, at any moment.
        sys::be_urgent();
        loop {
            let mut state = self.state();
            let sighting = loop {
                match state.sightings.pop_front() {
                    Some(sighting) => break sighting,
                    None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.opening += 1;
            drop(state);
            self.open_objects(&sighting);
            self.state().opening -= 1;
            self.changed.notify_all();
        }
    }

    fn open_objects(&self, sighting: &Sighting) {
        let Sighting { process, image, seen } = sighting;
        let begun = Instant::now();
        while process.view.get().is_none() && begun.elapsed() < START {
            thread::sleep(Duration::from_millis(1));
        }
        let view = process.view.get().and_then(Option::as_ref);
        let mappings = LazyLock::new(|| view.map_or_else(Vec::new, |view| object::mappings(view.pid)));
        let (first, objects) = match seen {
            Seen::Begin => {
                let Some(view) = view else { return };
                let executable = object::executable(view).and_then(|opened| {
                    let build_id = opened.build_id.clone();
                    Some((self.take(Some(view), opened)?, build_id))
                });
                tracing::debug!(image, ?executable, "a program has begun");
                process.program(*image, |program| program.executable = executable);
                object::deleted(view, &mappings).for_each(|opened| drop(self.take(Some(view), opened)));
                return;
            }
            Seen::Objects(first, objects) => (*first, objects),
        };
        for (index, object) in (first..).zip(objects) {
            let known = Key::BuildId(object.build_id.clone());
            let key = if object::is_nameless(&object.path) {
                None
            } else if !object.build_id.is_empty() && self.state().files.contains_key(&known) {
                Some(known)
            } else {
                object::open(view, &mappings, object).and_then(|opened| self.take(view, opened))
            };
            let executable = || process.program(*image, |program| program.executable.clone());
            let is_it = |(_, id): &(Key, Vec<u8>)| object.path.is_empty() && *id == object.build_id;
            let key = key.or_else(|| executable().filter(is_it).map(|(key, _)| key));
            tracing::debug!(image, index, path = %String::from_utf8_lossy(&object.path), ?key, "saw an object");
            process.set_key(*image, index, key);
        }
    }

    /// Queues a file for the reader.
    fn take(&self, view: Option<&View>, opened: Opened) -> Option<Key> {
        let found = opened.file.metadata().ok()?;
        let key = match opened.is_trusted && !opened.build_id.is_empty() {
            true => Key::BuildId(opened.build_id.clone()),
            false => Key::Content(found.dev(), found.ino(), found.len(), (found.mtime(), found.mtime_nsec())),
        };
        let mut state = self.state();
        if !state.files.contains_key(&key) {
            if state.files.len() >= MOST_FILES || state.queue.len() >= MOST_OPEN {
                return None;
            }
            let root = view.map_or_else(|| "/".into(), View::root);
            let reading = Reading { path: opened.path, build_id: opened.build_id, root, file: opened.file };
            state.files.insert(key.clone(), Slot::Waiting(opened.place));
            state.queue.push_back((key.clone(), reading));
        }
        Some(key)
    }

    fn read_all(&self) {
        sys::be_ordinary();
        loop {
            let mut state = self.state();
            let (key, reading) = loop {
                match state.next() {
                    Some(next) => break next,
                    None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            let is_urgent = || self.state().waiting > 0;
            let table = worker::read(reading, &is_urgent).map(Arc::new);
            self.state().files.insert(key, Slot::Read(table));
            self.changed.notify_all();
        }
    }
}
