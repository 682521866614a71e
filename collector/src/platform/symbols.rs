//! Symbols, looked up in the loader's own tables.
//!
//! Reasons against `dlsym`:
//!
//! - `dlsym` would allocate in the target when nothing is found (few programs have an interpreter's
//!   symbols).
//! - `dlsym` would take the loader's locks.
//! - `dlsym` knows objects by handles, and the collector has no handles. The loader's description
//!   of an object is a handle only where the program has opened the object.

use crate::platform::elf::Loaded;
use crate::platform::{elf, objects};
use core::ffi::{CStr, c_char};

/// Returns the address of an exported symbol, in the order of the loader's search. The list of
/// objects must not change meanwhile.
pub fn find(name: &[u8]) -> Option<usize> {
    elf::loaded()?.find_map(|object| object.symbol(name))
}

/// Returns the address of the next symbol after the collector in the search order. The list of
/// objects must not change meanwhile.
pub fn next(name: &[u8]) -> Option<usize> {
    if !elf::can_find_objects() {
        // An old glibc, with which the collector stays passive.
        return objects::behind(name);
    }
    let own = elf::own_bias()?;
    elf::loaded()?.skip_while(|object| object.bias != own).skip(1).find_map(|object| object.symbol(name))
}

/// Where symbols are looked for.
#[derive(Clone, Copy)]
pub enum Scope {
    /// In all objects, in the order of the loader's search. The list of objects must not change
    /// meanwhile.
    All,
    /// In one object, loaded by itself.
    Only(Loaded),
}

impl Scope {
    /// Returns the address of an exported symbol.
    pub fn find(self, name: &[u8]) -> Option<usize> {
        match self {
            Scope::All => find(name),
            Scope::Only(object) => object.symbol(name),
        }
    }
}

/// Returns the hash of a name in `DT_GNU_HASH`.
fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

/// Returns the hash of a name in `DT_HASH`.
fn sysv_hash(name: &[u8]) -> u32 {
    name.iter().fold(0, |hash: u32, &byte| {
        let hash = hash.wrapping_shl(4).wrapping_add(u32::from(byte));
        (hash ^ (hash >> 24 & 0xf0)) & 0x0fff_ffff
    })
}

const DT_NEEDED: u64 = 1;
const DT_SONAME: u64 = 14;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_VERSYM: u64 = 0x6fff_fff0;
const DT_VERDEF: u64 = 0x6fff_fffc;

/// `Elf64_Sym`.
#[repr(C)]
pub(crate) struct Symbol {
    /// Position of the name in the object's strings.
    pub name: u32,
    info: u8,
    other: u8,
    /// 0 where the object does not define the symbol.
    pub section: u16,
    value: u64,
    size: u64,
}

impl Symbol {
    /// Returns whether other objects can be bound to the symbol by the symbol's value.
    fn is_plain(&self) -> bool {
        const LOCAL: u8 = 0;
        const TLS: u8 = 6;
        const IFUNC: u8 = 10;
        self.info >> 4 != LOCAL && !matches!(self.info & 15, TLS | IFUNC) && self.value != 0
    }
}

/// Tables of an object's dynamic symbols.
struct Tables {
    bias: usize,
    strings: usize,
    symbols: usize,
    gnu_hash: usize,
    sysv_hash: usize,
    /// Versions by symbol; 0 for an object without versions.
    versions: usize,
    /// Names of versions.
    definitions: usize,
}

impl Loaded {
    /// Returns the address of a symbol defined by this object. Prefers the definition for
    /// references without a version. Otherwise the address is a definition for references with a
    /// version of the C library.
    ///
    /// glibc's debug allocator exports `malloc` only as an old version, and every program's
    /// reference is bound to the old version.
    pub fn symbol(&self, name: &[u8]) -> Option<usize> {
        let tables = self.tables()?;
        let mut found = None;
        tables.each_named(name, |index, symbol| {
            if symbol.section != 0 && symbol.is_plain() {
                match tables.version(index) {
                    Version::Default => found = Some(symbol.value),
                    Version::Old if found.is_none() => found = Some(symbol.value),
                    _ => {}
                }
            }
        });
        tables.address(found?)
    }

