//! Recognises functions that only carry a request for memory and are not the requesting code.
//!
//! The list is closed on purpose. Members of a container (`std::vector::reserve`) are not on the
//! list: they are requesting code.

use crate::glob::Glob;
use heapline_shared_format::inject::LIBRARY_NAME;
use std::sync::LazyLock;

/// Names of carrying functions without template arguments, as `fnmatch` patterns.
const PATTERNS: &[&str] = &[
    // C
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "__libc_*alloc*",
    "__libc_memalign",
    "__posix_memalign",
    "_mid_memalign",
    "__GI_*alloc*",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    // C++
    "operator new*",
    "std::*allocator::allocate*",
    "std::*allocator_traits::allocate*",
    "std::__allocate_guarded*",
    "std::__*::__libcpp_*allocate*",
    "std::__*::__libcpp_operator_new*",
    "std::__*::__allocate_at_least*",
    "std::pmr::memory_resource::allocate",
    "__gnu_cxx::*allocator::allocate*",
    "__gnu_cxx::__alloc_traits::*allocate*",
    "*::_M_allocate*",
    "*::_M_get_node",
    // Rust
    "__rust_alloc*",
    "__rust_realloc",
    "__rustc::__r*",
    "__rg_*alloc*",
    "__rdl_*alloc*",
    "alloc::alloc::*",
    "<alloc::alloc::*",
    "alloc::raw_vec::*",
    "<alloc::raw_vec::*",
    "std::alloc::*",
    "<std::alloc::*",
    "std::sys::alloc::*",
    "std::sys::pal::*::alloc::*",
    "core::alloc::*",
    "<* as core::alloc::*",
    "hashbrown::*alloc::inner::*",
    "<hashbrown::*alloc::inner::*",
    "allocator_api2::*::alloc::*",
    "<allocator_api2::*::alloc::*",
    // Heapline's own wrapper of an allocator
    "heapline_collector::*",
    "heapline_track",
    "heapline::track*",
    "<heapline_collector::*",
    // CPython
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "PyMem_*alloc",
    "_PyObject_*alloc",
    "_PyMem_*alloc",
    "_PyMem_Debug*",
    "pymalloc_alloc",
    "new_arena",
    "_PyObject_ArenaM*",
    "allocate_from_new_pool",
];

/// Functions of jemalloc that call the collector's listener.
const CALL_LISTENERS: &[&str] = &["*hook_invoke_alloc", "*hook_invoke_expand"];

/// Functions of jemalloc between the listener's caller and the requesting code. Each build of
/// jemalloc may have another prefix before the names.
const OF_JEMALLOC: &[&str] = &[
    "je_*",
    "*_je_*",
    "do_rallocx",
    "*malloc",
    "*calloc",
    "*realloc",
    "*posix_memalign",
    "*aligned_alloc",
    "*memalign",
    "*valloc",
    "*mallocx",
    "*rallocx",
    "*xallocx",
];

/// Part of a frame in a request for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The frame made the request.
    Asks,
    /// The frame carries the request: an allocator's frame, or Heapline's own.
    Carries,
    /// The frame is jemalloc's and called the collector's listener.
    CallsListener,
    /// The frame carries the request if a more recent frame of the module called the listener: then
    /// the module contains a jemalloc.
    MayBeJemallocs,
}

/// Counts the carrying frames before the requesting frame. `frames` begins with the most recent.
pub fn count<M: PartialEq>(frames: impl Iterator<Item = (Part, M)>) -> usize {
    let mut jemalloc = None;
    let carries = |(part, module)| match part {
        Part::Asks => false,
        Part::Carries => true,
        Part::CallsListener => {
            jemalloc = Some(module);
            true
        }
        Part::MayBeJemallocs => jemalloc.as_ref() == Some(&module),
    };
    frames.map(carries).take_while(|&carries| carries).count()
}

/// A part, and the name patterns of functions with this part.
type Patterns = (Part, LazyLock<Vec<Glob>>);

/// Patterns of all parts. If several parts match, the first counts.
static PARTS: [Patterns; 3] = [
    (Part::Carries, LazyLock::new(|| globs(PATTERNS))),
    (Part::CallsListener, LazyLock::new(|| globs(CALL_LISTENERS))),
    (Part::MayBeJemallocs, LazyLock::new(|| globs(OF_JEMALLOC))),
];

