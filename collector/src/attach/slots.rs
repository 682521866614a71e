//! Places in an object's data with the address of a function, and the change of places while the
//! program runs.
//!
//! A place is one aligned word, written by one store. A thread that calls through the place
//! meanwhile goes either to the old or to the new function. Where the loader has protected the
//! place, the page is made writable for the moment of the store.
//!
//! Another thread may be about to relocate an object: the loader then writes to the places of the
//! object, and protects the pages last. An object with pages to be protected, but still writable,
//! belongs to the loader. Such an object is left alone until the next look.

use super::{Hook, Hooks, is_attached};
use crate::doors::shapes;
use crate::platform::objects::{self, LoadedObject, Range};
use crate::platform::symbols::Symbol;
use crate::platform::{elf, sys};
use crate::{doors, real};
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use heapline_shared_format::arch::elf::relocation;

const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;
/// Relocations without a symbol, at the start of `DT_RELA`.
const DT_RELACOUNT: u64 = 0x6fff_fff9;

/// Counts of one look at all objects.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Number of changed places.
    pub patched: u64,
    /// Number of places for a function of the allocator with another target, left as they are.
    pub foreign: u64,
    /// Number of places refused by the system for writing.
    pub refused: u64,
    /// Number of objects still owned by the loader.
    pub early: u64,
    /// Number of objects with constructors that ran before the calls of the object were led here.
    pub started: u64,
}

/// `Elf64_Rela`.
#[repr(C)]
struct Relocation {
    offset: u64,
    kind: u32,
    symbol: u32,
    addend: i64,
}

/// Target given by the loader to an unbound call, at the first call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unbound {
    /// The hooked function, found in the order in which objects were loaded.
    ToOriginal,
    /// The preloaded collector, first in the order of objects.
    ToCollector,
    /// A function past the collector: the object looks in its own dependencies first, or belongs to
    /// another namespace.
    PastCollector,
}

/// Settings of a look at objects.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// The functions to which calls are led.
    pub hooks: &'a Hooks,
    /// Target of the unbound calls of the objects.
    pub unbound: Unbound,
}

/// A place for a hooked function, or for another function of an allocator.
struct Place<'a> {
    slot: *const AtomicUsize,
    name: &'a CStr,
    /// The hook for the function. `None` in another namespace, which has functions of its own.
    hook: Option<&'static Hook>,
    /// Range in which the place leads to the loader's resolver until the first call; empty without
    /// a resolver.
    unbound: Range,
    /// Whether the object itself defines a function with this name.
    is_own: bool,
}

/// Target of a call through a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    ToOriginal,
    /// Not bound yet.
    ToResolver,
    /// Not bound yet, in an object that defines the function itself.
    ToResolverOrOwn,
    /// The hook.
    Here,
    /// Another function with this name.
    Elsewhere,
    /// No function, or the place is not to be changed.
    Nowhere,
}

impl Place<'_> {
    fn holds(&self) -> usize {
        // SAFETY: a relocation of the object names the place, in mapped data of the object.
        unsafe { &*self.slot }.load(Ordering::Relaxed)
    }

    fn leads(&self) -> Leads {
        let holds = self.holds();
        let is_hooked = |test: fn(&Hook) -> usize| self.hook.is_some_and(|hook| test(hook) != 0 && test(hook) == holds);
        if holds == 0 || is_hooked(Hook::stub) {
            Leads::Nowhere
        } else if is_hooked(Hook::address) || doors::function_behind(holds).is_some() {
            Leads::Here
        } else if is_hooked(Hook::original) {
            Leads::ToOriginal
        } else if self.unbound.contains(holds) {
            if self.is_own { Leads::ToResolverOrOwn } else { Leads::ToResolver }
        } else if shapes::of(self.name.to_bytes()).is_some() {
            Leads::Elsewhere
        } else {
            Leads::Nowhere
        }
    }
}

/// Returns whether the loader is still at work on the object.
pub fn is_early(object: &LoadedObject) -> bool {
    Pages::of(object).are_early()
}

/// Returns the entry of the door for a function with this name; `None` where the function needs no
/// door, or can have none. Only one thread at a time runs this function, because the loader's lock
/// is held.
pub fn door(name: &CStr, function: usize) -> Option<usize> {
    match door_to(name.to_bytes(), function) {
        Door::Entry(entry) => Some(entry),
        Door::None | Door::Refused => None,
    }
}

