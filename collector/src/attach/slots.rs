//! The places in an object's data that hold the address of a function, and how they are changed while the program runs.
//!
//! A place is one aligned word, written by one store, so a thread that calls through it meanwhile goes to the one or to
//! the other. Where the loader has protected it, it is made writable for the moment of the store.
//!
//! An object may be at the point of being relocated by another thread: the loader then writes to its places, and
//! protects them last. So a place that will be protected and is still writable belongs to the loader, and is left alone;
//! who loads that object looks again when it is there.

use super::objects::{LoadedObject, Range};
use super::{Hook, Hooks};
use crate::sys;
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;

const R_X86_64_64: u32 = 1;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;

/// What was met in a look at all objects.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Places that were changed.
    pub patched: u64,
    /// Places for a function of the allocator that lead elsewhere.
    pub foreign: u64,
    /// Places that the system does not let us write.
    pub refused: u64,
    /// Places that still belong to the loader.
    pub early: u64,
}

/// `Elf64_Rela`.
#[repr(C)]
struct Relocation {
    offset: u64,
    kind: u32,
    symbol: u32,
    addend: i64,
}

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

/// A place for a hooked function.
struct Place {
    slot: *const AtomicUsize,
    hook: &'static Hook,
    /// It holds the way to the loader's resolver until the first call.
    may_be_unbound: bool,
}

/// Leads the object's calls to the hooks.
pub fn patch(object: &LoadedObject, hooks: &Hooks, counts: &mut Counts) {
    places(object, hooks, |place| {
        // SAFETY: a place that the object's relocations name, in its mapped data.
        let holds = unsafe { &*place.slot }.load(Ordering::Relaxed);
        let original = place.hook.original();
        if holds == 0 || holds == place.hook.address() {
            return;
        }
        let is_unbound = place.may_be_unbound && object.extent.contains(holds);
        if original != 0 && (holds == original || is_unbound) {
            store(&place, object, place.hook.address(), counts);
        } else if original != 0 && !place.hook.of_allocator && holds != place.hook.stub() {
            counts.foreign += 1;
        }
    });
}

/// Leads the object's calls back.
pub fn undo(object: &LoadedObject, hooks: &Hooks, counts: &mut Counts) {
    places(object, hooks, |place| {
        // SAFETY: as in `patch`.
        if unsafe { &*place.slot }.load(Ordering::Relaxed) == place.hook.address() {
            store(&place, object, place.hook.original(), counts);
        }
    });
}

fn places(object: &LoadedObject, hooks: &Hooks, mut look: impl FnMut(Place)) {
    let tags = [DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL, DT_PLTRELSZ];
    let [strings, symbols, rela, rela_bytes, plt, plt_bytes] = object.loaded.dynamic(tags);
    // The vdso's are not relocated, and it calls nobody.
    if !object.extent.contains(strings) || !object.extent.contains(symbols) {
        return;
    }
    for (table, bytes) in [(rela, rela_bytes), (plt, plt_bytes)] {
        let end = table.saturating_add(bytes);
        if bytes == 0 || !object.extent.contains(table) || end > object.extent.end {
            continue;
        }
        // SAFETY: the loader's own table of an object that is loaded.
        let table = unsafe { core::slice::from_raw_parts(table as *const Relocation, bytes / size_of::<Relocation>()) };
        for relocation in table {
            let is_of_function = matches!(relocation.kind, R_X86_64_64 | R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT);
            if !is_of_function || relocation.symbol == 0 || relocation.addend != 0 {
                continue;
            }
            // SAFETY: the relocation's symbol, and its name, in the object's own tables.
            let (symbol, name) = unsafe {
                let symbol = &*(symbols as *const Symbol).add(relocation.symbol as usize);
                (symbol, CStr::from_ptr((strings as *const c_char).add(symbol.name as usize)))
            };
            let slot = object.loaded.bias.wrapping_add(usize::try_from(relocation.offset).unwrap_or(0));
            if !slot.is_multiple_of(align_of::<AtomicUsize>()) || !object.extent.contains(slot) {
                continue;
            }
            if let Some(hook) = hooks.named(name) {
                let own = object.loaded.bias.wrapping_add(usize::try_from(symbol.value).unwrap_or(0));
                // An object with a definition of its own may be bound to that, whatever comes first in the order.
                let binds_to_original = symbol.section == 0 || own == hook.original();
                let may_be_unbound = relocation.kind == R_X86_64_JUMP_SLOT && binds_to_original;
                look(Place { slot: slot as *const AtomicUsize, hook, may_be_unbound });
            }
        }
    }
}

fn store(place: &Place, object: &LoadedObject, value: usize, counts: &mut Counts) {
    let page_bytes = sys::page_bytes();
    let address = place.slot as usize;
    let page = address & !(page_bytes - 1);
    // SAFETY: as in `patch`; whether it can be written is asked first.
    let write = || unsafe { &*place.slot }.store(value, Ordering::Release);
    if !protected(object.relro, page_bytes).contains(address) {
        if is_writable(address) {
            write();
            counts.patched += 1;
        } else {
            counts.refused += 1;
        }
        return;
    }
    if is_writable(address) {
        counts.early += 1;
        return;
    }
    // SAFETY: a page of data that the loader has finished with; it stays readable all the time, and is as it was after.
    unsafe {
        if !sys::protect(page, page_bytes, sys::PROT_RW) {
            counts.refused += 1;
            return;
        }
        write();
        sys::protect(page, page_bytes, sys::PROT_READ);
    }
    counts.patched += 1;
}

/// The whole pages of what is protected, as the loader rounds it.
fn protected(relro: Range, page_bytes: usize) -> Range {
    Range { start: relro.start & !(page_bytes - 1), end: relro.end & !(page_bytes - 1) }
}

/// Whether the word at an address can be written, asked of the kernel.
///
/// `FUTEX_WAKE_OP` does an atomic operation at its second address: here OR with 0, which changes nothing whoever else
/// writes there.
fn is_writable(address: usize) -> bool {
    static OWN: AtomicU32 = AtomicU32::new(0);
    sys::futex_or_zero(&OWN, address) != Err(sys::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_is_told_without_writing() {
        let word = 7u64;
        assert!(is_writable((&raw const word).addr()));
        assert_eq!(word, 7);
        static CONSTANT: &str = "text of the program, which nobody may write to";
        assert!(!is_writable(CONSTANT.as_ptr().addr() & !7));
        assert!(!is_writable(0x10));
    }
}
