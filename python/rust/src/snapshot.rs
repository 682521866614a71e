//! `Snapshot`: a file, and the viewed part of the file.

use crate::columns;
use crate::filters::{Rule, Stage};
use crate::names::{Names, Translation};
use crate::rows::{Statistics, Traces};
use heapline_shared_format::snapshot::{self as format, Domain, ReadError};
use heapline_tools::frames::{Frames, resolve};
use heapline_tools::input::copies::Part;
use heapline_tools::input::load::{LoadError, load};
use heapline_tools::input::moment::At;
use heapline_tools::output::Output;
use heapline_tools::query::diff::{Nothing, compare_to};
use heapline_tools::query::estimate::{Estimate, of_nothing};
use heapline_tools::query::statistics::{By, Key, Statistic, Trace, group, sorted};
use heapline_tools::query::view::View;
use heapline_tools::symbols::{DEBUG_DIR, Symbolizer, default_cache_dir};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A snapshot file in memory, shared by all views of the file.
pub struct Content {
    pub snapshot: format::Snapshot,
    names: Mutex<Names>,
}

impl Content {
    /// Locks the names. A panic during naming leaves the names incomplete, but not wrong, so a
    /// poisoned lock is accepted.
    pub fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes, blocks, and a 95 % interval of each.
type Total = (u64, u64, Option<(u64, u64)>, Option<(u64, u64)>);

/// A view: the choice of domain, moment, frames and filters.
#[derive(Clone)]
struct Look {
    /// Chosen domain. None: tracemalloc's domains in a CPython process, malloc's domain otherwise.
    domain: Option<Domain>,
    at: At,
    frames: Frames,
    raw_frames: bool,
    /// The filters of each call of `filter_traces`, in order.
    stages: Vec<Arc<Stage>>,
}

/// A snapshot, seen through a choice of domain and moment and any filters. Names and groups are
/// computed only on demand.
#[pyclass(frozen, module = "heapline._native")]
pub struct Snapshot {
    content: Arc<Content>,
    look: Look,
    traces: OnceLock<Arc<Vec<(Domain, Trace)>>>,
}

#[pymethods]
impl Snapshot {
    /// Reads the file at `path`. OSError when the file cannot be opened, ValueError when the file
    /// is no snapshot.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Snapshot> {
        let snapshot = py.detach(|| load(&path)).map_err(|error| {
            let text = error.to_string();
            match error {
                LoadError::Open { error, .. } | LoadError::Read { error: ReadError::Io(error), .. } => {
                    match error.raw_os_error() {
                        Some(errno) => PyOSError::new_err((errno, text)),
                        None => PyOSError::new_err(text),
                    }
                }
                LoadError::Read { .. } => PyValueError::new_err(text),
            }
        })?;
        let symbolizer = Symbolizer::new(vec![PathBuf::from(DEBUG_DIR)], default_cache_dir());
        let content = Arc::new(Content { snapshot, names: Mutex::new(Names::new(symbolizer)) });
        let look = Look { domain: None, at: At::Live, frames: Frames::Mixed, raw_frames: false, stages: Vec::new() };
        Ok(Snapshot { content, look, traces: OnceLock::new() })
    }

