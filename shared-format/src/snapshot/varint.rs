//! Numbers of variable length: LEB128, and zigzag differences on top of it.
//!
//! A difference wraps, so that any sequence of numbers survives; sorted ones become small.

/// Longest encoding of a `u64`.
pub(super) const MAX_BYTES: u32 = 10;

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends a length and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Remembers the last value of a column and speaks of the next one as a difference.
#[derive(Default)]
pub(super) struct Delta(u64);

impl Delta {
    /// Appends the difference of `value` to the last one.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, value: u64) {
        let difference = value.wrapping_sub(self.0).cast_signed();
        put(out, ((difference << 1) ^ (difference >> 63)).cast_unsigned());
        self.0 = value;
    }

    /// The value behind a difference that was read.
    pub(super) fn value(&mut self, zigzag: u64) -> u64 {
        let difference = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        self.0 = self.0.wrapping_add(difference);
        self.0
    }
}
