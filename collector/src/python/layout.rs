//! Offsets in CPython's structures, by version, as needed for a traceback.
//!
//! Offsets are in bytes on x86-64. From 3.13 on the interpreter publishes nearly all
//! ([`super::published`]). Offsets of 3.9 to 3.12, and offsets that are not published, are from the
//! headers (`frameobject.h`, `pycore_frame.h`, `cpython/code.h`, `cpython/pystate.h`,
//! `cpython/unicodeobject.h`). A thread reads only its own frames and the objects they refer to,
//! which live as long as the frames run.

use super::published::Published;
use super::version::Version;
use core::sync::atomic::{AtomicBool, Ordering};
use heapline_shared_format::code::{HEAD_BYTES, Head, LineFormat};
use heapline_shared_format::event::NOT_BEGUN;

/// Offsets in an object, and words before the object that belong to the object's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectLayout {
    /// In an object: the type.
    pub kind: usize,
    /// In a type: the flags.
    pub flags: usize,
    /// Bytes before an object known to the garbage collector.
    pub gc_head: usize,
    /// Type flags with two words before the object, in addition to the garbage collector's words.
    pub pre_header: usize,
}

/// Type flags for a managed dict, and from 3.12 on for weak references too.
const MANAGED_DICT: usize = 1 << 4;
const MANAGED_WEAKREF: usize = 1 << 3;

/// Offsets of a version.
#[derive(Clone, Copy)]
pub struct Layout {
    version: Version,
    /// In the thread state: the newest frame, or a structure with a pointer to the newest frame.
    newest: usize,
    /// In the structure: the pointer to the newest frame. None if the thread state has the pointer.
    indirect: Option<usize>,
    previous: usize,
    code: usize,
    instruction: usize,
    owner: usize,
    /// In a frame of 3.11: whether the frame was called by C.
    is_entry: usize,
    result: ResultWord,
    jit: Option<JitFlag>,
    copies: Option<Copies>,
    object: ObjectLayout,
    first_line: usize,
    /// File, name and line table.
    strings: [usize; 3],
    first_traceable: usize,
    start: usize,
    text: Text,
    /// In a `bytes`: length, and first byte.
    bytes: [usize; 2],
}

/// Place of the word of a frame that takes the result of the callee.
#[derive(Clone, Copy)]
enum ResultWord {
    /// The place is not known, or the word may be read before.
    None,
    /// The number of words in use, and the first word (3.11 to 3.13).
    Behind { used: usize, first: usize },
    /// A pointer to the word (from 3.14 on).
    At(usize),
}

/// Place of the flag for whether the interpreter compiles functions at run time.
#[derive(Clone, Copy)]
struct JitFlag {
    /// In a thread state: the interpreter's state.
    interpreter: usize,
    /// In the interpreter's state: the flag, a byte.
    flag: usize,
}

impl JitFlag {
    /// Returns the place. None in versions that compile nothing, and where the interpreter's state
    /// has another size than in the headers known.
    fn of(version: Version, published: &Published) -> Option<JitFlag> {
        let flag = match (version.minor(), published.interpreter_bytes) {
            (14, 225_864) => 223_184,
            (15, 226_232) => 223_408,
            _ => return None,
        };
        Some(JitFlag { interpreter: published.interpreter, flag })
    }
}

/// Set where compiled functions may run: they keep results in registers, and a frame's word for the
/// result stays as it was.
static HAS_JIT: AtomicBool = AtomicBool::new(false);

/// A code object's copies of its instructions, one for each thread (free-threaded 3.14 and later).
#[derive(Clone, Copy)]
struct Copies {
    /// In a frame: the number of the copy.
    number: usize,
    /// In a code object: the table of copies.
    table: usize,
}

/// Offsets in a `str`.
#[derive(Clone, Copy)]
struct Text {
    length: usize,
    state: usize,
    /// Bits of the state below the bits of the kind.
    kind_shift: u32,
    /// Start of the characters of an ASCII string, and of other strings.
    characters: [usize; 2],
}

/// Kind of a frame of the interpreter.
pub enum Stands {
    /// A code object with the offset of an instruction. `is_entry` is set if the frame is known to
    /// be called by C.
    Code { code: usize, offset: u32, is_entry: bool },
    /// Not a Python frame (3.12 and later): the next newer frame was called by C.
    Entry,
    /// A frame not begun yet.
    Nothing,
}

