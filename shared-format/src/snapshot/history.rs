//! Memory over time: the steps of a recording.
//!
//! ```text
//! begin                                                                      snapshot
//!   |      step of 20 min      |    2 min    | 10 s |...|1 s|1 s|1 s|1 s|1 s|1 s|
//!   0                         end           end                                end
//! ```
//!
//! - A step has the figures of its end, the greatest figures within the step, and what was counted
//!   in the step. Steps are fine where recent, and coarse where old.
//! - Stacks are kept as changes: the memory of a stack at the end of a step is the sum of its
//!   changes up to the step. So two steps are joined by adding their changes up, and a stack
//!   without changes costs nothing.
//! - Stacks with little memory are added up in a row without a stack. So at the end of each step
//!   the sum over all rows of a domain is the domain's current memory, to the byte.
//!
//! Sums of changes wrap at 64 bits, as the differences do.

use super::domain::Domain;
use super::varint::{get, put, unzigzag, zigzag};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory of a process over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Begin of the recording: milliseconds since 1970, UTC. All other times are milliseconds since
    /// the begin.
    pub begun: u64,
    /// Local time less UTC at the place of the recording, in seconds.
    pub utc_offset: i32,
    /// A stack has changes of its own from the step on in which it first had, or allocated, more
    /// than this part of its domain: 1 / `apart`.
    pub apart: u64,
    /// The steps, by rising end. The first step ends at 0, and has the memory inherited from a
    /// parent.
    pub steps: Vec<Step>,
    /// The marks, by rising time.
    pub marks: Vec<Mark>,
}

/// A step of the recording. The step begins at the end of the step before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// End of the step.
    pub end: u64,
    /// Figures of each domain with blocks so far, sorted by domain.
    pub domains: Vec<DomainStep>,
    /// Figures of the process, as last read before the end of the step. None if they were never
    /// read.
    pub process: Option<ProcessStep>,
    /// Changes of stacks in the step.
    pub changes: Changes,
}

/// A domain in a step.
///
/// In a recording of samples, bytes are estimates, and numbers of blocks are numbers of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainStep {
    /// Layer of memory.
    pub domain: Domain,
    /// Bytes live at the end of the step.
    pub current: u64,
    /// Blocks live at the end of the step.
    pub blocks: u64,
    /// Greatest number of live bytes in the step: exact, not the greatest of some readings.
    pub greatest: u64,
    /// Blocks allocated in the step.
    pub allocs: u64,
    /// Blocks freed in the step.
    pub frees: u64,
    /// Bytes allocated in the step.
    pub allocated_bytes: u64,
}

/// The process in a step, as the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessStep {
    /// Resident bytes.
    pub resident: u64,
    /// Greatest reading of `resident` in the step.
    pub greatest_resident: u64,
    /// Resident bytes of anonymous memory.
    pub anonymous: u64,
    /// Resident bytes of files.
    pub file: u64,
    /// Resident bytes of shared memory.
    pub shared: u64,
    /// Bytes in swap.
    pub swap: u64,
    /// Threads.
    pub threads: u64,
    /// Page faults without reading from a device, since the start of the process.
    pub minor_faults: u64,
    /// Page faults with reading from a device, since the start of the process.
    pub major_faults: u64,
    /// Bytes charged to the control group of the process whose limit is the nearest. None without
    /// control groups.
    pub cgroup_current: Option<u64>,
    /// Limit of this control group, in bytes. None without a limit.
    pub cgroup_limit: Option<u64>,
    /// Bytes taken by Heapline in the process.
    pub own_target: u64,
    /// Resident bytes of the aggregator.
    pub own_resident: u64,
    /// Processor time of the aggregator since its start, in microseconds.
    pub own_cpu: u64,
}

/// An event at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Time of the event.
    pub at: u64,
    /// Kind of the event, in a word: start, attach, fork, exec, snapshot, reset-peak, clear-traces,
    /// sampling, or `mark` for a mark of the user. Later versions may have other kinds.
    pub kind: String,
    /// Text of a mark of the user, or a few words on the event.
    pub text: String,
}

/// Kind of the marks of the user.
pub const USER_MARK: &str = "mark";

/// A change of a stack in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Layer of memory.
    pub domain: Domain,
    /// Index of the stack. None for all stacks without changes of their own.
    pub stack: Option<u32>,
    /// Live bytes at the end of the step, less those at the begin. Wraps.
    pub size: i64,
    /// Live blocks at the end of the step, less those at the begin. Wraps.
    pub count: i64,
    /// Bytes allocated in the step.
    pub allocated_bytes: u64,
    /// Blocks allocated in the step.
    pub allocs: u64,
}

impl Change {
    /// Order of changes: by domain, the change without a stack first.
    pub fn key(&self) -> (Domain, Option<u32>) {
        (self.domain, self.stack)
    }

