//! The way from a frame to its caller, read from the machine code of the function, for code without
//! unwind tables. musl's C library has no tables.
//!
//! From the return address on, the code is followed to a `ret`. Until then a function takes
//! everything off the stack that the function has put there, so the bytes taken off are the
//! distance to the return address of the frame. No beginning of the function is needed, and no
//! symbol.
//!
//! ```text
//!         call f                  at the return address of f: distance 0
//!    ->   test eax, eax
//!         je   1f                 both ways are followed
//!         add  rsp, 24            24
//!         pop  rbx                32
//!         pop  rbp                40, and the rbp of the caller was at 32
//!         ret                     the return address of the frame is at 40
//! ```
//!
//! Behind a call that never returns, the code of another function may follow. A way ends at the
//! call of a function known never to return ([`way::NEVER`](crate::arch::way::NEVER)). Other such
//! ways are told by the distance: at a call the stack pointer is a multiple of 16 bytes, and the
//! return address of a frame lies at an odd multiple of 8. Another function, balanced in itself,
//! ends at a multiple of 16.
//!
//! A jump through a register ends a way: the jump belongs to a switch, or leads to another function
//! if the frame is off the stack by then.
//!
//! The answer depends on nothing but the code. Both the collector and the aggregator ask.

use crate::arch::way::{Base, Place, Way};

/// `mov rax, 15; syscall`: the code to which a signal handler returns. No call led there, and the
/// registers of the interrupted function lie on the stack.
pub const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];

/// Distance from the stack pointer to the return address of a frame, modulo 16, at the return
/// address of a call: at a call the stack pointer is a multiple of 16.
pub const AT_CALL: i32 = 8;

/// Returns the distance from this stack pointer to the return address of the frame, modulo 16. The
/// return address lies at an odd multiple of 8.
pub fn remainder(stack_pointer: u64) -> i32 {
    i32::try_from(8u64.wrapping_sub(stack_pointer) & 15).unwrap_or(0)
}

/// Number of instructions followed for one answer.
const MOST_STEPS: u32 = 4096;
/// Number of ways noted for later.
const MOST_WAYS: usize = 24;
/// Number of targets of jumps that are not followed twice.
const MOST_TARGETS: usize = 128;
/// Bytes on the stack of the caller, which may be small, for ways and targets.
const MOST_SCRATCH_BYTES: usize = 2 << 10;

const _: () = assert!(MOST_WAYS * size_of::<State>() + MOST_TARGETS * size_of::<u32>() <= MOST_SCRATCH_BYTES);

/// Largest frame.
const MOST_BYTES: i32 = 1 << 20;

/// State of a function along a way.
#[derive(Clone, Copy)]
struct State {
    at: usize,
    /// The stack pointer; none where nobody knows.
    rsp: Option<Place>,
    rbp: Rbp,
    /// Place and content of the last rbp pushed.
    pushed: Option<(Place, Rbp)>,
}

/// Content of rbp along a way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rbp {
    /// As at the asked address.
    Same,
    /// A value of the function's own.
    Other,
    /// The caller's value, taken off the stack at this place.
    Restored(Place),
}

/// What an instruction means for the way.
enum Effect {
    Next,
    Jump(usize),
    Branch(usize),
    Calls(usize),
    /// A jump through a register or an address in memory.
    Leaves,
    Returns,
    Ends,
}

