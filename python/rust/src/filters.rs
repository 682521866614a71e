//! tracemalloc's filters, by tracemalloc's rules: each filter has its own choice of frames and
//! domains.
//!
//! `report` has a single set of patterns and a single domain. Here each filter has a matcher of
//! `report`.

use heapline_shared_format::snapshot::Domain;
use heapline_tools::frames::Tracebacks;
use heapline_tools::query::filter::{Filters, Matcher, Pattern};
use heapline_tools::query::statistics::Trace;
use pyo3::prelude::*;

/// A filter from Python: tracemalloc's `Filter`, or a `DomainFilter`, which has no pattern.
#[derive(Clone, Debug, FromPyObject)]
pub struct Rule {
    inclusive: bool,
    pattern: Option<String>,
    lineno: Option<i64>,
    all_frames: bool,
    /// Any integer. A number of no domain matches nothing.
    domain: Option<i64>,
}

/// The filters of a call of `filter_traces`.
#[derive(Debug)]
pub struct Stage {
    rules: Vec<(Rule, Option<Filters>)>,
}

impl Stage {
    pub fn new(rules: Vec<Rule>) -> Stage {
        let filters = |rule: &Rule| {
            let glob = rule.pattern.as_deref()?;
            // A line number beyond u32 matches no frame, as in tracemalloc.
            let lineno = rule.lineno.map(|line| u32::try_from(line).unwrap_or(u32::MAX));
            let include = vec![Pattern::new(glob, lineno)];
            Some(Filters { include, exclude: Vec::new(), all_frames: rule.all_frames })
        };
        Stage { rules: rules.into_iter().map(|rule| (filters(&rule), rule)).map(|(f, rule)| (rule, f)).collect() }
    }

    /// Returns the domains named by inclusive filters.
    pub fn named(&self) -> impl Iterator<Item = Domain> + '_ {
        let inclusive = self.rules.iter().filter(|(rule, _)| rule.inclusive);
        inclusive.filter_map(|(rule, _)| Domain::from_code(u64::try_from(rule.domain?).ok()?))
    }

    /// Drops the traces rejected by the filters (tracemalloc: `Snapshot._filter_trace`).
    pub fn apply(&self, tracebacks: &Tracebacks, traces: &mut Vec<(Domain, Trace)>) {
        let mut matchers: Vec<_> =
            self.rules.iter().map(|(rule, filters)| (rule, filters.as_ref().map(Matcher::new))).collect();
        let includes_any = matchers.iter().any(|(rule, _)| rule.inclusive);
        traces.retain(|(domain, trace)| {
            let mut included = !includes_any;
            for (rule, matcher) in &mut matchers {
                // An exclusive filter always counts. An inclusive filter counts until the first
                // match.
                if rule.inclusive && included {
                    continue;
                }
                let lets_through = rule.lets_through(matcher.as_mut(), tracebacks, *domain, trace);
                match rule.inclusive {
                    true => included = lets_through,
                    false if !lets_through => return false,
                    false => {}
                }
            }
            included
        });
    }
}

impl Rule {
    /// Whether the filter accepts a trace (tracemalloc: `Filter._match`, `DomainFilter._match`).
    fn lets_through(
        &self,
        matcher: Option<&mut Matcher<'_>>,
        tracebacks: &Tracebacks,
        domain: Domain,
        trace: &Trace,
    ) -> bool {
        let is_domain = self.domain.is_none_or(|own| i64::try_from(domain.code()) == Ok(own));
        let is_place = matcher.is_none_or(|matcher| matcher.keeps(tracebacks, trace));
        (is_domain && is_place) == self.inclusive
    }
}