    /// Returns the stub of a function not defined by this object, a position-dependent program. A
    /// stub is a piece of the program's own code that jumps on to the function. Other objects find
    /// the stub.
    pub fn stub(&self, name: &[u8]) -> Option<usize> {
        let tables = self.tables()?;
        let mut found = None;
        tables.each_named(name, |_, symbol| {
            if symbol.section == 0 && symbol.is_plain() {
                found = Some(symbol.value);
            }
        });
        tables.address(found?)
    }

    /// Returns the names of the objects needed by this object.
    pub fn needed(&self) -> impl Iterator<Item = &'static [u8]> {
        self.texts(DT_NEEDED)
    }

    /// Returns whether other objects need this object by the name.
    pub fn is_called(&self, name: &[u8]) -> bool {
        let by_path = || {
            let path =
                self.mapped().is_some_and(|mapped| mapped.path().rsplit(|&byte| byte == b'/').next() == Some(name));
            path && self.texts(DT_SONAME).next().is_none()
        };
        self.texts(DT_SONAME).any(|own| own == name) || by_path()
    }

    /// Returns the texts at the positions in all entries with this tag, in the dynamic section.
    fn texts(&self, tag: u64) -> impl Iterator<Item = &'static [u8]> {
        let tables = self.tables();
        self.entries().filter(move |entry| entry[0] == tag).filter_map(move |[_, at]| {
            let text = tables.as_ref()?.text(u32::try_from(at).ok()?);
            // SAFETY: the table stays mapped with the object, and the callers keep the object
            // loaded.
            Some(unsafe { CStr::from_ptr(text.as_ptr()) }.to_bytes())
        })
    }

    fn tables(&self) -> Option<Tables> {
        let tags = [DT_STRTAB, DT_SYMTAB, DT_GNU_HASH, DT_HASH, DT_VERSYM, DT_VERDEF];
        let [strings, symbols, gnu_hash, sysv_hash, versions, definitions] = self.addresses(tags);
        let is_whole = strings != 0 && symbols != 0 && (gnu_hash != 0 || sysv_hash != 0);
        is_whole.then_some(Tables { bias: self.bias, strings, symbols, gnu_hash, sysv_hash, versions, definitions })
    }
}

/// References bound to a symbol's definition.
enum Version {
    /// References with this version, and references without a version.
    Default,
    /// Only references with this version, a version of the C library.
    Old,
    /// References with a version of another library. No call of an allocator names such a version.
    Foreign,
}

impl Tables {
    fn address(&self, value: u64) -> Option<usize> {
        Some(self.bias.wrapping_add(usize::try_from(value).ok()?))
    }

    fn text(&self, at: u32) -> &CStr {
        // SAFETY: the string lies in the object's own table, which the loader keeps mapped.
        unsafe { CStr::from_ptr((self.strings as *const c_char).add(at as usize)) }
    }

    fn symbol(&self, index: u32) -> &Symbol {
        // SAFETY: the index comes from the object's own hash table.
        unsafe { &*(self.symbols as *const Symbol).add(index as usize) }
    }

    /// Calls `look` for all symbols with a name. A symbol with several versions appears several
    /// times.
    fn each_named(&self, name: &[u8], look: impl FnMut(u32, &Symbol)) {
        // SAFETY: the tables are the loader's own tables of a loaded object, laid out by the ELF
        // specification.
        unsafe {
            match self.gnu_hash {
                0 => self.each_by_sysv_hash(name, look),
                _ => self.each_by_gnu_hash(name, look),
            }
        }
    }

