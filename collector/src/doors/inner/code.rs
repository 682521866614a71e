//! A function's first instructions, decoded and written again for another place.
//!
//! The decoder knows the instructions that compilers begin functions with, and refuses all others.

/// Bytes of the jump that takes the place of a function's first instructions.
pub const JUMP_BYTES: usize = 5;
/// The most that [`relocate`] writes: four instructions of one byte and one of 15, each written longer, and a jump.
pub const MOST_BYTES: usize = 64;

/// `jmp rel32`.
const JUMP: u8 = 0xe9;

/// What the place of an instruction has to do with what the instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Nothing.
    Plain,
    /// The four bytes here are a distance from the instruction's end to an operand.
    Relative(usize),
    /// It goes on so far behind its end.
    Jump(i64),
    /// Likewise, where this condition holds.
    Branch(u8, i64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Instruction {
    bytes: usize,
    kind: Kind,
}

/// Bytes of an operand in memory or a register, which begin with its ModRM byte, and where its distance is.
fn operand(code: &[u8]) -> Option<(usize, Option<usize>)> {
    let modrm = *code.first()?;
    let (mode, base) = (modrm >> 6, modrm & 7);
    let sib = if mode != 3 && base == 4 { Some(*code.get(1)?) } else { None };
    let head = 1 + usize::from(sib.is_some());
    let has_no_base = mode == 0 && sib.is_some_and(|sib| sib & 7 == 5);
    match mode {
        0 if base == 5 => Some((head + 4, Some(head))),
        0 if has_no_base => Some((head + 4, None)),
        1 => Some((head + 1, None)),
        2 => Some((head + 4, None)),
        _ => Some((head, None)),
    }
}

fn distance(code: &[u8], at: usize) -> Option<i64> {
    Some(i32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?).into())
}

