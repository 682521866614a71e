#!/usr/bin/env python3
"""Attaches an aggregator to services under load, and measures what their clients notice. See README.md."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time

import clients
import services

HERE = pathlib.Path(__file__).resolve().parent
STOPPED = re.compile(r"stopped for ([0-9.]+) ms")
#: The load rests so long before the aggregator detaches, so that the snapshot shows a state that the service knows.
REST = 2


class Aggregator:
    """`aggregator --attach`, with its lines on standard error as they come."""

    def __init__(self, programs, pid, duration, snapshot):
        self.program, self.pid = programs / "aggregator", pid
        command = [self.program, "--attach", str(pid), "--duration", str(duration), "-o", snapshot]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(map(str.strip, self.process.stderr)))
        self.reader.start()

    def wait_until_attached(self):
        while self.process.poll() is None:
            answer = subprocess.run([self.program, "ctl", str(self.pid), "stats"], capture_output=True)
            if answer.returncode == 0:
                return True
            time.sleep(0.01)
        return False

    def wait(self):
        status = self.process.wait()
        self.reader.join()
        return status

    def stopped_ms(self):
        found = [STOPPED.search(line) for line in self.lines]
        return next((float(match[1]) for match in found if match), None)


def live_in_table(programs, snapshot, source):
    """Blocks and bytes of the service's second generation (odd sizes), as the snapshot has them."""
    options = ["--by", "size", "--filter", f"*/{source}", "--domain", "native", "--limit", "0", "--format", "json"]
    report = subprocess.run([programs / "report", snapshot, *options], capture_output=True, check=True)
    odd = [row for row in json.loads(report.stdout)["stats"] if row["key"] % 2 == 1]
    return [sum(row["count"] for row in odd), sum(row["size"] for row in odd)]


def measure(kind, programs, seconds, environment):
    """Before, during and after an attach; what went wrong is part of the answer."""
    with tempfile.TemporaryDirectory(prefix="heapline-services-", dir="/var/tmp") as folder:
        folder = pathlib.Path(folder)
        service = kind(folder, environment)
        try:
            load = clients.Load(service.connections)
            try:
                return attach(service, load, programs, seconds, folder)
            finally:
                load.stop()
        finally:
            service.stop()


def attach(service, load, programs, seconds, folder):
    pid, snapshot = service.target(), folder / "service.snap.zst"
    time.sleep(1)
    begun = time.perf_counter()
    time.sleep(seconds)
    attaching = time.perf_counter()
    aggregator = Aggregator(programs, pid, seconds + REST, snapshot)
    is_attached = aggregator.wait_until_attached()
    attached = time.perf_counter()
    control = service.connect() if service.knows_live and is_attached else None
    if control:
        control.ask("generation")
    time.sleep(max(0, seconds - (time.perf_counter() - attaching)))
    resting = time.perf_counter()
    result = {"threads": len(os.listdir(f"/proc/{pid}/task"))}
    if control:
        load.pause()
        result["live_known"] = [int(word) for word in control.ask("live").split()]
    status = aggregator.wait()
    load.resume()
    detached = time.perf_counter()
    time.sleep(seconds)
    ended = time.perf_counter()
    if control:
        control.close()
    if status == 0 and control:
        result["live_in_table"] = live_in_table(programs, snapshot, service.knows_live)
        result["is_table_right"] = result["live_in_table"] == result["live_known"]
    return {
        **result,
        "attached": is_attached and status == 0,
        "said": aggregator.lines,
        "attach_ms": round((attached - attaching) * 1e3, 1),
        "stopped_ms": aggregator.stopped_ms(),
        "before": load.figures(begun, attaching),
        "during": load.figures(attaching, resting),
        "after": load.figures(detached, ended),
        "errors": sorted(set(load.errors))[:5],
        "is_alive": pathlib.Path(f"/proc/{pid}").exists(),
    }


def shown(result):
    if "error" in result:
        return result["error"]
    stopped = "-" if result["stopped_ms"] is None else f"{result['stopped_ms']} ms"
    phases = [result[phase] for phase in ("before", "during", "after")]
    failed = "/".join(str(phase["failed"]) for phase in phases)
    p99 = "/".join(str(phase["p99_ms"]) for phase in phases)
    most = "/".join(str(phase["max_ms"]) for phase in phases)
    table = {True: ", table right", False: ", TABLE WRONG"}.get(result.get("is_table_right"), "")
    attached = "" if result["attached"] else f"NOT ATTACHED ({' '.join(result['said'])}); "
    return f"{attached}stopped {stopped}, failed {failed}, p99 {p99} ms, longest {most} ms{table}"


def machine(programs):
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    version = subprocess.run([programs / "aggregator", "--version"], capture_output=True, text=True).stdout.strip()
    return {"cpu": model and model[1], "cores": os.cpu_count(), "kernel": platform.release(), "aggregator": version}


def main():
    names = [kind.name for kind in services.ALL]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", nargs="*", metavar="SERVICE", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--programs", type=pathlib.Path, default=HERE.parents[1] / "target/release", help="folder of aggregator and report")
    parser.add_argument("--seconds", type=float, default=10, help="length of each of the three phases")
    parser.add_argument("--preload", type=pathlib.Path, help="start the services with this library, for an aggregator that brings none in")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results; default benches/runs/<date>")
    parser.add_argument("--install", action="store_true", help="install what the services need by apt-get, and end")
    options = parser.parse_args()
    if unknown := set(options.services) - set(names):
        parser.error(f"no service is called {', '.join(unknown)}")
    chosen = [kind for kind in services.ALL if not options.services or kind.name in options.services]
    if options.install:
        packages = [package for kind in chosen for package in kind.packages]
        return subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *packages]).returncode
    environment = {"LD_PRELOAD": str(options.preload.resolve())} if options.preload else {}
    results = {}
    for kind in chosen:
        try:
            results[kind.name] = measure(kind, options.programs.resolve(), options.seconds, environment)
        except (OSError, ValueError, IndexError, subprocess.CalledProcessError) as error:
            results[kind.name] = {"error": f"cannot be measured: {error!r}"}
        print(f"{kind.name}: {shown(results[kind.name])}", flush=True)
    out = options.out or HERE.parent / "runs" / datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(options.programs), "seconds": options.seconds, "preloaded": bool(options.preload), "services": results}
    (out / "services.json").write_text(json.dumps(document, indent=1) + "\n")
    return int(any("error" in result or not result["attached"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
