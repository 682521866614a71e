//! The collector's own variables in the environment. They are read once, then removed: the program
//! and the children see the same environment as without Heapline, byte for byte.

use core::ffi::{CStr, c_char, c_ulong};
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use heapline_shared_format::arena::{ENV_ARENA, ENV_DISABLE};
use heapline_shared_format::tree::{ENV_TREE, Way};

/// Variable with which tests make a cold path panic.
pub const ENV_FAULT: &str = "HEAPLINE_FAULT";
/// Variable with which every stack is compared with a fresh walk.
pub const ENV_VERIFY: &str = "HEAPLINE_VERIFY";
/// Variable that switches off the recording of CPython's own layer when set to `0`: only native
/// blocks and stacks remain.
pub const ENV_PYTHON: &str = "HEAPLINE_PYTHON";
/// Variable with which objects are found as with a C library without `_dl_find_object` when set to
/// `table`.
pub const ENV_OBJECTS: &str = "HEAPLINE_OBJECTS";
/// The loader's variable that brings the collector in.
pub const ENV_PRELOAD: &str = "LD_PRELOAD";

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

optional!(
    /// `__libc_stack_end`, of glibc: where the kernel has put arguments and variables.
    stack_end_address,
    "stack_end_address",
    "__libc_stack_end"
);

/// Whether libc has had a list. From then on a null list means that the program has cleared the
/// list.
static HAS_LIST: AtomicBool = AtomicBool::new(false);

/// Returns the list of variables: libc's list once libc has a list; before, the list on the stack
/// from the kernel, which later becomes libc's.
fn list() -> *mut *mut c_char {
    // SAFETY: the first read is libc's pointer. The loader's variable points to the number of
    // arguments; the arguments, a null and the variables follow.
    unsafe {
        if !environ.is_null() || HAS_LIST.load(Ordering::Relaxed) {
            HAS_LIST.store(true, Ordering::Relaxed);
            return environ;
        }
        let place: *const *const usize = ptr::with_exposed_provenance(stack_end_address());
        if place.is_null() || (*place).is_null() {
            return ptr::null_mut();
        }
        let arguments = (**place).min(MOST_ARGUMENTS);
        (*place).add(1 + arguments + 1).cast_mut().cast()
    }
}

/// Greatest number of arguments; the kernel takes no more.
const MOST_ARGUMENTS: usize = 1 << 24;

/// The arena's descriptor and identity, as handed on by the aggregator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaHandle {
    /// Descriptor.
    pub fd: i32,
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Returns whether there is an environment yet.
pub fn is_up() -> bool {
    !list().is_null() || HAS_LIST.load(Ordering::Relaxed)
}

/// Returns the present environment, which a program may have cleared.
pub fn current() -> *const *const c_char {
    list().cast_const().cast()
}

/// Returns the position of a variable in the list, and the beginning of the value.
///
/// # Safety
/// `list` is null, or a null-terminated list of C strings.
pub unsafe fn find(list: *const *const c_char, name: &str) -> Option<(usize, *const c_char)> {
    if list.is_null() {
        return None;
    }
    // SAFETY: the caller guarantees a null-terminated list of C strings, and reads stop at the
    // terminators.
    unsafe {
        let mut i = 0;
        loop {
            let entry = *list.add(i);
            if entry.is_null() {
                return None;
            }
            let n = name.bytes().enumerate().take_while(|(k, b)| (*entry.add(*k)).cast_unsigned() == *b).count();
            if n == name.len() && (*entry.add(n)).cast_unsigned() == b'=' {
                return Some((i, entry.add(n + 1)));
            }
            i += 1;
        }
    }
}

/// Returns whether the program runs with rights that its caller lacks. The environment then belongs
/// to a stranger, who must not choose the memory to be written.
fn is_a_strangers() -> bool {
    const AT_SECURE: c_ulong = 23;
    unsafe extern "C" {
        fn getauxval(kind: c_ulong) -> c_ulong;
    }
    // SAFETY: `getauxval` takes any number.
    unsafe { getauxval(AT_SECURE) != 0 }
}

fn value(name: &str) -> Option<(usize, &'static CStr)> {
    if is_a_strangers() {
        return None;
    }
    // SAFETY: the list is libc's. The strings live until the process changes them.
    unsafe { find(current(), name).map(|(i, v)| (i, CStr::from_ptr(v))) }
}

/// Returns whether the user switched the collector off.
pub fn is_disabled() -> bool {
    value(ENV_DISABLE).is_some_and(|(_, v)| v == c"1")
}

/// Returns whether every stack is to be compared with a fresh walk.
pub fn verifies() -> bool {
    value(ENV_VERIFY).is_some_and(|(_, v)| v == c"1")
}

