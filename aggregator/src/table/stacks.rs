//! All distinct tracebacks, as a tree of frames, and each ring's way of naming them.
//!
//! A frame is a return address together with the module that was there. While a module is loaded its frames are found
//! by address alone; when it goes they are sealed to it, and the same address is a new frame from then on.

use super::modules::Modules;
use crate::table::order::Corrupt;
use hashbrown::{HashMap, HashTable};
use heapline_shared_format::event::domain;
use heapline_shared_format::snapshot::{Ancestor, Mixed, Sampled, Stack};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// No parent, or no leaf.
pub const NONE: u32 = u32::MAX;
/// The stack of blocks whose traceback is not known: no frames, truncated.
pub const EMPTY: u32 = 0;
/// Most nodes, frames and stacks. What comes later goes to the empty stack, and is counted.
const MAX_NODES: usize = 1 << 27;
/// Deepest stack of a ring. No collector walks as far.
const MAX_DEPTH: usize = 1 << 20;

/// A frame of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeFrame {
    /// Return address.
    pub address: u64,
    /// The module, once it was unloaded; [`NONE`] while the address says it.
    pub sealed_to: u32,
}

impl CodeFrame {
    /// Index of the module that the frame lies in.
    pub fn module(self, modules: &Modules) -> Option<u32> {
        if self.sealed_to == NONE { modules.find(self.address) } else { Some(self.sealed_to) }
    }
}

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeNode {
    /// The caller's node, or [`NONE`].
    pub parent: u32,
    /// Index of the frame.
    pub frame: u32,
}

/// The tables that a snapshot copies.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Frames by index.
    pub frames: Vec<CodeFrame>,
    /// Nodes by index; a parent comes before its children.
    pub nodes: Vec<TreeNode>,
    /// Tracebacks by index.
    pub stacks: Vec<Stack>,
    /// What Python ran at native stacks, by rising stack.
    pub mixed: Vec<Mixed>,
    /// Stacks of samples, by rising stack.
    pub sampled: Vec<Sampled>,
}

impl Tree {
    /// Whether the blocks of a stack are samples.
    pub fn is_sampled(&self, stack: u32) -> bool {
        self.sampled.binary_search_by_key(&stack, |row| row.stack).is_ok()
    }

    /// The frames of a stack, the most recent first.
    pub fn walk(&self, stack: u32) -> impl Iterator<Item = CodeFrame> + '_ {
        let leaf = self.stacks.get(stack as usize).and_then(|stack| stack.leaf);
        let nodes = std::iter::successors(leaf, |&node| Some(self.nodes[node as usize].parent).filter(|&p| p != NONE));
        nodes.map(|node| self.frames[self.nodes[node as usize].frame as usize])
    }
}

/// Who has drawn the samples of a table.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Stands for the table: no other has the number, in any run.
    pub by: u64,
    /// Those that the table was copied from, the oldest first.
    pub ancestors: Vec<Ancestor>,
    /// Samples of stacks below are from before a fork: other tables may have them too.
    pub shared_end: u32,
}

impl Default for Drawn {
    fn default() -> Drawn {
        Drawn { by: new_number(), ancestors: Vec::new(), shared_end: 0 }
    }
}

/// A number that was given to no other table: this run's are in a row, which begins anywhere.
fn new_number() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let first = FIRST.get_or_init(|| RandomState::new().hash_one("draws"));
    first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed))
}

/// Stacks of samples in a table that begins a new row of them at each fork. Beyond, a sample may be
/// taken for a copy of an earlier one at the same place, which makes intervals wider and nothing
/// wrong.
const MAX_ROTATED: usize = 1 << 18;

/// See the module.
#[derive(Clone)]
pub struct Stacks {
    tree: Tree,
    drawn: Drawn,
    /// Frames of modules that are loaded, and of code that belongs to none.
    by_address: HashMap<u64, u32>,
    /// Frames of modules that are not loaded, to be found again when one comes back.
    sealed: HashMap<u32, Vec<u32>>,
    node_index: HashTable<u32>,
    stack_index: HashMap<StackKey, u32>,
    /// By the stack that was walked, interval and size.
    sampled_index: HashMap<(u32, u64, u64), u32>,
    /// Frames kept of a stack, by domain.
    nframe: [usize; domain::COUNT],
    /// Changes when frames are sealed or come back: nodes that rings remember are then no longer true.
    generation: u64,
}

/// Leaf, depth, truncated, and the Python stack beside it, or [`NONE`].
type StackKey = (u32, u16, bool, u32);

/// The stacks as one ring names them.
#[derive(Debug, Default)]
pub struct Definitions {
    /// By domain.
    last: [Last; domain::COUNT],
    /// Stack, and above it the domain of its blocks; or [`NONE`].
    ids: Vec<u32>,
    defined: usize,
}

/// The last definition for a domain.
#[derive(Debug, Default)]
struct Last {
    /// The oldest frame first.
    frames: Vec<u64>,
    /// The tree's nodes for `frames`, as far as they are known.
    nodes: Vec<u32>,
    generation: u64,
}

const STACK_BITS: u32 = 27;
const _: () = assert!(MAX_NODES <= 1 << STACK_BITS && domain::COUNT < 1 << (u32::BITS - STACK_BITS));

/// One STACK record.
#[derive(Clone, Copy, Debug)]
pub struct Definition<'a> {
    /// The id that it defines, unless `more`.
    pub id: u32,
    /// Frames kept of the last definition, from the root.
    pub keep: u32,
    /// True depth.
    pub total: u32,
    /// Whether the walk ended before the root.
    pub truncated: bool,
    /// Whether the definition goes on in the next record.
    pub more: bool,
    /// Whose blocks it allocates.
    pub domain: u8,
    /// The frames that follow the kept ones, the oldest first.
    pub frames: &'a [u64],
}