fn door_to(name: &[u8], function: usize) -> Door {
    let Some(object) = elf::find_object(function) else { return Door::None };
    let is_defined = object.loaded().symbol(name) == Some(function);
    if !is_defined || is_recorded_below(name, function) || Some(object.bias) == elf::own_bias() {
        return Door::None;
    }
    // The program's calls of an allocator in the program itself do not pass a place. A door would
    // record only the other half of the calls.
    if object.path().is_empty() && !is_attached() {
        return Door::Refused;
    }
    doors::entry_for(name, function).map_or(Door::Refused, Door::Entry)
}

/// Returns whether a function is an operator of the C++ library, or an operator of the program.
/// Such operators end in `malloc`, where the hook of `malloc` records the call.
fn is_recorded_below(name: &[u8], function: usize) -> bool {
    let is_allocators = || elf::find_object(function).is_some_and(|object| object.loaded().symbol(b"malloc").is_some());
    shapes::is_operator(name) && !is_allocators()
}

/// Answer to the question for the door of a function.
enum Door {
    /// There is a door with this entry.
    Entry(usize),
    /// The function belongs to no allocator.
    None,
    /// There can be no door.
    Refused,
}

/// Leads the object's calls to the hooks and doors.
pub fn patch(object: &LoadedObject, look: Look<'_>, counts: &mut Counts) {
    let mut pages = Pages::of(object);
    if pages.are_early() {
        counts.early += 1;
        return;
    }
    let patched = counts.patched;
    // An object with an allocator of its own at one place keeps the allocator everywhere: unbound
    // calls may be bound to the own allocator too.
    let mut has_own = false;
    places(object, look.hooks, |place| {
        has_own |= place.hook.is_some() && matches!(place.leads(), Leads::Elsewhere | Leads::ToResolverOrOwn);
    });
    places(object, look.hooks, |place| {
        let hook = place.hook.map_or(0, Hook::address);
        let lead = |function| match door_to(place.name.to_bytes(), function) {
            _ if place.hook.is_some_and(|hook| hook.original() == function) => Some(hook),
            Door::Entry(entry) => Some(entry),
            Door::None => Some(0),
            Door::Refused => None,
        };
        let target = match place.leads() {
            Leads::ToOriginal => Some(hook),
            Leads::Elsewhere => lead(place.holds()),
            Leads::ToResolver => match look.unbound {
                Unbound::ToCollector if hook != 0 => Some(0),
                Unbound::ToOriginal if hook != 0 => (!has_own).then_some(hook),
                unbound => match objects::definition(object.namespace, place.name.to_bytes()) {
                    // The choice among several definitions depends on the libraries linked to the
                    // object.
                    Some((_, false)) if unbound == Unbound::PastCollector => None,
                    Some((function, _)) => lead(function),
                    // A function defined nowhere is not called.
                    None => Some(0),
                },
            },
            Leads::ToResolverOrOwn if look.unbound == Unbound::PastCollector => {
                object.loaded.symbol(place.name.to_bytes()).map_or(Some(0), lead)
            }
            Leads::ToResolverOrOwn if look.unbound == Unbound::ToCollector && hook != 0 => Some(0),
            // A function of the process's own allocator is found before the object's function.
            Leads::ToResolverOrOwn => match objects::definition(object.namespace, place.name.to_bytes()) {
                Some((function, _)) if doors::is_of_provider(function) => lead(function),
                Some((function, _)) if !is_recorded_below(place.name.to_bytes(), function) => None,
                _ => Some(0),
            },
            Leads::Here | Leads::Nowhere => Some(0),
        };
        match target {
            Some(0) => {}
            Some(target) => pages.store(place.slot, target, counts),
            None => counts.foreign += 1,
        }
    });
    pages.close();
    if counts.patched > patched && has_constructors(object) {
        counts.started += 1;
    }
}

