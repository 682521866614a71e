//! The environment of a new program: the caller's environment with two more variables.
//!
//! The place of the new list depends on its size. Memory mapped by a vfork child would stay in the
//! parent for ever, so a vfork child maps none.
//!
//! | Words | In a process | In a vfork child |
//! | --- | --- | --- |
//! | up to [`SMALL`] | stack | stack |
//! | up to [`LARGE`] | mapped memory, given back after the call | stack |
//! | more | mapped memory, given back after the call | no new list: the caller's environment |

use super::{List, Passage};
use crate::platform::environment::{ArenaHandle, ENV_PRELOAD, find};
use crate::platform::sys;
use crate::{fail, process, real};
use core::ffi::{CStr, c_char, c_int};
use core::mem::MaybeUninit;
use core::ptr;
use heapline_shared_format::arena::ENV_ARENA;
use heapline_shared_format::tree::{ENV_TREE, WAY_BYTES};

/// Room for a variable's name, `=`, the text of a passage, and a zero byte.
const PASSAGE_BYTES: usize = 16 + WAY_BYTES;
/// Words of a list with room on any thread's stack.
const SMALL: usize = 512;
/// Words of a list with room on the stack of a thread that starts programs in an environment of
/// thousands of variables.
const LARGE: usize = 8192;

/// Runs a call with the passage added to the environment, or with the caller's environment if there
/// is no room.
///
/// # Safety
/// `environment` is a null-terminated list of C strings, or null.
pub unsafe fn with(passage: Passage, environment: List, call: impl Fn(List) -> c_int) -> c_int {
    // SAFETY: the caller guarantees that `environment` is a null-terminated list, or null.
    // `on_stack` and `in_map` need nothing else.
    unsafe {
        let words = Parts::new(environment).words();
        // A vfork child has another id than the process whose memory the child uses.
        let is_own_memory = || process::get().is_none_or(|process| process.is_self());
        if words <= SMALL {
            on_stack::<SMALL>(passage, environment, call)
        } else if is_own_memory() {
            in_map(words, passage, environment, call)
        } else if words <= LARGE {
            on_stack::<LARGE>(passage, environment, call)
        } else {
            call(environment)
        }
    }
}

#[inline(never)]
unsafe fn on_stack<const WORDS: usize>(passage: Passage, environment: List, call: impl Fn(List) -> c_int) -> c_int {
    let mut memory = [const { MaybeUninit::<usize>::uninit() }; WORDS];
    // SAFETY: the caller guarantees that `environment` is a valid list or null. `with` has compared
    // WORDS with `Parts::words`.
    let list = fail::guard(|| unsafe { Parts::new(environment).write(passage, memory.as_mut_ptr().cast()) });
    call(list.unwrap_or(environment))
}

unsafe fn in_map(words: usize, passage: Passage, environment: List, call: impl Fn(List) -> c_int) -> c_int {
    let bytes = words * size_of::<usize>();
    let Some(memory) = sys::map(bytes) else { return call(environment) };
    // SAFETY: the caller guarantees that `environment` is a valid list or null. The memory has
    // `Parts::words` words.
    let list = fail::guard(|| unsafe { Parts::new(environment).write(passage, memory) });
    let status = call(list.unwrap_or(environment));
    let errno = real::errno();
    // SAFETY: the list was for this call only.
    unsafe { sys::unmap(memory, bytes) };
    real::set_errno(errno);
    status
}

/// Parts of a new environment.
struct Parts {
    environment: List,
    count: usize,
    /// Place and value of the caller's own LD_PRELOAD.
    preload: Option<(usize, *const c_char)>,
}

impl Parts {
    /// Looks through an environment.
    ///
    /// # Safety
    /// `environment` is a null-terminated list of C strings, or null, for as long as the value is
    /// used.
    unsafe fn new(environment: List) -> Parts {
        // SAFETY: the caller guarantees that `environment` is a valid list, or null.
        unsafe { Parts { environment, count: length(environment), preload: find(environment, ENV_PRELOAD) } }
    }

    fn theirs(&self) -> &[u8] {
        // SAFETY: the caller of `new` guarantees that the environment's strings are valid.
        self.preload.map_or(&[][..], |(_, value)| unsafe { CStr::from_ptr(value) }.to_bytes())
    }

    /// Words of memory for the list and both variables.
    fn words(&self) -> usize {
        let preload = ENV_PRELOAD.len() + 1 + process::own_path().len() + 1 + self.theirs().len() + 1;
        self.count + 3 + (PASSAGE_BYTES + preload).div_ceil(size_of::<usize>())
    }

    /// Writes the list, followed by the passage variable and LD_PRELOAD.
    ///
    /// # Safety
    /// `memory` has room for [`Parts::words`].
    unsafe fn write(&self, passage: Passage, memory: *mut u8) -> List {
        let list = memory.cast::<*const c_char>();
        let count = self.count;
        // SAFETY: the caller guarantees room for `Parts::words`; the parts do not overlap.
        unsafe {
            if count > 0 {
                ptr::copy_nonoverlapping(self.environment, list, count);
            }
            let passage_variable = memory.add((count + 3) * size_of::<*const c_char>());
            write_passage(passage_variable, passage);
            let preload_variable = passage_variable.add(PASSAGE_BYTES);
            let mut writer = Writer(preload_variable);
            writer.put(ENV_PRELOAD.as_bytes()).put(b"=").put(process::own_path());
            if self.preload.is_some() {
                writer.put(b":").put(self.theirs());
            }
            writer.put(b"\0");
            // In place of the user's own LD_PRELOAD, or behind the last entry. All other entries
            // keep their order.
            list.add(self.preload.map_or(count, |(index, _)| index)).write(preload_variable.cast());
            let next = count + usize::from(self.preload.is_none());
            list.add(next).write(passage_variable.cast());
            list.add(next + 1).write(ptr::null());
        }
        list
    }
}

