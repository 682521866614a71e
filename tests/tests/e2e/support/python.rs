//! The installed Python interpreters.

use super::victim::source;
use super::{find_in_path, skip, stdout_of};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Python {
    pub program: PathBuf,
    /// Minor version: 11 for Python 3.11.
    pub minor: u32,
    /// Whether the threads of the interpreter run without a lock.
    pub is_free_threaded: bool,
}

impl Python {
    /// Runs Python code in the interpreter and returns the printed text.
    fn says(&self, question: &str) -> String {
        stdout_of(Command::new(&self.program).args(["-c", question])).trim().to_owned()
    }

    /// Bytes of a `bytearray` of some length. From 3.15 on a second object has the contents.
    pub fn bytearray(&self, length: u64) -> u64 {
        length + if self.minor >= 15 { 97 } else { 57 }
    }

    /// Bytes of a `bytes` of some length. Without the interpreter's lock an object has two more
    /// words.
    pub fn bytes(&self, length: u64) -> u64 {
        length + if self.is_free_threaded { 49 } else { 33 }
    }

    /// Path of the shared library, and the folder where the library finds Python modules. `None` if
    /// the interpreter has no shared library.
    pub fn library(&self) -> Option<(PathBuf, PathBuf)> {
        let names = "import sys, sysconfig as s; print(s.get_config_var('LIBDIR'), s.get_config_var('INSTSONAME'))";
        let said = self.says(names);
        let (folder, name) = said.split_once(' ')?;
        let library = Path::new(folder).join(name);
        let home = PathBuf::from(self.says("import sys; print(sys.base_prefix)"));
        (name.contains(".so") && library.exists()).then_some((library, home))
    }

    /// Compiles an extension module of `tests/victims/python` into a folder. Returns false if the
    /// interpreter's headers are missing.
    pub fn build_module(&self, name: &str, folder: &Path) -> bool {
        let include = self.says("import sysconfig; print(sysconfig.get_paths()['include'])");
        let flags = ["-g", "-O2", "-shared", "-fPIC", "-I", &include, "-o"];
        let mut gcc = Command::new("gcc");
        gcc.args(flags).arg(folder.join(name).with_extension("so")).arg(source(&format!("python/{name}.c")));
        gcc.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

/// Interpreters with a shared library that other programs can load.
pub fn libraries() -> Vec<(Python, PathBuf, PathBuf)> {
    let found = pythons().into_iter().filter_map(|python| {
        let (library, home) = python.library()?;
        Some((python, library, home))
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        skip("no CPython 3.9 to 3.15 has a library of its own");
    }
    found
}

/// The known minor versions of CPython 3.
const MINORS: std::ops::RangeInclusive<u32> = 9..=15;

/// Debian's interpreter, and interpreters of pyenv, of the PATH and of `tests/pythons`.
pub fn pythons() -> Vec<Python> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let root = std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pythons");
    let folders = [root.join("versions"), made].into_iter().flat_map(std::fs::read_dir).flatten().flatten();
    let mut programs: Vec<PathBuf> = folders.map(|version| version.path().join("bin/python3")).collect();
    programs.push("/usr/bin/python3".into());
    programs.extend(MINORS.filter_map(|minor| find_in_path(&format!("python3.{minor}"))));
    let mut pythons: BTreeMap<(u32, PathBuf), Python> = BTreeMap::new();
    for program in programs {
        // A pyenv shim fails if the shim's version is not selected.
        let asked = Command::new(&program)
            .args(["-c", "import sys; print(sys.version_info[1], 'free' in sys.version, sys.executable)"])
            .output();
        let Ok(output) = asked else { continue };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let [minor, is_free, path] = said.trim().splitn(3, ' ').collect::<Vec<_>>()[..] else { continue };
        let (minor, is_free_threaded): (u32, bool) = (minor.parse().expect("a number"), is_free == "True");
        let Some(program) = PathBuf::from(path).canonicalize().ok().filter(|_| MINORS.contains(&minor)) else {
            continue;
        };
        pythons.insert((minor, program.clone()), Python { program, minor, is_free_threaded });
    }
    if pythons.is_empty() {
        skip("no CPython 3.9 to 3.15 is installed");
    }
    pythons.into_values().collect()
}
