//! Text for people: sizes, dates, words for a shell, and names from a process that may be hostile.

use std::borrow::Cow;

/// Formats `bytes` of memory for people: see [`format_size`].
pub fn size(bytes: u64) -> String {
    format_size(bytes.into(), false)
}

/// Formats `bytes` in a unit that leaves two to five digits. `signed` puts a sign in front
/// (tracemalloc: `_format_size`).
#[expect(clippy::cast_precision_loss, reason = "two to five digits are shown")]
pub fn format_size(bytes: i128, signed: bool) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value.abs() < 10.0 * 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    // A larger unit begins at five digits, so "B" is never below 100 by division.
    let digits = usize::from(value.abs() < 100.0 && unit != "B");
    if signed { format!("{value:+.digits$} {unit}") } else { format!("{value:.digits$} {unit}") }
}

/// Parses a number of bytes: `67108864`, `64M`, `64MB`, `64MiB`. All units are powers of 1024.
///
/// # Errors
///
/// Fails with a sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
    let shift = match unit {
        "" => Some(0),
        "K" | "k" => Some(10),
        "M" | "m" => Some(20),
        "G" | "g" => Some(30),
        "T" | "t" => Some(40),
        _ => None,
    };
    let expected = || "a number of bytes is expected, as in 67108864 or 64M".to_owned();
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let shift = shift.ok_or_else(expected)?;
    number.checked_mul(1 << shift).ok_or_else(|| "out of range".to_owned())
}

/// Formats a number of things: `1 block`, `2 blocks`, `2 processes`.
pub fn counted(count: u64, noun: &str) -> String {
    let ending = if noun.ends_with('s') { "es" } else { "s" };
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}{ending}") }
}

/// Returns `text` with control characters escaped.
///
/// Names, paths and command lines come from the target, which may be hostile: no text reaches a
/// terminal as a command, makes two lines of one, or changes the order in which other text is
/// shown.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_command) {
        let escape = |c: char| if is_command(c) { c.escape_default().to_string() } else { c.to_string() };
        text.chars().map(escape).collect::<String>().into()
    } else {
        text.into()
    }
}

/// Whether a character changes how other characters are shown: control characters, separators of
/// lines, and marks of the direction of writing.
fn is_command(c: char) -> bool {
    let is_separator = matches!(c, '\u{2028}' | '\u{2029}');
    let is_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_separator || is_direction
}

/// Quotes a text as one word for a shell.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Returns the year, month and day of a day since 1970 (Howard Hinnant's civil_from_days, for years
/// from 1970 on).
pub fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_look_as_in_tracemalloc() {
        for (bytes, text) in [
            (0, "0 B"),
            (99, "99 B"),
            (10239, "10239 B"),
            (10240, "10.0 KiB"),
            (429_875, "420 KiB"),
            (102_400, "100 KiB"),
            (102_399, "100.0 KiB"),
            (10 << 20, "10.0 MiB"),
            ((10 << 20) - 1, "10240 KiB"),
            (1 << 50, "1024 TiB"),
            (1 << 60, "1048576 TiB"),
            (-429_875, "-420 KiB"),
        ] {
            assert_eq!(format_size(bytes, false), text);
        }
        assert_eq!(format_size(0, true), "+0 B");
        assert_eq!(format_size(12_288, true), "+12.0 KiB");
        assert_eq!(format_size(-12_288, true), "-12.0 KiB");
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("3k", 3 << 10),
            ("64M", 64 << 20),
            ("5MB", 5 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "M", "-1", "1.5M", "1X", "1 M", "1BB", "99999999T", "99999999999999999999"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "block")), ["0 blocks", "1 block", "2 blocks"]);
        assert_eq!(counted(2, "process"), "2 processes");
    }

    #[test]
    fn no_text_is_a_command_to_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}m"), "a\\u{1b}[2Jb\\n\\u{9b}m");
        assert_eq!(printable("a\u{202e}b\u{2066}\u{2028}"), "a\\u{202e}b\\u{2066}\\u{2028}");
        assert_eq!(printable("plain ünïcode"), "plain ünïcode");
    }

    #[test]
    fn a_shell_reads_the_word_as_it_is() {
        assert_eq!(shell_word("/tmp/a-b.snap.zst"), "/tmp/a-b.snap.zst");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
    }
}
