//! `.eh_frame`, read with gimli: once per return address for the rule table, and step by step for
//! stacks outside the reach of the table.
//!
//! musl's C library has no tables, nor have programs by `musl-gcc`. In a process with musl, frames
//! of such objects are left by what their machine code does on the way to the end of the function
//! ([`epilogue`]).
//!
//! The code runs under [`crate::fail::guard`]. The scratch memory lies in the thread's state, not
//! on the stack: the thread may be in a signal handler with two kilobytes of stack.

use super::{Entry, NO_CODE, Sink, Walk, frame_pointer, generated, memory};
use crate::arch::registers::{BP, CHANGED_BY_CALLS, RA, Registers, SP};
use crate::arch::{registers, unwinding};
use crate::platform::elf::Object;
use crate::platform::{elf, libc};
use crate::rules::{Kind, Rule};
use crate::thread::Thread;
use crate::{modules, process, real};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, Evaluation, EvaluationResult, EvaluationStorage,
    Expression, FrameDescriptionEntry, LittleEndian, Location, Register, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindSection, UnwindTableRow, Value,
};
use heapline_shared_format::arch::epilogue::{self, SIGNAL_RETURN};
use heapline_shared_format::arch::instructions;
use heapline_shared_format::arch::way::{Base, NEVER, Place, Way};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Row = UnwindTableRow<usize, Storage>;

/// Scratch memory of gimli, without a heap.
pub struct Storage;

impl UnwindContextStorage<usize> for Storage {
    // A row holds at most a rule for each register.
    type Rules = [(Register, RegisterRule<usize>); registers::COUNT.next_multiple_of(8)];
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
    let is_at_call = instructions::ends_with_call(object.code_before(pc, instructions::LONGEST_CALL));
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
    Some(row.map_or(Rule::UNKNOWN, |row| unwinding::rule_of_row(row, |expression| sections.expression(expression))))
}

/// Returns the rule of a return address by the machine code; `None` where the code is not asked.
fn rule_by_code(object: &Object, pc: usize) -> Option<Rule> {
    if is_signal_return(object, pc) {
        return Some(Rule::COMPLEX.at_call());
    }
    let rule = match way_by_code(object, pc, epilogue::AT_CALL)? {
        None => Rule::UNKNOWN,
        // The C library calls the program's first functions, and ends with them. Elsewhere a loop
        // without an end hides the callers.
        Some(Way::Never) if object.contains(real::errno_location()) => Rule::ROOT,
        Some(Way::Never) => Rule::UNKNOWN,
        Some(Way::Returns { slot, bp }) => unwinding::rule_of_way(slot, bp),
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
        if !is_ours && !is_signal_frame && caller.0[SP] <= registers.0[SP] {
            return sink.done(true);
        }
        registers = caller;
        exact = is_signal_frame;
    }
}

/// Returns the registers of the caller of a frame by the machine code, as [`step`] does. A root has
/// a caller without a return address.
fn step_by_code(registers: &Registers, pc: usize) -> Option<(Registers, Option<usize>, bool)> {
    let (sp, bp) = (registers.0[SP]?, registers.0[BP]);
    // A signal handler returns to the first instruction of a function, and so may the interrupted
    // address be.
    let object = elf::find_object(pc)?;
    if is_signal_return(&object, pc) {
        return Registers::interrupted(sp, memory::read).map(|registers| (registers, None, true));
    }
    let way = way_by_code(&object, pc, epilogue::remainder(sp as u64))??;
    let mut caller = Registers::UNKNOWN;
    let Way::Returns { slot, bp: saved } = way else {
        if !object.contains(real::errno_location()) {
            return None;
        }
        caller.0[SP] = Some(usize::MAX);
        return Some((caller, None, false));
    };
    let at = |place: Place| {
        let base = if place.base == Base::StackPointer { Some(sp) } else { bp };
        Some(base?.wrapping_add_signed(isize::try_from(place.distance).ok()?))
    };
    let slot = at(slot)?;
    caller.0[SP] = Some(unwinding::cfa_above(slot));
    caller.0[RA] = Some(memory::read(slot)?);
    caller.0[BP] = match saved {
        None => bp,
        Some(place) => Some(memory::read(at(place)?)?),
    };
    Some((caller, Some(slot), false))
}

/// Returns the registers of the caller of a frame without unwind information, found by the frame
/// pointer.
fn step_by_frame_pointer(thread: &mut Thread, registers: &Registers, pc: usize) -> Option<Registers> {
    if rule_for(thread, pc).kind() != Kind::FramePointer {
        return None;
    }
    let (sp, bp) = (registers.0[SP]?, registers.0[BP]?);
    let at = bp.wrapping_add(unwinding::RETURN_ABOVE_BP);
    if !frame_pointer::is_near(unwinding::next_by_cfa(sp), bp) || !thread.stack_holds(sp, at).unwrap_or(true) {
        return None;
    }
    let (caller_bp, caller) = (memory::read(bp)?, memory::read(at)?);
    if !frame_pointer::may_be_return_address(caller) || !rule_for(thread, caller).is_at_call() {
        return None;
    }
    let mut found = Registers::UNKNOWN;
    (found.0[BP], found.0[SP], found.0[RA]) = (Some(caller_bp), Some(bp + unwinding::CFA_ABOVE_BP), Some(caller));
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
            registers.get(register.0)?.wrapping_add_signed(isize::try_from(*offset).ok()?)
        }
        CfaRule::Expression(e) => evaluate(sections.expression(e)?, registers, None)?,
    };
    let mut caller = *registers;
    for lost in CHANGED_BY_CALLS {
        caller.0[lost] = None;
    }
    caller.0[SP] = Some(cfa);
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
            RegisterRule::Register(other) => registers.get(other.0),
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
                evaluation.resume_with_register(Value::Generic(registers.get(register.0)? as u64)).ok()?
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
