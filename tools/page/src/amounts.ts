// The memory of each traceback in a view: bytes and blocks by node.

import { Data } from "./data.ts";
import type { History } from "./history.ts";
import type { View } from "./view.ts";

/** Amounts by node: of blocks whose traceback ends there. */
export interface Amounts {
  bytes: Float64Array;
  blocks: Float64Array;
  /** Variance of `bytes` and of `blocks`, where samples are estimated from. */
  bytesVariance: Float64Array | undefined;
  blocksVariance: Float64Array | undefined;
  /** What there was before, in a range or a diff. */
  before: { bytes: Float64Array; blocks: Float64Array } | undefined;
}

/** Bytes, blocks and copies of samples by row. */
interface ByRow {
  bytes: Float64Array;
  /** Blocks; samples in rows with a weight. */
  count: Float64Array;
  copies: Float64Array | undefined;
}

const Z = 1.959964;

/** 95 % interval of an estimate, as `weight::interval` of report has it. */
export function interval(estimate: number, variance: number): [number, number] {
  if (estimate <= 0 || variance <= 0) return [Math.max(estimate, 0), Math.max(estimate, 0)];
  const samples = (estimate * estimate) / variance;
  const middle = 1 + (Z * Z) / (2 * samples);
  const half = Z * Math.sqrt(1 / samples + (Z * Z) / (4 * samples * samples));
  return [estimate * (middle - half), estimate * (middle + half)];
}

function probability(size: number, distance: number): number {
  return distance === 0 ? 1 : -Math.expm1(-Math.max(size, 1) / distance);
}

