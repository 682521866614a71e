//! One message with a descriptor, to a datagram socket in the abstract namespace.

use super::{call, close, monotonic, nr};

const AF_UNIX: usize = 1;
const SOCK_DGRAM_CLOEXEC: usize = 2 | 0o2_000_000;
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
    address: *const SocketAddress,
    address_bytes: u32,
    parts: *const [usize; 2],
    part_count: usize,
    control: *const Rights,
    control_bytes: usize,
    flags: u32,
}

/// Sends `parts` as one message, together with a descriptor, to the socket of that name, and waits for so long at most
/// when its queue is full. False when it is not there, or does not take it.
pub fn send_with_file(name: &[u8], parts: [&[u8]; 3], fd: i32, nanoseconds: u64) -> bool {
    let mut address = SocketAddress { family: 1, path: [0; 108] };
    // A zero byte first: the abstract namespace.
    let Some(place) = address.path.get_mut(1..=name.len()) else { return false };
    place.copy_from_slice(name);
    let parts = parts.map(|part| [part.as_ptr() as usize, part.len()]);
    let rights = Rights { bytes: 20, level: 1, kind: SCM_RIGHTS, fd, padding: 0 };
    let message = Message {
        address: &raw const address,
        #[expect(clippy::cast_possible_truncation, reason = "at most 110")]
        address_bytes: (2 + 1 + name.len()) as u32,
        parts: parts.as_ptr(),
        part_count: parts.len(),
        control: &raw const rights,
        control_bytes: size_of::<Rights>(),
        flags: 0,
    };
    // SAFETY: no memory is involved.
    let Ok(socket) = (unsafe { call(nr::SOCKET, [AF_UNIX, SOCK_DGRAM_CLOEXEC, 0, 0, 0, 0]) }) else { return false };
    let is_sent = send(socket, &message, monotonic() + nanoseconds);
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "descriptors are small")]
    close(socket as i32);
    is_sent
}

fn send(socket: usize, message: &Message, until: u64) -> bool {
    loop {
        let left = until.saturating_sub(monotonic());
        // A timeval; none at all would be for ever.
        let timeout = [left / 1_000_000_000, (left % 1_000_000_000 / 1000).max(1)];
        let timeout = (&raw const timeout) as usize;
        // SAFETY: the kernel reads two words; then the message and what it points to, which outlive the call.
        let sent = unsafe {
            let _ = call(nr::SETSOCKOPT, [socket, SOL_SOCKET, SO_SNDTIMEO, timeout, 16, 0]);
            call(nr::SENDMSG, [socket, (&raw const *message) as usize, MSG_NOSIGNAL, 0, 0, 0])
        };
        match sent {
            Ok(_) => return true,
            Err(EINTR) if left > 0 => {}
            Err(_) => return false,
        }
    }
}
