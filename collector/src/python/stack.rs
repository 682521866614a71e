//! The Python traceback of a thread, as an id. Frames that have changed since the last event are
//! read, numbered and hashed; all others are compared ([`super::chain`]).

use super::chain::Chain;
use super::layout::{Description, Layout, Stands};
use super::{api, codes, reuse};
use crate::platform::tls;
use crate::stacks::mix;
use crate::thread::{Published, Thread};
use crate::unwind::{MAX_DEPTH, Walk};
use crate::{fail, process, stacks};
use core::ptr;
use core::sync::atomic::Ordering;
use heapline_shared_format::code::MAX_DESCRIPTION_BYTES;
use heapline_shared_format::event::{self, MAX_CODE_BYTES, PYTHON_ENTRY, as_python_frame, domain, python_frame};

/// A frame of the traceback.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    /// Address of the code object.
    code: usize,
    /// The frame, as written into the ring.
    frame: u64,
    /// Share of the frame in the hash.
    mixed: u64,
}

/// The last Python traceback of a thread. All zeros are an empty traceback without memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PythonStack {
    /// The interpreter's frames.
    chain: Chain,
    /// Frames of the traceback, the oldest first. There is room for every link of the chain.
    frames: *mut Frame,
    capacity: usize,
    len: usize,
    /// Number of places in `frames` written in this generation.
    written: usize,
    hash: u64,
    /// Number of frames, from the oldest, also in the last definition.
    unchanged: usize,
    /// Generation of the code objects at the time of numbering.
    generation: u64,
}

/// Separates the keys of Python stacks from native stacks.
const SALT: u64 = 0x5079_7468_6F6E_2E2E;
/// Separates the keys of mixed stacks from other stacks.
const MIXED_SALT: u64 = 0x4D69_7865_642E_2E2E;

