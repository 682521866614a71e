//! Tests of the whole program: reports of a snapshot in each format.

mod support;

use heapline_shared_format::snapshot::{Begun, Domain, End, Module};
use serde_json::Value;
use std::process::Command;
use support::compile;
use support::scene::{Scene, fill, report, scene, stderr, stdout};
use support::snapshot::{BASE, Builder, calls_of};
use tempfile::tempdir;

fn at(line: u64) -> (String, u64) {
    ("inlines.c".to_string(), line)
}

#[test]
fn text_is_the_pretty_top_below_a_head() {
    let scene = scene();
    let source = &scene.source;
    let expected = format!(
        "\
Process 4711: exact; peaks: native 29.6 KiB, mmap 12.0 KiB
victim --grow, exited with status 0; snapshot of 2025-11-21T00:37:00Z
native: current 10107 B in 13 blocks, peak 29.6 KiB; 52 allocated (39.5 KiB), 39 freed since the start

Top line: native memory live at the snapshot
#1: {source}:5: 10107 B in 13 blocks, 100 %, innermost
  return malloc(n);
Total allocated size: 10107 B
"
    );
    assert_eq!(scene.says(&["--source"]), expected);
}

#[test]
fn a_verbose_head_has_every_layer() {
    let head = "\
Process 4711: exact; peaks: native 29.6 KiB, mmap 12.0 KiB
victim --grow, exited with status 0; snapshot of 2025-11-21T00:37:00Z
native: current 10107 B in 13 blocks, peak 29.6 KiB; 52 allocated (39.5 KiB), 39 freed since the start
mmap: current 4096 B in 1 range, peak 12.0 KiB; 4 allocated (16.0 KiB), 3 freed since the start
Up to 64 frames a traceback; Heapline's own memory: 64.0 KiB in the target, 1024 KiB outside

Top line: ";
    let text = scene().says(&["-v"]);
    assert!(text.starts_with(head), "{text}");
}

/// The layer with the most memory comes first, whatever the view. Layers are never summed.
#[test]
fn the_first_line_names_the_layer_in_which_the_memory_is() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let stack = builder.stack(&[0x1000]);
    builder.blocks(Domain::Native, stack, 0, 4 << 20, 1);
    builder.blocks(Domain::Mmap, stack, 0, 96 << 20, 1);
    builder.blocks(Domain::Reserved, stack, 0, 1 << 30, 1);
    let first = |builder: &Builder, options: &[&str]| {
        let snapshot = builder.save(dir.path(), "a.snap.zst");
        let text = stdout(&report(&[&[snapshot.to_str().unwrap()], options].concat()));
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(first(&builder, &[]), "Process 4711: exact; peaks: mmap 288 MiB, native 12.0 MiB");
    let reserved = first(&builder, &["--domain", "mmap:reserved"]);
    assert_eq!(reserved, "Process 4711: exact; peaks: mmap:reserved 3072 MiB, mmap 288 MiB, native 12.0 MiB");
    builder.snapshot.meta.begun = Begun::Attach;
    builder.snapshot.meta.untracked_frees = 9;
    assert!(first(&builder, &[]).starts_with("Process 4711: exact since the attach; peaks: mmap"));
    let snapshot = builder.save(dir.path(), "a.snap.zst");
    let text = |options: &[&str]| stdout(&report(&[&[snapshot.to_str().unwrap()], options].concat()));
    let plain = text(&["--by", "lineno"]);
    assert!(plain.contains(" freed since the attach\n") && !plain.contains("9 frees of"), "{plain}");
    assert!(text(&["-v"]).contains("\n9 frees of blocks that were not seen to come"), "{}", text(&["-v"]));
}

