//! Messages of the control socket, and texts of the kernel and the environment about a process.

use heapline_aggregator::attach::find::parse_mapping;
use heapline_aggregator::control;
use heapline_aggregator::control::Request;
use heapline_aggregator::process::procfs;
use heapline_aggregator::snapshot::names::default_output;
use heapline_collector::platform::environment::ArenaHandle;
use heapline_shared_format::text::printable;

/// Checks that a text for a person contains no command to a terminal: no control character but
/// newlines.
pub(super) fn assert_harmless(text: &str) {
    let found = text.chars().find(|&c| c.is_control() && c != '\n');
    assert_eq!(found, None, "{text:?}");
}

/// Parses a client's line as the aggregator does.
pub fn control_request(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        // A request with a path that is not UTF-8 has no JSON.
        let Ok(line) = serde_json::to_vec(&request) else { return };
        assert_eq!(Request::parse(&line).expect("what was just written"), request);
    }
}

/// Shows an aggregator's line as `aggregator ctl` does. The aggregator may belong to another user.
pub fn control_reply(bytes: &[u8]) {
    if let Some(shown) = control::shown(bytes) {
        assert_harmless(&shown);
    }
}

/// Parses files of /proc, which contain a process's chosen name and arguments, and the environment
/// variable of the arena.
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
