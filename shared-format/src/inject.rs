//! What the aggregator and a collector that it has brought into a running process say to each other: one call when it
//! attaches, one when it detaches.
//!
//! The library knows by [`ORIGIN_SYMBOL`] how it came: the aggregator changes the value in the bytes that it sends. A
//! [`Request`] lies in memory of the target that was mapped for the call; what comes back in it is believed no more
//! than anything else that a target says.

/// Name of the exported word, an [`origin`].
pub const ORIGIN_SYMBOL: &str = "heapline_origin";
/// Name of the exported `extern "C" fn(*mut Request)` that starts the collector and hooks what is loaded.
pub const ATTACH_SYMBOL: &str = "heapline_attach";
/// Name of the exported `extern "C" fn(*mut Request)` that undoes the hooks.
pub const DETACH_SYMBOL: &str = "heapline_detach";
/// Name of the exported `extern "C" fn(*mut Request)` that gives back all memory and the descriptor, once no thread stands in
/// the collector and none can come.
pub const RELEASE_SYMBOL: &str = "heapline_release";
/// Bytes that the collector keeps for each thread, at [`Request::thread_words`].
pub const THREAD_WORDS_BYTES: usize = 80;
/// Name of the exported word that is the aggregator's: where the jumps to the hooks are that direct calls are led to, or 0.
pub const STUBS_SYMBOL: &str = "heapline_stubs";
/// How the names of the functions begin that direct calls of `malloc` and so on are led to.
pub const DIRECT_PREFIX: &str = "heapline_direct_";
/// Name of the collector's memory file in a process that it was injected into.
pub const LIBRARY_NAME: &str = "heapline-collector";

/// How the library came into the process.
pub mod origin {
    /// By the loader at the start, before the program.
    pub const PRELOADED: u32 = 1;
    /// By an aggregator, later.
    pub const INJECTED: u32 = 2;
}

/// [`Request::status`].
pub mod status {
    /// The call has not come to its end.
    pub const OPEN: u64 = 0;
    /// All is done.
    pub const DONE: u64 = 1;
    /// `HEAPLINE_DISABLE=1` is in the process's environment.
    pub const DISABLED: u64 = 2;
    /// The C library has no `_dl_find_object` (glibc before 2.35).
    pub const OLD_GLIBC: u64 = 3;
    /// The system gave no shared memory file, or no memory.
    pub const NO_MEMORY: u64 = 4;
    /// The collector failed.
    pub const FAILED: u64 = 5;
}

/// [`Request::python`].
pub mod python {
    /// There is no interpreter in the process.
    pub const NONE: u64 = 0;
    /// Its allocators are about to be hooked, or unhooked, as soon as its lock is free.
    pub const WAITING: u64 = 1;
    /// They are (un)hooked.
    pub const DONE: u64 = 2;
    /// It is one that the collector does not know.
    pub const UNKNOWN: u64 = 3;
    /// The system gave no thread to do it in.
    pub const REFUSED: u64 = 4;
}

/// The words of a call. The aggregator fills in what is asked, the collector the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Asked: room for records, in bytes, if the process has no arena yet; of a release, 0 to ask for the answers alone.
    pub pool_bytes: u64,
    /// Asked: address of the path of a file with the library, for the programs that this one begins; 0 when they could not read
    /// one.
    pub path: u64,
    /// Asked: bytes of that path.
    pub path_bytes: u64,
    /// Answered: [`status`].
    pub status: u64,
    /// Answered: places that lead to the collector now (attach), or that were led back (detach).
    pub patched: u64,
    /// Answered: places that lead to another allocator than the process's own.
    pub foreign: u64,
    /// Answered: places that could not be written.
    pub refused: u64,
    /// Answered: [`python`].
    pub python: u64,
    /// Answered: how far what the collector keeps for a thread lies from the thread pointer (wrapping).
    pub thread_words: u64,
}

impl Request {
    /// Bytes in the target's memory.
    pub const BYTES: usize = size_of::<Request>();

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; Request::BYTES] {
        let Request { pool_bytes, path, path_bytes, status, patched, foreign, refused, python, thread_words } = self;
        let words = [pool_bytes, path, path_bytes, status, patched, foreign, refused, python, thread_words];
        let mut bytes = [0; Request::BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Read back; any bytes are a request.
    pub fn from_bytes(bytes: &[u8; Request::BYTES]) -> Request {
        let mut words = [0u64; Request::BYTES / 8];
        for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = place.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        let [pool_bytes, path, path_bytes, status, patched, foreign, refused, python, thread_words] = words;
        Request { pool_bytes, path, path_bytes, status, patched, foreign, refused, python, thread_words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let asked = Request { pool_bytes: u64::MAX, path: 1, path_bytes: 7, ..Request::default() };
        let request = Request { status: 2, patched: 3, foreign: 4, refused: 5, python: 6, thread_words: 8, ..asked };
        assert_eq!(Request::from_bytes(&request.to_bytes()), request);
        // SAFETY: the type is plain words without padding.
        let memory: [u8; Request::BYTES] = unsafe { core::mem::transmute(request) };
        assert_eq!(memory, request.to_bytes(), "the collector reads the words where they lie");
    }
}
