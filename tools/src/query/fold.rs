//! Folds recursion: each frame stands at most once on a way of the call tree.
//!
//! A stack is walked from its oldest frame on. A frame that stands on the way already leads back to
//! its first place, and the frames between are left out: `f, f, f` is `f`, and `f, g, f, g, h` is
//! `f, g, h`. A frame is a function at a line, so a function that calls itself from two lines
//! stands on a way twice.
//!
//! A folded tree does not tell at which depth the blocks are, and leaves out frames of a cycle that
//! were not the last. So trees are folded only on request.

use crate::frames::{Frame, StringId, TracebackId, Tracebacks};
use std::collections::HashMap;

/// Number of times that a way passes through its last frame, where more than once: the greatest of
/// all stacks with this way. The key is the way.
pub type Passes = HashMap<TracebackId, u32>;

/// Folds tracebacks, each once.
#[derive(Default)]
pub(super) struct Fold {
    known: HashMap<TracebackId, TracebackId>,
    pub(super) passes: Passes,
}

/// Place of a frame: file, line and function.
type Place = (StringId, u32, StringId);

impl Fold {
    /// Returns the folded traceback.
    pub(super) fn folded(&mut self, tracebacks: &mut Tracebacks, id: TracebackId) -> TracebackId {
        if let Some(&known) = self.known.get(&id) {
            return known;
        }
        let mut way: Vec<(Frame, u32)> = Vec::new();
        let mut places: HashMap<Place, usize> = HashMap::new();
        let place = |frame: &Frame| (frame.filename, frame.lineno, frame.function);
        for frame in tracebacks.oldest_first(id) {
            match places.get(&place(&frame)) {
                None => {
                    places.insert(place(&frame), way.len());
                    way.push((frame, 1));
                }
                Some(&index) => {
                    for (frame, _) in way.drain(index + 1..) {
                        places.remove(&place(&frame));
                    }
                    way[index].1 += 1;
                }
            }
        }
        let mut folded = None;
        for (frame, passes) in way {
            let id = tracebacks.push(folded, frame);
            if passes > 1 {
                let most = self.passes.entry(id).or_default();
                *most = passes.max(*most);
            }
            folded = Some(id);
        }
        let folded = folded.unwrap_or(id);
        self.known.insert(id, folded);
        folded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Left, Part};
    use proptest::prelude::*;

    fn push_all(tracebacks: &mut Tracebacks, names: &str) -> TracebackId {
        let mut id = None;
        for name in names.chars() {
            let name = tracebacks.string(&name.to_string());
            let (part, left) = (Part::Asks, Left::Tables);
            let frame = Frame { filename: name, lineno: 1, function: name, module: name, address: 0, part, left };
            id = Some(tracebacks.push(id, frame));
        }
        id.expect("frames")
    }

    fn names(tracebacks: &Tracebacks, id: TracebackId) -> String {
        tracebacks.oldest_first(id).iter().map(|frame| tracebacks.text(frame.function)).collect()
    }

    #[test]
    fn a_cycle_stands_once_with_the_number_of_its_passes() {
        for (stack, folded, passes) in [
            ("abc", "abc", &[][..]),
            ("affffb", "afb", &[("af", 4)]),
            ("afgfgh", "afgh", &[("af", 2)]),
            ("abcbcbd", "abd", &[("ab", 3)]),
            ("abacb", "acb", &[("a", 2)]),
        ] {
            let (mut tracebacks, mut fold) = (Tracebacks::default(), Fold::default());
            let id = push_all(&mut tracebacks, stack);
            let found = fold.folded(&mut tracebacks, id);
            assert_eq!(names(&tracebacks, found), folded, "{stack}");
            let found = fold.passes.iter().map(|(&id, &passes)| (names(&tracebacks, id), passes));
            let expected = passes.iter().map(|&(way, passes)| (way.to_owned(), passes));
            assert_eq!(found.collect::<HashMap<_, _>>(), expected.collect(), "{stack}");
        }
        let (mut tracebacks, mut fold) = (Tracebacks::default(), Fold::default());
        for (stack, most) in [("ff", 2), ("fffff", 5), ("fff", 5)] {
            let id = push_all(&mut tracebacks, stack);
            let way = fold.folded(&mut tracebacks, id);
            assert_eq!(fold.passes[&way], most, "the greatest of all stacks");
        }
    }

    proptest! {
        #[test]
        fn ends_stay_and_no_frame_stands_twice(stack in "[a-e]{1,30}") {
            let (mut tracebacks, mut fold) = (Tracebacks::default(), Fold::default());
            let id = push_all(&mut tracebacks, &stack);
            let way = fold.folded(&mut tracebacks, id);
            let way = names(&tracebacks, way);
            prop_assert_eq!(way.chars().next(), stack.chars().next());
            prop_assert_eq!(way.chars().last(), stack.chars().last());
            let mut frames: Vec<char> = way.chars().collect();
            // Each step of the way is a call of the stack.
            prop_assert!(frames.windows(2).all(|pair| stack.contains(&pair.iter().collect::<String>())));
            frames.sort_unstable();
            prop_assert!(frames.windows(2).all(|pair| pair[0] != pair[1]), "{}", way);
        }
    }
}