    /// Whether nothing has changed.
    pub fn is_nothing(&self) -> bool {
        self.size == 0 && self.count == 0 && self.allocated_bytes == 0 && self.allocs == 0
    }

    /// Adds a later change of the same stack.
    pub fn add(&mut self, later: &Change) {
        self.size = self.size.wrapping_add(later.size);
        self.count = self.count.wrapping_add(later.count);
        self.allocated_bytes = self.allocated_bytes.wrapping_add(later.allocated_bytes);
        self.allocs = self.allocs.wrapping_add(later.allocs);
    }
}

/// The changes of a step, each stack once, as the bytes of the file:
///
/// ```text
/// for each domain, rising:  code of the domain | number of rows | rows
/// row, by rising stack:     s - s of the row before | zigzag(size) | zigzag(count)
///                           | allocated bytes | allocs
///                           s is 0 without a stack, else the stack's index + 1
/// ```
///
/// All numbers are LEB128 varints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(Arc<[u8]>);

impl Changes {
    /// Encodes changes sorted by [`Change::key`], each key once. Changes of nothing are left out.
    pub fn encode(changes: &[Change]) -> Changes {
        let mut bytes = Vec::new();
        for group in changes.chunk_by(|one, other| one.domain == other.domain) {
            let rows = group.iter().filter(|change| !change.is_nothing());
            let count = rows.clone().count() as u64;
            if count == 0 {
                continue;
            }
            put(&mut bytes, group[0].domain.code());
            put(&mut bytes, count);
            let mut last = 0;
            for change in rows {
                let stack = change.stack.map_or(0, |stack| u64::from(stack) + 1);
                put(&mut bytes, stack - last);
                last = stack;
                put(&mut bytes, zigzag(change.size));
                put(&mut bytes, zigzag(change.count));
                put(&mut bytes, change.allocated_bytes);
                put(&mut bytes, change.allocs);
            }
        }
        Changes(bytes.into())
    }

    /// The changes, sorted by [`Change::key`]. Ends early at bytes that no writer has written.
    pub fn iter(&self) -> impl Iterator<Item = Change> + '_ {
        Decoder::new(&self.0).map_while(Result::ok)
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Adds up the changes of steps that follow each other.
    pub fn sum<'c>(steps: impl IntoIterator<Item = &'c Changes>) -> Changes {
        let mut steps = steps.into_iter().peekable();
        let Some(first) = steps.next() else { return Changes::default() };
        if steps.peek().is_none() {
            return first.clone();
        }
        let mut all: Vec<Change> = first.iter().collect();
        steps.for_each(|changes| all.extend(changes.iter()));
        // Stable, though the order of additions makes no difference.
        all.sort_by_key(Change::key);
        all.dedup_by(|later, sum| {
            let is_same = later.key() == sum.key();
            if is_same {
                sum.add(later);
            }
            is_same
        });
        Changes::encode(&all)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Checks bytes of a file with `stacks` stacks.
    pub(super) fn check(bytes: Vec<u8>, stacks: usize) -> Result<Changes, &'static str> {
        for change in Decoder::new(&bytes) {
            if change?.stack.is_some_and(|stack| stack as usize >= stacks) {
                return Err("names a stack that is not there");
            }
        }
        Ok(Changes(bytes.into()))
    }
}

/// Decodes the bytes of [`Changes`].
struct Decoder<'b> {
    rest: &'b [u8],
    /// The present domain, and the number of its rows that are left.
    domain: Option<Domain>,
    rows: u64,
    /// The next possible number of a stack.
    next: u64,
}

impl<'b> Decoder<'b> {
    fn new(bytes: &'b [u8]) -> Decoder<'b> {
        Decoder { rest: bytes, domain: None, rows: 0, next: 0 }
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        get(&mut self.rest).ok_or("has changes that are cut short")
    }

    fn change(&mut self) -> Result<Change, &'static str> {
        if self.rows == 0 {
            let domain = Domain::from_code(self.number()?).ok_or("names an unknown domain")?;
            if self.domain.is_some_and(|last| last >= domain) {
                return Err("has changes in another order");
            }
            self.domain = Some(domain);
            self.rows = self.number()?;
            self.next = 0;
            if self.rows == 0 {
                return Err("has a domain without changes");
            }
        }
        self.rows -= 1;
        let domain = self.domain.ok_or("has no domain")?;
        let is_first = self.next == 0;
        let step = self.number()?;
        let stack = self.next.saturating_sub(1).checked_add(step).ok_or("names a stack that is not there")?;
        if !is_first && step == 0 {
            return Err("has changes in another order");
        }
        self.next = stack.checked_add(1).ok_or("names a stack that is not there")?;
        let stack = match stack {
            0 => None,
            stack => Some(u32::try_from(stack - 1).map_err(|_| "names a stack that is not there")?),
        };
        let (size, count) = (unzigzag(self.number()?), unzigzag(self.number()?));
        Ok(Change { domain, stack, size, count, allocated_bytes: self.number()?, allocs: self.number()? })
    }
}