/// Returns the way from the code at `code[at]` to the caller. `code` is the whole code around the
/// address. `remainder` is the distance from the stack pointer to the return address, modulo 16: 8
/// at the return address of a call. `never` has the offsets of the functions of
/// [`way::NEVER`](crate::arch::way::NEVER). `None` where the code is not understood.
pub fn way(code: &[u8], at: usize, remainder: i32, never: &[usize]) -> Option<Way> {
    let rsp = Some(Place { base: Base::StackPointer, distance: 0 });
    let first = State { at, rsp, rbp: Rbp::Same, pushed: None };
    let mut open = [first; MOST_WAYS];
    let mut open_count = 1;
    let mut targets = [u32::MAX; MOST_TARGETS];
    let mut target_count = 0;
    let mut is_whole = true;
    let mut found = None;
    let mut steps = 0;
    while open_count > 0 {
        open_count -= 1;
        let mut state = open[open_count];
        loop {
            steps += 1;
            if steps > MOST_STEPS {
                return found;
            }
            let Some(instruction) = code.get(state.at..).and_then(Instruction::read) else {
                is_whole = false;
                break;
            };
            let effect = state.apply(&instruction, code);
            let mut is_new = |target: usize| {
                let Ok(target) = u32::try_from(target) else { return false };
                if targets[..target_count].contains(&target) {
                    return false;
                }
                match targets.get_mut(target_count) {
                    Some(place) => *place = target,
                    None => return false,
                }
                target_count += 1;
                true
            };
            match effect {
                Effect::Next => {}
                Effect::Calls(target) if !never.contains(&target) => {}
                Effect::Jump(target) if is_new(target) => state.at = target,
                Effect::Branch(target) => {
                    if is_new(target) {
                        match open.get_mut(open_count) {
                            Some(place) => {
                                *place = State { at: target, ..state };
                                open_count += 1;
                            }
                            // Other ways may do.
                            None => is_whole = false,
                        }
                    }
                }
                Effect::Returns | Effect::Leaves => {
                    if let Some(way) = state.end(remainder) {
                        // Two ways with two answers are no answer.
                        if found.is_some_and(|found| found != way) {
                            return None;
                        }
                        found = Some(way);
                        break;
                    }
                    // The cases of a switch are not followed.
                    is_whole &= matches!(effect, Effect::Returns) || instruction.names_address();
                    break;
                }
                Effect::Jump(_) | Effect::Calls(_) | Effect::Ends => break,
            }
        }
    }
    found.or((is_whole && target_count < MOST_TARGETS).then_some(Way::Never))
}

impl State {
    /// Follows one instruction, which then lies behind.
    fn apply(&mut self, instruction: &Instruction<'_>, code: &[u8]) -> Effect {
        let here = self.at;
        self.at = here + instruction.bytes.len();
        let relative = |distance: i32| {
            let target = self.at.checked_add_signed(distance as isize);
            target.filter(|&target| target < code.len())
        };
        let to = |target: Option<usize>, effect: fn(usize) -> Effect| target.map_or(Effect::Ends, effect);
        match (instruction.map, instruction.opcode) {
            (Map::One, 0xc2 | 0xc3) => return Effect::Returns,
            (Map::One, 0xeb | 0xe9) => return to(relative(instruction.immediate()), Effect::Jump),
            (Map::One, 0x70..=0x7f | 0xe0..=0xe3) | (Map::Two, 0x80..=0x8f) => {
                return match relative(instruction.immediate()) {
                    Some(target) => Effect::Branch(target),
                    None => Effect::Next,
                };
            }
            // int3, hlt, ud2
            (Map::One, 0xcc | 0xf4) | (Map::Two, 0x0b) => return Effect::Ends,
            (Map::One, 0xe8) => return Effect::Calls(self.at.wrapping_add_signed(instruction.immediate() as isize)),
            (Map::One, 0xff) if instruction.extension() == 4 => return Effect::Leaves,
            _ => self.change(instruction),
        }
        match self.rsp {
            Some(Place { distance, .. }) if !(-MOST_BYTES..MOST_BYTES).contains(&distance) => Effect::Ends,
            _ => Effect::Next,
        }
    }

    /// Applies the change of rsp and rbp by an instruction that does not jump.
    fn change(&mut self, instruction: &Instruction<'_>) {
        let Instruction { map, opcode, modrm, .. } = *instruction;
        if map != Map::One {
            return;
        }
        let is_wide = instruction.rex & 8 != 0;
        match opcode {
            0x55 if instruction.rex & 1 == 0 => {
                self.move_rsp(-8);
                self.pushed = self.rsp.map(|place| (place, self.rbp));
            }
            0x50..=0x57 | 0x68 | 0x6a => self.move_rsp(-8),
            0xff if instruction.extension() == 6 => self.move_rsp(-8),
            0x58..=0x5f => {
                let place = self.rsp;
                match opcode & 7 | (instruction.rex & 1) << 3 {
                    RSP => self.rsp = None,
                    RBP => {
                        self.rbp = self.restored(place);
                        self.move_rsp(8);
                    }
                    _ => self.move_rsp(8),
                }
            }
            // leave
            0xc9 => {
                self.rsp = self.frame(8);
                self.rbp = self.frame(0).map_or(Rbp::Other, Rbp::Restored);
            }
            // add, sub and and with a constant; lea; mov
            0x81 | 0x83 if is_wide && modrm == 0xc4 => self.move_rsp(instruction.immediate()),
            0x81 | 0x83 if is_wide && modrm == 0xec => self.move_rsp(instruction.immediate().wrapping_neg()),
            0x8d if is_wide && instruction.register() == RSP => {
                self.rsp = match instruction.base() {
                    Some(RSP) => self.moved(instruction.displacement()),
                    Some(RBP) => self.frame(instruction.displacement()),
                    _ => None,
                };
            }
            0x89 if is_wide && modrm == 0xec => self.rsp = self.frame(0),
            0x8b if is_wide && modrm == 0xe5 => self.rsp = self.frame(0),
            0x8b if is_wide && instruction.register() == RBP && instruction.base() == Some(RSP) => {
                self.rbp = self.restored(self.moved(instruction.displacement()));
            }
            _ => {
                for register in instruction.written() {
                    match register {
                        RSP => self.rsp = None,
                        RBP => self.rbp = Rbp::Other,
                        _ => {}
                    }
                }
            }
        }
    }

