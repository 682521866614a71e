//! Calls between the aggregator and a collector injected into a running process. There are calls to
//! attach, to detach and to release.
//!
//! - [`ORIGIN_SYMBOL`] tells the library how it came into the process: the aggregator changes the
//!   value in the bytes sent to the target.
//! - A [`Request`] lies in memory of the target, mapped for the call. Answers in the request are as
//!   untrusted as all other data from a target.

/// Name of the exported word with an [`origin`].
pub const ORIGIN_SYMBOL: &str = "heapline_origin";
/// Name of the exported `extern "C" fn(*mut Request)` that starts the collector and hooks the
/// loaded objects.
pub const ATTACH_SYMBOL: &str = "heapline_attach";
/// Name of the exported `extern "C" fn(*mut Request)` that undoes the hooks.
pub const DETACH_SYMBOL: &str = "heapline_detach";
/// Name of the exported `extern "C" fn(*mut Request)` that gives back all memory and the
/// descriptor, once no thread runs in the collector and no thread can enter it.
pub const RELEASE_SYMBOL: &str = "heapline_release";
/// Number of bytes kept by the collector for each thread, at [`Request::thread_words`].
pub const THREAD_WORDS_BYTES: usize = 96;
/// Name of the exported word for the aggregator: the address of the jumps to the hooks, the targets
/// of redirected direct calls. 0 without jumps.
pub const STUBS_SYMBOL: &str = "heapline_stubs";
/// Prefix of the names of functions that receive redirected direct calls of `malloc` and so on.
pub const DIRECT_PREFIX: &str = "heapline_direct_";
/// Name of the collector's memory file in a process with an injected collector.
pub const LIBRARY_NAME: &str = "heapline-collector";

/// How the library came into the process.
pub mod origin {
    /// The loader loaded the library at the start, before the program.
    pub const PRELOADED: u32 = 1;
    /// An aggregator injected the library later.
    pub const INJECTED: u32 = 2;
}

/// Values of [`Request::status`].
pub mod status {
    /// The call has not ended.
    pub const OPEN: u64 = 0;
    /// All work is done.
    pub const DONE: u64 = 1;
    /// The environment of the process contains `HEAPLINE_DISABLE=1`.
    pub const DISABLED: u64 = 2;
    /// The C library does not say where its objects are (no glibc).
    pub const NO_OBJECTS: u64 = 3;
    /// The system gave no shared memory file, or no memory.
    pub const NO_MEMORY: u64 = 4;
    /// The collector failed.
    pub const FAILED: u64 = 5;
    /// The C library gives no thread-local storage to the running threads (musl before 1.1.22).
    pub const NO_THREAD_WORDS: u64 = 6;
}

/// Values of [`Request::python`].
pub mod python {
    /// The process has no interpreter.
    pub const NONE: u64 = 0;
    /// The interpreter's allocators are about to be hooked or unhooked, as soon as the
    /// interpreter's lock is free.
    pub const WAITING: u64 = 1;
    /// The interpreter's allocators are hooked or unhooked.
    pub const DONE: u64 = 2;
    /// The interpreter is unknown to the collector.
    pub const UNKNOWN: u64 = 3;
    /// The system gave no thread for hooking or unhooking.
    pub const REFUSED: u64 = 4;
}

/// The words of a call. The aggregator fills in the fields marked "asked", the collector the
/// others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Asked. In an attach: room for records, in bytes, if the process has no arena yet. In a
    /// release: 0 to get only the answers.
    pub pool_bytes: u64,
    /// Asked: address of the path of a file with the library, for programs started by this process.
    /// 0 when such programs could not read a file.
    pub path: u64,
    /// Asked: length of the path in bytes.
    pub path_bytes: u64,
    /// Answered: a value of [`status`].
    pub status: u64,
    /// Answered. Attach: number of places redirected to the collector now. Detach: number of places
    /// restored.
    pub patched: u64,
    /// Answered: number of places that lead to an allocator other than the process's own.
    pub foreign: u64,
    /// Answered: number of places that could not be written.
    pub refused: u64,
    /// Answered: a value of [`python`].
    pub python: u64,
    /// Answered: where a thread has the collector's words. A negative number is the distance from
    /// the thread pointer. A positive number is the index in the table of the thread, and the
    /// second word of the thread is the address of the table (musl).
    pub thread_words: u64,
}

impl Request {
    /// Size of a request in the target's memory, in bytes.
    pub const BYTES: usize = size_of::<Request>();

    /// Returns the bytes of the request in memory.
    pub fn to_bytes(self) -> [u8; Request::BYTES] {
        let Request { pool_bytes, path, path_bytes, status, patched, foreign, refused, python, thread_words } = self;
        let words = [pool_bytes, path, path_bytes, status, patched, foreign, refused, python, thread_words];
        let mut bytes = [0; Request::BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a request from bytes. Any bytes are a valid request.
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
        // SAFETY: `Request` is plain words without padding, so its bytes are all initialised.
        let memory: [u8; Request::BYTES] = unsafe { core::mem::transmute(request) };
        assert_eq!(memory, request.to_bytes(), "the collector reads the words where they lie");
    }
}
