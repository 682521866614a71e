//! All distinct tracebacks, as a tree of frames, and the stack ids of each ring.
//!
//! A frame is a return address together with the module at this address. Frames of a loaded module
//! are found by address alone. When the module is unloaded, its frames are sealed to the module.
//! From then on the same address is a new frame.

use super::modules::Modules;
use crate::base::chunks::Chunks;
use crate::table::order::Corrupt;
use hashbrown::{HashMap, HashTable};
use heapline_shared_format::event::{BY_FRAME_POINTER, as_native_frame, domain};
use heapline_shared_format::snapshot::{Ancestor, Mixed, Sampled, Stack};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Index of a missing parent or a missing leaf.
pub const NONE: u32 = u32::MAX;
/// Stack of blocks with unknown traceback: no frames, truncated.
pub const EMPTY: u32 = 0;
/// Most nodes, frames and stacks. Further stacks become the empty stack, and are counted.
const MAX_NODES: usize = 1 << 27;
/// Deepest stack of a ring. No collector walks as deep.
const MAX_DEPTH: usize = 1 << 20;

/// A frame of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeFrame {
    /// Return address.
    pub address: u64,
    /// Whether the walk left the frame by its frame pointer.
    pub by_frame_pointer: bool,
    /// Index of the module after unloading. [`NONE`] while the address identifies the module.
    pub sealed_to: u32,
}

impl CodeFrame {
    /// Returns the frame of a word of a STACK record.
    fn of_word(word: u64) -> CodeFrame {
        let (address, by_frame_pointer) = as_native_frame(word);
        CodeFrame { address, by_frame_pointer, sealed_to: NONE }
    }

    /// Returns the word of the frame in a STACK record.
    fn word(self) -> u64 {
        self.address | if self.by_frame_pointer { BY_FRAME_POINTER } else { 0 }
    }

    /// Index of the module that contains the frame.
    pub fn module(self, modules: &Modules) -> Option<u32> {
        if self.sealed_to == NONE { modules.find(self.address) } else { Some(self.sealed_to) }
    }
}

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeNode {
    /// Node of the caller, or [`NONE`].
    pub parent: u32,
    /// Index of the frame.
    pub frame: u32,
}

/// Tables copied by a snapshot. A copy shares nearly all rows.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Frames by index.
    pub frames: Chunks<CodeFrame>,
    /// Nodes by index; a parent comes before its children.
    pub nodes: Chunks<TreeNode>,
    /// Tracebacks by index.
    pub stacks: Chunks<Stack>,
    /// Python stacks beside native stacks, by rising native stack.
    pub mixed: Chunks<Mixed>,
    /// Stacks of samples, by rising stack.
    pub sampled: Chunks<Sampled>,
}

impl Tree {
    /// Whether the blocks of a stack are samples.
    pub fn is_sampled(&self, stack: u32) -> bool {
        self.sample(stack).is_some()
    }

    /// Returns interval and size of a stack's samples. None if the blocks of the stack are no
    /// samples.
    pub fn sample(&self, stack: u32) -> Option<Sampled> {
        self.sampled.find_by_key(stack, |row| row.stack).copied()
    }

    /// Returns the Python stack beside a native stack.
    fn python(&self, stack: u32) -> Option<u32> {
        self.mixed.find_by_key(stack, |row| row.stack).map(|row| row.python)
    }

    /// The frames of a stack, the most recent first.
    pub fn walk(&self, stack: u32) -> impl Iterator<Item = CodeFrame> + '_ {
        let leaf = self.stacks.get(stack as usize).and_then(|stack| stack.leaf);
        let nodes = std::iter::successors(leaf, |&node| Some(self.nodes[node as usize].parent).filter(|&p| p != NONE));
        nodes.map(|node| self.frames[self.nodes[node as usize].frame as usize])
    }
}

/// Origin of the samples in a table.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Number of the table. No other table of any run has the same number.
    pub by: u64,
    /// Tables copied on the way to this table, the oldest first.
    pub ancestors: Vec<Ancestor>,
    /// First stack made after the last fork. Samples of lower stacks may also be in other tables.
    pub shared_end: u32,
}

impl Default for Drawn {
    fn default() -> Drawn {
        Drawn { by: new_number(), ancestors: Vec::new(), shared_end: 0 }
    }
}

/// Returns a number given to no other table. Numbers of one run are consecutive, from a random
/// start.
fn new_number() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let first = FIRST.get_or_init(|| RandomState::new().hash_one("draws"));
    first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed))
}

