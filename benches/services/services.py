"""The services: what each needs, how it is started, and which of its processes is attached to."""

import glob
import os
import pathlib
import shutil
import socket
import subprocess
import time

import clients

VICTIMS = pathlib.Path(__file__).parent / "victims"
PATIENCE = 30


def free_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


class Service:
    """A started service. `environment` reaches the service itself and nothing that only starts it."""

    name, packages, protocol, connections = "", (), clients.Http, 4
    #: Source whose lines allocate what the service knows to be live.
    knows_live = None

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self.port, self.process = None, None
        self.start()
        self.connections = [self.connect() for _ in range(self.connections)]

    def spawn(self, *command, **options):
        environment = {**os.environ, **self.environment}
        log = open(self.folder / "service.log", "w")
        self.process = subprocess.Popen(command, env=environment, stderr=log, **{"stdout": log, **options})

    def spawn_speaking(self, *command):
        """Starts what prints `port N` when it listens."""
        self.spawn(*command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().split()[1])

    def connect(self):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.protocol(self.port)
            except (OSError, ValueError):
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def target(self):
        return self.process.pid

    def stop(self):
        for connection in self.connections:
            connection.close()
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Redis(Service):
    name, packages, protocol = "redis", ("redis-server",), clients.Redis

    def start(self):
        self.port = free_port()
        self.spawn("redis-server", "--save", "", "--appendonly", "no", "--port", str(self.port), cwd=self.folder)


class Nginx(Service):
    """One worker, which is attached to; a preloaded collector stays with the first process, so then there is no other."""

    name, packages = "nginx", ("nginx-light",)

    def start(self):
        self.port, folder = free_port(), self.folder
        (folder / "index.html").write_text("x" * 4000)
        os.chmod(folder, 0o755)
        self.is_alone = "LD_PRELOAD" in self.environment
        (folder / "nginx.conf").write_text(f"""
            daemon off; pid {folder}/nginx.pid; worker_processes 1; error_log {folder}/error.log;
            master_process {"off" if self.is_alone else "on"};
            events {{ worker_connections 64; }}
            http {{
                access_log off; gzip on; gzip_min_length 1; keepalive_requests 100000000;
                server {{ listen 127.0.0.1:{self.port}; root {folder}; }}
            }}""")
        self.spawn("nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"))

    def target(self):
        if self.is_alone:
            return self.process.pid
        pid = self.process.pid
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class Postgres(Service):
    """One connection, and its own process, which is attached to."""

    name, packages, protocol, connections = "postgresql", ("postgresql",), clients.Postgres, 1

    def start(self):
        bin, data = pathlib.Path(max(glob.glob("/usr/lib/postgresql/*/bin"))), self.folder / "data"
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if as_user:
            shutil.chown(self.folder, "postgres")
        initdb = [*as_user, bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)
        self.port = free_port()
        options = ["-D", data, "-p", str(self.port), "-k", self.folder, "-h", "127.0.0.1"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        self.environment = {}
        self.spawn(*as_user, "env", *variables, bin / "postgres", *options, cwd=self.folder)

    def target(self):
        return self.connections[0].pid


class Python(Service):
    name, packages = "python", ("python3",)

    def start(self):
        self.spawn_speaking("python3", VICTIMS / "service.py")


class Node(Service):
    name, packages = "node", ("nodejs",)

    def start(self):
        self.spawn_speaking("node", VICTIMS / "service.js")


class Java(Service):
    name, packages = "java", ("default-jdk-headless",)

    def start(self):
        classes = self.folder / "classes"
        subprocess.run(["javac", "-d", classes, VICTIMS / "Service.java"], check=True)
        self.spawn_speaking("java", "-cp", classes, "Service")


class Rust(Service):
    name, packages, protocol, knows_live = "rust", (), clients.Lines, "live.rs"

    def start(self):
        program = self.folder / "live"
        subprocess.run(["rustc", "--edition", "2021", "-O", "-g", "-o", program, VICTIMS / "live.rs"], check=True)
        self.spawn_speaking(program)


class Threads(Service):
    """200 threads, of which twenty are busy and the others wait in accept."""

    name, packages, protocol, connections, knows_live = "c-200-threads", ("gcc",), clients.Lines, 20, "live.c"

    def start(self):
        program = self.folder / "live"
        subprocess.run(["gcc", "-O2", "-g", "-pthread", "-o", program, VICTIMS / "live.c"], check=True)
        self.spawn_speaking(program)


ALL = [Redis, Nginx, Postgres, Python, Node, Rust, Java, Threads]
