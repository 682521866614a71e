"""Functions of one line: of the module, and as roots of threads."""
import _thread
import os
import time

kept = []
def worker(): kept.append(bytes(800_000))
def second(): kept.append(bytes(700_000))
pair = [lambda: kept.append(bytes(300_000)), (lambda: kept.append(bytes(200_000)))]; one, two = pair
for function in worker, second:
    before = len(kept)
    _thread.start_new_thread(function, ())
    while len(kept) == before:
        time.sleep(0.01)
def outer(): (kept.append(bytes(100_000)), inner())
def inner(): kept.append(bytes(90_000))
outer()
for function in pair: function()
os._exit(0)