/// The instruction that code begins with; none for one that is not known.
fn decode(code: &[u8]) -> Option<Instruction> {
    const END_BRANCH: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    if code.starts_with(&END_BRANCH) {
        return Some(Instruction { bytes: END_BRANCH.len(), kind: Kind::Plain });
    }
    // Operands of 16 bits, the segments fs and cs, and what vector instructions are told apart by.
    let prefixes = code.iter().take(4).take_while(|byte| matches!(byte, 0x66 | 0x64 | 0x2e | 0xf2 | 0xf3)).count();
    let has = |prefix: u8| code[..prefixes].contains(&prefix);
    let rex = code.get(prefixes).copied().filter(|byte| byte & 0xf0 == 0x40);
    let at = prefixes + usize::from(rex.is_some());
    let is_wide = rex.is_some_and(|rex| rex & 8 != 0);
    let opcode = *code.get(at)?;
    let is_vector = opcode == 0x0f;
    if (has(0xf2) || has(0xf3)) && !is_vector {
        return None;
    }
    let plain = |bytes| Some(Instruction { bytes, kind: Kind::Plain });
    // With an operand from there on, and so many bytes of a constant.
    let with_operand = |from: usize, constant: usize| {
        let (bytes, relative) = operand(code.get(from..)?)?;
        let kind = relative.map_or(Kind::Plain, |distance| Kind::Relative(from + distance));
        Some(Instruction { bytes: from + bytes + constant, kind })
    };
    let choice = || Some(code.get(at + 1)? >> 3 & 7);
    // A constant of 32 bits is one of 16 behind that prefix.
    let long = if has(0x66) { 2 } else { 4 };
    match opcode {
        0x70..=0x7f if at == 0 => {
            let distance = i64::from(i8::from_le_bytes([*code.get(1)?]));
            Some(Instruction { bytes: 2, kind: Kind::Branch(opcode & 0xf, distance) })
        }
        0xeb if at == 0 => {
            let distance = i64::from(i8::from_le_bytes([*code.get(1)?]));
            Some(Instruction { bytes: 2, kind: Kind::Jump(distance) })
        }
        JUMP if at == 0 => Some(Instruction { bytes: 5, kind: Kind::Jump(distance(code, 1)?) }),
        0x50..=0x57 | 0x90 => plain(at + 1),
        0x00..=0x3f if opcode & 7 <= 3 => with_operand(at + 1, 0),
        0x00..=0x3f if opcode & 7 == 4 => plain(at + 2),
        0x00..=0x3f if opcode & 7 == 5 => plain(at + 1 + long),
        0x6a | 0xa8 => plain(at + 2),
        0x68 | 0xa9 => plain(at + 1 + long),
        0xb8..=0xbf => plain(at + 1 + if is_wide { 8 } else { long }),
        0x63 | 0x84..=0x8b | 0x8d | 0xd0..=0xd3 => with_operand(at + 1, 0),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 => with_operand(at + 1, 1),
        0xc6 if choice()? == 0 => with_operand(at + 1, 1),
        0x69 | 0x81 => with_operand(at + 1, long),
        0xc7 if choice()? == 0 => with_operand(at + 1, long),
        0xf6 => with_operand(at + 1, usize::from(choice()? < 2)),
        0xf7 => with_operand(at + 1, if choice()? < 2 { long } else { 0 }),
        0xfe if choice()? < 2 => with_operand(at + 1, 0),
        // inc, dec, push.
        0xff if matches!(choice()?, 0 | 1 | 6) => with_operand(at + 1, 0),
        0x0f => match *code.get(at + 1)? {
            condition @ 0x80..=0x8f if at == 0 => {
                Some(Instruction { bytes: 6, kind: Kind::Branch(condition & 0xf, distance(code, 2)?) })
            }
            // Moves and sets of vectors, nop, by conditions, bits, multiplication, extension.
            0x10..=0x13 | 0x16 | 0x17 | 0x28 | 0x29 | 0x57 | 0x6e | 0x6f | 0x7e | 0x7f | 0xd6 | 0xef => {
                with_operand(at + 2, 0)
            }
            0x1f | 0x40..=0x4f | 0x90..=0x9f | 0xa3 | 0xaf | 0xb6..=0xb8 | 0xbc..=0xbf => with_operand(at + 2, 0),
            0xba => with_operand(at + 2, 1),
            _ => None,
        },
        _ => None,
    }
}

/// A function's first instructions in another place, and the jump to what follows them.
#[derive(Debug, PartialEq, Eq)]
pub struct Relocated {
    bytes: [u8; MOST_BYTES],
    used: usize,
}

impl Relocated {
    /// The code.
    pub fn code(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes.get_mut(self.used..self.used + bytes.len())?.copy_from_slice(bytes);
        self.used += bytes.len();
        Some(())
    }

    /// The distance from behind four bytes, of the code that shall run at `to`, to a target.
    fn put_distance(&mut self, to: usize, target: i64) -> Option<()> {
        let end = i64::try_from(to + self.used + 4).ok()?;
        self.put(&i32::try_from(target - end).ok()?.to_le_bytes())
    }
}

/// The first instructions of a function, as many as a jump takes the place of, for code that shall run at `to`. `code` is
/// the whole function, which is at `from`. None where not all is known and fits.
pub fn relocate(code: &[u8], from: usize, to: usize) -> Option<Relocated> {
    if has_jump_into_beginning(code) {
        return None;
    }
    let mut relocated = Relocated { bytes: [0; MOST_BYTES], used: 0 };
    let mut at = 0;
    while at < JUMP_BYTES {
        let instruction = decode(&code[at..])?;
        let next = at + instruction.bytes;
        let whole = code.get(at..next)?;
        let end = i64::try_from(from + next).ok()?;
        match instruction.kind {
            Kind::Plain => relocated.put(whole)?,
            Kind::Relative(place) => {
                let target = end + distance(whole, place)?;
                let own_end = i64::try_from(to + relocated.used + whole.len()).ok()?;
                relocated.put(&whole[..place])?;
                relocated.put(&i32::try_from(target - own_end).ok()?.to_le_bytes())?;
                relocated.put(&whole[place + 4..])?;
            }
            Kind::Branch(condition, distance) => {
                relocated.put(&[0x0f, 0x80 | condition])?;
                relocated.put_distance(to, end + distance)?;
            }
            Kind::Jump(distance) => {
                relocated.put(&[JUMP])?;
                relocated.put_distance(to, end + distance)?;
                return (next >= JUMP_BYTES).then_some(relocated);
            }
        }
        at = next;
    }
    relocated.put(&[JUMP])?;
    relocated.put_distance(to, i64::try_from(from + at).ok()?)?;
    Some(relocated)
}

