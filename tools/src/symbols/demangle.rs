//! Names as the programmer wrote them.

use symbolic::common::{Language, Name, NameMangling};
use symbolic::demangle::{Demangle, DemangleOptions};

/// `name` without mangling, parameters and return type; as it is where it is not mangled.
pub(super) fn demangle(name: &str, language: Language) -> String {
    let name = Name::new(name, NameMangling::Unknown, language);
    name.try_demangle(DemangleOptions::name_only()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::demangle;
    use symbolic::common::Language;

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
        ] {
            assert_eq!(demangle(mangled, Language::Unknown), name);
        }
        assert_eq!(demangle("_Znwm", Language::Cpp), "operator new");
        assert_eq!(demangle("main", Language::C), "main");
    }
}
