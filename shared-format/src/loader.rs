//! glibc's loader as a command: `ld-linux-x86-64.so.2 [OPTION]... PROGRAM [ARGUMENT]...`.
//!
//! Bundles with a private C library (AppImage, Nix, Bazel, relocated toolchains) start programs in
//! this way. The collector and the aggregator both judge the given program, not the loader.

/// The loader's own name (`DT_SONAME`), independent of the name and folder of the loader's file.
pub const LOADER_NAME: &[u8] = b"ld-linux-x86-64.so.2";
/// Environment variable that makes the loader list a program's libraries and run nothing (`ldd`).
pub const ENV_LIST: &str = "LD_TRACE_LOADED_OBJECTS";

/// Options of the loader followed by an argument (glibc 2.36 and later).
const WITH_ARGUMENT: [&[u8]; 7] = [
    b"--library-path",
    b"--inhibit-rpath",
    b"--audit",
    b"--preload",
    b"--argv0",
    b"--glibc-hwcaps-prepend",
    b"--glibc-hwcaps-mask",
];

/// Returns the index of the program among the words of a loader's command line. The first word is
/// the loader's own name.
///
/// None where the loader runs no program: the loader was asked to list or to verify something, was
/// asked for help, or does not understand a word.
pub fn program_index<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn index(line: &str) -> Option<usize> {
        program_index(line.split(' ').map(str::as_bytes))
    }

    #[test]
    fn the_program_stands_behind_the_loaders_options() {
        assert_eq!(index("ld.so ./prog --list"), Some(1));
        assert_eq!(index("ld.so --library-path /a:/b --inhibit-cache --argv0 name ./prog x"), Some(6));
        let all = "ld.so --inhibit-rpath x --audit x --preload x --glibc-hwcaps-prepend x --glibc-hwcaps-mask x prog";
        assert_eq!(index(all), Some(11));
        assert_eq!(index("ld.so -x"), Some(1), "one dash is a file's name");
    }

    #[test]
    fn some_options_run_nothing() {
        for line in ["ld.so", "ld.so --list ./prog", "ld.so --verify ./prog", "ld.so --help", "ld.so --version"] {
            assert_eq!(index(line), None, "{line}");
        }
        assert_eq!(index("ld.so --list-diagnostics"), None);
        assert_eq!(index("ld.so --library-path"), None);
        assert_eq!(index("ld.so --unknown ./prog"), None);
    }
}
