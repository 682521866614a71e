//! A fence around the parsers of ELF and DWARF, which come from others.
//!
//! A damaged debug file makes them panic now and then (an offset beyond the file, for one). That costs the module its
//! names; it must cost neither the report nor a backtrace on standard error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What `parse` returns; none if it panicked.
///
/// What it borrows must not be left half changed by that: it is given shared references only.
pub(super) fn fenced<T>(parse: impl FnOnce() -> T) -> Option<T> {
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