    unsafe fn each_by_gnu_hash(&self, name: &[u8], mut look: impl FnMut(u32, &Symbol)) {
        let wanted = gnu_hash(name);
        // SAFETY: the tables are the loader's own tables of a loaded object, as `each_named`
        // states.
        unsafe {
            let table = self.gnu_hash as *const u32;
            let [buckets, first, bloom_words, shift] = [0, 1, 2, 3].map(|i| table.add(i).read());
            if buckets == 0 || bloom_words == 0 {
                return;
            }
            let bloom = table.add(4).cast::<u64>();
            let word = bloom.add((wanted / u64::BITS % bloom_words) as usize).read();
            let bits = 1 << (wanted % u64::BITS) | 1 << (wanted.wrapping_shr(shift) % u64::BITS);
            if word & bits != bits {
                return;
            }
            let bucket = table.add(4 + 2 * bloom_words as usize);
            let chain = bucket.add(buckets as usize);
            let mut index = bucket.add((wanted % buckets) as usize).read();
            if index < first {
                return;
            }
            loop {
                let hash = chain.add((index - first) as usize).read();
                let symbol = self.symbol(index);
                if (hash ^ wanted) >> 1 == 0 && self.text(symbol.name).to_bytes() == name {
                    look(index, symbol);
                }
                if hash & 1 == 1 {
                    return;
                }
                index += 1;
            }
        }
    }

    unsafe fn each_by_sysv_hash(&self, name: &[u8], mut look: impl FnMut(u32, &Symbol)) {
        // SAFETY: the tables are the loader's own tables of a loaded object, as `each_named`
        // states.
        unsafe {
            let table = self.sysv_hash as *const u32;
            let buckets = table.read();
            if buckets == 0 {
                return;
            }
            let bucket = table.add(2);
            let chain = bucket.add(buckets as usize);
            let mut index = bucket.add((sysv_hash(name) % buckets) as usize).read();
            while index != 0 {
                let symbol = self.symbol(index);
                if self.text(symbol.name).to_bytes() == name {
                    look(index, symbol);
                }
                index = chain.add(index as usize).read();
            }
        }
    }

    fn version(&self, index: u32) -> Version {
        const HIDDEN: u16 = 0x8000;
        if self.versions == 0 {
            return Version::Default;
        }
        // SAFETY: the table has an entry for each symbol.
        let version = unsafe { (self.versions as *const u16).add(index as usize).read() };
        match version & HIDDEN {
            0 => Version::Default,
            _ if self.is_of_c_library(version & !HIDDEN) => Version::Old,
            _ => Version::Foreign,
        }
    }

    /// Returns whether a version defined by this object is a version of the C library.
    fn is_of_c_library(&self, version: u16) -> bool {
        /// `Elf64_Verdef`.
        #[repr(C)]
        struct Definition {
            revision: u16,
            flags: u16,
            index: u16,
            names: u16,
            hash: u32,
            name_at: u32,
            next_at: u32,
        }
        if self.definitions == 0 {
            return false;
        }
        let mut at = self.definitions;
        loop {
            // SAFETY: the last entry of the list has distance 0 to the next; a name begins with one
            // word.
            let (definition, name) = unsafe {
                let definition = &*(at as *const Definition);
                (definition, ((at + definition.name_at as usize) as *const u32).read())
            };
            if definition.index == version {
                return self.text(name).to_bytes().starts_with(b"GLIBC_");
            }
            if definition.next_at == 0 {
                return false;
            }
            at += definition.next_at as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_specification() {
        assert_eq!((gnu_hash(b""), gnu_hash(b"printf")), (5381, 0x156b_2bb8));
        assert_eq!((sysv_hash(b""), sysv_hash(b"printf")), (0, 0x0779_05a6));
    }

    #[test]
    fn the_c_librarys_functions_are_found() {
        let find = |name: &CStr| find(name.to_bytes());
        let own = [c"malloc", c"posix_memalign", c"dlopen"].map(find);
        assert!(own.iter().all(Option::is_some), "{own:?}");
        assert_eq!(find(c"no_such_function"), None);
    }
}
