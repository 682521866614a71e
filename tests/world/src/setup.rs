//! Installs the requirements of the chosen subjects: Debian packages by apt-get, and wheels by pip
//! into the laboratory's own virtual environment.

use crate::catalogue::Subject;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Installs missing packages and wheels.
pub fn install(subjects: &[Subject], venv: &Path, with_oracle: bool) -> Result<()> {
    let mut packages: BTreeSet<&str> = subjects.iter().flat_map(|subject| subject.packages).copied().collect();
    if with_oracle {
        packages.insert("valgrind");
    }
    let missing: Vec<&str> = packages.into_iter().filter(|package| !is_installed(package)).collect();
    if !missing.is_empty() {
        eprintln!("world: apt-get installs {}", missing.join(" "));
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(missing)
            .env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    let needs_python = |subject: &&Subject| subject.program.starts_with(venv);
    if subjects.iter().any(|subject| needs_python(&subject)) && !venv.join("bin/pip").is_file() {
        run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(venv))?;
    }
    let wheels: BTreeSet<&str> = subjects.iter().flat_map(|subject| subject.wheels).copied().collect();
    if !wheels.is_empty() {
        eprintln!("world: pip installs {}", wheels.iter().copied().collect::<Vec<_>>().join(" "));
        run(Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"])
            .args(wheels))?;
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let asked = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).stderr(Stdio::null()).output();
    asked.is_ok_and(|output| output.stdout == b"install ok installed")
}

fn run(command: &mut Command) -> Result<()> {
    // The tools' output is captured: standard output belongs to the table.
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{} does not start", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{command:?} failed: {}", said.trim());
    }
    Ok(())
}
