//! The memory of the scanned process: spans of addresses, and readers of words.

use std::io;
use std::mem::size_of;

/// Bytes of a word.
pub const WORD: u64 = size_of::<u64>() as u64;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Most spans of one system call, and most words.
const MOST_SPANS: usize = 512;
const MOST_WORDS: u64 = 128 << 10;

/// Addresses from `start` up to `end`, without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// First address behind the span.
    pub end: u64,
}

impl Span {
    /// Returns the span between two addresses. None if the span would be empty.
    pub fn between(start: u64, end: u64) -> Option<Span> {
        (start < end).then_some(Span { start, end })
    }

    /// Returns the common part of two spans.
    pub fn and(self, other: Span) -> Option<Span> {
        Span::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// Returns the whole words of the span.
    fn words(self) -> Option<Span> {
        Span::between(self.start.checked_next_multiple_of(WORD)?, self.end & !(WORD - 1))
    }

    /// Whether the span contains a whole page.
    pub fn has_page(self) -> bool {
        self.start.checked_next_multiple_of(PAGE).is_some_and(|page| page < self.end & !(PAGE - 1))
    }
}

/// Receiver of words that were read: the address of the first word, and the words.
pub type Each<'e> = &'e mut dyn FnMut(u64, &[u64]);

/// A memory that can be read.
pub trait Memory {
    /// Reads the aligned words of spans. `each` receives the words in pieces. Words that cannot be
    /// read are left out.
    fn read(&mut self, spans: &[Span], each: Each<'_>) -> io::Result<()>;
}

/// The memory of another process.
pub struct ProcessMemory {
    pid: libc::pid_t,
    words: Vec<u64>,
}

impl ProcessMemory {
    /// Returns the memory of a process. The first read tells whether the kernel allows reads.
    pub fn of(pid: u32) -> ProcessMemory {
        ProcessMemory { pid: libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX), words: Vec::new() }
    }

    /// Reads a batch by as many system calls as the unreadable pages ask for.
    fn read_batch(&mut self, batch: &[Span], each: Each<'_>) -> io::Result<()> {
        let mut left = batch.to_vec();
        while !left.is_empty() {
            let bytes = usize::try_from(left.iter().map(|span| span.end - span.start).sum::<u64>()).unwrap_or(0);
            self.words.resize(bytes / size_of::<u64>(), 0);
            let done = self.call(&left, bytes)?;
            left = self.deliver(&left, done, each);
        }
        Ok(())
    }

    /// Returns the number of bytes that were read from the first spans on.
    fn call(&mut self, spans: &[Span], bytes: usize) -> io::Result<u64> {
        let here = libc::iovec { iov_base: self.words.as_mut_ptr().cast(), iov_len: bytes };
        let there = |span: &Span| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(usize::try_from(span.start).unwrap_or(0)),
            iov_len: usize::try_from(span.end - span.start).unwrap_or(0),
        };
        let there: Vec<_> = spans.iter().map(there).collect();
        // SAFETY: `words` has room for `bytes` bytes, and the kernel writes no more than that. The
        // other addresses are of another process, and the kernel checks them.
        let read = unsafe {
            libc::process_vm_readv(self.pid, &raw const here, 1, there.as_ptr(), there.len() as libc::c_ulong, 0)
        };
        match u64::try_from(read) {
            Ok(read) => Ok(read),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Delivers the first `done` bytes of the spans. Returns the spans behind the page that stopped
    /// the read.
    fn deliver(&self, spans: &[Span], mut done: u64, each: Each<'_>) -> Vec<Span> {
        let mut at = 0;
        for (index, span) in spans.iter().enumerate() {
            let bytes = span.end - span.start;
            let read = bytes.min(done);
            let words = usize::try_from(read / WORD).unwrap_or(0);
            if words > 0 {
                each(span.start, &self.words[at..at + words]);
            }
            if read < bytes {
                let behind = ((span.start + read) & !(PAGE - 1)) + PAGE;
                return Span::between(behind, span.end).into_iter().chain(spans[index + 1..].iter().copied()).collect();
            }
            done -= bytes;
            at += words;
        }
        Vec::new()
    }
}

impl Memory for ProcessMemory {
    fn read(&mut self, spans: &[Span], each: Each<'_>) -> io::Result<()> {
        let (mut batch, mut words) = (Vec::with_capacity(MOST_SPANS), 0);
        for mut span in spans.iter().filter_map(|span| span.words()) {
            while span.start < span.end {
                let end = span.end.min(span.start + (MOST_WORDS - words) * WORD);
                batch.push(Span { start: span.start, end });
                words += (end - span.start) / WORD;
                span.start = end;
                if words == MOST_WORDS || batch.len() == MOST_SPANS {
                    self.read_batch(&batch, each)?;
                    batch.clear();
                    words = 0;
                }
            }
        }
        if batch.is_empty() { Ok(()) } else { self.read_batch(&batch, each) }
    }
}

/// A memory of the tests' own making: words by address.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub struct Synthetic(pub std::collections::BTreeMap<u64, u64>);

#[cfg(test)]
impl Memory for Synthetic {
    fn read(&mut self, spans: &[Span], each: Each<'_>) -> io::Result<()> {
        for span in spans.iter().filter_map(|span| span.words()) {
            self.0.range(span.start..span.end).for_each(|(&address, &word)| each(address, &[word]));
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_span_are_whole() {
        let span = |start, end| Span { start, end };
        assert_eq!(span(1, 17).words(), Some(span(8, 16)));
        assert_eq!(span(1, 8).words(), None);
        assert!(span(4095, 8192).has_page() && !span(4097, 8192 + 4095).has_page());
    }

    #[test]
    fn unreadable_pages_are_left_out_and_all_other_words_are_read() {
        let pages = 600usize;
        let bytes = pages * PAGE as usize;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses the place of the new memory, so no existing mapping changes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        for index in 0..bytes / 8 {
            // SAFETY: the word lies in the new memory.
            unsafe { at.cast::<u64>().add(index).write(index as u64 + 1) };
        }
        let hole = |page: usize| {
            // SAFETY: the page lies in the new memory, and no reference to the page exists.
            let result = unsafe { libc::mprotect(at.byte_add(page * PAGE as usize), PAGE as usize, libc::PROT_NONE) };
            assert_eq!(result, 0);
        };
        [0, 3, 4, 300, 599].into_iter().for_each(hole);
        let start = at.addr() as u64;
        let mut memory = ProcessMemory::of(std::process::id());
        let words_of = |memory: &mut ProcessMemory, spans: &[Span]| {
            let mut words = Vec::new();
            let mut each = |address: u64, read: &[u64]| {
                for (index, &word) in read.iter().enumerate() {
                    assert_eq!(word, (address - start) / 8 + index as u64 + 1);
                    words.push(word);
                }
            };
            memory.read(spans, &mut each).expect("readable");
            words.len()
        };
        let whole = Span { start, end: start + bytes as u64 };
        assert_eq!(words_of(&mut memory, &[whole]), 595 * 512);
        let small: Vec<Span> = (0..bytes as u64 / 64)
            .map(|index| Span { start: start + index * 64 + 8, end: start + index * 64 + 24 })
            .collect();
        assert_eq!(words_of(&mut memory, &small), 595 * 64 * 2);
        // SAFETY: the memory is the test's own, and no reference is left.
        unsafe { libc::munmap(at, bytes) };
        assert!(ProcessMemory::of(4_194_999).read(&[whole], &mut |_, _| ()).is_err());
    }
}
