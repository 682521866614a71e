//! Translates addresses to functions, files and lines.
//!
//! 1. `find` finds a module's debug information, and never uses another file than the file that
//!    ran.
//! 2. `cache` turns the debug information into a table with fast lookups, once, and keeps the table
//!    on disk by build-id.
//!
//! A problem with a module costs the module's names, not the report. Each problem is reported once.

mod cache;
mod compressed;
mod demangle;
mod find;
mod guard;

pub use cache::default_dir as default_cache_dir;

use cache::{Cache, Table};
use find::{Found, Identity};
use heapline_shared_format::snapshot::Module;
use std::collections::HashSet;
use std::path::PathBuf;
use symbolic_common::ByteView;

/// Looks up addresses in the content of an ELF file, with the file's own addresses; none if the
/// file cannot be read.
pub fn in_elf(content: &[u8], addresses: &[u64]) -> Option<Vec<Vec<Location>>> {
    entry_of(content).and_then(|entry| in_entry(entry, addresses))
}

/// Makes the cache entry of a file's content; none if the file cannot be read.
pub fn entry_of(content: &[u8]) -> Option<Vec<u8>> {
    guard::fenced(|| cache::convert(content)).and_then(Result::ok)
}

/// Looks up addresses in an entry of the cache; none if the entry is malformed.
pub fn in_entry(entry: Vec<u8>, addresses: &[u64]) -> Option<Vec<Vec<Location>>> {
    let located = guard::fenced(|| {
        Table::new(ByteView::from_vec(entry)).ok().map(|table| table.locate(addresses.iter().copied()))
    });
    located.flatten()
}

pub use cache::mend_entry;

/// Folder where distributions keep separate debug files.
pub const DEBUG_DIR: &str = "/usr/lib/debug";

/// A function at an address: the function with code there, or a caller with this function inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Demangled name; `None` if unknown.
    pub function: Option<String>,
    /// Source file and line, if both are known.
    pub line: Option<(String, u32)>,
}

/// Looks up functions and lines by address, with debug files and a cache of tables.
pub struct Symbolizer {
    debug_dirs: Vec<PathBuf>,
    cache: Cache,
    warnings: Vec<String>,
    warned: HashSet<String>,
}

impl Symbolizer {
    /// Makes a symbolizer. Separate debug files are searched in `debug_dirs` in this order; each
    /// folder has the layout of [`DEBUG_DIR`]. Tables are kept in `cache_dir`, or nowhere.
    pub fn new(debug_dirs: Vec<PathBuf>, cache_dir: Option<PathBuf>) -> Symbolizer {
        Symbolizer { debug_dirs, cache: Cache::new(cache_dir), warnings: Vec::new(), warned: HashSet::new() }
    }

    /// Looks up the functions at each of `addresses`, innermost first; empty if nothing is known.
    /// Addresses are run-time addresses inside the module, not return addresses.
    pub fn locate(&mut self, module: &Module, addresses: &[u64]) -> Vec<Vec<Location>> {
        match self.table(module) {
            Some(table) => table.locate(addresses.iter().map(|address| address.wrapping_sub(module.bias))),
            None => vec![Vec::new(); addresses.len()],
        }
    }

    /// Returns the problems with modules since the last call, a sentence for each.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn table(&mut self, module: &Module) -> Option<Table> {
        // Modules such as "[vdso]" have no file. A path in /proc/self named a descriptor of the
        // traced process, but would name a descriptor of this process now.
        if !module.path.starts_with('/') || module.path.starts_with("/proc/self/") {
            return None;
        }
        let identity = Identity::of(module);
        let found = guard::fenced(|| match self.cached(&identity) {
            Some(table) => (Some(table), None),
            None => self.fresh(&identity),
        });
        let (table, problem) = found.unwrap_or_else(|| (None, Some("its debug information is malformed".to_string())));
        if let Some(problem) = problem {
            self.warn(module, &format!("{problem}, so its frames have no names and lines"));
        } else if table.as_ref().is_some_and(Table::is_incomplete) {
            self.warn(module, "part of its debug information cannot be read, so some frames have no lines");
        }
        table
    }

    fn cached(&self, identity: &Identity) -> Option<Table> {
        // A table with names only is checked again: a debug file may have been installed since.
        let is_final = |table: &Table| table.has_lines() || !find::separate_file_exists(identity, &self.debug_dirs);
        self.cache.load(identity).filter(is_final)
    }

    /// Makes a table from the first usable file, or returns the problem with the module.
    fn fresh(&self, identity: &Identity) -> (Option<Table>, Option<String>) {
        let Found { files, mut problem } = find::find(identity, &self.debug_dirs);
        for file in files {
            match self.cache.convert(identity, &file) {
                Ok(table) => return (Some(table), None),
                Err(reason) => problem = Some(format!("its symbols cannot be read ({reason})")),
            }
        }
        (None, problem)
    }

    fn warn(&mut self, module: &Module, text: &str) {
        if self.warned.insert(module.path.clone()) {
            self.warnings.push(format!("{}: {text}", module.path));
        }
    }
}
