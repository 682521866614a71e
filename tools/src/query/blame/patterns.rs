//! Owners of code by names of functions, files and modules. The only list of owners by name.
//!
//! A word with a `*` at its end matches every continuation. A word with a `*` elsewhere is a
//! pattern. Functions are compared without template arguments and parameters.

use super::Owner;
use crate::frames::{UNKNOWN, without_arguments};
use crate::glob::Glob;
use std::collections::HashSet;
use std::sync::LazyLock;

/// Wrappers of allocators, and functions of libraries for frames without a known file.
const FUNCTIONS: &str = "
    xmalloc* xcalloc* xrealloc* xzalloc* xnmalloc xstrdup xstrndup xmemdup* xasprintf xvasprintf Xmalloc Xcalloc
    safe_malloc safe_calloc safe_realloc checked_malloc ck_malloc rpl_malloc rpl_calloc rpl_realloc mem_malloc
    my_malloc my_realloc my_strdup my_memdup my_raw_malloc my_multi_malloc redirecting_allocator MEM_ROOT::Alloc*
    ut::malloc* mem_heap_create_block* mem_heap_alloc* mem_heap_zalloc*
    g_malloc* g_try_malloc* g_realloc* g_try_realloc* g_strdup* g_strndup g_memdup* g_slice_* g_aligned_alloc*
    CRYPTO_*alloc* CRYPTO_strdup CRYPTO_memdup OPENSSL_*alloc* default_malloc_ex
    PORT_Alloc* PORT_ZAlloc* PORT_ArenaAlloc* PL_ArenaAllocate PR_Malloc PR_Calloc PR_Realloc
    palloc* repalloc* pstrdup pnstrdup MemoryContextAlloc* MemoryContextStrdup AllocSetAlloc* AllocSetRealloc AllocSetContextCreate*
    GenerationAlloc* GenerationRealloc GenerationContextCreate SlabAlloc* SlabContextCreate
    pg_malloc* pg_realloc pg_strdup
    apr_palloc* apr_pcalloc* apr_pstrdup* apr_pmemdup apr_allocator_alloc apr_pool_create*
    ngx_alloc ngx_calloc ngx_palloc* ngx_pnalloc ngx_pcalloc ngx_create_pool ngx_pmemalign ngx_memalign
    zmalloc* zcalloc* zrealloc* zstrdup ztrymalloc* ztrycalloc* ztryrealloc* zmalloc_usable valkey_malloc
    sqlite3Malloc* sqlite3DbMalloc* sqlite3MemMalloc sqlite3MemRealloc sqlite3_malloc* sqlite3Realloc
    sqlite3_realloc* sqlite3DbRealloc* sqlite3DbStrDup sqlite3DbStrNDup dbMallocRawFinish dbReallocFinish
    mallocWithAlarm memsys5Malloc
    Perl_safesys*alloc Perl_more_bodies Perl_savepv* Perl_sv_grow* PerlMem_malloc
    os::malloc os::realloc os::strdup AllocateHeap ReallocateHeap CHeapObj*::operator_new*
    AnyObj::operator_new* ResourceObj::operator_new* Chunk::operator_new* ChunkPool::allocate_chunk Arena::grow
    ArrayAllocator*::* ArenaAllocator::* CHeapBitMap::* GrowableArrayCHeapAllocator::*
    av_malloc* av_mallocz* av_calloc av_realloc* av_strdup av_memdup av_fast_malloc* av_buffer_alloc*
    emalloc ecalloc erealloc estrdup _emalloc* _ecalloc _erealloc* _estrdup _estrndup _safe_emalloc* _safe_malloc
    _safe_realloc* _safe_femalloc* _safe_erealloc* __zend_malloc __zend_calloc __zend_realloc zend_mm_alloc_* zend_mm_chunk_alloc*
    ruby_xmalloc* ruby_xcalloc* ruby_xrealloc* rb_xmalloc* objspace_xmalloc* objspace_xcalloc*
    objspace_xrealloc* rb_gc_impl_malloc rb_gc_impl_calloc rb_gc_impl_realloc ruby_strdup
    luaM_malloc_ luaM_realloc_ luaM_saferealloc_ luaM_growaux_ luaM_toobig l_alloc
    uv__malloc uv__calloc uv__realloc uv__strdup git__malloc git__calloc git__realloc git__strdup
    xmlMalloc* xmlStrdup xmlStrndup talloc_* _talloc_* virAlloc* MEM_mallocN MEM_callocN SDL_malloc SDL_calloc
    R_alloc R_chk_calloc R_chk_realloc Rf_allocVector* js_malloc js_calloc js_realloc
    Tcl_Alloc Tcl_Realloc Tcl_AttemptAlloc TclpAlloc TclpRealloc Tcl_DbCkalloc TclThreadAllocObj
    erts_alloc* erts_sys_alloc erts_sys_realloc caml_stat_alloc* caml_stat_strdup* caml_alloc_for_heap
    isc__mem_* isc_mem_get* isc_mem_allocate* ber_memalloc* ber_memcalloc* ber_strdup* ch_malloc ch_calloc
    ch_strdup wmem_alloc* wmem_strdup* wmem_realloc dbus_malloc* dbus_realloc dbus_new* i_malloc p_malloc
    bfd_malloc* bfd_zmalloc* bfd_alloc* bfd_zalloc* bfd_realloc* _objalloc_alloc objalloc_create
    ggc_internal_alloc ggc_internal_cleared_alloc ggc_alloc* ggc_realloc _obstack_begin* _obstack_newchunk
    _obstack_allocated* obstack_alloc* ggc_pch_* va_heap::reserve* va_gc::reserve* xcallocator::*
    png_malloc* png_calloc png_zalloc _TIFFmalloc* _TIFFcalloc* _TIFFrealloc* _TIFFCheck* gdMalloc gdCalloc
    FT_Alloc ft_alloc ft_realloc ft_mem_* _cairo_malloc* lzma_alloc* alloc_small alloc_large
    Curl_cmalloc curl_dbg_* json_malloc default_malloc duk_default_alloc_function
    llvm::safe_malloc llvm::safe_calloc llvm::safe_realloc llvm::allocate_buffer llvm::SmallVectorBase::grow_pod
    llvm::SmallVectorBase::mallocForGrow llvm::BumpPtrAllocatorImpl::* llvm::SmallVectorTemplateBase::grow
    QArrayData::* QListData::* QHashData::* QVector::reallocData QMapDataBase::createNode
    WTF::fastMalloc* WTF::Partitions::* blink::*Allocator::* v8::base::Malloc v8::internal::AllocWithRetry
    v8::internal::Malloced::operator_new* v8::internal::NewArray v8::internal::AccountingAllocator::*
    v8::internal::Zone::Expand v8::internal::Zone::New* node::Malloc* node::UncheckedMalloc* node::Realloc*
    node::UncheckedRealloc*
    strdup __strdup strndup __strndup asprintf vasprintf __asprintf __vasprintf* getline getdelim __getdelim
    fopen* __fopen* fdopen fmemopen open_memstream opendir fdopendir realpath getcwd
    _start __libc_start_* _IO_* _dl_* __GI_* __libc_* _nl_* __clone* clone3 start_thread
    std::* __gnu_cxx::* __cxxabiv1::* __cxa_* execute_native_thread_routine
    boost::* absl::* fmt::v* nlohmann::* Eigen::* folly::* tbb::* google::protobuf::*
    core::* alloc::* hashbrown::* <std::* <core::* <alloc::* <hashbrown::* std_detect::* __rust_begin_short_backtrace*
    __rust_try*
    *::operator_new*
    node::NodeArrayBufferAllocator::* v8::internal::BackingStore::Allocate* Unsafe_AllocateMemory*
    Unsafe_ReallocateMemory*
    <[A-Z]_as_core::*
    <[A-Z]_as_alloc::*
    <[A-Z]_as_std::*
    <[[][A-Z]]_as_alloc::*
    <*_as_alloc::vec::*
    <*_as_alloc::slice::*
    <*_as_alloc::string::Spec*
    <*_as_core::ops::function::*
