"""What the load consists of: for each protocol one connection and one request, answered before the next is sent."""

import socket
import struct
import threading
import time

PATIENCE = 30


class Connection:
    """A connection over which `request()` asks for one thing and checks the answer."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = self.socket.makefile("rb")
        self.number = 0

    def read(self, count):
        data = self.input.read(count)
        if len(data) < count:
            raise ConnectionError("closed by the service")
        return data

    def line(self):
        line = self.input.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("closed by the service")
        return line.rstrip(b"\r\n")

    def close(self):
        self.input.close()
        self.socket.close()


class Http(Connection):
    def request(self):
        self.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, length, chunked = self.line(), 0, False
        while header := self.line():
            name, _, value = header.lower().partition(b":")
            if name == b"content-length":
                length = int(value)
            chunked |= name == b"transfer-encoding"
        while chunked and (length := int(self.line(), 16)):
            self.read(length + 2)
        self.read(2 if chunked else length)
        if b" 200 " not in status + b" ":
            raise ValueError(status)


class Redis(Connection):
    def request(self):
        self.number += 1
        key, value = f"key:{self.number % 5000}", "x" * (self.number % 300 + 1)
        command = f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n"
        self.socket.sendall(command.encode())
        if self.line() != b"+OK":
            raise ValueError("not OK")


class Lines(Connection):
    def ask(self, line):
        self.socket.sendall(line.encode() + b"\n")
        return self.line().decode()

    def request(self):
        if self.ask("work") != "ok":
            raise ValueError("not ok")


class Postgres(Connection):
    """The simple query protocol, without a password."""

    def __init__(self, port):
        super().__init__(port)
        startup = struct.pack("!i", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        self.socket.sendall(struct.pack("!i", len(startup) + 4) + startup)
        self.answer()
        self.pid = int(self.query("SELECT pg_backend_pid()")[0])

    def answer(self):
        """The first values of the rows that come before the backend is ready again."""
        rows = []
        while True:
            kind, length = struct.unpack("!ci", self.read(5))
            body = self.read(length - 4)
            if kind == b"E":
                raise ValueError(body)
            if kind == b"D":
                size = struct.unpack("!i", body[2:6])[0]
                rows.append(body[6 : 6 + size].decode())
            if kind == b"Z":
                return rows

    def query(self, text):
        body = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        return self.answer()

    def request(self):
        self.number += 1
        query = f"SELECT count(*), string_agg(md5(i::text), ',') FROM generate_series(1, {self.number % 200 + 50}) i"
        if self.query(query) != [str(self.number % 200 + 50)]:
            raise ValueError("a wrong count")


class Load:
    """Closed loops over some connections, each request noted as (begin, seconds, whether it was answered)."""

    def __init__(self, connections):
        self.requests = []
        self.errors = []
        self.running, self.open = True, threading.Event()
        self.open.set()
        self.idle = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self.loop, args=(c,)) for c in connections]
        for thread in self.threads:
            thread.start()

    def loop(self, connection):
        while self.running:
            if not self.open.is_set():
                self.idle.release()
                self.open.wait()
                continue
            begun = time.perf_counter()
            try:
                connection.request()
                answered = True
            except (OSError, ValueError) as error:
                answered = False
                self.errors.append(str(error))
            self.requests.append((begun, time.perf_counter() - begun, answered))
            if not answered:
                # What is broken stays so; it must not fill the list.
                time.sleep(0.1)

    def pause(self):
        """Returns when nobody waits for an answer any more."""
        self.open.clear()
        for _ in self.threads:
            self.idle.acquire()

    def resume(self):
        self.open.set()

    def stop(self):
        self.running = False
        self.resume()
        for thread in self.threads:
            thread.join()

    def figures(self, begin, end):
        """What the requests between two instants of `time.perf_counter` were like."""
        chosen = [request for request in self.requests if begin <= request[0] < end]
        latencies = sorted(seconds * 1e3 for _, seconds, answered in chosen if answered)
        at = lambda share: round(latencies[min(int(len(latencies) * share), len(latencies) - 1)], 3) if latencies else None
        return {
            "requests": len(chosen),
            "failed": sum(not answered for _, _, answered in chosen),
            "per_s": round(len(chosen) / (end - begin), 1),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "max_ms": at(1),
        }
