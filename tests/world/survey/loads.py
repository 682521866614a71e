"""Loads of servers: each yields the answers, and perhaps the process that gave them, while its connections are open.

A load calls `opened` when an attach is to begin.
"""

import base64
import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.request

from .runs import FILES, PATIENCE, wait_for


def http(port, opened):
    """Requests of several kinds, and connections that stay open."""
    opened(None)
    answers = []
    for path in ["/text.txt", "/text.txt?a=1", "/none", "/passed", "/old/text.txt", "/folder/"] * 20:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept-Encoding": "gzip"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answers.append((path, answer.status, answer.read().hex()))
        except urllib.error.HTTPError as error:
            answers.append((path, error.code, error.read().hex()))
    with contextlib.ExitStack() as stack:
        for number in range(30):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            connection.sendall(b"GET /text.txt HTTP/1.1\r\nHost: x\r\nX-Number: %d\r\n\r\n" % number)
            answers.append(connection.recv(12))
        yield answers, None


def redis(port, opened):
    """Values of every type."""
    opened(None)
    lines = [f"SET key:{n} {'x' * (n % 500)}" for n in range(3000)]
    lines += [f"HSET hash:{n % 50} field{n} {'y' * (n % 90)}" for n in range(3000)]
    lines += [f"RPUSH list:{n % 20} {'z' * (n % 300)}" for n in range(2000)]
    lines += [f"ZADD zset:{n % 20} {n} member{n}" for n in range(3000)]
    lines += [f"SADD set:{n % 20} member{n}" for n in range(3000)]
    lines += [f"XADD stream:{n % 5} {n + 1}-1 field {n}" for n in range(500)]
    lines += ["SUBSCRIBE news"]
    yield from talk(port, lines, b"\r\n", extra=lambda line: 3 if line.startswith("SUBSCRIBE") else 1)


def lines_of_server(port, opened):
    """Questions of `server.rs`, on two connections."""
    opened(None)
    lines = [f"put key{n} {'value' * (n % 40 + 1)}" for n in range(3000)]
    lines += [f"log some words of line {n}" for n in range(2000)]
    lines += [f"get key{n}" for n in range(0, 3000, 100)]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(contextlib.contextmanager(talk)(port, part, b"\n")) for part in (lines, lines[::7])]
        yield [answers for answers, _ in parts], None


def talk(port, lines, end, extra=lambda line: 1):
    """One line of answer, or `extra` lines, for each line; the connection stays open."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        with connection.makefile("rwb") as stream:
            stream.write(b"".join(line.encode() + end for line in lines))
            stream.flush()
            yield [stream.readline().decode() for line in lines for _ in range(extra(line))], None


def postgres(port, opened):
    """A session with a cursor, prepared statements, a function and a temporary table, which stays open."""
    session = subprocess.Popen(
        ["psql", "-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(sql):
        session.stdin.write(f"{sql};\n\\echo end\n")
        session.stdin.flush()
        return list(iter(lambda: session.stdout.readline().strip(), "end"))

    try:
        backend = int(ask("select pg_backend_pid()")[0])
        opened(backend)
        answers = [ask(sql) for sql in [
            "create table if not exists orders (id int primary key, customer text, total numeric)",
            "truncate orders",
            "insert into orders select i, 'customer ' || i % 100, i * 1.5 from generate_series(1, 20000) i",
            "create temporary table best as select customer, sum(total) from orders group by customer",
            "prepare find as select * from orders where customer = $1 order by total desc limit 3",
            "prepare sums as select customer, sum(total) over (order by customer) from orders limit $1",
            "execute find('customer 7')",
            "execute sums(3)",
            "create or replace function sum_of(c text) returns numeric language plpgsql as "
            "$$ declare s numeric := 0; r record; begin for r in select * from orders where customer = c loop "
            "s := s + r.total; end loop; return s; end $$",
            "select sum_of('customer 9')",
            "select a.customer, count(*) from orders a join orders b using (customer) where a.id < 500 group by 1 order by 2, 1 limit 3",
            "begin",
            "declare c cursor for select * from orders order by total, customer",
            "fetch 3 from c",
        ]]
        yield answers, backend
    finally:
        session.stdin.close()
        session.stdout.close()
        session.wait()


def days(port, opened):
    """Days of `keep.js` and `Keep.java`: the code is compiled before the attach, as in a server that has run for long."""
    with contextlib.contextmanager(talk)(port, ["day"] * 40, b"\n") as (before, _):
        pass
    opened(None)
    with contextlib.contextmanager(talk)(port, ["day"] * 10, b"\n") as (after, _):
        yield before + after, None


def pages(port, opened):
    """Pages of Chromium, asked for on its debugging port."""
    def ask(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/{path}", method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def titles():
        return sorted(page["title"] for page in ask("list") if page["type"] == "page")

    wait_for("a page", titles)
    opened(None)
    wanted = ["kept 1000"] * 3
    for _ in wanted:
        ask(f"new?data:text/html;base64,{base64.b64encode((FILES / 'page.html').read_bytes()).decode()}", "PUT")
    yield wait_for("the pages", lambda: [title for title in titles() if title in wanted] == wanted and titles()), None
