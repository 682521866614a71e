//! The records: every encoded record can be decoded, arbitrary words do no harm, and no byte of the
//! format changes by accident.
#![cfg(not(loom))]

use heapline_shared_format::event::{
    self, DecodeError, Event, MAX_BUILD_ID_BYTES, MAX_PATH_BYTES, MAX_RECORD_WORDS, MAX_STACK_FRAMES, ModuleFlags,
    Tracked, decode,
};
use heapline_shared_format::mapping::{self, Mapping, Pages};
use proptest::collection::vec;
use proptest::prelude::*;

const STAMP: std::ops::Range<u64> = 0..1 << event::STAMP_BITS;
const ADDRESS: std::ops::Range<u64> = 0..1 << event::ADDRESS_BITS;
const SIZE: std::ops::Range<u64> = 0..1 << event::SIZE_BITS;

/// Configuration of proptest. Under miri: a few cases, and no file for failures.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    if cfg!(miri) { ProptestConfig { cases: 8, failure_persistence: None, ..config } } else { config }
}

/// Returns the words of a MODULE record, laid out like a collector's record.
fn module(
    stamp: u64,
    range: std::ops::Range<u64>,
    bias: u64,
    flags: ModuleFlags,
    build_id: &[u8],
    path: &[u8],
) -> Vec<u64> {
    let (head, text_words) = event::module_head(stamp, range, bias, flags, build_id.len(), path.len());
    let mut text = [build_id, path].concat();
    text.resize(text_words * 8, 0);
    let words = text.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
    head.into_iter().chain(words).collect()
}

