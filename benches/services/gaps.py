#!/usr/bin/env python3
"""Greatest time between two allocations of a busy program, with and without snapshots.

usage: gaps.py AGGREGATOR... [--live N,N...] [--rounds N]

For each number of live blocks and each AGGREGATOR (and alone), interleaved: the greatest gap within
a second without a snapshot, and the greatest gap during one `ctl snapshot`, in milliseconds; the
time of the snapshot; pairs of free and malloc a second; the greatest memory of the aggregator.
Prints one JSON object a line, and the medians at the end.
"""
import argparse, json, os, pathlib, statistics, subprocess, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent


def ask(program):
    program.stdin.write("\n"), program.stdin.flush()
    pairs, gap = program.stdout.readline().split()
    return int(pairs), int(gap) / 1e6


def second(program):
    ask(program)
    time.sleep(1)
    return ask(program)


def highest(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def run(binary, live, aggregator, folder):
    snap = f"{folder}/gaps.snap.zst"
    command = [aggregator, "run", "-o", snap, "--"] if aggregator else []
    started = subprocess.Popen([*command, binary, str(live)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    assert started.stdout.readline() == "ready\n"
    time.sleep(3)  # The table catches up with the first allocations.
    pairs, quiet = second(started)
    row = {"live": live, "program": aggregator or "alone", "pairs_s": pairs, "quiet_ms": quiet}
    if aggregator:
        child = pathlib.Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()[0]
        ask(started)
        begun = time.monotonic()
        subprocess.run([aggregator, "ctl", child, "snapshot", "-o", f"{folder}/one.snap.zst"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        row["snapshot_s"] = time.monotonic() - begun
        row["pairs_during"], row["snapshot_ms"] = ask(started)
        row["memory_mib"] = highest(started.pid)
    started.stdin.close()
    started.wait()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aggregators", nargs="+")
    parser.add_argument("--live", default="1000000,10000000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/gaps"
        subprocess.run(["gcc", "-O2", "-o", binary, HERE.parent / "workloads/gaps.c"], check=True)
        for live in map(int, options.live.split(",")):
            for _ in range(options.rounds):
                for aggregator in ["", *map(os.path.abspath, options.aggregators)]:
                    rows.append(run(binary, live, aggregator, folder))
                    print(json.dumps(rows[-1]), flush=True)
    keys = ["pairs_s", "quiet_ms", "snapshot_ms", "snapshot_s", "memory_mib"]
    for live, program in dict.fromkeys((row["live"], row["program"]) for row in rows):
        of = [row for row in rows if (row["live"], row["program"]) == (live, program)]
        middle = {key: statistics.median(row[key] for row in of) for key in keys if key in of[0]}
        print(f"{live} {program}:", ", ".join(f"{key} {value:.4g}" for key, value in middle.items()))


if __name__ == "__main__":
    main()