impl Iterator for Decoder<'_> {
    type Item = Result<Change, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() && self.rows == 0 {
            return None;
        }
        let change = self.change();
        if change.is_err() {
            (self.rest, self.rows) = (&[], 0);
        }
        Some(change)
    }
}

/// Amounts of a stack at an instant of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Live bytes.
    pub size: u64,
    /// Live blocks.
    pub count: u64,
    /// Bytes allocated since the begin of the history.
    pub allocated_bytes: u64,
    /// Blocks allocated since the begin of the history.
    pub allocs: u64,
}

impl Held {
    /// Adds a change.
    pub fn add(&mut self, change: &Change) {
        self.size = self.size.wrapping_add(change.size.cast_unsigned());
        self.count = self.count.wrapping_add(change.count.cast_unsigned());
        self.allocated_bytes = self.allocated_bytes.wrapping_add(change.allocated_bytes);
        self.allocs = self.allocs.wrapping_add(change.allocs);
    }
}

impl DomainStep {
    /// Number of columns besides the domain.
    pub(super) const COLUMNS: usize = 6;

    /// The columns of the file.
    pub(super) fn columns(&self) -> [u64; DomainStep::COLUMNS] {
        [self.current, self.greatest, self.blocks, self.allocs, self.frees, self.allocated_bytes]
    }

    pub(super) fn of(domain: Domain, columns: [u64; DomainStep::COLUMNS]) -> DomainStep {
        let [current, greatest, blocks, allocs, frees, allocated_bytes] = columns;
        DomainStep { domain, current, blocks, greatest, allocs, frees, allocated_bytes }
    }

    /// Adds the figures of the step behind, for the two steps as one.
    fn add(&mut self, later: &DomainStep) {
        *self = DomainStep {
            greatest: self.greatest.max(later.greatest),
            allocs: self.allocs.wrapping_add(later.allocs),
            frees: self.frees.wrapping_add(later.frees),
            allocated_bytes: self.allocated_bytes.wrapping_add(later.allocated_bytes),
            ..*later
        };
    }
}

impl ProcessStep {
    /// Number of columns.
    pub(super) const COLUMNS: usize = 14;

    /// The columns of the file. An optional number is increased by one, with 0 for none; so the
    /// greatest number is the same as the next smaller.
    pub(super) fn columns(&self) -> [u64; ProcessStep::COLUMNS] {
        let optional = |number: Option<u64>| number.map_or(0, |number| number.saturating_add(1));
        [
            self.resident,
            self.greatest_resident,
            self.anonymous,
            self.file,
            self.shared,
            self.swap,
            self.threads,
            self.minor_faults,
            self.major_faults,
            optional(self.cgroup_current),
            optional(self.cgroup_limit),
            self.own_target,
            self.own_resident,
            self.own_cpu,
        ]
    }

    pub(super) fn of(columns: [u64; ProcessStep::COLUMNS]) -> ProcessStep {
        let [resident, greatest_resident, anonymous, file, shared, swap, threads, minor_faults, ..] = columns;
        let [.., major_faults, current, limit, own_target, own_resident, own_cpu] = columns;
        ProcessStep {
            resident,
            greatest_resident,
            anonymous,
            file,
            shared,
            swap,
            threads,
            minor_faults,
            major_faults,
            cgroup_current: current.checked_sub(1),
            cgroup_limit: limit.checked_sub(1),
            own_target,
            own_resident,
            own_cpu,
        }
    }
}

impl Step {
    /// Joins steps that follow each other: last figures, greatest figures of all, sums of counts.
    /// None without steps.
    pub fn join(steps: &[Step]) -> Option<Step> {
        let last = steps.last()?;
        let mut domains: BTreeMap<Domain, DomainStep> = BTreeMap::new();
        for row in steps.iter().flat_map(|step| &step.domains) {
            domains.entry(row.domain).and_modify(|sum| sum.add(row)).or_insert(*row);
        }
        let greatest = steps.iter().filter_map(|step| Some(step.process?.greatest_resident)).max();
        let process = last
            .process
            .map(|process| ProcessStep { greatest_resident: greatest.unwrap_or(process.greatest_resident), ..process });
        let changes = Changes::sum(steps.iter().map(|step| &step.changes));
        Some(Step { end: last.end, domains: domains.into_values().collect(), process, changes })
    }

    /// Figures of a domain; none before the domain's first block.
    pub fn domain(&self, domain: Domain) -> Option<&DomainStep> {
        self.domains.iter().find(|row| row.domain == domain)
    }
}

