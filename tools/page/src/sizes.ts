// Sizes of live blocks: a histogram by powers of two.

import { sameThread } from "./amounts.ts";
import type { Data } from "./data.ts";
import { el } from "./dom.ts";
import { number, share, size } from "./text.ts";
import type { View } from "./view.ts";

export interface Bucket {
  /** Least and greatest size of a block, in bytes. */
  low: number;
  high: number;
  bytes: number;
  blocks: number;
}

/** The live blocks of a view by size. */
export function buckets(data: Data, view: View): Bucket[] {
  const { rows, live, weights, head } = data;
  const found = new Map<number, Bucket>();
  for (let index = 0; index < live.length; index += 1) {
    const row = live.row[index]!;
    const process = rows.process[row]!;
    if (rows.domain[row] !== view.domain || head.processes[process]!.old) continue;
    if (view.process >= 0 && process !== view.process) continue;
    if (view.thread >= 0 && !sameThread(data, live.thread[index]!, view.thread)) continue;
    const weight = rows.weight[row]!;
    // A sample counts more than the size of its block.
    const each = weight ? weights.size[weight]! : live.each[index]!;
    const power = each <= 1 ? 0 : Math.ceil(Math.log2(each));
    const bucket = found.get(power) ?? { low: power === 0 ? 0 : 2 ** (power - 1) + 1, high: 2 ** power, bytes: 0, blocks: 0 };
    bucket.bytes += live.each[index]! * live.count[index]!;
    bucket.blocks += live.count[index]! * weights.blocks[weight]!;
    found.set(power, bucket);
  }
  const powers = [...found.keys()];
  if (powers.length === 0) return [];
  const [least, most] = [Math.min(...powers), Math.max(...powers)];
  return Array.from({ length: most - least + 1 }, (_, index) => {
    const power = least + index;
    return found.get(power) ?? { low: power === 0 ? 0 : 2 ** (power - 1) + 1, high: 2 ** power, bytes: 0, blocks: 0 };
  });
}

export function histogram(data: Data, view: View): HTMLElement {
  if (view.moment !== "live") {
    return el("p", { class: "empty" }, "Sizes of single blocks are known of the live blocks only: choose Live above.");
  }
  const all = buckets(data, view);
  if (all.length === 0) return el("p", { class: "empty" }, "There are no live blocks in this view.");
  const value = (bucket: Bucket) => (view.unit === "bytes" ? bucket.bytes : bucket.blocks);
  const most = Math.max(...all.map(value), 1);
  const sum = all.reduce((sum, bucket) => sum + value(bucket), 0);
  const row = (bucket: Bucket) => {
    const bar = el("span", { class: "bar" });
    bar.style.width = `${(100 * value(bucket)) / most}%`;
    const label = bucket.high <= 1 ? "up to 1 B" : `${size(bucket.low)} – ${size(bucket.high)}`;
    return el("tr", {}, el("th", { scope: "row" }, label), el("td", { class: "bars" }, bar), el("td", {}, value(bucket) ? share(value(bucket), sum) : ""),
      el("td", {}, bucket.bytes ? size(bucket.bytes) : "–"), el("td", {}, bucket.blocks ? number(Math.round(bucket.blocks)) : "–"));
  };
  const head = el("tr", {}, ...["Size of a block", view.unit === "bytes" ? "Bytes in blocks of this size" : "Blocks of this size", "Share", "Bytes", "Blocks"]
    .map((title) => el("th", { scope: "col" }, title)));
  return el("table", { class: "sizes" }, el("thead", {}, head), el("tbody", {}, ...all.map(row)));
}
