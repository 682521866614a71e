//! Opens the file of an object while the object is mapped.
//!
//! | Place | Finds | Needs |
//! | --- | --- | --- |
//! | `/proc/PID/map_files/RANGE` | the mapped file, wherever it is | root |
//! | `/proc/PID/exe` | the executable, wherever it is | the process's user |
//! | `/proc/PID/root/PATH` | the file at the path in the process's root | the process's user |
//! | `PATH` | the file at the path, after the process's end | nothing |
//!
//! The build-id decides whether a file is the object's. Without a build-id, the mapped file and the
//! executable are the object's; a file at a path is, if the file has no build-id either.

use crate::process::{elf, procfs};
use crate::table::modules::Object;
use heapline_shared_format::inject::LIBRARY_NAME;
use heapline_symbols::foreign::{self, Foreign};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Limit of the lines read from a process's map.
const MOST_MAPPINGS: usize = 1 << 16;

/// A process, as far as its files can be opened.
pub struct View {
    /// Process id.
    pub pid: u32,
    /// Process id in the process's own namespace.
    pub own_pid: u32,
    /// User of the process.
    pub uid: Option<u32>,
    /// Working folder of the process at the first look.
    pub folder: Option<String>,
    /// Root folder of the process, if the root is another than this process's. The descriptor
    /// keeps the root reachable after the end of the process.
    root: Option<File>,
}

impl View {
    /// Looks at a running process.
    pub fn of(pid: u32) -> View {
        let root = format!("/proc/{pid}/root");
        let place = |path: &str| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let is_same = place("/") == place(&root) && mount_namespace("self") == mount_namespace(&pid.to_string());
        let open = || OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&root).ok();
        let ids = procfs::status(pid, "NSpid");
        let own_pid = ids.and_then(|ids| ids.split_whitespace().next_back()?.parse().ok()).unwrap_or(pid);
        let folder =
            fs::read_link(format!("/proc/{pid}/cwd")).ok().and_then(|path| path.into_os_string().into_string().ok());
        View { pid, own_pid, uid: procfs::uid(pid), folder, root: if is_same { None } else { open() } }
    }

    /// Path of the process's root folder, for this process and its children.
    pub fn root(&self) -> PathBuf {
        match &self.root {
            Some(root) => format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd()).into(),
            None => "/".into(),
        }
    }

    /// Whether paths of the process mean the same files for this process.
    pub fn has_our_root(&self) -> bool {
        self.root.is_none()
    }

    /// Returns a path of the process, for this process.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.root().join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn mount_namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

/// The open file of an object.
pub struct Opened {
    /// The file.
    pub file: File,
    /// Path of the file as the process knew it.
    pub path: String,
    /// Build-id of the file; empty if the file has none.
    pub build_id: Vec<u8>,
    /// Whether only this user and root can have written the file.
    pub is_trusted: bool,
    /// Place of the file for `report`; none for a file under another root.
    pub place: Option<Place>,
}

/// Place of a file for `report`: a path, and the file that was there.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    fn of(path: &Path, file: &File) -> Option<Place> {
        let found = file.metadata().ok()?;
        let place = Place { path: path.to_owned(), device: found.dev(), inode: found.ino() };
        place.has_file().then_some(place)
    }

    /// Whether the file is still at the path.
    pub fn has_file(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

/// A line of a process's map.
pub struct Mapping {
    range: String,
    start: u64,
    inode: u64,
    path: String,
    is_code: bool,
}

impl Mapping {
    /// Returns the path of the mapped file.
    pub fn into_path(self) -> String {
        self.path
    }
}

/// Returns the mapped files of a process.
pub fn mappings(pid: u32) -> Vec<Mapping> {
    procfs::mappings(pid).map_or_else(|_| Vec::new(), |lines| lines.take(MOST_MAPPINGS).filter_map(parse).collect())
}

fn parse(line: String) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let range = fields.next()?.to_owned();
    let is_code = fields.next()?.contains('x');
    let inode = fields.nth(2)?.parse().ok()?;
    let path = fields.next()?.trim_start().to_owned();
    let start = u64::from_str_radix(range.split('-').next()?, 16).ok()?;
    path.starts_with('/').then_some(Mapping { range, start, inode, path, is_code })
}

