//! The compared tools: command, files left behind, and report of each.

use anyhow::{Context, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// None: the program alone.
    Base,
    /// Control: our collector, preloaded, and nobody attached.
    Idle,
    /// Control: attached to for a moment, and detached again.
    Detached,
    /// Control: our collector, preloaded with HEAPLINE_DISABLE=1.
    Disabled,
    /// Ours.
    Heapline,
    /// Ours, sampling every 512 KiB.
    HeaplineSampled,
    /// heaptrack, which interprets its data while the program runs, as its users do.
    Heaptrack,
    /// heaptrack --raw: the interpretation, which its report needs, is left for later.
    HeaptrackRaw,
    /// The jemalloc allocator, without its profiler: what the next two are to be compared with.
    Jemalloc,
    /// jemalloc's profiler, sampling every 512 KiB.
    JemallocSampled,
    /// jemalloc's profiler, every allocation.
    JemallocExact,
    /// gperftools' heap profiler and allocator.
    Gperftools,
    /// memray with Python's own allocators and native stacks: Python programs only.
    Memray,
    /// memray without native stacks.
    MemrayPython,
    /// CPython's own tracemalloc with one frame a traceback.
    Tracemalloc,
    /// CPython's own tracemalloc with 25 frames.
    #[value(name = "tracemalloc-25")]
    Tracemalloc25,
    /// valgrind's profilers, which run the program on a simulated processor (by name only).
    Massif,
    /// See [`Tool::Massif`].
    Dhat,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tool::Base => "base",
            Tool::Idle => "idle",
            Tool::Detached => "detached",
            Tool::Disabled => "disabled",
            Tool::Heapline => "heapline",
            Tool::HeaplineSampled => "heapline-sampled",
            Tool::Heaptrack => "heaptrack",
            Tool::HeaptrackRaw => "heaptrack-raw",
            Tool::Jemalloc => "jemalloc",
            Tool::JemallocSampled => "jemalloc-sampled",
            Tool::JemallocExact => "jemalloc-exact",
            Tool::Gperftools => "gperftools",
            Tool::Memray => "memray",
            Tool::MemrayPython => "memray-python",
            Tool::Tracemalloc => "tracemalloc",
            Tool::Tracemalloc25 => "tracemalloc-25",
            Tool::Massif => "massif",
            Tool::Dhat => "dhat",
        })
    }
}

/// Debian's folder of the preloaded libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// Debian's folder of valgrind's programs.
const VALGRIND: &str = "/usr/libexec/valgrind";
/// The interpreter of the Python workload.
pub const PYTHON: &str = "/usr/bin/python3";
const JEMALLOC: &str = "libjemalloc.so.2";
const GPERFTOOLS: &str = "libtcmalloc_and_profiler.so.4";

impl Tool {
    /// The default tools, in the order of a round.
    pub const DEFAULT: [Tool; 13] = [
        Tool::Base,
        Tool::Heapline,
        Tool::HeaplineSampled,
        Tool::Heaptrack,
        Tool::HeaptrackRaw,
        Tool::Jemalloc,
        Tool::JemallocSampled,
        Tool::JemallocExact,
        Tool::Gperftools,
        Tool::Memray,
        Tool::Idle,
        Tool::Detached,
        Tool::Disabled,
    ];

    /// Whether a failure of the tool would be our own.
    pub fn must_succeed(self) -> bool {
        self == Tool::Base || self.is_ours()
    }

    fn is_ours(self) -> bool {
        matches!(self, Tool::Heapline | Tool::HeaplineSampled | Tool::Idle | Tool::Detached | Tool::Disabled)
    }

    /// Returns a program needed by the tool and not installed.
    pub fn missing(self, programs: &Path) -> Option<String> {
        let absent = |program: PathBuf| (!program.is_file()).then(|| program.display().to_string());
        let absent_library = |name: &str| absent(Path::new(LIBRARIES).join(name));
        match self {
            Tool::Base => None,
            _ if self.is_ours() => absent(programs.join("aggregator")).or_else(|| absent(programs.join("report"))),
            Tool::Heaptrack | Tool::HeaptrackRaw => {
                let works = |name: &str| Command::new(name).arg("--version").output().is_ok();
                ["heaptrack", "heaptrack_print"].into_iter().find(|name| !works(name)).map(str::to_owned)
            }
            Tool::Jemalloc | Tool::JemallocSampled | Tool::JemallocExact => absent_library(JEMALLOC),
            Tool::Gperftools => absent_library(GPERFTOOLS),
            Tool::Tracemalloc | Tool::Tracemalloc25 => absent(PYTHON.into()),
            Tool::Memray | Tool::MemrayPython => {
                let mut memray = Command::new(PYTHON);
                memray.args(["-m", "memray", "--version"]).stdin(Stdio::null());
                let works = memray.output().is_ok_and(|output| output.status.success());
                (!works).then(|| format!("memray for {PYTHON} (a folder of it in PYTHONPATH will do)"))
            }
            _ => absent(self.simulator()),
        }
    }

    /// Whether the tool is made for programs of this kind.
    pub fn is_for(self, command: &[String]) -> bool {
        let is_pythons = matches!(self, Tool::Memray | Tool::MemrayPython | Tool::Tracemalloc | Tool::Tracemalloc25);
        !is_pythons || command[0] == PYTHON
    }

    /// Returns the executable of the target's process. valgrind replaces the program.
    pub fn target(self, program: &str) -> Result<PathBuf> {
        match self {
            Tool::Massif | Tool::Dhat => Ok(self.simulator()),
            _ => crate::measure::resolved(program),
        }
    }

    fn simulator(self) -> PathBuf {
        Path::new(VALGRIND).join(format!("{self}-amd64-linux"))
    }

