//! Answers to the target's own questions ([`heapline_shared_format::query`]), put where it waits for them.

use crate::base::sys;
use crate::session::arena_map::ArenaMap;
use crate::table::{Answer, Answered};
use heapline_shared_format::arena::{MAIL_BYTES, SLEEPS};
use std::sync::atomic::Ordering;

/// See the module.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// The last text, as long as the target may ask for more of it.
    text: Vec<u8>,
}

impl Mailbox {
    /// Answers a question.
    pub fn post(&mut self, map: &ArenaMap, answered: Answered) {
        let header = map.arena().header();
        let mail = &header.mail;
        let [first, second] = &mail.numbers;
        match answered.answer {
            Answer::Done => self.text.clear(),
            Answer::Sums([current, peak]) => {
                first.store(current, Ordering::Relaxed);
                second.store(peak, Ordering::Relaxed);
            }
            Answer::OwnMemory => {
                let own = header.target.own_bytes.load(Ordering::Relaxed);
                first.store(map.touched_bytes() + own, Ordering::Relaxed);
            }
            Answer::Text(text) => {
                self.text = text;
                self.put(map, 0);
            }
            Answer::More(from) => self.put(map, usize::try_from(from).unwrap_or(usize::MAX)),
        }
        // Release pairs with the target's Acquire: the answer is there when its number is.
        mail.answered.store(answered.number, Ordering::SeqCst);
        // One that is about to sleep looks at the number once more, after it has said so.
        if mail.asking.load(Ordering::SeqCst) >= SLEEPS {
            sys::futex_wake(&mail.answered);
        }
    }

    /// Puts the text's piece from a byte on where the target reads it; lets go of the text when that was the last.
    fn put(&mut self, map: &ArenaMap, from: usize) {
        map.arena().header().mail.bytes.store(self.text.len() as u64, Ordering::Relaxed);
        let rest = self.text.get(from..).unwrap_or_default();
        for (word, bytes) in map.arena().mail().iter().zip(rest.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        if rest.len() <= MAIL_BYTES {
            self.text = Vec::new();
        }
    }
}
