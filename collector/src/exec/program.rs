//! The program about to be run by a call, and whether the program can take the collector. Other
//! programs get no variables: the variables would stay in the environment, or the program's loader
//! would complain.
//!
//! The file tells: a script names an interpreter, a binary a loader (`PT_INTERP`), and the content
//! of a loader tells which loader. Only programs of glibc's loader and of musl's get the preload.
//! If the program is such a loader itself, the program given to the loader as an argument counts.

use super::{List, list};
use crate::platform::auxiliary::{PT_DYNAMIC, PT_INTERP, PT_LOAD};
use crate::platform::environment::{current, find};
use crate::platform::sys;
use core::ffi::{CStr, c_char, c_int};
use heapline_shared_format::arch::elf::MACHINE;
use heapline_shared_format::loader::{ENV_LIST, LOADER_NAME, Loader, MUSL_MARK};

/// A program, as named by the arguments of a call.
#[derive(Clone, Copy)]
pub enum Program {
    /// By path.
    At(*const c_char),
    /// By a name, searched for in PATH.
    Named(*const c_char),
    /// By an open descriptor.
    Open(c_int),
    /// Without information about the file.
    Unknown,
}

/// A program, with arguments and an environment.
#[derive(Clone, Copy)]
pub struct Started {
    /// The program.
    pub program: Program,
    /// Arguments of the program; the first is the program's name.
    pub arguments: List,
    /// Environment of the program.
    pub environment: List,
}

/// How a program takes the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The loader of the program loads the collector.
    Loads,
    /// The program is static, and an argument names a program suitable for the collector. If the
    /// static program is a launcher, the launched program finds the variables in the environment.
    Launches,
    /// The program does not get the collector.
    Refuses,
}

impl From<bool> for Fit {
    fn from(loads: bool) -> Fit {
        if loads { Fit::Loads } else { Fit::Refuses }
    }
}

/// Longest chain of scripts interpreted by scripts. The kernel allows a few more.
const MAX_SCRIPTS: usize = 3;
/// Number of arguments of a static program examined here.
const MAX_ARGUMENTS: usize = 16;
const LONGEST_PATH: usize = 1024;
/// Bytes read from the beginning of a program.
const START_BYTES: usize = 1024;

impl Started {
    /// Judges the program. An unreadable program is assumed to load the collector: running the
    /// program tells more, and a collector in a foreign C library stays passive.
    ///
    /// # Safety
    /// 1. All strings are C strings, or null.
    /// 2. All lists are null-terminated lists of C strings, or null.
    /// 3. Nobody changes libc's environment.
    pub unsafe fn fit(self) -> Fit {
        // SAFETY: the caller gives promises 1 to 3.
        unsafe {
            if find(self.environment, ENV_LIST).is_some() {
                return Fit::Refuses;
            }
            match open(self.program) {
                Some(program) => judge(&program, self.arguments),
                None => Fit::Loads,
            }
        }
    }
}

/// Opens the file of a program.
///
/// # Safety
/// The obligations of [`Started::fit`].
unsafe fn open(program: Program) -> Option<sys::Program> {
    // SAFETY: the caller gives promises 1 to 3 of `Started::fit`.
    unsafe {
        match program {
            Program::At(path) if !path.is_null() => sys::open_program(path),
            Program::Named(name) if !name.is_null() => open_named(CStr::from_ptr(name)),
            Program::Open(fd) => sys::open_again(fd),
            _ => None,
        }
    }
}

/// Opens a program by a path, or by a name searched for in PATH.
///
/// # Safety
/// Nobody changes libc's environment.
unsafe fn open_named(name: &CStr) -> Option<sys::Program> {
    if name.to_bytes().contains(&b'/') {
        // SAFETY: `name` is a C string.
        return unsafe { sys::open_program(name.as_ptr()) };
    }
    // SAFETY: libc's own environment list, not changed by anybody, as the caller guarantees.
    let path = unsafe { find(current(), "PATH").map(|(_, value)| CStr::from_ptr(value)) };
    let mut folders = path.map_or(&b"/bin:/usr/bin"[..], CStr::to_bytes).split(|&byte| byte == b':');
    folders.find_map(|folder| {
        let folder = if folder.is_empty() { b"." } else { folder };
        let mut whole = [0u8; LONGEST_PATH];
        let end = folder.len() + 1 + name.to_bytes().len();
        // The byte behind the name stays zero.
        let place = whole.get_mut(..=end)?;
        place[..folder.len()].copy_from_slice(folder);
        place[folder.len()] = b'/';
        place[folder.len() + 1..end].copy_from_slice(name.to_bytes());
        // SAFETY: the zero byte behind the name ends a C string.
        unsafe { sys::open_program(whole.as_ptr().cast()) }
    })
}

