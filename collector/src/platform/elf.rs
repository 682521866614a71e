//! The data of a loaded object about itself, read in the loader's mapping.
//!
//! `_dl_find_object` is glibc's lock-free lookup for unwinders. Unlike `dl_iterate_phdr`, the
//! function may be called inside `malloc` while another thread is in `dlopen` with the loader's
//! lock. Where the C library lacks the function, the table of `link_maps` answers.

use crate::platform::auxiliary::{PT_DYNAMIC, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE, ProgramHeader};
use crate::platform::link_maps::{self, LinkMap};
use crate::platform::{alone, auxiliary, environment, libc};
use core::ffi::CStr;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

optional!(
    /// `_dl_find_object`, of glibc 2.35 and later.
    find_object_address,
    "find_object_address",
    "_dl_find_object"
);

type FindObject = unsafe extern "C" fn(address: usize, result: *mut DlFindObject) -> i32;

/// `struct dl_find_object` of `<dlfcn.h>`.
#[repr(C)]
struct DlFindObject {
    flags: u64,
    map_start: usize,
    map_end: usize,
    link_map: *const LinkMap,
    eh_frame_hdr: *const u8,
    reserved: [u64; 7],
}

/// An object in the loader's list.
#[derive(Clone, Copy)]
pub struct Loaded {
    /// Load bias: the distance by which the object's addresses were moved.
    pub bias: usize,
    dynamic: *const [u64; 2],
}

impl Loaded {
    /// Returns the object with this bias and this dynamic section. The section ends with a null
    /// tag.
    pub(crate) fn new(bias: usize, dynamic: *const [u64; 2]) -> Loaded {
        Loaded { bias, dynamic }
    }

    fn of(map: &LinkMap) -> Loaded {
        Loaded { bias: map.bias, dynamic: map.dynamic }
    }

    /// Returns the mapping of the object.
    pub fn mapped(&self) -> Option<Object> {
        find_object(self.dynamic.addr())
    }

    /// Returns the address of the dynamic section, which differs from object to object.
    pub fn dynamic_section(&self) -> usize {
        self.dynamic.addr()
    }

    /// Returns the entries of the dynamic section.
    pub fn entries(&self) -> impl Iterator<Item = [u64; 2]> {
        let first = Some(self.dynamic).filter(|entry| !entry.is_null());
        // SAFETY: the section ends with a null tag, and stays mapped with the object.
        let entries = core::iter::successors(first, |&entry| Some(unsafe { entry.add(1) }));
        // SAFETY: the section ends with a null tag, and stays mapped with the object.
        entries.map(|entry| unsafe { *entry }).take_while(|[tag, _]| *tag != 0)
    }

    /// Returns the values of entries of the dynamic section; 0 for missing entries.
    pub fn dynamic<const N: usize>(&self, tags: [u64; N]) -> [usize; N] {
        let mut values = [0; N];
        for [tag, value] in self.entries() {
            if let Some(place) = tags.iter().position(|&wanted| wanted == tag) {
                values[place] = usize::try_from(value).unwrap_or(0);
            }
        }
        values
    }
}

impl Loaded {
    /// Returns the addresses in entries of the dynamic section; 0 for missing entries. glibc
    /// relocates most of these entries in place, but never the vdso's; musl relocates none.
    pub fn addresses<const N: usize>(&self, tags: [u64; N]) -> [usize; N] {
        self.dynamic(tags).map(|value| if value != 0 && value < self.bias { value + self.bias } else { value })
    }
}

/// Returns all loaded objects in the loader's order, the program first. The list must not change
/// meanwhile.
pub fn loaded() -> Option<impl Iterator<Item = Loaded>> {
    Namespace::program().map(Namespace::objects)
}

/// Number of objects of musl's list that no failed `dlopen` takes back; the greatest number with
/// glibc, whose lists are looked at under the loader's lock.
static COMMITTED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Sets the number of objects that musl's loader has for ever.
pub(super) fn set_committed(count: usize) {
    COMMITTED.store(count, Ordering::Relaxed);
}

/// A list of objects bound only to each other: the program's list, or a list made by `dlmopen`.
#[derive(Clone, Copy)]
pub struct Namespace(*const LinkMap);

impl Namespace {
    /// Returns the objects, in the order in which they were loaded. The list must not change
    /// meanwhile.
    pub fn objects(self) -> impl Iterator<Item = Loaded> {
        self.maps().map(Loaded::of)
    }

