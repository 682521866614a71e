//! Symbol tables for fast lookups, made once for each build-id and kept on disk.
//!
//! An entry of the cache is a head and symbolic's symcache, both mapped as they are. An entry with
//! an unfit head (version, length, checksum) is made anew. If the directory cannot be written,
//! entries are made for every report.
//!
//! ```text
//! offset  bytes  field
//! 0       8      "HLSYMC02"
//! 8       8      load address of the file
//! 16      4      flags
//! 20      4      CRC-32 of the symcache
//! 24      8      bytes of the symcache
//! 32      all    symcache
//! ```

use crate::Location;
use crate::compressed;
use crate::demangle::demangle;
use crate::find::{Object, Origin, Source};
use crate::fragments;
use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use symbolic_common::ByteView;
use symbolic_debuginfo::dwarf::DwarfDebugSession;
use symbolic_debuginfo::elf::ElfObject;
use symbolic_debuginfo::{Symbol, SymbolMap};
use symbolic_symcache::{SourceLocation, SymCache, SymCacheConverter};

const MAGIC: [u8; 8] = *b"HLSYMC02";
/// Bytes of the head: a multiple of symcache's alignment.
const HEAD_BYTES: usize = 32;
/// Most functions at an address. A handmade table may contain a cycle.
const DEEPEST_INLINE: usize = 1024;
/// Flag: the table was made from debug information, not from symbol names alone.
const HAS_LINES: u32 = 1;
/// Flag: part of the debug information could not be read.
const INCOMPLETE: u32 = 2;

/// Returns `$XDG_CACHE_HOME/heapline/symcache`, else `~/.cache/heapline/symcache`; none without a
/// home.
pub fn default_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("heapline").join("symcache"))
}

/// Directory of symbol tables; without a directory, nothing is kept.
pub(crate) struct Cache {
    dir: Option<PathBuf>,
}

impl Cache {
    /// Opens a cache in `dir`. A folder of another user (sudo keeps HOME), or a folder writable by
    /// others, is not used: a table placed there would choose the names of functions.
    pub(crate) fn new(dir: Option<PathBuf>) -> Cache {
        Cache { dir: dir.filter(|dir| is_private(dir)) }
    }

    /// Returns the entry of `object`, if there is a sound entry; an entry with lines if there is
    /// one. Tables of fetched files count only where files may be fetched.
    pub(crate) fn load(&self, object: &Object, may_fetch: bool) -> Option<Table> {
        let fetched = self.of_fetched(object).filter(|_| may_fetch);
        let places = [self.by_build_id(object), self.by_file(object), fetched];
        let table = |path| Some(Table { is_kept: true, ..Table::new(ByteView::open(path).ok()?).ok()? });
        let mut tables = places.into_iter().flatten().filter_map(table);
        let first = tables.next()?;
        match first.has_lines() {
            true => Some(first),
            false => tables.find(Table::has_lines).or(Some(first)),
        }
    }

    /// Makes a table from `file` and keeps it.
    ///
    /// | Table | Name of the entry | Reason |
    /// | --- | --- | --- |
    /// | with lines, from a trusted file | the build-id | equal build-ids have equal lines |
    /// | with names only | path, size and time | a copy not stripped may have more names |
    /// | from a file others can write | path, size and time | the build-id proves nothing |
    /// | from a fetched file | the build-id, marked | a server chose it; the object may be gone |
    pub(crate) fn convert(&self, object: &Object, file: &Source) -> Result<Table, String> {
        let entry = convert(&file.view)?;
        let table = Table::new(ByteView::from_vec(entry))?;
        let place = match file.origin {
            Origin::Fetched => self.of_fetched(object),
            Origin::Own if table.has_lines() => self.by_build_id(object).or_else(|| self.by_file(object)),
            Origin::Own | Origin::Foreign => self.by_file(object),
        };
        // Without a cache the next lookup is only slower.
        let is_kept = place.is_some_and(|path| store(&path, &table.entry).is_ok());
        Ok(Table { is_kept, ..table })
    }