/// Opens the file at a path without a terminating zero byte.
fn open_bytes(path: &[u8]) -> Option<sys::Program> {
    let mut text = [0u8; LONGEST_PATH];
    // The last byte stays zero.
    text[..LONGEST_PATH - 1].get_mut(..path.len())?.copy_from_slice(path);
    // SAFETY: the last byte is zero, so the text is a C string.
    unsafe { sys::open_program(text.as_ptr().cast()) }
}

/// Judges an open program.
///
/// # Safety
/// 1. `arguments` is a null-terminated list of C strings, or null.
/// 2. Nobody changes libc's environment.
unsafe fn judge(program: &sys::Program, arguments: List) -> Fit {
    let mut start = [0u8; START_BYTES];
    let n = sys::read_at(program, &mut start, 0);
    let Some(mut line) = start[..n].strip_prefix(b"#!") else {
        // SAFETY: the caller gives promises 1 and 2.
        return unsafe { judge_binary(program, &start[..n], arguments) };
    };
    for _ in 0..MAX_SCRIPTS {
        let words = line.split(|&byte| byte == b' ' || byte == b'\t' || byte == b'\n');
        let interpreter = words.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
        if interpreter.len() >= LONGEST_PATH {
            return Fit::Refuses;
        }
        let Some(program) = open_bytes(interpreter) else { return Fit::Loads };
        let n = sys::read_at(&program, &mut start, 0);
        match start[..n].strip_prefix(b"#!") {
            Some(next) => line = next,
            // The rights of the interpreter count, not the rights of the script. The interpreter
            // has other arguments.
            // SAFETY: null is allowed as a list; the caller gives promise 2.
            None => return unsafe { judge_binary(&program, &start[..n], core::ptr::null()) },
        }
    }
    Fit::Refuses
}

/// Judges a program that is not a script.
///
/// # Safety
/// The obligations of [`judge`].
unsafe fn judge_binary(program: &sys::Program, start: &[u8], arguments: List) -> Fit {
    if program.changes_rights() {
        return Fit::Refuses;
    }
    let Some(binary) = Binary::parse(program, start) else { return Fit::Loads };
    // SAFETY: the caller gives promises 1 and 2 of `judge`.
    unsafe {
        match binary.kind() {
            Kind::Foreign => Fit::Refuses,
            Kind::Dynamic => Fit::Loads,
            Kind::Loader(loader) => Fit::from(loads_through(loader, arguments)),
            Kind::Static => {
                let is_one = list::entries(arguments).skip(1).take(MAX_ARGUMENTS).any(|word| would_load(word));
                if is_one { Fit::Launches } else { Fit::Refuses }
            }
        }
    }
}

/// Whether the loader can load the program given to the loader as an argument.
///
/// # Safety
/// The obligations of [`judge`].
unsafe fn loads_through(loader: Loader, arguments: List) -> bool {
    // SAFETY: the caller guarantees that `arguments` is a valid list, or null.
    unsafe {
        let Some(index) = loader.program_index(list::entries(arguments).map(CStr::to_bytes)) else { return false };
        let path = list::entries(arguments).nth(index).filter(|path| path.to_bytes().contains(&b'/'));
        // The loader searches the libraries for a plain name, so the result is not known here.
        let Some(program) = path.and_then(|path| sys::open_program(path.as_ptr())) else { return true };
        let mut start = [0u8; START_BYTES];
        let n = sys::read_at(&program, &mut start, 0);
        Binary::parse(&program, &start[..n]).is_none_or(|binary| binary.is_of_this_machine())
    }
}

/// Whether an argument is the name of a program suitable for the collector.
///
/// # Safety
/// Nobody changes libc's environment.
unsafe fn would_load(word: &CStr) -> bool {
    if word.to_bytes().starts_with(b"-") {
        return false;
    }
    // SAFETY: the caller guarantees that nobody changes libc's environment.
    let Some(program) = (unsafe { open_named(word) }).filter(sys::Program::is_executable) else { return false };
    let mut start = [0u8; START_BYTES];
    let n = sys::read_at(&program, &mut start, 0);
    let is_script = start[..n].starts_with(b"#!");
    is_script || Binary::parse(&program, &start[..n]).is_some_and(|binary| binary.kind() == Kind::Dynamic)
}

