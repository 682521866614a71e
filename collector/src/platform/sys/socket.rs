//! One message with a descriptor, to a stream socket in the abstract namespace. A sent message
//! stays there for the listener, also when the sender ends before the listener accepts.

use super::{call, close, monotonic, nr};

const AF_UNIX: u16 = 1;
const SOCK_STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
const SOL_SOCKET: usize = 1;
const SO_SNDTIMEO: usize = 21;
const SCM_RIGHTS: u32 = 1;
const MSG_NOSIGNAL: usize = 0x4000;
const EINTR: i32 = 4;

/// `struct sockaddr_un`.
#[repr(C)]
struct SocketAddress {
    family: u16,
    path: [u8; 108],
}

/// `struct cmsghdr` with one descriptor, padded as the kernel wants it.
#[repr(C)]
struct Rights {
    bytes: usize,
    level: u32,
    kind: u32,
    fd: i32,
    padding: u32,
}

/// `struct msghdr`.
#[repr(C)]
struct Message {
    address: usize,
    address_bytes: u32,
    parts: *const [usize; 2],
    part_count: usize,
    control: *const Rights,
    control_bytes: usize,
    flags: u32,
}

/// Sends `parts` as one message, together with a descriptor, to the socket called `name`. Waits at
/// most `nanoseconds` while too many other senders wait there. Returns false when the socket is
/// missing, or does not take the message.
pub fn send_with_file(name: &[u8], parts: [&[u8]; 3], fd: i32, nanoseconds: u64) -> bool {
    let mut address = SocketAddress { family: AF_UNIX, path: [0; 108] };
    // The abstract namespace begins with a zero byte.
    let Some(place) = address.path.get_mut(1..=name.len()) else { return false };
    place.copy_from_slice(name);
    let address_bytes = 2 + 1 + name.len();
    let parts = parts.map(|part| [part.as_ptr() as usize, part.len()]);
    let rights = Rights { bytes: 20, level: 1, kind: SCM_RIGHTS, fd, padding: 0 };
    let message = Message {
        address: 0,
        address_bytes: 0,
        parts: parts.as_ptr(),
        part_count: parts.len(),
        control: &raw const rights,
        control_bytes: size_of::<Rights>(),
        flags: 0,
    };
    // SAFETY: the call involves no memory.
    let socket = unsafe { call(nr::SOCKET, [AF_UNIX.into(), SOCK_STREAM_CLOEXEC, 0, 0, 0, 0]) };
    let Ok(socket) = socket else { return false };
    let until = monotonic() + nanoseconds;
    let (address, message) = ((&raw const address) as usize, (&raw const message) as usize);
    // SAFETY: the kernel reads the address, then the message and the parts of the message. All of
    // them outlive the calls.
    let is_sent = unsafe {
        persist(socket, nr::CONNECT, [address, address_bytes], until)
            && persist(socket, nr::SENDMSG, [message, MSG_NOSIGNAL], until)
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "descriptors are small")]
    close(socket as i32);
    is_sent
}

/// Makes a call on a socket. The call may block. The function repeats an interrupted call until the
/// call is done or the time is over.
///
/// # Safety
/// The call with these arguments touches only memory that the caller may let the kernel touch.
unsafe fn persist(socket: usize, nr: usize, args: [usize; 2], until: u64) -> bool {
    loop {
        let left = until.saturating_sub(monotonic());
        // A timeval. All zeros would mean no limit.
        let timeout = [left / 1_000_000_000, (left % 1_000_000_000 / 1000).max(1)];
        let timeout = (&raw const timeout) as usize;
        // SAFETY: the kernel reads two words for the limit; the caller guarantees the memory of the
        // call itself.
        let done = unsafe {
            let _ = call(nr::SETSOCKOPT, [socket, SOL_SOCKET, SO_SNDTIMEO, timeout, 16, 0]);
            call(nr, [socket, args[0], args[1], 0, 0, 0])
        };
        match done {
            Ok(_) => return true,
            Err(EINTR) if left > 0 => {}
            Err(_) => return false,
        }
    }
}
