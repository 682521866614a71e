//! The path of the running program: the program started by the kernel, or the program given to a
//! loader where the kernel has started the loader.

use crate::platform::auxiliary::{self, AT_BASE, AT_PHDR};
use crate::platform::elf::Namespace;
use crate::platform::{alone, libc, sys};

/// Writes the path into the buffer, as much as fits. Returns the number of written bytes; 0 when
/// the path is not known.
pub fn path(buffer: &mut [u8]) -> usize {
    let [headers, loader] = [AT_PHDR, AT_BASE].map(auxiliary::value);
    // A loader started as a program has no loader of its own. glibc's replaces its own headers with
    // the program's headers. musl's leaves them, and has the program first in its list.
    let is_given = loader == 0 && headers != 0 && !alone::is_alone();
    let first = || Some(Namespace::program()?.objects().next()?.dynamic_section());
    let in_program = if libc::is_musl() { first().unwrap_or(headers) } else { headers };
    let of_map = is_given.then(|| mapped_at(in_program as u64, buffer)).flatten();
    of_map.unwrap_or_else(|| sys::executable(buffer).unwrap_or(0))
}

/// Writes the path of the file mapped at an address.
fn mapped_at(address: u64, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: the path is a C string.
    let maps = unsafe { sys::open_program(c"/proc/self/maps".as_ptr()) }?;
    let mut search = Search::new(address, buffer);
    let (mut chunk, mut offset) = ([0u8; 1024], 0);
    loop {
        let n = sys::read_at(&maps, &mut chunk, offset);
        if n == 0 {
            return None;
        }
        offset += n;
        if let Some(bytes) = chunk[..n].iter().find_map(|&byte| search.take(byte)) {
            return (bytes > 0).then_some(bytes);
        }
    }
}

/// Reads the lines of `/proc/self/maps` byte by byte: `start-end flags offset device inode /path`.
struct Search<'b> {
    address: u64,
    buffer: &'b mut [u8],
    place: Place,
    start: u64,
    number: u64,
    bytes: usize,
}

enum Place {
    Start,
    End,
    BeforePath,
    Path,
    OtherLine,
}

impl<'b> Search<'b> {
    fn new(address: u64, buffer: &'b mut [u8]) -> Search<'b> {
        Search { address, buffer, place: Place::Start, start: 0, number: 0, bytes: 0 }
    }

    /// Takes the next byte. Returns the number of bytes of the path at the end of the right line.
    fn take(&mut self, byte: u8) -> Option<usize> {
        match (&self.place, byte) {
            (Place::BeforePath | Place::Path, b'\n') => return Some(self.bytes),
            (_, b'\n') => (self.place, self.number) = (Place::Start, 0),
            (Place::Start, b'-') => {
                (self.place, self.start, self.number) = (Place::End, self.number, 0);
            }
            (Place::End, b' ') => {
                let is_here = (self.start..self.number).contains(&self.address);
                self.place = if is_here { Place::BeforePath } else { Place::OtherLine };
            }
            (Place::Start | Place::End, digit) => {
                let digit = char::from(digit).to_digit(16).unwrap_or(0);
                self.number = self.number << 4 | u64::from(digit);
            }
            (Place::BeforePath, b'/') => {
                self.place = Place::Path;
                self.put(byte);
            }
            (Place::Path, _) => self.put(byte),
            (Place::BeforePath | Place::OtherLine, _) => {}
        }
        None
    }

    fn put(&mut self, byte: u8) {
        if let Some(place) = self.buffer.get_mut(self.bytes) {
            *place = byte;
            self.bytes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_this_test_is_found_both_ways() {
        let own = std::env::current_exe().expect("this test");
        let mut buffer = [0; 4096];
        let n = path(&mut buffer);
        assert_eq!(&buffer[..n], own.as_os_str().as_encoded_bytes());
        let here = the_program_of_this_test_is_found_both_ways as *const () as u64;
        let n = mapped_at(here, &mut buffer).expect("a file is mapped here");
        assert_eq!(&buffer[..n], own.as_os_str().as_encoded_bytes());
        assert_eq!(mapped_at(0x10, &mut buffer), None);
        let mut short = [0; 5];
        assert_eq!(mapped_at(here, &mut short), Some(5), "as much as there is room for");
    }
}
