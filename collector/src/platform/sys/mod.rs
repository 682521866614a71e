//! System calls, made directly: they leave `errno` alone and need no lock of the C library.
//!
//! Results are the kernel's: an error is `Err` with the positive error number.

mod files;
mod socket;

pub use files::{File, Program, fill_from_file, open, open_again, open_program, read_at, thread_count};
pub use socket::send_with_file;

use crate::arch::system_calls::{call, number as nr};

/// `EFAULT`.
pub const EFAULT: i32 = 14;
/// Protection of pages: no access.
pub const PROT_NONE: i32 = 0;
/// Protection of pages: readable.
pub const PROT_READ: i32 = 1;
/// Protection of pages: readable and writable.
pub const PROT_RW: i32 = 3;
/// Protection of pages: code, readable and executable.
pub const READ_EXECUTE: i32 = 5;
/// Protection of pages: code being changed.
pub const READ_WRITE_EXECUTE: i32 = 7;
/// Flag of a descriptor: close on exec.
pub const FD_CLOEXEC: usize = 1;

const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_NORESERVE: usize = 0x4000;

/// Makes the system call `mmap`, for the program.
///
/// # Safety
/// The caller upholds the contract of the system call `mmap`.
pub unsafe fn mmap(
    address: usize,
    bytes: usize,
    protection: i32,
    flags: i32,
    fd: i32,
    offset: isize,
) -> Result<usize, i32> {
    // SAFETY: the caller upholds the contract of the system call `mmap`.
    unsafe { call(nr::MMAP, [address, bytes, word(protection), word(flags), word(fd), offset.cast_unsigned()]) }
}

/// Makes the system call `munmap`, for the program.
///
/// # Safety
/// The caller upholds the contract of the system call `munmap`.
pub unsafe fn munmap(address: usize, bytes: usize) -> Result<usize, i32> {
    // SAFETY: the caller upholds the contract of the system call `munmap`.
    unsafe { call(nr::MUNMAP, [address, bytes, 0, 0, 0, 0]) }
}

/// Makes the system call `mremap`, for the program.
///
/// # Safety
/// The caller upholds the contract of the system call `mremap`.
pub unsafe fn mremap(old: usize, old_bytes: usize, bytes: usize, flags: i32, wanted: usize) -> Result<usize, i32> {
    // SAFETY: the caller upholds the contract of the system call `mremap`.
    unsafe { call(nr::MREMAP, [old, old_bytes, bytes, word(flags), wanted, 0]) }
}

/// Makes the system call `mprotect`, for the program.
///
/// # Safety
/// The caller upholds the contract of the system call `mprotect`.
pub unsafe fn mprotect(address: usize, bytes: usize, protection: i32) -> Result<usize, i32> {
    // SAFETY: the caller upholds the contract of the system call `mprotect`.
    unsafe { call(nr::MPROTECT, [address, bytes, word(protection), 0, 0, 0]) }
}

/// Makes the system call `pkey_mprotect`, for the program.
///
/// # Safety
/// The caller upholds the contract of the system call `pkey_mprotect`.
pub unsafe fn pkey_mprotect(address: usize, bytes: usize, protection: i32, key: i32) -> Result<usize, i32> {
    // SAFETY: the caller upholds the contract of the system call `pkey_mprotect`.
    unsafe { call(nr::PKEY_MPROTECT, [address, bytes, word(protection), word(key), 0, 0]) }
}

/// Returns an int as an argument of the kernel.
fn word(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

/// Maps fresh zeroed private memory.
pub fn map(bytes: usize) -> Option<*mut u8> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: a new mapping at an address chosen by the kernel touches no existing memory.
    let address = unsafe { call(nr::MMAP, [0, bytes, PROT_RW as usize, flags, usize::MAX, 0]) };
    address.ok().map(|a| a as *mut u8)
}

