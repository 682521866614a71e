//! The loaders of programs: glibc's and musl's, also as commands:
//! `LOADER [OPTION]... PROGRAM [ARGUMENT]...`.
//!
//! Bundles with a private C library (AppImage, Nix, Bazel, relocated toolchains) start programs in
//! this way. The collector and the aggregator both judge the given program, not the loader.

/// A loader that brings the collector into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// glibc's.
    Glibc,
    /// musl's, which is musl's C library too.
    Musl,
}

pub use crate::arch::elf::GLIBCS_LOADER as LOADER_NAME;
use crate::arch::elf::MUSLS_LOADER as MUSL_NAME;

/// A name among the strings of musl's loader, and of no other. The loader finds its own last stage
/// by the name.
pub const MUSL_MARK: &[u8] = b"\0__dls3\0";
/// Environment variable that makes glibc's loader list a program's libraries and run nothing
/// (`ldd`).
pub const ENV_LIST: &str = "LD_TRACE_LOADED_OBJECTS";

/// Options of glibc's loader followed by an argument (glibc 2.36 and later).
const WITH_ARGUMENT: [&[u8]; 7] = [
    b"--library-path",
    b"--inhibit-rpath",
    b"--audit",
    b"--preload",
    b"--argv0",
    b"--glibc-hwcaps-prepend",
    b"--glibc-hwcaps-mask",
];

impl Loader {
    /// Returns the loader with the usual file name.
    pub fn by_file_name(path: &[u8]) -> Option<Loader> {
        match path.rsplit(|&byte| byte == b'/').next() {
            Some(LOADER_NAME) => Some(Loader::Glibc),
            Some(name) if name.starts_with(MUSL_NAME) => Some(Loader::Musl),
            _ => None,
        }
    }

    /// Returns the index of the program among the words of a loader's command line. The first word
    /// is the loader's own name.
    ///
    /// None where the loader does not load the collector:
    ///
    /// - The loader runs no program: it was asked to list or to verify something, was asked for
    ///   help, or does not understand a word.
    /// - musl's loader was given a list of preloaded libraries, which takes the place of the
    ///   variable.
    pub fn program_index<'a>(self, words: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
        match self {
            Loader::Glibc => of_glibc(words),
            Loader::Musl => of_musl(words),
        }
    }
}

fn of_glibc<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
    let mut is_argument = false;
    for (index, word) in words.enumerate().skip(1) {
        if is_argument {
            is_argument = false;
        } else if !word.starts_with(b"--") {
            return Some(index);
        } else if WITH_ARGUMENT.contains(&word) {
            is_argument = true;
        } else if word != b"--inhibit-cache" {
            return None;
        }
    }
    None
}

fn of_musl<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
    let (mut is_argument, mut is_last) = (false, false);
    for (index, word) in words.enumerate() {
        if index == 0 {
            // `ldd` is a link to the loader.
            if word.ends_with(b"ldd") {
                return None;
            }
        } else if is_argument {
            is_argument = false;
        } else if is_last || !word.starts_with(b"--") {
            return Some(index);
        } else if word == b"--" {
            is_last = true;
        } else if word == b"--library-path" || word == b"--argv0" {
            is_argument = true;
        } else if !word.starts_with(b"--library-path=") && !word.starts_with(b"--argv0=") {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(line: &str) -> Option<usize> {
        Loader::Glibc.program_index(line.split(' ').map(str::as_bytes))
    }

    fn musls(line: &str) -> Option<usize> {
        Loader::Musl.program_index(line.split(' ').map(str::as_bytes))
    }

    #[test]
    fn the_program_stands_behind_the_loaders_options() {
        assert_eq!(index("ld.so ./prog --list"), Some(1));
        assert_eq!(index("ld.so --library-path /a:/b --inhibit-cache --argv0 name ./prog x"), Some(6));
        let all = "ld.so --inhibit-rpath x --audit x --preload x --glibc-hwcaps-prepend x --glibc-hwcaps-mask x prog";
        assert_eq!(index(all), Some(11));
        assert_eq!(index("ld.so -x"), Some(1), "one dash is a file's name");
        assert_eq!(musls("ld.so ./prog --list"), Some(1));
        assert_eq!(musls("ld.so --library-path /a --argv0=x -- --prog"), Some(5));
    }

    #[test]
    fn some_options_run_nothing() {
        for line in ["ld.so", "ld.so --list ./prog", "ld.so --verify ./prog", "ld.so --help", "ld.so --version"] {
            assert_eq!(index(line), None, "{line}");
        }
        assert_eq!(index("ld.so --list-diagnostics"), None);
        assert_eq!(index("ld.so --library-path"), None);
        assert_eq!(index("ld.so --unknown ./prog"), None);
        for line in ["/bin/musl-ldd ./prog", "ld.so --list ./prog", "ld.so --preload x ./prog", "ld.so --", "ld.so"] {
            assert_eq!(musls(line), None, "{line}");
        }
    }

    #[test]
    fn a_loader_is_known_by_the_name_of_its_file() {
        assert_eq!(Loader::by_file_name(b"/nix/store/x/ld-linux-x86-64.so.2"), Some(Loader::Glibc));
        assert_eq!(Loader::by_file_name(b"/lib/ld-musl-x86_64.so.1"), Some(Loader::Musl));
        assert_eq!(Loader::by_file_name(b"/system/bin/linker64"), None);
        assert_eq!(Loader::by_file_name(b"/lib/ld-musl-i386.so.1"), None);
    }
}
