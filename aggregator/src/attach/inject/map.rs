//! The mappings of a process, and the loaded objects formed by these mappings.
//!
//! The mappings of an object are found from the object's program headers in memory. The lines of
//! `/proc/PID/maps` alone are not enough, for three reasons:
//! - Several segments may begin at offset 0 of the file, because lld packs segments.
//! - Other mappings may lie in the holes between segments.
//! - A program may map the file of a library as plain data.

use super::memory::Memory;
use super::symbols::{Image, Segment};
use heapline_shared_format::inject::LIBRARY_NAME;
use std::fs;
use std::io;

const PAGE: u64 = 4096;

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub is_code: bool,
    pub is_writable: bool,
    pub offset: u64,
    pub path: String,
}

/// All mappings of a process, and the objects formed by the mappings.
pub struct Map {
    pub pid: u32,
    pub mappings: Vec<Mapping>,
    /// Objects, in the order of their addresses.
    objects: Vec<Object>,
    /// An address in the program itself, when the kernel tells such an address.
    in_program: Option<u64>,
    /// First address of the loader started by the kernel.
    loader: Option<u64>,
}

/// A loaded program or library.
#[derive(Clone, Debug)]
pub struct Object {
    pub range: Range,
    path: String,
}

/// Address range of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

impl Map {
    /// Reads the current map of a process.
    pub fn read(pid: u32, memory: &Memory) -> io::Result<Map> {
        let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let of_kernel = |kind| word_of_kernel(pid, kind);
        let (in_program, loader) = (of_kernel(libc::AT_PHDR), of_kernel(libc::AT_BASE));
        Ok(Map { in_program, loader, ..Map::parse(pid, &text, memory) })
    }

    /// Parses the text of `/proc/PID/maps`.
    pub fn parse(pid: u32, text: &str, memory: &Memory) -> Map {
        let mappings: Vec<Mapping> = text.lines().filter_map(mapping).collect();
        let objects = mappings.iter().filter_map(|first| object(&mappings, first, memory)).collect();
        Map { pid, mappings, objects, in_program: None, loader: None }
    }

    /// Returns the address of an injected collector.
    pub fn collector(&self) -> Option<u64> {
        collector(&self.mappings)
    }

    /// Returns the object at an address. Another object may lie in a hole between an object's
    /// segments.
    pub fn object_at(&self, address: u64) -> Option<Range> {
        self.objects.iter().rev().map(|object| object.range).find(|range| range.contains(address))
    }

    /// Returns the loader started by the kernel.
    pub fn loader(&self) -> Option<Range> {
        self.loader.filter(|&address| address != 0).and_then(|address| self.object_at(address))
    }

    /// Returns the program itself.
    pub fn program(&self) -> Option<Range> {
        let of_kernel = self.in_program.and_then(|address| self.files().find(|object| object.range.contains(address)));
        // The kernel does not know a program run by an explicit call of the dynamic loader.
        let is_program = |object: &&Object| !is_interpreter(object.file_name()) && !is_musls_file(object.file_name());
        let program = of_kernel.filter(is_program).or_else(|| self.files().find(is_program));
        program.map(|object| object.range)
    }

    /// Returns a free address at `distance` below an object, and not below `lowest`.
    pub fn room_below(&self, object: Range, distance: u64, lowest: u64) -> Option<u64> {
        let before = self.mappings.iter().map(|mapping| mapping.end).filter(|&end| end <= object.start).max();
        let at = object.start.checked_sub(distance)?;
        (at >= before.unwrap_or(0).max(lowest)).then_some(at)
    }

    /// Lists the objects loaded from files.
    pub fn files(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| object.path.starts_with('/'))
    }
}

impl Object {
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Whether a file of this name is a dynamic loader.
pub fn is_interpreter(file_name: &str) -> bool {
    file_name.starts_with("ld-linux") || file_name.starts_with("ld-2.")
}

/// Whether a file of this name is musl's loader, which is the C library too.
pub fn is_musls_file(file_name: &str) -> bool {
    file_name.starts_with("ld-musl-") || file_name == "libc.so"
}

/// Returns the address of an injected collector. The memory of the process need not be readable.
pub fn collector_of(pid: u32) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(collector(&text.lines().filter_map(mapping).collect::<Vec<_>>()))
}

