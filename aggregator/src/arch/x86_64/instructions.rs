//! Direct calls and jumps in code, and the change of a distance.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

/// A direct call or jump.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    /// Address of a distance that can be changed to lead anywhere near; none for a shorter
    /// distance.
    pub distance_at: Option<u64>,
    /// Address to which the branch leads.
    pub target: u64,
    /// Whether the branch is a jump. A jump leaves no return address on the stack.
    pub is_jump: bool,
}

/// Bytes of a changeable distance. The distance counts from its own end.
pub const DISTANCE_BYTES: u64 = 4;
/// Reach of a changeable distance, minus an allowance for the length of a program.
pub const REACH: u64 = 1 << 30;

/// Lists the direct calls and jumps in code at an address.
pub fn branches(code: &[u8], start: u64) -> impl Iterator<Item = Branch> {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    std::iter::from_fn(move || {
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.op0_kind() == OpKind::NearBranch64 {
                let place = decoder.get_constant_offsets(&instruction);
                let distance_at = instruction.ip() + place.immediate_offset() as u64;
                return Some(Branch {
                    distance_at: (place.immediate_size() as u64 == DISTANCE_BYTES).then_some(distance_at),
                    target: instruction.near_branch64(),
                    is_jump: instruction.mnemonic() != Mnemonic::Call,
                });
            }
        }
        None
    })
}

/// Returns the bytes of the distance at an address that lead to a target; none out of reach.
pub fn distance(at: u64, target: u64) -> Option<[u8; 4]> {
    let distance = target.wrapping_sub(at.wrapping_add(DISTANCE_BYTES)).cast_signed();
    Some(i32::try_from(distance).ok()?.to_le_bytes())
}