    /// Returns rbp after a load from a place on the stack.
    fn restored(&self, place: Option<Place>) -> Rbp {
        match (place, self.pushed) {
            (Some(place), Some((pushed, rbp))) if place == pushed => rbp,
            // Below the asked stack pointer nothing of the frame was saved.
            (Some(Place { base: Base::StackPointer, distance: ..0 }) | None, _) => Rbp::Other,
            (Some(place), _) => Rbp::Restored(place),
        }
    }

    fn move_rsp(&mut self, distance: i32) {
        self.rsp = self.moved(distance);
    }

    /// Returns the place at a distance from the stack pointer.
    fn moved(&self, distance: i32) -> Option<Place> {
        self.rsp.map(|place| Place { distance: place.distance.saturating_add(distance), ..place })
    }

    /// Returns the place at a distance from rbp, while rbp is as at the asked address.
    fn frame(&self, distance: i32) -> Option<Place> {
        (self.rbp == Rbp::Same).then_some(Place { base: Base::BasePointer, distance })
    }

    /// Returns the way of a function that returns in this state; none for a way into another
    /// function.
    fn end(&self, remainder: i32) -> Option<Way> {
        let slot = self.rsp?;
        let rbp = match self.rbp {
            Rbp::Same => None,
            Rbp::Other => return None,
            Rbp::Restored(place) => Some(place),
        };
        let is_here = match slot.base {
            Base::StackPointer => slot.distance >= 0 && slot.distance & 15 == remainder,
            // rbp points to its own saved value, below the return address.
            Base::BasePointer => slot.distance >= 8,
        };
        is_here.then_some(Way::Returns { slot, bp: rbp })
    }
}

const RSP: u8 = 4;
const RBP: u8 = 5;

/// Map of an operation code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Map {
    One,
    /// Behind `0f`.
    Two,
    /// Behind `0f 38`.
    Three,
    /// Behind `0f 3a`.
    Four,
    /// With a VEX or EVEX prefix: vectors.
    Vector,
}

/// An instruction.
struct Instruction<'a> {
    bytes: &'a [u8],
    rex: u8,
    map: Map,
    opcode: u8,
    /// 0 without such a byte.
    modrm: u8,
    has_modrm: bool,
    /// Offset of the byte behind modrm.
    operand_at: usize,
    immediate_bytes: usize,
}