/// Owners of a frame: `FRAME_OWNED_BY_THREAD`, `FRAME_OWNED_BY_GENERATOR`, and the first owner of
/// frames that are not Python's (`FRAME_OWNED_BY_CSTACK`, later `FRAME_OWNED_BY_INTERPRETER`).
const THREAD: u8 = 0;
const GENERATOR: u8 = 1;
const C_STACK: u8 = 3;
/// Bits of the word with a frame's code object that are no part of the address.
const TAGS: usize = 3;
/// Bytes of an instruction.
const CODE_UNIT: usize = 2;
/// Longest prologue of a code object, in bytes. A frame counts only from its first traceable
/// instruction on. A longer prologue would need hundreds of variables shared by inner functions.
const LONGEST_PROLOGUE: usize = 1024;

/// Content of the word for the result of a callee that has not returned: the address of no object.
const MARK: usize = 0x4845_4150_4C49_4E45;

/// A word that equals no kept word.
pub const UNDECIDED: usize = usize::MAX;

impl Layout {
    /// Returns the layout of a version. `published` has the offsets published by the interpreter.
    /// None for an unknown layout.
    pub fn of(version: Version, published: impl FnOnce() -> Option<Published>) -> Option<Layout> {
        match version.minor() {
            9 => Some(Layout::of_9(version)),
            10 => Some(Layout { instruction: 96, ..Layout::of_9(version) }),
            11 => Some(Layout::of_11(version)),
            12 => Some(Layout::of_12(version)),
            13..=15 => published().map(|published| Layout::of_published(version, published)),
            _ => None,
        }
    }

    fn of_9(version: Version) -> Layout {
        Layout {
            version,
            newest: 24,
            indirect: None,
            previous: 24,
            code: 32,
            instruction: 104,
            owner: 0,
            is_entry: 0,
            result: ResultWord::None,
            jit: None,
            copies: None,
            object: ObjectLayout { kind: 8, flags: 168, gc_head: 16, pre_header: 0 },
            first_line: 40,
            strings: [104, 112, 120],
            first_traceable: 0,
            start: 0,
            text: Text { length: 16, state: 32, kind_shift: 2, characters: [48, 72] },
            bytes: [16, 32],
        }
    }

    fn of_11(version: Version) -> Layout {
        let of_9 = Layout::of_9(version);
        Layout {
            newest: 56,
            indirect: Some(8),
            previous: 48,
            instruction: 56,
            owner: 69,
            is_entry: 68,
            result: ResultWord::Behind { used: 64, first: 72 },
            object: ObjectLayout { pre_header: MANAGED_DICT, ..of_9.object },
            first_line: 72,
            strings: [112, 128, 136],
            first_traceable: 168,
            start: 184,
            ..of_9
        }
    }

    fn of_12(version: Version) -> Layout {
        let of_11 = Layout::of_11(version);
        Layout {
            indirect: Some(0),
            previous: 8,
            code: 0,
            owner: 70,
            object: ObjectLayout { pre_header: MANAGED_DICT | MANAGED_WEAKREF, ..of_11.object },
            first_line: 68,
            first_traceable: 176,
            start: 192,
            text: Text { characters: [40, 56], ..of_11.text },
            ..of_11
        }
    }

    fn of_published(version: Version, published: Published) -> Layout {
        let of_12 = Layout::of_12(version);
        let Published { newest, frame, code, object, bytes, text, .. } = published;
        let is_free = version.is_free_threaded();
        let jit = JitFlag::of(version, &published);
        let has_copies = is_free && version.minor() >= 14;
        let result = match version.minor() {
            // The garbage collector of these builds reads all words of a frame, also words behind
            // the words in use.
            _ if is_free => ResultWord::None,
            13 => of_12.result,
            _ if jit.is_none() => ResultWord::None,
            _ => ResultWord::At(frame.stack_pointer),
        };
        Layout {
            newest,
            indirect: None,
            previous: frame.previous,
            code: frame.code,
            instruction: frame.instruction,
            owner: frame.owner,
            result,
            jit,
            copies: has_copies.then_some(Copies { number: frame.copy, table: code.copies }),
            object: ObjectLayout {
                kind: object.kind,
                flags: object.flags,
                gc_head: if is_free { 0 } else { of_12.object.gc_head },
                ..of_12.object
            },
            first_line: code.first_line,
            strings: code.strings,
            // Between the two stand a pointer for tools and, if any, the pointer to the copies.
            first_traceable: code.start - if has_copies { 24 } else { 16 },
            start: code.start,
            text: Text {
                length: text.length,
                state: text.state,
                kind_shift: if has_copies { 8 } else { 2 },
                // A string of other characters has two more words before them.
                characters: [text.characters, text.characters + 16],
            },
            bytes,
            ..of_12
        }
    }

