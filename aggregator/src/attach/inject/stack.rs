//! Walks the stack of a stopped thread, from outside, and finds the functions on the stack.
//!
//! The walk is strict, because the decision to borrow a thread depends on the result. The walk
//! fails at a frame without unwind information, and at a frame with rules beyond "a register plus
//! an offset". musl's C library has no unwind information, nor have programs by `musl-gcc`. In a
//! process with musl, the machine code of such objects tells the way to the caller ([`epilogue`]).

use super::map::{Map, Range};
use super::memory::Memory;
use super::symbols::{Functions, Image};
use crate::arch::registers::{self, Registers};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindSection,
};
use heapline_shared_format::arch::epilogue::{self, SIGNAL_RETURN};
use heapline_shared_format::arch::instructions;
use heapline_shared_format::arch::registers::{BP, COUNT, RA, SP};
use heapline_shared_format::arch::way::{Base, NEVER, Place, Way};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Depth limit. A thread with a deeper stack is not borrowed: there are other threads.
const DEEPEST: usize = 2048;
/// Limit of the unwind information read from all objects together.
const MOST_BYTES: u64 = 512 << 20;
/// Reason why the stack of a thread in a signal handler is not walked.
pub const IN_SIGNAL_HANDLER: &str = "it is in a signal handler";

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Unwind tables, each read once.
#[derive(Default)]
pub struct Stacks {
    taken: Cell<u64>,
    tables: RefCell<HashMap<u64, Option<Tables>>>,
    musl: Option<Musl>,
}

/// What a walk needs to know of musl, and the machine code of objects without tables.
pub struct Musl {
    /// The C library.
    pub libc: Range,
    /// Addresses of the functions that never return.
    pub never: Vec<u64>,
    /// Machine code, by the address of its mapping; each is read once.
    pub code: RefCell<HashMap<u64, Vec<u8>>>,
}

struct Tables {
    header: Vec<u8>,
    header_at: u64,
    frames: Vec<u8>,
    frames_at: u64,
}

enum Step {
    /// Registers of the caller.
    Caller([u64; COUNT]),
    /// The function has no caller.
    Root,
}

impl Musl {
    /// Limit of the code of an object.
    const MOST_BYTES: u64 = 64 << 20;

    /// Returns the facts about the C library at `libc` with these functions.
    pub fn new(libc: Range, functions: &Functions) -> Musl {
        let never = NEVER.iter().filter_map(|name| functions.address(std::str::from_utf8(name).ok()?));
        Musl { libc, never: never.collect(), code: RefCell::default() }
    }

    /// Finds the caller of a frame by the machine code. Returns none where the code tells no
    /// caller.
    fn step(&self, map: &Map, memory: &Memory, now: &[u64; COUNT]) -> Result<Option<Step>, String> {
        let address = now[RA];
        let mapping = map.mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address));
        let Some(mapping) = mapping.filter(|mapping| mapping.is_code) else { return Ok(None) };
        let mut code = self.code.borrow_mut();
        let code = code.entry(mapping.start).or_insert_with(|| {
            let length = (mapping.end - mapping.start).min(Musl::MOST_BYTES);
            memory.bytes(mapping.start, usize::try_from(length).unwrap_or(0)).unwrap_or_default()
        });
        let offset = |address: u64| usize::try_from(address.wrapping_sub(mapping.start)).unwrap_or(usize::MAX);
        if is_signal_return(memory, address) {
            return Err(IN_SIGNAL_HANDLER.to_owned());
        }
        let never: Vec<usize> = self.never.iter().map(|&address| offset(address)).collect();
        let (slot, bp) = match epilogue::way(code, offset(address), epilogue::remainder(now[SP]), &never) {
            None => return Ok(None),
            Some(Way::Never) => return Ok(Some(Step::Root)),
            Some(Way::Returns { slot, bp }) => (slot, bp),
        };
        let at = |place: Place| {
            now[if place.base == Base::StackPointer { SP } else { BP }].wrapping_add_signed(i64::from(place.distance))
        };
        let word = |address| memory.word(address).map_err(|error| format!("its stack: {error}"));
        let mut then = *now;
        then[RA] = word(at(slot))?;
        then[SP] = at(slot).wrapping_add(8);
        if let Some(place) = bp {
            then[BP] = word(at(place))?;
        }
        if !is_behind_call(memory, then[RA]) && !is_signal_return(memory, then[RA]) {
            return Err("its stack does not lead through calls".to_owned());
        }
        Ok(Some(Step::Caller(then)))
    }
}

/// Whether a signal handler returns to an address.
fn is_signal_return(memory: &Memory, address: u64) -> bool {
    let mut code = [0; SIGNAL_RETURN.len()];
    memory.read(address, &mut code).is_ok() && code == SIGNAL_RETURN
}

/// Whether the code in front of an address ends with a call.
fn is_behind_call(memory: &Memory, address: u64) -> bool {
    let mut code = [0; instructions::LONGEST_CALL];
    let from = address.wrapping_sub(code.len() as u64);
    memory.read(from, &mut code).is_ok() && instructions::ends_with_call(&code)
}

