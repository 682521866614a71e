//! Symbols, looked up in the loader's own tables.
//!
//! `dlsym` would allocate in the target where it finds nothing (an interpreter's symbols are in few programs), and would take
//! the loader's locks.

use crate::elf::{self, Loaded};

/// Address of an exported symbol, in the order in which the loader searches. The list of objects must not change meanwhile.
pub fn find(name: &[u8]) -> Option<usize> {
    elf::loaded()?.find_map(|object| object.symbol(name))
}

/// Where symbols are looked for.
#[derive(Clone, Copy)]
pub enum Scope {
    /// In all objects, in the order in which the loader searches. The list of objects must not change meanwhile.
    All,
    /// In one object, which was loaded by itself.
    Only(Loaded),
}

impl Scope {
    /// Address of an exported symbol.
    pub fn find(self, name: &[u8]) -> Option<usize> {
        match self {
            Scope::All => find(name),
            Scope::Only(object) => object.symbol(name),
        }
    }
}

/// The hash of a name in `DT_GNU_HASH`.
fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl Loaded {
    /// Address of a symbol that this object defines.
    pub fn symbol(&self, name: &[u8]) -> Option<usize> {
        self.lookup(name, true)
    }

    /// Where this object, a program that is not position-independent, has others find a function that it does not define:
    /// a piece of its own code that jumps on to it.
    pub fn stub(&self, name: &[u8]) -> Option<usize> {
        self.lookup(name, false)
    }

    fn lookup(&self, name: &[u8], is_defined: bool) -> Option<usize> {
        let [strings, symbols, hashes] = self.dynamic([DT_STRTAB, DT_SYMTAB, DT_GNU_HASH]);
        // The vdso's are not relocated, and it has no symbol that we want.
        if strings < self.bias || symbols < self.bias || hashes < self.bias || hashes == 0 {
            return None;
        }
        let wanted = gnu_hash(name);
        // SAFETY: the loader's own tables of an object that is loaded, laid out as the ELF specification says.
        unsafe {
            let table = hashes as *const u32;
            let [buckets, first, bloom_words] = [0, 1, 2].map(|i| table.add(i).read());
            if buckets == 0 {
                return None;
            }
            let bucket = table.add(4 + 2 * bloom_words as usize);
            let chain = bucket.add(buckets as usize);
            let mut index = bucket.add((wanted % buckets) as usize).read();
            if index < first {
                return None;
            }
            loop {
                let hash = chain.add((index - first) as usize).read();
                if (hash ^ wanted) >> 1 == 0 {
                    let symbol = &*(symbols as *const Symbol).add(index as usize);
                    let text =
                        core::ffi::CStr::from_ptr((strings as *const core::ffi::c_char).add(symbol.name as usize));
                    if text.to_bytes() == name && (symbol.section != 0) == is_defined && symbol.value != 0 {
                        return Some(self.bias.wrapping_add(usize::try_from(symbol.value).ok()?));
                    }
                }
                if hash & 1 == 1 {
                    return None;
                }
                index += 1;
            }
        }
    }
}
