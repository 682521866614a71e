//! The Python traceback of a thread, as an id. All frames are read at each event; only changed
//! frames are numbered and hashed.
//!
//! Reading takes two loads for each frame. The frames kept from the last event save numbering and
//! hashing, not reading. Every kept frame is compared with the frame just read, so nothing is
//! reused unseen.

use super::layout::{Description, Layout, Stands};
use super::{api, codes, reuse};
use crate::platform::tls;
use crate::stacks::mix;
use crate::thread::{Published, Thread};
use crate::unwind::{MAX_DEPTH, Walk};
use crate::{fail, process, stacks};
use core::ptr;
use heapline_shared_format::code::MAX_DESCRIPTION_BYTES;
use heapline_shared_format::event::{self, MAX_CODE_BYTES, PYTHON_ENTRY, domain, python_frame};

/// A frame, as read from the interpreter.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    code: usize,
    /// Offset of the instruction in the low half; [`ENTRY`] above.
    offset: usize,
}

/// Bit of [`Place::offset`]: the frame was called by C.
const ENTRY: usize = 1 << 32;

/// A kept frame.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    place: Place,
    /// The frame, as written into the ring.
    frame: u64,
    /// Share of the frame in the hash.
    mixed: u64,
}

/// The last Python traceback of a thread. All zeros are an empty traceback without memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PythonStack {
    /// Kept frames, the oldest first.
    frames: *mut Frame,
    /// Frames just read, the newest first.
    places: *mut Place,
    capacity: usize,
    len: usize,
    hash: u64,
    /// Number of frames, from the oldest, also in the last definition.
    unchanged: usize,
    /// Generation of the code objects at the time of numbering.
    generation: u64,
    /// Older frames are missing, for lack of memory or beyond [`MAX_DEPTH`].
    is_truncated: bool,
}

const FIRST_CAPACITY: usize = 256;
/// Separates the keys of Python stacks from native stacks.
const SALT: u64 = 0x5079_7468_6F6E_2E2E;
/// Separates the keys of mixed stacks from other stacks.
const MIXED_SALT: u64 = 0x4D69_7865_642E_2E2E;

impl PythonStack {
    /// An empty traceback, without memory.
    const EMPTY: PythonStack = PythonStack {
        frames: ptr::null_mut(),
        places: ptr::null_mut(),
        capacity: 0,
        len: 0,
        hash: 0,
        unchanged: 0,
        generation: 0,
        is_truncated: false,
    };

    /// Forgets the frames, keeps the memory.
    pub fn forget(&mut self) {
        (self.len, self.hash, self.unchanged) = (0, 0, 0);
    }

    const fn bytes(capacity: usize) -> usize {
        capacity * (size_of::<Frame>() + size_of::<Place>())
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The stack is not used any more.
    pub unsafe fn unmap(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the caller guarantees no later use; `grow` mapped the same number of bytes.
            unsafe { process::unmap_own(self.frames.cast(), PythonStack::bytes(self.capacity)) };
            self.capacity = 0;
        }
    }

    fn grow(&mut self) -> bool {
        let capacity = (self.capacity * 4).max(FIRST_CAPACITY);
        let Some(memory) = process::map_own(PythonStack::bytes(capacity)) else { return false };
        // SAFETY: both arrays lie inside the new memory; the old arrays hold as many entries as are
        // copied.
        unsafe {
            let frames: *mut Frame = memory.cast();
            let places: *mut Place = frames.add(capacity).cast();
            if self.capacity > 0 {
                ptr::copy_nonoverlapping(self.frames, frames, self.len);
                ptr::copy_nonoverlapping(self.places, places, self.capacity);
                process::unmap_own(self.frames.cast(), PythonStack::bytes(self.capacity));
            }
            (self.frames, self.places, self.capacity) = (frames, places, capacity);
        }
        true
    }

    /// Reads all frames of the calling thread. Returns the number of frames.
    #[inline(always)]
    fn read(&mut self, layout: &Layout, thread_state: *const u8) -> usize {
        let mut n = 0;
        // SAFETY: the thread's own state, and frames run by the thread.
        unsafe {
            let mut frame = layout.newest(thread_state);
            while frame != 0 && n < MAX_DEPTH as usize {
                match layout.place(frame) {
                    Stands::Code { code, offset, is_entry } => {
                        if n == self.capacity && !self.grow() {
                            break;
                        }
                        let offset = offset as usize | if is_entry { ENTRY } else { 0 };
                        self.places.add(n).write(Place { code, offset });
                        n += 1;
                    }
                    Stands::Entry if n > 0 => (*self.places.add(n - 1)).offset |= ENTRY,
                    Stands::Entry | Stands::Nothing => {}
                }
                frame = layout.previous(frame);
            }
            self.is_truncated = frame != 0;
        }
        n
    }

