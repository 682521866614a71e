//! System calls and instructions without a wrapper in a crate, each in one small safe function.

use heapline_shared_format::arch::counter;
use heapline_shared_format::event::STAMP_BITS;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, SystemTime};

/// Returns the thread id of the caller.
pub fn gettid() -> u32 {
    // The C library has a function for the call since glibc 2.30.
    // SAFETY: `gettid` has no arguments and no effects.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u32::try_from(tid).expect("a thread id is a positive pid_t")
}

/// Makes a forked child a session of its own, which ends when its parent ends.
pub fn die_with(parent: libc::pid_t) {
    // SAFETY: the four functions have no preconditions. When the parent dies before the call of
    // `prctl`, no signal arrives; the check of `getppid` covers this case.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(1);
        }
    }
}

/// Gives the calling thread the highest priority, where the system allows the change.
pub fn be_urgent() {
    const MOST_URGENT: libc::c_int = -20;
    // SAFETY: `setpriority` takes plain numbers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, MOST_URGENT) };
}

/// Takes back the priority of [`be_urgent`], which new threads inherit.
pub fn be_ordinary() {
    // SAFETY: `setpriority` takes plain numbers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// Makes this process one that may be lost: the process ends with the parent's thread, writes no
/// core file, takes at most `bytes` of address space, and is the first victim when memory is short.
/// `idle`: the process runs only on idle processors.
pub fn be_expendable(idle: bool, bytes: u64) {
    let at_most = |limit| libc::rlimit { rlim_cur: limit, rlim_max: limit };
    let (no_core, memory) = (at_most(0), at_most(bytes));
    let policy = if idle { libc::SCHED_IDLE } else { libc::SCHED_BATCH };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `prctl` takes plain numbers here; the pointers lead to local values that are only
    // read during the calls. A refused call leaves the process as it was.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        libc::setrlimit(libc::RLIMIT_AS, &raw const memory);
        libc::sched_setscheduler(0, policy, &raw const parameters);
    }
    // Where /proc is not there, memory is short for all alike.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Returns standard input as a file.
pub fn standard_input() -> io::Result<File> {
    Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// Returns the effective user id of the caller.
pub fn geteuid() -> u32 {
    // SAFETY: `geteuid` has no arguments and no effects.
    unsafe { libc::geteuid() }
}

/// Whether the effective user id of the caller has a mapping. A user namespace shows one number for
/// all ids without a mapping.
pub fn is_mapped_user() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return true };
    is_mapped(&map, geteuid())
}

/// Whether a user id is in `/proc/PID/uid_map`. Each line has the first id inside, the first id
/// outside, and the number of ids.
fn is_mapped(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (first, count) = (numbers.next().unwrap_or(0), numbers.nth(1).unwrap_or(0));
        (first..first.saturating_add(count)).contains(&u64::from(uid))
    })
}

/// Whether the kernel lets the caller write to the path.
pub fn can_write(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

/// Creates an empty memory file.
pub fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is a C string that outlives the call.
    let fd = unsafe { check(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC))? };
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Creates an unchangeable memory file with these bytes. A program can load the file as a library.
pub fn sealed_memory_file(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: `name` is a C string that outlives the calls. A kernel before 6.3 rejects MFD_EXEC,
    // and does not need the flag.
    let fd = unsafe {
        check(libc::memfd_create(name.as_ptr(), flags | libc::MFD_EXEC))
            .or_else(|_| check(libc::memfd_create(name.as_ptr(), flags)))?
    };
    // SAFETY: the descriptor was just opened and has no other owner.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    // SAFETY: `fcntl` takes plain numbers here.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
    Ok(file)
}

/// Returns the effective group id of the caller.
pub fn getegid() -> u32 {
    // SAFETY: `getegid` has no arguments and no effects.
    unsafe { libc::getegid() }
}

/// Sleeps until one of three events: `word` is no longer `value`, another thread wakes the word, or
/// the time is over.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the word and the timeout outlive the call; the kernel only reads them.
    // FUTEX_PRIVATE_FLAG is not set, because the other side is another process.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout) };
}

/// Wakes all threads asleep on `word`.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel uses the address only as a key.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Whether `membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)` is available.
pub fn has_membarrier() -> bool {
    // SAFETY: a query of `membarrier` has no effects.
    let supported = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_QUERY, 0, 0) };
    supported > 0 && supported & i64::from(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED) != 0
}

/// Makes every running thread of every registered process pass a memory barrier. Returns false when
/// the kernel refuses.
pub fn membarrier() -> bool {
    // SAFETY: a barrier writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0 }
}

/// Reads the counter of the processor, after all earlier loads, as a stamp.
pub fn tsc() -> u64 {
    counter::after_loads() & ((1 << STAMP_BITS) - 1)
}

/// Reads `CLOCK_MONOTONIC` in nanoseconds, as a stamp.
pub fn monotonic() -> u64 {
    let now = clock(libc::CLOCK_MONOTONIC);
    let nanos = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
    nanos & ((1 << STAMP_BITS) - 1)
}

/// Returns the processor time of this process, all threads together.
pub fn processor_time() -> Duration {
    let time = clock(libc::CLOCK_PROCESS_CPUTIME_ID);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(time.tv_sec.unsigned_abs(), nanos)
}

fn clock(number: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the callers' clocks exist on every Linux, and `now` is valid for the write.
    unsafe { libc::clock_gettime(number, &mut now) };
    now
}