/// Maps fresh zeroed private memory. A child finds the memory wiped after any kind of fork.
pub fn map_wiped_on_fork(bytes: usize) -> Option<*mut u8> {
    const MADV_WIPEONFORK: usize = 18;
    let memory = map(bytes)?;
    // SAFETY: the range was mapped just now and holds nothing.
    match unsafe { call(nr::MADVISE, [memory as usize, bytes, MADV_WIPEONFORK, 0, 0, 0]) } {
        Ok(_) => Some(memory),
        Err(_) => {
            // SAFETY: the range was mapped just now, and no other code knows the address.
            unsafe { unmap(memory, bytes) };
            None
        }
    }
}

/// Maps a file: shared, readable and writable.
pub fn map_file(fd: i32, bytes: usize) -> Option<*mut u8> {
    // SAFETY: a new mapping at an address chosen by the kernel touches no existing memory.
    let address = unsafe { call(nr::MMAP, [0, bytes, PROT_RW as usize, MAP_SHARED, fd as usize, 0]) };
    address.ok().map(|a| a as *mut u8)
}

/// Unmaps memory.
///
/// # Safety
/// The range belongs to the caller, and no code uses the range any more.
pub unsafe fn unmap(memory: *mut u8, bytes: usize) {
    // SAFETY: the caller guarantees an own range without users.
    let _ = unsafe { munmap(memory as usize, bytes) };
}

/// Changes the protection of whole pages. Returns false when the system refuses.
///
/// # Safety
/// No code relies on an access allowed now and forbidden afterwards.
pub unsafe fn protect(address: usize, bytes: usize, protection: i32) -> bool {
    // SAFETY: the caller guarantees that no code relies on an access forbidden afterwards.
    unsafe { mprotect(address, bytes, protection) }.is_ok()
}

/// Lets the kernel page the range out again.
pub fn unlock(memory: *const u8, bytes: usize) {
    // SAFETY: the call changes no content.
    let _ = unsafe { call(nr::MUNLOCK, [memory as usize, bytes, 0, 0, 0, 0]) };
}

/// Returns whether the word at `address` is readable, asked of the kernel.
///
/// `rt_sigprocmask` copies the new set in before checking the (impossible) request. The call fails
/// with `EFAULT` for an unreadable address and with `EINVAL` otherwise, and changes nothing.
pub fn is_readable(address: usize) -> bool {
    // SAFETY: the request is invalid, so no mask changes; the kernel checks the address.
    let result = unsafe { call(nr::RT_SIGPROCMASK, [usize::MAX >> 33, address & !7, 0, 8, 0, 0]) };
    result != Err(EFAULT)
}

/// Copies values out of memory of the process that may be unmapped at any time, at most sixteen.
/// Returns the number of values before the first value that is not mapped; 0 where the kernel does
/// not copy.
///
/// # Safety
/// Any bytes are a valid `T`.
pub unsafe fn copy_mapped<T: Copy>(places: &[usize], into: &mut [T]) -> usize {
    const MOST: usize = 16;
    let count = places.len().min(into.len()).min(MOST);
    let mut pieces = [[0usize, size_of::<T>()]; MOST];
    pieces.iter_mut().zip(places).for_each(|(piece, &place)| piece[0] = place);
    let whole = [into.as_mut_ptr() as usize, count * size_of::<T>()];
    let (from, to) = (pieces.as_ptr() as usize, whole.as_ptr() as usize);
    // SAFETY: the kernel reads mapped memory only, and writes the values, which may be any bytes.
    let copied = unsafe { call(nr::PROCESS_VM_READV, [getpid() as usize, to, 1, from, count, 0]) };
    copied.map_or(0, |bytes| bytes / size_of::<T>())
}

/// Returns whether a stack address lies on the thread's alternate signal stack.
pub fn is_on_signal_stack(address: usize) -> bool {
    signal_stack().is_some_and(|(start, bytes)| address.wrapping_sub(start) < bytes)
}

