// The graph: boxes on a canvas, a focus that moves by keys, and a list for screen readers.

import { interval } from "./amounts.ts";
import type { Data } from "./data.ts";
import { el, onceAFrame, Surface } from "./dom.ts";
import { hash, type Palette, palette, shade } from "./palette.ts";
import { base, counted, folded, number, pythonForms, share, shorter, size } from "./text.ts";
import { Layout, type Tree } from "./tree.ts";

const ROW = 20;
/** Longest name in a box, in characters: more has no room. */
const LONGEST = 1000;
const FONT = '12px -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", system-ui, sans-serif';

export interface Scene {
  /** The tree below the root box; the root is drawn at its head. */
  main: Layout;
  /** Callers of the root, drawn on the other side of the root box. */
  other: Layout | undefined;
  rootName: string;
  unit: "bytes" | "blocks";
  noun: string;
  sampled: boolean;
  upwards: boolean;
  whole: boolean;
  lines: boolean;
  source: boolean;
  /** By group of modules: its colour. */
  groups: Map<string, number>;
  zoom: number[];
  search: string;
}

export interface Actions {
  zoomed(path: number[]): void;
  sandwich(name: string): void;
  only(name: string): void;
  hide(name: string): void;
}

interface Spot {
  layout: Layout;
  box: number;
}

export class Flame {
  readonly element: HTMLElement;
  readonly details: HTMLElement;
  private readonly surface = new Surface();
  private readonly reader = el("div", { class: "offscreen" });
  private scene: Scene | undefined;
  private colours: Palette = palette();
  private hovered: Spot | undefined;
  private focused: Spot | undefined;
  private zoomBox = 0;
  /** Whether the function between its callers and callees was brought into the window. */
  private isCentred = true;
  private matching: Uint8Array | undefined;
  private matchingOther: Uint8Array | undefined;
  private found: number[] = [];
  private names = new Map<number, string[]>();
  private frameColours: (string | undefined)[] = [];
  private groupColours: (string | undefined)[] = [];
  private widths = new Map<string, number>();
  readonly redraw = onceAFrame(() => this.draw());

  constructor(private readonly data: Data, private readonly ownerOf: (frame: number) => string, private readonly actions: Actions) {
    this.element = el("div", { class: "flame", role: "tree", tabindex: 0, "aria-label": "Flame graph" }, this.surface.canvas, this.reader);
    this.details = el("div", { class: "details" });
    const { canvas } = this.surface;
    canvas.addEventListener("mousemove", (event) => this.hover(this.spotAt(event)));
    canvas.addEventListener("mouseleave", () => this.hover(undefined));
    canvas.addEventListener("click", (event) => {
      const spot = this.spotAt(event);
      if (!spot) return;
      this.focused = spot;
      this.zoom(spot);
    });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("focus", () => {
      this.focused ??= this.scene && { layout: this.scene.main, box: this.zoomBox };
      this.told();
    });
    new ResizeObserver(this.redraw).observe(this.element);
    addEventListener("scroll", this.redraw, { passive: true });
  }

  show(scene: Scene): void {
    const isNew = this.scene?.main !== scene.main || this.scene.other !== scene.other;
    if (this.scene?.whole !== scene.whole) this.names.clear();
    const lastSearch = this.scene?.search;
    this.scene = scene;
    this.zoomBox = scene.main.tree.follow(scene.zoom);
    if (isNew) {
      this.hovered = this.focused = undefined;
      this.isCentred = scene.other === undefined;
    }
    if (isNew || lastSearch !== scene.search) this.search();
    this.told();
    this.redraw();
  }

  recolour(): void {
    this.colours = palette();
    this.frameColours = [];
    this.groupColours = [];
    this.redraw();
  }

  /** Number of matches, and the amount of all tracebacks through them. */
  get matches(): { boxes: number; amount: number; whole: number } {
    const scene = this.scene;
    if (!scene || !this.matching) return { boxes: 0, amount: 0, whole: 0 };
    const { tree, value } = scene.main;
    // A match below a match is part of it.
    const inside = new Uint8Array(tree.count);
    let amount = 0;
    for (let box = 0; box < tree.count; box += 1) {
      const below = box > 0 && inside[tree.parent[box]!]!;
      if (!below && this.matching[box]) amount += value[box]!;
      inside[box] = below || this.matching[box] ? 1 : 0;
    }
    return { boxes: this.found.length, amount, whole: value[0]! };
  }

