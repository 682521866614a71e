//! Chooses the frame to group a block under: the first frame of the program's own code, or the most
//! recent frame.
//!
//! A leak in `items.push_back(x)` belongs to the caller, not to `stl_vector.h`. So frames have
//! owners:
//!
//! | Owner | Frames |
//! | --- | --- |
//! | nobody | allocators and wrappers of them, the C library, standard libraries of languages |
//! | a library | shared libraries of the system, packages of Python and Rust, the interpreter |
//! | the program | all others |
//!
//! The blamed frame is the first that exists of:
//!
//! 1. the most recent frame of the program;
//! 2. the most recent frame of a library;
//! 3. the most recent frame.
//!
//! Memory that the C library keeps for itself, when a frame of the program has called the library
//! directly, is the C library's: the buffer of `printf`, the lists of `dlopen`. Blocks that the C
//! library hands to the caller (`strdup`, `getline`, `fopen`) are the caller's.
//!
//! Tracebacks stay whole.

mod patterns;
mod start;

pub use start::Starts;

use crate::frames::{Frame, Part, TracebackId, Tracebacks, offset_of_nameless};
use crate::glob::Glob;
use clap::ValueEnum;
use heapline_shared_format::snapshot::Domain;

/// Rule for the blamed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Blame {
    /// The first frame of the program's own code.
    Own,
    /// The most recent frame, as tracemalloc does.
    Leaf,
}

impl Blame {
    /// Default rule of a domain: the most recent frame for Python's memory and `track:N`, as in
    /// tracemalloc; else the first frame of the program's own code.
    pub fn default_of(domain: Domain) -> Blame {
        match domain {
            Domain::Python | Domain::Track(_) => Blame::Leaf,
            _ => Blame::Own,
        }
    }
}

/// Author of a frame's code. A frame with a greater owner is blamed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Nobody,
    Library,
    Program,
}

/// Part of a traceback at a frame of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InLibc {
    /// The frame is not the C library's.
    No,
    /// The block is handed to the caller.
    Hands,
    /// The C library keeps the block.
    Keeps,
}

/// What is known of a traceback.
#[derive(Clone, Copy)]
struct Found {
    /// The traceback up to the blamed frame.
    blamed: TracebackId,
    owner: Owner,
    in_libc: InLibc,
    /// Whether the most recent frame is a wrapper of an allocator, or a nameless part of a wrapper.
    wraps: bool,
}

/// Known values by index of a name or a traceback.
struct Table<T>(Vec<Option<T>>);

impl<T: Copy> Table<T> {
    fn get(&self, index: usize) -> Option<T> {
        self.0.get(index).copied().flatten()
    }

    fn insert(&mut self, index: usize, value: T) {
        if self.0.len() <= index {
            self.0.resize(index + 1, None);
        }
        self.0[index] = Some(value);
    }
}

/// Finds the blamed frames of tracebacks. Checks each name and each traceback once.
pub struct Blamer<'s> {
    skip: &'s [Glob],
    functions: Table<Owner>,
    files: Table<Owner>,
    modules: Table<Owner>,
    /// By module: whether the module is the C library.
    libc: Table<bool>,
    found: Table<Found>,
}

