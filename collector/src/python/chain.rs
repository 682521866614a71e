//! The interpreter's frames of a thread, kept from event to event, and compared instead of read.
//!
//! CPython's frames are a chain from the newest frame to the oldest. A kept frame is known by two
//! words: its address, and the word that decides what a traceback shows of the frame
//! ([`Layout::deciding`]). At an event:
//!
//! 1. The chain is followed from the newest frame, until it meets a kept frame. Frames before are
//!    new.
//! 2. From there on, each frame must point to the next kept frame, and each deciding word must be
//!    the kept word. Frames above the oldest changed frame are new: a frame goes on only when its
//!    callees are gone.
//! 3. The comparison ends at the oldest frame, or at a frame that its callee has not left.
//!
//! # Why this is a full reading
//!
//! A frame is looked at only if a frame of the thread's own chain has pointed to it, so every frame
//! that is looked at is alive. If every frame points to the next kept frame, the kept chain is the
//! chain. What a traceback shows of a frame is a function of the frame's code and of the deciding
//! word, and a code object that ends makes the thread forget everything
//! ([`super::codes::generation`]).
//!
//! The first unchanged frame would not do as an end: a function that returns and is called again
//! has an equal frame at the same address, above a caller that stands at another line.
//!
//! # How a frame shows that its callee has not left
//!
//! From 3.11 on, a function called by Python code has its frame above the caller's frame, and the
//! interpreter stores the callee's result in the caller's frame, in the word behind the words in
//! use. Nothing reads the word before. The collector stores a mark there, the address of no object
//! ([`Layout::mark`]). While the mark stands, the callee is the callee that it was, and no older
//! frame has run:
//!
//! - A callee that returns has its result stored there.
//! - A callee that ends by an exception stores nothing. But the call took at least one operand,
//!   from this word. Whatever calls again from the same memory stores an operand there first.
//!
//! Calls without an operand (a generator that goes on) and calls by C have no mark: there the
//! comparison goes on. 3.9 and 3.10 keep their frames elsewhere, and compare all.

use super::layout::{Layout, UNDECIDED};
use crate::process;
use crate::unwind::MAX_DEPTH;
use core::ptr;

/// A kept frame of the interpreter.
#[repr(C)]
#[derive(Clone, Copy)]
struct Link {
    /// Number of frames shown in a traceback, up to this frame.
    shown: u32,
    /// Whether C calls the next frame.
    calls_from_c: bool,
}

/// The kept frames of a thread, the oldest first. All zeros are an empty chain without memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Chain {
    /// Addresses of the frames, behind a zero: the oldest frame points to nothing.
    addresses: *mut usize,
    /// The deciding words.
    words: *mut usize,
    links: *mut Link,
    /// Addresses of new frames, the newest first.
    fresh: *mut usize,
    capacity: usize,
    len: usize,
    /// Older frames are missing, for lack of memory or beyond [`MAX_DEPTH`].
    is_truncated: bool,
}

const FIRST_CAPACITY: usize = 256;
const BYTES_PER_FRAME: usize = 3 * size_of::<usize>() + size_of::<Link>();
/// Number of the newest kept frames among which a frame is looked for.
const NEAR: usize = 16;
/// Number of new frames after which no kept frame is looked for any more.
const FAR: usize = 64;

/// New frames, to be taken from the oldest to the newest.
pub struct Fresh(usize);

impl Fresh {
    /// Takes the next frame.
    #[inline(always)]
    pub fn next(&mut self, chain: &Chain) -> Option<usize> {
        self.0 = self.0.checked_sub(1)?;
        // SAFETY: `renew` has written the addresses of all new frames.
        Some(unsafe { *chain.fresh.add(self.0) })
    }
}

impl Chain {
    /// An empty chain, without memory.
    pub const EMPTY: Chain = Chain {
        addresses: ptr::null_mut(),
        words: ptr::null_mut(),
        links: ptr::null_mut(),
        fresh: ptr::null_mut(),
        capacity: 0,
        len: 0,
        is_truncated: false,
    };

