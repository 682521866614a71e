//! Asks the processor to fetch memory before its use.

/// Fetches the cache line of `place`, if `place` lies in the slice. The prefetch is a hint: it
/// reads nothing and never faults.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], place: usize) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address, mapped or not, has no effect visible to a program.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(slice.as_ptr().wrapping_add(place).cast()) };
}
