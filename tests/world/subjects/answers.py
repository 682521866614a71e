import collections, decimal, json, sys, threading
print("ready", flush=True)
for line in sys.stdin:
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(sum(range(n)))) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    count = collections.Counter(line.strip())
    print(json.dumps(count, sort_keys=True), decimal.Decimal(2).sqrt(), sorted(results), flush=True)
