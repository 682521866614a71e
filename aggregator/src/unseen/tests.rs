//! Objects of all kinds, made for the tests: with symbols, stripped, broken, and expensive to read.

use super::*;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// Builds a shared object from C. Returns none without a compiler. A missing compiler fails the
/// test where tests must not be skipped.
fn object(folder: &Path, name: &str, source: &str, options: &[&str]) -> Option<PathBuf> {
    let (code, path) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&code, source).expect("written");
    let mut compiler = Command::new("cc");
    let built = compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&path).arg(&code).args(options).status();
    match built {
        Ok(status) => {
            assert!(status.success());
            Some(path)
        }
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "cc is missing");
            eprintln!("skipped: cc is missing");
            None
        }
    }
}

/// Returns the names of an object's unseen allocators.
fn names(path: &Path) -> Vec<String> {
    by_modules(&path.to_string_lossy(), &[], BTreeSet::new()).into_iter().map(|cause| cause.name).collect()
}

const JEMALLOC: &str = "
void *_rjem_mallocx(unsigned long size, int flags) { return (void *)(size + flags); }
const char *message(void) { return \"<jemalloc>: out of memory\"; }
";

#[test]
fn an_allocator_under_a_prefix_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(path) = object(folder.path(), "prefixed.so", JEMALLOC, &[]) else { return };
    assert_eq!(names(&path), ["jemalloc (prefix _rjem_)"]);
    // Hidden functions are found in the table of all symbols.
    let Some(hidden) = object(folder.path(), "hidden.so", JEMALLOC, &["-fvisibility=hidden"]) else { return };
    assert_eq!(names(&hidden), ["jemalloc (prefix _rjem_)"]);
    // Without any symbols, the messages of the allocator are found.
    let options = ["-s", "-fvisibility=hidden"];
    let Some(stripped) = object(folder.path(), "stripped.so", JEMALLOC, &options) else { return };
    assert_eq!(names(&stripped), ["jemalloc"]);
}

#[test]
fn a_malloc_that_the_process_calls_is_seen_and_a_hidden_one_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = format!("void *malloc(unsigned long size) {{ return (void *)size; }}\n{JEMALLOC}");
    let Some(provider) = object(folder.path(), "provider.so", &source, &[]) else { return };
    assert_eq!(names(&provider), [""; 0]);
    let Some(hidden) = object(folder.path(), "hidden.so", &source, &["-fvisibility=hidden"]) else { return };
    assert_eq!(names(&hidden), ["a malloc of its own", "jemalloc (prefix _rjem_)"]);
    let none = "void *my_malloc(unsigned long n) { return (void *)n; } void *mi_mallocs;";
    let Some(none) = object(folder.path(), "none.so", none, &[]) else { return };
    assert_eq!(names(&none), [""; 0]);
}

#[test]
fn a_row_stands_for_others_in_the_object_that_has_both() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pool = "void _ZN5arrow20jemalloc_memory_poolEPPNS_10MemoryPoolE(void) {}\n";
    let Some(alone) = object(folder.path(), "alone.so", pool, &[]) else { return };
    assert_eq!(names(&alone), [""; 0]);
    let both = format!("{pool}{}", JEMALLOC.replace("_rjem_", "je_arrow_"));
    let Some(both) = object(folder.path(), "both.so", &both, &[]) else { return };
    assert_eq!(names(&both), ["Arrow's memory pool"]);
}

#[test]
fn an_interpreters_mimalloc_and_libffis_dlmalloc_are_nothing_to_tell() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, own) in [("python.so", "PyMem_RawMalloc"), ("ffi.so", "ffi_closure_alloc")] {
        let other = if own.starts_with("Py") { "mi_malloc" } else { "dlmalloc" };
        let source = format!("void {own}(void) {{}} void {other}(void) {{}}");
        let Some(path) = object(folder.path(), name, &source, &[]) else { return };
        assert_eq!(names(&path), [""; 0]);
    }
}

#[test]
fn causes_are_added_and_taken_back_by_object() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(path) = object(folder.path(), "prefixed.so", JEMALLOC, &[]) else { return };
    let path = path.to_string_lossy().into_owned();
    let causes = Causes { added: Mutex::default(), recorded: Mutex::default(), objects: Objects::of_none() };
    let cause = |name: &str| Unseen {
        kind: "other".to_owned(),
        object: String::new(),
        name: name.to_owned(),
        text: "a test's".to_owned(),
    };
    for name in ["b", "a", "b"] {
        causes.add(cause(name));
    }
    let named = |causes: &Causes| causes.of_program(&path, &[]).into_iter().map(|cause| cause.name).collect::<Vec<_>>();
    assert_eq!(named(&causes), ["jemalloc (prefix _rjem_)", "a", "b"]);
    causes.is_recorded(&path);
    assert_eq!(named(&causes), ["a", "b"]);
    (0..1000).for_each(|n| causes.add(cause(&n.to_string())));
    assert_eq!(causes.of_program("", &[]).len(), MOST_CAUSES);
}

#[test]
fn only_the_allocator_that_has_listeners_is_recorded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let both = format!("{JEMALLOC} void mi_malloc(void) {{}}");
    let Some(both) = object(folder.path(), "both.so", &both, &[]) else { return };
    let both = both.to_string_lossy().into_owned();
    let recorded = BTreeSet::from([both.clone()]);
    let named: Vec<_> = by_modules(&both, &[], recorded).into_iter().map(|cause| cause.name).collect();
    assert_eq!(named, ["mimalloc"], "no listener hears of the other allocator in that object");
}

/// The bytes of an object's headers may have any value, and a file of holes may have any length.
#[test]
fn nothing_in_a_file_makes_the_scan_fail_or_allocate() {
    let own = fs::read("/proc/self/exe").expect("readable");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("broken");
    let mut program = own[..4096].to_vec();
    // The section headers of this program, placed behind its first page.
    let headers = u64::from_le_bytes(own[40..48].try_into().expect("eight bytes"));
    let count = usize::from(u16::from_le_bytes([own[60], own[61]]));
    let headers = &own[usize::try_from(headers).expect("in memory")..][..count * 64];
    program[40..48].copy_from_slice(&4096u64.to_le_bytes());
    let huge: Vec<u8> = headers
        .chunks(64)
        .flat_map(|header| {
            let mut header = header.to_vec();
            header[24..32].copy_from_slice(&0u64.to_le_bytes());
            header[32..40].copy_from_slice(&(1u64 << 40).to_le_bytes());
            header
        })
        .collect();
    program.extend(huge);
    fs::write(&path, &program).expect("written");
    File::options().write(true).open(&path).and_then(|file| file.set_len(2 << 40)).expect("holes cost nothing");
    let before = crate::process::procfs::own_resident_bytes();
    assert_eq!(names(&path), [""; 0]);
    let grown = crate::process::procfs::own_resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes more are in memory");
    let mut state = 1u64;
    for round in 0..300 {
        let mut bytes = program.clone();
        for _ in 0..20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(state >> 33).expect("small") % bytes.len();
            bytes[at] = state.to_le_bytes()[0];
        }
        let path = folder.path().join(format!("broken{round}"));
        fs::write(&path, &bytes).expect("written");
        // Any answer is accepted; the scan must not fail.
        let _ = names(&path);
        fs::remove_file(&path).expect("removed");
    }
    assert_eq!(names(folder.path()), [""; 0]);
    assert_eq!(names(Path::new("/dev/zero")), [""; 0]);
}
