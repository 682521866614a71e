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

/// Removes a number from the front of `bytes`. None if the bytes end too early, or for a number of
/// more than 64 bits.
pub(super) fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for i in 0..MAX_BYTES {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if i == MAX_BYTES - 1 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Maps small numbers of both signs to small numbers.
pub(super) fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)).cast_unsigned()
}

/// Returns the number behind [`zigzag`].
pub(super) fn unzigzag(number: u64) -> i64 {
    ((number >> 1) ^ (number & 1).wrapping_neg()).cast_signed()
}

/// A column of numbers, encoded as differences. The value is the column's last number.
#[derive(Default)]
pub(super) struct Delta(u64);

impl Delta {
    /// Appends the difference between `value` and the last number.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, value: u64) {
        put(out, zigzag(value.wrapping_sub(self.0).cast_signed()));
        self.0 = value;
    }

    /// Decodes a difference, and returns the number.
    pub(super) fn value(&mut self, zigzag: u64) -> u64 {
        self.0 = self.0.wrapping_add_signed(unzigzag(zigzag));
        self.0
    }
}
