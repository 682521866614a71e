//! Traces as columns, for data frames and Arrow: numbers as bytes, texts once.

use crate::snapshot::Content;
use heapline_shared_format::snapshot::Domain;
use heapline_tools::frames::{StringId, Tracebacks};
use heapline_tools::query::statistics::Trace;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::collections::HashMap;
use std::hash::Hash;

/// Columns with an element for each group of equal blocks. `count` is an estimate for samples.
pub struct Columns {
    domain: Texts,
    filename: Texts,
    lineno: Vec<u8>,
    function: Texts,
    thread: Texts,
    size: Vec<u8>,
    count: Vec<u8>,
}

/// A column of texts: a number for each element (i32, little-endian; -1 for none), and the text of
/// each number.
#[derive(Default)]
struct Texts {
    codes: Vec<u8>,
    texts: Vec<String>,
}

pub fn of(content: &Content, traces: &[(Domain, Trace)]) -> Columns {
    let names = content.names();
    let tracebacks = &names.tracebacks;
    let frame = |trace: &Trace| tracebacks.most_recent(trace.traceback);
    let texts = |key: &dyn Fn(&Trace) -> Option<StringId>| {
        Texts::new(traces.iter().map(|(_, trace)| key(trace)), |id| text_of(tracebacks, id))
    };
    Columns {
        domain: Texts::new(traces.iter().map(|(domain, _)| Some(*domain)), |domain| domain.to_string()),
        filename: texts(&|trace| Some(frame(trace).filename)),
        lineno: numbers(traces, |trace| u64::from(frame(trace).lineno)),
        function: texts(&|trace| Some(frame(trace).function)),
        thread: texts(&|trace| Some(trace.block?.thread)),
        size: numbers(traces, |trace| trace.size),
        count: numbers(traces, |trace| trace.estimate.count(trace.count)),
    }
}

impl Columns {
    pub fn into_dict(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let dict = PyDict::new(py);
        for (name, column) in
            [("domain", self.domain), ("filename", self.filename), ("function", self.function), ("thread", self.thread)]
        {
            dict.set_item(name, (PyBytes::new(py, &column.codes), column.texts))?;
        }
        for (name, column) in [("lineno", self.lineno), ("size", self.size), ("count", self.count)] {
            dict.set_item(name, PyBytes::new(py, &column))?;
        }
        Ok(dict)
    }
}

impl Texts {
    fn new<K: Copy + Eq + Hash>(keys: impl Iterator<Item = Option<K>>, text: impl Fn(K) -> String) -> Texts {
        let (mut texts, mut codes, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        for key in keys {
            let code = key.map(|key| {
                *known.entry(key).or_insert_with(|| {
                    texts.push(text(key));
                    i32::try_from(texts.len() - 1).expect("fewer than 2^31 texts")
                })
            });
            codes.extend(code.unwrap_or(-1).to_le_bytes());
        }
        Texts { codes, texts }
    }
}

fn text_of(tracebacks: &Tracebacks, id: StringId) -> String {
    tracebacks.text(id).to_string()
}

/// Returns a column of i64, the type of data frames.
fn numbers(traces: &[(Domain, Trace)], value: impl Fn(&Trace) -> u64) -> Vec<u8> {
    let value = |trace| i64::try_from(value(trace)).unwrap_or(i64::MAX);
    traces.iter().flat_map(|(_, trace)| value(trace).to_le_bytes()).collect()
}
