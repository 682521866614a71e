//! How the processes of a followed tree find the aggregator.
//!
//! A process traced from the start takes these steps, so that no event is lost, however short its
//! life is:
//!
//! 1. The process makes an arena.
//! 2. The process begins a session in the arena.
//! 3. The process sends the arena's memory file in a message ([`Hello`]) to the aggregator's
//!    socket, a stream socket in the abstract namespace.
//!
//! The way to the aggregator comes from:
//!
//! - the arena of the parent ([`crate::arena::Tree`]), for a forked child;
//! - the environment ([`Way`], as text in [`ENV_TREE`]), for a program begun by exec.
//!
//! A random key identifies a process. A fork is identified by a number, counted by the forking
//! process.

use crate::arena::{Tree, VERSION};
use crate::sync::Ordering;

/// Environment variable with the way to the aggregator, for a starting collector: see
/// [`Way::write`].
pub const ENV_TREE: &str = "HEAPLINE_TREE";
/// Prefix of the socket's name; sixteen random bytes in hexadecimal follow.
pub const NAME_PREFIX: &[u8] = b"heapline-";
/// Length of the socket's name in bytes.
pub const NAME_BYTES: usize = NAME_PREFIX.len() + 32;

/// Name of the aggregator's socket, and the token of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Random bytes in the name of the socket.
    pub name: [u64; 2],
    /// Secret token, known only to processes of the tree.
    pub token: [u64; 2],
}

impl Address {
    /// Returns the socket's name in the abstract namespace, without the leading zero byte.
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

/// Everything needed by a process to begin tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Address of the aggregator.
    pub address: Address,
    /// Key of the parent. After an exec in a traced process: key of the process itself.
    pub parent: u64,
    /// Number of the fork. 0 without a fork, or with an unknown fork.
    pub fork: u64,
    /// Number of segments of the pool.
    pub segments: u32,
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Clock of the stamps.
    pub clock: u32,
    /// Mean distance of samples, in bytes; 0 when everything is recorded.
    pub sample: u64,
}

/// How a process is recorded; its children are recorded the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Frames kept per traceback.
    pub nframe: u32,
    /// Clock of the stamps.
    pub clock: u32,
    /// Mean distance of samples, in bytes; 0 when everything is recorded.
    pub sample: u64,
}

const NUMBERS: usize = 10;
/// Greatest length of a [`Way`] as text, in bytes.
pub const WAY_BYTES: usize = NUMBERS * 17;

impl Way {
    /// Returns the way for children of a process whose arena has `tree`. None while children are
    /// not followed.
    pub fn of(tree: &Tree, fork: u64, recording: Recording) -> Option<Way> {
        let Recording { nframe, clock, sample } = recording;
        // Acquire pairs with the Release in `open`, after the other fields.
        if tree.follows.load(Ordering::Acquire) == 0 {
            return None;
        }
        let two = |words: &[crate::sync::AtomicU64; 2]| [0, 1].map(|i: usize| words[i].load(Ordering::Relaxed));
        let address = Address { name: two(&tree.name), token: two(&tree.token) };
        let segments = tree.segments.load(Ordering::Relaxed);
        Some(Way { address, parent: tree.key.load(Ordering::Relaxed), fork, segments, nframe, clock, sample })
    }

    /// Lets the children follow: fills `tree` in the arena of the process with key `key`.
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

    /// Writes the text of [`ENV_TREE`]: hexadecimal numbers, separated by colons. Returns the
    /// length of the text.
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

    /// Parses a text written by [`Way::write`].
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
    /// The process was forked: a copy of the parent.
    Fork,
    /// exec began a program, in a new process or in a traced process.
    Exec,
}

/// A process's message about itself, sent with the memory file of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Token of the tree ([`Address::token`]).
    pub token: [u64; 2],
    /// Key of the process.
    pub key: u64,
    /// Key of the parent ([`Way::parent`]).
    pub parent: u64,
    /// Number of the fork ([`Way::fork`]).
    pub fork: u64,
    /// How the process came to be.
    pub birth: Birth,
    /// Process id, as seen by the process.
    pub pid: u32,
    /// Path of the executable; empty when unknown.
    pub executable: &'a [u8],
    /// Arguments of the process, each with a zero behind it. May be cut.
    pub arguments: &'a [u8],
}

/// First bytes of a message.
pub const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"HEAPHELO");
/// Number of bytes of a message before the path of the executable.
pub const HELLO_BYTES: usize = HELLO_WORDS * 8;
const HELLO_WORDS: usize = 9;
/// Longest path in a message, in bytes; a longer path is left out.
pub const MAX_EXECUTABLE_BYTES: usize = 1024;
/// Largest number of bytes of arguments in a message; the rest is cut.
pub const MAX_ARGUMENT_BYTES: usize = 2048;
/// Longest message, in bytes.
pub const MAX_HELLO_BYTES: usize = HELLO_BYTES + MAX_EXECUTABLE_BYTES + MAX_ARGUMENT_BYTES;

/// Why bytes are no message from a process of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The bytes do not come from a collector.
    Foreign,
    /// The bytes come from a collector of another version.
    Version {
        /// The version in the message.
        found: u32,
    },
    /// A length or number is impossible for a collector.
    Malformed,
}

const FORK: u64 = 1;
const EXEC: u64 = 2;

impl<'a> Hello<'a> {
    /// Returns the first part of the message. The path of the executable and the arguments follow.
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

    /// Parses a whole message. The bytes are untrusted.
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
