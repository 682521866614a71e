//! A process that is to be attached to, as it shows itself: its maps, its memory, a thread's registers, its seccomp filters.

use heapline_aggregator::attach::inject;
use heapline_shared_format::inject::Request;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

/// Four registers, the maps with their length before them, and the memory from address 0 on. Whatever they say, the thread
/// is judged in a bounded time.
pub fn injected_process(bytes: &[u8]) {
    let Some((registers, rest)) = bytes.split_first_chunk::<32>() else { return };
    let Some((length, rest)) = rest.split_first_chunk::<2>() else { return };
    let (maps, memory) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let mut words = registers.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let registers = std::array::from_fn(|_| words.next().unwrap_or(0));
    let _ = inject::rehearse(&String::from_utf8_lossy(maps), memory_file(memory), registers);
}

fn memory_file(bytes: &[u8]) -> File {
    // SAFETY: a C string; the descriptor is nobody else's.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"memory".as_ptr(), 0)) };
    file.write_all(bytes).expect("there is memory");
    file
}

/// A seccomp filter's program, and what the collector answers.
pub fn injected_answers(bytes: &[u8]) {
    let _ = inject::forbidden_by(bytes);
    if let Some((request, _)) = bytes.split_first_chunk::<{ Request::BYTES }>() {
        assert_eq!(Request::from_bytes(request).to_bytes(), *request);
    }
}
