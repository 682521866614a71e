//! Brings the collector's library into a process. The carrier is a memory file, which leaves no
//! trace. The loader of the process opens the file by its path in /proc. In a process without /proc
//! the system call that opens the path is replaced by one that duplicates the descriptor.
//!
//! The library finds the words of a thread at a fixed distance from the thread pointer. musl has no
//! such place in a running program, and tells the number of the library instead, if one relocation
//! is of another kind (`collector/src/platform/tls.rs`).

use super::loader::{Loader, Opener};
use super::step::{self, Step};
use super::thread::{Borrowed, CallError, Handed};
use super::{failed, map};
use crate::process::library::LIBRARY;
use heapline_shared_format::arch::elf::relocation;
use heapline_shared_format::inject::{LIBRARY_NAME, ORIGIN_SYMBOL, origin};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSegment, ObjectSymbol};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};

const MFD_CLOEXEC: u64 = 1;
const MFD_EXEC: u64 = 0x10;

/// Returns the offset of a function in the library.
pub fn function(name: &str) -> Option<u64> {
    exported(LIBRARY, name)
}

/// Lists all exported functions of the library, with their offsets, in the order of their names.
pub fn functions() -> BTreeMap<String, u64> {
    let Ok(file) = object::File::parse(LIBRARY) else { return BTreeMap::new() };
    let named = |symbol: object::Symbol<'_, '_>| Some((symbol.name().ok()?.to_owned(), symbol.address()));
    file.dynamic_symbols().filter(ObjectSymbol::is_definition).filter_map(named).collect()
}

/// Has the process load the library. Returns the address of the library.
pub fn load(thread: &mut Borrowed<'_>, pid: u32, loader: &Loader) -> Result<u64, CallError> {
    load_by_memory_file(thread, pid, loader)?;
    let base = map::collector_of(pid).map_err(CallError::Ptrace)?;
    base.ok_or_else(|| failed("dlopen", "the library is not there afterwards"))
}

fn load_by_memory_file(thread: &mut Borrowed<'_>, pid: u32, loader: &Loader) -> Result<(), CallError> {
    for fd in left_descriptors(pid) {
        thread.system_call("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
    }
    let name = thread.place(format!("{LIBRARY_NAME}\0").as_bytes())?;
    let mut create = |flags| thread.system_call("memfd_create", libc::SYS_memfd_create, [name, flags, 0, 0, 0, 0]);
    // A kernel before 6.3 rejects the second flag, and does not need it.
    let fd = create(MFD_CLOEXEC | MFD_EXEC).or_else(|_| create(MFD_CLOEXEC))?;
    let fd = moved_out_of_the_way(thread, fd)?;
    step::pass(Step::Opened);
    let loaded = write_to_memory_file(pid, fd, loader).and_then(|()| {
        step::pass(Step::Written);
        let path = format!("/proc/self/fd/{fd}");
        match open(thread, loader, &path, None)? {
            Ok(()) => Ok(()),
            Err(_) => open(thread, loader, &path, Some(fd))?.map_err(|reason| failed("dlopen", &reason)),
        }
    });
    let closed = thread.system_call("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
    loaded.and(closed.map(drop))
}

/// Lists the descriptors of memory files left by unfinished injections.
fn left_descriptors(pid: u32) -> Vec<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let ours = format!("/memfd:{LIBRARY_NAME} (deleted)");
    let is_ours = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == ours.as_str())
    };
    entries.filter(is_ours).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Moves a descriptor of the process to a number not used by the program. The numbers of the
