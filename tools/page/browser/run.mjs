// Checks pages in a real Chromium: tools/tests/browser.rs makes the pages, and says what must be in them.
//
//   node browser/run.mjs SPEC     SPEC: {"chromium": PATH, "scene": {...}, "diff": {...}, "big": {...}}
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const spec = JSON.parse(readFileSync(process.argv[2], "utf8"));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath: spec.chromium, args: ["--no-sandbox", "--enable-precise-memory-info"] });

/** Opens a page, and fails on any error in it and any request from it. */
async function open(file, hash = "", options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  const address = pathToFileURL(file).href;
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`error: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && wrong.push(`console: ${message.text()}`));
  page.on("request", (request) => request.url().split("#")[0] !== address && wrong.push(`request: ${request.url()}`));
  await page.goto(address + hash);
  await page.waitForSelector("html[data-ready]");
  return { page, close: async () => (assert.deepEqual(wrong, []), context.close()) };
}

const figures = (page) => page.$eval("output.total", (total) => [Number(total.dataset.bytes), Number(total.dataset.blocks)]);
const radio = (page, group, text) => page.click(`[role=radiogroup][aria-label="${group}"] button:text-is("${text}")`);
const hash = (page) => page.evaluate(() => decodeURIComponent(location.hash));
const here = (page) => page.$eval("#graph-here", (item) => item.textContent);

const tests = {
  async "totals are those of report"() {
    const { page, close } = await open(spec.scene.file);
    for (const [name, expected] of Object.entries(spec.scene.totals)) {
      const [domain, at] = name.split("/");
      await radio(page, "Memory", domain);
      await radio(page, "Moment", at[0].toUpperCase() + at.slice(1));
      assert.deepEqual(await figures(page), expected, name);
    }
    await close();
  },

  async "keys move, zoom and find; Back goes back"() {
    const { page, close } = await open(spec.scene.file);
    await page.focus("[role=tree]");
    assert.match(await here(page), /^all/);
    await page.keyboard.press("ArrowDown");
    assert.match(await here(page), /^main, .*inlines\.c:22: 10107 B, 100 %$/);
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowDown");
    assert.match(await here(page), /^middle, .*:9/);
    await page.keyboard.press("ArrowRight");
    assert.match(await here(page), /^middle, .*:10/);
    assert.equal(await page.$eval("#graph-here", (item) => item.getAttribute("aria-posinset")), "2");
    await page.keyboard.press("Enter");
    const zoomed = await hash(page);
    assert.match(zoomed, /zoom=/);
    await page.goBack();
    assert.doesNotMatch(await hash(page), new RegExp(zoomed.replace(/[#.]/g, "\\$&") + "$"));
    await page.goForward();
    assert.equal(await hash(page), zoomed);
    await page.focus("[role=tree]");
    for (let step = 0; step < 4; step += 1) await page.keyboard.press("Escape");
    assert.doesNotMatch(await hash(page), /zoom=/);
    await page.keyboard.press("/");
    await page.keyboard.type("innermost");
    assert.equal(await page.textContent(".found"), "2 · 100 %");
    await page.keyboard.press("Enter");
    assert.match(await here(page), /^innermost, .*: 10100 B/);
    await page.keyboard.press("Escape");
    assert.equal(await page.textContent(".found"), "");
    await page.keyboard.press("Escape");
    await page.keyboard.press("?");
    assert.ok(await page.isVisible("dialog"));
    await page.keyboard.press("Escape");
    assert.ok(!(await page.isVisible("dialog")));
    await close();
  },

  async "a click zooms, and functions have callers and callees"() {
    const { page, close } = await open(spec.scene.file);
    const box = await page.locator(".flame canvas").boundingBox();
    await page.mouse.move(box.x + 100, box.y + 30);
    assert.match(await page.textContent(".details"), /main/);
    await page.mouse.click(box.x + 100, box.y + 50);
    assert.match(await hash(page), /zoom=/);
    await page.click(".actions button:has-text('Callers and callees')");
    assert.match(await hash(page), /sandwich=outer/);
    assert.match(await page.textContent(".chips"), /outer/);
    await page.click(".chips button");
    assert.doesNotMatch(await hash(page), /sandwich/);
    await page.focus("[role=tree]");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("h");
    assert.match(await page.textContent(".empty"), /No traceback passes/);
    assert.deepEqual(await figures(page), [0, 0]);
    await page.goBack();
    assert.deepEqual(await figures(page), spec.scene.totals["native/live"]);
    await close();
  },

  async "a drag is a range, a click an instant"() {
    const { page, close } = await open(spec.scene.file);
    const chart = await page.locator(".chart canvas").boundingBox();
    const x = (part) => chart.x + 64 + part * (chart.width - 72);
    for (const { from, to, measure, expected } of spec.scene.ranges) {
      await page.mouse.move(x(from), chart.y + 50);
      await page.mouse.down();
      await page.mouse.move(x((from + to) / 2), chart.y + 50);
      await page.mouse.move(x(to), chart.y + 50);
      await page.mouse.up();
      await radio(page, "Change", measure);
      assert.match(await hash(page), /at=range/);
      assert.deepEqual(await figures(page), expected, measure);
    }
    for (const { at, expected } of spec.scene.instants) {
      await page.mouse.click(x(at), chart.y + 50);
      assert.match(await hash(page), /at=instant/);
      assert.deepEqual(await figures(page), expected, `instant ${at}`);
    }
    await page.focus(".chart");
    await page.keyboard.press("End");
    const last = await figures(page);
    assert.deepEqual(last, spec.scene.instants.at(-1).expected);
    await page.keyboard.press("Shift+Home");
    assert.match(await hash(page), /at=range/);
    await page.keyboard.press("Escape");
    assert.deepEqual(await figures(page), spec.scene.totals["native/live"]);
    await close();
  },

  async "the table sorts, filters, copies and opens rows"() {
    const { page, close } = await open(spec.scene.file, "#view=table&by=function&domain=0");
    const names = () => page.$$eval(".grid-rows .label", (labels) => labels.map((label) => label.textContent));
    assert.equal((await names())[0], "innermost");
    await page.click(".grid-head .through");
    await page.click(".grid-head .through");
    assert.equal(await page.getAttribute(".grid-head .through", "aria-sort"), "ascending");
    await page.keyboard.press("/");
    await page.keyboard.type("midd");
    assert.deepEqual(await names(), ["middle"]);
    await page.keyboard.press("Escape");
    await page.click("button:has-text('Copy as text')");
    await page.waitForSelector("#panel-table span:text-is('Copied')");
    await page.focus("[role=grid]");
    assert.equal(await page.getAttribute("[role=grid]", "aria-activedescendant"), "row-0");
    await page.keyboard.press("Enter");
    assert.match(await hash(page), /sandwich=middle/);
    await page.goBack();
    assert.deepEqual(await names(), ["middle"]);
    await radio(page, "Rows", "Threads");
    await page.fill("input[aria-label='Filter rows']", "");
    assert.deepEqual((await names()).sort(), spec.scene.threads);
    await close();
  },

  async "rows of the table are those of report"() {
    for (const [by, expected] of Object.entries(spec.scene.rows)) {
      const { page, close } = await open(spec.scene.file, `#view=table&by=${by}`);
      const rows = await page.$$eval(".grid-rows .grid-row", (rows) =>
        rows.map((row) => [".label", ".size", ".blocks"].map((part) => row.querySelector(part).textContent)));
      assert.deepEqual(rows.filter((row) => row[1] !== "–"), expected, by);
      await close();
    }
  },

  async "a switch of threads leaves the blocks of one"() {
    const { page, close } = await open(spec.scene.file);
    await page.selectOption("select[aria-label=Thread]", { label: spec.scene.threads.at(-1) });
    assert.deepEqual(await figures(page), spec.scene.worker);
    await page.click("[role=tab]:has-text('Sizes')");
    assert.equal((await page.$$(".sizes tbody tr")).length, 1);
    await close();
  },

  async "an address keeps the view, and no address does harm"() {
    const { page, close } = await open(spec.scene.file, "#domain=0&at=peak&unit=blocks&view=table&by=file");
    assert.equal(await page.getAttribute("#tab-table", "aria-selected"), "true");
    assert.deepEqual(await figures(page), spec.scene.totals["native/peak"]);
    await page.reload();
    await page.waitForSelector("html[data-ready]");
    assert.deepEqual(await figures(page), spec.scene.totals["native/peak"]);
    await close();
    const hostile = await open(spec.scene.file, `#domain=99&at=range&since=x&only=${encodeURIComponent("<img src=x onerror=alert(1)>")}&zoom=zz.-1.<b>&sort=__proto__`);
    assert.match(await hostile.page.getAttribute(".chips button", "title"), /<img src=x/);
    assert.equal((await hostile.page.$$("img")).length, 0);
    await hostile.close();
  },

  async "each widget is one stop of Tab"() {
    const { page, close } = await open(spec.scene.file);
    const stops = [];
    for (let presses = 0; presses < 60; presses += 1) {
      await page.keyboard.press("Tab");
      const stop = await page.evaluate(() => (document.activeElement === document.body ? "" : document.activeElement.outerHTML.slice(0, 80)));
      if (!stop || stops.includes(stop)) break;
      stops.push(stop);
    }
    assert.ok(stops.length >= 10 && stops.length <= 24, `${stops.length} stops:\n${stops.join("\n")}`);
    await close();
  },

  async "dark and light, wide and narrow: no serious finding of axe"() {
    for (const colorScheme of ["light", "dark"]) {
      for (const tab of ["graph", "table", "sizes"]) {
        for (const width of [1280, 400]) {
          const { page, close } = await open(spec.scene.file, `#view=${tab}`, { colorScheme, viewport: { width, height: 800 } });
          const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
          assert.equal(background, colorScheme === "dark" ? "rgb(27, 27, 29)" : "rgb(251, 250, 248)");
          const wide = await page.evaluate(() => document.documentElement.scrollWidth);
          assert.ok(wide <= width, `${tab} is ${wide} wide in a window of ${width}`);
          await page.evaluate(axe);
          const { violations } = await page.evaluate(() => globalThis.axe.run());
          const told = violations.map((one) => `${one.impact}: ${one.id}: ${one.nodes.map((node) => `${node.html.slice(0, 160)} ${node.failureSummary}`).join("\n")}`);
          const serious = told.filter((text) => /^(serious|critical)/.test(text));
          assert.deepEqual(serious, [], `${tab}, ${colorScheme}, ${width}`);
          await close();
        }
      }
    }
    const { page, close } = await open(spec.scene.file);
    await page.keyboard.press("d");
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(27, 27, 29)");
    await close();
  },

  async "a diff shows what has grown, shrunk, come and gone"() {
    const { page, close } = await open(spec.diff.file);
    for (const [measure, expected] of Object.entries(spec.diff.measures)) {
      await radio(page, "Change", measure);
      assert.deepEqual(await figures(page), expected, measure);
    }
    await close();
  },

  async "samples are estimates with intervals, in figures and in boxes"() {
    const { page, close } = await open(spec.sampled.file);
    assert.deepEqual(await figures(page), spec.sampled.total);
    assert.equal((await page.textContent("output.total")).replace(/(\d),(\d)/g, "$1$2"), spec.sampled.text);
    await page.focus("[role=tree]");
    await page.keyboard.press("ArrowDown");
    assert.match(await page.textContent(".details .figures"), /^~.*95 %: /);
    await close();
  },

  async "a tree of processes has a switch for each"() {
    const { page, close } = await open(spec.tree.file);
    assert.deepEqual(await figures(page), spec.tree.total);
    const labels = await page.$$eval("select[aria-label=Process] option", (options) => options.map((option) => option.textContent));
    assert.equal(labels.length, spec.tree.parts.length + 1);
    for (const [index, expected] of spec.tree.parts.entries()) {
      await page.selectOption("select[aria-label=Process]", { index: index + 1 });
      assert.deepEqual(await figures(page), expected, labels[index + 1]);
    }
    await close();
  },

  async "a page of 100,000 stacks"() {
    const size = readFileSync(spec.big.file).length;
    const before = Date.now();
    const { page, close } = await open(spec.big.file);
    const opened = Date.now() - before;
    const painted = await page.evaluate(() => performance.getEntriesByName("painted")[0].startTime);
    assert.deepEqual(await figures(page), spec.big.total);
    // Zooms in and out of the widest boxes as fast as frames come.
    const frames = await page.evaluate(async () => {
      const tree = document.querySelector("[role=tree]");
      tree.focus();
      const press = (key) => tree.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const keys = ["ArrowDown", "Enter", "ArrowDown", "Enter", "ArrowDown", "Enter", "Escape", "Escape", "Escape", "Home"];
      const frame = () => new Promise((done) => requestAnimationFrame(done));
      await frame();
      const begin = performance.now();
      for (let count = 0; count < 120; count += 1) {
        press(keys[count % keys.length]);
        await frame();
      }
      return 120_000 / (performance.now() - begin);
    });
    const times = {};
    for (const [name, action] of [
      ["leaves first", () => page.keyboard.press("i")], ["table", () => page.keyboard.press("t")], ["peak", () => radio(page, "Moment", "Peak")],
    ]) {
      const begin = Date.now();
      await action();
      await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => done())));
      times[name] = `${Date.now() - begin} ms`;
    }
    const heap = await page.evaluate(() => performance.memory.usedJSHeapSize);
    console.log(`big: ${size} bytes, opened after ${opened} ms, painted after ${painted.toFixed(0)} ms, ${frames.toFixed(0)} frames a second, heap ${(heap / 2 ** 20).toFixed(0)} MiB`, times);
    await close();
  },
};

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
    console.log(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED: ${name}\n${error.stack}`);
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
