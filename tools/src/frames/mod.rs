//! Turns the stacks of addresses in a snapshot into the tracebacks of a report.
//!
//! An address becomes one frame for the function and one frame for each function inlined there.
//! Frames of allocators and of Heapline at the recent end are left out. Only stacks in the request
//! are resolved.

mod mixed;
mod tracebacks;

pub use heapline_symbols::plumbing::Part;
pub(crate) use heapline_symbols::plumbing::without_arguments;
pub use mixed::Frames;
pub use tracebacks::{Frame, Left, StringId, TracebackId, TracebackOrder, Tracebacks, Walked};

use crate::symbols::{INCOMPLETE, Location, Symbolizer, plumbing};
use heapline_shared_format::snapshot::{Code, Frame as Address, Module, Names, Snapshot, Stack};
use mixed::{Native, Python};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// File name of an unknown frame, as in tracemalloc.
pub(crate) const UNKNOWN: &str = "<unknown>";

/// File name of code generated at run time.
const GENERATED: &str = "[jit]";

/// Resolves the stacks with `wanted` set. Returns tracebacks by index of the stack.
///
/// `raw` keeps the frames of allocators and of the interpreter.
pub fn resolve(
    snapshot: &Snapshot,
    wanted: &[bool],
    frames: Frames,
    raw: bool,
    symbolizer: &mut Symbolizer,
    tracebacks: &mut Tracebacks,
) -> Vec<Option<TracebackId>> {
    let beside = match frames {
        Frames::Native => HashMap::new(),
        Frames::Mixed | Frames::Python => snapshot.mixed.iter().map(|row| (row.stack, row.python)).collect(),
    };
    let nodes = used_nodes(snapshot, &with_python(wanted, &beside));
    let mut expanded = expand(snapshot, &used_frames(snapshot, &nodes), raw, symbolizer, tracebacks);
    keep_in_proportion(snapshot, &nodes, &mut expanded);
    let mut whole: Vec<Option<TracebackId>> = vec![None; nodes.len()];
    for (index, node) in snapshot.nodes.iter().enumerate().filter(|(index, _)| nodes[*index]) {
        let older = node.parent.and_then(|parent| whole[parent as usize]);
        whole[index] = expanded[node.frame as usize].iter().fold(older, |id, &frame| Some(tracebacks.push(id, frame)));
    }
    let nothing = nothing_known(tracebacks);
    let of_interpreter = if beside.is_empty() { Vec::new() } else { interpreter(snapshot, &expanded, tracebacks) };
    let resolve_stack = |(index, (stack, &wanted)): (u32, (&Stack, &bool))| {
        let whole = |stack: &Stack| stack.leaf.and_then(|leaf| whole[leaf as usize]);
        let python = beside.get(&index).map(|&python| &snapshot.stacks[python as usize]);
        let id = match (frames, python) {
            (Frames::Mixed, Some(python)) if wanted => {
                mix(snapshot, stack, python, &expanded, &of_interpreter, raw, tracebacks)
            }
            (Frames::Python, Some(python)) => whole(python),
            (Frames::Python, None) if is_native(snapshot, stack) => None,
            _ => whole(stack),
        };
        let id = id.unwrap_or_else(|| tracebacks.push(None, nothing));
        wanted.then(|| if raw { id } else { trim(tracebacks, id) })
    };
    (0..).zip(snapshot.stacks.iter().zip(wanted)).map(resolve_stack).collect()
}

/// Marks the wanted stacks, and the Python stacks beside them.
fn with_python(wanted: &[bool], beside: &HashMap<u32, u32>) -> Vec<bool> {
    let mut all = wanted.to_vec();
    for (&stack, &python) in beside {
        all[python as usize] |= wanted[stack as usize];
    }
    all
}

fn is_native(snapshot: &Snapshot, stack: &Stack) -> bool {
    let frame = |leaf: u32| snapshot.frames[snapshot.nodes[leaf as usize].frame as usize];
    stack.leaf.is_some_and(|leaf| frame(leaf).as_python().is_none())
}