impl History {
    /// Index of the step that contains a time; the last step for a later time. None without steps.
    pub fn step_at(&self, time: u64) -> Option<usize> {
        let index = self.steps.partition_point(|step| step.end < time);
        Some(index.min(self.steps.len().checked_sub(1)?))
    }

    /// Begin of a step.
    pub fn begin_of(&self, step: usize) -> u64 {
        step.checked_sub(1).and_then(|before| self.steps.get(before)).map_or(0, |before| before.end)
    }

    /// End of the last step: the time of the snapshot.
    pub fn end(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.end)
    }

    /// Amounts of all stacks at the end of a step. Stacks that have nothing, and had nothing, are
    /// missing.
    pub fn held_at(&self, step: usize) -> BTreeMap<(Domain, Option<u32>), Held> {
        let mut held: BTreeMap<(Domain, Option<u32>), Held> = BTreeMap::new();
        let steps = self.steps.iter().take(step.saturating_add(1));
        steps
            .flat_map(|step| step.changes.iter())
            .for_each(|change| held.entry(change.key()).or_default().add(&change));
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        let domain = prop_oneof![Just(Domain::Python), (1..3u32).prop_map(Domain::Track), Just(Domain::Native)];
        let number = prop_oneof![-3..3i64, any::<i64>()];
        (domain, prop::option::of(0..9u32), number.clone(), number, any::<u64>(), 0..3u64).prop_map(
            |(domain, stack, size, count, allocated_bytes, allocs)| Change {
                domain,
                stack,
                size,
                count,
                allocated_bytes: allocated_bytes >> (allocs * 30),
                allocs,
            },
        )
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        prop::collection::vec(change(), 0..20).prop_map(|mut changes| {
            changes.sort_by_key(Change::key);
            changes.dedup_by_key(|change| change.key());
            changes.retain(|change| !change.is_nothing());
            changes
        })
    }

    proptest! {
        #[test]
        fn changes_come_back_and_bytes_of_the_file_are_checked(changes in changes(), stacks in 0..10usize) {
            let encoded = Changes::encode(&changes);
            prop_assert_eq!(encoded.iter().collect::<Vec<_>>(), changes.clone());
            let is_there = changes.iter().all(|change| change.stack.is_none_or(|stack| (stack as usize) < stacks));
            let checked = Changes::check(encoded.as_bytes().to_vec(), stacks);
            prop_assert_eq!(checked.is_ok(), is_there);
            prop_assert!(is_there.then_some(encoded).is_none_or(|encoded| checked == Ok(encoded)));
        }

        #[test]
        fn joined_steps_hold_what_the_steps_hold(steps in prop::collection::vec(changes(), 1..6)) {
            let steps: Vec<Step> = (0..).zip(steps)
                .map(|(end, changes)| Step { end, changes: Changes::encode(&changes), ..Step::default() })
                .collect();
            let one = History { steps: vec![Step::join(&steps).expect("steps")], ..History::default() };
            let all = History { steps, ..History::default() };
            let mut held = all.held_at(all.steps.len() - 1);
            held.retain(|_, held| *held != Held::default());
            prop_assert_eq!(one.held_at(0), held);
        }

        #[test]
        fn any_bytes_end_the_decoding(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let checked = Changes::check(bytes.clone(), usize::MAX);
            let read = Changes(bytes.into()).iter().collect::<Vec<_>>();
            if let Ok(checked) = checked {
                prop_assert_eq!(&read, &checked.iter().collect::<Vec<_>>());
                prop_assert!(read.is_sorted_by(|one, other| one.key() < other.key()));
            }
        }
    }

    #[test]
    fn steps_join_to_last_values_greatest_values_and_sums() {
        let row = |current, greatest| DomainStep {
            domain: Domain::Native,
            current,
            blocks: current / 10,
            greatest,
            allocs: 3,
            frees: 2,
            allocated_bytes: 70,
        };
        let process = |resident, greatest_resident| {
            Some(ProcessStep { resident, greatest_resident, minor_faults: resident, ..ProcessStep::default() })
        };
        let step = |end, row: DomainStep, process| Step { end, domains: vec![row], process, ..Step::default() };
        let steps =
            [step(10, row(50, 900), None), step(20, row(40, 60), process(5, 9)), step(35, row(30, 45), process(7, 7))];
        let joined = Step::join(&steps).expect("steps");
        assert_eq!((joined.end, joined.process), (35, process(7, 9)));
        assert_eq!(joined.domains, [DomainStep { allocs: 9, frees: 6, allocated_bytes: 210, ..row(30, 900) }]);
        let history = History { steps: steps.to_vec(), ..History::default() };
        assert_eq!([0, 10, 11, 35, 99].map(|time| history.step_at(time)), [0, 0, 1, 2, 2].map(Some));
        assert_eq!((history.begin_of(0), history.begin_of(2), history.end()), (0, 20, 35));
    }
}
