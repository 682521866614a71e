//! The C library of a process, as far as an injection uses the library: functions, and two pieces
//! of code with system calls.
//!
//! glibc before 2.34 has several libraries: threads, `dlopen` and some waits are not in
//! `libc.so.6`. musl is one object together with its loader, has no unwind tables, and may have any
//! name: the object started by the kernel as the loader is musl if it has `dlopen`.

use super::InjectError;
use super::code::Code;
use super::entries::{Candidates, Jumps};
use super::map::{Map, Range, is_interpreter, is_musls_file};
use super::memory::Memory;
use super::stack::{Musl, Stacks};
use super::symbols::{Functions, Image};
use crate::arch::errand::SYSTEM_CALL;
use heapline_shared_format::arch::epilogue::SIGNAL_RETURN;

/// Limit of the code read from the C library. No C library has more code.
const MOST_CODE_BYTES: u64 = 64 << 20;

/// Addresses in the C library. A borrowed thread is sent to these addresses.
#[derive(Clone, Copy, Debug)]
pub struct Gadgets {
    /// `syscall; ret`
    pub system_call: u64,
    /// `mov rax, 15; syscall`: the return address of signal handlers in the C library.
    pub sigreturn: u64,
    /// `__errno_location`.
    pub errno_location: u64,
    /// Mask of the signals by which the C library waits for an answer of every thread.
    pub open_signals: u64,
}

/// SIGSETXID of glibc: a thread changes the user of the process.
const SETXID: u64 = 1 << 32;
/// SIGSYNCCALL of musl, for the same purpose.
const SYNCCALL: u64 = 1 << 33;

/// A function of the C library that loads a library.
#[derive(Clone, Copy, Debug)]
pub struct Opener {
    pub function: u64,
    /// The `mode` of the call.
    pub mode: u64,
    /// Function that returns the loader's message, if there is one.
    pub message: Option<u64>,
}

/// Facts about the C library and the dynamic loader of the process.
pub struct Loader {
    pub opener: Opener,
    /// Whether the C library finds objects without a lock. Otherwise the collector does, by further
    /// system calls.
    pub finds_objects: bool,
    pub gadgets: Gadgets,
    /// The libraries of the C library, `libc.so.6` first.
    parts: Vec<Part>,
    /// The dynamic loader; none where the C library is the loader (musl).
    pub interpreter: Option<Range>,
    /// Objects with a definition of `malloc`, other than the C library.
    pub allocators: Vec<Range>,
    /// Whether the program itself defines `malloc`. Only some functions of such a program belong to
    /// the allocator.
    pub has_own_malloc: bool,
    /// The exported functions of all parts.
    functions: Functions,
    pub stacks: Stacks,
}

/// A library of the C library.
struct Part {
    range: Range,
    /// Jumps in the code; read when a thread stands in a function without a name.
    jumps: Option<Jumps>,
}

/// Beginnings of the names of the other libraries that come with the C library.
const OTHER_PARTS: [&str; 4] = ["libpthread", "librt", "libdl", "libanl"];

/// Whether a file of this name is `LIBRARY.so.N` or `LIBRARY-2.N.so`, the two names of glibc's
/// files.
fn is_part(file_name: &str, library: &str) -> bool {
    file_name.strip_prefix(library).is_some_and(|rest| rest.starts_with(".so.") || rest.starts_with("-2."))
}

