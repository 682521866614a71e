//! Doors at the entry of an allocator's functions inside of the object that calls them.
//!
//! A library may contain an allocator under a prefix (Rust's jemalloc and mimalloc, Arrow's), and calls the allocator's
//! functions directly: no place holds their address. So their first bytes are made a jump to a door.
//!
//! ```text
//! caller ──> the function's entry ──> stub ──> [`kept`] ──> [`before`] ──> first instructions ──> the rest ──> [`after`]
//!                                     └──────── a page near the object ──────────┘
//! ```
//!
//! An allocator is led here with all of its functions that are known, or not at all. Bytes are changed only while no thread
//! can be in them: by the thread that opened the object, before `dlopen` returns to the program, or while there is one thread.
//! What the constructors of the object have allocated by then is not recorded. Whatever is not exactly as expected leaves
//! the object alone, and the aggregator names the allocator as not seen.
//!
//! [`kept`]: super::kept
//! [`before`]: super::before
//! [`after`]: super::after

mod code;
mod file;
mod met;

pub use met::{Opening, constructs, look_at_all, pass};

use super::{Door, kept_entry, shapes::Shape};
use crate::attach::objects::LoadedObject;
use crate::elf::{Object, READABLE_CODE};
use crate::sys;
use crate::sys::Program;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use file::{Content, Function, HEAD_BYTES, Work};

/// Objects that are led here at one time.
const MOST: usize = 32;

/// An object with an allocator that is led here.
struct Led {
    /// 0 where there is none.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Its gates.
    gates: AtomicUsize,
    gates_bytes: AtomicUsize,
}

static LED: [Led; MOST] = [const {
    Led {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        gates: AtomicUsize::new(0),
        gates_bytes: AtomicUsize::new(0),
    }
}; MOST];

/// What a function's entry jumps to. The code in here, and the entry's of [`super::kept`], knows the layout.
#[repr(C)]
struct Gate {
    door: Door,
    /// Where the door is.
    door_address: usize,
    /// [`super::kept`]'s.
    entry: usize,
    /// Pushes the former, and jumps to the latter.
    stub: [u8; 16],
    /// The function's first instructions, and a jump to the others.
    first: [u8; code::MOST_BYTES],
    /// The function, and what it begins with once it jumps here.
    function: usize,
    jump: [u8; code::JUMP_BYTES],
}

const GATE_BYTES: usize = 128;
const _: () = assert!(size_of::<Gate>() == GATE_BYTES && offset_of!(Gate, door) == 0);
const _: () = assert!(offset_of!(Gate, door_address) == 16 && offset_of!(Gate, entry) == 24);
const _: () = assert!(offset_of!(Gate, stub) == 32);

/// `push qword ptr [rip - 22]; jmp qword ptr [rip - 20]`: from the ends of these instructions to the two words.
const STUB: [u8; 16] = [0xff, 0x35, 0xea, 0xff, 0xff, 0xff, 0xff, 0x25, 0xec, 0xff, 0xff, 0xff, 0xcc, 0xcc, 0xcc, 0xcc];

/// Whether the object that begins there has an allocator that is led here.
pub fn is_led(start: usize) -> bool {
    start != 0 && LED.iter().any(|led| led.start.load(Ordering::Acquire) == start)
}

/// Leads the allocators in an object here. None, and nothing changed, where there are none or that cannot be done.
///
/// # Safety
/// The loader's lock is held, and no thread is in the first bytes of the object's allocators.
unsafe fn lead(object: &LoadedObject) -> Option<()> {
    if is_others(object) {
        return None;
    }
    let mapped = object.loaded.mapped()?;
    let (file, head) = open(object, &mapped)?;
    let mut work = Work::new()?;
    let content = work.read(&file, &head).filter(|content| content.is_whole())?;
    let led = LED.iter().find(|led| led.start.load(Ordering::Relaxed) == 0)?;
    let gates = Gates::near(object, content.functions.count())?;
    let whole = Whole { mapped: &mapped, file: &file, content };
    let count = whole.plan(&gates)?;
    // SAFETY: the collector's own pages; the promise of the caller.
    unsafe {
        if !sys::protect(gates.at, gates.bytes, sys::READ_EXECUTE) || !open_all(gates.planned(count)) {
            return None;
        }
    }
    led.gates.store(gates.at, Ordering::Relaxed);
    led.gates_bytes.store(gates.bytes, Ordering::Relaxed);
    led.end.store(object.extent.end, Ordering::Relaxed);
    led.start.store(mapped.start, Ordering::Release);
    for gate in gates.planned(count) {
        // SAFETY: the object's code, which was made writable; nobody runs it.
        unsafe { gate.write_jump() };
    }
    // SAFETY: as they were before.
    unsafe { close_all(gates.planned(count)) };
    gates.keep();
    Some(())
}

