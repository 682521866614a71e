//! The readable addresses of the stack.
//!
//! A stack is contiguous from the stack pointer up, and the pages stay mapped while the thread runs
//! on the stack. The window of known pages asks the kernel once for each page, and is kept from
//! event to event. Every later walk reads with two comparisons. When the stack pointer leaves the
//! window (a coroutine, a signal stack), the window starts afresh.

use crate::platform::sys;

const PAGE: usize = 4096;

/// Pages known to be readable: `low..high`. All zeros are the empty window.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Window {
    low: usize,
    high: usize,
}

impl Window {
    /// Begins a walk at `slot`, an address on the running stack.
    #[inline(always)]
    pub fn start_at(&mut self, slot: usize) {
        if slot.wrapping_sub(self.low) >= self.high.wrapping_sub(self.low) {
            self.move_to(slot);
        }
    }

    #[cold]
    fn move_to(&mut self, slot: usize) {
        const NEAR: usize = 64 * PAGE;
        let page = slot & !(PAGE - 1);
        if page < self.low && self.low - page <= NEAR && self.low != 0 {
            // The stack has grown: everything between belongs to frames still alive.
            self.low = page;
        } else {
            *self = Window { low: page, high: page + PAGE };
        }
    }

    /// Returns the end of the window. Everything from the start of the walk up to the end may be
    /// read.
    #[inline(always)]
    pub fn high(&self) -> usize {
        self.high
    }

    /// Returns whether a walk at `from` may read the word at `address`.
    #[inline(always)]
    pub fn admit(&mut self, from: usize, address: usize) -> bool {
        if address & 7 != 0 || address < from {
            return false;
        }
        address < self.high || self.extend(address)
    }

    /// Returns whether a walk at `from` may read the word at `address`, known by no unwind table:
    /// all pages in between must be readable too.
    #[cold]
    pub fn admit_doubtful(&mut self, from: usize, address: usize) -> bool {
        while address >= self.high {
            if !sys::is_readable(self.high) {
                return false;
            }
            self.high += PAGE;
        }
        self.admit(from, address)
    }

    #[cold]
    fn extend(&mut self, address: usize) -> bool {
        // No frame is larger. Anything farther is not a continuation of the stack.
        const FARTHEST: usize = 64 << 20;
        if address - self.high >= FARTHEST || !sys::is_readable(address) {
            return false;
        }
        self.high = (address & !(PAGE - 1)) + PAGE;
        true
    }
}

/// Returns the word at any address, if the address is readable.
pub fn read(address: usize) -> Option<usize> {
    if address & 7 != 0 || !sys::is_readable(address) {
        return None;
    }
    // SAFETY: the kernel has just read the word. The word is on a stack of this thread, and no
    // other thread unmaps the stack meanwhile.
    Some(unsafe { (address as *const usize).read() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_mapped_and_refuses_the_rest() {
        let value = 0x1234_5678usize;
        let address = (&raw const value).addr();
        assert_eq!(read(address), Some(value));
        assert_eq!(read(address + 1), None, "not aligned");
        assert_eq!(read(0x10), None);
        assert_eq!(read(usize::MAX - 7), None);
    }

    #[test]
    fn a_window_ends_where_memory_ends() {
        let memory = sys::map(4 * PAGE).expect("memory");
        let start = memory.addr();
        // SAFETY: nothing uses the last page.
        unsafe { sys::unmap(memory.add(3 * PAGE), PAGE) };
        let mut window = Window::default();
        window.start_at(start + 64);
        assert!(window.admit(start + 64, start + 72));
        assert!(window.admit(start + 64, start + 3 * PAGE - 8), "asked of the kernel");
        assert!(!window.admit(start + 64, start + 3 * PAGE), "unmapped");
        assert!(!window.admit(start + 64, start + 56), "away from the root");
        assert!(!window.admit(start + 64, start + 65), "not aligned");
        assert!(!window.admit(start + 64, start + (1 << 30)), "too far");
        let mut window = Window::default();
        window.start_at(start + 64);
        assert!(window.admit_doubtful(start + 64, start + 3 * PAGE - 8), "page by page");
        assert!(!window.admit_doubtful(start + 64, start + 3 * PAGE), "unmapped");
        assert_eq!(window.high(), start + 3 * PAGE);
        // Another stack: the window moves there.
        let local = 0usize;
        let here = (&raw const local).addr() & !7;
        window.start_at(here);
        assert!(window.admit(here, here));
    }
}
