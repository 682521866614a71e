//! The objects that the loader has loaded, while it cannot change them.
//!
//! `dl_iterate_phdr` holds the lock under which objects come and go. It is called on the program's own paths into the
//! loader (`dlopen`, and the injected call), never inside of an allocation.

use crate::elf::{self, Loaded};
use core::ffi::{c_char, c_int, c_void};
use core::ops::ControlFlow;

/// `struct dl_phdr_info` of `<link.h>`.
#[repr(C)]
struct Info {
    bias: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    count: u16,
    added: u64,
    removed: u64,
    tls: usize,
    tls_data: *mut c_void,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_GNU_RELRO: u32 = 0x6474_e552;

unsafe extern "C" {
    fn dl_iterate_phdr(
        callback: unsafe extern "C" fn(*mut Info, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

/// A range of addresses.
#[derive(Clone, Copy, Default)]
pub struct Range {
    /// First.
    pub start: usize,
    /// Behind the last.
    pub end: usize,
}

impl Range {
    /// Whether the address lies in it.
    pub fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A loaded object.
pub struct LoadedObject {
    /// Its dynamic section.
    pub loaded: Loaded,
    /// From its first byte to its last.
    pub extent: Range,
    /// It is the program, not a library.
    pub is_program: bool,
    /// What the loader protects once the object is relocated.
    pub relro: Range,
    /// How often an object has been loaded, and unloaded, in this process.
    pub history: (u64, u64),
}

/// All loaded objects, which stay while this exists.
pub struct Objects {
    held: (),
}

impl Objects {
    /// The definition of a symbol, in the loader's order, ours left out.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.others()?.find_map(|object| object.symbol(name))
    }

    /// Where a program that is not position-independent has others find a function of another object's.
    pub fn stub(&self, name: &[u8]) -> Option<usize> {
        self.others()?.find_map(|object| object.stub(name))
    }

    fn others(&self) -> Option<impl Iterator<Item = Loaded>> {
        let () = self.held;
        let own = own_bias();
        Some(elf::loaded()?.filter(move |object| Some(object.bias) != own))
    }
}

/// Where the collector itself is loaded.
pub fn own_bias() -> Option<usize> {
    elf::find_object(own_bias as fn() -> Option<usize> as usize).map(|object| object.bias)
}

/// What the objects behind the collector in the loader's order define under a name. Asks
/// `dl_iterate_phdr` alone, which every glibc has.
pub fn behind(name: &[u8]) -> Option<usize> {
    let own = behind as fn(&[u8]) -> Option<usize> as usize;
    let (mut is_behind, mut found) = (false, None);
    walk(|object| {
        if object.extent.contains(own) {
            is_behind = true;
        } else if is_behind {
            found = object.loaded.symbol(name);
        }
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// Calls `look` once, while objects neither come nor go.
pub fn all(mut look: impl FnMut(&Objects)) {
    let mut is_done = false;
    each(|_| {
        if !core::mem::replace(&mut is_done, true) {
            look(&Objects { held: () });
        }
    });
}

/// Calls `look` for each loaded object in the loader's order, ours left out. The loader's lock is held over all of them, so
/// one thread at a time is in here.
pub fn each(mut look: impl FnMut(&LoadedObject)) {
    until(|object| {
        look(object);
        ControlFlow::Continue(())
    });
}

/// Likewise, until it breaks off.
pub fn until(mut look: impl FnMut(&LoadedObject) -> ControlFlow<()>) {
    let own = own_bias();
    walk(|object| if Some(object.loaded.bias) == own { ControlFlow::Continue(()) } else { look(object) });
}

/// Calls `look` for each loaded object in the loader's order, the collector too, until `look`
/// breaks off.
fn walk(mut look: impl FnMut(&LoadedObject) -> ControlFlow<()>) {
    unsafe extern "C" fn callback<F: FnMut(&LoadedObject) -> ControlFlow<()>>(
        info: *mut Info,
        _: usize,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader's own description, and the function that `until` passes.
        let (info, look) = unsafe { (&*info, &mut *data.cast::<F>()) };
        let then = describe(info).map_or(ControlFlow::Continue(()), |object| look(&object));
        c_int::from(then.is_break())
    }
    fn instance<F: FnMut(&LoadedObject) -> ControlFlow<()>>(look: &mut F) {
        // SAFETY: the callback takes the very function whose address is passed, for the duration of the call.
        unsafe { dl_iterate_phdr(callback::<F>, (&raw mut *look).cast()) };
    }
    instance(&mut look);
}

fn describe(info: &Info) -> Option<LoadedObject> {
    // SAFETY: the loader's copy of the object's program headers.
    let headers = unsafe { core::slice::from_raw_parts(info.headers, info.count as usize) };
    let range = |header: &ProgramHeader| {
        let start = info.bias.wrapping_add(usize::try_from(header.address).unwrap_or(0));
        Range { start, end: start.wrapping_add(usize::try_from(header.memory_bytes).unwrap_or(0)) }
    };
    let of_kind = |kind| headers.iter().filter(move |header| header.kind == kind).map(range);
    let dynamic = of_kind(PT_DYNAMIC).next()?.start as *const [u64; 2];
    let extent =
        of_kind(PT_LOAD).reduce(|all, one| Range { start: all.start.min(one.start), end: all.end.max(one.end) })?;
    let relro = of_kind(PT_GNU_RELRO).next().unwrap_or_default();
    // SAFETY: the loader's name of the object, a C string or null; the program's is empty.
    let is_program = info.name.is_null() || unsafe { *info.name } == 0;
    Some(LoadedObject {
        is_program,
        loaded: Loaded::new(info.bias, dynamic),
        extent,
        relro,
        history: (info.added, info.removed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_and_its_functions_are_found() {
        let mut count = 0;
        let mut protected = 0;
        each(|object| {
            count += 1;
            protected += usize::from(object.relro.end > object.relro.start);
            assert!(object.extent.contains(object.extent.start));
        });
        assert!(count >= 1 && protected >= 1, "the C library at the least: the test itself is left out");
        let mut malloc = None;
        all(|objects| malloc = objects.find(b"malloc"));
        let found = crate::elf::find_object(malloc.expect("the C library has it")).expect("in an object");
        assert!(found.path().windows(5).any(|part| part == b"libc."), "the test defines no malloc");
    }
}
