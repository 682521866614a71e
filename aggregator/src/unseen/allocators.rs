//! Allocators of programs and libraries without a hook: the ways to recognise each, and the user's
//! options.
//!
//! This table is the only place for such knowledge. An allocator that exports `malloc` is the
//! process's provider of malloc. Its callers are hooked, so its blocks are seen.
//! [`Allocator::is_seen_as_malloc`] marks such allocators.

/// Ways to recognise an allocator by the name of a function.
#[derive(Clone, Copy, Debug)]
pub enum Symbol {
    /// The whole name.
    Is(&'static str),
    /// The beginning of a (mangled) name.
    Begins(&'static str),
    /// The end of a name. The text in front is the prefix of the allocator's build.
    Prefixed(&'static str),
}

/// An allocator, or a language's runtime with a heap of its own.
#[derive(Debug)]
pub struct Allocator {
    /// Name of the allocator.
    pub name: &'static str,
    /// Word for the kind of the allocator in a snapshot.
    pub kind: &'static str,
    /// Functions present in every object with the allocator.
    pub symbols: &'static [Symbol],
    /// Texts in the read-only data of objects with the allocator, for objects without symbols.
    pub strings: &'static [&'static str],
    /// Sections present only in objects with the allocator.
    pub sections: &'static [&'static str],
    /// Whether an object with the allocator is seen if it exports `malloc`: the callers of malloc
    /// are hooked.
    pub is_seen_as_malloc: bool,
    /// Environment variable and value that make the program use malloc instead.
    pub unused_with: Option<(&'static str, &'static str)>,
    /// Names of rows replaced by this row in an object with both. Without such a row in the object,
    /// this row is not reported.
    pub in_place_of: &'static [&'static str],
    /// Whether the allocator tells the collector about its blocks. This holds only in objects named
    /// by the collector.
    pub has_listeners: bool,
    /// Explanation for the user: the unseen memory, and possible remedies.
    pub text: &'static str,
}

/// The kind of an allocator.
const ALLOCATOR: &str = "allocator";
/// The kind of a language's runtime.
const RUNTIME: &str = "runtime";

const BLOCKS: Allocator = Allocator {
    name: "",
    kind: ALLOCATOR,
    symbols: &[],
    strings: &[],
    sections: &[],
    is_seen_as_malloc: true,
    unused_with: None,
    in_place_of: &[],
    has_listeners: false,
    text: "its blocks are not seen, only the mappings that it cuts them from (--domain mmap); a build that uses malloc, or a \
           Rust allocator wrapped in heapline_collector::Traced, is seen",
};

const OBJECTS: Allocator = Allocator { kind: RUNTIME, is_seen_as_malloc: false, ..BLOCKS };

use Symbol::{Begins, Is, Prefixed};