    /// Forgets the frames, keeps the memory.
    pub fn forget(&mut self) {
        self.len = 0;
    }

    /// Number of frames with room.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether older frames are missing.
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Number of kept frames shown in a traceback.
    #[inline(always)]
    pub fn shown(&self) -> usize {
        self.last().map_or(0, |link| link.shown as usize)
    }

    /// Whether C calls the next frame.
    #[inline(always)]
    pub fn is_called_by_c(&self) -> bool {
        self.last().is_some_and(|link| link.calls_from_c)
    }

    #[inline(always)]
    fn last(&self) -> Option<Link> {
        // SAFETY: all links below len are written.
        self.len.checked_sub(1).map(|last| unsafe { *self.links.add(last) })
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The chain is not used any more.
    pub unsafe fn unmap(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the caller guarantees no later use; `grow` mapped the same number of bytes.
            unsafe { process::unmap_own(self.addresses.sub(1).cast(), Chain::bytes(self.capacity)) };
            self.capacity = 0;
        }
    }

    const fn bytes(capacity: usize) -> usize {
        size_of::<usize>() + capacity * BYTES_PER_FRAME
    }

    /// Forgets the frames after an update was abandoned in the middle. Drops the memory too when
    /// the arrays are incomplete.
    pub fn recover(&mut self) {
        let arrays = [self.addresses.is_null(), self.words.is_null(), self.links.is_null(), self.fresh.is_null()];
        if self.capacity == 0 || arrays.contains(&true) {
            *self = Chain::EMPTY;
        }
        self.forget();
    }

