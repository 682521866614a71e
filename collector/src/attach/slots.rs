//! The places in an object's data that hold the address of a function, and how they are changed while the program runs.
//!
//! A place is one aligned word, written by one store, so a thread that calls through it meanwhile goes to the one or to
//! the other. Where the loader has protected it, it is made writable for the moment of the store.
//!
//! An object may be at the point of being relocated by another thread: the loader then writes to its places, and
//! protects them last. So one whose pages are to be protected and can still be written belongs to the loader, and is left
//! alone until the next look.

use super::objects::{LoadedObject, Range};
use super::{Hook, Hooks};
use crate::{real, sys};
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;
/// Relocations at the start of `DT_RELA` that have no symbol.
const DT_RELACOUNT: u64 = 0x6fff_fff9;

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
    /// Objects that still belong to the loader.
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
    /// Where it leads to the loader's resolver until the first call; empty when it does not.
    unbound: Range,
}

/// Where a call through a place goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    ToOriginal,
    /// Not bound yet.
    ToResolver,
    /// To the hook.
    Here,
    /// To another function of that name.
    Elsewhere,
    /// The function is not there, or its place is not looked at.
    Nowhere,
}

impl Place {
    fn leads(&self) -> Leads {
        // SAFETY: a place that the object's relocations name, in its mapped data.
        let holds = unsafe { &*self.slot }.load(Ordering::Relaxed);
        let original = self.hook.original();
        if holds == 0 || original == 0 || holds == self.hook.stub() {
            Leads::Nowhere
        } else if holds == self.hook.address() {
            Leads::Here
        } else if holds == original {
            Leads::ToOriginal
        } else if self.unbound.contains(holds) {
            Leads::ToResolver
        } else if self.hook.of_allocator {
            Leads::Nowhere
        } else {
            Leads::Elsewhere
        }
    }
}

/// Whether the loader is not done with the object.
pub fn is_early(object: &LoadedObject) -> bool {
    Pages::of(object).are_early()
}

/// Leads the object's calls to the hooks.
pub fn patch(object: &LoadedObject, hooks: &Hooks, counts: &mut Counts) {
    let mut pages = Pages::of(object);
    if pages.are_early() {
        counts.early += 1;
        return;
    }
    // One that has an allocator of its own somewhere keeps it everywhere: what is not bound yet may be bound to that too.
    let mut has_own = false;
    places(object, hooks, |place| has_own |= place.leads() == Leads::Elsewhere);
    places(object, hooks, |place| match place.leads() {
        Leads::ToOriginal => pages.store(place.slot, place.hook.address(), counts),
        Leads::ToResolver if !has_own => pages.store(place.slot, place.hook.address(), counts),
        Leads::ToResolver | Leads::Elsewhere => counts.foreign += 1,
        Leads::Here | Leads::Nowhere => {}
    });
    pages.close();
}

/// Leads the object's calls back.
pub fn undo(object: &LoadedObject, hooks: &Hooks, counts: &mut Counts) {
    let mut pages = Pages::of(object);
    places(object, hooks, |place| {
        if place.leads() == Leads::Here {
            pages.store(place.slot, place.hook.original(), counts);
        }
    });
    pages.close();
}

