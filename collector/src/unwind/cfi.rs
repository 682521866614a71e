//! `.eh_frame`, read with gimli: once per return address for the rule table, and step by step for
//! stacks outside the reach of the table.
//!
//! musl's C library has no tables, nor have programs by `musl-gcc`. In a process with musl, frames
//! of such objects are left by what their machine code does on the way to the end of the function
//! ([`epilogue`]).
//!
//! The code runs under [`crate::fail::guard`]. The scratch memory lies in the thread's state, not
//! on the stack: the thread may be in a signal handler with two kilobytes of stack.

use super::{Entry, NO_CODE, Sink, Walk, call, frame_pointer, generated, memory};
use crate::platform::elf::Object;
use crate::platform::{elf, libc};
use crate::rules::{Kind, Rule};
use crate::thread::Thread;
use crate::{modules, process, real};
use core::arch::asm;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, Evaluation, EvaluationResult, EvaluationStorage,
    Expression, FrameDescriptionEntry, LittleEndian, Location, Operation, Register, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindSection, UnwindTableRow, Value, X86_64,
};
use heapline_shared_format::epilogue::{self, Base, NEVER, SIGNAL_RETURN, Way};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Row = UnwindTableRow<usize, Storage>;

/// Scratch memory of gimli, without a heap.
pub struct Storage;

impl UnwindContextStorage<usize> for Storage {
    // A row holds at most a rule for each of the seventeen registers.
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Storage>; 4];
}

