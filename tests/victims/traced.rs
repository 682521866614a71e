//! A Rust program with `Traced` around the allocator. The program counts its own requests.
//!
//! Built by tests/tests/e2e/traced.rs in several ways. With `--cfg own` the allocator never calls
//! malloc. Each line of standard input is a step. After each step the program prints all counts so
//! far.

use heapline_collector::Traced;
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(not(own))]
use std::alloc::System as Inner;
#[cfg(own)]
use own::Own as Inner;

/// Counts calls that pass through to the traced allocator.
struct Counting(Traced<Inner>);

#[cfg(not(own))]
const INNER: Inner = std::alloc::System;
#[cfg(own)]
const INNER: Inner = Inner;

#[global_allocator]
static ALLOCATOR: Counting = Counting(Traced::new(INNER));

static ALLOCS: AtomicU64 = AtomicU64::new(0);
static FREES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static CURRENT: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

fn made(size: usize, instead_of: usize) {
    ALLOCS.fetch_add(1, Relaxed);
    BYTES.fetch_add(size as u64, Relaxed);
    let change = (size as u64).wrapping_sub(instead_of as u64);
    let now = CURRENT.fetch_add(change, Relaxed).wrapping_add(change);
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every method passes its arguments unchanged to the wrapped allocator, so the wrapped
// allocator upholds the contract. Failed calls are not counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = unsafe { self.0.alloc(layout) };
        if !block.is_null() {
            made(layout.size(), 0);
        }
        block
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let block = unsafe { self.0.alloc_zeroed(layout) };
        if !block.is_null() {
            made(layout.size(), 0);
        }
        block
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        FREES.fetch_add(1, Relaxed);
        CURRENT.fetch_sub(layout.size() as u64, Relaxed);
        unsafe { self.0.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let block = unsafe { self.0.realloc(old, layout, size) };
        if !block.is_null() {
            FREES.fetch_add(1, Relaxed);
            made(size, layout.size());
        }
        block
    }
}

/// An allocator of size classes over a static area of the program.
#[cfg(own)]
mod own {
    use std::alloc::{GlobalAlloc, Layout};
    use std::cell::UnsafeCell;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, Ordering};

    pub struct Own;

    const BYTES: usize = 256 << 20;

    #[repr(align(4096))]
    struct Shared(UnsafeCell<[u8; BYTES]>, UnsafeCell<(usize, [*mut u8; 32])>);
    // SAFETY: `Own` accesses the area only under `LOCK`.
    unsafe impl Sync for Shared {}
    static AREA: Shared = Shared(UnsafeCell::new([0; BYTES]), UnsafeCell::new((0, [null_mut(); 32])));
    static LOCK: AtomicBool = AtomicBool::new(false);

    fn class(layout: Layout) -> usize {
        layout.size().max(layout.align()).max(16).next_power_of_two()
    }

    // SAFETY: blocks of a class are aligned to the class, or to 4096 bytes for larger classes (no
    // layout here needs more). A block belongs to a single owner at a time.
    unsafe impl GlobalAlloc for Own {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let bytes = class(layout);
            while LOCK.swap(true, Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let block = unsafe {
                let (used, free) = &mut *AREA.1.get();
                let list = &mut free[(bytes.trailing_zeros() as usize).min(31)];
                if !list.is_null() {
                    let block = *list;
                    *list = block.cast::<*mut u8>().read();
                    block
                } else {
                    let at = used.next_multiple_of(bytes.min(4096));
                    if bytes > BYTES - at {
                        null_mut()
                    } else {
                        *used = at + bytes;
                        AREA.0.get().cast::<u8>().add(at)
                    }
                }
            };
            LOCK.store(false, Ordering::Release);
            block
        }
        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            while LOCK.swap(true, Ordering::Acquire) {
                std::hint::spin_loop();
            }
            unsafe {
                let list = &mut (*AREA.1.get()).1[class(layout).trailing_zeros() as usize];
                block.cast::<*mut u8>().write(*list);
                *list = block;
            }
            LOCK.store(false, Ordering::Release);
        }
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
    fn _exit(status: i32) -> !;
}

