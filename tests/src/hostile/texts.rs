//! What is said over the control socket, and what the kernel and the environment say about a process.

use heapline_aggregator::attach::find::parse_mapping;
use heapline_aggregator::control;
use heapline_aggregator::control::Request;
use heapline_aggregator::snapshot::names::default_output;
use heapline_aggregator::target::procfs;
use heapline_collector::platform::environment::ArenaHandle;
use heapline_shared_format::text::printable;

/// Text for a person, in lines: nothing in it is a command to a terminal.
pub(super) fn assert_harmless(text: &str) {
    let found = text.chars().find(|&c| c.is_control() && c != '\n');
    assert_eq!(found, None, "{text:?}");
}

/// A line from a client, as the aggregator reads it.
pub fn control_request(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        // Paths that are no text have no JSON.
        let Ok(line) = serde_json::to_vec(&request) else { return };
        assert_eq!(Request::parse(&line).expect("what was just written"), request);
    }
}

/// A line from an aggregator, which may be another user's, as `aggregator ctl` shows it.
pub fn control_reply(bytes: &[u8]) {
    if let Some(shown) = control::shown(bytes) {
        assert_harmless(&shown);
    }
}

/// Files of /proc, where a process's own name and arguments stand too, and the arena's variable.
pub fn proc_files(bytes: &[u8]) {
    for field in ["State", "Tgid", "Uid", "PPid", "NSpid"] {
        if let Some(value) = procfs::parse_status(bytes, field) {
            assert!(!value.contains('\n'));
        }
    }
    let _ = procfs::parse_stat_flags(bytes);
    let command = procfs::parse_command(bytes);
    assert!(!command.contains('\0') && command.len() <= 3 * bytes.len());
    assert_harmless(&printable(&command));
    if let Some(range) = parse_mapping(&String::from_utf8_lossy(bytes)) {
        assert!(range.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'), "it becomes part of a path");
    }
    let name = default_output(&String::from_utf8_lossy(bytes), 1);
    assert_eq!(name.components().count(), 1, "it stays in its folder");
    assert_harmless(&name.to_string_lossy());
    if let Some(handle) = ArenaHandle::parse(bytes) {
        assert!(handle.fd >= 0);
    }
}