fn collector(mappings: &[Mapping]) -> Option<u64> {
    let ours = format!("/memfd:{LIBRARY_NAME} (deleted)");
    mappings.iter().find(|mapping| mapping.offset == 0 && mapping.path == ours).map(|mapping| mapping.start)
}

/// Returns the object with this first mapping. Returns none for a file that is only mapped as data.
/// Also returns none for a later segment of an object, because the program headers would put the
/// segments elsewhere.
fn object(mappings: &[Mapping], first: &Mapping, memory: &Memory) -> Option<Object> {
    let is_of_file = first.path.starts_with('/') || first.path == "[vdso]";
    if first.offset != 0 || !is_of_file {
        return None;
    }
    let segments = Image::segments_at(memory, first.start).ok()?;
    let end = segments.iter().map(Segment::end).max()?.checked_next_multiple_of(PAGE)?;
    let is_loaded = segments.iter().filter(|segment| segment.file_bytes > 0).all(|segment| {
        let page = segment.start & !(PAGE - 1);
        mapping_at(mappings, page).is_some_and(|there| {
            // A program may have moved its code onto large pages.
            let is_replaced = there.path != first.path;
            let offset = there.offset.wrapping_add(page - there.start);
            let is_in_place = is_replaced || offset == segment.offset & !(PAGE - 1);
            // A loader maps writable segments privately, even if the segments become read-only
            // later.
            let is_writable = there.is_writable || there.start != first.start;
            is_in_place && (there.is_code || !segment.is_code) && (is_writable || !segment.is_writable)
        })
    });
    is_loaded.then(|| Object { range: Range { start: first.start, end }, path: first.path.clone() })
}

fn mapping_at(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let behind = mappings.partition_point(|mapping| mapping.start <= address);
    mappings.get(behind.checked_sub(1)?).filter(|mapping| address < mapping.end)
}

/// Returns a word of the kernel about the program.
fn word_of_kernel(pid: u32, wanted: u64) -> Option<u64> {
    let words = fs::read(format!("/proc/{pid}/auxv")).ok()?;
    let words: Vec<u64> = words.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    words.as_chunks().0.iter().find(|[kind, _]| *kind == wanted).map(|[_, address]| *address)
}

