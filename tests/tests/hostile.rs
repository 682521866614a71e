//! Runs the fuzz targets on seeded bytes, with a stable compiler, for `HEAPLINE_FUZZ_SECONDS` each
//! (default 2). A failing input is kept in a file that `fuzz/` can minimise.

use heapline_shared_format::mapping::{self, Pages};
use heapline_shared_format::snapshot::history::{Change, Changes, DomainStep, Mark, ProcessStep, Step, USER_MARK};
use heapline_shared_format::snapshot::{self, Domain, History};
use heapline_shared_format::{code, event};
use heapline_tests::hostile;
use heapline_tools::symbols;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A snapshot of format version 1 with every section filled.
const SNAPSHOT: &[u8] = include_bytes!("../../shared-format/tests/fixtures/v1.snap.zst");

fn limit() -> Duration {
    let seconds = std::env::var("HEAPLINE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Number of first inputs that always run. `HEAPLINE_FUZZ_SEEDS=FOLDER` writes these inputs of each
/// target to a folder, as a start for a fuzzer.
const SEEDS: u64 = 100;

/// xorshift64*: the same inputs on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("below a usize")
    }

    /// Random words. Many are small and look like kinds, lengths or indices.
    fn words(&mut self, most: usize) -> Vec<u8> {
        let word = |r: &mut Random| match r.below(5) {
            0 => r.next(),
            4 => (r.next() & 7) << 56 | (r.next() & 0x7f) << 12,
            1 => r.next() & 0xff,
            2 => (r.next() & 0x3f) << 4 | r.next() & 0xf,
            _ => (r.next() & 0xff) << 48 | (r.next() & 0x7f) << 32,
        };
        (0..self.below(most)).flat_map(|_| word(self).to_le_bytes()).collect()
    }

    /// `good` with a few bytes changed, a piece cut out, or a piece doubled.
    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            let (a, b) = (self.below(bytes.len().max(1)), self.below(bytes.len().max(1)));
            let (from, to) = (a.min(b), a.max(b));
            match self.below(8) {
                0 => drop(bytes.drain(from..to)),
                1 => bytes.extend_from_within(from..to),
                2 => bytes.truncate(to),
                _ if bytes.is_empty() => {}
                3 | 4 => bytes[a] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ => bytes[a] ^= 1 << self.below(8),
            }
        }
        bytes
    }
}

/// Runs `target` on inputs of `input` until the time is over. Keeps a failing input in a file.
fn run(name: &str, target: fn(&[u8]), mut input: impl FnMut(&mut Random) -> Vec<u8>) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let end = Instant::now() + limit();
    let mut runs = 0_u64;
    let seeds = std::env::var_os("HEAPLINE_FUZZ_SEEDS").map(|folder| PathBuf::from(folder).join(name));
    while Instant::now() < end || runs < SEEDS {
        let bytes = input(&mut random);
        if let Some(seeds) = seeds.as_ref().filter(|_| runs < SEEDS) {
            std::fs::create_dir_all(seeds).expect("a folder for seeds");
            std::fs::write(seeds.join(format!("seed{runs}")), &bytes).expect("a seed can be written");
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
            let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{runs}"));
            std::fs::write(&kept, &bytes).expect("the failing input can be kept");
            eprintln!("{name} fails on input {runs}, kept in {}", kept.display());
            resume_unwind(panic);
        }
        runs += 1;
    }
}

#[test]
fn event_decode() {
    run("event_decode", hostile::event_decode, |r| r.words(600));
}

#[test]
fn ring_drain() {
    run("ring_drain", hostile::ring_drain, |r| r.words(200));
}

#[test]
fn ring_drain_while_scribbled() {
    run("ring_drain_while_scribbled", hostile::ring_drain_while_scribbled, |r| r.words(200));
}

#[test]
fn tree_hello() {
    let birth = heapline_shared_format::tree::Birth::Fork;
    let (executable, arguments) = (&b"/bin/true"[..], &b"true\0"[..]);
    let hello = heapline_shared_format::tree::Hello {
        token: [1, 2],
        key: 3,
        parent: 4,
        fork: 5,
        birth,
        pid: 6,
        executable,
        arguments,
    };
    let good = [&hello.head()[..], executable, arguments].concat();
    run("tree_hello", hostile::tree_hello, |r| r.mutate(&good));
}

#[test]
fn snapshot_reader() {
    run("snapshot_reader", hostile::snapshot_reader, |r| r.mutate(SNAPSHOT));
}