/// Decodes the record with another record behind it, and cut short at every word.
fn comes_back(record: &[u64], wanted: Event<'_>) -> Result<(), TestCaseError> {
    let followed = [record, &[u64::MAX; 2]].concat();
    prop_assert_eq!(decode(&followed), Ok((wanted, record.len())));
    for n in 0..record.len() {
        prop_assert_eq!(decode(&record[..n]), Err(DecodeError::Cut), "{} of {} words", n, record.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn blocks_come_back(stamp in STAMP, address in ADDRESS, size in SIZE, stack: u32) {
        comes_back(&event::alloc(stamp, address, size, stack), Event::Alloc { stamp, address, size, stack })?;
        comes_back(&event::reallocated(stamp, address, size, stack), Event::Reallocated { stamp, address, size, stack })?;
        comes_back(&event::free(stamp, address), Event::Free { stamp, address, domain: 0 })?;
        comes_back(&event::reuse(stamp, address, stack), Event::Reuse { stamp, address, stack })?;
        for owner in [Tracked::Domain(stack), Tracked::Pool(stack)] {
            comes_back(&event::track(stamp, owner, address, size, 9), Event::Track { stamp, owner, address, size, stack: 9 })?;
            comes_back(&event::untrack(stamp, owner, address), Event::Untrack { stamp, owner, address })?;
        }
        comes_back(&event::realloc(stamp, address), Event::Realloc { stamp, address, domain: 0 })?;
        for freed in [false, true] {
            comes_back(&event::realloc_end(stamp, address, freed), Event::ReallocEnd { stamp, address, freed, domain: 0 })?;
        }
    }

    #[test]
    fn blocks_of_other_domains_come_back(stamp in STAMP, address in ADDRESS, domain: u8, freed: bool) {
        let of = |record| event::in_domain(record, domain);
        comes_back(&of(event::free(stamp, address)), Event::Free { stamp, address, domain })?;
        comes_back(&of(event::realloc(stamp, address)), Event::Realloc { stamp, address, domain })?;
        comes_back(&of(event::realloc_end(stamp, address, freed)), Event::ReallocEnd { stamp, address, freed, domain })?;
        let head = event::stack_of_domain(event::stack_head(0, 1, 2, 3, true, true), domain);
        let frames = &[];
        comes_back(&head, Event::Stack { id: 2, keep: 1, total: 3, truncated: true, more: true, domain, frames })?;
    }

    #[test]
    fn code_objects_come_back(id in 0..event::MAX_CODES, more: bool, text in vec(any::<u8>(), 0..=if cfg!(miri) { 64 } else { event::MAX_CODE_BYTES })) {
        let words = text.chunks(8).map(|part| part.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)));
        let words: Vec<u64> = event::code_head(id, text.len(), more).into_iter().chain(words).collect();
        prop_assert!(words.len() <= MAX_RECORD_WORDS);
        let Ok((Event::Code { id: i, more: m, text: t }, n)) = decode(&words) else {
            return Err(TestCaseError::fail("no CODE came back"));
        };
        prop_assert_eq!((i, m, n), (id, more, words.len()));
        prop_assert_eq!(t.bytes().collect::<Vec<_>>(), text);
        if words.len() > 2 {
            prop_assert_eq!(decode(&words[..words.len() - 1]), Err(DecodeError::Cut));
        }
    }

    #[test]
    fn python_frames_come_back(code in 0..event::MAX_CODES, offset: u32, address in ADDRESS) {
        prop_assert_eq!(event::as_python_frame(event::python_frame(code, offset)), Some((code, offset)));
        prop_assert_eq!(event::as_python_frame(event::python_frame(code, offset) | event::PYTHON_ENTRY), Some((code, offset)));
        prop_assert_eq!(event::as_python_frame(address), None);
    }

    #[test]
    fn native_frames_keep_how_they_were_left(address in ADDRESS, code in 0..event::MAX_CODES, offset: u32) {
        let marked = address | event::BY_FRAME_POINTER;
        prop_assert_eq!(event::as_native_frame(address), (address, false));
        prop_assert_eq!(event::as_native_frame(marked), (address, true));
        let python = event::python_frame(code, offset);
        prop_assert_eq!(event::as_native_frame(python), (python, false), "the bit is part of a code id");
    }

    #[test]
    fn stacks_come_back(
        (id, keep, total) in any::<(u32, u32, u32)>(),
        (truncated, more) in any::<(bool, bool)>(),
        frames in vec(any::<u64>(), 0..=MAX_STACK_FRAMES),
    ) {
        let head = event::stack_head(frames.len(), keep, id, total, truncated, more);
        let words: Vec<u64> = head.into_iter().chain(frames.iter().copied()).collect();
        comes_back(&words, Event::Stack { id, keep, total, truncated, more, domain: 0, frames: &frames })?;
    }

    #[test]
    fn modules_come_back(
        stamp in STAMP,
        (start, length) in (ADDRESS, 0_u64..1 << 40),
        bias: u64,
        flags in (any::<bool>(), any::<bool>()),
        build_id in vec(any::<u8>(), 0..=MAX_BUILD_ID_BYTES),
        path in vec(any::<u8>(), 0..=if cfg!(miri) { 64 } else { MAX_PATH_BYTES }),
    ) {
        let flags = ModuleFlags { is_program: flags.0, is_recorded: flags.1 };
        let words = module(stamp, start..start + length, bias, flags, &build_id, &path);
        prop_assert!(words.len() <= MAX_RECORD_WORDS);
        let Ok((Event::Module { stamp: s, start: from, end, bias: b, flags: f, build_id: i, path: p }, n)) = decode(&words) else {
            return Err(TestCaseError::fail("no MODULE came back"));
        };
        prop_assert_eq!((s, from, end, b, f, n), (stamp, start, start + length, bias, flags, words.len()));
        prop_assert_eq!(i.bytes().collect::<Vec<_>>(), build_id);
        prop_assert_eq!(p.bytes().collect::<Vec<_>>(), path);
        prop_assert_eq!(decode(&words[..words.len() - 1]), Err(DecodeError::Cut));
    }

    #[test]
    fn threads_and_unloads_come_back(stamp in STAMP, start: u64, name: [u8; 16]) {
        comes_back(&event::thread(stamp, name), Event::Thread { stamp, name })?;
        comes_back(&event::unload(stamp, start), Event::Unload { stamp, start })?;
    }

    #[test]
    fn mixed_stacks_and_queries_come_back(stamp in STAMP, id: u32, native: u32, python: u32, arguments: [u64; 2]) {
        comes_back(&event::mixed(id, native, python), Event::Mixed { id, native, python })?;
        comes_back(&event::query(stamp, id, native, arguments), Event::Query { stamp, number: id, asked: native, arguments })?;
    }

    #[test]
    fn mappings_come_back(
        stamp in STAMP,
        pages in pages(1),
        old in pages(0),
        (flag, stack) in any::<(bool, u32)>(),
    ) {
        let first = event::mapping(stamp);
        prop_assert_eq!(event::stamp(first), Some(stamp));
        let event = |mapping| Event::Mapping { stamp, mapping };
        let reserved = flag;
        comes_back(&mapping::map(first, pages, flag, stack), event(Mapping::Map { pages, reserved, stack }))?;
        comes_back(&mapping::protect(first, pages, flag, stack), event(Mapping::Protect { pages, reserved, stack }))?;
        comes_back(&mapping::unmap(first, pages), event(Mapping::Unmap { pages }))?;
        comes_back(&mapping::unmap_ended(first, pages, false), event(Mapping::Unmapped { pages }))?;
        comes_back(&mapping::unmap_ended(first, pages, true), event(Mapping::Kept { pages }))?;
        let remapped = Mapping::Remapped { old, new: pages, stays: flag, stack };
        comes_back(&mapping::remapped(first, old, pages, flag, stack), event(remapped))?;
    }

    #[test]
    fn pages_are_whole_and_inside_the_address_space(start: u64, bytes: u64, near in 0_u64..3) {
        let end = 1_u64 << event::ADDRESS_BITS;
        for (start, bytes) in [(start, bytes), (start & (end - 1) & !4095, bytes & (end - 1)), (end - (near << 12), bytes & 0x3fff)] {
            let wanted = (start % 4096 == 0 && start.checked_add(bytes).is_some_and(|last| last <= end))
                .then(|| (start, (start + bytes).div_ceil(4096) * 4096));
            prop_assert_eq!(Pages::covering(start, bytes).map(|pages| (pages.start(), pages.end())), wanted);
        }
    }

    #[test]
    fn any_words_end_or_advance(words in vec(any_word(), 0..64)) {
        let mut rest = &words[..];
        while let Ok((event, n)) = decode(rest) {
            prop_assert!((1..=rest.len()).contains(&n), "{event:?} takes {n} of {} words", rest.len());
            if let Event::Module { build_id, path, .. } = event {
                let text = build_id.bytes().count() + path.bytes().count();
                prop_assert!(text <= MAX_BUILD_ID_BYTES + MAX_PATH_BYTES);
            }
            rest = &rest[n..];
        }
    }
}

