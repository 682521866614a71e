//! Examines a program before it runs: whether the loader will bring the collector in.
//!
//! The judged program of a script is the interpreter. The judged program of a loader is the program
//! given to the loader.

use super::blocks::Blocks;
use heapline_shared_format::arch::elf::MACHINE;
use heapline_shared_format::arena::{NOTE_KIND, NOTE_NAME};
use heapline_shared_format::loader::{LOADER_NAME, Loader, MUSL_MARK};
use object::read::elf::{FileHeader, ProgramHeader, Sym};
use object::{Endianness, ReadCache, ReadCacheOps, ReadRef, elf};
use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, ffi, iter};

/// Reasons why a program cannot be traced, or may not be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A 32-bit program.
    Bits32,
    /// A program for another processor.
    OtherMachine,
    /// A statically linked program, without a loader.
    Static,
    /// A set-id program, run as another user than the caller: the loader ignores LD_PRELOAD.
    SetId,
    /// A program with a sanitizer. The sanitizer is the allocator, and must be loaded first.
    Sanitizer,
    /// A program with an own malloc. This malloc comes before any preloaded malloc.
    OwnMalloc,
    /// A program of another loader than glibc's and musl's, such as Android's.
    OtherLoader,
    /// No program runs at all: the loader is only asked for information.
    NotRun,
}

impl Obstacle {
    /// Whether certainly nothing can be recorded. An attach to such a program is refused.
    pub fn is_certain(self) -> bool {
        matches!(self, Obstacle::Bits32 | Obstacle::OtherMachine | Obstacle::Static | Obstacle::Sanitizer)
    }

    /// Whether the program may be traced in spite of the obstacle.
    fn lets_trace(self) -> bool {
        !self.keeps_collector_out()
    }

    /// Whether the command must run without the collector: nothing would be recorded, and the
    /// collector could do harm.
    pub fn keeps_collector_out(self) -> bool {
        self.is_certain() || matches!(self, Obstacle::OtherLoader | Obstacle::NotRun)
    }

    /// Returns the reason in words, to follow the program's name.
    pub fn reason(self) -> &'static str {
        match self {
            Obstacle::Bits32 => "is a 32-bit program, and Heapline traces 64-bit ones",
            Obstacle::OtherMachine => "is a program for another processor",
            Obstacle::Static => "is statically linked, so no collector can be loaded into it",
            Obstacle::SetId => {
                "is setuid or setgid, so it takes no collector and no arena from its caller: run it as its owner"
            }
            Obstacle::Sanitizer => {
                "is built with a sanitizer (ASan, TSan, MSan), which checks every block itself: trace a build without it"
            }
            Obstacle::OwnMalloc => {
                "brings its own malloc, which takes precedence over the collector's (attach to it while it runs: aggregator --attach PID)"
            }
            Obstacle::OtherLoader => {
                "was not traced: it asks for another loader than glibc's or musl's, so it has another C library \
                 (Android's, say), and Heapline traces programs of glibc and of musl"
            }
            Obstacle::NotRun => {
                "was not traced: its loader was only asked for something (--list, --verify, --help ...), or given other \
                 libraries to preload"
            }
        }
    }
}

/// Returns a shell's choice of a file for `command`; none without such a file.
pub fn resolve(command: &ffi::OsStr) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command));
    }
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(command)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Result of the examination of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Examined {
    /// The program to judge: the interpreter of a script, or the program given to the loader.
    pub program: PathBuf,
    /// Obstacle to tracing the program. An unreadable program has no obstacle: running it gives a
    /// better error.
    pub obstacle: Option<Obstacle>,
    /// Whether the program is static, and an argument is a traceable program. The static program
    /// may start this program.
    pub is_launcher: bool,
}

/// Limit of scripts run by scripts, the same as the kernel's.
const MOST_SCRIPTS: usize = 4;
/// Limit of the examined arguments of a static program.
const MOST_ARGUMENTS: usize = 16;

