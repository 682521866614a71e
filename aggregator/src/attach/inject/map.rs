//! What is mapped in a process, and what of that an injection uses: the C library's functions, and two pieces of its
//! code that make system calls.

use super::InjectError;
use super::memory::Memory;
use super::stack::Stacks;
use super::symbols::{Functions, Image};
use heapline_shared_format::inject::LIBRARY_NAME;
use std::fs;
use std::io;

/// No C library has more code.
const MOST_CODE_BYTES: u64 = 64 << 20;

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub is_code: bool,
    pub offset: u64,
    pub path: String,
}

/// All lines.
pub struct Map {
    pub pid: u32,
    pub mappings: Vec<Mapping>,
}

/// Code of the C library's that a borrowed thread is sent to.
#[derive(Clone, Copy, Debug)]
pub struct Gadgets {
    /// `syscall; ret`
    pub system_call: u64,
    /// `mov rax, 15; syscall`: where the C library has signal handlers return to.
    pub sigreturn: u64,
    /// `__errno_location`.
    pub errno_location: u64,
}

/// What is known of the process's C library.
pub struct Loader {
    pub dlopen: u64,
    pub dlerror: u64,
    pub gadgets: Gadgets,
    pub libc: Range,
    /// The dynamic loader.
    pub interpreter: Range,
    /// Objects that define `malloc`, the C library apart.
    pub allocators: Vec<Range>,
    /// One of them is the program itself, of whose functions only some belong to the allocator.
    pub has_own_malloc: bool,
    pub functions: Functions,
    pub stacks: Stacks,
}

/// Where an object lies.
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
    /// Reads it now.
    pub fn read(pid: u32) -> io::Result<Map> {
        Ok(Map::parse(pid, &fs::read_to_string(format!("/proc/{pid}/maps"))?))
    }

    /// The text of `/proc/PID/maps`.
    pub fn parse(pid: u32, text: &str) -> Map {
        Map { pid, mappings: text.lines().filter_map(mapping).collect() }
    }

    /// Where the collector's library begins, if it was injected.
    pub fn collector(&self) -> Option<u64> {
        let by_memory = format!("/memfd:{LIBRARY_NAME} (deleted)");
        let by_root = format!("/.{LIBRARY_NAME}-");
        let is_ours = |path: &str| path == by_memory || path.contains(&by_root);
        self.mappings.iter().find(|mapping| mapping.offset == 0 && is_ours(&mapping.path)).map(|mapping| mapping.start)
    }

    /// The object that an address belongs to.
    pub fn object_at(&self, address: u64) -> Option<Range> {
        let at = self.mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&address))?;
        let path = &self.mappings[at].path;
        let is_of_file = path.starts_with('/') || path == "[vdso]";
        if !is_of_file {
            return None;
        }
        let first =
            self.mappings[..=at].iter().rev().take_while(|mapping| &mapping.path == path).find(|m| m.offset == 0)?;
        let last =
            self.mappings[at..].iter().take_while(|m| &m.path == path && (m.offset != 0 || m.start == first.start));
        Some(Range { start: first.start, end: last.last()?.end })
    }

    /// The program itself, which lies below its libraries.
    pub fn program(&self) -> Option<Range> {
        self.objects().next().map(|(_, range)| range)
    }

    /// An address where nothing is, so far below an object, and not below `lowest`.
    pub fn room_below(&self, object: Range, distance: u64, lowest: u64) -> Option<u64> {
        let before = self.mappings.iter().map(|mapping| mapping.end).filter(|&end| end <= object.start).max();
        let at = object.start.checked_sub(distance)?;
        (at >= before.unwrap_or(0).max(lowest)).then_some(at)
    }

    /// Where each object begins.
    fn objects(&self) -> impl Iterator<Item = (&Mapping, Range)> {
        let begins = |mapping: &&Mapping| mapping.offset == 0 && mapping.path.starts_with('/');
        self.mappings.iter().filter(begins).filter_map(|mapping| Some((mapping, self.object_at(mapping.start)?)))
    }

    /// Finds what an injection needs.
    pub fn loader(&self, memory: &Memory) -> Result<Loader, InjectError> {
        let file_name = |mapping: &Mapping| mapping.path.rsplit('/').next().unwrap_or_default().to_owned();
        let named = |test: &dyn Fn(&str) -> bool| self.objects().find(|(mapping, _)| test(&file_name(mapping)));
        let Some((_, libc)) = named(&|name| name.starts_with("libc.so.6") || name.starts_with("libc-2.")) else {
            let is_musl = self.mappings.iter().any(|mapping| mapping.path.contains("/ld-musl-"));
            return Err(InjectError::NoGlibc(if is_musl { "its C library is musl" } else { "no libc.so.6 is loaded" }));
        };
        let Some((_, interpreter)) = named(&|name| name.starts_with("ld-linux") || name.starts_with("ld-2.")) else {
            return Err(InjectError::NoGlibc("no dynamic loader is there"));
        };
        let image = Image::read(memory, libc.start).map_err(InjectError::Memory)?;
        let functions = Functions::of(memory, &image).map_err(InjectError::Memory)?;
        let too_old = || InjectError::NoGlibc("its version is older");
        let (Some(dlopen), Some(dlerror)) = (functions.address("dlopen"), functions.address("dlerror")) else {
            return Err(too_old());
        };
        if functions.address("_dl_find_object").is_none() {
            return Err(too_old());
        }
        let errno_location = functions.address("__errno_location").ok_or_else(too_old)?;
        let gadgets = self.gadgets(memory, libc, errno_location)?;
        let program = self.program();
        let brings_malloc =
            |range: &Range| Image::read(memory, range.start).is_ok_and(|image| image.defines(memory, "malloc"));
        let others = self.objects().map(|(_, range)| range).filter(|range| *range != libc && *range != interpreter);
        let allocators: Vec<Range> = others.filter(brings_malloc).collect();
        let has_own_malloc = program.is_some_and(|program| allocators.contains(&program));
        let allocators = allocators.into_iter().filter(|range| Some(*range) != program).collect();
        let stacks = Stacks::default();
        self.objects().for_each(|(_, range)| stacks.prepare(memory, range.start));
        Ok(Loader { dlopen, dlerror, gadgets, libc, interpreter, allocators, has_own_malloc, functions, stacks })
    }

    fn gadgets(&self, memory: &Memory, libc: Range, errno_location: u64) -> Result<Gadgets, InjectError> {
        const SYSTEM_CALL: [u8; 3] = [0x0f, 0x05, 0xc3];
        const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
        let mut found = (None, None);
        for mapping in self.mappings.iter().filter(|mapping| mapping.is_code && libc.contains(mapping.start)) {
            let length = usize::try_from((mapping.end - mapping.start).min(MOST_CODE_BYTES)).unwrap_or(0);
            let code = memory.bytes(mapping.start, length).map_err(InjectError::Memory)?;
            let find = |pattern: &[u8]| {
                let at = code.windows(pattern.len()).position(|window| window == pattern)?;
                Some(mapping.start + at as u64)
            };
            found = (found.0.or_else(|| find(&SYSTEM_CALL)), found.1.or_else(|| find(&SIGRETURN)));
        }
        match found {
            (Some(system_call), Some(sigreturn)) => Ok(Gadgets { system_call, sigreturn, errno_location }),
            _ => Err(InjectError::NoGlibc("its code is not as glibc's is")),
        }
    }
}

