//! The fuzz targets on seeded bytes, with a stable compiler, for a bounded time: `HEAPLINE_FUZZ_SECONDS` each, 2 by
//! default. A failing input is kept in a file that `fuzz/` can minimise.

use heapline_tests::hostile;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A snapshot of format version 1 with every section filled.
const SNAPSHOT: &[u8] = include_bytes!("../../shared-format/tests/fixtures/v1.snap.zst");

fn limit() -> Duration {
    let seconds = std::env::var("HEAPLINE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// xorshift64*: the same inputs on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// Words of which many are small, and look like kinds, lengths, indices.
    fn words(&mut self, most: usize) -> Vec<u8> {
        let word = |r: &mut Random| match r.below(5) {
            0 => r.next(),
            4 => (r.next() & 7) << 56 | (r.next() & 0x7f) << 12,
            1 => r.next() & 0xff,
            2 => (r.next() & 0x3f) << 4 | r.next() & 0xf,
            _ => (r.next() & 0xff) << 48 | (r.next() & 0x7f) << 32,
        };
        (0..self.below(most)).flat_map(|_| word(self).to_le_bytes()).collect()
    }

    /// `good` with a few bytes changed, a piece cut out, or a piece doubled.
    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            let (a, b) = (self.below(bytes.len().max(1)), self.below(bytes.len().max(1)));
            let (from, to) = (a.min(b), a.max(b));
            match self.below(8) {
                0 => drop(bytes.drain(from..to)),
                1 => bytes.extend_from_within(from..to),
                2 => bytes.truncate(to),
                _ if bytes.is_empty() => {}
                3 | 4 => bytes[a] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ => bytes[a] ^= 1 << self.below(8),
            }
        }
        bytes
    }
}

/// Runs `target` on what `input` makes until the time is over; keeps the input that fails.
fn run(name: &str, target: fn(&[u8]), mut input: impl FnMut(&mut Random) -> Vec<u8>) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let end = Instant::now() + limit();
    let mut runs = 0_u64;
    while Instant::now() < end || runs < 100 {
        let bytes = input(&mut random);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
            let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{runs}"));
            std::fs::write(&kept, &bytes).expect("the failing input can be kept");
            eprintln!("{name} fails on input {runs}, kept in {}", kept.display());
            resume_unwind(panic);
        }
        runs += 1;
    }
}

#[test]
fn event_decode() {
    run("event_decode", hostile::event_decode, |r| r.words(600));
}

#[test]
fn ring_drain() {
    run("ring_drain", hostile::ring_drain, |r| r.words(200));
}

#[test]
fn ring_drain_while_scribbled() {
    run("ring_drain_while_scribbled", hostile::ring_drain_while_scribbled, |r| r.words(200));
}

#[test]
fn tree_hello() {
    let birth = heapline_shared_format::tree::Birth::Fork;
    let (executable, arguments) = (&b"/bin/true"[..], &b"true\0"[..]);
    let hello = heapline_shared_format::tree::Hello {
        token: [1, 2],
        key: 3,
        parent: 4,
        fork: 5,
        birth,
        pid: 6,
        executable,
        arguments,
    };
    let good = [&hello.head()[..], executable, arguments].concat();
    run("tree_hello", hostile::tree_hello, |r| r.mutate(&good));
}

#[test]
fn snapshot_reader() {
    run("snapshot_reader", hostile::snapshot_reader, |r| r.mutate(SNAPSHOT));
}

#[test]
fn snapshot_payload() {
    let content = zstd::decode_all(SNAPSHOT).expect("the fixture is a zstd file");
    run("snapshot_payload", hostile::snapshot_payload, |r| r.mutate(&content));
}

/// The good snapshot gets through, else the two tests above test the first check only.
#[test]
fn the_fixture_is_accepted() {
    assert!(heapline_shared_format::snapshot::read(SNAPSHOT).is_ok());
    let content = zstd::decode_all(SNAPSHOT).expect("the fixture is a zstd file");
    hostile::snapshot_payload(&content);
}