    /// Makes room for more frames. Until the growth is done the thread holds no memory, so a jump
    /// out of the growth leaves no dangling pointer.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) -> bool {
        let mut larger = core::mem::replace(self, Chain::EMPTY);
        let has_grown = larger.enlarge();
        *self = larger;
        has_grown
    }

    #[cold]
    fn enlarge(&mut self) -> bool {
        let capacity = (self.capacity * 4).max(FIRST_CAPACITY);
        let Some(memory) = process::map_own(Chain::bytes(capacity)) else { return false };
        // SAFETY: the arrays lie one behind the other in the new memory, which begins with a zero.
        // The old arrays hold as many entries as are copied.
        unsafe {
            let addresses = memory.cast::<usize>().add(1);
            let (words, fresh) = (addresses.add(capacity), addresses.add(2 * capacity));
            let links: *mut Link = addresses.add(3 * capacity).cast();
            if self.capacity > 0 {
                ptr::copy_nonoverlapping(self.addresses, addresses, self.len);
                ptr::copy_nonoverlapping(self.words, words, self.len);
                ptr::copy_nonoverlapping(self.links, links, self.len);
                ptr::copy_nonoverlapping(self.fresh, fresh, self.capacity);
                self.unmap();
            }
            (self.addresses, self.words, self.links, self.fresh) = (addresses, words, links, fresh);
        }
        self.capacity = capacity;
        true
    }

    /// Drops the kept frames that are not as they were, and the frames above them. Returns the
    /// frames to be pushed.
    ///
    /// # Safety
    /// `newest` is the newest frame of the calling thread.
    #[inline(always)]
    pub unsafe fn renew(&mut self, layout: &Layout, newest: usize) -> Fresh {
        // SAFETY: the caller guarantees the thread's own frames.
        unsafe {
            let mut frame = newest;
            for count in 0..FAR {
                if let Some(met) = self.near(frame) {
                    return match layout.oldest_changed(self.addresses, self.words, met) {
                        Some(same) if met + count < MAX_DEPTH as usize => self.changed(same, met, count),
                        _ => self.read(layout, newest),
                    };
                }
                if frame == 0 {
                    (self.len, self.is_truncated) = (0, false);
                    return Fresh(count);
                }
                if count == self.capacity {
                    break;
                }
                self.fresh.add(count).write(frame);
                frame = layout.previous(frame);
            }
            self.read(layout, newest)
        }
    }

    /// Returns the place of a frame among the newest kept frames.
    #[inline(always)]
    fn near(&self, frame: usize) -> Option<usize> {
        // SAFETY: all addresses below len are written.
        (self.len.saturating_sub(NEAR)..self.len).rev().find(|&at| unsafe { *self.addresses.add(at) } == frame)
    }

    /// Keeps the oldest `same` frames. The frames up to `met`, and `count` frames above, are new.
    #[inline(always)]
    unsafe fn changed(&mut self, same: usize, met: usize, count: usize) -> Fresh {
        let changed = met + 1 - same;
        while met + 1 + count > self.capacity {
            if !self.grow() {
                self.len = 0;
                return Fresh(0);
            }
        }
        for i in 0..changed {
            // SAFETY: all addresses up to `met` are written, and there is room for the new frames.
            unsafe { self.fresh.add(count + i).write(*self.addresses.add(met - i)) };
        }
        (self.len, self.is_truncated) = (same, false);
        Fresh(count + changed)
    }

    /// Reads the whole chain.
    ///
    /// # Safety
    /// `newest` is the newest frame of the calling thread.
    #[cold]
    #[inline(never)]
    unsafe fn read(&mut self, layout: &Layout, newest: usize) -> Fresh {
        // SAFETY: the caller guarantees the thread's own frames. All addresses and words below len
        // are written, and so are the new addresses below `count`.
        unsafe {
            let (mut frame, mut count) = (newest, 0);
            while frame != 0 && count < MAX_DEPTH as usize {
                if count == self.capacity && !self.grow() {
                    break;
                }
                self.fresh.add(count).write(frame);
                count += 1;
                frame = layout.previous(frame);
            }
            self.is_truncated = frame != 0;
            let mut same = 0;
            while same < self.len.min(count) {
                let present = *self.fresh.add(count - 1 - same);
                if *self.addresses.add(same) != present || *self.words.add(same) != layout.deciding(present) {
                    break;
                }
                same += 1;
            }
            self.len = same;
            Fresh(count - same)
        }
    }

    /// Adds a frame. `shown` frames are shown up to this frame, and C calls the next frame if
    /// `calls_from_c` is set.
    ///
    /// # Safety
    /// `frame` is the next of the frames returned by [`Chain::renew`].
    #[inline(always)]
    pub unsafe fn push(&mut self, layout: &Layout, frame: usize, shown: usize, calls_from_c: bool) {
        /// A kept word that differs from every deciding word.
        const NO_WORD: usize = 0;
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let link = Link { shown: shown as u32, calls_from_c };
        // SAFETY: `renew` made room for the new frames, and the frame is the thread's own. The last
        // kept frame is its caller.
        unsafe {
            if self.len > 0 {
                layout.mark(*self.addresses.add(self.len - 1), frame);
            }
            self.addresses.add(self.len).write(frame);
            let word = layout.deciding(frame);
            self.words.add(self.len).write(if word == UNDECIDED { NO_WORD } else { word });
            self.links.add(self.len).write(link);
        }
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A growth abandoned between any two stores leaves some arrays new and the others missing.
    #[test]
    fn a_chain_with_a_missing_array_recovers_without_memory() {
        let mut whole = Chain::EMPTY;
        assert!(whole.grow() && whole.capacity() == FIRST_CAPACITY);
        whole.len = 3;
        let missing: [fn(&mut Chain); 5] = [
            |chain| chain.addresses = ptr::null_mut(),
            |chain| chain.words = ptr::null_mut(),
            |chain| chain.links = ptr::null_mut(),
            |chain| chain.fresh = ptr::null_mut(),
            |chain| chain.capacity = 0,
        ];
        for leave_out in missing {
            let mut chain = whole;
            leave_out(&mut chain);
            chain.recover();
            assert_eq!((chain.capacity(), chain.len), (0, 0));
            assert!(chain.grow() && chain.capacity() == FIRST_CAPACITY);
            // SAFETY: the chain is not used any more.
            unsafe { chain.unmap() };
        }
        whole.recover();
        assert_eq!((whole.capacity(), whole.len), (FIRST_CAPACITY, 0));
        // SAFETY: the chain is not used any more.
        unsafe { whole.unmap() };
    }
}
