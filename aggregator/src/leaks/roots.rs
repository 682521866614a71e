//! The roots: the memory that may hold a pointer to a block and is no block itself.
//!
//! Roots are the writable mappings, less what holds no pointer of the program:
//!
//! | Not a root | Why |
//! | --- | --- |
//! | the arena and the library of Heapline | not the program's |
//! | memory shared by a file on a disk | pointers mean nothing there; reads would load the file |
//! | the rest of a stopped thread's stack, below its stack pointer | dead |
//! | lists of free memory in glibc's data | they point to headers, at the ends of blocks |
//! | free memory of the allocator | a stale word in a freed block would keep a lost block alive |
//!
//! The kernel joins neighbours, so a line of `/proc/PID/maps` may hold a stack, a pool of the
//! program and the allocator's memory in a row. The free memory of the allocator is told by parts:
//!
//! | Part of a line | Memory between its blocks |
//! | --- | --- |
//! | data of a loaded object | roots |
//! | range mapped by a recorded call, with a block in it: the allocator's | free |
//! | range mapped by a recorded call, without: the program's | roots |
//! | `[heap]` without a recorded range | free |
//! | heap of an arena of glibc, told by its header | free |
//! | else: stacks, large blocks of glibc, the loader's memory | free up to a page, else roots |
//!
//! Where blocks are missing in the table, all memory between blocks is a root.

use super::blocks::Blocks;
use super::memory::{Memory, PAGE, Span};
use crate::arch::registers::RED_ZONE;
use crate::process::procfs;
use heapline_shared_format::arena::MEMFD_NAME;
use heapline_shared_format::inject::LIBRARY_NAME;
use std::io;

/// Size and alignment of a heap of an arena of glibc.
const ARENA_HEAP: u64 = 64 << 20;
/// Most bytes from the start of a heap to the arena of the heap.
const ARENA_HEADER: u64 = 256;
/// Number of the lists of free memory in an arena of glibc.
const LISTS: u64 = 127;
/// Bytes before these lists: ten short lists, the free end of the heap, and the last remainder.
const BEFORE_LISTS: u64 = 12 * 8;
/// Beginnings of the names of shared memory that is in no file on a disk.
const IN_MEMORY: [&str; 5] = ["/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage"];

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    span: Span,
    is_readable: bool,
    is_writable: bool,
    is_shared: bool,
    name: String,
}

impl Mapping {
    /// Parses a line.
    pub fn parse(line: &str) -> Option<Mapping> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let span = Span::between(address(start)?, address(end)?)?;
        let rights = fields.next()?.as_bytes();
        let has = |place: usize, right: u8| rights.get(place) == Some(&right);
        let (is_readable, is_writable, is_shared) = (has(0, b'r'), has(1, b'w'), has(3, b's'));
        let name = fields.nth(3).unwrap_or_default().trim_start().to_owned();
        Some(Mapping { span, is_readable, is_writable, is_shared, name })
    }

    fn is_anonymous(&self) -> bool {
        self.name.is_empty() || self.name == "[heap]" || self.name.starts_with("[anon")
    }

    /// Whether the mapping holds data of glibc.
    fn is_of_glibc(&self) -> bool {
        let file = self.name.rsplit('/').next().unwrap_or_default();
        file == "libc.so.6" || file.starts_with("libc-2.")
    }

    /// Whether the mapping may hold a pointer of the program.
    fn is_scanned(&self) -> bool {
        let is_of_kernel = ["[vvar", "[vdso", "[vsyscall"].iter().any(|name| self.name.starts_with(name));
        let is_ours = self.name.contains(MEMFD_NAME) || self.name.contains(LIBRARY_NAME);
        let is_in_memory = self.name.is_empty() || IN_MEMORY.iter().any(|name| self.name.starts_with(name));
        self.is_readable
            && (self.is_writable || !self.is_shared && self.is_anonymous())
            && (!self.is_shared || is_in_memory)
            && !is_of_kernel
            && !is_ours
    }
}

