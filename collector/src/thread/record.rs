//! Recording of one event of the calling thread, from a hook.

use super::{Published, Thread};
use crate::{process, thread};

/// Publishes an event for a hook entered at `slot`. `publish` writes the event into the ring of the
/// calling thread.
#[inline(always)]
pub fn record(slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    let Some(thread) = thread::enter_at_once(slot) else { return record_slowly(slot, publish) };
    let published = publish(thread);
    thread::leave(thread);
    if published == Published::Over {
        record_slowly(slot, publish);
    }
}

/// Records an event of a thread that is not ready. Cases:
///
/// - the first event of the thread,
/// - the first event of another session,
/// - an event on a stack that may lack room,
/// - an event inside of another event.
#[cold]
#[inline(never)]
fn record_slowly(slot: usize, publish: impl Fn(&mut Thread) -> Published) {
    if process::is_quiet() {
        return;
    }
    let has_room = thread::with_room(slot, || {
        // The session of the thread may have ended, and another session may have begun meanwhile.
        // The event is then the first event of the new session.
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
