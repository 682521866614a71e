//! `.eh_frame`, read with gimli: once per return address for the rule table, and step by step for
//! the stacks that the table cannot describe.
//!
//! Runs under [`crate::fail::guard`]. Its scratch memory lies in the thread's state, not on the
//! stack: the thread may be in a signal handler on two kilobytes.

use super::{Entry, NO_CODE, Sink, Walk, memory};
use crate::modules;
use crate::platform::elf;
use crate::platform::elf::Object;
use crate::rules::Rule;
use crate::thread::Thread;
use core::arch::asm;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, Evaluation, EvaluationResult, EvaluationStorage,
    Expression, FrameDescriptionEntry, LittleEndian, Location, Operation, Register, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindSection, UnwindTableRow, Value, X86_64,
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Row = UnwindTableRow<usize, Storage>;

/// gimli's scratch memory without a heap.
pub struct Storage;

impl UnwindContextStorage<usize> for Storage {
    // A row holds a rule for each of the seventeen registers at most.
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Storage>; 4];
}

impl<'a> EvaluationStorage<Slice<'a>> for Storage {
    type Stack = [Value; 16];
    type ExpressionStack = [(Slice<'a>, Slice<'a>); 1];
    type Result = [gimli::Piece<Slice<'a>>; 1];
}

/// The scratch memory of one thread.
pub type Context = UnwindContext<usize, Storage>;

/// An object's unwind sections, ready for gimli.
struct Sections<'a> {
    bases: BaseAddresses,
    header: Slice<'a>,
    frame: EhFrame<Slice<'a>>,
}

impl<'a> Sections<'a> {
    fn of(object: &'a Object) -> Option<Sections<'a>> {
        let (header, frame) = object.unwind_sections()?;
        Some(Sections {
            bases: BaseAddresses::default()
                .set_eh_frame_hdr(header.at)
                .set_eh_frame(frame.at)
                .set_text(object.start as u64),
            header: EndianSlice::new(header.bytes, LittleEndian),
            frame: EhFrame::new(frame.bytes, LittleEndian),
        })
    }

    fn description(&self, address: u64) -> Option<FrameDescriptionEntry<Slice<'a>>> {
        let header = EhFrameHdr::from(self.header).parse(&self.bases, 8).ok()?;
        let table = header.table()?;
        table.fde_for_address(&self.frame, &self.bases, address, EhFrame::cie_from_offset).ok()
    }

    fn row<'c>(
        &self,
        description: &FrameDescriptionEntry<Slice<'a>>,
        context: &'c mut Context,
        address: u64,
    ) -> Option<&'c Row> {
        description.unwind_info_for_address(&self.frame, &self.bases, context, address).ok()
    }

    fn expression(&self, expression: &gimli::UnwindExpression<usize>) -> Option<Expression<Slice<'a>>> {
        expression.get(&self.frame).ok()
    }
}

/// The rule of a return address; also announces the module that it lies in.
pub fn rule_for(thread: &mut Thread, pc: usize) -> Rule {
    // The return address points behind the call, which may be the last instruction of its function.
    let Some(object) = elf::find_object(pc - 1) else { return Rule::UNKNOWN };
    modules::announce(thread, &object);
    let Some(sections) = Sections::of(&object) else { return Rule::UNKNOWN };
    let address = pc as u64 - 1;
    let Some(description) = sections.description(address) else {
        return if is_root(&object, &sections, pc) { Rule::ROOT } else { Rule::UNKNOWN };
    };
    if description.is_signal_trampoline() {
        return Rule::COMPLEX;
    }
    match sections.row(&description, thread.unwind_context(), address) {
        Some(row) => rule_of(&sections, row),
        None => Rule::UNKNOWN,
    }
}

/// Whether a return address that no call can have left is the end of its stack: the code that a
/// program or the loader begins with, or the first instruction of a function, put there by hand
/// (makecontext does so).
fn is_root(object: &Object, sections: &Sections<'_>, pc: usize) -> bool {
    let starts_here = |d: FrameDescriptionEntry<Slice<'_>>| d.initial_address() == pc as u64;
    object.is_entry_code(pc) || sections.description(pc as u64).is_some_and(starts_here)
}

fn rule_of(sections: &Sections<'_>, row: &Row) -> Rule {
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
                matches!(&bp, Some(RegisterRule::Expression(e)) if bp_plus(sections, e) == Some((0, false)));
            match bp_plus(sections, cfa) {
                Some((offset, true)) if offset <= 0 && saved_at_bp => Rule::realigned(-offset),
                _ => Rule::COMPLEX,
            }
        }
    }
}

