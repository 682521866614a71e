//! Checks exact counts against valgrind's "total heap usage" of the same command.
//!
//! 1. Valgrind runs the command twice, and both counts must be equal.
//! 2. Heapline's counts are compared with valgrind's. Both runs have environment variables of the
//!    same number and lengths, since some programs copy the environment.
//! 3. If the counts differ, a small preloaded counter decides: some programs behave differently
//!    under valgrind (GLib notices valgrind, LLVM asks for the processor's registers).

use crate::catalogue::{Subject, listed};
use crate::laboratory::{Laboratory, Mode, output};
use crate::trace::{Trace, Usage};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Result of the comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Oracle {
    /// The counts are equal.
    Equal,
    /// The counts differ.
    Differs {
        /// Heapline's counts.
        heapline: Usage,
        /// Valgrind's counts.
        valgrind: Usage,
    },
    /// The counts of an exact run are equal, but the counts of a sampled run differ.
    SampleDiffers {
        /// Heapline's counts while samples are recorded.
        heapline: Usage,
        /// Valgrind's counts.
        valgrind: Usage,
    },
    /// The counts differ for a known reason.
    Explained {
        /// The reason.
        why: String,
    },
    /// The counts cannot be compared.
    Silent {
        /// The reason.
        why: String,
    },
}

/// Environment variables that valgrind gives to the program.
const VALGRINDS: [(&str, &str); 4] = [
    ("LD_LIBRARY_PATH", "/usr/lib/debug"),
    ("GLIBCPP_FORCE_NEW", "1"),
    ("GLIBCXX_FORCE_NEW", "1"),
    (
        "LD_PRELOAD",
        "/usr/libexec/valgrind/vgpreload_core-amd64-linux.so:\
         /usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so",
    ),
];

/// Counts the allocations of a command with both tools. The command must end by itself.
pub fn compare(laboratory: &Laboratory, subject: &Subject) -> Result<Oracle> {
    let Some(first) = valgrind(laboratory, subject)? else {
        return Ok(silent("valgrind does not run it"));
    };
    if valgrind(laboratory, subject)? != Some(first) {
        return Ok(silent("valgrind's two runs differ"));
    }
    let Some(heapline) = heapline(laboratory, subject, Mode::Run, &VALGRINDS)? else {
        return Ok(silent("it has several processes"));
    };
    if heapline == first {
        // While samples are recorded, all calls are counted too.
        return Ok(match self::heapline(laboratory, subject, Mode::Sample, &VALGRINDS)? {
            Some(sampled) if sampled != first => Oracle::SampleDiffers { heapline: sampled, valgrind: first },
            _ => Oracle::Equal,
        });
    }
    if let Some(why) = listed(include_str!("../explained.txt")).get(subject.name.as_str()) {
        return Ok(Oracle::Explained { why: (*why).to_owned() });
    }
    Ok(match counters_agree(laboratory, subject)? {
        true => Oracle::Explained { why: "it does otherwise under valgrind: a preloaded counter agrees".to_owned() },
        false => Oracle::Differs { heapline, valgrind: first },
    })
}

fn silent(why: &str) -> Oracle {
    Oracle::Silent { why: why.to_owned() }
}

/// Returns Heapline's counts in a mode. The run gets environment variables of the same number and
/// lengths as `alike`.
fn heapline(laboratory: &Laboratory, subject: &Subject, mode: Mode, alike: &[(&str, &str)]) -> Result<Option<Usage>> {
    // Other names of equal lengths mean nothing to the program.
    let padding = alike.iter().map(|(name, value)| (format!("X{}", &name[1..]), "x".repeat(value.len())));
    let padding: Vec<(String, String)> = padding.collect();
    let padding: Vec<(&str, &str)> = padding.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let Some((_, traces)) = laboratory.traced(subject, mode, &padding)? else { return Ok(None) };
    Ok(Trace::read(&laboratory.programs.report, &traces, mode).usage)
}

/// Whether the preloaded counter's counts equal Heapline's.
fn counters_agree(laboratory: &Laboratory, subject: &Subject) -> Result<bool> {
    let library = counter(laboratory)?.display().to_string();
    let counts = laboratory.surroundings.snapshots()?.join("counts");
    let counts_path = counts.display().to_string();
    let variables = [("LD_PRELOAD", library.as_str()), ("HEAP_COUNT", counts_path.as_str())];
    laboratory.alone(subject, &[], &variables)?;
    let counted = fs::read(counts).ok().and_then(|bytes| counted(&bytes));
    Ok(counted.is_some() && counted == heapline(laboratory, subject, Mode::Run, &variables)?)
}

/// Path of the counter's library, compiled at the first call.
fn counter(laboratory: &Laboratory) -> Result<PathBuf> {
    let folder = laboratory.surroundings.base();
    let (source, library) = (folder.join("counter.c"), folder.join("counter.so"));
    if !library.is_file() {
        fs::write(&source, include_str!("../subjects/counter.c"))?;
        let names = [&library, &source].map(|path| path.display().to_string());
        let options = ["/usr/bin/gcc", "-O2", "-shared", "-fPIC", "-fno-builtin", "-o"].map(str::to_owned);
        let made = output(&[&options[..], &names].concat(), folder, Duration::from_secs(60))?;
        if made.status != Some(0) {
            bail!("the counter does not compile: {}", String::from_utf8_lossy(&made.stderr));
        }
    }
    Ok(library)
}

/// Reads allocations, frees and bytes: the first three words of the counter's file.
fn counted(bytes: &[u8]) -> Option<Usage> {
    let (words, _) = bytes.as_chunks::<8>();
    let &[allocs, frees, bytes, ..] = words else { return None };
    Some(Usage {
        allocs: u64::from_ne_bytes(allocs),
        frees: u64::from_ne_bytes(frees),
        bytes: u64::from_ne_bytes(bytes),
    })
}

fn valgrind(laboratory: &Laboratory, subject: &Subject) -> Result<Option<Usage>> {
    let log = laboratory.surroundings.snapshots()?.join("valgrind.log");
    let options = ["--run-libc-freeres=no", "--run-cxx-freeres=no", &format!("--log-file={}", log.display())];
    let wrapper: Vec<String> = std::iter::once("/usr/bin/valgrind").chain(options).map(str::to_owned).collect();
    if laboratory.alone(subject, &wrapper, &[]).is_err() {
        return Ok(None);
    }
    Ok(fs::read_to_string(log).ok().and_then(|text| total_heap_usage(&text)))
}

/// Reads the numbers of "total heap usage: 1,234 allocs, 5 frees, 6 bytes allocated".
fn total_heap_usage(text: &str) -> Option<Usage> {
    let line = text.lines().find_map(|line| line.split_once("total heap usage: "))?.1.replace(',', "");
    let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
    Some(Usage { allocs: numbers.next()?, frees: numbers.next()?, bytes: numbers.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_file_begins_with_three_words() {
        let words: Vec<u8> = [7_u64, 5, 300, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
        assert_eq!(counted(&words), Some(Usage { allocs: 7, frees: 5, bytes: 300 }));
        assert_eq!(counted(&words[..20]), None);
    }

    #[test]
    fn valgrinds_numbers_are_read_with_their_commas() {
        let text = "==1== HEAP SUMMARY:\n==1==   total heap usage: 1,234 allocs, 5 frees, 67,890 bytes allocated\n";
        assert_eq!(total_heap_usage(text), Some(Usage { allocs: 1234, frees: 5, bytes: 67890 }));
        assert_eq!(total_heap_usage("nothing"), None);
    }
}
