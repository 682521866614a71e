//! The whole path from rings to tables. The test itself plays the target: an arena, and producers
//! writing like the collector.

use heapline_aggregator::drain::Stop;
use heapline_aggregator::job::tracer::{Plan, TraceError, Tracer};
use heapline_aggregator::names::ProcessNames;
use heapline_aggregator::process::image::Image;
use heapline_aggregator::process::tasks::Tasks;
use heapline_aggregator::questions::keeper::FoundFrame;
use heapline_aggregator::session::arena_map::ArenaMap;
use heapline_aggregator::session::clock::Clock;
use heapline_aggregator::session::{SessionError, Settings};
use heapline_aggregator::snapshot::build::{About, build};
use heapline_aggregator::snapshot::replaced::Replaced;
use heapline_aggregator::table::contradiction::Contradiction;
use heapline_shared_format::arena::{SEGMENT_BYTES, slot_state, state, target_flag};
use heapline_shared_format::event;
use heapline_shared_format::ring::Producer;
use heapline_shared_format::snapshot::{self, Begun, End};
use std::fs::File;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

const SETTINGS: Settings = Settings {
    nframe: 64,
    max_target_memory: 1 << 20,
    clock: Clock::Monotonic,
    sampling: None,
    names: false,
    history: Some(16 << 20),
    paused: false,
};

fn traced(map: &Arc<ArenaMap>) -> (Tracer, Receiver<Replaced>) {
    let (sender, replaced) = sync_channel(16);
    let launched = Image { command: "fake".to_owned(), ..Image::default() };
    let plan = Plan {
        settings: SETTINGS,
        launched,
        begun: Begun::Start,
        target: None,
        replaced: Some(sender),
        member: None,
        names: ProcessNames::new(false),
    };
    let tracer = Tracer::start(Arc::clone(map), plan).expect("a session");
    (tracer, replaced)
}

/// The drain's way to learn about threads in the middle of an event.
#[derive(Clone, Copy, Debug)]
enum Barrier {
    /// The fake target takes part in membarrier(2), like the collector.
    Membarrier,
    /// The fake target does not take part in membarrier(2), so the drain uses the heuristic.
    Heuristic,
}

fn arena_with(barrier: Barrier) -> Arc<ArenaMap> {
    let map = new_arena();
    if let Barrier::Membarrier = barrier {
        let register = libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
        // SAFETY: the call registers this process and touches no memory.
        assert_eq!(unsafe { libc::syscall(libc::SYS_membarrier, register, 0, 0) }, 0);
        map.arena().header().target.flags.store(target_flag::MEMBARRIER, Ordering::Relaxed);
    }
    map
}

fn new_arena() -> Arc<ArenaMap> {
    let map = Arc::new(ArenaMap::create(SETTINGS.max_target_memory).expect("an arena"));
    map.arena().header().target.pid.store(process::id(), Ordering::Relaxed);
    map.arena().header().target.images.store(1, Ordering::Release);
    map
}

/// A thread of the target.
struct FakeThread {
    map: Arc<ArenaMap>,
    ring: Producer,
    slot: u32,
    next_stack: u32,
}

impl FakeThread {
    fn start(map: &Arc<ArenaMap>, tid: u32) -> FakeThread {
        let arena = map.arena();
        let index = wait_for(|| arena.free_slots().pop());
        let segment = wait_for(|| arena.free_segments().pop());
        // SAFETY: the arena outlives the thread, which holds the map; slot and segment came from
        // the free lists.
        let ring = unsafe { Producer::open(arena, index, segment) }.expect("indices of the arena");
        let slot = arena.slot(index).expect("a slot");
        slot.tid.store(tid, Ordering::Relaxed);
        slot.image.store(arena.header().target.images.load(Ordering::Relaxed), Ordering::Relaxed);
        slot.session.store(arena.header().session.number.load(Ordering::Relaxed), Ordering::Relaxed);
        slot.side.store(0, Ordering::Relaxed);
        arena.header().target.slots_high.fetch_max(index + 1, Ordering::Relaxed);
        let generation = slot.state.0.load(Ordering::Relaxed) >> 32;
        slot.state.0.store(generation << 32 | u64::from(slot_state::ACTIVE), Ordering::Release);
        FakeThread { map: Arc::clone(map), ring, slot: index, next_stack: 0 }
    }

