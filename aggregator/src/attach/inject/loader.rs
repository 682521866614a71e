//! The C library of a process, as far as an injection uses the library: functions, and two pieces
//! of code with system calls.

use super::InjectError;
use super::entries::{Candidates, Jumps};
use super::map::{Map, Range, is_interpreter};
use super::memory::Memory;
use super::stack::Stacks;
use super::symbols::{Functions, Image};

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
}

/// Facts about the C library and the dynamic loader of the process.
pub struct Loader {
    pub dlopen: u64,
    pub dlerror: u64,
    pub gadgets: Gadgets,
    pub libc: Range,
    /// The dynamic loader.
    pub interpreter: Range,
    /// Objects with a definition of `malloc`, other than the C library.
    pub allocators: Vec<Range>,
    /// Whether the program itself defines `malloc`. Only some functions of such a program belong to
    /// the allocator.
    pub has_own_malloc: bool,
    pub functions: Functions,
    /// Jumps in the C library; read when a thread stands in a function without a name.
    jumps: Option<Jumps>,
    pub stacks: Stacks,
}

impl Loader {
    /// Finds the functions and code for an injection.
    pub fn find(map: &Map, memory: &Memory) -> Result<Loader, InjectError> {
        let named =
            |test: fn(&str) -> bool| map.files().find(|object| test(object.file_name())).map(|found| found.range);
        let Some(libc) = named(|name| name.starts_with("libc.so.6") || name.starts_with("libc-2.")) else {
            let is_musl = map.mappings.iter().any(|mapping| mapping.path.contains("/ld-musl-"));
            return Err(InjectError::NoGlibc(if is_musl { "its C library is musl" } else { "no libc.so.6 is loaded" }));
        };
        let Some(interpreter) = named(is_interpreter) else {
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
        let gadgets = Gadgets::find(map, memory, libc, errno_location)?;
        let program = map.program();
        let brings_malloc =
            |range: &Range| Image::read(memory, range.start).is_ok_and(|image| image.defines(memory, "malloc"));
        let others = map.files().map(|object| object.range).filter(|range| *range != libc && *range != interpreter);
        let allocators: Vec<Range> = others.filter(brings_malloc).collect();
        let has_own_malloc = program.is_some_and(|program| allocators.contains(&program));
        let allocators = allocators.into_iter().filter(|range| Some(*range) != program).collect();
        let stacks = Stacks::default();
        map.files().for_each(|object| stacks.prepare(memory, object.range.start));
        let jumps = None;
        Ok(Loader { dlopen, dlerror, gadgets, libc, interpreter, allocators, has_own_malloc, functions, jumps, stacks })
    }

    /// Reads the code of the C library, for [`Loader::candidates`].
    pub fn study(&mut self, map: &Map, memory: &Memory) {
        let functions = self.stacks.functions(memory, self.libc.start);
        self.jumps = Some(Jumps::read(map, memory, self.libc, functions));
    }

    /// Returns the called functions of a thread at an address of the C library. Returns none when
    /// the answer needs [`Loader::study`] first.
    pub fn candidates(&self, address: u64) -> Option<Candidates> {
        match self.functions.names_at(address) {
            names if !names.is_empty() => Some(Candidates::one(names)),
            _ => self.jumps.as_ref().map(|jumps| jumps.candidates(address, &self.functions)),
        }
    }
}

impl Gadgets {
    fn find(map: &Map, memory: &Memory, libc: Range, errno_location: u64) -> Result<Gadgets, InjectError> {
        const SYSTEM_CALL: [u8; 3] = [0x0f, 0x05, 0xc3];
        const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
        let mut found = (None, None);
        for mapping in map.mappings.iter().filter(|mapping| mapping.is_code && libc.contains(mapping.start)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        let memory = Memory::open(pid).expect("its own memory");
        let map = Map::read(pid, &memory).expect("its own map");
        let loader = Loader::find(&map, &memory).expect("a glibc");
        assert!(loader.libc.contains(loader.dlopen) && loader.libc.contains(loader.gadgets.sigreturn));
        assert_eq!(loader.dlopen, (libc::dlopen as *const ()).addr() as u64);
        assert!(!loader.has_own_malloc && loader.allocators.is_empty());
        let names = loader.functions.names_at((libc::poll as *const ()).addr() as u64);
        assert!(names.contains(&"poll".to_owned()), "{names:?}");
    }
}
