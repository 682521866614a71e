//! Walks the stack of a stopped thread, from outside, and finds the functions on the stack.
//!
//! The walk is strict, because the decision to borrow a thread depends on the result. The walk
//! fails at a frame without unwind information, and at a frame with rules beyond "a register plus
//! an offset".

use super::map::{Map, Range};
use super::memory::Memory;
use super::ptrace::Registers;
use super::symbols::Image;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindSection, X86_64,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Depth limit. A thread with a deeper stack is not borrowed: there are other threads.
const DEEPEST: usize = 2048;
/// Limit of the unwind information read from all objects together.
const MOST_BYTES: u64 = 512 << 20;
/// Reason why the stack of a thread in a signal handler is not walked.
pub const IN_SIGNAL_HANDLER: &str = "it is in a signal handler";
const REGISTERS: usize = 17;
const RSP: usize = 7;
const RETURN: usize = 16;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Unwind tables, each read once.
#[derive(Default)]
pub struct Stacks {
    taken: Cell<u64>,
    tables: RefCell<HashMap<u64, Option<Tables>>>,
}

struct Tables {
    header: Vec<u8>,
    header_at: u64,
    frames: Vec<u8>,
    frames_at: u64,
}

enum Step {
    /// Registers of the caller.
    Caller([u64; REGISTERS]),
    /// The function has no caller.
    Root,
}

impl Stacks {
    /// Reads the tables of an object ahead of time, before a thread is stopped.
    pub fn prepare(&self, memory: &Memory, base: u64) {
        self.tables.borrow_mut().entry(base).or_insert_with(|| self.read(memory, base));
    }

    /// Lists the functions of an object with unwind information.
    pub fn functions(&self, memory: &Memory, base: u64) -> Vec<Range> {
        self.prepare(memory, base);
        let tables = self.tables.borrow();
        tables.get(&base).and_then(Option::as_ref).map(Tables::functions).unwrap_or_default()
    }

    /// Lists the code addresses of a stopped thread, innermost first: the current instruction, then
    /// the return address of each call in progress.
    pub fn walk(&self, map: &Map, memory: &Memory, registers: &Registers) -> Result<Vec<u64>, String> {
        let r = registers;
        let mut now = [
            r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip,
        ];
        let mut addresses = Vec::new();
        while addresses.len() < DEEPEST {
            let address = now[RETURN];
            addresses.push(address);
            // A return address may lie behind the last instruction of its function.
            let inside = if addresses.len() == 1 { address } else { address.wrapping_sub(1) };
            match self.step(map, memory, inside, &now)? {
                Step::Root => return Ok(addresses),
                Step::Caller(caller) if caller[RSP] <= now[RSP] => return Err("its stack goes round".to_owned()),
                Step::Caller(caller) if caller[RETURN] == 0 => return Ok(addresses),
                Step::Caller(caller) => now = caller,
            }
        }
        Err("its stack is too deep".to_owned())
    }

    fn read(&self, memory: &Memory, base: u64) -> Option<Tables> {
        let left = MOST_BYTES.saturating_sub(self.taken.get());
        let tables = Tables::read(memory, base, left)?;
        self.taken.set(self.taken.get() + (tables.header.len() + tables.frames.len()) as u64);
        Some(tables)
    }

    fn step(&self, map: &Map, memory: &Memory, address: u64, now: &[u64; REGISTERS]) -> Result<Step, String> {
        let unknown = || format!("code at {address:#x} has no unwind information");
        let object = map.object_at(address).ok_or_else(unknown)?;
        let mut tables = self.tables.borrow_mut();
        let tables = tables.entry(object.start).or_insert_with(|| self.read(memory, object.start));
        let tables = tables.as_ref().ok_or_else(unknown)?;
        tables.step(memory, address, now)?.ok_or_else(unknown)
    }
}

/// First bytes of `.eh_frame_hdr`, the same for all linkers:
/// 1. the version 1;
/// 2. a 4-byte distance to `.eh_frame`, from the field itself;
/// 3. a 4-byte count;
/// 4. pairs of two 4-byte distances from the beginning of the header.
const FORM: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
const ROWS: usize = 12;
const ROW_BYTES: usize = 8;

