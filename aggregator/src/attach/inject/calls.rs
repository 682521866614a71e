//! Direct calls of an allocator within the program.
//!
//! A program linked with a malloc of its own calls this malloc without a table in between: the
//! distance is part of the call instruction. The injection changes these instructions, and leaves
//! the allocator as it is.
//!
//! ```text
//! part                   contents                                             stopped threads
//! [`Survey`]             all functions of the program, from the unwind        none
//!                        tables, and their outgoing calls and jumps
//! [`Stubs`]              jumps to the hooks, on a page that stays, near       one
//!                        enough for a call
//! [`Survey::lead`],      the distances in the instructions                    all
//! [`Survey::lead_back`]
//! ```
//!
//! - A thread never stands inside an instruction. A thread in front of a call makes either the old
//!   call or the new call.
//! - A call of the allocator by itself belongs to the request in progress. Calls stay unchanged in
//!   every function reachable by direct calls from the allocator's functions.
//! - A caller and a function may have agreed on more than the calling convention. The hooks'
//!   entries for direct calls therefore keep all registers (`collector/preload/src/direct.rs`).
//! - The page of a call is written at once: an aggregator that dies leaves whole distances. A
//!   distance across two pages is left alone.

use super::code::{Code, index};
use super::frozen::Frozen;
use super::library;
use super::map::{Map, Range};
use super::memory::Memory;
use super::stack::Stacks;
use super::step::{self, Step};
use super::symbols::Image;
use super::thread::{Borrowed, CallError};
use crate::arch::instructions::{DISTANCE_BYTES, REACH, distance};
use heapline_shared_format::arch::instructions::{self, TRAP};
use heapline_shared_format::inject::{DIRECT_PREFIX, STUBS_SYMBOL};
use std::collections::HashMap;

const PAGE: u64 = 4096;
const STUB_BYTES: u64 = instructions::JUMP_BYTES.next_multiple_of(16) as u64;
/// Distance of the stubs below the program, if the place is free.
const BELOW: u64 = 256 << 10;
const LOWEST: u64 = 64 << 10;

/// Counts of the changed and the unchanged calls in the code of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Led {
    /// Calls led to the collector, or back.
    pub changed: usize,
    /// Unchanged calls: calls of the allocator itself, or calls out of reach.
    pub left: usize,
}

/// A call or jump to the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    /// Address of the distance in the instruction.
    distance_at: u64,
    /// Index of the function, in the order of [`hooks`].
    hook: usize,
    /// Address of the allocator's function.
    original: u64,
}

/// Direct calls of the allocator found in the program.
pub struct Survey {
    program: Range,
    calls: Vec<Call>,
    left: usize,
    /// The allocator's functions, and all functions reachable from these by calls.
    allocator: Vec<Range>,
}

/// Lists the hooks for direct calls, and their places in the library, always in the same order.
fn hooks() -> impl Iterator<Item = (String, u64)> {
    let named = |(name, place): (String, u64)| Some((name.strip_prefix(DIRECT_PREFIX)?.to_owned(), place));
    library::functions().into_iter().filter_map(named)
}

impl Survey {
    /// Looks through the code of the program. Returns none for a program without an allocator of
    /// its own.
    pub fn of(map: &Map, memory: &Memory) -> Option<Survey> {
        let program = map.program()?;
        let image = Image::read(memory, program.start).ok()?;
        if !image.defines(memory, "malloc") {
            return None;
        }
        let place = |name: &str| image.place(memory, name);
        let originals: Vec<Option<u64>> = hooks().map(|(name, _)| place(&name)).collect();
        let stubs = Stubs::find(map, memory);
        let functions = Stacks::default().functions(memory, program.start);
        let code = Code::read(map, memory, program, functions);
        Some(Survey::judge(program, &code, &originals, stubs.as_ref()))
    }

    fn judge(program: Range, code: &Code, originals: &[Option<u64>], stubs: Option<&Stubs>) -> Survey {
        let mut hooks: HashMap<u64, usize> = HashMap::new();
        for (hook, original) in originals.iter().enumerate() {
            if let Some(original) = original {
                hooks.entry(*original).or_insert(hook);
            }
        }
        let hook_of = |target| hooks.get(&target).copied().or_else(|| stubs?.hook_at(target));
        let original_of = |hook: usize| originals.get(hook).copied().flatten();
        let resolved = |target| hook_of(target).and_then(original_of).unwrap_or(target);
        let allocators = code.reachable(hooks.keys().copied(), resolved);
        let knows_all = hooks.keys().all(|&original| code.function_at(original).is_some());
        let allocator = allocators.iter().map(|&function| code.functions[function]).collect();
        let mut survey = Survey { program, calls: Vec::new(), left: 0, allocator };
        for branch in &code.branches {
            let Some((hook, original)) = hook_of(branch.target).and_then(|hook| Some((hook, original_of(hook)?)))
            else {
                continue;
            };
            let is_foreign = knows_all && !allocators.contains(&branch.function);
            let is_whole = |at: &u64| at % PAGE <= PAGE - DISTANCE_BYTES;
            match branch.distance_at.filter(is_whole) {
                Some(distance_at) if is_foreign => survey.calls.push(Call { distance_at, hook, original }),
                // A short jump within the allocator.
                None if !is_foreign && branch.distance_at.is_none() => {}
                _ => survey.left += 1,
            }
        }
        survey
    }