    /// Returns the command that runs `command` under the tool. The tool writes into `folder`.
    pub fn command(self, command: &[String], programs: &Path, folder: &Path) -> Result<Command> {
        let alone = || with_arguments(Command::new(&command[0]), &command[1..]);
        let preloaded = |library: &Path| {
            let mut run = alone();
            run.env("LD_PRELOAD", library);
            run
        };
        let jemalloc = |options: &str| {
            let mut run = preloaded(&Path::new(LIBRARIES).join(JEMALLOC));
            run.env("MALLOC_CONF", options);
            run
        };
        let profile = |sample: u32| {
            let prefix = folder.join("out");
            format!("prof:true,prof_final:true,lg_prof_sample:{sample},prof_prefix:{}", prefix.display())
        };
        let under = |program: PathBuf, arguments: &[&str], output: &str| {
            let mut run = Command::new(program);
            run.args(arguments).arg("-o").arg(folder.join(output));
            run
        };
        Ok(match self {
            Tool::Base => alone(),
            Tool::Idle | Tool::Detached => preloaded(&collector(programs, folder)?),
            Tool::Disabled => {
                let mut run = preloaded(&collector(programs, folder)?);
                run.env("HEAPLINE_DISABLE", "1");
                run
            }
            Tool::Heapline | Tool::HeaplineSampled => {
                let sampled: &[&str] = if self == Tool::Heapline { &[] } else { &["--sample", "512K"] };
                let mut run = under(programs.join("aggregator"), &[&["run"], sampled].concat(), "out.snap.zst");
                run.arg("--").args(command);
                run
            }
            Tool::Heaptrack => {
                let mut run = under("heaptrack".into(), &[], "out.heaptrack");
                run.args(command);
                run
            }
            Tool::HeaptrackRaw => {
                let mut run = under("heaptrack".into(), &["--raw"], "out.heaptrack");
                run.args(command);
                run
            }
            Tool::Jemalloc => jemalloc("prof:false"),
            Tool::JemallocSampled => jemalloc(&profile(19)),
            Tool::JemallocExact => jemalloc(&profile(0)),
            Tool::Gperftools => {
                let mut run = preloaded(&Path::new(LIBRARIES).join(GPERFTOOLS));
                run.env("HEAPPROFILE", folder.join("out"));
                run
            }
            Tool::Tracemalloc | Tool::Tracemalloc25 => {
                let mut run = alone();
                run.env("PYTHONTRACEMALLOC", if self == Tool::Tracemalloc { "1" } else { "25" });
                run
            }
            Tool::Memray | Tool::MemrayPython => {
                let mut run = Command::new(PYTHON);
                run.args(["-m", "memray", "run", "--quiet", "--trace-python-allocators"]);
                run.args((self == Tool::Memray).then_some("--native")).arg("-o");
                run.arg(folder.join("out.memray")).args(&command[1..]);
                run
            }
            Tool::Massif | Tool::Dhat => {
                let mut run = Command::new("valgrind");
                let output = folder.join(format!("out.{self}"));
                run.args(["--quiet", &format!("--tool={self}")]);
                run.arg(format!("--{self}-out-file={}", output.display())).args(command);
                run
            }
        })
    }

    /// Attaches to the running target and detaches again, for the tool [`Tool::Detached`].
    pub fn disturb(self, pid: u32, programs: &Path, folder: &Path) -> Result<()> {
        if self != Tool::Detached {
            return Ok(());
        }
        let mut attach = Command::new(programs.join("aggregator"));
        attach.args(["--attach", &pid.to_string(), "--duration", "0.02", "-o"]).arg(folder.join("attached.snap.zst"));
        // After a few milliseconds the program is up, and was found idle.
        std::thread::sleep(Duration::from_millis(20));
        heapline_benches::process::succeed(&mut attach).map(drop)
    }

    /// Returns the file left by the tool in `folder`.
    pub fn product(self, folder: &Path) -> Result<Option<PathBuf>> {
        let leaves_none = [Tool::Base, Tool::Idle, Tool::Detached, Tool::Disabled, Tool::Jemalloc];
        if leaves_none.contains(&self) || matches!(self, Tool::Tracemalloc | Tool::Tracemalloc25) {
            return Ok(None);
        }
        let entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
        let found = entries
            .iter()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("out.")));
        Ok(Some(found.with_context(|| format!("{self} has left no file"))?))
    }

    /// Makes a readable report of the file, with cold caches. Returns the time taken. None for
    /// tools without a reporter here.
    pub fn report(self, file: &Path, programs: &Path, cache: &Path) -> Result<Option<Duration>> {
        let mut report = match self {
            Tool::Heapline | Tool::HeaplineSampled => {
                with_arguments(Command::new(programs.join("report")), &["--by".to_owned(), "lineno".to_owned()])
            }
            Tool::Heaptrack => with_arguments(Command::new("heaptrack_print"), &["-f".to_owned()]),
            _ => return Ok(None),
        };
        report.arg(file).env("XDG_CACHE_HOME", cache).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let status = report.status().with_context(|| format!("the report of {self}"))?;
        anyhow::ensure!(status.success(), "the report of {self} ends with {status}");
        Ok(Some(start.elapsed()))
    }
}

/// Writes the library of our collector into `folder`.
fn collector(programs: &Path, folder: &Path) -> Result<PathBuf> {
    let library = folder.join("collector.so");
    heapline_benches::process::succeed(
        Command::new(programs.join("aggregator")).args(["collector", "-o"]).arg(&library),
    )?;
    Ok(library)
}

fn with_arguments(mut command: Command, arguments: &[String]) -> Command {
    command.args(arguments);
    command
}