/// Makes all kinds of requests from `threads` threads. The returned blocks stay live.
fn mixed(threads: u64) -> Vec<Vec<Vec<u8>>> {
    let work = |seed: u64| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut live: Vec<Vec<u8>> = Vec::new();
        for _ in 0..20_000 {
            let size = (random() % 2_000 + 1) as usize;
            let place = (random() % 512) as usize;
            match random() % 5 {
                0 => live.push(vec![0; size]),
                1 => live.push(Vec::with_capacity(size)),
                2 if place < live.len() => live[place].reserve_exact(size + 2_000),
                3 if place < live.len() => live[place].shrink_to(size),
                _ if place < live.len() => drop(live.swap_remove(place)),
                _ => {}
            }
        }
        live
    };
    if threads == 0 {
        return vec![work(7)];
    }
    let handles: Vec<_> = (1..=threads).map(|seed| std::thread::spawn(move || work(seed))).collect();
    handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
}

/// Allocates blocks of equal size at a single line, as the standard library does.
#[inline(never)]
fn at_a_line(count: usize) -> Vec<*mut u8> {
    let layout = Layout::from_size_align(333, 1).expect("sound");
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        // SAFETY: the size is not 0.
        blocks.push(unsafe { std::alloc::alloc(layout) }); // LINE alloc
    }
    blocks
}

/// Sets `errno` and checks that no successful call of the allocator changes it. Also makes calls
/// that fail.
fn errno_is_kept() {
    let errno = |value: Option<i32>| unsafe {
        let place = __errno_location();
        if let Some(value) = value {
            *place = value;
        }
        *place
    };
    for size in [1, 100_000, 5_000_000] {
        errno(Some(77));
        let mut block = vec![1_u8; size];
        assert_eq!(errno(None), 77);
        block.reserve_exact(2 * size);
        assert_eq!(errno(None), 77);
        drop(block);
        assert_eq!(errno(None), 77);
    }
    let layout = Layout::from_size_align(64, 4096).expect("sound");
    // SAFETY: the size is not 0, and the block is freed with its layout.
    unsafe {
        let block = std::alloc::alloc_zeroed(layout);
        assert!(block.addr() % 4096 == 0 && (0..64).all(|i| block.add(i).read() == 0));
        std::alloc::dealloc(block, layout);
        let huge = Layout::from_size_align(1 << 60, 1).expect("sound");
        assert!(black_box(std::alloc::alloc(huge)).is_null(), "nothing is that large");
        let small = std::alloc::alloc(layout);
        assert!(black_box(std::alloc::realloc(black_box(small), layout, 1 << 60)).is_null());
        std::alloc::dealloc(small, layout);
    }
}

fn report() {
    let counters = [("allocs", &ALLOCS), ("frees", &FREES), ("bytes", &BYTES), ("current", &CURRENT), ("peak", &PEAK)];
    let values = counters.map(|(name, counter)| (name, counter.load(Relaxed)));
    let mut out = std::io::stdout().lock();
    for (name, value) in values {
        let _ = writeln!(out, "{name} {value}");
    }
    let _ = writeln!(out, "done");
    let _ = out.flush();
}

fn main() {
    let may_preload = std::env::var_os("ALLOW_PRELOAD").is_some();
    let ours = std::env::vars_os().filter(|(name, _)| {
        name.to_string_lossy().starts_with("HEAPLINE_ARENA") || name.to_string_lossy().starts_with("LD_PRELOAD")
    });
    assert!(may_preload || ours.count() == 0, "the environment shows nothing of the tracer");
    println!("ready");
    let mut kept = Vec::new();
    let mut lines = std::io::stdin().lock();
    let mut line = String::with_capacity(64);
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
            ("mixed", threads) => kept.extend(mixed(threads.parse().expect("a number"))),
            ("line", count) => drop(at_a_line(count.parse().expect("a number"))),
            ("drop", _) => kept.clear(),
            ("errno", _) => errno_is_kept(),
            ("spawn", _) => assert!(std::process::Command::new("true").status().expect("it runs").success()),
            ("panic", _) => drop(std::panic::catch_unwind(|| panic!("on purpose"))),
            (other, _) => panic!("no step {other}"),
        }
        line.clear();
        report();
    }
    // Nothing is freed after the last count.
    // SAFETY: `_exit` ends the process and returns to no code.
    unsafe { _exit(7) }
}
