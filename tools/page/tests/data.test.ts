import assert from "node:assert/strict";
import { test } from "node:test";
import { amounts, interval, restrict, sampleSize, sum } from "../src/amounts.ts";
import { groups } from "../src/groups.ts";
import { buckets } from "../src/sizes.ts";
import { fromLeaves, fromRoot, Layout, sandwich, Tree } from "../src/tree.ts";
import { fromHash, toHash, type View } from "../src/view.ts";
import { read, scene } from "./scene.ts";

const SHAPE = { plumbing: false, lines: true, fold: false, unit: "bytes" as const };

test("columns come back", async () => {
  const columns = await read([
    ["a", "plain", [0, 127, 128, 2 ** 53]], ["b", "signed", [0, -1, 1, -(2 ** 40)]], ["c", "steps", [5, 6, 4, 0]], ["d", "reals", [0.5]], ["e", "texts", ["é", ""]],
  ]);
  assert.deepEqual([...columns.numbers("a")], [0, 127, 128, 2 ** 53]);
  assert.deepEqual([...columns.numbers("b")], [0, -1, 1, -(2 ** 40)]);
  assert.deepEqual([...columns.indices("c")], [5, 6, 4, 0]);
  assert.deepEqual([...columns.reals("d")], [0.5]);
  assert.deepEqual(columns.texts("e"), ["é", ""]);
  assert.throws(() => columns.numbers("f"), /no column f/);
});

test("each moment, thread and instant has its amounts", async () => {
  const { data, view } = await scene();
  const of = (change: Partial<View>) => {
    const { bytes, blocks } = amounts(data, { ...view, ...change });
    return [sum(bytes), sum(blocks)];
  };
  assert.deepEqual(of({}), [1050, 15]);
  assert.deepEqual(of({ moment: "peak" }), [1150, 16]);
  assert.deepEqual(of({ moment: "total" }), [2300, 32]);
  assert.deepEqual(of({ thread: 1 }), [100, 1]);
  assert.deepEqual(of({ moment: "instant", at: 1_000_100 }), [1200, 12]);
  assert.deepEqual(of({ moment: "instant", at: 1_000_200 }), [1050, 15]);
  assert.deepEqual(of({ moment: "instant", at: 999_999 }), [0, 0]);
  const range = { moment: "range" as const, since: 1_000_100, at: 1_000_200 };
  assert.deepEqual(of({ ...range, measure: "grown" }), [50, 5]);
  assert.deepEqual(of({ ...range, measure: "shrunk" }), [200, 2]);
  assert.deepEqual(of({ ...range, measure: "new" }), [50, 5]);
  assert.deepEqual(of({ ...range, measure: "gone" }), [100, 1]);
  assert.deepEqual(of({ ...range, measure: "allocated" }), [100, 5]);
});

/** Names and bytes of a tree: depth, name, bytes. */
function drawn(data: Awaited<ReturnType<typeof scene>>["data"], tree: Tree): string[] {
  const layout = new Layout(tree, "bytes");
  const rows: string[] = [];
  const walk = (box: number) => {
    if (box > 0) rows.push(`${"-".repeat(tree.depth[box]!)}${data.frames.name(tree.frame[box]!)} ${tree.bytes[box]!}`);
    for (const child of layout.childrenOf(box)) walk(child);
  };
  walk(0);
  return rows;
}

test("trees from the root, from the leaves, and around a function", async () => {
  const { data, view } = await scene();
  const of = amounts(data, view);
  assert.deepEqual(drawn(data, fromRoot(data, of, SHAPE)), ["-main 1050", "--load 900", "--parse 150", "---load 50"]);
  assert.deepEqual(drawn(data, fromRoot(data, of, { ...SHAPE, plumbing: true })), [
    "-_start 1050", "--main 1050", "---load 900", "----new 900", "---parse 150", "----new 100", "----load 50", "-----new 50",
  ]);
  assert.deepEqual(drawn(data, fromLeaves(data, of, SHAPE)), ["-load 950", "--main 900", "--parse 50", "---main 50", "-parse 100", "--main 100"]);
  const { callers, callees } = sandwich(data, of, SHAPE, "load");
  assert.equal(callers.bytes[0], 950);
  assert.equal(callees.bytes[0], 950);
  assert.deepEqual(drawn(data, callers), ["-main 900", "-parse 50", "--main 50"]);
  assert.deepEqual(drawn(data, callees), []);
});

