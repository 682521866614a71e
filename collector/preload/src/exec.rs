//! exec and its family, and functions that start a program in a new process. The entry of a
//! variadic function makes a list of the arguments.

use crate::arch::entries::enter_with_list;
use core::ffi::{c_char, c_int, c_void};
use heapline_collector::exec;
use heapline_collector::exec::{List, Request};

/// Hook of `execve`.
///
/// # Safety
/// The caller upholds the contract of the C function `execve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, arguments: List, environment: List) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `execve`.
    unsafe { exec::execve(path, arguments, environment) }
}

/// Hook of `execv`.
///
/// # Safety
/// The caller upholds the contract of the C function `execv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, arguments: List) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `execv`.
    unsafe { exec::execve(path, arguments, exec::current_environment()) }
}

/// Hook of `execvpe`.
///
/// # Safety
/// The caller upholds the contract of the C function `execvpe`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(file: *const c_char, arguments: List, environment: List) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `execvpe`.
    unsafe { exec::execvpe(file, arguments, environment) }
}

/// Hook of `execvp`.
///
/// # Safety
/// The caller upholds the contract of the C function `execvp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: List) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `execvp`.
    unsafe { exec::execvpe(file, arguments, exec::current_environment()) }
}

/// Hook of `fexecve`.
///
/// # Safety
/// The caller upholds the contract of the C function `fexecve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(fd: c_int, arguments: List, environment: List) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `fexecve`.
    unsafe { exec::fexecve(fd, arguments, environment) }
}

/// Hook of `execveat`.
///
/// # Safety
/// The caller upholds the contract of the C function `execveat`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execveat(
    directory: c_int,
    path: *const c_char,
    arguments: List,
    environment: List,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `execveat`.
    unsafe { exec::execveat(directory, path, arguments, environment, flags) }
}

macro_rules! variadic {
    ($name:ident, $hook:ident, $call:expr) => {
        /// Hook of a variadic function of the exec family.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(path: *const c_char, first: *const c_char) -> c_int {
            enter_with_list!($hook)
        }

        unsafe extern "C" fn $hook(path: *const c_char, arguments: List) -> c_int {
            let call: unsafe fn(*const c_char, List) -> c_int = $call;
            // SAFETY: the caller upholds the contract of the C function, and `arguments` is the
            // spilled list.
            unsafe { call(path, arguments) }
        }
    };
}

// SAFETY: the list was made from the caller's arguments, which end with null.
variadic!(execl, hook_execl, |path, list| unsafe { exec::execve(path, list, exec::current_environment()) });
// SAFETY: the list was made from the caller's arguments, which end with null.
variadic!(execlp, hook_execlp, |file, list| unsafe { exec::execvpe(file, list, exec::current_environment()) });
// SAFETY: the list was made from the caller's arguments; the environment follows their final null.
variadic!(execle, hook_execle, |path, list| unsafe { exec::execve(path, list, exec::behind(list)) });

macro_rules! spawn {
    ($name:ident) => {
        /// Hook of a function of the `posix_spawn` family.
        ///
        /// # Safety
        /// The caller upholds the contract of the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            pid: *mut c_int,
            program: *const c_char,
            actions: *const c_void,
            attributes: *const c_void,
            arguments: List,
            environment: List,
        ) -> c_int {
            // SAFETY: the caller upholds the contract of the C function.
            unsafe { exec::$name(Request { pid, program, actions, attributes, arguments }, environment) }
        }
    };
}

spawn!(posix_spawn);
spawn!(posix_spawnp);

/// Hook of `system`.
///
/// # Safety
/// The caller upholds the contract of the C function `system`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn system(command: *const c_char) -> c_int {
    // SAFETY: the caller upholds the contract of the C function `system`.
    unsafe { exec::system(command) }
}

/// Hook of `popen`.
///
/// # Safety
/// The caller upholds the contract of the C function `popen`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn popen(command: *const c_char, kind: *const c_char) -> *mut c_void {
    // SAFETY: the caller upholds the contract of the C function `popen`.
    unsafe { exec::popen(command, kind) }
}
