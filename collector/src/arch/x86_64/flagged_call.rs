//! A flag and a call in the code of a function, as in CPython's `_Py_NewReference`, which tells
//! tracemalloc of an object in a block out of a free list.

use heapline_shared_format::arch::instructions::find_direct_call;

/// The flag that a function checks, and the function called while the flag is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlaggedCall {
    /// Where the flag is.
    pub flag: Flag,
    /// Address of the called function.
    pub function: usize,
}

/// The place of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// At an address.
    At(usize),
    /// At an offset from the address that is in a slot.
    Behind {
        /// Address of the slot.
        slot: usize,
        /// Offset in bytes.
        offset: usize,
    },
}

/// Bytes of code to look at.
pub const LOOKED_AT: usize = 96;

/// Reads flag and function from code at an address that begins with `if (flag) function(object)`,
/// as compiled by gcc.
pub fn read(code: &[u8; LOOKED_AT], at: usize) -> Option<FlaggedCall> {
    let relative = |i: usize| {
        let bytes: [u8; 4] = code.get(i..i + 4)?.try_into().ok()?;
        Some((at + i + 4).wrapping_add_signed(i32::from_le_bytes(bytes) as isize))
    };
    let (flag, jump) = flag(code, relative)?;
    // The jump taken while the flag is set, and the first call at the jump's target.
    let distance = i8::from_le_bytes([*code.get(jump + 1)?]);
    let target = (jump + 2).checked_add_signed(isize::from(distance))?;
    let distance = target + find_direct_call(code.get(target..)?, 24)?;
    Some(FlaggedCall { flag, function: relative(distance)? })
}

/// Reads the flag's place, and the place of the jump behind the flag's test. `relative` returns the
/// address meant by four bytes that end an instruction.
fn flag(code: &[u8; LOOKED_AT], relative: impl Fn(usize) -> Option<usize>) -> Option<(Flag, usize)> {
    const JUMP: u8 = 0x75;
    // The flag compared in place: behind the four bytes comes the 0 of the comparison.
    let in_place = |&i: &usize| code[i..].starts_with(&[0x83, 0x3d]) && code[i + 6..].starts_with(&[0, JUMP]);
    if let Some(compare) = (0..32).find(in_place) {
        return Some((Flag::At(relative(compare + 2)? + 1), compare + 7));
    }
    // The load of the flag, from the flag's own address or through a pointer.
    let test = (0..32).find(|&i| code[i..].starts_with(&[0x85, 0xc0, JUMP]))?;
    let before = &code[..test];
    if let Some(load) = position(before, &[0x48, 0x8b, 0x05]) {
        let slot = relative(load + 3)?;
        let offset = match before.get(load + 7..)? {
            [.., 0x8b, 0x40, offset] => usize::from(*offset),
            [.., 0x8b, 0x80, a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]) as usize,
            _ => return None,
        };
        return Some((Flag::Behind { slot, offset }, test + 2));
    }
    let load = position(before, &[0x8b, 0x05])?;
    (load + 6 == test).then_some(())?;
    Some((Flag::At(relative(load + 2)?), test + 2))
}

fn position(code: &[u8], wanted: &[u8]) -> Option<usize> {
    code.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(code: &[u8]) -> [u8; LOOKED_AT] {
        core::array::from_fn(|i| code.get(i).copied().unwrap_or(0x90))
    }

    #[test]
    fn the_flag_behind_a_pointer_of_3_9_to_3_11() {
        let code = padded(&[
            0x48, 0x8b, 0x05, 0x01, 0x99, 0x29, 0x00, 0x53, 0x48, 0x89, 0xfb, 0x8b, 0x40, 0x04, 0x85, 0xc0, 0x75, 0x0e,
            0x48, 0xc7, 0x03, 0x01, 0x00, 0x00, 0x00, 0x5b, 0xc3, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xe8, 0x9b, 0xdb, 0x12,
            0x00,
        ]);
        let flag = Flag::Behind { slot: 0x44_3928, offset: 4 };
        assert_eq!(read(&code, 0x1a_a020), Some(FlaggedCall { flag, function: 0x2d_7be0 }));
    }

    #[test]
    fn the_flag_in_the_runtime_of_3_12() {
        let code = padded(&[
            0x48, 0x8b, 0x05, 0x29, 0xa7, 0x37, 0x00, 0x53, 0x48, 0x89, 0xfb, 0x8b, 0x80, 0xd4, 0x0a, 0x00, 0x00, 0x85,
            0xc0, 0x75, 0x0b, 0x48, 0xc7, 0x03, 0x01, 0x00, 0x00, 0x00, 0x5b, 0xc3, 0x66, 0x90, 0xe8, 0xcb, 0x91, 0x12,
            0x00,
        ]);
        let flag = Flag::Behind { slot: 0x54_3d00, offset: 0xad4 };
        assert_eq!(read(&code, 0x1c_95d0), Some(FlaggedCall { flag, function: 0x2f_27c0 }));
    }

    #[test]
    fn the_flag_of_a_program_that_has_all_in_one() {
        let code = padded(&[
            0x8b, 0x05, 0x9e, 0xe6, 0x53, 0x00, 0x85, 0xc0, 0x75, 0x08, 0x48, 0xc7, 0x07, 0x01, 0x00, 0x00, 0x00, 0xc3,
            0x48, 0x83, 0xec, 0x18, 0x48, 0x89, 0x7c, 0x24, 0x08, 0xe8, 0x80, 0xb1, 0x0b, 0x00,
        ]);
        assert_eq!(read(&code, 0x4f_b8a0), Some(FlaggedCall { flag: Flag::At(0xa3_9f44), function: 0x5b_6a40 }));
    }

    #[test]
    fn the_flag_compared_in_place_of_debian_11() {
        let code = padded(&[
            0x83, 0x3d, 0xd5, 0x8e, 0x41, 0x00, 0x00, 0x75, 0x08, 0x48, 0xc7, 0x07, 0x01, 0x00, 0x00, 0x00, 0xc3, 0x48,
            0x83, 0xec, 0x18, 0x48, 0x89, 0x7c, 0x24, 0x08, 0xe8, 0x41, 0xd6, 0x08, 0x00,
        ]);
        assert_eq!(read(&code, 0x4f_21e0), Some(FlaggedCall { flag: Flag::At(0x90_b0bc), function: 0x57_f840 }));
    }

    #[test]
    fn other_code_is_nothing() {
        assert_eq!(read(&padded(&[]), 0x1000), None);
        assert_eq!(read(&padded(&[0x85, 0xc0, 0x75, 0x7f]), 0x1000), None);
        assert_eq!(read(&padded(&[0x83, 0x3d, 1, 0, 0, 0, 0, 0x75, 0x7f]), 0x1000), None);
        assert_eq!(read(&padded(&[0x8b, 0x05, 1, 0, 0, 0, 0x85, 0xc0, 0x75, 0x80]), 0x1000), None);
    }
}
