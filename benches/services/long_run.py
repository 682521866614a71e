"""What the history costs in a long run: a service under a steady load, traced with the history and without, side by side.

Each service gets requests at a fixed rate for the given time. The rest of the machine may be busy: what counts is the
processor time of the aggregator and of the service, the memory of the aggregator, and the size of the snapshot.

    python3 benches/services/long_run.py --minutes 30 --out benches/runs/TODAY/long
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import clients
import services

ROOT = pathlib.Path(__file__).parents[2]
PYTHON_SERVICE = """
import collections, http.server, json, socketserver
kept, cache = [], collections.OrderedDict()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", 1 << 16, True
    count = 0
    def do_GET(self):
        Handler.count += 1
        rows = [{"id": n, "name": f"row {n}", "value": n * 1.5} for n in range(40)]
        body = json.dumps(rows).encode()
        cache[Handler.count % 3000] = body
        if Handler.count % 10 == 0:
            kept.append(bytes(100))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
server = Server(("127.0.0.1", 0), Handler)
print("port", server.server_port, flush=True)
server.serve_forever()
"""


def ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Run:
    """A traced service under load."""

    def __init__(self, kind, options, folder, aggregator):
        self.name, self.snapshot = f"{kind}{'-no-history' if options else ''}", None
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.snapshot = self.folder / "end.snap.zst"
        traced = [aggregator, "run", "--no-follow", *options, "-o", self.snapshot, "--"]
        if kind == "redis":
            self.port, protocol = services.free_port(), clients.Redis
            command = ["redis-server", "--save", "", "--appendonly", "no", "--port", str(self.port)]
            self.process = subprocess.Popen([*traced, *command], cwd=self.folder, stdout=subprocess.DEVNULL)
        else:
            program = self.folder / "service.py"
            program.write_text(PYTHON_SERVICE)
            command = [sys.executable, program]
            self.process = subprocess.Popen([*traced, *command], cwd=self.folder, stdout=subprocess.PIPE, text=True)
            self.port, protocol = int(self.process.stdout.readline().split()[1]), clients.Http
        end = time.monotonic() + 30
        while True:
            try:
                self.connection = protocol(self.port)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.target = int(children.read_text().split()[0])
        self.samples, self.requests = [], 0

    def load(self, rate, until):
        begun, done = time.monotonic(), 0
        while (now := time.monotonic()) < until:
            due = int((now - begun) * rate)
            for _ in range(min(due - done, 200)):
                self.connection.request()
                done += 1
            self.requests = done
            time.sleep(0.02)

    def sample(self, begun):
        self.samples.append(
            {
                "seconds": round(time.monotonic() - begun, 1),
                "requests": self.requests,
                "aggregator_cpu": round(ticks(self.process.pid), 2),
                "target_cpu": round(ticks(self.target), 2),
                "aggregator_rss": resident(self.process.pid),
                "target_rss": resident(self.target),
            }
        )

    def end(self):
        self.connection.close()
        os.kill(self.target, 15)
        self.process.wait(60)
        return {"samples": self.samples, "snapshot_bytes": self.snapshot.stat().st_size}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=300, help="requests a second and service")
    parser.add_argument("--aggregator", type=pathlib.Path, default=ROOT / "target/release/aggregator")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    runs = [
        Run(kind, history, options.out, options.aggregator)
        for kind in ("redis", "python")
        for history in ([], ["--no-history"])
    ]
    begun = time.monotonic()
    until = begun + options.minutes * 60
    threads = [threading.Thread(target=run.load, args=(options.rate, until)) for run in runs]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        for run in runs:
            run.sample(begun)
        time.sleep(10)
    for thread in threads:
        thread.join()
    for run in runs:
        run.sample(begun)
    (options.out / "long.json").write_text(json.dumps({run.name: run.end() for run in runs}, indent=1))


main()
