//! A program without a loader: finds the program's place from the kernel's data at the start.
//!
//! In a static program `_dl_find_object` knows only the code and not the ELF header before the
//! code, or is missing (musl).

use crate::platform::auxiliary::{self, PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD};
use core::sync::atomic::{AtomicUsize, Ordering};

/// First address, end address, load bias and `.eh_frame_hdr` of the program; zeros while the
/// program is not known to be alone.
static PROGRAM: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

const PAGE: usize = 4096;

/// Returns whether the process has no loader, and stores the place of the program.
pub fn look() -> bool {
    let Some(headers) = auxiliary::program_headers() else { return false };
    if headers.iter().any(|header| header.kind == PT_INTERP) {
        return false;
    }
    let of = |kind: u32| headers.iter().filter(move |header| header.kind == kind);
    // The ELF header is the first loaded part. The program headers follow the ELF header in the
    // same page.
    let Some(first) = of(PT_LOAD).find(|header| header.offset == 0) else { return false };
    let start = headers.as_ptr().addr() & !(PAGE - 1);
    let Ok(bias) = usize::try_from(first.address).map(|address| start.wrapping_sub(address)) else { return false };
    let at = |address: u64| usize::try_from(address).map_or(0, |address| bias.wrapping_add(address));
    let end = of(PT_LOAD).map(|header| at(header.address.wrapping_add(header.memory_bytes))).max().unwrap_or(0);
    let unwind = of(PT_GNU_EH_FRAME).next().map_or(0, |header| at(header.address));
    for (place, value) in PROGRAM.iter().zip([start, end, bias, unwind]).rev() {
        // The start is stored last, for concurrent readers.
        place.store(value, Ordering::Release);
    }
    true
}

/// Place of the program: first address, end address, load bias and the address of `.eh_frame_hdr`.
pub struct Program {
    pub start: usize,
    pub end: usize,
    pub bias: usize,
    pub eh_frame_hdr: usize,
}

/// Returns the program, if the program is alone and contains the address.
pub fn find(address: usize) -> Option<Program> {
    let [start, end, bias, eh_frame_hdr] = [0, 1, 2, 3].map(|i| PROGRAM[i].load(Ordering::Acquire));
    (start != 0 && (start..end).contains(&address)).then_some(Program { start, end, bias, eh_frame_hdr })
}

/// Returns whether the process is known to have no loader.
pub fn is_alone() -> bool {
    PROGRAM[0].load(Ordering::Acquire) != 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_with_a_loader_is_not_alone() {
        assert!(super::auxiliary::program_headers().is_some_and(|headers| headers.len() > 4));
        assert!(!super::look());
        assert!(!super::is_alone());
        assert!(super::find(a_program_with_a_loader_is_not_alone as *const () as usize).is_none());
    }
}