    /// Offsets in an object.
    pub fn object(&self) -> ObjectLayout {
        self.object
    }

    /// Returns the newest frame of a thread; 0 if the thread runs no Python.
    ///
    /// # Safety
    /// `thread_state` is the calling thread's own state.
    #[inline(always)]
    pub unsafe fn newest(&self, thread_state: *const u8) -> usize {
        // SAFETY: the caller guarantees the calling thread's own state.
        unsafe {
            let newest = word(thread_state.addr() + self.newest);
            match self.indirect {
                Some(offset) if newest != 0 => word(newest + offset),
                _ => newest,
            }
        }
    }

    /// Returns the frame of the caller; 0 for the oldest frame.
    ///
    /// # Safety
    /// `frame` is a frame of the calling thread.
    #[inline(always)]
    pub unsafe fn previous(&self, frame: usize) -> usize {
        // SAFETY: the caller guarantees a frame of the calling thread.
        unsafe { word(frame + self.previous) }
    }

    /// Returns kind and place of a frame.
    ///
    /// # Safety
    /// `frame` is a frame of the calling thread.
    #[inline(always)]
    pub unsafe fn place(&self, frame: usize) -> Stands {
        // SAFETY: the caller guarantees a frame of the calling thread.
        unsafe {
            if self.version.minor() <= 10 {
                let last = ((frame + self.instruction) as *const i32).read();
                let unit = if self.version.minor() == 10 { 2 } else { 1 };
                let offset = u32::try_from(last).map_or(NOT_BEGUN, |last| last * unit);
                return Stands::Code { code: word(frame + self.code), offset, is_entry: true };
            }
            let owner = ((frame + self.owner) as *const u8).read();
            if self.version.minor() >= 12 && owner >= C_STACK {
                return Stands::Entry;
            }
            let code = word(frame + self.code) & !TAGS;
            // Before the first instruction the difference wraps to a large number.
            let offset = word(frame + self.instruction).wrapping_sub(self.instructions(frame, code));
            if offset.wrapping_add(CODE_UNIT) <= LONGEST_PROLOGUE && owner != GENERATOR {
                let first = ((code + self.first_traceable) as *const u32).read() as usize;
                if offset.wrapping_add(CODE_UNIT) < CODE_UNIT * first + CODE_UNIT {
                    return Stands::Nothing;
                }
            }
            let is_entry = self.version.minor() == 11 && ((frame + self.is_entry) as *const u8).read() != 0;
            Stands::Code { code, offset: u32::try_from(offset).unwrap_or(NOT_BEGUN), is_entry }
        }
    }

    /// Returns the address of the instructions run by a frame.
    #[inline(always)]
    unsafe fn instructions(&self, frame: usize, code: usize) -> usize {
        /// Offset of the first entry in the table of copies.
        const ENTRIES: usize = 8;
        let Some(Copies { number, table }) = self.copies else { return code + self.start };
        // SAFETY: the callers guarantee a frame of the calling thread. The table has an entry for
        // the number of a running frame.
        unsafe {
            let number = usize::try_from(((frame + number) as *const i32).read()).unwrap_or(0);
            word(word(code + table) + ENTRIES + number * size_of::<usize>())
        }
    }

    /// Returns the word that decides what a traceback shows of a frame: equal words of a frame mean
    /// equal code, offset and caller's kind.
    ///
    /// | Version | Bits |
    /// | --- | --- |
    /// | 3.9, 3.10 | address of the code object (aligned, 47 bits), and last instruction plus 1 |
    /// | 3.11 | address of the instruction, and whether C called the frame |
    /// | from 3.12 on | address of the instruction |
    ///
    /// [`UNDECIDED`] for a frame of 3.9 or 3.10 in an extremely long function.
    ///
    /// # Safety
    /// `frame` is a frame of the calling thread.
    #[inline(always)]
    pub unsafe fn deciding(&self, frame: usize) -> usize {
        // SAFETY: the caller guarantees a frame of the calling thread.
        unsafe {
            match self.version.minor() {
                ..=10 => self.of_object(frame),
                11 => self.of_entry(frame),
                _ => word(frame + self.instruction),
            }
        }
    }

