// Rows of the table: the memory of a view by line, function, file, module or thread.

import { type Amounts, sameThread } from "./amounts.ts";
import type { Data } from "./data.ts";
import { base, owner } from "./text.ts";
import type { By, View } from "./view.ts";

export interface Group {
  name: string;
  /** File and line, or what tells rows of one name apart. */
  place: string;
  source: string;
  /** Of blocks that are blamed on the group. */
  bytes: number;
  blocks: number;
  variance: number;
  /** Of blocks with the group anywhere in their tracebacks. */
  throughBytes: number;
  throughBlocks: number;
  /** Change of the bytes: since the old subject, in a range, or since the middle of the history. */
  change: number;
  /** A frame of the group; -1 for threads. */
  frame: number;
}

/** By frame: number of its group. */
export function groupsOf(data: Data, by: By): { of: Int32Array; first: number[] } {
  const { frames } = data;
  const count = frames.function.length;
  const texts = frames.texts.length;
  const numbers = new Map<number, number>();
  const first: number[] = [];
  const of = Int32Array.from({ length: count }, (_, frame) => {
    const file = frames.file[frame]!, line = frames.line[frame]!, name = frames.function[frame]!;
    const isUnlined = line === 0 && !frames.python[frame];
    // Without a line the function tells the place, as in the text of report.
    const key = {
      line: isUnlined ? -(file * texts + name) - 1 : file * 4294967296 + line,
      function: name, file, module: frames.module[frame]!, thread: 0,
    }[by];
    const known = numbers.get(key);
    if (known !== undefined) return known;
    const number = numbers.size;
    numbers.set(key, number);
    first.push(frame);
    return number;
  });
  return { of, first };
}

/** By node: the node that blocks ending there are blamed on. */
export function blamedOf(data: Data, domain: number): Int32Array {
  const { rows, nodes } = data;
  const blamed = Int32Array.from({ length: nodes.length }, (_, node) => node);
  for (let row = 0; row < rows.length; row += 1) if (rows.domain[row] === domain) blamed[rows.node[row]!] = rows.blamed[row]!;
  return blamed;
}

/** The groups of a view with memory. `change` has the change of each node's bytes. */
export function groups(data: Data, view: View, of: Amounts, change: Float64Array | undefined): Group[] {
  if (view.by === "thread") return ofThreads(data, view);
  const { nodes, frames } = data;
  const { of: group, first } = groupsOf(data, view.by);
  const blamed = blamedOf(data, view.domain);
  const count = first.length;
  const bytes = new Float64Array(count), blocks = new Float64Array(count), variance = new Float64Array(count);
  const changes = new Float64Array(count), throughBytes = new Float64Array(count), throughBlocks = new Float64Array(count);
  const sumBytes = of.bytes.slice(), sumBlocks = of.blocks.slice();
  for (let node = nodes.length - 1; node >= 0; node -= 1) {
    const caller = nodes.parent[node]!;
    if (caller < 0) continue;
    sumBytes[caller]! += sumBytes[node]!;
    sumBlocks[caller]! += sumBlocks[node]!;
  }
  // A walk: by group, how many frames of the group are open.
  const open = new Int32Array(count);
  const path: number[] = [];
  for (let node = 0; node < nodes.length; node += 1) {
    while (path.length > nodes.depth[node]!) open[path.pop()!]! -= 1;
    const own = group[nodes.frame[node]!]!;
    if (open[own] === 0) {
      throughBytes[own]! += sumBytes[node]!;
      throughBlocks[own]! += sumBlocks[node]!;
    }
    open[own]! += 1;
    path.push(own);
    const blame = group[nodes.frame[blamed[node]!]!]!;
    if (change) changes[blame]! += change[node]!;
    if (of.bytes[node] === 0 && of.blocks[node] === 0) continue;
    bytes[blame]! += of.bytes[node]!;
    blocks[blame]! += of.blocks[node]!;
    if (of.bytesVariance) variance[blame]! += of.bytesVariance[node]!;
  }
  const result: Group[] = [];
  for (let index = 0; index < count; index += 1) {
    if (!throughBytes[index] && !throughBlocks[index] && !changes[index]) continue;
    const frame = first[index]!;
    const name = frames.name(frame), place = frames.place(frame);
    const shown = {
      line: { name: place, place: name },
      function: { name, place },
      file: { name: frames.fileOf(frame), place: "" },
      module: { name: frames.texts[frames.module[frame]!]! || "generated code", place: "" },
      thread: { name: "", place: "" },
    }[view.by];
    result.push({
      ...shown, source: view.by === "line" ? frames.sourceOf(frame) : "", frame,
      bytes: bytes[index]!, blocks: blocks[index]!, variance: variance[index]!, change: changes[index]!,
      throughBytes: throughBytes[index]!, throughBlocks: throughBlocks[index]!,
    });
  }
  return result;
}

/** Threads: live blocks know them, sums of the peak and of the whole time are kept by thread. */
function ofThreads(data: Data, view: View): Group[] {
  const { head, rows, live, weights } = data;
  const byName = new Map<string, Group>();
  const groupOf = (thread: number): Group | undefined => {
    const one = head.threads[thread];
    if (!one || head.processes[one.process]!.old || (view.process >= 0 && one.process !== view.process)) return undefined;
    const process = head.processes[one.process]!;
    const place = head.processes.length > 1 ? `${base(process.command.split(" ")[0]!)} (${process.pid})` : "";
    const key = `${one.process} ${one.name}`;
    let group = byName.get(key);
    if (!group) {
      group = { name: one.name, place, source: "", bytes: 0, blocks: 0, variance: 0, throughBytes: 0, throughBlocks: 0, change: 0, frame: -1 };
      byName.set(key, group);
    }
    return group;
  };
  if (view.moment === "live") {
    for (let index = 0; index < live.length; index += 1) {
      const row = live.row[index]!;
      if (rows.domain[row] !== view.domain) continue;
      if (view.thread >= 0 && !sameThread(data, live.thread[index]!, view.thread)) continue;
      const group = groupOf(live.thread[index]!);
      if (!group) continue;
      group.bytes += live.each[index]! * live.count[index]!;
      group.blocks += live.count[index]! * weights.blocks[rows.weight[row]!]!;
    }
  } else if (view.moment === "peak" || view.moment === "total") {
    for (const sum of head.thread_sums) {
      const group = sum.domain === view.domain ? groupOf(sum.thread) : undefined;
      if (!group) continue;
      group.bytes += sum[view.moment][0];
      group.blocks += sum[view.moment][1];
    }
  }
  return [...byName.values()].filter((group) => group.bytes || group.blocks);
}

/** By frame: its library, package or file. */
export function owners({ frames }: Data): (frame: number) => string {
  const known: (string | undefined)[] = [];
  return (frame) => (known[frame] ??= owner(frames.texts[frames.module[frame]!]!, frames.fileOf(frame), frames.python[frame] === 1));
}
