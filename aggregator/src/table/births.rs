//! Times of birth of live blocks, in a few bits a block.
//!
//! ```text
//! code      0         1     2    3   4   5 ...                  now
//!      |---------|---------|----|----|-|-|-|-|-|-|-|-|-|-|-|-|-|-|
//!      begin    end of a step of the history                   end of the last step
//! ```
//!
//! Each end of a step of the history begins a span, and a block has the code of the span that it
//! was born in. When the codes are used up, spans are joined, and the codes are given out anew
//! ([`Births::begin`]):
//!
//! - First, borders go at which the history has no step any more.
//! - If more than half of the codes are still in use, neighbours are joined whose common width is
//!   a small part of their age. So any length of a run fits, with a precision relative to the age.
//!
//! The blocks get their new codes late, at the next event near them ([`super::live`]).

use heapline_shared_format::snapshot::LIFETIME_BOUNDS;
use std::sync::Arc;
use std::time::Duration;

/// Code of the time at which a block was born.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Birth(u16);

impl Birth {
    /// Bits of a code.
    pub const BITS: u32 = 13;
    /// The greatest code.
    pub const LAST: Birth = Birth((1 << Birth::BITS) - 1);

    /// The code.
    #[inline]
    pub fn code(self) -> u16 {
        self.0
    }

    /// Returns the code in the low bits of a word.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the bits above do not count")]
    pub fn of_bits(bits: u64) -> Birth {
        Birth(bits as u16 & Birth::LAST.0)
    }
}

/// Number of codes.
const CODES: usize = Birth::LAST.0 as usize + 1;
/// Finest precision of joined spans, as a part of their age. Coarser ones are halves.
const FINEST: u32 = 4096;

/// New codes, by old code.
#[derive(Clone, Debug, Default)]
pub struct Recoding(Arc<[Birth]>);

impl Recoding {
    /// The new code of a birth.
    #[inline]
    pub fn of(&self, old: Birth) -> Birth {
        self.0.get(usize::from(old.0)).copied().unwrap_or(old)
    }

    /// The recoding followed by another.
    pub fn then(&self, next: &Recoding) -> Recoding {
        if self.0.is_empty() { next.clone() } else { Recoding(self.0.iter().map(|&code| next.of(code)).collect()) }
    }

    /// Returns a recoding by a rule.
    #[cfg(test)]
    pub fn by(rule: impl Fn(Birth) -> Birth) -> Recoding {
        Recoding((0..=Birth::LAST.0).map(|code| rule(Birth(code))).collect())
    }

    /// The recoding for borders that are kept. The first border is kept.
    fn keeping(is_kept: &[bool]) -> Recoding {
        let mut next = 0;
        let code = |&is_kept: &bool| {
            next += u16::from(is_kept);
            Birth(next - 1)
        };
        Recoding(is_kept.iter().map(code).collect())
    }
}

/// Spans of time by code. Times are of one clock for all processes traced by an aggregator.
#[derive(Clone, Debug)]
pub struct Births {
    /// Begin of each span, rising.
    begins: Vec<Duration>,
    /// For each bound of lifetimes, the number of spans that began so long before the present span.
    lived: [u16; LIFETIME_BOUNDS.len()],
    /// Number of codes.
    codes: usize,
}

impl Default for Births {
    fn default() -> Births {
        Births { begins: vec![Duration::ZERO], lived: [0; LIFETIME_BOUNDS.len()], codes: CODES }
    }
}

impl Births {
    /// Returns spans with fewer codes.
    #[cfg(test)]
    pub fn with_codes(codes: usize) -> Births {
        Births { codes, ..Births::default() }
    }

    /// The code of blocks that are born now.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most as many as there are codes")]
    pub fn now(&self) -> Birth {
        Birth((self.begins.len() - 1) as u16)
    }

    /// Class of the lifetime of a block that ends now: the number of bounds that are not above the
    /// time from the begin of the span of birth to the begin of the present span. None for a block
    /// of the present span.
    #[inline]
    pub fn lifetime(&self, birth: Birth) -> Option<u8> {
        let class = || self.lived.iter().map(|&lived| u8::from(birth.0 < lived)).sum();
        (birth != self.now()).then(class)
    }

    /// Begins of all spans, by code. The last span is the present one.
    pub fn begins(&self) -> &[Duration] {
        &self.begins
    }

    /// Begins a span at the end of a step. `steps` returns the ends of all steps that the history
    /// has, rising. Returns the new codes of earlier births if the codes were used up.
    pub fn begin(&mut self, time: Duration, steps: impl FnOnce() -> Vec<Duration>) -> Option<Recoding> {
        if self.begins.last().is_some_and(|&last| last >= time) {
            return None;
        }
        let recoding = (self.begins.len() == self.codes).then(|| {
            let steps = steps();
            let before = steps.first().copied().unwrap_or(time);
            let mut is_kept = vec![true; self.codes];
            for (is_kept, begin) in is_kept.iter_mut().zip(&self.begins) {
                // Spans from before the history are those of a parent.
                *is_kept = *begin < before || steps.binary_search(begin).is_ok();
            }
            is_kept[0] = true;
            let mut parts = FINEST;
            while is_kept.iter().filter(|&&is_kept| is_kept).count() > self.codes / 2 && parts > 0 {
                join(&self.begins, time, parts, &mut is_kept);
                parts /= 2;
            }
            self.keep(&is_kept)
        });
        self.begins.push(time);
        for (lived, &bound) in self.lived.iter_mut().zip(&LIFETIME_BOUNDS) {
            let count = match time.checked_sub(Duration::from_millis(bound)) {
                Some(latest) => self.begins.partition_point(|&begin| begin <= latest),
                None => 0,
            };
            *lived = u16::try_from(count).unwrap_or(u16::MAX);
        }
        recoding
    }

