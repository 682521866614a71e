// Trees of boxes: tracebacks merged from the root or from the leaves, laid out for drawing.

import type { Amounts } from "./amounts.ts";
import { BLAMED, type Data, IMPORT, PLUMBING, START } from "./data.ts";

export interface Shape {
  /** Whether start-up, import and plumbing frames stay. */
  plumbing: boolean;
  /** Whether lines of a function are boxes of their own. */
  lines: boolean;
  /** Whether each cycle of a recursion is one box. */
  fold: boolean;
  unit: "bytes" | "blocks";
}

/** A tree of boxes. Box 0 is the root; callers have smaller numbers than what they call. */
export class Tree {
  parent = new Int32Array(1024);
  /** Key of the frame among the children of a box. */
  key = new Uint32Array(1024);
  /** A frame with this key. */
  frame = new Int32Array(1024);
  bytes = new Float64Array(1024);
  blocks = new Float64Array(1024);
  variance = new Float64Array(1024);
  depth = new Uint16Array(1024);
  count = 1;
  /** Open hash of parent and key: numbers of boxes, 0 for a free place. */
  private table = new Int32Array(4096);

  constructor(rootFrame = -1) {
    this.parent[0] = -1;
    this.frame[0] = rootFrame;
  }

  /** The box of a key below a box. */
  child(parent: number, key: number, frame: number): number {
    let place = this.place(parent, key);
    if (this.table[place]) return this.table[place]!;
    if (this.count * 2 > this.table.length) {
      this.rehash();
      place = this.place(parent, key);
    }
    const box = this.count;
    if (box === this.parent.length) this.grow();
    this.parent[box] = parent;
    this.key[box] = key;
    this.frame[box] = frame;
    this.depth[box] = Math.min(this.depth[parent]! + 1, 65535);
    this.count += 1;
    this.table[place] = box;
    return box;
  }

  /** The box of a key below a box; of a recursion that is folded, the box where the cycle began. */
  step(parent: number, key: number, frame: number, fold: boolean): number {
    if (fold) for (let box = parent; box > 0; box = this.parent[box]!) if (this.key[box] === key) return box;
    return this.child(parent, key, frame);
  }

  find(parent: number, key: number): number | undefined {
    return this.table[this.place(parent, key)] || undefined;
  }

  /** Where a box is, or would be, in the table. */
  private place(parent: number, key: number): number {
    const mask = this.table.length - 1;
    let place = (Math.imul(parent, 0x9e3779b1) ^ Math.imul(key, 0x85ebca6b)) >>> 0;
    for (place = (place ^ (place >>> 15)) & mask; ; place = (place + 1) & mask) {
      const box = this.table[place]!;
      if (!box || (this.parent[box] === parent && this.key[box] === key)) return place;
    }
  }

  private rehash(): void {
    this.table = new Int32Array(this.table.length * 4);
    for (let box = 1; box < this.count; box += 1) this.table[this.place(this.parent[box]!, this.key[box]!)] = box;
  }

  add(box: number, of: Amounts, node: number): void {
    this.bytes[box]! += of.bytes[node]!;
    this.blocks[box]! += of.blocks[node]!;
    if (of.bytesVariance) this.variance[box]! += of.bytesVariance[node]!;
  }

  /** Adds what boxes have of their own to all boxes below them. */
  sumUp(): void {
    for (let box = this.count - 1; box > 0; box -= 1) {
      const parent = this.parent[box]!;
      this.bytes[parent]! += this.bytes[box]!;
      this.blocks[parent]! += this.blocks[box]!;
      this.variance[parent]! += this.variance[box]!;
    }
  }

  /** Keys from the root to a box. */
  path(box: number): number[] {
    const keys: number[] = [];
    for (let at = box; at > 0; at = this.parent[at]!) keys.push(this.key[at]!);
    return keys.reverse();
  }

  /** The box at the end of a path, or as far as the path goes. */
  follow(path: number[]): number {
    let box = 0;
    for (const key of path) {
      const next = this.find(box, key);
      if (next === undefined) break;
      box = next;
    }
    return box;
  }

