//! The thread that keeps the table: it receives what the drain found, applies it, and answers questions.
//!
//! A question is answered at a watermark that is not older than the question, so each answer is a consistent cut that
//! includes all that had happened when it was asked.

use crate::base::queue::Inlet;
use crate::process::image::Image;
use crate::questions::backlog::Backlog;
use crate::questions::mailbox::Mailbox;
use crate::session::arena_map::ArenaMap;
use crate::session::counted::Counted;
use crate::snapshot::cut::{Counters, Cut, Figures, Inherited};
use crate::snapshot::replaced::Replaced;
use crate::table::fork_copies::{Fork, ForkCopies, TreeMember};
use crate::table::forks::Forks;
use crate::table::live::Block;
use crate::table::messages::Message;
use crate::table::order::Order;
use crate::table::{Ring, Table};
use crossbeam_utils::sync::Parker;
use heapline_shared_format::arena::SEGMENT_WORDS;
use heapline_shared_format::event::as_python_frame;
use heapline_shared_format::snapshot::{Code, Domain};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The numbers.
    Figures,
    /// Everything.
    Cut,
    /// The peak shall become what is live now.
    ResetPeak,
    /// All traces shall be forgotten.
    ClearTraces,
    /// The live block at an address.
    Lookup(u64),
}

/// The answers, in the same order.
#[derive(Debug)]
pub enum Answer {
    /// To [`Question::Figures`].
    Figures(Box<Figures>),
    /// To [`Question::Cut`].
    Cut(Box<Cut>),
    /// To [`Question::ResetPeak`] and [`Question::ClearTraces`].
    Done,
    /// To [`Question::Lookup`].
    Found(Option<Box<FoundBlock>>),
}

/// A live block and where it came from.
#[derive(Clone, Debug)]
pub struct FoundBlock {
    /// Whose it is.
    pub domain: Domain,
    /// The block.
    pub block: Block,
    /// Id and name of the thread that allocated it.
    pub thread: (u32, String),
    /// The most recent first.
    pub frames: Vec<FoundFrame>,
    /// True depth of the stack.
    pub total_nframe: u16,
}

/// A frame of a block's traceback, as far as it is known without symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundFrame {
    /// A return address, with path and bias of its object.
    Native(u64, Option<(String, u64)>),
    /// File, line and function.
    Python(String, u32, String),
}

/// A question on its way.
#[derive(Debug)]
pub struct Request {
    /// Stamp of the time of asking.
    pub asked: u64,
    /// The question.
    pub question: Question,
    /// Where the answer goes.
    pub reply: mpsc::Sender<Answer>,
}

/// See the module.
pub struct Keeper {
    map: Arc<ArenaMap>,
    nframe: u32,
    resolvers: usize,
    order: Order<Ring>,
    backlog: Arc<Backlog>,
    table: Table,
    mailbox: Mailbox,
    image: Image,
    /// When the table was empty.
    counters: Counters,
    /// The rings that are open: whose, and what was counted in their slots before.
    open: HashMap<u32, (u32, Counted)>,
    /// Calls of threads that have ended.
    counted: Counted,
    watermark: u64,
    has_ended: bool,
    /// Another thread than its own is at it.
    is_helped: bool,
    waiting: VecDeque<Request>,
    recycled: rtrb::Producer<Vec<u64>>,
    replaced: Option<SyncSender<Replaced>>,
    /// Where the table is to come from.
    adopted: Option<(Arc<ForkCopies>, Fork)>,
    inherited: Option<Inherited>,
}

/// What came of a look at the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worked {
    /// Something was there.
    Busy,
    /// Nothing was there.
    Idle,
    /// Nobody can ask any more.
    Over,
}

/// The keeper and what comes to it. Its own thread works here; while the target asks short questions and waits for the answers
/// the drain's thread does, since waking another takes longer than answering. None when that thread has ended, or has
/// panicked: then nobody takes messages or answers any more, which is noticed at the other ends.
#[derive(Clone)]
pub struct SharedKeeper(Arc<Mutex<Option<KeeperState>>>);

