//! The socket on which child processes report themselves: one message each, with their arena's
//! file.
//!
//! A stream socket, since thousands may wait to be accepted, where a datagram socket holds ten; a
//! child that has connected and sent may be gone by then.

use crate::base::sys;
use heapline_shared_format::tree::{Address, MAX_HELLO_BYTES};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// A message, and who sent it as the kernel says.
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
    listener: UnixListener,
    /// Connected, and about to say something.
    pending: Vec<UnixStream>,
    /// How it is found.
    pub address: Address,
}

/// Children that may wait to be heard; the system has a limit too (net.core.somaxconn).
const BACKLOG: libc::c_int = 4096;
/// Room for one descriptor, which is all that a collector sends, with its head.
const CONTROL_WORDS: usize = 8;

impl Socket {
    /// A socket with a random name and a random token.
    pub fn open() -> io::Result<Socket> {
        let two_words = || Ok::<_, io::Error>([sys::random()?, sys::random()?]);
        let address = Address { name: two_words()?, token: two_words()? };
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(address.socket_name())?)?;
        listener.set_nonblocking(true)?;
        // SAFETY: a plain call on a descriptor that listens already.
        sys::check(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) })?;
        Ok(Socket { listener, pending: Vec::new(), address })
    }

    /// What may become readable when there is a message.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        [self.listener.as_raw_fd()].into_iter().chain(self.pending.iter().map(AsRawFd::as_raw_fd))
    }

    /// The next message; none when there is none now.
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
    /// The other end has not sent it.
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
    // SAFETY: the header points to memory of the sizes that it tells, which outlives the call.
    let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut header, flags) };
    match usize::try_from(received) {
        Ok(0) => Received::Nothing,
        Ok(received) => {
            bytes.truncate(received);
            // SAFETY: the kernel has filled the header in.
            let file = unsafe { file(&header) };
            Received::Message(Message { bytes, file, pid, uid })
        }
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Received::NotYet,
            // It has reset the connection, or the like.
            _ => Received::Nothing,
        },
    }
}

/// The file that came with a message.
///
/// # Safety
/// `header` is what recvmsg left.
unsafe fn file(header: &libc::msghdr) -> Option<File> {
    let mut file = None;
    // SAFETY: the kernel's own list, walked as its macros say; descriptors in it belong to nobody
    // else yet.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(header);
        while let Some(head) = entry.as_ref() {
            let data = libc::CMSG_DATA(entry);
            if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = head.cmsg_len - (data.addr() - entry.addr());
                for i in 0..bytes / size_of::<RawFd>() {
                    // More than one are closed again.
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
