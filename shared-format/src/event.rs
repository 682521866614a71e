//! The records in a ring.
//!
//! A record is a sequence of little-endian words of 8 bytes. The low four bits of the first word
//! are the kind. For a record with a place in time, the other sixty bits are the stamp.
//!
//! ```text
//!              63                              48 47                                     4 3   0
//! PAD          | words to skip, this one included                                         | 0  |
//! ALLOC        | stamp                                                                    | 1  |
//!              | size, low 16 bits            | address                                        |
//!              | size, next 32 bits                         | stack id                         |
//! FREE         | stamp                                                                    | 2  |
//!              | domain 8 | 0                 | address                                        |
//! REALLOC      | stamp                                                                    | 3  |
//!              | domain 8 | 0                 | old address                                    |
//! REALLOCATED  | as ALLOC                                                                 | 4  |
//! REALLOC_END  | stamp                                                                    | 5  |
//!              | domain 8 | failed 0, freed 1 | old address                                    |
//! STACK        | 0     | domain 8 | truncated 1 | more 1 | number n of frames 16            | 6  |
//!              | frames kept of the last definition, 32     | stack id, 32                     |
//!              | total depth, 32 | 0                                                           |
//!              | n frames, the oldest first ...                                                |
//! MODULE       | stamp                                                                    | 7  |
//!              | bytes of path 16 | bytes of build-id 16 | 0 | recorded 1 | the program 1       |
//!              | first address; end address; load bias                                         |
//!              | build-id, then path, padded with zeros to a word ...                          |
//! UNLOAD       | stamp                                                                    | 8  |
//!              | first address                                                                 |
//! THREAD       | stamp                                                                    | 9  |
//!              | name, 16 bytes, padded with zeros                                             |
//! CODE         | 0                            | more 1 | number n of bytes 16             | 10 |
//!              | 0                                          | code id, 32                      |
//!              | n bytes of description ([`super::code`]), padded with zeros to a word ...     |
//! MIXED        | 0                                                                        | 11 |
//!              | id of a native stack, 32                   | stack id, 32                     |
//!              | id of the Python stack at the same time, 32 | 0                               |
//! REUSE        | as ALLOC, size 0                                                         | 12 |
//! TRACK        | as ALLOC                                                                 | 13 |
//!              | a pool 1 | gone 1 | tracemalloc's domain, or number of a pool, 32               |
//! QUERY        | stamp                                                                    | 14 |
//!              | number of the query, 32                    | question ([`super::query`])      |
//!              | argument                                                                      |
//!              | argument                                                                      |
//! MAPPING      | stamp                                                                    | 15 |
//!              | change of the address space ([`super::mapping`]) ...                          |
//! ```
//!
//! - REALLOC announces a call of `realloc`. REALLOCATED reports the new block, REALLOC_END a call
//!   without a new block.
//! - REUSE reports a new object in a block kept by the interpreter.
//!
//! A frame is either of these:
//!
//! - Native: a return address. Bit 61 is set when the walk left the frame, for its caller, by the
//!   frame pointer: the code of the frame has no unwind tables.
//! - Python: bit 63 set, the id of a code object (30 bits), and the offset of the instruction in
//!   the code (32 bits, in bytes). Bit 62 is set when C code called the frame: a native frame
//!   belongs to the frame.
//!
//! A stack belongs to a [`domain`], and a block belongs to the domain of the block's stack.
//!
//! The frames of a stack are the ring's last definition, cut to the frames kept, plus the new
//! frames. A definition too long for a record is split into several records: all but the last have
//! `more` set, and define no id.

pub use crate::word::{ADDRESS_BITS, DecodeError, STAMP_BITS, domain};

use crate::mapping::{self, Mapping};
use core::ops::Range;

/// Bit of a frame: set for a Python frame, made of a code id and an instruction.
pub const PYTHON_FRAME: u64 = 1 << 63;
/// Largest number of code ids; a frame has 30 bits for the id.
pub const MAX_CODES: u32 = 1 << 30;
/// Bit of a Python frame: set when C code called the frame. A separate interpreter loop runs this
/// frame and all newer frames, up to the next frame with the bit.
pub const PYTHON_ENTRY: u64 = 1 << 62;