/// The offset of an expression that is rbp plus an offset, and whether the word there is its value.
fn bp_plus(sections: &Sections<'_>, expression: &gimli::UnwindExpression<usize>) -> Option<(i64, bool)> {
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut operations = sections.expression(expression)?.operations(encoding);
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

/// The registers that a frame has when it is resumed, by DWARF number; none where they are not
/// known.
#[derive(Clone, Copy)]
struct Registers([Option<usize>; 17]);

const RBX: usize = 3;
const RBP: usize = 6;
const RSP: usize = 7;
const RA: usize = 16;

impl Registers {
    /// Those of the caller of this function, which is inlined: of the function that it stands in.
    #[inline(always)]
    fn here() -> Registers {
        let mut saved = [0usize; 8];
        // SAFETY: stores eight registers in the array.
        unsafe {
            asm!(
                "mov [{s}], rbx",
                "mov [{s} + 8], rbp",
                "mov [{s} + 16], rsp",
                "mov [{s} + 24], r12",
                "mov [{s} + 32], r13",
                "mov [{s} + 40], r14",
                "mov [{s} + 48], r15",
                "lea {t}, [rip]",
                "mov [{s} + 56], {t}",
                s = in(reg) saved.as_mut_ptr(),
                t = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
        let mut registers = Registers([None; 17]);
        for (number, value) in [RBX, RBP, RSP, 12, 13, 14, 15, RA].into_iter().zip(saved) {
            registers.0[number] = Some(value);
        }
        registers
    }

    fn get(&self, register: Register) -> Option<usize> {
        self.0.get(register.0 as usize).copied().flatten()
    }
}

/// Walks with all registers, evaluating whatever the tables say. Starts in the collector's own
/// frames and stores from the hook's caller on.
#[inline(never)]
pub fn walk(thread: &mut Thread, entry: Entry) -> Walk {
    let mut registers = Registers::here();
    // An address inside a function, not behind a call: its row is looked up as it is.
    let mut exact = true;
    let mut reached_entry = false;
    // SAFETY: the thread's own buffer, and this is the only walk on it.
    let mut sink = Sink::new(unsafe { thread.frames.as_mut() });
    loop {
        let Some(pc) = registers.0[RA] else { return sink.done(false) };
        if pc < NO_CODE {
            return sink.done(false);
        }
        // A return address is told as it is; readers subtract one. For an exact address that is
        // undone here.
        if reached_entry && !sink.push(if exact { pc + 1 } else { pc }) {
            return sink.done(true);
        }
        let address = if exact { pc } else { pc - 1 };
        let Some((caller, slot, is_signal_frame)) = step(thread, &registers, address) else {
            let is_root = elf::find_object(address)
                .is_some_and(|object| Sections::of(&object).is_some_and(|sections| is_root(&object, &sections, pc)));
            return sink.done(!is_root);
        };
        // Towards the root the stack pointer grows, except from a signal stack to the stack that
        // was interrupted, and from a stack of the collector's own to the program's.
        let is_ours = !reached_entry;
        reached_entry |= slot == Some(entry.slot);
        if !is_ours && !is_signal_frame && caller.0[RSP] <= registers.0[RSP] {
            return sink.done(true);
        }
        registers = caller;
        exact = is_signal_frame;
    }
}

/// The registers of the caller, the slot that its return address came from, and whether the frame
/// was a signal's.
fn step(thread: &mut Thread, registers: &Registers, address: usize) -> Option<(Registers, Option<usize>, bool)> {
    let object = elf::find_object(address)?;
    modules::announce(thread, &object);
    let sections = Sections::of(&object)?;
    let description = sections.description(address as u64)?;
    let row = sections.row(&description, thread.unwind_context(), address as u64)?;
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            registers.get(*register)?.wrapping_add_signed(isize::try_from(*offset).ok()?)
        }
        CfaRule::Expression(e) => evaluate(sections.expression(e)?, registers, None)?,
    };
    let mut caller = *registers;
    // What no rule restores is lost in the caller, but for the registers that every function
    // preserves.
    for lost in [0, 1, 2, 4, 5, 8, 9, 10, 11] {
        caller.0[lost] = None;
    }
    caller.0[RSP] = Some(cfa);
    let mut slot = None;
    for (register, rule) in row.registers() {
        let number = register.0 as usize;
        let Some(value) = caller.0.get_mut(number) else { continue };
        let at = |offset: i64| Some(cfa.wrapping_add_signed(isize::try_from(offset).ok()?));
        *value = match rule {
            RegisterRule::Undefined => None,
            RegisterRule::SameValue => registers.0[number],
            RegisterRule::Offset(offset) => {
                let address = at(*offset)?;
                if number == RA {
                    slot = Some(address);
                }
                memory::read(address)
            }
            RegisterRule::ValOffset(offset) => at(*offset),
            RegisterRule::Register(other) => registers.get(*other),
            RegisterRule::Expression(e) => memory::read(evaluate(sections.expression(e)?, registers, Some(cfa))?),
            RegisterRule::ValExpression(e) => evaluate(sections.expression(e)?, registers, Some(cfa)),
            _ => return None,
        };
    }
    Some((caller, slot, description.is_signal_trampoline()))
}

fn evaluate(expression: Expression<Slice<'_>>, registers: &Registers, initial: Option<usize>) -> Option<usize> {
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut evaluation = Evaluation::<Slice<'_>, Storage>::new_in(expression.0, encoding);
    if let Some(value) = initial {
        evaluation.set_initial_value(value as u64);
    }
    evaluation.set_max_iterations(100);
    let mut state = evaluation.evaluate().ok()?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(registers.get(register)? as u64)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                let word = memory::read(usize::try_from(address).ok()?)?;
                evaluation.resume_with_memory(Value::Generic(word as u64)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result() {
        [gimli::Piece { location: Location::Address { address }, .. }] => usize::try_from(*address).ok(),
        _ => None,
    }
}
