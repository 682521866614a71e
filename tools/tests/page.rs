//! Tests of the page of `--format html`: the data in the page. The page's own program has tests in
//! `tools/page`.

mod support;

use heapline_shared_format::snapshot::{Domain, Module, Sampled};
use support::page::Page;
use support::scene::{Scene, fill, report, scene, stderr, stdout};
use support::snapshot::{BASE, Builder};
use tempfile::tempdir;

fn page(scene: &Scene, arguments: &[&str]) -> Page {
    Page::of(&scene.says(&[&["--format", "html"], arguments].concat()))
}

const BLAMED: i128 = 8;

#[test]
fn each_node_stands_below_its_caller() {
    let scene = scene();
    let source = scene.source.rsplit('/').next().unwrap();
    let node = |depth, function: &str, line, flags| (depth, function.to_owned(), format!("{source}:{line}"), flags);
    let expected = [
        node(0, "main", 22, BLAMED),
        node(1, "outer", 14, 0),
        node(2, "middle", 9, 0),
        node(3, "innermost", 5, BLAMED),
        node(2, "middle", 10, 0),
        node(3, "innermost", 5, BLAMED),
    ];
    assert_eq!(page(&scene, &[]).nodes(), expected);
}

#[test]
fn every_domain_and_moment_has_the_figures_of_the_report() {
    let scene = scene();
    let page = page(&scene, &[]);
    for domain in ["native", "mmap"] {
        for at in ["live", "peak", "total"] {
            let json = scene.json(&["--domain", domain, "--at", at]);
            let figure = |name: &str| i128::from(json["total"][name].as_u64().unwrap());
            assert_eq!(page.sums(domain, at, false), (figure("size"), figure("count")), "{domain}, {at}");
        }
    }
    assert_eq!(page.sums("native", "live", false), (10_107, 13));
    let texts = page.head["sums"].to_string();
    assert!(texts.contains("native, live: 10107 B in 13 blocks"), "{texts}");
    assert_eq!((page.head["sampled"].as_bool(), page.head["at"].as_str()), (Some(false), Some("live")));
}

#[test]
fn live_blocks_know_their_threads_and_sizes() {
    let page = page(&scene(), &["--domain", "native"]);
    let [threads, each, count] = ["live.thread", "live.each", "live.count"].map(|name| page.numbers(name));
    let mut live: Vec<_> = threads.into_iter().zip(each).zip(count).collect();
    live.sort_unstable();
    assert_eq!(live, [((0, 7), 1), ((0, 1000), 10), ((0, 4096), 1), ((1, 50), 2)]);
    let name = |index: usize| page.head["threads"][index]["name"].as_str().unwrap().to_owned();
    assert_eq!([name(0), name(1)], ["victim (4711)", "worker (ended)"]);
}

#[test]
fn filters_leave_blocks_out() {
    let scene = scene();
    let kept = |arguments: &[&str]| page(&scene, arguments).sums("native", "live", false);
    assert_eq!(kept(&["--filter", "*/inlines.c"]), (10_107, 13));
    assert_eq!(kept(&["--filter", "*/inlines.c:10", "--all-frames"]), (7, 1));
    assert_eq!(kept(&["--exclude", "*/inlines.c:10", "--all-frames"]), (10_100, 12));
    assert_eq!(kept(&["--focus", "middle"]), (10_107, 13));
    assert_eq!(kept(&["--ignore", "middle:nowhere"]), (10_107, 13));
    let trimmed = page(&scene, &["--trim", "middle", "--fold-recursion"]);
    assert_eq!(trimmed.sums("native", "live", false), (10_107, 13));
    let functions: Vec<_> = trimmed.nodes().into_iter().map(|(depth, function, ..)| (depth, function)).collect();
    let expected = [(0, "middle"), (1, "innermost"), (0, "middle"), (1, "innermost")];
    assert_eq!(functions, expected.map(|(depth, function)| (depth, function.to_owned())));
    assert_eq!((trimmed.head["fold"].as_bool(), trimmed.head["filtered"].as_bool()), (Some(true), Some(true)));
}

