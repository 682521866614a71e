//! From unwind tables and machine code to a rule, and from a frame by a rule to its caller.
//!
//! A call pushes the return address, so the slot of a frame's return address lies right below the
//! CFA of the frame: the value of the stack pointer in the caller.
//!
//! ```text
//!           ...                    frame
//! slot      return address  <──┐
//! slot + 8  (the frame's CFA)  │ caller: CFA = slot + 8 + cfa_offset by the stack pointer,
//!           ...                │              bp + cfa_offset by the base pointer
//! next      return address     └ next = CFA - 8
//! ```

use crate::arch::rule::Rule;
use gimli::{
    CfaRule, Encoding, EndianSlice, Expression, Format, LittleEndian, Operation, RegisterRule, UnwindContextStorage,
    UnwindExpression, UnwindTableRow, X86_64,
};
use heapline_shared_format::arch::way::{Base, Place};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Bytes of a return address on the stack.
const RETURN_BYTES: usize = 8;
/// Distance from a saved base pointer to the return address above, in a frame that keeps both.
pub const RETURN_ABOVE_BP: usize = 8;
/// Distance from a saved base pointer to the CFA, in a frame that keeps both.
pub const CFA_ABOVE_BP: usize = 16;

/// Returns the slot of the caller of a frame, by the stack pointer.
#[inline(always)]
pub fn next_by_sp(slot: usize, rule: Rule) -> usize {
    slot.wrapping_add(rule.cfa_offset())
}

/// Returns the slot of the caller of a frame, by the base pointer.
#[inline(always)]
pub fn next_by_bp(bp: usize, rule: Rule) -> usize {
    next_by_cfa(bp.wrapping_add(rule.cfa_offset()))
}

/// Returns the slot below a CFA.
#[inline(always)]
pub fn next_by_cfa(cfa: usize) -> usize {
    cfa.wrapping_sub(RETURN_BYTES)
}

/// Returns the CFA above a slot: the value of the stack pointer in the caller.
#[inline(always)]
pub fn cfa_above(slot: usize) -> usize {
    slot.wrapping_add(RETURN_BYTES)
}

/// Returns where a frame with the caller's slot `next` saved the caller's base pointer; 0 where the
/// register is the caller's still.
#[inline(always)]
pub fn saved_bp(next: usize, rule: Rule) -> usize {
    match rule.bp_offset() {
        0 => 0,
        offset => cfa_above(next).wrapping_sub(offset),
    }
}

/// Returns the rule of a frame whose machine code tells the places of the return address and of the
/// caller's base pointer.
pub fn rule_of_way(slot: Place, bp: Option<Place>) -> Rule {
    let cfa_offset = i64::from(slot.distance) + 8;
    match (slot.base, bp) {
        (Base::StackPointer, None) => Rule::sp(cfa_offset, 0),
        (Base::StackPointer, Some(bp)) if bp.base == Base::StackPointer => {
            Rule::sp(cfa_offset, cfa_offset - i64::from(bp.distance))
        }
        (Base::BasePointer, Some(bp)) if bp.base == Base::BasePointer => {
            Rule::bp(cfa_offset, cfa_offset - i64::from(bp.distance))
        }
        _ => Rule::COMPLEX,
    }
}

/// Returns the rule of a row of the unwind tables. `operations` returns the code of an expression.
pub fn rule_of_row<'a, S: UnwindContextStorage<usize>>(
    row: &UnwindTableRow<usize, S>,
    operations: impl Fn(&UnwindExpression<usize>) -> Option<Expression<Slice<'a>>>,
) -> Rule {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Undefined) => return Rule::ROOT,
        _ => return Rule::COMPLEX,
    }
    let bp = row.register(X86_64::RBP);
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let bp_offset = match bp {
                None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => 0,
                Some(RegisterRule::Offset(saved)) if saved < 0 => -saved,
                _ => return Rule::COMPLEX,
            };
            match *register {
                X86_64::RSP => Rule::sp(*offset, bp_offset),
                X86_64::RBP => Rule::bp(*offset, bp_offset),
                _ => Rule::COMPLEX,
            }
        }
        CfaRule::Expression(cfa) => {
            let saved_at_bp =
                matches!(&bp, Some(RegisterRule::Expression(e)) if bp_plus(operations(e)) == Some((0, false)));
            match bp_plus(operations(cfa)) {
                Some((offset, true)) if offset <= 0 && saved_at_bp => Rule::realigned(-offset),
                _ => Rule::COMPLEX,
            }
        }
    }
}

/// Returns the offset of an expression that is rbp plus an offset, and whether the value of the
/// expression is the word there.
fn bp_plus(expression: Option<Expression<Slice<'_>>>) -> Option<(i64, bool)> {
    let encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };
    let mut operations = expression?.operations(encoding);
    let Ok(Some(Operation::RegisterOffset { register: X86_64::RBP, offset, .. })) = operations.next() else {
        return None;
    };
    match operations.next() {
        Ok(None) => Some((offset, false)),
        Ok(Some(Operation::Deref { size: 8, space: false, .. })) => {
            matches!(operations.next(), Ok(None)).then_some((offset, true))
        }
        _ => None,
    }
}