impl Tables {
    /// Reads the tables. Returns none when the tables take more than `most` bytes, or have another
    /// form.
    fn read(memory: &Memory, base: u64, most: u64) -> Option<Tables> {
        let image = Image::read(memory, base).ok()?;
        let (header_at, header_bytes) = image.unwind?;
        let read = |at, bytes: u64| {
            let bytes = usize::try_from(bytes).ok().filter(|_| bytes <= most / 2)?;
            memory.bytes(at, bytes).ok()
        };
        let header = read(header_at, header_bytes)?;
        if header.get(..FORM.len())? != FORM {
            return None;
        }
        let frames_at = distant(header_at.wrapping_add(4), &header, 4)?;
        let frames = read(frames_at, image.rest_of_segment(frames_at)?)?;
        Some(Tables { header, header_at, frames, frames_at })
    }

    fn bases(&self) -> BaseAddresses {
        BaseAddresses::default().set_eh_frame_hdr(self.header_at).set_eh_frame(self.frames_at)
    }

    fn description(&self, at: usize) -> Option<FrameDescriptionEntry<Bytes<'_>>> {
        EhFrame::new(&self.frames, LittleEndian)
            .fde_from_offset(&self.bases(), EhFrameOffset(at), EhFrame::cie_from_offset)
            .ok()
    }

    fn rows(&self) -> Option<&[[u8; ROW_BYTES]]> {
        let count = usize::try_from(distant(0, &self.header, 8)?).ok()?;
        let rows = self.header.get(ROWS..)?;
        Some(rows.get(..count.checked_mul(ROW_BYTES)?)?.as_chunks().0)
    }

    fn functions(&self) -> Vec<Range> {
        let range = |row| {
            let description = self.description(self.offset(row)?)?;
            let start = description.initial_address();
            Some(Range { start, end: start.checked_add(description.len())? })
        };
        self.rows().unwrap_or_default().iter().filter_map(range).filter(|range| range.start < range.end).collect()
    }

    /// Returns the place of the description named by a row, from the beginning of `.eh_frame`.
    fn offset(&self, row: &[u8; ROW_BYTES]) -> Option<usize> {
        let description = distant(self.header_at, row, 4)?;
        usize::try_from(description.checked_sub(self.frames_at)?).ok().filter(|&at| at < self.frames.len())
    }

    /// Returns the expected place of the description of the function at an address, from the
    /// beginning of `.eh_frame`.
    fn find(&self, address: u64) -> Option<usize> {
        let rows = self.rows()?;
        let behind = rows.partition_point(|row| distant(self.header_at, row, 0).is_some_and(|start| start <= address));
        self.offset(rows.get(behind.checked_sub(1)?)?)
    }

    /// Finds the caller of a frame. Returns none without a description of the address.
    fn step(&self, memory: &Memory, address: u64, now: &[u64; REGISTERS]) -> Result<Option<Step>, String> {
        let description = self.find(address).and_then(|at| self.description(at));
        let description = description.filter(|description| description.contains(address));
        let Some(description) = description else { return Ok(None) };
        if description.is_signal_trampoline() {
            return Err(IN_SIGNAL_HANDLER.to_owned());
        }
        let frames = EhFrame::new(&self.frames, LittleEndian);
        let mut context = UnwindContext::new();
        let Ok(row) = description.unwind_info_for_address(&frames, &self.bases(), &mut context, address) else {
            return Ok(None);
        };
        caller(row, memory, now).map(Some)
    }
}

/// Reads the signed 4-byte distance at `at`, and adds the distance to the address `from`.
fn distant(from: u64, bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(from.wrapping_add_signed(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))))
}

fn caller(row: &gimli::UnwindTableRow<usize>, memory: &Memory, now: &[u64; REGISTERS]) -> Result<Step, String> {
    let complicated = || "it is in code with complicated unwind information".to_owned();
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            now.get(usize::from(register.0)).ok_or_else(complicated)?.wrapping_add_signed(*offset)
        }
        CfaRule::Expression(_) => return Err(complicated()),
    };
    let mut then = *now;
    then[RSP] = cfa;
    for (number, place) in (0..).zip(&mut then) {
        let is_return = Register(number) == X86_64::RA;
        match row.register(Register(number)) {
            Some(RegisterRule::Offset(offset)) => {
                *place = memory.word(cfa.wrapping_add_signed(offset)).map_err(|error| format!("its stack: {error}"))?;
            }
            Some(RegisterRule::Undefined) if is_return => return Ok(Step::Root),
            Some(RegisterRule::Undefined | RegisterRule::SameValue) | None if !is_return => {}
            _ => return Err(complicated()),
        }
    }
    Ok(Step::Caller(then))
}