/// Most sampled stacks for which a table still begins new sampled stacks at each fork. Beyond the
/// limit, a sample may be mistaken for a copy of an earlier sample at the same address. The mistake
/// makes confidence intervals wider, and nothing wrong.
const MAX_ROTATED: usize = 1 << 18;

/// All distinct tracebacks of a table, with the indexes for finding them.
pub struct Stacks {
    tree: Tree,
    drawn: Drawn,
    /// Frames of loaded modules, and of code in no module, by word in a STACK record.
    by_word: HashMap<u64, u32>,
    /// Frames of unloaded modules, by module, for the return of a module.
    sealed: HashMap<u32, Vec<u32>>,
    node_index: HashTable<u32>,
    stack_index: HashMap<StackKey, u32>,
    /// Sampled stacks, by walked stack, interval and size.
    sampled_index: HashMap<(u32, u64, u64), u32>,
    /// Frames kept of a stack, by domain.
    nframe: [usize; domain::COUNT],
    /// Changes when frames are sealed or unsealed, and when Python's tracebacks become longer.
    /// Nodes remembered by rings are invalid after a change.
    generation: u64,
}

/// Leaf, depth, truncated, and the Python stack beside the native stack, or [`NONE`].
type StackKey = (u32, u16, bool, u32);

/// Stack ids of one ring.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Last definition, by domain.
    last: [Last; domain::COUNT],
    /// Entry for each id: stack, and in the bits above the domain of the blocks. [`NONE`] for an
    /// undefined id.
    ids: Vec<u32>,
    defined: usize,
}

/// The last definition for a domain.
#[derive(Debug, Default)]
struct Last {
    /// Words of the frames, the oldest frame first.
    frames: Vec<u64>,
    /// Nodes of the tree for a prefix of `frames`.
    nodes: Vec<u32>,
    generation: u64,
}

const STACK_BITS: u32 = 27;
const _: () = assert!(MAX_NODES <= 1 << STACK_BITS && domain::COUNT < 1 << (u32::BITS - STACK_BITS));

/// One STACK record.
#[derive(Clone, Copy, Debug)]
pub struct Definition<'a> {
    /// The defined id. Not used if `more` is set.
    pub id: u32,
    /// Number of frames kept of the last definition, from the root.
    pub keep: u32,
    /// True depth of the stack.
    pub total: u32,
    /// Whether the walk ended before the root.
    pub truncated: bool,
    /// Whether the definition goes on in the next record.
    pub more: bool,
    /// Domain of the blocks allocated by the stack.
    pub domain: u8,
    /// Frames above the kept frames, the oldest first.
    pub frames: &'a [u64],
}

/// What the stacks of a forked child begin with ([`Stacks::fork`]).
pub struct Seed {
    tree: Tree,
    drawn: Drawn,
    nframe: [usize; domain::COUNT],
}

impl Seed {
    /// Returns the stacks, with new indexes.
    pub fn grow(self) -> Stacks {
        let Seed { tree, drawn, nframe } = self;
        let (mut by_word, mut sealed) = (HashMap::new(), HashMap::<u32, Vec<u32>>::new());
        for (index, frame) in (0..).zip(tree.frames.iter()) {
            match frame.sealed_to {
                NONE => drop(by_word.insert(frame.word(), index)),
                module => sealed.entry(module).or_default().push(index),
            }
        }
        let mut node_index = HashTable::with_capacity(tree.nodes.len());
        for (index, node) in (0..).zip(tree.nodes.iter()) {
            node_index.insert_unique(hash(node), index, |&i: &u32| hash(&tree.nodes[i as usize]));
        }
        let mut stack_index = HashMap::with_capacity(tree.stacks.len());
        for (index, &Stack { leaf, total_nframe, truncated }) in (0..).zip(tree.stacks.iter()) {
            // A stack of samples has the leaf of the walked stack.
            if !tree.is_sampled(index) {
                let python = tree.python(index).unwrap_or(NONE);
                stack_index.insert((leaf.unwrap_or(NONE), total_nframe, truncated, python), index);
            }
        }
        let sampled_index = HashMap::new();
        Stacks { tree, drawn, by_word, sealed, node_index, stack_index, sampled_index, nframe, generation: 0 }
    }
}

impl Definitions {
    /// Returns the stack for an id of the ring, and the domain of the allocated blocks.
    #[inline]
    pub fn get(&self, id: u32) -> Option<(u32, u8)> {
        let entry = self.ids.get(id as usize).copied().filter(|&entry| entry != NONE)?;
        Some((entry & ((1 << STACK_BITS) - 1), (entry >> STACK_BITS) as u8))
    }