    fn maps(self) -> impl Iterator<Item = &'static LinkMap> {
        // SAFETY: the list is the loader's, and the caller knows the list to be at rest.
        let at = |map: *const LinkMap| unsafe { map.as_ref() };
        core::iter::successors(at(self.0), move |map| at(map.next)).take(COMMITTED.load(Ordering::Relaxed))
    }

    /// Returns the program's namespace.
    pub fn program() -> Option<Namespace> {
        if keeps_table() {
            return link_maps::first().map(Namespace);
        }
        let mut first = look_up(Namespace::program as fn() -> Option<_> as usize)?.map;
        // SAFETY: the list is the loader's, and the caller knows the list to be at rest.
        unsafe {
            while !(*first).previous.is_null() {
                first = (*first).previous;
            }
        }
        Some(Namespace(first))
    }

    /// Returns the object with this handle of `dlopen`.
    pub fn by_handle(self, handle: *const core::ffi::c_void) -> Option<Loaded> {
        self.maps().find(|map| ptr::from_ref(*map).addr() == handle.addr()).map(Loaded::of)
    }

    /// Returns all namespaces, the program's first. Namespaces of `dlmopen` are described by glibc
    /// since 2.35; before, those of handles
    /// ([`crate::platform::objects::renew`]) are known.
    pub fn all() -> impl Iterator<Item = Namespace> {
        /// `struct r_debug_extended` of `<link.h>`.
        #[repr(C)]
        struct Debug {
            version: i32,
            map: *const LinkMap,
            notify: usize,
            state: i32,
            loader: usize,
            next: *const Debug,
        }
        const DT_DEBUG: u64 = 21;
        const EXTENDED: i32 = 2;
        let program = Namespace::program().and_then(|program| program.objects().next());
        let first = program.map_or(0, |program| program.dynamic([DT_DEBUG])[0]) as *const Debug;
        let next = |debug: &*const Debug| {
            // SAFETY: the loader's description of its namespaces has the field `next` from this
            // version on.
            let next = unsafe { if (**debug).version >= EXTENDED { (**debug).next } else { ptr::null() } };
            (!next.is_null()).then_some(next)
        };
        let all = core::iter::successors(Some(first).filter(|first| !first.is_null()), next);
        // SAFETY: the pointer leads to the loader's own description of a namespace.
        let described = all.map(|debug| unsafe { (*debug).map });
        let noted = keeps_table().then(link_maps::other_lists).into_iter().flatten();
        described.chain(noted).map(Namespace)
    }
}

/// Returns the load bias of the collector itself.
pub fn own_bias() -> Option<usize> {
    find_object(own_bias as fn() -> Option<usize> as usize).map(|object| object.bias)
}

/// A loaded object.
#[derive(Clone, Copy)]
pub struct Object {
    /// First mapped address.
    pub start: usize,
    /// End of the mapping.
    pub end: usize,
    /// Load bias: the distance by which the object's addresses were moved.
    pub bias: usize,
    link_map: *const LinkMap,
    eh_frame_hdr: *const u8,
    layout: Layout,
}

/// Program headers of an object, and the address of the first instruction; 0 when not known.
#[derive(Clone, Copy)]
struct Layout {
    headers: &'static [ProgramHeader],
    entry: usize,
}

/// Returns whether objects can be found at all.
pub fn can_find_objects() -> bool {
    alone::is_alone() || !keeps_table() || link_maps::first().is_some()
}

/// Returns whether objects are found by the collector's own table: glibc has no `_dl_find_object`
/// (before 2.35), or a test wants the table.
pub fn keeps_table() -> bool {
    find_object_function() == 0
}

/// Brings the collector's own table up to date, with the namespace of a handle of the loader's, or
/// null. The lists of objects must not change meanwhile.
pub(super) fn renew(handle: *const core::ffi::c_void) {
    if !handle.is_null() {
        link_maps::note_list(handle.cast());
    }
    link_maps::renew();
}

/// Ends the questions to the kernel about objects: a sandbox may forbid them.
pub fn ask_no_more() {
    link_maps::ask_no_more();
}

/// Returns the address of glibc's function; 0 where the table is used instead.
fn find_object_function() -> usize {
    const UNDECIDED: usize = usize::MAX;
    static FUNCTION: AtomicUsize = AtomicUsize::new(UNDECIDED);
    let known = FUNCTION.load(Ordering::Relaxed);
    if known != UNDECIDED {
        return known;
    }
    let function = if environment::wants_table() { 0 } else { find_object_address() };
    if environment::is_up() {
        FUNCTION.store(function, Ordering::Relaxed);
    }
    function
}

