//! The interpreters that are installed.

use super::{find_in_path, skip};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

pub struct Python {
    pub program: PathBuf,
    /// The 11 of 3.11.
    pub minor: u32,
}

/// Debian's interpreter, and those of 3.9 to 3.13 that pyenv has or the PATH names.
pub fn pythons() -> Vec<Python> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let root = std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let installed = std::fs::read_dir(root.join("versions")).into_iter().flatten().flatten();
    let mut programs: Vec<PathBuf> = installed.map(|version| version.path().join("bin/python3")).collect();
    programs.push("/usr/bin/python3".into());
    programs.extend((9..=13).filter_map(|minor| find_in_path(&format!("python3.{minor}"))));
    let mut pythons: BTreeMap<(u32, PathBuf), Python> = BTreeMap::new();
    for program in programs {
        // A shim of a version that is not chosen fails.
        let asked =
            Command::new(&program).args(["-c", "import sys; print(sys.version_info[1], sys.executable)"]).output();
        let Ok(output) = asked else { continue };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let Some((minor, path)) = said.trim().split_once(' ') else { continue };
        let minor: u32 = minor.parse().expect("a number");
        let Some(program) = PathBuf::from(path).canonicalize().ok().filter(|_| (9..=13).contains(&minor)) else {
            continue;
        };
        pythons.insert((minor, program.clone()), Python { program, minor });
    }
    if pythons.is_empty() {
        skip("no CPython 3.9 to 3.13 is installed");
    }
    pythons.into_values().collect()
}