    #[inline(always)]
    unsafe fn of_object(&self, frame: usize) -> usize {
        const BITS: u32 = 17 + 4;
        // SAFETY: the caller guarantees a frame of the calling thread.
        let (code, last) = unsafe { (word(frame + self.code), ((frame + self.instruction) as *const i32).read()) };
        match usize::try_from(last.wrapping_add(1)) {
            Ok(next) if next >> BITS == 0 => code << 17 | next,
            _ => UNDECIDED,
        }
    }

    #[inline(always)]
    unsafe fn of_entry(&self, frame: usize) -> usize {
        // SAFETY: the caller guarantees a frame of the calling thread.
        unsafe { word(frame + self.instruction) << 1 | usize::from(((frame + self.is_entry) as *const u8).read() != 0) }
    }

    /// Compares kept frames with the thread's frames, from the kept frame `from` to the oldest.
    /// Returns the number of the oldest frames that are as they were: all below the oldest changed
    /// frame. None if the chain of frames is another.
    ///
    /// # Safety
    /// `addresses` and `words` have frames of the calling thread as they were, the oldest first,
    /// with a zero in front of the addresses. The frame `from` is a frame of the thread now.
    #[inline(always)]
    pub unsafe fn oldest_changed(&self, addresses: *const usize, words: *const usize, from: usize) -> Option<usize> {
        // SAFETY: the caller guarantees the frames.
        unsafe {
            match self.version.minor() {
                ..=10 => self.compare(addresses, words, from, |frame| self.of_object(frame)),
                11 => self.compare(addresses, words, from, |frame| self.of_entry(frame)),
                _ => self.compare(addresses, words, from, |frame| word(frame + self.instruction)),
            }
        }
    }

    /// Returns the word of a frame in which the result of its callee will be stored. None if the
    /// frame has not called `callee` by an instruction of its own that took operands.
    ///
    /// # Safety
    /// `callee` is a frame of the calling thread, and `frame` the frame of its caller.
    #[inline(always)]
    pub unsafe fn result(&self, frame: usize, callee: usize) -> Option<*mut usize> {
        // SAFETY: the caller guarantees frames of the calling thread.
        unsafe {
            let byte = |address: usize| (address as *const u8).read();
            let is_called = || {
                let is_from_c = match self.version.minor() {
                    11 => byte(callee + self.is_entry) != 0,
                    _ => byte(frame + self.owner) >= C_STACK,
                };
                // A generator may be resumed without an operand.
                !is_from_c && byte(callee + self.owner) == THREAD
            };
            // The place is known while the frame waits for a callee.
            let place = match self.result {
                ResultWord::Behind { used, first } if is_called() => {
                    let used = usize::try_from(((frame + used) as *const i32).read()).ok()?;
                    frame + first + used * size_of::<usize>()
                }
                ResultWord::At(pointer) if !HAS_JIT.load(Ordering::Relaxed) && is_called() => word(frame + pointer),
                _ => return None,
            };
            // A debug build holds no pointer while the frame itself runs.
            (place != 0).then_some(place as *mut usize)
        }
    }

    /// Notes whether the interpreter compiles functions. The flag is set after the interpreter's
    /// first modules, and before its first hot function.
    ///
    /// # Safety
    /// `thread_state` is the calling thread's own state.
    pub unsafe fn note_jit(&self, thread_state: *const u8) {
        let Some(JitFlag { interpreter, flag }) = self.jit else { return };
        // SAFETY: the caller guarantees a thread state, which points to its interpreter's state.
        // The flag is inside of the state, whose size is known.
        let is_set = unsafe { ((word(thread_state.addr() + interpreter) + flag) as *const u8).read() != 0 };
        HAS_JIT.fetch_or(is_set, Ordering::Relaxed);
    }

    /// Whether `callee` has not returned to `frame` since the mark was set.
    #[inline(always)]
    unsafe fn is_marked(&self, frame: usize, callee: usize) -> bool {
        // SAFETY: the callers guarantee frames of the calling thread.
        unsafe { self.result(frame, callee).is_some_and(|result| result.read() == MARK) }
    }

    /// Marks that `callee` has not returned to `frame`.
    ///
    /// # Safety
    /// As for [`Layout::result`].
    #[inline(always)]
    pub unsafe fn mark(&self, frame: usize, callee: usize) {
        // SAFETY: the word has room for the callee's result, and nothing reads the word before.
        unsafe {
            if let Some(result) = self.result(frame, callee) {
                result.write(MARK);
            }
        }
    }

