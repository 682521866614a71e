//! The code of an object: its functions, known from its unwind tables (stripped or not), and the direct calls and jumps out
//! of them.

use super::map::{Map, Range};
use super::memory::Memory;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use std::collections::HashSet;

/// What is read of an object's code.
const MOST_CODE_BYTES: u64 = 512 << 20;

/// How far one address is from another, as an index.
pub fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

/// A call or jump out of a function.
#[derive(Clone, Copy, Debug)]
pub struct Branch {
    /// The number of the function that the branch is in.
    pub function: usize,
    /// Address of its distance of four bytes; none where the distance has one byte.
    pub distance_at: Option<u64>,
    pub target: u64,
    /// A jump leaves nothing on the stack that says where it came from.
    pub is_jump: bool,
}

/// What an object's functions call and jump to.
pub struct Code {
    /// In order, apart.
    pub functions: Vec<Range>,
    /// In the order of the code.
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

    /// Adds what the functions in these bytes call.
    fn decode(&mut self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        let first = self.functions.partition_point(|function| function.start < start);
        let mut instruction = Instruction::default();
        for (number, function) in self.functions.iter().enumerate().skip(first) {
            if function.end > end {
                break;
            }
            let code = &bytes[index(function.start - start)..index(function.end - start)];
            let mut decoder = Decoder::with_ip(64, code, function.start, DecoderOptions::NONE);
            while decoder.can_decode() {
                decoder.decode_out(&mut instruction);
                if instruction.op0_kind() != OpKind::NearBranch64 || function.contains(instruction.near_branch64()) {
                    continue;
                }
                let place = decoder.get_constant_offsets(&instruction);
                let distance_at = instruction.ip() + place.immediate_offset() as u64;
                self.branches.push(Branch {
                    function: number,
                    distance_at: (place.immediate_size() == 4).then_some(distance_at),
                    target: instruction.near_branch64(),
                    is_jump: instruction.mnemonic() != Mnemonic::Call,
                });
            }
        }
    }

    /// The number of the function that an address lies in.
    pub fn function_at(&self, address: u64) -> Option<usize> {
        let behind = self.functions.partition_point(|function| function.start <= address);
        let number = behind.checked_sub(1)?;
        self.functions[number].contains(address).then_some(number)
    }

    /// The functions with these addresses, and all that they call.
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
