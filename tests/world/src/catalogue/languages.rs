//! Compilers, each with a small program to compile and run, and interpreters, each with a small
//! program that answers line by line.

use super::{File, Kind, Life, Lines, Subject, words};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A compiler or an interpreter.
struct Language {
    name: &'static str,
    packages: &'static [&'static str],
    argv: &'static [&'static str],
    file: File,
    is_compiler: bool,
}

macro_rules! language {
    ($kind:ident $name:literal, $packages:expr, $argv:expr, $file:literal) => {
        Language {
            name: $name,
            packages: &$packages,
            argv: &$argv,
            file: File { name: $file, text: include_str!(concat!("../../subjects/", $file)) },
            is_compiler: language!(@$kind),
        }
    };
    (@compiler) => { true };
    (@interpreter) => { false };
}

const LANGUAGES: [Language; 17] = [
    language!(compiler "gcc", ["gcc"], ["/bin/sh", "-c", "gcc -O2 primes.c -o primes && ./primes"], "primes.c"),
    language!(compiler "g++", ["g++"], ["/bin/sh", "-c", "g++ -O1 words.cpp -o words && ./words"], "words.cpp"),
    language!(compiler "clang", ["clang"], ["/bin/sh", "-c", "clang -O2 primes.c -o primes && ./primes"], "primes.c"),
    language!(compiler "gfortran", ["gfortran"], ["/bin/sh", "-c", "gfortran -O1 sums.f90 -o sums && ./sums"], "sums.f90"),
    language!(compiler "rustc", [], ["/bin/sh", "-c", "{rustc} -O words.rs -o words && ./words"], "words.rs"),
    language!(compiler "ocamlopt", ["ocaml-nox", "gcc"], ["/bin/sh", "-c", "ocamlopt tree.ml -o tree && ./tree"], "tree.ml"),
    language!(interpreter "perl", ["perl"], ["/usr/bin/perl", "answers.pl"], "answers.pl"),
    language!(interpreter "python", ["python3"], ["/usr/bin/python3", "answers.py"], "answers.py"),
    language!(interpreter "ruby", ["ruby"], ["/usr/bin/ruby", "answers.rb"], "answers.rb"),
    language!(interpreter "php", ["php-cli"], ["/usr/bin/php", "answers.php"], "answers.php"),
    language!(interpreter "node", ["nodejs"], ["/usr/bin/node", "answers.js"], "answers.js"),
    language!(interpreter "lua", ["lua5.4"], ["/usr/bin/lua5.4", "answers.lua"], "answers.lua"),
    language!(interpreter "tcl", ["tcl"], ["/usr/bin/tclsh", "answers.tcl"], "answers.tcl"),
    language!(interpreter "guile", ["guile-3.0"], ["/usr/bin/guile", "--no-auto-compile", "answers.scm"], "answers.scm"),
    language!(interpreter "R", ["r-base-core"], ["/usr/bin/Rscript", "--vanilla", "answers.R"], "answers.R"),
    language!(interpreter "sbcl", ["sbcl"], ["/usr/bin/sbcl", "--script", "answers.lisp"], "answers.lisp"),
    language!(interpreter "java", ["default-jdk-headless"], ["/usr/bin/java", "Answers.java"], "Answers.java"),
];

/// All compilers and interpreters.
pub fn all() -> Vec<Subject> {
    LANGUAGES.iter().map(subject).collect()
}

fn subject(language: &Language) -> Subject {
    let mut argv = words(language.argv);
    if let Some(last) = argv.last_mut() {
        *last = last.replace("{rustc}", &rustc());
    }
    let program = match language.is_compiler {
        true if language.name == "rustc" => rustc().into(),
        true => Path::new("/usr/bin").join(language.name),
        false => argv.first().map(PathBuf::from).unwrap_or_default(),
    };
    let life = match language.is_compiler {
        true => Life::Short,
        false => Life::Lines(Lines { greets: true, question: "some words\n" }),
    };
    Subject {
        kind: Kind::Language,
        name: language.name.to_owned(),
        packages: language.packages,
        wheels: &[],
        program,
        argv,
        files: vec![language.file],
        prepare: None,
        life,
    }
}

/// Path of the real compiler: rustup's proxy needs the caller's environment.
fn rustc() -> String {
    let asked = Command::new("rustc").args(["--print", "sysroot"]).output();
    let root = asked.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    match root.trim() {
        "" => "rustc".to_owned(),
        root => format!("{root}/bin/rustc"),
    }
}
