//! Offsets published by the interpreter itself: `_Py_DebugOffsets`, the beginning of `_PyRuntime`
//! from 3.13 on.
//!
//! The structure is an array of words, in groups: one group for each structure of the interpreter.
//! The groups' places, and nothing else, change from minor version to minor version. Within a group
//! new words come last. The structure holds a cookie and the interpreter's version, so a structure
//! of another version is noticed.
//!
//! | Group | 3.13 | 3.14 | 3.15 |
//! | --- | --- | --- | --- |
//! | thread state | 19 | 22 | 22 |
//! | frame | 28 | 31 | 39 |
//! | code object | 34 | 39 | 47 |
//! | object | 44 | 50 | 58 |
//! | type | 46 | 52 | 60 |
//! | `bytes` | 64 | 74 | 86 |
//! | `str` | 67 | 77 | 89 |

use super::version::Version;

const COOKIE: u64 = u64::from_le_bytes(*b"xdebugpy");
/// Place of the interpreter's version, as in `PY_VERSION_HEX`.
const VERSION: usize = 1;
const IS_FREE_THREADED: usize = 2;
const INTERPRETER_BYTES: usize = 6;
/// No offset of a structure is larger.
const LARGEST: u64 = 4096;

/// Places of the groups, in words.
struct Groups {
    thread: usize,
    frame: usize,
    code: usize,
    object: usize,
    kind: usize,
    bytes: usize,
    text: usize,
}

impl Groups {
    fn of(version: Version) -> Option<Groups> {
        let [thread, frame, code, object, kind, bytes, text] = match version.minor() {
            13 => [19, 28, 34, 44, 46, 64, 67],
            14 => [22, 31, 39, 50, 52, 74, 77],
            15 => [22, 39, 47, 58, 60, 86, 89],
            _ => return None,
        };
        Some(Groups { thread, frame, code, object, kind, bytes, text })
    }
}

/// The published offsets, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Bytes of an interpreter's state.
    pub interpreter_bytes: u64,
    /// In a thread state: the interpreter's state, and the newest frame.
    pub interpreter: usize,
    pub newest: usize,
    pub frame: Frame,
    pub code: Code,
    pub object: Object,
    /// In a `bytes`: length, and first byte.
    pub bytes: [usize; 2],
    pub text: Text,
}

/// Offsets in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub previous: usize,
    pub code: usize,
    pub instruction: usize,
    pub owner: usize,
    /// From 3.14 on.
    pub stack_pointer: usize,
    /// Number of the thread's copy of the instructions (free-threaded 3.14 and later).
    pub copy: usize,
}

/// Offsets in a code object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// File, name and line table.
    pub strings: [usize; 3],
    pub first_line: usize,
    pub start: usize,
    /// The table of copies of the instructions (free-threaded 3.14 and later).
    pub copies: usize,
}

/// Offsets in an object and in a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    pub kind: usize,
    pub flags: usize,
}

/// Offsets in a `str`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    pub state: usize,
    pub length: usize,
    /// First character of an ASCII string.
    pub characters: usize,
}

impl Published {
    /// Reads the published offsets. None if the structure is not the version's.
    ///
    /// # Safety
    /// `runtime` is the address of `_PyRuntime` of an interpreter of this version.
    pub unsafe fn read(version: Version, runtime: usize) -> Option<Published> {
        // SAFETY: the caller guarantees `_PyRuntime`, a variable larger than the structure.
        Published::of(version, |place| unsafe { *(runtime as *const u64).add(place) })
    }

    /// Takes the offsets from the structure's words.
    fn of(version: Version, word: impl Fn(usize) -> u64) -> Option<Published> {
        let Groups { thread, frame, code, object, kind, bytes, text } = Groups::of(version)?;
        let is_this = word(0) == COOKIE
            && word(VERSION) >> 16 == u64::from(version.minor()) | 3 << 8
            && (word(IS_FREE_THREADED) != 0) == version.is_free_threaded();
        if !is_this {
            return None;
        }
        let offset = |place: usize| Some(word(place)).filter(|&offset| offset < LARGEST)?.try_into().ok();
        // The words behind the first six of a frame, and behind the first ten of a code object, are
        // of later versions than 3.13, and of another group there.
        let later = |place: usize| if version.minor() > 13 { offset(place) } else { Some(0) };
        Some(Published {
            interpreter_bytes: word(INTERPRETER_BYTES),
            interpreter: offset(thread + 3)?,
            newest: offset(thread + 4)?,
            frame: Frame {
                previous: offset(frame + 1)?,
                code: offset(frame + 2)?,
                instruction: offset(frame + 3)?,
                owner: offset(frame + 5)?,
                stack_pointer: later(frame + 6)?,
                copy: later(frame + 7)?,
            },
            code: Code {
                strings: [offset(code + 1)?, offset(code + 3)?, offset(code + 4)?],
                first_line: offset(code + 5)?,
                start: offset(code + 9)?,
                copies: later(code + 10)?,
            },
            object: Object { kind: offset(object + 1)?, flags: offset(kind + 3)? },
            bytes: [offset(bytes + 1)?, offset(bytes + 2)?],
            text: Text { state: offset(text + 1)?, length: offset(text + 2)?, characters: offset(text + 3)? },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIL_3_15: &[u8] = b"3.15.0 (main, Oct  9 2026, 19:59:52) [GCC 16.2.0]";

    /// The structure of 3.15.0 on x86-64, up to the group of `str`. Words that nobody reads are 0.
    fn of_3_15() -> [u64; 93] {
        let mut words = [0; 93];
        (words[0], words[1]) = (COOKIE, 0x030f_00f0);
        words[INTERPRETER_BYTES] = 226_232;
        words[22 + 3..22 + 5].copy_from_slice(&[16, 72]);
        words[39 + 1..39 + 7].copy_from_slice(&[8, 0, 56, 80, 74, 64]);
        words[47 + 1..47 + 6].copy_from_slice(&[112, 120, 128, 136, 68]);
        words[47 + 9] = 208;
        (words[58 + 1], words[60 + 3]) = (8, 168);
        words[86 + 1..86 + 3].copy_from_slice(&[16, 32]);
        words[89 + 1..89 + 4].copy_from_slice(&[32, 16, 40]);
        words
    }

    #[test]
    fn the_offsets_of_3_15() {
        let version = Version::of(GIL_3_15).unwrap();
        let words = of_3_15();
        let expected = Published {
            interpreter_bytes: 226_232,
            interpreter: 16,
            newest: 72,
            frame: Frame { previous: 8, code: 0, instruction: 56, owner: 74, stack_pointer: 64, copy: 0 },
            code: Code { strings: [112, 128, 136], first_line: 68, start: 208, copies: 0 },
            object: Object { kind: 8, flags: 168 },
            bytes: [16, 32],
            text: Text { state: 32, length: 16, characters: 40 },
        };
        assert_eq!(Published::of(version, |place| words[place]), Some(expected));
    }

    #[test]
    fn another_structure_is_none() {
        let version = Version::of(GIL_3_15).unwrap();
        let changed = |place: usize, word: u64| {
            let mut words = of_3_15();
            words[place] = word;
            Published::of(version, |place| words[place])
        };
        assert_eq!(changed(0, 1), None, "no cookie");
        assert_eq!(changed(VERSION, 0x0310_00f0), None, "3.16");
        assert_eq!(changed(IS_FREE_THREADED, 1), None, "the other kind of build");
        assert_eq!(changed(22 + 4, u64::MAX), None, "no offset");
    }
}