";

/// Files of standard libraries.
const NOBODYS_FILES: &[&str] = &[
    "/rustc/*",
    "/rust/deps/*",
    "*/rustlib/src/rust/library/*",
    "/usr/src/rustc-*/library/*",
    "library/core/src/*",
    "library/alloc/src/*",
    "library/std/src/*",
    "*/include/c++/*",
    "*/libstdc++-v3/*",
    "*/libcxx/include/*",
    "*/libcxx/src/*",
    "/usr/lib/gcc/*/include/*",
    "*/jemalloc/src/*",
    "*/jemalloc/internal/*",
];

/// Files of libraries: Python's own, installed packages, headers of the system's libraries, Rust's
/// packages, sources fetched by package managers.
const LIBRARIES_FILES: &[&str] = &[
    "<frozen *>",
    "*/site-packages/*",
    "*/dist-packages/*",
    "*/lib/python[23].*/*",
    "*/lib64/python[23].*/*",
    "/usr/include/*",
    "/usr/local/include/*",
    "/usr/lib/*/include/*",
    "/opt/homebrew/include/*",
    "*/.cargo/registry/src/*",
    "*/.cargo/git/checkouts/*",
    "*/cargo/registry/src/*",
    "*/cargo/git/checkouts/*",
    "*/vcpkg_installed/*/include/*",
    "*/.conan/data/*",
    "*/.conan2/p/*",
    "*/_deps/*-src/*",
    "*/node_modules/*",
    "*/go/pkg/mod/*",
];

