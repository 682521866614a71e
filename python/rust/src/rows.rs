//! Rows that become Python objects separately, on access.

use crate::names::tuples;
use crate::snapshot::Content;
use heapline_shared_format::snapshot::Domain;
use heapline_tools::query::diff::Change;
use heapline_tools::query::statistics::{Key, Statistic, Trace};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::sync::Arc;

/// Groups, in order.
#[pyclass(frozen, module = "heapline._native")]
pub struct Statistics {
    content: Arc<Content>,
    rows: Vec<(Statistic, Option<Change>)>,
}

/// A row: (file, line) and function of each frame, the most recent first; true depth; bytes and
/// blocks; change of bytes and of blocks.
type Row<'py> = (Bound<'py, PyTuple>, Bound<'py, PyTuple>, Option<u16>, u64, u64, Option<i128>, Option<i128>);
/// 95 % intervals of bytes and of blocks, and half of the interval of the change of bytes.
type Doubt = ((u64, u64), (u64, u64), Option<u64>);

#[pymethods]
impl Statistics {
    fn __len__(&self) -> usize {
        self.rows.len()
    }

    fn row<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Row<'py>> {
        let (group, change) = self.at(index)?;
        let places = self.content.names().places_of_group(py, group);
        let (frames, functions) = tuples(py, places)?;
        let depth = matches!(group.key, Key::Traceback(_)).then_some(group.total_nframe);
        let (size_diff, count_diff) = (change.map(|change| change.size), change.map(|change| change.count));
        Ok((frames, functions, depth, group.size, group.count, size_diff, count_diff))
    }

    /// Returns the uncertainty of a row. None for an exact row.
    fn doubt(&self, index: usize) -> PyResult<Option<Doubt>> {
        let (group, change) = self.at(index)?;
        let size = group.estimate.size_interval(group.size);
        let doubt = change.and_then(|change| change.doubt);
        Ok((size.is_some() || doubt.is_some()).then(|| {
            let count = group.estimate.count_interval();
            (size.unwrap_or((group.size, group.size)), count.unwrap_or((group.count, group.count)), doubt)
        }))
    }
}

impl Statistics {
    fn at(&self, index: usize) -> PyResult<&(Statistic, Option<Change>)> {
        self.rows.get(index).ok_or_else(|| PyIndexError::new_err("list index out of range"))
    }

    pub fn new(content: &Arc<Content>, rows: Vec<(Statistic, Option<Change>)>) -> Statistics {
        Statistics { content: Arc::clone(content), rows }
    }
}

/// Live blocks, row by row.
#[pyclass(frozen, module = "heapline._native")]
pub struct Traces {
    content: Arc<Content>,
    groups: Arc<Vec<(Domain, Trace)>>,
    /// Number of blocks up to the end of each group.
    ends: Vec<usize>,
}

/// A block: domain; bytes; (file, line) and function of each frame, the most recent first; true
/// depth.
type Block<'py> = (u64, u64, Bound<'py, PyTuple>, Bound<'py, PyTuple>, u16);

#[pymethods]
impl Traces {
    fn __len__(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn row<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Block<'py>> {
        let group = self.ends.partition_point(|&end| end <= index);
        let (domain, trace) = self.groups.get(group).ok_or_else(|| PyIndexError::new_err("list index out of range"))?;
        let places = self.content.names().places(py, trace.traceback);
        let (frames, functions) = tuples(py, places)?;
        // For a sample this is the number of bytes it represents.
        let size = trace.size / trace.count.max(1);
        Ok((domain.code(), size, frames, functions, trace.total_nframe))
    }
}

impl Traces {
    pub fn new(content: &Arc<Content>, groups: Arc<Vec<(Domain, Trace)>>) -> Traces {
        let mut end = 0usize;
        let ends = groups.iter().map(|(_, trace)| {
            end = end.saturating_add(usize::try_from(trace.count).unwrap_or(usize::MAX));
            end
        });
        let ends = ends.collect();
        Traces { content: Arc::clone(content), groups, ends }
    }
}
