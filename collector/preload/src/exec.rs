//! exec and its family, and what starts a program in a new process. The variadic ones spill their
//! register arguments below those on the stack, which makes a list.

use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_void};
use heapline_collector::exec;
use heapline_collector::exec::{List, Request};

/// # Safety
/// As the C function; so for all below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, arguments: List, environment: List) -> c_int {
    // SAFETY: passed on; so for all below.
    unsafe { exec::execve(path, arguments, environment) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, arguments: List) -> c_int {
    // SAFETY: passed on.
    unsafe { exec::execve(path, arguments, exec::current_environment()) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(file: *const c_char, arguments: List, environment: List) -> c_int {
    // SAFETY: passed on.
    unsafe { exec::execvpe(file, arguments, environment) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: List) -> c_int {
    // SAFETY: passed on.
    unsafe { exec::execvpe(file, arguments, exec::current_environment()) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(fd: c_int, arguments: List, environment: List) -> c_int {
    // SAFETY: passed on.
    unsafe { exec::fexecve(fd, arguments, environment) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execveat(
    directory: c_int,
    path: *const c_char,
    arguments: List,
    environment: List,
    flags: c_int,
) -> c_int {
    // SAFETY: passed on.
    unsafe { exec::execveat(directory, path, arguments, environment, flags) }
}

macro_rules! variadic {
    ($name:ident, $hook:ident, $call:expr) => {
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(path: *const c_char, first: *const c_char) -> c_int {
            naked_asm!(
                "pop r11",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "push r11",
                "call {hook}",
                "pop r11",
                "add rsp, 40",
                "push r11",
                "ret",
                hook = sym $hook,
            )
        }

        unsafe extern "C" fn $hook(path: *const c_char, arguments: List) -> c_int {
            let call: unsafe fn(*const c_char, List) -> c_int = $call;
            // SAFETY: the caller's call, passed on.
            unsafe { call(path, arguments) }
        }
    };
}

// SAFETY: the list was made from the caller's arguments, which end with null; so for all three.
variadic!(execl, hook_execl, |path, list| unsafe { exec::execve(path, list, exec::current_environment()) });
// SAFETY: as above.
variadic!(execlp, hook_execlp, |file, list| unsafe { exec::execvpe(file, list, exec::current_environment()) });
// SAFETY: as above, and the environment follows the null.
variadic!(execle, hook_execle, |path, list| unsafe { exec::execve(path, list, exec::behind(list)) });

macro_rules! spawn {
    ($name:ident) => {
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            pid: *mut c_int,
            program: *const c_char,
            actions: *const c_void,
            attributes: *const c_void,
            arguments: List,
            environment: List,
        ) -> c_int {
            // SAFETY: passed on.
            unsafe { exec::$name(Request { pid, program, actions, attributes, arguments }, environment) }
        }
    };
}

spawn!(posix_spawn);
spawn!(posix_spawnp);

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn system(command: *const c_char) -> c_int {
    // SAFETY: passed on.
    unsafe { exec::system(command) }
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn popen(command: *const c_char, kind: *const c_char) -> *mut c_void {
    // SAFETY: passed on.
    unsafe { exec::popen(command, kind) }
}
