//! Finds the files that describe an object: the object's own file, or debug files split off the
//! object.
//!
//! - The build-id decides whether a file is the file that ran. An object without a build-id is
//!   found by path, unless the file has a build-id now.
//! - Debug files are searched as by gdb: by build-id, then by .gnu_debuglink with its CRC.
//! - A copy of the object itself is accepted in a debug folder, if the build-ids are equal.
//! - A [`Fetch`], if there is one, is asked last: for debug information where no file here has any,
//!   and for the object's own file where no file describes the object at all.
//! - .gnu_debugaltlink, dwz's way to share debug information between files, is not followed:
//!   symbolic cannot read such shared files, so their names are missing.

use crate::foreign::{self, Foreign};
use crate::guard;
use heapline_shared_format::snapshot::Module;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use symbolic_common::ByteView;
use symbolic_debuginfo::elf::ElfObject;

/// An object of a process, whose functions and lines are looked for.
#[derive(Debug)]
pub struct Object {
    /// Path as the process knew it, without the kernel's mark of a deleted file.
    path: PathBuf,
    /// GNU build-id; empty if none is known.
    build_id: Vec<u8>,
    /// Root folder of the process: `/`, or a folder that stands for another root.
    root: PathBuf,
    /// The object's own file, opened while the object was mapped. None: the file at the path.
    file: Option<File>,
}

impl Object {
    /// Returns the object of a snapshot's module. None if the module has no file.
    pub fn of(module: &Module) -> Option<Object> {
        // Modules such as "[vdso]" have no file. A path in /proc/self named a descriptor of the
        // traced process, but would name a descriptor of this process now.
        let has_file = module.path.starts_with('/') && !module.path.starts_with("/proc/self/");
        has_file.then(|| Object {
            path: without_mark(&module.path).into(),
            build_id: module.build_id.clone(),
            root: "/".into(),
            file: None,
        })
    }

    /// Returns the object behind an open file. Debug files beside the object are looked for under
    /// `root`, the root folder of the process as this process can open it.
    pub fn opened(path: &str, build_id: Vec<u8>, root: PathBuf, file: File) -> Object {
        Object { path: without_mark(path).into(), build_id, root, file: Some(file) }
    }

    /// Path as the process knew it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// GNU build-id; empty if none is known.
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// GNU build-id in hexadecimal digits; empty if none is known.
    pub fn build_id_hex(&self) -> String {
        self.build_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Size and times of the object's own file, if the file is there.
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        match &self.file {
            Some(file) => file.metadata(),
            None => std::fs::metadata(self.under(&self.root)),
        }
    }

    /// Opens the object's own file.
    fn open(&self) -> io::Result<Foreign> {
        match &self.file {
            Some(file) => Foreign::of(file.try_clone()?),
            None => foreign::open(&self.under(&self.root)),
        }
    }

    /// Returns the object's path below another root.
    fn under(&self, root: &Path) -> PathBuf {
        root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    /// Whether the file at `path` is an ELF file with the object's build-id. Never true for an
    /// object without a build-id.
    pub fn is_described_by(&self, path: &Path) -> bool {
        guard::fenced(|| fitting_file(self, path).is_some()) == Some(true)
    }

    fn is(&self, elf: &ElfObject<'_>) -> bool {
        build_id_of(elf) == self.build_id_hex()
    }

    /// Returns `.build-id/xx/yyyy.debug` under each of `dirs`.
    fn by_build_id(&self, dirs: &[PathBuf]) -> Vec<PathBuf> {
        let hex = self.build_id_hex();
        match hex.split_at_checked(2) {
            Some((first, rest)) => {
                dirs.iter().map(|dir| dir.join(".build-id").join(first).join(format!("{rest}.debug"))).collect()
            }
            None => Vec::new(),
        }
    }

    /// Returns `name` beside the object, in `.debug` beside the object, and in the object's folder
    /// under each of `dirs`.
    fn by_link(&self, name: &str, dirs: &[PathBuf]) -> Vec<PathBuf> {
        let beside = |root: &Path| self.under(root).parent().map(Path::to_owned);
        let Some(own_dir) = beside(&self.root) else { return Vec::new() };
        let mut paths = vec![own_dir.join(name), own_dir.join(".debug").join(name)];
        paths.extend(dirs.iter().filter_map(|dir| Some(beside(dir)?.join(name))));
        paths
    }

    /// Returns the places of copies of the object's own file: the object's path and name under each
    /// of `dirs`.
    fn copies(&self, dirs: &[PathBuf]) -> Vec<PathBuf> {
        let places = |dir: &PathBuf| [Some(self.under(dir)), self.path.file_name().map(|name| dir.join(name))];
        dirs.iter().flat_map(places).flatten().collect()
    }
}

/// Returns a path without the kernel's mark of a file that is at the path no more.
fn without_mark(path: &str) -> &str {
    path.strip_suffix(" (deleted)").unwrap_or(path)
}

/// Build-id of a file, in hexadecimal digits; empty without a build-id.
fn build_id_of(elf: &ElfObject<'_>) -> String {
    elf.code_id().map_or_else(String::new, |id| id.as_str().to_lowercase())
}

/// A file that can be fetched from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Artifact {
    /// The debug information, split off the object.
    DebugInfo,
    /// The object's own file.
    Executable,
}

/// A way to get files that are not on this machine.
pub trait Fetch: Send + Sync {
    /// Returns the path of an object's file, once the file is on this machine. The object has a
    /// build-id. The file is not believed to belong to the object.
    fn fetch(&self, object: &Object, artifact: Artifact) -> Option<PathBuf>;
}

/// Places where files are looked for, besides an object's own path.
pub(crate) struct Places {
    /// Folders of separate debug files, in the order of the search.
    pub(crate) debug_dirs: Vec<PathBuf>,
    pub(crate) fetch: Option<Box<dyn Fetch>>,
}