/// Returns the object with a mapping around the address. Reads the object's memory: nobody may
/// unload the object meanwhile.
pub fn find_object(address: usize) -> Option<Object> {
    if let Some(program) = find_alone(address) {
        return Some(Object::alone(program));
    }
    let found = look_up(address)?;
    // SAFETY: the map is the loader's map of a loaded object.
    Some(unsafe { Object::found(&found, &*found.map) })
}

/// Returns the first address of the object with a mapping around the address; of a program with
/// holes between the segments, the first address of the segment. The object may be unloaded
/// meanwhile.
pub fn object_start(address: usize) -> Option<usize> {
    find_alone(address).map(|program| program.start).or_else(|| look_up(address).map(|found| found.start))
}

/// Returns the identity of the object with a mapping around the address. The object may be unloaded
/// meanwhile.
pub fn object_identity(address: usize) -> Option<usize> {
    find_alone(address).map(|program| program.start).or_else(|| look_up(address).map(|found| found.map.addr()))
}

fn find_alone(address: usize) -> Option<alone::Program> {
    if cfg!(feature = "embedded") { alone::find(address) } else { None }
}

/// An object found by an address. The object may be unloaded meanwhile.
struct Found {
    /// First address of the object; of a program with holes, perhaps of the segment.
    start: usize,
    end: usize,
    map: *const LinkMap,
    eh_frame_hdr: *const u8,
}

/// Finds the object with a mapping around the address: asks glibc, or the table.
fn look_up(address: usize) -> Option<Found> {
    let look = find_object_function();
    if look == 0 {
        let link_maps::Record { start, end, map, eh_frame_hdr, .. } = link_maps::find(address)?;
        let (map, eh_frame_hdr) = (ptr::with_exposed_provenance(map), ptr::with_exposed_provenance(eh_frame_hdr));
        return Some(Found { start, end, map, eh_frame_hdr });
    }
    // SAFETY: zeros are a valid DlFindObject.
    let mut found: DlFindObject = unsafe { core::mem::zeroed() };
    // SAFETY: the function has glibc's signature, takes any address and fills the result.
    let status = unsafe { core::mem::transmute::<usize, FindObject>(look)(address, &raw mut found) };
    let DlFindObject { map_start: start, map_end: end, link_map: map, eh_frame_hdr, .. } = found;
    (status == 0 && !map.is_null()).then_some(Found { start, end, map, eh_frame_hdr })
}

/// Flags of a segment with code: readable and executable, not writable.
const CODE: u32 = 5;
const PAGE: usize = 4096;

/// Returns the ranges of addresses of all program headers of a kind.
pub(crate) fn ranges(headers: &[ProgramHeader], bias: usize, kind: u32) -> impl Iterator<Item = Range<usize>> {
    headers.iter().filter(move |header| header.kind == kind).map(move |header| header.range(bias))
}

impl Layout {
    const UNKNOWN: Layout = Layout { headers: &[], entry: 0 };

    /// Returns the layout of the program, as the kernel knows it.
    fn of_program() -> Option<Layout> {
        Some(Layout { headers: auxiliary::program_headers()?, entry: auxiliary::entry() })
    }

    /// Returns the layout of an object that begins with an ELF header at `start`.
    ///
    /// # Safety
    /// `start..end` are addresses of a loaded object, and the first page is readable.
    unsafe fn at(start: usize, end: usize, bias: usize) -> Option<Layout> {
        const EHDR_BYTES: usize = 64;
        if end - start < EHDR_BYTES {
            return None;
        }
        // SAFETY: the caller guarantees a readable page. An ELF header is checked right here, and
        // the program headers lie in the same page.
        unsafe {
            let base = start as *const u8;
            if core::slice::from_raw_parts(base, 5) != b"\x7fELF\x02" {
                return None;
            }
            let entry = base.add(24).cast::<u64>().read_unaligned();
            let offset = usize::try_from(base.add(32).cast::<u64>().read_unaligned()).ok()?;
            let size = base.add(54).cast::<u16>().read_unaligned() as usize;
            let count = base.add(56).cast::<u16>().read_unaligned() as usize;
            let fits = offset.checked_add(count * size_of::<ProgramHeader>()).is_some_and(|end| end <= PAGE);
            if !fits || size != size_of::<ProgramHeader>() || !offset.is_multiple_of(8) {
                return None;
            }
            let headers = core::slice::from_raw_parts(base.add(offset).cast(), count);
            Some(Layout { headers, entry: bias.wrapping_add(usize::try_from(entry).ok()?) })
        }
    }
}

