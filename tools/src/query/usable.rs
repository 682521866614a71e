//! Bytes of a block that the program can use: the size that was asked for, rounded up by the
//! allocator's rule.
//!
//! The rule is known by the name of the allocator, and no question was put to the allocator. Rules
//! are those of 64-bit processes.

use heapline_shared_format::snapshot::{Domain, Snapshot};

/// Rule of an allocator.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    allocator: &'static str,
    /// Usable bytes for a size.
    usable: fn(u64) -> u64,
    /// Greatest size of the rule. Larger blocks have pages of their own, or not, as the allocator
    /// decides while it runs.
    most: u64,
}

const RULES: [Rule; 3] = [
    Rule { allocator: "glibc", usable: of_glibc, most: (128 << 10) - 24 },
    Rule { allocator: "jemalloc", usable: of_jemalloc, most: u64::MAX },
    // Up to its large blocks, the classes are those of jemalloc.
    Rule { allocator: "mimalloc", usable: of_jemalloc, most: 128 << 10 },
];

impl Rule {
    /// Returns the rule for the blocks of a domain.
    ///
    /// # Errors
    ///
    /// Fails with a sentence if the rule is not known.
    pub fn of(snapshot: &Snapshot, domain: Domain) -> Result<Rule, String> {
        if domain != Domain::Native {
            return Err(format!("the rounding of the allocator of {domain} is not known"));
        }
        let allocator = snapshot.meta.allocator.as_deref();
        let rule = RULES.into_iter().find(|rule| Some(rule.allocator) == allocator);
        rule.ok_or_else(|| match allocator {
            Some(name) => format!("the rounding of {name} is not known, as its size classes depend on its build"),
            None => "the allocator of the process is not known, and neither is its rounding".to_owned(),
        })
    }

    /// Name of the allocator.
    pub fn allocator(&self) -> &'static str {
        self.allocator
    }

    /// Unused bytes of `count` blocks. None for blocks too large for the rule.
    pub fn unused(&self, size: u64, count: u64) -> Option<u64> {
        Some((self.usable(size)? - size).saturating_mul(count))
    }

    /// Usable bytes of a block. None for a block too large for the rule.
    pub fn usable(&self, size: u64) -> Option<u64> {
        (size <= self.most).then(|| (self.usable)(size))
    }
}

/// What is unused by rounding, in a report by size.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// Rule of the allocator.
    pub rule: Rule,
    /// Unused bytes of all blocks.
    pub unused: u64,
    /// Blocks too large for the rule.
    pub unknown: u64,
}

impl Rounding {
    /// Adds up the rounding of blocks, given by size and number.
    pub fn of(rule: Rule, blocks: impl Iterator<Item = (u64, u64)>) -> Rounding {
        let mut sum = Rounding { rule, unused: 0, unknown: 0 };
        for (size, count) in blocks {
            match rule.unused(size, count) {
                Some(unused) => sum.unused = sum.unused.saturating_add(unused),
                None => sum.unknown = sum.unknown.saturating_add(count),
            }
        }
        sum
    }
}

/// glibc: a head of 8 bytes in front, chunks of a multiple of 16 bytes, of 32 at least.
fn of_glibc(size: u64) -> u64 {
    let chunk = size.saturating_add(8 + 15) / 16 * 16;
    chunk.max(32) - 8
}

/// jemalloc: four classes in each doubling, with a distance of at least 16 bytes, and one of 8
/// bytes.
fn of_jemalloc(size: u64) -> u64 {
    if size <= 8 {
        return 8;
    }
    let doubling = u64::BITS - (size - 1).leading_zeros();
    let distance = 1_u64 << doubling.saturating_sub(3).max(4);
    size.div_ceil(distance).saturating_mul(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_the_allocators() {
        let of = |rule: fn(u64) -> u64, sizes: &[u64]| sizes.iter().map(|&size| rule(size)).collect::<Vec<_>>();
        let sizes = [0, 1, 8, 9, 24, 25, 40, 41, 1000, 4000];
        assert_eq!(of(of_glibc, &sizes), [24, 24, 24, 24, 24, 40, 40, 56, 1000, 4008]);
        assert_eq!(of(of_jemalloc, &sizes), [8, 8, 8, 16, 32, 32, 48, 48, 1024, 4096]);
        let larger = [65, 80, 81, 96, 112, 128, 129, 160, 161, 320, 321, 5000, 14337, 16385, 1 << 20, (1 << 20) + 1];
        let wanted =
            [80, 80, 96, 96, 112, 128, 160, 160, 192, 320, 384, 5120, 16384, 20480, 1 << 20, (1 << 20) + (1 << 18)];
        assert_eq!(of(of_jemalloc, &larger), wanted);
        for rule in RULES {
            // The largest number has an end.
            rule.usable(u64::MAX);
            let known = (0..300_000).filter_map(|size| Some((size, rule.usable(size)?)));
            assert!(known.clone().count() > 131_000 && known.into_iter().all(|(size, usable)| usable >= size));
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut snapshot = Snapshot::default();
        let why = |snapshot: &Snapshot, domain| Rule::of(snapshot, domain).expect_err("unknown");
        assert!(why(&snapshot, Domain::Native).starts_with("the allocator of the process is not known"));
        assert!(why(&snapshot, Domain::Python).contains("of python is not known"));
        snapshot.meta.allocator = Some("tcmalloc".to_owned());
        assert!(why(&snapshot, Domain::Native).starts_with("the rounding of tcmalloc is not known"));
        snapshot.meta.allocator = Some("glibc".to_owned());
        let rule = Rule::of(&snapshot, Domain::Native).expect("known");
        assert_eq!((rule.usable(100), rule.usable(1 << 20)), (Some(104), None));
    }
}
