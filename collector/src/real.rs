//! The real allocator: the provider after the collector in the search order. Either glibc, or
//! jemalloc, tcmalloc or mimalloc before glibc.
//!
//! Each pointer begins at a function that looks the real functions up, so a call costs one indirect
//! jump without a check. Where nothing can be looked up yet, blocks come from a small static area.
//! Blocks of the area are never handed to the real allocator.
//!
//! An allocator other than glibc's may consist of hooked functions too (a `malloc` that calls
//! `calloc`). The thread is marked during calls of such an allocator, so that nested calls are not
//! recorded a second time.

use crate::platform::{elf, libc, objects, symbols, tls};
use crate::start;
use crate::{attach, fork, mappings, thread};
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

static CAME_LATER: AtomicBool = AtomicBool::new(false);

/// Notes that the library was brought into a running process, where the library has no place in the
/// search order. To be called before any look-up.
pub fn come_later() {
    CAME_LATER.store(true, Ordering::Relaxed);
}

/// Returns whether the library was brought into a running process.
pub fn came_later() -> bool {
    CAME_LATER.load(Ordering::Relaxed)
}

/// Returns the function with this name that follows the collector in the search order, or null. The
/// list of objects must not change meanwhile, unless the collector has begun.
///
/// Before glibc 2.34 a function may come later, with a library of threads or of the loader.
pub fn next(name: &core::ffi::CStr) -> *mut () {
    let known = attach::original(name);
    if !known.is_null() || came_later() {
        return known;
    }
    let name = name.to_bytes();
    let found = if attach::is_leading() { objects::behind(name) } else { symbols::next(name) };
    ptr::with_exposed_provenance_mut(found.unwrap_or(0))
}

/// A function further down the search order, looked up at the first call.
pub(crate) struct Next {
    name: &'static core::ffi::CStr,
    found: AtomicPtr<()>,
}

impl Next {
    pub(crate) const fn new(name: &'static core::ffi::CStr) -> Next {
        Next { name, found: AtomicPtr::new(core::ptr::null_mut()) }
    }

    pub(crate) fn get(&self) -> Option<*mut ()> {
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            found = next(self.name);
            self.found.store(found, Ordering::Relaxed);
        }
        (!found.is_null()).then_some(found)
    }
}

/// Returns the `errno` of the calling thread.
pub fn errno() -> c_int {
    // SAFETY: `__errno_location` returns libc's own location for the thread.
    unsafe { *__errno_location() }
}

/// Returns the address of a function of the C library, to find the C library's object.
pub fn errno_location() -> usize {
    __errno_location as *const () as usize
}

/// Sets the `errno` of the calling thread.
pub fn set_errno(value: c_int) {
    // SAFETY: `__errno_location` returns libc's own location for the thread.
    unsafe { *__errno_location() = value }
}

macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?, $symbol:literal;)*) => {
        /// Pointers to the real functions.
        pub struct Real {
            $($name: AtomicPtr<()>,)*
        }

        static REAL: Real = Real { $($name: AtomicPtr::new(first::$name as *mut ()),)* };
        /// The functions of the provider, called from [`REAL`] by way of [`marked`].
        static PROVIDER: Real = Real { $($name: AtomicPtr::new(ptr::null_mut()),)* };

        impl Real {
            $(
                #[doc = concat!("The real `", stringify!($name), "`.")]
                ///
                /// # Safety
                /// The caller upholds the contract of the C function.
                #[inline(always)]
                pub unsafe fn $name(&self, $($arg: $type),*) $(-> $result)? {
                    let function = self.$name.load(Ordering::Relaxed);
                    // SAFETY: the pointer is always a function of this signature.
                    unsafe {
                        let function: unsafe extern "C" fn($($type),*) $(-> $result)? = core::mem::transmute(function);
                        function($($arg),*)
                    }
                }
            )*

            fn look_up() -> [*mut (); COUNT] {
                [$(next($symbol),)*]
            }

            fn set(&self, found: [*mut (); COUNT], boot_was_used: bool) {
                let is_others = found.iter().any(|real| !real.is_null() && !is_c_librarys(real.addr()));
                let is_musls = !is_others && libc::is_musl();
                let mut found = found.into_iter();
                $(
                    let real = found.next().unwrap_or(ptr::null_mut());
                    PROVIDER.$name.store(real, Ordering::Relaxed);
                    let real = match real.is_null() {
                        true => fallback::$name as *mut (),
                        false if is_others || is_musls && MADE_OF_OTHERS.contains(&$symbol) => marked::$name as *mut (),
                        false => real,
                    };
                    self.$name.store(real, Ordering::Release);
                )*
                if boot_was_used {
                    LATE_FREE.store(self.free.swap(boot::late_free as *mut (), Ordering::Relaxed), Ordering::Relaxed);
                    LATE_REALLOC.store(self.realloc.swap(boot::late_realloc as *mut (), Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        }

        const COUNT: usize = [$(stringify!($name)),*].len();

        /// Functions for calls of an allocator other than the C library's. The thread is marked
        /// meanwhile.
        mod marked {
            use super::*;
            $(
                pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $result)? {
                    // SAFETY: the caller upholds the contract of the C function of this name.
                    thread::in_allocator(|| unsafe { PROVIDER.$name($($arg),*) })
                }
            )*
        }

        /// Functions for the first calls: look everything up, then go on. During the look-up they
        /// serve blocks from the static area.
        mod first {
            use super::*;
            $(
                pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $result)? {
                    if !resolve() {
                        // SAFETY: the caller upholds the contract of the C function of this name.
                        return unsafe { boot::$name($($arg),*) };
                    }
                    // Before the call is recorded, the mode must be known: all events, or samples.
                    begin();
                    // SAFETY: the caller upholds the contract of the C function of this name.
                    unsafe { real().$name($($arg),*) }
                }
            )*
        }
    };
}

functions! {
    malloc(size: usize) -> *mut u8, c"malloc";
    calloc(count: usize, size: usize) -> *mut u8, c"calloc";
    realloc(old: *mut u8, size: usize) -> *mut u8, c"realloc";
    free(block: *mut u8), c"free";
    posix_memalign(result: *mut *mut u8, align: usize, size: usize) -> c_int, c"posix_memalign";
    aligned_alloc(align: usize, size: usize) -> *mut u8, c"aligned_alloc";
    memalign(align: usize, size: usize) -> *mut u8, c"memalign";
    valloc(size: usize) -> *mut u8, c"valloc";
    pvalloc(size: usize) -> *mut u8, c"pvalloc";
}

/// Functions of musl's allocator that call others of its functions by their names.
const MADE_OF_OTHERS: [&core::ffi::CStr; 4] = [c"calloc", c"posix_memalign", c"memalign", c"valloc"];

/// Returns whether a return address lies in a function of musl that allocates for the collector: in
/// one made of other functions of the allocator, or in `pthread_atfork`. The rest of musl calls the
/// program's allocator.
pub fn is_in_musls_allocator(address: usize) -> bool {
    /// Longer than any of these functions, and shorter than the way to a function that allocates.
    const LONGEST: usize = 256;
    let made = [&PROVIDER.calloc, &PROVIDER.posix_memalign, &PROVIDER.memalign, &PROVIDER.valloc];
    let made = made.into_iter().map(|function| function.load(Ordering::Relaxed).addr());
    let mut own = made.chain([fork::atfork_address()]);
    libc::is_musl() && own.any(|function| address.wrapping_sub(function) < LONGEST)
}

/// Returns the real functions.
#[inline(always)]
pub fn real() -> &'static Real {
    &REAL
}

/// Looks the real functions up, if not done yet.
pub fn prepare() {
    resolve();
}

/// Returns the address of the real `malloc`; 0 before the look-up.
pub fn provider_address() -> usize {
    PROVIDER.malloc.load(Ordering::Relaxed).addr()
}