    fn by_build_id(&self, object: &Object) -> Option<PathBuf> {
        let named = !object.build_id().is_empty();
        named.then(|| Some(self.dir.as_ref()?.join(format!("{}.symc", object.build_id_hex()))))?
    }

    /// Name of the entry of an object's fetched file.
    fn of_fetched(&self, object: &Object) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(format!("fetched-{}.symc", object.build_id_hex())))
    }

    /// Name of an entry by path, size and time, so each version of a file has an entry of its own.
    fn by_file(&self, object: &Object) -> Option<PathBuf> {
        let meta = object.metadata().ok()?;
        let path = crc32fast::hash(object.path().as_os_str().as_encoded_bytes());
        let name = format!("file-{path:08x}-{:x}-{:x}.{:09}.symc", meta.size(), meta.mtime(), meta.mtime_nsec());
        Some(self.dir.as_ref()?.join(name))
    }
}

/// Makes an entry from the content of an ELF file. Works unit by unit: a malformed unit loses its
/// lines, but the symbol table still names its functions.
///
/// Names come from the debug information first, as in gdb: of several symbols at an address in a
/// symbol table, symbolic would take any.
pub(crate) fn convert(file: &[u8]) -> Result<Vec<u8>, String> {
    if !compressed::is_credible(file) {
        return Err("its sections claim to expand beyond measure".to_string());
    }
    let elf = ElfObject::parse(file).map_err(|error| chain(&error))?;
    let mut converter = SymCacheConverter::new();
    let mut flags = if elf.has_debug_info() { HAS_LINES } else { 0 };
    let load_address = elf.load_address();
    let no_symbols = SymbolMap::new();
    match DwarfDebugSession::parse(&elf, no_symbols, load_address.cast_signed(), elf.kind()) {
        Ok(session) => session.functions().for_each(|function| match function {
            Ok(function) => converter.process_symbolic_function(&function),
            Err(_) => flags |= INCOMPLETE,
        }),
        Err(_) => flags = INCOMPLETE,
    }
    elf.symbols().for_each(|symbol| converter.process_symbolic_symbol(&symbol));
    if flags & HAS_LINES == 0 {
        name_fragments(file, &elf, &mut converter);
    }

    let mut entry = vec![0; HEAD_BYTES];
    converter.serialize(&mut entry).map_err(|error| error.to_string())?;
    entry[8..16].copy_from_slice(&load_address.to_le_bytes());
    entry[16..20].copy_from_slice(&flags.to_le_bytes());
    mend_entry(&mut entry);
    Ok(entry)
}

/// Names parts of functions that the symbol table does not name, as a compiler would: `f.cold`.
fn name_fragments(file: &[u8], elf: &ElfObject<'_>, converter: &mut SymCacheConverter<'_>) {
    let load_address = elf.load_address();
    let symbols: Vec<_> = elf.symbols().collect();
    let named = symbols.iter().filter_map(|symbol| Some((symbol.address + load_address, symbol.name()?)));
    for fragment in fragments::of(file, &named.collect()) {
        let Some(address) = fragment.address.checked_sub(load_address) else { continue };
        let name = Some(Cow::Owned(format!("{}.cold", fragment.function)));
        converter.process_symbolic_symbol(&Symbol { name, address, size: fragment.size });
    }
}

/// Sets the magic, checksum and length of an entry to match its content.
pub fn mend_entry(entry: &mut [u8]) {
    let Some((head, rest)) = entry.split_first_chunk_mut::<HEAD_BYTES>() else { return };
    head[..8].copy_from_slice(&MAGIC);
    head[20..24].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
    head[24..].copy_from_slice(&(rest.len() as u64).to_le_bytes());
}

/// Joins an error with its sources: symbolic's errors keep the cause there.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether a cache's folder is this user's own, and no other user can write into the folder or
/// replace it. True for a missing folder.
pub fn is_private(dir: &Path) -> bool {
    dir.ancestors().all(|part| is_safe(part, part == dir))
}