  /** Zooms to the next box that matches, the widest first. */
  next(step: number): void {
    const scene = this.scene;
    if (!scene || this.found.length === 0) return;
    const at = this.found.indexOf(this.focused?.layout === scene.main ? this.focused.box : -1);
    const next = this.found[(at < 0 ? (step > 0 ? 0 : -1) : at + step + this.found.length) % this.found.length] ?? this.found.at(-1)!;
    this.focused = { layout: scene.main, box: next };
    this.reveal(next);
    this.told();
    this.redraw();
  }

  // Names

  private nameOf(tree: Tree, box: number): string {
    const frame = tree.frame[box]!;
    return frame < 0 ? (this.scene?.rootName ?? "all") : this.data.frames.name(frame);
  }

  private forms(tree: Tree, box: number): string[] {
    const frame = tree.frame[box]!;
    if (frame < 0) return [this.scene?.rootName ?? "all"];
    const key = this.data.frames.python[frame] ? -1 - frame : this.data.frames.function[frame]!;
    const known = this.names.get(key);
    if (known) return known;
    const name = this.data.frames.name(frame);
    const isPython = this.data.frames.python[frame] === 1;
    const forms = isPython ? pythonForms(name, base(this.data.frames.fileOf(frame))) : this.scene?.whole ? [name.slice(0, LONGEST)] : shorter(folded(name));
    this.names.set(key, forms);
    return forms;
  }

  // Search

  private search(): void {
    const scene = this.scene!;
    const wanted = scene.search.trim().toLowerCase();
    this.found = [];
    this.matching = this.matchingOther = undefined;
    if (!wanted) return;
    const { frames } = this.data;
    const texts = frames.texts.map((text) => text.toLowerCase().includes(wanted));
    const matchesOf = (tree: Tree) => {
      const matching = new Uint8Array(tree.count);
      for (let box = 0; box < tree.count; box += 1) {
        const frame = tree.frame[box]!;
        if (frame >= 0 && (texts[frames.function[frame]!] || texts[frames.file[frame]!])) matching[box] = 1;
      }
      return matching;
    };
    const { tree, value } = scene.main;
    this.matching = matchesOf(tree);
    if (scene.other) this.matchingOther = matchesOf(scene.other.tree);
    // Of matches inside of matches, the outermost is the one to go to.
    for (let box = 0; box < tree.count; box += 1) {
      if (this.matching[box] && !(box > 0 && this.matching[tree.parent[box]!])) this.found.push(box);
    }
    this.found.sort((one, other) => value[other]! - value[one]! || one - other);
  }

  // Geometry

  private get viewport(): { left: number; scale: number } {
    const { main } = this.scene!;
    const whole = main.value[this.zoomBox]!;
    return { left: main.start[this.zoomBox]!, scale: whole > 0 ? this.surface.width / whole : 0 };
  }

  private get heights(): { above: number; below: number } {
    const scene = this.scene!;
    const deepest = (layout: Layout, box: number): number => this.visibleDepth(layout, box);
    return {
      above: scene.other ? Math.max(1, deepest(scene.other, 0)) : 0,
      below: 1 + deepest(scene.main, this.zoomBox) + scene.main.tree.depth[this.zoomBox]!,
    };
  }

  /** Levels below a box that have boxes of a pixel. */
  private visibleDepth(layout: Layout, box: number): number {
    const { start, value, levels, tree } = layout;
    const [left, right] = [start[box]!, start[box]! + value[box]!];
    const least = (right - left) / Math.max(this.surface.width, 1) / 2;
    let depth = tree.depth[box]!;
    for (let level = levels[depth + 1]; level; level = levels[depth + 1]) {
      let at = layout.firstBehind(depth + 1, left);
      let isVisible = false;
      for (; at < level.length && start[level[at]!]! < right; at += 1) {
        if (value[level[at]!]! >= least) {
          isVisible = true;
          break;
        }
      }
      if (!isVisible) break;
      depth += 1;
    }
    return depth - tree.depth[box]!;
  }

  private top(layout: Layout, depth: number): number {
    const { above, below } = this.sizes;
    const scene = this.scene!;
    const isOther = layout === scene.other;
    const rows = above + below;
    // Row of the box, counted from the callers' outermost level.
    const row = isOther ? above - depth : above + depth;
    return (scene.upwards ? rows - 1 - row : row) * ROW;
  }

  private sizes = { above: 0, below: 1 };

