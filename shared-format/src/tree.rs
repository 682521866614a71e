//! How the processes of a followed tree find their aggregator.
//!
//! A process that is to be traced from its start makes an arena of its own, begins a session in it, and sends the memory
//! file in one message ([`Hello`]) to the aggregator's socket, a stream socket in the abstract namespace. So nothing
//! of it is lost, however short its life is. A forked child finds the way in its parent's arena
//! ([`crate::arena::Tree`]), a program that exec began in its environment ([`Way`], as text in [`ENV_TREE`]).
//!
//! A process is known by a random key; a fork by its number among those of the process that forked.

use crate::arena::{Tree, VERSION};
use crate::sync::Ordering;

/// Environment variable that tells a collector that starts whose child it is: see [`Way::write`].
pub const ENV_TREE: &str = "HEAPLINE_TREE";
/// What the socket's name begins with; sixteen random bytes in hexadecimal follow.
pub const NAME_PREFIX: &[u8] = b"heapline-";
/// Bytes of the socket's name.
pub const NAME_BYTES: usize = NAME_PREFIX.len() + 32;

/// Where the aggregator listens, and what it wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Of the socket.
    pub name: [u64; 2],
    /// Only processes of the tree know it.
    pub token: [u64; 2],
}

impl Address {
    /// The socket's name in the abstract namespace, without the zero byte before it.
    pub fn socket_name(&self) -> [u8; NAME_BYTES] {
        let digits = |i: usize| {
            let word = self.name[i / 16];
            b"0123456789abcdef"[(word >> (60 - 4 * (i % 16)) & 15) as usize]
        };
        core::array::from_fn(|i| match i.checked_sub(NAME_PREFIX.len()) {
            None => NAME_PREFIX[i],
            Some(i) => digits(i),
        })
    }
}

/// What a process needs in order to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The aggregator.
    pub address: Address,
    /// Key of the parent, or of the process itself when exec has replaced its program.
    pub parent: u64,
    /// Number of the fork; 0 where there was none, or none that is known.
    pub fork: u64,
    /// Segments of the pool.
    pub segments: u32,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Clock of the stamps.
    pub clock: u32,
    /// Mean distance of samples, in bytes; 0 when everything is recorded.
    pub sample: u64,
}

const NUMBERS: usize = 10;
/// Most bytes of a [`Way`] as text.
pub const WAY_BYTES: usize = NUMBERS * 17;

impl Way {
    /// The way for children of the process whose arena has `tree`; none while they are not followed.
    pub fn of(tree: &Tree, fork: u64, (nframe, clock, sample): (u32, u32, u64)) -> Option<Way> {
        // Acquire pairs with the Release of whoever wrote the rest.
        if tree.follows.load(Ordering::Acquire) == 0 {
            return None;
        }
        let two = |words: &[crate::sync::AtomicU64; 2]| [0, 1].map(|i: usize| words[i].load(Ordering::Relaxed));
        let address = Address { name: two(&tree.name), token: two(&tree.token) };
        let segments = tree.segments.load(Ordering::Relaxed);
        Some(Way { address, parent: tree.key.load(Ordering::Relaxed), fork, segments, nframe, clock, sample })
    }

    /// Lets the children of the process whose arena has `tree` follow; `key` is that process's.
    pub fn open(&self, tree: &Tree, key: u64) {
        tree.segments.store(self.segments, Ordering::Relaxed);
        for i in 0..2 {
            tree.name[i].store(self.address.name[i], Ordering::Relaxed);
            tree.token[i].store(self.address.token[i], Ordering::Relaxed);
        }
        tree.key.store(key, Ordering::Relaxed);
        tree.follows.store(1, Ordering::Release);
    }

    fn numbers(&self) -> [u64; NUMBERS] {
        let Address { name, token } = self.address;
        let small = [self.segments, self.nframe, self.clock].map(u64::from);
        [name[0], name[1], token[0], token[1], self.parent, self.fork, small[0], small[1], small[2], self.sample]
    }

    /// Writes the text of [`ENV_TREE`]: hexadecimal numbers, separated by colons. Returns its length.
    pub fn write(&self, text: &mut [u8; WAY_BYTES]) -> usize {
        let mut at = 0;
        for (i, number) in self.numbers().into_iter().enumerate() {
            if i > 0 {
                text[at] = b':';
                at += 1;
            }
            let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
            for digit in (0..digits).rev() {
                text[at] = b"0123456789abcdef"[(number >> (4 * digit) & 15) as usize];
                at += 1;
            }
        }
        at
    }