impl<'a> Instruction<'a> {
    /// Reads the first instruction of 64-bit code. `None` for bytes that are no instruction, or
    /// whose instruction is cut off.
    fn read(code: &'a [u8]) -> Option<Instruction<'a>> {
        let byte = |at: usize| code.get(at).copied();
        let (mut at, mut is_short, mut is_long_address) = (0, false, true);
        while let prefix @ (0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) = byte(at)? {
            is_short |= prefix == 0x66;
            is_long_address &= prefix != 0x67;
            at += 1;
        }
        let rex = byte(at)?;
        let rex = if rex & 0xf0 == 0x40 { rex } else { 0 };
        at += usize::from(rex != 0);
        let (mut map, mut opcode) = (Map::One, byte(at)?);
        at += 1;
        let mut vector_map = 1;
        match opcode {
            0x0f => {
                (map, opcode) = (Map::Two, byte(at)?);
                at += 1;
                if matches!(opcode, 0x38 | 0x3a) {
                    map = if opcode == 0x38 { Map::Three } else { Map::Four };
                    opcode = byte(at)?;
                    at += 1;
                }
            }
            0xc5 => {
                (map, opcode) = (Map::Vector, byte(at + 1)?);
                at += 2;
            }
            0xc4 | 0x62 => {
                vector_map = byte(at)? & 7;
                let payload = if opcode == 0xc4 { 2 } else { 3 };
                (map, opcode) = (Map::Vector, byte(at + payload)?);
                at += payload + 1;
            }
            _ => {}
        }
        let has_modrm = match map {
            Map::One => one_has_modrm(opcode)?,
            Map::Two => two_has_modrm(opcode),
            // vzeroupper has no operand.
            Map::Vector => opcode != 0x77,
            Map::Three | Map::Four => true,
        };
        let modrm = if has_modrm { byte(at)? } else { 0 };
        at += usize::from(has_modrm);
        let operand_at = at;
        if has_modrm {
            at += operand_bytes(modrm, byte(at));
        }
        let wide = rex & 8 != 0;
        let word = if is_short && !wide { 2 } else { 4 };
        let immediate_bytes = match map {
            Map::One => match opcode {
                0xf6 if modrm & 0x30 == 0 => 1,
                0xf7 if modrm & 0x30 == 0 => word,
                0xb8..=0xbf if wide => 8,
                0xa0..=0xa3 => {
                    if is_long_address {
                        8
                    } else {
                        4
                    }
                }
                0xe8 | 0xe9 => 4,
                _ => one_immediate(opcode, word),
            },
            Map::Two => match opcode {
                0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => 1,
                0x80..=0x8f => 4,
                _ => 0,
            },
            Map::Three => 0,
            Map::Four => 1,
            Map::Vector => match (vector_map, opcode) {
                (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) | (3, _) => 1,
                _ => 0,
            },
        };
        let bytes = code.get(..at + immediate_bytes)?;
        Some(Instruction { bytes, rex, map, opcode, modrm, has_modrm, operand_at, immediate_bytes })
    }

    /// Returns whether the operand is a fixed place in memory (`[rip + ...]`).
    fn names_address(&self) -> bool {
        self.modrm & 0xc7 == 5
    }

    /// Returns the immediate operand, with its sign.
    fn immediate(&self) -> i32 {
        signed(&self.bytes[self.bytes.len() - self.immediate_bytes..])
    }

    /// Returns the part of an operation code in modrm.
    fn extension(&self) -> u8 {
        self.modrm >> 3 & 7
    }

    /// Returns the register operand.
    fn register(&self) -> u8 {
        self.extension() | (self.rex & 4) << 1
    }

    /// Returns the register of a memory operand that is a register plus a distance.
    fn base(&self) -> Option<u8> {
        let kind = self.modrm >> 6;
        let base = self.modrm & 7;
        let is_plain = match (kind, base) {
            (3, _) | (0, 5) => false,
            // No index, and rsp or r12 as the base.
            (_, 4) => self.bytes.get(self.operand_at) == Some(&0x24),
            _ => true,
        };
        (self.has_modrm && is_plain).then_some(base | (self.rex & 1) << 3)
    }

    /// Returns the distance in a memory operand.
    fn displacement(&self) -> i32 {
        let end = self.bytes.len() - self.immediate_bytes;
        let bytes = match self.modrm >> 6 {
            1 => 1,
            2 => 4,
            _ => 0,
        };
        signed(&self.bytes[end.saturating_sub(bytes)..end])
    }

    /// Returns the registers that an instruction of the first map may write.
    fn written(&self) -> [u8; 2] {
        const NONE: u8 = u8::MAX;
        let in_operand = if self.modrm >> 6 == 3 { self.modrm & 7 | (self.rex & 1) << 3 } else { NONE };
        let in_opcode = self.opcode & 7 | (self.rex & 1) << 3;
        match self.opcode {
            // Comparisons.
            0x38..=0x3d | 0x84 | 0x85 => [NONE; 2],
            // Arithmetic, and moves: to the operand in bit 1 of the code, or to the register.
            0x00..=0x3f if self.has_modrm => [if self.opcode & 2 == 0 { in_operand } else { self.register() }, NONE],
            0x88 | 0x89 => [in_operand, NONE],
            0x63 | 0x69 | 0x6b | 0x8a | 0x8b | 0x8d => [self.register(), NONE],
            0x86 | 0x87 => [in_operand, self.register()],
            // A constant is compared with.
            0x80..=0x83 if self.extension() == 7 => [NONE; 2],
            0x80..=0x83 | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0x8f => [in_operand, NONE],
            // test, and divisions into other registers
            0xf6 | 0xf7 if self.extension() & 6 != 2 => [NONE; 2],
            0xfe | 0xff if self.extension() > 1 => [NONE; 2],
            0xf6 | 0xf7 | 0xfe | 0xff => [in_operand, NONE],
            0x90..=0x97 | 0xb0..=0xbf => [in_opcode, NONE],
            _ => [NONE; 2],
        }
    }
}

/// Returns the number of bytes behind modrm that belong to its operand.
fn operand_bytes(modrm: u8, next: Option<u8>) -> usize {
    let (kind, base) = (modrm >> 6, modrm & 7);
    if kind == 3 {
        return 0;
    }
    let has_sib = base == 4;
    let is_far = kind == 0 && (base == 5 || has_sib && next.is_some_and(|sib| sib & 7 == 5));
    let displacement = match kind {
        1 => 1,
        2 => 4,
        _ if is_far => 4,
        _ => 0,
    };
    usize::from(has_sib) + displacement
}

/// Returns whether modrm follows an operation code of the first map. `None` for codes without
/// meaning in 64-bit code.
fn one_has_modrm(opcode: u8) -> Option<bool> {
    Some(match opcode {
        0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f | 0x27 | 0x2f | 0x37 | 0x3f => return None,
        0x60 | 0x61 | 0x82 | 0x9a | 0xce | 0xd4..=0xd6 | 0xea => return None,
        0x00..=0x3f => opcode & 7 < 4,
        0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd8..=0xdf => true,
        0xf6 | 0xf7 | 0xfe | 0xff => true,
        _ => false,
    })
}

fn two_has_modrm(opcode: u8) -> bool {
    !matches!(opcode, 0x05..=0x0b | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf)
}

/// Returns the bytes of the immediate operand of a code of the first map. `word` is the size of a
/// word with the prefixes of the instruction.
fn one_immediate(opcode: u8, word: usize) -> usize {
    match opcode {
        0x00..=0x3f => match opcode & 7 {
            4 => 1,
            5 => word,
            _ => 0,
        },
        0x68 | 0x69 | 0x81 | 0xa9 | 0xb8..=0xbf | 0xc7 => word,
        0x6a | 0x6b | 0x70..=0x80 | 0x83 | 0xa8 | 0xb0..=0xb7 | 0xc0 | 0xc1 | 0xc6 | 0xcd | 0xe0..=0xe7 | 0xeb => 1,
        0xc2 | 0xca => 2,
        0xc8 => 3,
        _ => 0,
    }
}

/// Returns a number of one, two or four bytes, with its sign.
fn signed(bytes: &[u8]) -> i32 {
    match *bytes {
        [byte] => i32::from(byte.cast_signed()),
        [a, b] => i32::from(i16::from_le_bytes([a, b])),
        [a, b, c, d, ..] => i32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Returns the length of the first instruction of 64-bit code.
#[doc(hidden)]
pub fn instruction_bytes(code: &[u8]) -> Option<usize> {
    Instruction::read(code).map(|instruction| instruction.bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_call(code: &[&[u8]]) -> Option<Way> {
        way(&code.concat(), 0, 8, &[])
    }

    fn from_rsp(distance: i32) -> Place {
        Place { base: Base::StackPointer, distance }
    }

    const RET: &[u8] = &[0xc3];
    const POP_RBX: &[u8] = &[0x5b];
    const POP_RBP: &[u8] = &[0x5d];
    const CALL: &[u8] = &[0xe8, 0, 0, 0, 0];
    /// add rsp, 24
    const ADD: &[u8] = &[0x48, 0x83, 0xc4, 24];
    /// je over two bytes
    const BRANCH: &[u8] = &[0x74, 2];

    #[test]
    fn what_is_taken_off_the_stack_is_the_frame() {
        let found = at_call(&[ADD, POP_RBX, POP_RBP, RET]);
        assert_eq!(found, Some(Way::Returns { slot: from_rsp(40), bp: Some(from_rsp(32)) }));
        // A pushed argument, taken off behind another call.
        let found = at_call(&[&[0x6a, 1], &[0x6a, 2], CALL, ADD, POP_RBX, &[0x59], RET]);
        assert_eq!(found, Some(Way::Returns { slot: from_rsp(24), bp: None }));
        let lea = [0x48, 0x8d, 0xa4, 0x24, 0xc8, 1, 0, 0];
        assert_eq!(at_call(&[&lea, RET]), Some(Way::Returns { slot: from_rsp(456), bp: None }));
    }

    #[test]
    fn a_frame_with_a_frame_pointer_is_left_by_it() {
        let place = |distance| Place { base: Base::BasePointer, distance };
        let found = Some(Way::Returns { slot: place(8), bp: Some(place(0)) });
        assert_eq!(at_call(&[&[0xc9], RET]), found);
        assert_eq!(at_call(&[&[0x48, 0x89, 0xec], POP_RBP, RET]), found);
        // lea rsp, [rbp - 8]
        assert_eq!(at_call(&[&[0x48, 0x8d, 0x65, 0xf8], POP_RBX, POP_RBP, RET]), found);
        let spoiled = [&[0x31, 0xed][..], &[0xc9], RET];
        assert_eq!(at_call(&spoiled), Some(Way::Never), "rbp is another's by then");
    }

    #[test]
    fn code_behind_a_call_that_never_returns_is_another_function() {
        let abort = [CALL, &[0x53], POP_RBX, RET].concat();
        let found = at_call(&[BRANCH, POP_RBX, RET, &abort]);
        assert_eq!(found, Some(Way::Returns { slot: from_rsp(8), bp: None }));
        assert_eq!(at_call(&[&abort]), Some(Way::Never));
        assert_eq!(at_call(&[&[0xeb, 0xfe]]), Some(Way::Never), "for ever");
        assert_eq!(at_call(&[&[0xf4]]), Some(Way::Never));
        assert_eq!(at_call(&[&[0xff, 0xe0]]), None, "a switch leads anywhere");
        assert_eq!((at_call(&[&[]]), at_call(&[POP_RBX])), (None, None), "cut off");
        // mov edi, eax; call exit
        let root = [0x89, 0xc7, 0xe8, 7, 0, 0, 0, 0xff, 0xe0];
        assert_eq!((way(&root, 0, 8, &[]), way(&root, 0, 8, &[14])), (None, Some(Way::Never)));
    }

    #[test]
    fn a_jump_to_another_function_takes_the_frame_off_first() {
        let tail = [POP_RBX, &[0xeb, 1], RET, &[0x53], POP_RBX, RET];
        let with_rbp = [POP_RBX, POP_RBP, POP_RBX, &[0xeb, 1], RET, &[0x55], POP_RBP, RET];
        let found = at_call(&with_rbp);
        assert_eq!(found, Some(Way::Returns { slot: from_rsp(24), bp: Some(from_rsp(8)) }), "not the other's");
        assert_eq!(at_call(&[POP_RBX, &[0xff, 0xe0]]), Some(Way::Returns { slot: from_rsp(8), bp: None }));
        assert_eq!(at_call(&tail), Some(Way::Returns { slot: from_rsp(8), bp: None }));
        let through_table = [POP_RBX, &[0xff, 0x25, 0, 0, 0, 0]];
        assert_eq!(at_call(&through_table), Some(Way::Returns { slot: from_rsp(8), bp: None }));
    }

    proptest::proptest! {
        /// The code comes from a process that may be hostile.
        #[test]
        fn any_bytes_are_read(code in proptest::collection::vec(0u8.., 0..200), at in 0usize..220, jumps in 0u8..3) {
            // Jumps to and fro, and pushes: what takes long.
            let dense = |byte: u8| match byte % 8 { 0 => 0xeb, 1 => 0x74, 2 => 0x50, 3 => 0xe9, _ => byte };
            let code: std::vec::Vec<u8> = if jumps == 0 { code } else { code.into_iter().map(dense).collect() };
            for remainder in [0, 8] {
                if let Some(Way::Returns { slot, .. }) = way(&code, at, remainder, &[3]) {
                    proptest::prop_assert!(slot.distance >= 0);
                }
            }
        }
    }
}
