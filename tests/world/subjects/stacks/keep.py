"""Memory of malloc below Python: large objects, buffers, and libraries in C."""

import hashlib
import json
import re
import sqlite3
import zlib

kept = []


def keep_bytes(n):
    kept.append(bytes(10_000 + n))


def keep_array(n):
    kept.append(bytearray(5000 + n))


def keep_list(n):
    kept.append([n] * 2000)


def keep_dict(n):
    kept.append({i: i for i in range(500 + n % 7)})


def keep_text(n):
    kept.append("text " * (1000 + n))


def keep_json(n):
    kept.append(json.loads(json.dumps(["some text " * 100, list(range(200))])))


def keep_stream():
    kept.append(zlib.compressobj())


def keep_hash(n):
    kept.append(hashlib.sha256(b"text %d" % n))


def keep_table():
    table = sqlite3.connect(":memory:")
    table.execute("create table orders (id integer primary key, customer text)")
    table.executemany("insert into orders (customer) values (?)", [("somebody",)] * 200)
    kept.append(table)


def order(n):
    for keep in (keep_bytes, keep_array, keep_list, keep_dict, keep_text):
        keep(n)
    if n % 20 == 0:
        keep_json(n)
        keep_stream()
        keep_hash(n)
    if n % 100 == 0:
        keep_table()
        re.compile(f"order (\\d+) of {n}")


def day(first):
    for n in range(first, first + 100):
        order(n)


for first in range(0, 1000, 100):
    day(first)
print("kept", len(kept))