/// Returns the mappings of a process that may hold pointers.
pub fn scanned(pid: u32) -> io::Result<Vec<Mapping>> {
    let mappings: Vec<Mapping> =
        procfs::mappings(pid)?.filter_map(|line| Mapping::parse(&line)).filter(Mapping::is_scanned).collect();
    // A process that has ended has no mappings, which does not mean that nothing holds a pointer.
    if mappings.is_empty() { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(mappings) }
}

/// Returns the addresses of mappings.
pub fn spans(mappings: &[Mapping]) -> Vec<Span> {
    mappings.iter().map(|mapping| mapping.span).collect()
}

/// A stopped thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Address of the newest word on the stack.
    pub stack_pointer: u64,
    /// Address of the C library's data of the thread, which lie above the stack.
    pub thread_pointer: u64,
    /// Contents of all registers.
    pub registers: Vec<u64>,
}

/// Knowledge of the memory, besides the blocks and the mappings.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Ranges mapped by recorded calls, by rising address.
    pub ranges: Vec<Span>,
    /// Places of the loaded objects.
    pub objects: Vec<Span>,
    /// Whether all blocks of the allocator are known.
    pub is_whole: bool,
    /// Stopped threads; none while the threads run.
    pub threads: Vec<Thread>,
}

/// Meaning of memory between blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gaps {
    /// Memory of the program.
    Roots,
    /// Free memory.
    Free,
    /// Free up to a page.
    FreeIfSmall,
}

/// Part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    span: Span,
    gaps: Gaps,
}

/// Returns the roots in mappings, all outside of blocks.
pub fn roots<'b, M: Memory>(
    mappings: &[Mapping],
    known: &Known,
    blocks: &'b Blocks,
    memory: &mut M,
) -> io::Result<impl Iterator<Item = Span> + use<'b, M>> {
    let mut areas = Vec::new();
    let dead = dead_stacks(mappings, &known.threads);
    for mapping in mappings {
        let dead = dead.iter().find_map(|dead| dead.and(mapping.span));
        let span = Span::between(dead.map_or(mapping.span.start, |dead| dead.end), mapping.span.end);
        let Some(span) = span else { continue };
        if known.is_whole && mapping.is_anonymous() {
            divide(Mapping { span, ..mapping.clone() }, known, blocks, memory, &mut areas)?;
            continue;
        }
        let lists = if mapping.is_of_glibc() { main_arena(span, memory)? } else { None };
        let lists = lists.unwrap_or(Span { start: span.end, end: span.end });
        let parts = [Span::between(span.start, lists.start), Span::between(lists.end, span.end)];
        areas.extend(parts.into_iter().flatten().map(|span| Area { span, gaps: Gaps::Roots }));
    }
    let in_area = |Area { span, gaps }| {
        let is_root = move |gap: &Span| match gaps {
            Gaps::Roots => true,
            Gaps::Free => false,
            Gaps::FreeIfSmall => gap.has_page(),
        };
        let whole = (gaps != Gaps::Free).then_some(span);
        whole.into_iter().flat_map(|span| blocks.gaps(span)).filter(is_root)
    };
    Ok(areas.into_iter().flat_map(in_area))
}

/// Divides an anonymous mapping into areas.
fn divide(
    mapping: Mapping,
    known: &Known,
    blocks: &Blocks,
    memory: &mut impl Memory,
    areas: &mut Vec<Area>,
) -> io::Result<()> {
    let objects = known.objects.iter().filter_map(|object| Some((object.and(mapping.span)?, Gaps::Roots)));
    let of_range = |span| if blocks.begins_in(span) { Gaps::Free } else { Gaps::Roots };
    let first = known.ranges.partition_point(|range| range.end <= mapping.span.start);
    let ranges = known.ranges[first..].iter().map_while(|range| range.and(mapping.span));
    let mut parts: Vec<(Span, Gaps)> = objects.chain(ranges.map(|span| (span, of_range(span)))).collect();
    parts.sort_by_key(|(span, _)| *span);
    let mut at = mapping.span.start;
    let end = Span { start: mapping.span.end, end: mapping.span.end };
    for (part, gaps) in parts.into_iter().chain([(end, Gaps::Roots)]) {
        if let Some(unknown) = Span::between(at, part.start) {
            if mapping.name == "[heap]" {
                areas.push(Area { span: unknown, gaps: Gaps::Free });
            } else {
                unrecorded(unknown, blocks, memory, areas)?;
            }
        }
        areas.extend(Span::between(at.max(part.start), part.end).map(|span| Area { span, gaps }));
        at = at.max(part.end);
    }
    Ok(())
}

