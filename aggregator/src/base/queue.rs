//! A bounded queue between two threads: rtrb's ring, plus waiting at both ends.
//!
//! A sender waits while the queue is full, so no value is lost. The wait spreads to the target,
//! whose threads then wait for room.

use crossbeam_utils::sync::{Parker, Unparker};
use std::time::{Duration, Instant};

/// The sending end of a queue.
pub struct Sender<T> {
    ring: rtrb::Producer<T>,
    parker: Parker,
    /// Dropped after the ring: a waiting receiver then learns that the sender is gone.
    receiver: Wake,
}

/// The receiving end of a queue, with the parker of the receiving thread.
pub struct Receiver<T> {
    inlet: Inlet<T>,
    parker: Parker,
}

/// The receiving end without a parker, usable from any thread.
pub struct Inlet<T> {
    ring: rtrb::Consumer<T>,
    /// Dropped after the ring: a waiting sender then learns that the receiver is gone.
    sender: Wake,
}

/// Wakes the other end of the queue, also when this end is dropped.
struct Wake(Unparker);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

/// Error of a sender: the receiver is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// Interval between two looks at a full queue.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// Makes a queue for `capacity` values.
pub fn queue<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let (for_sender, for_receiver) = (Parker::new(), Parker::new());
    let sender = Wake(for_sender.unparker().clone());
    let receiver = Wake(for_receiver.unparker().clone());
    let inlet = Inlet { ring: consumer, sender };
    (Sender { ring: producer, parker: for_sender, receiver }, Receiver { inlet, parker: for_receiver })
}

impl<T> Sender<T> {
    /// Sends a value, and waits for room. Calls `waiting` about every millisecond with the duration
    /// of the wait.
    pub fn send(&mut self, value: T, waiting: impl FnMut(Duration)) -> Result<(), Closed> {
        self.put(value, waiting)?;
        self.receiver.0.unpark();
        Ok(())
    }

    /// Sends a value, and waits for room. Wakes the receiver only when the queue is full.
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
    /// Takes the next value, without waiting.
    pub fn try_recv(&mut self) -> Option<T> {
        let value = self.ring.pop().ok()?;
        self.sender.0.unpark();
        Some(value)
    }

    /// Returns the next value, and leaves the value in the queue.
    pub fn peek(&self) -> Option<&T> {
        self.ring.peek().ok()
    }

    /// Whether the sender is gone and the queue is empty.
    pub fn is_finished(&self) -> bool {
        self.ring.is_abandoned() && self.ring.is_empty()
    }
}

impl<T> Receiver<T> {
    /// Takes the next value, without waiting.
    pub fn try_recv(&mut self) -> Option<T> {
        self.inlet.try_recv()
    }

    /// Splits the receiver into the receiving end and the parker of the thread.
    pub fn split(self) -> (Inlet<T>, Parker) {
        (self.inlet, self.parker)
    }

    /// Sleeps until a value may have come, or another thread has used [`Receiver::waker`].
    pub fn wait(&self) {
        self.parker.park();
    }

    /// Whether the sender is gone and the queue is empty.
    pub fn is_finished(&self) -> bool {
        self.inlet.is_finished()
    }

    /// Returns a handle to end the receiver's [`Receiver::wait`].
    pub fn waker(&self) -> Unparker {
        self.parker.unparker().clone()
    }
}