/// Whether a jump of the function may lead into the bytes that are overwritten. All bytes are tried as jumps, so what is
/// none may be taken for one, but none is missed.
fn has_jump_into_beginning(code: &[u8]) -> bool {
    let leads_there = |end: usize, distance: i64| {
        let target = i64::try_from(end).unwrap_or(0).saturating_add(distance);
        (1..i64::try_from(JUMP_BYTES).unwrap_or(0)).contains(&target)
    };
    let is_short = |at: usize| {
        let is_jump = matches!(code[at], 0x70..=0x7f | 0xe0..=0xe3 | 0xeb);
        is_jump && code.get(at + 1).is_some_and(|&byte| leads_there(at + 2, i8::from_le_bytes([byte]).into()))
    };
    let is_long = |at: usize| {
        let is_jump = matches!(code[at], 0x80..=0x8f | JUMP);
        is_jump && distance(code, at + 1).is_some_and(|distance| leads_there(at + 5, distance))
    };
    (0..code.len()).any(|at| is_short(at) || is_long(at))
}

/// A jump from one place to another; none where that is too far.
pub fn jump(from: usize, to: usize) -> Option<[u8; JUMP_BYTES]> {
    let distance = i64::try_from(to).ok()? - i64::try_from(from + JUMP_BYTES).ok()?;
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    Some([JUMP, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(code: &[u8]) -> Option<std::vec::Vec<u8>> {
        relocate(code, 0x10000, 0x8000).map(|relocated| relocated.code().to_vec())
    }

    /// As `objdump` splits them.
    #[test]
    fn instructions_have_their_length() {
        let plain: &[&[u8]] = &[
            &[0x55],
            &[0x41, 0x57],
            &[0x48, 0x89, 0xfd],
            &[0x48, 0x83, 0xec, 0x08],
            &[0x48, 0x81, 0xff, 0x00, 0x10, 0x00, 0x00],
            &[0x4c, 0x8d, 0x54, 0x24, 0x08],
            &[0x48, 0x83, 0xe4, 0xe0],
            &[0x41, 0xff, 0x72, 0xf8],
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
            &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0xb8, 1, 0, 0, 0],
            &[0x66, 0x81, 0x38, 1, 2],
            &[0x31, 0xc9],
            &[0x0f, 0xb6, 0x44, 0x0f, 0x01],
            &[0x66, 0x0f, 0xef, 0xc0],
            &[0xf3, 0x0f, 0x6f, 0x07],
            &[0xf3, 0x0f, 0x1e, 0xfa],
            &[0x48, 0x3d, 0, 4, 0, 0],
            &[0xf6, 0x07, 0x01],
            &[0xf7, 0xd8],
        ];
        for code in plain {
            let longer = [code, &[0xcc; 12][..]].concat();
            let expected = Instruction { bytes: code.len(), kind: Kind::Plain };
            assert_eq!(decode(&longer), Some(expected), "{code:02x?}");
        }
        // call, ret, int3, syscall, a jump through memory, a far-away form, VEX, addresses of 32 bits.
        let refused: &[&[u8]] = &[
            &[0xe8, 0, 0, 0, 0],
            &[0xc3],
            &[0xcc],
            &[0x0f, 0x05],
            &[0xff, 0x25, 0, 0, 0, 0],
            &[0xff, 0x10],
            &[0xc5, 0xf8, 0x77],
            &[0x67, 0x8d, 0x07],
            &[0xf3, 0xc3],
            &[0x66, 0xe9, 0, 0, 0, 0],
            &[0xe3, 0x10],
        ];
        for code in refused {
            assert_eq!(decode(&[code, &[0x90; 12][..]].concat()), None, "{code:02x?}");
        }
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0x48]), None);
    }

    #[test]
    fn operands_and_jumps_stay_where_they_are() {
        // lea rdx, [rip + 0x100]; the rest.
        let code = [&[0x48, 0x8d, 0x15, 0, 1, 0, 0][..], &[0x90; 9]].concat();
        let mut expected = std::vec![0x48, 0x8d, 0x15, 0, 0x81, 0, 0];
        expected.extend(jump(0x8007, 0x10007).expect("near"));
        assert_eq!(moved(&code), Some(expected));
        // cmp dword ptr [rip + 0x100], 1: the distance counts from behind the constant.
        let code = [&[0x83, 0x3d, 0, 1, 0, 0, 1][..], &[0x90; 9]].concat();
        assert_eq!(moved(&code).expect("known")[..7], [0x83, 0x3d, 0, 0x81, 0, 0, 1]);
        // test rdi, rdi; je +0x10.
        let code = [&[0x48, 0x85, 0xff, 0x74, 0x10][..], &[0x90; 32]].concat();
        let mut expected = std::vec![0x48, 0x85, 0xff, 0x0f, 0x84];
        expected.extend((0x10015i32 - 0x8009).to_le_bytes());
        expected.extend(jump(0x8009, 0x10005).expect("near"));
        assert_eq!(moved(&code), Some(expected));
        // xor ecx, ecx; jmp elsewhere: nothing comes behind.
        let code = [0x31, 0xc9, 0xe9, 0x79, 0xa5, 0xff, 0xff];
        let mut expected = std::vec![0x31, 0xc9];
        expected.extend(jump(0x8002, 0xa580).expect("near"));
        assert_eq!(moved(&code), Some(expected));
    }

    #[test]
    fn what_is_too_short_or_too_far_or_led_into_is_refused() {
        assert_eq!(moved(&[0x55, 0x53]), None, "ends before a jump does");
        assert_eq!(moved(&[0xeb, 0x10, 0x90, 0x90, 0x90, 0x90]), None, "bytes behind a short jump are another's");
        let code = [&[0x48, 0x8d, 0x15, 0, 1, 0, 0][..], &[0x90; 9]].concat();
        assert_eq!(relocate(&code, 0x1_0000_0000, 0x8000), None, "too far");
        // A loop whose head is the second instruction: mov rax, rdi; dec rax; jne -5.
        let looping = [0x48, 0x89, 0xf8, 0x48, 0xff, 0xc8, 0x75, 0xfb, 0xc3];
        assert_eq!(moved(&looping), None);
        // Behind the bytes that are overwritten, and to the entry itself: jne -2, jne -8.
        assert!(moved(&[0x48, 0x89, 0xf8, 0x48, 0xff, 0xc8, 0x75, 0xfe, 0xc3]).is_some());
        assert!(moved(&[0x48, 0x89, 0xf8, 0x48, 0xff, 0xc8, 0x75, 0xf8, 0xc3]).is_some());
        // Far back: jne to the second instruction by four bytes.
        let mut far = std::vec![0x48, 0x89, 0xf8, 0x48, 0xff, 0xc8];
        far.resize(200, 0x90);
        far.extend([0x0f, 0x85]);
        far.extend((3i32 - 206).to_le_bytes());
        assert_eq!(moved(&far), None);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused() {
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let code: std::vec::Vec<u8> = state.to_le_bytes().into_iter().chain(state.to_be_bytes()).collect();
            if let Some(instruction) = decode(&code) {
                assert!((1..=15).contains(&instruction.bytes), "{code:02x?}");
            }
            let _ = relocate(&code, 0x10000, 0x8000);
        }
    }
}