impl PythonStack {
    /// Forgets the frames, keeps the memory.
    pub fn forget(&mut self) {
        self.chain.forget();
        (self.len, self.written, self.hash, self.unchanged) = (0, 0, 0, 0);
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The stack is not used any more.
    pub unsafe fn unmap(&mut self) {
        // SAFETY: the caller guarantees no later use; `make_room` mapped the same number of bytes.
        unsafe {
            self.chain.unmap();
            if self.capacity > 0 {
                process::unmap_own(self.frames.cast(), self.capacity * size_of::<Frame>());
            }
        }
        self.capacity = 0;
    }

    /// Forgets the frames after an update was abandoned in the middle.
    pub fn recover(&mut self) {
        self.chain.recover();
        self.forget();
    }

    /// Makes room for as many frames as the chain has room for links.
    #[inline(always)]
    fn make_room(&mut self) -> bool {
        self.capacity >= self.chain.capacity() || self.grow()
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self) -> bool {
        let capacity = self.chain.capacity();
        let Some(memory) = process::map_own(capacity * size_of::<Frame>()) else { return false };
        let frames: *mut Frame = memory.cast();
        let (old, old_capacity) = (self.frames, self.capacity);
        // The pointer is stored first. A signal handler that never returns may leave memory larger
        // than `capacity`, but never smaller memory.
        // SAFETY: the old frames fit into the new memory, both places are fields of `self`, and
        // nobody uses the old memory at the end.
        unsafe {
            if old_capacity > 0 {
                ptr::copy_nonoverlapping(old, frames, self.written);
            }
            (&raw mut self.frames).write_volatile(frames);
            (&raw mut self.capacity).write_volatile(capacity);
            if old_capacity > 0 {
                process::unmap_own(old.cast(), old_capacity * size_of::<Frame>());
            }
        }
        true
    }

    /// Drops all frames but the oldest `keep`.
    #[inline(always)]
    fn truncate(&mut self, keep: usize) {
        while self.len > keep {
            self.len -= 1;
            // SAFETY: all frames below the old len are written.
            self.hash = self.hash.wrapping_sub(unsafe { (*self.frames.add(self.len)).mixed });
        }
        self.unchanged = self.unchanged.min(keep);
    }

    /// Returns the number of a code object that had a frame at the place of the next frame.
    #[inline(always)]
    fn number_here(&self, code: usize) -> Option<u32> {
        if self.len >= self.written {
            return None;
        }
        // SAFETY: all frames below `written` are written.
        let old = unsafe { *self.frames.add(self.len) };
        if old.code == code { as_python_frame(old.frame).map(|(number, _)| number) } else { None }
    }

    #[inline(always)]
    fn push(&mut self, code: usize, offset: u32, is_entry: bool, number: u32) {
        let frame = python_frame(number, offset) | if is_entry { PYTHON_ENTRY } else { 0 };
        let mixed = mix(frame, self.len as u64);
        // SAFETY: `make_room` made room for a frame for each link.
        unsafe { self.frames.add(self.len).write(Frame { code, frame, mixed }) };
        self.hash = self.hash.wrapping_add(mixed);
        self.len += 1;
        self.written = self.written.max(self.len);
    }

    fn frames_from(&self, from: usize) -> impl Iterator<Item = u64> {
        let frames = self.frames;
        // SAFETY: all frames below len are written.
        (from..self.len).map(move |i| unsafe { (*frames.add(i)).frame })
    }

    /// Whether the traceback is that of a fresh reading of all frames.
    ///
    /// A frame that is marked as called by C may have lost the frame of C below: greenlet links
    /// frames past the frames of C while it switches.
    ///
    /// # Safety
    /// `newest` is the newest frame of the calling thread.
    unsafe fn is_fresh(&self, layout: &Layout, newest: usize) -> bool {
        let (mut frame, mut left, mut read) = (newest, self.len, 0);
        // Whether the newer frame is marked as called by C, until an older frame tells.
        let mut is_marked = None;
        while frame != 0 && read < MAX_DEPTH {
            read += 1;
            // SAFETY: the caller guarantees the thread's own frames, and frames below len are
            // written.
            unsafe {
                match layout.place(frame) {
                    Stands::Code { code, offset, is_entry } => {
                        if left == 0 {
                            return false;
                        }
                        left -= 1;
                        let kept = *self.frames.add(left);
                        let has_mark = kept.frame & PYTHON_ENTRY != 0;
                        let has_offset = as_python_frame(kept.frame).is_some_and(|(_, at)| at == offset);
                        if kept.code != code || !has_offset || is_entry && !has_mark {
                            return false;
                        }
                        is_marked = (!is_entry).then_some(has_mark);
                    }
                    Stands::Entry if is_marked == Some(false) => return false,
                    Stands::Entry => is_marked = None,
                    Stands::Nothing => {}
                }
                frame = layout.previous(frame);
            }
        }
        left == 0 && (frame != 0) == self.chain.is_truncated()
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
        if let Err(published) = self.renew_python_stack(&api.layout, thread_state) {
            self.python.forget();
            return Err(published);
        }
        let n = self.python.len;
        if n == 0 {
            return Ok(None);
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DEPTH")]
        let walk = Walk { stored: n, total: n as u32, truncated: self.python.chain.is_truncated() };
        let key = stacks::key(self.python.hash ^ SALT, walk);
        match self.stack_id(key) {
            Some(id) => Ok(Some(id)),
            None => {
                let kept = self.python;
                let id = self.define_stack(walk, key, kept.unchanged, domain::PYTHON, |from| kept.frames_from(from))?;
                self.python.unchanged = n;
                Ok(Some(id))
            }
        }
    }

    /// Updates the kept frames to the present stack, in place: the stores of the last event are too
    /// recent to be copied by wide loads.
    #[inline(always)]
    fn renew_python_stack(&mut self, layout: &Layout, thread_state: *const u8) -> Result<(), Published> {
        let generation = codes::generation();
        if self.python.generation != generation {
            self.python.forget();
            self.python.generation = generation;
        }
        // SAFETY: the thread's own state, and frames run by the thread.
        unsafe {
            let newest = layout.newest(thread_state);
            let mut fresh = self.python.chain.renew(layout, newest);
            self.python.truncate(self.python.chain.shown());
            if !self.python.make_room() {
                self.python.forget();
                return Ok(());
            }
            while let Some(frame) = fresh.next(&self.python.chain) {
                let mut is_called_by_c = self.python.chain.is_called_by_c();
                match layout.place(frame) {
                    Stands::Code { code, offset, is_entry } => {
                        let known = self.python.number_here(code).or_else(|| codes::known(code, self.session()));
                        let number = match known {
                            Some(number) => number,
                            None => self.describe_code(code, layout)?,
                        };
                        self.python.push(code, offset, is_entry || is_called_by_c, number);
                        is_called_by_c = false;
                    }
                    Stands::Entry => is_called_by_c = true,
                    Stands::Nothing => {}
                }
                let shown = self.python.len;
                self.python.chain.push(layout, frame, shown, is_called_by_c);
            }
            if self.verifies() {
                self.note_verified(self.python.is_fresh(layout, newest));
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn note_verified(&self, is_same: bool) {
        let target = &self.header().target;
        target.verified.fetch_add(1, Ordering::Relaxed);
        if !is_same {
            target.verify_failed.fetch_add(1, Ordering::Relaxed);
        }
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
        super::look_at_interpreter();
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