/// Whether what the object allocates is seen in another way, or cannot be: the process's own allocator, an interpreter.
fn is_others(object: &LoadedObject) -> bool {
    let exports = |name: &[u8]| object.loaded.symbol(name).is_some();
    object.namespace.is_some() || exports(b"malloc") || exports(b"PyMem_RawMalloc")
}

/// The object's file, and the header with which both the file and the mapping begin.
fn open(object: &LoadedObject, mapped: &Object) -> Option<(Program, [u8; HEAD_BYTES])> {
    let path = match object.is_program {
        true => c"/proc/self/exe".as_ptr(),
        false if mapped.path().is_empty() => return None,
        // The loader's name, which ends with a zero.
        false => mapped.path().as_ptr().cast(),
    };
    if mapped.program_headers().is_empty() {
        return None;
    }
    // SAFETY: a C string.
    let file = unsafe { sys::open_program(path) }.filter(Program::is_regular)?;
    let mut head = [0; HEAD_BYTES];
    // SAFETY: a mapped ELF header, as was asked just now.
    let in_memory = unsafe { (mapped.start as *const [u8; HEAD_BYTES]).read() };
    let is_same = sys::read_at(&file, &mut head, 0) == HEAD_BYTES && head == in_memory;
    is_same.then_some((file, head))
}

fn page_of(address: usize) -> usize {
    address & !(sys::page_bytes() - 1)
}

impl Gate {
    /// The pages, from the first one on, in which the function's first bytes are.
    fn pages(&self) -> (usize, usize) {
        let first = page_of(self.function);
        (first, page_of(self.function + code::JUMP_BYTES - 1) + sys::page_bytes() - first)
    }

    /// Makes the function jump here, at once where its first bytes are in an aligned word.
    ///
    /// # Safety
    /// The function's first bytes can be written, and no thread is in them.
    unsafe fn write_jump(&self) {
        const WORD: usize = size_of::<u64>();
        let offset = self.function % WORD;
        let at = self.function as *mut u8;
        // SAFETY: the caller's promise; what is before the function in an aligned word is on the same page.
        unsafe {
            if offset + code::JUMP_BYTES > WORD {
                return ptr::copy_nonoverlapping(self.jump.as_ptr(), at, code::JUMP_BYTES);
            }
            let word = AtomicU64::from_ptr(at.sub(offset).cast());
            let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            bytes[offset..offset + code::JUMP_BYTES].copy_from_slice(&self.jump);
            word.store(u64::from_ne_bytes(bytes), Ordering::Release);
        }
    }
}

/// Makes the entries of all functions writable. Where one cannot be, all are as they were.
///
/// # Safety
/// Pages of code that can be read and run.
unsafe fn open_all(gates: &[Gate]) -> bool {
    for (index, gate) in gates.iter().enumerate() {
        let (page, bytes) = gate.pages();
        // SAFETY: the caller's promise; the pages can be read and run all the time.
        unsafe {
            if !sys::protect(page, bytes, sys::READ_WRITE_EXECUTE) {
                close_all(&gates[..index]);
                return false;
            }
        }
    }
    true
}

/// # Safety
/// As [`open_all`], of pages that it has opened.
unsafe fn close_all(gates: &[Gate]) {
    for gate in gates {
        let (page, bytes) = gate.pages();
        // SAFETY: the caller's promise.
        unsafe { sys::protect(page, bytes, sys::READ_EXECUTE) };
    }
}

/// Pages for gates, near an object; given back unless they are kept.
struct Gates {
    at: usize,
    bytes: usize,
}

impl Gates {
    /// Below the object, never above: the program's heap grows there.
    fn near(object: &LoadedObject, count: usize) -> Option<Gates> {
        const STEP: usize = 1 << 20;
        const TRIES: usize = 256;
        let bytes = (count * GATE_BYTES).next_multiple_of(sys::page_bytes());
        let first = page_of(object.extent.start).checked_sub(bytes)?;
        let steps = (0..TRIES).flat_map(|step| [step * sys::page_bytes(), step * STEP]);
        let mut places = steps.map_while(|step| first.checked_sub(step)).filter(|&at| at > 0);
        places.find_map(|at| sys::map_at(at, bytes)).map(|at| Gates { at: at.addr(), bytes })
    }

    fn address(&self, index: usize) -> usize {
        self.at + index * GATE_BYTES
    }

    /// The first gates, which are filled.
    fn planned(&self, count: usize) -> &[Gate] {
        // SAFETY: the collector's own pages, with a gate in each of these places; all zeros are one too.
        unsafe { core::slice::from_raw_parts(self.at as *const Gate, count) }
    }