/// The table.
pub const ALLOCATORS: &[Allocator] = &[
    Allocator {
        name: "jemalloc",
        symbols: &[Prefixed("mallocx")],
        strings: &["<jemalloc>: "],
        has_listeners: true,
        ..BLOCKS
    },
    Allocator {
        name: "mimalloc",
        symbols: &[Is("mi_malloc"), Is("mi_heap_malloc"), Is("_mi_malloc_generic")],
        strings: &["mimalloc: warning: ", "mimalloc: error: "],
        ..BLOCKS
    },
    Allocator {
        name: "tcmalloc",
        symbols: &[
            Is("tc_malloc"),
            Is("TCMallocInternalMalloc"),
            Begins("_ZN8tcmalloc11ThreadCache"),
            Begins("_ZN8tcmalloc17tcmalloc_internal"),
        ],
        strings: &["TCMALLOC_SAMPLE_PARAMETER", "TCMALLOC_RELEASE_RATE"],
        ..BLOCKS
    },
    Allocator { name: "rpmalloc", symbols: &[Is("rpmalloc"), Is("rpmalloc_initialize")], ..BLOCKS },
    Allocator { name: "snmalloc", symbols: &[Is("sn_malloc"), Begins("_ZN8snmalloc")], ..BLOCKS },
    Allocator {
        name: "scudo",
        symbols: &[Is("__scudo_print_stats"), Begins("_ZN5scudo")],
        strings: &["Scudo ERROR: "],
        ..BLOCKS
    },
    Allocator { name: "TBB's scalable allocator", symbols: &[Is("scalable_malloc")], ..BLOCKS },
    Allocator { name: "dlmalloc", symbols: &[Is("dlmalloc"), Is("mspace_malloc"), Is("create_mspace")], ..BLOCKS },
    Allocator { name: "nedmalloc", symbols: &[Is("nedmalloc"), Is("nedpmalloc")], ..BLOCKS },
    Allocator {
        name: "Arrow's memory pool",
        symbols: &[Begins("_ZN5arrow20jemalloc_memory_pool"), Begins("_ZN5arrow20mimalloc_memory_pool")],
        unused_with: Some(("ARROW_DEFAULT_MEMORY_POOL", "system")),
        in_place_of: &["jemalloc", "mimalloc"],
        text: "Arrow's buffers are not seen, only the mappings that they lie in (--domain mmap): run it with \
               ARROW_DEFAULT_MEMORY_POOL=system",
        ..BLOCKS
    },
    Allocator {
        name: "PartitionAlloc",
        symbols: &[Begins("_ZN14partition_alloc"), Begins("_ZN4base8internal13PartitionAlloc")],
        strings: &["PartitionAllocBackupRefPtr", "partition_alloc/partition_root"],
        is_seen_as_malloc: false,
        text: "its blocks are not seen, only the mappings that it cuts them from (--domain mmap); a build with \
               use_partition_alloc_as_malloc=false uses malloc for most of them",
        ..BLOCKS
    },
    Allocator {
        name: "PHP's memory manager",
        symbols: &[Is("_emalloc"), Is("zend_mm_alloc_heap"), Is("_zend_mm_alloc")],
        strings: &["USE_ZEND_ALLOC"],
        is_seen_as_malloc: false,
        unused_with: Some(("USE_ZEND_ALLOC", "0")),
        text: "PHP's values are not seen, only the 2 MiB chunks that they lie in (--domain mmap): run it with USE_ZEND_ALLOC=0",
        ..BLOCKS
    },
    Allocator {
        name: "WebKit's bmalloc",
        symbols: &[Begins("_ZN7bmalloc"), Is("bmalloc_try_allocate"), Is("pas_utility_heap_try_allocate")],
        is_seen_as_malloc: false,
        text: "its blocks are not seen, only the mappings that it cuts them from (--domain mmap): run it with Malloc=1",
        unused_with: Some(("Malloc", "1")),
        ..BLOCKS
    },
    Allocator {
        name: "Go's runtime",
        sections: &[".note.go.buildid", ".gopclntab", ".go.buildinfo"],
        text: "Go programs allocate with their own runtime, whose blocks and mappings are not seen: use Go's runtime/pprof for them",
        ..OBJECTS
    },
    Allocator {
        name: "V8's heap",
        symbols: &[Begins("_ZN2v87Isolate"), Begins("_ZN2v88internal7Isolate")],
        strings: &["Ineffective mark-compacts near heap limit"],
        text: "JavaScript's objects are not seen, only the mappings that they lie in (--domain mmap): use V8's own heap snapshots or \
               node --heap-prof for them",
        ..OBJECTS
    },
    Allocator {
        name: "SpiderMonkey's heap",
        symbols: &[Begins("_ZN2js2gc9GCRuntime"), Is("JS_NewContext"), Begins("_Z13JS_NewContext")],
        text: "JavaScript's objects are not seen, only the mappings that they lie in (--domain mmap)",
        ..OBJECTS
    },
    Allocator {
        name: "the Java heap",
        symbols: &[Is("JNI_CreateJavaVM"), Is("graal_create_isolate")],
        text: "Java's objects are not seen, only the mappings that they lie in (--domain mmap): use jcmd PID GC.class_histogram or \
               a heap dump for them",
        ..OBJECTS
    },
    Allocator {
        name: "the .NET heap",
        symbols: &[Is("coreclr_initialize"), Is("GC_Initialize"), Is("mono_jit_init"), Is("mono_gc_collect")],
        text: "managed objects are not seen, only the mappings that they lie in (--domain mmap): use dotnet-gcdump, or Mono's own \
               profiler, for them",
        ..OBJECTS
    },
    Allocator {
        name: "LuaJIT's allocator",
        symbols: &[Is("luaJIT_setmode"), Is("lj_alloc_create"), Begins("luaJIT_version_2")],
        strings: &["LuaJIT 2."],
        text: "Lua's objects are not seen, only the mappings that they lie in (--domain mmap): a build with -DLUAJIT_USE_SYSMALLOC \
               uses malloc",
        ..OBJECTS
    },
    Allocator {
        name: "SBCL's heap",
        symbols: &[Is("dynamic_space_size"), Is("gc_and_save")],
        text: "Lisp's objects are not seen: use (room) or sb-sprof's :alloc mode for them",
        ..OBJECTS
    },
    Allocator {
        name: "OCaml's heap",
        symbols: &[Is("caml_alloc_shr"), Is("caml_startup_common")],
        strings: &["CAMLRUNPARAM"],
        text: "OCaml's values are not seen, only the pieces of memory that they lie in: use OCaml's Gc module or memtrace for them",
        ..OBJECTS
    },
    Allocator {
        name: "GHC's heap",
        symbols: &[Is("hs_init_ghc"), Is("allocateMightFail")],
        strings: &["GHCRTS"],
        text: "Haskell's objects are not seen, only the mappings that they lie in (--domain mmap): use +RTS -hT for them",
        ..OBJECTS
    },
    Allocator {
        name: "Erlang's allocators",
        symbols: &[Is("erts_alloc_init"), Is("erts_alcu_alloc")],
        strings: &["eheap_alloc", "erts_mmap"],
        text: "Erlang's terms are not seen, only the carriers that they lie in: run it with +Mea min, or use recon_alloc",
        ..OBJECTS
    },
    Allocator {
        name: "the Boehm collector",
        symbols: &[Is("GC_malloc"), Is("GC_gcollect")],
        text: "its objects are not seen, only the mappings that they lie in (--domain mmap)",
        ..OBJECTS
    },
    Allocator {
        name: "Ruby's object slots",
        symbols: &[Is("rb_gc_enable"), Is("rb_objspace_each_objects")],
        text: "Ruby's objects are not seen, only the pages that they lie in (--domain mmap); what objects keep outside of their \
               slots is seen: use ObjectSpace.dump_all for the slots",
        ..OBJECTS
    },
    Allocator {
        name: "Julia's heap",
        symbols: &[Is("jl_gc_collect"), Is("ijl_gc_collect")],
        text: "Julia's small objects are not seen, only the pages that they lie in (--domain mmap): use Profile.Allocs for them",
        ..OBJECTS
    },
    Allocator {
        name: "PyPy's heap",
        symbols: &[Is("pypy_main_startup"), Is("pypy_execute_source")],
        text: "Python's objects are not seen in PyPy, only the arenas that they lie in",
        ..OBJECTS
    },
    Allocator {
        name: OWN_MALLOC,
        symbols: &[Is("malloc")],
        text: "its functions are not exported, so calls from within the object go past the collector: its blocks are not seen; \
               a build that uses the system's malloc is",
        ..BLOCKS
    },
];

