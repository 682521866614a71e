//! The keeper of the table: receives the drain's messages, applies them, and answers questions.
//!
//! A question is answered at a watermark not older than the question. So each answer is a
//! consistent cut, with all events before the question.

use crate::base::clock;
use crate::base::queue::Inlet;
use crate::base::sys;
use crate::history::Recorder;
use crate::history::gauges::Gauges;
use crate::names::ProcessNames;
use crate::process::image::Image;
use crate::process::tasks::Tasks;
use crate::questions::backlog::{Backlog, Source};
use crate::questions::mailbox::Mailbox;
use crate::questions::native::NativeCut;
use crate::session::arena_map::ArenaMap;
use crate::session::counted::Counted;
use crate::snapshot::cut::{Counters, Figures, Inherited, OpenCut, Recorded};
use crate::snapshot::replaced::Replaced;
use crate::table::fork_copies::{Fork, ForkCopies, TreeMember};
use crate::table::forks::Forks;
use crate::table::live::Block;
use crate::table::messages::Message;
use crate::table::order::Order;
use crate::table::said::OnMark;
use crate::table::{Ring, Table};
use crossbeam_utils::sync::Parker;
use heapline_shared_format::arena::SEGMENT_WORDS;
use heapline_shared_format::event::as_python_frame;
use heapline_shared_format::snapshot::history::USER_MARK;
use heapline_shared_format::snapshot::{Begun, Code, Domain};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// A live block and its origin.
#[derive(Clone, Debug)]
pub struct FoundBlock {
    /// Domain of the block.
    pub domain: Domain,
    /// The block.
    pub block: Block,
    /// Id and name of the allocating thread.
    pub thread: (u32, String),
    /// Frames of the traceback, the most recent first.
    pub frames: Vec<FoundFrame>,
    /// Number of the program.
    pub image: u32,
    /// True depth of the stack.
    pub total_nframe: u16,
}

/// A frame of a block's traceback, without symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundFrame {
    /// A return address, and its object.
    Native(u64, Option<FoundObject>),
    /// File, line and function.
    Python(String, u32, String),
}

/// The object of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundObject {
    /// Index among the program's objects.
    pub index: u32,
    /// Path of the file.
    pub path: String,
    /// Difference between an address in memory and the address in the file.
    pub bias: u64,
}

/// A question to the keeper.
pub struct Request {
    /// Stamp of the time of asking.
    pub asked: u64,
    /// Finds the answer and sends the answer to whoever asked.
    pub answer: Box<dyn FnOnce(&mut Keeper) + Send>,
}

/// The table of a process, with all state for filling the table and answering questions.
pub struct Keeper {
    map: Arc<ArenaMap>,
    nframe: u32,
    resolvers: usize,
    order: Order<Ring>,
    backlog: Arc<Backlog>,
    table: Table,
    mailbox: Mailbox,
    image: Image,
    /// Begin of the trace of the present program.
    begun: Begun,
    /// Counters of the arena at the begin of the table.
    counters: Counters,
    /// Open rings by slot: index of the thread, and the calls counted in the slot before.
    open: HashMap<u32, (u32, Counted)>,
    /// Calls of ended threads.
    counted: Counted,
    watermark: u64,
    has_ended: bool,
    /// Whether a thread other than the keeper's own runs the keeper.
    is_helped: bool,
    waiting: VecDeque<Request>,
    recycled: rtrb::Producer<Vec<u64>>,
    replaced: Option<SyncSender<Replaced>>,
    /// Fork of this process, and the source of the copied table.
    adopted: Option<(Arc<ForkCopies>, Fork)>,
    inherited: Option<Inherited>,
    names: Arc<ProcessNames>,
    /// Number of objects that `names` has seen.
    named: usize,
    /// Bound of the history, in bytes; none for no history.
    history_memory: Option<usize>,
    /// The process, once it is known.
    tasks: Arc<OnceLock<Tasks>>,
    /// Memory of the present program over time; none before the first watermark.
    history: Option<Arc<Mutex<Recorder>>>,
    /// Time of the last watermark.
    wall: Duration,
}

/// Result of a look at the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worked {
    /// There was work.
    Busy,
    /// There was no work.
    Idle,
    /// No thread can ask any more.
    Over,
}

