//! Files to be examined: the start of a program, and the kernel's data on this process.

use super::{call, close, nr};
use core::ffi::{CStr, c_char};

const O_RDONLY_CLOEXEC_NONBLOCK: usize = 0o2_004_000;
/// Paths begin at the working directory. `openat` is the call that the C library makes, and that
/// filters of system calls allow.
const AT_FDCWD: usize = (-100_isize).cast_unsigned();

/// An open file that may be a program.
pub struct Program {
    fd: usize,
    /// `st_mode`.
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Drop for Program {
    fn drop(&mut self) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "descriptors are small")]
        close(self.fd as i32);
    }
}

impl Program {
    /// Returns whether exec of the file would change user, group or capabilities. The loader then
    /// distrusts the environment.
    pub fn changes_rights(&self) -> bool {
        const SET_UID: u32 = 0o4000;
        const SET_GID: u32 = 0o2000;
        // SAFETY: the call involves no memory.
        let id = |nr| unsafe { call(nr, [0; 6]) }.unwrap_or(0);
        self.mode & SET_UID != 0 && self.uid as usize != id(nr::GETEUID)
            || self.mode & SET_GID != 0 && self.gid as usize != id(nr::GETEGID)
            || self.has_capabilities()
    }

    /// Returns whether anybody may run the file.
    pub fn is_executable(&self) -> bool {
        self.is_regular() && self.mode & 0o111 != 0
    }

    /// Returns whether the file is a regular file.
    pub fn is_regular(&self) -> bool {
        const REGULAR: u32 = 0o100_000;
        const KIND: u32 = 0o170_000;
        self.mode & KIND == REGULAR
    }

    fn has_capabilities(&self) -> bool {
        let name = c"security.capability".as_ptr() as usize;
        // SAFETY: the name is a C string. Without a buffer the kernel only reports the size.
        unsafe { call(nr::FGETXATTR, [self.fd, name, 0, 0, 0, 0]) }.is_ok()
    }
}

/// Opens a file to examine its content. Returns `None` when the file cannot be opened.
///
/// # Safety
/// `path` is a C string.
pub unsafe fn open_program(path: *const c_char) -> Option<Program> {
    let mut stat = [0u32; 36];
    // SAFETY: the caller guarantees a C string in `path`; the kernel writes a struct stat of 144
    // bytes.
    unsafe {
        let fd = call(nr::OPENAT, [AT_FDCWD, path as usize, O_RDONLY_CLOEXEC_NONBLOCK, 0, 0, 0]).ok()?;
        let mut program = Program { fd, mode: 0, uid: 0, gid: 0 };
        call(nr::FSTAT, [fd, stat.as_mut_ptr() as usize, 0, 0, 0, 0]).ok()?;
        (program.mode, program.uid, program.gid) = (stat[6], stat[7], stat[8]);
        Some(program)
    }
}

/// An open file to be read.
pub struct File(i32);

impl Drop for File {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Opens a file to be read.
pub fn open(path: &CStr) -> Option<File> {
    let path = path.as_ptr() as usize;
    // SAFETY: the path is a C string.
    let fd = unsafe { call(nr::OPENAT, [AT_FDCWD, path, O_RDONLY_CLOEXEC_NONBLOCK, 0, 0, 0]) }.ok()?;
    i32::try_from(fd).ok().map(File)
}

impl File {
    /// Reads bytes from `offset` on. Returns their number; 0 at the end, and where nothing can be
    /// read.
    pub fn read_at(&self, buffer: &mut [u8], offset: usize) -> usize {
        let fd = self.0.cast_unsigned() as usize;
        // SAFETY: the kernel writes at most the buffer's length.
        unsafe { call(nr::PREAD, [fd, buffer.as_mut_ptr() as usize, buffer.len(), offset, 0, 0]) }.unwrap_or(0)
    }
}

/// Returns the number of threads of the process; `None` without /proc.
pub fn thread_count() -> Option<u64> {
    const LINKS: usize = 2;
    /// Links of a folder without threads in it.
    const OF_FOLDER: u64 = 2;
    let folder = open(c"/proc/self/task")?;
    let mut stat = [0u64; 18];
    // SAFETY: the kernel writes a struct stat of 144 bytes.
    unsafe { call(nr::FSTAT, [folder.0.cast_unsigned() as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }.ok()?;
    stat[LINKS].checked_sub(OF_FOLDER)
}

/// Opens the file of a descriptor once more.
pub fn open_again(fd: i32) -> Option<Program> {
    const FOLDER: &[u8] = b"/proc/self/fd/";
    const DIGITS: usize = 10;
    let mut path = [0u8; FOLDER.len() + DIGITS + 1];
    path[..FOLDER.len()].copy_from_slice(FOLDER);
    let mut left = u32::try_from(fd).ok()?;
    let count = left.checked_ilog10().unwrap_or(0) as usize + 1;
    for digit in path[FOLDER.len()..FOLDER.len() + count].iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    // SAFETY: the path is a C string, because the last byte stays zero.
    unsafe { open_program(path.as_ptr().cast()) }
}

/// Reads bytes of a file from `offset` on, until the file or the buffer ends. Returns their number.
pub fn read_at(program: &Program, buffer: &mut [u8], offset: usize) -> usize {
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe { call(nr::PREAD, [program.fd, buffer.as_mut_ptr() as usize, buffer.len(), offset, 0, 0]) }.unwrap_or(0)
}

/// Reads the first bytes of a file, until the file or the buffer ends. Returns their number; 0 when
/// the file cannot be read.
pub fn fill_from_file(path: &CStr, buffer: &mut [u8]) -> usize {
    // SAFETY: the path is a C string, and the kernel writes at most the buffer's length.
    unsafe {
        let path = path.as_ptr() as usize;
        let Ok(fd) = call(nr::OPENAT, [AT_FDCWD, path, O_RDONLY_CLOEXEC_NONBLOCK, 0, 0, 0]) else { return 0 };
        let n = call(nr::READ, [fd, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]).unwrap_or(0);
        let _ = call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_by_the_kernel() {
        const MORE: usize = 40;
        let barrier = std::sync::Barrier::new(MORE + 1);
        let before = thread_count().expect("there is /proc");
        std::thread::scope(|scope| {
            for _ in 0..MORE {
                scope.spawn(|| {
                    barrier.wait();
                    barrier.wait();
                });
            }
            barrier.wait();
            let now = thread_count().expect("there is /proc");
            // Threads of other tests come and go.
            assert!(before < MORE as u64 && (MORE as u64..2 * MORE as u64).contains(&now), "{before}, then {now}");
            barrier.wait();
        });
    }
}