/// Name of a `malloc` defined in an object, but not exported.
const OWN_MALLOC: &str = "a malloc of its own";

/// An allocator found in an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Index in [`ALLOCATORS`].
    allocator: usize,
    /// Common prefix of the names of its functions.
    prefix: String,
}

impl Finding {
    /// Returns the allocator.
    pub fn allocator(&self) -> &'static Allocator {
        &ALLOCATORS[self.allocator]
    }

    /// Returns the name of the allocator, with the prefix of its build.
    pub fn name(&self) -> String {
        let name = self.allocator().name;
        if self.prefix.is_empty() { name.to_owned() } else { format!("{name} (prefix {})", self.prefix) }
    }
}

/// Returns the allocator of a function.
pub fn by_function(name: &[u8]) -> Option<Finding> {
    let prefix = |symbol: &Symbol| match symbol {
        Is(whole) => (name == whole.as_bytes()).then(String::new),
        Begins(beginning) => name.starts_with(beginning.as_bytes()).then(String::new),
        Prefixed(end) => Some(String::from_utf8_lossy(name.strip_suffix(end.as_bytes())?).into_owned()),
    };
    let found = |(allocator, row): (usize, &Allocator)| {
        let prefix = row.symbols.iter().find_map(prefix)?;
        Some(Finding { allocator, prefix })
    };
    ALLOCATORS.iter().enumerate().find_map(found)
}

/// Returns the allocator of a section.
pub fn by_section(name: &[u8]) -> Option<Finding> {
    let has = |row: &Allocator| row.sections.iter().any(|section| section.as_bytes() == name);
    ALLOCATORS.iter().position(has).map(|allocator| Finding { allocator, prefix: String::new() })
}

/// Returns all texts with their allocators.
pub fn texts() -> impl Iterator<Item = (&'static str, Finding)> {
    ALLOCATORS.iter().enumerate().flat_map(|(allocator, row)| {
        row.strings.iter().map(move |&text| (text, Finding { allocator, prefix: String::new() }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_tell_their_allocator_and_its_prefix() {
        let name = |function: &str| by_function(function.as_bytes()).map(|found| found.name());
        assert_eq!(name("_rjem_mallocx").as_deref(), Some("jemalloc (prefix _rjem_)"));
        assert_eq!(name("mallocx").as_deref(), Some("jemalloc"));
        assert_eq!(name("je_arrow_mallocx").as_deref(), Some("jemalloc (prefix je_arrow_)"));
        assert_eq!(name("mi_malloc").as_deref(), Some("mimalloc"));
        assert_eq!(name("_ZN5scudo9AllocatorE").as_deref(), Some("scudo"));
        assert_eq!(name("malloc").as_deref(), Some(OWN_MALLOC));
        for other in ["xmalloc", "my_malloc", "g_malloc", "mallocx_wrapper", "free", ""] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn every_row_says_how_it_is_found_and_what_to_know() {
        for row in ALLOCATORS {
            assert!(row.symbols.len() + row.strings.len() + row.sections.len() > 0, "{}", row.name);
            assert!(!row.name.is_empty() && row.text.contains("not seen"), "{}", row.name);
        }
    }
}
