//! Owners of code by names of functions, files and modules. The only list of owners by name.
//!
//! A word with a `*` at its end matches every continuation. A word with a `*` elsewhere is a
//! pattern. Functions are compared without template arguments and parameters.

use super::Owner;
use crate::frames::without_arguments;
use crate::glob::Glob;
use std::collections::HashSet;
use std::sync::LazyLock;

/// Wrappers of allocators, and functions of standard libraries for frames without a known file.
const FUNCTIONS: &str = "
    xmalloc* xcalloc* xrealloc* xzalloc* xnmalloc xstrdup xstrndup xmemdup* xasprintf xvasprintf
    safe_malloc safe_calloc safe_realloc checked_malloc my_malloc my_realloc my_strdup my_memdup
    g_malloc* g_try_malloc* g_realloc* g_try_realloc* g_strdup* g_strndup g_memdup* g_slice_*
    CRYPTO_*alloc* CRYPTO_strdup CRYPTO_memdup OPENSSL_*alloc*
    palloc* repalloc* pstrdup pnstrdup MemoryContextAlloc* MemoryContextStrdup AllocSet* Generation* Slab*
    apr_palloc* apr_pcalloc* apr_pstrdup* apr_allocator_alloc
    ngx_alloc ngx_calloc ngx_palloc* ngx_pnalloc ngx_pcalloc ngx_create_pool ngx_pmemalign ngx_memalign
    zmalloc* zcalloc* zrealloc* zstrdup ztrymalloc* ztrycalloc* ztryrealloc* zmalloc_usable valkey_malloc
    sqlite3Malloc* sqlite3DbMalloc* sqlite3MemMalloc sqlite3MemRealloc sqlite3_malloc* sqlite3Realloc
    sqlite3_realloc* sqlite3DbRealloc* sqlite3DbStrDup sqlite3DbStrNDup dbMallocRawFinish dbReallocFinish
    Perl_safesys*alloc Perl_more_bodies Perl_savepv* Perl_sv_grow
    os::malloc os::realloc os::strdup AllocateHeap ReallocateHeap
    av_malloc* av_mallocz* av_calloc av_realloc* av_strdup av_memdup
    emalloc ecalloc erealloc estrdup _emalloc* _ecalloc _erealloc* _estrdup __zend_malloc __zend_calloc
    ruby_xmalloc* ruby_xcalloc* ruby_xrealloc* rb_xmalloc* objspace_xmalloc* objspace_xcalloc*
    objspace_xrealloc* rb_gc_impl_malloc rb_gc_impl_calloc rb_gc_impl_realloc
    luaM_malloc_ luaM_realloc_ luaM_saferealloc_ luaM_growaux_ l_alloc
    uv__malloc uv__calloc uv__realloc uv__strdup git__malloc git__calloc git__realloc git__strdup
    xmlMalloc* xmlStrdup xmlStrndup talloc_* _talloc_* virAlloc* MEM_mallocN MEM_callocN SDL_malloc SDL_calloc
    R_alloc R_chk_calloc R_chk_realloc Rf_allocVector* js_malloc js_calloc js_realloc
    strdup __strdup strndup __strndup asprintf vasprintf __asprintf __vasprintf* getline getdelim __getdelim
    fopen* __fopen* fdopen fmemopen open_memstream opendir fdopendir realpath getcwd
    _start __libc_start_* _IO_* _dl_* __GI_* __libc_* _nl_*
    std::* __gnu_cxx::* __cxxabiv1::* __cxa_*
    core::* alloc::* hashbrown::* <std::* <core::* <alloc::* <hashbrown::* std_detect::*
    <*_as_alloc::vec::*
    <*_as_alloc::slice::*
    <*_as_alloc::string::Spec*
    <*_as_core::ops::function::*
";

