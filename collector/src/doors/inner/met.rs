//! Which objects were met, and when one may be changed.
//!
//! An object is led here by whoever meets it first, if no other thread can have begun to use it: the thread that opened it, on
//! the way out of `dlopen`, or the only thread. Everybody else takes the object for one that is in use. So is one whose
//! constructors have started threads, unless it was led here before that ([`constructs`]).

use super::{LED, MOST, lead};
use crate::attach::objects::{self, LoadedObject};
use crate::elf::{self, Loaded};
use crate::{process, sys, thread};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Objects that were met: they are led here, or are never.
struct Met {
    objects: [usize; Met::MOST],
    count: usize,
    /// The loader's counts at the last look at all objects.
    history: (u64, u64),
}

impl Met {
    const MOST: usize = 4096;

    fn knows(&self, object: &LoadedObject) -> bool {
        // With more objects than that, the others are taken for known.
        self.count == Met::MOST || self.objects[..self.count].contains(&object.extent.start)
    }

    fn note(&mut self, object: &LoadedObject) {
        if let Some(place) = self.objects.get_mut(self.count) {
            *place = object.extent.start;
            self.count += 1;
        }
    }
}

struct Shared(UnsafeCell<Met>);

// SAFETY: used inside of `objects::until` only, which lets one thread in at a time.
unsafe impl Sync for Shared {}

static MET: Shared = Shared(UnsafeCell::new(Met { objects: [0; Met::MOST], count: 0, history: (0, 0) }));

/// The thread whose `dlopen` went past here and may not be over; 0 for none, [`SEVERAL`] for more than one.
static PASSING: AtomicU32 = AtomicU32::new(0);
const SEVERAL: u32 = u32::MAX;

/// The calling thread is about to open objects of which it will not be heard when they are there.
pub fn pass() {
    let own = sys::gettid();
    if PASSING.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire).is_err_and(|other| other != own) {
        PASSING.store(SEVERAL, Ordering::Release);
    }
}

fn may_others_be_passing() -> bool {
    let passing = PASSING.load(Ordering::Acquire);
    if passing != 0 && passing == sys::gettid() {
        // This thread is here, so its call is over.
        let _ = PASSING.compare_exchange(passing, 0, Ordering::AcqRel, Ordering::Relaxed);
        return false;
    }
    passing != 0
}

/// Meets all objects that are there. What is new may be in use by other threads, unless there are none.
pub fn look_at_all() {
    let is_alone = sys::thread_count() == Some(1);
    let mut news = News::default();
    let (mut is_first, mut is_unloaded, mut is_there) = (true, false, [false; MOST]);
    objects::until(|object| {
        // SAFETY: one thread at a time is in here.
        let met = unsafe { &mut *MET.0.get() };
        if core::mem::take(&mut is_first) {
            if met.history == object.history {
                return ControlFlow::Break(());
            }
            if met.history.1 != object.history.1 {
                // Another object may lie where one was.
                (met.count, is_unloaded) = (0, true);
            }
            met.history = object.history;
        }
        LED.iter().zip(&mut is_there).for_each(|(led, is_there)| *is_there |= led.is_there(object));
        if !met.knows(object) {
            met.note(object);
            if is_alone && !super::is_led(object.extent.start) {
                news.lead(object);
            }
        }
        ControlFlow::Continue(())
    });
    if is_unloaded {
        let gone =
            LED.iter().zip(is_there).filter(|(led, is_there)| led.start.load(Ordering::Relaxed) != 0 && !is_there);
        gone.for_each(|(led, _)| led.forget());
    }
    news.tell();
}

/// The thread whose `dlopen` runs constructors, 0 for none; and how many threads there were before.
static OPENER: AtomicU32 = AtomicU32::new(0);
static OPENERS_THREADS: AtomicUsize = AtomicUsize::new(0);

/// A constructor may be about to start a thread: jemalloc's looks `pthread_create` up first. The object with this code is
/// led here before that, if this thread is opening it.
pub fn constructs(caller: usize) {
    let opener = OPENER.load(Ordering::Acquire);
    if opener == 0 || opener != sys::gettid() {
        return;
    }
    let threads = OPENERS_THREADS.load(Ordering::Relaxed);
    let has_no_more = sys::thread_count().is_some_and(|count| count <= threads);
    if !has_no_more || may_others_be_passing() {
        return;
    }
    let mut news = News::default();
    objects::each(|object| {
        // SAFETY: one thread at a time is in here.
        let met = unsafe { &mut *MET.0.get() };
        if object.extent.contains(caller) && !met.knows(object) {
            met.note(object);
            news.lead(object);
        }
    });
    news.tell();
}