  private grow(): void {
    const length = this.parent.length * 2;
    const larger = <T extends Int32Array | Uint32Array | Float64Array | Uint16Array>(old: T, fresh: T): T => {
      fresh.set(old as never);
      return fresh;
    };
    this.parent = larger(this.parent, new Int32Array(length));
    this.key = larger(this.key, new Uint32Array(length));
    this.frame = larger(this.frame, new Int32Array(length));
    this.bytes = larger(this.bytes, new Float64Array(length));
    this.blocks = larger(this.blocks, new Float64Array(length));
    this.variance = larger(this.variance, new Float64Array(length));
    this.depth = larger(this.depth, new Uint16Array(length));
  }
}

/** By frame: its key. Without lines, all frames of a function in a file have one key. */
export function keysOf(data: Data, lines: boolean): Uint32Array {
  const { frames } = data;
  const count = frames.function.length;
  if (lines) return Uint32Array.from({ length: count }, (_, frame) => frame);
  const first = new Map<number, number>();
  const texts = frames.texts.length;
  return Uint32Array.from({ length: count }, (_, frame) => {
    const place = frames.function[frame]! * texts + frames.file[frame]!;
    const known = first.get(place);
    if (known !== undefined) return known;
    first.set(place, frame);
    return frame;
  });
}

/** By node: whether its frame is hidden. Of the plumbing, frames that blocks are blamed on stay. */
export function hiddenOf(data: Data, plumbing: boolean): Uint8Array {
  const { flags } = data.nodes;
  const hidden = new Uint8Array(flags.length);
  if (plumbing) return hidden;
  for (let node = 0; node < flags.length; node += 1) {
    const flag = flags[node]!;
    hidden[node] = flag & (START | IMPORT) || (flag & PLUMBING && !(flag & BLAMED)) ? 1 : 0;
  }
  return hidden;
}

/** By node: the bytes and blocks of all tracebacks through the node. */
function through(data: Data, of: Amounts): Float64Array {
  const { parent } = data.nodes;
  const sums = new Float64Array(parent.length);
  for (let node = parent.length - 1; node >= 0; node -= 1) {
    sums[node]! += of.bytes[node]! + of.blocks[node]!;
    const caller = parent[node]!;
    if (caller >= 0) sums[caller]! += sums[node]!;
  }
  return sums;
}

/** Tracebacks merged from the root on. */
export function fromRoot(data: Data, of: Amounts, shape: Shape): Tree {
  const tree = new Tree();
  const { nodes } = data;
  const hidden = hiddenOf(data, shape.plumbing), keys = keysOf(data, shape.lines), sums = through(data, of);
  const boxes = new Int32Array(nodes.length);
  for (let node = 0; node < nodes.length; node += 1) {
    if (sums[node] === 0) continue;
    const caller = nodes.parent[node]!;
    const parent = caller < 0 ? 0 : boxes[caller]!;
    const frame = nodes.frame[node]!;
    let box = hidden[node] ? parent : tree.step(parent, keys[frame]!, frame, shape.fold);
    boxes[node] = box;
    if (of.bytes[node] === 0 && of.blocks[node] === 0) continue;
    // A traceback of hidden frames only keeps its last frame.
    if (box === 0) box = tree.child(0, keys[frame]!, frame);
    tree.add(box, of, node);
  }
  tree.sumUp();
  return tree;
}

/** Tracebacks merged from the most recent frames on. */
export function fromLeaves(data: Data, of: Amounts, shape: Shape): Tree {
  const tree = new Tree();
  const { nodes } = data;
  const hidden = hiddenOf(data, shape.plumbing), keys = keysOf(data, shape.lines);
  for (let node = 0; node < nodes.length; node += 1) {
    if (of.bytes[node] === 0 && of.blocks[node] === 0) continue;
    let box = 0;
    for (let at = node; at >= 0; at = nodes.parent[at]!) {
      const frame = nodes.frame[at]!;
      if (!hidden[at]) box = tree.step(box, keys[frame]!, frame, shape.fold);
    }
    const frame = nodes.frame[node]!;
    if (box === 0) box = tree.child(0, keys[frame]!, frame);
    tree.add(box, of, node);
  }
  tree.sumUp();
  return tree;
}