/// Returns the content of the fixture with a history: two stacks, one of them leaks.
fn with_history() -> Vec<u8> {
    let mut snapshot = snapshot::read(SNAPSHOT).expect("the fixture");
    let change = |stack, size| Change {
        domain: Domain::Native,
        stack,
        size,
        count: 1,
        allocated_bytes: size.unsigned_abs(),
        allocs: 1,
    };
    let step = |index: u64| Step {
        end: index * 1000,
        domains: vec![DomainStep {
            domain: Domain::Native,
            current: 150 * index,
            blocks: 3 * index,
            greatest: 200 * index,
            allocs: 3,
            frees: 0,
            allocated_bytes: 150,
        }],
        process: index.is_multiple_of(3).then(ProcessStep::default),
        changes: Changes::encode(&[change(None, 7), change(Some(0), 100), change(Some(1), 43)]),
    };
    let mark = Mark { at: 7000, kind: USER_MARK.to_owned(), text: "deploy".to_owned() };
    let steps = (1..40).map(step).collect();
    snapshot.history = Some(History { begun: 1 << 40, utc_offset: 3600, apart: 4096, steps, marks: vec![mark] });
    let file = snapshot::write(&snapshot, Vec::new(), &mut |_| {}).expect("a vector takes everything");
    zstd::decode_all(&file[..]).expect("a zstd file")
}

#[test]
fn snapshot_payload() {
    let content = zstd::decode_all(SNAPSHOT).expect("the fixture is a zstd file");
    run("snapshot_payload", hostile::snapshot_payload, |r| r.mutate(&content));
    run("snapshot_payload", hostile::snapshot_payload, |r| r.mutate(&with_history()));
}

#[test]
fn report() {
    let content = zstd::decode_all(SNAPSHOT).expect("the fixture is a zstd file");
    run("report", hostile::report, |r| r.mutate(&content));
    run("report", hostile::report, |r| r.mutate(&with_history()));
}

#[test]
fn arena_open() {
    let mut header = vec![0_u8; 4096];
    header[..8].copy_from_slice(b"HEAPLARN");
    run("arena_open", hostile::arena_open, |r| r.mutate(&header));
}

#[test]
fn table() {
    run("table", hostile::table, records);
}

/// Pieces of good records. In every second input a bit is changed.
fn records(random: &mut Random) -> Vec<u8> {
    let mut words: Vec<u64> = Vec::new();
    let mut stamp = 1;
    for _ in 0..random.below(60) {
        let mut piece: Vec<u64> = Vec::new();
        for _ in 0..=random.below(3) {
            stamp += random.next() & 7;
            let (address, id) = (random.next() & 0xff0, (random.next() & 3) as u32);
            match random.below(14) {
                0..=3 => piece.extend(event::alloc(stamp, address, random.next() & 0xffff, id)),
                4..=5 => piece.extend(event::free(stamp, address)),
                6 => piece.extend(event::realloc(stamp, address)),
                7 => piece.extend(event::reallocated(stamp, address, 64, id)),
                8 => piece.extend(event::realloc_end(stamp, address, id == 0)),
                9 => piece.extend(event::unload(stamp, address)),
                10 => piece.extend(event::query(stamp, id, (random.next() & 31) as u32, [address, 0])),
                11 | 12 => piece.extend(mapping_record(random, stamp, id)),
                _ => {
                    let head = event::stack_head(2, (random.next() & 1) as u32, id, 2, false, false);
                    let domain = u8::try_from(random.below(2)).expect("two");
                    piece.extend(event::stack_of_domain(head, domain));
                    piece.extend([random.next() & 0xffff, 1 << 63 | random.next() & 0xff]);
                }
            }
        }
        let head = piece.len() as u64 | (random.next() & 3) << 6 | (random.next() & 0xff) << 8 | stamp << 16;
        words.push(head);
        words.extend(piece);
    }
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    if random.below(2) == 0 {
        let at = random.below(bytes.len().max(1));
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << random.below(8);
        }
    }
    bytes
}

fn mapping_record(random: &mut Random, stamp: u64, id: u32) -> Vec<u64> {
    let first = event::mapping(stamp);
    let mut some = || {
        let start = random.next() & 0xf000;
        Pages::covering(start, 0x1000 + (random.next() & 0x7000)).expect("pages")
    };
    let (pages, other) = (some(), some());
    let flag = random.below(2) == 0;
    match random.below(6) {
        0 | 1 => mapping::map(first, pages, flag, id).to_vec(),
        2 => mapping::protect(first, pages, flag, id).to_vec(),
        3 => mapping::unmap(first, pages).to_vec(),
        4 => mapping::unmap_ended(first, pages, flag).to_vec(),
        _ => mapping::remapped(first, pages, other, flag, id).to_vec(),
    }
}

