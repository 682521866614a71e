//! Tests of the call tree: from the root down and inverted, in each format, with limits and diffs.

mod support;

use heapline_shared_format::snapshot::{Domain, Stack};
use serde_json::Value;
use support::compile;
use support::scene::{Scene, fill, report, scene, stderr, stdout};
use support::snapshot::{Builder, return_addresses};
use tempfile::tempdir;

/// A line of a tree: depth, function and line (or the number of branches not shown), bytes, blocks.
type Line = (u64, String, u64, u64);

fn lines(json: &Value) -> Vec<Line> {
    let line = |row: &Value| {
        let number = |field: &str| row[field].as_u64().unwrap();
        let name = match &row["traceback"].as_array().unwrap()[..] {
            [] => format!("{} others", number("others")),
            [frame] => {
                assert!(row.get("others").is_none(), "{row}");
                format!("{}:{}", frame["function"].as_str().unwrap(), frame["lineno"])
            }
            more => panic!("{more:?}"),
        };
        (number("depth"), name, number("size"), number("count"))
    };
    json["stats"].as_array().unwrap().iter().map(line).collect()
}

fn line(depth: u64, name: &str, size: u64, count: u64) -> Line {
    (depth, name.to_string(), size, count)
}

#[test]
fn the_tree_runs_from_the_root_to_the_leaves() {
    let scene = scene();
    let json = scene.json(&["--by", "tree"]);
    assert_eq!(json["total"].to_string(), r#"{"count":13,"groups":2,"size":10107}"#);
    assert_eq!(
        lines(&json),
        [
            line(0, "main:22", 10_107, 13),
            line(1, "outer:14", 10_107, 13),
            line(2, "middle:9", 10_100, 12),
            line(3, "innermost:5", 10_100, 12),
            line(2, "middle:10", 7, 1),
            line(3, "innermost:5", 7, 1),
        ]
    );
    let own: Vec<u64> = json["stats"].as_array().unwrap().iter().map(|row| row["own_size"].as_u64().unwrap()).collect();
    assert_eq!(own, [0, 0, 0, 10_100, 0, 7]);
    let text = scene.says(&["--by", "tree", "--source"]);
    let source = &scene.source;
    let expected = format!(
        "
Call tree: native memory live at the snapshot
   size   share  blocks  call
10107 B   100 %      13  - main ({source}:22)
                             void *block = outer((size_t)argc);
10107 B   100 %      13    outer ({source}:14)
                             return middle(n * 2);
10100 B  99.9 %      12    - middle ({source}:9)
                               void *first = innermost(n);
10100 B  99.9 %      12      innermost ({source}:5)
                               return malloc(n);
    7 B   0.1 %       1    - middle ({source}:10)
                               return first ? innermost(n + 1) : first;
    7 B   0.1 %       1      innermost ({source}:5)
                               return malloc(n);
Total allocated size: 10107 B
"
    );
    assert!(text.ends_with(&expected), "{text}{expected}");
}

#[test]
fn the_inverted_tree_runs_from_the_blamed_frame_to_its_callers() {
    let scene = scene();
    let expected = [
        line(0, "innermost:5", 10_107, 13),
        line(1, "middle:9", 10_100, 12),
        line(2, "outer:14", 10_100, 12),
        line(3, "main:22", 10_100, 12),
        line(1, "middle:10", 7, 1),
        line(2, "outer:14", 7, 1),
        line(3, "main:22", 7, 1),
    ];
    assert_eq!(lines(&scene.json(&["--by", "tree", "--inverted"])), expected);
    let skipped = lines(&scene.json(&["--by", "tree", "--inverted", "--skip", "innermost"]));
    assert_eq!(skipped[0], line(0, "middle:9", 10_100, 12), "the blamed frame");
    let text = scene.says(&["--by", "tree", "--inverted"]);
    assert!(text.contains("Callers of the blamed frames: native memory"), "{text}");
}

#[test]
fn a_limit_counts_ways_and_sums_up_the_other_branches() {
    let scene = scene();
    let json = scene.json(&["--by", "tree", "--limit", "1"]);
    let way = [line(0, "main:22", 10_107, 13), line(1, "outer:14", 10_107, 13), line(2, "2 others", 10_107, 13)];
    assert_eq!(lines(&json), way);
    assert_eq!(json["total"]["groups"], 2);
    let json = scene.json(&["--by", "tree", "--limit", "2"]);
    assert_eq!(
        lines(&json)[2..],
        [line(2, "middle:9", 10_100, 12), line(3, "innermost:5", 10_100, 12), line(2, "1 others", 7, 1),]
    );
    let text = scene.says(&["--by", "tree", "--limit", "2"]);
    assert!(text.contains("- 1 other\n"), "{text}");
    assert_eq!(scene.json(&["--by", "tree", "--limit", "3"]), scene.json(&["--by", "tree", "--limit", "0"]));
}

#[test]
fn csv_has_the_rows_of_the_walk() {
    let scene = scene();
    let csv = scene.says(&["--by", "tree", "--format", "csv", "--limit", "2"]);
    let (source, program) = (&scene.source, scene.program.display());
    let head = "size,count,own_size,own_count,depth,others,filename,lineno,function,module\n";
    let first = format!("10107,13,0,0,0,,{source},22,main,{program}\n");
    assert!(csv.starts_with(&format!("{head}{first}")), "{csv}");
    assert!(csv.ends_with("\n7,1,0,0,2,1,,,,\n"), "{csv}");
}

#[test]
fn a_diff_shows_what_changed_below_each_frame() {
    let scene = scene();
    let mut builder = Builder::new(Some(&scene.program));
    fill(&mut builder, &scene.program, 4);
    builder.snapshot.live.retain(|row| row.size != 7);
    let old = builder.save(scene.dir.path(), "old.snap.zst");
    let json = scene.json(&["--by", "tree", "--diff", old.to_str().unwrap()]);
    let row = |row: &Value| ["size", "size_diff", "count", "count_diff"].map(|field| row[field].as_i64().unwrap());
    let rows: Vec<_> = json["stats"].as_array().unwrap().iter().map(row).collect();
    let (both, big, small) = ([10_107, 6007, 13, 7], [10_100, 6000, 12, 6], [7, 7, 1, 1]);
    assert_eq!(rows, [both, both, big, big, small, small]);
    let text = scene.says(&["--by", "tree", "--diff", old.to_str().unwrap()]);
    assert!(text.contains("\n10107 B  +6007 B   100 %      13      +7  - main ("), "{text}");
    // Blocks that are gone are part of the tree.
    let gone = report(&[old.to_str().unwrap(), "--diff", scene.path(), "--by", "tree", "--format", "json"]);
    let gone: Value = serde_json::from_str(&stdout(&gone)).unwrap();
    assert_eq!(row(&gone["stats"][0]), [4100, -6007, 6, -7]);
    assert_eq!(row(&gone["stats"][5]), [0, -7, 0, -1]);
}

#[test]
fn what_cannot_be_combined_with_a_tree_is_refused() {
    let scene = scene();
    for arguments in [&["--by", "tree", "--cumulative"][..], &["--inverted"], &["--by", "lineno", "--inverted"]] {
        let output = report(&[&[scene.path()], arguments].concat());
        assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(2), 1), "{}", stderr(&output));
    }
    let page = scene.says(&["--by", "tree", "--format", "folded"]);
    assert_eq!(page, scene.says(&["--format", "folded"]));
}

