//! The objects of a loader without `_dl_find_object` (glibc before 2.35, and musl), in a table of
//! the collector's own.
//!
//! The loader has its objects in lists of link maps. Only the loader's lock keeps a link map in
//! place, and a hook takes no lock. The table is brought up to date in three ways:
//!
//! 1. The beginning of the program's list stays for ever: the program and the libraries of its
//!    start, up to the loader itself. These objects are noted once.
//! 2. The other link maps are read through the kernel, which copies memory only where memory is
//!    mapped. Each look-up of an address outside of the staying objects reads them: an object may
//!    come or go without a hook (name services and character sets inside of the C library).
//! 3. The hooks of the loader's functions read them by plain loads, under the loader's lock
//!    ([`renew`]). In a sandbox, where the kernel is asked nothing, this is the only way.
//!
//! No reader or writer of the table waits: a slot has a number that is odd while the slot is
//! written. A record lost or written twice is found again in the lists by the next look-up.

use crate::platform::auxiliary::{self, PT_DYNAMIC, PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader};
use crate::platform::{libc, sys};
use core::ffi::c_char;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// The public head of `struct link_map` of `<link.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LinkMap {
    pub bias: usize,
    pub name: *const c_char,
    pub dynamic: *const [u64; 2],
    pub next: *const LinkMap,
    pub previous: *const LinkMap,
}

/// `struct r_debug` of `<link.h>`, the loader's description of the program's list.
#[repr(C)]
struct Debug {
    version: i32,
    first: *const LinkMap,
    notify: usize,
    state: i32,
    loader: usize,
}

optional!(
    /// Address of the loader's description of the program's list.
    debug_address,
    "debug_address",
    "_r_debug"
);

/// An object in the table. `map` is the address of the link map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub start: usize,
    pub end: usize,
    pub map: usize,
    pub eh_frame_hdr: usize,
    bias: usize,
    dynamic: usize,
    list: List,
}

/// The part of the loader's lists with an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum List {
    /// The beginning of the program's list: the object is never unloaded.
    Staying = 1,
    /// The rest of the program's list.
    Program = 2,
    /// The list of a namespace made by `dlmopen`.
    Other = 3,
}

/// Greatest number of objects in the table. Objects beyond are looked up in the lists each time.
const CAPACITY: usize = 4096;

/// Greatest number of times that the lists are read for one look-up. Lists that read the same twice
/// were so in between. The loader needs much longer for a change than a reader for the lists.
const TRIES: u32 = 16;

/// A place for a record: a number, odd while the record is written, and the words of the record.
#[repr(C, align(64))]
struct Slot {
    turn: AtomicUsize,
    words: [AtomicUsize; 7],
}

static SLOTS: [Slot; CAPACITY] =
    [const { Slot { turn: AtomicUsize::new(0), words: [const { AtomicUsize::new(0) }; 7] } }; CAPACITY];
/// Number of slots ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Address of the last link map that stays; 0 before the first look-up.
static LAST_STAYING: AtomicUsize = AtomicUsize::new(0);
/// Addresses of the first link maps of namespaces made by `dlmopen`. The C library has at most 16
/// namespaces.
static OTHER_LISTS: [AtomicUsize; 15] = [const { AtomicUsize::new(0) }; 15];
static ASKS_KERNEL: AtomicBool = AtomicBool::new(true);

/// Returns the first link map of the program's list, if the loader has said where the list is.
pub(super) fn first() -> Option<*const LinkMap> {
    debug().map(|debug| debug.first).filter(|first| !first.is_null())
}

/// Returns the loader's description of the program's list.
fn debug() -> Option<&'static Debug> {
    let address = match debug_address() {
        0 => libc::musl_debug(),
        address => address,
    };
    // SAFETY: the address is 0, or that of the loader's own description, which is never unmapped.
    unsafe { ptr::with_exposed_provenance::<Debug>(address).as_ref() }
}

/// Returns the first link maps of the other known namespaces. The lists must not change meanwhile.
/// Any of the namespaces may have ended before, so the kernel is asked.
pub(super) fn other_lists() -> impl Iterator<Item = *const LinkMap> {
    let firsts = OTHER_LISTS.iter().map(|place| place.load(Ordering::Acquire));
    let asks = ASKS_KERNEL.load(Ordering::Relaxed);
    firsts.filter(move |&first| asks && begins_list(first)).map(ptr::with_exposed_provenance)
}

