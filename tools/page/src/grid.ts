// The table: rows of which only the visible ones are in the document, one tab stop, arrow keys.

import { interval } from "./amounts.ts";
import { copy, el } from "./dom.ts";
import type { Group } from "./groups.ts";
import { number, share, signed, size } from "./text.ts";

const HEIGHT = 32;
/** Rows on paper. */
const PRINTED = 100;

export interface Shown {
  groups: Group[];
  total: { bytes: number; blocks: number };
  unit: "bytes" | "blocks";
  sampled: boolean;
  /** Title of the column of bytes. */
  size: string;
  /** What the column of changes has; no column without a history. */
  change: string | undefined;
  /** Live bytes over time of a group. */
  series: ((group: Group) => Float64Array) | undefined;
  hasThrough: boolean;
  sort: string;
  filter: string;
}

interface Column {
  key: string;
  title: string;
  tip: string;
  value: (group: Group) => number | string;
}

export class Grid {
  readonly element: HTMLElement;
  readonly count = el("span", { class: "quiet", role: "status" });
  private readonly head = el("div", { class: "grid-row grid-head", role: "row", "aria-rowindex": 1 });
  private readonly body = el("div", { class: "grid-body", role: "rowgroup" });
  private readonly rows = el("div", { class: "grid-rows", role: "presentation" });
  private shown: Shown | undefined;
  private sorted: Group[] = [];
  private columns: Column[] = [];
  /** Row with the focus; -1 for the head. */
  private row = 0;
  private column = 0;

  constructor(private readonly chosen: (group: Group) => void, private readonly sortBy: (sort: string) => void) {
    this.element = el("div", { class: "grid", role: "grid", tabindex: 0, "aria-label": "Table" }, this.head, this.body);
    this.body.append(this.rows);
    this.body.addEventListener("scroll", () => this.draw());
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("focus", () => this.draw());
    this.element.addEventListener("blur", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.body);
  }

  show(shown: Shown): void {
    this.shown = shown;
    this.columns = this.columnsOf(shown);
    const wanted = shown.filter.trim().toLowerCase();
    const isWanted = (group: Group) => !wanted || `${group.name}\n${group.place}\n${group.source}`.toLowerCase().includes(wanted);
    const key = shown.sort.replace(/^-/, "");
    const column = this.columns.find((one) => one.key === key) ?? this.columns[1]!;
    const sign = shown.sort.startsWith("-") ? 1 : -1;
    this.sorted = shown.groups.filter(isWanted).sort((one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      const order = typeof a === "string" ? -String(a).localeCompare(String(b)) : a - Number(b);
      return sign * order || other.bytes - one.bytes || other.throughBytes - one.throughBytes || one.name.localeCompare(other.name);
    });
    this.row = Math.min(this.row, Math.max(this.sorted.length - 1, 0));
    this.count.textContent = `${number(this.sorted.length)} row${this.sorted.length === 1 ? "" : "s"}`;
    this.element.setAttribute("aria-rowcount", String(this.sorted.length + 1));
    this.element.setAttribute("aria-colcount", String(this.columns.length));
    this.element.style.setProperty("--columns", this.columns.map((one) => WIDTHS[one.key]).join(" "));
    this.drawHead();
    // The table ends where the window ends.
    this.body.style.height = `${Math.max(320, innerHeight - (this.body.getBoundingClientRect().top + scrollY) - 24)}px`;
    this.draw(true);
  }

  /** All rows as text with tabs. */
  async copy(): Promise<boolean> {
    const columns = this.columns.filter((column) => column.key !== "series");
    const line = (group: Group) => [...columns.map((column) => column.value(group)), group.place].join("\t");
    return copy([[...columns.map((column) => column.title), "Place"].join("\t"), ...this.sorted.map(line)].join("\n"));
  }

  private columnsOf(shown: Shown): Column[] {
    const isBytes = shown.unit === "bytes";
    const own = isBytes ? (group: Group) => group.bytes : (group: Group) => group.blocks;
    const columns: Column[] = [
      { key: "name", title: "Where", tip: "Blocks count where the program asked for them", value: (group) => group.name },
      { key: "size", title: shown.size, tip: "Bytes of the blocks", value: (group) => group.bytes },
      { key: "share", title: "Share", tip: isBytes ? "Part of all bytes" : "Part of all blocks", value: own },
      { key: "blocks", title: "Blocks", tip: "Number of blocks", value: (group) => Math.round(group.blocks) },
    ];
    if (shown.hasThrough) {
      columns.push({ key: "through", title: "With callees", tip: "Bytes of all blocks with the row anywhere in their tracebacks", value: (group) => group.throughBytes });
    }
    if (shown.change !== undefined) columns.push({ key: "change", title: "Growth", tip: shown.change, value: (group) => group.change });
    if (shown.series) columns.push({ key: "series", title: "Over time", tip: "Live bytes from the begin to the end of the recording", value: (group) => group.change });
    return columns;
  }

  private drawHead(): void {
    const { sort } = this.shown!;
    this.head.replaceChildren(...this.columns.map((column, index) => {
      const isSorted = sort.replace(/^-/, "") === column.key;
      const cell = el("div", {
        role: "columnheader", class: `cell ${column.key}${isSorted ? " sorted" : ""}`, title: column.tip, id: `head-${index}`,
        "aria-sort": isSorted ? (sort.startsWith("-") ? "ascending" : "descending") : undefined,
      }, column.title, isSorted ? el("span", { class: "arrow", "aria-hidden": "true" }, sort.startsWith("-") ? " ↑" : " ↓") : "");
      cell.addEventListener("click", () => this.turn(column.key));
      return cell;
    }));
  }