#[test]
fn a_limit_sums_up_the_others() {
    let scene = scene();
    let text = scene.says(&["--by", "traceback", "--limit", "1"]);
    assert!(text.contains("Top traceback: native"), "{text}");
    assert!(text.contains("#1: 12 memory blocks: 10100 B, 99.9 %\n"), "{text}");
    assert!(text.contains("\n1 other: 7 B\nTotal allocated size: 10107 B\n"), "{text}");
    assert!(!text.contains("#2"), "{text}");
    assert_eq!(scene.figures(&["--by", "traceback", "--limit", "0"]), [(10100, 12), (7, 1)]);
}

#[test]
fn a_traceback_has_the_most_recent_frame_first_and_its_source() {
    let scene = scene();
    let text = scene.says(&["--by", "traceback", "--limit", "1", "--source"]);
    let source = &scene.source;
    let frames = format!(
        "> File \"{source}\", line 5, in innermost [inlines]\n    return malloc(n);\n\
         \x20 File \"{source}\", line 9, in middle [inlines]\n    void *first = innermost(n);\n\
         \x20 File \"{source}\", line 14, in outer [inlines]\n    return middle(n * 2);\n\
         \x20 File \"{source}\", line 22, in main [inlines]\n    void *block = outer((size_t)argc);\n"
    );
    assert!(text.contains(&frames), "{text}");
}

