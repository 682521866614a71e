"""What `same.py` compares."""


def deep(n):
    return bytes(n) if n == 0 else bytes(n) + deep(n - 1)


def keep(kept, i):
    kept["key %d" % i] = bytearray(i * 3)
    grow(kept, i)


def grow(kept, i):
    if i % 3 == 0:
        kept["key %d" % i].extend(b"x" * i)


kept = {}
for i in range(5000):
    keep(kept, i)
for i in range(0, 5000, 7):
    del kept["key %d" % i]
joined = deep(200)
big = bytearray(3_000_000)
text = "".join(kept)
