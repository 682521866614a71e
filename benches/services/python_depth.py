#!/usr/bin/env python3
"""What the depth of the Python stack costs: Heapline beside memray and tracemalloc, interleaved.

    python_depth.py [--python PROGRAM]... [--before DIR] [--rounds N] [--out FOLDER]

Each round runs benches/workloads/depth.py at each depth under each tool. --before is a folder with an earlier
aggregator. memray is left out where the interpreter does not have it. FOLDER gets runs.json and medians.md.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKLOAD = ROOT / "benches/workloads/depth.py"
DEPTHS = [3, 60, 240, 900]


def tools(python, before, scratch):
    aggregator = ROOT / "target/release/aggregator"
    heapline = [aggregator, "run", "-o", scratch / "a.zst"]
    found = {"alone": [python]}
    if before:
        found["Heapline before"] = [pathlib.Path(before) / "aggregator", *heapline[1:], "--", python]
    found["Heapline"] = [*heapline, "--", python]
    found["Heapline, sampled"] = [*heapline, "--sample", "512K", "--", python]
    if subprocess.run([python, "-c", "import memray"], capture_output=True).returncode == 0:
        found["memray, objects"] = [python, "-m", "memray", "run", "-q", "-f", "--trace-python-allocators", "-o",
                                    scratch / "m.bin"]
    found["tracemalloc, 1 frame"] = [python, "-X", "tracemalloc=1"]
    found["tracemalloc, 25 frames"] = [python, "-X", "tracemalloc=25"]
    return found


def measure(command, depth):
    ran = subprocess.run([*map(str, command), str(WORKLOAD), str(depth)], capture_output=True, text=True)
    numbers = [line for line in ran.stdout.splitlines() if line.replace(".", "", 1).isdigit()]
    if ran.returncode or not numbers:
        sys.exit(f"python_depth.py: {command}: status {ran.returncode}: {ran.stderr[-300:]}")
    return float(numbers[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", action="append")
    parser.add_argument("--before")
    parser.add_argument("--rounds", type=int, default=5)
    default = ROOT / "benches/runs" / datetime.date.today().isoformat() / "python-depth"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            for python in options.python or [sys.executable]:
                version = subprocess.run([python, "-c", "import platform; print(platform.python_version())"],
                                         capture_output=True, text=True, check=True).stdout.strip()
                for depth in DEPTHS:
                    for tool, command in tools(python, options.before, pathlib.Path(folder)).items():
                        runs.append({"round": round_, "python": version, "depth": depth, "tool": tool,
                                     "ms": measure(command, depth)})
                print(f"round {round_ + 1}: {version}", file=sys.stderr)
    processor = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"processor": processor, "kernel": platform.release(), "rounds": options.rounds, "runs": runs}
    (options.out / "runs.json").write_text(json.dumps(facts, indent=1) + "\n")
    lines = [f"200,000 lists of one element, milliseconds, medians of {options.rounds}, {processor}.", ""]
    lines += ["| Python | tool | " + " | ".join(f"depth {depth}" for depth in DEPTHS) + " |", "| --- " * (2 + len(DEPTHS)) + "|"]
    for version, tool in dict.fromkeys((run["python"], run["tool"]) for run in runs):
        of = lambda depth: [run["ms"] for run in runs if (run["python"], run["tool"], run["depth"]) == (version, tool, depth)]
        lines.append(f"| {version} | {tool} | " + " | ".join(f"{statistics.median(of(depth)):.1f}" for depth in DEPTHS) + " |")
    (options.out / "medians.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


main()
