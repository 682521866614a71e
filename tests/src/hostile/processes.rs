//! A process to attach to, as hostile input: maps, memory, registers of a thread, seccomp filters.

use heapline_aggregator::attach::inject;
use heapline_shared_format::inject::Request;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

/// Rehearses an injection into a thread with arbitrary registers, maps and memory. The rehearsal
/// ends in a bounded time.
///
/// Layout of the input:
///
/// 1. four registers, 8 bytes each
/// 2. length of the maps, 2 bytes
/// 3. text of the maps
/// 4. memory of the process from address 0 on
pub fn injected_process(bytes: &[u8]) {
    let Some((registers, rest)) = bytes.split_first_chunk::<32>() else { return };
    let Some((length, rest)) = rest.split_first_chunk::<2>() else { return };
    let (maps, memory) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let mut words = registers.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let registers = std::array::from_fn(|_| words.next().unwrap_or(0));
    let _ = inject::rehearse(&String::from_utf8_lossy(maps), memory_file(memory), registers);
}

fn memory_file(bytes: &[u8]) -> File {
    // SAFETY: the name is a C string. `memfd_create` returned the descriptor, so nobody else owns
    // it.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"memory".as_ptr(), 0)) };
    file.write_all(bytes).expect("there is memory");
    file
}

/// Evaluates the bytes as a seccomp filter's program, and parses them as a request or answer of the
/// collector.
pub fn injected_answers(bytes: &[u8]) {
    let _ = inject::forbidden_by(bytes);
    if let Some((request, _)) = bytes.split_first_chunk::<{ Request::BYTES }>() {
        assert_eq!(Request::from_bytes(request).to_bytes(), *request);
    }
}
