// A small snapshot as the page has it, made by hand: the columns of the tests.

import { deflateSync } from "node:zlib";
import { Columns, unpack } from "../src/columns.ts";
import { BLAMED, Data, type Head, PLUMBING, START } from "../src/data.ts";
import { fromHash, type View } from "../src/view.ts";

function varint(value: number): number[] {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return [...bytes, value];
}

const zigzag = (value: number) => (value < 0 ? -2 * value - 1 : 2 * value);

type Column = [name: string, coding: "plain" | "signed" | "steps" | "reals", values: number[]] | [name: string, coding: "texts", values: string[]];

/** The base64 text of columns, as report writes them. */
export function packed(columns: Column[]): string {
  const parts: Buffer[] = [];
  const list = columns.map(([name, coding, values]) => {
    let last = 0;
    const bytes = (values as (number | string)[]).flatMap((value) => {
      if (typeof value === "string") return [...varint(Buffer.byteLength(value)), ...Buffer.from(value)];
      if (coding === "plain") return varint(value);
      if (coding === "reals") {
        const real = Buffer.alloc(8);
        real.writeDoubleLE(value);
        return [...real];
      }
      const difference = coding === "steps" ? value - last : value;
      last = value;
      return varint(zigzag(difference));
    });
    parts.push(Buffer.from(bytes));
    return [name, coding, values.length, bytes.length];
  });
  const json = Buffer.from(JSON.stringify(list));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(json.length);
  return deflateSync(Buffer.concat([length, json, ...parts])).toString("base64");
}

export const read = (columns: Column[]): Promise<Columns> => unpack(packed(columns));

/**
 * Nodes (start code in brackets, plumbing in parentheses, * blamed), and live bytes of native memory:
 *
 *     [_start] - main - load* - (new)        900 in 9   thread 0
 *                     - parse* - (new)       100 in 1   thread 1
 *                              - load* - (new) 50 in 5  thread 0
 *     (smaller ones)                          
 */
export async function scene(): Promise<{ data: Data; view: View }> {
  const texts = ["_start", "libc.so", "main", "app.c", "app", "load", "parse", "new", "libstdc++.so", "each below 1/4096 of the whole", "(smaller ones)"];
  const columns = await read([
    ["node.depth", "steps", [0, 1, 2, 3, 2, 3, 3, 4, 0]],
    //                       _start main load new parse new load new smaller
    ["node.frame", "plain", [0, 1, 2, 3, 4, 3, 2, 3, 5]],
    ["node.flags", "plain", [START, 0, BLAMED, PLUMBING, BLAMED, PLUMBING, BLAMED, PLUMBING, BLAMED]],
    ["frame.function", "plain", [0, 2, 5, 7, 6, 9]],
    ["frame.file", "plain", [1, 3, 3, 8, 3, 10]],
    ["frame.module", "plain", [1, 4, 4, 8, 4, 10]],
    ["frame.line", "signed", [0, 10, 10, -20, 30, -30]],
    ["frame.python", "plain", [0, 0, 0, 0, 0, 1]],
    ["frame.source", "plain", [0, 0, 1, 0, 0, 0]],
    ["sources", "texts", ["item = new Item;"]],
    ["texts", "texts", texts],
    ["row.process", "steps", [0, 0, 0, 0]],
    ["row.domain", "steps", [0, 0, 0, 0]],
    ["row.node", "steps", [3, 5, 7, 8]],
    ["row.weight", "plain", [0, 0, 0, 0]],
    ["row.above", "plain", [1, 1, 1, 0]],
    // The mean of the live blocks is 100, 100, 10, 0.
    ["row.total_count", "plain", [20, 2, 10, 0]],
    ["row.total_each", "signed", [0, 0, -1, 0]],
    ["row.total_rest", "plain", [0, 0, 10, 0]],
    ["row.peak_count", "plain", [10, 1, 5, 0]],
    ["row.peak_each", "signed", [0, 0, 0, 0]],
    ["row.peak_rest", "plain", [0, 0, 0, 0]],
    ["row.live_copies", "plain", [0, 0, 0, 0]],
    ["row.peak_copies", "plain", [0, 0, 0, 0]],
    ["live.row", "steps", [0, 1, 2]],
    ["live.thread", "steps", [0, 1, 0]],
    ["live.each", "plain", [100, 100, 10]],
    ["live.count", "plain", [9, 1, 5]],
    ["weight.interval", "plain", []],
    ["weight.size", "plain", []],
    ["weight.bytes", "plain", []],
    ["weight.blocks", "reals", []],
    ["weight.doubt", "reals", []],
    ["step.end", "steps", [0, 100, 200]],
    ["step.resident", "steps", [0, 5000, 6000]],
    ["step.swap", "steps", [0, 0, 0]],
    ["step.threads", "steps", [0, 1, 2]],
    ["step.limit", "steps", [0, 0, 0]],
    ["sum.current", "steps", [0, 1200, 1050]],
    ["sum.greatest", "steps", [0, 1300, 1200]],
    ["sum.blocks", "steps", [0, 12, 15]],
    ["sum.allocated", "steps", [0, 1300, 100]],
    ["sum.allocs", "steps", [0, 13, 5]],
    ["step.changes", "plain", [0, 3, 3]],
    //  step 1: load 1000, parse 100, smaller 100; step 2: load -100, inner load +50, smaller -100
    ["change.row", "steps", [0, 1, 3, 0, 2, 3]],
    ["change.size", "signed", [1000, 100, 100, -100, 50, -100]],
    ["change.count", "signed", [10, 1, 1, -1, 5, -1]],
    ["change.allocated", "plain", [1100, 100, 100, 50, 50, 0]],
    ["change.allocs", "plain", [11, 1, 1, 0, 5, 0]],
  ]);
  const head: Head = {
    title: "app (7)", heapline: "0", lines: ["Process 7: exact", "app"], concerns: [], sampled: false, filtered: false, fold: false,
    domains: [{ name: "native", noun: "block", sampled: true }], domain: 0, at: "live", instant: null, since: null,
    processes: [{ pid: 7, command: "app", depth: 0, old: false, sample_interval: 0 }],
    threads: [{ process: 0, name: "main (7)" }, { process: 0, name: "worker (8)" }],
    sums: [], thread_sums: [{ thread: 0, domain: 0, peak: [1050, 15], total: [2100, 30] }],
    histories: [{ process: 0, begun: 1_000_000, utc_offset: 0, steps: 3, domains: [0], marks: [] }],
  };
  const first: View = {
    domain: 0, moment: "live", at: 0, since: 0, measure: "grown", unit: "bytes", thread: -1, process: -1, tab: "graph", inverted: false, flame: false,
    plumbing: false, lines: true, fold: false, whole: false, source: false, search: "", sandwich: "", only: [], without: [], zoom: [], by: "line", filter: "", sort: "size",
  };
  return { data: new Data(head, columns), view: fromHash("", first) };
}
