//! What can be known of a program before it runs: whether the loader will bring the collector in.

use heapline_shared_format::arena::{NOTE_KIND, NOTE_NAME};
use object::read::elf::{FileHeader, ProgramHeader, Sym};
use object::{Endianness, ReadCache, ReadCacheOps, ReadRef, elf};
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, ffi, iter};

/// Why a program cannot be traced, or may turn out not to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A 32-bit program.
    Bits32,
    /// For another processor.
    OtherMachine,
    /// Statically linked: there is no loader.
    Static,
    /// Runs as another user than its caller: the loader ignores LD_PRELOAD.
    SetId,
    /// Runs under a sanitizer, which is its allocator and insists on coming first.
    Sanitizer,
    /// Brings its own malloc, which comes before any preloaded one.
    OwnMalloc,
}

impl Obstacle {
    /// Whether nothing can be recorded, for certain.
    pub fn is_certain(self) -> bool {
        matches!(self, Obstacle::Bits32 | Obstacle::OtherMachine | Obstacle::Static | Obstacle::Sanitizer)
    }

    /// The reason in words, to follow the program's name.
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
        }
    }
}

/// The file that runs when a shell is given `command`; none when there is none.
pub fn resolve(command: &ffi::OsStr) -> Option<PathBuf> {
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command));
    }
    let is_program =
        |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(command)).find(is_program)
}

/// What stands against tracing a program. A script is judged by its interpreter. What cannot be read is no obstacle:
/// running it will say more.
pub fn examine(program: &Path) -> Option<Obstacle> {
    match interpreter(program) {
        Some(interpreter) => examine_binary(&interpreter),
        None => examine_binary(program),
    }
}

/// The program that runs a script; none for a binary.
pub fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    BufReader::new(open(script)?).take(256).read_until(b'\n', &mut line).ok()?;
    let rest = line.strip_prefix(b"#!")?.trim_ascii();
    let path = rest.split(|b| b" \t".contains(b)).next()?;
    Some(PathBuf::from(ffi::OsStr::from_bytes(path)))
}

/// A regular file; what is at the path may be anything by now, and a pipe would wait for its writer.
fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    file.metadata().is_ok_and(|found| found.is_file()).then_some(file)
}

/// What stands against tracing a binary.
pub fn examine_binary(path: &Path) -> Option<Obstacle> {
    let file = open(path)?;
    let found = file.metadata().ok()?;
    let judged = examine_content(file)?;
    let (own, group) = (found.uid() != crate::sys::geteuid(), found.gid() != crate::sys::getegid());
    let is_set_id = found.mode() & libc::S_ISUID != 0 && own || found.mode() & libc::S_ISGID != 0 && group;
    match judged {
        Judged::Obstacle(obstacle) if obstacle.is_certain() => Some(obstacle),
        // Nor does a collector in the program itself take an arena from its caller then.
        _ if is_set_id => Some(Obstacle::SetId),
        Judged::Obstacle(obstacle) => Some(obstacle),
        Judged::Nothing | Judged::CarriesCollector => None,
    }
}

/// What the content of a program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Nothing stands against tracing it.
    Nothing,
    /// This does.
    Obstacle(Obstacle),
    /// It has the collector in itself, and nothing has to be loaded (`heapline_collector::Traced`).
    CarriesCollector,
}

/// Judges a program by its content, which may be anybody's. None for what is no program.
pub fn examine_content(mut file: impl ReadCacheOps) -> Option<Judged> {
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
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Some(Judged::Obstacle(Obstacle::OtherMachine));
    }
    let segments = header.program_headers(endian, data).ok()?;
    if carries_collector(segments, endian, data) {
        return Some(Judged::CarriesCollector);
    }
    if !segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Some(Judged::Obstacle(Obstacle::Static));
    }
    Some(own_allocator(header, endian, data).map_or(Judged::Nothing, Judged::Obstacle))
}

/// What is read of a program at most: its headers, notes and dynamic symbols. A larger one is not judged.
const MOST_BYTES: u64 = 64 << 20;

/// A file of which only so much is read. Its lengths are its author's words, and a file may be all holes: what they ask for
/// must not be allocated.
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

/// Whether the program has the collector in itself, as a note says that no `strip` removes.
fn carries_collector<'a>(
    segments: &[elf::ProgramHeader64<Endianness>],
    endian: Endianness,
    data: impl ReadRef<'a>,
) -> bool {
    segments.iter().filter_map(|segment| segment.notes(endian, data).ok().flatten()).any(|mut notes| {
        // A note that is broken ends the list.
        iter::from_fn(|| notes.next().ok().flatten())
            .any(|note| note.name_bytes() == NOTE_NAME && note.n_type(endian) == elf::NoteType(NOTE_KIND))
    })
}

/// A sanitizer, or a malloc, among the symbols that take precedence over a preloaded library: those of the dynamic table.
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

    /// A file that is all holes has any length that its headers speak of.
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
        let before = crate::procfs::own_resident_bytes();
        assert_eq!(examine(&path), Some(Obstacle::Static));
        let grown = crate::procfs::own_resident_bytes().saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes more are in memory");
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
