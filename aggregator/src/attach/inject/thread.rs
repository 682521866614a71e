//! A borrowed thread: makes calls for the aggregator, and goes on where it was.

use super::loader::Gadgets;
use super::memory::Memory;
use super::point::Stopped;
use super::ptrace::{self, Stop};
use super::step::{self, Step};
use super::{InjectError, explain};
use crate::arch::errand::{self, CODE, WAY_BACK, WAY_BACK_BYTES};
use crate::arch::registers::{self, Registers};
use crate::arch::signal_frame::{self, Frame};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// Size of the memory for the calls of the thread. The order is: code, data, stack.
const AREA_BYTES: u64 = 512 << 10;
const PAGE: u64 = 4096;
const DATA_END: u64 = 64 << 10;
/// Limit of a call. `dlopen` waits for other threads inside `dlopen`.
const LONGEST_CALL: Duration = Duration::from_secs(3);
const TO_STOP: Duration = Duration::from_millis(100);
/// Wait of the thread for an aggregator, in nanoseconds. The aggregator may be gone.
const WAITS: u64 = 200_000_000;
/// Interval between two looks whether a call is done.
const LOOK: Duration = Duration::from_micros(20);

/// Reasons why a call was not made.
#[derive(Debug)]
pub enum CallError {
    /// The thread has ended.
    Gone,
    /// The thread did not come back in time, and was let go.
    Late(&'static str),
    /// The call has failed.
    Failed { what: &'static str, reason: String },
    /// The system refused a ptrace request or an access to memory.
    Ptrace(io::Error),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> CallError {
        if error.raw_os_error() == Some(libc::ESRCH) { CallError::Gone } else { CallError::Ptrace(error) }
    }
}

/// A file handed to a called function that opens a path.
#[derive(Clone, Copy)]
pub struct Handed<'p> {
    /// The path opened by the function.
    pub path: &'p str,
    /// Descriptor of the file. The function gets a duplicate.
    pub fd: u64,
}

/// A stopped thread that makes calls for the aggregator.
pub struct Borrowed<'a> {
    tid: u32,
    memory: &'a Memory,
    gadgets: Gadgets,
    original: Registers,
    state: Vec<u8>,
    mask: u64,
    /// Address of the frame for the way back, on the thread's own stack.
    own_frame: u64,
    /// Address of the thread's working memory; 0 before the memory is mapped.
    area: u64,
    /// Address of the last word of the area's stack: the return address of a system call.
    area_stack: u64,
    /// Used bytes of the data.
    used: u64,
    /// Whether the thread was let go, or has ended.
    is_gone: bool,
}

impl<'a> Borrowed<'a> {
    /// Borrows a thread: prepares the way back, and maps memory to work in. On failure the thread
    /// goes on as it was.
    pub fn new(stopped: &Stopped, memory: &'a Memory, gadgets: Gadgets) -> Result<Borrowed<'a>, InjectError> {
        let tid = stopped.tid;
        let prepare = || -> Result<Borrowed<'a>, CallError> {
            let (state, mask) = (ptrace::extended_state(tid)?, ptrace::signal_mask(tid)?);
            let original = stopped.registers;
            let end = signal_frame::below(registers::stack_pointer(&original));
            let Frame { stack_pointer, bytes } =
                signal_frame::build(end, gadgets.sigreturn, &signal_frame::going_on(&original), &state, mask);
            let no_room = |error: io::Error| CallError::Failed { what: "using its stack", reason: error.to_string() };
            memory.write(stack_pointer, &bytes).map_err(no_room)?;
            step::pass(Step::Framed);
            let (area, area_stack) = (0, 0);
            let own_frame = stack_pointer;
            Ok(Borrowed {
                tid,
                memory,
                gadgets,
                original,
                state,
                mask,
                own_frame,
                area,
                area_stack,
                used: 0,
                is_gone: false,
            })
        };
        let mut thread = match prepare() {
            Ok(thread) => thread,
            Err(error) => {
                // The memory and registers in use by the thread are unchanged.
                let _ = ptrace::detach(tid, 0);
                return Err(explain(error, tid));
            }
        };
        match thread.settle() {
            Ok(()) => Ok(thread),
            Err(error) => {
                let _ = thread.give_back();
                Err(explain(error, tid))
            }
        }
    }