    /// Sets the stack of an id. Ids are dense: an id far above the number of ids is invalid, and
    /// must not make the table grow.
    fn set(&mut self, id: u32, stack: u32, domain: u8) -> Result<(), Corrupt> {
        let id = id as usize;
        if id >= self.ids.len() {
            self.defined += 1;
            if id > 2 * self.defined + 4096 {
                return Err(Corrupt);
            }
            self.ids.resize(id + 1, NONE);
        }
        self.ids[id] = stack | u32::from(domain) << STACK_BITS;
        Ok(())
    }
}

impl Stacks {
    /// Returns a table that keeps the most recent `nframe` frames of each stack.
    pub fn new(nframe: u32) -> Stacks {
        let mut stacks = Stacks {
            tree: Tree::default(),
            drawn: Drawn::default(),
            by_word: HashMap::new(),
            sealed: HashMap::new(),
            node_index: HashTable::new(),
            stack_index: HashMap::new(),
            sampled_index: HashMap::new(),
            nframe: [nframe as usize; domain::COUNT],
            generation: 0,
        };
        stacks.stack((NONE, 0, true, NONE));
        stacks
    }

    /// Approximate number of bytes taken by the tables.
    pub fn bytes(&self) -> usize {
        let Tree { frames, nodes, stacks, mixed, sampled } = &self.tree;
        // Each of these four has an entry in a hash table too.
        2 * (frames.bytes() + nodes.bytes() + stacks.bytes() + sampled.bytes()) + mixed.bytes()
    }

    /// Returns what the stacks of a forked child begin with.
    ///
    /// From the fork on, parent and child use different stacks for samples. So a stack identifies
    /// the process that drew the samples, and the two forks around the time of drawing. No two of
    /// these samples share an address.
    pub fn fork(&mut self) -> Seed {
        let end = u32::try_from(self.tree.stacks.len()).unwrap_or(NONE);
        self.drawn.shared_end = end;
        if self.tree.sampled.len() < MAX_ROTATED {
            self.sampled_index.clear();
        }
        let mut drawn = self.drawn.clone();
        drawn.ancestors.push(Ancestor { by: self.drawn.by, end });
        drawn.by = new_number();
        Seed { tree: self.tree.clone(), drawn, nframe: self.nframe }
    }

    /// Origin of the samples.
    pub fn drawn(&self) -> &Drawn {
        &self.drawn
    }

    /// The tables.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Keeps at least `nframe` frames of each Python stack defined from now on.
    pub fn keep_python(&mut self, nframe: u32) {
        let kept = &mut self.nframe[usize::from(domain::PYTHON)];
        if *kept < nframe as usize {
            *kept = nframe as usize;
            // Rings remember nodes of shorter stacks.
            self.generation += 1;
        }
    }

    /// Defines a native stack of a thread that runs Python. Returns false if the tables are full.
    pub fn mix(&mut self, ring: &mut Definitions, id: u32, native: u32, python: u32) -> Result<bool, Corrupt> {
        let ((native, domain::NATIVE), (python, domain::PYTHON)) =
            (ring.get(native).ok_or(Corrupt)?, ring.get(python).ok_or(Corrupt)?)
        else {
            return Err(Corrupt);
        };
        let Stack { leaf, total_nframe, truncated } = self.tree.stacks[native as usize];
        let before = self.tree.stacks.len();
        let stack = self.stack((leaf.unwrap_or(NONE), total_nframe, truncated, python));
        if let Some(stack) = stack
            && self.tree.stacks.len() > before
        {
            self.tree.mixed.push(Mixed { stack, python });
        }
        ring.set(id, stack.unwrap_or(EMPTY), domain::NATIVE)?;
        Ok(stack.is_some())
    }

    /// Returns the stack of samples allocated by `stack` with this size and interval. None if the
    /// tables are full.
    pub fn sampled(&mut self, stack: u32, interval: u64, size: u64) -> Option<u32> {
        if let Some(&found) = self.sampled_index.get(&(stack, interval, size)) {
            return Some(found);
        }
        let index = next_index(self.tree.stacks.len())?;
        let walked = self.tree.stacks[stack as usize];
        self.tree.stacks.push(walked);
        self.tree.sampled.push(Sampled { stack: index, interval, size });
        if let Some(python) = self.tree.python(stack) {
            self.tree.mixed.push(Mixed { stack: index, python });
        }
        self.sampled_index.insert((stack, interval, size), index);
        Some(index)
    }

    /// Returns interval and size of a stack's samples. None if the blocks of the stack are no
    /// samples.
    pub fn sample(&self, stack: u32) -> Option<Sampled> {
        self.tree.sample(stack)
    }