/// Bit of a native frame: set when the walk left the frame by its frame pointer.
pub const BY_FRAME_POINTER: u64 = 1 << 61;

/// Returns the return address of a native frame, and whether the walk left the frame by its frame
/// pointer. A Python frame stays as it is.
#[inline(always)]
pub const fn as_native_frame(frame: u64) -> (u64, bool) {
    if frame & PYTHON_FRAME != 0 { (frame, false) } else { (frame & !BY_FRAME_POINTER, frame & BY_FRAME_POINTER != 0) }
}

/// Offset of a Python frame that has not begun: the frame is at the first line of the code.
pub const NOT_BEGUN: u32 = u32::MAX;

/// Returns the frame of an instruction of a Python code object.
#[inline(always)]
pub const fn python_frame(code: u32, offset: u32) -> u64 {
    PYTHON_FRAME | (code as u64) << 32 | offset as u64
}

/// Returns the code id and the offset of the instruction. None for a native frame.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
pub const fn as_python_frame(frame: u64) -> Option<(u32, u32)> {
    if frame & PYTHON_FRAME == 0 { None } else { Some(((frame >> 32) as u32 & (MAX_CODES - 1), frame as u32)) }
}

/// Bits of a size.
pub const SIZE_BITS: u32 = 48;
/// Largest number of frames in a STACK record.
pub const MAX_STACK_FRAMES: usize = 512;
/// Longest path in a MODULE record, in bytes; longer paths are cut.
pub const MAX_PATH_BYTES: usize = 4096;
/// Largest number of description bytes in a CODE record.
pub const MAX_CODE_BYTES: usize = 4096;
/// Longest build-id in a MODULE record, in bytes.
pub const MAX_BUILD_ID_BYTES: usize = 64;
/// Number of words of the largest record.
pub const MAX_RECORD_WORDS: usize = MODULE_WORDS + (MAX_PATH_BYTES + MAX_BUILD_ID_BYTES) / 8;

#[cfg(not(loom))]
const _: () = assert!(MAX_RECORD_WORDS < crate::arena::SEGMENT_WORDS);
#[cfg(not(loom))]
const _: () = assert!(STACK_WORDS + MAX_STACK_FRAMES < crate::arena::SEGMENT_WORDS);

const STACK_WORDS: usize = 3;
const MODULE_WORDS: usize = 5;
const CODE_WORDS: usize = 2;
const DOMAIN_SHIFT: u32 = 56;
const UNTRACKED: u64 = 1 << 32;
const OF_POOL: u64 = 1 << 33;
const STACK_DOMAIN_SHIFT: u32 = 22;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;

/// Numbers of the kinds of record.
pub mod kind {
    #![expect(missing_docs, reason = "the module's header draws them")]
    pub const PAD: u64 = 0;
    pub const ALLOC: u64 = 1;
    pub const FREE: u64 = 2;
    pub const REALLOC: u64 = 3;
    pub const REALLOCATED: u64 = 4;
    pub const REALLOC_END: u64 = 5;
    pub const STACK: u64 = 6;
    pub const MODULE: u64 = 7;
    pub const UNLOAD: u64 = 8;
    pub const THREAD: u64 = 9;
    pub const CODE: u64 = 10;
    pub const MIXED: u64 = 11;
    pub const REUSE: u64 = 12;
    pub const TRACK: u64 = 13;
    pub const QUERY: u64 = 14;
    pub const MAPPING: u64 = 15;
}

/// Returns the word that skips `words` words, the rest of a segment.
#[inline(always)]
pub const fn pad(words: usize) -> u64 {
    (words as u64) << 4 | kind::PAD
}

#[inline(always)]
const fn stamped(kind: u64, stamp: u64) -> u64 {
    stamp << 4 | kind
}

/// Returns an ALLOC record.
#[inline(always)]
pub const fn alloc(stamp: u64, address: u64, size: u64, stack: u32) -> [u64; 3] {
    [stamped(kind::ALLOC, stamp), address & ADDRESS_MASK | size << 48, size >> 16 << 32 | stack as u64]
}

/// Returns a FREE record.
#[inline(always)]
pub const fn free(stamp: u64, address: u64) -> [u64; 2] {
    [stamped(kind::FREE, stamp), address & ADDRESS_MASK]
}