#[test]
fn json_has_every_field_of_the_contract() {
    let scene = scene();
    let json = scene.json(&["--by", "traceback"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&json), "at by cumulative domains heapline_report own snapshot stats total view");
    assert_eq!(json["heapline_report"], 1);
    assert_eq!(
        keys(&json["snapshot"]),
        "command contradictions end lost mode nframe pid sample_interval taken_at unseen untracked_frees"
    );
    assert_eq!(json["snapshot"]["mode"], "exact");
    assert_eq!(json["snapshot"]["end"], "exited");
    assert_eq!(json["snapshot"]["lost"]["reentrant"], 0);
    assert_eq!(json["snapshot"]["contradictions"], 0);
    assert_eq!(json["own"]["target_bytes"], 65536);
    assert_eq!(json["own"]["aggregator_bytes"], 1 << 20);
    assert_eq!(keys(&json["domains"][0]), "allocated_bytes allocs blocks current domain frees peak");
    assert_eq!((&json["view"], &json["by"], &json["at"]), (&"native".into(), &"traceback".into(), &"live".into()));
    assert_eq!(json["total"].to_string(), r#"{"count":13,"groups":2,"size":10107}"#);
    let row = &json["stats"][0];
    assert_eq!(keys(row), "blamed count key size total_nframe traceback");
    assert_eq!(row["key"], Value::Null);
    assert_eq!((&row["total_nframe"], &row["blamed"]), (&2.into(), &3.into()));
    assert_eq!(Scene::places(row), [at(22), at(14), at(9), at(5)]);
    let frame = &row["traceback"][3];
    assert_eq!(keys(frame), "address filename function lineno module walked");
    assert_eq!(frame["function"], "innermost");
    assert_eq!(frame["module"], scene.program.to_str().unwrap());
    let address = u64::from_str_radix(frame["address"].as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap();
    assert!(address > BASE);
}

#[test]
fn groupings_that_are_no_frame_have_a_key() {
    let scene = scene();
    for (by, keys, figures) in [
        ("size", vec![Value::from(1000), 50.into(), 7.into()], vec![(10000, 10), (100, 2), (7, 1)]),
        ("thread", vec!["victim (4711)".into(), "worker (ended)".into()], vec![(10007, 11), (100, 2)]),
        ("function", vec!["innermost".into()], vec![(10107, 13)]),
        ("module", vec![scene.program.to_str().unwrap().into()], vec![(10107, 13)]),
    ] {
        let json = scene.json(&["--by", by]);
        let rows = json["stats"].as_array().unwrap();
        assert_eq!(rows.iter().map(|row| row["key"].clone()).collect::<Vec<_>>(), keys, "{by}");
        assert!(rows.iter().all(|row| row["traceback"].as_array().unwrap().is_empty()), "{by}");
        assert_eq!(scene.figures(&["--by", by]), figures, "{by}");
    }
    let json = scene.json(&["--by", "filename"]);
    assert_eq!(Scene::places(&json["stats"][0]), [at(0)]);
    assert_eq!(json["stats"][0]["key"], Value::Null);
}

#[test]
fn the_moment_can_be_the_peak_or_the_whole_time() {
    let scene = scene();
    assert_eq!(scene.figures(&["--at", "live"]), [(10107, 13)]);
    assert_eq!(scene.figures(&["--at", "peak"]), [(30321, 39)]);
    assert_eq!(scene.figures(&["--at", "total"]), [(40428, 52)]);
}

#[test]
fn cumulative_counts_every_frame_and_the_total_every_block_once() {
    let scene = scene();
    let json = scene.json(&["--cumulative"]);
    let rows: Vec<(u64, (String, u64))> = json["stats"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["size"].as_u64().unwrap(), Scene::places(row)[0].clone()))
        .collect();
    assert_eq!(rows, [(10107, at(22)), (10107, at(14)), (10107, at(5)), (10100, at(9)), (7, at(10))]);
    assert_eq!(json["total"].to_string(), r#"{"count":13,"groups":5,"size":10107}"#);
    // All four functions are in the same file, so each block counts four times for the file.
    assert_eq!(scene.figures(&["--by", "filename", "--cumulative"]), [(4 * 10107, 4 * 13)]);
}

#[test]
fn domains_are_chosen_by_name_and_never_summed() {
    let scene = scene();
    assert_eq!(scene.figures(&["--domain", "mmap"]), [(4096, 1)]);
    assert_eq!(scene.json(&["--domain", "mmap"])["view"], "mmap");
    let output = report(&[scene.path(), "--domain", "0"]);
    assert!(output.status.success());
    let note = "report: note: there are no blocks in domain python: no python memory live at the snapshot\n";
    assert_eq!(stderr(&output), note);
    assert!(!stdout(&output).contains("Top "), "{}", stdout(&output));

    let mut builder = Builder::new(None);
    let stack = builder.stack(&[0x1000]);
    builder.blocks(Domain::Native, stack, 0, 1 << 18, 1);
    builder.blocks(Domain::Python, stack, 0, 28, 3);
    builder.blocks(Domain::Track(3), stack, 0, 5, 1);
    let python = Scene { snapshot: builder.save(scene.dir.path(), "python.snap.zst"), ..scene };
    assert_eq!(python.json(&[])["view"], "python");
    assert_eq!(python.figures(&[]), [(84, 3)]);
    assert_eq!(python.figures(&["--domain", "track:3"]), [(5, 1)]);
    assert_eq!(python.figures(&["--domain", "3"]), [(5, 1)]);
}

#[test]
fn filters_look_at_the_most_recent_frame_unless_told_otherwise() {
    let scene = scene();
    assert_eq!(scene.figures(&["--filter", "*/inlines.c:5"]), [(10107, 13)]);
    assert_eq!(scene.figures(&["--filter", "*/inlines.c:10", "--all-frames", "--by", "traceback"]), [(7, 1)]);
    assert_eq!(scene.figures(&["--exclude", "*/inlines.c:10", "--all-frames", "--by", "traceback"]), [(10100, 12)]);
    let both = ["--filter", "*.c", "--filter", "*.h", "--exclude", "*.h"];
    assert_eq!(scene.figures(&both), [(10107, 13)]);

    let output = report(&[scene.path(), "--filter", "*/inlines.c:10"]);
    assert!(output.status.success());
    assert_eq!(
        stderr(&output),
        "report: note: the filters match nothing of 10107 B in 13 blocks (native memory live at the snapshot): no rows\n"
    );
    assert!(stdout(&output).contains("\n\nTotal allocated size: 0 B"), "{}", stdout(&output));
    for (at, amount) in [("peak", "29.6 KiB"), ("total", "39.5 KiB in 52 blocks")] {
        let output = report(&[scene.path(), "--filter", "nowhere", "--at", at]);
        assert!(stderr(&output).contains(&format!("match nothing of {amount} (")), "{}", stderr(&output));
    }
}

#[test]
fn a_diff_has_what_changed() {
    let scene = scene();
    let mut builder = Builder::new(Some(&scene.program));
    fill(&mut builder, &scene.program, 4);
    builder.snapshot.live.retain(|row| row.size != 50);
    let old = builder.save(scene.dir.path(), "old.snap.zst");
    let diff = ["--diff", old.to_str().unwrap(), "--by", "size"];
    let json = scene.json(&diff);
    let row =
        |row: &Value| ["key", "size", "size_diff", "count", "count_diff"].map(|field| row[field].as_i64().unwrap());
    let rows: Vec<_> = json["stats"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(rows, [[1000, 10000, 6000, 10, 6], [50, 100, 100, 2, 2], [7, 7, 0, 1, 0]]);
    let text = scene.says(&diff[..2]);
    assert!(text.contains(":5: 10107 B (+6100 B) in 13 blocks (+8), innermost\n"), "{text}");
    assert!(text.contains("Total allocated size: 10107 B (+6100 B)\n"), "{text}");

    // With the snapshots exchanged, a group is gone.
    let gone = report(&[old.to_str().unwrap(), "--diff", scene.path(), "--by", "size", "--format", "csv"]);
    assert_eq!(
        stdout(&gone),
        "size,count,size_diff,count_diff,block_size\n4000,4,-6000,-6,1000\n0,0,-100,-2,50\n7,1,0,0,7\n"
    );
}

#[test]
fn csv_and_folded_have_one_line_per_row() {
    let scene = scene();
    let (source, program) = (&scene.source, scene.program.display());
    assert_eq!(
        scene.says(&["--format", "csv"]),
        format!("size,count,filename,lineno,function,module\n10107,13,{source},5,innermost,{program}\n")
    );
    assert_eq!(
        scene.says(&["--format", "csv", "--by", "traceback", "--limit", "1"]),
        format!("size,count,total_nframe,traceback\n10100,12,2,{source}:22;{source}:14;{source}:9;{source}:5\n")
    );
    assert_eq!(
        scene.says(&["--format", "folded"]),
        "main;outer;middle;innermost 10100\nmain;outer;middle;innermost 7\n"
    );
}

#[test]
fn allocators_are_no_part_of_a_traceback_but_of_a_raw_one() {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), "containers.cpp", &["-g", "-O0"]);
    let mut builder = Builder::new(Some(&program));
    let calls = calls_of(&program);
    let call = |function: &str| calls.iter().find(|(_, name, _)| name.contains(function)).unwrap().0;
    let (main, put) = (call("main"), call("::put("));
    // The standard library's lowest allocator, which calls operator new.
    let allocate = call(
        "new_allocator<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > >::allocate(",
    );
    let stack = builder.stack(&[main, put, allocate]);
    builder.blocks(Domain::Native, stack, 0, 64, 1);
    let only_plumbing = builder.stack(&[allocate, allocate]);
    builder.blocks(Domain::Native, only_plumbing, 0, 8, 1);
    let snapshot = builder.save(dir.path(), "a.snap.zst");
    let scene = Scene { dir, program, snapshot, source: String::new() };

    let json = scene.json(&["--by", "traceback"]);
    let functions = |row: &Value| {
        let name = |frame: &Value| frame["function"].as_str().unwrap().to_string();
        row["traceback"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(functions(&json["stats"][0]).len(), 2);
    assert!(functions(&json["stats"][0])[1].ends_with("::put"));
    // A stack of carrying frames only keeps its oldest frame.
    assert_eq!(functions(&json["stats"][1]).len(), 1);
    let json = scene.json(&["--by", "traceback", "--raw-frames"]);
    assert!(functions(&json["stats"][0])[2].ends_with(
        "allocator<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > >::allocate"
    ));
    assert_eq!(functions(&json["stats"][1]).len(), 2);
}

#[test]
fn frames_without_lines_are_named_by_symbol_module_or_address() {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), "inlines.c", &["-O2", "-rdynamic", "-s"]);
    let mut builder = Builder::new(Some(&program));
    let outer = {
        let symbols = support::run(Command::new("nm").arg("-D").arg(&program)).stdout;
        let symbols = String::from_utf8(symbols).unwrap();
        let line = symbols.lines().find(|line| line.ends_with(" outer")).unwrap();
        BASE + u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap() + 5
    };
    let named = builder.stack(&[outer]);
    builder.snapshot.modules.push(Module {
        path: "[vdso]".to_string(),
        build_id: Vec::new(),
        start: 0x7000_0000,
        end: 0x7000_1000,
        bias: 0x7000_0000,
        loaded: true,
    });
    let in_module = builder.stack(&[0x7000_0123]);
    builder.snapshot.frames[1].module = Some(1);
    let nowhere = builder.stack(&[0xdead_beef]);
    builder.snapshot.frames[2].module = None;
    let empty = builder.stack(&[]);
    for (size, stack) in [(8, named), (4, in_module), (2, nowhere), (1, empty)] {
        builder.blocks(Domain::Native, stack, 0, size, 1);
    }
    let snapshot = builder.save(dir.path(), "a.snap.zst");
    let scene = Scene { dir, program, snapshot, source: String::new() };
    let json = scene.json(&[]);
    let text = |row: &Value, field: &str| row["traceback"][0][field].as_str().unwrap().to_string();
    let frame = |row: &Value| [text(row, "filename"), text(row, "function"), text(row, "module")];
    let program = scene.program.to_str().unwrap();
    let frames: Vec<[String; 3]> = json["stats"].as_array().unwrap().iter().map(frame).collect();
    assert_eq!(frames[0], [program, "outer", program]);
    assert_eq!(frames[1], ["[vdso]", "[vdso]+0x123", "[vdso]"]);
    // The place of both blocks is unknown. Both are in one line, as in tracemalloc.
    assert_eq!(frames[2], ["<unknown>", "0xdeadbeef", ""]);
    assert_eq!(json["stats"][2]["size"], 3);
    assert_eq!(frames.len(), 3);
    let text = scene.says(&["--by", "lineno"]);
    assert!(text.contains(&format!("#1: {program}: 8 B in 1 block, 53.3 %, outer\n")), "{text}");
    assert!(json["stats"].as_array().unwrap().iter().all(|row| row["traceback"][0]["lineno"] == 0));
}

#[test]
fn what_is_missing_is_said_before_the_figures() {
    let scene = scene();
    let mut builder = Builder::new(Some(&scene.program));
    fill(&mut builder, &scene.program, 1);
    let meta = &mut builder.snapshot.meta;
    meta.lost.insert("slots".to_string(), 3);
    meta.contradictions.insert("double free".to_string(), 2);
    meta.untracked_frees = 5;
    meta.in_realloc = 1;
    meta.end = End::Killed;
    meta.exit_status = Some(137);
    meta.notes.push("A sentence\nfor everybody \u{1b}[31m".to_string());
    meta.command = "evil\u{7}".to_string();
    let snapshot = builder.save(scene.dir.path(), "lossy.snap.zst");
    let scene = Scene { snapshot, ..scene };
    let text = scene.says(&["--by", "lineno"]);
    for expected in [
        "Process 4711: NOT EXACT (see below); peaks: ",
        "\nevil\\u{7}, killed by SIGKILL; snapshot of ",
        "LOST: 3 events missing (slots 3)",
        "Contradictions: 2 events resolved by rule (double free 2)",
        "5 frees of blocks that were not seen to come: older than the tracing, cleared, or another allocator's",
        "1 call of realloc, munmap or mremap had not returned at the end: its memory is counted as before the call\n",
        "Note: A sentence\\nfor everybody \\u{1b}[31m",
    ] {
        let at = text.find(expected).unwrap_or_else(|| panic!("{expected}\n{text}"));
        assert!(at < text.find("#1:").unwrap());
    }
    let output = report(&[scene.path(), "--format", "json"]);
    assert!(stderr(&output).contains("LOST: 3 events"), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["snapshot"]["lost"]["slots"], 3);
    assert_eq!(json["snapshot"]["contradictions"], 2);
    assert_eq!(json["snapshot"]["untracked_frees"], 5);
    assert_eq!(json["snapshot"]["end"], "killed");
}

#[test]
fn zero_records_are_said_loudly() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    builder.snapshot.meta.notes.push("/usr/bin/victim is a static program.".to_string());
    let snapshot = builder.save(dir.path(), "empty.snap.zst");
    let output = report(&[snapshot.to_str().unwrap()]);
    assert!(output.status.success());
    let text = stdout(&output);
    assert!(text.starts_with("Process 4711: NO RECORDS (see below)\n"), "{text}");
    let said = "\nNO RECORDS: nothing was recorded of this program\nNote: /usr/bin/victim is a static program.\n";
    assert!(text.contains(said), "{text}");
    let output = report(&[snapshot.to_str().unwrap(), "--format", "csv"]);
    assert!(stderr(&output).starts_with("report: note: NO RECORDS: "), "{}", stderr(&output));
    assert!(stderr(&output).ends_with("report: note: /usr/bin/victim is a static program.\n"), "{}", stderr(&output));
}