/// A keeper, and the two ways to it.
struct KeeperState {
    keeper: Keeper,
    messages: Inlet<Message>,
    requests: mpsc::Receiver<Request>,
}

/// Clears the shared when its thread leaves, in whatever way.
struct Leave<'d>(&'d SharedKeeper);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl SharedKeeper {
    /// A shared for what comes by two ways.
    pub fn new(keeper: Keeper, messages: Inlet<Message>, requests: mpsc::Receiver<Request>) -> SharedKeeper {
        SharedKeeper(Arc::new(Mutex::new(Some(KeeperState { keeper, messages, requests }))))
    }

    /// Works until nobody can ask any more. `parker` is what those wake who send something.
    pub fn run(&self, parker: &Parker) {
        let _leave = Leave(self);
        if let Ok(mut state) = self.0.lock()
            && let Some(state) = &mut *state
        {
            state.keeper.inherit();
        }
        loop {
            // A helper that has panicked has left the table in any state.
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

    /// Takes what was drained, for the target's sake; the operator's questions, and ends of programs, which take long, are left to
    /// the keeper's own thread. False when that has to be woken.
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

/// Buffers that go back to the drain; larger heaps of them would only hold memory.
pub const RECYCLED_BUFFERS: usize = 64;

impl Keeper {
    /// A keeper of an empty table, with so many threads to look blocks up, for a process with so many. Emptied buffers go to `recycled`, the last
    /// state of programs that exec has replaced to `replaced`.
    pub fn new(
        (map, backlog): (Arc<ArenaMap>, Arc<Backlog>),
        nframe: u32,
        (resolvers, threads): (usize, usize),
        recycled: rtrb::Producer<Vec<u64>>,
        replaced: Option<SyncSender<Replaced>>,
        member: Option<TreeMember>,
    ) -> Keeper {
        let adopted = member.as_ref().and_then(|member| Some((Arc::clone(&member.copies), member.adopted.flatten()?)));
        // A session that goes on has counted from its beginning.
        let is_new = member.as_ref().is_none_or(|member| member.adopted.is_none());
        let counters = if is_new { Counters::read(&map).amid(threads) } else { Counters::default() };
        let mut table = Table::new(nframe, resolvers);
        table.set_forks(member.map(|member| Forks::new(member.copies, member.key)));
        if threads > 0 {
            table.begins_late();
        }
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
        }
    }

    /// A forked child's table begins with what is live in its parent's at the fork. Waits for that.
    fn inherit(&mut self) {
        let Some((copies, fork)) = self.adopted.take() else { return };
        let Some(fork_copy) = copies.claim(fork) else { return };
        let forks = self.table.take_forks();
        self.table = fork_copy.table;
        self.table.set_forks(forks);
        self.inherited = Some(Inherited::of(&self.table, fork_copy.doubt));
    }

    /// Takes all that has come. A drain that has died sends no End.
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
        if messages.is_finished() && !self.has_ended {
            self.take(Message::End);
            worked = Worked::Busy;
        }
        worked
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Begin(image) => self.image = image,
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
                self.watermark = self.order.advance(&mark, &mut self.table);
                self.backlog.tell(self.order.waiting_words(), self.order.waiting());
                if let Some(answered) = self.table.take_answer() {
                    self.mailbox.post(&self.map, answered);
                }
                self.recycle();
                self.answer_due();
            }
            Message::Replaced => self.finish_image(),
            Message::End => {
                self.order.finish(&mut self.table);
                self.has_ended = true;
                // Forks that were not seen will not be.
                self.table.set_forks(None);
            }
        }
    }

    fn recycle(&mut self) {
        for mut buffer in self.order.spent() {
            buffer.clear();
            // A full queue means that there are enough.
            let _ = self.recycled.push(buffer);
        }
    }

    fn finish_image(&mut self) {
        self.order.finish(&mut self.table);
        let cut = self.cut();
        let sent = self.replaced.as_ref().map(|replaced| replaced.send(Replaced::Program(Box::new(cut))));
        if !matches!(sent, Some(Ok(()))) {
            tracing::warn!(image = self.image.number, "nobody writes the snapshot of a replaced program");
        }
        let forks = self.table.take_forks();
        self.table = Table::new(self.nframe, self.resolvers);
        self.table.set_forks(forks);
        self.counters = Counters::read(&self.map);
        self.open.clear();
        self.counted = Counted::default();
    }

    fn answer_due(&mut self) {
        if self.is_helped {
            return;
        }
        while let Some(request) = self.waiting.front()
            && (self.has_ended || request.asked <= self.watermark)
        {
            let question = request.question;
            let answer = self.answer(question);
            if let Some(request) = self.waiting.pop_front() {
                // Whoever asked may have left.
                let _ = request.reply.send(answer);
            }
        }
    }

    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Figures => Answer::Figures(Box::new(self.figures())),
            Question::Cut => Answer::Cut(Box::new(self.cut())),
            Question::ResetPeak => {
                self.table.reset_peak();
                Answer::Done
            }
            Question::ClearTraces => {
                self.table.clear_traces();
                Answer::Done
            }
            Question::Lookup(address) => Answer::Found(self.lookup(address).map(Box::new)),
        }
    }

    fn figures(&self) -> Figures {
        let mut figures = Figures::of(&self.table, &self.image, &self.map, &self.counters, self.inherited.as_ref());
        let interval = self.map.arena().header().session.sample.load(Ordering::Relaxed);
        if interval != 0 {
            let counted = self.calls().fold(self.counted, |sum, (_, calls)| sum.and(&calls));
            figures.estimate(&self.table, interval, &counted);
        }
        figures
    }

    /// Threads that have rings, and their calls.
    fn calls(&self) -> impl Iterator<Item = (u32, Counted)> {
        self.open.iter().filter_map(|(&slot, (thread, before))| {
            Some((*thread, Counted::read(self.map.arena().slot(slot)?).since(before)))
        })
    }

    fn cut(&self) -> Cut {
        let begun = Instant::now();
        let mut cut = self.backlog.amid_copy(|| Cut::of(&self.table, self.figures(), self.nframe));
        for (thread, calls) in self.calls() {
            if let Some(thread) = cut.threads.get_mut(thread as usize) {
                thread.counted = thread.counted.and(&calls);
            }
        }
        tracing::info!(pause = ?begun.elapsed(), blocks = cut.layers.iter().map(|layer| layer.live.len()).sum::<usize>(), "copied the table");
        cut
    }

    fn lookup(&self, address: u64) -> Option<FoundBlock> {
        // An object that has a native block to itself has its address too: the outer layer knows more. A range has all the
        // addresses in it, and knows least.
        let found = self.table.heaps().filter_map(|(domain, heap)| Some((domain, heap.block(address)?)));
        let (domain, block) = found.last().or_else(|| self.table.ranges().find(address))?;
        let thread = self.table.threads().get(block.thread)?;
        let tree = self.table.stacks().tree();
        let modules = self.table.modules();
        let frames = tree.walk(block.stack).map(|frame| {
            if let Some((code, offset)) = as_python_frame(frame.address) {
                let unknown = || FoundFrame::Python("<unknown>".to_owned(), 0, "<unknown>".to_owned());
                let known =
                    |code: &Arc<Code>| FoundFrame::Python(code.filename.clone(), code.line(offset), code.name.clone());
                return self.table.codes().get(code).map_or_else(unknown, known);
            }
            let module = frame.module(modules);
            let object = module.and_then(|module| modules.objects().get(module as usize));
            let path = object.map(|object| (self.image.path_of(&object.path), object.bias));
            FoundFrame::Native(frame.address, path)
        });
        // Of a sample the table has the bytes that it stands for.
        let size = self.table.stacks().sample(block.stack).map_or(block.size, |sample| sample.size);
        Some(FoundBlock {
            domain,
            block: Block { size, ..block },
            thread: (thread.tid, thread.name.clone()),
            frames: frames.collect(),
            total_nframe: tree.stacks.get(block.stack as usize).map_or(0, |stack| stack.total_nframe),
        })
    }
}