impl<'s> Blamer<'s> {
    /// Makes a search. Functions and files with a match of `skip` count as nobody's.
    pub fn new(skip: &'s [Glob]) -> Blamer<'s> {
        let [functions, files, modules] = [const { Table(Vec::new()) }; 3];
        Blamer { skip, functions, files, modules, libc: Table(Vec::new()), found: Table(Vec::new()) }
    }

    /// Returns the traceback up to the blamed frame: the blamed frame is its most recent frame.
    pub fn blamed(&mut self, tracebacks: &Tracebacks, id: TracebackId) -> TracebackId {
        let mut unknown = Vec::new();
        let mut next = Some(id);
        let index = Tracebacks::traceback_index;
        while let Some(id) = next.filter(|&id| self.found.get(index(id)).is_none()) {
            unknown.push(id);
            next = tracebacks.older(id);
        }
        let mut best = next.and_then(|id| self.found.get(index(id)));
        for id in unknown.into_iter().rev() {
            let found = self.look(tracebacks, id, best);
            self.found.insert(index(id), found);
            best = Some(found);
        }
        best.map_or(id, |found| found.blamed)
    }

    /// Looks at one frame more; `older` is known of the traceback without the frame.
    fn look(&mut self, tracebacks: &Tracebacks, id: TracebackId, older: Option<Found>) -> Found {
        let frame = tracebacks.most_recent(id);
        let in_libc = self.in_libc(tracebacks, id, older);
        let is_part = older.is_some_and(|older| older.wraps) && is_nameless_callee(tracebacks, id);
        let owner = match in_libc {
            InLibc::No if is_part => Owner::Nobody,
            InLibc::No => self.owner(tracebacks, frame),
            InLibc::Hands => Owner::Nobody,
            InLibc::Keeps => Owner::Program,
        };
        let wraps = is_part || self.is_wrapper(tracebacks, frame);
        match older.filter(|older| older.owner > owner) {
            Some(older) => Found { in_libc, wraps, ..older },
            None => Found { blamed: id, owner, in_libc, wraps },
        }
    }

    /// The function that was called decides for all frames of the C library below the call.
    fn in_libc(&mut self, tracebacks: &Tracebacks, id: TracebackId, older: Option<Found>) -> InLibc {
        let frame = tracebacks.most_recent(id);
        let module = Tracebacks::string_index(frame.module);
        let is_libc = self.libc.get(module).unwrap_or_else(|| {
            let is_libc = patterns::is_c_library(tracebacks.text(frame.module));
            self.libc.insert(module, is_libc);
            is_libc
        });
        match older.map_or(InLibc::No, |older| older.in_libc) {
            _ if !is_libc => InLibc::No,
            InLibc::No => {
                let is_direct = older
                    .is_some_and(|older| older.owner == Owner::Program && Some(older.blamed) == tracebacks.older(id));
                let hands = frame.part != Part::Asks || patterns::hands_over(tracebacks.text(frame.function));
                if is_direct && !hands { InLibc::Keeps } else { InLibc::Hands }
            }
            same => same,
        }
    }

    /// Whether a function of C is nobody's by its name.
    fn is_wrapper(&self, tracebacks: &Tracebacks, frame: Frame) -> bool {
        let owner = self.functions.get(Tracebacks::string_index(frame.function));
        owner == Some(Owner::Nobody) && !tracebacks.text(frame.function).contains("::")
    }

    /// Counts the frames of the traceback more recent than the blamed frame.
    pub fn depth(&mut self, tracebacks: &Tracebacks, id: TracebackId) -> usize {
        let blamed = self.blamed(tracebacks, id);
        std::iter::successors(Some(id), |&id| tracebacks.older(id)).take_while(|&id| id != blamed).count()
    }

    /// Whether a frame is nobody's own code: of an allocator, a wrapper, or a language's library.
    pub fn is_nobodys(&mut self, tracebacks: &Tracebacks, frame: Frame) -> bool {
        self.owner(tracebacks, frame) == Owner::Nobody
    }

    /// Owner of a frame: the least of the owners of its function, file and module.
    fn owner(&mut self, tracebacks: &Tracebacks, frame: Frame) -> Owner {
        if matches!(frame.part, Part::Carries | Part::CallsListener) {
            return Owner::Nobody;
        }
        let names = [
            (&mut self.functions, frame.function, patterns::of_function as fn(&str) -> Owner),
            (&mut self.files, frame.filename, patterns::of_file),
            (&mut self.modules, frame.module, patterns::of_module),
        ];
        let skip = self.skip;
        let owners = names.map(|(known, name, of)| {
            let index = Tracebacks::string_index(name);
            known.get(index).unwrap_or_else(|| {
                let text = tracebacks.text(name);
                let owner = if skip.iter().any(|glob| glob.matches(text)) { Owner::Nobody } else { of(text) };
                known.insert(index, owner);
                owner
            })
        });
        owners.into_iter().min().unwrap_or(Owner::Program)
    }
}

/// Whether a frame's function has no name: `postgres+0x5c7860`.
fn is_nameless(tracebacks: &Tracebacks, frame: &Frame) -> bool {
    offset_of_nameless(tracebacks.text(frame.module), tracebacks.text(frame.function)).is_some()
}

/// Whether the most recent frame has no name, and was called from its own module: in a stripped
/// program, a static function that a wrapper of an allocator is made of.
fn is_nameless_callee(tracebacks: &Tracebacks, id: TracebackId) -> bool {
    let frame = tracebacks.most_recent(id);
    let caller = tracebacks.older(id).map(|older| tracebacks.most_recent(older));
    is_nameless(tracebacks, &frame) && caller.is_some_and(|caller| caller.module == frame.module)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Left;

    /// Returns the function of the blamed frame. A frame is function, file, line and module; the
    /// oldest comes first.
    fn blamed<'f>(frames: &[(&'f str, &str, u32, &str)], skip: &[&str]) -> &'f str {
        let mut tracebacks = Tracebacks::default();
        let mut id = None;
        for &(function, filename, lineno, module) in frames {
            let [function, filename, module] = [function, filename, module].map(|text| tracebacks.string(text));
            let (part, left) = (Part::Asks, Left::Tables);
            id = Some(tracebacks.push(id, Frame { filename, lineno, function, module, address: 0, part, left }));
        }
        let skip: Vec<Glob> = skip.iter().map(|pattern| Glob::new(pattern)).collect();
        let mut blamer = Blamer::new(&skip);
        let id = id.expect("a frame");
        let found = blamer.blamed(&tracebacks, id);
        assert_eq!(blamer.blamed(&tracebacks, id), found, "the second time it is known");
        assert_eq!(tracebacks.frames(id).nth(blamer.depth(&tracebacks, id)), Some(tracebacks.most_recent(found)));
        frames[frames.len() - 1 - blamer.depth(&tracebacks, id)].0
    }

    const APP: &str = "/opt/app/bin/app";
    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

    #[test]
    fn the_programs_code_is_blamed_for_what_libraries_allocate_for_it() {
        let main = ("main", "/home/me/app.cpp", 7, APP);
        let vector = ("std::vector<Item>::push_back", "/usr/include/c++/12/bits/stl_vector.h", 395, APP);
        let inlined = ("_M_realloc_insert<Item const&>", "/usr/include/c++/12/bits/vector.tcc", 440, APP);
        let add = ("Cart::add", "/home/me/cart.cpp", 21, APP);
        assert_eq!(blamed(&[main, add, vector, inlined], &[]), "Cart::add");
        assert_eq!(blamed(&[main, ("strdup", "string/strdup.c", 42, LIBC)], &[]), "main");
        let start = ("__libc_start_main", "csu/libc-start.c", 360, LIBC);
        let buffer = ("_IO_file_doallocate", "libio/filedoalloc.c", 101, LIBC);
        let printf = ("printf", "stdio-common/printf.c", 33, LIBC);
        assert_eq!(blamed(&[start, main, printf, buffer], &[]), "_IO_file_doallocate", "the C library keeps it");
        assert_eq!(blamed(&[start, main, ("fopen64", "", 0, LIBC), buffer], &[]), "main", "the caller gets it");
        let xmalloc = ("xmalloc", "/home/me/lib/xmalloc.c", 12, APP);
        assert_eq!(blamed(&[main, add, xmalloc], &[]), "Cart::add");
        let qsort = ("qsort", "", 0, LIBC);
        assert_eq!(blamed(&[main, qsort, add], &[]), "Cart::add", "a call back");
        let glib = ("g_hash_table_new", "", 0, "/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0");
        assert_eq!(blamed(&[main, add, glib], &[]), "Cart::add");
        assert_eq!(blamed(&[main, add, glib, printf, buffer], &[]), "Cart::add", "not called directly");
        let generated = ("onRequest /srv/app.js:12", "[jit]", 0, "");
        assert_eq!(blamed(&[main, generated, glib], &[]), "onRequest /srv/app.js:12");
        assert_eq!(blamed(&[main, ("0x7f00", "<unknown>", 0, ""), glib], &[]), "main");
        const POSTGRES: &str = "/usr/lib/postgresql/15/bin/postgres";
        let [form, palloc] = ["heap_form_tuple", "palloc0"].map(|name| (name, POSTGRES, 0, POSTGRES));
        let nameless = ("postgres+0x5c7860", POSTGRES, 0, POSTGRES);
        assert_eq!(blamed(&[form, palloc, nameless, nameless], &[]), "heap_form_tuple", "parts of a wrapper");
        assert_eq!(blamed(&[form, nameless], &[]), "postgres+0x5c7860");
        let own_library = ("Engine::load", "/opt/app/lib/libengine.so.2", 0, "/opt/app/lib/libengine.so.2");
        assert_eq!(blamed(&[main, own_library, vector], &[]), "Engine::load");
        assert_eq!(blamed(&[main, add], &["Cart::*"]), "main", "what the user skips");
        assert_eq!(blamed(&[main, add], &["*/cart.cpp"]), "main", "a file that the user skips");
    }

    #[test]
    fn without_own_code_a_library_is_blamed_and_without_that_whoever_came_last() {
        let clone = ("clone3", "", 0, LIBC);
        let worker = ("g_thread_proxy", "", 0, "/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0");
        let strdup = ("strdup", "", 0, LIBC);
        assert_eq!(blamed(&[clone, worker, strdup], &[]), "g_thread_proxy");
        assert_eq!(blamed(&[clone, strdup], &[]), "strdup");
    }

    #[test]
    fn plug_ins_are_the_programs_and_drivers_are_their_librarys() {
        let host = ("serve", "", 0, "/usr/bin/host");
        let plugin = ("on_request", "", 0, "/usr/lib/host/modules/cache.so");
        let library = "/usr/lib/x86_64-linux-gnu/libfoo.so.1";
        let foo = ("foo_new", "", 0, library);
        assert_eq!(blamed(&[host, plugin], &[]), "on_request");
        assert_eq!(blamed(&[host, plugin, foo], &[]), "on_request");
        assert_eq!(blamed(&[host, foo, plugin], &[]), "on_request", "a call back");
        let gl = ("glTexImage2D", "", 0, "/usr/lib/x86_64-linux-gnu/libGL.so.1");
        let driver = ("iris_resource_create", "", 0, "/usr/lib/x86_64-linux-gnu/dri/iris_dri.so");
        assert_eq!(blamed(&[host, gl, driver], &[]), "serve");
        let writer = ("main", "", 0, "/usr/lib/libreoffice/program/soffice.bin");
        let document = ("SwDoc::SwDoc", "", 0, "/usr/lib/libreoffice/program/libswlo.so");
        assert_eq!(blamed(&[writer, document, foo], &[]), "SwDoc::SwDoc");
        let own = ("matrix_new", "/home/me/matrix.c", 7, "/home/me/matrix.cpython-312-x86_64-linux-gnu.so");
        let script = ("build", "/home/me/app.py", 4, "/home/me/app.py");
        assert_eq!(blamed(&[script, own], &[]), "matrix_new");
    }

    #[test]
    fn rusts_library_and_packages_are_not_the_programs() {
        let own = ("app::load", "src/main.rs", 30, APP);
        let json = ("serde_json::from_str", "/root/.cargo/registry/src/i/serde_json-1.0/src/de.rs", 9, APP);
        let vec = ("<u8 as alloc::vec::spec_from_elem::SpecFromElem>::from_elem", "", 0, APP);
        assert_eq!(blamed(&[own, json, vec], &[]), "app::load");
        assert_eq!(blamed(&[json, vec], &[]), "serde_json::from_str");
        let clone = ("<app::Order as core::clone::Clone>::clone", "src/order.rs", 4, APP);
        assert_eq!(blamed(&[own, clone], &[]), "<app::Order as core::clone::Clone>::clone");
    }

    #[test]
    fn pythons_packages_are_not_the_programs() {
        let script = ("build", "/home/me/frame.py", 4, "/home/me/frame.py");
        let package = "/venv/lib/python3.12/site-packages/polars/functions/int_range.py";
        let range = ("int_range", package, 221, package);
        let extension = "/venv/lib/python3.12/site-packages/polars_runtime/polars.abi3.so";
        let native = ("polars_core::series::new", extension, 0, extension);
        assert_eq!(blamed(&[script, range, native], &[]), "build");
        assert_eq!(blamed(&[range, native], &[]), "polars_core::series::new");
        let interpreter = ("PyImport_Import", "", 0, "/usr/bin/python3.12");
        let frozen = ("_find_and_load", "<frozen importlib._bootstrap>", 1360, "<frozen importlib._bootstrap>");
        assert_eq!(blamed(&[script, frozen, interpreter], &[]), "build");
    }
}
