//! exec: a process runs several programs in sequence.
//!
//! The target counts three numbers: traced programs, begun exec calls, and failed exec calls. A
//! begun exec call began an untraced program if it neither failed nor led to a traced program.

use super::Drain;
use crate::process::image::Image;
use crate::process::procfs;
use crate::process::tasks::Tasks;
use crate::table::messages::Message;
use crate::table::order::Mark;
use heapline_shared_format::arena::{Slot, slot_state};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

impl Drain {
    /// Notices a new traced program after exec, and finishes the program before.
    pub(super) fn follow_exec(&mut self) {
        // Acquire pairs with the new program's Release: the slots of older programs are final.
        let images = self.map.arena().header().target.images.load(Ordering::Acquire);
        if images == self.image.number {
            return;
        }
        for number in self.older_images(images) {
            if number != self.image.number {
                self.begin(number);
            }
            self.finish_image();
            self.outlet.send(Message::Replaced);
        }
        self.begin(images);
    }

    /// Numbers of programs before `images` with rings in the arena, including the present program.
    fn older_images(&self, images: u32) -> BTreeSet<u32> {
        let arena = self.map.arena();
        // Higher slots are not read, because reading a slot would give it memory.
        let high = arena.header().target.slots_high.load(Ordering::Acquire).min(arena.geometry().slots);
        let slots = (0..high).filter_map(|index| Some((index, arena.slot(index)?)));
        let ours = slots.filter(|(index, slot)| {
            let word = slot.state.0.load(Ordering::Acquire);
            Slot::kind(word) == slot_state::ACTIVE
                && slot.session.load(Ordering::Relaxed) == self.session.number()
                && self.rings[*index as usize].is_none()
        });
        let mut older: BTreeSet<u32> = ours.map(|(_, slot)| slot.image.load(Ordering::Relaxed)).collect();
        older.insert(self.image.number);
        older.into_iter().filter(|&number| number > 0 && number != images).collect()
    }

    /// Takes all remaining records of the present program.
    fn finish_image(&mut self) {
        self.visit_all(&mut Mark::default());
        for index in 0..self.map.arena().geometry().slots {
            if self.rings[index as usize].is_some() {
                self.retire(index);
            }
        }
    }

    fn begin(&mut self, number: u32) {
        if self.image.number > 0 {
            // A thread that waited for an answer is gone, and the new program counts questions
            // anew.
            let mail = &self.map.arena().header().mail;
            mail.asking.store(0, Ordering::Relaxed);
            mail.answered.store(0, Ordering::Relaxed);
        }
        // Data reported by a child about itself holds, whatever program runs by now.
        let tasks = self.controls.tasks().filter(|_| !self.launched.is_read);
        let running = tasks.and_then(|tasks| running_image(tasks, number));
        // The data read describes this program only if no other program has begun meanwhile.
        let images = self.map.arena().header().target.images.load(Ordering::Acquire);
        let running = running.filter(|_| images == number && !self.is_exec_open());
        let known = if number == self.execs.images { self.launched.clone() } else { Image::default() };
        self.image = match running {
            // The program may have ended between the two reads.
            Some(running) if running.command.is_empty() => Image { command: known.command, ..running },
            Some(running) => running,
            None => Image { number, ..known },
        };
        self.untraced = None;
        self.outlet.send(Message::Begin(self.image.clone()));
    }

    /// Whether the last exec has begun an untraced program.
    pub(super) fn is_exec_open(&self) -> bool {
        let target = &self.map.arena().header().target;
        let since = |word: &AtomicU32, then: u32| word.load(Ordering::Relaxed).wrapping_sub(then);
        let images = target.images.load(Ordering::Acquire);
        let replaced = images.max(1).wrapping_sub(self.execs.images);
        let begun = since(&target.exec_begun, self.execs.begun);
        images > 0 && begun > since(&target.exec_failed, self.execs.failed).saturating_add(replaced)
    }

    /// Notes a changed executable: exec has just begun a program, or the program is untraced.
    pub(super) fn note_untraced(&mut self, tasks: Tasks) {
        if self.image.is_read || self.is_exec_open() {
            let running = running_image(tasks, self.image.number.wrapping_add(1));
            self.untraced = running.filter(|running| !running.is_program_of(&self.image));
        }
    }
}

fn running_image(tasks: Tasks, number: u32) -> Option<Image> {
    let (executable, file) = procfs::executable_and_file(tasks.pid())?;
    let executable = executable.to_string_lossy();
    // The suffix of a file replaced while the program runs.
    let executable = executable.strip_suffix(" (deleted)").unwrap_or(&executable).to_owned();
    Some(Image { number, executable, command: procfs::command(tasks.pid()), file, is_read: true })
}
