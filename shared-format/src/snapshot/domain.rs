//! Layers of memory.

use super::pools::{self, Pool};
use std::fmt;
use std::str::FromStr;

/// Tables of the file with rows of domains, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tables {
    /// Those of the first version.
    First,
    /// Those of reserved ranges.
    Reserved,
    /// Those of pools.
    Pools,
}

/// First number of a pool in the file.
const POOLS: u64 = 1 << 62;

/// A layer of memory. Layers are never summed: the block of a Python object is native memory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// CPython's allocators: tracemalloc's domain 0.
    Python,
    /// tracemalloc's domain N, N > 0 (`PyTraceMalloc_Track`).
    Track(u32),
    /// malloc and related functions.
    Native,
    /// Ranges mapped by the program (mmap, mremap, sbrk), and usable.
    Mmap,
    /// Ranges only reserved by the program (`PROT_NONE`).
    Reserved,
    /// A pool of the program's own (`heapline.h`).
    Pool(Pool),
}

impl Domain {
    /// Returns the domain's number in the file: tracemalloc's number for tracemalloc's domains,
    /// 2^32 and up for the others, 2^62 and up for pools.
    pub const fn code(self) -> u64 {
        match self {
            Domain::Python => 0,
            Domain::Track(n) => n as u64,
            Domain::Pool(pool) => POOLS | pool.number(),
            Domain::Native => 1 << 32,
            Domain::Mmap => (1 << 32) + 1,
            Domain::Reserved => (1 << 32) + 2,
        }
    }

    /// Returns the domain of a number in the file. None for an unknown number.
    pub fn from_code(code: u64) -> Option<Domain> {
        match code {
            0 => Some(Domain::Python),
            n if n >= POOLS => Pool::from_number(n - POOLS).map(Domain::Pool),
            n if n < 1 << 32 => Some(Domain::Track(u32::try_from(n).ok()?)),
            n if n == Domain::Native.code() => Some(Domain::Native),
            n if n == Domain::Mmap.code() => Some(Domain::Mmap),
            n if n == Domain::Reserved.code() => Some(Domain::Reserved),
            _ => None,
        }
    }

    /// Returns the tables of the file that hold the domain. Later Heaplines have added domains, and
    /// older readers pass the tables of those over.
    pub(super) const fn tables(self) -> Tables {
        match self {
            Domain::Reserved => Tables::Reserved,
            Domain::Pool(_) => Tables::Pools,
            Domain::Python | Domain::Track(_) | Domain::Native | Domain::Mmap => Tables::First,
        }
    }

    /// Whether blocks of the domain are sampled in a session of samples. Blocks of all other
    /// domains are always recorded.
    pub const fn is_sampled(self) -> bool {
        matches!(self, Domain::Python | Domain::Native)
    }

    /// Whether the domain is a pool of the program's own.
    pub const fn is_pool(self) -> bool {
        matches!(self, Domain::Pool(_))
    }

    /// Whether blocks of the domain are ranges of pages.
    pub const fn is_of_ranges(self) -> bool {
        matches!(self, Domain::Mmap | Domain::Reserved)
    }

    /// Word for the things in the domain.
    pub const fn noun(self) -> &'static str {
        if self.is_of_ranges() { "range" } else { "block" }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Python => f.write_str("python"),
            Domain::Track(n) => write!(f, "track:{n}"),
            Domain::Pool(pool) => write!(f, "pool:{pool}"),
            Domain::Native => f.write_str("native"),
            Domain::Mmap => f.write_str("mmap"),
            Domain::Reserved => f.write_str("mmap:reserved"),
        }
    }
}

/// Accepts the names printed by [`Domain`], and tracemalloc's numbers.
impl FromStr for Domain {
    type Err = String;

    fn from_str(s: &str) -> Result<Domain, String> {
        let number = |s: &str| match s.parse::<u32>() {
            Ok(0) => Some(Domain::Python),
            Ok(n) => Some(Domain::Track(n)),
            Err(_) => None,
        };
        match s {
            "python" => Ok(Domain::Python),
            "native" => Ok(Domain::Native),
            "mmap" => Ok(Domain::Mmap),
            "mmap:reserved" => Ok(Domain::Reserved),
            _ if s.starts_with("pool:") => Ok(Domain::Pool(pools::named(&s["pool:".len()..]))),
            _ => s.strip_prefix("track:").and_then(number).or_else(|| number(s)).ok_or_else(|| {
                format!("no domain is called {s:?}: use python, native, mmap, mmap:reserved, track:N, pool:NAME or tracemalloc's number")
            }),
        }
    }
}