/// Blocks all signals of the calling thread. Returns the mask for [`let_signals_come`].
pub fn hold_signals_back() -> u64 {
    let mut before = 0;
    set_signal_mask(&u64::MAX, &raw mut before);
    before
}

/// Restores the signal mask from before [`hold_signals_back`].
pub fn let_signals_come(mask: u64) {
    set_signal_mask(&mask, core::ptr::null_mut());
}

fn set_signal_mask(mask: &u64, before: *mut u64) {
    const SIG_SETMASK: usize = 2;
    let mask = core::ptr::from_ref(mask);
    // SAFETY: the kernel reads eight bytes, and writes eight bytes unless `before` is null.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, [SIG_SETMASK, mask as usize, before as usize, 8, 0, 0]) };
}

/// Returns address and size of the thread's alternate signal stack, if any.
pub fn signal_stack() -> Option<(usize, usize)> {
    const SS_DISABLE: usize = 2;
    let [address, flags, bytes] = signal_stack_words()?;
    (flags & SS_DISABLE == 0 && bytes != 0).then_some((address, bytes))
}

fn signal_stack_words() -> Option<[usize; 3]> {
    let mut stack = [0usize; 3];
    // SAFETY: the kernel writes a stack_t of three words.
    unsafe { call(nr::SIGALTSTACK, [0, stack.as_mut_ptr() as usize, 0, 0, 0, 0]) }.ok()?;
    Some(stack)
}

/// Returns the greatest size of the first thread's stack, in bytes.
pub fn stack_limit() -> usize {
    const RLIMIT_STACK: usize = 3;
    limit(RLIMIT_STACK).map_or(0, |[now, _]| now)
}

/// Returns the address space that the process may still take, in bytes; `None` without a limit.
pub fn address_space_left() -> Option<usize> {
    const RLIMIT_AS: usize = 9;
    let most = limit(RLIMIT_AS).map_or(usize::MAX, |[now, _]| now);
    if most == usize::MAX {
        return None;
    }
    let mut text = [0u8; 64];
    let bytes = fill_from_file(c"/proc/self/statm", &mut text);
    let digits = text[..bytes].iter().take_while(|byte| byte.is_ascii_digit());
    let pages = digits.fold(0usize, |pages, digit| pages.wrapping_mul(10).wrapping_add(usize::from(digit - b'0')));
    // Where the kernel does not report the space in use, nothing is left.
    Some(if bytes == 0 { 0 } else { most.saturating_sub(pages.saturating_mul(page_bytes())) })
}

/// Returns the present limit of a resource, and the greatest limit that may be set.
fn limit(resource: usize) -> Option<[usize; 2]> {
    let mut limit = [0usize; 2];
    // SAFETY: the kernel writes two words.
    unsafe { call(nr::PRLIMIT, [0, resource, 0, limit.as_mut_ptr() as usize, 0, 0]) }.ok()?;
    Some(limit)
}

fn set_limit(resource: usize, limit: [usize; 2]) -> bool {
    // SAFETY: the kernel reads two words.
    unsafe { call(nr::PRLIMIT, [0, resource, limit.as_ptr() as usize, 0, 0, 0]) }.is_ok()
}

/// Returns the id of the calling thread.
pub fn gettid() -> u32 {
    // SAFETY: the call involves no memory.
    #[expect(clippy::cast_possible_truncation, reason = "ids have 22 bits")]
    unsafe {
        call(nr::GETTID, [0; 6]).unwrap_or(0) as u32
    }
}

/// Returns the id of the process.
pub fn getpid() -> u32 {
    // SAFETY: the call involves no memory.
    #[expect(clippy::cast_possible_truncation, reason = "ids have 22 bits")]
    unsafe {
        call(nr::GETPID, [0; 6]).unwrap_or(0) as u32
    }
}

