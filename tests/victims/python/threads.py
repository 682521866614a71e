"""Threads that allocate at once, hand over and free; some blocks without the interpreter's lock."""
import hashlib
import os
import queue
import threading
import zlib

EACH, THREADS = 2000, 6
handed = queue.Queue()
kept = []


def maker():
    mine = []
    for i in range(EACH):
        mine.append(bytearray(300))  # line: kept
        handed.put(bytearray(301))
        if i % 50 == 0:
            zlib.compress(bytes(100_000))
            hashlib.sha256(bytes(100_000)).digest()
    kept.append(mine)


def taker():
    for _ in range(EACH * THREADS):
        handed.get()


threads = [threading.Thread(target=maker) for _ in range(THREADS)] + [threading.Thread(target=taker)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os._exit(0)