    /// Defines a stack of a ring. Returns false if the tables are full: the id then means the empty
    /// stack.
    pub fn define(&mut self, ring: &mut Definitions, record: Definition<'_>) -> Result<bool, Corrupt> {
        let keep = record.keep as usize;
        let last = ring.last.get_mut(usize::from(record.domain)).ok_or(Corrupt)?;
        if keep > last.frames.len() || keep + record.frames.len() > MAX_DEPTH {
            return Err(Corrupt);
        }
        last.frames.truncate(keep);
        last.nodes.truncate(keep);
        last.frames.extend_from_slice(record.frames);
        if record.more {
            return Ok(true);
        }
        let total_nframe = u16::try_from(record.total).unwrap_or(u16::MAX);
        let leaf = self.leaf(last, self.nframe[usize::from(record.domain)]);
        let stack = leaf.and_then(|leaf| self.stack((leaf, total_nframe, record.truncated, NONE)));
        ring.set(record.id, stack.unwrap_or(EMPTY), record.domain)?;
        Ok(stack.is_some())
    }

    /// Seals the frames of an unloaded module, from `start` to `end` (return addresses).
    pub fn seal(&mut self, module: u32, start: u64, end: u64) {
        let frames = &mut self.tree.frames;
        let sealed = self.sealed.entry(module).or_default();
        self.by_word.retain(|&word, &mut frame| {
            let (address, _) = as_native_frame(word);
            let inside = address > start && address <= end;
            if inside && let Some(entry) = frames.get_mut(frame as usize) {
                entry.sealed_to = module;
                sealed.push(frame);
            }
            !inside
        });
        self.generation += 1;
    }

    /// Unseals the frames of a module that is loaded again: the frames are found by address once
    /// more.
    pub fn unseal(&mut self, module: u32) {
        for frame in self.sealed.remove(&module).unwrap_or_default() {
            if let Some(entry) = self.tree.frames.get_mut(frame as usize) {
                entry.sealed_to = NONE;
                self.by_word.insert(entry.word(), frame);
            }
        }
        self.generation += 1;
    }

    /// Returns the node of the last frame of a ring's definition. None if the tables are full.
    fn leaf(&mut self, ring: &mut Last, nframe: usize) -> Option<u32> {
        let depth = ring.frames.len();
        let first = depth.saturating_sub(nframe);
        if first > 0 {
            // The stack is cut at the root, so the nodes of the whole stack are of no use.
            ring.nodes.clear();
            return self.extend(NONE, &ring.frames[first..], |_| ());
        }
        if ring.generation != self.generation {
            ring.generation = self.generation;
            ring.nodes.clear();
        }
        let known = ring.nodes.len();
        let parent = ring.nodes.last().copied().unwrap_or(NONE);
        let nodes = &mut ring.nodes;
        self.extend(parent, &ring.frames[known..], |node| nodes.push(node))
    }

    fn extend(&mut self, parent: u32, frames: &[u64], mut each: impl FnMut(u32)) -> Option<u32> {
        frames.iter().try_fold(parent, |parent, &word| {
            let frame = self.frame(word)?;
            let node = self.node(TreeNode { parent, frame })?;
            each(node);
            Some(node)
        })
    }

    fn frame(&mut self, word: u64) -> Option<u32> {
        if let Some(&frame) = self.by_word.get(&word) {
            return Some(frame);
        }
        let frame = next_index(self.tree.frames.len())?;
        self.tree.frames.push(CodeFrame::of_word(word));
        self.by_word.insert(word, frame);
        Some(frame)
    }

    fn node(&mut self, node: TreeNode) -> Option<u32> {
        let nodes = &mut self.tree.nodes;
        if let Some(&found) = self.node_index.find(hash(&node), |&i| nodes[i as usize] == node) {
            return Some(found);
        }
        let index = next_index(nodes.len())?;
        nodes.push(node);
        self.node_index.insert_unique(hash(&node), index, |&i| hash(&nodes[i as usize]));
        Some(index)
    }

    fn stack(&mut self, key: StackKey) -> Option<u32> {
        if let Some(&stack) = self.stack_index.get(&key) {
            return Some(stack);
        }
        let (leaf, total_nframe, truncated, _) = key;
        let index = next_index(self.tree.stacks.len())?;
        self.tree.stacks.push(Stack { leaf: (leaf != NONE).then_some(leaf), total_nframe, truncated });
        self.stack_index.insert(key, index);
        Some(index)
    }
}

fn next_index(len: usize) -> Option<u32> {
    u32::try_from(len).ok().filter(|_| len < MAX_NODES)
}

fn hash(node: &TreeNode) -> u64 {
    let product = (u64::from(node.parent) << 32 | u64::from(node.frame)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}