    /// Writes the whole file again, independent of the view.
    fn dump(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| write(&self.content.snapshot, &path)).map_err(PyOSError::new_err)
    }

    /// The traced process, time, mode and missing data, as in `report --format json`.
    #[getter]
    fn meta<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let meta = &self.content.snapshot.meta;
        let dict = PyDict::new(py);
        dict.set_item("pid", meta.pid)?;
        dict.set_item("command", &meta.command)?;
        dict.set_item("executable", &meta.executable)?;
        dict.set_item("taken_at", &meta.taken_at)?;
        dict.set_item("mode", format::mode_name(meta.sample_interval, &meta.unseen))?;
        dict.set_item("unseen", unseen(py, &meta.unseen)?)?;
        dict.set_item("sample_interval", meta.sample_interval)?;
        dict.set_item("nframe", meta.nframe)?;
        dict.set_item("end", format!("{:?}", meta.end).to_lowercase())?;
        dict.set_item("exit_status", meta.exit_status)?;
        dict.set_item("lost", &meta.lost)?;
        dict.set_item("contradictions", &meta.contradictions)?;
        dict.set_item("untracked_frees", meta.untracked_frees)?;
        dict.set_item("target_bytes", meta.target_bytes)?;
        dict.set_item("aggregator_bytes", meta.aggregator_bytes)?;
        dict.set_item("notes", &meta.notes)?;
        Ok(dict)
    }

    /// Figures of each domain: name, bytes now and at the peak, blocks, allocations, frees, bytes
    /// ever allocated.
    #[getter]
    fn domains(&self) -> Vec<crate::control::Figures> {
        let rows = self.content.snapshot.domains.iter();
        rows.map(|d| (d.domain.to_string(), d.current, d.peak, d.blocks, d.allocs, d.frees, d.allocated_bytes))
            .collect()
    }

    /// The viewed domain, chosen or by default, and the moment.
    #[getter]
    fn looks_at(&self) -> (u64, &'static str) {
        let domain = self.look.domain.unwrap_or_else(|| View::default_domain(&self.content.snapshot));
        (domain.code(), self.look.at.name())
    }

    /// Returns the problems with modules met while naming, a sentence for each.
    fn take_warnings(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.content.names().symbolizer.take_warnings())
    }

    /// Returns another view of the same file. None keeps the present choice.
    #[pyo3(signature = (domain, at, frames, raw_frames))]
    fn view(
        &self,
        domain: Option<&str>,
        at: Option<&str>,
        frames: Option<&str>,
        raw_frames: Option<bool>,
    ) -> PyResult<Snapshot> {
        let mut look = self.look.clone();
        if let Some(name) = domain {
            look.domain = Some(domain_of(name).map_err(PyValueError::new_err)?);
        }
        if let Some(word) = at {
            look.at = chosen(word, "at")?;
        }
        if let Some(word) = frames {
            look.frames = chosen(word, "frames")?;
        }
        look.raw_frames = raw_frames.unwrap_or(look.raw_frames);
        Ok(self.seen_by(look))
    }

    /// Returns a filtered view (tracemalloc: `Snapshot.filter_traces`).
    fn filter(&self, rules: Vec<Rule>) -> Snapshot {
        let mut look = self.look.clone();
        look.stages.push(Arc::new(Stage::new(rules)));
        self.seen_by(look)
    }

    /// Bytes and blocks of all traces, and the 95 % intervals of estimates.
    #[getter]
    fn total(&self, py: Python<'_>) -> Total {
        py.detach(|| {
            let (mut size, mut count, mut estimate) = (0_u64, 0_u64, Estimate::default());
            for (_, trace) in self.traces().iter() {
                size = size.saturating_add(trace.size);
                count = count.saturating_add(trace.count);
                estimate.add(&trace.estimate);
            }
            if count == 0 {
                estimate = self.nothing();
            }
            (size, estimate.count(count), estimate.size_interval(size), estimate.count_interval())
        })
    }

    /// Returns groups (tracemalloc: `Snapshot.statistics`). `key_type` is any of tracemalloc's
    /// three key types, or "function".
    fn statistics(&self, py: Python<'_>, key_type: &str, cumulative: bool) -> PyResult<Statistics> {
        let by = by(key_type, cumulative)?;
        let rows = py.detach(|| {
            let groups = self.groups(by, cumulative);
            let names = self.content.names();
            sorted(&names.tracebacks, groups).into_iter().map(|row| (row, None)).collect()
        });
        Ok(Statistics::new(&self.content, rows))
    }

    /// Returns differences of groups (tracemalloc: `Snapshot.compare_to`).
    fn compare_to(&self, py: Python<'_>, old: &Snapshot, key_type: &str, cumulative: bool) -> PyResult<Statistics> {
        let by = by(key_type, cumulative)?;
        let rows = py.detach(|| {
            let new_groups = self.groups(by, cumulative);
            let old_groups = old.groups(by, cumulative);
            let (names, old_groups) = self.translated(old, old_groups);
            let nothing = Nothing { new: self.nothing(), old: old.nothing() };
            let rows = compare_to(&names.tracebacks, new_groups, old_groups, &nothing);
            rows.into_iter().map(|(row, change)| (row, Some(change))).collect()
        });
        Ok(Statistics::new(&self.content, rows))
    }

    /// Every block. ValueError for any moment but now: sizes of single blocks are known only of
    /// live blocks.
    #[getter]
    fn blocks(&self, py: Python<'_>) -> PyResult<Traces> {
        if self.look.at != At::Live {
            let text = "single blocks are known of live ones only: use statistics(), or view(at=\"live\")";
            return Err(PyValueError::new_err(text));
        }
        let traces = py.detach(|| self.traces());
        Ok(Traces::new(&self.content, traces))
    }

    /// Returns groups of equal blocks as columns: numbers, and the texts for columns of text
    /// numbers.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let columns = py.detach(|| columns::of(&self.content, &self.traces()));
        columns.into_dict(py)
    }
}

impl Snapshot {
    fn seen_by(&self, look: Look) -> Snapshot {
        Snapshot { content: Arc::clone(&self.content), look, traces: OnceLock::new() }
    }

    /// Returns the viewed traces. The caller must not hold the interpreter's lock.
    fn traces(&self) -> Arc<Vec<(Domain, Trace)>> {
        Arc::clone(self.traces.get_or_init(|| Arc::new(self.looked_up())))
    }

    /// Returns the certainty of finding nothing in domains without a sample.
    fn nothing(&self) -> Estimate {
        let (part, at) = (Part::alone(&self.content.snapshot), self.look.at);
        let mut all = Estimate::default();
        self.domains_in_view().into_iter().for_each(|domain| all.add(&of_nothing(std::iter::once(part), domain, at)));
        all
    }

