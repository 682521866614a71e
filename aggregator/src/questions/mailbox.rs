//! Answers to the target's own questions ([`heapline_shared_format::query`]), written into the
//! arena.

use crate::base::sys;
use crate::session::arena_map::ArenaMap;
use crate::table::{Answer, Answered};
use heapline_shared_format::arena::{MAIL_BYTES, SLEEPS};
use std::sync::atomic::Ordering;

/// Sender of answers to the target.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// The last text, as long as the target may ask for further pieces.
    text: Vec<u8>,
}

impl Mailbox {
    /// Writes an answer into the arena, and wakes the asking thread.
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
        // Release pairs with the target's Acquire: a thread that sees the number sees the answer.
        mail.answered.store(answered.number, Ordering::SeqCst);
        // A thread about to sleep announces this, then reads the number once more.
        if mail.asking.load(Ordering::SeqCst) >= SLEEPS {
            sys::futex_wake(&mail.answered);
        }
    }

    /// Writes the piece of the text from byte `from` on. Drops the text after the last piece.
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