/// Returns whether the object has constructors besides the constructor added by every compiler.
/// Constructors of a C library of another namespace do not count, because their blocks matter to
/// nobody.
fn has_constructors(object: &LoadedObject) -> bool {
    const DT_INIT_ARRAYSZ: u64 = 27;
    let is_c_library = || object.loaded.symbol(b"gnu_get_libc_version").is_some();
    object.loaded.dynamic([DT_INIT_ARRAYSZ])[0] > size_of::<usize>() && !is_c_library()
}

/// Leads the object's calls back to the original functions.
pub fn undo(object: &LoadedObject, hooks: &Hooks, counts: &mut Counts) {
    let mut pages = Pages::of(object);
    places(object, hooks, |place| {
        if place.leads() == Leads::Here {
            let original = doors::function_behind(place.holds()).or_else(|| place.hook.map(Hook::original));
            if let Some(original) = original {
                pages.store(place.slot, original, counts);
            }
        }
    });
    pages.close();
}

fn places(object: &LoadedObject, hooks: &Hooks, mut look: impl FnMut(Place<'_>)) {
    let [strings, symbols, rela, plt] = object.loaded.addresses([DT_STRTAB, DT_SYMTAB, DT_RELA, DT_JMPREL]);
    let [rela_bytes, relative, plt_bytes] = object.loaded.dynamic([DT_RELASZ, DT_RELACOUNT, DT_PLTRELSZ]);
    if !object.extent.contains(strings) || !object.extent.contains(symbols) {
        return;
    }
    let beginnings = hooks.beginnings();
    let is_libc = object.extent.contains(real::errno_location());
    // Calls inside an allocator are part of the call of the allocator.
    let is_led = |hook: &Hook| is_libc || object.is_program || !object.extent.contains(hook.original());
    for (table, bytes, skipped) in [(rela, rela_bytes, relative), (plt, plt_bytes, 0)] {
        let end = table.saturating_add(bytes);
        if bytes == 0 || !object.extent.contains(table) || end > object.extent.end {
            continue;
        }
        // SAFETY: the loader uses the table too, and the object is loaded.
        let table = unsafe { core::slice::from_raw_parts(table as *const Relocation, bytes / size_of::<Relocation>()) };
        for relocation in table.iter().skip(skipped) {
            let is_of_function = matches!(relocation.kind, relocation::ADDRESS | relocation::TABLE | relocation::JUMP);
            if !is_of_function || relocation.symbol == 0 || relocation.addend != 0 {
                continue;
            }
            // SAFETY: symbol and name of the relocation lie in the object's own tables.
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
            let hook = hooks.named(name).filter(|_| object.namespace.is_none());
            let is_wanted = match hook {
                Some(hook) => is_led(hook),
                None => shapes::of(name.to_bytes()).is_some(),
            };
            if is_wanted {
                let is_lazy = relocation.kind == relocation::JUMP;
                let unbound = if is_lazy { object.extent } else { Range::default() };
                // The C library's calls are bound by the order of objects, although the C library
                // defines the functions itself.
                let is_own = symbol.section != 0 && !is_libc;
                look(Place { slot: slot as *const AtomicUsize, name, hook, unbound, is_own });
            }
        }
    }
}

/// The pages of an object, with at most one page made ready for writing at a time.
struct Pages {
    page_bytes: usize,
    /// Range protected by the loader, rounded to whole pages as the loader does.
    protected: Range,
    page: usize,
    access: Access,
}

/// State of a page.
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

    /// Returns whether the loader is still at work on the object: pages to be protected are still
    /// writable.
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
                // SAFETY: a relocation of the object names the place, and the page is writable.
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
            // SAFETY: the loader has finished with the page of data, and the page stays readable
            // all the time.
            (true, false) => match unsafe { sys::protect(page, self.page_bytes, sys::PROT_RW) } {
                true => Access::Opened,
                false => Access::Refused,
            },
        }
    }

    /// Restores the protection of the present page.
    fn close(&mut self) {
        if self.access == Access::Opened {
            // SAFETY: `open` made this page writable; only the loader has written there, and is
            // done.
            unsafe { sys::protect(self.page, self.page_bytes, sys::PROT_READ) };
        }
        self.access = Access::Refused;
        self.page = 0;
    }
}

/// Returns whether the word at an address is writable, asked of the kernel.
///
/// `FUTEX_WAKE_OP` does an atomic operation at its second address. The operation here is OR with 0,
/// which changes nothing, whoever else writes there.
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
