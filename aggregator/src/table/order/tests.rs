use super::*;
use crate::table::contradiction::Contradictions;
use heapline_shared_format::event::{alloc, free, pad, stack_head};
use proptest::prelude::*;

/// A sink that keeps all calls.
#[derive(Default)]
struct Recorder {
    seen: Vec<(u32, Option<u64>)>,
    closed: Vec<u32>,
    contradictions: Contradictions,
}

impl Sink for Recorder {
    type Ring = u32;

    fn apply(&mut self, ring: &mut u32, event: Event<'_>) -> Result<(), Corrupt> {
        if event != Event::Pad {
            self.seen.push((*ring, event.stamp()));
        }
        Ok(())
    }

    fn close(&mut self, ring: u32) {
        self.closed.push(ring);
    }

    fn contradiction(&mut self, kind: Contradiction) {
        self.contradictions.count(kind);
    }
}

impl Recorder {
    fn stamps(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|&(_, stamp)| stamp).collect()
    }
}

fn mark(time: u64, in_flight: &[u32]) -> Mark {
    Mark { time, in_flight: in_flight.to_vec(), ..Mark::default() }
}

fn allocs(stamps: &[u64]) -> Vec<u64> {
    stamps.iter().flat_map(|&stamp| alloc(stamp, 0x1000, 8, 0)).collect()
}

#[test]
fn records_wait_for_the_watermark() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    order.push(0, allocs(&[10, 30]), &mut sink);
    order.push(1, allocs(&[20, 25]), &mut sink);
    assert_eq!(order.advance(&mark(22, &[]), &mut sink), 22);
    assert_eq!(sink.stamps(), [10, 20]);
    assert_eq!(order.advance(&mark(40, &[]), &mut sink), 40);
    assert_eq!(sink.stamps(), [10, 20, 25, 30]);
    assert_eq!(sink.contradictions.total(), 0);
}

#[test]
fn a_flagged_ring_is_complete_only_up_to_its_last_record() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    order.push(0, allocs(&[10]), &mut sink);
    order.push(1, allocs(&[20]), &mut sink);
    assert_eq!(order.advance(&mark(30, &[0]), &mut sink), 10);
    assert_eq!(sink.stamps(), [10]);
    order.push(0, allocs(&[15]), &mut sink);
    assert_eq!(order.advance(&mark(40, &[]), &mut sink), 40);
    assert_eq!(sink.stamps(), [10, 15, 20]);
    assert_eq!(sink.contradictions.total(), 0);
}

#[test]
fn a_new_flagged_ring_holds_back_what_is_younger_than_the_poll_before() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.advance(&mark(10, &[]), &mut sink);
    order.open(1, 1);
    order.push(0, allocs(&[15]), &mut sink);
    assert_eq!(order.advance(&mark(20, &[1]), &mut sink), 10);
    assert_eq!(sink.stamps(), [] as [u64; 0]);
    order.push(1, allocs(&[12]), &mut sink);
    order.advance(&mark(30, &[]), &mut sink);
    assert_eq!(sink.stamps(), [12, 15]);
}

#[test]
fn a_thread_that_stays_in_flight_is_left_behind_and_counted_when_it_comes() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    order.push(0, allocs(&[50]), &mut sink);
    let at = |time, seconds| Mark { time, wall: Duration::from_secs(seconds), in_flight: vec![1], unread: Vec::new() };
    assert_eq!(order.advance(&at(60, 1), &mut sink), 0);
    assert_eq!(order.advance(&at(70, 3), &mut sink), 0);
    assert_eq!(order.advance(&at(80, 4), &mut sink), 80);
    assert_eq!(sink.stamps(), [50]);
    order.push(1, allocs(&[20]), &mut sink);
    order.advance(&mark(90, &[]), &mut sink);
    assert_eq!(sink.stamps(), [50, 20]);
    assert_eq!(sink.contradictions.of(Contradiction::Late), 1);
}

