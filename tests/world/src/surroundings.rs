//! Surroundings of every run: a network of loopback only, a fixed environment, and separate
//! folders.

use crate::process;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// First port tried for a server.
const FIRST_PORT: u16 = 20_400;

/// `IFF_UP` in the width of an ifreq's flags.
const UP: i16 = 1;
const _: () = assert!(libc::IFF_UP == 1);

/// Folders of a laboratory run.
pub struct Surroundings {
    base: TempDir,
}

impl Surroundings {
    /// Isolates this process: a network namespace with loopback only, if permitted, and adoption of
    /// orphaned descendants, so they can be ended.
    ///
    /// Must be called before this process has a second thread.
    pub fn close_off() -> Result<Surroundings> {
        process::adopt_orphans().context("this kernel has no subreapers")?;
        if let Err(error) = leave_network() {
            eprintln!("world: the programs can use the network: {error:#}");
        }
        let base = tempfile::Builder::new().prefix("heapline-world-").tempdir()?;
        // Servers that drop root's rights must reach their files.
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Surroundings { base })
    }

    /// Folder of all other folders, kept for the whole laboratory run.
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    /// Makes an empty folder for the next run. The path is equal for every run, so a program that
    /// prints its folder prints equal text each time.
    pub fn scratch(&self) -> Result<PathBuf> {
        self.empty("scratch")
    }

    /// Makes an empty folder for the snapshots of the next run.
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

/// Environment of every program: no variable of the caller, and no varying value.
pub fn environment(scratch: &Path) -> BTreeMap<String, String> {
    let folder = scratch.display().to_string();
    let variables = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", &folder),
        ("TMPDIR", &folder),
        // A shell in between (valgrind is a shell script) would add this variable.
        ("PWD", &folder),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("TZ", "UTC"),
        ("PERL_HASH_SEED", "0"),
        ("PYTHONHASHSEED", "0"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Finds a free port of loopback: the same port each time, unless it is taken.
pub fn free_port() -> Result<u16> {
    let ports = FIRST_PORT..FIRST_PORT + 1000;
    let free = ports.into_iter().find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.context("no free port on loopback")
}

/// Moves this process into a new network namespace, and brings loopback up there.
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
    // SAFETY: SIOCSIFFLAGS only reads the ifreq, and `request` outlives the call.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
    let error = std::io::Error::last_os_error();
    // SAFETY: `socket` was opened above and has no other owner.
    unsafe { libc::close(socket) };
    if result < 0 {
        bail!("loopback does not come up: {error}");
    }
    Ok(())
}