/// The keeper with its inputs, shared by two threads.
///
/// - The keeper's own thread usually works here.
/// - The drain's thread works here while the target asks short questions and waits for the answers:
///   waking another thread takes longer than answering.
///
/// None after the keeper's thread has ended or panicked. Then nothing takes messages or answers
/// questions, which the other ends notice.
#[derive(Clone)]
pub struct SharedKeeper(Arc<Mutex<Option<KeeperState>>>);

/// A keeper with both inputs.
struct KeeperState {
    keeper: Keeper,
    messages: Inlet<Message>,
    requests: mpsc::Receiver<Request>,
}

/// Clears the shared keeper when the keeper's thread ends, in any way.
struct Leave<'d>(&'d SharedKeeper);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl SharedKeeper {
    /// Returns a shared keeper with inputs for messages and requests.
    pub fn new(keeper: Keeper, messages: Inlet<Message>, requests: mpsc::Receiver<Request>) -> SharedKeeper {
        SharedKeeper(Arc::new(Mutex::new(Some(KeeperState { keeper, messages, requests }))))
    }

    /// Works until no thread can ask any more. Senders of messages and requests unpark `parker`.
    pub fn run(&self, parker: &Parker) {
        let _leave = Leave(self);
        if let Ok(mut state) = self.0.lock()
            && let Some(state) = &mut *state
        {
            state.keeper.inherit();
        }
        loop {
            // A helper that has panicked may have left the table in any state.
            let Ok(mut state) = self.0.lock() else { return };
            let Some(KeeperState { keeper, messages, requests }) = &mut *state else { return };
            let worked = keeper.work(messages, requests);
            drop(state);
            match worked {
                Worked::Busy => {}
                Worked::Idle => parker.park(),
                Worked::Over => return,
            }
        }
    }

    /// Applies drained messages in the calling thread, because the target waits.
    ///
    /// The operator's questions and the ends of programs take long, and are left to the keeper's
    /// own thread. Returns false if that thread must be woken.
    #[must_use]
    pub fn help(&self) -> bool {
        let Ok(mut state) = self.0.try_lock() else { return false };
        let Some(KeeperState { keeper, messages, .. }) = &mut *state else { return false };
        keeper.is_helped = true;
        while messages.peek().is_some_and(|message| !matches!(message, Message::Replaced | Message::End)) {
            if let Some(message) = messages.try_recv() {
                keeper.take(message);
            }
        }
        keeper.is_helped = false;
        messages.peek().is_none() && keeper.waiting.is_empty()
    }
}

/// Most empty buffers returned to the drain. More buffers would only hold memory.
pub const RECYCLED_BUFFERS: usize = 64;

/// Time for copies of the table between two polls of the drain: about the time that the events of
/// a poll take.
const COPY_TIME: Duration = Duration::from_millis(1);

/// What a keeper begins with.
pub struct KeeperPlan {
    /// Frames kept of each stack.
    pub nframe: u32,
    /// Threads for looking up blocks.
    pub resolvers: usize,
    /// Begin of the trace.
    pub begun: Begun,
    /// Threads of the process.
    pub threads: usize,
    /// Receiver of the last state of programs replaced by exec.
    pub replaced: Option<SyncSender<Replaced>>,
    /// Place of the process among the followed processes.
    pub member: Option<TreeMember>,
    /// Names of the process's frames.
    pub names: Arc<ProcessNames>,
    /// Bound of the history, in bytes; none for no history.
    pub history: Option<usize>,
    /// Whether the tracing of the first process begins with a pause.
    pub paused: bool,
    /// The process, once it is known.
    pub tasks: Arc<OnceLock<Tasks>>,
}

