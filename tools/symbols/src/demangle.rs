//! Demangled names of functions, as written by the programmer.

use symbolic_common::{Language, Name, NameMangling};
use symbolic_demangle::{Demangle, DemangleOptions};

/// Suffixes of compiler-made copies and parts of a function. A number may follow a suffix.
const CLONES: [&str; 8] = ["cold", "part", "constprop", "isra", "lto_priv", "localalias", "clone", "llvm"];

/// Returns `name` without mangling, parameters and return type; unchanged if not mangled. A part of
/// a function gets the function's name, as in gdb.
pub(crate) fn demangle(name: &str, language: Language) -> String {
    let name = Name::new(without_clones(name), NameMangling::Unknown, language);
    name.try_demangle(DemangleOptions::name_only()).into_owned()
}

/// Returns `name` without mangling, whatever the language.
pub fn demangle_unknown(name: &str) -> String {
    demangle(name, Language::Unknown)
}

/// Cuts suffixes such as `.part.0.cold`. Other dots belong to names (`..` in Rust's mangling,
/// packages in Go's).
fn without_clones(name: &str) -> &str {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mut kept = name;
    let mut rest = name;
    while let Some((head, part)) = rest.rsplit_once('.') {
        if head.is_empty() || !(is_number(part) || CLONES.contains(&part)) {
            break;
        }
        rest = head;
        if !is_number(part) {
            kept = head;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::demangle;
    use symbolic_common::Language;

    #[test]
    fn names_lose_their_mangling_whatever_language_is_known() {
        for (mangled, name) in [
            ("_Znwm", "operator new"),
            ("_ZN3foo3barINS_3bazEEEvi", "foo::bar<foo::baz>"),
            ("_ZNSt15__new_allocatorIiE8allocateEmPKv", "std::__new_allocator<int>::allocate"),
            (
                "_ZN5alloc7raw_vec19RawVec$LT$T$C$A$GT$8grow_one17h0123456789abcdefE",
                "alloc::raw_vec::RawVec<T,A>::grow_one",
            ),
            ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function"),
            ("main", "main"),
            ("a", "a"),
            ("main.cold", "main"),
            ("rare.part.0.cold", "rare"),
            ("f.constprop.12.isra.0", "f"),
            ("_ZN3foo3barEi.cold", "foo::bar"),
            ("nested.0", "nested.0"),
            ("runtime.mallocgc", "runtime.mallocgc"),
            (".cold", ".cold"),
        ] {
            assert_eq!(demangle(mangled, Language::Unknown), name);
        }
        assert_eq!(demangle("_Znwm", Language::Cpp), "operator new");
        assert_eq!(demangle("main", Language::C), "main");
    }
}