    fn write<const N: usize>(&mut self, record: impl FnOnce(u64) -> [u64; N]) {
        self.make_room(N);
        // SAFETY: the ring is open and has room for the record.
        unsafe {
            self.ring.take_off();
            self.ring.write(record(Clock::Monotonic.now()));
            self.ring.settle();
        }
    }

    fn make_room(&mut self, words: usize) {
        if self.ring.room() < words {
            let arena = self.map.arena();
            let segment = wait_for(|| arena.free_segments().pop());
            // SAFETY: the ring is open on this arena, and the segment came from the free list.
            assert!(unsafe { self.ring.extend(arena, segment) });
        }
    }

    fn define(&mut self, frames: &[u64]) -> u32 {
        let id = self.next_stack;
        self.next_stack += 1;
        self.make_room(3 + frames.len());
        let total = u32::try_from(frames.len()).expect("a short stack");
        let head = event::stack_head(frames.len(), 0, id, total, false, false);
        // SAFETY: the ring has room for the head and the frames.
        unsafe { self.ring.write_parts(&head, frames.iter().copied()) };
        id
    }

    fn alloc(&mut self, address: u64, size: u64, stack: u32) {
        self.write(|stamp| event::alloc(stamp, address, size, stack));
    }

    fn free(&mut self, address: u64) {
        self.write(|stamp| event::free(stamp, address));
    }
}

fn wait_for<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the aggregator does not come");
        thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn blocks_threads_and_stacks_arrive() {
    let map = new_arena();
    let (tracer, _replaced) = traced(&map);
    let mut one = FakeThread::start(&map, 11);
    one.write(|stamp| event::thread(stamp, *b"worker\0\0\0\0\0\0\0\0\0\0"));
    let stack = one.define(&[0x100, 0x200]);
    one.alloc(0x1000, 64, stack);
    one.alloc(0x2000, 36, stack);
    one.free(0x1000);
    let figures = tracer.figures().expect("an answer");
    assert_eq!((figures.native().current, figures.native().peak, figures.native().blocks), (36, 100, 1));
    let found = tracer.lookup(0x2000).expect("an answer").expect("a live block");
    assert_eq!((found.thread, found.total_nframe), ((11, "worker".to_owned()), 2));
    assert_eq!(found.frames, [FoundFrame::Native(0x200, None), FoundFrame::Native(0x100, None)]);
    assert!(tracer.lookup(0x1000).expect("an answer").is_none());
    tracer.reset_peak().expect("an answer");
    assert_eq!(tracer.figures().expect("an answer").native().peak, 36);
    tracer.clear_traces().expect("an answer");
    assert_eq!(tracer.figures().expect("an answer").native().blocks, 0);
    tracer.stop(Stop::Ended).expect("stopped");
}

#[test]
fn a_snapshot_says_what_the_tables_hold() {
    let map = new_arena();
    let (tracer, _replaced) = traced(&map);
    let mut one = FakeThread::start(&map, 11);
    let mut two = FakeThread::start(&map, 12);
    let (head, words) =
        event::module_head(Clock::Monotonic.now(), 0x400..0x900, 0x100, event::ModuleFlags::default(), 0, 2);
    assert_eq!(words, 1);
    let [a, b, c, d, e] = head;
    one.write(|_| [a, b, c, d, e, u64::from_le_bytes(*b"/m\0\0\0\0\0\0")]);
    let stack = one.define(&[0x500, 0x1500]);
    let other = two.define(&[0x500]);
    for n in 1..=3 {
        one.alloc(n * 0x10, 8, stack);
    }
    two.alloc(0x100, 100, other);
    two.free(0x100);
    tracer.stop(Stop::Ended).expect("stopped");
    let about = About { pid: 5, end: End::Exited, exit_status: Some(0), notes: Vec::new(), origin: None };
    let snapshot = build(tracer.cut().expect("an answer"), about);
    assert_eq!((snapshot.live.len(), snapshot.live[0].size, snapshot.live[0].count), (1, 8, 3));
    assert_eq!(snapshot.threads[snapshot.live[0].thread as usize].tid, 11);
    assert_eq!(snapshot.modules[0].path, "/m");
    let frames: Vec<_> = snapshot.frames.iter().map(|frame| (frame.address, frame.module)).collect();
    assert_eq!(frames, [(0x500, Some(0)), (0x1500, None)]);
    let peaks: Vec<_> = snapshot.totals.iter().map(|row| (row.peak_size, row.total_count)).collect();
    assert_eq!(peaks, [(24, 3), (100, 1)]);
    let file = snapshot::write(&snapshot, Vec::new(), &mut |_| ()).expect("consistent");
    assert_eq!(snapshot::read(file.as_slice()).expect("valid"), snapshot);
}

