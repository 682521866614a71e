//! Finds the files that describe a module: the module's own file, or debug files split off the
//! module.
//!
//! - The build-id decides whether a file is the file that ran. A module without a build-id is found
//!   by path, unless the file has a build-id now.
//! - Debug files are searched as by gdb: by build-id, then by .gnu_debuglink with its CRC.
//! - .gnu_debugaltlink, dwz's way to share debug information between files, is not followed:
//!   symbolic cannot read such shared files, so their names are missing.
//! - Nothing is downloaded.

use crate::foreign;
use heapline_shared_format::snapshot::Module;
use std::path::{Path, PathBuf};
use symbolic_common::ByteView;
use symbolic_debuginfo::elf::ElfObject;

/// Path and build-id, by which a module is recognised.
pub(super) struct Identity {
    pub(super) path: PathBuf,
    pub(super) build_id: Vec<u8>,
}

impl Identity {
    pub(super) fn of(module: &Module) -> Identity {
        // The kernel adds " (deleted)" if the mapped file was replaced: then the build-id will not
        // match.
        let path = module.path.strip_suffix(" (deleted)").unwrap_or(&module.path);
        Identity { path: path.into(), build_id: module.build_id.clone() }
    }

    pub(super) fn build_id_hex(&self) -> String {
        self.build_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn is(&self, elf: &ElfObject<'_>) -> bool {
        elf.code_id().map_or_else(String::new, |id| id.as_str().to_lowercase()) == self.build_id_hex()
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

    /// Returns `name` beside the module, in `.debug` beside the module, and in the module's folder
    /// under each of `dirs`.
    fn by_link(&self, name: &str, dirs: &[PathBuf]) -> Vec<PathBuf> {
        let Some(own_dir) = self.path.parent() else { return Vec::new() };
        let below_root = own_dir.strip_prefix("/").unwrap_or(own_dir);
        let mut paths = vec![own_dir.join(name), own_dir.join(".debug").join(name)];
        paths.extend(dirs.iter().map(|dir| dir.join(below_root).join(name)));
        paths
    }
}

/// A file that may describe a module.
pub(super) struct Source {
    pub(super) view: ByteView<'static>,
    /// Whether only this user and root can have written the file, so its build-id can be trusted.
    pub(super) is_trusted: bool,
}

/// Files to try, the best first, and a problem with the module's own file.
pub(super) struct Found {
    pub(super) files: Vec<Source>,
    pub(super) problem: Option<String>,
}

/// Finds all files that describe `identity`.
pub(super) fn find(identity: &Identity, debug_dirs: &[PathBuf]) -> Found {
    let (own, problem) = match own_file(identity) {
        Ok(view) => (Some(view), None),
        Err(problem) => (None, Some(problem)),
    };
    let mut files = Vec::new();
    let own_elf = own.as_ref().and_then(|own| parse(&own.view));
    let own_has_lines = own_elf.is_some_and(|elf| elf.has_debug_info());
    if !own_has_lines {
        files.extend(identity.by_build_id(debug_dirs).iter().filter_map(|path| debug_file(identity, path)));
        if let Some(elf) = own.as_ref().and_then(|own| parse(&own.view)) {
            files.extend(linked_file(identity, &elf, debug_dirs));
        }
    }
    files.extend(own);
    Found { files, problem }
}

/// Whether [`find`] can offer another file than the module's own. Opens at most the module, never
/// the debug file.
pub(super) fn separate_file_exists(identity: &Identity, debug_dirs: &[PathBuf]) -> bool {
    if identity.by_build_id(debug_dirs).iter().any(|path| path.exists()) {
        return true;
    }
    let Ok(own) = own_file(identity) else { return false };
    let Some(elf) = parse(&own.view) else { return false };
    link(&elf).is_some_and(|(name, _)| identity.by_link(&name, debug_dirs).iter().any(|path| path.exists()))
}

fn own_file(identity: &Identity) -> Result<Source, String> {
    let own = open(&identity.path)?;
    match parse(&own.view) {
        None => Err("the file is no ELF file any more".to_string()),
        Some(elf) if !identity.is(&elf) => {
            Err("the file has changed since the snapshot (its build-id differs)".to_string())
        }
        Some(_) => Ok(own),
    }
}

fn debug_file(identity: &Identity, path: &Path) -> Option<Source> {
    let file = open(path).ok()?;
    let fits = parse(&file.view).is_some_and(|elf| identity.is(&elf) && elf.has_debug_info());
    fits.then_some(file)
}

fn linked_file(identity: &Identity, elf: &ElfObject<'_>, debug_dirs: &[PathBuf]) -> Option<Source> {
    let (name, crc) = link(elf)?;
    identity.by_link(&name, debug_dirs).iter().find_map(|path| {
        let file = open(path).ok()?;
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

fn open(path: &Path) -> Result<Source, String> {
    let says = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "the file is gone".to_string(),
        std::io::ErrorKind::Other => error.to_string(),
        _ => format!("the file cannot be read ({error})"),
    };
    let file = foreign::open(path).map_err(says)?;
    let is_trusted = file.is_trusted();
    Ok(Source { view: file.view().map_err(says)?, is_trusted })
}

fn parse<'v>(view: &'v ByteView<'static>) -> Option<ElfObject<'v>> {
    ElfObject::parse(view).ok()
}
