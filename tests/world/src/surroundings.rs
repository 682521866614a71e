//! What surrounds every run: no network but loopback, a fixed environment, folders of its own.

use crate::process;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The first port that is tried for a server.
const FIRST_PORT: u16 = 20_400;

/// `IFF_UP` in the width that an ifreq has for flags.
const UP: i16 = 1;
const _: () = assert!(libc::IFF_UP == 1);

/// The folders of one laboratory run.
pub struct Surroundings {
    base: TempDir,
}

impl Surroundings {
    /// Closes this process off: a network namespace with loopback alone, where that is allowed,
    /// and the duty to end what its descendants leave behind.
    ///
    /// Must be called before this process has a second thread.
    pub fn close_off() -> Result<Surroundings> {
        process::adopt_orphans().context("this kernel has no subreapers")?;
        if let Err(error) = leave_network() {
            eprintln!("world: the programs can use the network: {error:#}");
        }
        let base = tempfile::Builder::new().prefix("heapline-world-").tempdir()?;
        // Servers that give up root's rights must reach their files.
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Surroundings { base })
    }

    /// The folder that all others are in, which stays for the whole laboratory run.
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    /// An empty folder for the next run. The path is the same for every run, so that programs
    /// that print their folder print the same text each time.
    pub fn scratch(&self) -> Result<PathBuf> {
        self.empty("scratch")
    }

    /// An empty folder for the snapshots of the next run.
    pub fn snapshots(&self) -> Result<PathBuf> {
        self.empty("snapshots")
    }

    fn empty(&self, name: &str) -> Result<PathBuf> {
        let path = self.base.path().join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }
}

/// The environment of every program: nothing of the caller's, nothing that varies.
pub fn environment(scratch: &Path) -> BTreeMap<String, String> {
    let folder = scratch.display().to_string();
    let variables = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", &folder),
        ("TMPDIR", &folder),
        // A shell on the way (valgrind is one) would add this variable.
        ("PWD", &folder),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("TZ", "UTC"),
        ("PERL_HASH_SEED", "0"),
        ("PYTHONHASHSEED", "0"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// A port of loopback that nobody listens on. The same one each time, unless it is taken.
pub fn free_port() -> Result<u16> {
    let ports = FIRST_PORT..FIRST_PORT + 1000;
    let free = ports.into_iter().find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.context("no free port on loopback")
}

/// Moves this process into a network namespace of its own, and brings loopback up there.
fn leave_network() -> Result<()> {
    // SAFETY: unshare takes a number and touches no memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        bail!("no network namespace: {} (root can make one)", std::io::Error::last_os_error());
    }
    // SAFETY: socket takes numbers and touches no memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: an ifreq of zeros is valid: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = UP;
    // SAFETY: SIOCSIFFLAGS reads the ifreq that is passed, which outlives the call.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
    let error = std::io::Error::last_os_error();
    // SAFETY: the descriptor was made above, and nobody else has it.
    unsafe { libc::close(socket) };
    if result < 0 {
        bail!("loopback does not come up: {error}");
    }
    Ok(())
}