/// A file with the first bytes of an ELF file.
struct Binary<'a> {
    file: &'a sys::Program,
    start: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A program that asks for a known loader.
    Dynamic,
    /// A known loader itself.
    Loader(Loader),
    /// A static program: nothing loads anything.
    Static,
    /// For another processor, or of another C library.
    Foreign,
}

const HEADER_BYTES: usize = 64;
const DT_STRTAB: usize = 5;
const DT_STRSZ: usize = 10;
const DT_SONAME: usize = 14;

/// A segment: place in the file, and address in memory.
#[derive(Clone, Copy)]
struct Segment {
    offset: usize,
    address: usize,
    bytes: usize,
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0usize, |number, &byte| number << 8 | usize::from(byte))
}

impl<'a> Binary<'a> {
    /// None if the file is not an ELF file: a format for the kernel, or a script without `#!`, run
    /// by the shell after a failed exec.
    fn parse(file: &'a sys::Program, start: &'a [u8]) -> Option<Binary<'a>> {
        (start.len() >= HEADER_BYTES && start[..4] == *b"\x7fELF").then_some(Binary { file, start })
    }

    fn is_of_this_machine(&self) -> bool {
        const CLASS_64: u8 = 2;
        self.start[4] == CLASS_64 && self.start[18..20] == MACHINE.to_le_bytes()
    }

    fn kind(&self) -> Kind {
        if !self.is_of_this_machine() {
            return Kind::Foreign;
        }
        let Some(interpreter) = self.segments(PT_INTERP).next() else {
            return match (self.loader(), self.names().and_then(|names| names.own)) {
                (Some(loader), _) => Kind::Loader(loader),
                (None, None) => Kind::Static,
                (None, Some(_)) => Kind::Foreign,
            };
        };
        let mut path = [0u8; 256];
        let bytes = interpreter.bytes.min(path.len());
        let n = sys::read_at(self.file, &mut path[..bytes], interpreter.offset);
        let path = path[..n].split(|&byte| byte == 0).next().unwrap_or_default();
        if loader_at(path).is_some() { Kind::Dynamic } else { Kind::Foreign }
    }

    fn segments(&self, kind: u32) -> impl Iterator<Item = Segment> {
        const ENTRY_BYTES: usize = 56;
        const MOST: usize = 64;
        let (table, count) = (number(&self.start[32..40]), number(&self.start[56..58]));
        let entries = (0..count.min(MOST)).map_while(move |i| {
            let mut entry = [0u8; ENTRY_BYTES];
            let at = table.checked_add(i * ENTRY_BYTES)?;
            (sys::read_at(self.file, &mut entry, at) == ENTRY_BYTES).then_some(entry)
        });
        entries.filter(move |entry| number(&entry[..4]) == kind as usize).map(|entry| Segment {
            offset: number(&entry[8..16]),
            address: number(&entry[16..24]),
            bytes: number(&entry[32..40]),
        })
    }

    /// Returns the known loader that the file is.
    fn loader(&self) -> Option<Loader> {
        let names = self.names()?;
        let mut name = [0u8; LOADER_NAME.len() + 1];
        let has_name = names.own.is_some_and(|at| sys::read_at(self.file, &mut name, at) == name.len());
        if has_name && name.strip_suffix(b"\0") == Some(LOADER_NAME) {
            return Some(Loader::Glibc);
        }
        self.has_string(&names, MUSL_MARK).then_some(Loader::Musl)
    }

    /// Returns whether the strings contain the bytes.
    fn has_string(&self, names: &Names, wanted: &[u8]) -> bool {
        const MOST: usize = 64 << 10;
        let mut chunk = [0u8; START_BYTES];
        let step = chunk.len() - wanted.len();
        (names.offset..names.offset + names.bytes.min(MOST)).step_by(step).any(|at| {
            let n = sys::read_at(self.file, &mut chunk, at);
            chunk[..n].windows(wanted.len()).any(|bytes| bytes == wanted)
        })
    }

    /// Returns the places of the names in the file; `None` in a file without any.
    fn names(&self) -> Option<Names> {
        const MOST: usize = 128;
        let dynamic = self.segments(PT_DYNAMIC).next()?;
        let (mut strings, mut bytes, mut name) = (None, 0, None);
        for i in 0..MOST {
            let mut entry = [0u8; 16];
            if sys::read_at(self.file, &mut entry, dynamic.offset.checked_add(i * 16)?) < entry.len() {
                break;
            }
            match number(&entry[..8]) {
                0 => break,
                DT_STRTAB => strings = Some(number(&entry[8..])),
                DT_STRSZ => bytes = number(&entry[8..]),
                DT_SONAME => name = Some(number(&entry[8..])),
                _ => {}
            }
        }
        let address = strings?;
        let offset = self.segments(PT_LOAD).find_map(|segment| {
            let into = address.checked_sub(segment.address).filter(|&into| into < segment.bytes)?;
            segment.offset.checked_add(into)
        })?;
        // Beyond every file: the sum cannot overflow.
        let is_sound = offset < usize::MAX / 4 && bytes < usize::MAX / 4;
        let own = name.filter(|&name| name < bytes).map(|name| offset + name);
        is_sound.then_some(Names { offset, bytes, own })
    }
}