/// The pool holds 128 segments. The threads write many times this amount, pass blocks to each
/// other, and lose nothing.
#[test]
fn a_full_pool_makes_producers_wait_and_loses_nothing() {
    fill_the_pool(Barrier::Membarrier);
    fill_the_pool(Barrier::Heuristic);
}

fn fill_the_pool(barrier: Barrier) {
    const EVENTS: u64 = 200_000;
    let map = arena_with(barrier);
    let (tracer, _replaced) = traced(&map);
    let writers: Vec<_> = (0..3u64)
        .map(|n| {
            let map = Arc::clone(&map);
            thread::spawn(move || {
                let mut thread = FakeThread::start(&map, 100 + u32::try_from(n).expect("small"));
                let stack = thread.define(&[n + 1]);
                let base = (n + 1) << 32;
                for i in 0..EVENTS {
                    thread.alloc(base + i * 16, 10, stack);
                    if i >= 10 {
                        thread.free(base + (i - 10) * 16);
                    }
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
    tracer.stop(Stop::Ended).expect("stopped");
    let cut = tracer.cut().expect("an answer");
    assert_eq!((cut.figures.native().allocs, cut.figures.native().frees), (3 * EVENTS, 3 * (EVENTS - 10)));
    assert_eq!((cut.native().live.blocks(), cut.figures.native().current), (30, 300));
    assert_eq!(cut.figures.contradictions.total(), 0, "{barrier:?}");
    assert_eq!(cut.figures.untracked_frees, 0);
}

/// Blocks go from one thread to another, which frees them, and the addresses are used again at
/// once.
#[test]
fn hand_overs_of_one_address_stay_in_order() {
    hand_over(Barrier::Membarrier);
    hand_over(Barrier::Heuristic);
}

fn hand_over(barrier: Barrier) {
    const ROUNDS: u64 = 50_000;
    let map = arena_with(barrier);
    let (tracer, _replaced) = traced(&map);
    let (give, take) = sync_channel::<u64>(4);
    let (back, again) = sync_channel::<u64>(4);
    (1..=4).for_each(|n| back.send(n * 16).expect("room"));
    let other = Arc::clone(&map);
    let freeing = thread::spawn(move || {
        let mut thread = FakeThread::start(&other, 2);
        for address in take {
            thread.free(address);
            // The last addresses stay unused.
            let _ = back.send(address);
        }
    });
    let mut thread = FakeThread::start(&map, 1);
    let stack = thread.define(&[7]);
    for _ in 0..ROUNDS {
        let address = again.recv().expect("an address");
        thread.alloc(address, 8, stack);
        give.send(address).expect("a receiver");
    }
    drop((give, again));
    freeing.join().expect("no panic");
    tracer.stop(Stop::Ended).expect("stopped");
    let cut = tracer.cut().expect("an answer");
    assert_eq!(
        (cut.native().live.blocks(), cut.figures.native().allocs, cut.figures.native().frees),
        (0, ROUNDS, ROUNDS)
    );
    assert_eq!(cut.figures.contradictions.total(), 0);
}

#[test]
fn exec_finishes_a_program_and_begins_the_next_with_empty_tables() {
    let map = new_arena();
    let (tracer, replaced) = traced(&map);
    let mut before = FakeThread::start(&map, 1);
    let stack = before.define(&[5]);
    before.alloc(0x10, 100, stack);
    map.arena().header().target.images.store(2, Ordering::Release);
    let mut after = FakeThread::start(&map, 1);
    let stack = after.define(&[6]);
    after.alloc(0x10, 7, stack);
    let figures = tracer.figures().expect("an answer");
    assert_eq!((figures.image.number, figures.native().current, figures.native().allocs), (2, 7, 1));
    assert_eq!(figures.contradictions.total(), 0);
    let Ok(Replaced::Program(first)) = replaced.try_recv() else { panic!("the first program's cut") };
    let first = first().expect("the whole table");
    assert_eq!((first.figures.image.number, first.figures.native().current), (1, 100));
    let outcome = tracer.stop(Stop::Ended).expect("stopped");
    assert_eq!((outcome.images, outcome.untraced), (2, None));
}

#[test]
fn an_exec_that_does_not_trace_is_noticed() {
    let map = new_arena();
    let (tracer, _replaced) = traced(&map);
    map.arena().header().target.exec_begun.store(2, Ordering::Relaxed);
    map.arena().header().target.exec_failed.store(1, Ordering::Relaxed);
    assert!(tracer.stop(Stop::Ended).expect("stopped").untraced.is_some());
}

/// More threads than slots, one after another: the drain notices ended threads, and slots and
/// segments come back.
#[test]
fn slots_of_ended_threads_are_used_again() {
    let map = new_arena();
    let (tracer, _replaced) = traced(&map);
    tracer.set_target(Tasks::of(process::id()));
    let threads = 6000;
    let other = Arc::clone(&map);
    let maker = thread::spawn(move || {
        for n in 0..threads {
            // No thread of this process has such an id.
            let mut thread = FakeThread::start(&other, 0x3000_0000 + n);
            let stack = thread.define(&[9]);
            thread.alloc(u64::from(n + 1) * 16, 1, stack);
        }
    });
    maker.join().expect("no panic");
    tracer.stop(Stop::Ended).expect("stopped");
    let cut = tracer.cut().expect("an answer");
    assert_eq!(cut.figures.native().blocks, u64::from(threads));
    assert_eq!(cut.figures.contradictions.total(), 0);
}

#[test]
fn a_second_aggregator_is_refused_and_a_detached_arena_can_be_taken_again() {
    let map = new_arena();
    let (tracer, _replaced) = traced(&map);
    let mut thread = FakeThread::start(&map, 1);
    let stack = thread.define(&[5]);
    thread.alloc(0x10, 100, stack);
    let (sender, _other) = sync_channel(1);
    let plan = Plan {
        settings: SETTINGS,
        launched: Image::default(),
        begun: Begun::Start,
        target: None,
        replaced: Some(sender),
        member: None,
        names: ProcessNames::new(false),
    };
    let refused = Tracer::start(Arc::clone(&map), plan);
    assert!(matches!(refused, Err(TraceError::Session(SessionError::Taken { owner })) if owner == process::id()));
    tracer.stop(Stop::Detach).expect("stopped");
    assert_eq!(map.arena().header().session.state.load(Ordering::Relaxed), state::IDLE);
    assert_eq!(tracer.figures().expect("an answer").native().current, 100, "the tables can still be asked");
    let (tracer, _replaced) = traced(&map);
    assert_eq!(map.arena().header().session.number.load(Ordering::Relaxed), 2);
    let mut thread = FakeThread::start(&map, 1);
    let stack = thread.define(&[5]);
    thread.free(0x10);
    thread.alloc(0x20, 8, stack);
    let figures = tracer.figures().expect("an answer");
    assert_eq!((figures.native().current, figures.untracked_frees), (8, 1));
    tracer.stop(Stop::Ended).expect("stopped");
}

/// The kernel's mark in the owner word after an aggregator was killed.
#[test]
fn an_arena_whose_owner_died_is_taken_over() {
    let map = new_arena();
    let session = &map.arena().header().session;
    session.owner.store(0x4000_0000 | 12345, Ordering::Relaxed);
    session.state.store(state::TRACING, Ordering::Relaxed);
    let (tracer, _replaced) = traced(&map);
    assert_eq!(session.owner.load(Ordering::Relaxed) & 0x4000_0000, 0);
    tracer.stop(Stop::Detach).expect("stopped");
    assert_eq!(session.owner.load(Ordering::Relaxed), 0);
}

/// The owning thread of an arena ends without giving the arena up: the kernel marks the owner word.
#[test]
fn the_kernel_marks_an_arena_whose_owner_ends() {
    let map = new_arena();
    let other = Arc::clone(&map);
    let owner = thread::spawn(move || {
        let living = Default::default();
        let session = heapline_aggregator::session::Session::begin(other, SETTINGS, &living).expect("a session");
        std::mem::forget(session);
    });
    owner.join().expect("no panic");
    wait_for(|| (map.arena().header().session.owner.load(Ordering::Acquire) & 0x4000_0000 != 0).then_some(()));
}

/// A target scribbles over all of its writable memory while the target is drained.
#[test]
fn a_hostile_target_spoils_only_its_own_numbers() {
    for seed in 1..=20u64 {
        let map = new_arena();
        let (tracer, _replaced) = traced(&map);
        let stop = Arc::new(AtomicBool::new(false));
        let scribbler = {
            let (map, stop) = (Arc::clone(&map), Arc::clone(&stop));
            thread::spawn(move || scribble(&map, seed, &stop))
        };
        for _ in 0..5 {
            tracer.figures().expect("an answer");
            thread::sleep(Duration::from_millis(2));
        }
        stop.store(true, Ordering::Relaxed);
        scribbler.join().expect("no panic");
        tracer.stop(Stop::Ended).expect("stopped");
        let mut cut = tracer.cut().expect("an answer");
        let live = cut.layers.swap_remove(0).live.sorted().groups;
        let bytes: u64 = live.iter().map(|(group, count)| group.size * count).sum();
        assert_eq!(cut.figures.native().current, bytes);
    }
}

/// Writes random and almost valid values into slots, links, segments and counters.
fn scribble(map: &ArenaMap, seed: u64, stop: &AtomicBool) {
    let arena = map.arena();
    let header = arena.header();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let low = |n: u64| u32::try_from(n & 0xffff_ffff).expect("masked");
    header.target.slots_high.store(u32::MAX, Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) {
        let slot = arena.slot(low(random() % 8)).expect("a slot");
        slot.session.store(header.session.number.load(Ordering::Relaxed), Ordering::Relaxed);
        slot.image.store(1, Ordering::Relaxed);
        slot.tid.store(low(random() % 4), Ordering::Relaxed);
        slot.in_flight.store(low(random() % 2), Ordering::Relaxed);
        slot.first_segment.store(low(random() % 140), Ordering::Relaxed);
        let generation = slot.state.0.load(Ordering::Relaxed) >> 32;
        slot.state.0.store((generation << 32) | (random() % 3), Ordering::Release);
        if let Some(link) = arena.segment_link(low(random() % 128)) {
            link.store(low(random() % 140), Ordering::Relaxed);
        }
        for _ in 0..64 {
            let words = arena.segment(low(random() % 128)).expect("a segment");
            let at = low(random() % 1000) as usize;
            words[at].store(random() & !15 | (random() % 11), Ordering::Relaxed);
            let record = event::alloc(random() >> 4, random() >> 16, random() % 4096, 0);
            words[at..at + 3].iter().zip(record).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        }
        let head = slot.head.load(Ordering::Relaxed);
        let step = random() % (3 * SEGMENT_BYTES as u64);
        slot.head.store(head.wrapping_add(if random() % 16 == 0 { step } else { step & !7 }), Ordering::Release);
    }
}

#[test]
fn a_ring_that_holds_nonsense_is_counted_and_the_others_go_on() {
    let map = new_arena();
    let (tracer, _replaced) = traced(&map);
    let mut good = FakeThread::start(&map, 1);
    let mut bad = FakeThread::start(&map, 2);
    let stack = good.define(&[1]);
    bad.write(|_| [0xf]);
    good.alloc(0x10, 5, stack);
    let head = &map.arena().slot(bad.slot).expect("a slot").head;
    let figures = tracer.figures().expect("an answer");
    assert_eq!(figures.contradictions.of(Contradiction::Corrupt), 1);
    head.store(u64::MAX - 7, Ordering::Release);
    good.alloc(0x20, 5, stack);
    assert_eq!(tracer.figures().expect("an answer").native().current, 10);
    tracer.stop(Stop::Ended).expect("stopped");
}

#[test]
fn a_file_without_seals_is_no_arena() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 20).expect("sized");
    assert!(ArenaMap::open(file).is_err());
    let map = new_arena();
    let again: File = map.file().try_clone().expect("a descriptor");
    assert_eq!(ArenaMap::open(again).expect("an arena").arena().geometry(), map.arena().geometry());
}

/// An aggregator traces thousands of processes, so a dropped tracer must leave no thread behind.
#[test]
fn a_tracer_that_is_dropped_ends_its_threads() {
    let tables = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("our threads");
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok().filter(|name| name == "table\n")
        };
        tasks.filter_map(name).count()
    };
    let tracers: Vec<_> = (0..20).map(|_| traced(&new_arena())).collect();
    // A thread sets its own name, some time after the start.
    wait_for(|| (tables() >= 20).then_some(()));
    for (tracer, _) in &tracers {
        tracer.stop(Stop::Ended).expect("it ends");
    }
    let before = tables();
    drop(tracers);
    let begun = Instant::now();
    // Other tests have tables too.
    while tables() + 20 > before && begun.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(tables() + 10 < before, "{} of {before} threads of tables are left", tables());
}