/// Returns whether a function belongs to the C library.
fn is_c_librarys(function: usize) -> bool {
    elf::object_identity(function) == elf::object_identity(errno_location())
}

/// Handles the first event: starts the collector, and redirects calls that do not reach the hooks
/// by themselves.
#[cold]
fn begin() {
    if came_later() {
        return;
    }
    let _ = start::get_or_start(thread::stack_pointer());
    let errno_before = errno();
    let outer = tls::starting();
    tls::set_starting(thread::stack_pointer());
    attach::begin_preloaded();
    tls::set_starting(outer);
    set_errno(errno_before);
}

static STATE: AtomicU32 = AtomicU32::new(0);
static LATE_FREE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
static LATE_REALLOC: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Looks the real functions up, once. Returns false while another look-up is under way.
#[cold]
fn resolve() -> bool {
    const RESOLVING: u32 = 1;
    const DONE: u32 = 2;
    match STATE.compare_exchange(0, RESOLVING, Ordering::Acquire, Ordering::Acquire) {
        Ok(_) => {
            let is_early = elf::can_find_objects() && elf::own_bias().is_none();
            if is_early && !came_later() {
                // The loader has not finished with the program's objects.
                STATE.store(0, Ordering::Release);
                return false;
            }
            let errno_before = errno();
            let outer = tls::starting();
            tls::set_starting(thread::stack_pointer());
            let found = Real::look_up();
            mappings::look_up();
            tls::set_starting(outer);
            REAL.set(found, boot::was_used());
            set_errno(errno_before);
            STATE.store(DONE, Ordering::Release);
            true
        }
        Err(state) => state == DONE,
    }
}

/// Substitutes for functions missing from the provider.
mod fallback {
    use super::*;

    const EINVAL: c_int = 22;
    const ENOMEM: c_int = 12;
    const PAGE: usize = 4096;

    /// Every provider has these four. Should a provider lack one of them, callers see an allocator
    /// without memory.
    pub unsafe extern "C" fn malloc(_size: usize) -> *mut u8 {
        ptr::null_mut()
    }
    pub unsafe extern "C" fn calloc(_count: usize, _size: usize) -> *mut u8 {
        ptr::null_mut()
    }
    pub unsafe extern "C" fn realloc(_old: *mut u8, _size: usize) -> *mut u8 {
        ptr::null_mut()
    }
    pub unsafe extern "C" fn free(_block: *mut u8) {}

    pub unsafe extern "C" fn posix_memalign(result: *mut *mut u8, align: usize, size: usize) -> c_int {
        if !align.is_power_of_two() || align < size_of::<usize>() {
            return EINVAL;
        }
        // SAFETY: the caller guarantees a valid `result`, and upholds the contract of
        // `aligned_alloc`.
        unsafe {
            let block = real().aligned_alloc(align, size);
            if block.is_null() {
                return ENOMEM;
            }
            *result = block;
        }
        0
    }
    pub unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `aligned_alloc`, which covers `memalign`.
        unsafe { real().memalign(align, size) }
    }
    pub unsafe extern "C" fn memalign(_align: usize, _size: usize) -> *mut u8 {
        set_errno(ENOMEM);
        ptr::null_mut()
    }
    pub unsafe extern "C" fn valloc(size: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `valloc`, and `PAGE` is a power of two.
        unsafe { real().memalign(PAGE, size) }
    }
    pub unsafe extern "C" fn pvalloc(size: usize) -> *mut u8 {
        match size.max(1).checked_next_multiple_of(PAGE) {
            // SAFETY: the caller upholds the contract of `pvalloc`, and `PAGE` is a power of two.
            Some(size) => unsafe { real().memalign(PAGE, size) },
            None => ptr::null_mut(),
        }
    }
}

/// The allocator during the look-up: a static area, each byte given out once.
mod boot {
    use super::*;

    const BYTES: usize = 32 << 10;
    const HEADER: usize = 16;

    #[repr(C, align(4096))]
    struct Area(UnsafeCell<[u8; BYTES]>);