test("filters keep and drop whole tracebacks", async () => {
  const { data, view } = await scene();
  const of = amounts(data, view);
  assert.equal(sum(restrict(data, of, ["load"], []).bytes), 950);
  assert.equal(sum(restrict(data, of, ["load", "parse"], []).bytes), 50);
  assert.equal(sum(restrict(data, of, [], ["parse"]).bytes), 900);
});

test("a cycle of a recursion folds into the box where it began", () => {
  const tree = new Tree();
  const step = (box: number, key: number) => tree.step(box, key, key, true);
  const f = step(0, 1);
  const g = step(f, 2);
  assert.deepEqual([step(g, 1), step(f, 1), step(g, 2)], [f, f, g]);
  assert.equal(tree.step(g, 1, 1, false), 3);
});

test("a level is searched by place", async () => {
  const { data, view } = await scene();
  const layout = new Layout(fromRoot(data, amounts(data, view), SHAPE), "bytes");
  const name = (depth: number, place: number) => {
    const box = layout.at(depth, place);
    return box === undefined ? undefined : data.frames.name(layout.tree.frame[box]!);
  };
  assert.deepEqual([name(1, 0), name(2, 899), name(2, 900), name(3, 10), name(3, 920), name(9, 0)], ["main", "load", "parse", undefined, "load", undefined]);
});

test("paths lead to boxes, as far as they go", () => {
  const tree = new Tree();
  const one = tree.child(0, 5, 5);
  const two = tree.child(one, 7, 7);
  assert.deepEqual(tree.path(two), [5, 7]);
  assert.equal(tree.follow([5, 7]), two);
  assert.equal(tree.follow([5, 8, 7]), one);
  // Many boxes: the arrays and the table grow.
  for (let key = 0; key < 10_000; key += 1) assert.equal(tree.child(two, key, key), tree.child(two, key, key));
  assert.equal(tree.count, 10_003);
});

test("the table blames the program, and counts a recursion once", async () => {
  const { data, view } = await scene();
  const of = amounts(data, view);
  const rows = (by: View["by"]) =>
    Object.fromEntries(groups(data, { ...view, by }, of, undefined).map((group) => [group.name, [group.bytes, group.blocks, group.throughBytes]]));
  assert.deepEqual(rows("line"), {
    "libc.so": [0, 0, 1050], "app.c:10": [0, 0, 1050], "app.c:20": [950, 14, 950], "libstdc++.so": [0, 0, 1050], "app.c:30": [100, 1, 150],
  });
  assert.deepEqual(rows("file"), { "libc.so": [0, 0, 1050], "app.c": [1050, 15, 1050], "libstdc++.so": [0, 0, 1050] });
  const threads = groups(data, { ...view, by: "thread" }, of, undefined).map((group) => [group.name, group.bytes, group.blocks]);
  assert.deepEqual(threads, [["main (7)", 950, 14], ["worker (8)", 100, 1]]);
  assert.deepEqual(groups(data, { ...view, by: "thread", moment: "peak" }, of, undefined).map((group) => group.bytes), [1050]);
});

test("sizes are counted by powers of two", async () => {
  const { data, view } = await scene();
  const found = buckets(data, view).filter((bucket) => bucket.blocks).map(({ low, high, bytes, blocks }) => [low, high, bytes, blocks]);
  assert.deepEqual(found, [[9, 16, 50, 5], [65, 128, 1000, 10]]);
});

test("intervals are those of report", () => {
  const [low, high] = interval(100, 100 * 100 / 100);
  assert.ok(Math.abs(low - 82.2) < 0.3 && Math.abs(high - 121.6) < 0.3, `${low} to ${high}`);
  assert.deepEqual(interval(5, 0), [5, 5]);
  assert.equal(sampleSize(64 * 16384, 1, 1 << 20) > 0, true);
  assert.equal(sampleSize(1000, 10, 0), 100);
});

test("a view comes back from its hash, and no hash does harm", async () => {
  const { view } = await scene();
  const other: View = {
    ...view, moment: "range", at: 1_000_200, since: 1_000_100, measure: "gone", unit: "blocks", tab: "table", inverted: true, lines: false, search: "a&b=c#",
    only: ["f<int>", "g"], without: ["h"], zoom: [0, 35, 36], by: "module", sort: "-blocks", sandwich: "x::y",
  };
  assert.deepEqual(fromHash(toHash(other, view), view), other);
  assert.equal(toHash(view, view), "");
  assert.deepEqual(fromHash("#domain=x&at=never&view=<b>&zoom=..&thread=1e9&lines=7", view), { ...view, zoom: [], lines: false });
});