  private spotAt(event: MouseEvent): Spot | undefined {
    const scene = this.scene;
    if (!scene) return undefined;
    const { above, below } = this.sizes;
    let row = Math.floor(event.offsetY / ROW);
    if (scene.upwards) row = above + below - 1 - row;
    const { left, scale } = this.viewport;
    if (row < above && scene.other) {
      const ratio = scene.other.value[0]! / Math.max(this.surface.width, 1);
      const box = scene.other.at(above - row, event.offsetX * ratio);
      return box === undefined ? undefined : { layout: scene.other, box };
    }
    const depth = row - above;
    if (depth <= scene.main.tree.depth[this.zoomBox]!) {
      let box = this.zoomBox;
      while (scene.main.tree.depth[box]! > depth && box > 0) box = scene.main.tree.parent[box]!;
      return { layout: scene.main, box };
    }
    const box = scene.main.at(depth, left + event.offsetX / (scale || 1));
    return box === undefined ? undefined : { layout: scene.main, box };
  }

  // Drawing

  private draw(): void {
    const scene = this.scene;
    const width = this.element.clientWidth;
    if (!scene || width === 0) return;
    this.surface.width = width;
    this.sizes = this.heights;
    const rows = this.sizes.above + this.sizes.below;
    const context = this.surface.resize(width, rows * ROW + 1);
    context.font = FONT;
    context.textBaseline = "middle";
    if (!this.isCentred) {
      this.isCentred = true;
      const y = this.element.getBoundingClientRect().top + this.top(scene.main, 0);
      if (y > innerHeight - 160) scrollBy({ top: y - innerHeight / 2 });
    }
    const { left, scale } = this.viewport;
    const { main, other } = scene;
    const zoomDepth = main.tree.depth[this.zoomBox]!;
    // Rows outside of the window are drawn when they come into it.
    const { top } = this.element.getBoundingClientRect();
    const [from, until] = document.documentElement.classList.contains("printing") ? [-Infinity, Infinity] : [-top - 10 * ROW, innerHeight - top + 10 * ROW];
    const isSeen = (layout: Layout, depth: number) => {
      const y = this.top(layout, depth);
      return layout.levels[depth] !== undefined && y >= from && y <= until;
    };
    for (let box = main.tree.parent[this.zoomBox]!; box >= 0; box = main.tree.parent[box]!) {
      this.drawBox(main, box, 0, width, true);
    }
    this.drawBox(main, this.zoomBox, 0, width, false);
    for (let depth = zoomDepth + 1; depth < zoomDepth + this.sizes.below; depth += 1) {
      if (isSeen(main, depth)) this.drawLevel(main, depth, left, left + main.value[this.zoomBox]!, scale);
    }
    if (other) {
      const whole = other.value[0]!;
      for (let depth = 1; depth <= this.sizes.above; depth += 1) {
        if (isSeen(other, depth)) this.drawLevel(other, depth, 0, whole, whole > 0 ? width / whole : 0);
      }
    }
    this.outline(this.focused, document.activeElement === this.element ? 2 : 1);
    if (this.hovered && this.hovered.box !== this.focused?.box) this.outline(this.hovered, 1);
  }

  private drawLevel(layout: Layout, depth: number, left: number, right: number, scale: number): void {
    const level = layout.levels[depth]!;
    const starts = layout.starts[depth]!, ends = layout.ends[depth]!;
    const { context } = this.surface;
    const { frame } = layout.tree;
    const matching = layout === this.scene!.main ? this.matching : this.matchingOther;
    const y = this.top(layout, depth) + 1;
    // Narrow boxes of one colour side by side are one rectangle.
    let colour = "", from = 0, until = 0;
    const flush = () => {
      if (!colour) return;
      context.globalAlpha = colour === this.colours.mark ? 1 : matching ? 0.25 : 0.6;
      context.fillStyle = colour;
      context.fillRect(from, y, Math.max(until - from, 0.5), ROW - 1);
      context.globalAlpha = 1;
      colour = "";
    };
    let at = layout.firstBehind(depth, left);
    while (at < level.length && starts[at]! < right) {
      const box = level[at]!;
      const x = Math.max(0, (starts[at]! - left) * scale);
      const end = Math.min(this.surface.width, (ends[at]! - left) * scale);
      if (end - x >= 1) {
        flush();
        this.drawBox(layout, box, x, end - x, false);
        at += 1;
        continue;
      }
      // Boxes that end within the next pixel are one: a search finds the first behind.
      const next = Math.max(at + 1, layout.firstBehind(depth, left + (x + 1) / scale, at + 1));
      let isMatch = false;
      for (let one = at; matching && one < Math.min(next, at + 64) && !isMatch; one += 1) isMatch = matching[level[one]!] === 1;
      const wanted = isMatch ? this.colours.mark : this.groupColour(frame[box]!);
      if (wanted !== colour || x - until > 0.5) {
        flush();
        [colour, from] = [wanted, x];
      }
      until = Math.min((ends[next - 1]! - left) * scale, x + 1);
      at = next;
    }
    flush();
  }