fn mapping(line: &str) -> Option<Mapping> {
    // The path is what follows the fifth field, and may hold spaces.
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let path = fields.nth(2).unwrap_or_default().trim_start();
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    (start < end).then_some(())?;
    Some(Mapping { start, end, is_code: permissions.contains('x'), offset: hex(offset)?, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_put_together_from_their_mappings() {
        let map = Map::parse(
            1,
            "00400000-00401000 r--p 00000000 fe:00 1    /bin/a program\n\
             00401000-00402000 r-xp 00001000 fe:00 1    /bin/a program\n\
             00402000-00403000 rw-p 00000000 00:00 0    [heap]\n\
             7000-8000 r-xp 00000000 00:01 9    /memfd:heapline-collector (deleted)\n\
             9000-a000 rw-p 00000000 00:00 0 \n",
        );
        assert_eq!(map.object_at(0x401fff), Some(Range { start: 0x400000, end: 0x402000 }));
        assert_eq!(map.object_at(0x402000), None);
        assert_eq!(map.object_at(0x9000), None);
        assert_eq!(map.collector(), Some(0x7000));
        assert_eq!(map.mappings[1].path, "/bin/a program");
        assert!(map.mappings[1].is_code && !map.mappings[0].is_code);
        assert_eq!(map.objects().count(), 2);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        let memory = Memory::open(pid).expect("its own memory");
        let loader = Map::read(pid).expect("its own map").loader(&memory).expect("a glibc");
        assert!(loader.libc.contains(loader.dlopen) && loader.libc.contains(loader.gadgets.sigreturn));
        assert_eq!(loader.dlopen, (libc::dlopen as *const ()).addr() as u64);
        assert!(!loader.has_own_malloc && loader.allocators.is_empty());
        let names = loader.functions.names_at((libc::poll as *const ()).addr() as u64);
        assert!(names.contains(&"poll".to_owned()), "{names:?}");
    }
}