/// Returns the number of entries of a list.
///
/// # Safety
/// `list` is a null-terminated list, or null.
pub unsafe fn length(list: List) -> usize {
    let mut n = 0;
    // SAFETY: the loop stops at the terminator.
    unsafe {
        while !list.is_null() && !(*list.add(n)).is_null() {
            n += 1;
        }
    }
    n
}

/// Returns the entries of a list.
///
/// # Safety
/// `list` is a null-terminated list of C strings, or null, for as long as the entries are used.
pub unsafe fn entries<'a>(list: List) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: the caller guarantees that `list` is a valid list or null. The iteration ends at the
    // terminator.
    (0..).map_while(move |i| unsafe {
        let entry = if list.is_null() { ptr::null() } else { *list.add(i) };
        (!entry.is_null()).then(|| CStr::from_ptr(entry))
    })
}

struct Writer(*mut u8);

impl Writer {
    /// Appends bytes.
    ///
    /// # Safety
    /// The memory has room for the bytes.
    unsafe fn put(&mut self, bytes: &[u8]) -> &mut Writer {
        // SAFETY: the caller guarantees room for the bytes.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, bytes.len());
            self.0 = self.0.add(bytes.len());
        }
        self
    }
}

/// Writes the passage variable.
///
/// # Safety
/// `to` has [`PASSAGE_BYTES`].
unsafe fn write_passage(to: *mut u8, passage: Passage) {
    let mut writer = Writer(to);
    // SAFETY: `to` has room for the longest name with three numbers of at most 20 digits and
    // separators, and for a name with a way.
    unsafe {
        match passage {
            Passage::Arena(arena) => write_arena(&mut writer, arena),
            Passage::Way(way) => {
                let mut text = [0; WAY_BYTES];
                let n = way.write(&mut text);
                writer.put(ENV_TREE.as_bytes()).put(b"=").put(&text[..n]);
            }
        }
        writer.put(b"\0");
    }
}

unsafe fn write_arena(writer: &mut Writer, arena: ArenaHandle) {
    let mut digits = [0u8; 20];
    // SAFETY: the caller guarantees room for the longest arena variable.
    unsafe {
        writer.put(ENV_ARENA.as_bytes()).put(b"=");
        writer.put(decimal(u64::try_from(arena.fd).unwrap_or(0), &mut digits)).put(b":");
        writer.put(decimal(arena.device, &mut digits)).put(b":");
        writer.put(decimal(arena.inode, &mut digits));
    }
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        let digit = (number % 10) as u8;
        digits[at] = b'0' + digit;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::tree::{Address, Way};

    fn variable(passage: Passage) -> std::string::String {
        let mut memory = [0xffu8; PASSAGE_BYTES];
        // SAFETY: memory of the size that is asked for.
        unsafe { write_passage(memory.as_mut_ptr(), passage) };
        CStr::from_bytes_until_nul(&memory).expect("a zero is left").to_str().expect("text").to_owned()
    }

    #[test]
    fn the_variables_are_what_a_new_program_reads() {
        let arena = ArenaHandle { fd: i32::MAX, device: u64::MAX, inode: 0 };
        assert_eq!(variable(Passage::Arena(arena)), "HEAPLINE_ARENA=2147483647:18446744073709551615:0");
        let most = u64::MAX;
        let address = Address { name: [most; 2], token: [most; 2] };
        let way = Way {
            address,
            parent: most,
            fork: most,
            segments: u32::MAX,
            nframe: u32::MAX,
            clock: u32::MAX,
            sample: most,
        };
        let text = variable(Passage::Way(way));
        assert_eq!(Way::parse(text.strip_prefix("HEAPLINE_TREE=").expect("its name").as_bytes()), Some(way));
    }

    fn with_variables(before: &[&CStr]) -> std::vec::Vec<std::string::String> {
        let mut list: std::vec::Vec<*const c_char> = before.iter().map(|entry| entry.as_ptr()).collect();
        list.push(ptr::null());
        let passage = Passage::Arena(ArenaHandle { fd: 3, device: 4, inode: 5 });
        let seen = core::cell::RefCell::new(std::vec::Vec::new());
        let call = |list: List| {
            // SAFETY: the list that was made just now.
            let entries = (0..unsafe { length(list) }).map(|i| unsafe { CStr::from_ptr(*list.add(i)) });
            seen.borrow_mut().extend(entries.map(|entry| entry.to_str().expect("text").to_owned()));
            7
        };
        // SAFETY: a null-terminated list.
        assert_eq!(unsafe { with(passage, list.as_ptr(), call) }, 7);
        seen.into_inner()
    }

    #[test]
    fn the_others_keep_their_order() {
        assert_eq!(with_variables(&[c"A=1", c"B=2"]), ["A=1", "B=2", "LD_PRELOAD=", "HEAPLINE_ARENA=3:4:5"]);
        let theirs = with_variables(&[c"A=1", c"LD_PRELOAD=/x /y", c"B=2"]);
        assert_eq!(theirs, ["A=1", "LD_PRELOAD=:/x /y", "B=2", "HEAPLINE_ARENA=3:4:5"]);
        assert_eq!(with_variables(&[]).len(), 2);
    }

    #[test]
    fn thousands_of_variables_are_no_problem() {
        let many = std::vec![c"NAME=value"; 20_000];
        let list = with_variables(&many);
        assert_eq!(list.len(), 20_002);
        assert!(list[..20_000].iter().all(|entry| entry == "NAME=value"));
    }
}