#[test]
fn a_ring_that_was_left_alone_is_waited_for_however_long() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    order.push(0, allocs(&[50]), &mut sink);
    let at = |time, seconds| Mark { time, wall: Duration::from_secs(seconds), in_flight: Vec::new(), unread: vec![1] };
    for seconds in 1..10 {
        assert_eq!(order.advance(&at(50 + seconds, seconds), &mut sink), 0);
    }
    assert_eq!(order.waiting().collect::<std::collections::BTreeMap<_, _>>(), [(0, true), (1, false)].into());
    order.push(1, allocs(&[20]), &mut sink);
    order.advance(&mark(90, &[]), &mut sink);
    assert_eq!(sink.stamps(), [20, 50]);
    assert_eq!((sink.contradictions.total(), order.waiting_words()), (0, 0));
}

#[test]
fn a_stamp_that_goes_back_takes_its_predecessors() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    order.push(0, allocs(&[30, 10]), &mut sink);
    order.push(1, allocs(&[20, 40]), &mut sink);
    order.advance(&mark(50, &[]), &mut sink);
    assert_eq!(sink.stamps(), [20, 30, 10, 40]);
    assert_eq!(sink.contradictions.of(Contradiction::Clock), 1);
}

#[test]
fn a_definition_goes_with_the_record_that_follows_it() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    let mut words = vec![pad(2), 0];
    words.extend(stack_head(0, 0, 1, 0, false, false));
    order.push(0, words, &mut sink);
    order.advance(&mark(10, &[]), &mut sink);
    assert_eq!(sink.seen, []);
    order.push(0, allocs(&[20]), &mut sink);
    order.advance(&mark(15, &[]), &mut sink);
    assert_eq!(sink.seen, []);
    order.advance(&mark(20, &[]), &mut sink);
    assert_eq!(sink.seen, [(0, None), (0, Some(20))]);
}

#[test]
fn a_slot_may_be_taken_again_while_the_old_ring_still_waits() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 7);
    order.push(0, allocs(&[10]), &mut sink);
    order.close(0);
    order.open(0, 8);
    order.push(0, allocs(&[20]), &mut sink);
    order.advance(&mark(15, &[]), &mut sink);
    assert_eq!((sink.seen.clone(), sink.closed.clone()), (vec![(7, Some(10))], vec![7]));
    order.finish(&mut sink);
    assert_eq!((sink.seen[1], sink.closed), ((8, Some(20)), vec![7, 8]));
}

#[test]
fn nonsense_ends_one_ring_and_leaves_the_others() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    let mut words = allocs(&[10]);
    words.extend([0xf, 0, 0]);
    order.push(0, words, &mut sink);
    order.push(1, allocs(&[20]), &mut sink);
    order.advance(&mark(30, &[0]), &mut sink);
    order.push(0, allocs(&[40]), &mut sink);
    order.advance(&mark(50, &[0]), &mut sink);
    assert_eq!(sink.stamps(), [10, 20]);
    assert_eq!(sink.contradictions.of(Contradiction::Corrupt), 1);
    assert_eq!(order.waiting_words, 0);
}

#[test]
fn what_waits_is_bounded_whatever_a_flag_says() {
    let (mut order, mut sink) = (Order::default(), Recorder::default());
    order.open(0, 0);
    order.open(1, 1);
    let batch = allocs(&[5; 1 << 16]);
    while order.waiting_words <= MAX_WAITING_WORDS {
        order.push(0, batch.clone(), &mut sink);
    }
    order.advance(&mark(10, &[1]), &mut sink);
    assert_eq!(order.waiting_words, 0);
}

/// Events of a thread. For each poll: gaps between the published stamps, and whether the thread is
/// flagged.
fn thread_script() -> impl Strategy<Value = Vec<(Vec<u64>, bool)>> {
    prop::collection::vec((prop::collection::vec(1..50u64, 0..8), any::<bool>()), 1..8)
}

