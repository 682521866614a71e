//! Places of control sockets: in the usual folder, in another folder, or in no folder at all.
//!
//! A client knows the usual folder from the user's number. All other sockets are found in the
//! kernel's list, `/proc/net/unix`. An entry of the list may come from any user. A folder therefore
//! counts only if it belongs to the user, and the kernel is asked for the user of the listening
//! process.

use crate::base::private_dir::NAME;
use crate::base::{private_dir, sys};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Possible place of a process's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket in a file system.
    File(PathBuf),
    /// An abstract name, for a process without a folder.
    Name(String),
}

impl Place {
    /// Returns the place in a form for people.
    pub fn shown(&self) -> PathBuf {
        match self {
            Place::File(path) => path.clone(),
            Place::Name(name) => PathBuf::from(format!("@{name}")),
        }
    }

    /// Connects to the listening process.
    pub fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Place::File(path) => UnixStream::connect(path),
            Place::Name(name) => sys::connect_at_once(name.as_bytes()),
        }
    }
}

/// Listens without a folder. The name cannot be guessed, so no other process can take the name
/// first.
///
/// Fails where the kernel does not tell users apart: in a user namespace, all users without a
/// mapping have the same number.
pub fn bind_without_folder(pid: u32) -> io::Result<UnixListener> {
    if !sys::is_mapped_user() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let name = format!("{}{:016x}", prefix(pid), sys::random()?);
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Middle of an abstract name, between [`NAME`] and the process.
const CTL: &str = "-ctl-";

fn prefix(pid: u32) -> String {
    format!("{NAME}{CTL}{pid}-")
}

/// Returns possible places of the socket of a process traced by `uid`, except the usual place.
pub fn others(uid: u32, pid: u32) -> Vec<Place> {
    let mut places = Vec::new();
    for place in listed().filter(|&(of, _)| of == pid).map(|(_, place)| place) {
        let is_trusted = match &place {
            Place::File(path) => path.parent().is_some_and(|folder| private_dir::verify(folder, uid).is_ok()),
            Place::Name(_) => sys::is_mapped_user(),
        };
        if is_trusted && !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Returns the processes with a control socket of any user, with the place of the socket. A socket
/// in a file system is listed by the file, or by the kernel, or by both.
pub fn all() -> impl Iterator<Item = (u32, Place)> {
    let is_ours = |folder: &Path| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NAME));
    let usual = private_dir::path_for(0).parent().map(entries).unwrap_or_default();
    let folders = usual.into_iter().filter(move |folder| is_ours(folder));
    let in_folders = folders.flat_map(|folder| entries(&folder)).filter_map(|path| {
        let pid = path.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()?;
        Some((pid, Place::File(path)))
    });
    in_folders.chain(listed())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Returns the processes with a control socket in the kernel's list, with the place of the socket.
/// All these sockets are open.
pub fn listed() -> impl Iterator<Item = (u32, Place)> {
    let list = File::open("/proc/net/unix").ok();
    let lines = list.into_iter().flat_map(|list| BufReader::new(list).split(b'\n').map_while(Result::ok));
    lines.filter_map(|line| parse(&String::from_utf8_lossy(&line)))
}

/// Returns process and place in a line of `/proc/net/unix`. The last column is the name at the time
/// of the bind.
fn parse(line: &str) -> Option<(u32, Place)> {
    const COLUMNS_BEFORE: usize = 7;
    let bound = line.splitn(COLUMNS_BEFORE + 1, ' ').nth(COLUMNS_BEFORE)?.trim_start();
    if let Some(name) = bound.strip_prefix('@') {
        let (pid, _) = name.strip_prefix(NAME)?.strip_prefix(CTL)?.split_once('-')?;
        return Some((pid.parse().ok()?, Place::Name(name.to_owned())));
    }
    // The socket was bound as `PID.AGGREGATOR.new`, and renamed afterwards.
    let path = Path::new(bound);
    let folder = path.parent().filter(|folder| folder.is_absolute())?;
    let is_ours = folder.file_name()?.to_str()?.starts_with(NAME);
    let (pid, rest) = path.file_name()?.to_str()?.split_once('.')?;
    let pid: u32 = pid.parse().ok().filter(|_| is_ours && rest.ends_with("new"))?;
    Some((pid, Place::File(folder.join(format!("{pid}.sock")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_a_process_are_found_in_the_kernels_list() {
        let line = |name: &str| format!("ffff9c8e4a3c1800: 00000002 00000000 00010000 0001 01 123456 {name}");
        let file = |path: &str| Some((12, Place::File(path.into())));
        assert_eq!(parse(&line("/tmp/heapline-1f/12.7.new")), file("/tmp/heapline-1f/12.sock"));
        assert_eq!(parse(&line("/run/user/1 0/heapline/12.7.new")), file("/run/user/1 0/heapline/12.sock"));
        assert_eq!(parse(&line("@heapline-ctl-12-ab")), Some((12, Place::Name("heapline-ctl-12-ab".to_owned()))));
        for other in [
            "/tmp/heapline-1f/x.7.new",
            "/tmp/heapline-1f/12.sock",
            "/tmp/x/12.7.new",
            "heapline/12.7.new",
            "@heapline-ctl-12",
            "@heapline-12-ab",
            "",
        ] {
            assert_eq!(parse(&line(other)), None, "{other}");
        }
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_socket_without_a_folder_is_found_again() {
        let pid = u32::MAX - std::process::id();
        let listener = bind_without_folder(pid).expect("a name");
        let found = others(sys::geteuid(), pid);
        let [place] = &found[..] else { panic!("{found:?}") };
        place.connect().expect("somebody listens");
        drop(listener);
        assert!(others(sys::geteuid(), pid).is_empty());
    }
}