fn globs(patterns: &[&str]) -> Vec<Glob> {
    patterns.iter().map(|pattern| Glob::new(pattern)).collect()
}

/// Files of Rust's standard library with allocator code only, below the folder of the compiler's
/// version.
const RUST_FILES: &[&str] = &[
    "/library/alloc/src/alloc.rs",
    "/library/alloc/src/raw_vec.rs",
    "/library/alloc/src/raw_vec/mod.rs",
    "/library/core/src/alloc/*",
    "/library/std/src/alloc.rs",
    "/library/std/src/sys/alloc/*",
];

static FILES: LazyLock<Vec<Glob>> = LazyLock::new(|| {
    let rust = RUST_FILES.iter().map(|file| Glob::new(&format!("/rustc/*{file}")));
    // Paths in a checkout and in a registry.
    let own = ["*/collector/src/traced.rs", "*/heapline-collector-*/src/traced.rs"].map(Glob::new);
    rust.chain(own).collect()
});

/// Whether a source file contains allocator code only. Line tables name an inlined function without
/// a path, so only the file can tell.
pub fn is_allocator_file(file: &str) -> bool {
    FILES.iter().any(|glob| glob.matches(file))
}

/// Part of a frame in the demangled `function`.
pub fn part(function: &str) -> Part {
    let name = without_arguments(function);
    let matching = PARTS.iter().find(|(_, globs)| globs.iter().any(|glob| glob.matches(&name)));
    matching.map_or(Part::Asks, |(part, _)| *part)
}

/// Whether the module at `path` is Heapline's own library in the target:
///
/// - preloaded;
/// - injected by an attach as a memory file, known to the loader by a descriptor only;
/// - injected by an attach as a file with the library's name.
pub fn is_collector(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.contains("libheapline") || name.contains(LIBRARY_NAME) || path.starts_with("/proc/self/fd/")
}