/** What calls a function, and what the function calls. A recursion counts once, from its outermost call. */
export function sandwich(data: Data, of: Amounts, shape: Shape, name: string): { callers: Tree; callees: Tree } {
  const { nodes, frames } = data;
  const hidden = hiddenOf(data, shape.plumbing), keys = keysOf(data, shape.lines);
  const boxes = new Int32Array(nodes.length).fill(-1);
  const outermost = new Int32Array(nodes.length).fill(-1);
  const middle = frames.function.findIndex((_, frame) => frames.name(frame) === name);
  const callers = new Tree(middle), callees = new Tree(middle);
  // By outermost call: the box of its callers.
  const above = new Map<number, number>();
  for (let node = 0; node < nodes.length; node += 1) {
    const caller = nodes.parent[node]!;
    const frame = nodes.frame[node]!;
    const inside = caller >= 0 ? boxes[caller]! : -1;
    if (inside >= 0) {
      boxes[node] = hidden[node] ? inside : callees.step(inside, keys[frame]!, frame, shape.fold);
      outermost[node] = outermost[caller]!;
    } else if (frames.name(frame) === name) {
      boxes[node] = 0;
      outermost[node] = node;
    }
    if (boxes[node]! < 0 || (of.bytes[node] === 0 && of.blocks[node] === 0)) continue;
    callees.add(boxes[node]!, of, node);
    const call = outermost[node]!;
    let box = above.get(call);
    if (box === undefined) {
      box = 0;
      for (let at = nodes.parent[call]!; at >= 0; at = nodes.parent[at]!) {
        if (!hidden[at]) box = callers.step(box, keys[nodes.frame[at]!]!, nodes.frame[at]!, shape.fold);
      }
      above.set(call, box);
    }
    callers.add(box, of, node);
  }
  callers.sumUp();
  callees.sumUp();
  return { callers, callees };
}

/** Boxes by depth, from left to right. The whole width is the value of the root. */
export class Layout {
  readonly levels: Int32Array[] = [];
  /** By level: left and right ends of its boxes. A search by place reads the numbers one behind the other. */
  readonly starts: Float64Array[] = [];
  readonly ends: Float64Array[] = [];
  /** Left end of each box. */
  readonly start: Float64Array;
  readonly value: Float64Array;
  /** Children of a box, the widest first: `order` between `first` of the box and `first` + `count`. */
  readonly first: Int32Array;
  readonly childCount: Int32Array;
  readonly order: Int32Array;

  constructor(readonly tree: Tree, unit: "bytes" | "blocks") {
    const { count, parent } = tree;
    const value = (this.value = unit === "bytes" ? tree.bytes : tree.blocks);
    this.start = new Float64Array(count);
    this.childCount = new Int32Array(count);
    for (let box = 1; box < count; box += 1) this.childCount[parent[box]!]! += 1;
    this.first = new Int32Array(count + 1);
    for (let box = 0; box < count; box += 1) this.first[box + 1] = this.first[box]! + this.childCount[box]!;
    const next = this.first.slice();
    this.order = new Int32Array(Math.max(count - 1, 0));
    for (let box = 1; box < count; box += 1) this.order[next[parent[box]!]!++] = box;
    let level = Int32Array.of(0);
    while (level.length > 0) {
      this.levels.push(level);
      const starts = new Float64Array(level.length), ends = new Float64Array(level.length);
      level.forEach((box, index) => {
        starts[index] = this.start[box]!;
        ends[index] = this.start[box]! + value[box]!;
      });
      this.starts.push(starts);
      this.ends.push(ends);
      let length = 0;
      for (const box of level) length += this.childCount[box]!;
      const below = new Int32Array(length);
      let at = 0;
      for (const box of level) {
        const children = this.order.subarray(this.first[box]!, this.first[box + 1]!);
        if (children.length > 1) children.sort((one, other) => value[other]! - value[one]! || one - other);
        let left = this.start[box]!;
        for (const child of children) {
          this.start[child] = left;
          left += value[child]!;
          below[at++] = child;
        }
      }
      level = below;
    }
  }

  /** Index in a level of the first box that ends behind `left`. */
  firstBehind(depth: number, left: number, from = 0): number {
    const ends = this.ends[depth]!;
    // The box is often near: the steps double until a box is behind.
    let low = from, high = ends.length;
    for (let step = 4; low + step < high; step *= 2) {
      if (ends[low + step]! > left) {
        high = low + step;
        break;
      }
      low += step + 1;
    }
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ends[middle]! <= left) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The box of a level at a place, if there is one. */
  at(depth: number, place: number): number | undefined {
    const level = this.levels[depth];
    if (!level) return undefined;
    const box = level[this.firstBehind(depth, place)];
    return box !== undefined && this.start[box]! <= place ? box : undefined;
  }

  childrenOf(box: number): Int32Array {
    return this.order.subarray(this.first[box]!, this.first[box + 1]!);
  }
}