    /// Sends the thread off to map its working memory, with its signals held back.
    fn settle(&mut self) -> Result<(), CallError> {
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let arguments = [0, AREA_BYTES, protection, flags, u64::MAX, 0];
        ptrace::set_registers(self.tid, &self.at_system_call(libc::SYS_mmap, arguments, self.own_frame))?;
        step::pass(Step::Sent);
        ptrace::set_signal_mask(self.tid, !self.gadgets.open_signals)?;
        step::pass(Step::Masked);
        self.area = self.system_call_result("mmap")?;
        step::pass(Step::Mapped);
        let area_bytes = u32::try_from(AREA_BYTES).unwrap_or(0);
        let way_back = errand::way_back(self.area, area_bytes, self.own_frame, self.gadgets.system_call);
        let code = [&CODE[..], &way_back].concat();
        self.memory.write(self.area, &code)?;
        // With a stack pointer 8 bytes higher, a call finds a multiple of 16.
        self.area_stack = self.area + AREA_BYTES - 24;
        let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        // The thread is still on its own stack, because the code in the area is not executable.
        let arguments = [self.area, PAGE, executable, 0, 0, 0];
        ptrace::set_registers(self.tid, &self.at_system_call(libc::SYS_mprotect, arguments, self.own_frame))?;
        self.system_call_result("mprotect")?;
        // From here on, the way back begins in the area.
        ptrace::set_registers(self.tid, &errand::at_code(&self.original, self.area + WAY_BACK))?;
        step::pass(Step::Ready);
        Ok(())
    }

    /// Returns the number of the thread.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Puts bytes for a call into the memory of the process. Returns the address of the bytes.
    pub fn place(&mut self, bytes: &[u8]) -> Result<u64, CallError> {
        let at = self.area + PAGE + self.used;
        if at + bytes.len() as u64 > self.area + DATA_END {
            return Err(CallError::Failed { what: "placing a text", reason: "it is too long".to_owned() });
        }
        self.memory.write(at, bytes)?;
        self.used += (bytes.len() as u64).next_multiple_of(16);
        Ok(at)
    }

    /// Reads a text from the memory of the process, as a message.
    pub fn text(&self, at: u64) -> String {
        let text = if at == 0 { String::new() } else { self.memory.text(at) };
        if text.is_empty() { "no reason given".to_owned() } else { text }
    }

    /// Has the thread make a system call.
    pub fn system_call(&mut self, what: &'static str, number: i64, arguments: [u64; 6]) -> Result<u64, CallError> {
        // An earlier call may have pushed its return address there.
        self.memory.write(self.area_stack, &(self.area + WAY_BACK).to_le_bytes())?;
        ptrace::set_registers(self.tid, &self.at_system_call(number, arguments, self.area_stack))?;
        self.system_call_result(what)
    }

    /// Has the thread call a C function.
    pub fn call(&mut self, what: &'static str, function: u64, arguments: [u64; 3]) -> Result<u64, CallError> {
        self.call_function(what, function, arguments, None)
    }

    /// Has the thread call a C function that opens a path, and hands the function another file.
    pub fn call_with_file(
        &mut self,
        what: &'static str,
        function: u64,
        arguments: [u64; 3],
        handed: Handed<'_>,
    ) -> Result<u64, CallError> {
        self.call_function(what, function, arguments, Some(handed))
    }