/// Returns a strategy for ranges of whole pages, `least` pages or more.
fn pages(least: u64) -> impl Strategy<Value = Pages> {
    (0_u64..1 << 35, least..1 << 35).prop_map(|(page, n)| Pages::covering(page << 12, n << 12).expect("whole pages"))
}

/// Returns a strategy for words that often look like the start of a record.
fn any_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u64..16, 0_u64..64).prop_map(|(kind, low)| low << 4 | kind),
        (0_u64..80, 0_u64..80).prop_map(|(path, build_id)| path << 48 | build_id << 32),
        (0_u64..8, 0_u64..80).prop_map(|(what, page)| what << 56 | page << 12),
    ]
}

#[test]
fn a_pad_skips_exactly_its_words() {
    for n in [1, 2, 1024] {
        let mut words = vec![0; n];
        words[0] = event::pad(n);
        assert_eq!(decode(&words), Ok((Event::Pad, n)));
        assert_eq!(decode(&words[..n - 1]), Err(DecodeError::Cut));
    }
    assert_eq!(decode(&[event::pad(0)]), Err(DecodeError::Malformed), "a pad of nothing would never end");
}

#[test]
fn numbers_that_no_collector_writes_are_refused() {
    assert_eq!(decode(&[]), Err(DecodeError::Cut));
    let kind = event::kind::MAPPING;
    for (words, why) in [
        ([kind, 1 << 56, 0, 0], "a range without bytes"),
        ([kind, 1 << 56 | 0x1001, 0x1000, 0], "a range that begins inside a page"),
        ([kind, 1 << 56 | 0x1000, 0xfff, 0], "a range that ends inside a page"),
        ([kind, 1 << 56 | 0xffff_ffff_f000, 0x2000, 0], "a range beyond the last address"),
        ([kind, 1 << 56 | 0x1000, 1 << 63, 0], "a range beyond all addresses"),
        ([kind, 1 << 56 | 1 << 48, 0x1000, 0], "unknown bits beside the address"),
        ([kind, 1 << 56 | 0x1000, 0x1000, 2 << 32], "an unknown flag"),
        ([kind, 0x1000, 0x1000, 0], "nothing that is done to ranges"),
        ([kind, 7 << 56 | 0x1000, 0x1000, 0], "nothing that this version knows"),
    ] {
        assert_eq!(decode(&words), Err(DecodeError::Malformed), "{why}");
    }
    let whole = Pages::covering(0x1000, 1).expect("a page");
    let mut old_inside_a_page = mapping::remapped(event::mapping(0), whole, whole, false, 0);
    old_inside_a_page[4] += 8;
    assert_eq!(decode(&old_inside_a_page), Err(DecodeError::Malformed));
    assert_eq!(decode(&[event::kind::TRACK, 0, 0, 4 << 32]), Err(DecodeError::Malformed), "an unknown flag");
    assert_eq!(decode(&[event::kind::REALLOC_END, 2 << 48]), Err(DecodeError::Malformed), "neither failed nor freed");
    let mut long = vec![0; 3 + MAX_STACK_FRAMES + 1];
    long[..3].copy_from_slice(&event::stack_head(MAX_STACK_FRAMES + 1, 0, 1, 1, false, false));
    assert_eq!(decode(&long), Err(DecodeError::Malformed), "one frame too many");
    assert_eq!(decode(&[1 << 30 | event::kind::STACK, 0, 0]), Err(DecodeError::Malformed), "an unknown flag");
    let (path, _) = event::module_head(0, 0..1, 0, ModuleFlags::default(), 0, MAX_PATH_BYTES + 1);
    assert_eq!(decode(&path), Err(DecodeError::Malformed), "one byte of path too many");
    let (build_id, _) = event::module_head(0, 0..1, 0, ModuleFlags::default(), MAX_BUILD_ID_BYTES + 1, 0);
    assert_eq!(decode(&build_id), Err(DecodeError::Malformed), "one byte of build-id too many");
    let (mut backwards, _) = event::module_head(0, 0..1, 0, ModuleFlags::default(), 0, 0);
    backwards[2] = 2;
    assert_eq!(decode(&backwards), Err(DecodeError::Malformed), "a range that ends before it starts");
}