/// standard streams are dangerous: a program may have closed a stream and still write to the
/// number.
fn moved_out_of_the_way(thread: &mut Borrowed<'_>, fd: u64) -> Result<u64, CallError> {
    let mut duplicate = |from: u64| {
        let arguments = [fd, libc::F_DUPFD_CLOEXEC.unsigned_abs().into(), from, 0, 0, 0];
        thread.system_call("fcntl", libc::SYS_fcntl, arguments)
    };
    let moved = duplicate(900).or_else(|_| duplicate(200)).or_else(|_| duplicate(3));
    match moved {
        Err(_) if fd > 2 => return Ok(fd),
        _ => thread.system_call("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?,
    };
    moved
}

/// Calls `dlopen`. With a descriptor, the path need not exist: the loader is handed a duplicate of
/// the descriptor when it opens the path. The inner error is the message of the loader.
fn open(
    thread: &mut Borrowed<'_>,
    loader: &Loader,
    path: &str,
    instead: Option<u64>,
) -> Result<Result<(), String>, CallError> {
    let placed = thread.place(format!("{path}\0").as_bytes())?;
    let Opener { function, mode, message } = loader.opener;
    let arguments = [placed, mode, 0];
    let handle = match instead {
        None => thread.call("dlopen", function, arguments)?,
        Some(fd) => thread.call_with_file("dlopen", function, arguments, Handed { path, fd })?,
    };
    if handle != 0 {
        return Ok(Ok(()));
    }
    let Some(message) = message else { return Ok(Err("its loader gives no reason".to_owned())) };
    let text = thread.call("dlerror", message, [0, 0, 0])?;
    Ok(Err(thread.text(text)))
}

/// Fills the memory file of the process.
fn write_to_memory_file(pid: u32, fd: u64, loader: &Loader) -> Result<(), CallError> {
    let refused = |error: io::Error| CallError::Failed { what: "writing the library", reason: error.to_string() };
    let mut file = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/{fd}")).map_err(refused)?;
    file.write_all(&injected_library(loader.is_musl())).map_err(refused)
}

/// Returns the library, marked as injected, for a process of glibc or of musl.
fn injected_library(is_musl: bool) -> Vec<u8> {
    let mut bytes = LIBRARY.to_vec();
    if let Some(at) = exported(LIBRARY, ORIGIN_SYMBOL).and_then(|address| file_offset(LIBRARY, address))
        && let Some(word) = bytes.get_mut(at..at + 4)
    {
        word.copy_from_slice(&origin::INJECTED.to_le_bytes());
    }
    if is_musl && let Some(kind) = place_of_words(LIBRARY).and_then(|at| bytes.get_mut(at..at + 4)) {
        kind.copy_from_slice(&relocation::THREAD_MODULE.to_le_bytes());
    }
    bytes
}

/// Returns the place in the file of the kind of the relocation for the words of a thread.
fn place_of_words(library: &[u8]) -> Option<usize> {
    const ENTRY_BYTES: u64 = 24;
    const KIND_AT: u64 = 8;
    let file = ElfFile64::<Endianness>::parse(library).ok()?;
    let section = file.section_by_name(".rela.dyn")?;
    let (offset, bytes) = section.file_range()?;
    let kinds = (offset + KIND_AT..offset + bytes).step_by(usize::try_from(ENTRY_BYTES).ok()?);
    let is_of_words = |at: &usize| library.get(*at..at + 4) == Some(&relocation::THREAD_DISTANCE.to_le_bytes()[..]);
    kinds.filter_map(|at| usize::try_from(at).ok()).find(is_of_words)
}

/// Returns the offset of an exported symbol from the base of the library.
fn exported(library: &[u8], name: &str) -> Option<u64> {
    let file = object::File::parse(library).ok()?;
    file.dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(name) && symbol.is_definition())
        .map(|symbol| symbol.address())
}

/// Returns the place of an address in the file.
fn file_offset(library: &[u8], address: u64) -> Option<usize> {
    let file = object::File::parse(library).ok()?;
    file.segments().find_map(|segment| {
        let (offset, bytes) = segment.file_range();
        let into = address.checked_sub(segment.address()).filter(|&into| into < bytes)?;
        usize::try_from(offset + into).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::RelocationFlags;

    #[test]
    fn the_library_that_is_sent_knows_how_it_came() {
        let sent = injected_library(false);
        let differing = differing(LIBRARY, &sent);
        assert_eq!(differing.len(), 1, "one byte of one word");
        let at = differing[0];
        assert_eq!((LIBRARY[at], sent[at]), (1, 2));
    }

    fn differing(one: &[u8], other: &[u8]) -> Vec<usize> {
        let pairs = one.iter().zip(other).enumerate();
        pairs.filter_map(|(at, (one, other))| (one != other).then_some(at)).collect()
    }

    /// One relocation leads to the words of a thread, and the words begin the library's
    /// thread-local storage: the number of the library is all that musl has to tell.
    #[test]
    fn musl_is_asked_for_the_number_of_the_library() {
        let (glibcs, musls) = (injected_library(false), injected_library(true));
        let differing = differing(&glibcs, &musls);
        assert_eq!(differing.len(), 1, "the kind of one relocation");
        assert_eq!((glibcs[differing[0]], musls[differing[0]]), (18, 16));
        let addend = &musls[differing[0] + 8..differing[0] + 16];
        assert_eq!(addend, [0; 8]);
        let file = ElfFile64::<Endianness>::parse(&*musls).expect("the library");
        let relocations = file.dynamic_relocations().expect("it has some");
        let left = relocations.filter(|(_, relocation)| {
            matches!(relocation.flags(), RelocationFlags::Elf { r_type } if r_type.0 == relocation::THREAD_DISTANCE)
        });
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn both_functions_are_exported() {
        use heapline_shared_format::inject::{ATTACH_SYMBOL, DETACH_SYMBOL};
        for name in [ATTACH_SYMBOL, DETACH_SYMBOL] {
            assert!(function(name).is_some_and(|address| address > 0), "{name}");
        }
    }
}