#[test]
fn code_description() {
    let head = code::Head {
        lines: code::LineFormat::Locations,
        file_kind: 1,
        name_kind: 2,
        first_line: 7,
        file_length: 4,
        name_length: 2,
        table_bytes: 6,
    };
    let texts = *b"a.pyf\0g\0\x80\x01\xe8\x0b\xf0\x50";
    let good: Vec<u8> = head.to_bytes().into_iter().chain(texts).collect();
    run("code_description", hostile::code_description, |r| r.mutate(&good));
}

#[test]
fn control_request() {
    let good = br#"{"request":"snapshot","output":"/tmp/a.snap.zst"}"#;
    run("control_request", hostile::control_request, |r| r.mutate(good));
}

#[test]
fn control_reply() {
    let good = r#"{"found":{"address":"0x10","domain":"native","size":5,"tid":7,"thread":"a\u001b[2J","traceback":[
        {"address":"0x1","module":"/lib/a","offset":"0x2"},{"address":"","module":"a.py","offset":"","line":3,
        "function":"f"}],"total_nframe":2}}"#;
    run("control_reply", hostile::control_reply, |r| r.mutate(good.as_bytes()));
    let sum = r#"{"bytes":5,"blocks":1}"#;
    let good = format!(
        r#"{{"leaks":{{"pid":1,"command":"a\u001b[2J","passes":3,"stopped_us":1500,"partial":["b"],"live":{sum},
        "direct":{sum},"indirect":{sum},"stacks":[{{"direct":{sum},"indirect":{sum},"held":{sum},"traceback":[
        {{"address":"0x1","module":"/lib/a","offset":"0x2"}}]}}],"stacks_left_out":1}}}}"#
    );
    run("control_reply", hostile::control_reply, |r| r.mutate(good.as_bytes()));
}

#[test]
fn proc_files() {
    let good = b"Name:\tcat\nState:\tS (sleeping)\nTgid:\t7\nUid:\t0\t0\t0\t0\nNSpid:\t7\t1\n\
        7 (c) t) S 1 2 3 4 5 2129984 8\n7f00-7f10 rw-s 0 00:01 2 /memfd:heapline-arena (deleted)\n3:1:2";
    run("proc_files", hostile::proc_files, |r| r.mutate(good));
}

/// A small library with debug information, compiled when the test runs.
fn program() -> Vec<u8> {
    compile("static inline int f(int x) { return x * 3; }\nint g(int x) { return f(x) + 1; }\n", &["-g", "-O1"])
}

fn compile(source: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (file, built) = (folder.path().join("a.c"), folder.path().join("a"));
    std::fs::write(&file, source).expect("written");
    let flags = ["-shared", "-nostdlib", "-fPIC", "-w", "-o"];
    let gcc = std::process::Command::new("gcc").args(options).args(flags).arg(&built).arg(&file).status();
    assert!(gcc.expect("gcc, which the tests need").success());
    std::fs::read(built).expect("compiled")
}

#[test]
fn elf_program() {
    let good = program();
    run("elf_program", hostile::elf_program, |r| r.mutate(&good));
}

