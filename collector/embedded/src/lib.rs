//! The collector linked into a program by `heapline_collector::Traced`: the entries, and nothing
//! else.
//!
//! The collector is an object of its own, not code of the crate around, for two reasons shared with
//! the preload:
//!
//! 1. A panic in the collector must end tracing and not the program, whatever the program does with
//!    panics. The object has its own panic handler.
//! 2. The collector stays fast in a program built without optimisation.
//!
//! Each entry hands on the place of the return address, and the base pointer, as the entries of the
//! preload do.
#![no_std]

use core::sync::atomic::AtomicU8;
use heapline_collector::{embedded, enter_with_place, enter_with_slot, fail, thread};
use heapline_shared_format::arena::{NOTE_KIND, NOTE_NAME, VERSION};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail::panicked()
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = {
    extern "C" fn start() {
        embedded::start(thread::stack_pointer());
    }
    start
};

/// Note by which an aggregator recognises the collector in a program before running the program.
#[repr(C, align(4))]
struct Note {
    name_bytes: u32,
    content_bytes: u32,
    kind: u32,
    name: [u8; NOTE_NAME.len()],
    padding: [u8; 3],
    arena_version: u32,
}

#[used]
#[unsafe(link_section = ".note.heapline")]
static NOTE: Note = Note {
    name_bytes: NOTE_NAME.len() as u32,
    content_bytes: 4,
    kind: NOTE_KIND,
    name: NOTE_NAME,
    padding: [0; 3],
    arena_version: VERSION,
};

const _: () = assert!(core::mem::offset_of!(Note, arena_version) == 12 + NOTE_NAME.len().next_multiple_of(4));

macro_rules! entry {
    ($name:ident, $enter:ident, $hook:ident($($arg:ident: $type:ty),*)) => {
        /// Entry with the place of the return address behind the arguments.
        ///
        /// # Safety
        /// `way` points to the caller's `Traced`.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) {
            $enter!([$($arg)*], $hook)
        }
    };
}

type Block = *mut u8;

entry!(heapline_embedded_allocated, enter_with_place, allocated(block: Block, size: usize, way: &AtomicU8));
entry!(heapline_embedded_freeing, enter_with_slot, freeing(block: Block, way: &AtomicU8));
entry!(heapline_embedded_reallocating, enter_with_slot, reallocating(block: Block, way: &AtomicU8));
entry!(
    heapline_embedded_reallocated,
    enter_with_place,
    reallocated(old: Block, block: Block, size: usize, way: &AtomicU8)
);

extern "C" fn allocated(block: Block, size: usize, way: &AtomicU8, slot: usize, bp: usize) {
    embedded::allocated(block, size, way, slot, bp);
}

extern "C" fn freeing(block: Block, way: &AtomicU8, slot: usize) {
    embedded::freeing(block, way, slot);
}

extern "C" fn reallocating(block: Block, way: &AtomicU8, slot: usize) {
    embedded::reallocating(block, way, slot);
}

extern "C" fn reallocated(old: Block, block: Block, size: usize, way: &AtomicU8, slot: usize, bp: usize) {
    embedded::reallocated(old, block, size, way, slot, bp);
}
