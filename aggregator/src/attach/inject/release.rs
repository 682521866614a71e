//! Giving back what the collector has mapped in a process, once no call leads to the collector any more.
//!
//! A thread may still stand in the collector, or come out of a function that the collector has called for it. So all threads
//! are stopped for a moment, and nothing is given back unless each of them is seen to be elsewhere: by a walk of its stack, or,
//! where code has no unwind information, by the absence of any address of the collector's on that stack. What the collector
//! keeps for each thread is cleared while the threads are stopped, before anything that it points to is unmapped: an
//! aggregator that dies in between leaves memory behind, and no pointer to memory that is gone.

use super::frozen::Frozen;
use super::library;
use super::map::{Map, Range};
use super::ptrace::{self, Registers};
use super::stack::IN_SIGNAL_HANDLER;
use super::thread::{Borrowed, CallError};
use super::{Place, failed};
use crate::attach::inject::point::CODE_64;
use heapline_shared_format::inject::{RELEASE_SYMBOL, Request, THREAD_WORDS_BYTES, status};
use std::thread;
use std::time::Duration;

/// How often all threads are looked at, and how long they run in between.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// What is looked at of a stack whose frames cannot be walked.
const MOST_STACK_BYTES: u64 = 1 << 20;
/// Below its stack pointer a leaf function may keep something.
const RED_ZONE: u64 = 128;

/// Releases everything. False where a thread stayed in the collector, or could not be looked at: nothing was changed then.
pub fn release(thread: &mut Borrowed<'_>, place: &Place<'_>, base: u64) -> Result<bool, CallError> {
    let offset = library::function(RELEASE_SYMBOL);
    let function = base + offset.ok_or_else(|| failed("finding the collector's function", "it is not there"))?;
    let words = ask(thread, place, function, false)?.thread_words;
    for _ in 0..ATTEMPTS {
        let map = Map::read(place.map.pid, place.memory).map_err(CallError::Ptrace)?;
        let Some(code) = map.object_at(base) else { return Ok(false) };
        if let Some(frozen) = Frozen::others(map.pid, thread.tid())? {
            let registers: Result<Vec<Registers>, _> =
                frozen.threads().iter().map(|&tid| ptrace::registers(tid)).collect();
            let registers = registers?;
            if registers.iter().all(|registers| is_outside(registers, &map, place, code)) {
                for registers in &registers {
                    place.memory.write(registers.fs_base.wrapping_add(words), &[0; THREAD_WORDS_BYTES])?;
                }
                ask(thread, place, function, true)?;
                return Ok(true);
            }
        }
        thread::sleep(PAUSE);
    }
    Ok(false)
}

/// Calls the collector's function, for its answers alone or to release.
fn ask(thread: &mut Borrowed<'_>, place: &Place<'_>, function: u64, releases: bool) -> Result<Request, CallError> {
    let at = thread.place(&Request { pool_bytes: releases.into(), ..Request::default() }.to_bytes())?;
    thread.call("the collector", function, [at, 0, 0])?;
    let mut bytes = [0; Request::BYTES];
    place.memory.read(at, &mut bytes).map_err(CallError::Ptrace)?;
    let answer = Request::from_bytes(&bytes);
    if answer.status == status::DONE { Ok(answer) } else { Err(failed("the collector", "it has failed")) }
}

/// Whether a stopped thread is sure to stand in no function of the collector's.
fn is_outside(registers: &Registers, map: &Map, place: &Place<'_>, code: Range) -> bool {
    if registers.cs != CODE_64 || code.contains(registers.rip) {
        return false;
    }
    match place.loader.stacks.walk(map, place.memory, registers) {
        Ok(addresses) => !addresses.iter().any(|&address| code.contains(address)),
        // The stack that was interrupted is another.
        Err(why) if why == IN_SIGNAL_HANDLER => false,
        Err(_) => names_none(registers, map, place, code) == Some(true),
    }
}

/// Whether no word of the stack is an address of the collector's code. None where not all of the stack can be read.
fn names_none(registers: &Registers, map: &Map, place: &Place<'_>, code: Range) -> Option<bool> {
    let from = registers.rsp.checked_sub(RED_ZONE)? & !7;
    let end = map.mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&registers.rsp))?.end;
    let bytes = end.checked_sub(from).filter(|&bytes| bytes <= MOST_STACK_BYTES)?;
    let stack = place.memory.bytes(from, usize::try_from(bytes).ok()?).ok()?;
    Some(!stack.as_chunks::<8>().0.iter().any(|&word| code.contains(u64::from_le_bytes(word))))
}
