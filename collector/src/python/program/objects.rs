//! Makes Python objects from a text of the aggregator ([`heapline_shared_format::query`]).

use super::api::{Api, Object, Owned};
use core::ffi::c_int;
use heapline_shared_format::query::GROUP_WORDS;

/// `PyUnicode_4BYTE_KIND`.
const FOUR_BYTES: c_int = 4;

/// Rest of a text. A text too short is an error, not a crash: the aggregator is not trusted with
/// the program's life.
struct Words<'t>(&'t [u32]);

impl<'t> Words<'t> {
    fn one(&mut self) -> Option<u32> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn some(&mut self, count: u32) -> Option<&'t [u32]> {
        let (some, rest) = self.0.split_at_checked(count as usize)?;
        self.0 = rest;
        Some(some)
    }

    fn long(&mut self) -> Option<u64> {
        Some(u64::from(self.one()?) | u64::from(self.one()?) << 32)
    }
}

/// Appends the traces of `_tracemalloc._get_traces()`. None with an exception set, or if the text
/// is incomplete.
pub fn append_traces(api: &Api, list: &Owned<'_>, text: &[u32]) -> Option<()> {
    let mut words = Words(text);
    let [files, tracebacks, groups] = [words.one()?, words.one()?, words.one()?];
    let count = words.long()?;
    let tracebacks = Tracebacks::read(api, &mut words, files, tracebacks)?;
    let mut done = 0;
    for _ in 0..groups {
        let mut group = Words(words.some(u32::try_from(GROUP_WORDS).ok()?)?);
        let (domain, size, traceback) = (group.one()?, group.long()?, group.one()?);
        let alike = group.long()?;
        for _ in 0..alike {
            let trace = tracebacks.trace(domain, size, traceback)?;
            // SAFETY: a function of the C API, with the interpreter's lock; both arguments are
            // objects made here.
            if unsafe { (api.append)(list.get(), trace.get()) } != 0 {
                return None;
            }
        }
        done += alike;
    }
    (done == count).then_some(())
}

/// Returns the frames of the text's only traceback, or `None` (the Python object) for a text
/// without tracebacks.
pub fn traceback(api: &Api, text: &[u32]) -> Option<Object> {
    let mut words = Words(text);
    let [files, tracebacks, _] = [words.one()?, words.one()?, words.one()?];
    words.long()?;
    if tracebacks == 0 {
        return Some(api.none());
    }
    let tracebacks = Tracebacks::read(api, &mut words, files, tracebacks)?;
    Some(tracebacks.frames(0)?.into_object())
}

/// Least number of places in a table of objects. Smaller tuples, and lists, go to a free list when
/// they end. From there the program would get blocks that it never asked for.
const LEAST: isize = 32;

/// Tracebacks as tuples of (filename, lineno), each made once.
struct Tracebacks<'a> {
    api: &'a Api,
    frames: Owned<'a>,
    totals: Owned<'a>,
}

impl<'a> Tracebacks<'a> {
    fn read(api: &'a Api, words: &mut Words<'_>, files: u32, tracebacks: u32) -> Option<Tracebacks<'a>> {
        // SAFETY: a function of the C API, with the interpreter's lock; any size is allowed.
        let table = |n: u32| unsafe { api.own((api.tuple)(isize::try_from(n).ok()?.max(LEAST))) };
        let names = table(files)?;
        for i in 0..isize::try_from(files).ok()? {
            let length = words.one()?;
            let characters = words.some(length)?;
            // SAFETY: functions of the C API, with the lock. `characters` has `length` words; `i`
            // is below the table's size.
            unsafe {
                let length = isize::try_from(length).ok()?;
                let name = api.own((api.text)(FOUR_BYTES, characters.as_ptr().cast(), length))?;
                (api.set_in_tuple)(names.get(), i, name.into_object());
            }
        }
        let (frames, totals) = (table(tracebacks)?, table(tracebacks)?);
        for i in 0..isize::try_from(tracebacks).ok()? {
            let (total, length) = (words.one()?, words.one()?);
            // SAFETY: functions of the C API, with the lock. `i` and `k` are below the sizes of the
            // table and the tuple.
            unsafe {
                let tuple = api.own((api.tuple)(isize::try_from(length).ok()?))?;
                for k in 0..isize::try_from(length).ok()? {
                    let (file, line) = (words.one()?, words.one()?);
                    // A borrowed reference; null with an error for a number beyond the end.
                    let name = (api.in_tuple)(names.get(), isize::try_from(file).ok()?);
                    if name.is_null() {
                        return None;
                    }
                    let frame = api.own((api.build)(c"(OI)".as_ptr(), name, line))?;
                    (api.set_in_tuple)(tuple.get(), k, frame.into_object());
                }
                (api.set_in_tuple)(frames.get(), i, tuple.into_object());
                let total = api.own((api.number)(total.into()))?;
                (api.set_in_tuple)(totals.get(), i, total.into_object());
            }
        }
        Some(Tracebacks { api, frames, totals })
    }

    fn frames(&self, number: u32) -> Option<Owned<'a>> {
        self.of(&self.frames, number)
    }

    fn of(&self, table: &Owned<'_>, number: u32) -> Option<Owned<'a>> {
        // SAFETY: functions of the C API, with the lock. The item is borrowed, so it is retained.
        unsafe {
            let item = (self.api.in_tuple)(table.get(), isize::try_from(number).ok()?);
            if !item.is_null() {
                (self.api.retain)(item);
            }
            self.api.own(item)
        }
    }

    /// Returns a trace in the form of `_get_traces`.
    fn trace(&self, domain: u32, size: u64, traceback: u32) -> Option<Owned<'a>> {
        let (frames, total) = (self.frames(traceback)?, self.of(&self.totals, traceback)?);
        // SAFETY: functions of the C API, with the lock. The tuple has 4 places.
        unsafe {
            let trace = self.api.own((self.api.tuple)(4))?;
            let items = [(self.api.number)(domain.into()), (self.api.number)(size)];
            let items = [self.api.own(items[0])?, self.api.own(items[1])?, frames, total];
            for (i, item) in (0..).zip(items) {
                (self.api.set_in_tuple)(trace.get(), i, item.into_object());
            }
            Some(trace)
        }
    }
}