  private groupColour(frame: number): string {
    return (this.groupColours[frame] ??= this.colourOfGroup(frame));
  }

  private colourOfGroup(frame: number): string {
    const index = this.scene!.groups.get(this.ownerOf(frame));
    return index === undefined ? this.colours.other : this.colours.groups[index]!;
  }

  private colourOf(frame: number): string {
    return frame < 0 ? this.colours.other : (this.frameColours[frame] ??= this.mixed(frame));
  }

  private mixed(frame: number): string {
    return shade(this.groupColour(frame), (hash(this.data.frames.name(frame)) % 7) - 3);
  }

  private drawBox(layout: Layout, box: number, x: number, width: number, isAbove: boolean): void {
    const { context } = this.surface;
    const { tree } = layout;
    const frame = tree.frame[box]!;
    const y = this.top(layout, tree.depth[box]!);
    const matching = layout === this.scene!.main ? this.matching : this.matchingOther;
    const isMatch = matching?.[box] === 1;
    context.globalAlpha = isAbove ? 0.55 : matching && !isMatch ? 0.38 : 1;
    context.fillStyle = isMatch ? this.colours.mark : this.colourOf(frame);
    context.fillRect(x, y + 1, width - (width > 3 ? 1 : 0.3), ROW - 1);
    context.globalAlpha = isAbove ? 0.75 : matching && !isMatch ? 0.6 : 1;
    if (width > 24) this.label(layout, box, x + 5, y + ROW / 2 + 1, width - 11);
    context.globalAlpha = 1;
  }

  private label(layout: Layout, box: number, x: number, y: number, room: number): void {
    const { context } = this.surface;
    const { tree } = layout;
    const frame = tree.frame[box]!;
    const forms = this.forms(tree, box);
    // The root of a sandwich stands for all lines of the function.
    const hasLine = box > 0 && this.scene!.lines;
    const line = hasLine && this.data.frames.line[frame] ? `:${this.data.frames.line[frame]}` : "";
    const source = this.scene!.source && hasLine ? this.data.frames.sourceOf(frame) : "";
    const amount = this.amountText(layout, box);
    const lineWidth = line ? this.measure(line) : 0;
    let text = forms.find((form) => this.measure(form) <= room - lineWidth) ?? forms.find((form) => this.measure(form) <= room);
    context.fillStyle = this.colours.boxText;
    if (text === undefined) {
      text = this.cut(forms.at(-1)!, room);
      if (text) context.fillText(text, x, y);
      return;
    }
    context.fillText(text, x, y);
    let used = this.measure(text);
    const alpha = context.globalAlpha;
    context.globalAlpha = alpha * 0.66;
    if (line && used + lineWidth <= room) {
      context.fillText(line, x + used, y);
      used += lineWidth;
    }
    const amountWidth = this.measure(amount);
    const hasAmount = used + amountWidth + 14 <= room;
    if (hasAmount) {
      context.textAlign = "right";
      context.fillText(amount, x + room, y);
      context.textAlign = "left";
    }
    const left = room - used - (hasAmount ? amountWidth + 14 : 0) - 14;
    if (source && left > 60) {
      context.globalAlpha = alpha * 0.8;
      context.font = FONT.replace("12px", "italic 12px");
      context.fillText(this.cut(source, left), x + used + 14, y);
      context.font = FONT;
    }
    context.globalAlpha = alpha;
  }

  private measure(text: string): number {
    const known = this.widths.get(text);
    if (known !== undefined) return known;
    if (this.widths.size > 50_000) this.widths.clear();
    const width = this.surface.context.measureText(text).width;
    this.widths.set(text, width);
    return width;
  }

  private cut(text: string, room: number): string {
    const width = this.measure(text);
    if (width <= room) return text;
    const kept = Math.floor((text.length * (room - 10)) / width);
    return kept < 2 ? "" : `${text.slice(0, kept)}…`;
  }

  private outline(spot: Spot | undefined, thickness: number): void {
    if (!spot) return;
    const place = this.placeOf(spot);
    if (!place) return;
    const { context } = this.surface;
    context.strokeStyle = this.colours.text;
    context.lineWidth = thickness;
    context.strokeRect(place.x + thickness / 2, place.y + 1, Math.max(place.width - 1 - thickness / 2, 1), ROW - 1.5);
  }