    fn call_function(
        &mut self,
        what: &'static str,
        function: u64,
        arguments: [u64; 3],
        handed: Option<Handed<'_>>,
    ) -> Result<u64, CallError> {
        let words = self.place(&errand::words_of_call(WAITS, arguments).map(u64::to_le_bytes).concat())?;
        let call = errand::Call {
            code: self.area,
            function,
            words,
            errno_location: self.gadgets.errno_location,
            stack_pointer: self.area_stack + 8,
        };
        ptrace::set_registers(self.tid, &errand::at_call(&self.original, &call))?;
        self.run_until(what, words + 8, handed)?;
        Ok(self.memory.word(words)?)
    }

    /// Lets the thread run until the mark of a finished call appears. Stops the thread then. Only
    /// for a handed file the thread stops at system calls.
    fn run_until(&mut self, what: &'static str, done_at: u64, handed: Option<Handed<'_>>) -> Result<(), CallError> {
        let begun = Instant::now();
        let mut replaced = None;
        let mut signal = 0;
        let mut is_asked = false;
        loop {
            match handed {
                Some(_) => ptrace::resume_to_system_call(self.tid, signal)?,
                None => ptrace::resume(self.tid, signal)?,
            }
            let stop = loop {
                if let Some(stop) = ptrace::wait(self.tid, Duration::ZERO)? {
                    break stop;
                }
                if !is_asked && self.memory.word(done_at)? == 1 {
                    ptrace::interrupt(self.tid)?;
                    is_asked = true;
                }
                if begun.elapsed() > LONGEST_CALL {
                    self.let_go();
                    return Err(CallError::Late(what));
                }
                thread::sleep(LOOK);
            };
            match stop {
                Stop::Event { .. } if is_asked => return self.is_here(what),
                // A stop at a system call takes the place of the stop asked for.
                Stop::SystemCall if is_asked && !ptrace::enters_system_call(self.tid)? => return self.is_here(what),
                Stop::SystemCall => {
                    (signal, is_asked) = (0, false);
                    replaced = match (replaced, handed) {
                        (Some(before), _) => {
                            self.put_arguments_back(&before)?;
                            None
                        }
                        (None, Some(handed)) => self.replace_open(handed)?,
                        (None, None) => None,
                    };
                }
                stop => signal = self.pass(what, stop)?,
            }
        }
    }

    /// Replaces the system call about to be entered, if the call opens the path of the handed file.
    /// Returns the registers before the change.
    fn replace_open(&self, handed: Handed<'_>) -> Result<Option<Registers>, CallError> {
        let before = ptrace::registers(self.tid)?;
        let Some(path) = errand::opened_path(&before) else { return Ok(None) };
        if !ptrace::enters_system_call(self.tid)? || self.memory.text(path) != handed.path {
            return Ok(None);
        }
        let arguments = [handed.fd, libc::F_DUPFD_CLOEXEC.unsigned_abs().into(), handed.fd];
        let duplicate = errand::instead(&before, libc::SYS_fcntl, arguments);
        ptrace::set_registers(self.tid, &duplicate)?;
        step::pass(Step::Handed);
        Ok(Some(before))
    }

    /// Puts the arguments of a replaced system call back, when the call is left.
    fn put_arguments_back(&self, before: &Registers) -> Result<(), CallError> {
        let now = ptrace::registers(self.tid)?;
        Ok(ptrace::set_registers(self.tid, &errand::with_arguments_of(&now, before))?)
    }

    fn at_system_call(&self, number: i64, arguments: [u64; 6], stack_pointer: u64) -> Registers {
        errand::at_system_call(&self.original, self.gadgets.system_call, number, arguments, stack_pointer)
    }

    fn system_call_result(&mut self, what: &'static str) -> Result<u64, CallError> {
        let at = self.gadgets.system_call;
        let after = self.run(what, |now, enters| !enters && errand::is_at_system_call(now, at))?;
        match registers::system_call(&after).1 {
            error @ -4095..0 => {
                let number = i32::try_from(-error).unwrap_or(0);
                Err(CallError::Failed { what, reason: io::Error::from_raw_os_error(number).to_string() })
            }
            result => Ok(result.cast_unsigned()),
        }
    }

