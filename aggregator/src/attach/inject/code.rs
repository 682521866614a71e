//! The code of an object: its functions, and the direct calls and jumps out of the functions. The
//! functions are found from the unwind tables, even in a stripped object.

use super::map::{Map, Range};
use super::memory::Memory;
use crate::arch::instructions;
use std::collections::HashSet;

/// Limit of the code read from an object.
const MOST_CODE_BYTES: u64 = 512 << 20;

/// Converts a distance between two addresses to an index.
pub fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

/// A call or jump out of a function.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    /// Number of the function with the branch.
    pub function: usize,
    /// Address of a distance that can be changed; none for a shorter distance.
    pub distance_at: Option<u64>,
    pub target: u64,
    /// Whether the branch is a jump. A jump leaves no return address on the stack.
    pub is_jump: bool,
}

/// The functions of an object, with their calls and jumps.
pub struct Code {
    /// Functions in order, without overlaps.
    pub functions: Vec<Range>,
    /// Branches in the order of the code.
    pub branches: Vec<Branch>,
}

impl Code {
    /// Reads the code of an object's functions.
    pub fn read(map: &Map, memory: &Memory, object: Range, mut functions: Vec<Range>) -> Code {
        functions.sort_by_key(|function| function.start);
        functions.dedup_by(|next, last| next.start < last.end);
        let mut code = Code { functions, branches: Vec::new() };
        let mut left = MOST_CODE_BYTES;
        for mapping in map.mappings.iter().filter(|mapping| mapping.is_code && object.contains(mapping.start)) {
            let length = mapping.end - mapping.start;
            if length > left {
                break;
            }
            left -= length;
            if let Ok(bytes) = memory.bytes(mapping.start, index(length)) {
                code.decode(mapping.start, &bytes);
            }
        }
        code
    }

    /// Adds the calls and jumps of the functions in these bytes.
    fn decode(&mut self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        let first = self.functions.partition_point(|function| function.start < start);
        for (number, function) in self.functions.iter().enumerate().skip(first) {
            if function.end > end {
                break;
            }
            let code = &bytes[index(function.start - start)..index(function.end - start)];
            let outgoing =
                instructions::branches(code, function.start).filter(|branch| !function.contains(branch.target));
            self.branches.extend(outgoing.map(|instructions::Branch { distance_at, target, is_jump }| Branch {
                function: number,
                distance_at,
                target,
                is_jump,
            }));
        }
    }

    /// Returns the number of the function at an address.
    pub fn function_at(&self, address: u64) -> Option<usize> {
        let behind = self.functions.partition_point(|function| function.start <= address);
        let number = behind.checked_sub(1)?;
        self.functions[number].contains(address).then_some(number)
    }

    /// Returns the functions at these addresses, and all functions reachable from them.
    pub fn reachable(&self, from: impl Iterator<Item = u64>, resolved: impl Fn(u64) -> u64) -> HashSet<usize> {
        let mut found = HashSet::new();
        let mut open: Vec<usize> = from.filter_map(|address| self.function_at(address)).collect();
        while let Some(function) = open.pop() {
            if found.insert(function) {
                let first = self.branches.partition_point(|branch| branch.function < function);
                let own = self.branches[first..].iter().take_while(|branch| branch.function == function);
                open.extend(own.filter_map(|branch| self.function_at(resolved(branch.target))));
            }
        }
        found
    }
}
