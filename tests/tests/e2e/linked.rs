//! Attaching to programs of all linkers. Each linker lays out segments differently.

use crate::support::stepped::Stepped;
use crate::support::{has, victim};
use std::process::Command;

/// Attaches and detaches, and counts the victim's allocations in between.
fn assert_traced(mut victim: Stepped, what: &str) {
    victim.assert_counted(what).assert_exact();
    assert_eq!(victim.finish(), 0, "{what}");
}

#[test]
fn segments_may_lie_as_a_linker_likes() {
    const LAYOUTS: [&[&str]; 5] = [
        &[],
        &["-no-pie"],
        &["-Wl,-z,max-page-size=65536"],
        &["-Wl,-z,max-page-size=2097152"],
        &["-no-pie", "-Wl,-z,max-page-size=2097152"],
    ];
    const CODE_APART: [&[&str]; 2] = [&["-Wl,-z,separate-code"], &["-Wl,-z,noseparate-code"]];
    const READABLE_APART: [&[&str]; 2] = [&["-Wl,--rosegment"], &["-Wl,--no-rosegment"]];
    for (linker, own) in [("bfd", CODE_APART), ("gold", READABLE_APART), ("lld", CODE_APART), ("mold", CODE_APART)] {
        if !has(&if linker == "mold" { linker.to_owned() } else { format!("ld.{linker}") }) {
            continue;
        }
        let own = if linker == "lld" { [own, READABLE_APART].concat() } else { own.to_vec() };
        for layout in LAYOUTS.iter().copied().chain(own) {
            let chosen = format!("-fuse-ld={linker}");
            let flags = [&["-O1", &chosen], layout].concat();
            let program = victim::build("attached.c", &flags);
            assert_traced(Stepped::start(&mut Command::new(program)), &flags.join(" "));
        }
    }
}

/// Data mappings may look like the beginning of a loaded object.
#[test]
fn a_program_may_map_files_of_objects_as_data() {
    for linker in ["bfd", "lld"] {
        if !has(&format!("ld.{linker}")) {
            continue;
        }
        let program = victim::build("attached.c", &["-O1", &format!("-fuse-ld={linker}")]);
        let mut victim = Stepped::start(&mut Command::new(program));
        victim.step(b'x');
        assert_traced(victim, linker);
    }
}

#[test]
fn a_programs_file_may_be_gone_and_lie_above_its_libraries() {
    let program = victim::build("attached.c", &["-O1"]);
    let folder = tempfile::TempDir::new().expect("a folder");
    let copy = folder.path().join("copy");
    std::fs::copy(program, &copy).expect("copied");
    // Without a limit of the stack the kernel puts libraries below the program.
    let mut shell = Command::new("sh");
    let victim = Stepped::start(shell.args(["-c", "ulimit -s unlimited; exec \"$0\""]).arg(&copy));
    std::fs::remove_file(copy).expect("removed");
    assert_traced(victim, "deleted");
}