    /// Understands what [`Way::write`] wrote.
    pub fn parse(text: &[u8]) -> Option<Way> {
        let mut numbers = [0; NUMBERS];
        let mut parts = text.split(|&byte| byte == b':');
        for number in &mut numbers {
            *number = hexadecimal(parts.next()?)?;
        }
        let small = |number: u64| u32::try_from(number).ok();
        let way = Way {
            address: Address { name: [numbers[0], numbers[1]], token: [numbers[2], numbers[3]] },
            parent: numbers[4],
            fork: numbers[5],
            segments: small(numbers[6])?,
            nframe: small(numbers[7])?,
            clock: small(numbers[8])?,
            sample: numbers[9],
        };
        parts.next().is_none().then_some(way)
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |number, &byte| {
        let digit = char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase())?;
        Some(number << 4 | u64::from(digit))
    })
}

/// How a process came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// It was forked: a copy of its parent.
    Fork,
    /// exec has begun a program, in a new process or in one that was traced already.
    Exec,
}

/// What a process says of itself, with its arena's memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// [`Address::token`].
    pub token: [u64; 2],
    /// Its key.
    pub key: u64,
    /// [`Way::parent`].
    pub parent: u64,
    /// [`Way::fork`].
    pub fork: u64,
    /// How it came to be.
    pub birth: Birth,
    /// Its process id, as it sees it.
    pub pid: u32,
    /// Path of its executable; empty where that is not known.
    pub executable: &'a [u8],
    /// Its arguments, each with a zero behind it; may be cut.
    pub arguments: &'a [u8],
}

/// First bytes of a message.
pub const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"HEAPHELO");
/// Bytes of a message before the path of the executable.
pub const HELLO_BYTES: usize = HELLO_WORDS * 8;
const HELLO_WORDS: usize = 9;
/// Longest path in a message; a longer one is left out.
pub const MAX_EXECUTABLE_BYTES: usize = 1024;
/// Most bytes of arguments in a message; what is more is cut.
pub const MAX_ARGUMENT_BYTES: usize = 2048;
/// Longest message.
pub const MAX_HELLO_BYTES: usize = HELLO_BYTES + MAX_EXECUTABLE_BYTES + MAX_ARGUMENT_BYTES;

/// Why bytes are no message from a process of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// Not from a collector.
    Foreign,
    /// From a collector of another version.
    Version {
        /// The version in the message.
        found: u32,
    },
    /// Lengths or numbers that no collector writes.
    Malformed,
}

const FORK: u64 = 1;
const EXEC: u64 = 2;

impl<'a> Hello<'a> {
    /// The part before the executable's path and the arguments, which follow in this order.
    pub fn head(&self) -> [u8; HELLO_BYTES] {
        let birth = if self.birth == Birth::Fork { FORK } else { EXEC };
        let words: [u64; HELLO_WORDS] = [
            HELLO_MAGIC,
            u64::from(VERSION) << 32 | birth,
            self.token[0],
            self.token[1],
            self.key,
            self.parent,
            self.fork,
            self.pid.into(),
            (self.executable.len() as u64) << 32 | self.arguments.len() as u64,
        ];
        let mut bytes = [0; HELLO_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Understands a whole message, which is untrusted.
    pub fn parse(bytes: &'a [u8]) -> Result<Hello<'a>, HelloError> {
        let (head, rest) = bytes.split_at_checked(HELLO_BYTES).ok_or(HelloError::Foreign)?;
        let mut words = [0; HELLO_WORDS];
        for (word, bytes) in words.iter_mut().zip(head.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        let [magic, kind, token_a, token_b, key, parent, fork, pid, lengths] = words;
        if magic != HELLO_MAGIC {
            return Err(HelloError::Foreign);
        }
        let (found, birth) = halves(kind);
        if found != VERSION {
            return Err(HelloError::Version { found });
        }
        let birth = match u64::from(birth) {
            FORK => Birth::Fork,
            EXEC => Birth::Exec,
            _ => return Err(HelloError::Malformed),
        };
        let pid = u32::try_from(pid).map_err(|_| HelloError::Malformed)?;
        let (executable, arguments) = halves(lengths);
        let (executable, arguments) = (executable as usize, arguments as usize);
        if executable > MAX_EXECUTABLE_BYTES || arguments > MAX_ARGUMENT_BYTES || rest.len() != executable + arguments {
            return Err(HelloError::Malformed);
        }
        let (executable, arguments) = rest.split_at(executable);
        Ok(Hello { token: [token_a, token_b], key, parent, fork, birth, pid, executable, arguments })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "two halves")]
fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}