fn mapping(line: &str) -> Option<Mapping> {
    // The path follows the fifth field, and may contain spaces.
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let path = fields.nth(2).unwrap_or_default().trim_start();
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    (start < end).then_some(())?;
    let (is_code, is_writable) = (permissions.contains('x'), permissions.contains('w'));
    Some(Mapping { start, end, is_code, is_writable, offset: hex(offset)?, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment for the headers of [`image`]: kind of access, address, offset in the file.
    struct Wanted(u32, u64, u64);

    /// Builds the beginning of an ELF file.
    fn image(segments: &[Wanted]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(segments.len()).expect("few");
        for &Wanted(flags, address, offset) in segments {
            let words = [1 | u64::from(flags) << 32, offset, address, address, 0x400, 0x400, 0x1000];
            bytes.extend(words.map(u64::to_le_bytes).concat());
        }
        bytes
    }

    /// Builds a memory with these images at these addresses.
    fn memory(images: &[(&[u8], u64)]) -> Memory {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().expect("a file");
        images.iter().for_each(|&(image, at)| file.write_all_at(image, at).expect("written"));
        file.set_len(1 << 40).expect("a hole");
        Memory::of_file(file)
    }

    const R: u32 = 4;
    const X: u32 = 5;
    const W: u32 = 6;

    #[test]
    fn objects_are_put_together_from_their_mappings() {
        let image = image(&[Wanted(R, 0x400000, 0), Wanted(X, 0x401000, 0x1000)]);
        let map = Map::parse(
            1,
            "00400000-00401000 r--p 00000000 fe:00 1    /bin/a program\n\
             00401000-00402000 r-xp 00001000 fe:00 1    /bin/a program\n\
             00402000-00403000 rw-p 00000000 00:00 0    [heap]\n\
             07000000-07001000 r-xp 00000000 00:01 9    /memfd:heapline-collector (deleted)\n\
             09000000-0a000000 rw-p 00000000 00:00 0 \n",
            &memory(&[(&image, 0x400000)]),
        );
        assert_eq!(map.object_at(0x401fff), Some(Range { start: 0x400000, end: 0x402000 }));
        assert_eq!((map.object_at(0x402000), map.object_at(0x9000000)), (None, None));
        assert_eq!(map.collector(), Some(0x7000000));
        assert_eq!(map.mappings[1].path, "/bin/a program");
        assert!(map.mappings[1].is_code && !map.mappings[0].is_code && map.mappings[2].is_writable);
        assert_eq!(map.files().count(), 1);
    }

    /// Layout of lld: the page of each segment in the file is the first page.
    #[test]
    fn segments_may_share_a_page_of_the_file() {
        let image =
            image(&[Wanted(R, 0, 0), Wanted(X, 0x1560, 0x560), Wanted(W, 0x2730, 0x730), Wanted(W, 0x3900, 0x900)]);
        let map = Map::parse(
            1,
            "10000000-10001000 r--p 00000000 fe:00 1    /lld\n\
             10001000-10002000 r-xp 00000000 fe:00 1    /lld\n\
             10002000-10003000 r--p 00000000 fe:00 1    /lld\n\
             10003000-10004000 rw-p 00000000 fe:00 1    /lld\n",
            &memory(&[0x10000000, 0x10001000, 0x10002000, 0x10003000].map(|at| (&image[..], at))),
        );
        let all = Range { start: 0x10000000, end: 0x10004000 };
        assert_eq!(map.object_at(0x10001560), Some(all));
        assert_eq!((map.files().count(), map.program()), (1, Some(all)));
    }

    /// A library in a hole of another object, and its file mapped as data, with and without the
    /// right to run the code.
    #[test]
    fn holes_and_data_are_told_from_objects() {
        let segments = |far: u64| image(&[Wanted(R, 0, 0), Wanted(X, far, 0x1000), Wanted(W, 2 * far, 0x2000)]);
        let (wide, narrow) = (segments(0x200000), segments(0x2000));
        let map = Map::parse(
            1,
            "10000000-10001000 r--p 00000000 fe:00 1 /wide\n\
             10100000-10101000 r--p 00000000 fe:00 2 /narrow\n\
             10102000-10103000 r-xp 00001000 fe:00 2 /narrow\n\
             10104000-10105000 rw-p 00002000 fe:00 2 /narrow\n\
             10200000-10201000 r-xp 00001000 fe:00 1 /wide\n\
             10400000-10401000 rw-p 00002000 fe:00 1 /wide\n\
             20000000-20006000 r--p 00000000 fe:00 2 /narrow\n\
             30000000-30006000 r-xp 00000000 fe:00 2 /narrow\n\
             40000000-40001000 r-xp 00000000 fe:00 3 /text\n",
            &memory(&[
                (&wide, 0x10000000),
                (&narrow, 0x10100000),
                (&narrow, 0x20000000),
                (&narrow, 0x30000000),
                (b"no object", 0x40000000),
            ]),
        );
        let starts = |address| map.object_at(address).map(|range| range.start);
        assert_eq!([0x10200000, 0x10102000, 0x10400000].map(starts), [0x10000000, 0x10100000, 0x10000000].map(Some));
        assert_eq!([0x20002000, 0x30002000, 0x40000000].map(starts), [None; 3]);
        assert_eq!(map.files().count(), 2);
    }

    /// The C library's file may have each segment at the same place as in memory. Mapped whole,
    /// such a file looks loaded.
    #[test]
    fn a_file_that_is_mapped_whole_is_no_object() {
        let flat = image(&[Wanted(R, 0, 0), Wanted(X, 0x1000, 0x1000), Wanted(W, 0x2000, 0x2000)]);
        let parse = |access| {
            let text = format!("10000000-10003000 {access} 00000000 fe:00 1 /flat\n");
            Map::parse(1, &text, &memory(&[(&flat, 0x10000000)])).files().count()
        };
        assert_eq!((parse("r--p"), parse("r-xp")), (0, 0));
        assert_eq!(parse("rwxp"), 1, "as old linkers do it, with one segment");
    }
}
