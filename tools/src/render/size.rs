//! Sizes as tracemalloc prints them.

/// Formats `size` in a unit that leaves two to five digits. `signed` adds a sign (tracemalloc:
/// `_format_size`).
#[expect(clippy::cast_precision_loss, reason = "two to five digits are shown")]
pub fn format_size(size: i128, signed: bool) -> String {
    let mut size = size as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if size.abs() < 10.0 * 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    // Bytes are whole. Values in larger units begin at 10, and get a decimal below 100.
    let digits = usize::from(size.abs() < 100.0 && unit != "B");
    if signed { format!("{size:+.digits$} {unit}") } else { format!("{size:.digits$} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::format_size;

    #[test]
    fn sizes_look_as_in_tracemalloc() {
        for (size, text) in [
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
            assert_eq!(format_size(size, false), text);
        }
        assert_eq!(format_size(0, true), "+0 B");
        assert_eq!(format_size(12_288, true), "+12.0 KiB");
        assert_eq!(format_size(-12_288, true), "-12.0 KiB");
    }
}