#[test]
fn a_diff_has_both_sides() {
    let scene = scene();
    let mut older = Builder::new(Some(&scene.program));
    fill(&mut older, &scene.program, 4);
    let older = older.save(scene.dir.path(), "old.snap.zst");
    let page = page(&scene, &["--diff", older.to_str().unwrap()]);
    assert_eq!(page.sums("native", "live", false), (10_107, 13));
    assert_eq!(page.sums("native", "live", true), (4_107, 7));
    let old: Vec<_> = page.head["processes"].as_array().unwrap().iter().map(|one| one["old"].as_bool()).collect();
    assert_eq!(old, [Some(false), Some(true)]);
    assert_eq!(page.nodes().len(), 6, "one tree for both");
    for (bound, status) in [("5999", 3), ("6000", 0)] {
        let diff = ["--diff", older.to_str().unwrap(), "--format", "html", "--fail-above", bound];
        assert_eq!(report(&[&[scene.path()], &diff[..]].concat()).status.code(), Some(status), "{bound}");
    }
}

#[test]
fn samples_have_their_weights() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let stack = builder.stack(&[BASE]);
    builder.blocks(Domain::Native, stack, 0, 1 << 20, 3);
    builder.snapshot.meta.sample_interval = 1 << 20;
    builder.snapshot.sampled.push(Sampled { stack, interval: 1 << 20, size: 64 });
    let snapshot = builder.save(dir.path(), "a.snap.zst");
    let page = Page::of(&stdout(&report(&[snapshot.to_str().unwrap(), "--format", "html"])));
    assert_eq!((page.numbers("row.weight"), page.numbers("weight.size")), (vec![1], vec![64]));
    assert_eq!(page.numbers("weight.interval"), [1 << 20]);
    assert!(page.head["sampled"].as_bool().unwrap());
    let sum = &page.head["sums"][0];
    assert!(sum["text"].as_str().unwrap().starts_with("native, live: ~3072 KiB ("), "{sum}");
    assert!(sum["size_interval"][0].as_u64() < sum["size_interval"][1].as_u64());
}

#[test]
fn source_lines_are_those_below_the_folder_or_asked_for() {
    let scene = scene();
    let lines = |arguments: &[&str]| page(&scene, arguments).texts("sources").len();
    // The tests run in the folder of the crate, and the program's source lies below.
    assert_eq!(lines(&[]), 5);
    assert_eq!(lines(&["--no-source"]), 0);
    assert_eq!(lines(&["--source=*.py"]), 0);
    assert_eq!(lines(&["--source=*/inlines.c"]), 5);
    let elsewhere = std::process::Command::new(env!("CARGO_BIN_EXE_report"))
        .args([scene.path(), "--format", "html"])
        .current_dir(scene.dir.path())
        .env_remove("HOME")
        .output()
        .unwrap();
    assert_eq!(Page::of(&stdout(&elsewhere)).texts("sources").len(), 0);
}

#[test]
fn options_that_a_page_has_no_place_for_are_refused() {
    let scene = scene();
    for (arguments, expected) in [
        (&["--no-source"][..], "--no-source leaves source lines out of a page"),
        (&["--format", "csv", "--source"], "--source adds source lines"),
        (&["--format", "html", "--source=*", "--no-source"], "cannot be used with"),
        (&["--format", "html", "--by", "lineno"], "html is by traceback"),
        (&["--format", "html", "--limit", "5"], "a page has all"),
    ] {
        let output = report(&[&[scene.path()], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}

#[test]
fn no_name_ends_the_pages_script_and_nothing_comes_from_elsewhere() {
    let dir = tempdir().unwrap();
    let mut builder = Builder::new(None);
    let name = "</script><script>alert(1)</script>\u{2028}\u{1b}[2J";
    builder.snapshot.meta.command = name.to_owned();
    let path = format!("/tmp/{name}");
    let (start, end, build_id) = (BASE, BASE + (1 << 20), Vec::new());
    builder.snapshot.modules.push(Module { path, build_id, start, end, bias: BASE, loaded: true });
    let stack = builder.stack(&[BASE + 16]);
    builder.blocks(Domain::Native, stack, 0, 64, 1);
    let snapshot = builder.save(dir.path(), "a.snap.zst");
    let html = stdout(&report(&[snapshot.to_str().unwrap(), "--format", "html"]));
    assert!(!html.contains("alert(1)</script>") && !html.contains('\u{1b}') && !html.contains('\u{2028}'));
    let page = Page::of(&html);
    let alert = "</script><script>alert(1)</script>";
    assert!(page.head["title"].as_str().unwrap().contains(alert), "{}", page.head["title"]);
    assert!(page.texts("texts").iter().any(|text| text.contains(alert) && !text.contains('\u{1b}')));
    // The only address is the name of SVG.
    assert_eq!(html.matches("http").count(), html.matches("http://www.w3.org/2000/svg").count() + 1);
    assert!(html.contains("http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-"));
    assert!(!html.contains("unsafe-inline"));
}
