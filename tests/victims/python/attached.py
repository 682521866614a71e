"""Untouched before an attach. A byte on standard input is a step: k keeps 10,000 bytes, f forgets them, a prints CPython's
allocators. Threads run meanwhile, with and without the interpreter's lock."""
import ctypes
import os
import sys
import threading
import time

kept = None
stop = False


def busy():
    n = 0
    while not stop:
        n += sum(range(50))
        if n % 7 == 0:
            time.sleep(0.0001)


def allocators():
    words = (ctypes.c_void_p * 5)()
    found = []
    for domain in range(3):
        ctypes.pythonapi.PyMem_GetAllocator(domain, words)
        found.extend(words)
    return " ".join(f"{word or 0:x}" for word in found)


threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
allocators()
os.write(1, b".")
while True:
    step = os.read(0, 1)
    if not step:
        break
    if step == b"k":
        kept = bytes(10000)  # LINE kept
    elif step == b"f":
        kept = None
    elif step == b"a":
        os.write(1, allocators().encode() + b"\n")
    os.write(1, b".")
stop = True
for thread in threads:
    thread.join()
sys.exit(0)
