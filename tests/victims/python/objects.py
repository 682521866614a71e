"""Small objects of many kinds: recursion, dictionaries, texts, floats, classes, sorting, JSON."""
import json


def depth(n, row):
    return [{"i": i, "s": "x" * (i % 50), "f": i * 1.5} for i in range(row)] if n == 0 else depth(n - 1, row)


class Node:
    def __init__(self, value):
        self.value, self.left, self.right = value, None, None

    def insert(self, value):
        side = "left" if value < self.value else "right"
        child = getattr(self, side)
        if child is None:
            setattr(self, side, Node(value))
        else:
            child.insert(value)


kept = []
for turn in range(5):
    rows = depth(turn, 300)
    text = json.dumps(rows)
    again = json.loads(text)
    kept.append(sorted(again, key=lambda row: (row["f"], row["s"]))[: 10 * turn])
    root = Node(turn)
    for value in range(200):
        root.insert(value * 7919 % 1009)
    kept.append(root)
    total = sum(float(row["i"]) for row in again)