    /// Joins neighbours whose common width is at most 1 / `parts` of their age at the time `now`.
    /// Returns the new codes.
    pub fn coarsen(&mut self, now: Duration, parts: u32) -> Recoding {
        let mut is_kept = vec![true; self.begins.len()];
        join(&self.begins, now, parts, &mut is_kept);
        self.keep(&is_kept)
    }

    fn keep(&mut self, is_kept: &[bool]) -> Recoding {
        let mut kept = is_kept.iter();
        self.begins.retain(|_| kept.next() == Some(&true));
        Recoding::keeping(is_kept)
    }
}

/// Gives up borders between spans, if the joined span is no wider than 1 / `parts` of its age.
fn join(begins: &[Duration], now: Duration, parts: u32, is_kept: &mut [bool]) {
    let kept: Vec<usize> = (0..begins.len()).filter(|&code| is_kept[code]).collect();
    let mut first = begins[0];
    for neighbours in kept[1.min(kept.len())..].windows(2) {
        let (border, end) = (neighbours[0], begins[neighbours[1]]);
        if end - first <= now.saturating_sub(end) / parts.max(1) {
            is_kept[border] = false;
        } else {
            first = begins[border];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A month of steps as the recorder makes them, and years of coarse ones.
    #[test]
    fn codes_suffice_for_any_length_of_a_run_with_a_precision_relative_to_the_age() {
        let mut births = Births::default();
        let (mut now, mut recodings) = (Duration::ZERO, 0);
        let mut born: Vec<(Duration, Birth)> = Vec::new();
        for step in 0_u64..400_000 {
            now += Duration::from_millis(if step < 600 { 10 } else { 1_000 << (step / 40_000) });
            let begins = if births.begins.len() == CODES { births.begins.clone() } else { Vec::new() };
            if let Some(recoding) = births.begin(now, || begins) {
                recodings += 1;
                born.iter_mut().for_each(|(_, birth)| *birth = recoding.of(*birth));
                assert!(births.begins.len() <= CODES / 2 + 1);
            }
            if step % 1_007 == 0 {
                born.push((now, births.now()));
            }
        }
        assert!(recodings > 50 && now > Duration::from_secs(365 * 86_400), "{recodings} {now:?}");
        for (time, birth) in born {
            let span = usize::from(birth.0);
            let (begin, end) = (births.begins[span], births.begins.get(span + 1).copied().unwrap_or(now));
            assert!(begin <= time && time <= end, "{time:?} is in {begin:?} to {end:?}");
            // A step of the last tenth is as wide as 1 / 40,000 of the run.
            assert!(end - begin <= Duration::from_secs(1).max((now - begin) / 128), "{begin:?} to {end:?} at {now:?}");
        }
    }

    #[test]
    fn borders_of_the_history_are_kept_first() {
        let mut births = Births::default();
        let second = Duration::from_secs;
        (1..CODES as u64).for_each(|i| assert!(births.begin(second(i), || panic!("no need")).is_none()));
        assert_eq!(births.now(), Birth::LAST);
        let steps: Vec<Duration> = (100..CODES as u64).step_by(50).map(second).collect();
        let recoding = births.begin(second(CODES as u64), || steps.clone()).expect("the codes are used up");
        // The spans of a parent stay.
        let parents = (0..100).map(second);
        assert!(births.begins.iter().copied().eq(parents.chain(steps).chain([second(CODES as u64)])));
        assert_eq!([0, 99, 100, 149, 150].map(|code| recoding.of(Birth(code)).0), [0, 99, 100, 100, 101]);
    }

    #[test]
    fn coarser_spans_are_made_of_whole_spans() {
        let mut births = Births::default();
        (1..8000).for_each(|i| _ = births.begin(Duration::from_secs(i), Vec::new));
        let (fine, now) = (births.begins.clone(), Duration::from_secs(8000));
        let mut codes: Vec<Birth> = (0..8000).map(Birth).collect();
        for parts in [256, 64, 16, 4, 1] {
            let recoding = births.coarsen(now, parts);
            codes.iter_mut().for_each(|code| *code = recoding.of(*code));
            for (begin, code) in fine.iter().zip(&codes) {
                assert_eq!(births.begins.partition_point(|other| other <= begin) - 1, usize::from(code.0));
            }
            let widest = births.begins.windows(2).filter(|span| span[1] - span[0] > (now - span[1]) / parts);
            assert!(widest.count() <= parts as usize + 1, "only single spans are wider");
        }
        assert!(births.begins.len() < 20, "{}", births.begins.len());
    }
}
