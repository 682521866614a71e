// Memory over time: lines of the domains, resident memory, threads, marks. A click chooses an instant, a drag a range.

import type { Data } from "./data.ts";
import { el, onceAFrame, Surface } from "./dom.ts";
import { type Palette, palette } from "./palette.ts";
import { clock, size, span } from "./text.ts";

const HEIGHT = 132, BOTTOM = 18, TOP = 16, RIGHT = 8, THREADS = 16;

/** Most domains with a line; the chosen domain always has one. */
const MOST_DOMAINS = 4;

/** A line of the chart. Times and values run together. */
interface Line {
  name: string;
  /** Number of the domain; -1 for resident memory. */
  domain: number;
  values: Float64Array;
  /** The greatest values within the steps. */
  greatest: Float64Array | undefined;
  colour: number;
  isDashed: boolean;
}

export interface Chosen {
  moment: string;
  at: number;
  since: number;
  domain: number;
}

export class Timeline {
  readonly element: HTMLElement;
  private readonly surface = new Surface();
  private readonly legend = el("div", { class: "legend" });
  private readonly said = el("div", { class: "said", "aria-live": "polite" });
  private colours: Palette = palette();
  private readonly begin: number;
  private readonly end: number;
  private readonly offset: number;
  private readonly times: Float64Array;
  private readonly all: Line[] = [];
  private readonly greatest: Set<number>;
  private readonly threads: Float64Array;
  /** Limit of the control group; 0 for none. */
  private readonly limit: number;
  private readonly marks: { time: number; text: string; isUsers: boolean }[] = [];
  /** Whether there is one process: processes of a tree have peaks of their own. */
  private readonly isOne: boolean;
  private chosen: Chosen | undefined;
  private drag: { from: number; to: number } | undefined;
  private pointer: number | undefined;
  private readonly left = 64;
  private readonly redraw = onceAFrame(() => this.draw());