    /// Keeps the frames in common with the `n` frames just read, from the oldest. Drops all others.
    #[inline(always)]
    fn keep_common(&mut self, n: usize) {
        let mut common = 0;
        // SAFETY: all frames below len and all places below n are written.
        unsafe {
            while common < self.len.min(n) && (*self.frames.add(common)).place == *self.places.add(n - 1 - common) {
                common += 1;
            }
            while self.len > common {
                self.len -= 1;
                self.hash = self.hash.wrapping_sub((*self.frames.add(self.len)).mixed);
            }
        }
        self.unchanged = self.unchanged.min(common);
    }

    fn push(&mut self, place: Place, number: u32) {
        #[expect(clippy::cast_possible_truncation, reason = "made from 32 bits")]
        let frame =
            python_frame(number, place.offset as u32) | if place.offset & ENTRY != 0 { PYTHON_ENTRY } else { 0 };
        let mixed = mix(frame, self.len as u64);
        // SAFETY: at most as many frames are pushed as were read, and `read` made room for them.
        unsafe { self.frames.add(self.len).write(Frame { place, frame, mixed }) };
        self.hash = self.hash.wrapping_add(mixed);
        self.len += 1;
    }

    fn frames_from(&self, from: usize) -> impl Iterator<Item = u64> {
        let frames = self.frames;
        // SAFETY: all frames below len are written.
        (from..self.len).map(move |i| unsafe { (*frames.add(i)).frame })
    }
}

impl Thread {
    /// Publishes a record with the thread's Python stack as last part.
    #[inline(always)]
    pub fn publish_in_python<const N: usize>(&mut self, record: impl Fn(u64, u32) -> [u64; N]) -> Published {
        self.publish_with(Thread::python_stack, record)
    }

    /// Publishes a record with the thread's Python stack as last part, after a call of one of
    /// CPython's allocators.
    #[inline(always)]
    pub fn publish_call_in_python<const N: usize>(&mut self, record: impl Fn(u64, u32) -> [u64; N]) -> Published {
        self.publish_with(Thread::python_stack_of_call, record)
    }

    /// Returns the stack of a finished allocator call. If the call allocated a native block, the
    /// record of the native block has already read the stack.
    #[inline(always)]
    fn python_stack_of_call(&mut self) -> Result<u32, Published> {
        let read = tls::read_stack();
        if read != 0 && self.is_own() {
            tls::set_read_stack(0);
            #[expect(clippy::cast_possible_truncation, reason = "two halves")]
            let (id, epoch) = (read as u32, (read >> 32) as u32);
            if epoch == self.epoch() {
                return Ok(id);
            }
        }
        self.python_stack()
    }

    /// Returns the id of the calling thread's Python stack. Defines a new stack first, and
    /// describes new code objects.
    #[inline(always)]
    fn python_stack(&mut self) -> Result<u32, Published> {
        match self.known_python_stack() {
            Ok(Some(id)) => Ok(id),
            Ok(None) => self.unknown_python_stack(),
            Err(published) => Err(published),
        }
    }

    /// Returns the id of a mixed stack: a native stack together with the Python stack. The native
    /// stack itself if the thread runs no Python.
    ///
    /// Not inlined, so that programs without Python save no registers for this path.
    #[cold]
    #[inline(never)]
    pub fn mixed_stack(&mut self, native: u32) -> Result<u32, Published> {
        let Some(python) = self.known_python_stack()? else { return Ok(native) };
        if tls::in_python() != 0 && self.is_own() {
            tls::set_read_stack(u64::from(self.epoch()) << 32 | u64::from(python));
        }
        let ids = u64::from(native) << 32 | u64::from(python);
        // Key 0 means no stack, as for other stacks.
        let key = mix(ids, MIXED_SALT).max(1);
        match self.stack_id(key) {
            Some(id) => Ok(id),
            None => self.define_mixed_stack(key, native, python),
        }
    }