/** Size of blocks of which `count` samples stand for `bytes`. */
export function sampleSize(bytes: number, count: number, distance: number): number {
  const mean = Math.floor(bytes / Math.max(count, 1));
  let low = 0, high = mean;
  while (low < high) {
    const middle = Math.floor(low + (high - low) / 2);
    if (Math.round(middle / probability(middle, distance)) < mean) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Whether the view compares two subjects or two instants. */
export function isCompared(data: Data, view: View): boolean {
  return data.isDiff || view.moment === "range";
}

/** Rows of a view: of its domain, process and side. */
function wanted(data: Data, view: View, old: boolean): Uint8Array {
  const { rows, head } = data;
  const mask = new Uint8Array(rows.length);
  const process = head.processes.map((one, index) => one.old === old && (view.process < 0 || view.process === index));
  for (let row = 0; row < rows.length; row += 1) {
    if (rows.domain[row] === view.domain && process[rows.process[row]!]) mask[row] = 1;
  }
  return mask;
}

function ofMoment(data: Data, view: View): ByRow {
  const { rows, live } = data;
  if (view.moment === "peak") return { bytes: rows.peakSize, count: rows.peakCount, copies: rows.peakCopies };
  if (view.moment === "total") return { bytes: rows.totalSize, count: rows.totalCount, copies: undefined };
  const bytes = new Float64Array(rows.length), count = new Float64Array(rows.length);
  for (let index = 0; index < live.length; index += 1) {
    if (view.thread >= 0 && !sameThread(data, live.thread[index]!, view.thread)) continue;
    const row = live.row[index]!;
    bytes[row]! += live.each[index]! * live.count[index]!;
    count[row]! += live.count[index]!;
  }
  return { bytes, count, copies: view.thread < 0 ? rows.liveCopies : undefined };
}

/** Threads of one process that share a row are one thread. */
export function sameThread(data: Data, one: number, other: number): boolean {
  const { threads } = data.head;
  return one === other || (threads[one]?.process === threads[other]?.process && threads[one]?.name === threads[other]?.name);
}

/** Adds the changes of the steps in (after, until] to rows. */
function addChanges(history: History, after: number, until: number, size: Float64Array, count: Float64Array, allocated: boolean): void {
  const { changes } = history;
  const [bytes, blocks] = allocated ? [changes.allocated, changes.allocs] : [changes.size, changes.count];
  history.visit(after, until, (row, change) => {
    size[row]! += bytes[change]!;
    count[row]! += blocks[change]!;
  });
}

/** What rows held at a time. Processes that had not begun have nothing. */
export function heldAt(data: Data, time: number): ByRow {
  const bytes = new Float64Array(data.rows.length), count = new Float64Array(data.rows.length);
  for (const history of data.histories) {
    const step = history.stepAt(time);
    if (step !== undefined) addChanges(history, -1, step, bytes, count, false);
  }
  return { bytes, count, copies: undefined };
}

function allocatedIn(data: Data, since: number, until: number): ByRow {
  const bytes = new Float64Array(data.rows.length), count = new Float64Array(data.rows.length);
  for (const history of data.histories) {
    const last = history.stepAt(until);
    if (last !== undefined) addChanges(history, history.stepAt(since) ?? -1, last, bytes, count, true);
  }
  return { bytes, count, copies: undefined };
}

/** Adds rows up by node. */
function byNode(data: Data, mask: Uint8Array, of: ByRow): Amounts {
  const { rows, weights, nodes, head } = data;
  const bytes = new Float64Array(nodes.length), blocks = new Float64Array(nodes.length);
  const bytesVariance = head.sampled ? new Float64Array(nodes.length) : undefined;
  const blocksVariance = head.sampled ? new Float64Array(nodes.length) : undefined;
  for (let row = 0; row < rows.length; row += 1) {
    const count = of.count[row]!, size = of.bytes[row]!;
    if (!mask[row] || (count === 0 && size === 0)) continue;
    const node = rows.node[row]!;
    const weight = rows.weight[row]!;
    let each = weights.blocks[weight]!;
    let doubt = weights.doubt[weight]!, size1 = weights.bytes[weight]!;
    if (weight > 0 && weights.size[weight] === 0 && count > 0) {
      // Samples of many stacks: as if all had one size.
      const distance = weights.interval[weight]!;
      const p = probability(sampleSize(size, count, distance), distance);
      [each, doubt, size1] = [1 / p, 1 - p, size / count];
    }
    bytes[node]! += size;
    blocks[node]! += count * each;
    if (bytesVariance && blocksVariance && weight > 0) {
      const copies = count + (of.copies ? of.copies[row]! : 0);
      bytesVariance[node]! += copies * doubt * size1 * size1;
      blocksVariance[node]! += copies * doubt * each * each;
    }
  }
  return { bytes, blocks, bytesVariance, blocksVariance, before: undefined };
}

/** The amounts of a view. */
export function amounts(data: Data, view: View): Amounts {
  const now = wanted(data, view, false);
  if (!isCompared(data, view)) {
    return byNode(data, now, view.moment === "instant" ? heldAt(data, view.at) : ofMoment(data, view));
  }
  let after: Amounts, before: Amounts;
  if (view.moment === "range") {
    if (view.measure === "allocated") return byNode(data, now, allocatedIn(data, view.since, view.at));
    after = byNode(data, now, heldAt(data, view.at));
    before = byNode(data, now, heldAt(data, view.since));
  } else {
    const of = ofMoment(data, view);
    after = byNode(data, now, of);
    before = byNode(data, wanted(data, view, true), of);
  }
  return compared(after, before, view);
}

/** Keeps what the measure asks for: the width of a box is an amount of change. */
function compared(after: Amounts, before: Amounts, view: View): Amounts {
  const length = after.bytes.length;
  const bytes = new Float64Array(length), blocks = new Float64Array(length);
  for (let node = 0; node < length; node += 1) {
    const had = before.bytes[node] !== 0 || before.blocks[node] !== 0;
    const has = after.bytes[node] !== 0 || after.blocks[node] !== 0;
    const isKind = { grown: has, shrunk: had, new: has && !had, gone: had && !has, allocated: has }[view.measure];
    if (!isKind) continue;
    const sign = view.measure === "shrunk" || view.measure === "gone" ? -1 : 1;
    bytes[node] = Math.max(0, sign * (after.bytes[node]! - before.bytes[node]!));
    blocks[node] = Math.max(0, sign * (after.blocks[node]! - before.blocks[node]!));
  }
  const variance = (one: Float64Array | undefined, other: Float64Array | undefined) =>
    one && other ? one.map((value, node) => (bytes[node] ? value + other[node]! : 0)) : undefined;
  return {
    bytes,
    blocks,
    bytesVariance: variance(after.bytesVariance, before.bytesVariance),
    blocksVariance: variance(after.blocksVariance, before.blocksVariance),
    before: { bytes: before.bytes, blocks: before.blocks },
  };
}

/** Keeps the tracebacks that go through all functions of `only` and none of `without`. */
export function restrict(data: Data, of: Amounts, only: string[], without: string[]): Amounts {
  if (only.length === 0 && without.length === 0) return of;
  const { nodes, frames } = data;
  const kept = new Uint8Array(nodes.length).fill(1);
  const through = (name: string) => {
    const has = new Uint8Array(nodes.length);
    for (let node = 0; node < nodes.length; node += 1) {
      const parent = nodes.parent[node]!;
      has[node] = (parent >= 0 && has[parent]) || frames.name(nodes.frame[node]!) === name ? 1 : 0;
    }
    return has;
  };
  for (const name of only) through(name).forEach((has, node) => (kept[node]! &= has));
  for (const name of without) through(name).forEach((has, node) => (kept[node]! &= has ^ 1));
  const keep = (values: Float64Array) => values.map((value, node) => (kept[node] ? value : 0));
  return {
    bytes: keep(of.bytes),
    blocks: keep(of.blocks),
    bytesVariance: of.bytesVariance && keep(of.bytesVariance),
    blocksVariance: of.blocksVariance && keep(of.blocksVariance),
    before: of.before && { bytes: keep(of.before.bytes), blocks: keep(of.before.blocks) },
  };
}

export function sum(values: Float64Array | undefined): number {
  let sum = 0;
  if (values) for (let index = 0; index < values.length; index += 1) sum += values[index]!;
  return sum;
}