    fn looked_up(&self) -> Vec<(Domain, Trace)> {
        let Look { at, frames, raw_frames, stages, .. } = &self.look;
        let snapshot = &self.content.snapshot;
        let mut names = self.content.names();
        let Names { tracebacks, symbolizer, .. } = &mut *names;
        let mut traces = Vec::new();
        for domain in self.domains_in_view() {
            let view = View { domain, at: *at };
            let resolved = resolve(snapshot, &view.stacks(snapshot), *frames, *raw_frames, symbolizer, tracebacks);
            let found = view.traces(Part::alone(snapshot), &resolved, false, tracebacks);
            traces.extend(found.into_iter().map(|trace| (domain, trace)));
        }
        stages.iter().for_each(|stage| stage.apply(tracebacks, &mut traces));
        traces
    }

    /// Returns the viewed domains: the chosen domain, or tracemalloc's domains, or malloc's. Adds
    /// domains named by inclusive filters.
    fn domains_in_view(&self) -> Vec<Domain> {
        let snapshot = &self.content.snapshot;
        let mut domains: Vec<Domain> = match self.look.domain {
            Some(domain) => vec![domain],
            None => match View::default_domain(snapshot) {
                Domain::Python => {
                    let of_tracemalloc = |domain: &Domain| matches!(domain, Domain::Python | Domain::Track(_));
                    snapshot.domains.iter().map(|row| row.domain).filter(of_tracemalloc).collect()
                }
                other => vec![other],
            },
        };
        domains.extend(self.look.stages.iter().flat_map(|stage| stage.named()));
        domains.sort_unstable();
        domains.dedup();
        domains
    }

    fn groups(&self, by: By, cumulative: bool) -> HashMap<Key, Statistic> {
        let traces = self.traces();
        let names = self.content.names();
        group(&names.tracebacks, traces.iter().map(|(_, trace)| *trace), by, cumulative)
    }

    /// Translates groups of another snapshot to the names of this snapshot. The names stay locked.
    fn translated(
        &self,
        old: &Snapshot,
        groups: HashMap<Key, Statistic>,
    ) -> (MutexGuard<'_, Names>, HashMap<Key, Statistic>) {
        if Arc::ptr_eq(&self.content, &old.content) {
            return (self.content.names(), groups);
        }
        // Locks are taken in a fixed order. Otherwise two comparisons of the same snapshots could
        // deadlock.
        let (mut names, from) = if Arc::as_ptr(&self.content) < Arc::as_ptr(&old.content) {
            let names = self.content.names();
            (names, old.content.names())
        } else {
            let from = old.content.names();
            (self.content.names(), from)
        };
        let mut translation = Translation::new(&from.tracebacks, &mut names.tracebacks);
        let groups = groups.into_values().map(|group| translation.group(group));
        let groups = groups.map(|group| (group.key, group)).collect();
        (names, groups)
    }
}

/// Returns the unseen parts of memory, each cause with JSON's field names.
fn unseen<'py>(py: Python<'py>, causes: &[format::Unseen]) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let cause = |cause: &format::Unseen| {
        let dict = PyDict::new(py);
        dict.set_item("kind", &cause.kind)?;
        dict.set_item("object", &cause.object)?;
        dict.set_item("name", &cause.name)?;
        dict.set_item("text", &cause.text)?;
        Ok(dict)
    };
    causes.iter().map(cause).collect()
}

fn write(snapshot: &format::Snapshot, path: &Path) -> Result<(), String> {
    let output = Output::open(Some(path)).map_err(|error| error.to_string())?;
    output
        .write(|out| format::write(snapshot, out, &mut |_| {}).map(drop))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Parses a domain: a name, or a number in digits.
fn domain_of(text: &str) -> Result<Domain, String> {
    match text.parse::<u64>().ok().and_then(Domain::from_code) {
        Some(domain) => Ok(domain),
        None => text.parse(),
    }
}

/// Parses a word of the command line.
fn chosen<T: clap::ValueEnum>(word: &str, what: &str) -> PyResult<T> {
    T::from_str(word, false).map_err(|_| {
        let words =
            T::value_variants().iter().filter_map(|value| Some(value.to_possible_value()?.get_name().to_string()));
        let words: Vec<String> = words.collect();
        PyValueError::new_err(format!("{what} cannot be {word:?}: use {}", words.join(", ")))
    })
}

/// Parses a key type. Errors are tracemalloc's own.
fn by(key_type: &str, cumulative: bool) -> PyResult<By> {
    match key_type {
        "traceback" if cumulative => {
            Err(PyValueError::new_err(format!("cumulative mode cannot by used with key type {key_type:?}")))
        }
        "traceback" => Ok(By::Traceback),
        "lineno" => Ok(By::Lineno),
        "filename" => Ok(By::Filename),
        _ => Err(PyValueError::new_err(format!("unknown key_type: {key_type:?}"))),
    }
}