impl Definitions {
    /// The stack that the ring means by an id, and the domain of the blocks that it allocates.
    #[inline]
    pub fn get(&self, id: u32) -> Option<(u32, u8)> {
        let entry = self.ids.get(id as usize).copied().filter(|&entry| entry != NONE)?;
        Some((entry & ((1 << STACK_BITS) - 1), (entry >> STACK_BITS) as u8))
    }

    /// Ids are dense, so one far above their number is nonsense, and must not make the table grow.
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
    /// Keeps the most recent `nframe` frames of each stack.
    pub fn new(nframe: u32) -> Stacks {
        let mut stacks = Stacks {
            tree: Tree::default(),
            drawn: Drawn::default(),
            by_address: HashMap::new(),
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

    /// Bytes that the tables take, roughly.
    pub fn bytes(&self) -> usize {
        let Tree { frames, nodes, stacks, mixed, sampled } = &self.tree;
        // Each has an entry in a hash table too.
        2 * (size_of_val(&frames[..]) + size_of_val(&nodes[..]) + size_of_val(&stacks[..]) + size_of_val(&sampled[..]))
            + size_of_val(&mixed[..])
    }

    /// The stacks that a forked child begins with. From now on both sides give their samples stacks
    /// of their own, so that a stack says who has drawn its samples, and between which forks: no
    /// two of these samples have one address.
    pub fn fork(&mut self) -> Stacks {
        let end = u32::try_from(self.tree.stacks.len()).unwrap_or(NONE);
        self.drawn.shared_end = end;
        if self.tree.sampled.len() < MAX_ROTATED {
            self.sampled_index.clear();
        }
        let mut child = self.clone();
        child.sampled_index.clear();
        child.drawn.ancestors.push(Ancestor { by: self.drawn.by, end });
        child.drawn.by = new_number();
        child
    }

    /// Who has drawn the samples.
    pub fn drawn(&self) -> &Drawn {
        &self.drawn
    }

    /// The tables.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Keeps at least so many frames of Python's stacks that are defined from now on.
    pub fn keep_python(&mut self, nframe: u32) {
        let kept = &mut self.nframe[usize::from(domain::PYTHON)];
        if *kept < nframe as usize {
            *kept = nframe as usize;
            // Rings remember nodes of shorter stacks.
            self.generation += 1;
        }
    }

    /// A ring defines a native stack of a thread that runs Python. False when the tables are full.
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

    /// The stack whose blocks are samples of this size, taken at this interval, and were allocated by `stack`. None when the
    /// tables are full.
    pub fn sampled(&mut self, stack: u32, interval: u64, size: u64) -> Option<u32> {
        if let Some(&found) = self.sampled_index.get(&(stack, interval, size)) {
            return Some(found);
        }
        let index = next_index(self.tree.stacks.len())?;
        let walked = self.tree.stacks[stack as usize];
        self.tree.stacks.push(walked);
        self.tree.sampled.push(Sampled { stack: index, interval, size });
        let mixed = &self.tree.mixed;
        if let Ok(row) = mixed.binary_search_by_key(&stack, |row| row.stack) {
            let python = mixed[row].python;
            self.tree.mixed.push(Mixed { stack: index, python });
        }
        self.sampled_index.insert((stack, interval, size), index);
        Some(index)
    }

    /// What the blocks of a stack are, if they are samples.
    pub fn sample(&self, stack: u32) -> Option<Sampled> {
        let row = self.tree.sampled.binary_search_by_key(&stack, |row| row.stack).ok()?;
        Some(self.tree.sampled[row])
    }

    /// A ring defines a stack. False when the tables are full, and the id stands for the empty stack.
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

    /// A module was unloaded: the frames in `range` (return addresses) are its own from now on.
    pub fn seal(&mut self, module: u32, start: u64, end: u64) {
        let frames = &mut self.tree.frames;
        let sealed = self.sealed.entry(module).or_default();
        self.by_address.retain(|&address, &mut frame| {
            let inside = address > start && address <= end;
            if inside {
                frames[frame as usize].sealed_to = module;
                sealed.push(frame);
            }
            !inside
        });
        self.generation += 1;
    }

    /// A module came back: its frames are found by address again.
    pub fn unseal(&mut self, module: u32) {
        for frame in self.sealed.remove(&module).unwrap_or_default() {
            let entry = &mut self.tree.frames[frame as usize];
            entry.sealed_to = NONE;
            self.by_address.insert(entry.address, frame);
        }
        self.generation += 1;
    }

    /// The node of the ring's last frame; none when the tables are full.
    fn leaf(&mut self, ring: &mut Last, nframe: usize) -> Option<u32> {
        let depth = ring.frames.len();
        let first = depth.saturating_sub(nframe);
        if first > 0 {
            // Cut at the root: nodes of the whole stack are no use.
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
        frames.iter().try_fold(parent, |parent, &address| {
            let frame = self.frame(address)?;
            let node = self.node(TreeNode { parent, frame })?;
            each(node);
            Some(node)
        })
    }

    fn frame(&mut self, address: u64) -> Option<u32> {
        if let Some(&frame) = self.by_address.get(&address) {
            return Some(frame);
        }
        let frame = next_index(self.tree.frames.len())?;
        self.tree.frames.push(CodeFrame { address, sealed_to: NONE });
        self.by_address.insert(address, frame);
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