impl Loader {
    /// Finds the functions and code for an injection.
    pub fn find(map: &Map, memory: &Memory) -> Result<Loader, InjectError> {
        let named =
            |test: fn(&str) -> bool| map.files().find(|object| test(object.file_name())).map(|found| found.range);
        let glibc = named(|name| is_part(name, "libc"));
        let musl = if glibc.is_none() { musl(map, memory) } else { None };
        let Some(libc) = glibc.or(musl) else {
            return Err(InjectError::NoLibrary("neither libc.so.6 nor musl's loader is loaded"));
        };
        let interpreter = if musl.is_some() { None } else { named(is_interpreter) };
        if musl.is_none() && interpreter.is_none() {
            return Err(InjectError::NoLibrary("no dynamic loader is there"));
        }
        let is_other = |name: &str| OTHER_PARTS.iter().any(|part| is_part(name, part));
        let others = map.files().filter(|object| is_other(object.file_name())).map(|object| object.range);
        let parts: Vec<Part> = [libc].into_iter().chain(others).map(|range| Part { range, jumps: None }).collect();
        let functions_of = |part: &Part| Functions::of(memory, &Image::read(memory, part.range.start)?);
        let functions: Vec<Functions> =
            parts.iter().map(functions_of).collect::<Result<_, _>>().map_err(InjectError::Memory)?;
        let Some(opener) = functions.first().and_then(Opener::find) else {
            return Err(InjectError::NoLibrary("its version is older"));
        };
        let functions = Functions::all(functions);
        let finds_objects = functions.address("_dl_find_object").is_some();
        let errno_location = functions.address("__errno_location");
        let errno_location = errno_location.ok_or(InjectError::NoLibrary("it has no errno"))?;
        let open_signals = if musl.is_some() { SYNCCALL } else { SETXID };
        let gadgets = Gadgets { open_signals, ..Gadgets::find(map, memory, libc, errno_location)? };
        let program = map.program();
        let brings_malloc =
            |range: &Range| Image::read(memory, range.start).is_ok_and(|image| image.defines(memory, "malloc"));
        let is_own = |range: Range| Some(range) == interpreter || parts.iter().any(|part| part.range == range);
        let others = map.files().map(|object| object.range).filter(|&range| !is_own(range));
        let allocators: Vec<Range> = others.filter(brings_malloc).collect();
        let has_own_malloc = program.is_some_and(|program| allocators.contains(&program));
        let allocators = allocators.into_iter().filter(|range| Some(*range) != program).collect();
        let stacks = Stacks::new(musl.map(|musl| Musl::new(musl, &functions)));
        map.files().for_each(|object| stacks.prepare(memory, object.range.start));
        Ok(Loader { opener, finds_objects, gadgets, parts, interpreter, allocators, has_own_malloc, functions, stacks })
    }

    /// Whether the C library is musl.
    pub fn is_musl(&self) -> bool {
        self.interpreter.is_none()
    }

    /// Whether an address belongs to the C library.
    pub fn is_in_c_library(&self, address: u64) -> bool {
        self.part_at(address).is_some()
    }

    fn part_at(&self, address: u64) -> Option<&Part> {
        self.parts.iter().find(|part| part.range.contains(address))
    }

    /// Reads the code of the C library, for [`Loader::candidates`].
    pub fn study(&mut self, map: &Map, memory: &Memory) {
        let is_musl = self.is_musl();
        for part in &mut self.parts {
            let functions = match is_musl {
                true => functions_by_calls(map, memory, part.range, &self.functions),
                false => self.stacks.functions(memory, part.range.start),
            };
            part.jumps = Some(Jumps::read(map, memory, part.range, functions));
        }
    }

    /// Returns the called functions of a thread at an address of the C library. Returns none when
    /// the answer needs [`Loader::study`] first.
    pub fn candidates(&self, address: u64) -> Option<Candidates> {
        match self.functions.names_at(address) {
            names if !names.is_empty() => Some(Candidates::one(names)),
            _ => Some(self.part_at(address)?.jumps.as_ref()?.candidates(address, &self.functions)),
        }
    }
}

impl Opener {
    /// Finds the function in `libc.so.6`. Before glibc 2.34 `dlopen` is in another library, which
    /// need not be loaded. The C library then has a function of its own.
    fn find(libc: &Functions) -> Option<Opener> {
        const RTLD_NOW: u64 = 2;
        /// Mark of a call on behalf of the program, in the C library's own function.
        const RTLD_DLOPEN: u64 = 0x8000_0000;
        if let Some(function) = libc.address("dlopen") {
            return Some(Opener { function, mode: RTLD_NOW, message: libc.address("dlerror") });
        }
        let function = libc.address("__libc_dlopen_mode")?;
        Some(Opener { function, mode: RTLD_NOW | RTLD_DLOPEN, message: None })
    }
}

/// Splits the ranges of an object's functions where calls and jumps lead to. The ranges between the
/// exported functions have functions without names.
fn functions_by_calls(map: &Map, memory: &Memory, object: Range, functions: &Functions) -> Vec<Range> {
    /// Each time, calls within a range split before become visible.
    const TIMES: usize = 4;
    let ranges = functions.ranges().into_iter();
    let mut ranges: Vec<Range> = ranges.map(|range| Range { start: range.start, end: range.end }).collect();
    for _ in 0..TIMES {
        let code = Code::read(map, memory, object, ranges);
        let mut starts: Vec<u64> = code.branches.iter().map(|branch| branch.target).collect();
        starts.sort_unstable();
        starts.dedup();
        let before = code.functions.len();
        ranges = code.functions.iter().flat_map(|function| split(*function, &starts)).collect();
        if ranges.len() == before {
            break;
        }
    }
    ranges
}

