"""`python -m heapline`: the programs of the wheel, with this interpreter where a Python program is meant.

The process becomes the program, so streams, signals and exit status are its own.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn, Optional

from heapline._platform import program, unsupported

USAGE = """usage: python -m heapline run [-o FILE] [--nframe N] ... SCRIPT.py | -m MODULE | -c CODE | -- COMMAND [ARGS ...]
       python -m heapline attach PID [-o FILE] [--duration SECONDS] ...
       python -m heapline ctl PID stats|snapshot|reset-peak|clear-traces|lookup ADDR|leaks|mark TEXT|set NAME=VALUE|pause|resume|detach
       python -m heapline report SNAPSHOT [--at peak] [--by traceback] [--source] ...

run     trace a Python program, or any command, from its first instruction to its end
attach  trace a process that runs already, until it ends, Ctrl-C or the duration
ctl     ask the aggregator of a traced process
report  statistics of a snapshot, by line, file or traceback

"python -m heapline run --help" and so on list all options.
"""

# Options of `aggregator run` that take the next argument, unless they have a "=".
_VALUED = {"-o", "--output", "--nframe", "--max-target-memory", "--sample", "--samples-per-second", "--history-memory"}


def command_line(arguments: list[str]) -> Optional[list[str]]:
    """The program to become, by its name, and its arguments; None where the usage is to be shown."""
    if not arguments:
        return None
    what, rest = arguments[0], arguments[1:]
    if what == "run":
        return ["aggregator", "run", *_run(rest)]
    if what == "attach":
        return ["aggregator", "--attach", *rest] if rest[:1] not in (["--help"], ["-h"], []) else ["aggregator", "--help"]
    if what == "ctl":
        return ["aggregator", "ctl", *rest]
    if what == "report":
        return ["report", *rest]
    return None


def _run(arguments: list[str]) -> list[str]:
    """What of the arguments is the aggregator's, and the command behind it."""
    options: list[str] = []
    rest = list(arguments)
    while rest:
        if rest[0] == "--":
            return [*options, *rest]
        if rest[0] in ("-m", "-c"):
            return [*options, "--", sys.executable, *rest]
        if not rest[0].startswith("-"):
            is_python = rest[0].endswith((".py", ".pyc", ".pyz")) or os.path.isdir(rest[0])
            return [*options, "--", *([sys.executable] if is_python else []), *rest]
        taken = 2 if rest[0] in _VALUED else 1
        options += rest[:taken]
        del rest[:taken]
    return options


def main() -> NoReturn:
    """Becomes the program; exit status 2 for wrong usage."""
    arguments = sys.argv[1:]
    command = command_line(arguments)
    if command is None:
        is_help = arguments[:1] in (["--help"], ["-h"])
        (sys.stdout if is_help else sys.stderr).write(USAGE)
        sys.exit(0 if is_help else 2)
    reason = unsupported() if command[0] == "aggregator" else None
    if reason is not None:
        sys.exit(f"heapline: this interpreter cannot be traced: {reason}")
    try:
        path = program(command[0])
    except RuntimeError as error:
        sys.exit(str(error))
    os.execv(path, command)


if __name__ == "__main__":
    main()
