"""Imports modules, then evaluates an expression once for each line of standard input."""

import sys

_, modules, work = sys.argv
exec(f"import {modules}")
print("ready", flush=True)
for _ in sys.stdin:
    print(repr(eval(work)), flush=True)