/// Splits a range at the addresses within it, which are in order.
fn split(range: Range, starts: &[u64]) -> Vec<Range> {
    let first = starts.partition_point(|&start| start <= range.start);
    let within = starts[first..].iter().copied().take_while(|&start| start < range.end);
    let starts: Vec<u64> = [range.start].into_iter().chain(within).collect();
    let ends = starts.iter().copied().skip(1).chain([range.end]);
    starts.iter().zip(ends).map(|(&start, end)| Range { start, end }).collect()
}

/// Returns musl's C library: the loader started by the kernel, if the loader opens libraries by
/// itself. Where the kernel has started musl's loader as a program, the loader is known by the name
/// of its file.
fn musl(map: &Map, memory: &Memory) -> Option<Range> {
    let is_musl = |range: &Range| {
        let image = Image::read(memory, range.start);
        image.is_ok_and(|image| ["dlopen", "__libc_start_main"].iter().all(|name| image.defines(memory, name)))
    };
    let named = || map.files().filter(|object| is_musls_file(object.file_name())).map(|object| object.range);
    let by_name = || named().find(is_musl);
    map.loader().filter(is_musl).or_else(by_name)
}

impl Gadgets {
    fn find(map: &Map, memory: &Memory, libc: Range, errno_location: u64) -> Result<Gadgets, InjectError> {
        let mut found = (None, None);
        for mapping in map.mappings.iter().filter(|mapping| mapping.is_code && libc.contains(mapping.start)) {
            let length = usize::try_from((mapping.end - mapping.start).min(MOST_CODE_BYTES)).unwrap_or(0);
            let code = memory.bytes(mapping.start, length).map_err(InjectError::Memory)?;
            let find = |pattern: &[u8]| {
                let at = code.windows(pattern.len()).position(|window| window == pattern)?;
                Some(mapping.start + at as u64)
            };
            found = (found.0.or_else(|| find(&SYSTEM_CALL)), found.1.or_else(|| find(&SIGNAL_RETURN)));
        }
        match found {
            (Some(system_call), Some(sigreturn)) => {
                Ok(Gadgets { system_call, sigreturn, errno_location, open_signals: 0 })
            }
            _ => Err(InjectError::NoLibrary("its code is not as glibc's or musl's is")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        let memory = Memory::open(pid).expect("its own memory");
        let map = Map::read(pid, &memory).expect("its own map");
        let loader = Loader::find(&map, &memory).expect("a glibc");
        assert!(loader.is_in_c_library(loader.opener.function) && loader.is_in_c_library(loader.gadgets.sigreturn));
        assert_eq!(loader.opener.function, (libc::dlopen as *const ()).addr() as u64);
        assert!(!loader.has_own_malloc && loader.allocators.is_empty());
        let names = loader.functions.names_at((libc::poll as *const ()).addr() as u64);
        assert!(names.contains(&"poll".to_owned()), "{names:?}");
    }

    #[test]
    fn the_files_of_the_c_library_are_told_by_their_names() {
        let parts = ["libc.so.6", "libc-2.31.so"].map(|name| is_part(name, "libc"));
        assert_eq!(parts, [true, true]);
        assert!(is_part("libpthread-2.17.so", "libpthread") && is_part("libdl.so.2", "libdl"));
        assert!(
            !is_part("libc++.so.1", "libc") && !is_part("libcap.so.2", "libc") && !is_part("librtmp.so.1", "librt")
        );
    }

    #[test]
    fn a_range_is_split_at_what_is_called_in_it() {
        let ranges = split(Range { start: 10, end: 40 }, &[5, 10, 20, 30, 40, 50]);
        assert_eq!(
            ranges.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>(),
            [(10, 20), (20, 30), (30, 40)]
        );
    }

    #[test]
    fn an_old_c_library_has_a_function_of_its_own() {
        let new = Opener::find(&Functions::named(&[(10, 1, "dlopen"), (20, 1, "dlerror")])).expect("there");
        assert_eq!((new.function, new.mode, new.message), (10, 2, Some(20)));
        let old = Opener::find(&Functions::named(&[(30, 1, "__libc_dlopen_mode")])).expect("there");
        assert_eq!((old.function, old.mode, old.message), (30, 0x8000_0002, None));
        assert!(Opener::find(&Functions::named(&[(30, 1, "malloc")])).is_none());
    }
}
