//! The pages that the process has: in memory or swapped out.
//!
//! A read of a page that was never touched would give the page to the process, or at least a page
//! table. So only pages that are there are read. A page that is not there holds no word of the
//! program, but what a file or zeros fill.

use super::memory::{PAGE, Span};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bits of an entry of `/proc/PID/pagemap`: the page is in memory, or swapped out.
const IS_THERE: u64 = 0b11 << 62;
/// Entries read at a time.
const ENTRIES: usize = 8192;
const ENTRY_BYTES: u64 = 8;

/// Runs of pages that are there, by rising address.
#[derive(Clone, Debug, Default)]
pub struct Pages(Vec<Span>);

impl Pages {
    /// Finds the pages of a process that are there, in spans by rising address.
    pub fn of(pid: u32, spans: &[Span]) -> io::Result<Pages> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        let mut pages = Pages::default();
        let mut bytes = vec![0; ENTRIES * 8];
        for span in spans {
            let mut page = span.start / PAGE;
            let end = span.end.div_ceil(PAGE);
            while page < end {
                let wanted = usize::try_from(end - page).unwrap_or(ENTRIES).min(ENTRIES) * 8;
                let read = file.read_at(&mut bytes[..wanted], page * ENTRY_BYTES)?;
                // A process that has ended has no pages, which does not mean that nothing holds a
                // pointer.
                if read < 8 {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                for entry in bytes[..read].chunks_exact(8) {
                    let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                    if entry & IS_THERE != 0 {
                        pages.add(page * PAGE);
                    }
                    page += 1;
                }
            }
        }
        Ok(pages)
    }

    fn add(&mut self, start: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == start => last.end += PAGE,
            _ => self.0.push(Span { start, end: start + PAGE }),
        }
    }

    /// Returns the pages of a span, for a memory that has them all.
    #[cfg(test)]
    pub fn all() -> Pages {
        Pages(vec![Span { start: 0, end: 1 << 47 }])
    }

    /// Returns the parts of a span on pages that are there.
    pub fn within(&self, span: Span) -> impl Iterator<Item = Span> + '_ {
        let first = self.0.partition_point(|run| run.end <= span.start);
        self.0[first..].iter().map_while(move |run| run.and(span))
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]
mod tests {
    use super::*;

    #[test]
    fn touched_pages_are_there_and_a_look_touches_none() {
        let bytes = 64 * PAGE as usize;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses the place of the new memory, so no existing mapping changes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: the whole range is the new memory. Large pages would be touched as a whole.
        unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) };
        for page in [0, 1, 40] {
            // SAFETY: the byte lies in the new memory.
            unsafe { at.cast::<u8>().add(page * PAGE as usize).write(1) };
        }
        let start = at.addr() as u64;
        let page = |index: u64| start + index * PAGE;
        let span = Span { start, end: start + bytes as u64 };
        for _ in 0..2 {
            let pages = Pages::of(std::process::id(), &[span]).expect("readable");
            let found: Vec<Span> = pages.within(Span { start: start + 8, end: span.end }).collect();
            assert_eq!(found, [Span { start: start + 8, end: page(2) }, Span { start: page(40), end: page(41) }]);
        }
        // SAFETY: the memory is the test's own, and no reference is left.
        unsafe { libc::munmap(at, bytes) };
    }
}