/// For each frame of the snapshot: whether the frame is the interpreter's loop, and whether the
/// frame lies in the loop's file.
fn interpreter(snapshot: &Snapshot, expanded: &[Vec<Frame>], tracebacks: &Tracebacks) -> Vec<(bool, bool)> {
    let is_loop = |frames: &Vec<Frame>| frames.iter().any(|frame| mixed::is_loop(tracebacks.text(frame.function)));
    let loops: Vec<bool> = expanded.iter().map(is_loop).collect();
    let modules: HashSet<u32> =
        snapshot.frames.iter().zip(&loops).filter(|(_, is_loop)| **is_loop).filter_map(|(f, _)| f.module).collect();
    let in_module = |frame: &Address| frame.module.is_some_and(|module| modules.contains(&module));
    snapshot.frames.iter().zip(loops).map(|(frame, is_loop)| (is_loop, in_module(frame))).collect()
}

/// Merges a native stack with the Python stack beside it into a traceback.
fn mix(
    snapshot: &Snapshot,
    native: &Stack,
    python: &Stack,
    expanded: &[Vec<Frame>],
    of_interpreter: &[(bool, bool)],
    raw: bool,
    tracebacks: &mut Tracebacks,
) -> Option<TracebackId> {
    let frames = |stack: &Stack| {
        let nodes = std::iter::successors(stack.leaf, |&node| snapshot.nodes[node as usize].parent);
        nodes.map(|node| snapshot.nodes[node as usize].frame as usize)
    };
    let native: Vec<Native<'_>> = frames(native)
        .map(|index| {
            let (is_loop, is_interpreter) = of_interpreter[index];
            Native { frames: &expanded[index], is_loop, is_interpreter }
        })
        .collect();
    let python: Vec<Python> = frames(python)
        .filter_map(|index| {
            let frame = *expanded[index].first()?;
            Some(Python { frame, is_entry: snapshot.frames[index].is_python_entry() })
        })
        .collect();
    let mut merged = mixed::merge(&native, &python, raw);
    if !raw {
        // Allocators' frames are more recent than the interpreter's frames, which `merge` has left
        // out.
        let plumbing = plumbing::count(merged.iter().map(|frame| (frame.part, frame.module)));
        merged.drain(..plumbing.min(merged.len().saturating_sub(1)));
    }
    mixed::push(tracebacks, &merged)
}

fn used_nodes(snapshot: &Snapshot, wanted: &[bool]) -> Vec<bool> {
    let mut used = vec![false; snapshot.nodes.len()];
    for (stack, _) in snapshot.stacks.iter().zip(wanted).filter(|(_, wanted)| **wanted) {
        let mut next = stack.leaf;
        while let Some(node) = next.map(|node| node as usize).filter(|&node| !used[node]) {
            used[node] = true;
            next = snapshot.nodes[node].parent;
        }
    }
    used
}

fn used_frames(snapshot: &Snapshot, nodes: &[bool]) -> Vec<bool> {
    let mut used = vec![false; snapshot.frames.len()];
    for (node, _) in snapshot.nodes.iter().zip(nodes).filter(|(_, used)| **used) {
        used[node.frame as usize] = true;
    }
    used
}

/// Expands each used address to frames, the oldest first. Works module by module, so only a single
/// symbol table is in memory at a time.
///
/// With `raw` the collector's own frames stay: a hook of `dlopen` or of a thread's start is in the
/// middle of a traceback.
fn expand(
    snapshot: &Snapshot,
    used: &[bool],
    raw: bool,
    symbolizer: &mut Symbolizer,
    tracebacks: &mut Tracebacks,
) -> Vec<Vec<Frame>> {
    let mut of_module: Vec<Vec<usize>> = vec![Vec::new(); snapshot.modules.len()];
    let mut expanded = vec![Vec::new(); snapshot.frames.len()];
    let mut namer = Namer { tracebacks, parts: HashMap::new() };
    let left = |index: usize| match u32::try_from(index).is_ok_and(|index| snapshot.is_left_by_frame_pointer(index)) {
        true => Left::FramePointer,
        false => Left::Tables,
    };
    for (index, frame) in snapshot.frames.iter().enumerate().filter(|(index, _)| used[*index]) {
        match (frame.module, frame.as_python()) {
            (Some(module), _) => of_module[module as usize].push(index),
            (None, Some((code, offset))) => {
                expanded[index] = vec![namer.in_code(&snapshot.codes[code as usize], offset, frame.address)];
            }
            (None, None) => {
                expanded[index] = namer.without_module(*frame, left(index), &stored(&snapshot.names, index));
            }
        }
    }
    let is_shown = |module: &Module| raw || !plumbing::is_collector(&module.path);
    let of_module = snapshot.modules.iter().zip(of_module).enumerate();
    for (number, (module, indices)) in of_module.filter(|(_, (module, of))| !of.is_empty() && is_shown(module)) {
        let found = located(snapshot, number, &indices, symbolizer);
        for (index, locations) in indices.into_iter().zip(found) {
            expanded[index] = namer.in_module(module, snapshot.frames[index].address, left(index), &locations);
        }
    }
    expanded
}

