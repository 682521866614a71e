"""A child that goes on in Python, and a parent that does."""
import os

before = bytearray(200_000)  # line: before
child = os.fork()
if child == 0:
    mine = [bytearray(1000) for _ in range(1000)]
    os._exit(7 if len(mine) == 1000 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
after = [bytearray(2000) for _ in range(50)]  # line: after
os._exit(0)