/// Returns whether a CPython's own layer is to be recorded.
pub fn sees_python() -> bool {
    value(ENV_PYTHON).is_none_or(|(_, v)| v != c"0")
}

/// Returns whether objects are to be found by the collector's own table.
pub fn wants_table() -> bool {
    value(ENV_OBJECTS).is_some_and(|(_, v)| v == c"table")
}

/// Returns the fault requested by a test.
pub fn fault() -> Option<&'static [u8]> {
    value(ENV_FAULT).map(|(_, v)| v.to_bytes())
}

/// Returns the arena handed on by the environment, if any.
pub fn arena() -> Option<ArenaHandle> {
    let (_, text) = value(ENV_ARENA)?;
    ArenaHandle::parse(text.to_bytes())
}

impl ArenaHandle {
    /// Parses `FD:DEV:INO`.
    pub fn parse(text: &[u8]) -> Option<ArenaHandle> {
        let mut numbers = text.split(|b| *b == b':').map(parse);
        let handle = ArenaHandle {
            fd: i32::try_from(numbers.next()??).ok()?,
            device: numbers.next()??,
            inode: numbers.next()??,
        };
        numbers.next().is_none().then_some(handle)
    }
}

/// Returns the way to the aggregator of the process tree, in a child.
pub fn way() -> Option<Way> {
    let (_, text) = value(ENV_TREE)?;
    Way::parse(text.to_bytes())
}

/// Runs `call` with another environment. Works only while the process has one thread, so no other
/// thread can see the other environment.
///
/// # Safety
/// 1. `list` is a null-terminated list of C strings.
/// 2. No other thread runs.
pub unsafe fn with<R>(list: *const *const c_char, call: impl FnOnce() -> R) -> R {
    // SAFETY: the caller guarantees a proper list, and that no other thread runs. The call may
    // change `environ`, and the process keeps the change.
    unsafe {
        let before = environ;
        let ours = list.cast_mut().cast();
        environ = ours;
        let result = call();
        if environ == ours {
            environ = before;
        }
        result
    }
}

fn parse(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, d| {
        let digit = d.checked_sub(b'0').filter(|d| *d < 10)?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Removes the variables added by the aggregator, and copies the collector's own path into `path`.
/// Returns the length of the path.
pub fn clean(path: &mut [u8]) -> usize {
    let Some((index, _)) = value(ENV_ARENA).or_else(|| value(ENV_TREE)) else { return 0 };
    // SAFETY: the list is libc's, and only this thread uses the list this early.
    unsafe {
        remove(index);
        let Some((index, preload)) = value(ENV_PRELOAD) else { return 0 };
        let bytes = preload.to_bytes();
        let own = bytes.iter().position(|b| *b == b':').unwrap_or(bytes.len());
        let Some(copy) = path.get_mut(..own) else { return 0 };
        copy.copy_from_slice(&bytes[..own]);
        match bytes.get(own + 1..) {
            // The user's own list moves to the beginning of the value.
            Some(rest) => ptr::copy(rest.as_ptr(), preload.as_ptr().cast_mut().cast::<u8>(), rest.len() + 1),
            None => remove(index),
        }
        own
    }
}

/// Removes a variable.
///
/// # Safety
/// 1. No other code uses the environment.
/// 2. The environment has more than `index` entries.
unsafe fn remove(index: usize) {
    // SAFETY: the caller guarantees the entry `index`. The list ends with null, and the null moves
    // too.
    unsafe {
        let mut at = list().add(index);
        while !(*at).is_null() {
            *at = *at.add(1);
            at = at.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let entries = [c"HEAPLINE_ARENAS=1", c"XHEAPLINE_ARENA=2", c"HEAPLINE_ARENA=3:4:5", c"HEAPLINE_ARENA"];
        let mut list: std::vec::Vec<*const c_char> = entries.iter().map(|e| e.as_ptr()).collect();
        list.push(ptr::null());
        // SAFETY: the list is a null-terminated list of C strings.
        let (index, value) = unsafe { find(list.as_ptr(), ENV_ARENA) }.expect("it is there");
        assert_eq!(index, 2);
        // SAFETY: the value lies inside a C string.
        assert_eq!(unsafe { CStr::from_ptr(value) }, c"3:4:5");
        // SAFETY: the list is a null-terminated list of C strings, or null.
        assert!(unsafe { find(list.as_ptr(), "HEAPLINE").is_none() && find(ptr::null(), "A").is_none() });
    }

    #[test]
    fn numbers_are_digits_that_fit() {
        assert_eq!(parse(b"18446744073709551615"), Some(u64::MAX));
        for wrong in [&b""[..], b"18446744073709551616", b"-1", b"1a", b" 1"] {
            assert_eq!(parse(wrong), None);
        }
    }
}