#[test]
fn a_size_or_stamp_that_is_too_wide_does_not_spill_into_its_neighbours() {
    let [stamp, address, size] = event::alloc(u64::MAX, u64::MAX, u64::MAX, 0);
    assert_eq!(stamp, 0xffff_ffff_ffff_fff1);
    assert_eq!(address, u64::MAX);
    assert_eq!(size, 0xffff_ffff_0000_0000, "the stack id stays 0");
    assert_eq!(event::free(0, u64::MAX)[1], 0x0000_ffff_ffff_ffff);
    assert_eq!(event::realloc_end(0, u64::MAX, false)[1], 0x0000_ffff_ffff_ffff);
}

/// Checks the bytes of the format. A change of these bytes is a change of `arena::VERSION`.
#[test]
fn golden_words() {
    let (stamp, address, size, stack) = (0x0012_3456_789a_bcde, 0x7f01_0203_0405, 0x1234_5678_9abc, 0xdead_beef);
    assert_eq!(event::pad(5), 0x50);
    assert_eq!(
        event::alloc(stamp, address, size, stack),
        [0x0123_4567_89ab_cde1, 0x9abc_7f01_0203_0405, 0x1234_5678_dead_beef]
    );
    assert_eq!(event::free(stamp, address), [0x0123_4567_89ab_cde2, 0x0000_7f01_0203_0405]);
    assert_eq!(event::realloc(stamp, address), [0x0123_4567_89ab_cde3, 0x0000_7f01_0203_0405]);
    assert_eq!(
        event::reallocated(stamp, address, size, stack),
        [0x0123_4567_89ab_cde4, 0x9abc_7f01_0203_0405, 0x1234_5678_dead_beef]
    );
    assert_eq!(event::realloc_end(stamp, address, false), [0x0123_4567_89ab_cde5, 0x0000_7f01_0203_0405]);
    assert_eq!(event::realloc_end(stamp, address, true), [0x0123_4567_89ab_cde5, 0x0001_7f01_0203_0405]);
    assert_eq!(
        event::stack_head(0x1ff, 7, 0xdead_beef, 300, true, true),
        [0x0000_0000_0030_1ff6, 0x0000_0007_dead_beef, 0x0000_012c_0000_0000]
    );
    let program = ModuleFlags { is_program: true, is_recorded: false };
    assert_eq!(
        module(stamp, 0x40_0000..0x50_0000, 0x1000, program, &[0xab; 3], b"/lib/x.so"),
        [
            0x0123_4567_89ab_cde7,
            0x0009_0003_0000_0001,
            0x40_0000,
            0x50_0000,
            0x1000,
            u64::from_le_bytes(*b"\xab\xab\xab/lib/"),
            u64::from_le_bytes(*b"x.so\0\0\0\0"),
        ]
    );
    let (old, new) = (Pages::covering(0x7f01_0203_0000, 1), Pages::covering(0x7f05_0000_0000, 0x1234_5678_9000));
    assert_eq!(
        mapping::remapped(event::mapping(stamp), old.expect("a page"), new.expect("pages"), true, stack),
        [0x0123_4567_89ab_cdef, 0x0600_7f05_0000_0000, 0x1234_5678_9000, 0x1_dead_beef, 0x7f01_0203_0000, 0x1000]
    );
    assert_eq!(
        mapping::map(0xf, old.expect("a page"), true, stack),
        [0xf, 0x0100_7f01_0203_0000, 0x1000, 0x1_dead_beef]
    );
    assert_eq!(event::unload(stamp, 0x40_0000), [0x0123_4567_89ab_cde8, 0x40_0000]);
    assert_eq!(
        event::thread(stamp, *b"worker-1\0\0\0\0\0\0\0\0"),
        [0x0123_4567_89ab_cde9, u64::from_le_bytes(*b"worker-1"), 0]
    );
}