    #[inline(always)]
    unsafe fn compare(
        &self,
        addresses: *const usize,
        words: *const usize,
        from: usize,
        deciding: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        let (mut same, mut left) = (from + 1, from + 1);
        while left > 0 {
            left -= 1;
            // SAFETY: the caller guarantees the first frame, and each frame was pointed to by the
            // frame before it.
            unsafe {
                let frame = *addresses.add(left);
                if deciding(frame) != *words.add(left) {
                    same = left;
                }
                let caller = *addresses.add(left).sub(1);
                if word(frame + self.previous) != caller {
                    return None;
                }
                if caller != 0 && self.is_marked(caller, frame) {
                    break;
                }
            }
        }
        Some(same)
    }

    /// Describes a code object: file, name and line table.
    ///
    /// # Safety
    /// `code` is a code object of a frame run by the calling thread.
    pub unsafe fn describe<'a>(&self, code: usize) -> Description<'a> {
        // SAFETY: the caller guarantees a live code object; the objects referred to live as long as
        // the code object.
        unsafe {
            let (file, file_kind) = self.text(word(code + self.strings[0]));
            let (name, name_kind) = self.text(word(code + self.strings[1]));
            let table = self.bytes(word(code + self.strings[2]));
            let lines = match self.version.minor() {
                9 => LineFormat::Lnotab,
                10 => LineFormat::LineTable,
                _ => LineFormat::Locations,
            };
            let first_line = ((code + self.first_line) as *const i32).read();
            Description::new(lines, u32::try_from(first_line).unwrap_or(0), [file, name, table], [file_kind, name_kind])
        }
    }

    /// Returns the characters of a `str`, and the bytes of each character. A string that is not
    /// compact is taken as empty; compilers make only compact strings.
    unsafe fn text<'a>(&self, object: usize) -> (&'a [u8], u8) {
        // SAFETY: the callers guarantee a live `str`, or null.
        unsafe {
            if object == 0 {
                return (&[], 1);
            }
            let Text { length, state, kind_shift, characters } = self.text;
            let state = ((object + state) as *const u32).read() >> kind_shift;
            let (kind, is_compact, is_ascii) = (state & 7, state >> 3 & 1 == 1, state >> 4 & 1 == 1);
            let bytes_each = match kind {
                1 | 2 | 4 if is_compact => kind.to_le_bytes()[0],
                _ => return (&[], 1),
            };
            let start = object + characters[usize::from(!is_ascii)];
            let length = word(object + length) * usize::from(bytes_each);
            (core::slice::from_raw_parts(start as *const u8, length), bytes_each)
        }
    }

    /// Returns the contents of a `bytes`.
    unsafe fn bytes<'a>(&self, object: usize) -> &'a [u8] {
        let [length, first] = self.bytes;
        if object == 0 {
            return &[];
        }
        // SAFETY: the callers guarantee a live `bytes`.
        unsafe { core::slice::from_raw_parts((object + first) as *const u8, word(object + length)) }
    }
}

#[inline(always)]
unsafe fn word(address: usize) -> usize {
    // SAFETY: the callers guarantee a readable word at the address.
    unsafe { (address as *const usize).read() }
}

/// The description of a code object, in parts.
pub struct Description<'a> {
    head: [u8; HEAD_BYTES],
    parts: [&'a [u8]; 3],
}

impl<'a> Description<'a> {
    fn new(lines: LineFormat, first_line: u32, parts: [&'a [u8]; 3], kinds: [u8; 2]) -> Description<'a> {
        let length = |bytes: &[u8], kind: u8| u32::try_from(bytes.len() / usize::from(kind)).unwrap_or(0);
        let head = Head {
            lines,
            file_kind: kinds[0],
            name_kind: kinds[1],
            first_line,
            file_length: length(parts[0], kinds[0]),
            name_length: length(parts[1], kinds[1]),
            table_bytes: length(parts[2], 1),
        };
        Description { head: head.to_bytes(), parts }
    }

    /// Returns the description of unknown code, with the names used by tracemalloc.
    pub fn unknown() -> Description<'static> {
        let unknown: &'static [u8] = b"<unknown>";
        Description::new(LineFormat::Lnotab, 0, [unknown, unknown, &[]], [1, 1])
    }

    /// Number of bytes of the whole description.
    pub fn len(&self) -> usize {
        self.head.len() + self.parts.iter().map(|part| part.len()).sum::<usize>()
    }

    /// Returns the byte at a place; 0 beyond the end.
    pub fn byte(&self, mut at: usize) -> u8 {
        for part in [&self.head[..], self.parts[0], self.parts[1], self.parts[2]] {
            match part.get(at) {
                Some(&byte) => return byte,
                None => at -= part.len(),
            }
        }
        0
    }
}