    /// Checks that the thread is still in the area. A thread that has waited too long is back in
    /// the program, and must not be touched.
    fn is_here(&mut self, what: &'static str) -> Result<(), CallError> {
        let code = self.area..self.area + WAY_BACK + WAY_BACK_BYTES;
        if code.contains(&registers::instruction(&ptrace::registers(self.tid)?)) {
            return Ok(());
        }
        self.is_gone = true;
        ptrace::detach(self.tid, 0)?;
        Err(CallError::Late(what))
    }

    /// Lets the thread run until the thread enters or leaves a system call accepted by `is_done`.
    fn run(&mut self, what: &'static str, is_done: impl Fn(&Registers, bool) -> bool) -> Result<Registers, CallError> {
        let mut signal = 0;
        loop {
            ptrace::resume_to_system_call(self.tid, signal)?;
            signal = 0;
            match ptrace::wait(self.tid, LONGEST_CALL)? {
                Some(Stop::SystemCall) => {
                    let registers = ptrace::registers(self.tid)?;
                    if is_done(&registers, ptrace::enters_system_call(self.tid)?) {
                        return Ok(registers);
                    }
                }
                Some(stop) => signal = self.pass(what, stop)?,
                None => {
                    self.let_go();
                    return Err(CallError::Late(what));
                }
            }
        }
    }

    /// Handles an unexpected stop. Returns the signal for the thread to go on with.
    fn pass(&mut self, what: &'static str, stop: Stop) -> Result<libc::c_int, CallError> {
        match stop {
            Stop::Event { .. } | Stop::SystemCall => Ok(0),
            Stop::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP | libc::SIGSYS) => {
                // The crash belongs to the injected call. The process goes on as if nothing had
                // happened.
                Err(CallError::Failed { what, reason: "it crashed there, and was put back".to_owned() })
            }
            Stop::Signal(other) => Ok(other),
            Stop::Gone => {
                self.is_gone = true;
                Err(CallError::Gone)
            }
        }
    }

    /// Leaves the thread to finish its call. The thread goes back to the program by itself
    /// afterwards.
    fn let_go(&mut self) {
        self.is_gone = true;
        if ptrace::interrupt(self.tid).is_ok() && matches!(ptrace::wait(self.tid, TO_STOP), Ok(Some(_))) {
            let _ = ptrace::detach(self.tid, 0);
        }
    }

    /// Frees the memory, and lets the thread go on where it was. Does nothing for a thread that is
    /// gone.
    pub fn give_back(mut self) -> Result<(), CallError> {
        if self.is_gone {
            return Ok(());
        }
        let freed = self.free_area();
        if self.is_gone {
            return freed;
        }
        step::pass(Step::Unmapped);
        // Stops the thread in front of the code of the program. From there the kernel handles
        // pending signals and the interrupted system call as without the injection.
        ptrace::interrupt(self.tid)?;
        let mut signal = 0;
        loop {
            ptrace::resume(self.tid, signal)?;
            match ptrace::wait(self.tid, LONGEST_CALL)? {
                Some(Stop::Event { .. }) => break,
                Some(stop) => signal = self.pass("going on", stop)?,
                None => {
                    self.let_go();
                    return Err(CallError::Late("going on"));
                }
            }
        }
        ptrace::set_extended_state(self.tid, &self.state)?;
        ptrace::set_signal_mask(self.tid, self.mask)?;
        step::pass(Step::Unmasked);
        ptrace::set_registers(self.tid, &self.original)?;
        ptrace::detach(self.tid, 0)?;
        freed
    }

    fn free_area(&mut self) -> Result<(), CallError> {
        if self.area == 0 {
            return Ok(());
        }
        let arguments = [self.area, AREA_BYTES, 0, 0, 0, 0];
        ptrace::set_registers(self.tid, &self.at_system_call(libc::SYS_munmap, arguments, self.own_frame))?;
        self.system_call_result("munmap").map(drop)
    }
}