/// Returns the name of the calling thread, padded with zeros.
pub fn thread_name() -> [u8; 16] {
    const PR_GET_NAME: usize = 16;
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes.
    let _ = unsafe { call(nr::PRCTL, [PR_GET_NAME, name.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    name
}

/// Returns the nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes a timespec of two words.
    let _ = unsafe { call(nr::CLOCK_GETTIME, [1, time.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1])
}

/// Sleeps while `*word == expected`, at most `nanoseconds`. The word may be shared between
/// processes.
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, expected: u32, nanoseconds: u64) {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    // SAFETY: the word and the time outlive the call.
    let _ = unsafe { call(nr::FUTEX, [word.as_ptr() as usize, 0, expected as usize, time.as_ptr() as usize, 0, 0]) };
}

/// Wakes one thread sleeping on the word.
pub fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    // SAFETY: the word outlives the call.
    let _ = unsafe { call(nr::FUTEX, [word.as_ptr() as usize, 1, 1, 0, 0, 0]) };
}

/// Does an atomic OR with 0 of the 4 bytes at an address. The operation changes nothing, and fails
/// with `EFAULT` where the program could not write either.
pub fn futex_or_zero(own: &core::sync::atomic::AtomicU32, address: usize) -> Result<usize, i32> {
    const WAKE_OP_PRIVATE: usize = 5 | 128;
    const OR_ZERO: usize = 2 << 28;
    // SAFETY: no thread sleeps on either word, and OR with 0 changes nothing.
    unsafe { call(nr::FUTEX, [own.as_ptr() as usize, WAKE_OP_PRIVATE, 0, 0, address, OR_ZERO]) }
}

/// Returns the size of a page in bytes.
pub fn page_bytes() -> usize {
    unsafe extern "C" {
        fn getauxval(kind: u64) -> u64;
    }
    const AT_PAGESZ: u64 = 6;
    // SAFETY: the function only reads data handed to the process by the kernel.
    let bytes = unsafe { getauxval(AT_PAGESZ) };
    usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
}

/// Lets the aggregator's membarrier reach this process. Returns false where the kernel or a filter
/// refuses.
pub fn register_membarrier() -> bool {
    const REGISTER_GLOBAL_EXPEDITED: usize = 1 << 2;
    // SAFETY: the call involves no memory.
    unsafe { call(nr::MEMBARRIER, [REGISTER_GLOBAL_EXPEDITED, 0, 0, 0, 0, 0]) }.is_ok()
}

/// Returns sixty-four random bits, or bits hard to guess where the kernel gives none.
pub fn random() -> u64 {
    const GRND_NONBLOCK: usize = 1;
    let mut word = 0u64;
    // SAFETY: the kernel writes at most eight bytes.
    let got = unsafe { call(nr::GETRANDOM, [(&raw mut word) as usize, size_of::<u64>(), GRND_NONBLOCK, 0, 0, 0]) };
    if got == Ok(size_of::<u64>()) {
        word
    } else {
        monotonic().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(getpid())
    }
}

/// Closes a descriptor of the collector.
pub fn close(fd: i32) {
    // SAFETY: the call involves no memory.
    let _ = unsafe { call(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Identity and size of an open file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_size`, in bytes.
    pub bytes: u64,
}

/// Returns the identity of an open descriptor.
pub fn file_id(fd: i32) -> Option<FileId> {
    let mut stat = [0u64; 18];
    // SAFETY: the kernel writes a struct stat of 144 bytes.
    unsafe { call(nr::FSTAT, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }.ok()?;
    Some(FileId { device: stat[0], inode: stat[1], bytes: stat[6] })
}

/// Sets or clears close-on-exec.
pub fn set_close_on_exec(fd: i32, close: bool) {
    const F_SETFD: usize = 2;
    let flags = if close { FD_CLOEXEC } else { 0 };
    // SAFETY: the call involves no memory.
    let _ = unsafe { call(nr::FCNTL, [fd as usize, F_SETFD, flags, 0, 0, 0]) };
}

/// Creates a sealed memory file of fixed size, close-on-exec.
pub fn sealed_memory_file(name: &core::ffi::CStr, bytes: usize) -> Option<i32> {
    const CLOEXEC_ALLOW_SEALING: usize = 3;
    const F_ADD_SEALS: usize = 1033;
    const SEAL_SEAL_SHRINK_GROW: usize = 1 | 2 | 4;
    const RLIMIT_FSIZE: usize = 1;
    if limit(RLIMIT_FSIZE)?[0] < bytes {
        // A file beyond the limit would mean SIGXFSZ for the program.
        return None;
    }
    // SAFETY: the name is a C string; the other calls involve no memory.
    unsafe {
        let fd = call(nr::MEMFD_CREATE, [name.as_ptr() as usize, CLOEXEC_ALLOW_SEALING, 0, 0, 0, 0]).ok()?;
        let sized = call(nr::FTRUNCATE, [fd, bytes, 0, 0, 0, 0])
            .and_then(|_| call(nr::FCNTL, [fd, F_ADD_SEALS, SEAL_SEAL_SHRINK_GROW, 0, 0, 0]));
        if sized.is_err() {
            let _ = call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
            return None;
        }
        i32::try_from(fd).ok()
    }
}

/// Moves a descriptor of the collector to a number that the program does not need: right above the
/// program's limit, or else a high number out of many.
///
/// Returns `None` and closes the descriptor where the program would miss the number. A program may
/// have few descriptors, and may use the numbers of the standard streams after closing them.
pub fn move_out_of_the_way(fd: i32) -> Option<i32> {
    const RLIMIT_NOFILE: usize = 7;
    /// Above this number the kernel's table of descriptors would grow for a descriptor of the
    /// collector.
    const MOST: usize = 4096;
    let own = limit(RLIMIT_NOFILE);
    let above = own.filter(|&[now, _]| now <= MOST).and_then(|[now, most]| {
        // The limit is raised only for the moment of the move. A hard limit is raised where the
        // process has the right to.
        let room = now + 1;
        let is_raised = set_limit(RLIMIT_NOFILE, [room, most.max(room)]);
        let moved = is_raised.then(|| duplicate(fd, now)).flatten();
        if is_raised {
            set_limit(RLIMIT_NOFILE, [now, most]);
        }
        moved
    });
    let many = own.map_or(0, |[now, _]| now / 4);
    let high = || [900, 200, 64, 16].into_iter().filter(|&from| from <= many).find_map(|from| duplicate(fd, from));
    let moved = above.or_else(high);
    close(fd);
    moved
}

/// Returns another descriptor of the same file, with number `from` or higher, close-on-exec.
fn duplicate(fd: i32, from: usize) -> Option<i32> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: the call involves no memory.
    let duplicate = unsafe { call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, from, 0, 0, 0]) };
    duplicate.ok().and_then(|fd| i32::try_from(fd).ok())
}

/// Returns whether a file can neither shrink nor grow any more.
pub fn is_sealed(fd: i32) -> bool {
    const F_GET_SEALS: usize = 1034;
    const SHRINK_GROW: usize = 2 | 4;
    // SAFETY: the call involves no memory.
    let seals = unsafe { call(nr::FCNTL, [fd as usize, F_GET_SEALS, 0, 0, 0, 0]) };
    seals.is_ok_and(|seals| seals & SHRINK_GROW == SHRINK_GROW)
}

/// Writes the working directory with a final zero byte. Returns the number of bytes before the zero
/// byte.
pub fn current_directory(buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let n = unsafe { call(nr::GETCWD, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0]) }.ok()?;
    n.checked_sub(1)
}

/// Writes the path of the running program. Returns the number of bytes.
pub fn executable(buffer: &mut [u8]) -> Option<usize> {
    let link = c"/proc/self/exe".as_ptr() as usize;
    // SAFETY: the link is a C string, and the kernel writes at most the buffer's length.
    unsafe { call(nr::READLINK, [link, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) }.ok()
}
