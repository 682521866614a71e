//! Names of frames: functions, files and lines, looked up while the files of the process are there.
//!
//! A snapshot is read later, on another machine, after the program was replaced. So the aggregator
//! opens each object while the object is mapped, reads the symbols in the background, and stores
//! the names of all frames in the snapshot.
//!
//! ```text
//! table ──(new objects)──> opener ──(open files)──> reader ──> child process for a file
//!                          (`object`)               (`tables`) (`worker`)
//!                                                      │
//! snapshot, ctl lookup <──(functions and lines)────────┘
//! ```
//!
//! - Nothing here runs on the table's thread, or in the target.
//! - The child process works at idle priority, and is the first victim of a lack of memory.
//! - A snapshot waits a short time for symbols. `report` looks up the missing names itself, as long
//!   as the files are there.

pub mod jit;
mod object;
mod tables;
pub mod worker;

use crate::table::modules::Object;
use heapline_shared_format::snapshot::{NamedFrame, NamedModule, Names, Place, Snapshot};
use heapline_symbols::{Location, Table};
use object::View;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tables::{Key, Seen, Sighting, TABLES};

/// Limit of a snapshot's wait for symbols that `report` can read too, if the files stay.
const PATIENCE: Duration = Duration::from_secs(3);
/// Limit of a snapshot's wait for symbols of files that `report` cannot open: replaced or deleted
/// files, and files under another root.
const LAST_CHANCE: Duration = Duration::from_secs(30);
/// Most functions kept of an address, the outermost last.
const DEEPEST_INLINE: usize = 255;

/// The named objects of a process, for each of the programs that the process has run.
pub struct ProcessNames {
    /// Whether names are looked up.
    is_on: bool,
    /// The process. None for a process outside of this process's view.
    view: OnceLock<Option<View>>,
    /// The objects of each program, by the number of the program.
    programs: Mutex<HashMap<u32, Program>>,
}

/// The objects of a program.
#[derive(Default)]
struct Program {
    /// The executable and the executable's build-id, if the file could be opened when the program
    /// began.
    executable: Option<(Key, Vec<u8>)>,
    /// The objects by index.
    objects: Vec<Option<Key>>,
}

impl ProcessNames {
    /// Returns the names of a process that [`ProcessNames::set_process`] names later. `is_on`:
    /// names are looked up.
    pub fn new(is_on: bool) -> Arc<ProcessNames> {
        Arc::new(ProcessNames { is_on, view: OnceLock::new(), programs: Mutex::default() })
    }

    /// Sets the process. None: the process cannot be seen from here.
    pub fn set_process(&self, pid: Option<u32>) {
        self.view.get_or_init(|| pid.map(View::of));
    }

    /// Notes that program number `image` has begun. The executable may be gone when the first
    /// frame is seen.
    pub fn begin(self: &Arc<Self>, image: u32) {
        self.tell(image, Seen::Begin);
    }

    /// Takes new objects of program number `image`. The first of the objects has the index `first`.
    pub fn see(self: &Arc<Self>, image: u32, first: usize, objects: &[Object]) {
        self.tell(image, Seen::Objects(first, objects.to_vec()));
    }

    fn tell(self: &Arc<Self>, image: u32, seen: Seen) {
        if self.is_on {
            TABLES.open(Sighting { process: Arc::clone(self), image, seen });
        }
    }

