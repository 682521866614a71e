//! From addresses to functions, files and lines.
//!
//! A module's debug information is found (`find`), turned once into a table that lookups are fast in, kept on disk by
//! build-id (`cache`), and never taken from a file that is not the one that ran. What goes wrong with a module costs
//! its names, not the report, and is said once.

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

/// What the content of an ELF file says about its own addresses; none where it cannot be read.
pub fn in_elf(content: &[u8], addresses: &[u64]) -> Option<Vec<Vec<Location>>> {
    entry_of(content).and_then(|entry| in_entry(entry, addresses))
}

/// The entry of the cache that a file's content becomes.
pub fn entry_of(content: &[u8]) -> Option<Vec<u8>> {
    guard::fenced(|| cache::convert(content)).and_then(Result::ok)
}

/// The same of an entry of the cache.
pub fn in_entry(entry: Vec<u8>, addresses: &[u64]) -> Option<Vec<Vec<Location>>> {
    let located = guard::fenced(|| {
        Table::new(ByteView::from_vec(entry)).ok().map(|table| table.locate(addresses.iter().copied()))
    });
    located.flatten()
}

pub use cache::mend_entry;

/// Where distributions keep separate debug files.
pub const DEBUG_DIR: &str = "/usr/lib/debug";

/// One function at an address: the one whose code stands there, or one that it was inlined into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Demangled; `None` where nothing names it.
    pub function: Option<String>,
    /// Source file and line, where both are known.
    pub line: Option<(String, u32)>,
}

/// See the module's header.
pub struct Symbolizer {
    debug_dirs: Vec<PathBuf>,
    cache: Cache,
    warnings: Vec<String>,
    warned: HashSet<String>,
}

impl Symbolizer {
    /// Looks for separate debug files in `debug_dirs`, laid out as [`DEBUG_DIR`] is, in this order; keeps tables in
    /// `cache_dir`, or nowhere.
    pub fn new(debug_dirs: Vec<PathBuf>, cache_dir: Option<PathBuf>) -> Symbolizer {
        Symbolizer { debug_dirs, cache: Cache::new(cache_dir), warnings: Vec::new(), warned: HashSet::new() }
    }

    /// The functions at each of `addresses` (run-time addresses inside the module, not return addresses), innermost
    /// first; none where nothing is known.
    pub fn locate(&mut self, module: &Module, addresses: &[u64]) -> Vec<Vec<Location>> {
        match self.table(module) {
            Some(table) => table.locate(addresses.iter().map(|address| address.wrapping_sub(module.bias))),
            None => vec![Vec::new(); addresses.len()],
        }
    }

    /// What was wrong with modules since the last call, one sentence each.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn table(&mut self, module: &Module) -> Option<Table> {
        // "[vdso]" and the like have no file. What was a descriptor of the process that was traced is one of our own here.
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
        // Names alone are worth another look: a debug file may have been installed since.
        let is_final = |table: &Table| table.has_lines() || !find::separate_file_exists(identity, &self.debug_dirs);
        self.cache.load(identity).filter(is_final)
    }

    /// A table made from the first file that serves, or what is wrong with the module.
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
