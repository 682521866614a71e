//! Cost of an event inside the target, part by part: the stamp, the stack's id, and whole hooks
//! under stacks of three depths. The hooks run in a real program, whose records are thrown away.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heapline_aggregator::process::library::LIBRARY;
use heapline_collector::platform::clock;
use heapline_collector::stacks;
use heapline_shared_format::arena::{Arena, Geometry, Session, state};
use heapline_shared_format::ring::{Consumer, Ledger};
use std::fs::File;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn stamp(c: &mut Criterion) {
    let mut group = c.benchmark_group("stamp");
    group.bench_function("counter", |b| b.iter(|| clock::now(heapline_shared_format::arena::clock::TSC)));
    group.bench_function("CLOCK_MONOTONIC", |b| b.iter(|| clock::now(heapline_shared_format::arena::clock::MONOTONIC)));
    group.finish();
}

fn interning(c: &mut Criterion) {
    let mut group = c.benchmark_group("interning");
    group.bench_function("one changed frame", |b| b.iter(|| stacks::mix(black_box(0x5555_5555_1234), black_box(7))));
    for known in [1_000u32, 100_000] {
        // SAFETY: all zeros are a valid empty table.
        let mut table: stacks::StackTable = unsafe { MaybeUninit::zeroed().assume_init() };
        let key = |i: u32| stacks::mix(u64::from(i), 3) | 1 << 63;
        (0..known).for_each(|i| assert!(table.insert(key(i), i)));
        let mut i = 0;
        group.bench_function(BenchmarkId::new("find the id", known), |b| {
            b.iter(|| {
                i = (i * 5 + 7) % known;
                assert_eq!(table.get(key(i)), Some(i));
            });
        });
    }
    group.finish();
}

/// An arena, and a runner of programs with this arena. All records are drained and thrown away.
struct Discard {
    arena: Arena,
    file: File,
    base: NonNull<u8>,
}

impl Drop for Discard {
    fn drop(&mut self) {
        // SAFETY: `base` is the whole mapping, and all its users have returned.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.arena.geometry().bytes()) };
    }
}

struct GiveBack(Arena);

impl Ledger for GiveBack {
    fn enter(&mut self, _: u32) -> bool {
        true
    }
    fn leave(&mut self, segment: u32) {
        self.0.free_segments().push(segment);
    }
}

impl Discard {
    fn new() -> Discard {
        let geometry = Geometry::for_memory(64 << 20);
        // SAFETY: these are plain system calls; the descriptor is new, the mapping covers the whole
        // file and stays.
        let (file, base) = unsafe {
            let fd = libc::memfd_create(c"heapline-arena".as_ptr(), libc::MFD_ALLOW_SEALING);
            assert!(fd >= 0, "memfd_create");
            let size = i64::try_from(geometry.bytes()).expect("64 MiB");
            assert_eq!(libc::ftruncate(fd, size), 0);
            let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
            assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, seals), 0);
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), geometry.bytes(), both, libc::MAP_SHARED, fd, 0);
            assert_ne!(base, libc::MAP_FAILED);
            (File::from_raw_fd(fd), NonNull::new(base.cast()).expect("a mapping"))
        };
        // SAFETY: `base` has fresh zeros of the geometry's size, and stays mapped.
        let arena = unsafe { Arena::create(base, geometry) };
        (0..geometry.segments).rev().for_each(|i| arena.free_segments().push(i));
        (0..geometry.slots).rev().for_each(|i| arena.free_slots().push(i));
        let session = &arena.header().session;
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        session.owner.store(tid.cast_unsigned(), Ordering::Relaxed);
        session.number.store(1, Ordering::Relaxed);
        session.nframe.store(64, Ordering::Relaxed);
        session.epoch.store(1, Ordering::Relaxed);
        session.state.store(state::TRACING, Ordering::Release);
        Discard { arena, file, base }
    }

    fn session(&self) -> &Session {
        &self.arena.header().session
    }

    /// Runs the program and returns its printed output. With `lends`, the program's thread is lent
    /// the tick.
    fn run(&self, library: &Path, program: &Path, arguments: &[&str], lends: bool) -> String {
        let identity = self.file.metadata().expect("it is open");
        let handle = format!("{}:{}:{}", self.file.as_raw_fd(), identity.dev(), identity.ino());
        let mut command = Command::new(program);
        command.args(arguments).env("LD_PRELOAD", library).env("HEAPLINE_ARENA", handle).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        self.drain(&mut child, lends);
        let output = child.wait_with_output().expect("the program ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }

    fn drain(&self, child: &mut Child, lends: bool) {
        let mut consumer = None;
        let mut ledger = GiveBack(self.arena);
        loop {
            let has_ended = child.try_wait().expect("a child").is_some();
            let slot = self.arena.slot(0).expect("the first slot");
            if consumer.is_none() && slot.state.0.load(Ordering::Acquire) & 1 == 1 {
                consumer = Consumer::open(slot, &mut ledger).ok();
                if lends {
                    self.session().tick_owner.store(0, Ordering::Relaxed);
                    self.session().tick.store(1 << 59, Ordering::Release);
                }
            }
            let drained = consumer.as_mut().map_or(Ok(0), |consumer| {
                consumer.drain(&self.arena, slot, &mut ledger, |words| {
                    black_box(words.iter().map(|word| word.load(Ordering::Relaxed)).fold(0, u64::wrapping_add));
                })
            });
            self.arena.header().progress.given_back.fetch_add(1, Ordering::Release);
            if has_ended && drained == Ok(0) {
                return;
            }
            if drained.expect("a ring of our own") < 1 << 18 && !has_ended {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

/// Measures nanoseconds per pair of malloc and free, as printed by churn.
fn hooks(c: &mut Criterion) {
    const PAIRS: u64 = 500_000;
    let folder = tempfile::TempDir::new().expect("a folder");
    let (program, library) = (folder.path().join("churn"), folder.path().join("collector.so"));
    std::fs::write(&library, LIBRARY).expect("a file");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/churn.c");
    let gcc = Command::new("gcc").args(["-O2", "-g", "-pthread", "-o"]).args([&program, &source]).status();
    assert!(gcc.expect("gcc, which the benchmark needs").success());
    let pairs = PAIRS.to_string();
    let mut group = c.benchmark_group("hooks");
    group.throughput(Throughput::Elements(PAIRS)).sample_size(10);
    for depth in ["10", "30", "100"] {
        let arguments = ["1", &pairs, depth, "10000"];
        let spent = |printed: String| {
            let word = printed.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
            Duration::from_secs_f64(word.expect("churn says how long a pair took") * PAIRS as f64 / 1e9)
        };
        let alone = || {
            let output = Command::new(&program).args(arguments).output().expect("churn runs");
            String::from_utf8(output.stdout).expect("text")
        };
        group.bench_function(BenchmarkId::new("alone", depth), |b| {
            b.iter_custom(|times| (0..times).map(|_| spent(alone())).sum());
        });
        for (name, lends) in [("traced, tick", true), ("traced, counter", false)] {
            group.bench_function(BenchmarkId::new(name, depth), |b| {
                b.iter_custom(|times| {
                    (0..times).map(|_| spent(Discard::new().run(&library, &program, &arguments, lends))).sum()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, stamp, interning, hooks);
criterion_main!(benches);