/// Divides anonymous memory that no recorded call has mapped.
fn unrecorded(span: Span, blocks: &Blocks, memory: &mut impl Memory, areas: &mut Vec<Area>) -> io::Result<()> {
    let mut at = span.start;
    let mut start = span.start.next_multiple_of(ARENA_HEAP);
    while start < span.end {
        let end = start.saturating_add(ARENA_HEAP).min(span.end);
        let heap = Span { start, end };
        if blocks.begins_in(heap)
            && let Some(size) = arena_heap(start, memory)?
        {
            let heap = Span { start, end: end.min(start + size) };
            areas.extend(Span::between(at, start).map(|span| Area { span, gaps: Gaps::FreeIfSmall }));
            areas.push(Area { span: heap, gaps: Gaps::Free });
            at = heap.end;
        }
        start = end.next_multiple_of(ARENA_HEAP);
    }
    areas.extend(Span::between(at, span.end).map(|span| Area { span, gaps: Gaps::FreeIfSmall }));
    Ok(())
}

/// Returns the bytes in use of the heap of glibc's that begins at an address. None if there is no
/// such heap.
fn arena_heap(start: u64, memory: &mut impl Memory) -> io::Result<Option<u64>> {
    let mut header = [0; 4];
    memory.read(&[Span { start, end: start + 32 }], &mut |at, words| {
        let from = usize::try_from((at - start) / 8).unwrap_or(0);
        header.iter_mut().skip(from).zip(words).for_each(|(word, &read)| *word = read);
    })?;
    let [arena, before, size, writable] = header;
    let is_first = before == 0 && arena & !(ARENA_HEAP - 1) == start;
    let is_later = before != 0 && before.is_multiple_of(ARENA_HEAP) && arena & !(ARENA_HEAP - 1) != start;
    let has_sizes = size > 0 && size <= writable && writable <= ARENA_HEAP && size.is_multiple_of(PAGE);
    let is_heap = (is_first || is_later) && arena % ARENA_HEAP < ARENA_HEADER && arena.is_multiple_of(16) && has_sizes;
    Ok(is_heap.then_some(size))
}

/// Returns the lists of free memory of glibc's main arena in the data of the C library. None if
/// there is no such arena.
///
/// The arena has a pair of words for each list. An empty list points to itself, and most lists are
/// empty; the last one is always empty.
fn main_arena(data: Span, memory: &mut impl Memory) -> io::Result<Option<Span>> {
    let mut empty = Vec::new();
    let mut before = (0, 0);
    memory.read(&[data], &mut |start, words| {
        for (address, &word) in (start..).step_by(8).zip(words) {
            let is_pair = before == (address.wrapping_sub(8), word);
            if is_pair && word == address.wrapping_sub(8 + 16) {
                empty.push(address - 8);
            }
            before = (address, word);
        }
    })?;
    let Some(last) = empty.last() else { return Ok(None) };
    let first = last.saturating_sub((LISTS - 1) * 16);
    let count = empty.iter().filter(|&&list| list >= first && (list - first).is_multiple_of(16)).count() as u64;
    let span = Span { start: first.saturating_sub(BEFORE_LISTS).max(data.start), end: last + 16 };
    Ok((count > LISTS / 2).then_some(span))
}