proptest! {
    /// Threads with fake clocks publish prefixes of their events at each poll. A thread with a
    /// held-back stamped event at a poll is flagged, as by the collector. The merge must be the
    /// global sort.
    #[test]
    fn the_merge_is_the_global_sort(scripts in prop::collection::vec(thread_script(), 1..6)) {
        let (mut order, mut sink) = (Order::default(), Recorder::default());
        let polls = scripts.iter().map(Vec::len).max().unwrap_or(0);
        let mut clock = 1;
        let mut expected = Vec::new();
        // Stamped events that are not published yet.
        let mut held: Vec<Option<u64>> = vec![None; scripts.len()];
        for (slot, _) in (0..).zip(&scripts) {
            order.open(slot, slot);
        }
        for poll in 0..polls {
            let mut ends = vec![clock];
            let mut publications = vec![Vec::new(); scripts.len()];
            for (thread, script) in scripts.iter().enumerate() {
                let Some((gaps, holds)) = script.get(poll) else { continue };
                // Each thread uses stamps of one residue class, so that no two stamps are equal.
                let mut now = clock;
                let mut stamps: Vec<u64> = held[thread].take().into_iter().collect();
                for gap in gaps {
                    now += gap;
                    stamps.push(now * 8 + thread as u64);
                }
                if *holds {
                    held[thread] = stamps.pop();
                }
                ends.push(now + 1);
                expected.extend(stamps.iter().map(|&stamp| (thread as u32, stamp)));
                publications[thread] = stamps;
            }
            clock = ends.into_iter().max().unwrap_or(clock) + 1;
            for (slot, stamps) in (0..).zip(&publications) {
                order.push(slot, allocs(stamps), &mut sink);
            }
            let flagged: Vec<u32> = (0..).zip(&held).filter(|(_, held)| held.is_some()).map(|(slot, _)| slot).collect();
            order.advance(&mark(clock * 8, &flagged), &mut sink);
        }
        for (slot, stamp) in (0..).zip(&held) {
            if let Some(stamp) = *stamp {
                order.push(slot, allocs(&[stamp]), &mut sink);
                expected.push((slot, stamp));
            }
        }
        order.finish(&mut sink);
        expected.sort_by_key(|&(_, stamp)| stamp);
        let seen: Vec<(u32, u64)> = sink.seen.iter().filter_map(|&(ring, stamp)| Some((ring, stamp?))).collect();
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(sink.contradictions.total(), 0);
        prop_assert_eq!(order.waiting_words, 0);
    }

    #[test]
    fn any_words_end_without_a_panic(
        batches in prop::collection::vec((0..4u32, prop::collection::vec(0..u64::MAX, 0..64), any::<u64>(), any::<bool>()), 0..32),
    ) {
        let (mut order, mut sink) = (Order::default(), Recorder::default());
        for (slot, words, time, opens) in batches {
            if opens {
                order.open(slot, slot);
            }
            // Small kinds and lengths reach more of the decoder than random words.
            let words = words.into_iter().map(|word| if time % 2 == 0 { word % 4096 } else { word }).collect();
            order.push(slot, words, &mut sink);
            order.advance(&mark(time >> 4, &[time as u32 % 4]), &mut sink);
        }
        order.finish(&mut sink);
        prop_assert_eq!(order.waiting_words, 0);
    }

    #[test]
    fn a_free_follows_its_alloc(gaps in prop::collection::vec(1..5u64, 2..40)) {
        let (mut order, mut sink) = (Order::default(), Recorder::default());
        order.open(0, 0);
        order.open(1, 1);
        let mut stamp = 0;
        for pair in gaps.chunks(2) {
            stamp += pair[0];
            order.push(0, alloc(stamp, 0x40, 8, 0).to_vec(), &mut sink);
            stamp += 1;
            order.push(1, free(stamp, 0x40).to_vec(), &mut sink);
            order.advance(&mark(stamp - pair[0] % 2, &[]), &mut sink);
        }
        order.finish(&mut sink);
        prop_assert!(sink.seen.chunks(2).all(|pair| pair[0].0 == 0 && pair[1].0 == 1));
    }
}
