"""The examples of tracemalloc's documentation, as they are written there."""
import linecache
import os
import tracemalloc


def display_top(snapshot, key_type='lineno', limit=10):
    snapshot = snapshot.filter_traces((
        tracemalloc.Filter(False, "<frozen importlib._bootstrap>"),
        tracemalloc.Filter(False, "<unknown>"),
    ))
    top_stats = snapshot.statistics(key_type)

    print("Top %s lines" % limit)
    for index, stat in enumerate(top_stats[:limit], 1):
        frame = stat.traceback[0]
        print("#%s: %s:%s: %.1f KiB"
              % (index, frame.filename, frame.lineno, stat.size / 1024))
        line = linecache.getline(frame.filename, frame.lineno).strip()
        if line:
            print('    %s' % line)

    other = top_stats[limit:]
    if other:
        size = sum(stat.size for stat in other)
        print("%s other: %.1f KiB" % (len(other), size / 1024))
    total = sum(stat.size for stat in top_stats)
    print("Total allocated size: %.1f KiB" % (total / 1024))


tracemalloc.start()

# Example code: compute a sum with a large temporary list
large_sum = sum(list(range(100000)))

first_size, first_peak = tracemalloc.get_traced_memory()

tracemalloc.reset_peak()

# Example code: compute a sum with a small temporary list
small_sum = sum(list(range(1000)))

second_size, second_peak = tracemalloc.get_traced_memory()

print(f"{first_size=}, {first_peak=}")
print(f"{second_size=}, {second_peak=}")
tracemalloc.stop()

tracemalloc.start()
employee_records = [{"id": emp_id, "name": f"Employee_{emp_id}", "salary": 50000 + emp_id * 100} for emp_id in range(10000)]
snapshot = tracemalloc.take_snapshot()
top_stats = snapshot.statistics('lineno')
print("[ Top 10 ]")
for stat in top_stats[:10]:
    print(stat)
display_top(snapshot, limit=1)

snapshot1 = tracemalloc.take_snapshot()
transaction_log = []
for transaction_id in range(5000):
    transaction_log.append({"id": transaction_id, "amount": transaction_id * 12.5, "status": "pending"})
snapshot2 = tracemalloc.take_snapshot()
top_stats = snapshot2.compare_to(snapshot1, 'lineno')
print("[ Top 1 difference ]")
for stat in top_stats[:1]:
    print(stat)

snapshot2.dump("dumped.snap")
snapshot3 = tracemalloc.Snapshot.load("dumped.snap")
os.unlink("dumped.snap")
assert snapshot3.statistics('traceback') == snapshot2.statistics('traceback')
tracemalloc.stop()
assert not tracemalloc.is_tracing()