/// The reason is told once, and the usual reasons do not stand beside a known reason.
#[test]
fn a_known_reason_takes_the_place_of_the_usual_reasons() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let said = |builder: &Builder| {
        let snapshot = builder.save(dir.path(), "empty.snap.zst");
        stdout(&report(&[snapshot.to_str().unwrap(), "--by", "lineno"]))
    };
    assert!(said(&builder).contains(". Usual reasons: the executable brings its own malloc"));
    let reason = "the program made no allocation while it was traced";
    builder.snapshot.meta.notes.push(format!("NOTHING WAS RECORDED: {reason}"));
    let text = said(&builder);
    assert!(text.contains(&format!("\nNO RECORDS: nothing was recorded of this program: {reason}\n")), "{text}");
    assert_eq!(text.matches(reason).count(), 1, "{text}");
    assert!(!text.contains("Usual reasons") && !text.contains("Note:"), "{text}");
}

#[test]
fn many_notes_are_shortened_and_a_verbose_report_has_all() {
    let scene = scene();
    let mut builder = Builder::new(Some(&scene.program));
    fill(&mut builder, &scene.program, 1);
    builder.snapshot.meta.notes = (1..=11).map(|number| format!("sentence {number}.")).collect();
    let snapshot = builder.save(scene.dir.path(), "notes.snap.zst");
    let scene = Scene { snapshot, ..scene };
    let text = scene.says(&["--by", "lineno"]);
    assert!(text.contains("Note: sentence 8.\n3 more notes: -v shows all\n"), "{text}");
    assert_eq!(scene.says(&["-v"]).matches("Note: sentence ").count(), 11);
    // A note of both snapshots is told once, and a note of the old snapshot is named as such.
    assert_eq!(scene.says(&["-v", "--diff", scene.path()]).matches("Note: sentence ").count(), 11);
    builder.snapshot.meta.notes = vec!["sentence 1.".to_string()];
    let new = builder.save(scene.dir.path(), "new.snap.zst");
    let text = stdout(&report(&[new.to_str().unwrap(), "-v", "--diff", scene.path()]));
    assert!(text.contains("\nNote: sentence 1.\nold snapshot: Note: sentence 2.\n"), "{text}");
}