/// A miniature C library as in memory from address 0 on, with a thread inside the library's
/// `dlerror`.
fn process() -> Vec<u8> {
    let source = r#"
        int dlopen(int x) { return x + 1; }
        __attribute__((noinline)) int dlerror(int x) { volatile char room[40] = {0}; room[x] = 1; return room[7]; }
        int _dl_find_object(int x) { return dlerror(x) + 1; }
        int __errno_location(void) { asm volatile("syscall; ret"); return 0; }
        int poll(int x) { asm volatile(".byte 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05"); return _dl_find_object(x) + 2; }
    "#;
    let file = compile(source, &["-O1", "-Wl,-z,max-page-size=4096", "-Wl,--hash-style=gnu"]);
    let word = |at: usize| {
        let word = u64::from_le_bytes(file[at..at + 8].try_into().expect("eight"));
        usize::try_from(word).expect("a small file")
    };
    let count = usize::from(u16::from_le_bytes([file[56], file[57]]));
    let mut memory = vec![0; 0xc000];
    let mut maps = String::new();
    // The C library lies at 0. The loader is the same file.
    for (base, path) in [(0, "/lib/libc.so.6"), (0x6000, "/lib/ld-linux-x86-64.so.2")] {
        for header in (0..count).map(|i| 64 + i * 56).filter(|&header| file[header] == 1) {
            let (offset, address, bytes) = (word(header + 8), word(header + 16), word(header + 32));
            memory[base + address..base + address + bytes].copy_from_slice(&file[offset..offset + bytes]);
            let access = ["r--p", "r-xp", "rw-p"][usize::from(file[header + 4] & 3)];
            let (start, end) = (base + (address & !0xfff), base + (address + bytes).next_multiple_of(0x1000));
            maps += &format!("{start:x}-{end:x} {access} {:08x} fe:00 1 {path}\n", offset & !0xfff);
        }
    }
    let at = memory.windows(3).position(|code| code == [0x0f, 0x05, 0xc3]).expect("the gadget") as u64;
    let registers = [at, 0x4f00, 0x4f80, 0].map(u64::to_le_bytes).concat();
    let length = u16::try_from(maps.len()).expect("a few lines").to_le_bytes();
    [&registers[..], &length, maps.as_bytes(), &memory].concat()
}

#[test]
fn injected_process() {
    let good = process();
    run("injected_process", hostile::injected_process, |r| r.mutate(&good));
}

#[test]
fn injected_answers() {
    let op = |code: u16, yes: u8, no: u8, k: u32| [&code.to_le_bytes()[..], &[yes, no], &k.to_le_bytes()].concat();
    let good =
        [op(0x20, 0, 0, 4), op(0x15, 1, 0, 0xc000_003e), op(6, 0, 0, 0), op(0x20, 0, 0, 0), op(6, 0, 0, 1 << 16)];
    let good = [good.concat(), vec![0; 64]].concat();
    assert_eq!(heapline_aggregator::attach::inject::forbidden_by(&good[..40]), 0, "the good filter forbids nothing");
    run("injected_answers", hostile::injected_answers, |r| r.mutate(&good));
}

#[test]
fn elf_notes() {
    let good = b"\x04\0\0\0\x08\0\0\0\x01\0\0\0GNU\0abcdefgh\x04\0\0\0\x04\0\0\0\x03\0\0\0GNU\0abcd";
    run("elf_notes", hostile::elf_notes, |r| r.mutate(good));
}

#[test]
fn generated_code() {
    let map = b"5000 20 LazyCompile:~f /a.js:1\n8000 20 g\n";
    run("generated_code", hostile::generated_code, |r| r.mutate(map));
    let word = |word: u64| word.to_le_bytes();
    let head = [&0x4a69_5444_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), &40_u32.to_le_bytes(), &[0; 28]].concat();
    let load = [&[0; 4][..], &58_u32.to_le_bytes(), &[0; 24], &word(0x5000), &word(0x20), &word(1), b"f\0"].concat();
    let moved = [&1_u32.to_le_bytes()[..], &64_u32.to_le_bytes(), &[0; 24], &word(0x5000), &word(0x8000), &word(0x20)];
    let dump = [head, load, moved.concat(), word(1).to_vec()].concat();
    let code = heapline_aggregator::names::jit::Code::parse(b"", &dump);
    assert_eq!((code.at(0x8000).len(), code.at(0x5000).len()), (1, 0), "the good file gets through");
    run("generated_code", hostile::generated_code, |r| r.mutate(&dump));
}

#[test]
fn symbols_elf() {
    let good = program();
    assert!(symbols::in_elf(&good, &[0]).is_some(), "the good program gets through");
    run("symbols_elf", hostile::symbols_elf, |r| r.mutate(&good));
}

#[test]
fn symbols_cache() {
    let good = symbols::entry_of(&program()).expect("the good program has a table");
    assert!(symbols::in_entry(good.clone(), &[0]).is_some());
    run("symbols_cache", hostile::symbols_cache, |r| r.mutate(&good));
}

/// The good snapshot must be accepted. Otherwise the tests of snapshots would only test the first
/// check.
#[test]
fn the_fixture_is_accepted() {
    assert!(heapline_shared_format::snapshot::read(SNAPSHOT).is_ok());
    let content = zstd::decode_all(SNAPSHOT).expect("the fixture is a zstd file");
    hostile::snapshot_payload(&content);
}