/// Returns a FREE, REALLOC or REALLOC_END record with another domain.
#[inline(always)]
pub const fn in_domain([first, second]: [u64; 2], domain: u8) -> [u64; 2] {
    [first, second | (domain as u64) << DOMAIN_SHIFT]
}

/// Returns a REALLOC record: a call for `address` is about to be made.
#[inline(always)]
pub const fn realloc(stamp: u64, address: u64) -> [u64; 2] {
    [stamped(kind::REALLOC, stamp), address & ADDRESS_MASK]
}

/// Returns a REALLOCATED record: the call returned a block.
#[inline(always)]
pub const fn reallocated(stamp: u64, address: u64, size: u64, stack: u32) -> [u64; 3] {
    [stamped(kind::REALLOCATED, stamp), address & ADDRESS_MASK | size << 48, size >> 16 << 32 | stack as u64]
}

/// Returns a REALLOC_END record: the call returned no block. `freed` when the old block is gone
/// (size 0).
#[inline(always)]
pub const fn realloc_end(stamp: u64, address: u64, freed: bool) -> [u64; 2] {
    [stamped(kind::REALLOC_END, stamp), address & ADDRESS_MASK | (freed as u64) << 48]
}

/// Returns the head of a STACK record; `n` frames follow.
///
/// `keep` counts frames of the ring's last definition, from the root. `total` is the true depth.
#[inline]
pub const fn stack_head(n: usize, keep: u32, id: u32, total: u32, truncated: bool, more: bool) -> [u64; STACK_WORDS] {
    [
        kind::STACK | (n as u64) << 4 | (more as u64) << 20 | (truncated as u64) << 21,
        (keep as u64) << 32 | id as u64,
        (total as u64) << 32,
    ]
}

/// Returns the head of a STACK record with another domain.
#[inline(always)]
pub const fn stack_of_domain([first, ids, depth]: [u64; STACK_WORDS], domain: u8) -> [u64; STACK_WORDS] {
    [first | (domain as u64) << STACK_DOMAIN_SHIFT, ids, depth]
}

/// Returns the head of a CODE record; the words of `bytes` bytes follow. With `more`, the
/// description continues in the next CODE record of the ring.
#[inline]
pub const fn code_head(code: u32, bytes: usize, more: bool) -> [u64; CODE_WORDS] {
    [kind::CODE | (bytes as u64) << 4 | (more as u64) << 20, code as u64]
}

/// Returns a MIXED record: stack `id` is the native stack `native`, called from the Python stack
/// `python`.
#[inline(always)]
pub const fn mixed(id: u32, native: u32, python: u32) -> [u64; 3] {
    [kind::MIXED, (native as u64) << 32 | id as u64, (python as u64) << 32]
}

/// Returns a REUSE record: the interpreter made a new object in a kept block.
#[inline(always)]
pub const fn reuse(stamp: u64, address: u64, stack: u32) -> [u64; 3] {
    [stamped(kind::REUSE, stamp), address & ADDRESS_MASK, stack as u64]
}

/// Owner of a block that the program reports by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tracked {
    /// tracemalloc's domain of this number (`PyTraceMalloc_Track`).
    Domain(u32),
    /// The pool that the ring's session has named by this number ([`crate::query::POOL`]).
    Pool(u32),
}

impl Tracked {
    const fn bits(self) -> u64 {
        match self {
            Tracked::Domain(number) => number as u64,
            Tracked::Pool(number) => OF_POOL | number as u64,
        }
    }
}

/// Returns a TRACK record.
#[inline]
pub const fn track(stamp: u64, owner: Tracked, address: u64, size: u64, stack: u32) -> [u64; 4] {
    let [_, first, second] = alloc(stamp, address, size, stack);
    [stamped(kind::TRACK, stamp), first, second, owner.bits()]
}

/// Returns a TRACK record that ends the tracking of an address.
#[inline]
pub const fn untrack(stamp: u64, owner: Tracked, address: u64) -> [u64; 4] {
    [stamped(kind::TRACK, stamp), address & ADDRESS_MASK, 0, UNTRACKED | owner.bits()]
}