/// A `dlopen` of the calling thread's.
pub struct Opening {
    threads: Option<usize>,
    may_lead: bool,
    /// No other one was under way.
    is_outer: bool,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let own = if self.is_outer { sys::gettid() } else { return };
        let _ = OPENER.compare_exchange(own, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl Opening {
    /// Just before it.
    pub fn begin() -> Opening {
        look_at_all();
        let (threads, may_lead) = (sys::thread_count(), !may_others_be_passing());
        let is_outer = may_lead
            && threads.is_some()
            && OPENER.compare_exchange(0, sys::gettid(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_outer {
            OPENERS_THREADS.store(threads.unwrap_or(0), Ordering::Relaxed);
        }
        Opening { threads, may_lead, is_outer }
    }

    /// Just behind it, where it has returned a handle.
    pub fn end(self, handle: *mut c_void) {
        let mut opened = Opened { objects: [None; Opened::MOST], count: 0 };
        while opened.grow(handle) {}
        if opened.count == 0 {
            return;
        }
        let threads = sys::thread_count();
        // Constructors may have started threads that use the object.
        let has_no_more = threads.is_some() && threads <= self.threads;
        let may_lead = threads == Some(1) || (self.may_lead && has_no_more && !may_others_be_passing());
        let mut news = News::default();
        objects::each(|object| {
            // SAFETY: one thread at a time is in here.
            let met = unsafe { &mut *MET.0.get() };
            if opened.has(object) && !met.knows(object) {
                met.note(object);
                if may_lead {
                    news.lead(object);
                }
            }
        });
        news.tell();
    }
}

/// The objects that one `dlopen` has loaded: that of the handle, and what these objects need.
struct Opened {
    objects: [Option<Loaded>; Opened::MOST],
    count: usize,
}

impl Opened {
    const MOST: usize = 64;

    fn has(&self, object: &LoadedObject) -> bool {
        self.objects[..self.count].iter().flatten().any(|known| known.bias == object.loaded.bias)
    }

    /// Adds objects that were not met yet. False where there are no more.
    fn grow(&mut self, handle: *mut c_void) -> bool {
        let before = self.count;
        objects::until(|object| {
            // SAFETY: one thread at a time is in here.
            let met = unsafe { &*MET.0.get() };
            if met.history == object.history {
                return ControlFlow::Break(());
            }
            if !met.knows(object) && !self.has(object) && self.count < Opened::MOST {
                let is_handles = object.loaded.mapped().is_some_and(|mapped| mapped.is_handle(handle));
                if is_handles || self.objects[..self.count].iter().flatten().any(|known| needs(known, object)) {
                    self.objects[self.count] = Some(object.loaded);
                    self.count += 1;
                }
            }
            ControlFlow::Continue(())
        });
        self.count > before
    }
}

/// Whether an object is linked with another one, by the name that the other one has.
fn needs(object: &Loaded, other: &LoadedObject) -> bool {
    const DT_NEEDED: u64 = 1;
    const DT_STRTAB: u64 = 5;
    const DT_SONAME: u64 = 14;
    let text = |strings: usize, offset: usize| {
        // SAFETY: a C string of a loaded object's table of texts.
        unsafe { CStr::from_ptr((strings + offset) as *const c_char) }.to_bytes()
    };
    let [strings, soname] = other.loaded.dynamic([DT_STRTAB, DT_SONAME]);
    let mapped = other.loaded.mapped();
    let path = mapped.as_ref().map_or(&[][..], |mapped| mapped.path());
    let file = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let [own_strings] = object.dynamic([DT_STRTAB]);
    if strings == 0 || own_strings == 0 {
        return false;
    }
    object.each_dynamic(DT_NEEDED).any(|offset| {
        let needed = text(own_strings, offset);
        needed == file || needed == path || (soname != 0 && needed == text(strings, soname))
    })
}

/// Objects that were led here in one look.
#[derive(Default)]
struct News {
    starts: [usize; News::MOST],
    count: usize,
    constructors: u64,
}

impl News {
    const MOST: usize = 8;

    fn lead(&mut self, object: &LoadedObject) {
        let Some(place) = self.starts.get_mut(self.count) else { return };
        // SAFETY: the loader's lock is held, and whoever asks knows that no thread uses the object.
        if unsafe { lead(object) }.is_some() {
            *place = object.extent.start;
            self.count += 1;
            self.constructors += u64::from(object.has_constructors());
        }
    }

    /// Tells the aggregator, now that the loader's lock is free.
    fn tell(&self) {
        if self.count == 0 {
            return;
        }
        process::count_unled(0, self.constructors);
        let Some(thread) = thread::enter(thread::stack_pointer()) else { return };
        for object in self.starts[..self.count].iter().filter_map(|&start| elf::find_object(start)) {
            crate::modules::announce_again(thread, &object);
        }
        thread::leave(thread);
    }
}