fn places(object: &LoadedObject, hooks: &Hooks, mut look: impl FnMut(Place)) {
    let tags = [DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELACOUNT, DT_JMPREL, DT_PLTRELSZ];
    let [strings, symbols, rela, rela_bytes, relative, plt, plt_bytes] = object.loaded.dynamic(tags);
    // The vdso's are not relocated, and it calls nobody.
    if !object.extent.contains(strings) || !object.extent.contains(symbols) {
        return;
    }
    let beginnings = hooks.beginnings();
    let is_libc = object.extent.contains(real::errno_location());
    // What an allocator calls of its own is part of the call that it was asked for.
    let is_led = |hook: &Hook| is_libc || object.is_program || !object.extent.contains(hook.original());
    for (table, bytes, skipped) in [(rela, rela_bytes, relative), (plt, plt_bytes, 0)] {
        let end = table.saturating_add(bytes);
        if bytes == 0 || !object.extent.contains(table) || end > object.extent.end {
            continue;
        }
        // SAFETY: the loader's own table of an object that is loaded.
        let table = unsafe { core::slice::from_raw_parts(table as *const Relocation, bytes / size_of::<Relocation>()) };
        for relocation in table.iter().skip(skipped) {
            let is_of_function = matches!(relocation.kind, R_X86_64_64 | R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT);
            if !is_of_function || relocation.symbol == 0 || relocation.addend != 0 {
                continue;
            }
            // SAFETY: the relocation's symbol, and its name, in the object's own tables.
            let (symbol, name) = unsafe {
                let symbol = &*(symbols as *const Symbol).add(relocation.symbol as usize);
                let name = (strings as *const c_char).add(symbol.name as usize);
                if !beginnings.may_have(name) {
                    continue;
                }
                (symbol, CStr::from_ptr(name))
            };
            let slot = object.loaded.bias.wrapping_add(usize::try_from(relocation.offset).unwrap_or(0));
            if !slot.is_multiple_of(align_of::<AtomicUsize>()) || !object.extent.contains(slot) {
                continue;
            }
            if let Some(hook) = hooks.named(name).filter(|hook| is_led(hook)) {
                // An object with a definition of its own may be bound to that. The C library is not.
                let binds_by_order = symbol.section == 0 || is_libc;
                let is_lazy = relocation.kind == R_X86_64_JUMP_SLOT && binds_by_order;
                let unbound = if is_lazy { object.extent } else { Range::default() };
                look(Place { slot: slot as *const AtomicUsize, hook, unbound });
            }
        }
    }
}

/// An object's pages, one of them at a time made ready to be written to.
struct Pages {
    page_bytes: usize,
    /// What the loader protects, in whole pages, as it rounds them.
    protected: Range,
    page: usize,
    access: Access,
}

/// How a page stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Writable,
    /// Made writable for the moment.
    Opened,
    Refused,
}

impl Pages {
    fn of(object: &LoadedObject) -> Pages {
        let page_bytes = sys::page_bytes();
        let whole = |address: usize| address & !(page_bytes - 1);
        let protected = Range { start: whole(object.relro.start), end: whole(object.relro.end) };
        Pages { page_bytes, protected, page: 0, access: Access::Refused }
    }

    /// Whether the loader is not done with the object: what it will protect can be written.
    fn are_early(&self) -> bool {
        self.protected.start < self.protected.end && is_writable(self.protected.start)
    }

    fn store(&mut self, slot: *const AtomicUsize, value: usize, counts: &mut Counts) {
        let page = slot.addr() & !(self.page_bytes - 1);
        if page != self.page {
            self.close();
            (self.page, self.access) = (page, self.open(page));
        }
        match self.access {
            Access::Writable | Access::Opened => {
                // SAFETY: a place as in `leads`, on a page that can be written.
                unsafe { &*slot }.store(value, Ordering::Release);
                counts.patched += 1;
            }
            Access::Refused => counts.refused += 1,
        }
    }

    fn open(&self, page: usize) -> Access {
        match (self.protected.contains(page), is_writable(page)) {
            (_, true) => Access::Writable,
            (false, false) => Access::Refused,
            // SAFETY: a page of data that the loader has finished with; it stays readable all the time.
            (true, false) => match unsafe { sys::protect(page, self.page_bytes, sys::PROT_RW) } {
                true => Access::Opened,
                false => Access::Refused,
            },
        }
    }

    /// Leaves the present page as it was.
    fn close(&mut self) {
        if self.access == Access::Opened {
            // SAFETY: as in `open`; nobody but the loader has written there, or will.
            unsafe { sys::protect(self.page, self.page_bytes, sys::PROT_READ) };
        }
        self.access = Access::Refused;
        self.page = 0;
    }
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