    /// Stores the names of a snapshot's frames in the snapshot, if `image` is the number of the
    /// snapshot's program. Waits for symbols, unless `is_over`.
    pub fn fill(&self, snapshot: &mut Snapshot, image: u32, is_over: &dyn Fn() -> bool) {
        if !self.is_on {
            return;
        }
        let begun = Instant::now();
        TABLES.settle(&|| is_over() || begun.elapsed() > PATIENCE);
        let keys = self.keys_of(image);
        let mut frames: Vec<Vec<u32>> = vec![Vec::new(); snapshot.modules.len()];
        let mut generated = Vec::new();
        for (index, frame) in (0..).zip(&snapshot.frames) {
            match frame.module {
                Some(module) => frames[module as usize].push(index),
                None if frame.as_python().is_none() => generated.push(index),
                None => {}
            }
        }
        let mut names = Builder::default();
        for (module, indices) in (0..).zip(&frames).filter(|(_, indices)| !indices.is_empty()) {
            let Some(Some(key)) = keys.get(module as usize) else { continue };
            let limit = |is_lasting: bool| if is_lasting { PATIENCE } else { LAST_CHANCE };
            let Some(table) = TABLES.wait(key, |lasts| is_over() || begun.elapsed() > limit(lasts)) else { continue };
            let bias = snapshot.modules[module as usize].bias;
            let calls = indices.iter().map(|&index| call(snapshot.frames[index as usize].address, bias));
            names.module(NamedModule { module, has_lines: table.has_lines(), is_incomplete: table.is_incomplete() });
            indices.iter().zip(table.locate(calls)).for_each(|(&frame, found)| names.frame(frame, found));
        }
        if let Some(view) = self.view.get().and_then(Option::as_ref).filter(|_| !generated.is_empty()) {
            let code = jit::Code::of(view);
            for frame in generated {
                names.frame(frame, code.at(call(snapshot.frames[frame as usize].address, 0)));
            }
        }
        snapshot.names = names.finish();
        tracing::info!(took = ?begun.elapsed(), frames = snapshot.names.frames.len(), "named the frames");
    }

    /// Returns the functions at return addresses of the process, the innermost first: `frames` are
    /// pairs of an address, and index and bias of its object. Empty for frames without a name.
    pub fn locate(&self, image: u32, frames: &[(u64, Option<(u32, u64)>)]) -> Vec<Vec<Location>> {
        if !self.is_on {
            return vec![Vec::new(); frames.len()];
        }
        let begun = Instant::now();
        TABLES.settle(&|| begun.elapsed() > PATIENCE);
        let keys = self.keys_of(image);
        let mut code = None;
        let mut locate = |&(address, object): &(u64, Option<(u32, u64)>)| match object {
            Some((module, bias)) => {
                let key = keys.get(module as usize).and_then(Option::as_ref);
                let table = key.and_then(|key| TABLES.wait(key, |_| begun.elapsed() > PATIENCE));
                table.and_then(|table| table.locate([call(address, bias)].into_iter()).pop()).unwrap_or_default()
            }
            None => {
                let view = self.view.get().and_then(Option::as_ref);
                let code: &Option<jit::Code> = code.get_or_insert_with(|| view.map(jit::Code::of));
                code.as_ref().map_or_else(Vec::new, |code| code.at(call(address, 0)))
            }
        };
        frames.iter().map(&mut locate).collect()
    }

    fn keys_of(&self, image: u32) -> Vec<Option<Key>> {
        self.program(image, |program| program.objects.clone())
    }

    fn set_key(&self, image: u32, index: usize, key: Option<Key>) {
        self.program(image, |program| {
            if program.objects.len() <= index {
                program.objects.resize(index + 1, None);
            }
            program.objects[index] = key;
        });
    }

    fn program<T>(&self, image: u32, act: impl FnOnce(&mut Program) -> T) -> T {
        act(self.programs.lock().unwrap_or_else(PoisonError::into_inner).entry(image).or_default())
    }
}

/// Returns the address of the call of a return address, in the file's own addresses. A return
/// address points behind the call, perhaps already into another line or function.
fn call(return_address: u64, bias: u64) -> u64 {
    return_address.wrapping_sub(1).wrapping_sub(bias)
}

/// Collects the names of a snapshot: each text once.
#[derive(Default)]
struct Builder {
    names: Names,
    texts: HashMap<String, u32>,
}

impl Builder {
    fn module(&mut self, row: NamedModule) {
        self.names.modules.push(row);
    }

    fn frame(&mut self, frame: u32, found: Vec<Location>) {
        if found.is_empty() {
            return;
        }
        let inlined = found.len().saturating_sub(DEEPEST_INLINE);
        let place = |location: Location| Place {
            function: location.function.map(|name| self.text(name)),
            line: location.line.map(|(file, line)| (self.text(file), line)),
        };
        let places = found.into_iter().skip(inlined).map(place).collect();
        self.names.frames.push(NamedFrame { frame, places });
    }