impl Stacks {
    /// Returns stacks of a process with this musl, if any.
    pub fn new(musl: Option<Musl>) -> Stacks {
        Stacks { musl, ..Stacks::default() }
    }

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
        let mut now = registers::by_number(registers);
        let mut addresses = Vec::new();
        while addresses.len() < DEEPEST {
            let address = now[RA];
            addresses.push(address);
            // A return address may lie behind the last instruction of its function.
            let inside = if addresses.len() == 1 { address } else { address.wrapping_sub(1) };
            match self.step(map, memory, inside, &now)? {
                Step::Root => return Ok(addresses),
                Step::Caller(caller) if caller[SP] <= now[SP] => return Err("its stack goes round".to_owned()),
                Step::Caller(caller) if caller[RA] == 0 => return Ok(addresses),
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

    fn step(&self, map: &Map, memory: &Memory, address: u64, now: &[u64; COUNT]) -> Result<Step, String> {
        let unknown = || format!("code at {address:#x} has no unwind information");
        let object = map.object_at(address).ok_or_else(unknown)?;
        let mut tables = self.tables.borrow_mut();
        let tables = tables.entry(object.start).or_insert_with(|| self.read(memory, object.start));
        let by_tables = tables.as_ref().map_or(Ok(None), |tables| tables.step(memory, address, now))?;
        let is_asked = |musl: &&Musl| tables.is_none() || musl.libc == object;
        match self.musl.as_ref().filter(is_asked) {
            Some(musl) if by_tables.is_none() => musl.step(map, memory, now)?.ok_or_else(unknown),
            _ => by_tables.ok_or_else(unknown),
        }
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
    fn step(&self, memory: &Memory, address: u64, now: &[u64; COUNT]) -> Result<Option<Step>, String> {
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

fn caller(row: &gimli::UnwindTableRow<usize>, memory: &Memory, now: &[u64; COUNT]) -> Result<Step, String> {
    let complicated = || "it is in code with complicated unwind information".to_owned();
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            now.get(usize::from(register.0)).ok_or_else(complicated)?.wrapping_add_signed(*offset)
        }
        CfaRule::Expression(_) => return Err(complicated()),
    };
    let mut then = *now;
    then[SP] = cfa;
    for (number, place) in (0..).zip(&mut then) {
        let is_return = usize::from(number) == RA;
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

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    /// Every return address of a call in the C library of this process, with the distance from the
    /// stack pointer to the return address of the frame by the tables; and the code.
    fn by_tables() -> (Vec<(usize, i64)>, Vec<u8>) {
        let pid = std::process::id();
        let memory = Memory::open(pid).expect("its own memory");
        let map = Map::read(pid, &memory).expect("its own map");
        let libc = map.object_at((libc::poll as *const ()).addr() as u64).expect("the C library");
        let code = map.mappings.iter().find(|m| m.is_code && libc.contains(m.start)).expect("it has code");
        let bytes = memory.bytes(code.start, usize::try_from(code.end - code.start).expect("small")).expect("read");
        let tables = Tables::read(&memory, libc.start, MOST_BYTES).expect("it has tables");
        let frames = EhFrame::new(&tables.frames, LittleEndian);
        let mut found = Vec::new();
        for row in tables.rows().expect("rows") {
            let description = tables.offset(row).and_then(|at| tables.description(at)).expect("a description");
            let (start, length) = (description.initial_address(), description.len());
            let Some(at) = start.checked_sub(code.start).and_then(|at| usize::try_from(at).ok()) else { continue };
            let Some(function) = bytes.get(at..at + usize::try_from(length).expect("small")) else { continue };
            let mut decoder = Decoder::with_ip(64, function, start, DecoderOptions::NONE);
            let mut context = UnwindContext::new();
            while decoder.can_decode() {
                let instruction = decoder.decode();
                let offset = usize::try_from(instruction.ip() - code.start).expect("in the code");
                if !instruction.is_invalid() {
                    let own = epilogue::instruction_bytes(&bytes[offset..]);
                    assert_eq!(own, Some(instruction.len()), "{:x?}", &bytes[offset..offset + instruction.len()]);
                }
                if instruction.mnemonic() != Mnemonic::Call {
                    continue;
                }
                let row = description.unwind_info_for_address(&frames, &tables.bases(), &mut context, instruction.ip());
                if let Ok(CfaRule::RegisterAndOffset { register, offset: cfa }) = row.map(|row| row.cfa().clone())
                    && usize::from(register.0) == SP
                {
                    found.push((offset + instruction.len(), cfa - 8));
                }
            }
        }
        (found, bytes)
    }

    /// glibc has tables, by which the answers of the machine code are compared.
    #[test]
    fn the_machine_code_tells_what_the_tables_tell() {
        let (calls, code) = by_tables();
        let (mut same, mut other) = (0, 0);
        for (at, distance) in &calls {
            if let Some(Way::Returns { slot: Place { base: Base::StackPointer, distance: found }, .. }) =
                epilogue::way(&code, *at, epilogue::AT_CALL, &[])
            {
                if i64::from(found) == *distance { same += 1 } else { other += 1 }
            }
        }
        // Without the names of functions that never return, some answers are those of the function
        // behind such a call.
        assert!(calls.len() > 5000 && same * 4 > calls.len() * 3, "{same} of {}", calls.len());
        assert!(other * 100 < same, "{other} other answers");
    }
}
