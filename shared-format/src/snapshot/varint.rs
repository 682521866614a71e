//! Numbers of variable length: LEB128, and zigzag differences on top of LEB128.
//!
//! A difference wraps, so any sequence of numbers is possible. Sorted sequences become small.

/// Longest encoding of a `u64`, in bytes.
pub(super) const MAX_BYTES: u32 = 10;

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends a length and then `bytes`.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A column of numbers, encoded as differences. The value is the column's last number.
#[derive(Default)]
pub(super) struct Delta(u64);

impl Delta {
    /// Appends the difference between `value` and the last number.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, value: u64) {
        let difference = value.wrapping_sub(self.0).cast_signed();
        put(out, ((difference << 1) ^ (difference >> 63)).cast_unsigned());
        self.0 = value;
    }

    /// Decodes a difference, and returns the number.
    pub(super) fn value(&mut self, zigzag: u64) -> u64 {
        let difference = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        self.0 = self.0.wrapping_add(difference);
        self.0
    }
}
