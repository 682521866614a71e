//! The memory file of an arena: created and sealed for a program about to start, or opened from a
//! running process.
//!
//! A file that shrinks under the mapping would cause a SIGBUS, so a file is mapped only after its
//! seals were checked.

use crate::base::sys;
use crate::process::procfs;
use heapline_shared_format::arena::{Arena, ArenaError, Geometry, MAX_SEGMENTS, MAX_SLOTS, MEMFD_NAME};
use heapline_shared_format::text::size;
use memmap2::{MmapOptions, MmapRaw};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// Reason why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaMapError {
    /// A system call failed.
    #[error("cannot {what} the shared memory file: {source}")]
    System {
        /// The failed step.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The file would exceed the file size limit, and cause a SIGXFSZ.
    #[error(
        "the shared memory file needs {}, the file size limit (ulimit -f) is {}: raise it or lower --max-target-memory",
        size(*bytes), size(*limit)
    )]
    FileSizeLimit {
        /// Bytes needed.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The file could be shrunk by another process.
    #[error("the process's shared memory file is not sealed, so it is no arena of a Heapline collector")]
    NotSealed,
    /// The content is not a known arena.
    #[error(transparent)]
    Content(#[from] ArenaError),
}

/// A mapped arena together with the file.
pub struct ArenaMap {
    arena: Arena,
    file: File,
    /// Memory behind `arena`. Dropped after `arena`.
    _map: MmapRaw,
}

impl ArenaMap {
    /// Creates an arena with rings of at most `max_bytes` bytes.
    pub fn create(max_bytes: u64) -> Result<ArenaMap, ArenaMapError> {
        let geometry = Geometry::for_memory(max_bytes.min(address_space_share()));
        let bytes = geometry.bytes() as u64;
        let limit = file_size_limit();
        if bytes > limit {
            return Err(ArenaMapError::FileSizeLimit { bytes, limit });
        }
        let file = memfd().map_err(|source| ArenaMapError::System { what: "create", source })?;
        file.set_len(bytes).map_err(|source| ArenaMapError::System { what: "size", source })?;
        // SAFETY: fcntl gets an open descriptor and an integer, and touches no memory.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS | libc::F_SEAL_SEAL) };
        crate::base::sys::check(sealed).map_err(|source| ArenaMapError::System { what: "seal", source })?;
        let map = map(&file, geometry.bytes())?;
        // SAFETY: the mapping is page-aligned, as long as the geometry says, zero, and not shared
        // yet; the mapping lives as long as the returned value.
        let arena = unsafe { Arena::create(base(&map)?, geometry) };
        Ok(ArenaMap { arena, file, _map: map })
    }

    /// Maps the arena in a file made by another process.
    pub fn open(file: File) -> Result<ArenaMap, ArenaMapError> {
        // SAFETY: fcntl gets an open descriptor, and touches no memory.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals == -1 || seals & SEALS != SEALS || !is_plain_memory(&file) {
            return Err(ArenaMapError::NotSealed);
        }
        let metadata = file.metadata().map_err(|source| ArenaMapError::System { what: "inspect", source })?;
        let bytes = usize::try_from(metadata.len()).map_err(|_| ArenaError::Geometry)?;
        if bytes == 0 {
            return Err(ArenaError::TooSmall { bytes }.into());
        }
        const LARGEST: Geometry = Geometry { slots: MAX_SLOTS, segments: MAX_SEGMENTS };
        if bytes > LARGEST.bytes() {
            return Err(ArenaError::Geometry.into());
        }
        let map = map(&file, bytes)?;
        // SAFETY: the mapping is page-aligned and `bytes` long, the seals keep the length, and the
        // mapping lives as long as the returned value.
        let arena = unsafe { Arena::open(base(&map)?, bytes) }?;
        Ok(ArenaMap { arena, file, _map: map })
    }

    /// The arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the memory of the pool back to the system. Later writes to the pool are lost, so the
    /// target must not be tracing.
    pub fn give_back(&self) {
        let geometry = self.arena.geometry();
        let range =
            libc::off_t::try_from(geometry.pool_offset()).ok().zip(libc::off_t::try_from(geometry.bytes()).ok());
        if let Some((start, end)) = range {
            let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: a plain call on an open descriptor; collector and aggregator accept any
            // content of the pool.
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), flags, start, end - start) };
            tracing::debug!(result, "pool given back");
        }
    }

    /// Bytes of memory taken by the arena so far.
    pub fn touched_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }
}

fn memfd() -> io::Result<File> {
    let name = CString::new(MEMFD_NAME)?;
    // SAFETY: the name is a C string and outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    let fd = crate::base::sys::check(fd)?;
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Whether the pages of the file are ordinary memory. Huge pages can be sealed too, but may be
/// missing at the first access, which causes a SIGBUS.
fn is_plain_memory(file: &File) -> bool {
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `found` is valid for the write, and read only after it has succeeded.
    unsafe {
        libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) == 0 && found.assume_init().f_type == libc::TMPFS_MAGIC
    }
}

fn map(file: &File, bytes: usize) -> Result<MmapRaw, ArenaMapError> {
    MmapOptions::new().len(bytes).map_raw(file).map_err(|source| ArenaMapError::System { what: "map", source })
}

fn base(map: &MmapRaw) -> Result<NonNull<u8>, ArenaMapError> {
    NonNull::new(map.as_mut_ptr()).ok_or(ArenaMapError::Content(ArenaError::Geometry))
}

fn file_size_limit() -> u64 {
    sys::limit(libc::RLIMIT_FSIZE)
}

/// Returns the most bytes for the rings in the address space of a command. The command has the same
/// limit as this process (`ulimit -v`). The collector refuses a larger arena.
fn address_space_share() -> u64 {
    const SHARE: u64 = 16;
    match sys::limit(libc::RLIMIT_AS) {
        u64::MAX => u64::MAX,
        limit => {
            let without_pool = Geometry::for_memory(0).pool_offset() as u64;
            (limit.saturating_sub(procfs::own_virtual_bytes()) / SHARE).saturating_sub(without_pool)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_file(flags: libc::c_uint, bytes: u64, seals: libc::c_int) -> File {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"heapline-arena".as_ptr(), flags | libc::MFD_ALLOW_SEALING) };
        // SAFETY: the descriptor was just opened and has no other owner.
        let file = unsafe { File::from_raw_fd(crate::base::sys::check(fd).expect("a memory file")) };
        file.set_len(bytes).expect("sized");
        // SAFETY: fcntl gets an open descriptor and an integer, and touches no memory.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        file
    }

    fn refusal(file: File) -> String {
        ArenaMap::open(file).err().expect("no arena").to_string()
    }

    #[test]
    fn a_file_that_could_become_a_sigbus_is_not_mapped() {
        for seals in [0, libc::F_SEAL_SHRINK, libc::F_SEAL_GROW] {
            assert!(refusal(memory_file(0, 1 << 20, seals)).contains("not sealed"));
        }
        // Huge pages: sealed correctly, and still a page may be missing.
        assert!(refusal(memory_file(libc::MFD_HUGETLB, 2 << 20, SEALS)).contains("not sealed"));
        assert!(refusal(File::open("/proc/self/exe").expect("there")).contains("not sealed"));
    }

    #[test]
    fn a_file_of_any_size_costs_nothing_before_it_is_known() {
        assert!(refusal(memory_file(0, 1 << 60, SEALS)).contains("contradicts its size"));
        assert!(refusal(memory_file(0, 0, SEALS)).contains("0 bytes"));
        assert!(refusal(memory_file(0, 1 << 30, SEALS)).contains("no Heapline arena"));
    }
}