    /// Returns the id of the thread's Python stack. None if the thread runs no Python.
    #[inline(always)]
    fn known_python_stack(&mut self) -> Result<Option<u32>, Published> {
        let Some((api, thread_state)) = api().and_then(|api| Some((api, api.own_state()?))) else {
            return Ok(None);
        };
        // The stack is taken out during the call: a signal handler that never returns must not
        // leave memory with two users.
        let mut kept = core::mem::replace(&mut self.python, PythonStack::EMPTY);
        let renewed = self.renew_python_stack(&mut kept, &api.layout, thread_state);
        self.python = kept;
        if let Err(published) = renewed {
            self.python.forget();
            return Err(published);
        }
        let n = kept.len;
        if n == 0 {
            return Ok(None);
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let walk = Walk { stored: n, total: n as u32, truncated: kept.is_truncated };
        let key = stacks::key(kept.hash ^ SALT, walk);
        match self.stack_id(key) {
            Some(id) => Ok(Some(id)),
            None => {
                let id = self.define_stack(walk, key, kept.unchanged, domain::PYTHON, |from| kept.frames_from(from))?;
                self.python.unchanged = n;
                Ok(Some(id))
            }
        }
    }

    /// Updates the kept frames to the present stack.
    #[inline(always)]
    fn renew_python_stack(
        &mut self,
        kept: &mut PythonStack,
        layout: &Layout,
        thread_state: *const u8,
    ) -> Result<(), Published> {
        let generation = codes::generation();
        if kept.generation != generation {
            kept.forget();
            kept.generation = generation;
        }
        let n = kept.read(layout, thread_state);
        kept.keep_common(n);
        while kept.len < n {
            // SAFETY: all places below n are written.
            let place = unsafe { *kept.places.add(n - 1 - kept.len) };
            let number = match codes::known(place.code, self.session()) {
                Some(number) => number,
                None => self.describe_code(place.code, layout)?,
            };
            kept.push(place, number);
        }
        Ok(())
    }

    /// Gives a code object a number, and describes the code object.
    #[cold]
    #[inline(never)]
    fn describe_code(&mut self, code: usize, layout: &Layout) -> Result<u32, Published> {
        let number = codes::fresh();
        let unknown = Description::unknown();
        // SAFETY: `code` belongs to a frame run by this thread.
        let description = unsafe {
            if !super::is_code(code) {
                // The frames do not have the known layout. An object of another type has no name.
                super::note_unknown();
                Description::unknown()
            } else {
                layout.describe(code)
            }
        };
        let is_told = number != codes::UNKNOWN && description.len() <= MAX_DESCRIPTION_BYTES;
        let session = self.session();
        let described = fail::guard(|| {
            fail::point(fail::Site::Code);
            self.describe(number, if is_told { &description } else { &unknown })
        });
        described.unwrap_or_else(|| Err(self.renew()))?;
        codes::remember(code, number, session);
        reuse::resume();
        Ok(number)
    }

    /// Returns the id of the stack for a block not requested by a Python frame.
    #[cold]
    #[inline(never)]
    fn unknown_python_stack(&mut self) -> Result<u32, Published> {
        let frame = python_frame(codes::UNKNOWN, 0);
        let walk = Walk { stored: 1, total: 1, truncated: false };
        let key = stacks::key(mix(frame, 0) ^ SALT, walk);
        if let Some(id) = self.stack_id(key) {
            return Ok(id);
        }
        self.describe(codes::UNKNOWN, &Description::unknown())?;
        // The ring's next definition shares nothing with this definition.
        self.python.unchanged = 0;
        self.define_stack(walk, key, 0, domain::PYTHON, |from| core::iter::once(frame).skip(from))
    }

    /// Describes a code object, in as many records as necessary.
    #[cold]
    #[inline(never)]
    fn describe(&mut self, number: u32, description: &Description<'_>) -> Result<(), Published> {
        let mut done = 0;
        loop {
            let bytes = (description.len() - done).min(MAX_CODE_BYTES);
            let more = done + bytes < description.len();
            let head = event::code_head(number, bytes, more);
            let words = bytes.div_ceil(8);
            let published = self.publish(head.len() + words, |ring, _| {
                let word = |i: usize| u64::from_le_bytes(core::array::from_fn(|k| description.byte(done + 8 * i + k)));
                // SAFETY: `publish` made room for head and words.
                unsafe { ring.write_parts(&head, (0..words).map(word)) }
            });
            match published {
                Published::Yes if more => done += bytes,
                Published::Yes => return Ok(()),
                other => return Err(other),
            }
        }
    }
}
