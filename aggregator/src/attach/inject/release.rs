//! Unmaps the collector's memory in a process, once no call leads to the collector any more.
//!
//! A thread may still stand in the collector, or may return from a function called by the
//! collector. So all threads are stopped for a moment. Memory is given back only if each thread is
//! seen outside of the collector:
//! - by a walk of its stack, or
//! - for code without unwind information, by the absence of any address of the collector on its
//!   stack.
//!
//! The collector's words of each thread are cleared while the threads are stopped, before any
//! memory behind these words is unmapped. An aggregator that dies in between leaves memory behind,
//! but no pointer to unmapped memory.

use super::frozen::Frozen;
use super::library;
use super::map::{Map, Range};
use super::ptrace;
use super::stack::IN_SIGNAL_HANDLER;
use super::thread::{Borrowed, CallError};
use super::{Place, failed};
use crate::arch::registers::{self, RED_ZONE, Registers};
use heapline_shared_format::inject::{RELEASE_SYMBOL, Request, THREAD_WORDS_BYTES, status};
use std::thread;
use std::time::Duration;

/// Number of looks at all threads. The next constant is the time in between.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// Limit of the bytes read from a stack that cannot be walked.
const MOST_STACK_BYTES: u64 = 1 << 20;

/// Releases everything. Returns false, without any change, when a thread stayed in the collector or
/// could not be looked at.
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
                    let words = words_of(registers, words, place)?;
                    place.memory.write(words, &[0; THREAD_WORDS_BYTES])?;
                }
                ask(thread, place, function, true)?;
                return Ok(true);
            }
        }
        thread::sleep(PAUSE);
    }
    Ok(false)
}

/// Returns the address of the collector's words of a thread ([`Request::thread_words`]).
fn words_of(registers: &Registers, words: u64, place: &Place<'_>) -> Result<u64, CallError> {
    if words.cast_signed() < 0 {
        return Ok(registers::thread_pointer(registers).wrapping_add(words));
    }
    let table = place.memory.word(registers::thread_pointer(registers).wrapping_add(8))?;
    Ok(place.memory.word(table.wrapping_add(words.wrapping_mul(8)))?)
}

/// Calls the collector's function, either for its answers alone or to release the memory.
fn ask(thread: &mut Borrowed<'_>, place: &Place<'_>, function: u64, releases: bool) -> Result<Request, CallError> {
    let at = thread.place(&Request { pool_bytes: releases.into(), ..Request::default() }.to_bytes())?;
    thread.call("the collector", function, [at, 0, 0])?;
    let mut bytes = [0; Request::BYTES];
    place.memory.read(at, &mut bytes).map_err(CallError::Ptrace)?;
    let answer = Request::from_bytes(&bytes);
    if answer.status == status::DONE { Ok(answer) } else { Err(failed("the collector", "it has failed")) }
}

/// Whether a stopped thread certainly stands in no function of the collector.
fn is_outside(registers: &Registers, map: &Map, place: &Place<'_>, code: Range) -> bool {
    if !registers::is_native(registers) || code.contains(registers::instruction(registers)) {
        return false;
    }
    match place.loader.stacks.walk(map, place.memory, registers) {
        Ok(addresses) => !addresses.iter().any(|&address| code.contains(address)),
        // The interrupted stack is another stack.
        Err(why) if why == IN_SIGNAL_HANDLER => false,
        Err(_) => names_none(registers, map, place, code) == Some(true),
    }
}

/// Whether no word of the stack is an address in the collector's code. Returns none when a part of
/// the stack cannot be read.
fn names_none(registers: &Registers, map: &Map, place: &Place<'_>, code: Range) -> Option<bool> {
    let stack_pointer = registers::stack_pointer(registers);
    let from = stack_pointer.checked_sub(RED_ZONE)? & !7;
    let end = map.mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&stack_pointer))?.end;
    let bytes = end.checked_sub(from).filter(|&bytes| bytes <= MOST_STACK_BYTES)?;
    let stack = place.memory.bytes(from, usize::try_from(bytes).ok()?).ok()?;
    Some(!stack.as_chunks::<8>().0.iter().any(|&word| code.contains(u64::from_le_bytes(word))))
}