/// Most frames of a report for each node of the tree, on average. Real programs have 1 to 4.
const MOST_FRAMES: usize = 16;
/// Frames that every report may have.
const FREE_FRAMES: usize = 1 << 20;

/// Drops all inlined functions, if the tracebacks would have incredibly many. A handmade snapshot
/// could name hundreds of functions at an address of every stack.
fn keep_in_proportion(snapshot: &Snapshot, nodes: &[bool], expanded: &mut [Vec<Frame>]) {
    let used = || snapshot.nodes.iter().zip(nodes).filter(|(_, used)| **used);
    let frames: usize = used().map(|(node, _)| expanded[node.frame as usize].len()).sum();
    if frames > used().count() * MOST_FRAMES + FREE_FRAMES {
        expanded.iter_mut().for_each(|frames| frames.truncate(1));
    }
}

/// Returns the functions and lines that the snapshot stores for a frame, the innermost first.
fn stored(names: &Names, frame: usize) -> Vec<Location> {
    let text = |index: u32| names.texts[index as usize].clone();
    let places = u32::try_from(frame).map_or(&[][..], |frame| names.of_frame(frame));
    let location = |place: &heapline_shared_format::snapshot::Place| Location {
        function: place.function.map(text),
        line: place.line.map(|(file, line)| (text(file), line)),
    };
    places.iter().map(location).collect()
}

/// Looks up the functions at frames of a module. The names in the snapshot are taken, except where
/// the symbolizer may know lines and the snapshot does not.
fn located(snapshot: &Snapshot, module: usize, frames: &[usize], symbolizer: &mut Symbolizer) -> Vec<Vec<Location>> {
    let object = &snapshot.modules[module];
    let named = u32::try_from(module).ok().and_then(|module| snapshot.names.of_module(module));
    if let Some(named) = named.filter(|named| named.has_lines || !symbolizer.may_know_lines(object)) {
        if named.is_incomplete {
            symbolizer.warn(object, INCOMPLETE);
        }
        return frames.iter().map(|&frame| stored(&snapshot.names, frame)).collect();
    }
    // A return address points behind the call, perhaps already into another line or function.
    let calls: Vec<u64> = frames.iter().map(|&index| snapshot.frames[index].address.wrapping_sub(1)).collect();
    let found = symbolizer.locate(object, &calls).into_iter();
    let or_stored = |(found, &frame): (Vec<Location>, &usize)| match found.is_empty() {
        true => stored(&snapshot.names, frame),
        false => found,
    };
    found.zip(frames).map(or_stored).collect()
}

/// Removes allocators' frames from the recent end of a traceback. The oldest frame always stays.
fn trim(tracebacks: &Tracebacks, id: TracebackId) -> TracebackId {
    let count = plumbing::count(tracebacks.frames(id).map(|frame| (frame.part, frame.module)));
    (0..count).try_fold(id, |id, _| tracebacks.older(id).ok_or(id)).unwrap_or_else(|oldest| oldest)
}

/// Makes frames from symbols.
struct Namer<'t> {
    tracebacks: &'t mut Tracebacks,
    parts: HashMap<StringId, Part>,
}