impl<'a> EvaluationStorage<Slice<'a>> for Storage {
    type Stack = [Value; 16];
    type ExpressionStack = [(Slice<'a>, Slice<'a>); 1];
    type Result = [gimli::Piece<Slice<'a>>; 1];
}

/// Scratch memory of one thread.
pub type Context = UnwindContext<usize, Storage>;

/// Unwind sections of an object, ready for gimli.
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

/// Returns the rule of a return address, and announces the module of the address.
pub fn rule_for(thread: &mut Thread, pc: usize) -> Rule {
    // The return address points behind the call, and the call may be the last instruction of its
    // function.
    let Some(object) = elf::find_object(pc - 1) else {
        let is_at_call = !process::is_sandboxed() && generated::is_behind_call(pc);
        return if is_at_call { Rule::FRAME_POINTER.at_call() } else { Rule::UNKNOWN };
    };
    modules::announce(thread, &object);
    let is_at_call = call::ends_with_call(object.code_before(pc, call::LONGEST));
    match rule_by_tables(thread, &object, pc) {
        Some(rule) if is_at_call => rule.at_call(),
        Some(rule) => rule,
        None if is_at_call => Rule::FRAME_POINTER.at_call(),
        None => Rule::UNKNOWN,
    }
}

/// Returns the rule of a return address by the unwind tables; `None` without unwind information.
fn rule_by_tables(thread: &mut Thread, object: &Object, pc: usize) -> Option<Rule> {
    let Some(sections) = Sections::of(object) else { return rule_by_code(object, pc) };
    let address = pc as u64 - 1;
    let Some(description) = sections.description(address) else {
        return if is_root(object, &sections, pc) { Some(Rule::ROOT) } else { rule_by_code(object, pc) };
    };
    if description.is_signal_trampoline() {
        // The kernel has called the handler.
        return Some(Rule::COMPLEX.at_call());
    }
    let row = sections.row(&description, thread.unwind_context(), address);
    Some(row.map_or(Rule::UNKNOWN, |row| rule_of(&sections, row)))
}

/// Returns the rule of a return address by the machine code; `None` where the code is not asked.
fn rule_by_code(object: &Object, pc: usize) -> Option<Rule> {
    /// At the return address of a call, the stack pointer is a multiple of 16.
    const AT_CALL: i32 = 8;
    if is_signal_return(object, pc) {
        return Some(Rule::COMPLEX.at_call());
    }
    let rule = match way_by_code(object, pc, AT_CALL)? {
        None => Rule::UNKNOWN,
        // The C library calls the program's first functions, and ends with them. Elsewhere a loop
        // without an end hides the callers.
        Some(Way::Never) if object.contains(real::errno_location()) => Rule::ROOT,
        Some(Way::Never) => Rule::UNKNOWN,
        Some(Way::Returns { slot, rbp }) => {
            let cfa_offset = i64::from(slot.distance) + 8;
            match (slot.base, rbp) {
                (Base::Rsp, None) => Rule::sp(cfa_offset, 0),
                (Base::Rsp, Some(rbp)) if rbp.base == Base::Rsp => {
                    Rule::sp(cfa_offset, cfa_offset - i64::from(rbp.distance))
                }
                (Base::Rbp, Some(rbp)) if rbp.base == Base::Rbp => {
                    Rule::bp(cfa_offset, cfa_offset - i64::from(rbp.distance))
                }
                _ => Rule::COMPLEX,
            }
        }
    };
    Some(rule)
}

/// Returns whether a signal handler returns to an address, of musl's C library.
fn is_signal_return(object: &Object, pc: usize) -> bool {
    let is_asked = libc::is_musl() && object.contains(real::errno_location());
    let code = if is_asked { object.code_around(pc) } else { None };
    code.is_some_and(|code| code[pc - code.as_ptr().addr()..].starts_with(&SIGNAL_RETURN))
}

/// Returns what the machine code at an address tells of the way to the caller. The outer `None`
/// means that the code is not asked: with glibc, and in an object with tables.
#[expect(clippy::option_option, reason = "no answer, and no question")]
fn way_by_code(object: &Object, pc: usize, remainder: i32) -> Option<Option<Way>> {
    let is_asked = libc::is_musl() && (!object.has_unwind_table() || object.contains(real::errno_location()));
    let code = is_asked.then(|| object.code_around(pc))??;
    let start = code.as_ptr().addr();
    let never = NEVER.map(|name| object.loaded().symbol(name).map_or(usize::MAX, |at| at.wrapping_sub(start)));
    Some(epilogue::way(code, pc - start, remainder, &never))
}

/// Returns whether a return address left by no call is the end of the stack. Two cases:
///
/// - the code that a program or the loader begins with,
/// - the first instruction of a function, stored by hand (as makecontext does).
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

/// Returns the offset of an expression that is rbp plus an offset, and whether the value of the
/// expression is the word there.
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

/// Registers of a frame at resumption, by DWARF number. `None` is an unknown register.
#[derive(Clone, Copy)]
struct Registers([Option<usize>; 17]);

const RBX: usize = 3;
const RBP: usize = 6;
const RSP: usize = 7;
const RA: usize = 16;

impl Registers {
    /// Returns the registers of the calling function. This function is inlined there.
    #[inline(always)]
    fn here() -> Registers {
        let mut saved = [0usize; 8];
        // SAFETY: the instructions store eight registers in the array of eight words.
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

/// Walks with all registers, and evaluates all rules of the unwind tables. The walk starts in the
/// collector's own frames, and stores frames from the caller of the hook on.
#[inline(never)]
pub fn walk(thread: &mut Thread, entry: Entry) -> Walk {
    let mut registers = Registers::here();
    // The address lies inside a function, not behind a call. The row of the exact address is looked
    // up.
    let mut exact = true;
    let mut reached_entry = false;
    // SAFETY: the buffer belongs to the thread, and no other walk uses the buffer.
    let mut sink = Sink::new(unsafe { thread.frames.as_mut() });
    loop {
        let Some(pc) = registers.0[RA] else { return sink.done(false) };
        if pc < NO_CODE {
            return sink.done(false);
        }
        // Readers of a traceback subtract one from each address. An exact address gets one added
        // here.
        if reached_entry && !sink.push(if exact { pc + 1 } else { pc }) {
            return sink.done(true);
        }
        let address = if exact { pc } else { pc - 1 };
        let stepped = step(thread, &registers, address).or_else(|| step_by_code(&registers, pc));
        let Some((caller, slot, is_signal_frame)) = stepped else {
            if reached_entry
                && !exact
                && let Some(caller) = step_by_frame_pointer(thread, &registers, pc)
            {
                registers = caller;
                sink.mark_last();
                continue;
            }
            let is_root = elf::find_object(address)
                .is_some_and(|object| Sections::of(&object).is_some_and(|sections| is_root(&object, &sections, pc)));
            return sink.done(!is_root);
        };
        // Towards the root the stack pointer grows, with two exceptions: from a signal stack to the
        // interrupted stack, and from a stack of the collector to the program's stack.
        let is_ours = !reached_entry;
        reached_entry |= slot == Some(entry.slot);
        if !is_ours && !is_signal_frame && caller.0[RSP] <= registers.0[RSP] {
            return sink.done(true);
        }
        registers = caller;
        exact = is_signal_frame;
    }
}

/// Returns the registers of the caller of a frame by the machine code, as [`step`] does. A root has
/// a caller without a return address.
fn step_by_code(registers: &Registers, pc: usize) -> Option<(Registers, Option<usize>, bool)> {
    let (sp, bp) = (registers.0[RSP]?, registers.0[RBP]);
    // A signal handler returns to the first instruction of a function, and so may the interrupted
    // address be.
    let object = elf::find_object(pc)?;
    if is_signal_return(&object, pc) {
        return interrupted(sp).map(|registers| (registers, None, true));
    }
    // The return address of a frame lies at an odd multiple of 8.
    let remainder = i32::try_from(8usize.wrapping_sub(sp) & 15).ok()?;
    let way = way_by_code(&object, pc, remainder)??;
    let mut caller = Registers([None; 17]);
    let Way::Returns { slot, rbp } = way else {
        if !object.contains(real::errno_location()) {
            return None;
        }
        caller.0[RSP] = Some(usize::MAX);
        return Some((caller, None, false));
    };
    let at = |place: epilogue::Place| {
        let base = if place.base == Base::Rsp { Some(sp) } else { bp };
        Some(base?.wrapping_add_signed(isize::try_from(place.distance).ok()?))
    };
    let slot = at(slot)?;
    caller.0[RSP] = Some(slot + 8);
    caller.0[RA] = Some(memory::read(slot)?);
    caller.0[RBP] = match rbp {
        None => bp,
        Some(place) => Some(memory::read(at(place)?)?),
    };
    Some((caller, Some(slot), false))
}

/// Returns the registers of the function interrupted by a signal. The kernel has put them on the
/// stack, where the handler has left the stack pointer (`struct ucontext`).
fn interrupted(sp: usize) -> Option<Registers> {
    /// Offset of the registers, which begin with r8.
    const FIRST: usize = 40;
    /// DWARF numbers in the kernel's order: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    const ORDER: [usize; 17] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, RBP, RBX, 1, 0, 2, RSP, RA];
    let mut registers = Registers([None; 17]);
    for (i, number) in ORDER.into_iter().enumerate() {
        registers.0[number] = Some(memory::read(sp + FIRST + i * 8)?);
    }
    Some(registers)
}

/// Returns the registers of the caller of a frame without unwind information, found by the frame
/// pointer.
fn step_by_frame_pointer(thread: &mut Thread, registers: &Registers, pc: usize) -> Option<Registers> {
    if rule_for(thread, pc).kind() != Kind::FramePointer {
        return None;
    }
    let (sp, bp) = (registers.0[RSP]?, registers.0[RBP]?);
    if !frame_pointer::is_near(sp - 8, bp) || !thread.stack_holds(sp, bp + 8).unwrap_or(true) {
        return None;
    }
    let (caller_bp, caller) = (memory::read(bp)?, memory::read(bp + 8)?);
    if !frame_pointer::may_be_return_address(caller) || !rule_for(thread, caller).is_at_call() {
        return None;
    }
    let mut found = Registers([None; 17]);
    (found.0[RBP], found.0[RSP], found.0[RA]) = (Some(caller_bp), Some(bp + 16), Some(caller));
    Some(found)
}

/// Returns the registers of the caller, the slot of the return address, and whether the frame was a
/// signal frame.
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
    // A register without a rule is lost in the caller, unless every function preserves the
    // register.
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