/// Returns whether an object of this link map is there, and is the first of a list.
fn begins_list(first: usize) -> bool {
    let mut head = [LinkMap::NONE];
    // SAFETY: any bytes are a link map's head.
    let is_read = first != 0 && unsafe { Reading::ByKernel.copy(&[first], &mut head) } == 1;
    let [head] = head;
    is_read && head.previous.is_null() && Record::of(first, &head, List::Other, Reading::ByKernel).is_some()
}

/// Notes the list of a link map, found by a handle of the program. The list must not change
/// meanwhile.
pub(super) fn note_list(of: *const LinkMap) {
    let mut head = of;
    // SAFETY: the link map is in a list of the loader's, and the caller knows the list to be at
    // rest.
    unsafe {
        while !(*head).previous.is_null() {
            head = (*head).previous;
        }
    }
    let is_head = |place: &AtomicUsize| place.load(Ordering::Relaxed) == head.addr();
    let is_known = first() == Some(head) || OTHER_LISTS.iter().any(is_head);
    let free = |place: &&AtomicUsize| {
        place.compare_exchange(0, head.expose_provenance(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    if !is_known {
        let _ = OTHER_LISTS.iter().find(free);
    }
}

/// Ends the questions to the kernel.
pub(super) fn ask_no_more() {
    ASKS_KERNEL.store(false, Ordering::Relaxed);
}

/// Returns the object with a mapping around the address.
pub(super) fn find(address: usize) -> Option<Record> {
    if !begin() {
        return None;
    }
    let known = closest(records().map(|(_, record)| record), address);
    if known.is_some_and(|record| record.stays()) || !ASKS_KERNEL.load(Ordering::Relaxed) {
        return known;
    }
    let mut last = None;
    for _ in 0..TRIES {
        let now = Lists::read(Reading::ByKernel, address);
        if let (Some(last), Some(now)) = (&last, &now)
            && last == now
        {
            now.remove_others();
            return now.found;
        }
        last = now;
    }
    // Without an answer of the kernel the table is all there is.
    known
}

/// Brings the table up to date. The lists must not change meanwhile.
pub(super) fn renew() {
    if begin()
        && let Some(lists) = Lists::read(Reading::ByLoads, 0)
    {
        lists.remove_others();
    }
}

/// Notes the objects that stay. Returns whether the loader has any.
fn begin() -> bool {
    if LAST_STAYING.load(Ordering::Acquire) != 0 {
        return true;
    }
    let Some(first) = first() else { return false };
    let loader = debug().map_or(0, |debug| debug.loader);
    // SAFETY: the loader puts the objects of the start into the list before any code of theirs
    // runs, and takes none of them out.
    let at = |map: *const LinkMap| unsafe { map.as_ref() };
    let maps = || core::iter::successors(at(first), |map| at(map.next));
    let last = maps().find(|map| map.bias == loader).map_or(first, ptr::from_ref);
    for map in maps() {
        if let Some(record) = Record::of(ptr::from_ref(map).addr(), map, List::Staying, Reading::ByLoads) {
            insert(&record);
        }
        if ptr::eq(map, last) {
            break;
        }
    }
    LAST_STAYING.store(last.expose_provenance(), Ordering::Release);
    true
}

/// How link maps and headers are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// By loads: nothing can be unloaded.
    ByLoads,
    /// Copied by the kernel: any object may be unloaded meanwhile.
    ByKernel,
}

impl Reading {
    /// Copies values from memory. Returns the number of values before the first value that is not
    /// mapped.
    ///
    /// # Safety
    /// 1. Any bytes are a valid `T`.
    /// 2. `ByLoads`: a place that is no multiple of eight is refused, and all others are mapped.
    unsafe fn copy<T: Copy>(self, places: &[usize], into: &mut [T]) -> usize {
        if self == Reading::ByKernel {
            // SAFETY: the caller guarantees that any bytes are valid.
            return unsafe { sys::copy_mapped(places, into) };
        }
        let aligned = places.iter().zip(into).take_while(|(place, _)| place.is_multiple_of(8));
        aligned
            .map(|(&place, value)| {
                // SAFETY: the caller guarantees mapped memory.
                *value = unsafe { ptr::with_exposed_provenance::<T>(place).read() };
            })
            .count()
    }
}

/// The lists behind the staying objects, as read once.
#[derive(PartialEq, Eq)]
struct Lists {
    reading: Reading,
    /// Hash of all link maps in their order.
    hash: usize,
    /// The object around the wanted address.
    found: Option<Record>,
    /// Bits of the slots of all objects.
    seen: [u64; CAPACITY / 64],
}

impl Lists {
    /// Reads all lists, and puts new objects into the table. `None` where a list cannot be read: a
    /// link map that was taken out meanwhile is not mapped, or does not lead back.
    ///
    /// A namespace of `dlmopen` may end at any time, so its list is read only by the kernel.
    fn read(reading: Reading, wanted: usize) -> Option<Lists> {
        let last: *const LinkMap = ptr::with_exposed_provenance(LAST_STAYING.load(Ordering::Acquire));
        let staying = records().map(|(_, record)| record).filter(Record::stays);
        let mut lists = Lists { reading, hash: 0, found: closest(staying, wanted), seen: [0; CAPACITY / 64] };
        let mut heads = Heads { reading, places: [0; Heads::MOST], heads: [LinkMap::NONE; Heads::MOST], count: 0 };
        // SAFETY: the link map stays, and the loader changes the word by single stores.
        let next =
            unsafe { AtomicUsize::from_ptr((&raw const (*last).next).cast_mut().cast()).load(Ordering::Acquire) };
        lists.follow(&mut heads, [last.addr(), next], List::Program, wanted)?;
        let others = if reading == Reading::ByKernel { &OTHER_LISTS[..] } else { &[] };
        for place in others {
            let first = place.load(Ordering::Acquire);
            if begins_list(first) {
                lists.follow(&mut heads, [0, first], List::Other, wanted)?;
            } else if first != 0 {
                // The first object of the namespace is gone.
                let _ = place.compare_exchange(first, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        Some(lists)
    }

    /// Reads a list from the second link map on, which follows the first.
    fn follow(
        &mut self,
        heads: &mut Heads,
        [mut before, mut map]: [usize; 2],
        list: List,
        wanted: usize,
    ) -> Option<()> {
        let mut slot = 0;
        for _ in 0..CAPACITY {
            if map == 0 {
                break;
            }
            let head = heads.read(map, slot).filter(|head| head.previous.addr() == before)?;
            let known = records_from(slot).find(|(_, record)| record.map == map && record.is_of(&head));
            let known = known.or_else(|| {
                let record = Record::of(map, &head, list, heads.reading)?;
                Some((insert(&record).unwrap_or(CAPACITY), record))
            });
            if let Some((place, record)) = known {
                if let Some(bits) = self.seen.get_mut(place / 64) {
                    *bits |= 1 << (place % 64);
                }
                slot = place + 1;
                self.found = closest(self.found.into_iter().chain([record]), wanted);
            }
            for word in [map, head.bias, head.dynamic.addr()] {
                self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            (before, map) = (map, head.next.addr());
        }
        Some(())
    }

    /// Removes all other objects of the lists read from the table.
    fn remove_others(&self) {
        let is_gone = |place: usize, record: &Record| match record.list {
            List::Staying => false,
            List::Other if self.reading == Reading::ByLoads => false,
            _ => self.seen[place / 64] & 1 << (place % 64) == 0,
        };
        let gone = records().filter(|(place, record)| is_gone(*place, record));
        gone.for_each(|(place, record)| SLOTS[place].clear(&record));
    }
}

/// The heads of link maps, copied several at a time.
struct Heads {
    reading: Reading,
    places: [usize; Heads::MOST],
    heads: [LinkMap; Heads::MOST],
    count: usize,
}

impl Heads {
    const MOST: usize = 16;

    /// Returns the head of a link map. Link maps in the slots from `slot` on probably follow in the
    /// list, so their heads are copied by the same system call.
    fn read(&mut self, map: usize, slot: usize) -> Option<LinkMap> {
        let copied = self.places[..self.count].iter().position(|&place| place == map);
        if let Some(place) = copied {
            return Some(self.heads[place]);
        }
        // Link maps of the table may be gone, and are not for plain loads.
        let most = if self.reading == Reading::ByLoads { 1 } else { Heads::MOST };
        let following = records_from(slot).filter(|(_, record)| !record.stays() && record.map != map);
        let maps = core::iter::once(map).chain(following.map(|(_, record)| record.map));
        self.count = 0;
        for (place, map) in self.places[..most].iter_mut().zip(maps) {
            *place = map;
            self.count += 1;
        }
        let places = &self.places[..self.count];
        // SAFETY: any bytes are a link map's head. `ByLoads` reads a link map in a list at rest.
        self.count = unsafe { self.reading.copy(places, &mut self.heads) };
        (self.count > 0).then(|| self.heads[0])
    }
}

impl LinkMap {
    const NONE: LinkMap =
        LinkMap { bias: 0, name: ptr::null(), dynamic: ptr::null(), next: ptr::null(), previous: ptr::null() };
}

impl Record {
    /// Returns the record of an object, from its link map and its program headers. `None` where the
    /// headers are not at the load bias, or are those of another object.
    fn of(map: usize, head: &LinkMap, list: List, reading: Reading) -> Option<Record> {
        let (bias, dynamic) = (head.bias, head.dynamic.addr());
        let mut record = Record { start: usize::MAX, end: 0, map, eh_frame_hdr: 0, bias, dynamic, list };
        let mut is_here = false;
        let mut take = |header: &ProgramHeader| {
            let Range { start, end } = header.range(bias);
            match header.kind {
                PT_LOAD => {
                    record.start = record.start.min(start & !(PAGE - 1));
                    record.end = record.end.max(end);
                }
                PT_DYNAMIC => is_here |= start == dynamic,
                PT_GNU_EH_FRAME => record.eh_frame_hdr = start,
                _ => {}
            }
        };
        let is_first = first().is_some_and(|first| first.addr() == map);
        let of_program = if is_first { auxiliary::program_headers() } else { None };
        let is_own = |header: &ProgramHeader| header.kind == PT_DYNAMIC && header.range(bias).start == dynamic;
        match of_program.filter(|headers| headers.iter().any(is_own)) {
            Some(headers) => headers.iter().for_each(&mut take),
            // Of a program given to musl's loader, the kernel knows the headers of the loader.
            None => each_header(bias, reading, &mut take)?,
        }
        (is_here && record.start < record.end).then_some(record)
    }

    fn is_of(&self, head: &LinkMap) -> bool {
        self.bias == head.bias && self.dynamic == head.dynamic.addr()
    }

    fn stays(&self) -> bool {
        self.list == List::Staying
    }

    fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    fn words(&self) -> [usize; 7] {
        let Record { start, end, map, eh_frame_hdr, bias, dynamic, list } = *self;
        [start, end, map, eh_frame_hdr, bias, dynamic, list as usize]
    }

    fn from_words([start, end, map, eh_frame_hdr, bias, dynamic, list]: [usize; 7]) -> Record {
        let list = match list {
            1 => List::Staying,
            2 => List::Program,
            _ => List::Other,
        };
        Record { start, end, map, eh_frame_hdr, bias, dynamic, list }
    }
}

const PAGE: usize = 4096;

/// Calls `take` for the program headers of an object with its ELF header at `base`. `None` where no
/// ELF header is, or the headers are not in the same page.
fn each_header(base: usize, reading: Reading, take: &mut impl FnMut(&ProgramHeader)) -> Option<()> {
    const AT_ONCE: usize = 8;
    const BYTES: usize = size_of::<ProgramHeader>();
    const MAGIC: [u8; 5] = *b"\x7fELF\x02";
    if reading == Reading::ByLoads && !sys::is_readable(base) {
        return None;
    }
    let mut header = [[0u8; 64]];
    // SAFETY: any bytes are bytes. `ByLoads`: the page is readable, and nothing is unmapped
    // meanwhile.
    let copied = unsafe { reading.copy(&[base], &mut header) };
    let [header] = header;
    if copied != 1 || header[..5] != MAGIC {
        return None;
    }
    let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let offset = usize::try_from(u64::from_le_bytes(*header[32..].first_chunk()?)).ok()?;
    let (size, count) = (half(54), half(56));
    if size != BYTES || offset.checked_add(count * BYTES)? > PAGE {
        return None;
    }
    for first in (0..count).step_by(AT_ONCE) {
        let mut headers = [ProgramHeader::NONE; AT_ONCE];
        let wanted = AT_ONCE.min(count - first);
        let mut places = [0; AT_ONCE];
        places.iter_mut().enumerate().for_each(|(i, place)| *place = base + offset + (first + i) * BYTES);
        // SAFETY: any bytes are a program header. `ByLoads`: the page is readable, and nothing is
        // unmapped meanwhile.
        if unsafe { reading.copy(&places[..wanted], &mut headers) } != wanted {
            return None;
        }
        headers[..wanted].iter().for_each(&mut *take);
    }
    Some(())
}

/// Returns the object around an address. Where objects lie in holes of another object, the object
/// is the one that begins last.
fn closest(records: impl Iterator<Item = Record>, address: usize) -> Option<Record> {
    let around = records.filter(|record| record.contains(address));
    around.reduce(|before, record| if record.start > before.start { record } else { before })
}

/// Returns the records, with the numbers of their slots.
fn records() -> impl Iterator<Item = (usize, Record)> {
    let used = USED.load(Ordering::Acquire).min(CAPACITY);
    SLOTS[..used].iter().enumerate().filter_map(|(place, slot)| Some((place, slot.read()?)))
}

/// Returns the records from a slot on, and then those before.
fn records_from(slot: usize) -> impl Iterator<Item = (usize, Record)> {
    let used = USED.load(Ordering::Acquire).min(CAPACITY);
    let (before, after) = SLOTS[..used].split_at(slot.min(used));
    let numbered =
        |from: usize, slots: &'static [Slot]| slots.iter().enumerate().map(move |(i, slot)| (from + i, slot));
    let all = numbered(before.len(), after).chain(numbered(0, before));
    all.filter_map(|(place, slot)| Some((place, slot.read()?)))
}

/// Puts a record into a free slot. Returns the number of the slot; `None` when all are taken.
fn insert(record: &Record) -> Option<usize> {
    loop {
        let used = USED.load(Ordering::Acquire).min(CAPACITY);
        if let Some(place) = SLOTS[..used].iter().position(|slot| slot.fill(record)) {
            return Some(place);
        }
        if used == CAPACITY {
            return None;
        }
        let _ = USED.compare_exchange(used, used + 1, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl Slot {
    /// Returns the record in the slot; `None` for a free slot, or a slot being written.
    fn read(&self) -> Option<Record> {
        let turn = self.turn.load(Ordering::Acquire);
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let is_whole = turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        (is_whole && words[0] != 0).then(|| Record::from_words(words))
    }

    /// Puts a record into the slot, if the slot is free.
    fn fill(&self, record: &Record) -> bool {
        self.write(|start| start == 0, &record.words())
    }

    /// Frees the slot, if the record is still there.
    fn clear(&self, record: &Record) {
        self.write(|start| start == record.start, &[0; 7]);
    }

    /// Writes the slot, if its first word is as wanted and nobody else writes.
    fn write(&self, is_wanted: impl Fn(usize) -> bool, words: &[usize; 7]) -> bool {
        let turn = self.turn.load(Ordering::Acquire);
        if !turn.is_multiple_of(2)
            || !is_wanted(self.words[0].load(Ordering::Relaxed))
            || self.turn.compare_exchange(turn, turn + 1, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        fence(Ordering::Release);
        for (place, &word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.turn.store(turn.wrapping_add(2), Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::elf;
    use core::ffi::{CStr, c_int, c_void};
    use core::sync::atomic::AtomicU64;
    use std::vec::Vec;

    unsafe extern "C" {
        fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
        fn dlclose(handle: *mut c_void) -> c_int;
    }

    /// Libraries of glibc's that no test needs.
    const LIBRARIES: [&CStr; 3] = [c"libBrokenLocale.so.1", c"libresolv.so.2", c"libutil.so.1"];

    /// Opens a library. Returns the handle, and the address of its dynamic section.
    fn open(library: &CStr) -> (*mut c_void, usize) {
        // SAFETY: the name is a C string, and a handle is the address of the link map.
        unsafe {
            let handle = dlopen(library.as_ptr(), 2);
            assert!(!handle.is_null(), "{library:?}");
            (handle, (*handle.cast::<LinkMap>()).dynamic.addr())
        }
    }

    fn close(handle: *mut c_void) {
        // SAFETY: the handle is open, and nobody uses the library.
        assert_eq!(unsafe { dlclose(handle) }, 0);
    }

    #[test]
    fn the_table_agrees_with_glibc() {
        let addresses = [close as fn(_) as usize, dlopen as *const () as usize, auxiliary::value(33)];
        for address in addresses.into_iter().filter(|&address| address != 0) {
            let (ours, theirs) = (find(address).expect("loaded"), elf::find_object(address).expect("loaded"));
            assert_eq!((ours.start, ours.bias), (theirs.start, theirs.bias));
            assert!(ours.stays() && ours.contains(address));
        }
        assert_eq!(find(0x10), None);
        let local = 0;
        assert_eq!(find((&raw const local).addr()), None, "the stack");
    }

    /// Objects come and go while other threads look up addresses in them.
    #[test]
    fn a_look_up_is_right_while_objects_come_and_go() {
        const ROUNDS: usize = 400;
        static PLACES: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
        static ARE_DONE: AtomicU64 = AtomicU64::new(0);
        let opener = |number: usize| {
            for _ in 0..ROUNDS {
                let (handle, dynamic) = open(LIBRARIES[number]);
                PLACES[number].store(dynamic, Ordering::Relaxed);
                let found = find(dynamic).expect("open");
                assert_eq!((found.dynamic, found.map), (dynamic, handle.addr()));
                close(handle);
                // Libraries of the other threads may lie there by now.
                assert!(find(dynamic).is_none_or(|other| other.dynamic != dynamic), "closed");
            }
            ARE_DONE.fetch_add(1, Ordering::Relaxed);
        };
        let reader = || {
            let libc = find(dlopen as *const () as usize);
            while ARE_DONE.load(Ordering::Relaxed) < 3 {
                for place in &PLACES {
                    let address = place.load(Ordering::Relaxed);
                    assert!(find(address).is_none_or(|found| found.contains(address)));
                }
                assert_eq!(find(dlopen as *const () as usize), libc);
            }
        };
        std::thread::scope(|scope| {
            let openers: Vec<_> = (0..3).map(|number| scope.spawn(move || opener(number))).collect();
            for _ in 0..2 {
                scope.spawn(reader);
            }
            for opener in openers {
                if opener.join().is_err() {
                    ARE_DONE.store(3, Ordering::Relaxed);
                    panic!("an opener failed");
                }
            }
        });
        assert!(records().count() < 100, "slots are used again");
    }

    #[test]
    fn a_slot_is_free_whole_or_unread() {
        let slot = Slot { turn: AtomicUsize::new(0), words: [const { AtomicUsize::new(0) }; 7] };
        let record =
            |start| Record { start, end: 9, map: 3, eh_frame_hdr: 4, bias: 5, dynamic: 6, list: List::Program };
        assert_eq!(slot.read(), None);
        assert!(slot.fill(&record(1)) && !slot.fill(&record(2)), "taken");
        assert_eq!(slot.read(), Some(record(1)));
        slot.clear(&record(2));
        assert_eq!(slot.read(), Some(record(1)), "another record");
        slot.turn.fetch_add(1, Ordering::Relaxed);
        assert_eq!(slot.read(), None, "being written");
        slot.clear(&record(1));
        slot.turn.fetch_add(1, Ordering::Relaxed);
        assert_eq!(slot.read(), Some(record(1)));
        slot.clear(&record(1));
        assert!(slot.read().is_none() && slot.fill(&record(2)), "free again");
    }

    #[test]
    fn the_object_that_begins_last_is_the_closest() {
        let record =
            |start, end| Record { start, end, map: 3, eh_frame_hdr: 4, bias: 5, dynamic: 6, list: List::Program };
        let all = [record(10, 90), record(40, 50), record(95, 99)];
        let at = |address| closest(all.into_iter(), address).map(|record| record.start);
        assert_eq!([9, 10, 40, 49, 50, 90, 98].map(at), [None, Some(10), Some(40), Some(40), Some(10), None, Some(95)]);
    }
}