/// Whether an object is Heapline's own, or has no file with symbols.
pub fn is_nameless(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let contains = |part: &str| name.windows(part.len()).any(|window| window == part.as_bytes());
    let is_executable = path.is_empty();
    let is_file = path.starts_with(b"/") && !path.starts_with(b"/proc/self/") && !path.starts_with(b"/memfd:");
    !is_executable && !is_file || contains("libheapline") || contains(LIBRARY_NAME)
}

/// Opens the file of an object. None if the file cannot be found any more.
pub fn open(view: Option<&View>, mappings: &[Mapping], object: &Object) -> Option<Opened> {
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(&object.path));
    let Some(view) = view else { return opened(at_path(&path, object, None)?, &path, true) };
    let of_object: Vec<&Mapping> =
        mappings.iter().filter(|mapping| (object.start..object.end).contains(&mapping.start)).collect();
    let known = of_object.first().map_or_else(|| path.clone(), |mapping| without_mark(&mapping.path).into());
    let mapped = of_object.iter().map(|mapping| format!("/proc/{}/map_files/{}", view.pid, mapping.range));
    let executable = object.path.is_empty().then(|| format!("/proc/{}/exe", view.pid));
    let of_kernel = mapped.chain(executable).find_map(|link| {
        let file = foreign::open(Path::new(&link)).ok()?.into_file();
        let id = elf::build_id(&file)?;
        (object.build_id.is_empty() || id == object.build_id).then_some(file)
    });
    let inode = of_object.first().map(|mapping| mapping.inode);
    let file = of_kernel.or_else(|| at_path(&view.path(&known), object, inode))?;
    let known = match known.as_os_str().is_empty() {
        true => fs::read_link(format!("/proc/{}/exe", view.pid)).ok()?,
        false => known,
    };
    opened(file, &known, view.has_our_root())
}

/// Opens the file at a path, if the file is the object's. `inode` is the number of the mapped file.
fn at_path(path: &Path, object: &Object, inode: Option<u64>) -> Option<File> {
    let file = foreign::open(path).ok()?.into_file();
    let id = elf::build_id(&file)?;
    let is_mapped = inode.is_some() && file.metadata().ok().map(|found| found.ino()) == inode;
    (id == object.build_id || object.build_id.is_empty() && is_mapped).then_some(file)
}

/// Opens the executable of a running process.
pub fn executable(view: &View) -> Option<Opened> {
    let link = format!("/proc/{}/exe", view.pid);
    let path = fs::read_link(&link).ok()?;
    opened(foreign::open(Path::new(&link)).ok()?.into_file(), &path, view.has_our_root())
}

/// Opens the mapped files with code that are at their paths no more.
pub fn deleted<'m>(view: &'m View, mappings: &'m [Mapping]) -> impl Iterator<Item = Opened> + 'm {
    let is_gone = |mapping: &&Mapping| mapping.path.ends_with(DELETED) && mapping.is_code;
    let of_files = mappings.iter().filter(is_gone).filter(|mapping| !is_nameless(mapping.path.as_bytes()));
    of_files.filter_map(|mapping| {
        let link = format!("/proc/{}/map_files/{}", view.pid, mapping.range);
        opened(foreign::open(Path::new(&link)).ok()?.into_file(), mapping.path.as_ref(), view.has_our_root())
    })
}

fn opened(file: File, path: &Path, has_our_root: bool) -> Option<Opened> {
    let path = without_mark(&path.to_string_lossy()).to_owned();
    let place = has_our_root.then(|| Place::of(path.as_ref(), &file)).flatten();
    let file = Foreign::of(file).ok()?;
    let is_trusted = file.is_trusted();
    let file = file.into_file();
    let build_id = elf::build_id(&file)?;
    Some(Opened { file, path, build_id, is_trusted, place })
}

/// The kernel's mark behind the path of a file that is at the path no more.
const DELETED: &str = " (deleted)";

/// Returns a path without the kernel's mark.
fn without_mark(path: &str) -> &str {
    path.strip_suffix(DELETED).unwrap_or(path)
}
