//! A rule: the way from a frame to its caller with two registers, the stack pointer and the base
//! pointer (also called the frame pointer), and with memory at places determined by the two.

/// A packed rule: kind in 3 bits, CFA offset in 14, [`Rule::at_call`] in 1, the base pointer offset
/// in 14. Offsets are in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(u32);

/// Kind of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No unwind information: the walk ends, truncated.
    Unknown,
    /// CFA = stack pointer + offset.
    Sp,
    /// CFA = the base pointer + offset.
    Bp,
    /// CFA = word at (the base pointer - offset), the base pointer = word at the base pointer: a
    /// frame that realigned its stack.
    Realigned,
    /// The root of the stack: the return address is marked undefined.
    Root,
    /// The rule needs more than the two registers and memory at the CFA: the reader of the table
    /// cannot follow.
    Complex,
    /// No unwind information, but code that may keep a frame pointer: as [`Kind::Bp`], if the base
    /// pointer leads to a plausible caller.
    FramePointer,
}

impl Rule {
    /// The rule of [`Kind::Unknown`].
    pub const UNKNOWN: Rule = Rule(1);
    /// The rule of [`Kind::Root`].
    pub const ROOT: Rule = Rule(5);
    /// The rule of [`Kind::Complex`].
    pub const COMPLEX: Rule = Rule(6);
    /// The rule of [`Kind::FramePointer`].
    pub const FRAME_POINTER: Rule = Rule(7);

    const AT_CALL: u32 = 1 << 17;

    /// Returns the rule with these bits; `None` for 0, which is no rule.
    #[inline(always)]
    pub fn from_bits(bits: u32) -> Option<Rule> {
        (bits != 0).then_some(Rule(bits))
    }

    /// Returns the rule as bits, never 0.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Returns the rule with the mark that the return address stands behind a call, in code.
    pub fn at_call(self) -> Rule {
        Rule(self.0 | Rule::AT_CALL)
    }

    /// Returns whether the return address stands behind a call, in code.
    #[inline(always)]
    pub fn is_at_call(self) -> bool {
        self.0 & Rule::AT_CALL != 0
    }

    /// Returns a rule with the CFA at an offset from the stack pointer. Offsets are in bytes.
    /// `bp_offset` is the distance below the CFA where the base pointer was saved, 0 without a
    /// saved the base pointer. Returns [`Rule::COMPLEX`] for offsets too large, and where the frame
    /// would not hold its own words.
    pub fn sp(cfa_offset: i64, bp_offset: i64) -> Rule {
        if cfa_offset < 8 || bp_offset > cfa_offset { Rule::COMPLEX } else { Rule::pack(2, cfa_offset, bp_offset) }
    }

    /// Returns whether the kind is [`Kind::Sp`].
    #[inline(always)]
    pub fn is_sp(self) -> bool {
        self.0 & 7 == 2
    }

    /// Returns a rule with the CFA at an offset from the base pointer. The offsets are as for
    /// [`Rule::sp`].
    pub fn bp(cfa_offset: i64, bp_offset: i64) -> Rule {
        Rule::pack(3, cfa_offset, bp_offset)
    }

    /// Returns a rule with the CFA stored `offset` bytes below the base pointer.
    pub fn realigned(offset: i64) -> Rule {
        Rule::pack(4, offset, 0)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ranges checked first")]
    fn pack(kind: u32, cfa_offset: i64, bp_offset: i64) -> Rule {
        let fits = |offset: i64, bits: u32| offset >= 0 && offset % 8 == 0 && offset >> 3 < 1 << bits;
        if !fits(cfa_offset, 14) || !fits(bp_offset, 14) {
            return Rule::COMPLEX;
        }
        Rule(kind | ((cfa_offset >> 3) as u32) << 3 | ((bp_offset >> 3) as u32) << 18)
    }

    /// Returns the kind of the rule.
    #[inline(always)]
    pub fn kind(self) -> Kind {
        match self.0 & 7 {
            2 => Kind::Sp,
            3 => Kind::Bp,
            4 => Kind::Realigned,
            5 => Kind::Root,
            6 => Kind::Complex,
            7 => Kind::FramePointer,
            _ => Kind::Unknown,
        }
    }

    /// Returns the offset of the CFA in bytes.
    #[inline(always)]
    pub fn cfa_offset(self) -> usize {
        ((self.0 >> 3 & 0x3fff) << 3) as usize
    }

    /// Returns the offset of the saved the base pointer in bytes; 0 when the base pointer is
    /// unchanged.
    #[inline(always)]
    pub fn bp_offset(self) -> usize {
        ((self.0 >> 18) << 3) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_what_fits_and_is_complex_otherwise() {
        let rule = Rule::sp(1024, 16);
        assert_eq!((rule.kind(), rule.cfa_offset(), rule.bp_offset()), (Kind::Sp, 1024, 16));
        let rule = Rule::bp(16, 0);
        assert_eq!((rule.kind(), rule.cfa_offset(), rule.bp_offset()), (Kind::Bp, 16, 0));
        let largest = ((1 << 14) - 1) * 8;
        let rule = Rule::sp(largest, largest);
        assert_eq!((rule.cfa_offset(), rule.bp_offset(), rule.is_at_call()), (131_064, 131_064, false));
        let marked = rule.at_call();
        assert_eq!((marked.kind(), marked.cfa_offset(), marked.bp_offset()), (Kind::Sp, 131_064, 131_064));
        assert!(marked.is_at_call() && marked.is_sp());
        assert_eq!(Rule::FRAME_POINTER.at_call().kind(), Kind::FramePointer);
        for misfit in [
            Rule::sp(largest + 8, 0),
            Rule::sp(12, 0),
            Rule::sp(0, 0),
            Rule::sp(16, 24),
            Rule::bp(-8, 0),
            Rule::sp(8, 1 << 18),
        ] {
            assert_eq!(misfit, Rule::COMPLEX);
        }
    }
}
