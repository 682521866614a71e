//! Builds snapshots of possible runs of a compiled test program, with known figures.

use super::{addr2line, build_id, calls, instructions};
use heapline_shared_format::code::LineFormat;
use heapline_shared_format::event::python_frame;
use heapline_shared_format::snapshot::{
    Begun, Code, Domain, DomainTotals, End, Frame, LiveGroup, Meta, Module, Node, Snapshot, Stack, StackTotals, Thread,
    write,
};
use heapline_tools::symbols::Location;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Load address of test programs.
pub const BASE: u64 = 0x5555_5000_0000;

/// A snapshot that grows stack by stack.
pub struct Builder {
    pub snapshot: Snapshot,
}

impl Builder {
    /// Makes a process with a single thread and, if given, a program.
    pub fn new(program: Option<&Path>) -> Builder {
        let module = |path: &Path| Module {
            path: path.to_str().unwrap().to_string(),
            build_id: build_id(path),
            start: BASE,
            end: BASE + (1 << 30),
            bias: BASE,
            loaded: true,
        };
        let threads = vec![
            Thread { tid: 4711, name: "victim".to_string(), alive: true },
            Thread { tid: 4712, name: "worker".to_string(), alive: false },
        ];
        let modules = program.into_iter().map(module).collect();
        let snapshot = Snapshot { meta: meta(), modules, threads, ..Snapshot::default() };
        Builder { snapshot }
    }

    /// Adds a stack of return addresses, the oldest first. The addresses are in module 0 if there
    /// is such a module.
    pub fn stack(&mut self, addresses: &[u64]) -> u32 {
        let s = &mut self.snapshot;
        let module = (!s.modules.is_empty()).then_some(0);
        let mut leaf = None;
        for &address in addresses {
            s.frames.push(Frame { address, module });
            s.nodes.push(Node { parent: leaf, frame: u32::try_from(s.frames.len() - 1).unwrap() });
            leaf = Some(u32::try_from(s.nodes.len() - 1).unwrap());
        }
        let total_nframe = u16::try_from(addresses.len()).unwrap();
        s.stacks.push(Stack { leaf, total_nframe, truncated: false });
        u32::try_from(s.stacks.len() - 1).unwrap()
    }

    /// Adds a stack of calls with file, function and line, the oldest first.
    pub fn calls(&mut self, calls: &[(&str, &str, u32)]) -> u32 {
        let mut leaf = None;
        let s = &mut self.snapshot;
        for &(filename, name, first_line) in calls {
            let code = u32::try_from(s.codes.len()).unwrap();
            let (filename, name, lines) = (filename.to_string(), name.to_string(), LineFormat::Lnotab);
            s.codes.push(Code { filename, name, first_line, lines, line_table: Vec::new() });
            s.frames.push(Frame { address: python_frame(code, 0), module: None });
            s.nodes.push(Node { parent: leaf, frame: u32::try_from(s.frames.len() - 1).unwrap() });
            leaf = Some(u32::try_from(s.nodes.len() - 1).unwrap());
        }
        s.stacks.push(Stack { leaf, total_nframe: u16::try_from(calls.len()).unwrap(), truncated: false });
        u32::try_from(s.stacks.len() - 1).unwrap()
    }

    /// Adds `count` live blocks of `size` bytes. At the peak three times as many blocks were live,
    /// and four times as many were allocated since the start.
    pub fn blocks(&mut self, domain: Domain, stack: u32, thread: u32, size: u64, count: u64) {
        let (bytes, row) =
            (size * count, self.snapshot.totals.iter_mut().find(|r| (r.domain, r.stack) == (domain, stack)));
        let Some(row) = row else { return self.blocks_of_new_stack(domain, stack, thread, size, count) };
        row.peak_size += bytes * 3;
        row.peak_count += count * 3;
        row.total_size += bytes * 4;
        row.total_count += count * 4;
        self.snapshot.live.push(LiveGroup { domain, stack, thread, size, count });
        self.count(domain, bytes, count);
    }

    /// Adds blocks of a stack that has none, like [`Builder::blocks`].
    pub fn blocks_of_new_stack(&mut self, domain: Domain, stack: u32, thread: u32, size: u64, count: u64) {
        let bytes = size * count;
        self.snapshot.live.push(LiveGroup { domain, stack, thread, size, count });
        self.snapshot.totals.push(StackTotals {
            domain,
            stack,
            peak_size: bytes * 3,
            peak_count: count * 3,
            total_size: bytes * 4,
            total_count: count * 4,
        });
        self.count(domain, bytes, count);
    }

    fn count(&mut self, domain: Domain, bytes: u64, blocks: u64) {
        let domains = &mut self.snapshot.domains;
        let index = domains.iter().position(|row| row.domain == domain).unwrap_or_else(|| {
            let (current, peak, blocks, allocs, frees, allocated_bytes) = (0, 0, 0, 0, 0, 0);
            domains.push(DomainTotals { domain, current, peak, blocks, allocs, frees, allocated_bytes });
            domains.len() - 1
        });
        let row = &mut domains[index];
        row.current += bytes;
        row.blocks += blocks;
        row.peak += bytes * 3;
        row.allocs += blocks * 4;
        row.frees += blocks * 3;
        row.allocated_bytes += bytes * 4;
    }

    /// Writes the snapshot to a file in `dir`.
    pub fn save(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, write(&self.snapshot, Vec::new(), &mut |_| {}).unwrap()).unwrap();
        path
    }
}

fn meta() -> Meta {
    Meta {
        pid: 4711,
        command: "victim --grow".to_string(),
        executable: "/usr/bin/victim".to_string(),
        taken_at: "2025-11-21T00:37:00Z".to_string(),
        heapline: "0.1.0".to_string(),
        sample_interval: 0,
        nframe: 64,
        begun: Begun::Start,
        end: End::Exited,
        exit_status: Some(0),
        lost: BTreeMap::from([("reentrant".to_string(), 0)]),
        contradictions: BTreeMap::new(),
        untracked_frees: 0,
        in_realloc: 0,
        target_bytes: 65536,
        aggregator_bytes: 1 << 20,
        notes: Vec::new(),
        unseen: Vec::new(),
        allocator: None,
    }
}

/// Returns the calls of a program as seen by binutils: return address (at [`BASE`]), innermost
/// function and line.
pub fn calls_of(program: &Path) -> Vec<(u64, String, u32)> {
    let calls = calls(program);
    let innermost = addr2line(program, &calls).into_iter().map(|locations| locations.into_iter().next());
    let found = returns(program, &calls).into_iter().zip(innermost);
    let call = |(address, location): (u64, Option<Location>)| {
        let location = location?;
        Some((BASE + address, location.function?, location.line?.1))
    };
    found.filter_map(call).collect()
}

/// Returns the addresses from [`calls_of`] on line `line` in functions with names that contain
/// `function`.
pub fn return_addresses(program: &Path, function: &str, line: u32) -> Vec<u64> {
    let calls = calls_of(program).into_iter().filter(|(_, name, number)| name.contains(function) && *number == line);
    calls.map(|(address, ..)| address).collect()
}

/// Returns the addresses behind the call instructions at `calls`.
fn returns(program: &Path, calls: &[u64]) -> Vec<u64> {
    let instructions = instructions(program);
    let after = |call: &u64| {
        let index = instructions.iter().position(|(address, _)| address == call).unwrap();
        instructions.get(index + 1).map_or(call + 5, |(address, _)| *address)
    };
    calls.iter().map(after).collect()
}