/// Returns a QUERY record. `number` is the target's count of queries.
#[inline]
pub const fn query(stamp: u64, number: u32, asked: u32, arguments: [u64; 2]) -> [u64; 4] {
    [stamped(kind::QUERY, stamp), (number as u64) << 32 | asked as u64, arguments[0], arguments[1]]
}

/// Returns the first word of a MAPPING record.
#[inline(always)]
pub const fn mapping(stamp: u64) -> u64 {
    stamped(kind::MAPPING, stamp)
}

/// Facts about the object of a MODULE record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleFlags {
    /// The object is the program, not a library.
    pub is_program: bool,
    /// The object contains an allocator, and the blocks of the allocator are recorded.
    pub is_recorded: bool,
}

impl ModuleFlags {
    const PROGRAM: u64 = 1;
    const RECORDED: u64 = 2;

    const fn bits(self) -> u64 {
        let program = if self.is_program { ModuleFlags::PROGRAM } else { 0 };
        program | if self.is_recorded { ModuleFlags::RECORDED } else { 0 }
    }

    const fn of_bits(bits: u64) -> ModuleFlags {
        let (is_program, is_recorded) = (bits & ModuleFlags::PROGRAM != 0, bits & ModuleFlags::RECORDED != 0);
        ModuleFlags { is_program, is_recorded }
    }
}

/// Returns the head of a MODULE record, and the number of text words that follow.
#[inline]
pub const fn module_head(
    stamp: u64,
    range: Range<u64>,
    bias: u64,
    flags: ModuleFlags,
    build_id_bytes: usize,
    path_bytes: usize,
) -> ([u64; MODULE_WORDS], usize) {
    (
        [
            stamped(kind::MODULE, stamp),
            (path_bytes as u64) << 48 | (build_id_bytes as u64) << 32 | flags.bits(),
            range.start,
            range.end,
            bias,
        ],
        (path_bytes + build_id_bytes).div_ceil(8),
    )
}

/// Returns an UNLOAD record.
#[inline]
pub const fn unload(stamp: u64, start: u64) -> [u64; 2] {
    [stamped(kind::UNLOAD, stamp), start]
}

/// Returns a THREAD record: the name of the thread when the ring begins, and a changed name when
/// the thread ends.
#[inline]
pub const fn thread(stamp: u64, name: [u8; 16]) -> [u64; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = name;
    [
        stamped(kind::THREAD, stamp),
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u64::from_le_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// A decoded record. Texts and frames borrow from the decoded words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module's header draws the fields")]
pub enum Event<'a> {
    Pad,
    Alloc { stamp: u64, address: u64, size: u64, stack: u32 },
    Free { stamp: u64, address: u64, domain: u8 },
    Realloc { stamp: u64, address: u64, domain: u8 },
    Reallocated { stamp: u64, address: u64, size: u64, stack: u32 },
    ReallocEnd { stamp: u64, address: u64, freed: bool, domain: u8 },
    Stack { id: u32, keep: u32, total: u32, truncated: bool, more: bool, domain: u8, frames: &'a [u64] },
    Code { id: u32, more: bool, text: Text<'a> },
    Mixed { id: u32, native: u32, python: u32 },
    Reuse { stamp: u64, address: u64, stack: u32 },
    Track { stamp: u64, owner: Tracked, address: u64, size: u64, stack: u32 },
    Untrack { stamp: u64, owner: Tracked, address: u64 },
    Query { stamp: u64, number: u32, asked: u32, arguments: [u64; 2] },
    Mapping { stamp: u64, mapping: Mapping },
    Module { stamp: u64, start: u64, end: u64, bias: u64, flags: ModuleFlags, build_id: Text<'a>, path: Text<'a> },
    Unload { stamp: u64, start: u64 },
    Thread { stamp: u64, name: [u8; 16] },
}

impl Event<'_> {
    /// Place of the record in time. None for records that only explain others.
    #[inline]
    pub fn stamp(&self) -> Option<u64> {
        match *self {
            Event::Pad | Event::Stack { .. } | Event::Code { .. } | Event::Mixed { .. } => None,
            Event::Alloc { stamp, .. }
            | Event::Free { stamp, .. }
            | Event::Realloc { stamp, .. }
            | Event::Reallocated { stamp, .. }
            | Event::ReallocEnd { stamp, .. }
            | Event::Reuse { stamp, .. }
            | Event::Track { stamp, .. }
            | Event::Untrack { stamp, .. }
            | Event::Query { stamp, .. }
            | Event::Mapping { stamp, .. }
            | Event::Module { stamp, .. }
            | Event::Unload { stamp, .. }
            | Event::Thread { stamp, .. } => Some(stamp),
        }
    }
}

/// Bytes stored inside words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<'a> {
    words: &'a [u64],
    start: usize,
    end: usize,
}

impl<'a> Text<'a> {
    /// Returns the bytes, each by itself.
    pub fn bytes(self) -> impl Iterator<Item = u8> + 'a {
        (self.start..self.end).map(move |i| self.words[i / 8].to_le_bytes()[i % 8])
    }
}