    /// Whether an address lies in the allocator of the program.
    pub fn is_in_allocator(&self, address: u64) -> bool {
        self.allocator.iter().any(|function| function.contains(address))
    }

    /// Leads the calls to the collector at `base`.
    pub fn lead(&self, thread: &mut Borrowed<'_>, map: &Map, memory: &Memory, base: u64) -> Result<Led, CallError> {
        if self.calls.is_empty() {
            return Ok(Led { changed: 0, left: self.left });
        }
        let Some(stubs) = Stubs::establish(thread, map, memory, self.program, base)? else {
            return Ok(Led { changed: 0, left: self.left + self.calls.len() });
        };
        self.change(thread.tid(), map, memory, |call| stubs.place(call.hook))
    }

    /// Leads the calls back to the allocator of the program.
    pub fn lead_back(&self, thread: &Borrowed<'_>, map: &Map, memory: &Memory) -> Result<Led, CallError> {
        self.change(thread.tid(), map, memory, |call| call.original)
    }

    fn change(&self, tid: u32, map: &Map, memory: &Memory, target: impl Fn(&Call) -> u64) -> Result<Led, CallError> {
        let mut led = Led { changed: 0, left: self.left };
        let Some(_all) = Frozen::others(map.pid, tid)? else {
            led.left += self.calls.len();
            return Ok(led);
        };
        for calls in self.calls.chunk_by(|a, b| a.distance_at / PAGE == b.distance_at / PAGE) {
            let page = calls[0].distance_at & !(PAGE - 1);
            let mut bytes = memory.bytes(page, index(PAGE))?;
            for call in calls {
                let Some(distance) = distance(call.distance_at, target(call)) else {
                    led.left += 1;
                    continue;
                };
                let at = index(call.distance_at - page);
                bytes[at..at + distance.len()].copy_from_slice(&distance);
                led.changed += 1;
            }
            memory.write(page, &bytes)?;
            step::pass(Step::Frozen);
        }
        Ok(led)
    }
}

/// A page of jumps to the hooks.
struct Stubs {
    page: u64,
}

impl Stubs {
    /// Finds the page of an earlier attach.
    fn find(map: &Map, memory: &Memory) -> Option<Stubs> {
        let page = memory.word(Stubs::noted_at(map.collector()?)?).ok()?;
        (page != 0 && page.is_multiple_of(PAGE)).then_some(Stubs { page })
    }

    /// Returns the place where the collector keeps the address of the page.
    fn noted_at(base: u64) -> Option<u64> {
        Some(base + library::function(STUBS_SYMBOL)?)
    }

    /// Finds the page, or maps a new page. Returns none without room near the program.
    fn establish(
        thread: &mut Borrowed<'_>,
        map: &Map,
        memory: &Memory,
        program: Range,
        base: u64,
    ) -> Result<Option<Stubs>, CallError> {
        let Some(noted_at) = Stubs::noted_at(base) else { return Ok(None) };
        let noted = memory.word(noted_at)?;
        if noted != 0 {
            return Ok(Some(Stubs { page: noted }));
        }
        let Some(wanted) = map.room_below(program, BELOW, LOWEST) else { return Ok(None) };
        let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let page = thread.system_call("mmap", libc::SYS_mmap, [wanted, PAGE, protection, flags, u64::MAX, 0]);
        let Ok(page) = page else { return Ok(None) };
        let far = |address: u64| page.abs_diff(address) > REACH;
        if far(program.start) || far(program.end) {
            thread.system_call("munmap", libc::SYS_munmap, [page, PAGE, 0, 0, 0, 0])?;
            return Ok(None);
        }
        let stub = |(_, place)| {
            let mut bytes = instructions::jump_to(base + place).to_vec();
            bytes.resize(index(STUB_BYTES), TRAP);
            bytes
        };
        memory.write(page, &hooks().flat_map(stub).collect::<Vec<u8>>())?;
        memory.write(noted_at, &page.to_le_bytes())?;
        Ok(Some(Stubs { page }))
    }

    fn place(&self, hook: usize) -> u64 {
        self.page + hook as u64 * STUB_BYTES
    }

    fn hook_at(&self, address: u64) -> Option<usize> {
        let offset =
            address.checked_sub(self.page).filter(|&offset| offset < PAGE && offset.is_multiple_of(STUB_BYTES))?;
        usize::try_from(offset / STUB_BYTES).ok()
    }
}
