//! Questions to the aggregator of a process. The interpreter is not used while waiting for an
//! answer.

use heapline_aggregator::control;
use heapline_aggregator::control::Ask;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rustix::process::{PTracer, Pid, set_ptracer};
use serde::Deserialize;
use std::path::PathBuf;

/// Figures of a domain: name; bytes now and at the peak; blocks, allocations, frees; bytes ever
/// allocated.
pub type Figures = (String, u64, u64, u64, u64, u64, u64);

/// The used part of the answer to `stats` (docs/formats.md).
#[derive(Deserialize)]
struct Stats {
    snapshot: Session,
    domains: Vec<Domain>,
}

#[derive(Deserialize)]
struct Session {
    nframe: u32,
}

#[derive(Deserialize)]
struct Domain {
    domain: String,
    current: u64,
    peak: u64,
    blocks: u64,
    allocs: u64,
    frees: u64,
    allocated_bytes: u64,
}

/// Returns the frames kept per traceback, and the figures of all domains of process `pid`.
///
/// RuntimeError without an answering aggregator; the message says what to do.
#[pyfunction]
pub fn figures(py: Python<'_>, pid: u32) -> PyResult<(u32, Vec<Figures>)> {
    let answer = py.detach(|| {
        let text = control::ask(pid, Ask::Stats, true).map_err(|error| error.to_string())?;
        serde_json::from_str::<Stats>(&text)
            .map_err(|error| format!("the aggregator's answer is not understood: {error}"))
    });
    let stats = answer.map_err(PyRuntimeError::new_err)?;
    let row = |d: Domain| (d.domain, d.current, d.peak, d.blocks, d.allocs, d.frees, d.allocated_bytes);
    Ok((stats.snapshot.nframe, stats.domains.into_iter().map(row).collect()))
}

/// Whether an aggregator answers for process `pid` now.
#[pyfunction]
pub fn is_answered(py: Python<'_>, pid: u32) -> bool {
    py.detach(|| control::is_answered(pid))
}

/// Asks the aggregator of process `pid` for an action: "snapshot" (to `output`), "mark" (with
/// `text`), "reset-peak", "clear-traces" or "detach".
///
/// RuntimeError with the reason when the aggregator does not act.
#[pyfunction]
#[pyo3(signature = (pid, what, output=None, text=None))]
pub fn ask(py: Python<'_>, pid: u32, what: &str, output: Option<PathBuf>, text: Option<String>) -> PyResult<()> {
    let what = match what {
        "snapshot" => Ask::Snapshot(output),
        "mark" => Ask::Mark(text.unwrap_or_default()),
        "reset-peak" => Ask::ResetPeak,
        "clear-traces" => Ask::ClearTraces,
        "detach" => Ask::Detach,
        other => return Err(PyRuntimeError::new_err(format!("an aggregator cannot {other}"))),
    };
    let done = py.detach(|| control::ask(pid, what, false).map_err(|error| error.to_string()));
    done.map(drop).map_err(PyRuntimeError::new_err)
}

/// Lets process `pid` attach to this process, on systems where Yama allows only parents. None:
/// nobody, 0: everybody.
///
/// Kernels without Yama do not know this call, and do not need it.
#[pyfunction]
#[pyo3(signature = (pid))]
pub fn allow_tracing_by(pid: Option<i32>) {
    let tracer = match pid {
        None => PTracer::None,
        Some(pid) => Pid::from_raw(pid).map_or(PTracer::Any, PTracer::ProcessID),
    };
    // The error EINVAL is ignored: the kernel has no Yama.
    let _ = set_ptracer(tracer);
}
