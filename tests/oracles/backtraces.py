"""Runs in gdb: at every malloc of FIRST to LAST bytes, prints the backtrace as gdb unwinds it.

    ALLOC size
    FRAME address-in-file module

from the most recent frame to the oldest, without malloc itself. Inlined functions are no frames here, nor are the
callers that gdb infers for tail calls: they have left the stack. Where a signal interrupted the code the address is one
more than the interrupted one, as all others are return addresses and stand behind their call.
"""

import os

import gdb

FIRST, LAST = os.environ["FIRST"], os.environ["LAST"]


def mappings():
    """(start, end, offset, path) of each mapped file."""
    for line in open("/proc/%d/maps" % gdb.selected_inferior().pid):
        fields = line.split()
        if len(fields) == 6:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end, int(fields[2], 16), fields[5]


def is_fixed(path):
    """Whether the file is linked to fixed addresses (ET_EXEC), which are then those in the file."""
    try:
        with open(path, "rb") as file:
            return file.read(18)[16:] == b"\x02\x00"
    except OSError:
        return False


def print_frames():
    found = list(mappings())
    bases = {path: start for start, _, offset, path in reversed(found) if offset == 0}
    bases.update((path, 0) for path in bases if is_fixed(path))
    print("ALLOC", int(gdb.parse_and_eval("$rdi")))
    frame = gdb.newest_frame().older()
    interrupted = False
    while frame:
        pc = frame.pc()
        path = next((path for start, end, _, path in found if start <= pc < end), None)
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME) and path is not None:
            print("FRAME %x %s" % (pc + interrupted - bases[path], path))
            interrupted = frame.type() == gdb.SIGTRAMP_FRAME
        frame = frame.older()


for setting in (
    "pagination off",
    "confirm off",
    "breakpoint pending on",
    "backtrace past-main on",
    "backtrace limit unlimited",
    "debuginfod enabled off",
):
    gdb.execute("set " + setting)
gdb.execute("handle all nostop noprint pass")
gdb.execute("tbreak __libc_start_main")
gdb.execute("run")
gdb.execute("break *__libc_malloc if $rdi >= %s && $rdi <= %s" % (FIRST, LAST))
while True:
    gdb.execute("continue")
    if not gdb.selected_inferior().pid:
        break
    print_frames()
