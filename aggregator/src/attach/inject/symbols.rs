//! The dynamic symbols and unwind tables of a loaded object, read from the memory of the process.
//! The file of the object may be deleted, replaced by an update, or known only to the mount
//! namespace of the process.

use super::memory::Memory;
use std::io;
use std::ops::Range;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_STRSZ: u64 = 10;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
/// Limit of the entries read from a process with possibly false data. No object has more entries.
const MOST_ENTRIES: u32 = 1 << 20;
const MOST_STRING_BYTES: u64 = 64 << 20;
const SYMBOL_BYTES: usize = 24;

/// A loaded part of an object, described by a program header.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Beginning of the segment in memory.
    pub start: u64,
    /// Size of the segment in memory.
    bytes: u64,
    /// Beginning of the segment in the file.
    pub offset: u64,
    /// Size of the segment in the file.
    pub file_bytes: u64,
    pub is_code: bool,
    pub is_writable: bool,
}

impl Segment {
    /// Returns the end of the segment in memory.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }

    fn contains(&self, address: u64) -> bool {
        (self.start..self.end()).contains(&address)
    }
}

/// A loaded object: its segments, dynamic symbols and unwind tables.
pub struct Image {
    bias: u64,
    segments: Vec<Segment>,
    /// Address and size of `.eh_frame_hdr`.
    pub unwind: Option<(u64, u64)>,
    strings: u64,
    string_bytes: u64,
    symbols: u64,
    hashes: u64,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Image {
    /// Reads the object at `base`.
    pub fn read(memory: &Memory, base: u64) -> io::Result<Image> {
        let (mut image, dynamic) = Image::read_headers(memory, base)?;
        if let Some(dynamic) = dynamic {
            image.read_dynamic(memory, dynamic)?;
        }
        Ok(image)
    }

    /// Returns the segments of the object at `base`.
    pub fn segments_at(memory: &Memory, base: u64) -> io::Result<Vec<Segment>> {
        Ok(Image::read_headers(memory, base)?.0.segments)
    }

    /// Reads the program headers, and the address of the dynamic section.
    fn read_headers(memory: &Memory, base: u64) -> io::Result<(Image, Option<u64>)> {
        let mut header = [0; 64];
        memory.read(base, &mut header)?;
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if header[..5] != *b"\x7fELF\x02" || u16_at(54) != 56 {
            return Err(invalid("no 64-bit ELF object"));
        }
        let offset = u64::from_le_bytes(header[32..40].try_into().unwrap_or_default());
        let count = usize::from(u16_at(56));
        let headers = memory.bytes(base.wrapping_add(offset), count * 56)?;
        let mut image =
            Image { bias: 0, segments: Vec::new(), unwind: None, strings: 0, string_bytes: 0, symbols: 0, hashes: 0 };
        let mut dynamic = None;
        let mut first = None;
        for header in headers.chunks_exact(56) {
            let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
            let kind = u32::from_le_bytes(header[..4].try_into().unwrap_or_default());
            let (address, bytes) = (word(16), word(40));
            match kind {
                PT_LOAD => {
                    const PF_X: u32 = 1;
                    const PF_W: u32 = 2;
                    first.get_or_insert(address & !0xfff);
                    let flags = u32::from_le_bytes(header[4..8].try_into().unwrap_or_default());
                    image.segments.push(Segment {
                        start: address,
                        bytes,
                        offset: word(8),
                        file_bytes: word(32),
                        is_code: flags & PF_X != 0,
                        is_writable: flags & PF_W != 0,
                    });
                }
                PT_DYNAMIC => dynamic = Some(address),
                PT_GNU_EH_FRAME => image.unwind = Some((address, bytes)),
                _ => {}
            }
        }
        image.bias = base.wrapping_sub(first.ok_or_else(|| invalid("no segments"))?);
        let moved = |address: u64| image.bias.wrapping_add(address);
        image.segments.iter_mut().for_each(|segment| segment.start = moved(segment.start));
        image.unwind = image.unwind.map(|(address, bytes)| (moved(address), bytes));
        let dynamic = dynamic.map(moved);
        Ok((image, dynamic))
    }

    fn read_dynamic(&mut self, memory: &Memory, at: u64) -> io::Result<()> {
        // The loader has added the bias to the addresses. The vdso is an exception: the kernel maps
        // the vdso unchanged.
        let (bias, segments) = (self.bias, self.segments.clone());
        let is_moved = |value: u64| segments.iter().any(|segment| segment.contains(value));
        let moved = |value: u64| if is_moved(value) { value } else { value.wrapping_add(bias) };
        for entry in 0..u64::from(MOST_ENTRIES) {
            let tag = memory.word(at.wrapping_add(entry * 16))?;
            let value = memory.word(at.wrapping_add(entry * 16 + 8))?;
            match tag {
                0 => break,
                DT_STRTAB => self.strings = moved(value),
                DT_SYMTAB => self.symbols = moved(value),
                DT_STRSZ => self.string_bytes = value,
                DT_GNU_HASH => self.hashes = moved(value),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the number of bytes from an address to the end of its segment.
    pub fn rest_of_segment(&self, address: u64) -> Option<u64> {
        self.segments.iter().find(|segment| segment.contains(address)).map(|segment| segment.end() - address)
    }

    /// Whether the object defines a function of this name.
    pub fn defines(&self, memory: &Memory, name: &str) -> bool {
        self.place(memory, name).is_some()
    }

    /// Returns the address of the function with this name.
    pub fn place(&self, memory: &Memory, name: &str) -> Option<u64> {
        self.find(memory, name).ok().flatten()
    }

    fn find(&self, memory: &Memory, name: &str) -> io::Result<Option<u64>> {
        if self.hashes == 0 {
            return Ok(None);
        }
        let wanted = name.bytes().fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
        let table = Hashes::read(memory, self.hashes)?;
        if table.buckets == 0 {
            return Ok(None);
        }
        let first = half(memory, table.bucket(wanted % table.buckets))?;
        if first < table.first {
            return Ok(None);
        }
        let last = first.saturating_add(MOST_ENTRIES);
        for index in first..last {
            let hash = half(memory, table.chain(index))?;
            if (hash ^ wanted) >> 1 == 0 {
                let symbol = Symbol::read(memory, self.symbols, index)?;
                if symbol.is_defined() && memory.text(self.strings.wrapping_add(u64::from(symbol.name))) == name {
                    return Ok(Some(self.bias.wrapping_add(symbol.value)));
                }
            }
            if hash & 1 == 1 {
                break;
            }
        }
        Ok(None)
    }

    /// Returns the number of dynamic symbols, found at the end of the last hash chain.
    fn symbol_count(&self, memory: &Memory) -> io::Result<u64> {
        if self.hashes == 0 {
            return Ok(0);
        }
        let table = Hashes::read(memory, self.hashes)?;
        let buckets = u64::from(table.buckets.min(MOST_ENTRIES));
        let bytes = memory.bytes(table.bucket(0), usize::try_from(buckets * 4).unwrap_or(0))?;
        let heads = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap_or_default()));
        let Some(mut index) = heads.max().filter(|&head| head >= table.first) else { return Ok(0) };
        while half(memory, table.chain(index))? & 1 == 0 && index < MOST_ENTRIES {
            index += 1;
        }
        Ok(u64::from(index) + 1)
    }
}

/// `DT_GNU_HASH`.
struct Hashes {
    at: u64,
    buckets: u32,
    first: u32,
    bloom_words: u32,
}

impl Hashes {
    fn read(memory: &Memory, at: u64) -> io::Result<Hashes> {
        let [buckets, first, bloom_words] = [0, 4, 8].map(|offset| half(memory, at.wrapping_add(offset)));
        Ok(Hashes { at, buckets: buckets?, first: first?, bloom_words: bloom_words? })
    }

    fn bucket(&self, number: u32) -> u64 {
        self.at.wrapping_add(16 + u64::from(self.bloom_words) * 8 + u64::from(number) * 4)
    }

    fn chain(&self, index: u32) -> u64 {
        self.bucket(self.buckets).wrapping_add(u64::from(index - self.first) * 4)
    }
}

struct Symbol {
    name: u32,
    info: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl Symbol {
    fn read(memory: &Memory, table: u64, index: u32) -> io::Result<Symbol> {
        let mut bytes = [0; SYMBOL_BYTES];
        memory.read(table.wrapping_add(u64::from(index) * SYMBOL_BYTES as u64), &mut bytes)?;
        Ok(Symbol::parse(&bytes))
    }

    fn parse(bytes: &[u8; SYMBOL_BYTES]) -> Symbol {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        Symbol {
            name: u32::from_le_bytes(bytes[..4].try_into().unwrap_or_default()),
            info: bytes[4],
            section: u16::from_le_bytes([bytes[6], bytes[7]]),
            value: word(8),
            size: word(16),
        }
    }

    fn is_defined(&self) -> bool {
        self.section != 0 && self.value != 0
    }

    fn is_function(&self) -> bool {
        const STT_FUNC: u8 = 2;
        self.is_defined() && self.info & 15 == STT_FUNC
    }
}

fn half(memory: &Memory, at: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    memory.read(at, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// All exported functions of an object, by address.
pub struct Functions(Vec<Function>);

struct Function {
    start: u64,
    size: u64,
    name: String,
}

impl Functions {
    /// Reads the exported functions of an object.
    pub fn of(memory: &Memory, image: &Image) -> io::Result<Functions> {
        let count = image.symbol_count(memory)?;
        let symbols = memory.bytes(image.symbols, usize::try_from(count).unwrap_or(0) * SYMBOL_BYTES)?;
        let strings = image.string_bytes.min(MOST_STRING_BYTES);
        let strings = memory.bytes(image.strings, usize::try_from(strings).unwrap_or(0))?;
        let mut functions = Vec::new();
        for bytes in symbols.as_chunks::<SYMBOL_BYTES>().0 {
            let symbol = Symbol::parse(bytes);
            let text = strings.get(symbol.name as usize..).unwrap_or_default();
            let name = text.split(|&byte| byte == 0).next().unwrap_or_default();
            if symbol.is_function() {
                let start = image.bias.wrapping_add(symbol.value);
                functions.push(Function { start, size: symbol.size, name: String::from_utf8_lossy(name).into_owned() });
            }
        }
        functions.sort_by_key(|function| function.start);
        Ok(Functions(functions))
    }

    /// Returns the functions of several objects.
    pub fn all(objects: Vec<Functions>) -> Functions {
        let mut functions: Vec<Function> = objects.into_iter().flat_map(|object| object.0).collect();
        functions.sort_by_key(|function| function.start);
        Functions(functions)
    }

    /// Returns functions with these addresses, sizes and names.
    #[cfg(test)]
    pub fn named(functions: &[(u64, u64, &str)]) -> Functions {
        Functions(
            functions.iter().map(|&(start, size, name)| Function { start, size, name: name.to_owned() }).collect(),
        )
    }

    /// Returns the ranges of the functions, and the ranges in between, each with any number of
    /// functions that are not exported.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut end = self.0.first().map_or(0, |function| function.start);
        for function in &self.0 {
            if function.start > end {
                ranges.push(end..function.start);
            }
            let start = function.start.max(end);
            end = end.max(function.start.saturating_add(function.size));
            if start < end {
                ranges.push(start..end);
            }
        }
        ranges
    }

    /// Returns the address of the function with this name.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|function| function.name == name).map(|function| function.start)
    }

    /// Returns all names of the function at an address.
    pub fn names_at(&self, address: u64) -> Vec<String> {
        let end = self.0.partition_point(|function| function.start <= address);
        let Some(last) = self.0[..end].last() else { return Vec::new() };
        let same = self.0[..end].iter().rev().take_while(|function| function.start == last.start);
        same.filter(|function| address - function.start < function.size.max(1))
            .map(|function| function.name.clone())
            .collect()
    }
}
