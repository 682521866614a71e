//! Finds the called functions when a thread stands in a function of the C library.
//!
//! An exported function has a name. A static function has no name, and nothing on the stack tells
//! the origin of a jump: `sem_wait` ends with a jump to a nameless function, in which the thread
//! waits. The code contains the jumps, so the names of all functions with a jump to the nameless
//! function are the candidates.

use super::code::Code;
use super::map::{Map, Range};
use super::memory::Memory;
use super::symbols::Functions;
use std::collections::HashSet;

/// Functions that may have been called, each with all its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates(Vec<Vec<String>>);

impl Candidates {
    /// Returns a function known by its names.
    pub fn one(names: Vec<String>) -> Candidates {
        Candidates(vec![names])
    }

    /// Whether no function is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the called function is certainly among the listed names.
    pub fn are_all(&self, listed: impl Fn(&str) -> bool) -> bool {
        !self.is_empty() && self.0.iter().all(|names| names.iter().any(|name| listed(name)))
    }

    /// Returns a listed name under which the function may have been called.
    pub fn find(&self, listed: impl Fn(&str) -> bool) -> Option<&str> {
        self.0.iter().flatten().map(String::as_str).find(|name| listed(name))
    }

    /// Returns a name for messages.
    pub fn name(&self) -> &str {
        self.find(|_| true).unwrap_or("the C library")
    }
}

/// The jumps from one function of an object into another.
pub struct Jumps {
    code: Code,
    /// Pairs of function numbers, in order: first the target of a jump, then the source.
    edges: Vec<(usize, usize)>,
}

impl Jumps {
    /// Reads the code of an object's functions.
    pub fn read(map: &Map, memory: &Memory, object: Range, functions: Vec<Range>) -> Jumps {
        Jumps::of(Code::read(map, memory, object, functions))
    }

    fn of(code: Code) -> Jumps {
        let jumps = code.branches.iter().filter(|branch| branch.is_jump);
        let mut edges: Vec<(usize, usize)> =
            jumps.filter_map(|branch| Some((code.function_at(branch.target)?, branch.function))).collect();
        edges.sort_unstable();
        edges.dedup();
        Jumps { code, edges }
    }

    /// Lists the named functions from which a thread can have come to an address of a nameless
    /// function by jumps alone.
    pub fn candidates(&self, address: u64, named: &Functions) -> Candidates {
        let mut open: Vec<usize> = self.code.function_at(address).into_iter().collect();
        let mut seen: HashSet<usize> = open.iter().copied().collect();
        let mut found = Vec::new();
        while let Some(function) = open.pop() {
            let names = named.names_at(self.code.functions[function].start);
            if !names.is_empty() {
                found.push(names);
                continue;
            }
            let first = self.edges.partition_point(|&(target, _)| target < function);
            let into = self.edges[first..].iter().take_while(|&&(target, _)| target == function);
            open.extend(into.map(|&(_, source)| source).filter(|&source| seen.insert(source)));
        }
        Candidates(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::inject::code::Branch;

    fn jump(function: usize, target: u64) -> Branch {
        Branch { function, distance_at: None, target, is_jump: true }
    }

    #[test]
    fn a_nameless_function_is_known_by_who_jumps_to_it() {
        let functions: Vec<Range> = (1..6).map(|n| Range { start: n * 100, end: n * 100 + 100 }).collect();
        // The functions 0 and 1 have names. Function 2 is the target of jumps from functions 1 and
        // 3. Function 3 is the target of jumps from functions 0 and 2. Function 4 is only called.
        let call = Branch { is_jump: false, ..jump(0, 500) };
        let branches = vec![jump(0, 420), call, jump(1, 300), jump(2, 450), jump(3, 300)];
        let jumps = Jumps::of(Code { functions, branches });
        let named =
            Functions::named(&[(100, 100, "sem_wait"), (200, 100, "sem_timedwait"), (200, 100, "sem_clockwait")]);
        let found = jumps.candidates(350, &named);
        assert!(found.are_all(|name| ["sem_wait", "sem_timedwait"].contains(&name)), "{found:?}");
        assert!(!found.are_all(|name| name == "sem_wait") && found.find(|name| name == "sem_clockwait").is_some());
        assert!(jumps.candidates(550, &named).is_empty(), "called, so its caller is on the stack");
        assert!(jumps.candidates(950, &named).is_empty());
        assert!(!Candidates::default().are_all(|_| true), "what is not known is not certain");
    }
}
