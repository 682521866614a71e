//! What an aggregator calls in a process that it has brought the library into, and where calls are led to there.

use crate::{cxx, exec, malloc, mappings};
use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapline_collector::attach::{self, Hook, Hooks, late};
use heapline_collector::fail;
use heapline_shared_format::inject::{Request, origin, status};

/// How the library came into the process. An aggregator that injects it changes the value in the file.
#[unsafe(no_mangle)]
pub static heapline_origin: AtomicU32 = AtomicU32::new(origin::PRELOADED);

/// See `heapline_shared_format::inject::STUBS_SYMBOL`: kept here, since it is needed for as long as the library is.
#[unsafe(no_mangle)]
pub static heapline_stubs: AtomicU64 = AtomicU64::new(0);

/// Whether the loader brought the library in after the program had begun.
pub fn is_injected() -> bool {
    heapline_origin.load(Ordering::Relaxed) == origin::INJECTED
}

/// # Safety
/// The aggregator's request, in memory that is this call's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn heapline_attach(request: *mut Request) {
    // SAFETY: the caller's promise.
    call(unsafe { &mut *request }, attach::attach);
}

/// # Safety
/// As [`heapline_attach`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn heapline_detach(request: *mut Request) {
    // SAFETY: the caller's promise.
    call(unsafe { &mut *request }, attach::detach);
}

fn call(request: &mut Request, work: fn(&mut Request, &'static Hooks)) {
    let mut answer = *request;
    let done = fail::guard(|| {
        work(&mut answer, &HOOKS);
        answer
    });
    *request = done.unwrap_or(Request { status: status::FAILED, ..*request });
}

/// Hooks under the names that the C library has for them.
macro_rules! hooks {
    ($($module:ident :: $name:ident),* $(,)?) => { [$(hook!($name, $module::$name)),*] };
}

macro_rules! hook {
    ($name:ident, $function:path) => {
        Hook::new(
            // SAFETY: made from the function's name, with one zero at its end.
            unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) },
            $function as *const (),
        )
    };
}

/// All that calls are led to. What the preload exports must be here: loaded later, nobody finds it by name.
static HOOKS: Hooks = Hooks(&[&MALLOC, &MAPPINGS, &EXEC, &LOADER, &cxx::HOOKS]);

static MALLOC: [Hook; 13] = hooks![
    malloc::malloc,
    malloc::calloc,
    malloc::realloc,
    malloc::reallocarray,
    malloc::free,
    malloc::cfree,
    malloc::posix_memalign,
    malloc::aligned_alloc,
    malloc::memalign,
    malloc::valloc,
    malloc::pvalloc,
    malloc::free_sized,
    malloc::free_aligned_sized,
];

static MAPPINGS: [Hook; 8] = hooks![
    mappings::mmap,
    mappings::mmap64,
    mappings::munmap,
    mappings::mremap,
    mappings::mprotect,
    mappings::pkey_mprotect,
    mappings::brk,
    mappings::sbrk,
];

static EXEC: [Hook; 13] = hooks![
    exec::posix_spawn,
    exec::posix_spawnp,
    exec::system,
    exec::popen,
    exec::execl,
    exec::execle,
    exec::execlp,
    exec::execv,
    exec::execve,
    exec::execveat,
    exec::execvp,
    exec::execvpe,
    exec::fexecve,
];

static LOADER: [Hook; 6] = [
    hook!(fork, crate::fork),
    hook!(dlclose, crate::dlclose),
    hook!(mlockall, crate::mlockall),
    hook!(prctl, crate::prctl),
    hook!(dlopen, dlopen),
    hook!(dlsym, dlsym),
];

/// `dlopen`: jumped to where it matters who calls, else called.
///
/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void {
    naked_asm!(
        ".cfi_startproc",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "mov rsi, qword ptr [rsp + 24]",
        "call {jump_to}",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "test rax, rax",
        "jz {call}",
        "jmp rax",
        ".cfi_endproc",
        jump_to = sym late::jump_to_dlopen,
        call = sym late::dlopen,
    )
}

/// `dlsym`, likewise.
///
/// # Safety
/// As the C function.
#[unsafe(naked)]
unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    naked_asm!(
        ".cfi_startproc",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call {jump_to}",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "test rax, rax",
        "jz {call}",
        "jmp rax",
        ".cfi_endproc",
        jump_to = sym late::jump_to_dlsym,
        call = sym late::dlsym,
    )
}