  private placeOf({ layout, box }: Spot): { x: number; y: number; width: number } | undefined {
    const scene = this.scene!;
    const { tree, start, value } = layout;
    const y = this.top(layout, tree.depth[box]!);
    if (layout === scene.other) {
      const scale = this.surface.width / (value[0]! || 1);
      return { x: start[box]! * scale, y, width: value[box]! * scale };
    }
    for (let at = this.zoomBox; at >= 0; at = tree.parent[at]!) if (at === box) return { x: 0, y, width: this.surface.width };
    const { left, scale } = this.viewport;
    const x = (start[box]! - left) * scale;
    const width = value[box]! * scale;
    return x + width < 0 || x > this.surface.width ? undefined : { x, y, width };
  }

  // What is told of a box

  private amountText(layout: Layout, box: number): string {
    const tilde = this.scene!.sampled && layout.tree.variance[box]! > 0 ? "~" : "";
    return tilde + (this.scene!.unit === "bytes" ? size(layout.value[box]!) : number(Math.round(layout.value[box]!)));
  }

  private sentence({ layout, box }: Spot): string {
    const { tree } = layout;
    const frame = tree.frame[box]!;
    const place = frame >= 0 && box > 0 ? `, ${this.data.frames.place(frame)}` : "";
    return `${this.nameOf(tree, box)}${place}: ${this.amountText(layout, box)}${this.scene!.unit === "blocks" ? ` ${this.scene!.noun}s` : ""}, ${share(layout.value[box]!, layout.value[0]!)}`;
  }

  private hover(spot: Spot | undefined): void {
    if (spot?.box === this.hovered?.box && spot?.layout === this.hovered?.layout) return;
    this.hovered = spot;
    this.surface.canvas.style.cursor = spot ? "pointer" : "default";
    this.describe(spot ?? this.focused);
    this.redraw();
  }

  private told(): void {
    this.describe(this.focused);
    const scene = this.scene;
    const spot = this.focused;
    if (!scene || !spot) {
      this.reader.replaceChildren();
      this.element.removeAttribute("aria-activedescendant");
      return;
    }
    const { layout, box } = spot;
    const { tree } = layout;
    const siblings = box > 0 ? layout.childrenOf(tree.parent[box]!) : Int32Array.of(0);
    const item = (one: number, id: string, position: number, count: number) =>
      el("div", {
        role: "treeitem", id, "aria-level": tree.depth[one]! + 1, "aria-setsize": count, "aria-posinset": position,
        "aria-expanded": layout.childCount[one] ? "true" : undefined, "aria-selected": id === "graph-here" ? "true" : "false",
      }, this.sentence({ layout, box: one }));
    const children = [...layout.childrenOf(box).subarray(0, 20)];
    this.reader.replaceChildren(
      item(box, "graph-here", siblings.indexOf(box) + 1, siblings.length),
      ...children.map((child, index) => item(child, `graph-child-${index}`, index + 1, layout.childCount[box]!)),
    );
    this.element.setAttribute("aria-activedescendant", "graph-here");
  }

  private describe(spot: Spot | undefined): void {
    const scene = this.scene;
    if (!scene) return;
    const shown = spot ?? { layout: scene.main, box: this.zoomBox };
    const { layout, box } = shown;
    const { tree } = layout;
    const frame = tree.frame[box]!;
    const name = this.nameOf(tree, box);
    const bytes = tree.bytes[box]!, blocks = Math.round(tree.blocks[box]!);
    const isEstimate = scene.sampled && tree.variance[box]! > 0;
    const tilde = isEstimate ? "~" : "";
    const parts: Node[] = [
      el("span", { class: "amount" }, `${tilde}${size(bytes)}`),
      el("span", { class: "quiet" }, ` in ${tilde}${counted(blocks, scene.noun)}`),
      el("span", { class: "share" }, share(layout.value[box]!, layout.value[0]!)),
    ];
    if (isEstimate) {
      const [low, high] = interval(bytes, tree.variance[box]!);
      parts.push(el("span", { class: "quiet" }, `95 %: ${size(low)} to ${size(high)}`));
    }
    const hasLine = box > 0 && scene.lines;
    const where = frame < 0 ? "" : hasLine ? this.data.frames.place(frame) : this.data.frames.fileOf(frame);
    const module = frame >= 0 ? base(this.data.frames.texts[this.data.frames.module[frame]!]!) : "";
    const source = hasLine ? this.data.frames.sourceOf(frame) : "";
    const place = el("div", { class: "where" }, where);
    if (module && !where.includes(module)) place.append(el("span", { class: "quiet" }, `  ${module}`));
    const buttons = frame < 0 ? [] : [
      this.button("Callers and callees", "s", () => this.actions.sandwich(name)),
      this.button("Only this", "o", () => this.actions.only(name)),
      this.button("Hide", "h", () => this.actions.hide(name)),
    ];
    this.details.replaceChildren(
      el("div", { class: "figures" }, ...parts),
      el("div", { class: "name", title: name }, name),
      place,
      ...(source ? [el("code", { class: "source" }, source)] : []),
      el("div", { class: "actions" }, ...buttons),
    );
  }

