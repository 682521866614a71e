//! What can be known of a program before it runs: whether the loader will bring the collector in.

use object::read::elf::{FileHeader, ProgramHeader, Sym};
use object::{Endianness, ReadCache, elf};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, ffi};

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
            Obstacle::SetId => "is setuid or setgid, so the loader ignores the collector: run it as its owner",
            Obstacle::Sanitizer => {
                "is built with a sanitizer (ASan, TSan, MSan), which checks every block itself: trace a build without it"
            }
            Obstacle::OwnMalloc => "brings its own malloc, which takes precedence over the collector's",
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
    BufReader::new(File::open(script).ok()?).take(256).read_until(b'\n', &mut line).ok()?;
    let rest = line.strip_prefix(b"#!")?.trim_ascii();
    let path = rest.split(|b| b" \t".contains(b)).next()?;
    Some(PathBuf::from(ffi::OsStr::from_bytes(path)))
}

/// What stands against tracing a binary.
pub fn examine_binary(path: &Path) -> Option<Obstacle> {
    let file = File::open(path).ok()?;
    let found = file.metadata().ok()?;
    let mut ident = [0; 5];
    (&file).read_exact(&mut ident).ok()?;
    if !ident.starts_with(&elf::ELFMAG) {
        return None;
    }
    if ident[4] != elf::ELFCLASS64.0 {
        return Some(Obstacle::Bits32);
    }
    let data = ReadCache::new(file);
    let header = elf::FileHeader64::<Endianness>::parse(&data).ok()?;
    let endian = header.endian().ok()?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Some(Obstacle::OtherMachine);
    }
    let segments = header.program_headers(endian, &data).ok()?;
    if !segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Some(Obstacle::Static);
    }
    let (own, group) = (found.uid() != crate::sys::geteuid(), found.gid() != crate::sys::getegid());
    if found.mode() & libc::S_ISUID != 0 && own || found.mode() & libc::S_ISGID != 0 && group {
        return Some(Obstacle::SetId);
    }
    own_allocator(header, endian, &data)
}

/// A sanitizer, or a malloc, among the symbols that take precedence over a preloaded library: those of the dynamic table.
fn own_allocator(
    header: &elf::FileHeader64<Endianness>,
    endian: Endianness,
    data: &ReadCache<File>,
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

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        assert_eq!(resolve("./x/y".as_ref()), Some(PathBuf::from("./x/y")));
        assert!(resolve("sh".as_ref()).is_some_and(|path| path.ends_with("sh")));
        assert_eq!(resolve("no-such-command-here".as_ref()), None);
    }
}