/// Whether a folder is fit to be a cache, or to hold the cache.
fn is_safe(dir: &Path, is_cache: bool) -> bool {
    const WRITABLE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let Ok(found) = fs::metadata(dir) else { return true };
    let own = rustix::process::geteuid().as_raw();
    let is_private = found.mode() & WRITABLE == 0 || (found.mode() & STICKY != 0 && !is_cache);
    found.is_dir() && is_private && (found.uid() == own || (found.uid() == 0 && !is_cache))
}

/// Stores an entry atomically: other reports see the old entry or the new entry, never a part.
fn store(path: &Path, entry: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(entry)?;
    file.persist(path)?;
    Ok(())
}

/// Functions and lines of an object by address.
pub struct Table {
    load_address: u64,
    flags: u32,
    entry: ByteView<'static>,
    /// Whether the cache has the table.
    is_kept: bool,
}

impl Table {
    /// Returns the table in an entry of the cache.
    ///
    /// # Errors
    ///
    /// A malformed entry.
    pub fn new(entry: ByteView<'static>) -> Result<Table, String> {
        let malformed = || "the table is malformed".to_string();
        let (head, rest) = entry.split_first_chunk::<HEAD_BYTES>().ok_or_else(malformed)?;
        let word = |at: usize| head[at..at + 8].iter().rev().fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
        let half = |at: usize| head[at..at + 4].iter().rev().fold(0_u32, |word, &byte| word << 8 | u32::from(byte));
        if head[..8] != MAGIC || word(24) != rest.len() as u64 || half(20) != crc32fast::hash(rest) {
            return Err(malformed());
        }
        let (load_address, flags) = (word(8), half(16));
        SymCache::parse(rest).map_err(|error| chain(&error))?;
        Ok(Table { load_address, flags, entry, is_kept: false })
    }

    /// Whether the table was made from debug information, not from symbol names alone.
    pub fn has_lines(&self) -> bool {
        self.flags & HAS_LINES != 0
    }

    /// Whether part of the debug information could not be read.
    pub fn is_incomplete(&self) -> bool {
        self.flags & INCOMPLETE != 0
    }

    /// Whether the cache has the table.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Returns the entry of the table, for [`Table::new`] in another process.
    pub fn entry(&self) -> &[u8] {
        &self.entry
    }

    /// Looks up the functions at each of `addresses`, innermost first. Addresses are the file's own
    /// virtual addresses.
    pub fn locate(&self, addresses: impl Iterator<Item = u64>) -> Vec<Vec<Location>> {
        let Ok(symcache) = SymCache::parse(&self.entry[HEAD_BYTES..]) else {
            return addresses.map(|_| Vec::new()).collect();
        };
        let lookup = |address: u64| match address.checked_sub(self.load_address) {
            Some(offset) => symcache.lookup(offset).take(DEEPEST_INLINE).map(|location| describe(&location)).collect(),
            None => Vec::new(),
        };
        addresses.map(lookup).collect()
    }
}

fn describe(location: &SourceLocation<'_, '_>) -> Location {
    let function = location.function();
    let name = Some(function.name()).filter(|name| !name.is_empty() && *name != "?");
    let line = location.file().filter(|_| location.line() > 0).map(|file| (file.full_path(), location.line()));
    Location { function: name.map(|name| demangle(name, function.language())), line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn a_folder_of_others_is_no_cache() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("cache");
        let is_used = || Cache::new(Some(dir.clone())).dir.is_some();
        assert!(is_used(), "it is not there yet");
        fs::create_dir(&dir).unwrap();
        assert!(is_used());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_used(), "anybody may put a table there");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&dir, Some(12345), None).unwrap();
            assert!(!is_used(), "another user's");
            chown(&dir, Some(0), None).unwrap();
            chown(base.path(), Some(12345), None).unwrap();
            assert!(!is_used(), "another user can put a folder of his in its place");
        }
    }
}