/// Examines a command as it would run. Returns none when there is no such program.
pub fn examine_command(command: &[OsString]) -> Option<Examined> {
    let mut program = resolve(command.first()?)?;
    let mut words = command.to_vec();
    for _ in 0..MOST_SCRIPTS {
        let Some(line) = first_line(&program) else { break };
        words[0] = program.into_os_string();
        words.splice(..0, line);
        program = PathBuf::from(&words[0]);
    }
    let mut obstacle = examine_file(&program);
    if let Some(loader) = as_loader(&program) {
        match loader.program_index(words.iter().map(|word| word.as_bytes())) {
            None => obstacle = Some(Obstacle::NotRun),
            Some(index) => {
                program = PathBuf::from(&words[index]);
                obstacle = examine_given(&program);
            }
        }
    }
    let is_launcher =
        obstacle == Some(Obstacle::Static) && words.iter().skip(1).take(MOST_ARGUMENTS).any(can_be_traced);
    Some(Examined { program, obstacle, is_launcher })
}

fn can_be_traced(word: &OsString) -> bool {
    let is_option = word.as_bytes().starts_with(b"-");
    let is_program = |path: &PathBuf| {
        let mut start = [0; 4];
        let read = open(path).is_some_and(|mut file| Read::read_exact(&mut file, &mut start).is_ok());
        read && (start == elf::ELFMAG || start.starts_with(b"#!")) && is_executable(path)
    };
    !is_option && resolve(word).filter(is_program).is_some_and(|path| examine(&path).is_none_or(Obstacle::lets_trace))
}

/// Returns the obstacle to tracing a program.
pub fn examine(program: &Path) -> Option<Obstacle> {
    let mut program = program.to_owned();
    for _ in 0..MOST_SCRIPTS {
        match first_line(&program).and_then(|line| line.into_iter().next()) {
            Some(interpreter) => program = PathBuf::from(interpreter),
            None => break,
        }
    }
    examine_file(&program)
}

/// Returns the words in front of the script's own path: the interpreter, and an argument if
/// present. Returns none for a binary.
fn first_line(script: &Path) -> Option<Vec<OsString>> {
    let mut line = Vec::new();
    BufReader::new(open(script)?).take(256).read_until(b'\n', &mut line).ok()?;
    let rest = line.strip_prefix(b"#!")?.trim_ascii();
    let end = rest.iter().position(|byte| b" \t".contains(byte)).unwrap_or(rest.len());
    let (interpreter, argument) = (&rest[..end], rest[end..].trim_ascii());
    let words = [interpreter, argument].into_iter().filter(|word| !word.is_empty());
    Some(words.map(|word| ffi::OsStr::from_bytes(word).to_owned()).collect::<Vec<_>>())
        .filter(|words| !words.is_empty())
}

/// Returns the obstacle to tracing a binary started by exec.
fn examine_file(path: &Path) -> Option<Obstacle> {
    let of_loader = match open(path).and_then(examine_content) {
        Some(Judged::Dynamic { loader, .. }) => as_loader(&loader).is_none(),
        _ => false,
    };
    if of_loader { Some(Obstacle::OtherLoader) } else { examine_binary(path) }
}

/// Returns the obstacle to tracing a binary given to a loader. Such a program gets no set-id
/// rights from its file, and no loader of its own.
fn examine_given(path: &Path) -> Option<Obstacle> {
    match open(path).and_then(examine_content)? {
        Judged::Obstacle(Obstacle::Static) | Judged::CarriesCollector | Judged::Loader(_) => None,
        Judged::Obstacle(obstacle) => Some(obstacle),
        Judged::Dynamic { obstacle, .. } => obstacle,
    }
}

/// Returns the loader that a file is. The test is the file's content, or the name of an unreadable
/// file.
pub fn as_loader(path: &Path) -> Option<Loader> {
    let Some(file) = open(path) else { return Loader::by_file_name(path.as_os_str().as_bytes()) };
    match examine_content(file) {
        Some(Judged::Loader(loader)) => Some(loader),
        _ => None,
    }
}

