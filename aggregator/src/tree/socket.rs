//! The socket on which child processes report themselves: one datagram each, with their arena's file.

use crate::sys;
use heapline_shared_format::tree::{Address, MAX_HELLO_BYTES};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A datagram, and who sent it as the kernel says.
pub struct Message {
    /// Its bytes; one more than the longest message when it was longer.
    pub bytes: Vec<u8>,
    /// The file that came with it.
    pub file: Option<File>,
    /// Process id of the sender; 0 when it is none that can be seen from here.
    pub pid: u32,
    /// User id of the sender.
    pub uid: u32,
}

/// The receiving end.
pub struct Socket {
    socket: UnixDatagram,
    /// How it is found.
    pub address: Address,
}

/// Room for one descriptor (a collector sends no more) and for who sent it, with their heads.
const CONTROL_WORDS: usize = 16;

impl Socket {
    /// A socket with a random name and a random token.
    pub fn open() -> io::Result<Socket> {
        let mut random = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let word = |i: usize| random[8 * i..8 * i + 8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let address = Address { name: [word(0), word(1)], token: [word(2), word(3)] };
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(address.socket_name())?)?;
        socket.set_nonblocking(true)?;
        let on: libc::c_int = 1;
        #[expect(clippy::cast_possible_truncation, reason = "four bytes")]
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is an int, which outlives the call.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, (&raw const on).cast(), length)
        };
        sys::check(set)?;
        Ok(Socket { socket, address })
    }

    /// The next message; none when there is none now.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; MAX_HELLO_BYTES + 1];
        let mut control = [0u64; CONTROL_WORDS];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: zeros are a valid msghdr.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        // SAFETY: the header points to memory of the sizes that it tells, which outlives the call.
        let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            let is_nothing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if is_nothing { Ok(None) } else { Err(error) };
        };
        bytes.truncate(received);
        let mut message = Message { bytes, file: None, pid: 0, uid: u32::MAX };
        // SAFETY: the kernel has filled the header in.
        unsafe { message.read_control(&header) };
        Ok(Some(message))
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Message {
    /// # Safety
    /// `header` is what recvmsg left.
    unsafe fn read_control(&mut self, header: &libc::msghdr) {
        // SAFETY: the kernel's own list, walked as its macros say; descriptors in it belong to nobody else yet.
        unsafe {
            let mut entry = libc::CMSG_FIRSTHDR(header);
            while let Some(head) = entry.as_ref() {
                let data = libc::CMSG_DATA(entry);
                match (head.cmsg_level, head.cmsg_type) {
                    (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                        let bytes = head.cmsg_len - (data.addr() - entry.addr());
                        for i in 0..bytes / size_of::<RawFd>() {
                            // More than one are closed again.
                            let fd = OwnedFd::from_raw_fd(data.cast::<RawFd>().add(i).read_unaligned());
                            self.file = Some(File::from(fd));
                        }
                    }
                    (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                        let sender = data.cast::<libc::ucred>().read_unaligned();
                        self.pid = u32::try_from(sender.pid).unwrap_or(0);
                        self.uid = sender.uid;
                    }
                    _ => {}
                }
                entry = libc::CMSG_NXTHDR(header, entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    #[test]
    fn the_kernel_says_who_sent_what() {
        let socket = Socket::open().expect("a socket");
        assert!(socket.receive().expect("no error").is_none());
        let sender = UnixDatagram::unbound().expect("a socket");
        let name = SocketAddr::from_abstract_name(socket.address.socket_name()).expect("short");
        sender.connect_addr(&name).expect("it listens");
        sender.send(&[7; 5000]).expect("sent");
        sender.send(b"short").expect("sent");
        let long = socket.receive().expect("no error").expect("a message");
        assert_eq!(long.bytes.len(), MAX_HELLO_BYTES + 1, "cut, and seen to be too long");
        let short = socket.receive().expect("no error").expect("a message");
        assert_eq!((&short.bytes[..], short.pid, short.uid), (&b"short"[..], process::id(), sys::geteuid()));
        assert!(short.file.is_none());
    }
}