    fn put(&self, index: usize, gate: Gate) {
        // SAFETY: there is room for as many as there are functions, and nobody else knows the pages.
        unsafe { (self.address(index) as *mut Gate).write(gate) };
    }

    fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        // SAFETY: nothing leads there.
        unsafe { sys::unmap(self.at as *mut u8, self.bytes) };
    }
}

/// An object whose allocators' functions are known.
struct Whole<'a> {
    mapped: &'a Object,
    file: &'a Program,
    content: &'a Content,
}

impl Whole<'_> {
    /// Fills the gates of all functions; how many there are.
    fn plan(&self, gates: &Gates) -> Option<usize> {
        let mut count = 0;
        for function in self.content.functions.iter() {
            let address = self.mapped.bias.wrapping_add(function.address);
            let near = |gate: &&Gate| gate.function.abs_diff(address) < code::JUMP_BYTES;
            match gates.planned(count).iter().find(near) {
                // Another name of a function that was planned.
                Some(other) if other.function == address && ptr::eq(shape_of(other), function.shape) => {}
                Some(other) if other.function == address && shape_of(other) == function.shape => {}
                Some(_) => return None,
                None => {
                    gates.put(count, self.gate(&function, address, gates.address(count))?);
                    count += 1;
                }
            }
        }
        (count > 0).then_some(count)
    }

    fn gate(&self, function: &Function, address: usize, at: usize) -> Option<Gate> {
        let code = self.code(function, address)?;
        let first_at = at + offset_of!(Gate, first);
        let moved = code::relocate(code, address, first_at)?;
        let mut first = [0xcc; code::MOST_BYTES];
        first.get_mut(..moved.code().len())?.copy_from_slice(moved.code());
        let jump = code::jump(address, at + offset_of!(Gate, stub))?;
        let shape = ptr::from_ref(function.shape).cast_mut();
        let door = Door { function: AtomicUsize::new(first_at), shape: AtomicPtr::new(shape) };
        Some(Gate { door, door_address: at, entry: kept_entry()?, stub: STUB, first, function: address, jump })
    }

    /// A function's code, if memory has the very bytes that the file has for the function.
    fn code(&self, function: &Function, address: usize) -> Option<&[u8]> {
        let end = function.address.checked_add(function.bytes)?;
        let header = self.mapped.program_headers().iter().find(|header| {
            let (start, bytes) = (header.address, header.file_bytes);
            header.kind == crate::elf::PT_LOAD
                && header.flags == READABLE_CODE
                && start <= function.address as u64
                && start.checked_add(bytes).is_some_and(|last| end as u64 <= last)
        })?;
        let mut offset = usize::try_from(header.offset + (function.address as u64 - header.address)).ok()?;
        // SAFETY: in a mapped segment that can be read.
        let code = unsafe { core::slice::from_raw_parts(address as *const u8, function.bytes) };
        let mut buffer = [0; 512];
        for piece in code.chunks(buffer.len()) {
            let buffer = &mut buffer[..piece.len()];
            if sys::read_at(self.file, buffer, offset) != piece.len() || buffer != piece {
                return None;
            }
            offset += piece.len();
        }
        Some(code)
    }
}

fn shape_of(gate: &Gate) -> &'static Shape {
    // SAFETY: set when the gate was planned.
    unsafe { &*gate.door.shape.load(Ordering::Relaxed) }
}

impl Led {
    /// Whether it is still there: the object, with the jumps in its code.
    fn is_there(&self, object: &LoadedObject) -> bool {
        let is_place = |start: usize, end: usize| {
            object.extent.end == end && object.loaded.mapped().is_some_and(|mapped| mapped.start == start)
        };
        if !is_place(self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed)) {
            return false;
        }
        // SAFETY: the gates stay until the object is forgotten.
        let gate = unsafe { &*(self.gates.load(Ordering::Relaxed) as *const Gate) };
        let (first, last) = (gate.function, gate.function + code::JUMP_BYTES - 1);
        // SAFETY: another object may lie where the function was, so the kernel is asked first.
        let jump = || unsafe { (gate.function as *const [u8; code::JUMP_BYTES]).read() };
        sys::is_readable(first) && sys::is_readable(last) && jump() == gate.jump
    }

    /// The object is gone, and with it all code that leads to its gates.
    fn forget(&self) {
        let (at, bytes) = (self.gates.load(Ordering::Relaxed), self.gates_bytes.load(Ordering::Relaxed));
        // From here on the place is another object's to take.
        self.start.store(0, Ordering::Release);
        drop(Gates { at, bytes });
    }
}
