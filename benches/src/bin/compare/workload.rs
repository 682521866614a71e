//! The measured programs, and how to build them.

use anyhow::{Context, Result, bail};
use heapline_benches::crate_folder;
use heapline_benches::process::{compile, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that runs to its end.
pub struct Workload {
    /// Name on the command line.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// File for standard input.
    pub input: Option<PathBuf>,
    /// Additional environment, for all tools.
    pub environment: Vec<(&'static str, &'static str)>,
    /// A file written by the program, which belongs to the output.
    pub product: Option<PathBuf>,
    /// Whether the output contains times: then numbers are not compared.
    pub tells_times: bool,
}

impl Workload {
    /// Names of the default workloads.
    pub const DEFAULT: [&'static str; 8] =
        ["churn", "churn-30", "churn-100", "churn-2-threads", "sqlite", "cc1plus", "python", "redis"];

    /// Builds the workload called `name` in `scratch`.
    pub fn prepare(name: &str, scratch: &Path) -> Result<Workload> {
        let churn = |threads, operations, depth| -> Result<Workload> {
            let program = compile_churn(scratch)?;
            let numbers = [threads, operations, depth, "10000"].map(str::to_owned);
            let command = [vec![program], numbers.to_vec()].concat();
            Ok(Workload { tells_times: true, ..Workload::of(name, command) })
        };
        match name {
            "churn" => churn("1", "10000000", "10"),
            "churn-30" => churn("1", "5000000", "30"),
            "churn-100" => churn("1", "3000000", "100"),
            "churn-long" => churn("1", "60000000", "10"),
            "churn-2-threads" => churn("2", "5000000", "10"),
            "sqlite" => {
                let input = Some(source("sq.sql"));
                let command = ["sqlite3", ":memory:"].map(str::to_owned).to_vec();
                Ok(Workload { input, ..Workload::of(name, command) })
            }
            "cc1plus" => cc1plus(scratch),
            "python" | "python-objects" => {
                let command = vec![crate::tool::PYTHON.to_owned(), text(&source("pyw.py"))?];
                let mut environment = vec![("PYTHONHASHSEED", "0")];
                if name == "python" {
                    environment.push(("PYTHONMALLOC", "malloc"));
                }
                Ok(Workload { tells_times: true, environment, ..Workload::of(name, command) })
            }
            _ => bail!(
                "no workload is called {name}: use churn, churn-30, churn-100, churn-long, churn-2-threads, sqlite, cc1plus, \
                 python, python-objects or redis"
            ),
        }
    }

    fn of(name: &str, command: Vec<String>) -> Workload {
        Workload {
            name: name.to_owned(),
            command,
            input: None,
            environment: Vec::new(),
            product: None,
            tells_times: false,
        }
    }

    /// Returns the output without the parts that vary between runs.
    pub fn comparable(&self, output: Vec<u8>) -> Vec<u8> {
        if !self.tells_times {
            return output;
        }
        output.into_iter().filter(|byte| !byte.is_ascii_digit() && *byte != b' ').collect()
    }
}

fn source(name: &str) -> PathBuf {
    crate_folder().join("workloads").join(name)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is no UTF-8")?.to_owned())
}

fn compile_churn(scratch: &Path) -> Result<String> {
    let program = scratch.join("churn");
    if !program.exists() {
        compile(&source("churn.c"), &program)?;
    }
    text(&program)
}

/// The C++ compiler proper, on a source made mostly of the standard library's headers.
fn cc1plus(scratch: &Path) -> Result<Workload> {
    let (preprocessed, assembly) = (scratch.join("big.ii"), scratch.join("big.s"));
    succeed(Command::new("g++").arg("-E").arg(source("big.cpp")).arg("-o").arg(&preprocessed))?;
    let found = succeed(Command::new("gcc").arg("-print-prog-name=cc1plus"))?;
    let program = String::from_utf8(found).context("a path that is no UTF-8")?.trim().to_owned();
    let command = vec![program, "-quiet".into(), "-O1".into(), text(&preprocessed)?, "-o".into(), text(&assembly)?];
    Ok(Workload { product: Some(assembly), ..Workload::of("cc1plus", command) })
}