impl Object {
    /// Returns the object of an answer.
    ///
    /// The answer has the range of the whole object, which begins with the ELF header. One object
    /// is different: a program with holes between the segments. glibc's answer then has the range
    /// of a single segment, and the kernel knows the program headers.
    ///
    /// # Safety
    /// `found` is the answer for a loaded object, and `map` is the object's map.
    unsafe fn found(found: &Found, map: &LinkMap) -> Object {
        let (bias, dynamic) = (map.bias, map.dynamic.addr());
        let is_here = |layout: &Layout| ranges(layout.headers, bias, PT_DYNAMIC).any(|range| range.start == dynamic);
        // SAFETY: the caller guarantees a loaded object, so the range begins with mapped pages.
        let whole = unsafe { Layout::at(found.start, found.end, bias) }.filter(is_here);
        let mut object = Object {
            start: found.start,
            end: found.end,
            bias,
            link_map: found.map,
            eh_frame_hdr: found.eh_frame_hdr,
            layout: whole.unwrap_or(Layout::UNKNOWN),
        };
        if whole.is_none()
            && let Some(program) = Layout::of_program().filter(is_here)
        {
            object.layout = program;
            for segment in ranges(program.headers, bias, PT_LOAD) {
                object.start = object.start.min(segment.start & !(PAGE - 1));
                object.end = object.end.max(segment.end);
            }
        }
        object
    }

    /// Returns the program of a process without a loader.
    fn alone(alone::Program { start, end, bias, eh_frame_hdr }: alone::Program) -> Object {
        let layout = Layout::of_program().unwrap_or(Layout::UNKNOWN);
        Object { start, end, bias, link_map: ptr::null(), eh_frame_hdr: eh_frame_hdr as *const u8, layout }
    }

    /// Returns the object's place in the loader's list.
    pub fn loaded(&self) -> Loaded {
        // SAFETY: the map is the loader's map of a loaded object.
        unsafe { Loaded { bias: self.bias, dynamic: (*self.link_map).dynamic } }
    }

    /// Returns the path known to the loader; empty for the program itself.
    pub fn path(&self) -> &[u8] {
        if self.link_map.is_null() {
            return &[];
        }
        // SAFETY: the loader keeps the name for as long as the object is loaded.
        let (name, is_first) = unsafe {
            let map = &*self.link_map;
            let name = if map.name.is_null() { &[] } else { CStr::from_ptr(map.name).to_bytes() };
            (name, map.previous.is_null())
        };
        match (libc::is_musl(), name) {
            // musl names the program, and has no name for the vdso.
            (true, _) if is_first => &[],
            (true, b"") => b"linux-vdso.so.1",
            _ => name,
        }
    }

    /// Returns whether the address lies at the very start of a program or of the loader: code
    /// without a caller.
    ///
    /// All constructors run under the loader's `_start`, and no unwind information marks `_start`
    /// as a root.
    pub fn is_entry_code(&self, address: usize) -> bool {
        const LONGEST: usize = 128;
        self.layout.entry != 0 && address.wrapping_sub(self.layout.entry) < LONGEST
    }

