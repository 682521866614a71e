"""Tables of figures, in Markdown."""

import json
import pathlib


def table(head, lines):
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def percents(share):
    return "-" if share is None else f"{share} %"


def survey_line(found):
    if "rows" not in found:
        return [found["name"], found["way"], *["-"] * 9, found["failure"].replace("|", "/")]
    ways = " ".join(f"{way} {share}" for way, share in found["walked"].items()) or "-"
    return [found["name"], found["way"], found["at"], f"{found['median']:g} / {found['deepest']}",
            f"{found['to_root']} of {found['rows']}", percents(found["named"]), percents(found["with_line"]),
            percents(found["blamed_named"]), "-" if found["own"] is None else f"{found['own']} of {found['rows']}", ways,
            found["mode"], found["harmed"]]


SURVEY_HEAD = ["program", "by", "at", "depth: median / greatest", "to the root", "frames named", "with a line", "blamed row named",
               "own functions", "walked, %", "mode", "harmed"]
COSTS_HEAD = ["program", "runs, s", "stacks", "snapshot", "all processes", "aggregator's CPU, s", "its memory",
              "end to return, s", "report, cold, s", "report, warm, s"]


def cost_line(found):
    if "failure" in found:
        return [found["name"], *["-"] * 8, found["failure"].replace("|", "/")]
    sizes = [f"{found[key] / 1024:.0f} KiB" for key in ("bytes", "tree_bytes")]
    times = [f"{found[key]:.2f}" for key in ("end_s", "cold_s", "warm_s")]
    own = [f"{found['cpu_s']:.2f}", f"{found['memory'] / 1024:.0f} MiB"]
    return [found["name"], f"{found['program_s']:.1f}", f"{found['stacks']:.0f}", *sizes, *own, *times]


def side_by_side(paths):
    """One table of several surveys (or costs), each line with the name of its file."""
    documents = [(pathlib.Path(path).stem, json.loads(pathlib.Path(path).read_text())) for path in paths]
    is_costs = any("end_s" in row for _, rows in documents for row in rows)
    line, head = (cost_line, COSTS_HEAD) if is_costs else (survey_line, SURVEY_HEAD)
    order = list(dict.fromkeys((row["name"], row.get("way")) for _, rows in documents for row in rows))
    found = {(label, row["name"], row.get("way")): line(row) for label, rows in documents for row in rows}
    lines = [[found[label, *key][0], label, *found[label, *key][1:]]
             for key in order for label, _ in documents if (label, *key) in found]
    table([head[0], "survey", *head[1:]], lines)
