//! Churn: blocks that are allocated and freed again and again.

use crate::query::statistics::Key;
use heapline_shared_format::snapshot::{Domain, LIFETIME_CLASSES, Snapshot, StackLifetimes};
use std::collections::HashMap;

/// Names of the classes of lifetimes of blocks that outlived the step of their birth.
pub const LIFETIMES: [&str; LIFETIME_CLASSES] = ["< 1 s", "< 10 s", "< 1 min", "< 10 min", "< 1 h", "\u{2265} 1 h"];

/// Churn of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Churn {
    /// Blocks freed by the next event of the allocating thread. None of a recording of samples.
    pub temporary: Option<u64>,
    /// Blocks that ended in the step of the history that they were born in.
    pub within_step: u64,
    /// Blocks that ended in a later step, by class of lifetime.
    pub ended: [u64; LIFETIME_CLASSES],
    /// Milliseconds of the recording.
    pub milliseconds: u64,
}

impl Churn {
    fn add(&mut self, row: &StackLifetimes) {
        self.temporary = self.temporary.map(|sum| sum.saturating_add(row.temporary));
        self.within_step = self.within_step.saturating_add(row.within_step);
        self.ended.iter_mut().zip(row.ended).for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }

    /// Blocks that lived shortly: temporary ones, or those that ended in the step of their birth.
    /// Most of the temporary ones are among those.
    pub fn short(&self) -> u64 {
        self.within_step.max(self.temporary.unwrap_or(0))
    }

    /// Number of blocks that ended.
    pub fn all_ended(&self) -> u64 {
        self.ended.iter().fold(self.within_step, |sum, &count| sum.saturating_add(count))
    }

    /// Allocations a second, of `count` allocations in the recording.
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 * 1000.0 / self.milliseconds.max(1) as f64
    }
}

/// Fact that a snapshot does not know the lifetimes of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there are no lifetimes in the snapshot of process {pid} (--no-history, or an older Heapline): record it again"
)]
pub struct NoLifetimes {
    /// The process.
    pub pid: u32,
}

/// Returns the churn of groups of stacks, each stack in one group.
///
/// # Errors
///
/// Fails with [`NoLifetimes`].
pub fn churned(
    snapshot: &Snapshot,
    domain: Domain,
    groups: &HashMap<Key, Vec<u32>>,
) -> Result<HashMap<Key, Churn>, NoLifetimes> {
    let Some(history) = snapshot.history.as_ref().filter(|_| snapshot.ages.is_some()) else {
        return Err(NoLifetimes { pid: snapshot.meta.pid });
    };
    let milliseconds = history.end();
    let is_sampled = snapshot.meta.sample_interval != 0 || !snapshot.sampled.is_empty();
    let temporary = (!is_sampled).then_some(0);
    let rows = snapshot.lifetimes.iter().filter(|row| row.domain == domain);
    let rows: HashMap<u32, &StackLifetimes> = rows.map(|row| (row.stack, row)).collect();
    let churn = |stacks: &Vec<u32>| {
        let mut churn = Churn { temporary, milliseconds, ..Churn::default() };
        stacks.iter().filter_map(|stack| rows.get(stack)).for_each(|row| churn.add(row));
        churn
    };
    Ok(groups.iter().map(|(&key, stacks)| (key, churn(stacks))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::snapshot::history::Step;
    use heapline_shared_format::snapshot::{Ages, History};

    #[test]
    fn the_stacks_of_a_group_are_added_up() {
        let row = |domain, stack, temporary| StackLifetimes {
            domain,
            stack,
            temporary,
            within_step: temporary + 1,
            ended: [1, 0, 0, 0, 0, 2],
        };
        let rows = [(Domain::Python, 1, 7), (Domain::Native, 1, 10), (Domain::Native, 2, 20), (Domain::Native, 3, 1)];
        let step = |end| Step { end, ..Step::default() };
        let mut snapshot = Snapshot {
            lifetimes: rows.map(|(domain, stack, temporary)| row(domain, stack, temporary)).to_vec(),
            history: Some(History { steps: vec![step(0), step(2_000)], ..History::default() }),
            ages: Some(Ages::default()),
            ..Snapshot::default()
        };
        let groups = HashMap::from([(Key::Size(1), vec![1, 2]), (Key::Size(2), vec![9])]);
        let churn = churned(&snapshot, Domain::Native, &groups).expect("lifetimes");
        let one = churn[&Key::Size(1)];
        assert_eq!((one.temporary, one.within_step, one.ended), (Some(30), 32, [2, 0, 0, 0, 0, 4]));
        assert_eq!((one.all_ended(), one.short(), one.per_second(500)), (38, 32, 250.0));
        assert_eq!(churn[&Key::Size(2)].all_ended(), 0);
        snapshot.meta.sample_interval = 4096;
        assert_eq!(churned(&snapshot, Domain::Native, &groups).expect("lifetimes")[&Key::Size(1)].temporary, None);
        snapshot.history = None;
        assert!(churned(&snapshot, Domain::Native, &groups).is_err());
    }
}
