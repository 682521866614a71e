//! Functions called by an aggregator in a process with the injected library, and the hooks to which
//! calls are led there.

use crate::{exec, loader, malloc, mappings};
use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapline_collector::attach::{Hook, Hooks};
use heapline_collector::platform::tls;
use heapline_collector::{attach, fail};
use heapline_shared_format::inject::{Request, origin, status};

/// How the library came into the process. An aggregator that injects the library changes the value
/// in the file.
#[unsafe(no_mangle)]
pub static heapline_origin: AtomicU32 = AtomicU32::new(origin::PRELOADED);

/// Address of the jumps to the hooks for direct calls, or 0. The aggregator writes the word, named
/// `heapline_shared_format::inject::STUBS_SYMBOL`. The library holds the word, because the word is
/// needed for as long as the library is loaded.
#[unsafe(no_mangle)]
pub static heapline_stubs: AtomicU64 = AtomicU64::new(0);

/// Returns whether the loader brought the library in after the program had begun.
pub fn is_injected() -> bool {
    heapline_origin.load(Ordering::Relaxed) == origin::INJECTED
}

/// Attaches the collector, for an aggregator.
///
/// # Safety
/// `request` is the aggregator's request, in memory used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn heapline_attach(request: *mut Request) {
    // SAFETY: the caller guarantees a valid request, used by this call alone.
    let request = unsafe { &mut *request };
    if tls::is_there() {
        call(request, attach::attach);
    } else {
        request.status = status::NO_THREAD_WORDS;
    }
}

/// Detaches the collector, for an aggregator.
///
/// # Safety
/// `request` is the aggregator's request, in memory used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn heapline_detach(request: *mut Request) {
    // SAFETY: the caller guarantees a valid request, used by this call alone.
    call(unsafe { &mut *request }, attach::detach);
}

/// Releases the collector's memory, for an aggregator.
///
/// # Safety
/// `request` is the aggregator's request, in memory used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn heapline_release(request: *mut Request) {
    // SAFETY: the caller guarantees a valid request, used by this call alone.
    call(unsafe { &mut *request }, attach::release);
}

fn call(request: &mut Request, work: fn(&mut Request, &'static Hooks)) {
    let mut answer = *request;
    let done = fail::guard(|| {
        work(&mut answer, &HOOKS);
        answer
    });
    *request = done.unwrap_or(Request { status: status::FAILED, ..*request });
}

/// Makes hooks under their names in the C library.
macro_rules! hooks {
    ($($module:ident :: $name:ident),* $(,)?) => { [$(hook!($name, $module::$name)),*] };
}

macro_rules! hook {
    ($name:ident, $function:path) => {
        Hook::new(
            // SAFETY: the bytes are the function's name with one zero at the end.
            unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) },
            $function as *const (),
        )
    };
}

/// All hooks. Every function exported by the preload must be here, because a library loaded later
/// is not found by name.
#[unsafe(export_name = "heapline_hooks")]
pub static HOOKS: Hooks = Hooks(&[&MALLOC, &MAPPINGS, &EXEC, &LOADER]);

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

static LOADER: [Hook; 10] = hooks![
    loader::fork,
    loader::dlclose,
    loader::mlockall,
    loader::prctl,
    loader::pthread_key_create,
    loader::sigaltstack,
    loader::dlopen,
    loader::dlmopen,
    loader::dlsym,
    loader::dlvsym,
];