impl core::fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.bytes()).finish()
    }
}

/// Returns the stamp of a record with first word `first`. None for kinds without a stamp and for
/// unknown kinds.
#[inline(always)]
pub const fn stamp(first: u64) -> Option<u64> {
    match first & 15 {
        kind::ALLOC..=kind::REALLOC_END | kind::MODULE..=kind::THREAD | kind::REUSE..=kind::MAPPING => Some(first >> 4),
        _ => None,
    }
}

/// Decodes the record at the start of `words`. Returns the record and the number of words taken.
///
/// The words are untrusted: any content gives a record or an error. A record takes at least 1 word.
#[inline(always)]
pub fn decode(words: &[u64]) -> Result<(Event<'_>, usize), DecodeError> {
    let &[first, ref rest @ ..] = words else { return Err(DecodeError::Cut) };
    let stamp = first >> 4;
    let block = |rest: &[u64]| match *rest {
        [a, b, ..] => Ok((a & ADDRESS_MASK, a >> 48 | b >> 32 << 16, low32(b))),
        _ => Err(DecodeError::Cut),
    };
    let one = |rest: &[u64]| rest.first().copied().ok_or(DecodeError::Cut);
    Ok(match first & 15 {
        kind::ALLOC => {
            let (address, size, stack) = block(rest)?;
            (Event::Alloc { stamp, address, size, stack }, 3)
        }
        kind::FREE => {
            let word = one(rest)?;
            (Event::Free { stamp, address: word & ADDRESS_MASK, domain: (word >> DOMAIN_SHIFT) as u8 }, 2)
        }
        kind::REALLOC => {
            let word = one(rest)?;
            (Event::Realloc { stamp, address: word & ADDRESS_MASK, domain: (word >> DOMAIN_SHIFT) as u8 }, 2)
        }
        kind::REALLOCATED => {
            let (address, size, stack) = block(rest)?;
            (Event::Reallocated { stamp, address, size, stack }, 3)
        }
        _ => return decode_rare(first, rest),
    })
}

