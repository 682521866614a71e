"""A pool of forked workers, and programs that subprocess starts."""
import multiprocessing
import os
import subprocess
import sys

kept = []


def work(n):
    kept.append(bytearray(10_000 + n))  # line: worker
    return os.getpid()


if __name__ == "__main__":
    inherited = [bytearray(3000) for _ in range(50)]  # line: inherited
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pids = set(pool.map(work, range(300), chunksize=10))
        pool.close()
        pool.join()
    assert 1 <= len(pids) <= 3
    for pid in pids:
        print("worker", pid)
    code = "kept = [bytearray(7000) for _ in range(20)]; print(sum(map(len, kept)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, close_fds=True, check=True)
    assert done.stdout == b"140000\n"
