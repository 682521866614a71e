//! The socket for the reports of child processes. Each report is a single message with the file of
//! the child's arena.
//!
//! The socket is a stream socket: thousands of children may wait to be accepted, while a datagram
//! socket holds ten messages. A child may connect, send, and be gone before the aggregator accepts.

use crate::base::sys;
use heapline_shared_format::tree::{Address, MAX_HELLO_BYTES};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// A message, with the kernel's facts about the sender.
pub struct Message {
    /// Bytes of the message; a single byte more than the longest message for a longer message.
    pub bytes: Vec<u8>,
    /// File sent with the message.
    pub file: Option<File>,
    /// Process id of the sender; 0 for a sender not visible from here.
    pub pid: u32,
    /// User id of the sender.
    pub uid: u32,
}

/// The receiving end.
pub struct Socket {
    listener: UnixListener,
    /// Connections without a complete message.
    pending: Vec<UnixStream>,
    /// Address of the socket.
    pub address: Address,
}

/// Limit of the children waiting to be accepted. The system has a limit too (net.core.somaxconn).
const BACKLOG: libc::c_int = 4096;
/// Room for the single descriptor sent by a collector, with the head of the control message.
const CONTROL_WORDS: usize = 8;

impl Socket {
    /// Opens a socket with a random name and a random token.
    pub fn open() -> io::Result<Socket> {
        let two_words = || Ok::<_, io::Error>([sys::random()?, sys::random()?]);
        let address = Address { name: two_words()?, token: two_words()? };
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(address.socket_name())?)?;
        listener.set_nonblocking(true)?;
        // SAFETY: `listen` has no memory preconditions; the descriptor listens already.
        sys::check(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) })?;
        Ok(Socket { listener, pending: Vec::new(), address })
    }

    /// Returns the descriptors to watch: a message makes at least a single descriptor readable.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        [self.listener.as_raw_fd()].into_iter().chain(self.pending.iter().map(AsRawFd::as_raw_fd))
    }

    /// Returns the next message; none without a waiting message.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut i = 0;
        while i < self.pending.len() {
            match receive(&self.pending[i]) {
                Received::NotYet => i += 1,
                Received::Nothing => drop(self.pending.swap_remove(i)),
                Received::Message(message) => {
                    self.pending.swap_remove(i);
                    return Ok(Some(message));
                }
            }
        }
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            match receive(&stream) {
                Received::Message(message) => return Ok(Some(message)),
                Received::NotYet => self.pending.push(stream),
                Received::Nothing => {}
            }
        }
    }
}

enum Received {
    Message(Message),
    /// The other end has not sent the message.
    NotYet,
    /// The other end is gone.
    Nothing,
}

fn receive(stream: &UnixStream) -> Received {
    let Ok((pid, uid)) = sys::peer(stream) else { return Received::Nothing };
    let mut bytes = vec![0; MAX_HELLO_BYTES + 1];
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: zeros are a valid msghdr.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header points to memory of the sizes in the header. The memory outlives the call.
    let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut header, flags) };
    match usize::try_from(received) {
        Ok(0) => Received::Nothing,
        Ok(received) => {
            bytes.truncate(received);
            // SAFETY: recvmsg has filled in the header, as `file` requires.
            let file = unsafe { file(&header) };
            Received::Message(Message { bytes, file, pid, uid })
        }
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Received::NotYet,
            // For example, the other end has reset the connection.
            _ => Received::Nothing,
        },
    }
}

/// Takes the file sent with a message.
///
/// # Safety
/// The caller guarantees that recvmsg has filled in `header`.
unsafe fn file(header: &libc::msghdr) -> Option<File> {
    let mut file = None;
    // SAFETY: the caller guarantees a header filled in by recvmsg. The list in the header is walked
    // with the kernel's macros. Its descriptors have no other owner yet.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(header);
        while let Some(head) = entry.as_ref() {
            let data = libc::CMSG_DATA(entry);
            if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = head.cmsg_len - (data.addr() - entry.addr());
                for i in 0..bytes / size_of::<RawFd>() {
                    // Earlier descriptors of a message with several descriptors are closed again.
                    let fd = OwnedFd::from_raw_fd(data.cast::<RawFd>().add(i).read_unaligned());
                    file = Some(File::from(fd));
                }
            }
            entry = libc::CMSG_NXTHDR(header, entry);
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process;

    #[test]
    fn the_kernel_says_who_sent_what() {
        let mut socket = Socket::open().expect("a socket");
        assert!(socket.receive().expect("no error").is_none());
        let name = SocketAddr::from_abstract_name(socket.address.socket_name()).expect("short");
        let connect = || UnixStream::connect_addr(&name).expect("it listens");
        let mut slow = connect();
        let silent = connect();
        connect().write_all(&[7; 5000]).expect("sent, and gone");
        let long = socket.receive().expect("no error").expect("a message");
        assert_eq!(long.bytes.len(), MAX_HELLO_BYTES + 1, "cut, and seen to be too long");
        assert!(socket.receive().expect("no error").is_none());
        slow.write_all(b"short").expect("sent");
        drop(silent);
        let short = socket.receive().expect("no error").expect("a message");
        assert_eq!((&short.bytes[..], short.pid, short.uid), (&b"short"[..], process::id(), sys::geteuid()));
        assert!(short.file.is_none());
        assert!(socket.receive().expect("no error").is_none() && socket.pending.is_empty());
    }
}
