//! Steps of a table's sums: what has changed in each domain since the last step.

use super::Table;
use super::heap::Heap;
use super::shared::Shared;
use super::totals::{EndedStep, RowChange, Totals};
use heapline_shared_format::snapshot::Domain;

/// Receiver of the changes of a step.
pub trait StepSink {
    /// Receives the changes of a domain. `totals` are the sums at the end of the step; their stacks
    /// of ranges have numbers of their own, but `changes` have the table's.
    fn domain(
        &mut self,
        domain: Domain,
        totals: &Totals,
        step: &EndedStep,
        changes: &mut dyn Iterator<Item = RowChange>,
    );
}

impl Table {
    /// Ends a step, and begins the next step. `sink` receives each domain once, in the order of
    /// domains. `spent` is the memory for the changes of a domain, used again and again.
    pub fn end_step(&mut self, spent: &mut EndedStep, sink: &mut impl StepSink) {
        let Table { heap, python, tracked, ranges, shared, .. } = self;
        let python = python.as_deref_mut().map(|heap| (Domain::Python, heap)).into_iter();
        let tracked = tracked.iter_mut().map(|(&domain, heap)| (domain, heap));
        let (pools, tracked): (Vec<_>, Vec<_>) = tracked.partition(|(domain, _)| *domain > Domain::Native);
        for (domain, heap) in python.chain(tracked).chain([(Domain::Native, heap)]) {
            end_of_heap(domain, heap, shared, spent, sink);
        }
        for (domain, layer) in ranges.layers_mut() {
            let step = layer.end_step(std::mem::take(spent));
            sink.domain(domain, layer.totals(), &step, &mut layer.changes(&step));
            *spent = step;
        }
        for (domain, heap) in pools {
            end_of_heap(domain, heap, shared, spent, sink);
        }
    }
}

fn end_of_heap(domain: Domain, heap: &mut Heap, shared: &mut Shared, spent: &mut EndedStep, sink: &mut impl StepSink) {
    let step = heap.end_step(std::mem::take(spent), shared);
    let totals = heap.totals();
    sink.domain(domain, totals, &step, &mut totals.changes(&step));
    *spent = step;
}
