//! A bounded queue between two threads: rtrb's ring, plus waiting at both ends.
//!
//! Full means that the sender waits, so that what is sent is never lost: the wait reaches the target, whose threads
//! then wait for room.

use crossbeam_utils::sync::{Parker, Unparker};
use std::time::{Duration, Instant};

/// The sending end.
pub struct Sender<T> {
    ring: rtrb::Producer<T>,
    parker: Parker,
    /// After the ring: a receiver that waits learns that nothing more comes.
    receiver: Wake,
}

/// The receiving end, with what its thread sleeps on.
pub struct Receiver<T> {
    inlet: Inlet<T>,
    parker: Parker,
}

/// The receiving end, for whoever has it.
pub struct Inlet<T> {
    ring: rtrb::Consumer<T>,
    /// After the ring, likewise.
    sender: Wake,
}

/// Wakes the other end, also when this one goes.
struct Wake(Unparker);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

/// The receiver is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// Between two looks at a queue that was full.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// A queue for `capacity` values.
pub fn queue<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let (for_sender, for_receiver) = (Parker::new(), Parker::new());
    let sender = Wake(for_sender.unparker().clone());
    let receiver = Wake(for_receiver.unparker().clone());
    let inlet = Inlet { ring: consumer, sender };
    (Sender { ring: producer, parker: for_sender, receiver }, Receiver { inlet, parker: for_receiver })
}

impl<T> Sender<T> {
    /// Sends, waiting for room. `waiting` is told every millisecond or so how long it has been.
    pub fn send(&mut self, value: T, waiting: impl FnMut(Duration)) -> Result<(), Closed> {
        self.put(value, waiting)?;
        self.receiver.0.unpark();
        Ok(())
    }

    /// Likewise, without waking the receiver unless there is no room.
    pub fn put(&mut self, mut value: T, mut waiting: impl FnMut(Duration)) -> Result<(), Closed> {
        let mut since = None;
        while let Err(rtrb::PushError::Full(back)) = self.ring.push(value) {
            if self.ring.is_abandoned() {
                return Err(Closed);
            }
            value = back;
            self.receiver.0.unpark();
            waiting(since.get_or_insert_with(Instant::now).elapsed());
            self.parker.park_timeout(FULL_WAIT);
        }
        Ok(())
    }

    /// Wakes the receiver.
    pub fn wake(&self) {
        self.receiver.0.unpark();
    }
}

impl<T> Inlet<T> {
    /// The next value, without waiting.
    pub fn try_recv(&mut self) -> Option<T> {
        let value = self.ring.pop().ok()?;
        self.sender.0.unpark();
        Some(value)
    }

    /// The next value, which stays.
    pub fn peek(&self) -> Option<&T> {
        self.ring.peek().ok()
    }

    /// Whether the sender is gone and nothing is left.
    pub fn is_finished(&self) -> bool {
        self.ring.is_abandoned() && self.ring.is_empty()
    }
}

impl<T> Receiver<T> {
    /// The next value, without waiting.
    pub fn try_recv(&mut self) -> Option<T> {
        self.inlet.try_recv()
    }

    /// The end itself, and what its thread sleeps on.
    pub fn split(self) -> (Inlet<T>, Parker) {
        (self.inlet, self.parker)
    }

    /// Sleeps until something may have come, or somebody used [`Receiver::waker`].
    pub fn wait(&self) {
        self.parker.park();
    }

    /// Whether the sender is gone and nothing is left.
    pub fn is_finished(&self) -> bool {
        self.inlet.is_finished()
    }

    /// Ends the receiver's [`Receiver::wait`].
    pub fn waker(&self) -> Unparker {
        self.parker.unparker().clone()
    }
}