/// Opens a regular file. The entry at the path may have changed, and a pipe would wait for a
/// writer.
fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    file.metadata().is_ok_and(|found| found.is_file()).then_some(file)
}

/// Returns the GNU build-id of an ELF file; empty for an ELF file without a build-id, none for
/// another file.
pub fn build_id(file: &File) -> Option<Vec<u8>> {
    let (cache, left) = (ReadCache::new(Blocks::new(file)), Cell::new(MOST_BYTES));
    let data = Bounded { cache: &cache, left: &left };
    let header = elf::FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?;
    let notes = segments.iter().filter_map(|segment| segment.notes(endian, data).ok().flatten());
    let id = notes.into_iter().find_map(|mut notes| {
        iter::from_fn(|| notes.next().ok().flatten())
            .find(|note| note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID)
            .map(|note| note.desc().to_vec())
    });
    Some(id.unwrap_or_default())
}

/// Returns the obstacle to tracing a binary, independent of the loader.
pub fn examine_binary(path: &Path) -> Option<Obstacle> {
    let file = open(path)?;
    let found = file.metadata().ok()?;
    let judged = examine_content(file)?;
    let (own, group) = (found.uid() != crate::base::sys::geteuid(), found.gid() != crate::base::sys::getegid());
    let is_set_id = found.mode() & libc::S_ISUID != 0 && own || found.mode() & libc::S_ISGID != 0 && group;
    let obstacle = match judged {
        Judged::Obstacle(obstacle) => Some(obstacle),
        Judged::Dynamic { obstacle, .. } => obstacle,
        Judged::Loader(_) | Judged::CarriesCollector => None,
    };
    match obstacle {
        Some(obstacle) if obstacle.is_certain() => Some(obstacle),
        // A set-id program with a collector in itself takes no arena from its caller either.
        _ if is_set_id => Some(Obstacle::SetId),
        obstacle => obstacle,
    }
}

/// Judgement of a program by the file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// A loader starts the program.
    Dynamic {
        /// Path of the wanted loader.
        loader: PathBuf,
        /// Obstacle to tracing the program with a known loader.
        obstacle: Option<Obstacle>,
    },
    /// The file is a loader that brings the collector in.
    Loader(Loader),
    /// The program cannot be traced.
    Obstacle(Obstacle),
    /// The program contains the collector, so nothing must be loaded
    /// (`heapline_collector::Traced`).
    CarriesCollector,
}

/// Judges a program by the file's content, which may come from any author. Returns none for other
/// files.
pub fn examine_content(file: impl ReadCacheOps) -> Option<Judged> {
    let mut file = Blocks::new(file);
    let mut ident = [0; 5];
    file.seek(0).ok()?;
    file.read_exact(&mut ident).ok()?;
    if !ident.starts_with(&elf::ELFMAG) {
        return None;
    }
    if ident[4] != elf::ELFCLASS64.0 {
        return Some(Judged::Obstacle(Obstacle::Bits32));
    }
    let (cache, left) = (ReadCache::new(file), Cell::new(MOST_BYTES));
    let data = Bounded { cache: &cache, left: &left };
    let header = elf::FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    if header.e_machine(endian).0 != MACHINE {
        return Some(Judged::Obstacle(Obstacle::OtherMachine));
    }
    let segments = header.program_headers(endian, data).ok()?;
    if carries_collector(segments, endian, data) {
        return Some(Judged::CarriesCollector);
    }
    if let Some(loader) = segments.iter().find_map(|segment| segment.interpreter(endian, data).ok().flatten()) {
        let loader = PathBuf::from(ffi::OsStr::from_bytes(loader));
        return Some(Judged::Dynamic { loader, obstacle: own_allocator(header, endian, data) });
    }
    let entries = segments.iter().find_map(|segment| segment.dynamic(endian, data).ok().flatten()).unwrap_or_default();
    let value = |tag| entries.iter().find(|entry| entry.d_tag.get(endian) == tag).map(|entry| entry.d_val.get(endian));
    let is_program = value(elf::DT_FLAGS_1).is_some_and(|flags| flags & DF_1_PIE != 0);
    let names = Names::find(segments, endian, value);
    Some(if names.as_ref().and_then(|names| names.own(data)) == Some(LOADER_NAME) {
        Judged::Loader(Loader::Glibc)
    } else if names.is_some_and(|names| names.contain(data, MUSL_MARK)) {
        Judged::Loader(Loader::Musl)
    } else if header.e_type(endian) == elf::ET_DYN && !entries.is_empty() && !is_program {
        // A runnable library, such as another loader.
        Judged::Obstacle(Obstacle::OtherLoader)
    } else {
        Judged::Obstacle(Obstacle::Static)
    })
}

