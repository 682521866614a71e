//! Snapshots for tests: a fixed snapshot (the content of the golden fixture), and arbitrary valid
//! snapshots.

use heapline_shared_format::code::LineFormat;
use heapline_shared_format::event::{PYTHON_FRAME, python_frame};
use heapline_shared_format::snapshot::history::{
    Change, Changes, DomainStep, History, Mark, ProcessStep, Step, USER_MARK,
};
use heapline_shared_format::snapshot::{
    Ages, Ancestor, Begun, Birth, BornBlocks, Code, Domain, DomainTotals, Draws, End, Frame, LiveGroup, Meta, Mixed,
    Module, NamedFrame, NamedModule, Names, Node, Origin, Place, Sampled, SharedSample, Snapshot, Stack,
    StackLifetimes, StackTotals, Thread, ThreadCalls, ThreadTotals, Unseen,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Returns the content of `fixtures/v1.snap.zst`, which never changes.
pub fn sample() -> Snapshot {
    let node = |parent, frame| Node { parent, frame };
    let frame = |address, module| Frame { address, module };
    Snapshot {
        meta: sample_meta(),
        origin: None,
        modules: vec![
            Module {
                path: "/usr/bin/victim".to_string(),
                build_id: vec![0xde, 0xad, 0xbe, 0xef],
                start: 0x5555_5555_4000,
                end: 0x5555_5555_9000,
                bias: 0x5555_5555_4000,
                loaded: true,
            },
            Module {
                path: "/tmp/pl\u{fc}gin.so".to_string(),
                build_id: Vec::new(),
                start: 0x7fff_f7a0_0000,
                end: 0x7fff_f7a0_2000,
                bias: 0x7fff_f79f_f000,
                loaded: false,
            },
        ],
        codes: Vec::new(),
        frames: vec![
            frame(0x5555_5555_5123, Some(0)),
            frame(0x5555_5555_5456, Some(0)),
            frame(0x7fff_f7a0_1010, Some(1)),
            frame(0xdead_0000, None),
        ],
        by_frame_pointer: Vec::new(),
        nodes: vec![node(None, 0), node(Some(0), 1), node(Some(1), 2), node(Some(0), 3)],
        stacks: vec![
            Stack { leaf: Some(2), total_nframe: 3, truncated: false },
            Stack { leaf: Some(3), total_nframe: 65535, truncated: true },
            Stack { leaf: None, total_nframe: 0, truncated: false },
        ],
        mixed: Vec::new(),
        sampled: Vec::new(),
        calls: Vec::new(),
        threads: vec![
            Thread { tid: 4711, name: "victim".to_string(), alive: true },
            Thread { tid: 4712, name: "worker \u{2603}".to_string(), alive: false },
        ],
        domains: vec![
            DomainTotals {
                domain: Domain::Native,
                current: 200,
                peak: 1 << 40,
                blocks: 3,
                allocs: 1_000_000,
                frees: 999_997,
                allocated_bytes: u64::MAX,
            },
            DomainTotals {
                domain: Domain::Track(7),
                current: 0,
                peak: 0,
                blocks: 1,
                allocs: 1,
                frees: 0,
                allocated_bytes: 0,
            },
        ],
        live: vec![
            LiveGroup { domain: Domain::Track(7), stack: 2, thread: 0, size: 0, count: 1 },
            LiveGroup { domain: Domain::Native, stack: 0, thread: 0, size: 50, count: 2 },
            LiveGroup { domain: Domain::Native, stack: 1, thread: 1, size: 100, count: 1 },
        ],
        totals: vec![
            StackTotals {
                domain: Domain::Track(7),
                stack: 2,
                peak_size: 0,
                peak_count: 1,
                total_size: 0,
                total_count: 1,
            },
            StackTotals {
                domain: Domain::Native,
                stack: 0,
                peak_size: 100,
                peak_count: 2,
                total_size: 150,
                total_count: 3,
            },
            StackTotals {
                domain: Domain::Native,
                stack: 1,
                peak_size: 1 << 40,
                peak_count: 1,
                total_size: u64::MAX,
                total_count: 999_997,
            },
        ],
        thread_totals: Vec::new(),
        draws: None,
        names: Names::default(),
        history: None,
        ages: None,
        lifetimes: Vec::new(),
    }
}

fn sample_meta() -> Meta {
    let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect::<BTreeMap<_, _>>();
    Meta {
        pid: 4711,
        command: "victim --grow 'a b'".to_string(),
        executable: "/usr/bin/victim".to_string(),
        taken_at: "2025-11-21T00:37:00Z".to_string(),
        heapline: "0.1.0".to_string(),
        sample_interval: 0,
        nframe: 64,
        begun: Begun::Start,
        end: End::Killed,
        exit_status: Some(137),
        lost: counts(&[("reentrant", 1), ("slots", 0)]),
        contradictions: counts(&[("double alloc", 2)]),
        untracked_frees: 5,
        in_realloc: 1,
        target_bytes: 65536,
        aggregator_bytes: 1 << 20,
        notes: vec!["A note that every report shows.".to_string()],
        unseen: Vec::new(),
        allocator: None,
    }
}

fn index(len: usize) -> BoxedStrategy<u32> {
    (0..u32::try_from(len).unwrap()).boxed()
}

fn domain() -> impl Strategy<Value = Domain> {
    prop_oneof![
        Just(Domain::Python),
        Just(Domain::Native),
        Just(Domain::Mmap),
        Just(Domain::Reserved),
        (1..=u32::MAX).prop_map(Domain::Track),
    ]
}

prop_compose! {
    fn meta()(
        (pid, command, executable) in (any::<u32>(), any::<String>(), any::<String>()),
        (sample_interval, nframe, exit_status) in (any::<u64>(), any::<u32>(), any::<Option<i32>>()),
        begun in prop::sample::select(vec![Begun::Start, Begun::Attach, Begun::Fork]),
        end in prop::sample::select(vec![End::Running, End::Exited, End::Killed, End::Detached, End::Stalled]),
        (lost, contradictions, notes) in (any::<BTreeMap<String, u64>>(), any::<BTreeMap<String, u64>>(), any::<Vec<String>>()),
        (untracked_frees, in_realloc, target_bytes, aggregator_bytes) in any::<(u64, u64, u64, u64)>(),
        (unseen, allocator) in any::<(Option<[String; 4]>, Option<String>)>(),
    ) -> Meta {
        Meta {
            pid, command, executable, sample_interval, nframe, exit_status, begun, end, lost, contradictions, notes,
            untracked_frees, in_realloc, target_bytes, aggregator_bytes, allocator,
            taken_at: "2025-11-21T00:37:00Z".to_string(),
            heapline: "0.1.0".to_string(),
            unseen: unseen.map(|[kind, object, name, text]| Unseen { kind, object, name, text }).into_iter().collect(),
        }
    }
}

prop_compose! {
    fn origin()(
        parent in any::<u32>(),
        birth in prop::sample::select(vec![Birth::Fork, Birth::Exec]),
        inherited in any::<Option<BTreeMap<String, u64>>>(),
    ) -> Origin {
        Origin { parent, birth, inherited }
    }
}

prop_compose! {
    fn module()(
        path in any::<String>(),
        build_id in vec(any::<u8>(), 0..40),
        range in any::<(u64, u64)>(),
        bias in any::<u64>(),
        loaded in any::<bool>(),
    ) -> Module {
        Module { path, build_id, start: range.0.min(range.1), end: range.0.max(range.1), bias, loaded }
    }
}

prop_compose! {
    fn code()(
        (filename, name, first_line) in any::<(String, String, u32)>(),
        lines in prop::sample::select(vec![LineFormat::Lnotab, LineFormat::LineTable, LineFormat::Locations]),
        line_table in vec(any::<u8>(), 0..40),
    ) -> Code {
        Code { filename, name, first_line, lines, line_table }
    }
}

fn frame(modules: usize, codes: usize) -> BoxedStrategy<Frame> {
    let native = (any::<u64>(), prop::option::of(index(modules)))
        .prop_map(|(address, module)| Frame { address: address & !PYTHON_FRAME, module });
    match codes {
        0 => native.boxed(),
        _ => {
            let python = (index(codes), any::<u32>())
                .prop_map(|(code, offset)| Frame { address: python_frame(code, offset), module: None });
            prop_oneof![native, python].boxed()
        }
    }
}

/// Returns a strategy for valid snapshots, with rows in any order. Modules, frames, nodes, stacks
/// and threads have 1 row or more; other tables may be empty.
pub fn arbitrary() -> impl Strategy<Value = Snapshot> {
    let sizes = (1..8_usize, 0..4_usize, 1..20_usize, 1..30_usize, 1..10_usize, 1..5_usize);
    let about = (meta(), prop::option::of(origin()));
    (sizes, about).prop_flat_map(|((modules, codes, frames, nodes, stacks, threads), about)| {
        let frame = frame(modules, codes);
        let node = (any::<prop::sample::Index>(), any::<bool>(), index(frames));
        let stack = (prop::option::of(index(nodes)), any::<u16>(), any::<bool>())
            .prop_map(|(leaf, total_nframe, truncated)| Stack { leaf, total_nframe, truncated });
        let thread =
            (any::<u32>(), any::<String>(), any::<bool>()).prop_map(|(tid, name, alive)| Thread { tid, name, alive });
        let live = (domain(), index(stacks), index(threads), any::<u64>(), any::<u64>())
            .prop_map(|(domain, stack, thread, size, count)| LiveGroup { domain, stack, thread, size, count });
        let tables = (
            (vec(module(), modules), vec(code(), codes)),
            vec(frame, frames),
            vec(node, nodes).prop_map(|rows| rows.into_iter().enumerate().map(place).collect::<Vec<_>>()),
            (vec(stack, stacks), vec(prop::option::of(index(stacks)), stacks).prop_map(mixed)),
            vec(thread, threads),
            vec((domain(), any::<[u64; 6]>()), 0..4).prop_map(domain_totals),
            vec(live, 0..40),
            vec((domain(), index(stacks), any::<[u64; 4]>()).prop_map(stack_totals), 0..40),
        );
        (Just(about), tables).prop_map(
            |(
                (meta, origin),
                ((modules, codes), frames, nodes, (stacks, mixed), threads, domains, mut live, mut totals),
            )| {
                // Reserved ranges stand behind all other rows.
                live.sort_by_key(|row: &LiveGroup| row.domain == Domain::Reserved);
                totals.sort_by_key(|row: &StackTotals| row.domain == Domain::Reserved);
                let calls = |thread: usize| {
                    let thread = u32::try_from(thread).expect("few");
                    ThreadCalls { thread, domain: Domain::Native, allocs: u64::MAX - 1, bytes: 7, frees: 1 << thread }
                };
                let calls: Vec<ThreadCalls> = (0..threads.len().min(3)).map(calls).collect();
                let sampled = (0..stacks.len()).step_by(3).map(|stack| {
                    let stack = u32::try_from(stack).expect("few");
                    Sampled { stack, interval: u64::MAX >> stack, size: u64::from(stack) * 16 }
                });
                let sampled = sampled.collect();
                let (modules_count, frames_count, stacks_count) = (modules.len(), frames.len(), stacks.len());
                let history = history(stacks_count, &domains);
                let thread_totals = thread_totals(threads.len(), &totals);
                Snapshot {
                    meta,
                    origin,
                    modules,
                    codes,
                    by_frame_pointer: (0..).step_by(2).take(frames.len() / 2).collect(),
                    frames,
                    nodes,
                    stacks,
                    mixed,
                    sampled,
                    calls,
                    threads,
                    domains,
                    history,
                    ages: ages(&live),
                    lifetimes: lifetimes(stacks_count),
                    draws: draws(live.len()),
                    names: names(modules_count, frames_count),
                    live,
                    totals,
                    thread_totals,
                }
            },
        )
    })
}

/// Returns rows with the numbers of some stacks, each for another thread or domain.
fn thread_totals(threads: usize, totals: &[StackTotals]) -> Vec<ThreadTotals> {
    let row = |row: &StackTotals| {
        let StackTotals { domain, stack, peak_size, peak_count, total_size, total_count } = *row;
        let thread = stack % u32::try_from(threads).expect("few");
        ((domain.code(), thread), ThreadTotals { thread, domain, peak_size, peak_count, total_size, total_count })
    };
    totals.iter().map(row).collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Returns the draws of a process with a traced parent and grandparent. Every second row of live
/// blocks is shared.
fn draws(live: usize) -> Option<Draws> {
    let ancestors = vec![Ancestor { by: u64::MAX, end: 3 }, Ancestor { by: 7, end: 3 }];
    let row = |live: usize| SharedSample { live: u32::try_from(live).expect("few"), address: u64::MAX >> (live % 60) };
    live.is_multiple_of(2).then(|| Draws {
        by: 1,
        ancestors,
        shared_end: 5,
        shared: (0..live).step_by(2).map(row).collect(),
    })
}

/// Returns names for every second module and every third frame.
fn names(modules: usize, frames: usize) -> Names {
    let number = |index: usize| u32::try_from(index).expect("few");
    let module = |module| NamedModule {
        module: number(module),
        has_lines: module.is_multiple_of(4),
        is_incomplete: module.is_multiple_of(3),
    };
    let place = |index: usize| Place {
        function: index.is_multiple_of(2).then_some(number(index % 3)),
        line: (index % 5 > 1).then_some((number(index % 2), u32::MAX >> (index % 30))),
    };
    let frame = |frame: usize| NamedFrame { frame: number(frame), places: (0..frame % 7).map(place).collect() };
    Names {
        texts: ["", "std::vector<int>::push_back", "/src/\u{2603}.c"].map(str::to_string).to_vec(),
        modules: (0..modules).step_by(2).map(module).collect(),
        frames: (0..frames).step_by(3).map(frame).collect(),
    }
}

/// Returns ages with the blocks of each row in one to three spans; none without rows.
fn ages(live: &[LiveGroup]) -> Option<Ages> {
    let born = |(index, row): (usize, &LiveGroup)| {
        let live = u32::try_from(index).expect("few");
        let parts = [row.count / 3, row.count / 2, row.count - row.count / 3 - row.count / 2];
        (0..).zip(parts).filter(|&(_, count)| count > 0).map(move |(span, count)| BornBlocks { live, span, count })
    };
    let begins = vec![0, 0, u64::MAX / 3];
    (!live.is_empty()).then(|| Ages { begins, blocks: live.iter().enumerate().flat_map(born).collect() })
}

/// Returns lifetimes of every second stack.
fn lifetimes(stacks: usize) -> Vec<StackLifetimes> {
    let row = |stack| StackLifetimes {
        domain: if stack % 4 == 0 { Domain::Native } else { Domain::Track(1 << 20) },
        stack,
        temporary: u64::from(stack),
        within_step: u64::MAX,
        ended: [0, 1, 1 << 40, 3, 4, u64::from(stack)],
    };
    let mut rows: Vec<_> = (0..u32::try_from(stacks).expect("few")).step_by(2).map(row).collect();
    rows.sort_by_key(|row| (row.domain.code(), row.stack));
    rows
}

/// Returns a history with a step for each domain, by rising numbers; none without domains.
fn history(stacks: usize, domains: &[DomainTotals]) -> Option<History> {
    let mut rows: Vec<DomainStep> = Vec::new();
    let step = |(index, totals): (usize, &DomainTotals)| {
        rows.push(DomainStep {
            domain: totals.domain,
            current: totals.current,
            blocks: totals.blocks,
            greatest: totals.peak,
            allocs: totals.allocs,
            frees: totals.frees,
            allocated_bytes: totals.allocated_bytes,
        });
        let change = |stack: u32| Change {
            domain: totals.domain,
            stack: stack.checked_sub(1),
            size: (totals.current >> stack).cast_signed(),
            count: -i64::from(stack),
            allocated_bytes: totals.allocated_bytes,
            allocs: 1,
        };
        let last = u32::try_from(stacks.min(60)).expect("few");
        let changes: Vec<Change> = (0..=last).step_by(1 + index).map(change).collect();
        let process = ProcessStep {
            resident: totals.current,
            cgroup_current: (index > 0).then_some(7),
            own_cpu: totals.frees,
            ..ProcessStep::default()
        };
        Step {
            end: u64::MAX >> (60 - 20 * index),
            domains: rows.clone(),
            process: index.is_multiple_of(2).then_some(process),
            changes: Changes::encode(&changes),
        }
    };
    let steps: Vec<Step> = domains.iter().enumerate().map(step).collect();
    let mark = |(at, text): (u64, &str)| Mark { at, kind: USER_MARK.to_string(), text: text.to_string() };
    let marks = [(3, "deploy \u{2603}"), (3, ""), (u64::MAX, "end")].map(mark).to_vec();
    let history = History { begun: u64::MAX / 3, utc_offset: -16_200, apart: 4096, steps, marks };
    (!domains.is_empty()).then_some(history)
}

fn mixed(rows: Vec<Option<u32>>) -> Vec<Mixed> {
    (0..).zip(rows).filter_map(|(stack, python)| Some(Mixed { stack, python: python? })).collect()
}

fn place((index, (parent, root, frame)): (usize, (prop::sample::Index, bool, u32))) -> Node {
    let parent = (index > 0 && !root).then(|| u32::try_from(parent.index(index)).unwrap());
    Node { parent, frame }
}

fn domain_totals(rows: Vec<(Domain, [u64; 6])>) -> Vec<DomainTotals> {
    let distinct: BTreeMap<Domain, [u64; 6]> = rows.into_iter().collect();
    let row = |(domain, [current, peak, blocks, allocs, frees, allocated_bytes]): (Domain, [u64; 6])| DomainTotals {
        domain,
        current,
        peak,
        blocks,
        allocs,
        frees,
        allocated_bytes,
    };
    distinct.into_iter().map(row).collect()
}

fn stack_totals((domain, stack, values): (Domain, u32, [u64; 4])) -> StackTotals {
    let [peak_size, peak_count, total_size, total_count] = values;
    StackTotals { domain, stack, peak_size, peak_count, total_size, total_count }
}
