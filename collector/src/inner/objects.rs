//! Lists of objects with callable code: the object of an open handle and all objects needed.

use crate::platform::elf::{Loaded, Namespace};
use crate::platform::{objects, sys};
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Addresses already seen. When there is no room for an address, the address counts as seen.
pub struct Known([AtomicUsize; Known::PLACES]);

impl Known {
    const PLACES: usize = 4096;
    /// Places for an address, from the first one on.
    const NEAR: usize = 32;

    pub const fn new() -> Known {
        Known([const { AtomicUsize::new(0) }; Known::PLACES])
    }

    fn places(&self, address: usize) -> impl Iterator<Item = &AtomicUsize> {
        const MULTIPLIER: usize = 0x9e37_79b9_7f4a_7c15;
        let first = address.wrapping_mul(MULTIPLIER) >> 32;
        (first..first + Known::NEAR).map(|place| &self.0[place % Known::PLACES])
    }

    pub fn has(&self, address: usize) -> bool {
        let mut has_room = false;
        for place in self.places(address) {
            match place.load(Ordering::Acquire) {
                0 => has_room = true,
                seen if seen == address => return true,
                _ => {}
            }
        }
        !has_room
    }

    /// Notes an address. Returns true for the single caller that has seen the address first.
    pub fn claim(&self, address: usize) -> bool {
        while !self.has(address) {
            let Some(free) = self.places(address).find(|place| place.load(Ordering::Acquire) == 0) else { break };
            if free.compare_exchange(0, address, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return true;
            }
        }
        false
    }

    /// Forgets all addresses for which `is_gone` holds.
    pub fn forget(&self, is_gone: impl Fn(usize) -> bool) {
        for place in &self.0 {
            let address = place.load(Ordering::Acquire);
            if address != 0 && is_gone(address) {
                let _ = place.compare_exchange(address, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

/// Bytes of a file examined at one time.
const BUFFER_BYTES: usize = 256 << 10;

/// A list of objects, and room to read files in. All zeros are an empty list.
struct Memory {
    objects: [MaybeUninit<Loaded>; Objects::MOST],
    count: usize,
    buffer: UnsafeCell<[u8; BUFFER_BYTES]>,
}

/// Objects kept loaded while the list exists. The list is not on the stack, because the stack of a
/// thread that opens a library may be small.
pub struct Objects(*mut Memory);

impl Objects {
    /// Greatest number of objects. Objects beyond are left alone.
    const MOST: usize = 1024;

    fn new() -> Option<Objects> {
        Some(Objects(sys::map(size_of::<Memory>())?.cast()))
    }

    /// Returns all objects of the program's namespace.
    pub fn of_program() -> Option<Objects> {
        let mut all = Objects::new()?;
        objects::all(|_| {
            Namespace::program().into_iter().flat_map(Namespace::objects).for_each(|object| all.push(object));
        });
        Some(all)
    }

    /// Returns the object of a handle and all objects needed, except for the needs of known
    /// objects. Empty for an invalid handle, or a handle of another namespace.
    pub fn behind(handle: *const c_void, known: &Known) -> Option<Objects> {
        let mut found = Objects::new()?;
        objects::all(|_| {
            let Some(namespace) = Namespace::program() else { return };
            namespace.by_handle(handle).into_iter().for_each(|object| found.push(object));
            let mut at = 0;
            while let Some(object) = found.get(at) {
                at += 1;
                if known.has(object.dynamic_section()) {
                    continue;
                }
                for name in object.needed() {
                    // Of two objects of one name, only one is kept loaded by the handle.
                    let mut called = namespace.objects().filter(|other| other.is_called(name));
                    if let (Some(needed), None) = (called.next(), called.next()) {
                        found.push(needed);
                    }
                }
            }
        });
        Some(found)
    }

    fn push(&mut self, object: Loaded) {
        let is_same = |other: Loaded| other.dynamic_section() == object.dynamic_section();
        if self.iter().any(is_same) {
            return;
        }
        // SAFETY: the memory was mapped for this list alone, and all zeros are an empty list.
        let memory = unsafe { &mut *self.0 };
        if let Some(place) = memory.objects.get_mut(memory.count) {
            place.write(object);
            memory.count += 1;
        }
    }

    fn get(&self, index: usize) -> Option<Loaded> {
        // SAFETY: the memory was mapped for this list alone, and the first `count` objects are
        // written.
        unsafe { (index < (*self.0).count).then(|| (*self.0).objects[index].assume_init_read()) }
    }

    /// Returns all objects. An object comes before the objects needed by the object.
    pub fn iter(&self) -> impl Iterator<Item = Loaded> + '_ {
        (0..).map_while(|index| self.get(index))
    }

    /// Returns the room to read files in.
    #[expect(clippy::mut_from_ref, reason = "for one file at a time")]
    pub fn buffer(&self) -> &mut [u8] {
        // SAFETY: the memory was mapped for this list alone, and the buffer lies apart from the
        // objects.
        unsafe { &mut *(*self.0).buffer.get() }
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // SAFETY: no reference into the memory is alive any more.
        unsafe { sys::unmap(self.0.cast(), size_of::<Memory>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_claimed_once_and_again_when_it_was_forgotten() {
        let known = std::boxed::Box::new(Known::new());
        let addresses = (1..=2000_usize).map(|page| page << 12);
        assert_eq!(addresses.clone().filter(|&address| known.claim(address)).count(), 2000);
        assert!(addresses.clone().all(|address| known.has(address) && !known.claim(address)));
        known.forget(|address| address >> 12 > 1000);
        assert_eq!(addresses.filter(|&address| known.claim(address)).count(), 1000);
    }

    #[test]
    fn without_room_an_address_counts_as_seen() {
        let known = std::boxed::Box::new(Known::new());
        let claimed = (1..=100_000_usize).filter(|page| known.claim(page << 12)).count();
        assert!((Known::PLACES / 2..=Known::PLACES).contains(&claimed), "{claimed}");
        assert!((1..=100_000_usize).all(|page| known.has(page << 12)));
    }
}