/// Names of the C library and its loader.
const C_LIBRARY: &[&str] = &[
    "libc.so*",
    "libc-2.*",
    "libm.so*",
    "libm-2.*",
    "libpthread*.so*",
    "libdl*.so*",
    "librt*.so*",
    "ld-linux*",
    "ld-2.*",
    "ld-musl*",
];

/// Functions of the C library whose callers get the block, by all names that debug information has.
const HANDING_OVER: &str = "
    strdup __strdup __GI___strdup strndup __strndup __GI___strndup wcsdup __wcsdup
    asprintf vasprintf __asprintf ___asprintf __asprintf_chk vasprintf __vasprintf* _IO_vasprintf*
    getline __getline _IO_getline* getdelim __getdelim _IO_getdelim
    getcwd __getcwd getwd get_current_dir_name realpath* __realpath* canonicalize_file_name
    fopen* _IO_fopen* _IO_new_fopen* __fopen* fdopen* _IO_fdopen* _IO_new_fdopen* freopen* fmemopen*
    __fmemopen* open_memstream* __open_memstream open_wmemstream popen _IO_popen* _IO_new_popen* tmpfile*
    tempnam fopencookie _IO_fopencookie
    opendir* __opendir* fdopendir* __fdopendir* scandir* __scandir* fts_open* ftw* nftw* glob glob64 glob_*
    regcomp* __regcomp* re_compile* wordexp
    getaddrinfo getifaddrs __getifaddrs* if_nameindex iconv_open newlocale __newlocale duplocale __duplocale
    backtrace_symbols __backtrace_symbols obstack_* _obstack_* argz_* __argz_* envz_* hcreate* tsearch __tsearch
    reallocarray __libc_reallocarray
";

/// Names of shared libraries that only work on request of their callers.
const NOBODYS_LIBRARIES: &[&str] =
    &["libstdc++.so*", "libc++*.so*", "libgcc_s*.so*", "libjemalloc*.so*", "libtcmalloc*.so*", "libmimalloc*.so*"];

/// Names of interpreters, and of virtual machines: the program is the code that they run.
const INTERPRETERS: &[&str] = &[
    "python",
    "python[23]*",
    "libpython*.so*",
    "node",
    "nodejs",
    "libnode.so*",
    "java",
    "libjvm.so",
    "ruby",
    "ruby[0-9]*",
    "libruby*.so*",
    "php",
    "php[0-9]*",
    "php-fpm*",
    "perl",
    "perl5*",
    "libperl.so*",
];

/// Folders of the system's shared libraries.
const SYSTEM_FOLDERS: &[&str] = &[
    "/lib/*",
    "/lib[36x]*/*",
    "/usr/lib/*",
    "/usr/lib[36x]*/*",
    "/usr/local/lib/*",
    "/usr/local/lib[36x]*/*",
    "/nix/store/*",
    "/gnu/store/*",
    "/snap/*",
];

/// Folders of Python's extensions.
const EXTENSIONS_FOLDERS: &[&str] = &["*/site-packages/*", "*/dist-packages/*", "*/lib-dynload/*"];

/// Folders of plug-ins that serve a library, not a program: drivers, codecs, providers.
const LIBRARIES_PLUGINS: &[&str] = &[
    "*/gconv/*",
    "*/dri/*",
    "*/vdpau/*",
    "*/gbm/*",
    "*/gio/modules/*",
    "*/gdk-pixbuf-2.0/*",
    "*/gtk-[234].0/*",
    "*/gstreamer-1.0/*",
    "*/qt[456]/plugins/*",
    "*/alsa-lib/*",
    "*/pulseaudio/*",
    "*/pipewire-0.3/*",
    "*/spa-0.2/*",
    "*/ossl-modules/*",
    "*/engines-[13]*/*",
    "*/pkcs11/*",
    "*/sasl2/*",
    "*/krb5/plugins/*",
    "*/security/pam_*",
    "*/odbc/*",
    "*/ImageMagick-*/*",
];