/// Places of the names in a file.
struct Names {
    /// Place and size of all names.
    offset: usize,
    bytes: usize,
    /// Place of `DT_SONAME`.
    own: Option<usize>,
}

/// Returns the known loader requested by a program. Decided by the content of the loader, since the
/// file may have any name. Decided by the name of the file if the file cannot be read.
fn loader_at(path: &[u8]) -> Option<Loader> {
    let Some(file) = open_bytes(path) else { return Loader::by_file_name(path) };
    let mut start = [0u8; HEADER_BYTES];
    let n = sys::read_at(&file, &mut start, 0);
    Binary::parse(&file, &start[..n]).filter(Binary::is_of_this_machine)?.loader()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr;

    const GLIBCS: &CStr = c"/lib64/ld-linux-x86-64.so.2";

    fn fit_of(path: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> Fit {
        let list = |entries: &[&CStr]| {
            let entries = entries.iter().map(|entry| entry.as_ptr()).chain([ptr::null()]);
            entries.collect::<std::vec::Vec<*const c_char>>()
        };
        let (arguments, environment) = (list(arguments), list(environment));
        let started = Started {
            program: Program::At(path.as_ptr()),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
        };
        // SAFETY: C strings and null-terminated lists.
        unsafe { started.fit() }
    }

    /// A temporary folder for test files, removed on drop.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(std::format!("heapline-exec-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a directory");
            Folder(path)
        }

        fn file(&self, name: &str, bytes: &[u8]) -> std::ffi::CString {
            use std::os::unix::fs::PermissionsExt;
            let path = self.0.join(name);
            std::fs::write(&path, bytes).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our file");
            std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).expect("removed");
        }
    }

    fn own_with(at: usize, byte: u8) -> std::vec::Vec<u8> {
        let mut bytes = std::fs::read("/proc/self/exe").expect("this test")[..8192].to_vec();
        bytes[at] = byte;
        bytes
    }

    /// The beginning of this test program, changed to ask for another loader.
    fn own_with_loader(path: &[u8]) -> std::vec::Vec<u8> {
        let mut bytes = own_with(0, 0x7f);
        let before = GLIBCS.to_bytes();
        let at = bytes.windows(before.len()).position(|part| part == before).expect("it has a loader");
        bytes[at..at + before.len()].fill(0);
        bytes[at..at + path.len()].copy_from_slice(path);
        bytes
    }

    #[test]
    fn only_what_a_known_loader_starts_is_preloaded() {
        let folder = Folder::new("loaders");
        let check = |name: &str, bytes: &[u8]| fit_of(&folder.file(name, bytes), &[], &[]);
        assert_eq!(check("own", &own_with(0, 0x7f)), Fit::Loads);
        assert_eq!(check("i386", &own_with(4, 1)), Fit::Refuses);
        assert_eq!(check("arm64", &own_with(18, 183)), Fit::Refuses);
        assert_eq!(check("static", &own_with(56, 0)), Fit::Refuses, "no program header, so no loader");
        assert_eq!(check("script", b"#!/bin/sh -e\nexec true and more\n"), Fit::Loads);
        let script = std::format!("#! {}\n", folder.0.join("static").display());
        assert_eq!(check("of-static", script.as_bytes()), Fit::Refuses, "by its interpreter");
        assert_eq!(check("text", b"echo a shell's matter\n"), Fit::Loads);
        assert_eq!(check("musl", &own_with_loader(b"/x/ld-musl-x86_64.so.1")), Fit::Loads, "by its file's name");
        assert_eq!(check("android", &own_with_loader(b"/system/bin/linker64")), Fit::Refuses);
        assert_eq!(check("not-there", &own_with_loader(b"/x/ld-linux-x86-64.so.2")), Fit::Loads, "by its file's name");
        // A short path, because the path must fit into the place of the other loader's path.
        let link = std::format!("/tmp/hl-{}", std::process::id());
        for (target, fit) in [("/lib64/ld-linux-x86-64.so.2", Fit::Loads), ("/proc/self/exe", Fit::Refuses)] {
            std::os::unix::fs::symlink(target, &link).expect("a link");
            let found = check("renamed", &own_with_loader(link.as_bytes()));
            std::fs::remove_file(&link).expect("ours");
            assert_eq!(found, fit, "{target}: by the loader's own name");
        }
    }

    #[test]
    fn what_the_loader_is_given_counts() {
        let folder = Folder::new("given");
        let (own, foreign) = (folder.file("own", &own_with(0, 0x7f)), folder.file("arm64", &own_with(18, 183)));
        let fit = |arguments: &[&CStr]| fit_of(GLIBCS, arguments, &[]);
        assert_eq!(fit(&[c"ld.so", &own]), Fit::Loads);
        assert_eq!(fit(&[c"ld.so", c"--library-path", &foreign, c"--argv0", c"x", &own]), Fit::Loads);
        assert_eq!(fit(&[c"ld.so", &foreign]), Fit::Refuses);
        assert_eq!(fit(&[c"ld.so", c"--list", &own]), Fit::Refuses, "nothing runs");
        assert_eq!(fit(&[c"ld.so"]), Fit::Refuses);
        assert_eq!(fit(&[]), Fit::Refuses);
        let listed = fit_of(&own, &[&own], &[c"LD_TRACE_LOADED_OBJECTS=1"]);
        assert_eq!(listed, Fit::Refuses, "the list of its libraries has none of ours");
    }

    /// musl's own loader is not on every machine.
    #[test]
    fn musls_loader_is_known_by_its_content() {
        const MUSLS: &str = "/lib/ld-musl-x86_64.so.1";
        if !std::path::Path::new(MUSLS).exists() {
            return;
        }
        let folder = Folder::new("musls");
        let loader = folder.file("start", &std::fs::read(MUSLS).expect("readable"));
        let own = folder.file("own", &own_with(0, 0x7f));
        assert_eq!(fit_of(&loader, &[c"start", &own], &[]), Fit::Loads);
        assert_eq!(fit_of(&loader, &[c"start", c"--preload", c"x", &own], &[]), Fit::Refuses, "no variable counts");
        assert_eq!(fit_of(&loader, &[c"ldd", &own], &[]), Fit::Refuses, "nothing runs");
    }

    #[test]
    fn a_static_program_may_launch_what_it_is_given() {
        let folder = Folder::new("launcher");
        let launcher = folder.file("static", &own_with(56, 0));
        assert_eq!(fit_of(&launcher, &[c"init", c"--", c"sh", c"-c", c"true"], &[]), Fit::Launches);
        assert_eq!(fit_of(&launcher, &[c"init", c"-c", c"no-such-program", &launcher], &[]), Fit::Refuses);
    }

    #[test]
    fn names_are_searched_for() {
        let fit = |program: Program| {
            let started = Started { program, arguments: ptr::null(), environment: ptr::null() };
            // SAFETY: C strings and null; null is allowed.
            unsafe { started.fit() }
        };
        for name in [c"sh", c"no-such-program-anywhere", c"/bin/sh"] {
            assert_eq!(fit(Program::Named(name.as_ptr())), Fit::Loads);
        }
        assert_eq!(fit(Program::At(ptr::null())), Fit::Loads);
        assert_eq!(fit(Program::Unknown), Fit::Loads);
        let folder = Folder::new("open");
        let path = folder.file("static", &own_with(56, 0));
        let file = std::fs::File::open(path.to_str().expect("text")).expect("there");
        assert_eq!(fit(Program::Open(std::os::fd::AsRawFd::as_raw_fd(&file))), Fit::Refuses);
    }
}
