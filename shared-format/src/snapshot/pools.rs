//! The pools of programs: domains with names.
//!
//! A pool is known by a number made from the name, so a domain stays a small value, and the number
//! is the same in every file. The names of all numbers met in this process stand in one list. A
//! snapshot brings the names of its pools.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

/// Bits of a number.
const BITS: u32 = 61;
/// Most names that are kept. A further name prints as a number.
const MOST: usize = 1 << 16;

/// A pool of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool(u64);

static NAMES: RwLock<BTreeMap<u64, String>> = RwLock::new(BTreeMap::new());

/// Returns the pool with a name, and keeps the name.
pub fn named(name: &str) -> Pool {
    // FNV-1a, folded to the bits of a number.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let number = (hash ^ hash >> BITS) & ((1 << BITS) - 1);
    let is_known = NAMES.read().unwrap_or_else(PoisonError::into_inner).contains_key(&number);
    if !is_known {
        let mut names = NAMES.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() < MOST {
            names.insert(number, name.to_owned());
        }
    }
    Pool(number)
}

impl Pool {
    /// Returns the number, less than 2^61.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the pool with a number. None for a number too large.
    pub const fn from_number(number: u64) -> Option<Pool> {
        if number >> BITS == 0 { Some(Pool(number)) } else { None }
    }

    /// Returns the name, if known.
    pub fn name(self) -> Option<String> {
        NAMES.read().unwrap_or_else(PoisonError::into_inner).get(&self.0).cloned()
    }
}

/// Prints the name, or the number of a pool without a known name.
impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(&name),
            None => write!(f, "#{:x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Domain;

    #[test]
    fn a_pool_is_known_by_its_name_everywhere() {
        let pool = named("pages of the cache");
        assert_eq!((named("pages of the cache"), pool.to_string().as_str()), (pool, "pages of the cache"));
        assert_ne!(named("other pages"), pool);
        let domain = Domain::Pool(pool);
        assert_eq!(Domain::from_code(domain.code()), Some(domain));
        assert_eq!(domain.to_string().parse(), Ok(domain));
        assert_eq!(Pool::from_number(77).map(|pool| pool.to_string()).as_deref(), Some("#4d"));
        assert_eq!(Pool::from_number(1 << 61), None);
    }
}
