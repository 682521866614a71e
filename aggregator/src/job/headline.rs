//! The line of a written snapshot: the layers in which the memory is, the place of the snapshot,
//! and the command that reads the snapshot.

use super::{Ending, report_program, shown};
use crate::snapshot::cut::Figures;
use heapline_shared_format::snapshot::{Begun, Domain, DomainTotals, End, began_with};
use heapline_shared_format::text::{counted, shell_word, size};
use signal_hook::low_level::signal_name;
use std::path::Path;

/// A layer is left out if its peak is less than this fraction of the greatest peak.
const LEAST_PART: u64 = 100;

/// Exit status of a command ended by signal N: this number and N.
const SIGNALLED: i32 = 128;

/// What a headline says besides figures.
pub struct About<'a> {
    /// File of the snapshot.
    pub path: &'a Path,
    /// End of the process; none for a running process.
    pub ending: Option<Ending>,
    /// Parent of a child process.
    pub parent: Option<u32>,
    /// Whether the reader may be in another folder: then paths are absolute.
    pub is_abroad: bool,
}

/// Returns the line of a snapshot.
pub fn headline(figures: &Figures, About { path, ending, parent, is_abroad }: About<'_>) -> String {
    let shown = |path: &Path| if is_abroad { shell_word(&path.to_string_lossy()) } else { shown(path) };
    let layers = layers(figures);
    let peaks = layers.iter().map(|row| format!("{}{} {}", about(figures, row), size(row.peak), row.domain));
    let lives = layers.iter().map(|row| {
        let (about, blocks) = (about(figures, row), counted(row.blocks, row.domain.noun()));
        format!("{about}{} {} in {about}{blocks}", size(row.current), row.domain)
    });
    let since = if figures.begun == Begun::Start { String::new() } else { format!("{} ", figures.begun.since()) };
    let parts = [
        ending.and_then(ended_by),
        Some(format!("peak {since}{}", list(peaks))),
        Some(format!("live {}", list(lives))),
        figures.inherited.as_ref().zip(parent).map(|(blocks, parent)| began_with(blocks, parent)),
        Some(format!("snapshot: {}", shown(path))),
        Some(format!("read it with: {} {}", shown(&report_program()), shown(path))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Returns the layers to name, the greatest peak first. Layers are never summed. Reservations and
/// blocks tracked by hand are not named: they are no memory, or memory of the layers below.
fn layers(figures: &Figures) -> Vec<&DomainTotals> {
    let is_named = |row: &&DomainTotals| matches!(row.domain, Domain::Python | Domain::Native | Domain::Mmap);
    let mut layers: Vec<_> = figures.domains.iter().filter(is_named).collect();
    layers.sort_by_key(|row| std::cmp::Reverse(row.peak));
    let greatest = layers.first().map_or(0, |row| row.peak);
    let shown = figures.shown().domain;
    layers.retain(|row| row.domain == shown || row.peak > 0 && row.peak.saturating_mul(LEAST_PART) >= greatest);
    layers
}

fn about(figures: &Figures, row: &DomainTotals) -> &'static str {
    if figures.sample_interval != 0 && row.domain.is_sampled() { "about " } else { "" }
}

/// Returns the word for a block in the domain with this name.
pub fn noun(domain: &str) -> &'static str {
    domain.parse().unwrap_or(Domain::Native).noun()
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// Names the signal that ended a command.
fn ended_by(ending: Ending) -> Option<String> {
    let number = ending.exit_status? - SIGNALLED;
    let name = || signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned);
    (ending.end == End::Killed).then(|| format!("killed by {}", name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rows: &[(Domain, u64, u64, u64)]) -> Figures {
        let row = |&(domain, current, blocks, peak): &(Domain, u64, u64, u64)| DomainTotals {
            domain,
            current,
            peak,
            blocks,
            allocs: 1,
            frees: 0,
            allocated_bytes: 0,
        };
        Figures { domains: rows.iter().map(row).collect(), ..Figures::nothing() }
    }

    fn line(figures: &Figures, ending: Option<Ending>) -> String {
        let about = About { path: Path::new("/s.zst"), ending, parent: Some(7), is_abroad: false };
        let line = headline(figures, about);
        let (line, rest) =
            line.split_once("; snapshot: /s.zst; read it with: ").expect("where it is, and how to read it");
        assert!(rest.ends_with("report /s.zst"), "{rest}");
        line.to_owned()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_layer_with_the_memory_comes_first() {
        let native = (Domain::Native, 0, 0, 12 * MIB);
        assert_eq!(line(&figures(&[native]), None), "peak 12.0 MiB native; live 0 B native in 0 blocks");
        let mmap = (Domain::Mmap, 8192, 1, 288 * MIB);
        let reserved = (Domain::Reserved, 1 << 40, 1, 1 << 40);
        assert_eq!(
            line(&figures(&[native, mmap, reserved]), None),
            "peak 288 MiB mmap, 12.0 MiB native; live 8192 B mmap in 1 range, 0 B native in 0 blocks"
        );
        let little = (Domain::Mmap, 8192, 2, 8192);
        assert_eq!(line(&figures(&[native, little]), None), "peak 12.0 MiB native; live 0 B native in 0 blocks");
        let python = (Domain::Python, 50, 1, 100);
        assert_eq!(
            line(&figures(&[native, python, (Domain::Track(3), 5, 5, 5)]), None),
            "peak 12.0 MiB native, 100 B python; live 0 B native in 0 blocks, 50 B python in 1 block"
        );
        assert_eq!(line(&figures(&[(Domain::Native, 0, 0, 0)]), None), "peak 0 B native; live 0 B native in 0 blocks");
    }

    #[test]
    fn estimates_and_begin_are_said() {
        let mut figures = figures(&[(Domain::Native, MIB, 3, 12 * MIB), (Domain::Mmap, 4096, 1, 12 * MIB)]);
        figures.sample_interval = 4096;
        figures.begun = Begun::Attach;
        assert_eq!(
            line(&figures, None),
            "peak since the attach about 12.0 MiB native, 12.0 MiB mmap; live about 1024 KiB native in about 3 blocks, \
             4096 B mmap in 1 range"
        );
    }

    #[test]
    fn a_signal_and_an_inheritance_are_said() {
        let mut figures = figures(&[(Domain::Native, 4, 1, 4)]);
        let ending = |end, exit_status| Some(Ending { end, exit_status });
        let plain = "peak 4 B native; live 4 B native in 1 block";
        assert_eq!(line(&figures, ending(End::Exited, Some(139))), plain, "a status of its own");
        assert_eq!(line(&figures, ending(End::Killed, Some(139))), format!("killed by SIGSEGV; {plain}"));
        assert_eq!(line(&figures, ending(End::Killed, Some(128 + 40))), format!("killed by signal 40; {plain}"));
        figures.begun = Begun::Fork;
        figures.inherited = Some([("native".to_owned(), 2), ("python".to_owned(), 1)].into());
        assert_eq!(
            line(&figures, None),
            "peak since the fork 4 B native; live 4 B native in 1 block; began with 2 native blocks, 1 python block of process 7"
        );
    }
}
