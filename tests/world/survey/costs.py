"""What names cost: sizes and times."""

import contextlib
import os
import pathlib
import re
import select
import statistics
import tempfile
import time

from .runs import Failure, Scratch, children, wait_for
from .subjects import Subject, first, subjects


def cxx(count):
    """A C++ file of many instantiations of the standard library's templates."""
    headers = "algorithm functional iostream list map memory optional set string tuple unordered_map variant vector".split()
    lines = [f"#include <{header}>" for header in headers]
    for n in range(count):
        lines += [f"""
struct Order{n} {{ int id; std::string customer; std::vector<std::pair<int, std::string>> items;
    bool operator<(const Order{n} &other) const {{ return std::tie(id, customer) < std::tie(other.id, other.customer); }} }};
std::size_t use{n}(std::istream &in) {{
    std::map<int, Order{n}> orders; std::unordered_map<std::string, std::shared_ptr<Order{n}>> by_name; std::set<Order{n}> all;
    std::variant<int, std::string, Order{n}> last; std::list<std::optional<Order{n}>> queue;
    std::function<bool(const Order{n} &)> wanted = [](const Order{n} &order) {{ return order.id % {n + 2} == 0; }};
    for (Order{n} order; in >> order.id >> order.customer;) {{
        orders.emplace(order.id, order); by_name[order.customer] = std::make_shared<Order{n}>(order);
        all.insert(order); last = order; queue.emplace_back(order); }}
    std::vector<Order{n}> sorted; for (auto &[id, order] : orders) if (wanted(order)) sorted.push_back(order);
    std::stable_sort(sorted.begin(), sorted.end(), [](auto &a, auto &b) {{ return a.items.size() < b.items.size(); }});
    return std::visit([](auto &value) {{ return sizeof value; }}, last) + sorted.size() + by_name.size() + all.size(); }}"""]
    return "\n".join(lines) + "\n"


def cost_subjects(instances):
    """The subjects of --costs: cc1plus on a file of many instantiations, and some of the survey."""
    cc1plus = first("/usr/lib/gcc/x86_64-linux-gnu/*/cc1plus", "cc1plus")
    prepare = f"cat > big.cpp <<'END'\n{cxx(instances)}END\ng++ -std=c++20 -E big.cpp -o big.ii"
    compiled = Subject("cc1plus", [cc1plus, "-quiet", "-std=c++20", "-O2", "-fpreprocessed", "big.ii", "-o", "big.s"],
                       packages=("g++",), prepare=prepare)
    wanted = {"Chromium", "Node", "LibreOffice"}
    return [compiled] + [subject for subject in subjects() if subject.name in wanted]


def cost(subject, base, heapline, rounds):
    """Size and times of the subject's snapshots: medians of several rounds."""
    cases = [cost_once(subject, base, heapline) for _ in range(rounds)]
    middle = {key: statistics.median(case[key] for case in cases) for key in cases[0]}
    yield {"name": subject.name, **middle}


def cost_once(subject, base, heapline):
    scratch = Scratch(subject, base)
    snapshots = pathlib.Path(tempfile.mkdtemp(prefix="snapshots-", dir=base))
    path = snapshots / "out.snap.zst"
    begun = time.monotonic()
    process = scratch.start(subject, [heapline.aggregator, "run", "-o", str(path), "--"])
    target = wait_for("the command", lambda: next(iter(children(process.pid)), None))
    ended = used = most = 0
    with contextlib.closing(PidFile(target)) as command:
        while process.poll() is None:
            if ended:
                time.sleep(0.01)
            elif command.has_ended(0.02):
                ended = time.monotonic()
            used, most = own_use(process.pid, used, most)
    returned = time.monotonic()
    ended = ended or returned
    if process.returncode:
        raise Failure(f"status {process.returncode}: {scratch.output(scratch.stderr).strip()[-200:]}")
    found = {"program_s": ended - begun, "end_s": returned - ended, "bytes": path.stat().st_size, "cpu_s": used, "memory": most,
             "tree_bytes": sum(file.stat().st_size for file in snapshots.rglob("*.snap.zst"))}
    options = subject.rows[0].options
    with tempfile.TemporaryDirectory(dir=base) as cache:
        for key in ("cold_s", "warm_s"):
            begun = time.monotonic()
            heapline.report(path, "--at", "peak", *options, cache=cache)
            found[key] = time.monotonic() - begun
    found["stacks"] = heapline.report(path, "--at", "total", *options)["total"]["groups"]
    return found


class PidFile:
    """A process, known by a descriptor that tells of its end at once."""

    def __init__(self, pid):
        self.file = os.pidfd_open(pid)

    def has_ended(self, seconds):
        return bool(select.select([self.file], [], [], seconds)[0])

    def close(self):
        os.close(self.file)


def own_use(pid, used, most):
    """Seconds of processor time and greatest memory in KiB of a process, without its children; as before if it has ended."""
    with contextlib.suppress(OSError):
        user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        memory = re.search(r"VmHWM:\s+(\d+)", status)  # not of a process that has ended
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"), int(memory[1]) if memory else most
    return used, most