/// Decodes the kinds of record that are rare in the inner loop.
#[cold]
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "fields of eight bits")]
fn decode_rare(first: u64, rest: &[u64]) -> Result<(Event<'_>, usize), DecodeError> {
    let stamp = first >> 4;
    let one = || rest.first().copied().ok_or(DecodeError::Cut);
    Ok(match first & 15 {
        kind::PAD => {
            let n = usize::try_from(stamp).map_err(|_| DecodeError::Malformed)?;
            match n {
                0 => return Err(DecodeError::Malformed),
                n if n > rest.len() + 1 => return Err(DecodeError::Cut),
                n => (Event::Pad, n),
            }
        }
        kind::REALLOC_END => {
            let w = one()?;
            let domain = (w >> DOMAIN_SHIFT) as u8;
            match w >> 48 & 0xff {
                freed @ (0 | 1) => {
                    (Event::ReallocEnd { stamp, address: w & ADDRESS_MASK, freed: freed == 1, domain }, 2)
                }
                _ => return Err(DecodeError::Malformed),
            }
        }
        kind::STACK => {
            let n = (first >> 4 & 0xffff) as usize;
            if n > MAX_STACK_FRAMES || first >> (STACK_DOMAIN_SHIFT + 8) != 0 {
                return Err(DecodeError::Malformed);
            }
            let [ids, depth, frames @ ..] = rest else { return Err(DecodeError::Cut) };
            let frames = frames.get(..n).ok_or(DecodeError::Cut)?;
            let event = Event::Stack {
                id: low32(*ids),
                keep: low32(ids >> 32),
                total: low32(depth >> 32),
                more: first >> 20 & 1 == 1,
                truncated: first >> 21 & 1 == 1,
                domain: (first >> STACK_DOMAIN_SHIFT) as u8,
                frames,
            };
            (event, STACK_WORDS + n)
        }
        kind::MODULE => {
            let [lengths, start, end, bias, text @ ..] = rest else { return Err(DecodeError::Cut) };
            let path = (lengths >> 48) as usize;
            let build_id = (lengths >> 32 & 0xffff) as usize;
            if path > MAX_PATH_BYTES || build_id > MAX_BUILD_ID_BYTES || start > end {
                return Err(DecodeError::Malformed);
            }
            let n = (path + build_id).div_ceil(8);
            let words = text.get(..n).ok_or(DecodeError::Cut)?;
            let event = Event::Module {
                stamp,
                start: *start,
                end: *end,
                bias: *bias,
                flags: ModuleFlags::of_bits(*lengths),
                build_id: Text { words, start: 0, end: build_id },
                path: Text { words, start: build_id, end: build_id + path },
            };
            (event, MODULE_WORDS + n)
        }
        kind::CODE => {
            let bytes = (first >> 4 & 0xffff) as usize;
            if bytes > MAX_CODE_BYTES || first >> 21 != 0 {
                return Err(DecodeError::Malformed);
            }
            let [id, text @ ..] = rest else { return Err(DecodeError::Cut) };
            if *id >= u64::from(MAX_CODES) {
                return Err(DecodeError::Malformed);
            }
            let n = bytes.div_ceil(8);
            let words = text.get(..n).ok_or(DecodeError::Cut)?;
            let text = Text { words, start: 0, end: bytes };
            (Event::Code { id: low32(*id), more: first >> 20 & 1 == 1, text }, CODE_WORDS + n)
        }
        kind::MIXED => {
            let &[ids, python, ..] = rest else { return Err(DecodeError::Cut) };
            (Event::Mixed { id: low32(ids), native: low32(ids >> 32), python: low32(python >> 32) }, 3)
        }
        kind::REUSE => {
            let &[address, stack, ..] = rest else { return Err(DecodeError::Cut) };
            (Event::Reuse { stamp, address: address & ADDRESS_MASK, stack: low32(stack) }, 3)
        }
        kind::TRACK => {
            let &[a, b, whose, ..] = rest else { return Err(DecodeError::Cut) };
            let (address, size, stack) = (a & ADDRESS_MASK, a >> 48 | b >> 32 << 16, low32(b));
            let number = low32(whose);
            let owner = if whose & OF_POOL != 0 { Tracked::Pool(number) } else { Tracked::Domain(number) };
            let event = match whose & !OF_POOL & !u64::from(u32::MAX) {
                0 => Event::Track { stamp, owner, address, size, stack },
                UNTRACKED => Event::Untrack { stamp, owner, address },
                _ => return Err(DecodeError::Malformed),
            };
            (event, 4)
        }
        kind::QUERY => {
            let &[what, first, second, ..] = rest else { return Err(DecodeError::Cut) };
            let event =
                Event::Query { stamp, number: low32(what >> 32), asked: low32(what), arguments: [first, second] };
            (event, 4)
        }
        kind::MAPPING => {
            let (mapping, words) = mapping::decode(rest)?;
            (Event::Mapping { stamp, mapping }, 1 + words)
        }
        kind::UNLOAD => (Event::Unload { stamp, start: one()? }, 2),
        kind::THREAD => {
            let &[a, b, ..] = rest else { return Err(DecodeError::Cut) };
            let mut name = [0; 16];
            name[..8].copy_from_slice(&a.to_le_bytes());
            name[8..].copy_from_slice(&b.to_le_bytes());
            (Event::Thread { stamp, name }, 3)
        }
        #[expect(clippy::cast_possible_truncation, reason = "four bits")]
        unknown => return Err(DecodeError::UnknownKind(unknown as u8)),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
const fn low32(word: u64) -> u32 {
    word as u32
}
