//! Translates addresses to functions, files and lines. `report` and the aggregator share this
//! crate.
//!
//! 1. `find` finds an object's debug information, and never uses another file than the file that
//!    ran. The crate asks nobody over a network: a program may give a [`Fetch`] that does.
//! 2. `cache` turns the debug information into a table with fast lookups, once, and keeps the table
//!    on disk by build-id.
//!
//! [`plumbing`] knows the functions that only carry a request for memory, and [`glob`] is the
//! pattern language of the names.
//!
//! A problem with an object costs the object's names, nothing else. Each problem is reported once.
//! All files are untrusted: no file makes this crate panic.
#![forbid(unsafe_code)]

mod cache;
mod compressed;
mod demangle;
mod find;
pub mod foreign;
mod fragments;
pub mod glob;
mod guard;
pub mod plumbing;

pub use cache::Table;
pub use cache::default_dir as default_cache_dir;
pub use cache::is_private as is_private_cache_dir;
pub use cache::mend_entry;
pub use demangle::demangle_unknown as demangle;
pub use find::{Artifact, Fetch, Object};

use cache::Cache;
use find::{Found, Places};
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
    places: Places,
    cache: Cache,
    warnings: Vec<String>,
    warned: HashSet<String>,
}

impl Symbolizer {
    /// Makes a symbolizer. Separate debug files are searched in `debug_dirs` in this order; each
    /// folder has the layout of [`DEBUG_DIR`]. Tables are kept in `cache_dir`, or nowhere.
    pub fn new(debug_dirs: Vec<PathBuf>, cache_dir: Option<PathBuf>) -> Symbolizer {
        let places = Places { debug_dirs, fetch: None };
        Symbolizer { places, cache: Cache::new(cache_dir), warnings: Vec::new(), warned: HashSet::new() }
    }

    /// Lets files that are not on this machine be fetched.
    pub fn with_fetch(mut self, fetch: Box<dyn Fetch>) -> Symbolizer {
        self.places.fetch = Some(fetch);
        self
    }

    /// Looks up the functions at each of `addresses`, innermost first; empty if nothing is known.
    /// Addresses are run-time addresses inside the module, not return addresses.
    pub fn locate(&mut self, module: &Module, addresses: &[u64]) -> Vec<Vec<Location>> {
        match self.table_of_module(module) {
            Some(table) => table.locate(addresses.iter().map(|address| address.wrapping_sub(module.bias))),
            None => vec![Vec::new(); addresses.len()],
        }
    }

    /// Whether a debug file beside the module's own file may have lines for the module. Fetches the
    /// debug file where no other may have them.
    pub fn may_know_lines(&self, module: &Module) -> bool {
        let exists = |object| find::separate_file_exists(&object, &self.places);
        guard::fenced(|| Object::of(module).is_some_and(exists)) == Some(true)
    }

    /// Returns the problems with modules since the last call, a sentence for each.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn table_of_module(&mut self, module: &Module) -> Option<Table> {
        let object = Object::of(module)?;
        match self.table(&object) {
            Ok(table) => {
                if table.is_incomplete() {
                    self.warn(module, INCOMPLETE);
                }
                Some(table)
            }
            Err(problem) => {
                self.warn(module, &format!("{problem}, so its frames have no names and lines"));
                None
            }
        }
    }

    /// Returns the table of an object: the kept table, else a new table.
    ///
    /// # Errors
    ///
    /// The problem with the object's files, as the begin of a sentence.
    pub fn table(&self, object: &Object) -> Result<Table, String> {
        match self.kept(object) {
            Some(table) => Ok(table),
            None => guard::fenced(|| self.fresh(object))
                .unwrap_or_else(|| Err("its debug information is malformed".to_string())),
        }
    }

    /// Returns the kept table of an object. None if there is no table, or if a debug file may make
    /// a better table.
    pub fn kept(&self, object: &Object) -> Option<Table> {
        // A table with names only is checked again: a debug file may have been installed since.
        let is_final = |table: &Table| table.has_lines() || !find::separate_file_exists(object, &self.places);
        let may_fetch = self.places.fetch.is_some();
        guard::fenced(|| self.cache.load(object, may_fetch).filter(is_final)).flatten()
    }

    /// Makes a table from the first usable file, or returns the problem with the object.
    fn fresh(&self, object: &Object) -> Result<Table, String> {
        let Found { files, mut problem } = find::find(object, &self.places);
        for file in files {
            match self.cache.convert(object, &file) {
                Ok(table) => return Ok(table),
                Err(reason) => problem = Some(format!("its symbols cannot be read ({reason})")),
            }
        }
        Err(problem.unwrap_or_else(|| "it has no file with symbols".to_string()))
    }

    /// Notes a problem with a module. Each module has at most one note.
    pub fn warn(&mut self, module: &Module, text: &str) {
        if self.warned.insert(module.path.clone()) {
            self.warnings.push(format!("{}: {text}", module.path));
        }
    }
}

/// Note about an object with damaged debug information.
pub const INCOMPLETE: &str = "part of its debug information cannot be read, so some frames have no lines";
