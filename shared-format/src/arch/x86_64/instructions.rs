//! Calls and jumps, as bytes: the recognition of a call in front of a return address, the search
//! for a call, and a jump to any address.

/// Length of the longest call instruction without prefixes, in bytes.
pub const LONGEST_CALL: usize = 7;

/// Returns whether the bytes of code end with a call instruction.
///
/// The instructions are `call rel32` (E8), and `call r/m64` (FF /2) in all forms of its operand.
/// Prefixes before the instruction do not matter.
pub fn ends_with_call(code: &[u8]) -> bool {
    let tail = |length: usize| Some(&code[code.len().checked_sub(length)?..]);
    if tail(5).is_some_and(|bytes| bytes[0] == 0xe8) {
        return true;
    }
    (2..=LONGEST_CALL)
        .filter_map(tail)
        .any(|bytes| bytes[0] == 0xff && operand_bytes(&bytes[1..]) == Some(bytes.len() - 1))
}

/// Returns the place of the 4-byte distance of the first direct call, if the call begins among the
/// first bytes of the code. The distance counts from its own end.
pub fn find_direct_call(code: &[u8], among: usize) -> Option<usize> {
    code.iter().take(among).position(|&byte| byte == 0xe8).map(|at| at + 1)
}

/// A byte of code that traps.
pub const TRAP: u8 = 0xcc;

/// Length of [`jump_to`], in bytes.
pub const JUMP_BYTES: usize = 14;

/// Returns a jump to any address, which changes no register: `jmp qword ptr [rip]`, and the
/// address.
pub fn jump_to(address: u64) -> [u8; JUMP_BYTES] {
    const OPCODE: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
    let mut jump = [0; JUMP_BYTES];
    jump[..OPCODE.len()].copy_from_slice(&OPCODE);
    jump[OPCODE.len()..].copy_from_slice(&address.to_le_bytes());
    jump
}

/// Returns the length of the operand of a call: ModRM, SIB and displacement. `None` for other
/// operations than a call.
fn operand_bytes(operand: &[u8]) -> Option<usize> {
    const CALL: u8 = 2;
    let (modrm, sib) = (operand[0], operand.get(1).copied());
    if modrm >> 3 & 7 != CALL {
        return None;
    }
    let has_sib = modrm & 7 == 4;
    Some(match modrm >> 6 {
        0 if modrm & 7 == 5 => 5,
        0 if has_sib && sib? & 7 == 5 => 6,
        0 => 1 + usize::from(has_sib),
        1 => 2 + usize::from(has_sib),
        2 => 5 + usize::from(has_sib),
        _ => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_call_is_found() {
        for call in [
            &[0xe8, 1, 2, 3, 4][..],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd7],
            &[0xff, 0x10],
            &[0xff, 0x14, 0x24],
            &[0xff, 0x14, 0xc5, 1, 2, 3, 4],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x50, 8],
            &[0xff, 0x54, 0x24, 8],
            &[0xff, 0x90, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
        ] {
            assert!(ends_with_call(call), "{call:x?}");
            assert!(ends_with_call(&[&[0x90, 0x90], call].concat()), "{call:x?} behind other code");
            assert!(!ends_with_call(&[call, &[0x90]].concat()), "{call:x?} before another instruction");
        }
    }

    #[test]
    fn other_code_is_no_call() {
        for other in [
            &[][..],
            &[0xe8],
            &[0xff],
            &[0xff, 0xe0],
            &[0xff, 0x25, 1, 2, 3, 4],
            &[0xff, 0x35, 1, 2, 3, 4],
            &[0xff, 0x14],
            &[0xe9, 1, 2, 3, 4],
            &[0x48, 0x89, 0xe5, 0x90, 0x90, 0x90, 0x90],
        ] {
            assert!(!ends_with_call(other), "{other:x?}");
        }
    }
}