    fn text(&mut self, text: String) -> u32 {
        let next = u32::try_from(self.names.texts.len()).unwrap_or(u32::MAX);
        *self.texts.entry(text).or_insert_with_key(|text| {
            self.names.texts.push(text.clone());
            next
        })
    }

    fn finish(mut self) -> Names {
        self.names.frames.sort_unstable_by_key(|row| row.frame);
        self.names
    }
}

/// A table, or the fact that there is none.
type Found = Option<Arc<Table>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::elf;
    use heapline_shared_format::snapshot::{Frame, Module};
    use std::fs::File;

    #[inline(never)]
    fn a_function_with_a_name() -> u32 {
        std::hint::black_box(line!())
    }

    /// Returns the object of this test's executable.
    fn own_object() -> Object {
        let mapping = std::fs::read_to_string("/proc/self/maps").expect("readable");
        let start = mapping.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok()).expect("a range");
        let file = File::open("/proc/self/exe").expect("readable");
        let build_id = elf::build_id(&file).expect("an ELF file");
        // The executable of a test lies at the start of the address space, and its addresses begin
        // at 0.
        Object { path: Vec::new(), build_id, start, end: start + (1 << 20), bias: start }
    }

    fn return_address() -> u64 {
        a_function_with_a_name as *const () as u64 + 1
    }

    #[test]
    fn frames_of_a_running_process_get_names_in_lookups_and_snapshots() {
        let (names, object) = (ProcessNames::new(true), own_object());
        names.set_process(Some(std::process::id()));
        names.see(1, 0, std::slice::from_ref(&object));
        let address = return_address();
        let known = |found: &[Location]| {
            let name = found.last().and_then(|location| location.function.as_deref());
            name.is_some_and(|name| name.ends_with("a_function_with_a_name"))
        };
        // A busy machine may take longer than a lookup waits.
        let located = || {
            let found = names.locate(1, &[(address, Some((0, object.bias))), (address, None)]);
            assert!(found[1].is_empty(), "{found:?}");
            known(&found[0])
        };
        assert!((0..40).any(|_| located()));
        assert!(names.locate(2, &[(address, Some((0, object.bias)))])[0].is_empty(), "another program");

        let Object { build_id, start, end, bias, .. } = object;
        let module = Module { path: "/gone".to_owned(), build_id, start, end, bias, loaded: true };
        let frames = [Some(0), None].map(|module| Frame { address, module }).to_vec();
        let mut snapshot = Snapshot { modules: vec![module], frames, ..Snapshot::default() };
        names.fill(&mut snapshot, 1, &|| false);
        let stored = &snapshot.names;
        assert!(stored.of_module(0).is_some_and(|row| row.has_lines));
        let [.., place] = stored.of_frame(0) else { panic!("no place") };
        let text = |index: u32| &stored.texts[index as usize];
        assert!(text(place.function.expect("a name")).ends_with("a_function_with_a_name"));
        assert!(text(place.line.expect("a line").0).ends_with("names/mod.rs"));
        assert!(stored.of_frame(1).is_empty());
    }

    #[test]
    fn a_process_out_of_sight_has_no_names_and_nobody_waits() {
        let names = ProcessNames::new(true);
        names.set_process(None);
        let object = Object { path: b"/no/such/file".to_vec(), build_id: vec![1, 2], start: 0, end: 9, bias: 0 };
        names.see(1, 0, &[object]);
        assert!(names.locate(1, &[(5, Some((0, 0)))])[0].is_empty());
    }

    #[test]
    fn texts_are_stored_once_and_deep_inlining_keeps_the_outermost() {
        let mut builder = Builder::default();
        let location =
            |n: usize| Location { function: Some(format!("f{}", n % 300)), line: Some(("/f.c".to_owned(), 1)) };
        builder.frame(7, (0..300).map(location).collect());
        builder.frame(3, vec![location(0)]);
        let names = builder.finish();
        assert_eq!(names.of_frame(7).len(), DEEPEST_INLINE);
        let name = |place: &Place| names.texts[place.function.expect("named") as usize].clone();
        assert_eq!(names.of_frame(7).last().map(name).as_deref(), Some("f299"));
        assert_eq!(names.of_frame(3).first().map(name).as_deref(), Some("f0"));
        assert_eq!(names.texts.iter().filter(|text| *text == "/f.c").count(), 1);
    }
}