  private turn(key: string): void {
    this.sortBy(this.shown!.sort === key ? `-${key}` : key);
  }

  /** Draws the rows in the window; on paper the first rows. */
  draw(fresh = false): void {
    const shown = this.shown;
    if (!shown) return;
    const isPaper = document.documentElement.classList.contains("printing");
    const height = this.body.clientHeight || 600;
    const first = isPaper ? 0 : Math.max(0, Math.floor(this.body.scrollTop / HEIGHT) - 8);
    const last = isPaper ? Math.min(this.sorted.length, PRINTED) : Math.min(this.sorted.length, Math.ceil((this.body.scrollTop + height) / HEIGHT) + 8);
    if (fresh && this.body.scrollTop > this.sorted.length * HEIGHT) this.body.scrollTop = 0;
    this.rows.style.height = `${this.sorted.length * HEIGHT}px`;
    this.rows.replaceChildren(...this.sorted.slice(first, last).map((group, index) => this.drawRow(group, first + index, shown)));
    const hasFocus = document.activeElement === this.element;
    this.head.querySelectorAll(".cell").forEach((cell, index) => cell.classList.toggle("here", hasFocus && this.row === -1 && index === this.column));
    const here = this.row === -1 ? `head-${this.column}` : `row-${this.row}`;
    if (hasFocus && document.getElementById(here)) this.element.setAttribute("aria-activedescendant", here);
    else this.element.removeAttribute("aria-activedescendant");
  }

  private drawRow(group: Group, index: number, shown: Shown): HTMLElement {
    const isHere = index === this.row && document.activeElement === this.element;
    const row = el("div", { role: "row", class: `grid-row${isHere ? " here" : ""}`, id: `row-${index}`, "aria-rowindex": index + 2, "aria-selected": isHere ? "true" : "false" });
    row.style.top = `${index * HEIGHT}px`;
    row.append(...this.columns.map((column) => this.cell(column, group, shown)));
    row.addEventListener("click", () => {
      this.row = index;
      this.chosen(group);
    });
    return row;
  }

  private cell({ key }: Column, group: Group, shown: Shown): HTMLElement {
    const cell = el("div", { role: "gridcell", class: `cell ${key}` });
    const tilde = shown.sampled && group.variance > 0 ? "~" : "";
    switch (key) {
      case "name": {
        cell.title = `${group.name}\n${group.place}${group.source ? `\n${group.source}` : ""}`;
        cell.append(el("span", { class: "label" }, el("bdi", {}, group.name)));
        if (group.source) cell.append(el("code", {}, group.source));
        else if (group.place) cell.append(el("span", { class: "quiet" }, group.place));
        break;
      }
      case "size":
        cell.append(group.bytes ? `${tilde}${size(group.bytes)}` : "–");
        if (tilde) {
          const [low, high] = interval(group.bytes, group.variance);
          cell.title = `95 %: ${size(low)} to ${size(high)}`;
        }
        break;
      case "share": {
        const [part, whole] = shown.unit === "bytes" ? [group.bytes, shown.total.bytes] : [group.blocks, shown.total.blocks];
        const bar = el("span", { class: "bar", "aria-hidden": "true" });
        bar.style.width = `${Math.min(100, whole ? (100 * part) / whole : 0)}%`;
        cell.append(bar, el("span", {}, part ? share(part, whole) : ""));
        break;
      }
      case "blocks":
        cell.append(group.blocks ? `${tilde}${number(Math.round(group.blocks))}` : "–");
        break;
      case "through":
        cell.append(size(group.throughBytes));
        break;
      case "change":
        cell.append(group.change ? signed(size(group.change), group.change) : "");
        cell.classList.add(group.change > 0 ? "up" : "down");
        break;
      case "series":
        cell.append(sparkline(shown.series!(group)));
        break;
    }
    return cell;
  }

  private key(event: KeyboardEvent): void {
    const page = Math.max(1, Math.floor(this.body.clientHeight / HEIGHT) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step !== undefined) {
      const least = event.key === "ArrowUp" ? -1 : 0;
      this.row = Math.min(Math.max(this.row + step, least), this.sorted.length - 1);
      const top = this.row * HEIGHT;
      if (this.row >= 0 && top < this.body.scrollTop) this.body.scrollTop = top;
      if (top + HEIGHT > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = top + HEIGHT - this.body.clientHeight;
    } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && this.row === -1) {
      this.column = Math.min(Math.max(this.column + (event.key === "ArrowRight" ? 1 : -1), 0), this.columns.length - 1);
    } else if (event.key === "Enter") {
      if (this.row === -1) this.turn(this.columns[this.column]!.key);
      else if (this.sorted[this.row]) this.chosen(this.sorted[this.row]!);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }
}

const WIDTHS: Record<string, string> = {
  name: "minmax(12rem, 1fr)", size: "6.5rem", share: "8rem", blocks: "7rem", through: "7rem", change: "7rem", series: "8rem",
};

/** A small line of values, as a picture that needs no words: the numbers stand beside it. */
function sparkline(values: Float64Array): SVGElement {
  const [width, height] = [110, 20];
  const most = values.reduce((most, value) => Math.max(most, value), 0);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", String(width));
  svg.setAttribute("height", String(height));
  svg.setAttribute("aria-hidden", "true");
  if (most > 0) {
    const points = Array.from(values, (value, index) =>
      `${((index / (values.length - 1)) * width).toFixed(1)},${(height - 1 - (Math.max(value, 0) / most) * (height - 3)).toFixed(1)}`);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("points", points.join(" "));
    svg.append(line);
  }
  return svg;
}