/// Returns `name` without template arguments and without parameters. Template arguments may contain
/// any text.
///
/// A `<` at the start of a path segment stays: Rust writes `<Type as Trait>`. The `<` of an
/// operator stays too.
pub fn without_arguments(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut depth = 0_u32;
    for c in name.chars() {
        let opens = c == '<' && out.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == ':');
        match c {
            '<' if depth > 0 || (opens && !ends_with_operator(&out)) => depth += 1,
            '>' if depth > 0 => depth -= 1,
            '(' if depth == 0 && !out.is_empty() && !out.ends_with("::") => break,
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    // Rust's `RawVec::<T>::grow` keeps two pairs of colons around the removed arguments.
    out.replace("::::", "::")
}

fn ends_with_operator(name: &str) -> bool {
    name.rsplit("::").next() == Some("operator")
}

#[cfg(test)]
mod tests {
    use super::{Part, count, is_allocator_file, is_collector, part, without_arguments};

    #[test]
    fn allocators_are_plumbing() {
        for name in [
            "malloc",
            "__libc_malloc",
            "__libc_calloc",
            "operator new",
            "operator new[]",
            "operator new(unsigned long, std::align_val_t)",
            "std::allocator<int>::allocate",
            "std::__new_allocator<std::pair<int const, char> >::allocate",
            "__gnu_cxx::new_allocator<int>::allocate",
            "std::allocator_traits<std::allocator<std::string> >::allocate",
            "__gnu_cxx::__alloc_traits<std::allocator<char>, char>::_S_allocate",
            "std::_Vector_base<int, std::allocator<int> >::_M_allocate",
            "std::__detail::_Hashtable_alloc<std::allocator<int> >::_M_allocate_node<int>",
            "std::_Rb_tree<int, int>::_M_get_node",
            "std::__1::allocator<int>::allocate",
            "std::__1::__libcpp_allocate",
            "__rust_alloc",
            "__rustc::__rust_alloc_zeroed",
            "alloc::alloc::exchange_malloc",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::raw_vec::RawVec<u8>>::reserve::do_reserve_and_handle",
            "alloc::raw_vec::RawVecInner<A>::with_capacity_in",
            "<std::alloc::System as core::alloc::global::GlobalAlloc>::alloc",
            "hashbrown::raw::alloc::inner::do_alloc",
            "<hashbrown::alloc::inner::Global as hashbrown::alloc::inner::Allocator>::allocate",
            "allocator_api2::stable::alloc::global::Global::alloc_impl",
            "heapline_collector::traced::Traced<A>::allocated",
            "<heapline_collector::traced::Traced<std::alloc::System> as core::alloc::global::GlobalAlloc>::alloc",
            "PyObject_Malloc",
            "PyMem_RawMalloc",
            "_PyMem_DebugRawAlloc",
        ] {
            assert_eq!(part(name), Part::Carries, "{name}");
        }
    }

    #[test]
    fn who_asks_an_allocator_is_not() {
        for name in [
            "main",
            "xmalloc",
            "my_malloc",
            "strdup",
            "operator<<",
            "Pool::operator new",
            "std::vector<int, std::allocator<int> >::push_back",
            "std::vector<int, std::allocator<int> >::_M_realloc_insert<int>",
            "std::allocator_traits<std::allocator<Big> >::construct<Big>",
            "f<std::allocator<int>::allocate>",
            "alloc::vec::Vec<T,A>::push",
            "alloc::boxed::Box<T>::new",
            "hashbrown::raw::RawTable<T,A>::reserve_rehash",
            "<alloc::string::String as core::clone::Clone>::clone",
            "PyList_New",
            "PyObject_Call",
            "libfoo.so+0x1234",
        ] {
            assert_eq!(count([(part(name), 1)].into_iter()), 0, "{name}");
        }
    }

    #[test]
    fn a_jemalloc_carries_up_to_whoever_called_it() {
        let count = |frames: &[(&str, u32)]| count(frames.iter().map(|&(name, module)| (part(name), module)));
        let inside = [("_rjem_je_hook_invoke_alloc", 1), ("_rjem_je_malloc_default", 1), ("_rjem_malloc", 1)];
        assert_eq!(count(&[&inside[..], &[("__rust_alloc", 1), ("vec", 1)]].concat()), 4);
        let other = [("own_hook_invoke_expand", 1), ("do_rallocx", 1), ("own_rallocx", 1), ("grow", 1)];
        assert_eq!(count(&other), 3);
        assert_eq!(count(&[("own_je_hook_invoke_alloc", 1), ("my_malloc", 2), ("main", 2)]), 1, "another module's");
        assert_eq!(count(&[("my_malloc", 1), ("own_hook_invoke_alloc", 1)]), 0, "no listener further on");
    }

    #[test]
    fn files_of_allocators_are_plumbing() {
        for file in [
            "/rustc/59807616e1fa/library/alloc/src/raw_vec/mod.rs",
            "/rustc/59807616e1fa/library/std/src/sys/alloc/unix.rs",
            "/home/me/heapline/collector/src/traced.rs",
            "/home/me/.cargo/registry/src/index/heapline-collector-0.1.0/src/traced.rs",
        ] {
            assert!(is_allocator_file(file), "{file}");
        }
        for file in
            ["/rustc/59807616e1fa/library/alloc/src/vec/mod.rs", "/home/me/library/alloc/src/alloc.rs", "src/traced.rs"]
        {
            assert!(!is_allocator_file(file), "{file}");
        }
    }

    #[test]
    fn arguments_are_left_out() {
        assert_eq!(without_arguments("a<b<c> >::d<e>(f<g>)"), "a::d");
        assert_eq!(without_arguments("operator<<"), "operator<<");
        assert_eq!(without_arguments("a::operator< <int>"), "a::operator< <int>");
        assert_eq!(without_arguments("<a as b<c>>::d"), "<a as b>::d");
        assert_eq!(without_arguments("(anonymous namespace)::f<int>(int)"), "(anonymous namespace)::f");
        assert_eq!(without_arguments("a::b::<T>::c"), "a::b::c");
    }

    #[test]
    fn the_collector_is_known_by_its_file() {
        assert!(is_collector("/tmp/x/libheapline_preload.so"));
        assert!(is_collector("/proc/self/fd/3"));
        assert!(is_collector("/tmp/.heapline-collector-0123456789abcdef"));
        assert!(!is_collector("/opt/libheapline/bin/app"));
    }
}
