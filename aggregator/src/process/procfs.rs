//! Reads facts about a process from `/proc`.

use crate::process::elf;
use heapline_shared_format::loader::Loader;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Returns the path of the running program. Returns none for kernel threads, zombies, and processes
/// unreadable for this user.
///
/// If the kernel has started a loader, the result is the program given to the loader. None if the
/// process ended too soon to tell the program.
pub fn executable(pid: u32) -> Option<PathBuf> {
    executable_and_file(pid).map(|(path, _)| path)
}

/// Returns [`executable`], and device and inode of the file. No file where the kernel has started a
/// loader: many programs have that file.
pub fn executable_and_file(pid: u32) -> Option<(PathBuf, Option<(u64, u64)>)> {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    let started = fs::read_link(&link).ok()?;
    let Some(loader) = elf::as_loader(&link).or_else(|| elf::as_loader(&started)) else {
        return Some((started, fs::metadata(&link).ok().map(|found| (found.dev(), found.ino()))));
    };
    let program = loaded_program(pid, loader).or_else(|| (!command_line(pid).is_empty()).then_some(started));
    program.map(|program| (program, None))
}

/// Returns the program given to a process's loader, by the path of the program's mapping.
fn loaded_program(pid: u32, loader: Loader) -> Option<PathBuf> {
    let line = command_line(pid);
    let words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
    let word = Path::new(OsStr::from_bytes(words.get(loader.program_index(words.iter().copied())?)?));
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    let given = fs::canonicalize(folder.join(word)).ok();
    let mapped: Vec<PathBuf> =
        mappings(pid).ok()?.filter_map(|line| line.find('/').map(|at| line[at..].into())).collect();
    let is_given = |path: &&PathBuf| given.as_ref() == Some(*path);
    let has_name = |path: &&PathBuf| path.file_name() == word.file_name();
    let found = mapped.iter().find(is_given).or_else(|| mapped.iter().find(has_name)).cloned();
    // A process that ends has no mappings any more.
    found.or(given)
}

/// Most bytes kept of a command line.
const MAX_COMMAND_BYTES: u64 = 64 << 10;
/// Limit of the time to read a command line or an environment. The bytes lie in the process's own
/// memory, and a process can make every reader of a page wait (a file in a FUSE of the process,
/// userfaultfd).
const COMMAND_PATIENCE: Duration = Duration::from_millis(500);

/// Returns the arguments joined by spaces. The text is empty for a process without arguments, or
/// for an unreadable process.
pub fn command(pid: u32) -> String {
    parse_command(&command_line(pid))
}

fn command_line(pid: u32) -> Vec<u8> {
    let bytes = patiently(move || {
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/{pid}/cmdline")).ok()?;
        file.take(MAX_COMMAND_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    });
    bytes.unwrap_or_default()
}

/// Most bytes read of an environment.
const MAX_ENVIRONMENT_BYTES: u64 = 1 << 20;

/// Returns the environment variables chosen by `wanted`, as they were at the start of the program.
/// Returns none when the environment cannot be read, or the process makes the reader wait.
pub fn environment(pid: u32, wanted: fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let bytes = patiently(move || {
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/{pid}/environ")).ok()?;
        file.take(MAX_ENVIRONMENT_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    })?;
    let variable = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let (name, value) = text.split_once('=')?;
        wanted(name).then(|| (name.to_owned(), value.to_owned()))
    };
    Some(bytes.split(|&byte| byte == 0).filter_map(variable).collect())
}

/// Returns the result of `read` if it comes in time. `read` reads the memory of a process, page by
/// page in the kernel.
fn patiently(read: impl FnOnce() -> Option<Vec<u8>> + Send + 'static) -> Option<Vec<u8>> {
    let (found, bytes) = mpsc::channel();
    let read = move || {
        if let Some(bytes) = read() {
            // The asking thread may have left.
            let _ = found.send(bytes);
        }
    };
    thread::Builder::new().name("reader".to_owned()).spawn(read).ok()?;
    bytes.recv_timeout(COMMAND_PATIENCE).ok()
}

/// Returns the arguments in `/proc/PID/cmdline`.
pub fn parse_command(bytes: &[u8]) -> String {
    let arguments = bytes.split(|&b| b == 0).map(String::from_utf8_lossy).collect::<Vec<_>>();
    arguments.join(" ").trim_end().to_owned()
}

/// Returns the kernel's name of the process.
pub fn name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// Returns the value of a line of `/proc/PID/status`.
pub fn status(pid: u32, field: &str) -> Option<String> {
    parse_status(&fs::read(format!("/proc/{pid}/status")).ok()?, field)
}

/// Returns the value of a line of `/proc/PID/status`. The file also contains the process's own
/// name, which can be any bytes.
pub fn parse_status(status: &[u8], field: &str) -> Option<String> {
    let mut lines = status.split(|&b| b == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(field.as_bytes())?.strip_prefix(b":"))?;
    Some(String::from_utf8_lossy(value).trim().to_owned())
}

/// Returns the flags of the process in `/proc/PID/stat`.
pub fn parse_stat_flags(stat: &[u8]) -> Option<u64> {
    let stat = String::from_utf8_lossy(stat);
    // The name, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(6)?.parse().ok()
}

/// Returns the page faults of the process in `/proc/PID/stat`: without reading from a device, and
/// with it.
pub fn parse_stat_faults(stat: &[u8]) -> Option<(u64, u64)> {
    let stat = String::from_utf8_lossy(stat);
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(7);
    Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
}

/// Returns the start time of the process, in ticks since the start of the machine. Returns none
/// when there is no such process. A process under a reused number has another start time.
pub fn began(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Returns the lines of `/proc/PID/maps`, lazily: a process may have a great many lines.
pub fn mappings(pid: u32) -> io::Result<impl Iterator<Item = String>> {
    let file = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    Ok(file.split(b'\n').map_while(Result::ok).map(|line| String::from_utf8_lossy(&line).into_owned()))
}

/// Returns the real user id of the process.
pub fn uid(pid: u32) -> Option<u32> {
    status(pid, "Uid")?.split_whitespace().next()?.parse().ok()
}

/// Returns the parent of the process.
pub fn parent(pid: u32) -> Option<u32> {
    status(pid, "PPid")?.parse().ok()
}

/// Returns the resident memory of this process, in bytes.
pub fn own_resident_bytes() -> u64 {
    own_memory(1)
}

/// Returns the size of the address space of this process, in bytes.
pub fn own_virtual_bytes() -> u64 {
    own_memory(0)
}

fn own_memory(column: usize) -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(column).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_this_tests_own() {
        let first = std::env::args().next().expect("a program has a name");
        assert!(command(std::process::id()).starts_with(&first));
        assert_eq!(command(u32::MAX), "");
        assert_eq!(parse_command(b"a b\0c\0\0"), "a b c");
    }

    /// Tests a process name with a line break and with bytes outside of UTF-8. A process can choose
    /// any name.
    #[test]
    fn a_name_cannot_hide_or_forge_a_line() {
        let status = b"Name:\tx\xff\\nUid:\t0\nState:\tS (sleeping)\nUid:\t1000\t1000\n";
        assert_eq!(parse_status(status, "Uid").as_deref(), Some("1000\t1000"));
        assert_eq!(parse_status(status, "State").as_deref(), Some("S (sleeping)"));
        assert_eq!(parse_status(status, "PPid"), None);
        let stat = b"7 (a) R 1 \xff) S 1 2 3 4 5 2129984 8 9 10 11";
        assert_eq!((parse_stat_flags(stat), parse_stat_faults(stat)), (Some(2_129_984), Some((8, 10))));
    }
}
