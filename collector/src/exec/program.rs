//! Whether a program will load the collector: one that does not would keep the variables that are meant for it, or complain.

use crate::environment::{current, find};
use crate::sys;
use core::ffi::{CStr, c_char};

/// A program as a call names it.
#[derive(Clone, Copy)]
pub enum Program {
    /// By its path.
    At(*const c_char),
    /// By a name that is searched for in PATH.
    Named(*const c_char),
    /// In a way that says nothing of its file.
    Unknown,
}

/// Scripts that are run by scripts; the kernel allows a few more.
const MAX_SCRIPTS: usize = 3;
const LONGEST_PATH: usize = 1024;
/// glibc's loader on x86-64, whatever folder it is in.
const LOADER: &[u8] = b"ld-linux-x86-64.so.2";

impl Program {
    /// Whether the loader will bring the collector in. What cannot be read is taken for a program like any other.
    ///
    /// # Safety
    /// The text is a C string.
    pub unsafe fn can_preload(self) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Program::At(path) if !path.is_null() => can_preload(path),
                Program::Named(name) if !name.is_null() => {
                    let name = CStr::from_ptr(name);
                    if name.to_bytes().contains(&b'/') { can_preload(name.as_ptr()) } else { can_preload_named(name) }
                }
                _ => true,
            }
        }
    }
}

unsafe fn can_preload_named(name: &CStr) -> bool {
    // SAFETY: libc's list.
    let path = unsafe { find(current(), "PATH").map(|(_, value)| CStr::from_ptr(value)) };
    let folders = path.map_or(&b"/bin:/usr/bin"[..], CStr::to_bytes).split(|&byte| byte == b':');
    for folder in folders {
        let folder = if folder.is_empty() { b"." } else { folder };
        let mut whole = [0u8; LONGEST_PATH];
        let end = folder.len() + 1 + name.to_bytes().len();
        // A zero byte is left.
        let Some(place) = whole.get_mut(..=end) else { continue };
        place[..folder.len()].copy_from_slice(folder);
        place[folder.len()] = b'/';
        place[folder.len() + 1..end].copy_from_slice(name.to_bytes());
        // SAFETY: a C string.
        if let Some(found) = unsafe { sys::open_program(whole.as_ptr().cast()) } {
            return is_fit(&found);
        }
    }
    true
}

unsafe fn can_preload(path: *const c_char) -> bool {
    // SAFETY: the caller's promise.
    unsafe { sys::open_program(path) }.is_none_or(|program| is_fit(&program))
}

fn is_fit(program: &sys::Program) -> bool {
    let mut start = [0u8; 1024];
    let n = sys::read_at(program, &mut start, 0);
    let Some(mut line) = start[..n].strip_prefix(b"#!") else {
        return !program.changes_rights() && is_fit_binary(program, &start[..n]);
    };
    // The interpreter's rights count, not the script's.
    for _ in 0..MAX_SCRIPTS {
        let mut path = [0u8; LONGEST_PATH];
        let words = line.split(|&byte| byte == b' ' || byte == b'\t' || byte == b'\n');
        let interpreter = words.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
        let Some(place) = path[..LONGEST_PATH - 1].get_mut(..interpreter.len()) else { return false };
        place.copy_from_slice(interpreter);
        // SAFETY: a C string: the last byte is zero.
        let Some(program) = (unsafe { sys::open_program(path.as_ptr().cast()) }) else { return true };
        let n = sys::read_at(&program, &mut start, 0);
        match start[..n].strip_prefix(b"#!") {
            Some(next) => line = next,
            None => return !program.changes_rights() && is_fit_binary(&program, &start[..n]),
        }
    }
    false
}

/// What is no ELF file is the kernel's matter, or a script of the shell, which a failed exec runs.
fn is_fit_binary(program: &sys::Program, start: &[u8]) -> bool {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u8 = 62;
    const HEADER_BYTES: usize = 64;
    if start.len() < HEADER_BYTES || start[..4] != *b"\x7fELF" {
        return true;
    }
    if start[4] != CLASS_64 || start[18] != MACHINE_X86_64 {
        return false;
    }
    let mut name = [0u8; 128];
    let n = interpreter(program, start, &mut name);
    let name = name[..n].split(|&byte| byte == 0).next().unwrap_or_default();
    name.rsplit(|&byte| byte == b'/').next() == Some(LOADER)
}

/// The loader that a binary asks for; nothing for a static one.
fn interpreter(program: &sys::Program, start: &[u8], name: &mut [u8]) -> usize {
    const PT_INTERP: u32 = 3;
    const ENTRY_BYTES: usize = 56;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0usize, |number, &byte| number << 8 | usize::from(byte));
    let (offset, count) = (number(&start[32..40]), number(&start[56..58]));
    for i in 0..count.min(64) {
        let mut entry = [0u8; ENTRY_BYTES];
        if sys::read_at(program, &mut entry, offset + i * ENTRY_BYTES) < ENTRY_BYTES {
            return 0;
        }
        if number(&entry[..4]) == PT_INTERP as usize {
            let bytes = number(&entry[32..40]).min(name.len());
            return sys::read_at(program, &mut name[..bytes], number(&entry[8..16]));
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(path: &std::path::Path) -> bool {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero");
        // SAFETY: a C string.
        unsafe { Program::At(path.as_ptr()).can_preload() }
    }

    #[test]
    fn only_what_glibcs_loader_starts_is_preloaded() {
        let directory = std::env::temp_dir().join(std::format!("heapline-exec-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let check = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            std::fs::write(&path, bytes).expect("a file");
            judge(&path)
        };
        let own = std::fs::read("/proc/self/exe").expect("this test");
        let with = |at: usize, byte: u8| {
            let mut bytes = own[..4096].to_vec();
            bytes[at] = byte;
            bytes
        };
        assert!(check("own", &with(0, 0x7f)));
        assert!(!check("i386", &with(4, 1)));
        assert!(!check("arm64", &with(18, 183)));
        assert!(!check("static", &with(56, 0)), "no program header, so no loader");
        assert!(check("script", b"#!/bin/sh -e\nexec true and more\n"));
        let script = std::format!("#! {}\n", directory.join("static").display());
        assert!(!check("of-static", script.as_bytes()), "by its interpreter");
        assert!(check("text", b"echo a shell's matter\n"));
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn names_are_searched_for() {
        // SAFETY: C strings.
        let named = |name: &CStr| unsafe { Program::Named(name.as_ptr()).can_preload() };
        assert!(named(c"sh") && named(c"no-such-program-anywhere") && named(c"/bin/sh"));
        // SAFETY: null is allowed.
        assert!(unsafe { Program::At(core::ptr::null()).can_preload() && Program::Unknown.can_preload() });
    }
}