impl Namer<'_> {
    fn in_module(&mut self, module: &Module, address: u64, left: Left, locations: &[Location]) -> Vec<Frame> {
        let nothing = [Location { function: None, line: None }];
        let locations = if locations.is_empty() { &nothing } else { locations };
        let path = self.tracebacks.string(&module.path);
        let frame = |location: &Location| {
            let (filename, lineno) = match &location.line {
                Some((file, line)) => (self.tracebacks.string(file), *line),
                None => (path, 0),
            };
            let function = match &location.function {
                Some(name) => self.tracebacks.string(name),
                None => self.tracebacks.string(&offset_in(module, address)),
            };
            let in_allocator_file = location.line.as_ref().is_some_and(|(file, _)| plumbing::is_allocator_file(file));
            let part = if in_allocator_file { Part::Carries } else { self.part(module, function) };
            Frame { filename, lineno, function, module: path, address, part, left: Left::Inlined }
        };
        with_oldest_left(locations.iter().rev().map(frame).collect(), left)
    }

    fn in_code(&mut self, code: &Code, offset: u32, address: u64) -> Frame {
        let filename = self.tracebacks.string(&code.filename);
        let function = self.tracebacks.string(&code.name);
        let lineno = code.line(offset);
        Frame { filename, lineno, function, module: filename, address, part: Part::Asks, left: Left::Tables }
    }

    /// Makes the frames of code outside of all objects: code generated at run time, with the names
    /// that the program has written for profilers.
    fn without_module(&mut self, frame: Address, left: Left, locations: &[Location]) -> Vec<Frame> {
        let address = frame.address;
        if locations.is_empty() {
            let function = self.tracebacks.string(&format!("{address:#x}"));
            return vec![Frame { function, address, left, ..nothing_known(self.tracebacks) }];
        }
        let module = self.tracebacks.string("");
        let frame = |location: &Location| {
            let (filename, lineno) = location.line.as_ref().map_or((GENERATED, 0), |(file, line)| (file, *line));
            let function = location.function.as_deref().unwrap_or(UNKNOWN);
            let [filename, function] = [filename, function].map(|text| self.tracebacks.string(text));
            Frame { filename, lineno, function, module, address, part: Part::Asks, left: Left::Inlined }
        };
        with_oldest_left(locations.iter().rev().map(frame).collect(), left)
    }

    fn part(&mut self, module: &Module, function: StringId) -> Part {
        if plumbing::is_collector(&module.path) {
            return Part::Carries;
        }
        let tracebacks = &self.tracebacks;
        *self.parts.entry(function).or_insert_with(|| plumbing::part(tracebacks.text(function)))
    }
}

/// Notes how the walk went on from the oldest of the functions at an address.
fn with_oldest_left(mut frames: Vec<Frame>, left: Left) -> Vec<Frame> {
    if let Some(oldest) = frames.first_mut() {
        oldest.left = left;
    }
    frames
}

/// Returns the offset in the name of a function without a symbol, as [`offset_in`] made the name;
/// none for another function. `module` is the module's path.
pub(crate) fn offset_of_nameless<'f>(module: &str, function: &'f str) -> Option<&'f str> {
    let file = module.rsplit('/').next().unwrap_or(module);
    function.strip_prefix(file).filter(|offset| offset.starts_with("+0x"))
}

/// Formats `library.so+0x1234`, with the offset in the file's own addresses.
fn offset_in(module: &Module, address: u64) -> String {
    let name = Path::new(&module.path).file_name().map_or(module.path.as_str().into(), |name| name.to_string_lossy());
    format!("{name}+{:#x}", address.wrapping_sub(module.bias))
}

/// The traceback of blocks without a known stack.
pub(crate) fn unknown(tracebacks: &mut Tracebacks) -> TracebackId {
    let frame = nothing_known(tracebacks);
    tracebacks.push(None, frame)
}

/// The frame of an empty stack, as in tracemalloc.
fn nothing_known(tracebacks: &mut Tracebacks) -> Frame {
    let unknown = tracebacks.string(UNKNOWN);
    let module = tracebacks.string("");
    Frame { filename: unknown, lineno: 0, function: unknown, module, address: 0, part: Part::Asks, left: Left::Tables }
}