impl Places {
    /// Fetches a file of an object. None if the file has another build-id, or lacks the debug
    /// information.
    fn fetched(&self, object: &Object, artifact: Artifact) -> Option<Source> {
        let fetch = self.fetch.as_ref().filter(|_| !object.build_id.is_empty())?;
        let path = fetch.fetch(object, artifact)?;
        let file = match artifact {
            Artifact::DebugInfo => debug_file(object, &path),
            Artifact::Executable => fitting_file(object, &path),
        };
        file.map(|file| Source { origin: Origin::Fetched, ..file })
    }
}

/// Who can have written a file, so how far the file's build-id is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Only this user and root.
    Own,
    /// Others.
    Foreign,
    /// A [`Fetch`], from wherever.
    Fetched,
}

/// A file that may describe an object.
pub(crate) struct Source {
    pub(crate) view: ByteView<'static>,
    pub(crate) origin: Origin,
}

/// Files to try, the best first, and a problem with the object's own file.
pub(crate) struct Found {
    pub(crate) files: Vec<Source>,
    pub(crate) problem: Option<String>,
}

/// Finds all files that describe `object`.
pub(crate) fn find(object: &Object, places: &Places) -> Found {
    let debug_dirs = &places.debug_dirs;
    let (own, problem) = match own_file(object) {
        Ok(source) => (Some(source), None),
        Err(problem) => match copy(object, debug_dirs) {
            Some(copy) => (Some(copy), None),
            None => (None, Some(problem)),
        },
    };
    let mut files = Vec::new();
    let own_elf = own.as_ref().and_then(|own| parse(&own.view));
    let own_has_lines = own_elf.is_some_and(|elf| elf.has_debug_info());
    if !own_has_lines {
        files.extend(object.by_build_id(debug_dirs).iter().filter_map(|path| debug_file(object, path)));
        if let Some(elf) = own.as_ref().and_then(|own| parse(&own.view)) {
            files.extend(linked_file(object, &elf, debug_dirs));
        }
        if files.is_empty() {
            files.extend(places.fetched(object, Artifact::DebugInfo));
        }
    }
    files.extend(own);
    if files.is_empty() {
        files.extend(places.fetched(object, Artifact::Executable));
    }
    Found { files, problem }
}

/// Whether [`find`] can offer another file with debug information than the object's own. Opens at
/// most the object and a fetched file, never a debug file of this machine.
pub(crate) fn separate_file_exists(object: &Object, places: &Places) -> bool {
    let dirs = &places.debug_dirs;
    let is_there = |paths: Vec<PathBuf>| paths.iter().any(|path| path.exists());
    let is_linked = || {
        let own = own_file(object).ok();
        let link = own.as_ref().and_then(|own| link(&parse(&own.view)?));
        link.is_some_and(|(name, _)| is_there(object.by_link(&name, dirs)))
    };
    is_there(object.by_build_id(dirs)) || is_linked() || places.fetched(object, Artifact::DebugInfo).is_some()
}

fn own_file(object: &Object) -> Result<Source, String> {
    let own = view(object.open())?;
    match parse(&own.view) {
        None => Err("the file is no ELF file any more".to_string()),
        Some(elf) if object.is(&elf) => Ok(own),
        Some(_) if object.build_id.is_empty() => Err("its build-id was not recorded, and the file at its path has \
                                                      one, so the file may be another"
            .to_string()),
        Some(_) => Err("the file has changed since it was mapped (its build-id differs)".to_string()),
    }
}

fn copy(object: &Object, debug_dirs: &[PathBuf]) -> Option<Source> {
    object.copies(debug_dirs).iter().find_map(|path| fitting_file(object, path))
}

fn debug_file(object: &Object, path: &Path) -> Option<Source> {
    fitting_file(object, path).filter(|file| parse(&file.view).is_some_and(|elf| elf.has_debug_info()))
}

/// Returns the file at `path`, if the file has the object's build-id.
fn fitting_file(object: &Object, path: &Path) -> Option<Source> {
    if object.build_id.is_empty() {
        return None;
    }
    let file = view(foreign::open(path)).ok()?;
    parse(&file.view).is_some_and(|elf| object.is(&elf)).then_some(file)
}

fn linked_file(object: &Object, elf: &ElfObject<'_>, debug_dirs: &[PathBuf]) -> Option<Source> {
    let (name, crc) = link(elf)?;
    object.by_link(&name, debug_dirs).iter().find_map(|path| {
        let file = view(foreign::open(path)).ok()?;
        let fits = crc32fast::hash(&file.view) == crc && parse(&file.view).is_some_and(|elf| elf.has_debug_info());
        fits.then_some(file)
    })
}

/// Name and CRC-32 of the debug file requested by a stripped file.
fn link(elf: &ElfObject<'_>) -> Option<(String, u32)> {
    let link = elf.debug_link().ok()??;
    let name = link.filename().to_str().ok()?;
    // Only a name is accepted, not a path: the section comes with the file and must not lead
    // elsewhere.
    (!name.is_empty() && !name.contains('/')).then(|| (name.to_string(), link.crc()))
}

fn view(opened: io::Result<Foreign>) -> Result<Source, String> {
    let says = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "the file is gone".to_string(),
        io::ErrorKind::Other => error.to_string(),
        _ => format!("the file cannot be read ({error})"),
    };
    let file = opened.map_err(says)?;
    let origin = if file.is_trusted() { Origin::Own } else { Origin::Foreign };
    Ok(Source { view: file.view().map_err(says)?, origin })
}

fn parse<'v>(view: &'v ByteView<'static>) -> Option<ElfObject<'v>> {
    ElfObject::parse(view).ok()
}
