//! exec keeps a traced process traced: the new image gets the collector and the arena's descriptor, by the two
//! variables that the collector had removed.
//!
//! Only for the process that is traced. In a child (forked or vforked) exec is left as it is, and so is `posix_spawn`.

use crate::environment::{ArenaHandle, ENV_PRELOAD, find};
use crate::loader::Next;
use crate::process::{self, Process};
use crate::{fail, real, sys};
use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::Ordering;
use heapline_shared_format::arena::ENV_ARENA;

/// A null-terminated list of C strings.
pub type List = *const *const c_char;

/// Room for `HEAPLINE_ARENA=` and three numbers.
const ARENA_VARIABLE_BYTES: usize = 96;

/// Runs an exec call with the environment that keeps the process traced, where that can be; else with its own.
///
/// # Safety
/// `environment` is a null-terminated list of C strings, or null. `path` is a C string, or null where it is not known.
pub unsafe fn with_tracing(path: *const c_char, environment: List, call: impl Fn(List) -> c_int) -> c_int {
    let process = process::get().filter(|p| !p.own_path().is_empty() && p.is_traced() && p.is_self());
    let Some(process) = process else { return call(environment) };
    // SAFETY: the caller's promises.
    let prepared = fail::guard(|| unsafe { Prepared::new(process, path, environment) }).flatten();
    // Counted in any case, so that the aggregator knows of a program that will not be traced.
    let target = &process.header().target;
    target.exec_begun.fetch_add(1, Ordering::Release);
    let status = match &prepared {
        Some(prepared) => {
            sys::set_close_on_exec(prepared.arena.fd, false);
            call(prepared.list)
        }
        None => call(environment),
    };
    // Only a failed call returns.
    let errno = real::errno();
    target.exec_failed.fetch_add(1, Ordering::Release);
    if let Some(prepared) = prepared {
        sys::set_close_on_exec(prepared.arena.fd, true);
        // SAFETY: the list was for this call only.
        unsafe { sys::unmap(prepared.memory, prepared.bytes) };
    }
    real::set_errno(errno);
    status
}

#[derive(Clone, Copy)]
struct Prepared {
    arena: ArenaHandle,
    list: List,
    memory: *mut u8,
    bytes: usize,
}

impl Prepared {
    /// # Safety
    /// As [`with_tracing`].
    unsafe fn new(process: &'static Process, path: *const c_char, environment: List) -> Option<Prepared> {
        let own_path = process.own_path();
        let arena = process.arena_fd()?;
        // SAFETY: the caller's promises; the collector's own path was copied from a C string into zeroed memory.
        unsafe {
            if !is_readable(own_path) || (!path.is_null() && !can_preload(path)) {
                return None;
            }
            let count = length(environment);
            let preload = find(environment, ENV_PRELOAD);
            let theirs = preload.map_or(&[][..], |(_, value)| CStr::from_ptr(value).to_bytes());
            let list_bytes = (count + 3) * size_of::<*const c_char>();
            let preload_bytes = ENV_PRELOAD.len() + 1 + own_path.len() + 1 + theirs.len() + 1;
            let bytes = list_bytes + ARENA_VARIABLE_BYTES + preload_bytes;
            let memory = sys::map(bytes)?;
            let list = memory.cast::<*const c_char>();
            if count > 0 {
                ptr::copy_nonoverlapping(environment, list, count);
            }
            let arena_variable = memory.add(list_bytes);
            write_arena_variable(arena_variable, arena);
            let preload_variable = arena_variable.add(ARENA_VARIABLE_BYTES);
            let mut writer = Writer(preload_variable);
            writer.put(ENV_PRELOAD.as_bytes()).put(b"=").put(own_path);
            if preload.is_some() {
                writer.put(b":").put(theirs);
            }
            // In place of the user's own, or behind the last; the order of all others stays.
            list.add(preload.map_or(count, |(index, _)| index)).write(preload_variable.cast());
            list.add(count + usize::from(preload.is_none())).write(arena_variable.cast());
            Some(Prepared { arena, list, memory, bytes })
        }
    }
}

/// # Safety
/// `list` is a null-terminated list, or null.
unsafe fn length(list: List) -> usize {
    let mut n = 0;
    // SAFETY: stops at the terminator.
    unsafe {
        while !list.is_null() && !(*list.add(n)).is_null() {
            n += 1;
        }
    }
    n
}

/// # Safety
/// A zero byte follows `path`.
unsafe fn is_readable(path: &[u8]) -> bool {
    let mut start = [0u8; 1];
    // SAFETY: the caller's promise.
    unsafe { sys::read_start(path.as_ptr().cast(), &mut start) == Some(1) }
}

