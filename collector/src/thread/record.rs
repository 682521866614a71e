//! One event of the calling thread, recorded from a hook.

use super::{Published, Thread};
use crate::{process, thread};

/// Publishes what `publish` makes of a hook that was entered at `slot`.
#[inline(always)]
pub fn record(slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    let Some(thread) = thread::enter_at_once(slot) else { return record_slowly(slot, publish) };
    let published = publish(thread);
    thread::leave(thread);
    if published == Published::Over {
        record_slowly(slot, publish);
    }
}

/// Records an event of a thread that is not ready for it: its first one, the first of another session, one on a stack that
/// may not have room, or one inside of another.
#[cold]
#[inline(never)]
fn record_slowly(slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    if process::is_quiet() {
        return;
    }
    let has_room = thread::with_room(slot, || {
        // The thread's session may be over, and another may have begun: the event is then the first of that.
        for _ in 0..2 {
            let Some(thread) = thread::enter(slot) else { return };
            let published = publish(thread);
            thread::leave(thread);
            if published != Published::Over {
                return;
            }
        }
    });
    if !has_room {
        process::count_unrecorded();
    }
}