/// Flag of a position-independent program in `DT_FLAGS_1`.
const DF_1_PIE: u64 = 0x0800_0000;

/// Places of the names in a file.
struct Names {
    /// Place and size of all names.
    offset: u64,
    bytes: u64,
    /// Offset among the names of `DT_SONAME`.
    own: Option<u64>,
}

impl Names {
    /// Finds the names. `value` reads the dynamic section.
    fn find(
        segments: &[elf::ProgramHeader64<Endianness>],
        endian: Endianness,
        value: impl Fn(elf::DynamicTag) -> Option<u64>,
    ) -> Option<Names> {
        let address = value(elf::DT_STRTAB)?;
        let offset = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).find_map(|segment| {
            let into = address.checked_sub(segment.p_vaddr(endian)).filter(|&into| into < segment.p_filesz(endian))?;
            segment.p_offset(endian).checked_add(into)
        })?;
        Some(Names { offset, bytes: value(elf::DT_STRSZ).unwrap_or(0), own: value(elf::DT_SONAME) })
    }

    /// Returns the name in a library's content.
    fn own<'a>(&self, data: impl ReadRef<'a>) -> Option<&'a [u8]> {
        const LONGEST: u64 = 256;
        let offset = self.offset.checked_add(self.own?)?;
        data.read_bytes_at_until(offset..offset.checked_add(LONGEST)?, 0).ok()
    }

    /// Whether the names contain the bytes.
    fn contain<'a>(&self, data: impl ReadRef<'a>, wanted: &[u8]) -> bool {
        const MOST: u64 = 64 << 10;
        let names = data.read_bytes_at(self.offset, self.bytes.min(MOST));
        names.is_ok_and(|names| names.windows(wanted.len()).any(|bytes| bytes == wanted))
    }
}

/// Most bytes read of a program: headers, notes and dynamic symbols. A larger program is not
/// judged.
const MOST_BYTES: u64 = 64 << 20;

/// A file with a limit on the bytes read. The lengths in the file come from any author, and a file
/// may consist of holes. Memory must not be allocated on the word of such lengths.
struct Bounded<'a, R: ReadCacheOps> {
    cache: &'a ReadCache<R>,
    left: &'a Cell<u64>,
}

impl<R: ReadCacheOps> Clone for Bounded<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: ReadCacheOps> Copy for Bounded<'_, R> {}

impl<R: ReadCacheOps> Bounded<'_, R> {
    fn take(self, bytes: u64) -> Result<(), ()> {
        self.left.set(self.left.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'a, R: ReadCacheOps> ReadRef<'a> for Bounded<'a, R> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.take(size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let found = self.cache.read_bytes_at_until(range, delimiter)?;
        self.take(found.len() as u64 + 1)?;
        Ok(found)
    }
}

/// Whether the program contains the collector. The mark is a note, and `strip` keeps the note.
fn carries_collector<'a>(
    segments: &[elf::ProgramHeader64<Endianness>],
    endian: Endianness,
    data: impl ReadRef<'a>,
) -> bool {
    segments.iter().filter_map(|segment| segment.notes(endian, data).ok().flatten()).any(|mut notes| {
        // A broken note ends the list.
        iter::from_fn(|| notes.next().ok().flatten())
            .any(|note| note.name_bytes() == NOTE_NAME && note.n_type(endian) == elf::NoteType(NOTE_KIND))
    })
}