/// Patterns, by kind of comparison. Most are whole words or beginnings.
struct Patterns {
    whole: HashSet<&'static str>,
    /// Beginnings in the order of the list.
    beginnings: Vec<&'static str>,
    others: Vec<Glob>,
}

impl Patterns {
    fn new(words: impl Iterator<Item = &'static str>) -> Patterns {
        let mut patterns = Patterns { whole: HashSet::new(), beginnings: Vec::new(), others: Vec::new() };
        let is_plain = |text: &str| !text.contains(['*', '?', '[']);
        for word in words {
            match word.strip_suffix('*') {
                Some(beginning) if is_plain(beginning) && in_full(word) == word => patterns.beginnings.push(beginning),
                None if is_plain(word) => drop(patterns.whole.insert(word)),
                _ => patterns.others.push(Glob::new(&in_full(word))),
            }
        }
        patterns
    }

    fn of(list: &'static [&'static str]) -> Patterns {
        Patterns::new(list.iter().copied())
    }

    fn matches(&self, text: &str) -> bool {
        self.whole.contains(text)
            || self.beginnings.iter().any(|beginning| text.starts_with(beginning))
            || self.others.iter().any(|glob| glob.matches(text))
    }
}

/// Returns a word with the blanks that a list of words cannot have.
fn in_full(word: &str) -> String {
    word.replace("_as_", " as ").replace("::operator_", "::operator ")
}

/// Owner of a frame by the demangled name of the function.
pub(super) fn of_function(name: &str) -> Owner {
    static NOBODYS: LazyLock<Patterns> = LazyLock::new(|| Patterns::new(FUNCTIONS.split_whitespace()));
    if NOBODYS.matches(&without_arguments(name)) { Owner::Nobody } else { Owner::Program }
}

/// Owner of a frame by the path of the source file.
pub(super) fn of_file(path: &str) -> Owner {
    static NOBODYS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(NOBODYS_FILES));
    static LIBRARIES: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(LIBRARIES_FILES));
    match path {
        UNKNOWN => Owner::Nobody,
        _ if NOBODYS.matches(path) => Owner::Nobody,
        _ if LIBRARIES.matches(path) => Owner::Library,
        _ => Owner::Program,
    }
}

/// Owner of a frame by the path of the program, the shared library or the Python file. Code without
/// a path is generated at run time, by the program.
///
/// A shared library in a folder of the system belongs to a program that has a folder of its own
/// there (`/usr/lib/libreoffice/program/libswlo.so`), or is a plug-in (`ngx_stream_module.so`), and
/// so the program's code. Libraries for all programs lie in a folder that the loader searches, or
/// have a version (`libblas.so.3`).
pub(super) fn of_module(path: &str) -> Owner {
    static NOBODYS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(NOBODYS_LIBRARIES));
    static RUNNERS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(INTERPRETERS));
    static FOLDERS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(SYSTEM_FOLDERS));
    static EXTENSIONS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(EXTENSIONS_FOLDERS));
    static PLUGINS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(LIBRARIES_PLUGINS));
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let has_version = name.contains(".so.");
    let is_shared = has_version || name.ends_with(".so");
    let is_for_all = || is_searched(folder) || has_version || PLUGINS.matches(path);
    match name {
        "[vdso]" => Owner::Nobody,
        _ if NOBODYS.matches(name) => Owner::Nobody,
        _ if RUNNERS.matches(name) || (is_shared && EXTENSIONS.matches(path)) => Owner::Library,
        _ if is_shared && FOLDERS.matches(path) && is_for_all() => Owner::Library,
        _ => Owner::Program,
    }
}

/// Whether the loader looks for the libraries of all programs in a folder: `/usr/lib64`,
/// `/usr/lib/x86_64-linux-gnu`.
fn is_searched(folder: &str) -> bool {
    let folder = folder.strip_prefix("/usr").unwrap_or(folder);
    let folder = folder.strip_prefix("/local").unwrap_or(folder);
    let mut parts = folder.split('/').skip(1);
    let is_root = matches!(parts.next(), Some("lib" | "lib64" | "lib32" | "libx32"));
    let is_of_machine = parts.next().is_none_or(|part| part.contains("-linux-"));
    is_root && is_of_machine && parts.next().is_none()
}