  /** Without `choose` the chart is a picture. */
  constructor(data: Data, private readonly choose: ((since: number | undefined, at: number | undefined) => void) | undefined) {
    const histories = data.histories.filter((history) => !data.head.processes[history.process]!.old);
    this.isOne = histories.length === 1;
    this.begin = Math.min(...histories.map((history) => history.begun));
    this.end = Math.max(...histories.map((history) => history.last));
    this.offset = histories[0]?.utcOffset ?? 0;
    const times = new Set<number>();
    for (const history of histories) history.end.forEach((end) => times.add(history.begun + end));
    this.times = Float64Array.from(times).sort();
    // Sums over the processes, each with its own steps.
    const sumOf = (of: (index: number, step: number) => number) => {
      const values = new Float64Array(this.times.length);
      histories.forEach((history, index) => {
        this.times.forEach((time, at) => {
          const step = history.stepAt(time);
          const isOver = time > history.last && history.last < this.end;
          if (step !== undefined && !isOver) values[at]! += of(index, step);
        });
      });
      return values;
    };
    let colour = 0;
    data.head.domains.forEach((domain, number) => {
      if (domain.name === "mmap:reserved" || !histories.some((history) => history.domains.has(number))) return;
      const series = (index: number) => histories[index]!.domains.get(number);
      const values = sumOf((index, step) => series(index)?.current[step] ?? 0);
      const greatest = sumOf((index, step) => series(index)?.greatest[step] ?? 0);
      this.all.push({ name: domain.name, domain: number, values, greatest, colour: colour % 4, isDashed: false });
      colour += 1;
    });
    const resident = sumOf((index, step) => histories[index]!.resident[step]!);
    if (resident.some((value) => value > 0)) {
      this.all.push({ name: "RSS", domain: -1, values: resident, greatest: undefined, colour: 4, isDashed: true });
    }
    const swap = sumOf((index, step) => histories[index]!.swap[step]!);
    if (swap.some((value) => value > 0)) {
      this.all.push({ name: "swap", domain: -1, values: swap, greatest: undefined, colour: 3, isDashed: true });
    }
    // Processes of a tree share their control group.
    this.limit = Math.max(0, ...histories.map((history) => (history.limit[history.limit.length - 1] ?? 0) - 1));
    this.threads = sumOf((index, step) => histories[index]!.threads[step]!);
    for (const history of histories) {
      for (const mark of history.marks) {
        this.marks.push({ time: history.begun + mark.at, text: mark.text || mark.kind, isUsers: mark.kind === "mark" });
      }
    }
    const most = (line: Line) => line.greatest?.reduce((most, value) => Math.max(most, value), 0) ?? 0;
    const domains = this.all.filter((line) => line.domain >= 0).sort((one, other) => most(other) - most(one));
    this.greatest = new Set(domains.slice(0, MOST_DOMAINS).map((line) => line.domain));
    this.element = el("section", { class: "timeline", "aria-label": "Memory over time" });
    const chart = choose
      ? el("div", {
        class: "chart", tabindex: 0, role: "slider", "aria-label": "Instant", "aria-valuemin": 0,
        "aria-valuemax": this.times.length - 1, "aria-valuenow": this.times.length - 1,
      }, this.surface.canvas)
      : el("div", { class: "chart" }, this.surface.canvas);
    this.element.append(el("div", { class: "chart-head" }, this.legend, this.said), chart);
    const { canvas } = this.surface;
    const timeOf = (event: MouseEvent) => this.timeAt(event.clientX - canvas.getBoundingClientRect().left);
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.choose) return;
      canvas.setPointerCapture(event.pointerId);
      this.drag = { from: timeOf(event), to: timeOf(event) };
      this.redraw();
    });
    canvas.addEventListener("pointermove", (event) => {
      this.pointer = timeOf(event);
      if (this.drag) this.drag.to = this.pointer;
      this.tell();
      this.redraw();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!this.drag || !this.choose) return;
      const [from, to] = [this.drag.from, timeOf(event)];
      this.drag = undefined;
      const isClick = Math.abs(this.x(from) - this.x(to)) < 4;
      if (isClick) this.choose(undefined, this.snapped(to));
      else this.choose(this.snapped(Math.min(from, to)), this.snapped(Math.max(from, to)));
    });
    canvas.addEventListener("pointercancel", () => (this.drag = undefined));
    canvas.addEventListener("pointerleave", () => {
      this.pointer = undefined;
      this.tell();
      this.redraw();
    });
    if (choose) chart.addEventListener("keydown", (event) => this.key(event, choose));
    new ResizeObserver(this.redraw).observe(this.element);
  }

  show(chosen: Chosen): void {
    this.chosen = chosen;
    const chart = this.element.querySelector(".chart")!;
    if (this.choose) {
      const at = chosen.moment === "instant" || chosen.moment === "range" ? chosen.at : this.end;
      chart.setAttribute("aria-valuenow", String(this.index(at)));
      chart.setAttribute("aria-valuetext", this.words() || `${this.clock(at)}, the end`);
    }
    this.tell();
    this.redraw();
  }

  recolour(): void {
    this.colours = palette();
    this.redraw();
  }

  /** The lines that are drawn: those of the process, and of the domains with the greatest memory. */
  private get lines(): Line[] {
    return this.all.filter((line) => line.domain < 0 || line.domain === this.chosen?.domain || this.greatest.has(line.domain));
  }

  /** Time of the greatest memory of a domain. */
  peakOf(domain: number): number {
    const values = this.all.find((line) => line.domain === domain)?.greatest;
    let at = this.times.length - 1;
    values?.forEach((value, index) => {
      if (value > values[at]!) at = index;
    });
    return this.times[at]!;
  }

  /** Words for the chosen instant or range. */
  words(): string {
    const chosen = this.chosen;
    if (chosen?.moment === "instant") return `at ${this.clock(chosen.at)}`;
    if (chosen?.moment === "range") return `${this.clock(chosen.since)} to ${this.clock(chosen.at)} (${span(chosen.at - chosen.since)})`;
    return "";
  }

  /** Times of day; of a short recording with milliseconds. */
  private clock(time: number): string {
    const isShort = this.end - this.begin < 20_000;
    const text = clock(time, this.offset, this.end - this.begin > 86_400_000);
    return isShort ? `${text}.${String(Math.round(time) % 1000).padStart(3, "0")}` : text;
  }

  private index(time: number): number {
    let low = 0, high = this.times.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle]! < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** End of the step that contains a time: the instant whose memory is known. */
  private snapped(time: number): number {
    return this.times[this.index(time)]!;
  }

  private x(time: number): number {
    const width = Math.max(this.surface.width - this.left - RIGHT, 1);
    return this.left + ((time - this.begin) / Math.max(this.end - this.begin, 1)) * width;
  }

  private timeAt(x: number): number {
    const width = Math.max(this.surface.width - this.left - RIGHT, 1);
    const part = Math.min(Math.max((x - this.left) / width, 0), 1);
    return this.begin + part * (this.end - this.begin);
  }

  private key(event: KeyboardEvent, choose: NonNullable<Timeline["choose"]>): void {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape") {
      choose(undefined, undefined);
    } else if (step !== undefined) {
      const chosen = this.chosen;
      const isChosen = chosen?.moment === "instant" || chosen?.moment === "range";
      const at = isChosen ? chosen.at : this.end;
      const next = this.times[Math.min(Math.max(this.index(at) + step, 0), this.times.length - 1)]!;
      if (event.shiftKey) {
        const since = chosen?.moment === "range" ? chosen.since : at;
        if (next !== since) choose(Math.min(since, next), Math.max(since, next));
      } else {
        choose(undefined, next);
      }
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  private tell(): void {
    const time = this.pointer === undefined ? undefined : this.snapped(this.pointer);
    const at = time === undefined ? (this.chosen?.moment === "instant" ? this.index(this.chosen.at) : this.times.length - 1) : this.index(time);
    const items = this.lines.map((line) => {
      const swatch = el("span", { class: `swatch series-${line.colour + 1}${line.isDashed ? " dashed" : ""}` });
      return el("span", {}, swatch, line.domain === this.chosen?.domain ? el("b", {}, `${line.name} `) : `${line.name} `, el("b", {}, size(line.values[at] ?? 0)));
    });
    if (this.limit > 0) items.push(el("span", {}, "limit ", el("b", {}, size(this.limit))));
    if (this.threads.some((count) => count > 0)) items.push(el("span", {}, "threads ", el("b", {}, String(this.threads[at] ?? 0))));
    this.legend.replaceChildren(...items);
    const dragged = this.drag;
    let words: string;
    if (dragged && Math.abs(this.x(dragged.from) - this.x(dragged.to)) >= 4) {
      const [since, until] = [Math.min(dragged.from, dragged.to), Math.max(dragged.from, dragged.to)];
      words = `${this.clock(this.snapped(since))} to ${this.clock(this.snapped(until))}`;
    } else if (time !== undefined) {
      words = this.clock(time);
      const mark = this.marks.find((mark) => Math.abs(this.x(mark.time) - this.x(this.pointer!)) < 5);
      if (mark) words += ` · ${mark.text}`;
    } else {
      words = this.words() || (this.choose ? "Click: an instant. Drag: a range." : "");
    }
    this.said.textContent = words;
  }

  private draw(): void {
    const width = this.element.clientWidth;
    if (width === 0) return;
    const context = this.surface.resize(width, HEIGHT);
    const colours = this.colours;
    const floor = HEIGHT - BOTTOM - THREADS;
    let most = 1;
    for (const line of this.lines) for (const value of line.greatest ?? line.values) most = Math.max(most, value);
    // A limit far above is told in the legend alone.
    const hasLimit = this.limit > 0 && this.limit < 3 * most;
    if (hasLimit) most = Math.max(most, this.limit);
    const step = nice(most / 3);
    const top = Math.ceil(most / step) * step;
    const y = (value: number) => floor - (value / top) * (floor - TOP);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (let value = 0; value <= top; value += step) {
      context.fillStyle = colours.quiet;
      context.fillText(value === 0 ? "0" : size(value), this.left - 8, y(value));
      context.fillStyle = colours.line;
      context.fillRect(this.left, Math.round(y(value)), width - this.left - RIGHT, 1);
    }
    this.drawTimes(context, width);
    this.drawChosen(context, floor);
    for (const mark of this.marks) {
      const x = Math.round(this.x(mark.time));
      context.fillStyle = mark.isUsers ? colours.accent : colours.faint;
      context.fillRect(x, mark.isUsers ? TOP - 4 : floor - 6, 1, mark.isUsers ? floor - TOP + 4 : 6);
      if (!mark.isUsers) continue;
      context.textAlign = x > width - 90 ? "right" : "left";
      context.fillText(mark.text.slice(0, 24), x + (x > width - 90 ? -3 : 3), TOP - 7);
    }
    for (const line of this.lines) this.drawLine(context, line, y);
    if (hasLimit) {
      context.fillStyle = colours.limit;
      context.fillRect(this.left, Math.round(y(this.limit)), width - this.left - RIGHT, 1.5);
      context.textAlign = "right";
      context.fillText("limit", width - RIGHT, y(this.limit) - 7);
    }
    this.drawThreads(context, floor);
    this.drawPeak(context, y);
    if (this.pointer !== undefined && !this.drag) {
      context.fillStyle = colours.quiet;
      context.fillRect(Math.round(this.x(this.snapped(this.pointer))), TOP, 1, floor - TOP);
    }
  }

  private drawLine(context: CanvasRenderingContext2D, line: Line, y: (value: number) => number): void {
    const colour = this.colours.series[line.colour % this.colours.series.length]!;
    const count = this.times.length;
    const path = (values: Float64Array) => {
      context.beginPath();
      // Of the steps within a pixel the greatest stays.
      let lastX = -1, greatest = 0;
      for (let index = 0; index < count; index += 1) {
        const x = this.x(this.times[index]!);
        const pixel = Math.round(x * 2);
        greatest = pixel === lastX ? Math.max(greatest, values[index]!) : values[index]!;
        lastX = pixel;
        const next = index + 1 < count ? Math.round(this.x(this.times[index + 1]!) * 2) : -1;
        if (next !== pixel) context.lineTo(x, y(greatest));
      }
    };
    const isChosen = line.domain === this.chosen?.domain;
    if (line.greatest && isChosen) {
      path(line.greatest);
      context.lineTo(this.x(this.end), y(0));
      context.lineTo(this.x(this.begin), y(0));
      context.fillStyle = colour;
      context.globalAlpha = 0.16;
      context.fill();
      context.globalAlpha = 1;
    }
    path(line.values);
    context.strokeStyle = colour;
    context.lineWidth = isChosen ? 2 : 1.2;
    context.setLineDash(line.isDashed ? [5, 4] : []);
    context.stroke();
    context.setLineDash([]);
  }

  private drawPeak(context: CanvasRenderingContext2D, y: (value: number) => number): void {
    const line = this.lines.find((line) => line.domain === this.chosen?.domain);
    if (!line?.greatest || !this.isOne) return;
    const time = this.peakOf(line.domain);
    context.fillStyle = this.colours.series[line.colour % this.colours.series.length]!;
    context.beginPath();
    context.arc(this.x(time), y(line.greatest[this.index(time)]!), 3, 0, 2 * Math.PI);
    context.fill();
  }

  private drawThreads(context: CanvasRenderingContext2D, floor: number): void {
    let most = 0;
    for (const count of this.threads) most = Math.max(most, count);
    if (most < 2) return;
    context.fillStyle = this.colours.faint;
    const bottom = floor + THREADS;
    context.beginPath();
    for (let index = 1; index < this.times.length; index += 1) {
      const [from, to] = [this.x(this.times[index - 1]!), this.x(this.times[index]!)];
      const height = (this.threads[index]! / most) * (THREADS - 6);
      context.rect(from, bottom - height, to - from, height);
    }
    context.fill();
    context.fillStyle = this.colours.quiet;
    context.textAlign = "right";
    context.fillText("threads", this.left - 8, bottom - 4);
  }

  private drawTimes(context: CanvasRenderingContext2D, width: number): void {
    const length = Math.max(this.end - this.begin, 1);
    const wanted = length / Math.max(2, Math.floor((width - this.left) / 120));
    const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5, 72e5, 216e5, 432e5, 864e5, 1728e5, 6048e5];
    const step = steps.find((one) => one >= wanted) ?? 6048e5;
    context.fillStyle = this.colours.quiet;
    // Of a short recording, times count from the begin.
    const isShort = length < 20_000;
    const zone = this.offset * 1000;
    for (let time = isShort ? this.begin : Math.ceil((this.begin + zone) / step) * step - zone; time <= this.end; time += step) {
      const x = this.x(time);
      const text = isShort ? `+${span(time - this.begin)}` : clock(time, this.offset).slice(0, step < 60_000 ? 8 : 5);
      context.textAlign = "center";
      if (x >= this.left && x < width - 26) context.fillText(text, x, HEIGHT - BOTTOM / 2);
    }
  }

  private drawChosen(context: CanvasRenderingContext2D, floor: number): void {
    const chosen = this.chosen;
    const range = this.drag && Math.abs(this.x(this.drag.from) - this.x(this.drag.to)) >= 4
      ? [Math.min(this.drag.from, this.drag.to), Math.max(this.drag.from, this.drag.to)] as const
      : chosen?.moment === "range" ? [chosen.since, chosen.at] as const : undefined;
    context.fillStyle = this.colours.accent;
    if (range) {
      const [from, to] = [this.x(range[0]), this.x(range[1])];
      context.globalAlpha = 0.14;
      context.fillRect(from, TOP, to - from, floor - TOP);
      context.globalAlpha = 1;
      context.fillRect(from, TOP, 1, floor - TOP);
      context.fillRect(to, TOP, 1, floor - TOP);
    } else if (chosen?.moment === "instant" || (chosen?.moment === "peak" && this.isOne)) {
      const x = this.x(chosen.moment === "peak" ? this.peakOf(chosen.domain) : chosen.at);
      context.fillRect(x - 0.75, TOP - 4, 1.5, floor - TOP + 4);
    }
  }
}

/** A round number of bytes, at least as large. */
function nice(value: number): number {
  let unit = 1;
  while (unit * 1024 <= value) unit *= 1024;
  for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500]) if (step * unit >= value) return step * unit;
  return unit * 1024;
}