/// Files of standard libraries.
const NOBODYS_FILES: &[&str] = &[
    "/rustc/*",
    "*/rustlib/src/rust/library/*",
    "*/include/c++/*",
    "*/libstdc++-v3/*",
    "/usr/lib/gcc/*/include/*",
    "*/jemalloc/src/*",
    "*/jemalloc/internal/*",
];

/// Files of libraries: Python's own, installed packages, headers of the system's libraries, Rust's
/// packages.
const LIBRARIES_FILES: &[&str] = &[
    "<frozen *>",
    "*/site-packages/*",
    "*/dist-packages/*",
    "*/lib/python[23].*/*",
    "*/lib64/python[23].*/*",
    "/usr/include/*",
    "/usr/local/include/*",
    "*/.cargo/registry/src/*",
    "*/.cargo/git/checkouts/*",
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

/// Names of interpreters.
const INTERPRETERS: &[&str] = &["python", "python[23]*", "libpython*.so*"];

/// Folders of the system's shared libraries, and of installed packages.
const SYSTEM_FOLDERS: &[&str] = &[
    "/lib/*",
    "/lib[36x]*/*",
    "/usr/lib/*",
    "/usr/lib[36x]*/*",
    "/usr/local/lib/*",
    "/nix/store/*",
    "/gnu/store/*",
    "/snap/*",
    "*/site-packages/*",
    "*/dist-packages/*",
    "*/lib-dynload/*",
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
                Some(beginning) if is_plain(beginning) => patterns.beginnings.push(beginning),
                None if is_plain(word) => drop(patterns.whole.insert(word)),
                _ => patterns.others.push(Glob::new(&word.replace("_as_", " as "))),
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
        _ if NOBODYS.matches(path) => Owner::Nobody,
        _ if LIBRARIES.matches(path) => Owner::Library,
        _ => Owner::Program,
    }
}

/// Owner of a frame by the path of the program, the shared library or the Python file.
pub(super) fn of_module(path: &str) -> Owner {
    static NOBODYS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(NOBODYS_LIBRARIES));
    static RUNNERS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(INTERPRETERS));
    static FOLDERS: LazyLock<Patterns> = LazyLock::new(|| Patterns::of(SYSTEM_FOLDERS));
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_shared = name.ends_with(".so") || name.contains(".so.");
    match name {
        "" | "[vdso]" => Owner::Nobody,
        _ if NOBODYS.matches(name) => Owner::Nobody,
        _ if RUNNERS.matches(name) || (is_shared && FOLDERS.matches(path)) => Owner::Library,
        _ => Owner::Program,
    }
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
        for name in ["xmalloc", "g_strdup_printf", "std::string::assign", "CRYPTO_zalloc", "__libc_start_main"] {
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
            ("/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", Owner::Program),
            ("/opt/app/lib/libengine.so", Owner::Program),
            ("/venv/lib/python3.11/site-packages/numpy/_umath.cpython-311.so", Owner::Library),
            ("/usr/bin/python3.11", Owner::Library),
            ("/usr/bin/git", Owner::Program),
            ("/home/me/server.py", Owner::Program),
            ("", Owner::Nobody),
        ];
        modules.iter().for_each(|(path, owner)| assert_eq!(of_module(path), *owner, "{path}"));
        let files = [
            ("/usr/include/c++/12/bits/stl_vector.h", Owner::Nobody),
            ("/usr/lib/llvm-14/include/c++/v1/vector", Owner::Nobody),
            ("/rustc/5961/library/alloc/src/vec/mod.rs", Owner::Nobody),
            ("/usr/include/boost/any.hpp", Owner::Library),
            ("/usr/lib/python3.11/json/decoder.py", Owner::Library),
            ("<frozen importlib._bootstrap>", Owner::Library),
            ("<string>", Owner::Program),
            ("/home/me/python/app.py", Owner::Program),
        ];
        files.iter().for_each(|(path, owner)| assert_eq!(of_file(path), *owner, "{path}"));
    }
}