    // SAFETY: each byte is given out once, by an atomic counter.
    unsafe impl Sync for Area {}

    static AREA: Area = Area(UnsafeCell::new([0; BYTES]));
    static USED: AtomicUsize = AtomicUsize::new(0);

    pub fn was_used() -> bool {
        USED.load(Ordering::Relaxed) > 0
    }

    fn owns(block: *mut u8) -> bool {
        block.addr().wrapping_sub(AREA.0.get().addr()) < BYTES
    }

    fn take(size: usize, align: usize) -> *mut u8 {
        let align = align.clamp(HEADER, 4096);
        let Some(need) = size.checked_add(align + HEADER) else { return ptr::null_mut() };
        let start = USED.fetch_add(need.next_multiple_of(HEADER), Ordering::Relaxed);
        if start >= BYTES || BYTES - start < need {
            return ptr::null_mut();
        }
        let offset = (start + HEADER).next_multiple_of(align);
        // SAFETY: `offset` and `size` lie inside the piece taken above. The header before the block
        // keeps the size of the block.
        unsafe {
            let block = AREA.0.get().cast::<u8>().add(offset);
            block.sub(HEADER).cast::<usize>().write(size);
            block
        }
    }

    pub unsafe fn malloc(size: usize) -> *mut u8 {
        take(size, HEADER)
    }
    pub unsafe fn calloc(count: usize, size: usize) -> *mut u8 {
        count.checked_mul(size).map_or(ptr::null_mut(), |bytes| take(bytes, HEADER))
    }
    pub unsafe fn realloc(old: *mut u8, size: usize) -> *mut u8 {
        let block = take(size, HEADER);
        if !block.is_null() && owns(old) {
            // SAFETY: both blocks are at least `before.min(size)` bytes long, and do not overlap.
            // The header holds the size of the old block.
            unsafe {
                let before = old.sub(HEADER).cast::<usize>().read();
                ptr::copy_nonoverlapping(old, block, before.min(size));
            }
        }
        block
    }
    pub unsafe fn free(_block: *mut u8) {}
    pub unsafe fn posix_memalign(result: *mut *mut u8, align: usize, size: usize) -> c_int {
        // SAFETY: the caller guarantees a valid `result`.
        unsafe { *result = take(size, align) };
        0
    }
    pub unsafe fn aligned_alloc(align: usize, size: usize) -> *mut u8 {
        take(size, align)
    }
    pub unsafe fn memalign(align: usize, size: usize) -> *mut u8 {
        take(size, align)
    }
    pub unsafe fn valloc(size: usize) -> *mut u8 {
        take(size, 4096)
    }
    pub unsafe fn pvalloc(size: usize) -> *mut u8 {
        take(size, 4096)
    }

    /// The `free` of a process with blocks from the look-up.
    pub unsafe extern "C" fn late_free(block: *mut u8) {
        if !owns(block) {
            // SAFETY: `LATE_FREE` holds the real `free`, and the block belongs to the real
            // allocator.
            unsafe {
                let free: unsafe extern "C" fn(*mut u8) = core::mem::transmute(LATE_FREE.load(Ordering::Relaxed));
                free(block);
            }
        }
    }

    /// The `realloc` of a process with blocks from the look-up.
    pub unsafe extern "C" fn late_realloc(old: *mut u8, size: usize) -> *mut u8 {
        // SAFETY: `LATE_REALLOC` holds the real `realloc`, called only with blocks of the real
        // allocator. A block of the area is copied instead, with the size from the block's header.
        unsafe {
            if !owns(old) {
                let realloc: unsafe extern "C" fn(*mut u8, usize) -> *mut u8 =
                    core::mem::transmute(LATE_REALLOC.load(Ordering::Relaxed));
                return realloc(old, size);
            }
            let block = real().malloc(size);
            if !block.is_null() {
                let before = old.sub(HEADER).cast::<usize>().read();
                ptr::copy_nonoverlapping(old, block, before.min(size));
            }
            block
        }
    }
}
