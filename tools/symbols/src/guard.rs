//! Catches panics of the third-party parsers for ELF and DWARF.
//!
//! A damaged debug file sometimes makes a parser panic (an offset beyond the file, for example).
//! Then the module has no names, but the report goes on, without a backtrace on standard error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Returns the result of `parse`; none if `parse` panicked.
///
/// Callers pass shared references only, so a panic leaves nothing half changed.
pub(crate) fn fenced<T>(parse: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !INSIDE.get() {
                loud(info);
            }
        }));
    });
    let outer = INSIDE.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(parse));
    INSIDE.set(outer);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::fenced;

    #[test]
    fn a_panic_is_no_answer() {
        assert_eq!(fenced(|| 1), Some(1));
        assert_eq!(fenced(|| [1][std::hint::black_box(1)]), None);
        assert_eq!(fenced(|| 2), Some(2));
    }
}
