//! Reads the symbols of one file in a child process.
//!
//! Files of a traced process are untrusted, and debug information may be large. So the aggregator
//! runs itself once more, for one file:
//!
//! - a parser's crash, or a file cut while being read, ends the child only;
//! - the memory of the parsing is given back;
//! - the child runs at idle priority, and the kernel takes the child first when memory is short.
//!
//! The child stores the symbols in the cache of `report`. Without a cache, the child writes the
//! symbols to its standard output, a memory file.

use crate::base::sys;
use heapline_symbols::foreign::Foreign;
use heapline_symbols::{DEBUG_DIR, Object, Symbolizer, Table, default_cache_dir};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Name of the hidden command that runs [`work`].
pub const COMMAND: &str = "symbols";
/// Limit of the reading of a file.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most address space of the child, in bytes. Files that need more are left to `report`.
const MOST_BYTES: u64 = 4 << 30;
/// Interval between two looks at the child.
const LOOK: Duration = Duration::from_millis(2);

/// An open file whose symbols are to be read.
pub struct Reading {
    /// Path of the file as the process knew it.
    pub path: String,
    /// Build-id of the object; may be empty.
    pub build_id: Vec<u8>,
    /// Root folder of the process, for debug files.
    pub root: PathBuf,
    /// The file.
    pub file: File,
}

/// Whether this program has the hidden command.
static HAS_COMMAND: AtomicBool = AtomicBool::new(false);

/// Lets symbols be read by child processes. The `aggregator` program calls this function, because
/// this program has the hidden command. Other programs read symbols by themselves.
pub fn enable() {
    HAS_COMMAND.store(true, Ordering::Relaxed);
}

/// The file to read, as the child's arguments say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Path of the file as the process knew it. The file itself is standard input.
    pub path: String,
    /// Build-id, in hexadecimal digits; may be empty.
    pub build_id: String,
    /// Root folder of the process.
    pub root: PathBuf,
    /// Whether a snapshot waits for the symbols.
    pub urgent: bool,
}

/// Reads the symbols of a file. Returns none if there are no symbols.
pub fn read(reading: Reading, is_urgent: &dyn Fn() -> bool) -> Option<Table> {
    let Reading { path, build_id, root, file } = reading;
    let symbolizer = Symbolizer::new(debug_dirs(&root), default_cache_dir());
    let task = Task { path: path.clone(), build_id: hex(&build_id), root: root.clone(), urgent: is_urgent() };
    let input = file.try_clone().ok()?;
    let object = Object::opened(&path, build_id, root, file);
    if let Some(table) = symbolizer.kept(&object) {
        return Some(table);
    }
    if !HAS_COMMAND.load(Ordering::Relaxed) {
        return symbolizer.table(&object).ok();
    }
    let output = sys::memory_file(c"heapline-symbols").ok()?;
    let child = start(&task, input.into(), output.try_clone().ok()?.into()).ok()?;
    if !await_end(child) {
        tracing::info!(path, "the symbols of a file could not be read");
        return None;
    }
    match output.metadata().ok()?.len() {
        0 => symbolizer.kept(&object),
        _ => Table::new(Foreign::of_own(output).view().ok()?).ok(),
    }
}

fn start(task: &Task, input: Stdio, output: Stdio) -> io::Result<Child> {
    let Task { path, build_id, root, urgent } = task;
    Command::new("/proc/self/exe")
        .arg(COMMAND)
        .arg(format!("--path={path}"))
        .arg(format!("--build-id={build_id}"))
        .arg({
            let mut root_argument = std::ffi::OsString::from("--root=");
            root_argument.push(root);
            root_argument
        })
        .args(urgent.then_some("--urgent"))
        .env_remove("LD_PRELOAD")
        .env_remove("HEAPLINE_LOG")
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::null())
        // Signals of the terminal are for the aggregator.
        .process_group(0)
        .spawn()
}

/// Waits for the end of the child. Returns whether the child has ended well.
fn await_end(mut child: Child) -> bool {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if begun.elapsed() < PATIENCE => thread::sleep(LOOK),
            _ => {
                // The child may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Does a task in the child process. Returns whether there are symbols.
pub fn work(task: &Task) -> bool {
    sys::be_expendable(!task.urgent, MOST_BYTES);
    let Some(build_id) = unhex(&task.build_id) else { return false };
    let Ok(file) = sys::standard_input() else { return false };
    let symbolizer = Symbolizer::new(debug_dirs(&task.root), default_cache_dir());
    let object = Object::opened(&task.path, build_id, task.root.clone(), file);
    let Ok(table) = symbolizer.table(&object) else { return false };
    table.is_kept() || io::stdout().write_all(table.entry()).is_ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Folders with separate debug files of a process.
fn debug_dirs(root: &Path) -> Vec<PathBuf> {
    let of = |root: &Path| root.join(DEBUG_DIR.trim_start_matches('/'));
    let mut dirs = vec![of(root)];
    if root != Path::new("/") {
        dirs.push(DEBUG_DIR.into());
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_a_build_id_come_back() {
        for bytes in [&[][..], &[0, 1, 0xab, 0xff]] {
            assert_eq!(unhex(&hex(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(unhex("xy"), None);
        assert_eq!(unhex("\u{2603}"), None);
    }
}