/// Returns the unused parts of the stacks of stopped threads.
///
/// Only two kinds of stacks are certain to begin where their mapping begins: the first thread's,
/// and the lowest stack of a mapping whose thread data lie above the stack pointer in the same
/// mapping. All other memory below a stack pointer may be in use, as that of a coroutine is.
fn dead_stacks(mappings: &[Mapping], threads: &[Thread]) -> Vec<Span> {
    let dead = |mapping: &Mapping| {
        let has = |address: u64| (mapping.span.start..mapping.span.end).contains(&address);
        let lowest = threads.iter().filter(|thread| has(thread.stack_pointer)).min_by_key(|t| t.stack_pointer)?;
        let is_first = mapping.name == "[stack]";
        let lowest_data = threads.iter().map(|thread| thread.thread_pointer).filter(|&data| has(data)).min();
        let is_of_thread = mapping.is_anonymous()
            && lowest_data == Some(lowest.thread_pointer)
            && lowest.thread_pointer > lowest.stack_pointer;
        let end = lowest.stack_pointer.saturating_sub(RED_ZONE) & !7;
        Span::between(mapping.span.start, end).filter(|_| is_first || is_of_thread)
    };
    mappings.iter().filter_map(dead).collect()
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{Builder, Row};
    use super::super::memory::Synthetic;
    use super::*;
    use crate::table::births::Birth;

    fn mapping(line: &str) -> Mapping {
        Mapping::parse(line).unwrap_or_else(|| panic!("{line}"))
    }

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn blocks(rows: &[(u64, u64)]) -> Blocks {
        let mut builder = Builder::default();
        rows.iter()
            .for_each(|&(address, size)| builder.add(Row { address, size, stack: 0, birth: Birth::default() }, 1));
        builder.finish()
    }

    fn found(mappings: &[Mapping], known: &Known, rows: &[(u64, u64)], memory: &mut Synthetic) -> Vec<Span> {
        roots(mappings, known, &blocks(rows), memory).expect("readable").collect()
    }

    fn whole() -> Known {
        Known { is_whole: true, ..Known::default() }
    }

    #[test]
    fn only_memory_that_may_hold_pointers_is_scanned() {
        let scans = |line: &str| mapping(line).is_scanned();
        for line in [
            "1000-2000 rw-p 00000000 00:00 0 ",
            "1000-2000 r--p 00000000 00:00 0 ",
            "1000-2000 rw-p 00003000 08:01 77                         /lib/a name with spaces.so",
            "1000-2000 rw-p 00000000 00:00 0                          [heap]",
            "1000-2000 rw-p 00000000 00:00 0                          [stack]",
            "1000-2000 rw-s 00000000 00:01 9                          /dev/zero (deleted)",
            "1000-2000 rw-s 00000000 00:01 9                          /memfd:pool (deleted)",
        ] {
            assert!(scans(line), "{line}");
        }
        for line in [
            "1000-2000 ---p 00000000 00:00 0 ",
            "1000-2000 r--p 00003000 08:01 77                         /lib/a.so",
            "1000-2000 rw-s 00003000 08:01 77                         /data/base.db",
            "1000-2000 r--p 00000000 00:00 0                          [vvar]",
            "1000-2000 rw-s 00000000 00:01 9                          /memfd:heapline-arena (deleted)",
            "1000-2000 rw-p 00003000 00:01 9                          /memfd:heapline-collector (deleted)",
        ] {
            assert!(!scans(line), "{line}");
        }
        assert_eq!(mapping("1000-2000 rw-p 0 0:0 0    /a b").name, "/a b");
    }

    #[test]
    fn free_memory_of_the_allocator_is_no_root_and_a_pool_is() {
        let anonymous = [mapping("10000-20000 rw-p 00000000 00:00 0 ")];
        let mut known = whole();
        known.ranges = vec![span(0x12000, 0x14000), span(0x14000, 0x16000)];
        let rows = [(0x14010, 0x20), (0x18010, 0xff0)];
        // A range without a block; then the memory around a large block.
        let expected = [span(0x10000, 0x12000), span(0x12000, 0x14000), span(0x16000, 0x18010), span(0x19008, 0x20000)];
        assert_eq!(found(&anonymous, &known, &rows, &mut Synthetic::default()), expected);
        known.objects = vec![span(0x18000, 0x1a000)];
        let with_object =
            [&expected[..2], &[span(0x16000, 0x18000), span(0x18000, 0x18010), span(0x19008, 0x1a000)]].concat();
        let all = found(&anonymous, &known, &rows, &mut Synthetic::default());
        assert_eq!(all[..5], with_object, "data of an object around a block");
        let heap = [mapping("10000-20000 rw-p 00000000 00:00 0      [heap]")];
        assert_eq!(found(&heap, &whole(), &rows, &mut Synthetic::default()), []);
        known.is_whole = false;
        let partial = [span(0x10000, 0x14010), span(0x14038, 0x18010), span(0x19008, 0x20000)];
        assert_eq!(found(&heap, &known, &rows, &mut Synthetic::default()), partial, "any gap may be an old block");
    }

    #[test]
    fn a_heap_of_an_arena_is_told_by_its_header() {
        let start = 0x7f00_0000_0000u64;
        let line = format!("{:x}-{:x} rw-p 00000000 00:00 0 ", start - 0x3000, start + 0x40000);
        let rows = [(start + 0x1000, 0x20), (start + 0x20000, 0x20)];
        let mut memory = Synthetic::default();
        let header = [start + 0x30, 0, 0x30000, 0x40000];
        (0..).zip(header).for_each(|(word, value)| _ = memory.0.insert(start + word * 8, value));
        let tail = span(start + 0x30000, start + 0x40000);
        assert_eq!(found(&[mapping(&line)], &whole(), &rows, &mut memory), [span(start - 0x3000, start), tail]);
        memory.0.insert(start, start + ARENA_HEAP + 0x30);
        assert_eq!(found(&[mapping(&line)], &whole(), &rows, &mut memory).len(), 3, "no header: roots around blocks");
        memory.0.insert(start + 8, start + ARENA_HEAP);
        assert_eq!(found(&[mapping(&line)], &whole(), &rows, &mut memory).len(), 2, "a later heap of the arena");
    }

    #[test]
    fn lists_of_free_memory_are_no_roots() {
        let mapping = mapping("10000-12000 rw-p 00000000 08:01 5                 /lib/x86_64-linux-gnu/libc.so.6");
        let mut memory = Synthetic::default();
        (0x10000..0x12000).step_by(8).for_each(|address| _ = memory.0.insert(address, 7));
        let lists = 0x10800;
        for list in 0..LISTS {
            let itself = lists + list * 16 - 16;
            // Some lists are not empty.
            let first = if list % 3 == 0 && list < 100 { 0x7000 } else { itself };
            memory.0.insert(lists + list * 16, first);
            memory.0.insert(lists + list * 16 + 8, itself);
        }
        let expected = [span(0x10000, lists - 96), span(lists + 127 * 16, 0x12000)];
        let mappings = [mapping];
        assert_eq!(found(&mappings, &whole(), &[], &mut memory), expected);
        (0..60).for_each(|list| _ = memory.0.insert(lists + list * 16, 7));
        (60..126).filter(|list| list % 2 == 0).for_each(|list| _ = memory.0.insert(lists + list * 16, 7));
        assert_eq!(found(&mappings, &whole(), &[], &mut memory), [mappings[0].span], "too few lists");
    }

    #[test]
    fn stacks_end_at_the_stack_pointer_of_a_stopped_thread() {
        let thread = |stack_pointer, thread_pointer| Thread { stack_pointer, thread_pointer, ..Thread::default() };
        let mappings = [
            mapping("10000-20000 rw-p 00000000 00:00 0 "),
            mapping("30000-40000 rw-p 00000000 00:00 0 "),
            mapping("50000-60000 rw-p 00000000 00:00 0      [stack]"),
        ];
        let mut known = whole();
        // A thread's stack; a coroutine's, without thread data; the first thread's.
        known.threads = vec![thread(0x18000, 0x1f000), thread(0x38000, 0x1f800), thread(0x58000, 0x1000)];
        let found = |known: &Known| found(&mappings, known, &[], &mut Synthetic::default());
        let expected = [span(0x18000 - 128, 0x20000), span(0x30000, 0x40000), span(0x58000 - 128, 0x60000)];
        assert_eq!(found(&known), expected);
        known.threads[1] = thread(0x14000, 0x16000);
        assert_eq!(found(&known)[0].start, 0x14000 - 128, "the lowest of two stacks of a mapping");
        known.threads[1] = thread(0x38000, 0x16000);
        assert_eq!(found(&known)[0].start, 0x10000, "the owner of the lowest stack is elsewhere");
        known.threads.clear();
        assert_eq!(found(&known)[2].start, 0x50000);
    }
}
