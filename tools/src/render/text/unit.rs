//! The unit of a list: all sizes of a list have one unit, to be compared at a glance.

use super::words::about;
use crate::query::diff::Change;

/// A unit of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    name: &'static str,
    /// Exponent of 1024.
    power: i32,
}

const NAMES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl Unit {
    /// Chooses the unit for a list with sizes up to `greatest`, as for a single size
    /// ([`heapline_shared_format::text::size`]).
    pub(super) fn of(greatest: u64) -> Unit {
        let is_enough = |power: &usize| greatest < (10 << 10) << (10 * power);
        let power = (0..NAMES.len() - 1).find(is_enough).unwrap_or(NAMES.len() - 1);
        Unit { name: NAMES[power], power: i32::try_from(power).unwrap_or(0) }
    }

    /// Name of the unit, for a heading.
    pub(super) fn name(self) -> &'static str {
        self.name
    }

    /// Formats a size without the unit. A size that would be 0.0 is `<0.1`.
    pub(super) fn format(self, bytes: u64) -> String {
        self.magnitude(bytes.into())
    }

    /// Formats a change, with a sign.
    pub(super) fn format_change(self, bytes: i128) -> String {
        let sign = if bytes < 0 { '-' } else { '+' };
        format!("{sign}{}", self.magnitude(bytes.unsigned_abs()))
    }

    /// Formats a change, with its doubt.
    pub(super) fn format_doubtful(self, change: &Change) -> String {
        let size = self.format_change(change.size);
        match change.doubt {
            None => size,
            Some(doubt) => format!("~{size} \u{b1} {}", self.format(doubt)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a decimal is shown")]
    fn magnitude(self, bytes: u128) -> String {
        let value = bytes as f64 / 1024_f64.powi(self.power);
        match self.power {
            0 => bytes.to_string(),
            _ if bytes > 0 && value < 0.05 => "<0.1".to_owned(),
            _ if bytes == 0 => "0".to_owned(),
            _ => format!("{value:.1}"),
        }
    }
}

/// Formats the share of `part` in `whole` in per cent, with the mark of an estimate. Empty if there
/// is no whole.
pub(super) fn share(part: u64, whole: u64, is_estimate: bool) -> String {
    if whole == 0 { String::new() } else { format!("{}{}", about(is_estimate), per_cent(part, whole)) }
}

#[expect(clippy::cast_precision_loss, reason = "a decimal is shown")]
fn per_cent(part: u64, whole: u64) -> String {
    let share = part as f64 / whole as f64 * 100.0;
    match part {
        0 => "0 %".to_owned(),
        _ if part == whole => "100 %".to_owned(),
        _ if share < 0.05 => "<0.1 %".to_owned(),
        _ if part < whole => format!("{:.1} %", share.min(99.9)),
        _ => format!("{share:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_size_chooses_the_unit() {
        for (greatest, name) in
            [(0, "B"), (10239, "B"), (10240, "KiB"), ((10 << 20) - 1, "KiB"), (10 << 20, "MiB"), (u64::MAX, "TiB")]
        {
            assert_eq!(Unit::of(greatest).name(), name, "{greatest}");
        }
        let mebibytes = Unit::of(100 << 20);
        assert_eq!(
            [100 << 20, 1 << 20, 60_000, 1, 0].map(|size| mebibytes.format(size)),
            ["100.0", "1.0", "0.1", "<0.1", "0"]
        );
        assert_eq!([1 << 20, -1, 0].map(|size| mebibytes.format_change(size)), ["+1.0", "-<0.1", "+0"]);
        assert_eq!(Unit::of(99).format(99), "99");
    }

    #[test]
    fn a_share_is_whole_only_where_nothing_is_missing() {
        for (part, whole, text) in [
            (0, 9, "0 %"),
            (9, 9, "100 %"),
            (99_999, 100_000, "99.9 %"),
            (1, 3, "33.3 %"),
            (1, 100_000, "<0.1 %"),
            (18, 9, "200.0 %"),
        ] {
            assert_eq!(share(part, whole, false), text);
        }
        assert_eq!([share(0, 0, true), share(1, 2, true)], ["", "~50.0 %"]);
    }
}
