//! Version of the interpreter, and the names that depend on the version.

use core::ffi::{CStr, c_char};

/// A minor version of CPython 3, and the kind of build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version {
    minor: u8,
    /// Whether the build has no lock of the interpreter.
    is_free_threaded: bool,
}

impl Version {
    /// Returns the version told by `Py_GetVersion`. None for a version other than 3.
    pub fn read(function: usize) -> Option<Version> {
        // SAFETY: `function` is CPython's `const char *Py_GetVersion(void)`, which may be called at
        // any time.
        let text = unsafe {
            let get = core::mem::transmute::<usize, unsafe extern "C" fn() -> *const c_char>(function);
            CStr::from_ptr(get()).to_bytes()
        };
        Version::of(text)
    }

    /// Returns the version of a text like that of `Py_GetVersion`.
    pub fn of(text: &[u8]) -> Option<Version> {
        let is_free_threaded = text.windows(14).any(|part| part == b"free-threading");
        let minor = text.strip_prefix(b"3.")?.split(|&byte| !byte.is_ascii_digit()).next()?;
        let minor = minor.iter().try_fold(0u8, |number, digit| number.checked_mul(10)?.checked_add(digit - b'0'))?;
        Some(Version { minor, is_free_threaded })
    }

    /// The minor version.
    pub fn minor(self) -> u8 {
        self.minor
    }

    /// Whether the threads of the interpreter run Python at the same time, without a lock.
    pub fn is_free_threaded(self) -> bool {
        self.is_free_threaded
    }

    /// Name of the function for whether the interpreter is ending.
    pub fn is_finalizing(self) -> &'static [u8] {
        if self.minor < 13 { b"_Py_IsFinalizing" } else { b"Py_IsFinalizing" }
    }

    /// Name of the function for the calling thread's state.
    pub fn thread_state(self) -> &'static [u8] {
        match self.minor {
            ..=11 => b"PyGILState_GetThisThreadState",
            12 => b"_PyThreadState_UncheckedGet",
            _ => b"PyThreadState_GetUnchecked",
        }
    }

    /// Offset of `PyConfig.tracemalloc`.
    pub fn configured_nframe(self) -> usize {
        if self.minor == 9 { 40 } else { 36 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_their_text() {
        let read = |text: &str| Version::of(text.as_bytes()).map(|v| (v.minor(), v.is_free_threaded()));
        assert_eq!(read("3.9.2 (default, Mar 20 2025, 02:07:39)"), Some((9, false)));
        assert_eq!(read("3.13.15 experimental free-threading build (main)"), Some((13, true)));
        assert_eq!(read("3.14.8 free-threading build (main)"), Some((14, true)));
        assert_eq!(read("3.15.0rc1+ (main)"), Some((15, false)));
        assert_eq!(read("3.16.0a1 (main)"), Some((16, false)));
        assert_eq!(read("3.999.0"), None);
        assert_eq!(read("2.7.18"), None);
    }
}