/// A snapshot with a recursion of `depth` frames, each of which has a branch with a block.
fn deep(depth: u32) -> Scene {
    let dir = tempdir().unwrap();
    let program = compile(dir.path(), "inlines.c", &["-g", "-O2", "-fno-optimize-sibling-calls"]);
    let main = return_addresses(&program, "main", 22)[0];
    let inner = return_addresses(&program, "innermost", 5)[0];
    let mut builder = Builder::new(Some(&program));
    let whole = builder.stack(&vec![main; depth as usize]);
    builder.blocks(Domain::Native, whole, 0, 8, 1);
    for parent in 0..depth {
        let branch = builder.stack(&[inner]);
        let Stack { leaf, total_nframe, .. } = &mut builder.snapshot.stacks[branch as usize];
        builder.snapshot.nodes[leaf.unwrap() as usize].parent = Some(parent);
        *total_nframe = u16::try_from(parent + 2).unwrap();
        builder.blocks(Domain::Native, branch, 0, 16, 1);
    }
    let snapshot = builder.save(dir.path(), "deep.snap.zst");
    Scene { dir, program, snapshot, source: String::new() }
}

#[test]
fn a_recursion_of_twenty_thousand_frames_with_branches_is_a_tree() {
    let scene = deep(20_000);
    for options in [&["--by", "tree"][..], &["--by", "tree", "--limit", "0"], &["--by", "tree", "--inverted"]] {
        let text = scene.says(options);
        assert!(text.contains("- "), "{}", &text[..1000]);
        assert!(text.len() < 20 << 20, "{} bytes", text.len());
    }
    let rows = lines(&scene.json(&["--by", "tree", "--limit", "0"]));
    assert_eq!(rows.iter().map(|row| row.0).max(), Some(20_002));
    assert_eq!(rows[0].2, 8 + 20_000 * 16);
}
