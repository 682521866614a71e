//! The snapshot file: round trips, the golden fixture, and files that are cut, damaged, foreign,
//! newer or hostile.
#![cfg(feature = "snapshot")]

mod snapshot_samples;

use heapline_shared_format::snapshot::{
    Begun, Domain, DomainTotals, LiveGroup, MAGIC, ReadError, Snapshot, StackTotals, ThreadTotals, read, write,
};
use proptest::prelude::*;
use snapshot_samples::{arbitrary, sample};
use std::io::{self, Read, Write};

fn to_file(snapshot: &Snapshot) -> Vec<u8> {
    write(snapshot, Vec::new(), &mut |_| {}).expect("a valid snapshot is written")
}

fn read_error(file: &[u8]) -> ReadError {
    read(file).expect_err("this file is wrong")
}

fn decompressed(file: &[u8]) -> Vec<u8> {
    zstd::decode_all(file).expect("the file is one valid zstd frame")
}

/// Compresses like the writer, but without the writer's rules.
fn compressed(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn section(tag: &[u8; 4], version: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = tag.to_vec();
    out.extend(version.to_le_bytes());
    out.extend((payload.len() as u64).to_le_bytes());
    out.extend(payload);
    out.extend(crc32fast::hash(payload).to_le_bytes());
    out
}

/// Returns the tag and the start of each section of a file's content.
fn sections(content: &[u8]) -> Vec<(String, usize)> {
    let mut at = MAGIC.len() + 4;
    let mut found = Vec::new();
    while at < content.len() {
        found.push((String::from_utf8(content[at..at + 4].to_vec()).unwrap(), at));
        let len = u64::from_le_bytes(content[at + 8..at + 16].try_into().unwrap());
        at += 16 + usize::try_from(len).unwrap() + 4;
    }
    found
}

fn start_of(content: &[u8], tag: &str) -> usize {
    sections(content).into_iter().find(|(t, _)| t == tag).expect("the section is there").1
}

proptest! {
    #[test]
    fn what_was_written_is_read(snapshot in arbitrary()) {
        prop_assert_eq!(read(&to_file(&snapshot)[..]).unwrap(), snapshot);
    }

    #[test]
    fn damage_never_panics(position in any::<prop::sample::Index>(), bit in 0_u8..8, inside in any::<bool>()) {
        let mut bytes = to_file(&sample());
        if inside {
            bytes = decompressed(&bytes);
        }
        let at = position.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let file = if inside { compressed(&bytes) } else { bytes };
        // A flip may hit bits without meaning (zstd's header has some). Then the content is the
        // same.
        if let Ok(snapshot) = read(&file[..]) {
            prop_assert_eq!(snapshot, sample());
        }
    }

    #[test]
    fn any_bytes_are_refused(content in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let head = if magic { [&MAGIC[..], &1_u32.to_le_bytes()].concat() } else { Vec::new() };
        prop_assert!(read(&compressed(&[head, content.clone()].concat())[..]).is_err());
        prop_assert!(read(&content[..]).is_err());
    }
}

#[test]
fn the_fixture_of_version_1_stays_readable() {
    let fixture = include_bytes!("fixtures/v1.snap.zst");
    assert_eq!(read(&fixture[..]).unwrap(), sample());
    // The layout inside is version 1 byte by byte. zstd's compression may change.
    assert_eq!(decompressed(fixture), decompressed(&to_file(&sample())));
}

#[test]
#[ignore = "rewrites the fixture: only when a new version of the format gets one of its own"]
fn write_the_fixture() {
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1.snap.zst"), to_file(&sample())).unwrap();
}

#[test]
fn a_trace_without_a_recorded_begin_began_with_the_program() {
    let mut snapshot = sample();
    let begins = |file: &[u8]| String::from_utf8_lossy(&decompressed(file)).contains("\"begun\"");
    assert!(!begins(&to_file(&snapshot)), "earlier files have no such field");
    snapshot.meta.begun = Begun::Attach;
    let file = to_file(&snapshot);
    assert!(begins(&file));
    assert_eq!(read(&file[..]).unwrap().meta.begun, Begun::Attach);
}

#[test]
fn progress_counts_the_bytes_before_compression() {
    let mut seen = Vec::new();
    let file = write(&sample(), Vec::new(), &mut |bytes| seen.push(bytes)).unwrap();
    assert!(seen.is_sorted());
    // The last call of `progress` comes before the checksum of the last section.
    assert_eq!(*seen.last().unwrap() + 4, decompressed(&file).len() as u64);
}

#[test]
fn every_truncation_names_where_the_file_ends() {
    let file = to_file(&sample());
    for len in 0..file.len() {
        let error = read_error(&file[..len]);
        let ReadError::Truncated { section } = &error else { panic!("cut at {len}: {error:?}") };
        assert!(!section.is_empty());
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn every_truncation_of_the_content_names_the_section() {
    let content = decompressed(&to_file(&sample()));
    let starts = sections(&content);
    for len in MAGIC.len()..content.len() {
        let error = read_error(&compressed(&content[..len]));
        let ReadError::Truncated { section } = &error else { panic!("cut at {len}: {error:?}") };
        if let Some((tag, _)) = starts.iter().rev().find(|(_, start)| start + 4 <= len) {
            assert!(section.contains(tag), "cut at {len} in {tag}: {section}");
        }
    }
}

#[test]
fn a_damaged_section_is_named() {
    let content = decompressed(&to_file(&sample()));
    for (tag, start) in sections(&content) {
        let mut damaged = content.clone();
        damaged[start + 16] ^= 0x40;
        let error = read_error(&compressed(&damaged));
        assert!(matches!(&error, ReadError::Checksum { section } if section.contains(&tag)), "{tag}: {error:?}");
    }
}

#[test]
fn a_foreign_file_is_called_so() {
    assert!(matches!(read_error(b"GIF89a and so on"), ReadError::NotZstd));
    assert!(matches!(read_error(&compressed(b"")), ReadError::Foreign));
    assert!(matches!(read_error(&compressed(b"a log file of something else")), ReadError::Foreign));
}

#[test]
fn a_newer_version_is_named_with_the_one_that_is_read() {
    let mut content = decompressed(&to_file(&sample()));
    content[MAGIC.len()] = 7;
    let error = read_error(&compressed(&content));
    assert!(matches!(error, ReadError::Newer { found: 7, wanted: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("version 7") && error.to_string().contains("version 1"));

    let mut content = decompressed(&to_file(&sample()));
    let at = start_of(&content, "LIVE") + 4;
    content[at] = 9;
    let error = read_error(&compressed(&content));
    assert!(matches!(&error, ReadError::Newer { part, found: 9, .. } if part.contains("LIVE")), "{error:?}");
}

#[test]
fn an_unknown_section_is_skipped_and_checked() {
    let content = decompressed(&to_file(&sample()));
    let (live, end) = (start_of(&content, "LIVE"), start_of(&content, "END "));
    let added = section(b"LATE", 3, b"what a later Heapline knows");
    let count = section(b"END ", 1, &[10]);
    let mut newer = [&content[..live], &added, &content[live..end], &count].concat();
    assert_eq!(read(&compressed(&newer)[..]).unwrap(), sample());
    newer[live + 20] ^= 1;
    let error = read_error(&compressed(&newer));
    assert!(matches!(&error, ReadError::Checksum { section } if section.contains("LATE")), "{error:?}");
}

/// Checks a file with reserved ranges. An earlier reader, without this section, reads the file
/// without the ranges. The writer refuses other rows behind reserved ranges.
#[test]
fn reserved_ranges_are_an_unknown_section_to_earlier_readers() {
    let mut snapshot = sample();
    let domain = Domain::Reserved;
    snapshot.domains.push(DomainTotals { domain, ..snapshot.domains[0] });
    snapshot.live.push(LiveGroup { domain, ..snapshot.live[1] });
    snapshot.totals.push(StackTotals { domain, ..snapshot.totals[1] });
    let mut content = decompressed(&to_file(&snapshot));
    assert_eq!(read(&compressed(&content)[..]).unwrap(), snapshot);
    let at = start_of(&content, "RSVD");
    content[at..at + 4].copy_from_slice(b"XXXX");
    assert_eq!(read(&compressed(&content)[..]).unwrap(), sample());

    let native = snapshot.live[1];
    snapshot.live.push(native);
    let error = write(&snapshot, Vec::new(), &mut |_| {}).expect_err("a row that is out of order");
    assert!(error.to_string().contains("row 4 of section LIVE stands behind rows of later domains"), "{error}");
}

/// Checks a file with sums per thread. An earlier reader, without this section, reads the file
/// without the sums. Each thread has a single row for each domain.
#[test]
fn sums_per_thread_are_an_unknown_section_to_earlier_readers() {
    let mut snapshot = sample();
    let row = ThreadTotals {
        thread: 0,
        domain: Domain::Native,
        peak_size: u64::MAX,
        peak_count: 3,
        total_size: 1 << 40,
        total_count: 0,
    };
    snapshot.thread_totals =
        vec![ThreadTotals { domain: Domain::Track(7), ..row }, row, ThreadTotals { thread: 1, ..row }];
    snapshot.thread_totals.push(ThreadTotals { domain: Domain::Reserved, ..row });
    let mut content = decompressed(&to_file(&snapshot));
    assert_eq!(read(&compressed(&content)[..]).unwrap(), snapshot);
    let at = start_of(&content, "THTO");
    content[at..at + 4].copy_from_slice(b"XXXX");
    assert_eq!(read(&compressed(&content)[..]).unwrap(), sample());

    for (bad, what) in [
        (ThreadTotals { thread: 2, domain: Domain::Reserved, ..row }, "names a thread that is not there"),
        (ThreadTotals { domain: Domain::Reserved, ..row }, "is not behind the row before it"),
        (row, "is not behind the row before it"),
    ] {
        let mut wrong = snapshot.clone();
        wrong.thread_totals.push(bad);
        let error = write(&wrong, Vec::new(), &mut |_| {}).expect_err("a wrong row");
        assert!(error.to_string().contains(&format!("row 4 of section THTO {what}")), "{error}");
    }
    // Thread 2 of a known domain, then an unknown domain (2^32 + 3).
    let native = [1, 0x80, 0x80, 0x80, 0x80, 0x20];
    let unknown = [1, 0x86, 0x80, 0x80, 0x80, 0x20];
    let content = decompressed(&to_file(&sample()));
    for (domain, expected) in [(native, "row 0 names a thread"), (unknown, "row 0 names an unknown domain")] {
        let payload = [&domain[..], &[4, 0, 0, 0, 0]].concat();
        let added = [&content[..start_of(&content, "END ")], &section(b"THTO", 1, &payload)].concat();
        let error = read_error(&compressed(&added));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn the_way_of_the_walk_is_an_unknown_section_to_earlier_readers() {
    let mut snapshot = sample();
    snapshot.by_frame_pointer = vec![1, 2];
    let mut content = decompressed(&to_file(&snapshot));
    assert_eq!(read(&compressed(&content)[..]).unwrap(), snapshot);
    let at = start_of(&content, "WALK");
    content[at..at + 4].copy_from_slice(b"XXXX");
    assert_eq!(read(&compressed(&content)[..]).unwrap(), sample());
    let found: Vec<bool> = (0..4).map(|frame| snapshot.is_left_by_frame_pointer(frame)).collect();
    assert_eq!(found, [false, true, true, false]);
    for (rows, what) in [(vec![2, 1], "row 1 of section WALK is not behind"), (vec![4], "row 0 of section WALK names")]
    {
        snapshot.by_frame_pointer = rows;
        let error = write(&snapshot, Vec::new(), &mut |_| {}).expect_err("a row that breaks a rule");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_domain_stands_in_its_own_section_only() {
    // A count, and the first column of a row: 2^32 + `added`, as LEB128.
    let row = |added: u8| [[1, 0x80 | added, 0x80, 0x80, 0x80, 0x10].as_slice(), &[0; 6]].concat();
    let error = read_error(&with_payload("DOMS", &row(2)));
    assert!(error.to_string().contains("row 0 names a domain of other tables"), "{error}");
    let content = decompressed(&to_file(&sample()));
    let (end, native) = (start_of(&content, "END "), [row(0), vec![0, 0]].concat());
    let strayed = [&content[..end], &section(b"RSVD", 1, &native), &section(b"END ", 1, &[10])].concat();
    let error = read_error(&compressed(&strayed));
    assert!(error.to_string().contains("row 0 names a domain of other tables"), "{error}");
}

#[test]
fn missing_doubled_and_miscounted_sections_are_corrupt() {
    let content = decompressed(&to_file(&sample()));
    let (live, totals, end) = (start_of(&content, "LIVE"), start_of(&content, "TOTS"), start_of(&content, "END "));
    let without = [&content[..live], &content[totals..end], &section(b"END ", 1, &[8])].concat();
    let twice = [&content[..totals], &content[live..]].concat();
    let miscounted = [&content[..end], &section(b"END ", 1, &[8])].concat();
    let longer = [&content[..], b"x"].concat();
    for (content, expected) in [
        (without, "LIVE: it is missing"),
        (twice, "LIVE: it appears"),
        (miscounted, "counts 8"),
        (longer, "follow the end"),
    ] {
        let error = read_error(&compressed(&content));
        assert!(matches!(error, ReadError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut trailing = to_file(&sample());
    trailing.push(0);
    assert!(matches!(read_error(&trailing), ReadError::Corrupt { .. }));
}

/// Returns the content up to the section `tag`, then the section `tag` with `payload`.
fn with_payload(tag: &str, payload: &[u8]) -> Vec<u8> {
    let content = decompressed(&to_file(&sample()));
    let tag_bytes: [u8; 4] = tag.as_bytes().try_into().unwrap();
    let start = start_of(&content, tag);
    compressed(&[&content[..start], &section(&tag_bytes, 1, payload)].concat())
}

#[test]
fn impossible_rows_are_named() {
    let over = [0xff_u8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let cases: [(&str, &[u8], &str); 12] = [
        ("META", b"{}", "JSON"),
        ("MODS", &[1, 1, 0xff, 0, 0, 0, 0, 1], "row 0 has a text that is not UTF-8"),
        ("MODS", &[1, 0, 0, 0, 0, 0, 2], "row 0 has a flag"),
        ("FRMS", &[1, 0, 99], "row 0 names a module"),
        ("FRMS", &[[1].as_slice(), &over].concat(), "more than 64 bits"),
        ("NODE", &[1, 1, 0], "row 0 names a parent"),
        ("NODE", &[1, 0, 126], "row 0 names a frame"),
        ("STAK", &[1, 126, 0], "row 0 names a node"),
        ("STAK", &[1, 0, 0x80, 0x80, 8], "deeper"),
        ("LIVE", &[1, 0, 126, 0, 0, 0], "row 0 names a stack"),
        ("TOTS", &[2, 0, 0, 0, 0, 0, 0], "row 1 reaches beyond"),
        ("DOMS", &[0, 0], "bytes follow its last row"),
    ];
    for (tag, payload, expected) in cases {
        let error = read_error(&with_payload(tag, payload));
        assert!(matches!(&error, ReadError::Corrupt { section, .. } if section.contains(tag)), "{tag}: {error:?}");
        assert!(error.to_string().contains(expected), "{tag}: {error}");
    }
}

#[test]
fn a_history_is_an_unknown_section_to_earlier_readers_and_no_history_is_impossible() {
    let content = decompressed(&to_file(&sample()));
    let end = start_of(&content, "END ");
    let with = |tag: &[u8; 4], payload: &[u8]| {
        let history = section(tag, 1, payload);
        read(&compressed(&[&content[..end], &history, &section(b"END ", 1, &[10])].concat())[..])
    };
    // Begin, time zone, part, a step (Python: six figures; no process; four bytes of changes), and
    // two marks. Numbers are differences: 14 is 7, 2 is 1.
    let good = [
        &[5, 0xa0, 0x38, 16, 1, 40, 1, 0, 14, 18, 2, 2, 0, 14, 0, 7][..],
        &[0, 1, 2, 14, 2, 7, 1][..],
        &[2, 80, 1, b'x', 0, 2, 4, b'm', b'a', b'r', b'k', 1, b'a'][..],
    ]
    .concat();
    let history = with(b"HIST", &good).expect("a valid history").history.expect("a history");
    assert_eq!((history.begun, history.utc_offset, history.apart), (5, 3600, 16));
    let step = &history.steps[0];
    let row = step.domain(Domain::Python).expect("a row");
    assert_eq!((step.end, row.current, row.greatest, row.blocks, row.allocated_bytes), (20, 7, 9, 1, 7));
    let change = step.changes.iter().next().expect("a change");
    assert_eq!((change.stack, change.size, change.count, change.allocated_bytes), (Some(1), 7, 1, 7));
    assert_eq!(
        history.marks.iter().map(|mark| (mark.at, mark.text.as_str())).collect::<Vec<_>>(),
        [(40, ""), (41, "a")]
    );
    assert_eq!(with(b"HISX", &good).expect("skipped"), sample());

    let steps = |steps: &[u8]| [&[0, 0, 1], steps, &[0]].concat();
    let changes = |changes: &[u8]| {
        let length = u8::try_from(changes.len()).expect("short");
        steps(&[&[1, 2, 0, 0, length], changes].concat())
    };
    for (payload, expected) in [
        (steps(&[2, 2, 0, 0, 0, 0, 0, 0, 0]), "row 1 is not behind the row before it"),
        (steps(&[1, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "row 0 has domains in another order"),
        (steps(&[1, 2, 1, 0x86, 0x80, 0x80, 0x80, 0x20]), "row 0 names an unknown domain"),
        (steps(&[1, 2, 0xff, 0x7f]), "row 0 has more than 1024 domains"),
        (steps(&[1, 2, 0, 2]), "row 0 has a flag"),
        (changes(&[0]), "row 0 has changes that are cut short"),
        (changes(&[0, 0]), "row 0 has a domain without changes"),
        (changes(&[0, 1, 4, 0, 0, 0, 1]), "row 0 names a stack that is not there"),
        (changes(&[0, 2, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1]), "row 0 has changes in another order"),
        (changes(&[1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1]), "row 0 has changes in another order"),
        (vec![0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 0, 0], "its time zone is none"),
        (vec![0, 0, 1, 0, 2, 8, 0, 0, 1, 0, 0], "marks in another order"),
    ] {
        let error = with(b"HIST", &payload).expect_err("impossible");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[test]
fn impossible_names_are_refused() {
    let content = decompressed(&to_file(&sample()));
    let end = start_of(&content, "END ");
    let with = |payload: &[u8]| {
        let names = section(b"NAME", 1, payload);
        read(&compressed(&[&content[..end], &names, &section(b"END ", 1, &[10])].concat())[..])
    };
    // A text, a module, and a frame with a place: function 0, and line 3 of file 0.
    let good = with(&[1, 1, b'f', 1, 0, 1, 0, 1, 2, 1, 2, 2, 6]).expect("valid names").names;
    assert_eq!((good.texts.len(), good.of_module(0).is_some(), good.of_frame(1).len()), (1, true, 1));
    let place = good.of_frame(1)[0];
    assert_eq!((place.function, place.line), (Some(0), Some((0, 3))));
    assert!(good.of_frame(0).is_empty() && good.of_module(1).is_none());
    let deep = [&[0, 0, 1, 0, 0x80, 2][..], &[0; 512]].concat();
    for (payload, expected) in [
        (&[0, 1, 126, 1, 0, 0][..], "row 0 names a module"),
        (&[0, 2, 0, 1, 0, 0, 1, 0, 0], "row 1 is not behind"),
        (&[0, 0, 1, 126, 0], "row 0 names a frame"),
        (&[0, 0, 1, 0, 1, 2, 0], "row 0 names a text"),
        (&[1, 1, b'f', 0, 1, 0, 1, 0, 4, 0], "row 0 names a text"),
        (&deep, "row 0 has more than 255 functions"),
    ] {
        let error = with(payload).expect_err("impossible");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Returns a hostile file of a few kilobytes: the section `tag` has `bytes` bytes, `head` and then
/// zeros.
fn bomb(tag: &[u8; 4], head: &[u8], bytes: u64) -> Vec<u8> {
    let content = decompressed(&to_file(&sample()));
    let start = start_of(&content, std::str::from_utf8(tag).unwrap());
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&content[..start]).unwrap();
    encoder.write_all(tag).unwrap();
    encoder.write_all(&1_u32.to_le_bytes()).unwrap();
    encoder.write_all(&bytes.to_le_bytes()).unwrap();
    encoder.write_all(head).unwrap();
    io::copy(&mut io::repeat(0).take(bytes - head.len() as u64), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_file_that_expands_enormously_is_refused() {
    let many = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for (tag, head) in [(b"THRD", &many[..]), (b"META", &[]), (b"LIVE", &many[..])] {
        let file = bomb(tag, head, 1 << 30);
        assert!(file.len() < 200_000, "{}", file.len());
        let error = read_error(&file);
        assert!(matches!(error, ReadError::Oversized { .. } | ReadError::Corrupt { .. }), "{error:?}");
    }
}

/// Steps and marks of a few bytes take more bytes in memory, so their number has a limit.
#[test]
fn a_history_of_ten_years_is_the_longest() {
    let content = decompressed(&to_file(&sample()));
    let refused = |payload: &[u8], expected: &str| {
        let added = [&content[..start_of(&content, "END ")], &section(b"HIST", 1, payload)].concat();
        let error = read_error(&compressed(&added)).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let steps = [&[0, 0, 1, 0xff, 0xff, 0x7f][..], &[2, 0, 0, 0].repeat(300_000)].concat();
    refused(&steps, "row 262144 is beyond 262144 steps");
    let marks = [&[0, 0, 1, 0, 0xff, 0xff, 0x7f][..], &[2, 0, 0].repeat(100_000)].concat();
    refused(&marks, "row 65536 is beyond 65536 marks");
}

#[test]
fn a_length_without_bytes_allocates_nothing() {
    let huge = [&[1][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat();
    assert!(matches!(read_error(&with_payload("MODS", &huge)), ReadError::Corrupt { .. }));
    let content = decompressed(&to_file(&sample()));
    let mut claimed = content[..start_of(&content, "MODS")].to_vec();
    claimed.extend(*b"MODS");
    claimed.extend(1_u32.to_le_bytes());
    claimed.extend(u64::MAX.to_le_bytes());
    claimed.extend(huge);
    assert!(matches!(read_error(&compressed(&claimed)), ReadError::Truncated { .. }));
}

#[test]
fn an_error_of_the_device_is_not_called_damage() {
    struct Broken(io::Cursor<Vec<u8>>);
    impl Read for Broken {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(io::Error::other("the disk is gone")),
                n => Ok(n),
            }
        }
    }
    let mut file = to_file(&sample());
    file.truncate(file.len() / 2);
    let error = read(Broken(io::Cursor::new(file))).expect_err("the device broke");
    assert!(matches!(&error, ReadError::Io(e) if e.to_string() == "the disk is gone"), "{error:?}");
}

#[test]
fn a_snapshot_that_contradicts_itself_is_not_written() {
    let mut snapshot = sample();
    snapshot.live[0].stack = 1000;
    let error = write(&snapshot, Vec::new(), &mut |_| {}).expect_err("stack 1000 is not there");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("row 0 of section LIVE"), "{error}");
}