  private button(text: string, key: string, pressed: () => void): HTMLElement {
    const button = el("button", { type: "button", title: `Key: ${key}`, tabindex: -1 }, text);
    button.addEventListener("click", pressed);
    return button;
  }

  // Moving

  private zoom({ layout, box }: Spot): void {
    if (layout === this.scene!.other) {
      this.actions.sandwich(this.nameOf(layout.tree, box));
      return;
    }
    this.actions.zoomed(layout.tree.path(box));
  }

  /** Zooms out as far as needed to see a box. */
  private reveal(box: number): void {
    const { main } = this.scene!;
    const { tree, value } = main;
    let zoom = this.zoomBox;
    const contains = (outer: number) => {
      for (let at = box; at >= 0; at = tree.parent[at]!) if (at === outer) return true;
      return false;
    };
    while (zoom > 0 && !contains(zoom)) zoom = tree.parent[zoom]!;
    // A box too narrow to see is zoomed to.
    if (value[box]! / (value[zoom]! || 1) < 0.02) zoom = tree.parent[box]! >= 0 ? tree.parent[box]! : box;
    if (value[box]! / (value[zoom]! || 1) < 0.02) zoom = box;
    if (zoom !== this.zoomBox) this.actions.zoomed(tree.path(zoom));
  }

  private key(event: KeyboardEvent): void {
    const scene = this.scene;
    if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
    const spot = (this.focused ??= { layout: scene.main, box: this.zoomBox });
    const { layout, box } = spot;
    const { tree } = layout;
    const isDown = scene.upwards !== (layout === scene.other);
    const towardsChildren = isDown ? "ArrowUp" : "ArrowDown", towardsRoot = isDown ? "ArrowDown" : "ArrowUp";
    let next: Spot | undefined;
    const siblings = () => layout.childrenOf(tree.parent[box]!);
    switch (event.key) {
      case towardsChildren:
        if (layout.childCount[box]) next = { layout, box: layout.childrenOf(box)[0]! };
        break;
      case towardsRoot:
        if (box > 0) next = { layout, box: tree.parent[box]! };
        else if (scene.other && layout === scene.main && scene.other.childCount[0]) next = { layout: scene.other, box: scene.other.childrenOf(0)[0]! };
        if (next && layout === scene.other && next.box === 0) next = { layout: scene.main, box: 0 };
        break;
      case "ArrowLeft":
      case "ArrowRight": {
        if (box === 0) break;
        const all = siblings();
        const at = all.indexOf(box) + (event.key === "ArrowRight" ? 1 : -1);
        if (at >= 0 && at < all.length) next = { layout, box: all[at]! };
        break;
      }
      case "Home":
        next = { layout: scene.main, box: 0 };
        break;
      case "Enter":
      case " ":
        this.zoom(spot);
        break;
      case "Escape":
        if (this.zoomBox === 0) return;
        this.actions.zoomed(scene.main.tree.path(tree.parent[this.zoomBox]!));
        break;
      case "s":
      case "o":
      case "h":
        if (tree.frame[box]! >= 0) {
          const name = this.nameOf(tree, box);
          if (event.key === "s") this.actions.sandwich(name);
          else if (event.key === "o") this.actions.only(name);
          else this.actions.hide(name);
        }
        break;
      default:
        return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (!next) return;
    this.focused = next;
    if (next.layout === scene.main) this.reveal(next.box);
    this.told();
    this.draw();
    const place = this.placeOf(next);
    if (place) {
      const top = this.element.getBoundingClientRect().top + place.y;
      if (top < 60 || top > innerHeight - 120) scrollBy({ top: top - innerHeight / 2 });
    }
  }
}
