// A snapshot as the page has it: frames, the tree of calls, rows of memory, histories.

import type { Columns } from "./columns.ts";
import { History, type Told } from "./history.ts";

export type Moment = "live" | "peak" | "total";

/** What report tells besides the columns (Head in tools/src/export/page/mod.rs). */
export interface Head {
  title: string;
  heapline: string;
  lines: string[];
  concerns: string[];
  sampled: boolean;
  filtered: boolean;
  fold: boolean;
  domains: { name: string; noun: string; sampled: boolean }[];
  domain: number;
  at: Moment;
  instant: number | null;
  since: number | null;
  processes: { pid: number; command: string; depth: number; old: boolean; sample_interval: number }[];
  threads: { process: number; name: string }[];
  sums: {
    old: boolean;
    domain: number;
    at: Moment;
    text: string;
    size_interval: [number, number] | null;
    count_interval: [number, number] | null;
  }[];
  thread_sums: { thread: number; domain: number; peak: [number, number]; total: [number, number] }[];
  histories: Told[];
}

/** Why the page may hide the frame of a node (bits in tools/src/export/page/calls.rs). */
export const START = 1, PLUMBING = 2, IMPORT = 4, BLAMED = 8;

export class Frames {
  readonly function: Uint32Array;
  readonly file: Uint32Array;
  readonly module: Uint32Array;
  readonly line: Uint32Array;
  readonly python: Uint32Array;
  readonly source: Uint32Array;
  readonly texts: string[];
  readonly sources: string[];

  constructor(columns: Columns) {
    this.function = columns.indices("frame.function");
    this.file = columns.indices("frame.file");
    this.module = columns.indices("frame.module");
    const steps = columns.numbers("frame.line");
    this.line = new Uint32Array(steps.length);
    let line = 0;
    steps.forEach((step, index) => (this.line[index] = line += step));
    this.python = columns.indices("frame.python");
    this.source = columns.indices("frame.source");
    this.texts = columns.texts("texts");
    this.sources = columns.texts("sources");
  }

  name(frame: number): string {
    return this.texts[this.function[frame]!]!;
  }

  fileOf(frame: number): string {
    return this.texts[this.file[frame]!]!;
  }

  /** File and line, or the module of a frame without a known line. */
  place(frame: number): string {
    const line = this.line[frame]!;
    return line ? `${this.fileOf(frame)}:${line}` : this.fileOf(frame);
  }

  sourceOf(frame: number): string {
    const source = this.source[frame]!;
    return source ? this.sources[source - 1]! : "";
  }
}

/** The tree of all tracebacks, in the order of a walk: callers stand before what they call. */
export class Nodes {
  readonly frame: Uint32Array;
  readonly flags: Uint32Array;
  readonly depth: Uint32Array;
  /** Caller of each node; -1 at the root. */
  readonly parent: Int32Array;
  readonly length: number;

  constructor(columns: Columns) {
    this.depth = columns.indices("node.depth");
    this.frame = columns.indices("node.frame");
    this.flags = columns.indices("node.flags");
    this.length = this.depth.length;
    this.parent = new Int32Array(this.length);
    const path: number[] = [];
    for (let node = 0; node < this.length; node += 1) {
      const depth = this.depth[node]!;
      path[depth] = node;
      this.parent[node] = depth ? path[depth - 1]! : -1;
    }
  }
}

/** Memory by process, domain and traceback. */
export class Rows {
  readonly process: Uint32Array;
  readonly domain: Uint32Array;
  readonly node: Uint32Array;
  readonly weight: Uint32Array;
  readonly blamed: Uint32Array;
  readonly peakSize: Float64Array;
  readonly peakCount: Float64Array;
  readonly totalSize: Float64Array;
  readonly totalCount: Float64Array;
  readonly liveCopies: Float64Array;
  readonly peakCopies: Float64Array;
  readonly length: number;

  constructor(columns: Columns, nodes: Nodes, live: Live) {
    this.process = columns.indices("row.process");
    this.domain = columns.indices("row.domain");
    this.node = columns.indices("row.node");
    this.weight = columns.indices("row.weight");
    this.length = this.node.length;
    const above = columns.indices("row.above");
    this.blamed = this.node.map((node, row) => {
      let blamed = node;
      for (let steps = above[row]!; steps > 0; steps -= 1) blamed = nodes.parent[blamed]!;
      return blamed;
    });
    const liveSize = new Float64Array(this.length), liveCount = new Float64Array(this.length);
    live.row.forEach((row, index) => {
      liveSize[row]! += live.each[index]! * live.count[index]!;
      liveCount[row]! += live.count[index]!;
    });
    // Means stand as differences from the means of the live blocks, and of all blocks.
    const mean = (size: number, count: number) => Math.floor(size / Math.max(count, 1));
    const sizes = (name: string, count: Float64Array, likeSize: Float64Array, likeCount: Float64Array) => {
      const rest = columns.numbers(`row.${name}_rest`);
      return columns.numbers(`row.${name}_each`).map((each, row) => (each + mean(likeSize[row]!, likeCount[row]!)) * count[row]! + rest[row]!);
    };
    this.totalCount = columns.numbers("row.total_count");
    this.totalSize = sizes("total", this.totalCount, liveSize, liveCount);
    this.peakCount = columns.numbers("row.peak_count");
    this.peakSize = sizes("peak", this.peakCount, this.totalSize, this.totalCount);
    this.liveCopies = columns.numbers("row.live_copies");
    this.peakCopies = columns.numbers("row.peak_copies");
  }
}

/** Live blocks by row, thread and size. */
export class Live {
  readonly row: Uint32Array;
  readonly thread: Uint32Array;
  readonly each: Float64Array;
  readonly count: Float64Array;
  readonly length: number;

  constructor(columns: Columns) {
    this.row = columns.indices("live.row");
    this.thread = columns.indices("live.thread");
    this.each = columns.numbers("live.each");
    this.count = columns.numbers("live.count");
    this.length = this.row.length;
  }
}

/** What a sample stands for. Weight 0 is that of a block that is no sample. */
export class Weights {
  readonly interval: Float64Array;
  readonly size: Float64Array;
  readonly bytes: Float64Array;
  readonly blocks: Float64Array;
  readonly doubt: Float64Array;

  constructor(columns: Columns) {
    const behind = (first: number, rest: Float64Array) => Float64Array.from([first, ...rest]);
    this.interval = behind(0, columns.numbers("weight.interval"));
    this.size = behind(0, columns.numbers("weight.size"));
    this.bytes = behind(0, columns.numbers("weight.bytes"));
    this.blocks = behind(1, columns.reals("weight.blocks"));
    this.doubt = behind(0, columns.reals("weight.doubt"));
  }
}

export class Data {
  readonly frames: Frames;
  readonly nodes: Nodes;
  readonly rows: Rows;
  readonly live: Live;
  readonly weights: Weights;
  readonly histories: History[];
  /** Whether the page compares two subjects. */
  readonly isDiff: boolean;

  constructor(readonly head: Head, columns: Columns) {
    this.frames = new Frames(columns);
    this.nodes = new Nodes(columns);
    this.live = new Live(columns);
    this.rows = new Rows(columns, this.nodes, this.live);
    this.weights = new Weights(columns);
    this.histories = History.all(columns, head.histories);
    this.isDiff = head.processes.some((process) => process.old);
  }
}