/// Whether the loader would accept a 64-bit library: a 32-bit program would print an error instead.
///
/// # Safety
/// `path` is a C string.
unsafe fn can_preload(path: *const c_char) -> bool {
    let mut start = [0u8; 20];
    // SAFETY: the caller's promise.
    let Some(n) = (unsafe { sys::read_start(path, &mut start) }) else { return true };
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u8 = 62;
    n < start.len() || start[..4] != *b"\x7fELF" || (start[4] == CLASS_64 && start[18] == MACHINE_X86_64)
}

struct Writer(*mut u8);

impl Writer {
    /// # Safety
    /// The memory has room for the bytes and a zero behind them.
    unsafe fn put(&mut self, bytes: &[u8]) -> &mut Writer {
        // SAFETY: the caller's promise.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, bytes.len());
            self.0 = self.0.add(bytes.len());
        }
        self
    }
}

/// # Safety
/// `to` has [`ARENA_VARIABLE_BYTES`] zero bytes.
unsafe fn write_arena_variable(to: *mut u8, arena: ArenaHandle) {
    let mut writer = Writer(to);
    let mut digits = [0u8; 20];
    // SAFETY: the name, three numbers of at most 20 digits and the separators fit.
    unsafe {
        writer.put(ENV_ARENA.as_bytes()).put(b"=");
        writer.put(decimal(u64::try_from(arena.fd).unwrap_or(0), &mut digits)).put(b":");
        writer.put(decimal(arena.device, &mut digits)).put(b":");
        writer.put(decimal(arena.inode, &mut digits));
    }
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        let digit = (number % 10) as u8;
        digits[at] = b'0' + digit;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// The environment that the functions without an environment argument pass on.
pub fn current_environment() -> List {
    crate::environment::current()
}

/// The environment argument behind the null of `execle`'s list.
///
/// # Safety
/// `arguments` is null-terminated, and a pointer follows the null.
pub unsafe fn behind(arguments: List) -> List {
    // SAFETY: the caller's promise.
    unsafe { (*arguments.add(length(arguments) + 1)).cast() }
}

macro_rules! exec_call {
    ($(#[$doc:meta])* $name:ident($($before:ident: $type:ty),*; environment $(, $after:ident: $after_type:ty)*), $path:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the C function's.
        pub unsafe fn $name($($before: $type,)* environment: List $(, $after: $after_type)*) -> c_int {
            // SAFETY: a C string made from the function's name.
            static NEXT: Next = Next::new(unsafe {
                CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes())
            });
            type Function = unsafe extern "C" fn($($type,)* List $(, $after_type)*) -> c_int;
            let Some(next) = NEXT.get() else {
                real::set_errno(ENOSYS);
                return -1;
            };
            // SAFETY: the C function of that name; the arguments are the caller's.
            unsafe {
                let next: Function = core::mem::transmute(next);
                with_tracing($path, environment, |environment| next($($before,)* environment $(, $after)*))
            }
        }
    };
}

const ENOSYS: c_int = 38;

exec_call!(
    /// `execve`.
    execve(path: *const c_char, arguments: List; environment), path
);
exec_call!(
    /// `execvpe`.
    execvpe(file: *const c_char, arguments: List; environment), ptr::null()
);
exec_call!(
    /// `fexecve`.
    fexecve(fd: c_int, arguments: List; environment), ptr::null()
);
exec_call!(
    /// `execveat`.
    execveat(directory: c_int, path: *const c_char, arguments: List; environment, flags: c_int), ptr::null()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_what_a_new_image_reads() {
        let mut memory = [0u8; ARENA_VARIABLE_BYTES];
        let arena = ArenaHandle { fd: i32::MAX, device: u64::MAX, inode: 0 };
        // SAFETY: zeroed memory of the size that is asked for.
        unsafe { write_arena_variable(memory.as_mut_ptr(), arena) };
        let text = CStr::from_bytes_until_nul(&memory).expect("a zero is left");
        assert_eq!(text, c"HEAPLINE_ARENA=2147483647:18446744073709551615:0");
    }

    #[test]
    fn only_64_bit_programs_and_scripts_are_preloaded() {
        let directory = std::env::temp_dir().join(std::format!("heapline-exec-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let check = |bytes: &[u8]| {
            let path = directory.join("file");
            std::fs::write(&path, bytes).expect("a file");
            let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero");
            // SAFETY: a C string.
            unsafe { can_preload(path.as_ptr()) }
        };
        let elf = |class, machine| {
            let mut header = [0u8; 64];
            header[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
            header[18] = machine;
            header
        };
        assert!(check(&elf(2, 62)));
        assert!(!check(&elf(1, 3)), "i386");
        assert!(!check(&elf(2, 183)), "arm64");
        assert!(check(b"#!/bin/sh\nexec true and more\n"));
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
