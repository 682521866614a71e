//! A second opinion on "exact": valgrind's "total heap usage" of the same command.
//!
//! Valgrind runs the command twice, and must agree with itself. Both sides have the same number
//! and lengths of environment variables, since some programs copy them.

use crate::catalogue::{Subject, listed};
use crate::laboratory::{Laboratory, Mode};
use crate::trace::{Trace, Usage};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fs;

/// What the comparison says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Oracle {
    /// Both count the same.
    Equal,
    /// The counts differ.
    Differs {
        /// What Heapline counts.
        heapline: Usage,
        /// What valgrind counts.
        valgrind: Usage,
    },
    /// The counts differ, and it is known why.
    Explained {
        /// The reason.
        why: String,
    },
    /// The counts cannot be compared.
    Silent {
        /// Why not.
        why: String,
    },
}

/// GLib allocates in another way when it notices valgrind. With this variable it always does.
const ALIKE: (&str, &str) = ("G_SLICE", "always-malloc");

/// Variables that valgrind gives to the program, with values of the lengths that they have there.
const VALGRINDS: [(&str, usize); 4] = [
    ("LD_LIBRARY_PATH", "/usr/lib/debug".len()),
    ("GLIBCPP_FORCE_NEW", 1),
    ("GLIBCXX_FORCE_NEW", 1),
    ("LD_PRELOAD", PRELOADED.len()),
];
const PRELOADED: &str = "/usr/libexec/valgrind/vgpreload_core-amd64-linux.so:\
    /usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so";

/// Counts the allocations of a command that ends by itself, with both tools.
pub fn compare(laboratory: &Laboratory, subject: &Subject) -> Result<Oracle> {
    let (Some(first), Some(second)) = (valgrind(laboratory, subject)?, valgrind(laboratory, subject)?) else {
        return Ok(silent("valgrind does not run it"));
    };
    if first != second {
        return Ok(silent("valgrind's two runs differ"));
    }
    let padding: Vec<(String, String)> =
        VALGRINDS.iter().map(|(name, length)| (format!("X{}", &name[1..]), "x".repeat(*length))).collect();
    let padding = padding.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let extra: Vec<(&str, &str)> = padding.chain([ALIKE]).collect();
    let Some((_, traces)) = laboratory.traced(subject, Mode::Run, &extra)? else {
        return Ok(silent("it was not traced"));
    };
    let trace = Trace::read(&laboratory.programs.report, &traces, Mode::Run);
    Ok(match trace.usage {
        None => silent("it has several processes"),
        Some(usage) if usage == first => Oracle::Equal,
        Some(heapline) => match explanation(&subject.name, heapline, first) {
            Some(why) => Oracle::Explained { why: why.to_owned() },
            None => Oracle::Differs { heapline, valgrind: first },
        },
    })
}

/// Why the counts of a program differ, where the reason is neither tool's.
fn explanation(name: &str, heapline: Usage, valgrind: Usage) -> Option<&'static str> {
    // SAFETY: getauxval takes a number and reads what the kernel gave to this process.
    let signal_stack = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
    let has_same_calls = (heapline.allocs, heapline.frees) == (valgrind.allocs, valgrind.frees);
    if has_same_calls && heapline.bytes + OLD_MINSIGSTKSZ == valgrind.bytes + signal_stack {
        return Some("its signal stack is as large as the processor asks for, which valgrind does not tell");
    }
    listed(include_str!("../explained.txt")).get(name).copied()
}

/// MINSIGSTKSZ where the kernel names no other size, as under valgrind.
const OLD_MINSIGSTKSZ: u64 = 2048;

fn silent(why: &str) -> Oracle {
    Oracle::Silent { why: why.to_owned() }
}

fn valgrind(laboratory: &Laboratory, subject: &Subject) -> Result<Option<Usage>> {
    let log = laboratory.surroundings.snapshots()?.join("valgrind.log");
    let options = ["--run-libc-freeres=no", "--run-cxx-freeres=no", &format!("--log-file={}", log.display())];
    let wrapper: Vec<String> = std::iter::once("/usr/bin/valgrind").chain(options).map(str::to_owned).collect();
    if laboratory.alone(subject, &wrapper, &[ALIKE]).is_err() {
        return Ok(None);
    }
    Ok(fs::read_to_string(log).ok().and_then(|text| total_heap_usage(&text)))
}

/// The numbers of "total heap usage: 1,234 allocs, 5 frees, 6 bytes allocated".
fn total_heap_usage(text: &str) -> Option<Usage> {
    let line = text.lines().find_map(|line| line.split_once("total heap usage: "))?.1.replace(',', "");
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    Some(Usage { allocs: numbers.next()?, frees: numbers.next()?, bytes: numbers.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_program_and_a_larger_signal_stack_explain_a_difference_and_nothing_else_does() {
        let usage = |allocs, bytes| Usage { allocs, frees: 1, bytes };
        assert_eq!(explanation("ls", usage(3, 100), usage(2, 100)), None);
        assert_eq!(explanation("ls", usage(3, 101), usage(3, 100)), None);
        assert!(explanation("go", usage(3, 116), usage(3, 100)).is_some());
    }

    #[test]
    fn valgrinds_numbers_are_read_with_their_commas() {
        let text = "==1== HEAP SUMMARY:\n==1==   total heap usage: 1,234 allocs, 5 frees, 67,890 bytes allocated\n";
        assert_eq!(total_heap_usage(text), Some(Usage { allocs: 1234, frees: 5, bytes: 67890 }));
        assert_eq!(total_heap_usage("nothing"), None);
    }
}
