//! Programs and libraries with holes between their segments, as huge pages and some linkers leave
//! them: one module, with build-id and whole tracebacks.

use crate::support::stepped::Stepped;
use crate::support::trace::{read_snapshot, report_on};
use crate::support::victim::{self, line_of};
use crate::support::{Report, Trace, has};
use std::path::Path;
use std::process::Command;

const HUGE: &str = "-Wl,-z,max-page-size=0x200000";
const LLD: [&str; 2] = ["-fuse-ld=lld", "-Wl,-z,max-page-size=65536"];

/// Flags of the layouts: without holes, and with holes of several origins.
fn layouts() -> Vec<Vec<&'static str>> {
    let mut layouts = vec![vec!["-pie"], vec!["-no-pie"], vec!["-no-pie", HUGE], vec!["-pie", HUGE]];
    if has("ld.lld") {
        layouts.extend([["-no-pie"].as_slice(), &["-pie"]].map(|kind| [kind, LLD.as_slice()].concat()));
    }
    layouts
}

fn assert_whole(report: &Report, what: &str) {
    let stat = report.stats.iter().find(|stat| stat.size == 5001).expect("the block of 5001 bytes");
    let lines = stat.traceback.iter().rev().take(3).map(|frame| (frame.function.as_deref(), frame.lineno));
    let wanted = ["inner", "outer", "main"];
    let wanted = wanted.map(|name| (Some(name), line_of("holes.c", &format!("// LINE {name}"))));
    assert_eq!(lines.collect::<Vec<_>>(), wanted, "{what}");
    let functions: Vec<&str> = stat.traceback.iter().filter_map(|frame| frame.function.as_deref()).collect();
    assert_eq!(functions.first(), Some(&"_start"), "{what}: {functions:?}");
}

/// The program is a single module, from the first segment to the last, and has its build-id.
fn assert_one_module(snapshot: &Path, program: &Path, what: &str) {
    let snapshot = read_snapshot(snapshot);
    let path = program.canonicalize().expect("the program");
    let modules: Vec<_> = snapshot.modules.iter().filter(|module| Path::new(&module.path) == path).collect();
    let [module] = modules[..] else { panic!("{what}: {modules:?}") };
    let output = Command::new("readelf").args(["-nW"]).arg(&path).output().expect("readelf runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted = text.split("Build ID: ").nth(1).map_or("", |rest| rest.lines().next().unwrap_or(""));
    let found: String = module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, wanted.trim(), "{what}");
    assert!(!found.is_empty(), "{what}");
    let inside = snapshot.frames.iter().filter(|frame| frame.module.is_some());
    let index = snapshot.modules.iter().position(|other| other == module).expect("found above");
    let own = inside.filter(|frame| frame.module.is_some_and(|module| module as usize == index));
    assert!(own.clone().count() >= 3, "{what}");
    assert!(own.clone().all(|frame| (module.start..=module.end).contains(&frame.address)), "{what}");
}

fn build(flags: &[&str]) -> std::path::PathBuf {
    victim::build("holes.c", &[&["-O1", "-Wl,--build-id"], flags].concat())
}

#[test]
fn a_program_with_holes_has_whole_tracebacks() {
    for flags in layouts() {
        let program = build(&flags);
        let outcome = Trace::of(&program).env("HEAPLINE_VERIFY", "1").run().expect_code(0);
        let what = format!("{flags:?}");
        assert_whole(&outcome.report(&["--by", "traceback"]), &what);
        assert_one_module(&outcome.snapshot_path(), &program, &what);
    }
}

#[test]
fn a_library_with_holes_is_one_module_to_its_unload() {
    let mut linkers = vec![vec![HUGE]];
    if has("ld.lld") {
        linkers.push(LLD.to_vec());
    }
    for flags in linkers {
        let plugin = victim::build("plugin.c", &[&["-O1", "-shared", "-fPIC", "-Wl,--build-id"], &flags[..]].concat());
        let outcome = Trace::of(build(&[HUGE])).arg(&plugin).run().expect_code(0);
        let report = outcome.report(&["--by", "traceback"]);
        let what = format!("{flags:?}");
        assert_whole(&report, &what);
        let stat = report.stats.iter().find(|stat| stat.size == 5003).expect("the plug-in's block");
        let functions: Vec<&str> = stat.traceback.iter().filter_map(|frame| frame.function.as_deref()).collect();
        assert!(functions.contains(&"main") && functions.last() == Some(&"grab"), "{what}: {functions:?}");
        let modules = outcome.snapshot().modules;
        let plugins: Vec<_> = modules.iter().filter(|module| module.path.contains("/plugin")).collect();
        let [module] = plugins[..] else { panic!("{what}: {plugins:?}") };
        assert!(!module.loaded && !module.build_id.is_empty(), "{what}: {module:?}");
    }
}

#[test]
fn a_running_program_with_holes_is_attached_to() {
    for flags in layouts() {
        let program = build(&[&["-DSTEPS"], &flags[..]].concat());
        let mut victim = Stepped::start(&mut Command::new(&program));
        let snapshot = victim.snapshot_path("holes.snap.zst");
        let aggregator = victim.attach(&snapshot, &[]);
        victim.step(b'.');
        crate::support::stepped::detach(aggregator);
        let what = format!("{flags:?}");
        assert_whole(&report_on(&snapshot, &["--by", "traceback"]), &what);
        assert_one_module(&snapshot, &program, &what);
        victim.finish();
    }
}