/// Whether a module is the C library, or its loader.
pub(super) fn is_c_library(path: &str) -> bool {
    static LIBRARY: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(C_LIBRARY));
    LIBRARY.matches(path.rsplit('/').next().unwrap_or(path))
}

/// Whether a function of the C library gives the block to the caller.
pub(super) fn hands_over(function: &str) -> bool {
    static FUNCTIONS: LazyLock<Patterns> = LazyLock::new(|| Patterns::new(HANDING_OVER.split_whitespace()));
    FUNCTIONS.matches(function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_functions_tell_the_owner() {
        for name in [
            "xmalloc",
            "g_strdup_printf",
            "std::string::assign",
            "CRYPTO_zalloc",
            "__libc_start_main",
            "CHeapObjBase::operator new",
            "CHeapObj<(MEMFLAGS)5>::operator new[]",
            "<T as alloc::string::ToString>::to_string",
            "<[T] as alloc::borrow::ToOwned>::to_owned",
            "my_malloc",
        ] {
            assert_eq!(of_function(name), Owner::Nobody, "{name}");
        }
        for name in
            ["main", "malloc_table", "Cart::add<std::string>", "stdx::f", "<app::A as core::clone::Clone>::clone"]
        {
            assert_eq!(of_function(name), Owner::Program, "{name}");
        }
        let generic = "<alloc::string::String as alloc::vec::spec_from_elem::SpecFromElem>::from_elem::<Global>";
        assert_eq!(of_function(generic), Owner::Nobody);
    }

    #[test]
    fn paths_tell_the_owner() {
        let modules = [
            ("/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30", Owner::Nobody),
            ("/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0.7400.6", Owner::Library),
            ("/usr/lib64/libz.so.1", Owner::Library),
            ("/usr/lib/libfoo.so", Owner::Library),
            ("/usr/lib/x86_64-linux-gnu/blas/libblas.so.3", Owner::Library),
            ("/usr/lib/x86_64-linux-gnu/dri/iris_dri.so", Owner::Library),
            ("/usr/lib/x86_64-linux-gnu/gconv/UTF-16.so", Owner::Library),
            ("/nix/store/abc-glib-2.76/lib/libglib-2.0.so.0", Owner::Library),
            ("/usr/lib/libreoffice/program/libswlo.so", Owner::Program),
            ("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so", Owner::Library),
            ("/usr/bin/node", Owner::Library),
            ("/opt/app/lib/binding.node", Owner::Program),
            ("/usr/lib/nginx/modules/ngx_stream_module.so", Owner::Program),
            ("/usr/lib/postgresql/15/lib/llvmjit.so", Owner::Program),
            ("/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", Owner::Program),
            ("/opt/app/lib/libengine.so", Owner::Program),
            ("/venv/lib/python3.11/site-packages/numpy/_umath.cpython-311.so", Owner::Library),
            ("/usr/bin/python3.11", Owner::Library),
            ("/usr/bin/git", Owner::Program),
            ("/home/me/server.py", Owner::Program),
            ("", Owner::Program),
        ];
        modules.iter().for_each(|(path, owner)| assert_eq!(of_module(path), *owner, "{path}"));
        let files = [
            ("/usr/include/c++/12/bits/stl_vector.h", Owner::Nobody),
            ("/usr/lib/llvm-14/include/c++/v1/vector", Owner::Nobody),
            ("/rustc/5961/library/alloc/src/vec/mod.rs", Owner::Nobody),
            ("/usr/include/boost/any.hpp", Owner::Library),
            ("/usr/lib/python3.11/json/decoder.py", Owner::Library),
            ("<frozen importlib._bootstrap>", Owner::Library),
            ("/rust/deps/hashbrown-0.15.2/src/raw/mod.rs", Owner::Nobody),
            ("library/alloc/src/vec/mod.rs", Owner::Nobody),
            ("src/library/alloc.rs", Owner::Program),
            ("/home/me/build/_deps/json-src/include/json.hpp", Owner::Library),
            ("<string>", Owner::Program),
            ("[jit]", Owner::Program),
            ("<unknown>", Owner::Nobody),
            ("/home/me/python/app.py", Owner::Program),
        ];
        files.iter().for_each(|(path, owner)| assert_eq!(of_file(path), *owner, "{path}"));
    }
}
