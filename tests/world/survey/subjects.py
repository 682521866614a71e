"""The programs of the survey."""

import os
import pathlib
import shutil
import signal
from dataclasses import dataclass, field
from typing import Callable

from . import loads
from .runs import renderer


@dataclass
class Row:
    """A line of the table: a process of the run and a view of its snapshot."""

    label: str = ""
    process: str = ""  # text in the command line of the process; the command itself where empty
    options: tuple = ()


@dataclass
class Subject:
    name: str
    argv: list
    packages: tuple = ()
    files: tuple = ()
    environment: dict = field(default_factory=dict)
    needs: list = None  # a command that must succeed, else the subject is skipped
    prepare: list = None  # shell script; runs in the scratch folder, untraced
    load: Callable = None  # of a server
    map_names: list = None  # a command that makes the server write the names of its JIT's code
    worker: Callable = None  # from the server's process to the process that does the work
    stop: int = signal.SIGTERM
    options: tuple = ()  # of `aggregator run`
    ways: tuple = ("run", "attach")
    rows: tuple = (Row(),)
    own: str = None  # names of functions of the script or source, as a regular expression


def first(*candidates):
    """The first candidate that exists: a path with `*`, or a name in PATH."""
    for candidate in candidates:
        if "/" in candidate:
            path = pathlib.Path(candidate).expanduser()
            found = sorted(pathlib.Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if found:
                return str(found[-1])
        elif found := shutil.which(candidate):
            return found
    return candidates[0]


def subjects():
    """All subjects. `{scratch}` and `{port}` are replaced in arguments, files and scripts."""
    python = first("~/.pyenv/versions/3.12.*/bin/python3.12", "/usr/bin/python3.12", "/usr/local/bin/python3.12")
    chromium = first("/usr/lib/chromium/chromium", "chromium")
    office = first("/usr/lib/libreoffice/program/soffice.bin")
    office_argv = [office, "--headless", "-env:UserInstallation=file://{scratch}/profile", "--convert-to", "pdf",
                   "--outdir", "{scratch}/out"]
    pg = str(pathlib.Path(first("/usr/lib/postgresql/*/bin/postgres")).parent)
    ruby, node, php, java = first("ruby"), first("node", "nodejs"), first("php"), first("java")
    as_postgres = "setpriv --reuid=postgres --regid=postgres --clear-groups".split() if os.geteuid() == 0 else []
    own_folder = "chown postgres ." if as_postgres else "true"
    initdb = f"{own_folder}; {' '.join(as_postgres)} {pg}/initdb -D {{scratch}}/data -A trust -U postgres -N"
    jit = "-XX:+PreserveFramePointer -XX:+UnlockDiagnosticVMOptions -XX:+DumpPerfMapAtExit".split()
    keep = r"keep_?\w+|orders?|order_of|day"
    java_argv = [java, "-Xmx64m", "-cp", "{scratch}", "Keep"]
    java_of = dict(packages=("default-jdk-headless",), files=("Keep.java",), own=keep, prepare="javac -nowarn -d . Keep.java")
    node_of = dict(packages=("nodejs",), files=("keep.js",), own=keep)
    ruby_of = dict(packages=("ruby",), files=("keep.rb",), own=keep)
    php_of = dict(packages=("php-cli",), files=("keep.php",), own=keep)
    python_of = dict(files=("keep.py",), own=keep)
    rust_of = dict(files=("server.rs",), load=loads.lines_of_server, needs=["rustc", "-V"], own="put|log|get|serve")
    chromium_argv = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir={scratch}/profile",
                     "--dump-dom", "file://{scratch}/page.html"]
    mixed = (Row("mixed frames", options=("--domain", "native")),
             Row("native frames", options=("--domain", "native", "--frames", "native")))
    return [
        Subject("Node", [node, "keep.js"], **node_of),
        Subject("Node --perf-basic-prof", [node, "--perf-basic-prof", "keep.js"], **node_of),
        Subject("Node server, --perf-basic-prof", [node, "--perf-basic-prof", "keep.js", "{port}"], load=loads.days, **node_of),
        Subject("Java", java_argv, **java_of),
        Subject("Java, frame pointers, perf map at exit", [java_argv[0], *jit, *java_argv[1:]], **java_of),
        Subject("Java server, frame pointers, jcmd Compiler.perfmap", [java, jit[0], *java_argv[1:], "{port}"], load=loads.days,
                map_names=["jcmd", "{pid}", "Compiler.perfmap"], **java_of),
        Subject("CPython 3.12", [python, "keep.py"], needs=[python, "-V"], rows=mixed, **python_of),
        Subject("CPython 3.12 -X perf", [python, "-X", "perf", "keep.py"],
                needs=[python, "-X", "perf", "-c", ""], rows=mixed, **python_of),
        Subject("Ruby", [ruby, "keep.rb"], **ruby_of),
        Subject("Ruby --yjit", [ruby, "--yjit", "keep.rb"], needs=[ruby, "--yjit", "-e", "1"], **ruby_of),
        Subject("Ruby --yjit-perf", [ruby, "--yjit", "--yjit-perf", "keep.rb"],
                needs=[ruby, "--yjit", "--yjit-perf", "-e", "1"], **ruby_of),
        Subject("PHP", [php, "-n", "keep.php"], **php_of),
        Subject("PHP, USE_ZEND_ALLOC=0", [php, "-n", "keep.php"], environment={"USE_ZEND_ALLOC": "0"},
                **php_of),
        Subject("R", [first("R"), "--vanilla", "--no-echo", "-f", "keep.R"], packages=("r-base-core",), files=("keep.R",), own=keep),
        Subject("Chromium", chromium_argv, packages=("chromium",), files=("page.html",),
                rows=tuple(Row(f"{what}, mappings", process, ("--domain", "mmap")) for what, process in
                           [("browser", ""), ("renderer", "--type=renderer"), ("network", "network.mojom")])),
        Subject("Chromium, page", [*chromium_argv[:5], "--remote-debugging-port={port}", "about:blank"], load=loads.pages,
                worker=renderer, ways=("attach",), packages=("chromium",), files=("page.html",)),
        Subject("Chromium, browser", [*chromium_argv[:5], "--remote-debugging-port={port}", "about:blank"], load=loads.pages,
                worker=lambda pid: pid, ways=("attach",), packages=("chromium",), files=("page.html",)),
        # The first start makes the profile, and then asks by its exit status to be started again.
        Subject("LibreOffice", [*office_argv, "{scratch}/letter.txt"],
                packages=("libreoffice-core-nogui", "libreoffice-writer-nogui"),
                prepare="for i in $(seq 200); do echo \"Line $i of a letter with some words\"; done > letter.txt; "
                f"{' '.join(office_argv)} {{scratch}}/letter.txt || true"),
        Subject("make", [first("make"), "-r", "-f", "keep.mk"], packages=("make",), files=("keep.mk",)),
        Subject("bc", [first("bc"), "-q", "keep.bc"], packages=("bc",), files=("keep.bc",), options=("--no-follow",)),
        Subject("sqlite3", [first("sqlite3"), ":memory:", ".read keep.sql"], packages=("sqlite3",), files=("keep.sql",)),
        Subject("git", [first("git"), "-C", "repository", "log", "--stat", "-p", "main"], packages=("git",),
                environment={"GIT_PAGER": "cat"}, prepare=GIT),
        Subject("PostgreSQL", [*as_postgres, f"{pg}/postgres", "-D", "{scratch}/data", "-k", "{scratch}", "-h", "127.0.0.1",
                               "-p", "{port}"],
                packages=("postgresql",), needs=[f"{pg}/postgres", "-V"], prepare=initdb, load=loads.postgres, stop=signal.SIGINT),
        Subject("nginx", [first("nginx", "/usr/sbin/nginx"), "-p", "{scratch}", "-e", "stderr", "-c", "nginx.conf"],
                packages=("nginx-light",), files=("nginx.conf",), load=loads.http, stop=signal.SIGQUIT,
                prepare="mkdir folder; for i in $(seq 500); do echo \"line $i of a text\"; done > text.txt"),
        Subject("redis", [first("redis-server"), "--bind", "127.0.0.1", "--port", "{port}", "--save", "", "--dir", "{scratch}"],
                packages=("redis-server",), load=loads.redis),
        Subject("Rust server, line tables only", ["{scratch}/server", "{port}"],
                prepare="rustc -O -C debuginfo=line-tables-only server.rs", **rust_of),
        Subject("Rust server, stripped", ["{scratch}/server", "{port}"],
                prepare="rustc -O -C strip=symbols server.rs", **rust_of),
    ]


GIT = """
git init -q repository
for i in $(seq 60); do
    printf 'commit refs/heads/main\\nmark :%d\\ncommitter A <a@b.c> %d +0000\\ndata 8\\nchange%02d\\n' $i $((1700000000 + i)) $i
    text=$(seq $i $((i * 3)))
    printf 'M 644 inline file%d.txt\\ndata %d\\n%s\\n' $((i % 7)) $((${#text} + 1)) "$text"
done | git -C repository fast-import --quiet
"""