/// Finds a sanitizer or a malloc among the symbols of the dynamic table. These symbols take
/// precedence over a preloaded library.
fn own_allocator<'a>(
    header: &elf::FileHeader64<Endianness>,
    endian: Endianness,
    data: impl ReadRef<'a>,
) -> Option<Obstacle> {
    const SANITIZERS: [&[u8]; 4] = [b"__asan_init", b"__tsan_init", b"__msan_init", b"__hwasan_init"];
    let sections = header.sections(endian, data).ok()?;
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM).ok()?;
    let strings = symbols.strings();
    let name = |symbol: &elf::Sym64<Endianness>| symbol.name(endian, strings).unwrap_or_default();
    if symbols.iter().any(|symbol| SANITIZERS.contains(&name(symbol))) {
        return Some(Obstacle::Sanitizer);
    }
    let is_malloc =
        |symbol: &elf::Sym64<Endianness>| symbol.st_shndx(endian) != elf::SHN_UNDEF && name(symbol) == b"malloc";
    symbols.iter().any(is_malloc).then_some(Obstacle::OwnMalloc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_dynamic_program_is_no_obstacle() {
        assert_eq!(examine(Path::new("/proc/self/exe")), None);
        assert_eq!(examine(Path::new("/nonexistent")), None);
    }

    #[test]
    fn classes_and_machines_are_told_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut program = fs::read("/proc/self/exe").expect("readable")[..4096].to_vec();
        let mut judged = |name: &str, offset: usize, byte: u8| {
            let before = std::mem::replace(&mut program[offset], byte);
            let path = folder.path().join(name);
            fs::write(&path, &program).expect("written");
            program[offset] = before;
            examine(&path)
        };
        assert_eq!(judged("class", 4, 1), Some(Obstacle::Bits32));
        assert_eq!(judged("machine", 18, 0xb7), Some(Obstacle::OtherMachine));
        // No program headers, so no interpreter.
        assert_eq!(judged("static", 56, 0), Some(Obstacle::Static));
        let script = folder.path().join("script");
        fs::write(&script, format!("#! {} -x\n", folder.path().join("class").display())).expect("written");
        assert_eq!(examine(&script), Some(Obstacle::Bits32));
    }

    /// A file of holes satisfies any length in the headers.
    #[test]
    fn lengths_of_a_foreign_program_allocate_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut program = fs::read("/proc/self/exe").expect("readable")[..4096].to_vec();
        let count = usize::from(u16::from_le_bytes([program[56], program[57]]));
        for header in 0..count {
            let at = 64 + header * 56;
            // A note of a tebibyte.
            program[at..at + 4].copy_from_slice(&4u32.to_le_bytes());
            program[at + 8..at + 16].copy_from_slice(&4096u64.to_le_bytes());
            program[at + 32..at + 40].copy_from_slice(&(1u64 << 40).to_le_bytes());
        }
        let path = folder.path().join("sparse");
        fs::write(&path, &program).expect("written");
        File::options().write(true).open(&path).and_then(|file| file.set_len(2 << 40)).expect("holes cost nothing");
        let before = crate::process::procfs::own_resident_bytes();
        assert_eq!(examine(&path), Some(Obstacle::Static));
        let grown = crate::process::procfs::own_resident_bytes().saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes more are in memory");
    }

    fn examined(words: &[&str]) -> Examined {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        examine_command(&words).expect("there is such a program")
    }

    #[test]
    fn what_the_loader_is_given_is_judged() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let other = folder.path().join("arm64");
        let mut program = fs::read("/proc/self/exe").expect("readable")[..4096].to_vec();
        program[18] = 0xb7;
        fs::write(&other, &program).expect("written");
        let own = env::current_exe().expect("this test");
        let (own, other) = (own.to_str().expect("UTF-8"), other.to_str().expect("UTF-8"));
        let renamed = folder.path().join("start");
        fs::copy("/lib64/ld-linux-x86-64.so.2", &renamed).expect("a copy");
        for loader in ["/lib64/ld-linux-x86-64.so.2", renamed.to_str().expect("UTF-8")] {
            let through = |words: &[&str]| examined(&[&[loader], words].concat());
            let found = through(&["--library-path", "/x", "--argv0", "y", own, "--list"]);
            assert_eq!(found, Examined { program: own.into(), obstacle: None, is_launcher: false });
            assert_eq!(through(&[other]).obstacle, Some(Obstacle::OtherMachine));
            assert_eq!(through(&["--verify", own]).obstacle, Some(Obstacle::NotRun));
            assert_eq!(through(&[]).obstacle, Some(Obstacle::NotRun));
        }
        let script = folder.path().join("script");
        fs::write(&script, format!("#!{} {own}\n", renamed.display())).expect("written");
        assert_eq!(examined(&[script.to_str().expect("UTF-8")]).program, Path::new(own), "a script of the loader's");
    }

    #[test]
    fn only_a_known_loader_takes_the_collector() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut program = fs::read("/proc/self/exe").expect("readable")[..16384].to_vec();
        let before = b"/lib64/ld-linux-x86-64.so.2";
        let at = program.windows(before.len()).position(|part| part == before).expect("it has a loader");
        let mut asking_for = |loader: &[u8]| {
            program[at..at + before.len()].fill(0);
            program[at..at + loader.len()].copy_from_slice(loader);
            let path = folder.path().join("program");
            fs::write(&path, &program).expect("written");
            examine(&path)
        };
        assert_eq!(asking_for(b"/x/ld-musl-x86_64.so.1"), None, "by its file's name");
        assert_eq!(asking_for(b"/system/bin/linker64"), Some(Obstacle::OtherLoader));
        assert_eq!(asking_for(b"/nix/ld-linux-x86-64.so.2"), None);
    }

    /// musl's own loader is not on every machine.
    #[test]
    fn musls_loader_is_known_by_its_content() {
        const MUSLS: &str = "/lib/ld-musl-x86_64.so.1";
        if !Path::new(MUSLS).exists() {
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let renamed = folder.path().join("start");
        fs::copy(MUSLS, &renamed).expect("a copy");
        assert_eq!(as_loader(&renamed), Some(Loader::Musl));
        let own = env::current_exe().expect("this test");
        let (own, loader) = (own.to_str().expect("UTF-8"), renamed.to_str().expect("UTF-8"));
        let found = examined(&[loader, "--library-path=/x", own]);
        assert_eq!(found, Examined { program: own.into(), obstacle: None, is_launcher: false });
        assert_eq!(examined(&[loader, "--list", own]).obstacle, Some(Obstacle::NotRun));
    }

    #[test]
    fn a_static_program_with_a_program_among_its_arguments_is_a_launcher() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("static");
        let mut program = fs::read("/proc/self/exe").expect("readable")[..4096].to_vec();
        program[56] = 0;
        fs::write(&path, &program).expect("written");
        let path = path.to_str().expect("UTF-8");
        assert!(examined(&[path, "--", "sh", "-c", "true"]).is_launcher);
        assert!(!examined(&[path, "sh.txt", "-s", path]).is_launcher);
        assert!(!examined(&["sh", "sh"]).is_launcher);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
        assert!(made.success());
        assert_eq!(examine(&pipe), None);
        assert_eq!(examine(Path::new("/dev/zero")), None);
    }

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        assert_eq!(resolve("./x/y".as_ref()), Some(PathBuf::from("./x/y")));
        assert!(resolve("sh".as_ref()).is_some_and(|path| path.ends_with("sh")));
        assert_eq!(resolve("no-such-command-here".as_ref()), None);
    }
}
