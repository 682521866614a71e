"""Interpreters with locks of their own, on threads of their own, at the same time."""
import threading
from concurrent import interpreters

CODE = """
def leaf(n):
    return [bytearray(200) for _ in range(n)]
import json
for _ in range(20):
    kept = leaf(500)
    text = json.dumps([{"a": i} for i in range(100)])
"""

made = [interpreters.create() for _ in range(4)]
threads = [threading.Thread(target=interpreter.exec, args=(CODE,)) for interpreter in made]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for interpreter in made:
    interpreter.close()