/// The recorder, used by the table's thread alone.
fn locked(history: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// Returns a keeper of an empty table. `recycled` receives emptied buffers.
    pub fn new(source: Source, plan: KeeperPlan, recycled: rtrb::Producer<Vec<u64>>) -> Keeper {
        let Source { map, backlog } = source;
        let KeeperPlan { nframe, resolvers, begun, threads, replaced, member, names, history, paused, tasks } = plan;
        let adopted = member.as_ref().and_then(|member| Some((Arc::clone(&member.copies), member.adopted.flatten()?)));
        // An adopted session has counted from its beginning.
        let is_new = member.as_ref().is_none_or(|member| member.adopted.is_none());
        let counters = if is_new { Counters::read(&map).amid(threads) } else { Counters::default() };
        let mut table = Table::new(nframe, resolvers);
        table.set_forks(member.map(|member| Forks::new(member.copies, member.key)));
        if begun == Begun::Attach {
            table.begins_late();
        }
        table.said().pause(paused && is_new);
        let pool = map.arena().geometry().segments as usize * SEGMENT_WORDS;
        Keeper {
            map,
            nframe,
            resolvers,
            order: Order::of_pool(pool),
            backlog,
            table,
            mailbox: Mailbox::default(),
            image: Image::default(),
            begun,
            counters,
            open: HashMap::new(),
            counted: Counted::default(),
            watermark: 0,
            has_ended: false,
            is_helped: false,
            waiting: VecDeque::new(),
            recycled,
            replaced,
            adopted,
            inherited: None,
            names,
            named: 0,
            history_memory: history,
            tasks,
            history: None,
            wall: clock::now(),
        }
    }

    /// Waits for the copy of the parent's table at the fork, and continues with the copy. Only for
    /// forked children.
    fn inherit(&mut self) {
        let Some((copies, fork)) = self.adopted.take() else { return };
        let Some(fork_copy) = copies.claim(fork) else { return };
        let Some(table) = fork_copy.seed.grow() else { return };
        let forks = self.table.take_forks();
        self.table = table;
        self.table.set_forks(forks);
        self.inherited = Some(Inherited::of(&self.table, fork_copy.doubt));
    }

    /// Takes all waiting messages and requests. A drain that has died sends no End.
    fn work(&mut self, messages: &mut Inlet<Message>, requests: &mpsc::Receiver<Request>) -> Worked {
        let mut worked = Worked::Idle;
        while let Some(message) = messages.try_recv() {
            self.take(message);
            worked = Worked::Busy;
        }
        loop {
            match requests.try_recv() {
                Ok(request) => self.waiting.push_back(request),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Worked::Over,
            }
            worked = Worked::Busy;
        }
        self.answer_due();
        if self.table.copy_some(COPY_TIME) {
            worked = Worked::Busy;
        }
        if messages.is_finished() && !self.has_ended {
            self.take(Message::End);
            worked = Worked::Busy;
        }
        worked
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Begin(image) => {
                self.names.begin(image.number);
                self.image = image;
            }
            Message::Open { slot, tid, side, before } => {
                let ring = self.table.ring(tid, side);
                self.open.insert(slot, (ring.thread(), before));
                self.order.open(slot, ring);
            }
            Message::Words { slot, words } => self.order.push(slot, words, &mut self.table),
            Message::Name { tid, name } => self.table.threads_mut().name_by_tid(tid, name),
            Message::Corrupt { slot } => self.order.give_up(slot, &mut self.table),
            Message::Close { slot, counted } => {
                if let Some((thread, before)) = self.open.remove(&slot) {
                    let calls = counted.since(&before);
                    self.table.threads_mut().count(thread, &calls);
                    self.counted = self.counted.and(&calls);
                }
                self.order.close(slot);
            }
            Message::Mark(mark) => {
                self.wall = mark.wall;
                self.begin_history();
                let receiver = self.history.clone().map(|history| history as Arc<dyn OnMark>);
                self.table.said().look(mark.wall, receiver);
                self.watermark = self.order.advance(&mark, &mut self.table);
                for text in self.table.said().take_marks() {
                    self.mark(USER_MARK, &text);
                }
                if let Some(history) = &self.history {
                    locked(history).tick(mark.wall, &mut self.table);
                }
                self.show_objects();
                self.backlog.tell(self.order.waiting_words(), self.order.waiting());
                if let Some(answered) = self.table.take_answer() {
                    self.mailbox.post(&self.map, answered);
                }
                self.recycle();
                self.answer_due();
                if !self.is_helped {
                    self.table.copy_some(COPY_TIME);
                }
            }
            Message::Replaced => self.finish_image(),
            Message::End => {
                self.order.finish(&mut self.table);
                self.show_objects();
                self.has_ended = true;
                // Forks that were not reached so far will never be reached.
                self.table.set_forks(None);
            }
        }
    }

    fn recycle(&mut self) {
        for mut buffer in self.order.spent() {
            buffer.clear();
            // A full queue holds enough buffers.
            let _ = self.recycled.push(buffer);
        }
    }

    /// Tells the names about objects that are new since the last call.
    fn show_objects(&mut self) {
        let objects = self.table.modules().objects();
        if objects.len() > self.named {
            self.names.see(self.image.number, self.named, &objects[self.named..]);
            self.named = objects.len();
        }
    }

    fn finish_image(&mut self) {
        self.order.finish(&mut self.table);
        self.show_objects();
        self.named = 0;
        let cut = self.cut();
        let forks = self.table.take_forks();
        let mut next = Table::new(self.nframe, self.resolvers);
        next.said().pause(self.table.said().is_paused_by_operator());
        let table = std::mem::replace(&mut self.table, next);
        self.table.set_forks(forks);
        self.history = None;
        // The copy of a large table takes long, and the next program must not wait.
        let program = move || {
            drop(table);
            cut.wait()
        };
        let sent = self.replaced.as_ref().map(|replaced| replaced.send(Replaced::Program(Box::new(program))));
        if !matches!(sent, Some(Ok(()))) {
            tracing::warn!(image = self.image.number, "nobody writes the snapshot of a replaced program");
        }
        self.begun = Begun::Start;
        self.counters = Counters::read(&self.map);
        self.open.clear();
        self.counted = Counted::default();
    }

    /// Answers the questions that the watermark has come to.
    fn answer_due(&mut self) {
        if self.is_helped {
            return;
        }
        let until = if self.has_ended { u64::MAX } else { self.watermark };
        while self.waiting.front().is_some_and(|request| request.asked <= until)
            && let Some(request) = self.waiting.pop_front()
        {
            (request.answer)(self);
        }
    }

    /// Makes the live amount the peak.
    pub fn reset_peak(&mut self) {
        self.mark("reset-peak", "");
        self.table.reset_peak();
    }

    /// Forgets all traces.
    pub fn clear_traces(&mut self) {
        self.mark("clear-traces", "");
        if let Some(history) = &self.history {
            locked(history).before_clear(self.wall, &mut self.table);
        }
        self.table.clear_traces();
    }

    /// Pauses the tracing of the process, or resumes the tracing. Returns whether this changes
    /// anything.
    pub fn pause(&mut self, pauses: bool) -> bool {
        let changes = self.table.said().pause(pauses);
        if changes {
            self.mark(if pauses { "pause" } else { "resume" }, "");
        }
        changes
    }

    /// Begins the history of the present program, unless it has begun.
    fn begin_history(&mut self) {
        let Some(most) = self.history_memory.filter(|_| self.history.is_none()) else { return };
        let gauges = Gauges::new(Arc::clone(&self.map), Arc::clone(&self.tasks));
        let mut history = Recorder::begin(self.wall, most, gauges, &mut self.table);
        let kind = match self.begun {
            Begun::Attach => "attach",
            Begun::Fork => "fork",
            Begun::Start if self.image.number > 1 => "exec",
            Begun::Start => "start",
        };
        history.mark(self.wall, kind, "", &mut self.table);
        self.history = Some(Arc::new(Mutex::new(history)));
    }

    /// Puts a mark into the history.
    pub fn mark(&mut self, kind: &str, text: &str) {
        self.begin_history();
        if let Some(history) = &self.history {
            locked(history).mark(self.wall, kind, text, &mut self.table);
        }
    }

    /// Returns the history up to the last watermark. `taken` is the time of day of the watermark.
    fn history_at(&mut self, taken: SystemTime) -> Option<Recorded> {
        self.begin_history();
        if !self.has_ended {
            self.mark("snapshot", "");
        }
        let mut history = locked(self.history.as_ref()?);
        let begun = history.begun();
        let history = history.history(self.wall, taken, sys::utc_offset(taken), &mut self.table);
        Some(Recorded { history, begun })
    }

    /// Returns the sums and counters.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::of(&self.table, &self.image, &self.map, &self.counters, self.inherited.as_ref());
        figures.begun = self.begun;
        let interval = self.map.arena().header().session.sample.load(Ordering::Relaxed);
        if interval != 0 {
            let counted = self.calls().fold(self.counted, |sum, (_, calls)| sum.and(&calls));
            figures.estimate(&self.table, interval, &counted);
        }
        figures
    }

    /// Threads with open rings, and their calls.
    fn calls(&self) -> impl Iterator<Item = (u32, Counted)> {
        self.open.iter().filter_map(|(&slot, (thread, before))| {
            Some((*thread, Counted::read(self.map.arena().slot(slot)?).since(before)))
        })
    }

    /// Begins a copy of the whole table at this instant.
    pub fn cut(&mut self) -> OpenCut {
        let figures = self.figures();
        let recorded = self.history_at(figures.taken);
        let mut cut = OpenCut::of(&mut self.table, figures, recorded, self.nframe);
        for (thread, calls) in self.calls() {
            if let Some(thread) = cut.threads_mut().get_mut(thread as usize) {
                thread.counted = thread.counted.and(&calls);
            }
        }
        cut
    }

    /// Number of the present program.
    pub fn image(&self) -> u32 {
        self.image.number
    }

    /// Begins a copy of the native blocks at this instant. All blocks in the copy are born in spans
    /// before the present one.
    pub fn native(&mut self) -> Option<NativeCut> {
        if let Some(history) = &self.history {
            locked(history).end_step_here(self.wall, &mut self.table);
        }
        let (_, copy) = self.table.copy().into_iter().find(|(domain, _)| *domain == Domain::Native)?;
        let ranges = self.table.ranges().live(Domain::Mmap);
        let modules = self.table.modules();
        let loaded = (0..).zip(modules.objects()).filter(|&(index, _)| modules.is_loaded(index));
        Some(NativeCut {
            copy,
            tree: self.table.stacks().tree().clone(),
            ranges: ranges.iter().map(|range| (range.address, range.address + range.size)).collect(),
            objects: loaded.map(|(_, object)| (object.start, object.end)).collect(),
            in_realloc: self.table.heap().in_realloc(),
            present: self.history.as_ref().map(|_| self.table.births().now()),
            figures: self.figures(),
        })
    }

    /// Whether native blocks of these addresses and stacks are live, in order.
    pub fn are_live(&self, blocks: &[(u64, u32)]) -> Vec<bool> {
        let block = |address| self.table.heap().block(address);
        blocks.iter().map(|&(address, stack)| block(address).is_some_and(|block| block.stack == stack)).collect()
    }

    /// Returns the frames of a stack, the most recent first.
    pub fn frames(&self, stack: u32) -> Vec<FoundFrame> {
        let modules = self.table.modules();
        let frames = self.table.stacks().tree().walk(stack).map(|frame| {
            if let Some((code, offset)) = as_python_frame(frame.address) {
                let unknown = || FoundFrame::Python("<unknown>".to_owned(), 0, "<unknown>".to_owned());
                let known =
                    |code: &Arc<Code>| FoundFrame::Python(code.filename.clone(), code.line(offset), code.name.clone());
                return self.table.codes().get(code).map_or_else(unknown, known);
            }
            let found = frame.module(modules).and_then(|index| {
                let object = modules.objects().get(index as usize)?;
                Some(FoundObject { index, path: self.image.path_of(&object.path), bias: object.bias })
            });
            FoundFrame::Native(frame.address, found)
        });
        frames.collect()
    }

    /// Returns the live block at an address.
    pub fn lookup(&self, address: u64) -> Option<FoundBlock> {
        // A Python object with a native block of its own has the address of the block: the outer
        // layer knows more, and comes last. A range contains many addresses and knows least.
        let found = self.table.heaps().filter_map(|(domain, heap)| Some((domain, heap.block(address)?)));
        let (domain, block) = found.last().or_else(|| self.table.ranges().find(address))?;
        let thread = self.table.threads().get(block.thread)?;
        let tree = self.table.stacks().tree();
        // The table holds the represented bytes of a sample. The answer gives the block's own size.
        let size = self.table.stacks().sample(block.stack).map_or(block.size, |sample| sample.size);
        Some(FoundBlock {
            domain,
            block: Block { size, ..block },
            thread: (thread.tid, thread.name.clone()),
            frames: self.frames(block.stack),
            image: self.image.number,
            total_nframe: tree.stacks.get(block.stack as usize).map_or(0, |stack| stack.total_nframe),
        })
    }
}