    /// Returns the program headers; none when not known.
    pub(crate) fn program_headers(&self) -> &'static [ProgramHeader] {
        self.layout.headers
    }

    /// Returns up to `most` bytes of code before an address; none where no code is.
    pub(crate) fn code_before(&self, address: usize, most: usize) -> &[u8] {
        let code = self.program_headers().iter().filter(|header| header.kind == PT_LOAD && header.flags & CODE == CODE);
        let before = code.filter_map(|header| self.memory(header.address, header.file_bytes)).find_map(|code| {
            let end = address.checked_sub(code.as_ptr().addr())?;
            code.get(end.saturating_sub(most)..end).filter(|bytes| !bytes.is_empty())
        });
        before.unwrap_or(&[])
    }

    /// Returns whether the object has an `.eh_frame_hdr`.
    pub fn has_unwind_table(&self) -> bool {
        !self.eh_frame_hdr.is_null()
    }

    /// Returns whether the object's mapping is around the address.
    pub fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Returns all code around an address: the segment.
    pub(crate) fn code_around(&self, address: usize) -> Option<&[u8]> {
        let code = self.program_headers().iter().filter(|header| header.kind == PT_LOAD && header.flags & CODE == CODE);
        let mut code = code.filter_map(|header| self.memory(header.address, header.file_bytes));
        code.find(|code| code.as_ptr_range().contains(&ptr::with_exposed_provenance(address)))
    }

    fn memory(&self, address: u64, bytes: u64) -> Option<&[u8]> {
        let start = self.bias.wrapping_add(usize::try_from(address).ok()?);
        let bytes = usize::try_from(bytes).ok()?;
        let end = start.checked_add(bytes)?;
        // SAFETY: the range lies inside the mapping of a loaded object, in a segment named by the
        // headers.
        (start >= self.start && end <= self.end)
            .then(|| unsafe { core::slice::from_raw_parts(start as *const u8, bytes) })
    }

    /// Returns the offset in the object's file of `bytes` bytes of code. `address` is an address of
    /// the file, without the bias.
    pub(crate) fn offset_of_code(&self, address: usize, bytes: usize) -> Option<usize> {
        let (address, bytes) = (address as u64, bytes as u64);
        let header = self.program_headers().iter().find(|header| {
            let skip = address.checked_sub(header.address);
            let fits = |skip: u64| skip.checked_add(bytes).is_some_and(|end| end <= header.file_bytes);
            header.kind == PT_LOAD && header.flags == CODE && skip.is_some_and(fits)
        })?;
        usize::try_from(header.offset.checked_add(address - header.address)?).ok()
    }

    /// Returns `.eh_frame_hdr`, and the rest of the segment from the beginning of `.eh_frame`. Each
    /// part comes with its address.
    pub fn unwind_sections(&self) -> Option<(Section<'_>, Section<'_>)> {
        let headers = self.program_headers();
        let hdr_at = self.eh_frame_hdr as usize;
        let hdr = headers
            .iter()
            .find(|h| h.kind == PT_GNU_EH_FRAME)
            .and_then(|h| self.memory(h.address, h.memory_bytes))
            .filter(|s| s.as_ptr().addr() == hdr_at && s.len() >= 12)?;
        // Every linker writes version 1, with the pointer to eh_frame in four bytes relative to the
        // pointer.
        const PCREL_SDATA4: u8 = 0x1b;
        if hdr[0] != 1 || hdr[1] != PCREL_SDATA4 {
            return None;
        }
        let distance = i32::from_le_bytes([hdr[4], hdr[5], hdr[6], hdr[7]]);
        let frame_at = (hdr_at + 4).wrapping_add_signed(distance as isize);
        let segment = headers.iter().filter(|h| h.kind == PT_LOAD).find_map(|h| {
            let whole = self.memory(h.address, h.file_bytes)?;
            let skip = frame_at.checked_sub(whole.as_ptr().addr())?;
            whole.get(skip..).filter(|rest| !rest.is_empty())
        })?;
        Some((Section { at: hdr_at as u64, bytes: hdr }, Section { at: frame_at as u64, bytes: segment }))
    }

    /// Returns the GNU build-id; empty without a build-id.
    pub fn build_id(&self) -> &[u8] {
        let notes = self.program_headers().iter().filter(|h| h.kind == PT_NOTE);
        notes
            .filter_map(|h| self.memory(h.address, h.memory_bytes))
            .find_map(|notes| find_build_id(notes))
            .unwrap_or(&[])
    }
}

/// Bytes, and their mapped address.
#[derive(Clone, Copy)]
pub struct Section<'a> {
    /// Address of the first byte.
    pub at: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Returns the GNU build-id among notes.
pub fn find_build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let word = |i: usize| Some(u32::from_le_bytes(notes.get(i..i + 4)?.try_into().ok()?));
        let (name, desc, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let desc_at = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = desc_at.checked_add(desc)?;
        let content = notes.get(desc_at..end)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") {
            return Some(content);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_object_of_an_address() {
        let here = finds_the_object_of_an_address as *const () as usize;
        let object = find_object(here).expect("this program");
        assert!(object.start <= here && here < object.end);
        assert_eq!(object.path(), b"", "the program itself has no name");
        assert!(object.unwind_sections().is_some_and(|(h, f)| h.bytes.len() > 12 && f.at > object.start as u64));
        let libc = find_object(std::process::exit as *const () as usize).map(|o| o.start);
        assert_eq!(libc, Some(object.start), "std is linked in");
        assert!(find_object(0x10).is_none());
    }

    #[test]
    fn the_build_id_is_the_gnu_note_of_kind_3() {
        let note = |kind: u32, name: &[u8], desc: &[u8]| {
            let mut bytes = std::vec::Vec::new();
            for word in [u32::try_from(name.len()).unwrap_or(0), u32::try_from(desc.len()).unwrap_or(0), kind] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(name);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(desc);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let id: std::vec::Vec<u8> = (1..=20).collect();
        let notes = [note(1, b"GNU\0", &[9; 16]), note(3, b"XYZ\0", &[8; 5]), note(3, b"GNU\0", &id)].concat();
        assert_eq!(find_build_id(&notes), Some(&id[..]));
        assert_eq!(find_build_id(&notes[..notes.len() - 1]), None, "cut short");
        assert_eq!(find_build_id(&[0xff; 40]), None, "impossible lengths");
    }
}