/// Returns local time less UTC at a time, in seconds.
pub fn utc_offset(time: SystemTime) -> i32 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(0);
    let mut local = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both places are valid, and all zeros are a valid `tm`.
    let local = unsafe {
        libc::localtime_r(&seconds, local.as_mut_ptr());
        local.assume_init()
    };
    i32::try_from(local.tm_gmtoff).unwrap_or(0)
}

/// Returns the process and user id of the other end of a socket. The process is 0 when it is not
/// visible from this namespace.
pub fn peer(stream: &UnixStream) -> io::Result<(u32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    #[expect(clippy::cast_possible_truncation, reason = "twelve bytes")]
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let into = (&raw mut credentials).cast();
    // SAFETY: the value of the option is a ucred, and `credentials` has room for a ucred.
    let result =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &mut length) };
    check(result).map(|_| (u32::try_from(credentials.pid).unwrap_or(0), credentials.uid))
}

/// Returns a descriptor that becomes readable when the process ends.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: `pidfd_open` takes plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the descriptor is readable. Returns false when the time is over or a signal came.
pub fn await_readable(fd: &OwnedFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is a single pollfd, valid for reads and writes.
    let ready = unsafe { libc::poll(&mut poll, 1, timeout) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}

/// Waits until the file takes more bytes. The timeout or a signal ends the wait.
pub fn await_writable(file: &File, timeout: Duration) {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is a single pollfd, valid for reads and writes.
    unsafe { libc::poll(&mut poll, 1, timeout) };
}

/// Connects to an abstract socket name, without waiting. Fails when the connection would take time:
/// any user may listen there, and never answer.
pub fn connect_at_once(name: &[u8]) -> io::Result<UnixStream> {
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
    let family = libc::AF_UNIX as libc::sa_family_t;
    address.sun_family = family;
    // An abstract name begins with a zero byte.
    let place = address.sun_path.get_mut(1..=name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    place.iter_mut().zip(name).for_each(|(place, byte)| *place = byte.cast_signed());
    let bytes = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    let bytes = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the descriptor was just opened and has no other owner.
    let stream = unsafe { UnixStream::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?) };
    // SAFETY: `bytes` is the size of the address, which outlives the call.
    check(unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), bytes) })?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether the other end of a socket has left.
pub fn has_left(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `poll` is a single pollfd, valid for reads and writes.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

/// Waits until at least one descriptor is ready.
pub fn poll(fds: &mut [libc::pollfd]) {
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
    // SAFETY: `fds` holds `count` pollfds, valid for reads and writes. A signal ends the wait
    // early, without harm.
    unsafe { libc::poll(fds.as_mut_ptr(), count, -1) };
}

/// Raises the limit of open descriptors of this process to its maximum.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the write and the read. A refused change leaves the limit as it
    // was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Returns an unguessable number.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: `bytes` is valid for the write. A read of 8 bytes is never cut short.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// Turns -1 into the error in `errno`.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// List read by the kernel when a thread ends. Its only entry is the futex owned by the thread.
#[repr(C)]
struct RobustList {
    first: *const RobustNode,
    futex_offset: isize,
    pending: *const RobustNode,
    node: RobustNode,
}

#[repr(C)]
struct RobustNode {
    next: *const RobustNode,
}

/// Makes the kernel set `FUTEX_OWNER_DIED` in `word` when the calling thread ends, in any way,
/// while `word` contains the thread's id.
///
/// From then on, this list is the only robust list of the thread. The thread must not use robust
/// pthread mutexes; no Rust code uses them.
pub fn own_robustly(word: &AtomicU32) -> io::Result<()> {
    let list = Box::leak(Box::new(RobustList {
        first: std::ptr::null(),
        futex_offset: 0,
        pending: std::ptr::null(),
        node: RobustNode { next: std::ptr::null() },
    }));
    let node = &raw const list.node;
    list.first = node;
    list.node.next = (&raw const list.first).cast();
    list.futex_offset = (word.as_ptr() as isize).wrapping_sub(node as isize);
    // The kernel's list head is the first three fields.
    let head_bytes = std::mem::offset_of!(RobustList, node);
    // SAFETY: the list is leaked, so the list exists when the kernel reads it at the end of the
    // thread. The list is circular over one node. If the futex is no longer mapped at this time,
    // the kernel's walk ends.
    let result = unsafe { libc::syscall(libc::SYS_set_robust_list, &raw const *list, head_bytes) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the current limit of a resource; `u64::MAX` for no limit.
pub fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the write.
    let result = unsafe { libc::getrlimit(resource, &mut limit) };
    if result == 0 { limit.rlim_cur } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_namespace_maps_some_users() {
        assert!(is_mapped("         0          0 4294967295\n", 0) && is_mapped("0 0 4294967295", 65_534));
        let rootless = "0 1000 1\n1 100000 65536\n";
        assert!(is_mapped(rootless, 0) && is_mapped(rootless, 65_536));
        assert!(!is_mapped(rootless, 65_537) && !is_mapped("", 65_534));
    }

    #[test]
    fn a_memory_file_keeps_what_was_written() {
        let file = sealed_memory_file(c"test", b"bytes").expect("memory");
        assert!((&file).write_all(b"x").is_err());
        assert_eq!(std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("readable"), b"bytes");
    }
}
